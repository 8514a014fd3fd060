package client

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// stopped ends a client and checks that Run returns nil and says so.
func (r *running) stopped() {
	r.t.Helper()
	r.cancel()
	if err := r.result(); err != nil {
		r.t.Errorf("Run returned %v", err)
	}
	if e := r.State(); e.State != Stopped || e.Err != nil {
		r.t.Errorf("State() is %+v", e)
	}
}

func TestStopWhileLocating(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{})
	cfg := Config{Locators: []string{"http://locator"}, User: "alice", HTTP: &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		close(asked)
		<-r.Context().Done()
		return nil, r.Context().Err()
	})}}
	r := start(t, cfg)
	recv(t, asked, "a locate")
	r.stopped()
}

func TestStopWhileGettingAToken(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{})
	r := start(t, Config{Locators: []string{"http://locator"}, Token: func(ctx context.Context) (string, error) {
		close(asked)
		<-ctx.Done()
		return "", ctx.Err()
	}})
	recv(t, asked, "a call of Token")
	r.stopped()
}

func TestStopWhileWaiting(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{locate: func(*fake, int, locateCall) answer { return problem(503, wire.CodeNoNodes, "3600") }})
	r := start(t, f.config())
	r.await(Waiting)
	r.stopped()
}

func TestStopWhileWaitingToDial(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{locate: func(f *fake, _ int, _ locateCall) answer {
		return f.here(func(l *wire.LocateResponse) { l.DialAfterMS = 3_600_000 })
	}})
	r := start(t, f.config())
	r.await(Waiting)
	r.stopped()
	if len(f.sessions) != 0 {
		t.Error("it dialed")
	}
}

func TestStopWhileDialing(t *testing.T) {
	t.Parallel()
	conns := make(chan net.Conn, 16)
	node := rawNode(t, func(_ int, nc net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(nc)); err != nil {
			t.Errorf("the dial: %v", err)
		}
		conns <- nc // and no answer
		_, _ = io.Copy(io.Discard, nc)
	})
	f := newFake(t, script{locate: sendTo(node)})
	r := start(t, f.config())
	recv(t, f.locates, "a locate")
	recv(t, conns, "a dial")
	r.stopped()
	r.again()
	if call := recv(t, f.locates, "the locate of a second Run"); len(call.Failed) != 0 {
		t.Errorf("%v are reported as failed, but it was the client that gave up", call.Failed)
	}
}

func TestStopWhileConnected(t *testing.T) {
	t.Parallel()
	for _, welcomed := range []bool{true, false} {
		t.Run(fmt.Sprintf("welcome %t", welcomed), func(t *testing.T) {
			t.Parallel()
			f := newFake(t, script{})
			r := start(t, f.config())
			s := recv(t, f.sessions, "a dial")
			if welcomed {
				s.welcome(20_000)
				r.await(Connected)
			} else {
				s.raw(frame(opPing, nil))
				if op, _, err := s.read(); op != opPong {
					t.Fatalf("no pong, so it is not connected: %d, %v", op, err)
				}
			}
			r.stopped()
			if code := s.closeCode(); code != wire.CloseNormal {
				t.Errorf("it closed with %d, want 1000", code)
			}
			s.gone()
			if n := len(f.locates); n != 1 {
				t.Errorf("%d locates, want 1", n)
			}
		})
	}
}

