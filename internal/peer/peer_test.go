package peer

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/dialring/dialring/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait; nothing that works comes near it.
const patience = 30 * time.Second

var (
	callerRing = wire.RingRef{Epoch: 41, Hash: "0a0b0c0d"}
	nodeRing   = wire.RingRef{Epoch: 42, Hash: "5f1c9ab2"}
)

// node is a Server behind a real HTTP server.
type node struct {
	*Server
	http    *httptest.Server
	batches atomic.Int32
	calls   atomic.Int32
}

// startNode serves links until the test ends; handle gets each batch.
func startNode(t *testing.T, handle func(*Batch)) *node {
	t.Helper()
	n := &node{}
	n.Server = &Server{Ring: func() wire.RingRef { return nodeRing }, Handle: func(b *Batch) {
		n.batches.Add(1)
		n.calls.Add(int32(len(b.Calls)))
		handle(b)
	}}
	n.http = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != Path || r.Header.Get("Authorization") != "Bearer token" {
			http.Error(w, "not for you", http.StatusUnauthorized)
			return
		}
		if err := n.Upgrade(w, r, "test"); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	}))
	t.Cleanup(func() { n.http.Close(); n.Close() })
	return n
}

// answerAll answers each call with 1 delivered.
func answerAll(b *Batch) {
	for i := range b.Calls {
		b.Calls[i].Reply(Reply{Status: StatusOK, Delivered: 1})
	}
}

func startLink(t *testing.T, url string) *Link {
	t.Helper()
	l := NewLink(url, func() string { return "token" })
	t.Cleanup(l.Close)
	return l
}

// do sends a call; the channel gets it when it is done, and is closed then: a
// second Done would panic.
func do(l *Link, user string, change ...func(*Call)) <-chan *Call {
	done := make(chan *Call, 1)
	c := &Call{Op: OpPush, Ring: callerRing, User: user, ID: "m-" + user, Body: []byte(user), Done: func(c *Call) { done <- c; close(done) }}
	for _, f := range change {
		f(c)
	}
	l.Do(c)
	return done
}

func await[T any](t *testing.T, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatalf("there never was %s", what)
	}
	return v
}

func answered(t *testing.T, c <-chan *Call) *Call {
	t.Helper()
	x := await(t, "an end of the call", c)
	if x.Err != nil {
		t.Fatalf("%s: %v", x.User, x.Err)
	}
	return x
}

func TestOneCall(t *testing.T) {
	got := make(chan *Batch, 1)
	n := startNode(t, func(b *Batch) {
		got <- b
		b.Calls[0].Reply(Reply{Status: StatusMisdirected, Delivered: 300})
	})
	l := startLink(t, n.http.URL)
	if !l.Idle() {
		t.Error("a new link is not idle")
	}
	c := answered(t, do(l, "日本/*", func(c *Call) {
		c.Op, c.Device, c.ID, c.JSON, c.Body = OpBroadcast, "web-1", "id-1", true, []byte(`{"a":"\u0000"}`)
	}))
	b := await(t, "a batch", got)
	in := b.Calls[0]
	if len(b.Calls) != 1 || b.Ring != callerRing || in.Op != OpBroadcast || string(in.User) != "日本/*" || string(in.Device) != "web-1" ||
		string(in.ID) != "id-1" || !in.JSON || string(in.Body) != `{"a":"\u0000"}` {
		t.Errorf("arrived as %+v", b)
	}
	if c.Reply.Status != StatusMisdirected || c.Reply.Delivered != 300 || c.Peer != nodeRing {
		t.Errorf("answered %+v by %+v", c.Reply, c.Peer)
	}
	if !l.Idle() {
		t.Error("nothing waits and the link is not idle")
	}
}

// The empty ring has epoch 0, and no hash.
func TestEmptyRing(t *testing.T) {
	rings := make(chan wire.RingRef, 1)
	n := startNode(t, func(b *Batch) { rings <- b.Ring; answerAll(b) })
	n.Ring = func() wire.RingRef { return wire.RingRef{} }
	c := answered(t, do(startLink(t, n.http.URL), "a", func(c *Call) { c.Ring = wire.RingRef{} }))
	if r := await(t, "a batch", rings); r != (wire.RingRef{}) || c.Peer != (wire.RingRef{}) {
		t.Errorf("rings %+v and %+v", r, c.Peer)
	}
}

