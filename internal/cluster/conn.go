// Package cluster is the control plane over NATS: heartbeats, the published
// ring and keys, and, in locators, the keeper that decides who is in the ring.
// Nothing of the data path waits for it: everyone keeps the last ring and the
// keys in memory and goes on with them while NATS is away.
package cluster

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/time/rate"

	"github.com/dialring/dialring/internal/certs"
	"github.com/dialring/dialring/internal/jsapi"
)

// Options of a connection to NATS.
type Options struct {
	URL       string // one or several, comma-separated
	Token     string
	CredsFile string
	TLS       *certs.Files               // for servers with TLS; nil: the system's roots judge them, and nothing is shown
	InProcess nats.InProcessConnProvider // instead of a URL: the embedded server
	Cluster   string
	Identity  Identity
	Role      string // node or locator
	Name      string // shown in the server's connection list
	// PendingBytes is how much of each subscription may wait until it is handled, before some
	// is dropped; 0: as much as nats.go lets.
	PendingBytes int
	Log          *slog.Logger
}

// Conn is a participant's connection to NATS. It is made at once and connects,
// and reconnects, by itself for ever.
type Conn struct {
	cluster   string
	ident     Identity
	embedded  bool
	pending   int
	log       *slog.Logger
	nc        *nats.Conn
	js        jetstream.JetStream
	isUp      atomic.Bool
	slow      atomic.Int64
	unreached rate.Sometimes
	app       appStream

	mu   sync.Mutex
	onUp []func()
	kvs  map[string]jetstream.KeyValue
}

// unreachedAgain is how often the log hears that NATS cannot be reached.
const unreachedAgain = 30 * time.Second

// requestTimeout bounds each call to JetStream.
const requestTimeout = 2 * time.Second

