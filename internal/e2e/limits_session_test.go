package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// Who sends too many frames, or bytes, of whatever kind, is closed with 4102, comes back
// later, and nobody else notices.
func TestLimitFrames(t *testing.T) {
	c := startNormal(t, 1, "DIALRING_FRAME_RATE=10", "DIALRING_BYTE_RATE=20000")
	l, n := c.l, c.nodes[0]
	other := dialBare(t, l, "other")
	flood := map[string]struct{ limit, frame string }{
		"pings of the contract": {"frames", string(inprocFrame(0x81, []byte(`{"type":"ping","ref":1}`)))},
		"unknown types":         {"frames", string(inprocFrame(0x81, []byte(`{"type":"x"}`)))},
		"control pings":         {"frames", string(inprocFrame(0x89, nil))},
		"control pongs":         {"frames", string(inprocFrame(0x8A, nil))},
		"acks of nothing new":   {"frames", string(inprocFrame(0x81, []byte(`{"type":"ack","cursor":"0"}`)))},
		"large frames":          {"bytes", string(inprocFrame(0x81, []byte(`{"type":"x","y":"`+strings.Repeat("y", 60_000)+`"}`)))},
		"fragments without end": {"bytes", string(inprocFrame(0x00, nil))},
	}
	for name, f := range flood {
		t.Run(name, func(t *testing.T) {
			before := n.limited(t, f.limit)
			b := dialBare(t, l, "flooder")
			done := make(chan struct{})
			go func() {
				defer close(done)
				if name == "fragments without end" {
					_, _ = b.Write(inprocFrame(0x01, []byte("{")))
				}
				batch := []byte(strings.Repeat(f.frame, 1+4096/len(f.frame)))
				for range 100_000 {
					if _, err := b.Write(batch); err != nil {
						return
					}
				}
			}()
			if code := b.closeCode(t); code != wire.CloseRateLimit {
				t.Errorf("closed with %d, want 4102", code)
			}
			b.Close()
			<-done
			if got := n.limited(t, f.limit) - before; got != 1 {
				t.Errorf("the metric counts %v more", got)
			}
			dialBare(t, l, "flooder").Close() // it may come back
		})
	}
	// What is within the limit is not touched: one frame of the largest size, at once.
	b := dialBare(t, l, "large")
	if _, err := b.Write(inprocFrame(0x81, []byte(`{"type":"x","y":"`+strings.Repeat("y", 65_536)+`"}`))); err != nil {
		t.Fatal(err)
	}
	b.write(t, map[string]any{"type": "ping", "ref": 1})
	b.expectType(t, wire.TypePong, &struct{}{})
	if r := l.push(t, "other", `"still"`); r.Delivered != 1 {
		t.Errorf("another session: %+v", r)
	}
	if got := data(other.text(t)); got != `"still"` {
		t.Errorf("another session got %s", got)
	}
}

// A client that acknowledges each of very many messages sends as many frames as it gets:
// that is within the limit, and one ack more than messages is not for free.
func TestLimitFramesOfAcks(t *testing.T) {
	c := startNormal(t, 1, "DIALRING_FRAME_RATE=10", "DIALRING_BYTE_RATE=20000")
	l, n := c.l, c.nodes[0]
	b := dialBare(t, l, "reader")
	const messages, atOnce = 1500, 250 // a burst is 40 frames, or 80,000 bytes
	var pushing sync.WaitGroup
	defer pushing.Wait()
	pushing.Go(func() {
		for first := 0; first < messages; first += atOnce { // what waits for the store for 2 s is refused
			var body strings.Builder
			for i := range atOnce {
				fmt.Fprintf(&body, `%s{"user":"reader","data":%d}`, map[bool]string{true: ",", false: ""}[i > 0], first+i)
			}
			if p := l.post("/v1/push", "application/json", `{"messages":[`+body.String()+`]}`, ""); p.status != 200 || strings.Contains(string(p.body), `"error"`) {
				t.Errorf("pushes from %d on: %d %.300s", first, p.status, p.body)
			}
		}
	})
	cursor := ""
	for i := range messages {
		var m wire.Message
		if b.expectType(t, wire.TypeMessage, &m); m.Seq != uint64(i+1) {
			t.Fatalf("message %d came, want %d", m.Seq, i+1)
		}
		cursor = m.Cursor
		if i%500 == 250 { // and some from a replay
			b.write(t, map[string]any{"type": "ack", "cursor": m.Cursor})
			b.Close()
			b = dialSince(t, l, "reader", "bare", m.Cursor)
			continue
		}
		b.write(t, map[string]any{"type": "ack", "cursor": m.Cursor})
	}
	eventually(t, "all are acknowledged", func() bool {
		var u wire.UserResponse
		_, body := call(t, "GET", "http://"+l.addr+"/v1/users/reader", "")
		return json.Unmarshal(body, &u) == nil && len(u.Sessions) == 1 && u.Sessions[0].AckedSeq == messages
	})
	if f, by := n.limited(t, "frames"), n.limited(t, "bytes"); f != 0 || by != 0 {
		t.Fatalf("limits were reached: %v, %v", f, by)
	}
	b.write(t, map[string]any{"type": "ping", "ref": 1})
	b.expectType(t, wire.TypePong, &struct{}{})
	go func() {
		ack, _ := json.Marshal(map[string]any{"type": "ack", "cursor": cursor})
		for range 5000 {
			if _, err := b.Write(inprocFrame(0x81, ack)); err != nil {
				return
			}
		}
	}()
	if code := b.closeCode(t); code != wire.CloseRateLimit {
		t.Errorf("acks without messages: closed with %d, want 4102", code)
	}
}

