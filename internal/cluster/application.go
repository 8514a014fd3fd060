package cluster

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/dialring/dialring/internal/wire"
)

// What clients send goes to the application as a request on the subject <cluster>.app,
// which one of its processes answers (they subscribe as a queue group), or into the
// stream <cluster>_app, which they read, on a subject of its own: a stream answers, too.

// ErrNobody means that nobody has subscribed.
var ErrNobody = errors.New("nobody listens")

func (c *Conn) appSubject() string     { return c.cluster + ".app" }
func (c *Conn) appKeptSubject() string { return c.cluster + ".app.kept" }
func (c *Conn) appStream() string      { return c.cluster + "_app" }

// AskApplication sends a request and waits for the answer. refused is what the
// application says in the header Dialring-Error instead.
func (c *Conn) AskApplication(ctx context.Context, b []byte) (data []byte, refused string, err error) {
	if !c.Up() {
		return nil, "", nats.ErrConnectionReconnecting
	}
	r, err := c.nc.RequestWithContext(ctx, c.appSubject(), b)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return nil, "", ErrNobody
	case err != nil:
		return nil, "", err
	}
	return r.Data, r.Header.Get(wire.HeaderError), nil
}

// appWindow is how long the stream for the application compares ids.
const appWindow = 2 * time.Minute

// appStream makes the stream once.
type appStream struct {
	mu   sync.Mutex
	made bool
}

// KeepForApplication stores a message for the application and returns its number, when it is
// as safe as a user's message. dup: one with this id is there already, and this one was
// not stored again.
func (c *Conn) KeepForApplication(ctx context.Context, id string, b []byte, age time.Duration, replicas int) (seq uint64, dup bool, err error) {
	if !c.Up() {
		return 0, false, nats.ErrConnectionReconnecting
	}
	if err := c.makeAppStream(ctx, age, replicas); err != nil {
		return 0, false, err
	}
	server, err := c.Synced()
	if err != nil {
		return 0, false, err
	}
	ack, err := c.js.PublishMsg(ctx, &nats.Msg{Subject: c.appKeptSubject(), Data: b}, jetstream.WithMsgID(id))
	if err != nil {
		c.app.mu.Lock()
		c.app.made = false // it may be gone
		c.app.mu.Unlock()
		return 0, false, err
	}
	if server != "" {
		if err := c.Sync(ctx, server, []string{c.appStream()}); err != nil {
			return 0, false, err
		}
	}
	return ack.Sequence, ack.Duplicate, nil
}

func (c *Conn) makeAppStream(ctx context.Context, age time.Duration, replicas int) error {
	c.app.mu.Lock()
	defer c.app.mu.Unlock()
	if c.app.made {
		return nil
	}
	conf := jetstream.StreamConfig{Name: c.appStream(), Description: "dialring: what clients sent to the application", Subjects: []string{c.appKeptSubject()},
		Storage: jetstream.FileStorage, MaxAge: age, Duplicates: min(appWindow, age), Replicas: cmp.Or(replicas, c.usualReplicas())}
	create := c.js.CreateStream
	if replicas == 0 {
		create = c.CreateStream
	}
	_, err := create(ctx, conf)
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // the operator's own settings of it stand
		err = nil
	}
	c.app.made = err == nil
	return err
}
