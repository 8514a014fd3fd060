package client

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

func soon(c *Client) { c.recheck = 2 * time.Millisecond }

// A client that was told nothing for long asks a locator: it stays where that
// says the same, or says nothing useful, and moves when it names another node.
func TestRecheck(t *testing.T) {
	t.Parallel()
	b := newFake(t, script{})
	var moved atomic.Bool
	f := newFake(t, script{locate: func(f *fake, n int, _ locateCall) answer {
		switch {
		case n == 0:
			return f.here()
		case moved.Load():
			return b.at("ws-2")
		}
		switch n % 5 {
		case 1:
			return problem(503, wire.CodeNoNodes, "3600")
		case 2:
			return problem(403, wire.CodeForbidden, "")
		case 3:
			return answer{body: "<html>"}
		}
		return f.here()
	}})
	r, s1 := connected(t, f, soon)
	for i := range 20 {
		if call := recv(t, f.locates, "a locate"); len(call.Failed) > 0 || call.Device != "d" {
			t.Errorf("the locate was %+v", call)
		}
		r.carries(s1, fmt.Sprint("m", i))
	}
	if n := f.dials(); n != 1 {
		t.Errorf("%d dials", n)
	}
	moved.Store(true)
	s2 := recv(t, b.sessions, "the dial of the new node")
	if auth := s2.req.Header.Get("Authorization"); auth != "Bearer located-ws-2" {
		t.Errorf("dialed with %q", auth)
	}
	s2.welcome(20_000)
	if e := recv(t, r.events, "an event"); e.State != Connected || e.Node != "ws-2" {
		t.Errorf("moved: %+v", e)
	}
	s1.goodbye()
	r.carries(s2, "after")
	r.ends()
}

// The node that a recheck names cannot be reached: the client stays where it is
// and asks on.
func TestRecheckDialFails(t *testing.T) {
	t.Parallel()
	b := newFake(t, script{})
	dead := "ws://" + closedAddr(t) + "/v1/ws"
	f := newFake(t, script{locate: func(f *fake, n int, _ locateCall) answer {
		switch {
		case n == 0:
			return f.here()
		case n < 4:
			return f.here(func(l *wire.LocateResponse) { l.Node, l.URL = "ws-9", dead })
		}
		return b.at("ws-2")
	}})
	r, s1 := connected(t, f, soon)
	for i := range 3 {
		recv(t, f.locates, "a locate")
		r.carries(s1, fmt.Sprint("m", i))
	}
	if call := recv(t, f.locates, "a locate"); len(call.Failed) != 1 || call.Failed[0] != "ws-9" {
		t.Errorf("%v are reported", call.Failed)
	}
	recv(t, b.sessions, "the dial of the new node").welcome(20_000)
	if e := recv(t, r.events, "an event"); e.State != Connected || e.Node != "ws-2" {
		t.Errorf("moved: %+v", e)
	}
	s1.goodbye()
	r.ends()
}

// With the setting that it has, a client does not ask soon.
func TestRecheckDefault(t *testing.T) {
	c, err := New(Config{Locators: []string{"http://127.0.0.1:8080"}, User: "alice", OnMessage: func(context.Context, Message) {}})
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if d := c.recheckIn(); d < 5*time.Minute || d >= 10*time.Minute {
			t.Fatalf("it asks again after %v", d)
		}
	}
}

// Run ends properly in every state of a move. That no goroutine is left TestMain
// checks, here and for all others.
func TestMoveRunEnds(t *testing.T) {
	t.Parallel()
	hourly := func(c *Client) { c.retry = wire.Retry{BaseMS: 3_600_000, MaxMS: 3_600_000} }
	keepRetry := func(f *fake) answer {
		return f.here(func(l *wire.LocateResponse) { l.Retry = wire.Retry{} })
	}
	for name, play := range map[string]func(t *testing.T){
		"dialing": func(t *testing.T) {
			f := newFake(t, script{})
			b, g := newGated(t)
			r, s1 := connected(t, f)
			s1.moveTo(b.ws, "ws-2", "t-2")
			recv(t, g.dials, "the dial of the new node")
			r.ends()
			s1.goodbye()
		},
		"dialed, no welcome yet": func(t *testing.T) {
			f, b := newFake(t, script{}), newFake(t, script{})
			r, s1 := connected(t, f)
			s1.moveTo(b.ws, "ws-2", "t-2")
			s2 := recv(t, b.sessions, "the new node's session")
			r.carries(s1, "m")
			r.ends()
			s1.goodbye()
			s2.gone()
		},
		"moved, the old node does not hang up": func(t *testing.T) {
			f, b := newFake(t, script{}), newFake(t, script{})
			r, s1 := connected(t, f)
			s1.moveTo(b.ws, "ws-2", "t-2")
			s2 := recv(t, b.sessions, "the new node's session").welcome(20_000)
			r.await(Connected)
			r.ends()
			s2.goodbye()
			s1.goodbye()
		},
		"taking over": func(t *testing.T) {
			f := newFake(t, script{})
			b, g := newGated(t)
			r, s1 := connected(t, f)
			s1.moveTo(b.ws, "ws-2", "t-2")
			recv(t, g.dials, "the dial of the new node")
			s1.close(wire.CloseMoved, "")
			r.cancel()
			if err := r.result(); err != nil {
				t.Error(err)
			}
		},
		"backing off": func(t *testing.T) {
			f := newFake(t, script{locate: func(f *fake, _ int, _ locateCall) answer { return keepRetry(f) }})
			r, s1 := connected(t, f, hourly)
			s1.moveTo("ws://"+closedAddr(t)+"/v1/ws", "ws-2", "t-2")
			for i := 0; len(r.failedNodes()) == 0; i++ {
				r.carries(s1, fmt.Sprint("m", i))
			}
			r.carries(s1, "last")
			if len(f.locates) > 0 {
				t.Error("it did not wait before it asked a locator")
			}
			r.ends()
			s1.goodbye()
		},
		"locating": func(t *testing.T) {
			block, asked := make(chan struct{}), make(chan struct{}, 16)
			open := sync.OnceFunc(func() { close(block) })
			f := newFake(t, script{locate: func(f *fake, n int, _ locateCall) answer {
				if n > 0 {
					asked <- struct{}{}
					<-block
				}
				return f.here()
			}})
			t.Cleanup(open)
			r, s1 := connected(t, f, soon)
			recv(t, asked, "a locate")
			r.carries(s1, "m")
			r.ends()
			s1.goodbye()
		},
		"told to wait before it dials": func(t *testing.T) {
			b := newFake(t, script{})
			f := newFake(t, script{locate: func(f *fake, n int, _ locateCall) answer {
				if n == 0 {
					return f.here()
				}
				return b.here(func(l *wire.LocateResponse) { l.Node, l.DialAfterMS = "ws-2", 3_600_000 })
			}})
			r, s1 := connected(t, f, soon)
			recv(t, f.locates, "a locate")
			r.carries(s1, "m")
			r.ends()
			s1.goodbye()
			if b.dials() > 0 {
				t.Error("it did not wait")
			}
		},
		"told to move later": func(t *testing.T) {
			f := newFake(t, script{})
			r, s1 := connected(t, f)
			s1.text(fmt.Sprintf(`{"type":"move","url":%q,"ticket":"t","node":"ws-2","after_ms":3600000}`, f.ws))
			r.carries(s1, "m")
			r.ends()
			s1.goodbye()
			if f.dials() != 1 {
				t.Error("it did not wait")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			play(t)
		})
	}
}
