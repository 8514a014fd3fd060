package wsnode

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/dialring/dialring/internal/inbox"
	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/ring"
)

// While users move, the new owner owns them and the former one may still hold
// their sessions. What comes for such a user:
//
//	caller       new owner                     former owner
//	  | push        |                               |
//	  |------------>| to its own sessions           |
//	  |             |------- push, forwarded ------>| to the sessions that it still
//	  |             |<------- their session ids ----| holds and that have not got it
//	  |             |                               | there; and no further
//	  |             | to sessions that came meanwhile
//	  |<------------| delivered: each session once
//
// The last look is what closes the gap: a client leaves the former owner only
// after the new one has welcomed it, so whoever had gone when the forwarded push
// arrived is here by the time its answer is. Clients drop what they have seen.

// forwardPatience is how long a push waits for former owners to be counted in;
// it is delivered to their sessions all the same.
const forwardPatience = time.Second

// forwarded is one push that goes to former owners as well.
type forwarded struct {
	n  *Node
	in *peer.In
	// send writes it to a session of this node.
	send   func(s *session, p *push)
	answer func(peer.Reply)
	seq    uint64 // if it is stored

	mu        sync.Mutex
	asked     int                 // former owners that have not answered
	unreached bool                // one was not reached, and may be alive
	unsure    bool                // one was, and did not answer
	writes    int                 // own sessions of which it is not known yet
	seen      map[*session]bool   // own sessions that it was written to
	delivered map[string]struct{} // session ids
	answered  bool
	patience  *time.Timer // holds on to the frame, so it is stopped
}

func newForwarded(n *Node, in *peer.In, former []*ring.Node, answer func(peer.Reply)) *forwarded {
	return &forwarded{n: n, in: in, asked: len(former), answer: answer, seen: map[*session]bool{}, delivered: map[string]struct{}{}}
}

// pushBoth carries out a push for a user who is moving here from former.
func (n *Node) pushBoth(in *peer.In, cur *ring.Ring, former []*ring.Node, stamp string) {
	frame := message(in, stamp)
	f := newForwarded(n, in, former, in.Reply)
	f.send = func(s *session, p *push) { s.send(outgoing{frame: frame, push: p}) }
	f.write()
	f.toFormer(former, peer.Call{Op: peer.OpPush, Ring: cur.Ref(), User: string(in.User), Device: string(in.Device), ID: string(in.ID),
		JSON: in.JSON, From: string(in.From), Body: in.Body})
}

// storedBoth does the same with a push that was stored. The log is locked.
func (n *Node) storedBoth(c *storing, l *inbox.Log, e *inbox.Entry, frame []byte, cur *ring.Ring, former []*ring.Node) {
	f := newForwarded(n, c.in, former, c.answer)
	f.seq = e.Seq
	f.send = func(s *session, p *push) { s.storedLocked(e, frame, p) }
	f.write()
	// From here on others call it, and the log is not locked for them.
	f.send = func(s *session, p *push) { l.With(func(inbox.Cursor) { s.storedLocked(e, frame, p) }) }
	call := peer.Call{Op: peer.OpPush, Ring: cur.Ref(), User: l.User, JSON: e.JSON, Body: e.Body, Stored: true, Pos: e.Pos, Meta: e.Meta()}
	// A call may be answered at once, or wait for its link: not with the log locked.
	// Those that overtake each other are put in order by the former owner's sessions.
	n.forwards.Go(func() { f.toFormer(former, call) })
}

// toFormer hands the push to the former owners, with the sessions that have got it.
func (f *forwarded) toFormer(former []*ring.Node, call peer.Call) {
	f.n.metrics.forwarded.Inc()
	f.mu.Lock()
	call.Have = slices.Collect(maps.Keys(f.delivered))
	f.mu.Unlock()
	call.Done = f.reply
	for _, o := range former {
		c := call
		f.n.callFormer(o, &c)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.answered {
		f.patience = time.AfterFunc(forwardPatience, func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.answerLocked()
		})
	}
}

