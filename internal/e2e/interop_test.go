package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/dialring/dialring/internal/config"
	"github.com/dialring/dialring/internal/wire"
	"github.com/dialring/dialring/wsnode"
)

const (
	interopKey    = "interop-api-key-0123456789abcdef"
	interopSecret = "interop-user-secret-0123456789abcdef"
	interopNATS   = "interop-nats-token-0123456789abcdef"
)

func init() { roles["pinging-node"] = pingingNode }

// pingingNode is the program wsnode, with a ping each second: those are not a setting.
func pingingNode() int {
	return config.Main("", nil, os.Stdout, os.Stderr,
		func(c *wsnode.Config) (level, format string) { return c.LogLevel, c.LogFormat },
		func(ctx context.Context, c wsnode.Config, log *slog.Logger) error {
			c.Log, c.PingInterval = log, time.Second
			n, err := wsnode.New(c)
			if err != nil {
				return err
			}
			return n.Run(ctx)
		})
}

// interopCluster is a locator and three nodes outside development mode, each with a wiretap
// before it.
type interopCluster struct {
	l        *locatorProc
	nodes    []*process
	wiretaps []*wiretap
}

func startInterop(t *testing.T, origin string) *interopCluster {
	t.Helper()
	host := ownAddress(t)
	c := &interopCluster{l: startLocator(t, "DIALRING_DEV=false", "DIALRING_NATS_TOKEN="+interopNATS, "DIALRING_DATA_SYNC=interval",
		"DIALRING_API_KEYS="+interopKey, "DIALRING_USER_JWT_SECRET="+interopSecret, "DIALRING_ALLOWED_ORIGINS="+origin)}
	for i := 1; i <= 3; i++ {
		// Outside development mode a node on loopback is refused: nobody else could reach it.
		p, peer := newWiretap(t, host), fmt.Sprintf("%s:%d", host, quietPort(t))
		n := start(t, fmt.Sprintf("ws-%d", i), os.Args[0], []string{roleEnv + "=pinging-node", "DIALRING_LOG_FORMAT=json",
			fmt.Sprintf("DIALRING_NODE_ID=ws-%d", i), "DIALRING_NATS_URL=" + c.l.nats, "DIALRING_NATS_TOKEN=" + interopNATS,
			"DIALRING_LISTEN=127.0.0.1:0", "DIALRING_NODE_URL=ws://" + p.l.Addr().String(), "DIALRING_ADMIN_LISTEN=127.0.0.1:0",
			"DIALRING_PEER_LISTEN=" + peer, "DIALRING_PEER_URL=http://" + peer, "DIALRING_ALLOWED_ORIGINS=" + origin})
		p.leadsTo(n.event(t, "listening")["listen"].(string))
		c.nodes, c.wiretaps = append(c.nodes, n), append(c.wiretaps, p)
	}
	eventually(t, "three nodes share the ring", func() bool {
		var r wire.RingResponse
		if status := c.call(t, "GET", "/v1/ring", "", nil, &r); status != 200 {
			t.Fatalf("GET /v1/ring: %d", status)
		}
		sharing := 0
		for _, n := range r.Nodes {
			if n.Share > 0 {
				sharing++
			}
		}
		return sharing == 3 && len(r.Handoffs) == 0
	})
	return c
}

// call asks the API, with a key, and returns the status.
func (c *interopCluster) call(t *testing.T, method, path, contentType string, body []byte, out any) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+c.l.addr+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+interopKey)
	req.Header.Set("Content-Type", contentType)
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Errorf("%s %s: %v", method, path, err)
		return 0
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode < 300 {
		err = json.Unmarshal(b, out)
	}
	if err != nil {
		t.Errorf("%s %s: %d %s: %v", method, path, resp.StatusCode, b, err)
	}
	return resp.StatusCode
}

// of are the connections of a user on all wiretaps.
func (c *interopCluster) of(user string) (out []wiretapped) {
	for _, p := range c.wiretaps {
		out = append(out, p.of(user)...)
	}
	return out
}

// interopClient is a user of a program that nobody here has the library of.
type interopClient struct {
	interopProgram
	user  string
	token string
	run   interopRun

	seq     uint64 // of the newest stored message that came
	seen    map[string]bool
	session string // of the last welcome

	mu     sync.Mutex
	pushed map[uint64]any // by seq
	last   uint64
}

// interopFrame is a line of a program: a frame, or what became of it.
type interopFrame struct {
	Type, ID, Node, Session, User, From string
	Seq                                 uint64
	Pending                             int
	Gap                                 bool
	Ref, Code                           any
	Data                                any
	DataB64                             []byte `json:"data_b64"`
}

