package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// sent returns the client's next send, and its data as it was spelled.
func (s *session) sent() (wire.Send, string) {
	s.t.Helper()
	for {
		op, p, err := s.read()
		if err != nil {
			s.t.Fatalf("the client's send: %v", err)
		}
		var f wire.Send
		if op == opText && json.Unmarshal(p, &f) == nil && f.Type == wire.TypeSend {
			return f, string(f.Data)
		}
	}
}

// outcome is how a call of Send or Request ended.
type outcome struct {
	Receipt
	answer string
	err    error
}

func (r *running) send(ctx context.Context, to string, data any, opts ...PushOption) <-chan outcome {
	out := make(chan outcome, 1)
	go func() {
		if to == "" {
			b, err := r.Request(ctx, data)
			out <- outcome{answer: string(b), err: err}
			return
		}
		receipt, err := r.Send(ctx, to, data, opts...)
		out <- outcome{Receipt: receipt, err: err}
	}()
	return out
}

// Answers find their sends by the ref, in whatever order they come, and what is no
// answer of one does nothing.
func TestSendAnswers(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	r := start(t, f.config())
	s := recv(t, f.sessions, "a session").welcome(20_000)
	odd := json.RawMessage(`{"a" : "<\u0041>"}`)
	one := r.send(t.Context(), "bob", odd, IdempotencyKey("k"))
	first, data := s.sent()
	if first.To != "bob" || first.ID != "k" || first.Ephemeral || data != string(odd) {
		t.Errorf("sent %+v with %s", first, data)
	}
	two := r.send(t.Context(), "", 2)
	second, _ := s.sent()
	if second.To != "" || second.ID == "" {
		t.Errorf("sent %+v", second)
	}
	three := r.send(t.Context(), "carol", 3)
	third, _ := s.sent()
	s.text(`{"type":"ack","ref":"nobody's"}`)
	s.text(`{"type":"ack"}`)
	s.text(`{"type":"error","ref":7}`)
	s.text(fmt.Sprintf(`{"type":"error","ref":%s,"code":"forbidden","detail":"no"}`, third.Ref))
	s.text(fmt.Sprintf(`{"type":"ack","ref":%s,"id":"a","data":{"x" : 1}}`, second.Ref))
	s.text(fmt.Sprintf(`{"type":"ack","ref":%s,"id":"m","seq":9,"stored":true,"delivered":2}`, first.Ref))
	if o := recv(t, one, "an answer"); o.err != nil || o.Receipt != (Receipt{ID: "m", Seq: 9, Stored: true, Delivered: 2}) {
		t.Errorf("%+v", o)
	}
	if o := recv(t, two, "an answer"); o.err != nil || o.answer != `{"x" : 1}` {
		t.Errorf("%+v", o)
	}
	if o := recv(t, three, "an answer"); !errors.As(o.err, new(*SendError)) || o.err.Error() != "dialring: the message was refused: forbidden: no" {
		t.Errorf("%+v", o)
	}
	if n := len(r.sends.calls) + len(r.sends.order); n != 0 {
		t.Errorf("%d sends are remembered", n)
	}
	for _, opts := range [][]PushOption{{ToDevice("x")}, {WaitAck(1)}, {TTL(1)}, {Ephemeral(), IdempotencyKey("k")}} {
		if _, err := r.Send(t.Context(), "bob", 1, opts...); err == nil {
			t.Errorf("options that do not go with Send are taken")
		}
	}
}

// A connection breaks: what was not answered is sent again over the next one, with the
// same id and in order; an ephemeral message is not, and whoever waits hears it.
func TestSendOverNextConnection(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	r := start(t, f.config())
	early := r.send(t.Context(), "bob", "early") // before there is a connection
	s := recv(t, f.sessions, "a session").welcome(20_000)
	first, _ := s.sent()
	now := r.send(t.Context(), "bob", "now", Ephemeral())
	if e, _ := s.sent(); !e.Ephemeral || e.ID != "" {
		t.Errorf("sent %+v", e)
	}
	later := r.send(t.Context(), "", "later")
	second, _ := s.sent()
	given, cancel := context.WithCancel(t.Context())
	forgotten := r.send(given, "bob", "forgotten")
	s.sent()
	cancel()
	if o := recv(t, forgotten, "its end"); !errors.Is(o.err, context.Canceled) {
		t.Errorf("%+v", o)
	}
	_ = s.nc.Close()
	if o := recv(t, now, "its end"); !errors.Is(o.err, ErrConnectionLost) {
		t.Errorf("%+v", o)
	}
	s = recv(t, f.sessions, "the next session").welcome(20_000)
	for _, want := range []wire.Send{first, second} {
		again, data := s.sent()
		if string(again.Ref) != string(want.Ref) || again.ID != want.ID || data != string(want.Data) {
			t.Errorf("sent %+v %s, and before %+v", again, data, want)
		}
		s.text(fmt.Sprintf(`{"type":"ack","ref":%s,"seq":1,"stored":true,"duplicate":true}`, again.Ref))
	}
	if o := recv(t, early, "an answer"); o.err != nil || !o.Duplicate {
		t.Errorf("%+v", o)
	}
	if o := recv(t, later, "an answer"); o.err != nil {
		t.Errorf("%+v", o)
	}
}

