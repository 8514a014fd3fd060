package e2e

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
	"github.com/dialring/dialring/locator"
	"github.com/dialring/dialring/wsnode"
)

func TestInprocPayload(t *testing.T) {
	t.Parallel()
	c := inprocStart(t, locator.Config{}, wsnode.Config{})
	w := c.connect("alice", "web")
	for _, body := range []string{
		`{"z":1.0e2,"a":-0.0,"m":12345678901234567890.10,"a":2}`,
		"{ \"b\" : [ 1 ,\t2 ] ,\r\n \"a\" : null }",
		`"\u00e9\/\u2028\ud83d\ude00 é <&> \"\\"`,
		`"\ud800"`, // half a pair: JSON takes the escape
		"\"\u2028\u2029\x7f\"",
		`1E+2`, `true`, `null`, `""`, `[]`,
		strings.Repeat("[", 32) + strings.Repeat("]", 32),
		`"` + strings.Repeat("a", 65534) + `"`,
	} {
		if r := c.push("alice", body, ""); r.Delivered != 1 || r.ID == "" || r.Stored || r.Duplicate || r.Seq != 0 || r.Node != "ws-1" || r.Epoch == 0 {
			t.Errorf("the push was answered by %+v", r)
		}
		if f := w.text(); !bytes.HasSuffix(f, []byte(`"data":`+body+`}`)) || !bytes.HasPrefix(f, []byte(`{"type":"message","`)) {
			t.Errorf("pushed %.80s, got %.200s", body, f)
		}
	}
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	for _, b := range []struct{ contentType, body string }{
		{"text/plain", "hello"}, {"text/plain; charset=utf-8", `{"no":"json"}`}, {"application/octet-stream", string(all)}, {"", "bare"},
		{"application/jsonx", "1"}, {"text/plain", ""}, {"image/png", strings.Repeat("x", 65536)},
	} {
		a := c.call("POST", "/v1/push/alice?durable=false", b.contentType, b.body)
		if a.status != 200 {
			t.Fatalf("%s: %d %s", b.contentType, a.status, a.body)
		}
		f := w.text()
		if want := `"data_b64":"` + base64.StdEncoding.EncodeToString([]byte(b.body)) + `"}`; !bytes.HasSuffix(f, []byte(want)) {
			t.Errorf("pushed %s %.80q, got %.200s", b.contentType, b.body, f)
		}
	}
	// Ids differ, and the time is one of now with a zone.
	c.push("alice", `1`, "")
	c.push("alice", `2`, "")
	one, two := w.message(), w.message()
	if one.ID == two.ID {
		t.Errorf("two messages have the id %s", one.ID)
	}
	if d := time.Since(one.Time); d < -time.Second || d > 2*inprocPatience {
		t.Errorf("the time of the message is %s", one.Time)
	}
}

func TestInprocDelivered(t *testing.T) {
	t.Parallel()
	c := inprocStart(t, locator.Config{}, wsnode.Config{}, wsnode.Config{}, wsnode.Config{})
	if r := c.push("nobody", `1`, ""); r.Delivered != 0 {
		t.Errorf("delivered %d to nobody", r.Delivered)
	}
	devices := []string{"web", "phone", "tv"}
	var all []*inprocWS
	for _, d := range devices {
		all = append(all, c.connect("alice", d))
	}
	bob := c.connect("bob", "web")
	if r := c.push("alice", `"to all"`, ""); r.Delivered != 3 || r.Node != all[0].welcome.Node {
		t.Errorf("%+v, want 3 sessions on %s", r, all[0].welcome.Node)
	}
	for i, d := range devices {
		if r := c.push("alice", fmt.Sprintf("%d", i), "&device="+d); r.Delivered != 1 {
			t.Errorf("device %s: delivered %d", d, r.Delivered)
		}
	}
	if r := c.push("alice", `1`, "&device=fridge"); r.Delivered != 0 {
		t.Errorf("delivered %d to a device that is not there", r.Delivered)
	}
	for i, w := range all {
		w.expect(`"to all"`)
		w.expect(fmt.Sprint(i))
		w.alive() // and nothing else came
	}
	bob.alive()
	for i := range 100 { // one after the other: they come in order
		c.push("bob", fmt.Sprint(i), "")
	}
	for i := range 100 {
		bob.expect(fmt.Sprint(i))
	}
	for i, w := range all {
		w.send(string(inprocFrame(0x88, []byte{0x03, 0xE9})))
		if code, _ := w.closed(); code != 1000 && code != 1001 {
			t.Errorf("leaving was answered with %d", code)
		}
		inprocEventually(t, "a push does not count who left", func() bool { return c.push("alice", `1`, "").Delivered == 2-i })
	}
}

