package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"testing"

	"github.com/dialring/dialring/internal/wire"
)

// welcomeAt welcomes a client in the middle of a log.
func (s *session) welcomeAt(since string, head, pending uint64, gap bool) *session {
	s.text(fmt.Sprintf(`{"type":"welcome","session":"s-1","user":"alice","device":"d","node":"ws-1","epoch":1,"since":%q,`+
		`"head":%d,"pending":%d,"gap":%v,"ping_interval_ms":20000,"max_message_bytes":65536}`, since, head, pending, gap))
	return s
}

// stored sends the stored message seq, whose cursor is "c<seq>".
func (s *session) stored(seqs ...int) {
	for _, n := range seqs {
		s.storedAs(fmt.Sprint("m", n), n)
	}
}

func (s *session) storedAs(id string, seq int) {
	s.text(fmt.Sprintf(`{"type":"message","id":%q,"time":"2026-01-02T03:04:05Z","seq":%d,"cursor":"c%d","data":%d}`, id, seq, seq, seq))
}

// frame returns the client's next text frame of a type.
func (s *session) frame(typ string) wire.Frame {
	s.t.Helper()
	for {
		op, p, err := s.read()
		if err != nil {
			s.t.Fatalf("the client's %s: %v", typ, err)
		}
		var f wire.Frame
		if op == opText && json.Unmarshal(p, &f) == nil && f.Type == typ {
			return f
		}
	}
}

// acks waits until the client has acknowledged seq.
func (s *session) acks(seq int) {
	s.t.Helper()
	for want := fmt.Sprint("c", seq); s.frame(wire.TypeAck).Cursor != want; {
	}
}

func (s *session) since() string {
	u, err := url.Parse(s.req.RequestURI)
	if err != nil {
		s.t.Fatal(err)
	}
	return u.Query().Get("since")
}

// seqs fails unless these messages, and no others, come to the handler next.
func (r *running) seqs(want ...int) {
	r.t.Helper()
	for _, n := range want {
		if m := recv(r.t, r.messages, fmt.Sprint("message ", n)); m.Seq != uint64(n) || string(m.Data) != fmt.Sprint(n) {
			r.t.Fatalf("message %d (%s) came, want %d", m.Seq, m.Data, n)
		}
	}
}

// A stored message is acknowledged when its handler has returned, and the client
// goes on behind the last one that it received.
func TestStored(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	release := make(chan struct{})
	cfg := f.config()
	got := make(chan Message, 10)
	cfg.OnMessage = func(_ context.Context, m Message) { got <- m; <-release }
	start(t, cfg)
	s := recv(t, f.sessions, "a dial").welcomeAt("c0", 0, 0, false)
	if s.since() != "" {
		t.Errorf("a new client dials with since %q", s.since())
	}
	s.stored(1, 2)
	if m := recv(t, got, "a message"); m.Seq != 1 || m.Cursor != "c1" {
		t.Errorf("%+v", m)
	}
	s.text(`{"type":"pong","ref":1}`) // nothing is acknowledged yet
	close(release)
	s.acks(2)
	s.close(1001, "")
	s2 := recv(t, f.sessions, "a second dial")
	if s2.since() != "c2" {
		t.Errorf("it goes on behind %q, want c2", s2.since())
	}
}

// A hole has the client ask for a replay, once; what comes twice is dropped.
func TestStoredHole(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	r := start(t, f.config())
	s := recv(t, f.sessions, "a dial").welcomeAt("c0", 0, 0, false)
	s.stored(1, 2)
	r.seqs(1, 2)
	s.stored(5, 6)
	if since := s.frame(wire.TypeResume).Since; since != "c2" {
		t.Errorf("resume since %q, want c2", since)
	}
	s.stored(7, 3, 4, 5, 6)
	s.text(`{"type":"resumed","since":"c2","head":7,"gap":false}`)
	r.seqs(3, 4, 5, 6)
	s.stored(6, 6, 7, 8) // 7 was dropped while it waited for the replay
	r.seqs(7, 8)
	s.acks(8)
	// What the node says will not come is no hole.
	s.text(`{"type":"skip","to":10,"reason":"expired"}`)
	s.stored(11)
	r.seqs(11)
	if len(r.messages) > 0 {
		t.Errorf("%+v came, too", <-r.messages)
	}
}

