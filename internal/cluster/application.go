package cluster

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/dialring/dialring/internal/wire"
)

// What clients send goes to the application on the subject <cluster>.app: as a
// request, which one of its processes answers (they subscribe as a queue group), or
// into the stream <cluster>_app, which they read.

// ErrNobody means that nobody has subscribed.
var ErrNobody = errors.New("nobody listens")

func (c *Conn) appSubject() string { return c.cluster + ".app" }

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

// KeepForApplication stores a message for the application and returns its number.
// A message whose id is there already is not stored again.
func (c *Conn) KeepForApplication(ctx context.Context, id string, b []byte, age time.Duration) (uint64, error) {
	if !c.Up() {
		return 0, nats.ErrConnectionReconnecting
	}
	if err := c.makeAppStream(ctx, age); err != nil {
		return 0, err
	}
	ack, err := c.js.PublishMsg(ctx, &nats.Msg{Subject: c.appSubject(), Data: b}, jetstream.WithMsgID(id))
	if err != nil {
		c.app.mu.Lock()
		c.app.made = false // it may be gone
		c.app.mu.Unlock()
		return 0, err
	}
	return ack.Sequence, nil
}

func (c *Conn) makeAppStream(ctx context.Context, age time.Duration) error {
	c.app.mu.Lock()
	defer c.app.mu.Unlock()
	if c.app.made {
		return nil
	}
	conf := jetstream.StreamConfig{Name: c.cluster + "_app", Description: "dialring: what clients sent to the application", Subjects: []string{c.appSubject()},
		Storage: jetstream.FileStorage, MaxAge: age, Duplicates: min(appWindow, age)}
	if c.nc.ConnectedClusterName() != "" {
		conf.Replicas = 3
	}
	_, err := c.js.CreateStream(ctx, conf)
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // the operator's own settings of it stand
		err = nil
	}
	c.app.made = err == nil
	return err
}