func TestInprocReplaced(t *testing.T) {
	t.Parallel()
	c := inprocStart(t, locator.Config{}, wsnode.Config{MaxSessionsPerUser: 2})
	old := c.connect("alice", "web")
	young := c.connect("alice", "web")
	old.closes(wire.CloseReplaced)
	young.alive()
	if r := c.push("alice", `1`, "&device=web"); r.Delivered != 1 {
		t.Errorf("delivered %d after the replacement", r.Delivered)
	}
	young.expect("1")
	second := c.connect("alice", "phone")
	second.alive()
	young.alive()
	third := c.connect("alice", "tv") // one too many: the oldest goes
	young.closes(wire.CloseTooManySessions)
	if r := c.push("alice", `2`, ""); r.Delivered != 2 {
		t.Errorf("delivered %d, want 2", r.Delivered)
	}
	second.expect("2")
	third.expect("2")
}

func TestInprocDeviceAllowed(t *testing.T) {
	t.Parallel()
	c := inprocStart(t, locator.Config{}, wsnode.Config{DevicePolicy: "allow"})
	one, two := c.connect("alice", "web"), c.connect("alice", "web")
	if r := c.push("alice", `1`, "&device=web"); r.Delivered != 2 {
		t.Errorf("delivered %d, want 2", r.Delivered)
	}
	one.expect("1")
	two.expect("1")
}

func TestInprocPingTimeout(t *testing.T) {
	t.Parallel()
	c := inprocStart(t, locator.Config{}, wsnode.Config{PingInterval: time.Second})
	silent, awake := c.connect("alice", "silent"), c.connect("alice", "awake")
	if ms := silent.welcome.PingIntervalMS; ms != 1000 {
		t.Errorf("ping_interval_ms is %d", ms)
	}
	silent.silent = true
	awakeEnded := make(chan error, 1)
	go func() { // answers pings all the while, and waits for a message
		_, err := awake.next()
		awakeEnded <- err
	}()
	silent.closes(wire.ClosePingTimeout)
	if r := c.push("alice", `1`, ""); r.Delivered != 1 {
		t.Errorf("delivered %d, want 1: to the one that answers pings", r.Delivered)
	}
	if err := <-awakeEnded; err != nil {
		t.Errorf("the session that answers pings ended: %v", err)
	}
}

// TestNeverReads has a client that never reads.
func TestNeverReads(t *testing.T) {
	t.Parallel()
	c := processes(t, locator.Config{}, wsnode.Config{SessionQueueBytes: 256 << 10})
	n := c.nodes[0]
	slow := c.connect("slow", "web")
	_ = slow.Conn.(*net.TCPConn).SetReadBuffer(4096)
	other := c.connect("slow", "phone") // of the same user
	bob := c.connect("bob", "web")
	body := `"` + strings.Repeat("x", 60<<10) + `"`
	closed := false
	const most = 500 // 30 MB: sockets take a few MB, the queue 256 KiB
	ones := 0
	for i := 0; i < most && !closed; i++ {
		r := c.push("slow", body, "")
		if r.Delivered != 1 && r.Delivered != 2 {
			t.Fatalf("delivered %d, want 1 or 2", r.Delivered)
		}
		if other.expect(body); i%10 == 0 {
			if r := c.push("bob", `1`, ""); r.Delivered != 1 {
				t.Fatalf("delivered %d to bob", r.Delivered)
			}
			bob.expect("1")
		}
		if r.Delivered == 1 {
			ones++
			closed = c.metric(n, `dialring_session_closes_total{reason="too slow"}`) == "1"
		}
	}
	if !closed {
		t.Fatalf("the session that never reads was not closed in %d pushes; %d of them did not count it", most, ones)
	}
	if ones < 2 {
		t.Errorf("only %d pushes did not count it", ones)
	}
	inprocEventually(t, "its session is gone", func() bool { return c.metric(n, "dialring_sessions") == "2" })
	if r := c.push("slow", `"bye"`, ""); r.Delivered != 1 {
		t.Errorf("delivered %d after it was closed", r.Delivered)
	}
	other.expect(`"bye"`)
	other.alive()
	bob.alive()
	// It is over for the client, too, and not at some time later.
	if code, why := slow.closed(); code != 0 && code != wire.CloseTooSlow {
		t.Errorf("it ended with %d (%s)", code, why)
	} else {
		t.Logf("it ended with %d (%s)", code, why)
	}
	c.connect("slow", "web").alive() // and may come back
}
