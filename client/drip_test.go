package client

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// drip writes messages without an end, until the connection has one.
func (s *session) drip() <-chan struct{} {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for i := 0; ; i++ {
			if _, err := s.nc.Write(frame(opText, fmt.Appendf(nil, `{"type":"message","id":"drip-%d","data":1}`, i))); err != nil {
				return
			}
			time.Sleep(closeTimeout / 10) // it is the time between frames that is tried
		}
	}()
	return ended
}

// A node that goes on sending after the goodbye is read for leaveTimeout, and holds
// neither a second move nor the end of Run.
func TestNodeThatDripsAfterGoodbye(t *testing.T) {
	t.Parallel()
	for _, ends := range []bool{false, true} {
		t.Run(fmt.Sprintf("Run ends=%t", ends), func(t *testing.T) {
			t.Parallel()
			f, b, c := newFake(t, script{}), newFake(t, script{}), newFake(t, script{})
			r, s1 := connected(t, f)
			dripped := s1.drip()
			s1.moveTo(b.ws, "ws-2", "t-2")
			s2 := recv(t, b.sessions, "the second node's session").welcome(20_000)
			if code := s1.closeCode(); code != wire.CloseNormal {
				t.Errorf("the client left with %d, want 1000", code)
			}
			s2.moveTo(c.ws, "ws-3", "t-3")
			s3 := recv(t, c.sessions, "the third node's session").welcome(20_000)
			r.await(Connected) // with the second
			r.await(Connected) // with the third; the rest of the first is read now
			if ends {
				r.cancel()
			}
			recv(t, dripped, "the end of what drips")
			if ends {
				if err := r.result(); err != nil {
					t.Errorf("Run returned %v", err)
				}
				return
			}
			s2.goodbye() // the client is with the third
			r.cancel()
			s3.goodbye()
		})
	}
}

// Nothing more is read of a node that welcomes another user: the client goes on to the next.
func TestRefusedNodeThatDrips(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	r := start(t, f.config())
	s := recv(t, f.sessions, "a dial")
	s.welcomeAs("mallory")
	dripped := s.drip()
	s2 := recv(t, f.sessions, "a second dial").welcome(20_000)
	recv(t, dripped, "the end of what drips")
	r.await(Connected)
	r.carries(s2, "ours")
	r.ends()
}

// However slow the handler is, what a node had sent before the goodbye comes: only the time
// counts in which nothing can be read.
func TestSlowHandlerAfterGoodbye(t *testing.T) {
	t.Parallel()
	f, b := newFake(t, script{}), newFake(t, script{})
	cfg := f.config()
	cfg.QueueSize = 1
	got := make(chan string, 64)
	slow := 3
	cfg.OnMessage = func(_ context.Context, m Message) {
		if got <- m.ID; slow > 0 {
			slow--
			time.Sleep(3 * closeTimeout / 2) // the handler is slow: it is that which is tried
		}
	}
	r := start(t, cfg)
	s1 := recv(t, f.sessions, "a dial").welcome(20_000)
	r.await(Connected)
	for i := range 3 { // one is handled, one waits in the queue, and one holds the receiver
		s1.message(fmt.Sprintf("before-%d", i), `1`)
	}
	recv(t, got, "the first message")
	s1.moveTo(b.ws, "ws-2", "t-2")
	for i := range 10 {
		s1.message(fmt.Sprintf("old-%d", i), `1`)
	}
	recv(t, b.sessions, "the new node's session").welcome(20_000).message("new", `1`)
	want := map[string]bool{"new": true}
	for i := range 10 {
		want[fmt.Sprintf("old-%d", i)] = true
	}
	for len(want) > 0 {
		delete(want, recv(t, got, fmt.Sprintf("what is left of %v", want)))
	}
	r.cancel()
}

// What a node answers to a dial has a bound.
func TestEndlessHandshake(t *testing.T) {
	t.Parallel()
	sent := make(chan int, 1)
	url := rawNode(t, func(n int, nc net.Conn) {
		if n > 0 {
			return
		}
		_, _ = nc.Write([]byte("HTTP/1.1 101 Switching Protocols\r\nX: "))
		total, b := 0, bytes.Repeat([]byte("x"), 1<<16)
		for {
			k, err := nc.Write(b)
			if total += k; err != nil {
				sent <- total
				return
			}
		}
	})
	f := newFake(t, script{locate: sendTo(url)})
	r := start(t, f.config())
	if n := recv(t, sent, "the end of the connection"); n > 16<<20 { // what the kernel's buffers take
		t.Errorf("it took %d bytes", n)
	}
	comesBack(t, f, r)
}

// A name that no node can have is not reported: a locator would refuse the locate, and the
// client would stop for that.
func TestFailedNodeNames(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{locate: func(f *fake, n int, _ locateCall) answer {
		return f.here(func(l *wire.LocateResponse) {
			if names := []string{"WS_1", "", strings.Repeat("x", 100), "ws-1"}; n < len(names) {
				l.Node, l.URL = names[n], "ws://"+closedAddr(t)+"/v1/ws"
			}
		})
	}})
	r := start(t, f.config())
	for n := range 5 {
		if call := recv(t, f.locates, "a locate"); n < 4 && len(call.Failed) > 0 || n == 4 && !slices.Equal(call.Failed, []string{"ws-1"}) {
			t.Errorf("locate %d reports %q", n, call.Failed)
		}
	}
	comesBack(t, f, r)
}
