// Package route carries pushes to the nodes that own their users: from locators for
// services, and from nodes for users who send to each other.
package route

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/wire"
)

// How long a push goes after its owner.
const (
	// Timeout bounds a push.
	Timeout = 3 * time.Second
	// Pause is between two attempts.
	Pause      = 50 * time.Millisecond
	lastAnswer = 250 * time.Millisecond // for a call that was sent just before Timeout
)

// Router carries pushes to the nodes that own their users.
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
//
// Its fields are set before use. It may be used concurrently.
type Router struct {
	Rings *cluster.Rings
	Links *peer.Pool
	// Suspect is told of a node that could not be reached. It must not block.
	Suspect func(node string)

	tries sync.WaitGroup
}

// Wait returns when no job is tried again any more. None may be sent any more.
func (r *Router) Wait() { r.tries.Wait() }

// Link is the link to a node of the ring.
func (r *Router) Link(n *ring.Node) *peer.Link { return r.Links.Get(n.ID, n.Boot, n.PeerURL) }

// Job is one push on its way. Its call's fields are set by the caller.
type Job struct {
	peer.Call
	Group  *Group     // hears of its end
	Ended  func(*Job) // instead of Group; must not block
	Weight int        // in the group's window

	Owner   ring.Node     // that answered
	Epoch   uint64        // of the ring that said so
	lost    bool          // an attempt may have been carried out
	Problem *wire.Problem // instead of a reply
}

func (j *Job) end() {
	if j.Group != nil {
		j.Group.One(j.Weight)
	} else {
		j.Ended(j)
	}
}

// Group waits for several jobs.
type Group struct {
	left   atomic.Int64
	Done   chan struct{}       // closed when all have ended
	Window *semaphore.Weighted // of weights under way; nil: no limit
}

// NewGroup waits for n jobs.
func NewGroup(n int) *Group {
	g := &Group{Done: make(chan struct{})}
	g.left.Store(int64(n))
	return g
}

// One says that a job of that weight has ended.
func (g *Group) One(weight int) {
	if g.Window != nil && weight > 0 {
		g.Window.Release(int64(weight))
	}
	if g.left.Add(-1) == 0 {
		close(g.Done)
	}
}

// Send starts a job, until ctx ends or its owner answered, within Timeout.
func (r *Router) Send(ctx context.Context, j *Job) {
	cur := r.Rings.Current()
	owner, ok := cur.Owner(j.User)
	if !ok {
		j.Problem = NoNodes()
		j.end()
		return
	}
	j.Ring = cur.Ref()
	j.Owner, j.Epoch = *owner, cur.Epoch
	start := time.Now()
	j.Done = func(*peer.Call) {
		if j.Settled() {
			j.end()
			return
		}
		r.tries.Go(func() {
			defer j.end()
			r.again(ctx, j, start.Add(Timeout))
		})
	}
	r.Link(owner).Do(&j.Call)
}

// Settled tells whether the call needs no further attempt.
func (j *Job) Settled() bool {
	return j.Err == nil && j.Reply.Status != peer.StatusMisdirected && j.Reply.Status != peer.StatusUnreached
}

// again repeats a job until it is settled or end is reached.
func (r *Router) again(ctx context.Context, j *Job, end time.Time) {
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	for {
		changed := r.Rings.Changed()
		if p := r.waitFor(ctx, j, changed); p != nil {
			j.Problem = p
			return
		}
		cur := r.Rings.Current()
		owner, ok := cur.Owner(j.User)
		if !ok {
			j.Problem = NoNodes()
			return
		}
		j.Owner, j.Epoch = *owner, cur.Epoch
		// A call of its own for each attempt: one that is given up may still end.
		c := j.Call
		c.Ring = cur.Ref()
		c.Reply, c.Err = peer.Reply{}, nil
		done := make(chan struct{})
		c.Done = func(*peer.Call) { close(done) }
		link := r.Link(owner)
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
		if j.Settled() {
			return
		}
	}
}

