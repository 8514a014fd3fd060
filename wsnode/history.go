package wsnode

import (
	"sync"
	"time"

	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/wire"
)

// history is what happened to sessions here lately, for an operator who looks for a
// user, in memory only: the last maxHistory events of all users together, and beside
// them the last maxUserKept of each user who has sessions now, which events of others
// do not push out. A user with one idle session has one event, 160 bytes; none has
// more than 1.3 KB.
type history struct {
	mu     sync.Mutex
	events []userEvent // a ring once it is full
	next   int         // where the next one goes then
	total  uint64      // events that ever were
}

// pastEvent is an event and how many there were before it.
type pastEvent struct {
	seq uint64
	peer.Event
}

// userEvent is an event and whose it is.
type userEvent struct {
	user string
	pastEvent
}

const (
	maxHistory = 4096
	// maxUserEvents of one user are told.
	maxUserEvents = 50
	// maxUserKept of one user are kept while the user has sessions.
	maxUserKept = 8
)

// add remembers an event of a user; here is the user's record, if there is one.
func (h *history) add(id string, here *user, e peer.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	past := pastEvent{h.total, e}
	h.total++
	if here != nil {
		if len(here.events) == maxUserKept {
			here.events = here.events[:copy(here.events, here.events[1:])]
		}
		here.events = append(here.events, past)
	}
	if len(h.events) < maxHistory {
		h.events = append(h.events, userEvent{id, past})
		return
	}
	h.events[h.next] = userEvent{id, past}
	h.next = (h.next + 1) % maxHistory
}

// of lists the last events of a user, oldest first, and tells whether there may have
// been others before, which are not kept.
func (h *history) of(id string, here *user) (out []peer.Event, forgotten bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	oldest := h.total - uint64(len(h.events)) // of the ring
	if here != nil {
		for i := range here.events {
			if e := &here.events[i]; e.seq < oldest {
				out = append(out, e.Event)
			}
		}
	}
	for i := range h.events {
		if e := &h.events[(h.next+i)%len(h.events)]; e.user == id {
			out = append(out, e.Event)
		}
	}
	over := max(0, len(out)-maxUserEvents)
	return out[over:], over > 0 || oldest > 0
}

// note puts an event of this session into the history of its node.
func (s *session) note(e peer.Event) {
	e.Time, e.Node, e.Device, e.Session, e.RemoteAddr = time.Now().UTC(), s.node.cfg.NodeID, s.device, s.id, s.remote
	s.node.history.add(s.user, s.owner, e)
}

// noteClose notes that this node ended the session.
func (s *session) noteClose(code int, reason string) {
	kind := peer.EventClosed
	switch code {
	case wire.CloseKicked:
		kind = peer.EventKicked
	case wire.CloseTooSlow:
		kind = peer.EventSlow
	}
	s.note(peer.Event{Kind: kind, Code: code, Reason: reason})
}

// noteEnd notes that the connection has ended without this node's doing.
func (s *session) noteEnd() {
	e := peer.Event{Kind: peer.EventLeft, Code: s.peerCode}
	if m := s.told.Load(); m != nil {
		e.Kind, e.To = peer.EventMoved, m.node
	} else if s.peerCode == 0 {
		e.Kind = peer.EventLost
	}
	s.note(e)
}