// While the client moves, the old connection answers what was sent over it, and is left
// then; what it owes for long is sent over the new one, when it has ended.
func TestSendWhileMoving(t *testing.T) {
	t.Parallel()
	for name, answers := range map[string]bool{"answers": true, "does not": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, b := newFake(t, script{}), newFake(t, script{})
			r := start(t, f.config())
			s1 := recv(t, f.sessions, "a session").welcome(20_000)
			r.await(Connected)
			one := r.send(t.Context(), "bob", 1)
			first, _ := s1.sent()
			two := r.send(t.Context(), "bob", 2, Ephemeral())
			second, _ := s1.sent()
			s1.moveTo(b.ws, "ws-2", "t")
			s2 := recv(t, b.sessions, "the new node's session").welcome(20_000)
			r.await(Connected)
			three := r.send(t.Context(), "bob", 3)
			third, _ := s2.sent()
			if !answers {
				s1.goodbye()
				_ = s1.nc.Close()
				if o := recv(t, two, "its end"); !errors.Is(o.err, ErrConnectionLost) {
					t.Errorf("%+v", o)
				}
				if again, _ := s2.sent(); again.ID != first.ID {
					t.Errorf("sent %+v after %+v", again, first)
				}
				return
			}
			s1.text(fmt.Sprintf(`{"type":"ack","ref":%s,"seq":5,"stored":true}`, first.Ref))
			s1.text(fmt.Sprintf(`{"type":"ack","ref":%s,"delivered":1}`, second.Ref))
			if o := recv(t, one, "an answer"); o.err != nil || o.Seq != 5 {
				t.Errorf("%+v", o)
			}
			if o := recv(t, two, "an answer"); o.err != nil || o.Delivered != 1 {
				t.Errorf("%+v", o)
			}
			s1.goodbye()
			s2.text(fmt.Sprintf(`{"type":"ack","ref":%s,"seq":6,"stored":true}`, third.Ref))
			if o := recv(t, three, "an answer"); o.err != nil || o.Seq != 6 {
				t.Errorf("%+v", o)
			}
		})
	}
}

// A message that is larger than the node takes is refused here: the node would end the
// connection, and the next one, too.
func TestSendTooLarge(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	r := start(t, f.config())
	s := recv(t, f.sessions, "a session").welcome(20_000) // takes 65,536 bytes
	for n, fits := range map[int]bool{65_536 - 2: true, 65_536 - 1: false, 10 << 20: false} {
		out := r.send(t.Context(), "bob", json.RawMessage(`"`+strings.Repeat("<", n)+`"`))
		if fits {
			m, data := s.sent()
			if len(data) != n+2 {
				t.Errorf("sent %d bytes", len(data))
			}
			s.text(fmt.Sprintf(`{"type":"ack","ref":%s}`, m.Ref))
		}
		o := recv(t, out, "an answer")
		if e := (*SendError)(nil); fits != (o.err == nil) || !fits && (!errors.As(o.err, &e) || e.Code != "too_large") {
			t.Errorf("%d bytes: %v", n, o.err)
		}
	}
}

// No more are under way than a node takes, and when it asks for less haste the client
// waits and says it again.
func TestSendPaced(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	r := start(t, f.config())
	s := recv(t, f.sessions, "a session").welcome(20_000)
	const n = 3 * maxUnanswered
	outs := make([]<-chan outcome, n)
	for i := range outs {
		outs[i] = r.send(t.Context(), "bob", i)
	}
	refused := map[string]bool{}
	for got := 0; got < n; {
		m, _ := s.sent()
		r.sends.mu.Lock()
		under := 0
		for _, k := range r.sends.order {
			if k.on != nil && !k.over {
				under++
			}
		}
		r.sends.mu.Unlock()
		if under > maxUnanswered {
			t.Fatalf("%d are under way", under)
		}
		if got == 10 && len(refused) == 0 {
			refused[m.ID] = true
			s.text(fmt.Sprintf(`{"type":"error","ref":%s,"code":"rate_limited","detail":"slower"}`, m.Ref))
			continue
		}
		got++
		s.text(fmt.Sprintf(`{"type":"ack","ref":%s}`, m.Ref))
	}
	for _, out := range outs {
		if o := recv(t, out, "an answer"); o.err != nil {
			t.Errorf("%+v", o)
		}
	}
	if len(refused) != 1 {
		t.Errorf("%d were refused", len(refused))
	}
}