// What was received before the end is handled, and only then does Run return.
func TestQueueIsHandledBeforeRunReturns(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*running, *session){
		"context": func(r *running, _ *session) { r.cancel() },
		"kicked":  func(_ *running, s *session) { s.close(wire.CloseKicked, "") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, script{})
			began, release := make(chan struct{}, 64), make(chan struct{})
			free := sync.OnceFunc(func() { close(release) })
			defer free()
			var ids []string
			var ctxErr error
			cfg := f.config()
			cfg.OnMessage = func(ctx context.Context, m Message) {
				began <- struct{}{}
				<-release
				ids, ctxErr = append(ids, m.ID), ctx.Err()
			}
			r := start(t, cfg)
			s := recv(t, f.sessions, "a dial").welcome(20_000)
			for i := range 10 {
				s.message(fmt.Sprint("m", i), "1")
			}
			// A ping is answered in its turn: what came before it is in the queue,
			// but for the last message, which may be on its way there.
			s.message("last", "1")
			s.raw(frame(opPing, []byte("p")))
			if op, p, err := s.read(); op != opPong || string(p) != "p" || err != nil {
				t.Fatalf("the answer to a ping is %d %q, %v", op, p, err)
			}
			recv(t, began, "a call of OnMessage")
			end(r, s)
			select {
			case <-r.done:
				t.Error("Run returned while OnMessage was at work")
			default:
			}
			r.await(Connected)
			free()
			err := r.result()
			if name == "context" && (err != nil || ctxErr == nil) || name == "kicked" && (err == nil || ctxErr != nil) {
				t.Errorf("Run returned %v, the handler's context says %v", err, ctxErr)
			}
			if len(ids) < 10 || name == "kicked" && len(ids) != 11 {
				t.Fatalf("%v were handled of 11 messages", ids)
			}
			for i, id := range ids[:10] {
				if id != fmt.Sprint("m", i) {
					t.Errorf("message %d is %s", i, id)
				}
			}
		})
	}
}

func TestRunTwiceAtOnce(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	r := start(t, f.config())
	s := recv(t, f.sessions, "a dial").welcome(20_000)
	r.await(Connected)
	ended, cancel := context.WithCancel(context.Background())
	cancel() // so that it returns in any case
	if err := r.Run(ended); err == nil {
		t.Error("a second Run at the same time returned nil")
	}
	if e := r.State(); e.State != Connected {
		t.Errorf("after the second Run, State() is %+v", e)
	}
	s.message("m1", `1`)
	recv(t, r.messages, "a message to the first Run")
	r.stopped()

	r.again() // one after the other is fine
	recv(t, f.sessions, "a dial of the second Run").welcome(20_000).message("m2", `2`)
	if m := recv(t, r.messages, "a message to the second Run"); m.ID != "m2" {
		t.Errorf("message %+v", m)
	}
	r.stopped()
}

// With a context that has ended, Run does nothing.
func TestRunAfterTheEnd(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	cfg := f.config()
	cfg.OnMessage = func(context.Context, Message) {}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.Run(ctx); err != nil || len(f.sessions) != 0 {
		t.Errorf("Run returned %v after %d dials", err, len(f.sessions))
	}
}

// A handler that ends its Run with a message has it acknowledged, and none behind it.
func TestHandlerEndsRun(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	var r *running
	started, closed := make(chan struct{}), make(chan struct{})
	var got []uint64
	cfg := f.config()
	cfg.OnMessage = func(_ context.Context, m Message) {
		<-started
		if got = append(got, m.Seq); m.Seq == 2 {
			r.cancel()
			select {
			case <-closed: // it did not wait for the acknowledgement
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	r = start(t, cfg)
	s := recv(t, f.sessions, "a dial").welcomeAt("c0", 4, 4, false)
	s.stored(1, 2, 3, 4)
	s.text(`{"type":"pong","ref":1}`) // it has taken what came before it
	s.raw(frame(opPing, []byte("p")))
	if op, p, err := s.read(); op != opText || err != nil || string(p) != `{"type":"ack","cursor":"c0"}` {
		t.Fatalf("before the first message it acknowledges where it began: %d %s %v", op, p, err)
	}
	if op, _, err := s.read(); op != opPong || err != nil {
		t.Fatalf("the answer to a ping is %d, %v", op, err)
	}
	close(started)
	acked := ""
	for {
		op, p, err := s.read()
		if err != nil {
			t.Fatalf("the client's close frame: %v", err)
		}
		if op == opClose {
			close(closed)
			break
		}
		var a wire.Ack
		if op == opText && json.Unmarshal(p, &a) == nil && a.Type == wire.TypeAck {
			acked = a.Cursor
		}
	}
	s.gone()
	if err := r.result(); err != nil {
		t.Errorf("Run returned %v", err)
	}
	if acked != "c2" || len(got) != 2 {
		t.Errorf("%q is acknowledged last, and %v were handled; want c2 and two", acked, got)
	}
}
