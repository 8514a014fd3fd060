package wsnode

import (
	"container/heap"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/lxzan/gws"

	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/ticket"
	"github.com/dialring/dialring/internal/wire"
)

// What happens to sessions when the ring changes. The former owner:
//
//	owned --new ring--> misplaced --its turn--> told --the client dials the new
//	  ^                     |                    | |   owner, then closes--> gone
//	  |                     |                    | +--deadline--> closed with 4201
//	  +---the ring gives the user back-----------+
//
// When none is misplaced or told any more the node reports the ring's epoch as
// settled, with its next heartbeat, and the locators end the handoff; a node that
// drains when it has handed over its missing users as well (presence.go). Until then
// the new owner hands what comes for the user to this node as well (forward.go).

// How often a node compares its sessions with the ring, when nothing changes,
// and while sessions are on their way.
const (
	recheck  = 30 * time.Second
	moveLook = 100 * time.Millisecond
	tellFor  = 500 * time.Millisecond
)

// moving is where a session was told to go.
type moving struct {
	node, boot string
	deadline   time.Time
	code       int // with which it is closed then
}

// watchRing acts on each new ring: it has users whose owner changed moved, and
// reports when all are gone. It fails when another process has this node's place.
func (n *Node) watchRing(ctx context.Context) error {
	var p pace
	beats := formerBeats{n, map[string]context.CancelFunc{}}
	look := time.NewTimer(0)
	defer look.Stop()
	var reported struct{ epoch, settled uint64 }
	for {
		changed := n.rings.Changed()
		cur := n.rings.Current()
		n.stored.turned(cur)
		m, ok := cur.Find(n.cfg.NodeID)
		in := ok && m.Boot == n.boot
		if in {
			n.joined.Store(true)
		} else if ok && n.joined.Load() && !n.draining.Load() {
			return fmt.Errorf("another process runs as node %q now (at %s): give each node a DIALRING_NODE_ID of its own", n.cfg.NodeID, m.PeerURL)
		}
		n.peers.Retain(func(id, boot string) bool {
			m, known := cur.Process(id)
			return known && m.Boot == boot
		})
		beats.follow(ctx, cur)
		todo, left := n.misplacedBy(cur)
		n.misplaced.Store(int64(left))
		wait := recheck
		switch {
		case left == 0 && !in && n.draining.Load() && !n.presenceOf.told():
			// Whose last session has just ended is this node's to tell of, too: were it killed
			// now and not waited for, nobody would say so.
			wait = moveLook
		case left == 0:
			n.settled.Store(cur.Epoch)
		default:
			wait = moveLook
		}
		if now := n.settled.Load(); reported.epoch != cur.Epoch || reported.settled != now {
			reported.epoch, reported.settled = cur.Epoch, now
			n.beatSoon()
		}
		if len(todo) > 0 {
			n.tell(ctx, cur, todo, &p, changed)
			if p.Len() > 0 {
				wait = min(wait, max(0, time.Until(p.queues[0].next)))
			}
		}
		look.Reset(wait)
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-look.C:
		case <-n.someLeft: // not more often than moveLook
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(moveLook / 2):
			}
		}
	}
}

// misplacedBy compares all sessions with a ring. It returns the users who have
// to be told, by their new owner, and how many sessions are misplaced.
func (n *Node) misplacedBy(cur *ring.Ring) (todo map[string][]*user, left int) {
	todo = map[string][]*user{}
	n.hub.eachUser(func(u *user, sessions []*session) {
		if u.owned.Load() == cur || n.ownsUser(u, u.id, cur) {
			for _, s := range sessions {
				if m := s.told.Load(); m != nil && m.node != n.cfg.NodeID {
					s.told.Store(nil) // the user came back before the session left
				}
			}
			return
		}
		owner, ok := cur.Owner(u.id)
		if !ok { // nobody is left: they come back when there is somebody again
			if n.draining.Load() && !n.inRing() {
				for _, s := range sessions {
					s.close(wire.CloseDraining, "")
				}
			}
			return
		}
		left += len(sessions)
		if slices.ContainsFunc(sessions, func(s *session) bool { return !s.toldOf(owner) }) {
			todo[owner.ID] = append(todo[owner.ID], u)
		}
	})
	return todo, left
}

// toldOf tells whether the client was told to go to that process.
func (s *session) toldOf(n *ring.Node) bool {
	m := s.told.Load()
	return m != nil && m.node == n.ID && m.boot == n.Boot
}

// tell has users go to their new owners, all devices of one together, at the
// pace that each owner accepts. It returns when all are told, when the ring
// changed, or after tellFor, since others may have come or gone.
func (n *Node) tell(ctx context.Context, cur *ring.Ring, todo map[string][]*user, p *pace, changed <-chan struct{}) {
	reason := "ring"
	if k := len(cur.Handoffs); n.draining.Load() {
		reason = "drain"
	} else if k > 0 {
		reason = cur.Handoffs[k-1].Reason
	}
	part := n.part(cur)
	p.start(todo)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for end := time.Now().Add(tellFor); p.Len() > 0; {
		q := &p.queues[0]
		if q.next.After(end) {
			return
		}
		timer.Reset(time.Until(q.next))
		select {
		case <-ctx.Done():
			return
		case <-changed:
			return
		case <-timer.C:
		}
		u := q.users[0]
		q.users = q.users[1:]
		owner, ok := cur.Owner(u.id)
		_, sessions := n.hub.find([]byte(u.id))
		if ok && len(sessions) > 0 {
			for _, s := range sessions {
				if !s.toldOf(owner) {
					n.move(s, owner, cur.Epoch, reason, wire.CloseMoved)
				}
			}
			p.took(q, len(sessions), part*float64(max(1, owner.AcceptRate)))
		}
		if len(q.users) == 0 {
			heap.Pop(p)
		} else {
			heap.Fix(p, 0)
		}
	}
}

