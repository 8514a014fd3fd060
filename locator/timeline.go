package locator

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/ring"
)

// timeline is the last changes of the ring: those that the store still has when the
// locator starts, and all since then.
type timeline struct {
	rings interface {
		Current() *ring.Ring
		Changed() <-chan struct{}
	}
	published func(ctx context.Context, after uint64) ([]cluster.Published, error)
	log       *slog.Logger

	// The goroutine's own.
	revision uint64         // in the store, of the newest change
	epoch    uint64         // of it
	members  map[string]int // after it

	mu      sync.Mutex
	changes []boardChange
}

// boardChange is a change of the ring.
type boardChange struct {
	Epoch  uint64    `json:"epoch"`
	Time   time.Time `json:"time"` // by the store's clock
	Reason string    `json:"reason"`
	Nodes  []string  `json:"nodes"`
	By     string    `json:"by"`              // the locator that published it
	Size   int       `json:"size"`            // nodes in the ring after it
	Share  *float64  `json:"share,omitempty"` // of all users that got another owner; absent: not known
}

const (
	maxTimeline = 200
	// maxShares of the changes from before the start have their share worked out.
	maxShares = 32
	// maxShareWeight is the largest ring of which it is worked out at all: it takes some
	// tenths of a second there, in every locator.
	maxShareWeight = 1000
	timelineAgain  = time.Second // after the store did not answer
)

func (t *timeline) all() []boardChange {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.changes[:len(t.changes):len(t.changes)] // what is in it never changes
}

// run follows the ring until ctx ends.
func (t *timeline) run(ctx context.Context) {
	for {
		changed := t.rings.Changed()
		var again <-chan time.Time
		if want := t.rings.Current().Epoch; t.epoch < want {
			if err := t.read(ctx, want); err != nil && ctx.Err() == nil {
				t.log.Debug("the changes of the ring cannot be read; they are read again", "event", "timeline", "error", err)
			}
			if t.epoch < want { // NATS is away, or the ring came by another way
				again = time.After(timelineAgain)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-again:
		}
	}
}

// read takes what the store has and this timeline does not.
func (t *timeline) read(ctx context.Context, want uint64) error {
	list, err := t.published(ctx, t.revision)
	if err == nil && t.revision > 0 && (len(list) == 0 || list[len(list)-1].Epoch < want) {
		list, err = t.published(ctx, 0) // the store may have begun anew
	}
	if err != nil {
		return err
	}
	var add []boardChange
	for i, p := range list {
		if p.Epoch <= t.epoch {
			continue
		}
		c := boardChange{Epoch: p.Epoch, Time: p.Time.UTC(), Reason: p.Change.Reason, Nodes: p.Change.Nodes, By: p.Change.By, Size: len(p.Nodes)}
		if c.Nodes == nil {
			c.Nodes = []string{}
		}
		now := p.Members()
		if p.Epoch == t.epoch+1 && len(list)-i <= maxShares && p.Weight() <= maxShareWeight {
			sum := 0.0
			for _, share := range ring.Between(t.members, now) {
				sum += share
			}
			c.Share = &sum
		}
		t.epoch, t.members, t.revision = p.Epoch, now, p.Revision
		add = append(add, c)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	all := slices.Concat(t.changes, add)
	t.changes = all[max(0, len(all)-maxTimeline):]
	return nil
}
