package client

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// TestLiveness holds what takes seconds of real time; all of it runs at once,
// however few cores there are.
func TestLiveness(t *testing.T) {
	t.Parallel()
	var wg sync.WaitGroup
	defer wg.Wait()
	run := func(name string, test func(*testing.T)) { wg.Go(func() { t.Run(name, test) }) }

	for name, serve := range silent {
		run("silent node: "+name, func(t *testing.T) { silentNode(t, serve) })
	}
	for _, ms := range []int{0, -1, 1 << 53, 1<<63 - 1} {
		run(fmt.Sprint("ping interval ", ms), func(t *testing.T) { absurdPingInterval(t, ms) })
	}
	run("pings keep the connection", pingsKeepTheConnection)
	run("long handler", longHandler)
	run("back-off starts anew", backoffStartsAnew)
	run("late ping", latePing)
}

// A node whose ping is late may be frozen, and its users elsewhere: the client
// asks a locator, and moves without having lost the connection.
func latePing(t *testing.T) {
	f := newFake(t, script{locate: func(f *fake, n int, _ locateCall) answer {
		return f.here(func(l *wire.LocateResponse) { l.Node = fmt.Sprint("ws-", n+1) })
	}})
	r := start(t, f.config())
	s1 := recv(t, f.sessions, "a dial").welcome(int(pingSlack.Milliseconds()) + 1)
	recv(t, f.locates, "the first locate")
	recv(t, f.locates, "a locate when the ping is late")
	s2 := recv(t, f.sessions, "a dial of the new owner").welcome(20_000)
	s1.goodbye()
	r.carries(s2, "from-the-new-owner")
}

// A connection of 10 s starts the back-off anew; these took 12 attempts before.
func backoffStartsAnew(t *testing.T) {
	f := newFake(t, script{})
	r := start(t, f.config(), func(c *Client) { c.attempt = 12 })
	s := recv(t, f.sessions, "a dial").welcome(20_000)
	time.Sleep(settled + time.Second) // the time is what it is about
	s.close(wire.CloseOverloaded, "")
	recv(t, f.sessions, "a second dial")
	r.cancel()
	_ = r.result()
	if r.attempt != 1 {
		t.Errorf("it counts %d attempts after a long connection, want 1", r.attempt)
	}
}

// silent are ways in which a node that was reached says nothing more.
var silent = map[string]func(nc net.Conn, upgrade func() *session){
	"no handshake":      func(net.Conn, func() *session) {},
	"half a handshake":  func(nc net.Conn, _ func() *session) { _, _ = io.WriteString(nc, "HTTP/1.1 101 ") },
	"no welcome":        func(_ net.Conn, upgrade func() *session) { upgrade() },
	"half a welcome":    func(_ net.Conn, upgrade func() *session) { upgrade().raw([]byte{0x81, 100, '{'}) },
	"after its welcome": func(_ net.Conn, upgrade func() *session) { upgrade().welcome(1) },
}

// Such a node is given up, and reported.
func silentNode(t *testing.T, serve func(net.Conn, func() *session)) {
	f := newFake(t, script{locate: sendTo(rawNode(t, func(_ int, nc net.Conn) {
		br := bufio.NewReader(nc)
		req, err := http.ReadRequest(br)
		if err != nil {
			t.Errorf("the dial: %v", err)
			return
		}
		serve(nc, func() *session { return newSession(t, nc, br, req) })
		_, _ = io.Copy(io.Discard, br)
	}))})
	r := start(t, f.config())
	recv(t, f.locates, "a locate")
	if call := recv(t, f.locates, "a second locate"); !slices.Equal(call.Failed, []string{"ws-bad"}) {
		t.Errorf("%v are reported as failed", call.Failed)
	}
	comesBack(t, f, r)
}

// Pings are signs of life, and they are answered.
func pingsKeepTheConnection(t *testing.T) {
	f := newFake(t, script{})
	r := start(t, f.config())
	s := recv(t, f.sessions, "a dial").welcome(1000) // it gives up after 7 s
	for began := time.Now(); time.Since(began) < 9*time.Second; time.Sleep(time.Second) {
		s.raw(frame(opPing, []byte("p")))
		if op, p, err := s.read(); op != opPong || string(p) != "p" || err != nil {
			t.Fatalf("the answer to a ping is %d %q, %v", op, p, err)
		}
	}
	if n := len(f.locates); n != 1 || r.State().State != Connected {
		t.Errorf("%d locates, State() %+v", n, r.State())
	}
}

// While OnMessage blocks for long the client does not read, and so hears
// nothing: that is no sign that the node is dead.
func longHandler(t *testing.T) {
	f := newFake(t, script{})
	cfg := f.config()
	cfg.QueueSize = 1
	began, release, ids := make(chan struct{}, 1024), make(chan struct{}), make(chan string, 1024)
	free := sync.OnceFunc(func() { close(release) })
	defer free()
	cfg.OnMessage = func(_ context.Context, m Message) {
		began <- struct{}{}
		<-release
		ids <- m.ID
	}
	start(t, cfg)
	s := recv(t, f.sessions, "a dial").welcome(1) // it gives up after 5.002 s
	for i := range 100 {
		s.message(fmt.Sprint("m", i), `1`)
	}
	recv(t, began, "a call of OnMessage")
	time.Sleep(7 * time.Second) // the time is what it is about
	s.raw(frame(opPing, nil))
	free()
	for i := range 100 {
		select {
		case id := <-ids:
			if id != fmt.Sprint("m", i) {
				t.Fatalf("%s came, want m%d", id, i)
			}
		case <-f.sessions:
			t.Fatalf("the client left the node, which was alive, after %d of 100 messages", i)
		case <-time.After(hang):
			t.Fatalf("message %d did not come", i)
		}
	}
}

// An interval that is absurd, or missing, does not part a client from its node.
func absurdPingInterval(t *testing.T, ms int) {
	f := newFake(t, script{})
	r := start(t, f.config())
	s := recv(t, f.sessions, "a dial").welcome(ms)
	r.await(Connected)
	for began := time.Now(); time.Since(began) < dialTimeout+2*time.Second; time.Sleep(time.Second) {
		s.raw(frame(opPing, []byte("p")))
		if op, _, err := s.read(); op != opPong || err != nil {
			t.Fatalf("the client left a living node after %v", time.Since(began))
		}
	}
}
