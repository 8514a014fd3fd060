package cluster

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/dialring/dialring/internal/certs"
	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/wire"
)

// Keeper is a locator's part in keeping the ring: it listens to the nodes,
// probes them, and publishes the next ring when members says that one is due.
// Every locator runs one; whoever publishes an epoch first has won it. All
// methods may be called concurrently.
type Keeper struct {
	// Behind, if set before Run, is called with a node that has not taken the
	// published ring by itself. It must not block.
	Behind func(n ring.Node, d ring.Document)
	// Probed, if set before Run, is told of each probe. It must not block.
	Probed func(Probed)
	// TLS, if set before Run, is shown to the peer addresses of nodes and judges them.
	TLS *certs.Files

	bus   Bus
	rings *Rings
	log   *slog.Logger
	dev   bool
	ask   func(ctx context.Context, p *probe) // does a probe
	wake  chan struct{}                       // something may be due before the next tick

	doubts atomic.Pointer[doubts]

	looked  time.Time // Run's: the store was last looked at because nodes are ahead
	counted time.Time // publish's: the ring last counted on from an epoch of nodes

	mu      sync.Mutex
	members *members
}

// Probed is a probe that was done.
type Probed struct {
	Public      bool // of the address for clients; else of that for locators and nodes
	OK, Refused bool
}

// doubts are the nodes of which it will be known in a moment whether they are dead.
type doubts struct {
	nodes map[string]bool
	over  chan struct{} // closed when others took their place
}

// tick is how often the keeper looks what is due; evidence does not wait for it.
const tick = 50 * time.Millisecond

// lookEvery and countEvery are how often the store is looked at because heartbeats of nodes
// are ahead of the ring, and how often a ring counts on from them at most.
const (
	lookEvery  = time.Second
	countEvery = 10 * time.Second
)

// sayAgain is how often the log hears that the ring cannot be changed.
const sayAgain = 10 * time.Second

// NewKeeper makes a keeper for the locator self.
func NewKeeper(bus Bus, rings *Rings, log *slog.Logger, self string, dev bool) *Keeper {
	k := &Keeper{bus: bus, rings: rings, log: log, dev: dev,
		wake: make(chan struct{}, 1), members: newMembers(self, bus.clusterName())}
	k.ask = func(ctx context.Context, p *probe) { p.run(ctx, k.TLS, dev) }
	k.doubts.Store(&doubts{over: make(chan struct{})})
	return k
}

// Failed is evidence that a node could not be reached: it is probed at once.
func (k *Keeper) Failed(node string) {
	k.mu.Lock()
	k.members.evidence(node)
	k.doubtLocked(time.Now())
	k.mu.Unlock()
	k.nudge()
}

// Doubted tells whether a node is perhaps dead and being probed. over is closed
// when that may have changed; it takes a second at most.
func (k *Keeper) Doubted(node string) (over <-chan struct{}, yes bool) {
	d := k.doubts.Load()
	return d.over, d.nodes[node]
}

func (k *Keeper) doubtLocked(now time.Time) {
	had, have := k.doubts.Load(), k.members.doubted(now)
	if !maps.Equal(had.nodes, have) {
		k.doubts.Store(&doubts{have, make(chan struct{})})
		close(had.over)
	}
}

// View lists the nodes as this locator sees them, and the unfinished handoffs.
func (k *Keeper) View(r *ring.Ring) ([]wire.RingNode, []wire.RingHandoff) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.members.setRing(r.Document, time.Now())
	return k.members.view(time.Now(), r.Share), k.members.handoffView()
}

// Suspects lists the processes (by boot id) whose heartbeats come here and whose
// peer address does not answer.
func (k *Keeper) Suspects() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.members.suspects(time.Now())
}

// Locators counts the locators that are heard, this one included.
func (k *Keeper) Locators() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.members.liveLocators(time.Now())
}

// Candidate is the peer address of a node that wants to join and answers there; empty:
// there is none of that id.
func (k *Keeper) Candidate(node string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	m := k.members.m[node]
	if m == nil || m.cand.Boot == "" || m.candPeer.okAt.IsZero() || time.Since(m.candAt) >= silentAfter {
		return ""
	}
	return m.cand.PeerURL
}

// Hears tells whether heartbeats of a node came here of late, in the ring or not.
func (k *Keeper) Hears(node string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	m, now := k.members.m[node], time.Now()
	return m != nil && (now.Sub(m.beatAt) < silentAfter || now.Sub(m.candAt) < silentAfter)
}

// OldestHeartbeat is how long the node of the ring was silent that was so for longest.
func (k *Keeper) OldestHeartbeat(now time.Time) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	var oldest time.Duration
	for _, n := range k.members.cur.Nodes {
		oldest = max(oldest, k.members.get(n.ID).silence(now))
	}
	return oldest
}

// LocatorSeen is another locator, by its last heartbeat.
type LocatorSeen struct {
	ID       string
	Epoch    uint64 // of the ring that it goes by
	Age      time.Duration
	Suspects int // processes that it hears and cannot reach
}

// OthersSeen lists the other locators that are heard, by id.
func (k *Keeper) OthersSeen() []LocatorSeen {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.members.locatorView(time.Now())
}

