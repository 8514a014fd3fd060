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

	bus   Bus
	rings *Rings
	log   *slog.Logger
	dev   bool
	ask   func(ctx context.Context, p *probe) // does a probe
	wake  chan struct{}                       // something may be due before the next tick

	doubts atomic.Pointer[doubts]

	mu      sync.Mutex
	members *members
}

// doubts are the nodes of which it will be known in a moment whether they are dead.
type doubts struct {
	nodes map[string]bool
	over  chan struct{} // closed when others took their place
}

// tick is how often the keeper looks what is due; evidence does not wait for it.
const tick = 50 * time.Millisecond

// sayAgain is how often the log hears that the ring cannot be changed.
const sayAgain = 10 * time.Second

// NewKeeper makes a keeper for the locator self.
func NewKeeper(bus Bus, rings *Rings, log *slog.Logger, self string, dev bool) *Keeper {
	k := &Keeper{bus: bus, rings: rings, log: log, dev: dev, ask: func(ctx context.Context, p *probe) { p.run(ctx) },
		wake: make(chan struct{}, 1), members: newMembers(self, bus.clusterName())}
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
		if change || k.rings.Lost() {
			select {
			case publish <- struct{}{}:
			default:
			}
		}
	}
}

func (k *Keeper) heard(b NodeBeat) {
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
	k.mu.Lock()
	k.members.probed(p, time.Now())
	k.doubtLocked(time.Now())
	k.mu.Unlock()
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

// publish reads the stored ring, works out the next one from it, and stores
// that if nobody else was faster.
func (k *Keeper) publish(ctx context.Context) error {
	if !k.bus.Up() {
		return errors.New("NATS is not connected")
	}
	stored, rev, err := loadRing(ctx, k.bus)
	if err != nil {
		return err
	}
	k.rings.offer(stored)
	now := time.Now()
	k.mu.Lock()
	k.members.setRing(k.rings.Current().Document, now)
	d, ok := k.members.next(now)
	held := k.rings.Current().Epoch
	epoch := held
	if stored.Epoch == 0 { // new, or it lost its data: no number comes twice
		epoch = k.members.epochSeen()
	}
	k.mu.Unlock()
	if stored.Epoch < held && !ok {
		d.Change = ring.Change{Reason: "restored", Nodes: []string{}, By: k.members.self}
	} else if !ok {
		return nil
	}
	d.Epoch = max(epoch, stored.Epoch) + 1
	d.Seal()
	if err := d.Check(); err != nil {
		return err
	}
	if err := swapRing(ctx, k.bus, d, rev); err != nil {
		return err
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
