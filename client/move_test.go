package client

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// moveTo tells the client to go on at url, which it knows as node.
func (s *session) moveTo(url, node, ticket string) {
	s.text(fmt.Sprintf(`{"type":"move","url":%q,"ticket":%q,"node":%q,"epoch":2,"reason":"ring","after_ms":0,"deadline_ms":20000}`, url, ticket, node))
}

// at is a locator's answer that sends the client to a fake under another name.
func (f *fake) at(node string) answer {
	return f.here(func(l *wire.LocateResponse) { l.Node, l.Ticket = node, "located-"+node })
}

// gate holds back the dials of a fake until it is opened.
type gate struct {
	dials chan struct{} // a dial waits
	open  func()
}

func newGated(t *testing.T) (*fake, *gate) {
	block := make(chan struct{})
	g := &gate{dials: make(chan struct{}, 16), open: sync.OnceFunc(func() { close(block) })}
	f := newFake(t, script{dial: func(*fake, int) *answer {
		g.dials <- struct{}{}
		<-block
		return nil
	}})
	t.Cleanup(g.open) // before the server waits for its handlers
	return f, g
}

// connected starts a client and brings it to its first node.
func connected(t *testing.T, f *fake, edit ...func(*Client)) (*running, *session) {
	t.Helper()
	r := start(t, f.config(), edit...)
	s := recv(t, f.sessions, "the first dial").welcome(20_000)
	recv(t, f.locates, "the first locate")
	r.await(Connected)
	return r, s
}

// carries fails unless the client handles a message of the session.
func (r *running) carries(s *session, id string) {
	r.t.Helper()
	s.message(id, `1`)
	if m := recv(r.t, r.messages, "message "+id); m.ID != id {
		r.t.Fatalf("message %s came, want %s", m.ID, id)
	}
}

// ends ends Run and fails unless these were the states since it was connected
// first, and no message is left.
func (r *running) ends(want ...State) {
	r.t.Helper()
	r.cancel()
	if err := r.result(); err != nil {
		r.t.Errorf("Run returned %v", err)
	}
	got := []State{}
	for len(r.events) > 0 {
		got = append(got, (<-r.events).State)
	}
	if want = append(want, Stopped); !slices.Equal(got, want) {
		r.t.Errorf("then came the states %v, want %v", got, want)
	}
	for len(r.messages) > 0 {
		r.t.Errorf("message %s came, too", (<-r.messages).ID)
	}
}

// goodbye fails unless the client leaves with a close frame of code 1000.
func (s *session) goodbye() {
	s.t.Helper()
	if code := s.closeCode(); code != wire.CloseNormal {
		s.t.Errorf("the client left with %d, want 1000", code)
	}
	s.gone()
}

func (f *fake) dials() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n
}

// The new node is dialed with the move's ticket while the old connection is
// read; that is told goodbye when the new one has welcomed.
func TestMove(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	b, g := newGated(t)
	r, s1 := connected(t, f)
	s1.moveTo(b.ws, "ws-2", "ticket-move")
	recv(t, g.dials, "the dial of the new node")
	r.carries(s1, "while-dialing")
	g.open()
	s2 := recv(t, b.sessions, "the new node's session")
	if auth := s2.req.Header.Get("Authorization"); auth != "Bearer ticket-move" {
		t.Errorf("dialed with %q", auth)
	}
	r.carries(s1, "before-welcome")
	s2.welcome(20_000)
	e := recv(t, r.events, "an event")
	if e.State != Connected || e.Node != "ws-2" || e.Session != "s-1" || e.Err != nil {
		t.Errorf("moved: %+v", e)
	}
	s1.goodbye()
	s2.message("before-welcome", `1`) // the new node got it as well
	r.carries(s2, "after")
	if r.State() != e || r.moving.Load() != 1 {
		t.Errorf("State() is %+v, after %d events of a move", r.State(), r.moving.Load())
	}
	if len(f.locates)+len(b.locates) > 0 || len(r.failedNodes()) > 0 {
		t.Errorf("it asked a locator, or reports %v", r.failedNodes())
	}
	r.ends()
}

// A move to the node that it is at, for a fresh connection, is like any other.
func TestMoveToSameNode(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	r, s1 := connected(t, f)
	s1.moveTo(f.ws, "ws-1", "again")
	s2 := recv(t, f.sessions, "the second dial").welcome(20_000)
	if e := recv(t, r.events, "an event"); e.State != Connected || e.Node != "ws-1" {
		t.Errorf("moved: %+v", e)
	}
	s1.goodbye()
	r.carries(s2, "m")
	r.ends()
}

