package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/ticket"
	"github.com/dialring/dialring/internal/wire"
)

var (
	tooOften = refusal{429, wire.CodeRateLimited, "1"}
	noRoom   = refusal{503, wire.CodeRateLimited, "1"}
)

// A user who dials without end is refused, and nobody else: not the devices of one user
// that all come at once, not other users at the same address, and not moves.
func TestLimitDialsOfUser(t *testing.T) {
	c := startNormal(t, 1, "DIALRING_RATE_PER_USER=1", "DIALRING_RATE_PER_ADDRESS=-1")
	n := c.nodes[0]
	for round := range 2 { // all sixteen devices, and all of them again
		for i := range 16 {
			if _, r := c.try(t, n, "", ticket.Ticket{User: "alice", Device: fmt.Sprint("d", i)}); r != (refusal{}) {
				t.Fatalf("device %d was refused in round %d: %+v", i, round, r)
			}
		}
	}
	var r refusal
	for i := 0; i < 500 && r == (refusal{}); i++ {
		_, r = c.try(t, n, "", ticket.Ticket{User: "alice"})
	}
	if r != tooOften {
		t.Fatalf("a user who dials without end is answered %+v", r)
	}
	if got := n.limited(t, "user"); got < 1 {
		t.Errorf("the metric counts %v", got)
	}
	if _, r := c.try(t, n, "", ticket.Ticket{User: "bob"}); r != (refusal{}) {
		t.Errorf("another user was refused: %+v", r)
	}
	for i := range 20 {
		if _, r := c.try(t, n, "", ticket.Ticket{User: "alice", Device: "moved", Session: fmt.Sprint("s", i), Connected: time.Now()}); r != (refusal{}) {
			t.Fatalf("a session that moves here was refused: %+v", r)
		}
	}
	eventually(t, "the user is let in again", func() bool {
		_, r := c.try(t, n, "", ticket.Ticket{User: "alice"})
		return r == (refusal{})
	})
}

// A node takes as many sessions as MAX_SESSIONS says, and the next one when one has gone.
func TestLimitSessions(t *testing.T) {
	c := startNormal(t, 1, "DIALRING_MAX_SESSIONS=5", "DIALRING_RATE_PER_ADDRESS=-1", "DIALRING_RATE_PER_USER=-1")
	l, n := c.l, c.nodes[0]
	var all []*bare
	for i := range 5 {
		all = append(all, dialBare(t, l, fmt.Sprint("u", i)))
	}
	if got := n.metric(t, "dialring_sessions_limit"); got != 5 {
		t.Errorf("dialring_sessions_limit is %v", got)
	}
	try := func() refusal {
		b, r := ticketDial(t, n.addr, "", "late", l.locate(t, "late", "").Ticket)
		if b != nil {
			b.Close()
		}
		return r
	}
	if r := try(); r != noRoom {
		t.Errorf("one more is answered %+v", r)
	}
	if got := n.limited(t, "sessions"); got != 1 {
		t.Errorf("the metric counts %v", got)
	}
	for i, b := range all {
		if r := l.push(t, b.user, fmt.Sprint(i)); r.Delivered != 1 {
			t.Errorf("a push to one that is here: %+v", r)
		}
		if got := data(b.text(t)); got != fmt.Sprint(i) {
			t.Errorf("%s got %s", b.user, got)
		}
	}
	all[0].Close()
	eventually(t, "there is room", func() bool { return try() == refusal{} })
}

// Near the limit of open files dials are refused with an answer, and all else goes on:
// accept never fails, metrics can be read, pushes arrive.
func TestLimitDescriptors(t *testing.T) {
	l, ip := startNormalLocator(t), ownAddress(t)
	addr, peer := freeAddress(t, ip), freeAddress(t, ip)
	n := &nodeProc{id: "ws-1", process: start(t, "ws-1", "/bin/sh", append(normalNodeEnv(l.nats, addr, peer), "DIALRING_LOG_FORMAT=json", "DIALRING_LOG_LEVEL=debug", "DIALRING_NODE_ID=ws-1", "DIALRING_NATS_URL="+l.nats,
		"DIALRING_LISTEN="+addr, "DIALRING_PEER_LISTEN="+peer, "DIALRING_ADMIN_LISTEN=127.0.0.1:0", "DIALRING_RATE_PER_ADDRESS=-1", "DIALRING_RATE_PER_USER=-1"),
		"-c", "ulimit -n 280 && exec "+filepath.Join(bin, "wsnode"))}
	m := n.event(t, "listening")
	n.addr, n.peer, n.admin = m["listen"].(string), m["peer"].(string), m["admin"].(string)
	l.waitMembers(t, "ws-1")
	l.waitReady(t)
	limit := int(n.metric(t, "dialring_sessions_limit"))
	if limit < 40 || limit > 80 || n.metric(t, "process_max_fds") != 280 {
		t.Fatalf("of %v descriptors %d are for sessions", n.metric(t, "process_max_fds"), limit)
	}
	var half []net.Conn // more than there are descriptors
	for range 300 {
		c := connectFrom(t, n.addr, "")
		_, _ = io.WriteString(c, "GET /v1/ws HTTP/1.1\r\nHost: x\r\n") // the node may have closed it
		half = append(half, c)
	}
	var all []*bare
	for i := range limit {
		all = append(all, dialBare(t, l, fmt.Sprint("u", i)))
	}
	try := func() refusal {
		b, r := ticketDial(t, n.addr, "", "late", l.locate(t, "late", "").Ticket)
		if b != nil {
			b.Close()
		}
		return r
	}
	for range 5 {
		if r := try(); r != noRoom {
			t.Errorf("one more is answered %+v", r)
		}
	}
	for _, i := range []int{0, limit / 2, limit - 1} {
		if r := l.push(t, all[i].user, `"x"`); r.Delivered != 1 {
			t.Errorf("a push to one that is here: %+v", r)
		}
		if got := data(all[i].text(t)); got != `"x"` {
			t.Errorf("%s got %s", all[i].user, got)
		}
	}
	if got := n.limited(t, "sessions"); got != 5 {
		t.Errorf("the metric counts %v for sessions", got)
	}
	if got := n.limited(t, "handshakes"); got < 200 {
		t.Errorf("the metric counts %v for handshakes", got)
	}
	if got := n.metric(t, "process_open_fds"); got >= 280 {
		t.Errorf("%v descriptors are open", got)
	}
	all[0].Close()
	eventually(t, "there is room", func() bool { return try() == refusal{} })
	for _, c := range half {
		c.Close()
	}
	eventually(t, "no handshake is pending", func() bool { return n.metric(t, "dialring_handshakes_pending") < 5 })
	if s := n.text(); strings.Contains(s, "too many open files") || strings.Contains(s, "Accept error") {
		t.Errorf("accept failed")
	}
}

