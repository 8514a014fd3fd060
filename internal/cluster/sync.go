package cluster

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
)

// SyncedName begins the name of a NATS server, embedded in a locator, that leaves it
// to the locator to sync its disk: what it has acknowledged survives a power cut
// only after Sync.
const SyncedName = "dialring-synced-"

const subjectSync = "sync"

// Synced names the run of the server that this is connected to if it wants Sync; ""
// if it does not. It may wait while nats.go dials. An error: it is not known which
// server has acknowledged what came last, since the connection has broken.
func (c *Conn) Synced() (string, error) {
	id, name := c.nc.ConnectedServerId(), c.nc.ConnectedServerName()
	switch {
	case id == "" || name == "" || id != c.nc.ConnectedServerId():
		return "", errors.New("the connection to NATS broke")
	case strings.HasPrefix(name, SyncedName) && c.nc.ConnectedClusterName() == "": // in a cluster servers sync by themselves
		return id, nil
	}
	return "", nil
}

// Sync returns when all that this run of a server acknowledged for these streams
// before is on its disk. If it has ended it is an error: nobody knows what of that
// its successor has.
func (c *Conn) Sync(ctx context.Context, server string, streams []string) error {
	m, err := c.nc.RequestWithContext(ctx, c.cluster+"."+subjectSync, []byte(server+" "+strings.Join(streams, " ")))
	if err == nil && len(m.Data) > 0 {
		err = errors.New(string(m.Data))
	}
	return err
}

// Syncer is an embedded server whose disk can be synced.
type Syncer interface {
	ID() string // of its run
	Sync(streams []string) error
}

// ServeSync answers Sync in the locator of an embedded server, until ctx ends.
// Requests that come while one is worked on share the next one.
func ServeSync(ctx context.Context, c *Conn, s Syncer) error {
	requests := make(chan *nats.Msg, 1024)
	sub, err := c.nc.ChanSubscribe(c.cluster+"."+subjectSync, requests)
	if err != nil {
		return err
	}
	defer func() { _ = sub.Unsubscribe() }()
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
		id := s.ID()
		names := map[string]bool{}
		for _, m := range all {
			f := strings.Fields(string(m.Data))
			if len(f) == 0 || f[0] != id {
				continue
			}
			for _, name := range f[1:] {
				names[name] = strings.HasPrefix(name, c.cluster+"_")
			}
		}
		maps.DeleteFunc(names, func(_ string, ok bool) bool { return !ok })
		answer := ""
		if err := s.Sync(slices.Sorted(maps.Keys(names))); err != nil {
			c.log.Error("the store's disk cannot be synced", "event", "sync_failed", "error", err)
			answer = "the store's disk cannot be synced"
		}
		for _, m := range all {
			a := answer
			if !strings.HasPrefix(string(m.Data), id+" ") || s.ID() != id {
				a = "another run of the server acknowledged that"
			}
			_ = m.Respond([]byte(a)) // who does not hear it tries again
		}
	}
}
