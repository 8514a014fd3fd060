package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/dialring/dialring/client"
	"github.com/dialring/dialring/internal/wire"
)

// What is pushed is kept for who is away, and each device gets it in order from
// where it was.
func TestInbox(t *testing.T) {
	t.Parallel()
	l, _ := threeNodes(t)
	for i := 1; i <= 3; i++ {
		if r := l.keep(t, "alice", fmt.Sprint(i)); r.Seq != uint64(i) || r.Delivered != 0 {
			t.Fatalf("push %d: %+v", i, r)
		}
	}
	phone := dialSince(t, l, "alice", "phone", "")
	phone.welcomed(t, 3, 0, false) // a new device: from now
	if r := l.keep(t, "alice", "4"); r.Seq != 4 || r.Delivered != 1 {
		t.Fatalf("%+v", r)
	}
	four := phone.message(t, 4, "4")
	tv := dialSince(t, l, "alice", "tv", "0") // everything
	tv.welcomed(t, 4, 4, false)
	var two wire.Message
	for i := 1; i <= 4; i++ {
		if m := tv.message(t, uint64(i), fmt.Sprint(i)); i == 2 {
			two = m
		}
	}
	if r := l.keep(t, "alice", "5"); r.Delivered != 2 {
		t.Fatalf("%+v", r)
	}
	phone.message(t, 5, "5")
	tv.message(t, 5, "5")

	// The phone has handled 4, and not 5.
	phone.write(t, wire.Ack{Type: "ack", Cursor: four.Cursor})
	eventually(t, "the acknowledgement is known", func() bool {
		u := l.getUser(t, "alice")
		return u.Head == 5 && len(u.Sessions) == 2 && u.Sessions[0].AckedSeq+u.Sessions[1].AckedSeq == 4
	})
	phone.Close()
	eventually(t, "the phone has left", func() bool { return len(l.getUser(t, "alice").Sessions) == 1 })
	l.keep(t, "alice", "6")
	eventually(t, "the phone goes on behind what it has handled", func() bool {
		phone = dialSince(t, l, "alice", "phone", "") // the position is written behind
		return phone.welcome.Pending == 2
	})
	phone.welcomed(t, 6, 2, false)
	phone.message(t, 5, "5")
	phone.message(t, 6, "6")

	// A cursor counts more than the device's position.
	tablet := dialSince(t, l, "alice", "phone", two.Cursor)
	tablet.welcomed(t, 6, 4, false)
	for i := 3; i <= 6; i++ {
		tablet.message(t, uint64(i), fmt.Sprint(i))
	}
	// And one that is up to date gets nothing.
	last := l.keep(t, "alice", "7")
	m := tablet.message(t, last.Seq, "7")
	dialSince(t, l, "alice", "watch", m.Cursor).welcomed(t, 7, 0, false)
	// Bytes, too.
	if p := l.post("/v1/push/alice", "", "\x00\x01\xff", ""); p.status != 200 {
		t.Fatalf("%d %s", p.status, p.body)
	}
	var raw wire.Message
	tablet.expectType(t, wire.TypeMessage, &raw)
	if raw.Seq != 8 || string(raw.DataB64) != "\x00\x01\xff" {
		t.Errorf("%+v", raw)
	}
}

// A cursor of another user's log is none of this one: the client is told of a gap, and gets
// what is its own.
func TestInboxCursorOfAnother(t *testing.T) {
	t.Parallel()
	l := startNormal(t, 3).l
	var alices []wire.Message
	alice := dialSince(t, l, "alice", "d", "")
	alice.welcomed(t, 0, 0, false)
	for i := 1; i <= 3; i++ {
		l.keep(t, "alice", fmt.Sprintf(`"of alice %d"`, i))
		alices = append(alices, alice.message(t, uint64(i), fmt.Sprintf(`"of alice %d"`, i)))
		l.keep(t, "bob", fmt.Sprintf(`"of bob %d"`, i))
	}
	for i, m := range alices {
		bob := dialSince(t, l, "bob", fmt.Sprintf("d%d", i), m.Cursor)
		bob.welcomed(t, 3, 3, true)
		for i := 1; i <= 3; i++ {
			bob.message(t, uint64(i), fmt.Sprintf(`"of bob %d"`, i))
		}
	}
}

