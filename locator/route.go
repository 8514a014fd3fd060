package locator

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/ticket"
	"github.com/dialring/dialring/internal/wire"
)

// How long a push goes after its owner.
const (
	pushTimeout = 3 * time.Second
	retryPause  = 50 * time.Millisecond
	lastAnswer  = 250 * time.Millisecond // for a call that was sent just before pushTimeout
)

// router carries pushes to the nodes that own their users.
//
//	owner by the ring --> call --> reply ok: done
//	     ^                  |
//	     |                  +--> misdirected: wait for the newer ring ---+
//	     |                  +--> the user is moving, and the former -----+
//	     |                  |    owner cannot be reached                 |
//	     |                  +--> unreachable: have it probed, wait -------+
//	     +---------------------------- until 3 s are over ----------------+
//
// A call whose link broke before the answer may have been carried out. If it is to
// be stored it is sent again all the same, since the store compares keys. Else it is
// sent again only after that node's process has left the ring, and its sessions
// with it: a message must not come twice. If that does not happen in time the
// answer is 504 and not 503, which would mean that it was not accepted.
type router struct {
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
	r.links.Token = func(node string) string { return signer.Peer(self, node, time.Now()) }
	r.links.Broken = keeper.Failed // a killed process: known at once
	return r
}

func (r *router) linkOf(n *ring.Node) *peer.Link { return r.links.Get(n.ID, n.Boot, n.PeerURL) }

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
			r.linkOf(&n).Open()
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
		b, err := d.Encode()
		if err != nil {
			r.log.Error("the ring cannot be encoded", "event", "ring_unsent", "error", err)
			return
		}
		e = &encodedRing{d.Epoch, d.Hash, b}
		r.encoded.Store(e)
	}
	r.linkOf(&n).Do(&peer.Call{Op: peer.OpRing, JSON: true, Body: e.b, Done: func(c *peer.Call) {
		r.log.Info("a node was handed the ring", "event", "ring_sent", "node", n.ID, "epoch", d.Epoch, "error", c.Err, "status", c.Reply.Status)
	}})
}

// job is one push on its way. Its call's fields are set by the caller.
type job struct {
	peer.Call
	group *group

	owner   ring.Node // that answered
	epoch   uint64
	lost    bool          // an attempt may have been carried out
	problem *wire.Problem // instead of a reply
	acked   int           // sessions that acknowledged it, if the caller waits for that
}

// group waits for several jobs.
type group struct {
	left   atomic.Int64
	done   chan struct{}
	window *semaphore.Weighted // of bytes under way; nil: no limit
}

func newGroup(n int) *group {
	g := &group{done: make(chan struct{})}
	g.left.Store(int64(n))
	return g
}

// one job has ended that had so many bytes of the window.
func (g *group) one(bytes int) {
	if g.window != nil && bytes > 0 {
		g.window.Release(int64(bytes))
	}
	if g.left.Add(-1) == 0 {
		close(g.done)
	}
}

// send starts a job; its group hears of the end.
func (r *router) send(ctx context.Context, j *job) {
	cur := r.rings.Current()
	owner, ok := cur.Owner(j.User)
	if !ok {
		j.problem = noNodes()
		j.group.one(len(j.Body))
		return
	}
	j.Ring = cur.Ref()
	j.owner, j.epoch = *owner, cur.Epoch
	start := time.Now()
	j.Done = func(*peer.Call) {
		if j.settled() {
			j.group.one(len(j.Body))
			return
		}
		go func() {
			defer j.group.one(len(j.Body))
			r.again(ctx, j, start.Add(pushTimeout))
		}()
	}
	r.linkOf(owner).Do(&j.Call)
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
			ok = err == nil && reply.Status == peer.StatusOK && time.Since(asked) >= retryPause
		}
		if left = time.Until(end); left <= 0 || ctx.Err() != nil {
			return 0
		}
		if !ok {
			select {
			case <-changed:
			case <-time.After(min(left, retryPause)):
			case <-ctx.Done():
			}
		}
	}
}

// settled tells whether the call needs no further attempt.
func (j *job) settled() bool {
	return j.Err == nil && j.Reply.Status != peer.StatusMisdirected && j.Reply.Status != peer.StatusUnreached
}

