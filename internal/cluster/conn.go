// Package cluster is the control plane over NATS: heartbeats, the published
// ring and keys, and, in locators, the keeper that decides who is in the ring.
// Nothing of the data path waits for it: everyone keeps the last ring and the
// keys in memory and goes on with them while NATS is away.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Options of a connection to NATS.
type Options struct {
	URL       string // one or several, comma-separated
	Token     string
	CredsFile string
	InProcess nats.InProcessConnProvider // instead of a URL: the embedded server
	Cluster   string
	Name      string // shown in the server's connection list
	Log       *slog.Logger
}

// Conn is a participant's connection to NATS. It is made at once and connects,
// and reconnects, by itself for ever.
type Conn struct {
	cluster  string
	embedded bool
	log      *slog.Logger
	nc       *nats.Conn
	js       jetstream.JetStream
	isUp     atomic.Bool
	app      appStream

	mu   sync.Mutex
	onUp []func()
	kvs  map[string]jetstream.KeyValue
}

// requestTimeout bounds each call to JetStream.
const requestTimeout = 2 * time.Second

// Connect returns a connection that may not be up yet. The error is one of the
// options only.
func Connect(o Options) (*Conn, error) {
	c := &Conn{cluster: o.Cluster, embedded: o.InProcess != nil, log: o.Log, kvs: map[string]jetstream.KeyValue{}}
	opts := []nats.Option{
		nats.Name(o.Name),
		nats.RetryOnFailedConnect(true),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(250 * time.Millisecond),
		nats.ReconnectJitter(100*time.Millisecond, 100*time.Millisecond),
		// A half-open connection is found in 4 to 6 s, not in minutes.
		nats.PingInterval(2 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.Timeout(2 * time.Second),
		// So is one that takes no bytes: until then nats.go waits with its lock held.
		nats.FlusherTimeout(2 * time.Second),
		// Nothing is kept for later: an old heartbeat is worse than none.
		nats.ReconnectBufSize(-1),
		// An inbox of its own, which NATS permissions can then keep others out of.
		nats.CustomInboxPrefix(nats.NewInbox()),
		nats.ConnectHandler(func(*nats.Conn) { c.up("connected to NATS") }),
		nats.ReconnectHandler(func(*nats.Conn) { c.up("connected to NATS again") }),
		nats.ClosedHandler(func(*nats.Conn) { c.isUp.Store(false) }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			c.isUp.Store(false)
			if err != nil {
				c.log.Warn("NATS is away; going on with the last ring", "event", "nats_down", "error", err)
			}
		}),
		nats.ErrorHandler(func(_ *nats.Conn, s *nats.Subscription, err error) {
			subject := ""
			if s != nil {
				subject = s.Subject
			}
			c.log.Error("NATS reports an error", "event", "nats_error", "error", err, "subject", subject)
		}),
	}
	if o.Token != "" {
		opts = append(opts, nats.Token(o.Token))
	}
	if o.CredsFile != "" {
		opts = append(opts, nats.UserCredentials(o.CredsFile))
	}
	if o.InProcess != nil {
		opts = append(opts, nats.InProcessServer(o.InProcess))
	}
	if o.CredsFile != "" {
		if _, err := os.Stat(o.CredsFile); err != nil {
			return nil, fmt.Errorf("DIALRING_NATS_CREDS: %w", err)
		}
	}
	nc, err := nats.Connect(o.URL, opts...)
	if err != nil {
		return nil, errors.New("DIALRING_NATS_URL cannot be used: it must be like nats://host:4222, several separated by commas") // err would show a password in it
	}
	c.mu.Lock() // a handler may already run
	c.nc = nc
	c.mu.Unlock()
	if c.js, err = jetstream.New(nc, jetstream.WithDefaultTimeout(requestTimeout)); err != nil {
		nc.Close()
		return nil, err
	}
	return c, nil
}

// Close ends the connection; what was published before is flushed.
func (c *Conn) Close() {
	if c.nc.IsConnected() {
		_ = c.nc.FlushTimeout(time.Second)
	}
	c.nc.Close()
}

// NATS returns the connection itself, for the store that shares it.
func (c *Conn) NATS() *nats.Conn { return c.nc }

// Up tells whether NATS is connected now. It never waits: nats.go's own answer does,
// for as long as it dials.
func (c *Conn) Up() bool { return c.isUp.Load() }