// A repeat within the window answers like the first, and nothing is delivered twice.
func TestInboxIdempotency(t *testing.T) {
	t.Parallel()
	l := startNormal(t, 3, "DIALRING_IDEMPOTENCY_WINDOW=3s").l
	b := dialSince(t, l, "alice", "d", "")
	status, first, _ := l.store(t, "alice", `{"n":1}`, "", "order-1")
	if status != 200 || first.Seq != 1 || first.Duplicate || first.Delivered != 1 {
		t.Fatalf("%d %+v", status, first)
	}
	b.message(t, 1, `{"n":1}`)
	status, again, _ := l.store(t, "alice", `{"n":1}`, "", "order-1")
	if want := first; status != 200 || !again.Duplicate {
		t.Fatalf("a repeat: %d %+v", status, again)
	} else if want.Duplicate = true; again != want {
		t.Errorf("a repeat: %+v, the first: %+v", again, first)
	}
	if status, _, p := l.store(t, "alice", `{"n":2}`, "", "order-1"); status != 422 || p.Code != wire.CodeKeyReused {
		t.Errorf("another body: %d %+v", status, p)
	}
	if status, r, _ := l.store(t, "bob", `{"n":2}`, "", "order-1"); status != 200 || r.Duplicate || r.Seq != 1 {
		t.Errorf("another user's key: %d %+v", status, r)
	}
	if p := l.post("/v1/push/alice", "text/plain", `{"n":1}`, "order-1"); p.status != 422 {
		t.Errorf("another content type: %d %s", p.status, p.body)
	}
	// In lists each message has its own key, or all users the call's.
	list := `{"messages":[{"user":"alice","data":1,"id":"a"},{"user":"alice","data":1,"id":"a"},{"user":"alice","data":2,"id":"a"},{"user":"carol","data":1,"id":"a"}]}`
	p := l.post("/v1/push", "application/json", list, "")
	var res struct {
		Results []struct {
			wire.PushResult
			Error *wire.PushError
		}
	}
	if err := json.Unmarshal(p.body, &res); p.status != 200 || err != nil || len(res.Results) != 4 {
		t.Fatalf("%d %s", p.status, p.body)
	}
	if r := res.Results; r[0].Duplicate == r[1].Duplicate || r[0].Seq != r[1].Seq || r[2].Error == nil || r[2].Error.Code != wire.CodeKeyReused || r[3].Duplicate || !r[3].Stored {
		t.Errorf("%s", p.body)
	}
	if p := l.post("/v1/push", "application/json", list, "k"); p.status != 400 {
		t.Errorf("a key of the call beside those of the messages: %d %s", p.status, p.body)
	}
	users := `{"users":["dora","emil"],"data":7}`
	for _, dup := range []bool{false, true} {
		p := l.post("/v1/push", "application/json", users, "k")
		if n := strings.Count(string(p.body), fmt.Sprintf(`"duplicate":%v`, dup)); p.status != 200 || n != 2 {
			t.Errorf("%d %s", p.status, p.body)
		}
	}
	b.message(t, 2, "1")
	// After the window the key is a new one.
	eventually(t, "the key is forgotten", func() bool {
		_, r, _ := l.store(t, "alice", `{"n":1}`, "", "order-1")
		return !r.Duplicate
	})
	b.message(t, 3, `{"n":1}`)
}