// A gap forgets the numbers: the log may be another one. What was handled before
// does not come to the handler again.
func TestStoredGap(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	r := start(t, f.config())
	s := recv(t, f.sessions, "a dial").welcomeAt("c0", 0, 0, false)
	s.stored(1, 2, 3)
	r.seqs(1, 2, 3)
	s.close(1001, "")
	s = recv(t, f.sessions, "a second dial").welcomeAt("x0", 2, 2, true)
	s.storedAs("m1", 1) // the very message
	s.storedAs("n2", 2) // another one of that number
	if m := recv(t, r.messages, "the new message"); m.ID != "n2" || m.Seq != 2 {
		t.Errorf("%+v came", m)
	}
	s.acks(2)
	for {
		if e := recv(t, r.events, "an event with the gap"); e.Gap {
			if e.State != Connected || e.Pending != 2 {
				t.Errorf("%+v", e)
			}
			break
		}
	}
	// The same on a connection that is open.
	s.text(`{"type":"resumed","since":"y0","head":1,"gap":true}`)
	s.storedAs("y1", 1)
	if m := recv(t, r.messages, "the first of the third log"); m.ID != "y1" {
		t.Errorf("%+v came", m)
	}
	// And a part that the limits took.
	s.text(`{"type":"skip","to":5,"reason":"limit"}`)
	s.storedAs("y6", 6)
	if m := recv(t, r.messages, "the one behind"); m.ID != "y6" {
		t.Errorf("%+v came", m)
	}
}

// While a client moves, both connections carry the log: each message counts once,
// in order, and the new node is asked to go on behind what has come.
func TestStoredMove(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	b, g := newGated(t)
	r := start(t, f.config())
	s1 := recv(t, f.sessions, "a dial").welcomeAt("c0", 0, 0, false)
	s1.stored(1)
	r.seqs(1)
	s1.moveTo(b.ws, "ws-2", "ticket-move")
	recv(t, g.dials, "the dial of the new node")
	s1.stored(2)
	r.seqs(2)
	g.open()
	s2 := recv(t, b.sessions, "the new node's session")
	if s2.since() != "c1" && s2.since() != "c2" {
		t.Errorf("dialed with since %q", s2.since())
	}
	s2.welcomeAt("c1", 3, 2, false)
	s2.stored(2, 3)
	s1.stored(3, 4)
	s2.stored(4, 5)
	r.seqs(3, 4, 5)
	s2.acks(5)
	if len(r.messages) > 0 {
		t.Errorf("%+v came, too", <-r.messages)
	}
}

// A Run that ends leaves what it did not handle for the next one.
func TestStoredSecondRun(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	cfg := f.config()
	var r *running
	got := make(chan Message, 10)
	cfg.OnMessage = func(ctx context.Context, m Message) {
		got <- m
		if m.Seq == 2 {
			<-ctx.Done()
		}
	}
	r = start(t, cfg)
	s := recv(t, f.sessions, "a dial").welcomeAt("c0", 0, 0, false)
	s.stored(1, 2, 3, 4)
	for want := uint64(1); want <= 2; want++ {
		if m := recv(t, got, "a message"); m.Seq != want {
			t.Fatalf("%+v", m)
		}
	}
	s.acks(1)
	r.cancel()
	if err := r.result(); err != nil {
		t.Error(err)
	}
	r.again()
	s = recv(t, f.sessions, "a dial of the second Run")
	since := s.since()
	if since != "c1" && since != "c2" {
		t.Errorf("it goes on behind %q", since)
	}
	s.welcomeAt(since, 4, 3, false)
	s.stored(2, 3, 4)
	for want := uint64(3); want <= 4; want++ {
		if m := recv(t, got, "a message"); m.Seq != want {
			t.Fatalf("%+v came, want %d", m, want)
		}
	}
	s.acks(4)
}

// Config.Since is where the first Run begins.
func TestStoredSince(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	cfg := f.config()
	cfg.Since = "0"
	start(t, cfg)
	if s := recv(t, f.sessions, "a dial"); s.since() != "0" {
		t.Errorf("dialed with since %q", s.since())
	}
	cfg.OnMessage = func(context.Context, Message) {}
	cfg.Since = "not a cursor"
	if _, err := New(cfg); err == nil {
		t.Error("a cursor with blanks is taken")
	}
}

// An ephemeral message behind a stored one does not hold up its acknowledgement.
func TestStoredBehindEphemeral(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	release := make(chan struct{})
	cfg := f.config()
	cfg.OnMessage = func(_ context.Context, m Message) {
		if m.Seq == 2 {
			<-release
		}
	}
	start(t, cfg)
	s := recv(t, f.sessions, "a dial").welcomeAt("c0", 0, 0, false)
	s.stored(1)
	s.acks(1)
	s.stored(2)
	s.message("e1", `"ephemeral"`)
	s.text(`{"type":"pong","ref":1}`)
	close(release)
	s.acks(2)
}