// When Run has ended nobody waits, and the next Run sends again.
func TestSendWhenRunEnds(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	r := start(t, f.config())
	s := recv(t, f.sessions, "a session").welcome(20_000)
	out := r.send(t.Context(), "bob", 1)
	s.sent()
	s.close(4002, "")
	stopped := (*StoppedError)(nil)
	if o := recv(t, out, "its end"); !errors.As(o.err, &stopped) || stopped.Code != 4002 {
		t.Errorf("%+v", o)
	}
	if err := r.result(); !errors.As(err, &stopped) {
		t.Errorf("Run ended with %v", err)
	}
	if _, err := r.Send(context.Background(), "bob", 2); !errors.As(err, &stopped) {
		t.Errorf("afterwards: %v", err)
	}
	r.again()
	s = recv(t, f.sessions, "a session").welcome(20_000)
	r.await(Connected)
	out = r.send(t.Context(), "bob", 3)
	m, _ := s.sent()
	s.text(fmt.Sprintf(`{"type":"ack","ref":%s}`, m.Ref))
	if o := recv(t, out, "an answer"); o.err != nil {
		t.Errorf("%+v", o)
	}
	r.cancel()
	if err := r.result(); err != nil {
		t.Error(err)
	}
	if _, err := r.Send(context.Background(), "bob", 4); !errors.Is(err, ErrNotRunning) {
		t.Errorf("afterwards: %v", err)
	}
}

// A message whose key the cluster may have forgotten is not sent again: when its connection
// ends or, if it grew too old without one, when the next is there. A request is.
func TestSendTooOldToRepeat(t *testing.T) {
	t.Parallel()
	for name, late := range map[string]bool{"old when it breaks": false, "old when the next is there": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, script{})
			r := start(t, f.config())
			s := recv(t, f.sessions, "a session").welcome(20_000)
			old := r.send(t.Context(), "bob", "old", IdempotencyKey("k"))
			s.sent()
			asked := r.send(t.Context(), "", "asked")
			request, _ := s.sent()
			repeat := func(d time.Duration) {
				r.sends.mu.Lock()
				defer r.sends.mu.Unlock()
				r.sends.repeat = d
			}
			if !late {
				repeat(0)
			}
			r.await(Connected)
			_ = s.nc.Close()
			r.await(Waiting)
			repeat(0)
			unsent := r.send(t.Context(), "bob", "unsent") // has no age
			if !late {
				if o := recv(t, old, "its end"); !errors.Is(o.err, ErrConnectionLost) {
					t.Errorf("%+v", o)
				}
			}
			s = recv(t, f.sessions, "the next session").welcome(20_000)
			again, _ := s.sent()
			if again.ID != request.ID {
				t.Errorf("sent %+v, want the request", again)
			}
			fresh, data := s.sent()
			if data != `"unsent"` {
				t.Errorf("sent %+v %s", fresh, data)
			}
			for _, m := range []wire.Send{again, fresh} {
				s.text(fmt.Sprintf(`{"type":"ack","ref":%s,"id":"m"}`, m.Ref))
			}
			if late {
				if o := recv(t, old, "its end"); !errors.Is(o.err, ErrConnectionLost) {
					t.Errorf("%+v", o)
				}
			}
			for _, out := range []<-chan outcome{asked, unsent} {
				if o := recv(t, out, "an answer"); o.err != nil {
					t.Errorf("%+v", o)
				}
			}
		})
	}
}

// What a node refused to take now was never taken, and has no age.
func TestSendAgeOfRefused(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	r := start(t, f.config())
	s := recv(t, f.sessions, "a session").welcome(20_000)
	r.await(Connected)
	out := r.send(t.Context(), "bob", 1)
	first, _ := s.sent()
	r.sends.mu.Lock()
	r.sends.repeat = 0
	r.sends.mu.Unlock()
	s.text(fmt.Sprintf(`{"type":"error","ref":%s,"code":"rate_limited","detail":"slower"}`, first.Ref))
	second, _ := s.sent()
	if second.ID != first.ID {
		t.Errorf("sent %+v", second)
	}
	s.text(fmt.Sprintf(`{"type":"ack","ref":%s}`, second.Ref))
	if o := recv(t, out, "an answer"); o.err != nil {
		t.Errorf("%+v", o)
	}
}
