package cluster

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"slices"
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
	// Refusals counts rings that broke the rules, or were not signed as they must be.
	Refusals atomic.Uint64

	bus  Bus
	log  *slog.Logger
	cur  atomic.Pointer[ring.Ring]
	look chan struct{} // wakes Run

	mu      sync.Mutex // for what follows, and for all changes of cur
	changed chan struct{}
	loaded  bool
	since   time.Time          // the first one was read
	lost    bool               // the store has an older ring than this one, or one that is refused
	refused uint64             // revision of the ring that was refused last
	keys    map[string]RingKey // by kid: of the nodes of this ring, and for a while of those before
	before  []formerRing       // the last ones, the newest last
}

// RingKey is the public key of a node, by a ring.
type RingKey struct {
	Node   string
	Public ed25519.PublicKey
	left   time.Time // since when no ring has it; zero: the ring has it
}

// formerKeys is how long the key of a node stays good that has left the ring, and how long it
// is known whom it owned: longer than the tokens that it signed before.
const formerKeys = time.Minute

type formerRing struct {
	*ring.Ring
	left time.Time
}

// formerRings bounds how many rings are kept for that.
const formerRings = 16

// Had tells whether a node owned a user by this ring or one of the last minute, or may still
// have had sessions from before.
func (r *Rings) Had(node, user string) bool {
	had := func(x *ring.Ring) bool {
		if o, ok := x.Owner(user); ok && o.ID == node {
			return true
		}
		return slices.ContainsFunc(x.Former(user), func(o *ring.Node) bool { return o.ID == node })
	}
	r.mu.Lock()
	before := slices.Clone(r.before)
	r.mu.Unlock()
	return had(r.Current()) || slices.ContainsFunc(before, func(f formerRing) bool { return time.Since(f.left) < formerKeys && had(f.Ring) })
}

// Remembers tells whether rings are known here for as long as Had looks back.
func (r *Rings) Remembers() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.since.IsZero() && time.Since(r.since) >= formerKeys
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
			if bad := (*refusedRing)(nil); errors.As(err, &bad) {
				r.refuse(bad)
				break
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

// Encode writes a ring as Offer takes it.
func (r *Rings) Encode(d ring.Document) ([]byte, error) { return encodeRing(d, r.bus) }

// Offer takes a ring that somebody else of the cluster has read, if it is newer:
// who is cut off from NATS gets it so.
func (r *Rings) Offer(b []byte) error {
	d, _, err := decodeRing(b, r.bus)
	if err != nil {
		r.Refusals.Add(1)
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
	if len(r.before) == formerRings {
		r.before = append(r.before[:0], r.before[1:]...)
	}
	r.before = append(slices.DeleteFunc(r.before, func(f formerRing) bool { return time.Since(f.left) >= formerKeys }), formerRing{cur, time.Now()})
	r.keepKeysLocked(&d)
	if r.since.IsZero() {
		r.since = time.Now()
	}
	close(r.changed)
	r.changed = make(chan struct{})
	r.log.Info("new ring", "event", "ring", "epoch", d.Epoch, "hash", d.Hash, "nodes", len(d.Nodes),
		"reason", d.Change.Reason, "changed", d.Change.Nodes, "by", d.Change.By)
}

// refuse reports a stored ring that is not to be gone by, each once.
func (r *Rings) refuse(bad *refusedRing) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.loaded, r.lost = true, true
	if r.refused == bad.revision {
		return
	}
	r.refused = bad.revision
	r.Refusals.Add(1)
	r.log.Error("the published ring is refused; going on with the last one, which locators publish again. Who wrote it?",
		"event", "ring_refused", "revision", bad.revision, "error", bad.err)
}

func (r *Rings) keepKeysLocked(d *ring.Document) {
	now := time.Now()
	had := r.keys
	r.keys = make(map[string]RingKey, len(d.Nodes)+len(d.Leaving))
	for _, list := range [][]ring.Node{d.Leaving, d.Nodes} {
		for _, n := range list {
			if pub := decodeKey(n.Key); pub != nil {
				r.keys[n.KID] = RingKey{Node: n.ID, Public: pub}
			}
		}
	}
	for kid, k := range had {
		if k.left.IsZero() {
			k.left = now
		}
		if _, stays := r.keys[kid]; !stays && now.Sub(k.left) < formerKeys {
			r.keys[kid] = k
		}
	}
}

// Key returns the public key with this id of a node that is in the ring, or was a moment ago.
func (r *Rings) Key(kid string) (RingKey, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	k, ok := r.keys[kid]
	return k, ok && (k.left.IsZero() || time.Since(k.left) < formerKeys)
}
