package cluster

import (
	"context"
	"errors"
	"strings"

	"github.com/nats-io/nats.go"
)

// SyncedName begins the name of a NATS server, embedded in a locator, that leaves it
// to the locator to sync its disk: what it has acknowledged survives a power cut
// only after Sync.
const SyncedName = "dialring-synced-"

const subjectSync = "sync"

// NeedsSync tells whether the server that this is connected to wants Sync. It may
// wait while nats.go dials.
func (c *Conn) NeedsSync() bool { return strings.HasPrefix(c.nc.ConnectedServerName(), SyncedName) }

// Sync returns when all that was acknowledged for these streams before is on the
// server's disk.
func (c *Conn) Sync(ctx context.Context, streams []string) error {
	m, err := c.nc.RequestWithContext(ctx, c.cluster+"."+subjectSync, []byte(strings.Join(streams, " ")))
	if err == nil && len(m.Data) > 0 {
		err = errors.New(string(m.Data))
	}
	return err
}

// ServeSync answers Sync with sync, which the locator of an embedded server has,
// until ctx ends. Requests that come while one is worked on share the next one.
func ServeSync(ctx context.Context, c *Conn, sync func(streams []string) error) error {
	requests := make(chan *nats.Msg, 1024)
	s, err := c.nc.ChanSubscribe(c.cluster+"."+subjectSync, requests)
	if err != nil {
		return err
	}
	defer func() { _ = s.Unsubscribe() }()
	for {
		var all []*nats.Msg
		select {
		case <-ctx.Done():
			return nil
		case m := <-requests:
			all = append(all, m)
		}
		for more := true; more; {
			select {
			case m := <-requests:
				all = append(all, m)
			default:
				more = false
			}
		}
		names := map[string]bool{}
		var streams []string
		for _, m := range all {
			for name := range strings.FieldsSeq(string(m.Data)) {
				if strings.HasPrefix(name, c.cluster+"_") && !names[name] {
					names[name] = true
					streams = append(streams, name)
				}
			}
		}
		answer := []byte(nil)
		if err := sync(streams); err != nil {
			c.log.Error("the store's disk cannot be synced", "event", "sync_failed", "error", err)
			answer = []byte("the store's disk cannot be synced")
		}
		for _, m := range all {
			_ = m.Respond(answer) // who does not hear it tries again
		}
	}
}