func newInteropClient(t *testing.T, p interopProgram, user string) *interopClient {
	return &interopClient{interopProgram: p, user: user, seen: map[string]bool{}, pushed: map[uint64]any{},
		token: inprocToken(t, jwt.SigningMethodHS256, []byte(interopSecret), nil, inprocClaims(map[string]any{"sub": user, "send_to": []string{user}}))}
}

// begins starts the program and waits until it is connected.
func (c *interopClient) begins(t *testing.T, l *locatorProc, subprotocol bool) interopFrame {
	t.Helper()
	c.run = c.start(t, "http://"+l.addr, c.token, subprotocol)
	return c.takes(t, "is welcomed", func(f interopFrame) bool { return f.Type == wire.TypeWelcome })
}

// takes waits for a frame, and checks all that come before: whatever the phase of the test
// is, stored messages come each once, and in order.
func (c *interopClient) takes(t *testing.T, what string, want func(interopFrame) bool) interopFrame {
	t.Helper()
	for {
		f := c.checks(t, what)
		if want(f) {
			return f
		}
		if f.Type == "ended" {
			t.Fatalf("%s ended with %v before it %s", c.name, f.Code, what)
		}
	}
}

// checks takes the next frame.
func (c *interopClient) checks(t *testing.T, what string) interopFrame {
	t.Helper()
	f := await(t, c.name+" "+what, c.run.lines)
	switch f.Type {
	case wire.TypeWelcome:
		if f.User != c.user || f.Gap {
			t.Errorf("%s: welcome %+v", c.name, f)
		}
		c.session = f.Session
	case wire.TypeMessage:
		if c.seen[f.ID] {
			t.Errorf("%s: message %s came twice: %+v", c.name, f.ID, f)
		}
		c.seen[f.ID] = true
		if f.Seq == 0 {
			break
		}
		if f.Seq != c.seq+1 {
			t.Errorf("%s: seq %d after %d", c.name, f.Seq, c.seq)
		}
		c.seq = f.Seq
		got := f.Data
		if f.DataB64 != nil {
			got = f.DataB64
		}
		eventually(t, "the push is answered", func() bool { // its answer may be later than the message
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.last >= f.Seq
		})
		c.mu.Lock()
		if want := c.pushed[f.Seq]; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: seq %d is %.200v, pushed was %.200v", c.name, f.Seq, got, want)
		}
		c.mu.Unlock()
	}
	return f
}

// takesAll waits until the newest stored message is here.
func (c *interopClient) takesAll(t *testing.T, what string) {
	t.Helper()
	c.mu.Lock()
	last := c.last
	c.mu.Unlock()
	for c.seq < last {
		c.takes(t, what, func(f interopFrame) bool { return f.Seq > 0 })
	}
}

