package cluster

import (
	"context"
	"errors"
	"log/slog"
	"sync"
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
	conn  *Conn
	rings *Rings
	log   *slog.Logger
	dev   bool
	wake  chan struct{} // something may be due before the next tick

	mu      sync.Mutex
	members *members
}

// tick is how often the keeper looks what is due; evidence does not wait for it.
const tick = 50 * time.Millisecond

// NewKeeper makes a keeper for the locator self.
func NewKeeper(conn *Conn, rings *Rings, log *slog.Logger, self string, dev bool) *Keeper {
	return &Keeper{conn: conn, rings: rings, log: log, dev: dev, wake: make(chan struct{}, 1), members: newMembers(self, conn.cluster)}
}

// Failed is evidence that a node could not be reached: it is probed at once.
func (k *Keeper) Failed(node string) {
	k.mu.Lock()
	k.members.evidence(node)
	k.mu.Unlock()
	k.nudge()
}

// View lists the nodes as this locator sees them.
func (k *Keeper) View(r *ring.Ring) []wire.RingNode {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.members.setRing(r.Document, time.Now())
	return k.members.view(time.Now(), r.Share)
}

func (k *Keeper) nudge() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Run keeps the ring until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	if err := k.conn.OnNodeBeat(ctx, k.dev, k.heard); err != nil {
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
		k.mu.Unlock()
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

func (k *Keeper) probe(ctx context.Context, p probe) {
	p.run(ctx)
	if ctx.Err() != nil {
		return
	}
	k.mu.Lock()
	k.members.probed(p, time.Now())
	k.mu.Unlock()
	if !p.ok {
		k.log.Debug("probe failed", "event", "probe", "node", p.node, "public", p.public, "refused", p.refused)
	}
	k.nudge()
}

// publishLoop is a goroutine of its own: while NATS does not answer, probing
// and listening go on.
func (k *Keeper) publishLoop(ctx context.Context, publish <-chan struct{}) {
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
		if !errors.Is(err, errConflict) {
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
	if !k.conn.Up() {
		return errors.New("NATS is not connected")
	}
	stored, rev, err := k.conn.loadRing(ctx)
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
	if err := k.conn.swapRing(ctx, d, rev); err != nil {
		return err
	}
	k.rings.offer(d)
	k.mu.Lock()
	k.members.setRing(d, now)
	k.mu.Unlock()
	return nil
}
