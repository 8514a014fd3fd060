package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/wire"
)

// bubble is three locators and some nodes over one memoryServer, in time that is
// made up. Nodes follow the ring and send heartbeats; probes are answered from
// what the nodes are set to.
type bubble struct {
	*testing.T
	srv  *memoryServer
	locs []*syncLocator

	mu      sync.Mutex
	nodes   map[string]*syncNode
	boots   map[string]int    // processes that were started, by node
	blocked map[string]answer // "loc-1 a": what its probes of that node's peer address meet
	history []ring.Document   // all that was ever stored
}

type syncLocator struct {
	id     string
	bus    *memory
	rings  *Rings
	keeper *Keeper
}

// syncNode is a node's process; what may change is under the bubble's lock.
type syncNode struct {
	beat  NodeBeat
	peer  answer
	dead  bool
	stuck bool // it still has sessions that must go
	poke  chan struct{}
}

// inBubble runs a test in made up time and logs how long it took.
func inBubble(t *testing.T, test func(b *bubble)) {
	begin := time.Now()
	var virtual time.Duration
	synctest.Test(t, func(t *testing.T) {
		b := &bubble{T: t, srv: newMemoryServer(), nodes: map[string]*syncNode{}, boots: map[string]int{}, blocked: map[string]answer{}}
		b.srv.lag = 2 * time.Millisecond // so that who publishes is not alone
		b.srv.stored = b.record
		for i := range 3 {
			b.locs = append(b.locs, b.locator(fmt.Sprintf("loc-%d", i+1)))
		}
		start := time.Now()
		test(b)
		virtual = time.Since(start)
		t.Logf("changes: %s", strings.Join(b.reasons(), ", "))
	})
	t.Logf("%s of the cluster's time in %s", virtual, time.Since(begin).Round(time.Millisecond))
}

// noErrors is a log that fails the test for what must never happen: two rings
// of one epoch are logged so.
type noErrors struct {
	slog.Handler
	t *testing.T
}

func (h noErrors) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelError }
func (h noErrors) Handle(_ context.Context, r slog.Record) error {
	h.t.Errorf("logged: %s", r.Message)
	return nil
}

func (b *bubble) locator(id string) *syncLocator {
	log := slog.New(noErrors{slog.DiscardHandler, b.T})
	l := &syncLocator{id: id, bus: b.srv.connect("c")}
	l.rings = NewRings(l.bus, log)
	l.keeper = NewKeeper(l.bus, l.rings, log, id, true)
	l.keeper.ask = func(ctx context.Context, p *probe) { b.ask(ctx, id, p) }
	background(b.T, l.rings.Run)
	background(b.T, l.keeper.Run)
	background(b.T, func(ctx context.Context) error {
		every := time.NewTicker(BeatInterval)
		defer every.Stop()
		for {
			BeatLocator(l.bus, LocatorBeat{ID: id, Epoch: l.rings.Current().Epoch, Suspects: l.keeper.Suspects(), Time: time.Now()})
			select {
			case <-ctx.Done():
				return nil
			case <-every.C:
			}
		}
	})
	return l
}

// node starts the next process of a node; the one before must be dead.
func (b *bubble) node(id string) *syncNode {
	n := &syncNode{poke: make(chan struct{}, 1)}
	b.mu.Lock()
	b.boots[id]++
	n.beat = beatOf(id, b.boots[id])
	b.nodes[id] = n
	b.mu.Unlock()
	bus := b.srv.connect("c")
	rings := NewRings(bus, quiet)
	background(b.T, rings.Run)
	background(b.T, func(ctx context.Context) error {
		every := time.NewTicker(BeatInterval)
		defer every.Stop()
		for {
			changed := rings.Changed()
			b.mu.Lock()
			n.beat.Epoch, n.beat.Time = rings.Current().Epoch, time.Now()
			if !n.stuck {
				n.beat.Settled = n.beat.Epoch
			}
			beat, dead := n.beat, n.dead
			b.mu.Unlock()
			if !dead {
				BeatNode(bus, beat)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-every.C:
			case <-changed:
			case <-n.poke:
			}
		}
	})
	return n
}

// set changes a node, which says so at once.
func (b *bubble) set(n *syncNode, change func(n *syncNode)) {
	b.mu.Lock()
	change(n)
	b.mu.Unlock()
	select {
	case n.poke <- struct{}{}:
	default:
	}
}