// Nothing was handled before the first Run ended: the second one begins where that
// began, not from now.
func TestStoredNothingHandled(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	cfg := f.config()
	got := make(chan Message, 10)
	block := true
	cfg.OnMessage = func(ctx context.Context, m Message) {
		got <- m
		if block && m.Seq == 0 {
			<-ctx.Done()
		}
	}
	r := start(t, cfg)
	s := recv(t, f.sessions, "a dial").welcomeAt("c0", 0, 0, false)
	s.message("e1", `1`)
	recv(t, got, "the ephemeral one")
	s.stored(1, 2)
	s.text(`{"type":"ping","ref":"x"}`)
	for len(r.place.cursor()) == 0 || r.place.cursor() == "c0" { // both were received, neither was handled
	}
	r.cancel()
	if err := r.result(); err != nil {
		t.Error(err)
	}
	block = false
	r.again()
	s = recv(t, f.sessions, "a dial of the second Run")
	if s.since() != "c0" {
		t.Errorf("it goes on behind %q, want c0", s.since())
	}
	s.welcomeAt("c0", 2, 2, false)
	s.stored(1, 2)
	for want := uint64(1); want <= 2; want++ {
		if m := recv(t, got, "a message"); m.Seq != want {
			t.Fatalf("%+v came, want %d", m, want)
		}
	}
}

// A handler that was at work when the log turned out to be another one acknowledges
// nothing of the old one.
func TestStoredAckOfOldLog(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	release := make(chan struct{})
	cfg := f.config()
	got := make(chan Message, 10)
	cfg.OnMessage = func(_ context.Context, m Message) {
		got <- m
		if m.ID == "m5" {
			<-release
		}
	}
	start(t, cfg)
	s := recv(t, f.sessions, "a dial").welcomeAt("c0", 0, 0, false)
	s.stored(5)
	recv(t, got, "a message")
	s.text(`{"type":"resumed","since":"y0","head":1,"gap":true}`)
	s.text(`{"type":"message","id":"y1","time":"2026-01-02T03:04:05Z","seq":1,"cursor":"y1","data":1}`)
	s.text(`{"type":"pong","ref":1}`)
	s.close(1001, "")
	s = recv(t, f.sessions, "a second dial").welcomeAt("y1", 1, 0, false)
	close(release)
	recv(t, got, "the message of the new log")
	if c := s.frame(wire.TypeAck).Cursor; c != "y1" {
		t.Errorf("%q is acknowledged, want y1", c)
	}
}

// A client that arrived while the store was away hears from where it goes on: not
// from the start, as its welcome had it say.
func TestStoredResolvedLate(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	r := start(t, f.config())
	s := recv(t, f.sessions, "a dial").welcomeAt("0", 0, 0, false)
	s.text(`{"type":"resumed","since":"c500","head":500,"gap":false}`)
	s.message("e1", `1`)
	recv(t, r.messages, "what came behind it")
	s.close(1001, "")
	s = recv(t, f.sessions, "a second dial")
	if s.since() != "c500" {
		t.Errorf("it goes on behind %q, want c500", s.since())
	}
	s.welcomeAt("c500", 501, 1, false)
	s.stored(501)
	r.seqs(501)
}

// What is still under way on the old connection is of the old log, when the new node
// has another one.
func TestStoredMoveToOtherLog(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	b, g := newGated(t)
	r := start(t, f.config())
	s1 := recv(t, f.sessions, "a dial").welcomeAt("c0", 49, 0, false)
	s1.stored(49)
	r.seqs(49)
	s1.moveTo(b.ws, "ws-2", "ticket-move")
	recv(t, g.dials, "the dial of the new node")
	g.open()
	s2 := recv(t, b.sessions, "the new node's session").welcomeAt("0", 1, 1, true)
	for e := recv(t, r.events, "the gap"); !e.Gap; e = recv(t, r.events, "the gap") {
	}
	s1.storedAs("old", 50)
	s2.storedAs("new1", 1)
	s2.storedAs("new2", 2)
	for _, want := range []string{"new1", "new2"} {
		if m := recv(t, r.messages, want); m.ID != want {
			t.Errorf("%s came, want %s", m.ID, want)
		}
	}
	s2.acks(2)
}
