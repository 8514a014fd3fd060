package locator

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/route"
	"github.com/dialring/dialring/internal/ticket"
	"github.com/dialring/dialring/internal/wire"
)

// router is a locator's way to nodes: pushes to their users' owners, and what only
// locators do beside that.
type router struct {
	route.Router
	rings  *cluster.Rings
	keeper *cluster.Keeper
	log    *slog.Logger
	links  peer.Pool

	encoded atomic.Pointer[encodedRing] // the last one that was handed to a node
}

type encodedRing struct {
	epoch uint64
	hash  string
	b     []byte
}

func newRouter(rings *cluster.Rings, keeper *cluster.Keeper, signer *ticket.Signer, self string, log *slog.Logger) *router {
	r := &router{rings: rings, keeper: keeper, log: log}
	r.Rings, r.Links, r.Suspect = rings, &r.links, keeper.Failed
	r.links.Token = func(node string) string { return signer.Peer(self, node, time.Now()) }
	r.links.Broken = keeper.Failed // a killed process: known at once
	return r
}

// reopen is how often a link that is down is tried again.
const reopen = time.Second

// run keeps a link to every node of the ring, pushes or not, so that a process
// that dies is missed at once, until ctx ends. Before published nodes would
// refuse it, and remember for a while that they do not know its key.
func (r *router) run(ctx context.Context, published <-chan struct{}) {
	defer r.links.Close()
	select {
	case <-published:
	case <-ctx.Done():
		return
	}
	again := time.NewTicker(reopen)
	defer again.Stop()
	for {
		changed := r.rings.Changed()
		cur := r.rings.Current()
		r.links.Retain(func(id, boot string) bool {
			n, known := cur.Process(id)
			return known && n.Boot == boot
		})
		for _, n := range slices.Concat(cur.Nodes, cur.Leaving) {
			r.Link(&n).Open()
		}
		select {
		case <-changed:
		case <-again.C:
		case <-ctx.Done():
			return
		}
	}
}

// sendRing hands the ring to a node that did not take it from NATS.
func (r *router) sendRing(n ring.Node, d ring.Document) {
	e := r.encoded.Load()
	if e == nil || e.epoch != d.Epoch || e.hash != d.Hash { // a large one takes a while, and many nodes may want it
		b, err := r.rings.Encode(d)
		if err != nil {
			r.log.Error("the ring cannot be encoded", "event", "ring_unsent", "error", err)
			return
		}
		e = &encodedRing{d.Epoch, d.Hash, b}
		r.encoded.Store(e)
	}
	r.Link(&n).Do(&peer.Call{Op: peer.OpRing, JSON: true, Body: e.b, Done: func(c *peer.Call) {
		r.log.Info("a node was handed the ring", "event", "ring_sent", "node", n.ID, "epoch", d.Epoch, "error", c.Err, "status", c.Reply.Status)
	}})
}

// awaitAck asks the owner of a user, whoever that is meanwhile, how many sessions
// have acknowledged a message, until one has or the time is over.
func (r *router) awaitAck(ctx context.Context, user string, seq uint64, wait time.Duration) int {
	for end := time.Now().Add(wait); ; {
		changed := r.rings.Changed()
		cur := r.rings.Current()
		asked := time.Now()
		left := end.Sub(asked)
		owner, ok := cur.Owner(user)
		if ok {
			body, err := json.Marshal(peer.Acked{Seq: seq, WaitMS: max(0, left.Milliseconds())})
			if err != nil {
				panic(err) // plain fields always have an encoding
			}
			reply, err := r.call(ctx, owner, &peer.Call{Op: peer.OpAcked, Ring: cur.Ref(), User: user, JSON: true, Body: body})
			if err == nil && reply.Status == peer.StatusOK && reply.Delivered > 0 {
				return reply.Delivered
			}
			// It has waited as long as it does at a time, or it is about to end.
			ok = err == nil && reply.Status == peer.StatusOK && time.Since(asked) >= route.Pause
		}
		if left = time.Until(end); left <= 0 || ctx.Err() != nil {
			return 0
		}
		if !ok {
			select {
			case <-changed:
			case <-time.After(min(left, route.Pause)):
			case <-ctx.Done():
			}
		}
	}
}

// broadcast sends a call to every node and returns what each answered.
func (r *router) broadcast(id string, body []byte) wire.BroadcastResult {
	cur := r.rings.Current()
	res := wire.BroadcastResult{Failed: []string{}, Counts: map[string]int{}}
	nodes := slices.Concat(cur.Nodes, cur.Leaving) // who leaves may still hold sessions
	g := route.NewGroup(len(nodes) + 1)
	calls := make([]peer.Call, len(nodes))
	for i := range nodes {
		n := &nodes[i]
		calls[i] = peer.Call{Op: peer.OpBroadcast, Ring: cur.Ref(), ID: id, JSON: true, Body: body,
			Done: func(*peer.Call) { g.One(0) }}
		r.Link(n).Do(&calls[i])
	}
	g.One(0)
	<-g.Done
	for i, n := range nodes {
		if c := &calls[i]; c.Err != nil || c.Reply.Status != peer.StatusOK {
			res.Failed = append(res.Failed, n.ID)
			if c.Err != nil {
				r.keeper.Failed(n.ID)
			}
			continue
		}
		res.Nodes++
		res.Delivered += calls[i].Reply.Delivered
		res.Counts[n.ID] = calls[i].Reply.Delivered
	}
	return res
}