// push pushes a stored message, JSON or bytes, and returns to how many it was written.
func (c *interopClient) push(t *testing.T, cl *interopCluster, v any) int {
	t.Helper()
	contentType := "application/json"
	body, isBytes := v.([]byte)
	if isBytes {
		contentType = "application/octet-stream"
	} else {
		var err error
		if body, err = json.Marshal(v); err != nil {
			t.Fatal(err)
		}
	}
	var r wire.PushResult
	if status := cl.call(t, "POST", "/v1/push/"+url.PathEscape(c.user), contentType, body, &r); status != 200 || !r.Stored {
		t.Errorf("push to %s: %d %+v", c.name, status, r)
		return 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pushed[r.Seq], c.last = v, max(c.last, r.Seq)
	return r.Delivered
}

// sends has the program send a frame, and waits for the answer.
func (c *interopClient) sends(t *testing.T, frame, answer string) interopFrame {
	t.Helper()
	c.run.send(frame)
	return c.takes(t, "is answered "+frame, func(f interopFrame) bool { return f.Type == answer && f.Ref == "r" })
}

// Clients that nobody here wrote a library for, by the contract alone, against processes as
// they run in earnest: user tokens, an API key, an allowed origin.
func TestInterop(t *testing.T) {
	programs := interopPrograms(t)
	mux := http.NewServeMux()
	interopPages(mux)
	site := httptest.NewServer(mux)
	t.Cleanup(site.Close)
	cl := startInterop(t, site.URL)
	all, left := equal("ws-1", "ws-2", "ws-3"), equal("ws-2", "ws-3")
	users := append(movers(all, left, "ws-1", "ws-2", 3), movers(all, left, "ws-1", "ws-3", 3)...)
	var clients []*interopClient
	for i, p := range programs {
		if p.missing != "" {
			continue
		}
		p.site = site.URL
		clients = append(clients, newInteropClient(t, p, users[i]))
	}

	for _, c := range clients {
		if w := c.begins(t, cl.l, false); w.Node != "ws-1" {
			t.Fatalf("%s is at %s", c.name, w.Node)
		}
		head := cl.of(c.user)[0].request
		if byHeader := strings.Contains(head, "\r\nAuthorization: Bearer "); byHeader != c.headers || byHeader == strings.Contains(head, "dialring.ticket.") {
			t.Errorf("%s: ticket in a header: %t, want %t:\n%s", c.name, byHeader, c.headers, head)
		}
		if c.page && !strings.Contains(head, "\r\nOrigin: "+site.URL+"\r\n") {
			t.Errorf("%s: no origin in\n%s", c.name, head)
		}
	}

	// Messages: text beyond ASCII, one that is nearly as large as may be, bytes, ephemeral.
	long := strings.Repeat("é中👍", 65000/9)
	for _, c := range clients {
		for _, v := range []any{"žluťoučký kůň, 中文, العربية", map[string]any{"👩‍👩‍👧": []any{"\u0000", "\u2028", "\ufffd", "\U0010ffff", `"\`}}, long, []byte{0, 255, 128}} {
			if n := c.push(t, cl, v); n != 1 {
				t.Errorf("%s: pushed to %d sessions", c.name, n)
			}
		}
		c.takesAll(t, "gets what is pushed")
		if c.seq != 4 {
			t.Errorf("%s: %d stored messages", c.name, c.seq)
		}
		var r wire.PushResult
		cl.call(t, "POST", "/v1/push/"+c.user+"?durable=false", "application/json", []byte(`{"κλειδί":"τιμή"}`), &r)
		f := c.takes(t, "gets an ephemeral message", func(f interopFrame) bool { return f.Type == wire.TypeMessage && f.Seq == 0 })
		if !reflect.DeepEqual(f.Data, map[string]any{"κλειδί": "τιμή"}) || f.ID != r.ID {
			t.Errorf("%s: ephemeral %+v", c.name, f)
		}
	}

	// Pings of both kinds, acks, sends.
	for _, c := range clients {
		c.sends(t, `{"type":"ping","ref":"r"}`, wire.TypePong)
		if f := c.sends(t, `{"type":"send","ref":"r","to":"somebody","data":"ž"}`, wire.TypeError); f.Code != string(wire.CodeForbidden) {
			t.Errorf("%s: a send to somebody: %+v", c.name, f)
		}
		if f := c.sends(t, `{"type":"send","ref":"r","data":"ž"}`, wire.TypeError); f.Code != string(wire.CodeNoApplication) {
			t.Errorf("%s: a send to the application: %+v", c.name, f)
		}
		c.mu.Lock()
		c.last++
		c.pushed[c.last] = "ž"
		c.mu.Unlock()
		if f := c.sends(t, `{"type":"send","ref":"r","to":"`+c.user+`","data":"ž"}`, wire.TypeAck); f.Seq != 5 {
			t.Errorf("%s: a send to itself: %+v", c.name, f)
		}
		c.takesAll(t, "gets what it sent")
		c.acked(t, cl)
		eventually(t, c.name+" answers pings", func() bool { return cl.of(c.user)[0].clientPongs >= 2 })
		if c.headers { // those see the protocol's pings, and may send some
			eventually(t, "the node answers pings of "+c.name, func() bool { return cl.of(c.user)[0].nodePongs > 0 })
		}
	}

	// Their node drains, while pushes go on.
	ctx, stop := context.WithCancel(t.Context())
	var pushing sync.WaitGroup
	t.Cleanup(pushing.Wait)
	t.Cleanup(stop)
	pushed := make(chan struct{}, 1<<16)
	pushing.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			for _, c := range clients {
				c.push(t, cl, float64(i))
			}
			pushed <- struct{}{}
		}
	})
	await(t, "pushes go on", pushed)
	if status := cl.call(t, "POST", "/v1/nodes/ws-1/drain", "", nil, &struct{}{}); status != 202 {
		t.Fatalf("drain: %d", status)
	}
	for _, c := range clients {
		session := c.session
		w := c.takes(t, "is welcomed at its next node", func(f interopFrame) bool {
			if f.Type == "closed" {
				t.Errorf("%s lost its connection before it had the next: %+v", c.name, f)
			}
			return f.Type == wire.TypeWelcome
		})
		if w.Node == "ws-1" || w.Session != session {
			t.Errorf("%s moved to %+v, its session was %s", c.name, w, session)
		}
		f := c.takes(t, "closes the former connection", func(f interopFrame) bool { return f.Type == "closed" })
		if f.Node != "ws-1" || f.Code != 1000.0 {
			t.Errorf("%s: closed %+v", c.name, f)
		}
		conns := cl.of(c.user)
		if len(conns) != 2 || conns[0].clientClose != 1000 || !strings.Contains(conns[1].request, "since=") {
			t.Errorf("%s: connections %+v", c.name, conns)
		}
	}
	cl.nodes[0].ends(t)
	for range 3 + len(pushed) {
		await(t, "pushes go on", pushed)
	}
	stop()
	pushing.Wait()
	for _, c := range clients {
		c.takesAll(t, "gets what was pushed while it moved")
		t.Logf("%s: %d messages until it had moved", c.name, c.seq)
	}

	// Their connections are cut, and cannot be made again until more was pushed.
	for _, p := range cl.wiretaps {
		p.set(false)
	}
	for _, c := range clients {
		f := c.takes(t, "notices that it is cut", func(f interopFrame) bool { return f.Type == "closed" })
		if f.Code != 1006.0 {
			t.Errorf("%s: cut, and told %+v", c.name, f)
		}
		eventually(t, "the node notices that "+c.name+" is gone", func() bool { return !c.status(t, cl).Online })
		for i := range 5 {
			if n := c.push(t, cl, fmt.Sprintf("while away: %d", i)); n != 0 {
				t.Errorf("%s is away, and %d sessions got a push", c.name, n)
			}
		}
	}
	for _, p := range cl.wiretaps {
		p.set(true)
	}
	for _, c := range clients {
		w := c.takes(t, "is connected again", func(f interopFrame) bool { return f.Type == wire.TypeWelcome })
		if w.Pending != 5 {
			t.Errorf("%s resumes with %+v", c.name, w)
		}
		c.takesAll(t, "gets what was pushed meanwhile")
		c.acked(t, cl)
	}

	// The end: kicked, and not back by itself.
	for _, c := range clients {
		var r struct{ Closed int }
		cl.call(t, "DELETE", "/v1/users/"+c.user+"/sessions", "", nil, &r)
		if f := c.takes(t, "is kicked", func(f interopFrame) bool { return f.Type == "closed" }); f.Code != 4002.0 || r.Closed != 1 {
			t.Errorf("%s: kicked %d, and told %+v", c.name, r.Closed, f)
		}
		if f := c.takes(t, "ends", func(f interopFrame) bool { return f.Type == "ended" }); f.Code != 1.0 {
			t.Errorf("%s ended with %v", c.name, f.Code)
		}
		if n := c.push(t, cl, "while it does not run"); n != 0 {
			t.Errorf("%s was kicked, and %d sessions got a push", c.name, n)
		}
	}
	// A new process of the same device goes on behind what it acknowledged, and leaves.
	for _, c := range clients {
		if w := c.begins(t, cl.l, true); w.Pending != 1 {
			t.Errorf("%s begins anew with %+v", c.name, w)
		}
		conns := cl.of(c.user)
		last := slices.IndexFunc(conns, func(x wiretapped) bool {
			return x.nodeClose == 0 && x.clientClose == 0 && strings.Contains(x.request, "dialring.ticket.") && !strings.Contains(x.request, "since=")
		})
		if last < 0 || strings.Contains(conns[last].request, "Authorization") {
			t.Errorf("%s: no dial with a subprotocol and without since in %+v", c.name, conns)
		}
		c.takesAll(t, "gets what was pushed while it did not run")
		c.acked(t, cl)
		c.run.leave()
		if f := c.takes(t, "closes", func(f interopFrame) bool { return f.Type == "closed" }); f.Code != 1000.0 {
			t.Errorf("%s left, and told %+v", c.name, f)
		}
		if f := c.takes(t, "ends", func(f interopFrame) bool { return f.Type == "ended" }); f.Code != 0.0 {
			t.Errorf("%s left, and ended with %v", c.name, f.Code)
		}
		eventually(t, c.name+" has left", func() bool { return !c.status(t, cl).Online })
		if conns = cl.of(c.user); last >= 0 && conns[last].clientClose != 1000 {
			t.Errorf("%s left with %d", c.name, conns[last].clientClose)
		}
	}
	for _, p := range programs {
		t.Run(p.name, func(t *testing.T) {
			if p.missing != "" {
				t.Skip(p.missing)
			}
		})
	}
}

// status is GET /v1/users/{user}.
func (c *interopClient) status(t *testing.T, cl *interopCluster) (u wire.UserResponse) {
	t.Helper()
	cl.call(t, "GET", "/v1/users/"+url.PathEscape(c.user), "", nil, &u)
	return u
}

// acked waits until all that came is acknowledged.
func (c *interopClient) acked(t *testing.T, cl *interopCluster) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s has acknowledged %d", c.name, c.seq), func() bool {
		u := c.status(t, cl)
		return u.Head == c.seq && len(u.Sessions) == 1 && u.Sessions[0].AckedSeq == c.seq
	})
}