// kill ends a process as kill -9 does, when it has not just sent a heartbeat:
// one that arrives after the first probe keeps it in the ring for 3 s.
func (b *bubble) kill(n *syncNode) {
	time.Sleep(2 * tick) // of made up time
	b.set(n, func(n *syncNode) { n.dead, n.peer = true, refuses })
}

func (b *bubble) drain(n *syncNode) {
	b.set(n, func(n *syncNode) { n.beat.State, n.stuck = wire.StateDraining, true })
}

// block has a locator's probes of a node's peer address go wrong; answers ends it.
func (b *bubble) block(how answer, loc *syncLocator, node string) {
	b.mu.Lock()
	b.blocked[loc.id+" "+node] = how
	b.mu.Unlock()
}

// ask answers a locator's probe.
func (b *bubble) ask(ctx context.Context, loc string, p *probe) {
	b.mu.Lock()
	how := refuses
	n := b.nodes[p.node]
	if n != nil && (p.url == n.beat.PeerURL || p.public && p.url == n.beat.URL) {
		how = n.peer
		p.health = Health{Node: p.node, Boot: n.beat.Boot, Epoch: n.beat.Epoch, Settled: n.beat.Settled}
	}
	if x := b.blocked[loc+" "+p.node]; x != answers && !p.public {
		how = x
	}
	b.mu.Unlock()
	p.ok, p.refused = how == answers, how == refuses
	if how == mute {
		select {
		case <-ctx.Done():
		case <-time.After(probeTimeout):
		}
	}
}

// record judges each ring that is stored: the epochs are 1, 2, 3 and so on.
func (b *bubble) record(cluster, bucket, key string, v []byte) {
	if bucket != bucketRing {
		return
	}
	d, err := ring.Decode(v, "c")
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil || d.Epoch != uint64(len(b.history)+1) || key != keyRing || cluster != "c" {
		b.Errorf("stored after %d rings: epoch %d by %s (%v)", len(b.history), d.Epoch, d.Change.By, err)
	}
	b.history = append(b.history, d)
}

func (b *bubble) published() []ring.Document {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.history)
}

func (b *bubble) reasons() (out []string) {
	for _, d := range b.published() {
		out = append(out, fmt.Sprintf("%s %v", d.Change.Reason, d.Change.Nodes))
	}
	return out
}

// shape is who is in a ring, "a b", who leaves it, "-c", and that a handoff is
// unfinished, "*".
func shape(r *ring.Ring) string {
	var l []string
	for _, n := range r.Nodes {
		l = append(l, n.ID)
	}
	for _, n := range r.Leaving {
		l = append(l, "-"+n.ID)
	}
	if !r.Settled() {
		l = append(l, "*")
	}
	return strings.Join(l, " ")
}

// until waits until these locators go by a ring of that shape, and returns how
// long that took.
func (b *bubble) until(limit time.Duration, want string, locs ...*syncLocator) time.Duration {
	b.Helper()
	begin, over := time.Now(), time.After(limit)
	for _, l := range locs {
		for {
			changed := l.rings.Changed()
			if shape(l.rings.Current()) == want {
				break
			}
			select {
			case <-changed:
			case <-over:
				b.Fatalf("after %s %s goes by %q, want %q (changes: %s)", limit, l.id, shape(l.rings.Current()), want, strings.Join(b.reasons(), ", "))
			}
		}
	}
	return time.Since(begin)
}

// agree fails unless these locators, and their keepers, go by the newest ring.
func (b *bubble) agree(locs ...*syncLocator) {
	b.Helper()
	time.Sleep(tick) // of made up time: each keeper has looked
	synctest.Wait()
	h := b.published()
	want := h[len(h)-1]
	for _, l := range locs {
		l.keeper.mu.Lock()
		k := l.keeper.members.cur
		l.keeper.mu.Unlock()
		r := l.rings.Current()
		if r.Epoch != want.Epoch || r.Hash != want.Hash || k.Epoch != want.Epoch || k.Hash != want.Hash {
			b.Errorf("%s goes by epoch %d %s, its keeper by %d %s, published is %d %s", l.id, r.Epoch, r.Hash, k.Epoch, k.Hash, want.Epoch, want.Hash)
		}
	}
}

// quiet lets time pass and fails if anything is published.
func (b *bubble) quiet(d time.Duration) {
	b.Helper()
	before := len(b.published())
	time.Sleep(d) // of made up time: nothing must happen in it
	synctest.Wait()
	if l := b.reasons(); len(l) != before {
		b.Fatalf("within %s there were changes for nothing: %s", d, strings.Join(l[before:], ", "))
	}
}