// wait=ack tells the truth: that a session has acknowledged, or that none did.
func TestInboxWaitAck(t *testing.T) {
	t.Parallel()
	l, _ := threeNodes(t)
	mute := dialSince(t, l, "mute", "d", "")
	if status, r, _ := l.store(t, "mute", "1", "?wait=ack&timeout_ms=300", ""); status != 200 || r.Acked != 0 || r.Delivered != 1 {
		t.Errorf("nobody acknowledged: %d %+v", status, r)
	}
	m := mute.message(t, 1, "1")
	if status, r, _ := l.store(t, "nobody", "1", "?wait=ack&timeout_ms=300", ""); status != 200 || r.Acked != 0 || !r.Stored {
		t.Errorf("nobody is there: %d %+v", status, r)
	}
	// An older message's acknowledgement is none.
	answered := make(chan wire.PushResult, 1)
	go func() {
		_, r, _ := l.store(t, "mute", "2", "?wait=ack&timeout_ms=20000", "")
		answered <- r
	}()
	two := mute.message(t, 2, "2")
	mute.write(t, wire.Ack{Type: "ack", Cursor: m.Cursor})
	mute.write(t, map[string]string{"type": "ping", "ref": "1"})
	var pong wire.Pong
	mute.expectType(t, wire.TypePong, &pong) // the node has taken the acknowledgement
	select {
	case r := <-answered:
		t.Fatalf("acknowledged by an older cursor: %+v", r)
	default:
	}
	mute.write(t, wire.Ack{Type: "ack", Cursor: two.Cursor})
	if r := await(t, "the answer", answered); r.Acked != 1 || r.Seq != 2 {
		t.Errorf("%+v", r)
	}
	// The SDK acknowledges when its handler returns.
	release := make(chan struct{})
	got := make(chan client.Message, 1)
	c, err := client.New(client.Config{Locators: []string{"http://" + l.addr}, User: "sdk", OnMessage: func(_ context.Context, m client.Message) {
		got <- m
		<-release
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	eventually(t, "it is connected", func() bool { return c.State().State == client.Connected })
	go func() {
		_, r, _ := l.store(t, "sdk", "1", "?wait=ack&timeout_ms=20000", "")
		answered <- r
	}()
	await(t, "the message", got)
	select {
	case r := <-answered:
		t.Fatalf("acknowledged while the handler runs: %+v", r)
	default:
	}
	close(release)
	if r := await(t, "the answer", answered); r.Acked != 1 {
		t.Errorf("%+v", r)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A message whose own time is over does not come any more, and that is said.
func TestInboxTTL(t *testing.T) {
	t.Parallel()
	l, _ := threeNodes(t)
	l.keep(t, "alice", "1")
	for i := 2; i <= 3; i++ {
		if status, r, _ := l.store(t, "alice", fmt.Sprint(i), "?ttl_ms=200", ""); status != 200 || r.Seq != uint64(i) {
			t.Fatalf("%d %+v", status, r)
		}
	}
	l.keep(t, "alice", "4")
	eventually(t, "two have expired", func() bool { return dialSince(t, l, "alice", "probe", "0").welcome.Pending == 2 })
	b := dialSince(t, l, "alice", "d", "0")
	b.welcomed(t, 4, 2, false)
	b.message(t, 1, "1")
	var s wire.Skip
	b.expectType(t, wire.TypeSkip, &s)
	if s.To != 3 || s.Reason != wire.SkipExpired {
		t.Errorf("%+v", s)
	}
	b.message(t, 4, "4")
	// Also when the newest is one of them.
	if status, _, _ := l.store(t, "alice", "5", "?ttl_ms=1", ""); status != 200 {
		t.Fatal(status)
	}
	eventually(t, "it has expired", func() bool { return dialSince(t, l, "alice", "probe", "0").welcome.Pending == 2 })
	b = dialSince(t, l, "alice", "d2", "0")
	b.welcomed(t, 5, 2, false)
	b.message(t, 1, "1")
	b.expectType(t, wire.TypeSkip, &s)
	b.message(t, 4, "4")
	if b.expectType(t, wire.TypeSkip, &s); s.To != 5 || s.Reason != wire.SkipExpired {
		t.Errorf("%+v", s)
	}
	l.keep(t, "alice", "6")
	b.message(t, 6, "6")
}

// More than is kept for a user: who was away too long is told of the gap.
func TestInboxLimit(t *testing.T) {
	t.Parallel()
	l, _ := threeNodes(t, "DIALRING_INBOX_MAX_MESSAGES=5")
	b := dialSince(t, l, "alice", "d", "")
	var cursors []string
	for i := 1; i <= 12; i++ {
		l.keep(t, "alice", fmt.Sprint(i))
		cursors = append(cursors, b.message(t, uint64(i), fmt.Sprint(i)).Cursor)
	}
	for _, c := range []struct {
		since   string
		gap     bool
		pending uint64
	}{
		{"0", true, 5}, {cursors[1], true, 5}, {cursors[5], true, 5},
		{cursors[6], false, 5}, // the one behind it is the oldest that is kept
		{cursors[7], false, 4}, {cursors[11], false, 0},
		{"never-given-out", true, 5}, {"1-1-1", true, 5}, {"zz-zz-zz", true, 5},
	} {
		d := dialSince(t, l, "alice", "e", c.since)
		d.welcomed(t, 12, c.pending, c.gap)
		for i := 13 - c.pending; i <= 12; i++ {
			d.message(t, i, fmt.Sprint(i))
		}
		// What it was told to go on from is good.
		dialSince(t, l, "alice", "e", d.welcome.Since).welcomed(t, 12, c.pending, false)
	}
	// The same on a connection that is open.
	b.write(t, wire.Resume{Type: "resume", Since: cursors[1]})
	var s wire.Skip
	if b.expectType(t, wire.TypeSkip, &s); s.To != 7 || s.Reason != wire.SkipLimit {
		t.Errorf("%+v", s)
	}
	for i := 8; i <= 12; i++ {
		b.message(t, uint64(i), fmt.Sprint(i))
	}
	var r wire.Resumed
	if b.expectType(t, wire.TypeResumed, &r); !r.Gap || r.Head != 12 {
		t.Errorf("%+v", r)
	}
}

// resume replays on the connection that is open; pushes that come meanwhile follow
// in their order.
func TestInboxResume(t *testing.T) {
	t.Parallel()
	l, _ := threeNodes(t)
	b := dialSince(t, l, "alice", "d", "")
	var first wire.Message
	for i := 1; i <= 100; i++ {
		l.keep(t, "alice", fmt.Sprint(i))
		if m := b.message(t, uint64(i), fmt.Sprint(i)); i == 1 {
			first = m
		}
	}
	more := make(chan struct{})
	go func() {
		defer close(more)
		for i := 101; i <= 200; i++ {
			if status, _, p := l.store(t, "alice", fmt.Sprint(i), "", ""); status != 200 {
				t.Errorf("push %d: %d %+v", i, status, p)
			}
		}
	}()
	for range 3 {
		b.write(t, wire.Resume{Type: "resume", Since: first.Cursor})
	}
	// Each replay is from 2 on, without a hole, and after the last one it goes on.
	last, replays, answers := uint64(100), 0, 0
	for last < 200 || answers < 3 {
		var f struct {
			Type string
			Seq  uint64
			Gap  bool
		}
		text := b.text(t)
		if err := json.Unmarshal([]byte(text), &f); err != nil {
			t.Fatal(err)
		}
		switch {
		case f.Type == wire.TypeResumed:
			if answers++; f.Gap {
				t.Errorf("%s", text)
			}
		case f.Type != wire.TypeMessage:
		case f.Seq == last+1:
			last++
		case f.Seq == 2:
			replays++
			last = 2
		default:
			t.Fatalf("message %d came after %d", f.Seq, last)
		}
	}
	<-more
	if replays != 3 {
		t.Errorf("%d replays, want 3", replays)
	}
	// A cursor of no log: that is said before all that is kept follows.
	b.write(t, wire.Resume{Type: "resume", Since: "9-9-9"})
	var r wire.Resumed
	if b.expectType(t, wire.TypeResumed, &r); !r.Gap || r.Head != 200 {
		t.Errorf("%+v", r)
	}
	for i := 1; i <= 200; i++ {
		b.message(t, uint64(i), fmt.Sprint(i))
	}
}

// Users whose ids differ only in what NATS or a path could take for something else
// have each a log of their own.
func TestInboxIDs(t *testing.T) {
	t.Parallel()
	l := startNormal(t, 3).l
	ids := []string{"*", ">", "a.b", "a b", "a/b", "a%2Fb", "é", "日本", "..", "a.*", strings.Repeat("u", 128)}
	for i, id := range ids {
		l.keep(t, id, fmt.Sprint(i))
	}
	for i, id := range ids {
		b := dialLocated(t, func() wire.LocateResponse {
			loc := l.locate(t, id, "")
			loc.URL += "?since=0"
			return loc
		}())
		b.welcomed(t, 1, 1, false)
		b.message(t, 1, fmt.Sprint(i))
	}
}
