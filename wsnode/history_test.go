package wsnode

import (
	"fmt"
	"testing"
	"unsafe"

	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/wire"
)

// The history is bounded, forgets the oldest first, and tells a user's events in order.
func TestHistory(t *testing.T) {
	var h history
	if got, forgotten := h.of("nobody", nil); got != nil || forgotten {
		t.Error("an empty history has events")
	}
	h.add("early", nil, peer.Event{Kind: "first"})
	const each = 3
	total := 0
	for ; total < maxHistory*2; total++ {
		u := fmt.Sprintf("u%d", total%each)
		h.add(u, nil, peer.Event{Kind: fmt.Sprint(total)})
		if total == maxHistory-2 {
			if got, forgotten := h.of("early", nil); len(got) != 1 || forgotten {
				t.Fatal("an event was forgotten before the history was full")
			}
		}
	}
	if len(h.events) != maxHistory || cap(h.events) > 2*maxHistory {
		t.Errorf("%d events are kept, room for %d", len(h.events), cap(h.events))
	}
	if got, forgotten := h.of("early", nil); len(got) != 0 || !forgotten {
		t.Error("the oldest event is still there")
	}
	for k := range each {
		got, _ := h.of(fmt.Sprintf("u%d", k), nil)
		if len(got) != maxUserEvents {
			t.Fatalf("u%d has %d events", k, len(got))
		}
		for i, e := range got {
			last := total - 1 - (total-1-k)%each // of this user
			if want := fmt.Sprint(last - each*(len(got)-1-i)); e.Kind != want {
				t.Fatalf("u%d, event %d: %s, want %s", k, i, e.Kind, want)
			}
		}
	}
}

// The last events of a user who is here stay, each once and in order, whatever happens to
// others; they are bounded.
func TestHistoryOfUserHere(t *testing.T) {
	var h history
	alice := &user{id: "alice"}
	kinds := func() (out string) {
		got, _ := h.of("alice", alice)
		for _, e := range got {
			out += e.Kind
		}
		return out
	}
	for _, kind := range "abcdefghijkl" {
		h.add("alice", alice, peer.Event{Kind: string(kind)})
	}
	if got := kinds(); got != "abcdefghijkl" {
		t.Errorf("from the history of all: %s", got)
	}
	for range maxHistory - 2 {
		h.add("bob", nil, peer.Event{Kind: "x"})
	}
	if got := kinds(); got != "efghijkl" { // k and l are in both
		t.Errorf("from both: %s", got)
	}
	for range 2 * maxHistory {
		h.add("bob", nil, peer.Event{Kind: "x"})
	}
	if got := kinds(); got != "efghijkl" {
		t.Errorf("of alice alone: %s", got)
	}
	h.add("alice", alice, peer.Event{Kind: "m"})
	if got := kinds(); got != "fghijklm" {
		t.Errorf("with a new one: %s", got)
	}
	if len(alice.events) != maxUserKept || cap(alice.events) != maxUserKept {
		t.Errorf("%d events are kept, room for %d", len(alice.events), cap(alice.events))
	}
	idle := &user{id: "idle"}
	h.add("idle", idle, peer.Event{Kind: "connected"})
	if size := uintptr(cap(idle.events)) * unsafe.Sizeof(idle.events[0]); size > 160 {
		t.Errorf("the events of an idle user take %d bytes", size)
	}
}

// What is noted of an end: who did it, and why.
func TestNoteEnds(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(s *session)
		want peer.Event
	}{
		"kicked":           {func(s *session) { s.noteClose(wire.CloseKicked, "kicked") }, peer.Event{Kind: peer.EventKicked, Code: 4002, Reason: "kicked"}},
		"slow":             {func(s *session) { s.noteClose(wire.CloseTooSlow, "too slow") }, peer.Event{Kind: peer.EventSlow, Code: 4101, Reason: "too slow"}},
		"closed":           {func(s *session) { s.noteClose(wire.CloseProtocol, "why") }, peer.Event{Kind: peer.EventClosed, Code: 4005, Reason: "why"}},
		"left":             {func(s *session) { s.peerCode = 1001; s.noteEnd() }, peer.Event{Kind: peer.EventLeft, Code: 1001}},
		"lost":             {func(s *session) { s.noteEnd() }, peer.Event{Kind: peer.EventLost}},
		"moved":            {func(s *session) { s.told.Store(&moving{node: "ws-2"}); s.peerCode = 1000; s.noteEnd() }, peer.Event{Kind: peer.EventMoved, Code: 1000, To: "ws-2"}},
		"lost while moves": {func(s *session) { s.told.Store(&moving{node: "ws-2"}); s.noteEnd() }, peer.Event{Kind: peer.EventMoved, To: "ws-2"}},
	} {
		n := &Node{cfg: Config{NodeID: "ws-1"}}
		s := &session{id: "s-1", user: "alice", device: "web", remote: "192.0.2.1:5", node: n}
		c.end(s)
		got, _ := n.history.of("alice", nil)
		if len(got) != 1 {
			t.Fatalf("%s: %d events", name, len(got))
		}
		c.want.Node, c.want.Session, c.want.Device, c.want.RemoteAddr, c.want.Time = "ws-1", "s-1", "web", "192.0.2.1:5", got[0].Time
		if got[0] != c.want || got[0].Time.IsZero() {
			t.Errorf("%s: %+v, want %+v", name, got[0], c.want)
		}
	}
}