// part is what of a receiving node's accept rate this node may use: all nodes
// that have users to hand over share it by their weight.
func (n *Node) part(cur *ring.Ring) float64 {
	mine, all := 1, 0
	for _, h := range cur.Handoffs {
		for _, id := range h.Pending {
			if id == n.cfg.NodeID {
				mine = h.Members[id]
			} else {
				all += h.Members[id]
			}
		}
	}
	return float64(mine) / float64(mine+all)
}

// move tells one session to go to a node; the ticket carries the session.
func (n *Node) move(s *session, to *ring.Node, epoch uint64, reason string, code int) {
	now := time.Now()
	s.told.Store(&moving{node: to.ID, boot: to.Boot, deadline: now.Add(n.cfg.MoveDeadline), code: code})
	t := n.signer.Ticket(ticket.Ticket{User: s.user, Device: s.device, Node: to.ID, Epoch: epoch, Session: s.id, Connected: s.connectedAt, SendTo: s.sendTo}, now)
	b, err := json.Marshal(wire.Move{Type: wire.TypeMove, URL: to.URL, Ticket: t, Node: to.ID, Epoch: epoch, Reason: reason,
		DeadlineMS: n.cfg.MoveDeadline.Milliseconds()})
	if err != nil {
		panic(err) // plain fields always have an encoding
	}
	n.metrics.moves.WithLabelValues(reason).Inc()
	s.note(peer.Event{Kind: peer.EventTold, Reason: reason, To: to.ID})
	s.send(outgoing{frame: frame(gws.OpcodeText, b)})
}

// closeFor closes a session for another one. A client that was told to move may
// have failed to, and located anew as it should: then it is its own login that
// replaces it, and that must not stop it.
func (s *session) closeFor(code int) {
	if code == wire.CloseReplaced && s.told.Load() != nil {
		code = wire.CloseMoved
	}
	s.close(code, "")
}

// left notes that a session that was told to move has gone.
func (s *session) left() {
	if s.told.Load() == nil {
		return
	}
	select {
	case s.node.someLeft <- struct{}{}:
	default:
	}
}

// overdue closes a session that was told to move and did not, and moves one
// that has lasted long enough to a new connection. It reports whether it closed.
func (s *session) overdue(now time.Time, sec int64) bool {
	if m := s.told.Load(); m != nil {
		if now.After(m.deadline) {
			s.close(m.code, "")
			return true
		}
		return false
	}
	if sec >= s.expires {
		cur := s.node.rings.Current()
		if self, ok := cur.Owner(s.user); ok && self.ID == s.node.cfg.NodeID {
			s.node.move(s, self, cur.Epoch, "lifetime", wire.CloseLifetime)
		}
	}
	return false
}

// lifetime is how many seconds a connection lasts: up to a tenth less than the
// setting, so that those that came together do not go together.
func (n *Node) lifetime() int64 {
	most := int64(n.cfg.SessionLifetime / sweepInterval)
	return most - rand.Int64N(most/10+1) // #nosec G404 -- jitter
}

// pace says when each receiving node takes the next user: a heap by that time.
// A node that could not be told for a while is not told more for that later.
type pace struct {
	queues []queue
	next   map[string]time.Time // by node, from call to call
}

type queue struct {
	node  string
	users []*user
	next  time.Time
}

func (p *pace) start(todo map[string][]*user) {
	if p.next == nil {
		p.next = map[string]time.Time{}
	}
	p.queues = p.queues[:0]
	for node, users := range todo {
		p.queues = append(p.queues, queue{node, users, p.next[node]})
	}
	heap.Init(p)
}

// took books that a node was sent so many sessions, at rate a second.
func (p *pace) took(q *queue, sessions int, rate float64) {
	from := q.next
	if now := time.Now(); from.Before(now) {
		from = now
	}
	q.next = from.Add(time.Duration(float64(sessions) / rate * float64(time.Second)))
	p.next[q.node] = q.next
}

// Len and the others implement heap.Interface.
func (p *pace) Len() int           { return len(p.queues) }
func (p *pace) Less(i, j int) bool { return p.queues[i].next.Before(p.queues[j].next) }
func (p *pace) Swap(i, j int)      { p.queues[i], p.queues[j] = p.queues[j], p.queues[i] }
func (p *pace) Push(x any)         { p.queues = append(p.queues, x.(queue)) }
func (p *pace) Pop() any {
	q := p.queues[len(p.queues)-1]
	p.queues = p.queues[:len(p.queues)-1]
	return q
}