// again repeats a job until it is settled or end is reached.
func (r *router) again(ctx context.Context, j *job, end time.Time) {
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	for {
		changed := r.rings.Changed()
		if p := r.waitFor(ctx, j, changed); p != nil {
			j.problem = p
			return
		}
		cur := r.rings.Current()
		owner, ok := cur.Owner(j.User)
		if !ok {
			j.problem = noNodes()
			return
		}
		j.owner, j.epoch = *owner, cur.Epoch
		// A call of its own for each attempt: one that is given up may still end.
		c := j.Call
		c.Ring = cur.Ref()
		c.Reply, c.Err = peer.Reply{}, nil
		done := make(chan struct{})
		c.Done = func(*peer.Call) { close(done) }
		link := r.linkOf(owner)
		link.Do(&c)
		select {
		case <-done:
			j.Call = c
		case <-ctx.Done():
			if link.Withdraw(&c) {
				j.Err = peer.ErrUnreachable
				break
			}
			select { // it is under way: most likely its answer is as well
			case <-done:
				j.Call = c
			case <-time.After(lastAnswer):
				j.Err = peer.ErrLost
			}
		}
		if j.settled() {
			return
		}
	}
}

// waitFor waits until another attempt makes sense, by what came of the last.
func (r *router) waitFor(ctx context.Context, j *job, changed <-chan struct{}) *wire.Problem {
	if errors.Is(j.Err, peer.ErrBusy) {
		return wire.NewProblem(503, wire.CodeOwnerUnreachable, "too much is waiting for node %s; send slower", j.owner.ID)
	}
	if j.Err != nil {
		r.keeper.Failed(j.owner.ID)
	}
	j.lost = j.lost || errors.Is(j.Err, peer.ErrLost)
	// A stored message cannot come twice: the store knows its key, or its id.
	if errors.Is(j.Err, peer.ErrLost) && !j.Durable {
		for {
			if n, in := r.rings.Current().Find(j.owner.ID); !in || n.Boot != j.owner.Boot {
				return nil
			}
			select {
			case <-changed:
				changed = r.rings.Changed()
			case <-ctx.Done():
				return wire.NewProblem(http.StatusGatewayTimeout, wire.CodeOwnerUnreachable, "node %s took the message and did not answer: it may have been delivered", j.owner.ID)
			}
		}
	}
	if j.Err == nil && j.Reply.Status == peer.StatusMisdirected && j.Peer.Epoch > j.epoch {
		r.rings.WaitEpoch(ctx, j.Peer.Epoch)
		if ctx.Err() == nil {
			return nil
		}
	}
	select {
	case <-changed:
		return nil
	case <-time.After(retryPause):
		return nil
	case <-ctx.Done():
		switch {
		case j.lost:
			return wire.NewProblem(http.StatusGatewayTimeout, wire.CodeOwnerUnreachable, "node %s took the message and did not answer: it may have been stored; push it again with the same Idempotency-Key", j.owner.ID)
		case j.Err == nil && j.Reply.Status == peer.StatusMisdirected:
			return wire.NewProblem(503, wire.CodeOwnerUnreachable, "this locator goes by an old ring (epoch %d, node %s has %d) and NATS does not give it the new one; the message was not delivered: ask another locator", j.epoch, j.owner.ID, j.Peer.Epoch)
		case j.Err == nil && j.Reply.Status == peer.StatusUnreached:
			return wire.NewProblem(503, wire.CodeOwnerUnreachable, "the user is moving to node %s, which cannot reach the former owner; the message was not delivered", j.owner.ID)
		}
		return wire.NewProblem(503, wire.CodeOwnerUnreachable, "node %s, which owns this user, cannot be reached; the message was not delivered", j.owner.ID)
	}
}

// broadcast sends a call to every node and returns what each answered.
func (r *router) broadcast(id string, body []byte) wire.BroadcastResult {
	cur := r.rings.Current()
	res := wire.BroadcastResult{Failed: []string{}}
	nodes := slices.Concat(cur.Nodes, cur.Leaving) // who leaves may still hold sessions
	g := newGroup(len(nodes) + 1)
	calls := make([]peer.Call, len(nodes))
	for i := range nodes {
		n := &nodes[i]
		calls[i] = peer.Call{Op: peer.OpBroadcast, Ring: cur.Ref(), ID: id, JSON: true, Body: body,
			Done: func(*peer.Call) { g.one(0) }}
		r.linkOf(n).Do(&calls[i])
	}
	g.one(0)
	<-g.done
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
	}
	return res
}
