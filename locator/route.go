package locator

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
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
)

// router carries pushes to the nodes that own their users.
//
//	owner by the ring --> call --> reply ok: done
//	     ^                  |
//	     |                  +--> misdirected: wait for the newer ring ---+
//	     |                  +--> unreachable: have it probed, wait -------+
//	     +---------------------------- until 3 s are over ----------------+
//
// A call whose link broke before the answer may have been carried out. It is
// sent again only after that node's process has left the ring, and its sessions
// with it: a message must not come twice. If that does not happen in time the
// answer is 504 and not 503, which would mean that it was not accepted.
type router struct {
	rings  *cluster.Rings
	keeper *cluster.Keeper
	signer *ticket.Signer
	self   string
	log    *slog.Logger

	mu     sync.Mutex
	links  map[string]*nodeLink
	closed bool
	wg     sync.WaitGroup // links that are being closed
}

type nodeLink struct {
	node ring.Node
	*peer.Link
}

// linkOf returns the link to a node, and a new one if its process or address
// is new.
func (r *router) linkOf(n *ring.Node) *peer.Link {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.links[n.ID]
	if l != nil && l.node.Boot == n.Boot && l.node.PeerURL == n.PeerURL {
		return l.Link
	}
	if l != nil {
		r.retireLocked(l)
	}
	id := n.ID
	l = &nodeLink{*n, peer.NewLink(n.PeerURL, func() string { return r.signer.Peer(r.self, id, time.Now()) })}
	l.Broken = func() { r.keeper.Failed(id) } // a killed process: known at once
	if r.closed {
		l.Close()
		return l.Link
	}
	r.links[id] = l
	return l.Link
}

// retireLocked closes a link once its calls are answered, or after pushTimeout.
func (r *router) retireLocked(l *nodeLink) {
	delete(r.links, l.node.ID)
	r.wg.Go(func() {
		for end := time.Now().Add(pushTimeout); !l.Idle() && time.Now().Before(end); {
			time.Sleep(retryPause)
		}
		l.Close()
	})
}

// run closes the links to nodes that left the ring, and all of them when ctx ends.
func (r *router) run(ctx context.Context) {
	for {
		changed := r.rings.Changed()
		cur := r.rings.Current()
		r.mu.Lock()
		for id, l := range r.links {
			if n, in := cur.Find(id); !in || n.Boot != l.node.Boot {
				r.retireLocked(l)
			}
		}
		r.mu.Unlock()
		select {
		case <-changed:
			continue
		case <-ctx.Done():
		}
		r.mu.Lock()
		r.closed = true
		for _, l := range r.links {
			l.Close()
		}
		clear(r.links)
		r.mu.Unlock()
		r.wg.Wait()
		return
	}
}

// job is one push on its way. Its call's fields are set by the caller.
type job struct {
	peer.Call
	group *group

	owner   ring.Node // that answered
	epoch   uint64
	problem *wire.Problem // instead of a reply
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
	j.Ring = wire.RingRef{Epoch: cur.Epoch, Hash: cur.Hash}
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

// settled tells whether the call needs no further attempt.
func (j *job) settled() bool {
	return j.Err == nil && (j.Reply.Status == peer.StatusOK || j.Reply.Status == peer.StatusBad)
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
		c.Ring = wire.RingRef{Epoch: cur.Epoch, Hash: cur.Hash}
		c.Reply, c.Err = peer.Reply{}, nil
		done := make(chan struct{})
		c.Done = func(*peer.Call) { close(done) }
		r.linkOf(owner).Do(&c)
		select {
		case <-done:
			j.Call = c
		case <-ctx.Done():
			j.Err = peer.ErrLost
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
	if errors.Is(j.Err, peer.ErrLost) {
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
		return wire.NewProblem(503, wire.CodeOwnerUnreachable, "node %s, which owns this user, cannot be reached; the message was not delivered", j.owner.ID)
	}
}

// broadcast sends a call to every node and returns what each answered.
func (r *router) broadcast(id string, body []byte) wire.BroadcastResult {
	cur := r.rings.Current()
	res := wire.BroadcastResult{Failed: []string{}}
	g := newGroup(len(cur.Nodes) + 1)
	calls := make([]peer.Call, len(cur.Nodes))
	for i := range cur.Nodes {
		n := &cur.Nodes[i]
		calls[i] = peer.Call{Op: peer.OpBroadcast, Ring: wire.RingRef{Epoch: cur.Epoch, Hash: cur.Hash}, ID: id, JSON: true, Body: body,
			Done: func(*peer.Call) { g.one(0) }}
		r.linkOf(n).Do(&calls[i])
	}
	g.one(0)
	<-g.done
	for i, n := range cur.Nodes {
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