// A thousand callers at once: each gets its own answer, and they travel together.
func TestManyCalls(t *testing.T) {
	n := startNode(t, func(b *Batch) {
		for i := range b.Calls {
			in := &b.Calls[i]
			go in.Reply(Reply{Delivered: len(in.Body)})
		}
	})
	l := startLink(t, n.http.URL)
	const calls = 1000
	var wg sync.WaitGroup
	for i := range calls {
		wg.Go(func() {
			c := <-do(l, fmt.Sprintf("u%d", i), func(c *Call) { c.Body = make([]byte, i) })
			if c.Err != nil || c.Reply.Delivered != i {
				t.Errorf("call %d: %+v, %v", i, c.Reply, c.Err)
			}
		})
	}
	wg.Wait()
	if got := n.calls.Load(); got != calls {
		t.Errorf("%d calls arrived of %d", got, calls)
	}
	if b := n.batches.Load(); b >= calls {
		t.Errorf("%d calls in %d batches: none travelled together", calls, b)
	}
	if !l.Idle() {
		t.Error("all are answered and the link is not idle")
	}
}

// A batch goes by one ring, holds at most 1,024 calls, and bodies of any size
// up to the largest get through.
func TestBatchBounds(t *testing.T) {
	var mu sync.Mutex
	var sizes, counts []int
	hold := make(chan struct{})
	n := startNode(t, func(b *Batch) {
		if string(b.Calls[0].User) == "first" {
			<-hold
		}
		size := 0
		for _, in := range b.Calls {
			size += len(in.Body)
			if want := uint64(len(in.Device)); b.Ring.Epoch != want {
				t.Errorf("a call chosen by epoch %d came in a batch of epoch %d", want, b.Ring.Epoch)
			}
		}
		mu.Lock()
		sizes, counts = append(sizes, size), append(counts, len(b.Calls))
		mu.Unlock()
		answerAll(b)
	})
	l := startLink(t, n.http.URL)
	epoch := func(e int) func(*Call) {
		return func(c *Call) {
			c.Ring, c.Device = wire.RingRef{Epoch: uint64(e), Hash: "00000001"}, strings.Repeat("d", e)
		}
	}
	all := []<-chan *Call{do(l, "first", epoch(1))}
	for i := range 3000 {
		all = append(all, do(l, "u", epoch(1+i/1500)))
	}
	for range 4 {
		all = append(all, do(l, "big", epoch(3), func(c *Call) { c.Body = make([]byte, 1<<20) }))
	}
	close(hold)
	for _, c := range all {
		answered(t, c)
	}
	if slices.Max(counts) > batchCalls || slices.Max(sizes) > 1<<20 {
		t.Errorf("batches of up to %d calls and %d bytes", slices.Max(counts), slices.Max(sizes))
	}
}

// A call that is answered late holds up nobody.
func TestStraggler(t *testing.T) {
	held := make(chan *In, 1)
	n := startNode(t, func(b *Batch) {
		for i := range b.Calls {
			if in := &b.Calls[i]; string(in.User) == "slow" {
				held <- in
			} else {
				in.Reply(Reply{Delivered: 1})
			}
		}
	})
	l := startLink(t, n.http.URL)
	slow := do(l, "slow")
	for range 20 {
		answered(t, do(l, "quick"))
	}
	select {
	case c := <-slow:
		t.Fatalf("it ended before it was answered: %+v %v", c.Reply, c.Err)
	default:
	}
	if l.Idle() {
		t.Error("idle while a call waits")
	}
	await(t, "the slow call", held).Reply(Reply{Delivered: 7})
	if c := answered(t, slow); c.Reply.Delivered != 7 {
		t.Errorf("answered %+v", c.Reply)
	}
}

// The node goes away: what was sent is lost, what comes after does not reach it.
func TestServerCloses(t *testing.T) {
	arrived := make(chan struct{}, 1)
	n := startNode(t, func(*Batch) { arrived <- struct{}{} })
	l := startLink(t, n.http.URL)
	sent := do(l, "a")
	await(t, "a batch", arrived)
	waiting := do(l, "b") // behind the batch under way
	n.Close()
	if c := await(t, "an end", sent); !errors.Is(c.Err, ErrLost) || errors.Is(c.Err, ErrUnreachable) {
		t.Errorf("sent: %v", c.Err)
	}
	if c := await(t, "an end", waiting); !errors.Is(c.Err, ErrUnreachable) || errors.Is(c.Err, ErrLost) {
		t.Errorf("waiting: %v", c.Err)
	}
	if c := await(t, "an end", do(l, "c")); !errors.Is(c.Err, ErrUnreachable) || Refused(c.Err) {
		t.Errorf("while the node ends: %v", c.Err)
	}
	n.http.Close()
	for range 3 { // again and again
		if c := await(t, "an end", do(l, "d")); !errors.Is(c.Err, ErrUnreachable) || !Refused(c.Err) {
			t.Errorf("nothing listens there: %v", c.Err)
		}
	}
}