// stalled is a session that never reads, with small buffers on its side.
func stalled(t *testing.T, l *locatorProc, user string) net.Conn {
	t.Helper()
	loc := l.locate(t, user, `{"device":"stalled"}`)
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096) })
	}}
	addr := strings.TrimSuffix(strings.TrimPrefix(loc.URL, "ws://"), "/v1/ws")
	c, err := d.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "GET /v1/ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: dialring.v1, dialring.ticket.%s\r\n\r\n", loc.Ticket)
	return c
}

// pushUntil pushes 60 KiB to each of the users, again and again, until ok, which is asked
// now and then.
func pushUntil(t *testing.T, l *locatorProc, what string, users []string, ok func() bool) (rounds int) {
	t.Helper()
	list, _ := json.Marshal(users)
	body := fmt.Sprintf(`{"users":%s,"data":"%s"}`, list, strings.Repeat("x", 60<<10))
	for end := time.Now().Add(patience); rounds%5 != 0 || !ok(); rounds++ {
		if time.Now().After(end) {
			t.Fatal("never: ", what)
		}
		if p := l.post("/v1/push?durable=false", "application/json", body, ""); p.status != 200 || strings.Contains(string(p.body), `"error"`) {
			t.Fatalf("a push: %d %.300s", p.status, p.body)
		}
	}
	return rounds
}

func stalledSessions(t *testing.T, l *locatorProc, n int) (users []string) {
	t.Helper()
	for i := range n {
		users = append(users, fmt.Sprint("stalled-", i))
		stalled(t, l, users[i])
	}
	eventually(t, "they are connected", func() bool {
		list, _ := json.Marshal(users)
		_, b := call(t, "POST", "http://"+l.addr+"/v1/presence", fmt.Sprintf(`{"users":%s}`, list))
		return strings.Count(string(b), `":1`) == n
	})
	return users
}

// What waits for all sessions that do not read is bounded; those that read are not touched.
func TestLimitNodeQueue(t *testing.T) {
	const limit = 6 << 20
	c := startNormal(t, 1, "DIALRING_SESSION_QUEUE_BYTES=5242880", fmt.Sprint("DIALRING_NODE_QUEUE_BYTES=", limit))
	l, n := c.l, c.nodes[0]
	good := listen(t, "good", l)
	users := stalledSessions(t, l, 4)
	most, pushed := 0.0, 0
	rounds := pushUntil(t, l, "the queues are full", users, func() bool {
		if r := l.push(t, "good", fmt.Sprint(pushed)); r.Delivered != 1 {
			t.Fatalf("a session that reads: %+v", r)
		}
		good.expect(t, fmt.Sprint(pushed))
		pushed++
		most = max(most, n.metric(t, "dialring_queue_bytes"))
		return n.limited(t, "node_queue") > 0
	})
	t.Logf("closed the first after %d rounds; at most %.1f MiB waited", rounds, most/(1<<20))
	if most > 2*limit {
		t.Errorf("%v bytes waited", most)
	}
	if n.metric(t, "dialring_queue_limit_bytes") != limit {
		t.Error("the limit is not shown")
	}
	if got := n.metric(t, `dialring_session_closes_total{reason="too slow"}`); got < 1 || got > 3 {
		t.Errorf("%v of 4 sessions were closed", got)
	}
	if n.limited(t, "queue") != 0 {
		t.Error("a session's own limit was reached: the test shows nothing")
	}
	n.event(t, "queues_full")
	eventually(t, "less waits", func() bool { return n.metric(t, "dialring_queue_bytes") <= limit })
	dialBare(t, l, users[0]).Close() // who was closed may come back
	if r := l.push(t, "good", `"end"`); r.Delivered != 1 {
		t.Errorf("a session that reads: %+v", r)
	}
	good.expect(t, `"end"`)
}