// Half-open handshakes: one address has no more than its share of them, all have an end,
// on each listener, also those that say a little more each time, and nobody else waits.
func TestLimitHandshakes(t *testing.T) {
	c := startNormalWith(t, []string{"DIALRING_RATE_PER_ADDRESS=50"}, 1, "DIALRING_RATE_PER_ADDRESS=50")
	l, n := c.l, c.nodes[0]
	const from = "127.0.0.3"
	for range 200 { // the locator's
		conn := connectFrom(t, l.addr, from)
		if _, err := io.WriteString(conn, "POST /v1/locate HTTP/1.1\r\nHost: x\r\n"); err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	// They come to it in this order.
	if r := readRefusal(t, bufio.NewReader(connectFrom(t, l.addr, from))); r != tooOften {
		t.Errorf("one more of the address is answered %+v by the locator", r)
	}
	if got := scrapeValue(t, l.admin, `dialring_limited_total{limit="address_connections"}`); got != 1 {
		t.Errorf("the locator's metric counts %v", got)
	}
	other := connectFrom(t, l.addr, "127.0.0.4")
	fmt.Fprintf(other, "POST /v1/locate HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nAuthorization: Bearer %s\r\n\r\n", l.token("alice"))
	if resp, err := http.ReadResponse(bufio.NewReader(other), nil); err != nil || resp.StatusCode != 200 {
		t.Errorf("another address is answered %+v, %v by the locator", resp, err)
	}
	var half []net.Conn
	for range 200 { // 4 * 50
		conn := connectFrom(t, n.addr, from)
		if _, err := io.WriteString(conn, "GET /v1/ws HTTP/1.1\r\nHost: x\r\n"); err != nil {
			t.Fatal(err)
		}
		half = append(half, conn)
	}
	eventually(t, "they are counted", func() bool { return n.metric(t, "dialring_handshakes_pending") >= 200 })
	if got := n.limited(t, "address_handshakes"); got != 0 {
		t.Errorf("%v were refused too early", got)
	}
	if r := readRefusal(t, bufio.NewReader(connectFrom(t, n.addr, from))); r != tooOften {
		t.Errorf("one more of the address is answered %+v", r)
	}
	if got := n.limited(t, "address_handshakes"); got != 1 {
		t.Errorf("the metric counts %v", got)
	}
	if _, r := c.try(t, n, "127.0.0.4", ticket.Ticket{User: "alice"}); r != (refusal{}) {
		t.Errorf("another address is answered %+v", r)
	}
	// One that goes on saying a little, at each listener.
	ends := make(chan string)
	all := []string{n.addr, n.peer, n.admin, l.addr, l.admin}
	for _, addr := range all {
		go func() {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				ends <- err.Error()
				return
			}
			defer conn.Close()
			begin := time.Now()
			_, err = io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: ")
			for err == nil {
				_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
				if _, err = conn.Read(make([]byte, 64)); errors.Is(err, os.ErrDeadlineExceeded) {
					_, err = io.WriteString(conn, "a")
				}
				if time.Since(begin) > patience {
					ends <- addr + " still listens to one that never ends its header"
					return
				}
			}
			ends <- ""
		}()
	}
	for range all {
		if s := await(t, "slow headers end", ends); s != "" {
			t.Error(s)
		}
	}
	for _, conn := range half {
		_, err := io.Copy(io.Discard, conn)
		if err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("a half-open handshake never ended")
		}
	}
	if _, r := c.try(t, n, from, ticket.Ticket{User: "bob"}); r != (refusal{}) {
		t.Errorf("the address is answered %+v afterwards", r)
	}
	// A header that is too long is refused, on each.
	for _, addr := range all {
		conn := connectFrom(t, addr, "")
		go io.Copy(conn, io.MultiReader(strings.NewReader("GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: "), bytes.NewReader(bytes.Repeat([]byte("a"), 64<<10)))) // until it is closed
		if resp, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("%s: a header of 64 KiB: %+v, %v", addr, resp, err)
		}
	}
}