// Two moves in a row, the first node does not hang up: it does not hold anything up.
func TestMoveTwice(t *testing.T) {
	t.Parallel()
	f, b, c := newFake(t, script{}), newFake(t, script{}), newFake(t, script{})
	r, s1 := connected(t, f)
	s1.moveTo(b.ws, "ws-2", "t-2")
	s2 := recv(t, b.sessions, "the second node's session").welcome(20_000)
	s2.moveTo(c.ws, "ws-3", "t-3")
	s3 := recv(t, c.sessions, "the third node's session").welcome(20_000)
	r.await(Connected)
	if e := r.await(Connected); e.Node != "ws-3" {
		t.Errorf("moved: %+v", e)
	}
	s2.goodbye()
	s1.gone()
	r.carries(s3, "m")
	if len(f.locates) > 0 {
		t.Error("it asked a locator")
	}
	r.ends()
}

// While one move is under way another one changes nothing; the new node can tell
// the client to go on.
func TestMoveDuringMove(t *testing.T) {
	t.Parallel()
	f, c := newFake(t, script{}), newFake(t, script{})
	b, g := newGated(t)
	r, s1 := connected(t, f)
	s1.moveTo(b.ws, "ws-2", "t-2")
	recv(t, g.dials, "the dial of the second node")
	s1.moveTo(c.ws, "ws-3", "early")
	r.carries(s1, "behind-it")
	g.open()
	s2 := recv(t, b.sessions, "the second node's session")
	s1.moveTo(c.ws, "ws-3", "early") // now the dial is over, but there is no welcome
	r.carries(s1, "behind-that")
	s2.welcome(20_000)
	if e := r.await(Connected); e.Node != "ws-2" {
		t.Errorf("moved: %+v", e)
	}
	s2.moveTo(c.ws, "ws-3", "late")
	s3 := recv(t, c.sessions, "the third node's session")
	if auth := s3.req.Header.Get("Authorization"); auth != "Bearer late" {
		t.Errorf("the third node is dialed with %q", auth)
	}
	s3.welcome(20_000)
	if e := r.await(Connected); e.Node != "ws-3" {
		t.Errorf("moved: %+v", e)
	}
	r.ends()
}

// Frames that name no address, or no ticket, are no moves.
func TestMoveWithoutAddress(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	r, s1 := connected(t, f)
	s1.moveTo("", "ws-2", "t")
	s1.moveTo(f.ws, "ws-2", "")
	s1.text(`{"type":"move","url":7}`)
	r.carries(s1, "m")
	if n := f.dials(); n != 1 {
		t.Errorf("%d dials", n)
	}
	r.ends()
}

// When the new node cannot be reached the connection stays, and the client asks
// a locator, which it tells of that; then it goes where that says.
func TestMoveDialFails(t *testing.T) {
	t.Parallel()
	c := newFake(t, script{})
	refusing := newFake(t, script{dial: func(*fake, int) *answer { a := problem(421, wire.CodeMisdirected, ""); return &a }})
	for name, x := range map[string]struct {
		url    string
		failed []string
	}{
		"nobody listens": {"ws://" + closedAddr(t) + "/v1/ws", []string{"ws-2"}},
		"refused":        {refusing.ws, nil}, // it was reached
		"no URL":         {"http://127.0.0.1/", nil},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, script{locate: func(f *fake, n int, _ locateCall) answer {
				switch n {
				case 0:
					return f.here()
				case 1:
					return problem(503, wire.CodeNoNodes, "")
				}
				return c.at("ws-3")
			}})
			r, s1 := connected(t, f)
			s1.moveTo(x.url, "ws-2", "t-2")
			for range 2 {
				if call := recv(t, f.locates, "a locate"); !slices.Equal(call.Failed, x.failed) {
					t.Errorf("%v are reported, want %v", call.Failed, x.failed)
				}
				r.carries(s1, fmt.Sprint("m", len(f.locates), time.Now().UnixNano()))
			}
			s3 := recv(t, c.sessions, "the dial of the third node")
			if auth := s3.req.Header.Get("Authorization"); auth != "Bearer located-ws-3" {
				t.Errorf("dialed with %q", auth)
			}
			s3.welcome(20_000)
			if e := r.await(Connected); e.Node != "ws-3" {
				t.Errorf("moved: %+v", e)
			}
			s1.goodbye()
			r.ends()
		})
	}
}

