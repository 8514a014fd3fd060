package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dialring/dialring/internal/ring"
)

// Rings holds the ring that this process goes by, and follows the published
// one. The ring is never dropped because NATS is away. All methods may be
// called concurrently.
//
// A change is announced over core NATS and then read from the store. What an
// announcement misses is found after each reconnect, whenever a call carries a
// newer epoch (Refresh), and every ten seconds in any case. A KV watch is not
// used: after a restart of NATS it stays silent for 10 to 20 s.
type Rings struct {
	bus  Bus
	log  *slog.Logger
	cur  atomic.Pointer[ring.Ring]
	look chan struct{} // wakes Run

	mu      sync.Mutex // for what follows, and for all changes of cur
	changed chan struct{}
	loaded  bool
	lost    bool // the store has an older ring than this one: it lost data
}

const ringPoll = 10 * time.Second

// NewRings makes the holder of a ring; until one is read it is empty, with epoch 0.
func NewRings(bus Bus, log *slog.Logger) *Rings {
	r := &Rings{bus: bus, log: log, look: make(chan struct{}, 1), changed: make(chan struct{})}
	r.cur.Store(ring.New(ring.Document{Cluster: bus.clusterName()}))
	return r
}

// Current returns the ring to go by now, never nil.
func (r *Rings) Current() *ring.Ring { return r.cur.Load() }

// Changed returns a channel that is closed when the ring changes next. Take it
// before looking at Current.
func (r *Rings) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// Loaded tells whether the store was read at least once.
func (r *Rings) Loaded() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.loaded
}

// Lost tells whether the store, when last read, had an older ring than the one
// held here: it lost its data, and the ring must be published again.
func (r *Rings) Lost() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lost
}

// Refresh has the store looked at soon.
func (r *Rings) Refresh() {
	select {
	case r.look <- struct{}{}:
	default:
	}
}

// WaitEpoch waits until the ring has at least this epoch, or ctx ends.
func (r *Rings) WaitEpoch(ctx context.Context, epoch uint64) {
	for {
		changed := r.Changed()
		if r.Current().Epoch >= epoch {
			return
		}
		r.Refresh()
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// Run follows the published ring until ctx ends.
func (r *Rings) Run(ctx context.Context) error {
	if err := r.bus.subscribe(ctx, subjectRing, func(string, []byte) { r.Refresh() }); err != nil {
		return err
	}
	r.bus.OnUp(r.Refresh)
	poll := time.NewTicker(ringPoll)
	defer poll.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-poll.C:
		case <-r.look:
		}
		// Right after a reconnect JetStream may need a moment.
		for wait := 50 * time.Millisecond; r.bus.Up(); wait = min(2*wait, time.Second) {
			d, _, err := loadRing(ctx, r.bus)
			if err == nil {
				r.offer(d)
				break
			}
			if ctx.Err() != nil {
				return nil
			}
			r.log.Warn("the published ring cannot be read; going on with the last one", "event", "ring_unreadable", "error", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(wait):
			}
		}
	}
}

// Confirm reads the store and returns when that is done, or ctx has ended: who
// did not run for a while must not go by what it knew before.
func (r *Rings) Confirm(ctx context.Context) {
	if d, _, err := loadRing(ctx, r.bus); err == nil {
		r.offer(d)
	}
}

// Offer takes a ring that somebody else of the cluster has read, if it is newer:
// who is cut off from NATS gets it so.
func (r *Rings) Offer(d ring.Document) error {
	if d.Cluster != r.bus.clusterName() {
		return fmt.Errorf("a ring of cluster %q", d.Cluster)
	}
	if err := d.Check(); err != nil {
		return err
	}
	if d.Epoch > r.Current().Epoch {
		r.offer(d)
	}
	return nil
}

// offer takes a ring that was read from the store, or published there, if it is
// newer than the one held.
func (r *Rings) offer(d ring.Document) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.loaded = true
	cur := r.cur.Load()
	r.lost = d.Epoch < cur.Epoch
	if r.lost || d.Epoch == cur.Epoch && d.Hash == cur.Hash {
		return
	}
	if d.Epoch == cur.Epoch {
		r.log.Error("two rings of one epoch; the stored one counts", "event", "ring_conflict", "epoch", d.Epoch, "hash", d.Hash, "had", cur.Hash)
	}
	r.cur.Store(cur.Next(d))
	close(r.changed)
	r.changed = make(chan struct{})
	r.log.Info("new ring", "event", "ring", "epoch", d.Epoch, "hash", d.Hash, "nodes", len(d.Nodes),
		"reason", d.Change.Reason, "changed", d.Change.Nodes, "by", d.Change.By)
}