// A process that holds more memory than its limit takes no more sessions; those that there
// are go on, and when it holds less dials are accepted.
func TestLimitMemory(t *testing.T) {
	const limit = 72 << 20
	c := startNormal(t, 1, fmt.Sprint("DIALRING_MEMORY_LIMIT=", limit), "DIALRING_SESSION_QUEUE_BYTES=67108864", "DIALRING_NODE_QUEUE_BYTES=1073741824",
		"DIALRING_RATE_PER_ADDRESS=-1", "DIALRING_RATE_PER_USER=-1")
	l, n := c.l, c.nodes[0]
	if got := n.metric(t, "dialring_memory_limit_bytes"); got != limit {
		t.Errorf("the limit is %v", got)
	}
	good := listen(t, "good", l)
	users := stalledSessions(t, l, 10)
	try := func() refusal {
		b, r := ticketDial(t, n.addr, "", "late", l.locate(t, "late", "").Ticket)
		if b != nil {
			b.Close()
		}
		return r
	}
	var r refusal
	pushUntil(t, l, "dials are refused", users, func() bool { r = try(); return r != refusal{} })
	if r != noRoom {
		t.Fatalf("a dial is answered %+v", r)
	}
	held := n.metric(t, "dialring_memory_bytes")
	t.Logf("refused with %.0f MiB, resident %.0f MiB", held/(1<<20), n.rss(t))
	if n.limited(t, "memory") < 1 || held < limit*19/20 {
		t.Errorf("refused with %v bytes, counted %v", held, n.limited(t, "memory"))
	}
	n.event(t, "memory_full")
	for i := range 20 { // the others go on
		if r := l.push(t, "good", fmt.Sprint(i)); r.Delivered != 1 {
			t.Errorf("a session that reads: %+v", r)
		}
		good.expect(t, fmt.Sprint(i))
	}
	for _, u := range users {
		call(t, "DELETE", "http://"+l.addr+"/v1/users/"+u+"/sessions", "")
	}
	eventually(t, "dials are accepted", func() bool { return try() == refusal{} })
	n.event(t, "memory_room")
}

// A client may ask for its messages again, and not without end.
func TestLimitResumes(t *testing.T) {
	c := startNormal(t, 1)
	b := dialBare(t, c.l, "u")
	resumes := bytes.Repeat(inprocFrame(0x81, []byte(`{"type":"resume","since":"0"}`)), 100) // none waits for the answer of the one before
	if _, err := b.Write(resumes); err != nil {
		t.Fatal(err)
	}
	if code := b.closeCode(t); code != wire.CloseRateLimit {
		t.Errorf("the node closed with %d", code)
	}
	if got := c.nodes[0].limited(t, "resumes"); got != 1 {
		t.Errorf("the metric counts %v", got)
	}
}

// What clients send to an application that does not answer is bounded for all of them
// together; each send is answered.
func TestLimitSendQueue(t *testing.T) {
	answer := make(chan struct{})
	var once sync.Once
	release := func() { once.Do(func() { close(answer) }) }
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		select {
		case <-answer:
		case <-r.Context().Done():
		}
	}))
	defer app.Close()
	defer release()
	c := startNormal(t, 1, "DIALRING_APP="+app.URL, "DIALRING_APP_SECRET=0123456789abcdef0123456789abcdef", "DIALRING_APP_TIMEOUT=60s", "DIALRING_APP_CONCURRENCY=2",
		"DIALRING_SEND_RATE=1000", "DIALRING_MAX_MESSAGE_BYTES=8192", "DIALRING_SEND_QUEUE_BYTES=20480")
	l, n := c.l, c.nodes[0]
	send := func(b *bare, ref int, data string) {
		if _, err := b.Write(inprocFrame(0x81, fmt.Appendf(nil, `{"type":"send","ref":%d,"data":"%s"}`, ref, data))); err != nil {
			t.Fatal(err)
		}
	}
	var all []*bare
	for i := range 5 { // 4 KiB each: four fit, and the fifth does not
		b := dialBare(t, l, fmt.Sprint("u", i))
		send(b, i, strings.Repeat("x", 4<<10))
		all = append(all, b)
		if i < 4 {
			eventually(t, "it waits", func() bool { return n.metric(t, "dialring_sending_bytes") > float64(4<<10*(i+1)) })
		}
	}
	var e wire.ErrorFrame
	all[4].expectType(t, wire.TypeError, &e)
	if e.Code != wire.CodeRateLimited || string(e.Ref) != "4" {
		t.Errorf("the fifth is answered %+v", e)
	}
	if got := n.limited(t, "send_queue"); got != 1 {
		t.Errorf("the metric counts %v", got)
	}
	release()
	for i, b := range all {
		if i == 4 {
			send(b, 4, strings.Repeat("x", 4<<10))
		}
		var a wire.SendAck
		b.expectType(t, wire.TypeAck, &a)
		if string(a.Ref) != fmt.Sprint(i) {
			t.Errorf("send %d was answered %+v", i, a)
		}
	}
	eventually(t, "nothing waits", func() bool { return n.metric(t, "dialring_sending_bytes") == 0 })
}
