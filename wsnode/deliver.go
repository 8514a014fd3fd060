package wsnode

import (
	"slices"
	"time"

	"github.com/lxzan/gws"

	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/wire"
)

// handle takes a batch of calls from a locator. Sessions are written to by
// goroutines of their own, so nothing here waits, unless the caller goes by a
// newer ring than this node: then the batch waits for that, aside.
func (n *Node) handle(b *peer.Batch) {
	n.metrics.batches.Observe(float64(len(b.Calls)))
	if n.wasStopped() || b.Dropped() {
		// This process was stopped and goes on: who sent this has given up on it
		// and perhaps been told so. It must not be carried out now.
		n.log.Warn("a batch of calls is dropped: this process did not run for a while", "event", "stale_batch", "calls", len(b.Calls))
		b.Drop()
		return
	}
	cur := n.rings.Current()
	// What a new owner forwards is for the sessions that are here, by any ring.
	if b.Ring.Epoch > cur.Epoch && slices.ContainsFunc(b.Calls, func(in peer.In) bool { return !in.Forwarded }) {
		n.tasks.Go(func() {
			n.awaitRingOf(b.From, b.Ring.Epoch)
			n.carryOut(b, n.rings.Current())
		})
		return
	}
	n.carryOut(b, cur)
}

func (n *Node) carryOut(b *peer.Batch, cur *ring.Ring) {
	if b.Ring.Epoch == cur.Epoch && b.Ring.Hash != cur.Hash {
		n.log.Error("a caller has another ring of the same epoch", "event", "ring_conflict", "epoch", cur.Epoch, "hash", cur.Hash, "theirs", b.Ring.Hash)
		n.rings.Refresh()
	}
	stamp := wire.Stamp(time.Now())
	n.stored.logs.Together(func() {
		for i := range b.Calls {
			in := &b.Calls[i]
			switch in.Op {
			case peer.OpPush:
				n.push(in, stamp)
			case peer.OpBroadcast:
				if err := n.mayAsk(b.From, in, b.Ring.Epoch); err != nil {
					n.refuseCall(in, b.From, err)
					continue
				}
				n.broadcast(in, stamp)
			default:
				n.op(in, b.From, b.Ring.Epoch)
			}
		}
	})
}

// push writes a message to the user's sessions.
func (n *Node) push(in *peer.In, stamp string) {
	switch {
	case in.Forwarded && in.Stored:
		n.storedHere(in)
		return
	case in.Forwarded:
		n.pushHere(in, stamp)
		return
	}
	u, sessions := n.hub.find(in.User)
	// The ring of now, behind the look: sessions that a newer one has moved away are
	// missing in it, and the push must follow them.
	cur := n.rings.Current()
	if !n.owns(u, in.User, cur) {
		in.Reply(peer.Reply{Status: peer.StatusMisdirected})
		return
	}
	if len(in.Trace) > 0 {
		if span := n.tracer.From(in.Trace, "push", in.At()); span != nil {
			span.Set("dialring.user", string(in.User))
			span.Set("dialring.message", string(in.ID))
			in.Context = span
		}
	}
	n.pushed.Add(1)
	if in.Durable {
		n.pushStored(in)
		return
	}
	if !cur.Settled() {
		if former := cur.Former(string(in.User)); len(former) > 0 {
			n.pushBoth(in, cur, former, stamp)
			return
		}
	}
	var f []byte
	p := &push{answer: func(delivered int) { in.Reply(peer.Reply{Delivered: delivered}) }}
	// #nosec G115 -- at most MAX_SESSIONS_PER_USER, 10,000
	p.left.Store(int32(len(sessions) + 1)) // and this loop itself
	for _, s := range sessions {
		switch {
		case len(in.Device) > 0 && s.device != string(in.Device):
			p.wrote(false)
			continue
		case f == nil:
			f = message(in, stamp)
		}
		if s.old.Load() { // counted by the connection that follows it
			s.send(outgoing{frame: f})
			p.wrote(false)
			continue
		}
		s.send(outgoing{frame: f, push: p})
	}
	p.wrote(false)
}

// owns tells whether this node owns a user by ring cur. For users who are here
// the answer is remembered with the ring it was found by.
func (n *Node) owns(u *user, id []byte, cur *ring.Ring) bool {
	if u != nil && u.owned.Load() == cur {
		return true
	}
	return n.ownsUser(u, string(id), cur)
}

func (n *Node) ownsUser(u *user, id string, cur *ring.Ring) bool {
	o, ok := cur.Owner(id)
	if !ok || o.ID != n.cfg.NodeID {
		return false
	}
	if u != nil {
		u.owned.Store(cur)
	}
	return true
}

// wasStopped tells whether the process has just not run for longer than callers
// wait for it: the sweep is overdue.
func (n *Node) wasStopped() bool {
	return time.Since(n.start)-time.Duration(n.sweptAt.Load()) > stoppedAfter
}

// message is the frame of a push, made once for all sessions.
func message(in *peer.In, stamp string) []byte {
	b := make([]byte, maxHeader, maxHeader+len(in.Body)*4/3+128+len(in.From))
	return headed(gws.OpcodeText, wire.AppendMessage(b, in.ID, stamp, in.From, 0, "", in.Body, in.JSON))
}