// If the locator says that it is where it belongs, it stays. The back-off goes
// before the locate.
func TestMoveDialFailsStays(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	r, s1 := connected(t, f)
	s1.moveTo("ws://"+closedAddr(t)+"/v1/ws", "ws-2", "t-2")
	recv(t, f.locates, "a locate")
	r.carries(s1, "m1")
	b := newFake(t, script{}) // a later move is heeded, once that one is over
	var s2 *session
	for i := 0; s2 == nil; i++ {
		s1.moveTo(b.ws, "ws-3", "t-3")
		r.carries(s1, fmt.Sprint("again", i))
		select {
		case s2 = <-b.sessions:
		case <-time.After(time.Millisecond):
		}
	}
	s2.welcome(20_000)
	e := r.await(Connected)
	for e.Node == "ws-1" { // each failure says that it stays
		e = r.await(Connected)
	}
	if e.Node != "ws-3" || r.moving.Load() == 0 {
		t.Errorf("moved: %+v", e)
	}
	if f.dials() != 1 {
		t.Error("it dialed the node where it was")
	}
	r.ends()
}

// The new connection ends before its welcome: a locator is asked.
func TestMoveEndsBeforeWelcome(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*session){
		"reset":  func(s *session) { _ = s.nc.Close() },
		"closed": func(s *session) { s.close(wire.CloseNotTheOwner, "") },
		"broken": func(s *session) { s.raw(frame(3, nil)); s.gone() }, // no such opcode
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, c := newFake(t, script{}), newFake(t, script{})
			f := newFake(t, script{locate: func(f *fake, n int, _ locateCall) answer {
				if n == 0 {
					return f.here()
				}
				return c.at("ws-3")
			}})
			r, s1 := connected(t, f)
			s1.moveTo(b.ws, "ws-2", "t-2")
			end(recv(t, b.sessions, "the dial of the second node"))
			s3 := recv(t, c.sessions, "the dial of the third node")
			r.carries(s1, "m")
			s3.welcome(20_000)
			if e := r.await(Connected); e.Node != "ws-3" {
				t.Errorf("moved: %+v", e)
			}
			s1.goodbye()
			r.ends()
		})
	}
}

// The old connection ends in the middle of a move: the new one takes over,
// without a locate and without a word to the application.
func TestMoveTakeOver(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*session){
		"lost":   func(s *session) { _ = s.nc.Close() },
		"closed": func(s *session) { s.close(wire.CloseMoved, "") },
	} {
		for _, dialed := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " dialed=", dialed), func(t *testing.T) {
				t.Parallel()
				f := newFake(t, script{})
				b, g := newGated(t)
				r, s1 := connected(t, f)
				s1.moveTo(b.ws, "ws-2", "t-2")
				recv(t, g.dials, "the dial of the new node")
				var s2 *session
				if dialed {
					g.open()
					s2 = recv(t, b.sessions, "the new node's session")
					end(s1)
					for name == "lost" && len(r.failedNodes()) == 0 {
						time.Sleep(time.Millisecond) // until it has noticed
					}
				} else {
					end(s1)
					g.open() // within takeOverWait
					s2 = recv(t, b.sessions, "the new node's session")
				}
				s2.welcome(20_000)
				if e := recv(t, r.events, "an event"); e.State != Connected || e.Node != "ws-2" {
					t.Errorf("taken over: %+v", e)
				}
				r.carries(s2, "m")
				if len(f.locates) > 0 {
					t.Error("it asked a locator")
				}
				if name == "closed" && len(r.failedNodes()) > 0 {
					t.Errorf("%v are to be reported", r.failedNodes())
				}
				r.ends()
			})
		}
	}
}

// A close code that ends the session for good does so in the middle of a move.
func TestMoveKicked(t *testing.T) {
	t.Parallel()
	for _, dialed := range []bool{false, true} {
		t.Run(fmt.Sprint("dialed=", dialed), func(t *testing.T) {
			t.Parallel()
			f := newFake(t, script{})
			b, g := newGated(t)
			r, s1 := connected(t, f)
			s1.moveTo(b.ws, "ws-2", "t-2")
			recv(t, g.dials, "the dial of the new node")
			var s2 *session
			if dialed {
				g.open()
				s2 = recv(t, b.sessions, "the new node's session")
			}
			s1.close(wire.CloseKicked, "out")
			var stopped *StoppedError
			if err := r.result(); !errors.As(err, &stopped) || stopped.Code != wire.CloseKicked || stopped.Reason != "out" {
				t.Errorf("Run returned %v", err)
			}
			if s2 != nil {
				s2.gone()
			}
			if len(f.locates) > 0 {
				t.Error("it asked a locator")
			}
		})
	}
}