// callFormer sends a call to a former owner. What is forwarded is never
// forwarded again.
func (n *Node) callFormer(o *ring.Node, c *peer.Call) {
	c.Forwarded = true
	n.peers.Get(o.ID, o.Boot, o.PeerURL).Do(c)
}

// write writes the push to the user's sessions here that have not got it yet.
func (f *forwarded) write() {
	_, sessions := f.n.hub.find(f.in.User)
	f.mu.Lock()
	var todo []*session
	for _, s := range sessions {
		if !f.seen[s] && (len(f.in.Device) == 0 || s.device == string(f.in.Device)) {
			f.seen[s] = true
			f.writes++
			todo = append(todo, s)
		}
	}
	f.mu.Unlock()
	for _, s := range todo {
		p := &push{answer: func(n int) { f.wrote(s.id, n > 0) }}
		p.left.Store(1)
		f.send(s, p)
	}
}

func (f *forwarded) wrote(id string, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ok {
		f.delivered[id] = struct{}{}
	}
	f.writes--
	f.doneLocked()
}

// reply takes a former owner's answer. One that refuses is dead, its sessions
// with it, or has moved them all and ended: they are here then.
func (f *forwarded) reply(c *peer.Call) {
	var ids []string
	if c.Err == nil && json.Unmarshal(c.Reply.Body, &ids) != nil {
		f.n.log.Error("a forwarded push got an answer that cannot be read", "event", "forward_answer")
	}
	f.write()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range ids {
		f.delivered[id] = struct{}{}
	}
	switch {
	case c.Err == nil || peer.Refused(c.Err):
	case errors.Is(c.Err, peer.ErrLost):
		f.unsure = true
	default:
		f.unreached = true
	}
	f.asked--
	f.doneLocked()
}

func (f *forwarded) doneLocked() {
	if f.asked == 0 && f.writes == 0 {
		f.answerLocked()
	}
}

func (f *forwarded) answerLocked() {
	if f.answered {
		return
	}
	f.answered = true
	if f.patience != nil {
		f.patience.Stop()
	}
	r := peer.Reply{Delivered: len(f.delivered), Seq: f.seq}
	switch {
	case r.Delivered > 0 || f.seq > 0: // stored is stored
	case f.unsure || f.asked > 0:
		r.Status = peer.StatusUnsure
	case f.unreached:
		r.Status = peer.StatusUnreached
	}
	f.answer(r)
}

// pushHere carries out a push that the new owner forwarded: to the sessions that
// are still here, whoever owns the user, and no further.
func (n *Node) pushHere(in *peer.In, stamp string) {
	var f []byte
	n.pushSessions(in, func(s *session, p *push) {
		if f == nil {
			f = message(in, stamp)
		}
		s.send(outgoing{frame: f, push: p})
	})
}

// pushSessions writes a forwarded push by send to the sessions that have not got
// it elsewhere, and answers with the ids of those that it was written to.
func (n *Node) pushSessions(in *peer.In, send func(s *session, p *push)) {
	_, sessions := n.hub.find(in.User)
	var mu sync.Mutex
	ids := []string{}
	all := &push{answer: func(int) {
		b, err := json.Marshal(ids) // all are known: nobody appends any more
		if err != nil {
			panic(err) // strings always have an encoding
		}
		in.Reply(peer.Reply{Delivered: len(ids), Body: b})
	}}
	all.left.Store(1) // this loop itself
	for _, s := range sessions {
		if len(in.Device) > 0 && s.device != string(in.Device) || slices.Contains(in.Have, s.id) {
			continue
		}
		all.left.Add(1)
		p := &push{answer: func(n int) {
			if n > 0 {
				mu.Lock()
				ids = append(ids, s.id)
				mu.Unlock()
			}
			all.wrote(n > 0)
		}}
		p.left.Store(1)
		send(s, p)
	}
	all.wrote(false)
}