// MaxPayload is how large a message the server takes, once it was connected.
func (c *Conn) MaxPayload() int64 { return c.nc.MaxPayload() }

// OnUp calls f, which must not block, at each connect and reconnect from now on.
func (c *Conn) OnUp(f func()) {
	c.mu.Lock()
	c.onUp = append(c.onUp, f)
	c.mu.Unlock()
	if c.Up() {
		f()
	}
}

func (c *Conn) up(msg string) {
	c.isUp.Store(true)
	c.mu.Lock()
	fs := c.onUp[:len(c.onUp):len(c.onUp)]
	nc := c.nc
	c.mu.Unlock()
	url := ""
	if nc != nil {
		if url = "embedded"; !c.embedded {
			url = nc.ConnectedUrlRedacted()
		}
	}
	c.log.Info(msg, "event", "nats_up", "url", url)
	for _, f := range fs {
		f()
	}
}

func (c *Conn) clusterName() string  { return c.cluster }
func (c *Conn) logger() *slog.Logger { return c.log }

func (c *Conn) publish(subject string, b []byte) {
	if c.Up() {
		_ = c.nc.Publish(c.cluster+"."+subject, b) // the reconnect handlers make good what was missed
	}
}

func (c *Conn) subscribe(ctx context.Context, subject string, f func(subject string, b []byte)) error {
	prefix := c.cluster + "."
	s, err := c.nc.Subscribe(prefix+subject, func(m *nats.Msg) { f(strings.TrimPrefix(m.Subject, prefix), m.Data) })
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { _ = s.Unsubscribe() })
	return nil
}

// buckets are made when something is first put into them.
var buckets = map[string]jetstream.KeyValueConfig{
	bucketRing:    {Description: "dialring: the ring of this cluster", History: 16},
	bucketRevoked: {Description: "dialring: from when on tokens of users are good", TTL: RevokedFor},
	bucketKeys:    {Description: "dialring: public keys of this cluster's processes", TTL: keyLife},
}

func (c *Conn) get(ctx context.Context, bucket, key string) ([]byte, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	kv, err := c.bucket(ctx, bucket, false)
	if err != nil {
		return nil, 0, err
	}
	e, err := kv.Get(ctx, key)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return nil, 0, errNoKey
	case err != nil:
		c.forget(bucket)
		return nil, 0, err
	}
	return e.Value(), e.Revision(), nil
}

func (c *Conn) put(ctx context.Context, bucket, key string, b []byte, rev uint64) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	kv, err := c.bucket(ctx, bucket, true)
	if err != nil {
		return err
	}
	switch rev {
	case anyRevision:
		_, err = kv.Put(ctx, key, b)
	case 0:
		_, err = kv.Create(ctx, key, b)
	default:
		_, err = kv.Update(ctx, key, b, rev)
	}
	switch {
	case errors.Is(err, jetstream.ErrKeyExists):
		return errConflict
	case err != nil:
		c.forget(bucket)
	}
	return err
}

// bucket opens, and if create is set makes, a KV bucket of the cluster. In a
// NATS cluster it has three replicas.
func (c *Conn) bucket(ctx context.Context, name string, create bool) (jetstream.KeyValue, error) {
	c.mu.Lock()
	kv := c.kvs[name]
	c.mu.Unlock()
	if kv != nil {
		return kv, nil
	}
	full := c.cluster + "_" + name // a cluster's name has no underscore: no two clusters share a bucket
	kv, err := c.js.KeyValue(ctx, full)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		if !create {
			return nil, errNoBucket
		}
		conf := buckets[name]
		conf.Bucket, conf.Storage = full, jetstream.FileStorage
		conf.Replicas = c.usualReplicas()
		kv, err = c.js.CreateKeyValue(ctx, conf)
		if errors.Is(err, jetstream.ErrBucketExists) { // another was faster
			kv, err = c.js.KeyValue(ctx, full)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("NATS bucket %s: %w", full, err)
	}
	c.mu.Lock()
	c.kvs[name] = kv
	c.mu.Unlock()
	return kv, nil
}

// usualReplicas is on how many servers something is kept if nobody says it.
func (c *Conn) usualReplicas() int {
	if c.nc.ConnectedClusterName() != "" {
		return 3
	}
	return 1
}

// forget makes the next bucket call open it anew: after an error it may be
// gone, with all the store had.
func (c *Conn) forget(name string) {
	c.mu.Lock()
	delete(c.kvs, name)
	c.mu.Unlock()
}