// Drop ends the link instead of answering, and the next call makes a new one.
func TestDropAndReconnect(t *testing.T) {
	n := startNode(t, func(b *Batch) {
		if string(b.Calls[0].User) == "drop" {
			b.Drop()
			return
		}
		answerAll(b)
	})
	l := startLink(t, n.http.URL)
	for range 5 {
		answered(t, do(l, "a"))
		if c := await(t, "an end", do(l, "drop")); !errors.Is(c.Err, ErrLost) {
			t.Errorf("dropped: %v", c.Err)
		}
	}
	answered(t, do(l, "a"))
}

// The node was away and is back on its address.
func TestNodeComesBack(t *testing.T) {
	n := startNode(t, answerAll)
	addr := n.http.Listener.Addr().String()
	l := startLink(t, n.http.URL)
	answered(t, do(l, "a"))
	n.http.Close()
	n.Close()
	for { // the link may learn of it only by its next call
		if c := await(t, "an end", do(l, "b")); Refused(c.Err) {
			break
		} else if c.Err == nil {
			t.Fatal("a call to a closed node was answered")
		}
	}
	again := &Server{Ring: func() wire.RingRef { return nodeRing }, Handle: answerAll}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Skipf("the port was taken meanwhile: %v", err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _ = again.Upgrade(w, r, "test") })}
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(func() { _ = s.Close(); again.Close() })
	answered(t, do(l, "c"))
}

func TestRefusedLink(t *testing.T) {
	n := startNode(t, answerAll)
	l := NewLink(n.http.URL, func() string { return "forged" })
	defer l.Close()
	if c := await(t, "an end", do(l, "a")); !errors.Is(c.Err, ErrUnreachable) || Refused(c.Err) || !strings.Contains(c.Err.Error(), "401") {
		t.Errorf("a link with a forged token: %v", c.Err)
	}
	for _, url := range []string{"http://127.0.0.1:0", "http://[::1", "http://256.1.1.1:1"} {
		bad := NewLink(url, func() string { return "token" })
		if c := await(t, "an end", do(bad, "a")); !errors.Is(c.Err, ErrUnreachable) {
			t.Errorf("%s: %v", url, c.Err)
		}
		bad.Close()
	}
	if n.batches.Load() != 0 {
		t.Error("a call arrived")
	}
}

// A link does not go to an address that its guard refuses: nothing is sent there, no token above all.
func TestGuardedLink(t *testing.T) {
	n := startNode(t, answerAll)
	p := Pool{Token: func(string) string { t.Error("a token is made"); return "token" }, Guard: func(_, address string, _ syscall.RawConn) error {
		return fmt.Errorf("not to %s", address)
	}}
	defer p.Close()
	at := strings.Replace(n.http.URL, "127.0.0.1", "localhost", 1)
	if c := await(t, "an end", do(p.Get("ws-1", "b1", at), "a")); !errors.Is(c.Err, ErrUnreachable) || !strings.Contains(c.Err.Error(), "not to ") {
		t.Errorf("a guarded link: %v", c.Err)
	}
	if n.batches.Load() != 0 {
		t.Error("a call arrived")
	}
}

// What is no upgrade gets a problem, and the connection is not taken over.
func TestUpgradeRefused(t *testing.T) {
	s := &Server{}
	for _, header := range []string{"", "websocket", Protocol + "2"} {
		r := httptest.NewRequest(http.MethodGet, Path, nil)
		r.Header.Set("Upgrade", header)
		var p *wire.Problem
		if err := s.Upgrade(httptest.NewRecorder(), r, "test"); !errors.As(err, &p) || p.Status != http.StatusBadRequest {
			t.Errorf("Upgrade %q: %v", header, err)
		}
	}
}

// The head of a node's answer has a bound: it is read before anything is known of who sends it.
func TestEndlessHead(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, err = c.Write([]byte("HTTP/1.1 101 Switching Protocols\r\nX: "))
		for x := []byte(strings.Repeat("x", 1<<16)); err == nil; {
			_, err = c.Write(x)
		}
	}()
	l := startLink(t, "http://"+ln.Addr().String())
	if c := await(t, "an end", do(l, "a")); !errors.Is(c.Err, ErrUnreachable) || !strings.Contains(c.Err.Error(), "more than 16384 bytes") {
		t.Errorf("a node whose answer has no end: %v", c.Err)
	}
	l.Close()
	_ = ln.Close()
	await(t, "the end of the connection", done)
}
