package e2e

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/wire"
)

// ear is a client written by hand that tells what came and when, and does
// nothing about it: what it is told to do, the test does, or not.
type ear struct {
	*bare
	in    *stamped
	moves chan toldMove
	got   chan string // data of messages

	ended   chan struct{}
	code    int       // close code, 0 without one; once ended is closed
	endedAt time.Time // likewise
}

// toldMove is a move frame and when it came.
type toldMove struct {
	wire.Move
	at time.Time
}

// dialEar locates and dials one device of a user.
func dialEar(t *testing.T, l *locatorProc, user, device string) *ear {
	t.Helper()
	return hear(t, dialLocated(t, l.locate(t, user, `{"device":"`+device+`"}`)))
}

// hear reads whatever comes from now on.
func hear(t *testing.T, b *bare) *ear {
	t.Helper()
	e := &ear{bare: b, in: newStamped(t, b.Conn), moves: make(chan toldMove, 64), got: make(chan string, 4096), ended: make(chan struct{})}
	early := make([]byte, b.br.Buffered())
	if _, err := io.ReadFull(b.br, early); err != nil {
		t.Fatal(err)
	}
	b.br = bufio.NewReader(io.MultiReader(strings.NewReader(string(early)), e.in))
	go e.listen()
	return e
}

func (e *ear) listen() {
	defer close(e.ended)
	defer e.Close() // or the node would wait for that
	for {
		op, p, err := e.frame()
		e.endedAt = e.in.at
		if err != nil {
			return
		}
		switch op {
		case 8:
			if len(p) >= 2 {
				e.code = int(binary.BigEndian.Uint16(p))
			}
			return
		case 1:
			m := toldMove{at: e.in.at}
			if json.Unmarshal(p, &m.Move) != nil {
				continue
			}
			switch m.Type {
			case wire.TypeMove:
				e.moves <- m
			case wire.TypeMessage:
				e.got <- data(string(p))
			}
		}
	}
}

// told waits for the next move frame.
func (e *ear) told(t *testing.T) toldMove {
	t.Helper()
	return await(t, e.user+" is told to move", e.moves)
}

// follows does what a move frame asked for; both connections are open then.
func (e *ear) follows(t *testing.T, m toldMove) *ear {
	t.Helper()
	n := hear(t, dialLocated(t, wire.LocateResponse{User: e.user, Node: m.Node, URL: m.URL, Ticket: m.Ticket}))
	if n.welcome.Session != e.welcome.Session {
		t.Errorf("%s moved, and its session %s became %s", e.user, e.welcome.Session, n.welcome.Session)
	}
	return n
}

func (e *ear) expect(t *testing.T, want string) {
	t.Helper()
	if got := await(t, e.user+" gets "+want, e.got); got != want {
		t.Fatalf("%s got %s, want %s", e.user, got, want)
	}
}

// closes waits for the end of the connection and compares its close code.
func (e *ear) closes(t *testing.T, want int) {
	t.Helper()
	await(t, e.user+"'s connection ends", e.ended)
	if e.code != want {
		t.Errorf("%s was closed with %d, want %d", e.user, e.code, want)
	}
}

func (e *ear) open() bool {
	select {
	case <-e.ended:
		return false
	default:
		return true
	}
}

// leave closes with 1000, as a client does that is connected elsewhere.
func (e *ear) leave(t *testing.T) {
	t.Helper()
	if _, err := e.Write(inprocFrame(0x88, []byte{1000 >> 8, 1000 & 0xff})); err != nil {
		t.Errorf("%s could not leave: %v", e.user, err)
	}
	e.closes(t, wire.CloseNormal)
}

// stamped reads a connection and has the kernel tell when what it read came, so
// that it does not matter when this process, among many others, gets to run.
type stamped struct {
	raw syscall.RawConn
	at  time.Time
}

func newStamped(t *testing.T, c net.Conn) *stamped {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var serr error
	if err := raw.Control(func(fd uintptr) {
		serr = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_TIMESTAMPNS, 1)
	}); err != nil || serr != nil {
		t.Fatal(err, serr)
	}
	return &stamped{raw: raw}
}

func (s *stamped) Read(p []byte) (n int, err error) {
	var oob [64]byte
	rerr := s.raw.Read(func(fd uintptr) bool {
		var k int
		for {
			n, k, _, _, err = syscall.Recvmsg(int(fd), p, oob[:], 0)
			if err != syscall.EINTR {
				break
			}
		}
		if err == syscall.EAGAIN {
			return false
		}
		s.at = time.Now() // unless the kernel knows better
		if list, perr := syscall.ParseSocketControlMessage(oob[:max(k, 0)]); perr == nil {
			for _, m := range list {
				if m.Header.Type == syscall.SCM_TIMESTAMPNS && len(m.Data) >= 16 {
					s.at = time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
				}
			}
		}
		return true
	})
	switch {
	case rerr != nil:
		return 0, rerr
	case err != nil:
		return 0, err
	case n == 0 && len(p) > 0:
		return 0, io.EOF
	}
	return n, nil
}

