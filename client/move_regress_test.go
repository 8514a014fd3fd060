package client

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// What the old node sent before it heard the goodbye is handled.
func TestOldFramesLost(t *testing.T) {
	f, b := newFake(t, script{}), newFake(t, script{})
	r, s1 := connected(t, f)
	s1.moveTo(b.ws, "ws-2", "t-2")
	s2 := recv(t, b.sessions, "the new node's session")
	s2.welcome(20_000)
	const n = 500
	for i := range n { // before it has read the goodbye
		s1.message(fmt.Sprint("m", i), `1`)
	}
	r.await(Connected)
	for i := range n {
		select {
		case <-r.messages:
		case <-time.After(3 * time.Second):
			t.Fatalf("%d of %d messages that the old node sent were handled", i, n)
		}
	}
}

// A slow handler is no reason to give up what the old node has sent.
func TestOldFramesSlowHandler(t *testing.T) {
	f, b := newFake(t, script{}), newFake(t, script{})
	const n = 600 // more than wait in the client itself
	hold, handled := make(chan struct{}), make(chan Message, n)
	r, s1 := connected(t, f, func(c *Client) {
		c.cfg.OnMessage = func(_ context.Context, m Message) { <-hold; handled <- m }
	})
	s1.moveTo(b.ws, "ws-2", "t-2")
	s2 := recv(t, b.sessions, "the new node's session")
	s2.welcome(20_000)
	for i := range n {
		s1.message(fmt.Sprint("m", i), `1`)
	}
	time.AfterFunc(2*closeTimeout, func() { close(hold) }) // what must not end the connection is the time
	r.await(Connected)
	for i := range n {
		select {
		case <-handled:
		case <-time.After(3 * time.Second):
			t.Fatalf("%d of %d messages that the old node sent were handled", i, n)
		}
	}
}

// A move frame that comes while a recheck's locate is under way counts.
func TestMoveDuringRecheck(t *testing.T) {
	b := newFake(t, script{})
	block, asked := make(chan struct{}), make(chan struct{}, 100)
	f := newFake(t, script{locate: func(f *fake, n int, _ locateCall) answer {
		if n == 1 {
			asked <- struct{}{}
			<-block
		}
		return f.here()
	}})
	r, s1 := connected(t, f, soon)
	recv(t, asked, "a recheck")
	s1.moveTo(b.ws, "ws-2", "t-2")
	r.carries(s1, "m")
	close(block)
	select {
	case <-b.sessions:
	case <-time.After(3 * time.Second):
		t.Fatal("the move was dropped: the new node is not dialed")
	}
}

// New connections that end before their welcome are repeated after a back-off.
func TestNoBackoffBeforeWelcome(t *testing.T) {
	b := newFake(t, script{})
	f := newFake(t, script{locate: func(f *fake, n int, _ locateCall) answer {
		if n == 0 {
			return f.here(func(l *wire.LocateResponse) { l.Retry = wire.Retry{} })
		}
		return b.at("ws-2")
	}})
	_, s1 := connected(t, f, func(c *Client) { c.retry = wire.Retry{BaseMS: 3_600_000, MaxMS: 3_600_000} })
	s1.moveTo(b.ws, "ws-2", "t-2")
	for range 20 {
		select {
		case s := <-b.sessions:
			s.close(wire.CloseNotTheOwner, "")
		case <-time.After(3 * time.Second):
			return
		}
	}
	t.Fatal("20 dials and locates in a row, with a back-off of an hour")
}

// A 401 that a recheck gets does not count.
func TestRecheckCountsRefusals(t *testing.T) {
	f := newFake(t, script{locate: func(f *fake, n int, _ locateCall) answer {
		if n == 1 || n == 2 {
			return problem(401, wire.CodeUnauthorized, "")
		}
		return f.here()
	}})
	r, s1 := connected(t, f, func(c *Client) { c.recheck = 300 * time.Millisecond })
	recv(t, f.locates, "a recheck")
	s1.message("m", `1`)
	recv(t, r.messages, "m")
	s1.close(1001, "")
	select {
	case <-r.done:
		t.Fatalf("Run ended: %v", r.err)
	case <-f.sessions:
	}
}