// Connect returns a connection that may not be up yet. The error is one of the
// options only.
func Connect(o Options) (*Conn, error) {
	c := &Conn{cluster: o.Cluster, ident: o.Identity, embedded: o.InProcess != nil, pending: cmp.Or(o.PendingBytes, nats.DefaultSubPendingBytesLimit), log: o.Log, kvs: map[string]jetstream.KeyValue{},
		unreached: rate.Sometimes{Interval: unreachedAgain}}
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
		// Inboxes by which NATS permissions can keep clusters, and nodes and locators, apart.
		nats.CustomInboxPrefix(inboxPrefix(o.Cluster, o.Role)),
		nats.ConnectHandler(func(*nats.Conn) { c.up("connected to NATS") }),
		nats.ReconnectHandler(func(*nats.Conn) { c.up("connected to NATS again") }),
		nats.ClosedHandler(func(*nats.Conn) { c.isUp.Store(false) }),
		// The only word of a NATS that was never reached, or that refuses this process.
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { c.sayUnreached(err) }),
		// Else it gives up for good when it was refused twice, as while a password changes.
		nats.IgnoreAuthErrorAbort(),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			c.isUp.Store(false)
			if err != nil {
				c.log.Warn("NATS is away; going on with the last ring", "event", "nats_down", "error", err)
			}
		}),
		nats.ErrorHandler(func(_ *nats.Conn, s *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) || errors.Is(err, nats.ErrAuthRevoked) || errors.Is(err, nats.ErrAccountAuthExpired) {
				c.sayUnreached(err)
				return
			}
			if errors.Is(err, nats.ErrSlowConsumer) {
				c.slow.Add(1)
			}
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
	if o.TLS != nil {
		opts = append(opts, withTLS(o.TLS))
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

// withTLS has connections with TLS use the files as they are then. Whether there is TLS the
// scheme of the URL says; nats.go's own options would ask it of every server.
func withTLS(files *certs.Files) nats.Option {
	return func(o *nats.Options) error {
		o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
		if files.Certificate() != nil {
			o.TLSCertCB = func() (tls.Certificate, error) { return *files.Certificate(), nil }
		}
		if files.Roots() != nil {
			o.RootCAsCB = func() (*x509.CertPool, error) { return files.Roots(), nil }
		}
		return nil
	}
}

// inboxPrefix begins the inboxes of one connection; no other has it.
func inboxPrefix(cluster, role string) string {
	first, own, _ := strings.Cut(nats.NewInbox(), ".")
	return strings.Join([]string{first, cluster, cmp.Or(role, "other"), own}, ".")
}

// sayUnreached tells the log why there is no NATS; that no server is left to try says nothing.
func (c *Conn) sayUnreached(err error) {
	if errors.Is(err, nats.ErrNoServers) {
		return
	}
	c.unreached.Do(func() {
		c.log.Warn("NATS cannot be reached, or refuses this process; trying on", "event", "nats_down", "error", err)
	})
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

// Slow is how often a subscription had more waiting than it keeps, 64 MiB or 500,000
// messages: what came then was dropped. Heartbeats come again, and rings, keys and
// revocations are read from the store every ten seconds.
func (c *Conn) Slow() int64 { return c.slow.Load() }

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
	shown := ""
	if nc != nil {
		if shown = "embedded"; !c.embedded {
			shown = withoutUser(nc.ConnectedUrl())
		}
	}
	c.log.Info(msg, "event", "nats_up", "url", shown)
	for _, f := range fs {
		f()
	}
}

// withoutUser is a URL as it may be logged. (NATS's own redacted form has a token, which stands
// where a user does.)
func withoutUser(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return ""
	}
	u.User = nil
	return u.String()
}

func (c *Conn) clusterName() string  { return c.cluster }
func (c *Conn) identity() Identity   { return c.ident }
func (c *Conn) logger() *slog.Logger { return c.log }

func (c *Conn) publish(subject string, b []byte) {
	if c.Up() {
		_ = c.nc.Publish(c.cluster+"."+subject, b) // the reconnect handlers make good what was missed
	}
}

func (c *Conn) subscribe(ctx context.Context, subject string, f func(subject string, b []byte)) error {
	prefix := c.cluster + "."
	s, err := c.nc.Subscribe(prefix+subject, func(m *nats.Msg) { f(strings.TrimPrefix(m.Subject, prefix), m.Data) })
	if err == nil {
		err = s.SetPendingLimits(nats.DefaultSubPendingMsgsLimit, c.pending)
	}
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { _ = s.Unsubscribe() })
	return nil
}

// buckets are made when something is first put into them.
var buckets = map[string]jetstream.KeyValueConfig{
	bucketRing:    {Description: "dialring: the ring of this cluster", History: ringsKept},
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

// latest asks by STREAM.MSG.GET. A direct get tells the revision in a header, and gives
// that of the value, if it was written with one, the first place.
func (c *Conn) latest(ctx context.Context, bucket, key string) ([]byte, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	full := c.cluster + "_" + bucket
	m, err := c.nc.RequestWithContext(ctx, jsapi.MsgGet+"KV_"+full, fmt.Appendf(nil, `{"last_by_subj":%q}`, "$KV."+full+"."+key))
	if err != nil {
		return nil, 0, err
	}
	got, err := jsapi.ParseMsgGet(m.Data)
	switch {
	case jsapi.Is(err, jsapi.CodeNoStream):
		return nil, 0, errNoBucket
	case jsapi.Is(err, jsapi.CodeNoMessage):
		return nil, 0, errNoKey
	case err != nil:
		return nil, 0, err
	}
	if h, err := nats.DecodeHeadersMsg(got.Hdrs); len(got.Hdrs) > 0 && (err != nil || h.Get("KV-Operation") != "") {
		return nil, got.Seq, errNoKey
	}
	return got.Data, got.Seq, nil
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
		kv, err = c.createBucket(ctx, conf)
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

// forget makes the next bucket call open it anew: after an error it may be
// gone, with all the store had.
func (c *Conn) forget(name string) {
	c.mu.Lock()
	delete(c.kvs, name)
	c.mu.Unlock()
}