// waitFor waits until another attempt makes sense, by what came of the last.
func (r *Router) waitFor(ctx context.Context, j *Job, changed <-chan struct{}) *wire.Problem {
	if errors.Is(j.Err, peer.ErrBusy) {
		return wire.NewProblem(503, wire.CodeOwnerUnreachable, "too much is waiting for node %s; send slower", j.Owner.ID)
	}
	if j.Err != nil {
		r.Suspect(j.Owner.ID)
	}
	j.lost = j.lost || errors.Is(j.Err, peer.ErrLost)
	// A stored message cannot come twice: the store knows its key, or its id.
	if errors.Is(j.Err, peer.ErrLost) && !j.Durable {
		for {
			if n, in := r.Rings.Current().Find(j.Owner.ID); !in || n.Boot != j.Owner.Boot {
				return nil
			}
			select {
			case <-changed:
				changed = r.Rings.Changed()
			case <-ctx.Done():
				return wire.NewProblem(http.StatusGatewayTimeout, wire.CodeOwnerUnreachable, "node %s took the message and did not answer: it may have been delivered", j.Owner.ID)
			}
		}
	}
	if j.Err == nil && j.Reply.Status == peer.StatusMisdirected && j.Peer.Epoch > j.Epoch {
		r.Rings.WaitEpoch(ctx, j.Peer.Epoch)
		if ctx.Err() == nil {
			return nil
		}
	}
	select {
	case <-changed:
		return nil
	case <-time.After(Pause):
		return nil
	case <-ctx.Done():
		switch {
		case j.lost:
			return wire.NewProblem(http.StatusGatewayTimeout, wire.CodeOwnerUnreachable, "node %s took the message and did not answer: it may have been stored; push it again with the same Idempotency-Key", j.Owner.ID)
		case j.Err == nil && j.Reply.Status == peer.StatusMisdirected:
			return wire.NewProblem(503, wire.CodeOwnerUnreachable, "this locator goes by an old ring (epoch %d, node %s has %d) and NATS does not give it the new one; the message was not delivered: ask another locator", j.Epoch, j.Owner.ID, j.Peer.Epoch)
		case j.Err == nil && j.Reply.Status == peer.StatusUnreached:
			return wire.NewProblem(503, wire.CodeOwnerUnreachable, "the user is moving to node %s, which cannot reach the former owner; the message was not delivered", j.Owner.ID)
		}
		return wire.NewProblem(503, wire.CodeOwnerUnreachable, "node %s, which owns this user, cannot be reached; the message was not delivered", j.Owner.ID)
	}
}

// NoNodes is the problem that the ring is empty.
func NoNodes() *wire.Problem {
	return wire.NewProblem(http.StatusServiceUnavailable, wire.CodeNoNodes, "no node is in the ring yet: start one, or look at its log to see what keeps it out")
}

// Result is what became of a push that has ended, or why it was not accepted.
func (j *Job) Result() (wire.PushResult, *wire.Problem) {
	if p := j.refused(); p != nil {
		return wire.PushResult{}, p
	}
	res := wire.PushResult{ID: j.ID, Seq: j.Reply.Seq, Stored: j.Durable, Delivered: j.Reply.Delivered, Node: j.Owner.ID, Epoch: j.Epoch}
	if j.Reply.Status == peer.StatusDuplicate {
		// Without an id: the limit has taken the first one within the window.
		res.Duplicate, res.ID = true, string(j.Reply.Body)
	}
	return res, nil
}

func (j *Job) refused() *wire.Problem {
	if j.Problem != nil {
		return j.Problem
	}
	switch j.Reply.Status {
	case peer.StatusBad:
		return wire.NewProblem(http.StatusServiceUnavailable, wire.CodeInternal, "node %s does not understand this push: it runs another version", j.Owner.ID)
	case peer.StatusUnsure:
		return wire.NewProblem(http.StatusGatewayTimeout, wire.CodeOwnerUnreachable, "the user is moving to node %s, and the former owner took the message and did not answer: it may have been delivered", j.Owner.ID)
	case peer.StatusStore:
		return wire.NewProblem(http.StatusServiceUnavailable, wire.CodeStoreUnavailable, "node %s could not store the message (%s); push it again with the same Idempotency-Key", j.Owner.ID, j.Reply.Body)
	case peer.StatusKeyReused:
		return wire.NewProblem(http.StatusUnprocessableEntity, wire.CodeKeyReused, "this Idempotency-Key was used for another message to this user; use a new key for each message")
	}
	return nil
}