// dialStatus dials with a ticket and returns the status only.
func dialStatus(t *testing.T, wsURL, ticket string) int {
	t.Helper()
	u, err := url.Parse(wsURL)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: dialring.v1, dialring.ticket.%s\r\n\r\n", u.RequestURI(), u.Host, ticket)
	_ = c.SetReadDeadline(time.Now().Add(patience))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode
}

// equal are members of weight 1.
func equal(ids ...string) map[string]int {
	m := map[string]int{}
	for _, id := range ids {
		m[id] = 1
	}
	return m
}

// movers returns users whom one ring gives to a node and the next to another.
func movers(before, after map[string]int, from, to string, n int) []string {
	a, b := ring.Of(before), ring.Of(after)
	var out []string
	for i := 0; len(out) < n; i++ {
		u := fmt.Sprintf("m-%s-%s-%d", from, to, i)
		x, _ := a.Owner(u)
		y, _ := b.Owner(u)
		if x.ID == from && y.ID == to {
			out = append(out, u)
		}
	}
	return out
}

// stayFor is how long a change that must not happen would have had the time to:
// some times the settle time. There is no event for that it does not.
const stayFor = 2 * time.Second

// unchanged watches a ring for a while, and fails when its members change.
func (l *locatorProc) unchanged(t *testing.T, want ...string) {
	t.Helper()
	slices.Sort(want)
	for end := time.Now().Add(stayFor); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		var have []string
		for id := range l.members(t) {
			have = append(have, id)
		}
		slices.Sort(have)
		if !slices.Equal(have, want) {
			t.Fatalf("the ring has %v, it was to stay %v", have, want)
		}
	}
}

// node is a node as a locator sees it, in the ring or not.
func (l *locatorProc) node(t *testing.T, id string) wire.RingNode {
	t.Helper()
	for _, n := range l.ring(t).Nodes {
		if n.ID == id {
			return n
		}
	}
	return wire.RingNode{}
}

// pendingAt counts the sessions that node still has to move, by what a locator
// knows; -1: it is in no handoff.
func (l *locatorProc) pendingAt(t *testing.T, node string) int {
	t.Helper()
	for _, h := range l.ring(t).Handoffs {
		for _, p := range h.Pending {
			if p.Node == node {
				return p.Sessions
			}
		}
	}
	return -1
}

// getUser is GET /v1/users/{user}.
func (l *locatorProc) getUser(t *testing.T, user string) wire.UserResponse {
	t.Helper()
	var r wire.UserResponse
	status, b := call(t, "GET", "http://"+l.addr+"/v1/users/"+user, "")
	if status != 200 || json.Unmarshal(b, &r) != nil {
		t.Fatalf("GET user %s: %d %s", user, status, b)
	}
	return r
}

// kick is DELETE /v1/users/{user}/sessions; it returns how many were closed.
func (l *locatorProc) kick(t *testing.T, user, query string) int {
	t.Helper()
	var r struct{ Closed int }
	status, b := call(t, "DELETE", "http://"+l.addr+"/v1/users/"+user+"/sessions"+query, "")
	if status != 200 || json.Unmarshal(b, &r) != nil {
		t.Fatalf("DELETE sessions of %s: %d %s", user, status, b)
	}
	return r.Closed
}

// presence is POST /v1/presence.
func (l *locatorProc) presence(t *testing.T, users ...string) map[string]int {
	t.Helper()
	body, err := json.Marshal(map[string]any{"users": users})
	if err != nil {
		t.Fatal(err)
	}
	var r struct{ Online map[string]int }
	status, b := call(t, "POST", "http://"+l.addr+"/v1/presence", string(body))
	if status != 200 || json.Unmarshal(b, &r) != nil {
		t.Fatalf("presence: %d %s", status, b)
	}
	return r.Online
}

// delivers pushes through a locator and fails unless exactly this connection
// gets it, once.
func (l *locatorProc) delivers(t *testing.T, e *ear, what string) {
	t.Helper()
	if r := l.push(t, e.user, `"`+what+`"`); r.Delivered != 1 {
		t.Errorf("%s to %s: delivered %d, want 1: %+v", what, e.user, r.Delivered, r)
		return
	}
	e.expect(t, `"`+what+`"`)
}