func (k *Keeper) nudge() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Run keeps the ring until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	if err := OnNodeBeat(ctx, k.bus, k.dev, k.heard); err != nil {
		return err
	}
	if err := OnLocatorBeat(ctx, k.bus, k.heardLocator); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	publish := make(chan struct{}, 1)
	g.Go(func() error { k.publishLoop(ctx, publish); return nil })
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return g.Wait()
		case <-ticker.C:
		case <-k.wake:
		}
		now := time.Now()
		k.mu.Lock()
		k.members.setRing(k.rings.Current().Document, now)
		due := k.members.due(now)
		_, change := k.members.next(now)
		behind, doc := k.members.behind(now), k.members.cur
		ahead := now.Sub(k.looked) >= lookEvery && k.members.ahead(now)
		k.doubtLocked(now)
		k.mu.Unlock()
		if k.Behind != nil {
			for _, n := range behind {
				k.Behind(n, doc)
			}
		}
		for _, p := range due {
			g.Go(func() error { k.probe(ctx, p); return nil })
		}
		if ahead {
			k.looked = now
		}
		if change || ahead || k.rings.Lost() {
			select {
			case publish <- struct{}{}:
			default:
			}
		}
	}
}

func (k *Keeper) heard(b NodeBeat) {
	if o, taken := k.rings.Key(b.KID); taken && o.Node != b.ID {
		k.log.Warn("a heartbeat is refused", "event", "beat_refused", "node", b.ID, "error", "it names the key of node "+o.Node)
		return
	}
	k.mu.Lock()
	k.members.heard(b, time.Now())
	k.mu.Unlock()
}

func (k *Keeper) heardLocator(b LocatorBeat) {
	k.mu.Lock()
	k.members.heardLocator(b, time.Now())
	k.mu.Unlock()
}

func (k *Keeper) probe(ctx context.Context, p probe) {
	k.ask(ctx, &p)
	if ctx.Err() != nil {
		return
	}
	now := time.Now()
	k.mu.Lock()
	k.members.probed(p, now)
	k.doubtLocked(now)
	say := !p.ok && k.members.sayWaits(p, now)
	k.mu.Unlock()
	if say {
		address := "PEER_URL"
		if p.public {
			address = "NODE_URL"
		}
		k.log.Warn("a node wants to join, and one of its addresses does not answer here as that node", "event", "join_waits", "node", p.node, "setting", "DIALRING_"+address, "url", p.url, "error", p.err)
	}
	if k.Probed != nil {
		k.Probed(Probed{Public: p.public, OK: p.ok, Refused: p.refused})
	}
	if !p.ok {
		k.log.Debug("probe failed", "event", "probe", "node", p.node, "public", p.public, "refused", p.refused)
	}
	k.nudge()
}

// publishLoop is a goroutine of its own: while NATS does not answer, probing
// and listening go on.
func (k *Keeper) publishLoop(ctx context.Context, publish <-chan struct{}) {
	var said time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-publish:
		}
		err := k.publish(ctx)
		if err == nil || ctx.Err() != nil {
			continue
		}
		if !errors.Is(err, errConflict) && time.Since(said) >= sayAgain {
			said = time.Now()
			k.log.Warn("the ring cannot be changed now", "event", "ring_unpublished", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(tick):
		}
	}
}

// countOn gives the ring that follows d.Epoch its own. If it is behind rings that the store lost, what nodes
// have reported is of those, and ends no handoff of this one.
func countOn(d *ring.Document, epoch uint64) {
	if last := len(d.Handoffs) - 1; last >= 0 && epoch > d.Epoch+1 {
		d.Handoffs[last].Epoch = epoch - 1
	}
	d.Epoch = epoch
}

// publish reads the stored ring, works out the next one from it, and stores
// that if nobody else was faster. A stored ring that is older than what this locator
// held, or nodes go by, is of a store that has lost data or was set back: the next one
// counts on from them.
func (k *Keeper) publish(ctx context.Context) error {
	if !k.bus.Up() {
		return errors.New("NATS is not connected")
	}
	k.mu.Lock()
	seen, by := k.members.epochSeen(time.Now()) // before the store is read, which has it if it has lost nothing
	k.mu.Unlock()
	stored, rev, isSigned, err := latestRing(ctx, k.bus)
	var bad *refusedRing
	switch {
	case errors.As(err, &bad): // what this locator goes by comes in its place
		k.rings.refuse(bad)
	case err != nil:
		return err
	case isSigned && k.bus.identity().Locator == nil:
		return errors.New("other locators sign the ring and this one cannot: give it their DIALRING_CLUSTER_KEY")
	default:
		k.rings.offer(stored)
	}
	now := time.Now()
	k.mu.Lock()
	k.members.setRing(k.rings.Current().Document, now)
	d, ok := k.members.next(now)
	newest := k.rings.Current().Epoch
	k.mu.Unlock()
	ahead := seen > newest && now.Sub(k.counted) >= countEvery
	if ahead {
		newest = seen
	}
	if stored.Epoch < newest && bad == nil {
		k.log.Error("the store has an older ring than the cluster goes by; publishing one that counts on: has NATS lost data, was a backup restored, or who else writes to it?", "event", "ring_older", "stored", stored.Epoch, "epoch", newest, "node", by)
	}
	if stored.Epoch < newest && !ok {
		d.Change = ring.Change{Reason: "restored", Nodes: []string{}, By: k.members.self}
	} else if !ok {
		return nil
	}
	countOn(&d, max(newest, stored.Epoch)+1)
	d.Seal()
	if err := d.Check(); err != nil {
		return err
	}
	if err := swapRing(ctx, k.bus, d, rev); err != nil {
		return err
	}
	if ahead {
		k.counted = now
	}
	k.rings.offer(d)
	k.mu.Lock()
	k.members.setRing(d, now)
	k.mu.Unlock()
	for _, id := range lostNodes(stored, d) { // their users' last events are for others to find out
		k.bus.publish(subjectPresence, encodePresence(PresenceEvent{Event: PresenceNodeLost, Node: id, Time: time.Now().UTC().Truncate(time.Millisecond)}))
	}
	return nil
}
