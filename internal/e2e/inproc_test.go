package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/ticket"
	"github.com/dialring/dialring/internal/wire"
	"github.com/dialring/dialring/locator"
	"github.com/dialring/dialring/wsnode"
)

// inprocPatience bounds every wait for an event. It is no expectation: nothing
// here has to be fast.
const inprocPatience = 60 * time.Second

// inprocLog takes a log and lets tests wait for an event of it.
type inprocLog struct {
	mu    sync.Mutex
	lines []string
	more  chan struct{} // closed with the next line
}

func newInprocLog() *inprocLog { return &inprocLog{more: make(chan struct{})} }

// Write takes one line: slog's handlers write each record at once.
func (l *inprocLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(b))
	close(l.more)
	l.more = make(chan struct{})
	return len(b), nil
}

func (l *inprocLog) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// find returns the lines that contain all of the texts.
func (l *inprocLog) find(texts ...string) (out []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
lines:
	for _, line := range l.lines {
		for _, s := range texts {
			if !strings.Contains(line, s) {
				continue lines
			}
		}
		out = append(out, line)
	}
	return out
}

// await waits until the log has a line with all of the texts.
func (l *inprocLog) await(t *testing.T, texts ...string) {
	t.Helper()
	timeout := time.After(inprocPatience)
	for {
		l.mu.Lock()
		more := l.more
		l.mu.Unlock()
		if len(l.find(texts...)) > 0 {
			return
		}
		select {
		case <-more:
		case <-timeout:
			t.Fatalf("the log never had %q", texts)
		}
	}
}

// inprocEventually polls for what has no event of its own.
func inprocEventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(inprocPatience); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// inprocCluster is a locator and its nodes: in development mode, in this process
// (inprocStart), or outside it, in processes of their own (processes).
type inprocCluster struct {
	t     *testing.T
	log   *inprocLog
	at    locator.Addrs
	nodes []*inprocNode
	key   string // of services
	auth  bool   // clients show tokens: it is not in development mode

	issued *inprocTickets
}

// inprocTickets are all tickets that were issued: none may show up anywhere.
type inprocTickets struct {
	mu   sync.Mutex
	list []string
}

func (i *inprocTickets) add(ticket string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.list = append(i.list, ticket)
}

func (i *inprocTickets) all() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.list)
}

// with returns the cluster for a subtest.
func (c *inprocCluster) with(t *testing.T) *inprocCluster {
	x := *c
	x.t = t
	return &x
}

type inprocNode struct {
	id   string
	at   wsnode.Addrs
	stop context.CancelFunc
	done chan struct{} // closed when Run has returned
}

// inprocRun runs a server until the test ends, and fails the test if Run does.
func inprocRun(t *testing.T, name string, run func(context.Context) error) (context.CancelFunc, chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := run(ctx); err != nil {
			t.Errorf("%s: Run: %v", name, err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return cancel, done
}

// inprocStart starts a locator and nodes, and waits until all of them are in
// the ring. Settings that are not given are such that they fit a test.
func inprocStart(t *testing.T, lc locator.Config, nodes ...wsnode.Config) *inprocCluster {
	t.Helper()
	lc.Dev = "true"
	for i := range nodes {
		nodes[i].Dev, nodes[i].Listen, nodes[i].PeerListen = "true", "127.0.0.1:0", "127.0.0.1:0"
	}
	return inprocStartAs(t, &inprocCluster{key: "dev"}, lc, nodes...)
}

func inprocStartAs(t *testing.T, c *inprocCluster, lc locator.Config, nodes ...wsnode.Config) *inprocCluster {
	t.Helper()
	c.t, c.log, c.issued = t, newInprocLog(), &inprocTickets{}
	t.Cleanup(func() { // last of all
		c.checkLog()
		if t.Failed() { // what led there, but for what each session does
			for _, line := range c.log.find("level=") {
				if !strings.Contains(line, "level=DEBUG") {
					t.Log(line)
				}
			}
		}
	})
	lc.Listen, lc.AdminListen, lc.NATSListen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	lc.DataDir, lc.DataSync, lc.Log = t.TempDir(), "interval", c.log.logger()
	l, err := locator.New(lc)
	if err != nil {
		t.Fatal(err)
	}
	inprocRun(t, "locator", l.Run)
	ctx, cancel := context.WithTimeout(context.Background(), inprocPatience)
	defer cancel()
	if c.at, err = l.Addrs(ctx); err != nil {
		t.Fatal(err)
	}
	for i, nc := range nodes {
		nc.AdminListen, nc.NATSURL, nc.Log = "127.0.0.1:0", c.at.NATS, c.log.logger()
		if nc.NodeID == "" {
			nc.NodeID = fmt.Sprintf("ws-%d", i+1)
		}
		n, err := wsnode.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		x := &inprocNode{id: nc.NodeID}
		x.stop, x.done = inprocRun(t, nc.NodeID, n.Run)
		if x.at, err = n.Addrs(ctx); err != nil {
			t.Fatal(err)
		}
		c.nodes = append(c.nodes, x)
	}
	c.await(len(nodes))
	return c
}

// await waits until so many nodes are in the ring, or the locator does its work without one.
func (c *inprocCluster) await(nodes int) {
	c.t.Helper()
	if nodes == 0 {
		inprocAwaitLocator(c.t, c.at.Listen)
		return
	}
	inprocEventually(c.t, "all nodes are in the ring", func() bool {
		var r wire.RingResponse
		c.getJSON("/v1/ring", &r)
		in := 0
		for _, n := range r.Nodes {
			if n.Share > 0 { // it lists those that are about to join, too
				in++
			}
		}
		return in == nodes && !slices.ContainsFunc(c.nodes, func(n *inprocNode) bool { // each hears of it by itself
			e, err := strconv.ParseUint(c.metric(n, "dialring_ring_epoch"), 10, 64)
			return err != nil || e < r.Epoch
		})
	})
	inprocEventually(c.t, "the locator is ready", func() bool { return c.call("GET", "/readyz", "", "").status == 200 })
}

// inprocAwaitLocator waits until a locator that has no nodes does its work.
func inprocAwaitLocator(t *testing.T, addr string) {
	t.Helper()
	inprocEventually(t, "the locator's key is published", func() bool {
		return strings.Contains(string(inprocDo(t, "GET", "http://"+addr+"/readyz", nil).body), "no node is in the ring")
	})
}

// checkLog looks for what must never be in a log: panics, failed requests,
// tickets.
func (c *inprocCluster) checkLog() {
	for _, event := range []string{"event=panic ", "event=internal ", "event=frame_panic "} {
		for _, line := range c.log.find(event) {
			c.t.Errorf("the log has: %s", line)
		}
	}
	for _, tk := range c.issued.all() {
		_, signature, _ := strings.Cut(tk[strings.Index(tk, ".")+1:], ".")
		if lines := c.log.find(signature); len(lines) > 0 {
			c.t.Errorf("the log has a ticket: %s", lines[0])
		}
	}
}

// inprocHTTP keeps no connections, so that none is left behind.
var inprocHTTP = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}, Timeout: inprocPatience,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

// inprocAnswer is a response with its body.
type inprocAnswer struct {
	status int
	header http.Header
	body   []byte
}

// inprocDo makes a request; headers are names and values in turn.
func inprocDo(t *testing.T, method, url string, body io.Reader, headers ...string) inprocAnswer {
	t.Helper()
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := inprocHTTP.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return inprocAnswer{resp.StatusCode, resp.Header, b}
}

// call makes a request of a service to the locator.
func (c *inprocCluster) call(method, path, contentType, body string, headers ...string) inprocAnswer {
	c.t.Helper()
	h := append([]string{"Authorization", "Bearer " + c.key}, headers...)
	if contentType != "" {
		h = append(h, "Content-Type", contentType)
	}
	return inprocDo(c.t, method, "http://"+c.at.Listen+path, strings.NewReader(body), h...)
}

func (c *inprocCluster) getJSON(path string, v any) {
	c.t.Helper()
	a := c.call("GET", path, "", "")
	if a.status != 200 {
		c.t.Fatalf("GET %s: %d %s", path, a.status, a.body)
	}
	inprocDecode(c.t, a.body, v)
}

func inprocDecode(t *testing.T, b []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
}

// push pushes JSON to the sessions of a user; query goes behind durable=false.
func (c *inprocCluster) push(user, body, query string) wire.PushResult {
	c.t.Helper()
	a := c.call("POST", "/v1/push/"+url.PathEscape(user)+"?durable=false"+query, "application/json", body)
	if a.status != 200 {
		c.t.Fatalf("push to %q: %d %s", user, a.status, a.body)
	}
	var r wire.PushResult
	inprocDecode(c.t, a.body, &r)
	return r
}

// locate asks where a user goes.
func (c *inprocCluster) locate(user, device string) wire.LocateResponse {
	c.t.Helper()
	q, header := url.Values{}, []string{}
	if c.auth {
		header = []string{"Authorization", "Bearer " + inprocToken(c.t, jwt.SigningMethodHS256, []byte(inprocSecret), nil, inprocClaims(map[string]any{"sub": user}))}
	} else {
		q.Set("user", user)
	}
	if device != "" {
		q.Set("device", device)
	}
	a := inprocDo(c.t, "POST", "http://"+c.at.Listen+"/v1/locate?"+q.Encode(), nil, header...)
	if a.status != 200 {
		c.t.Fatalf("locate %q: %d %s", user, a.status, a.body)
	}
	var r wire.LocateResponse
	inprocDecode(c.t, a.body, &r)
	c.issued.add(r.Ticket)
	return r
}

// node returns the node of that id.
func (c *inprocCluster) node(id string) *inprocNode {
	for _, n := range c.nodes {
		if n.id == id {
			return n
		}
	}
	c.t.Fatalf("there is no node %q", id)
	return nil
}

// userOf finds a user that a node owns.
func (c *inprocCluster) userOf(node string) string {
	c.t.Helper()
	for i := range 10_000 {
		if u := fmt.Sprintf("user-%d", i); c.locate(u, "d").Node == node {
			return u
		}
	}
	c.t.Fatalf("node %s owns nobody", node)
	return ""
}

// metric reads a value from a node's metrics: the text of its line behind name.
func (c *inprocCluster) metric(n *inprocNode, name string) string {
	c.t.Helper()
	a := inprocDo(c.t, "GET", "http://"+n.at.Admin+"/metrics", nil)
	for line := range strings.Lines(string(a.body)) {
		if v, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// signer joins the cluster with a signing key of its own, so that a test
// can make any ticket.
func (c *inprocCluster) signer() *ticket.Signer {
	c.t.Helper()
	return joinSigner(c.t, c.at.NATS, c.natsToken(), c.log.logger())
}

// joinSigner has a signing key published as that of a locator.
func joinSigner(t *testing.T, nats, token string, log *slog.Logger) *ticket.Signer {
	t.Helper()
	conn, err := cluster.Connect(cluster.Options{URL: nats, Token: token, Cluster: "dialring", Name: "test", Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	s := ticket.NewSigner()
	keys := cluster.NewKeys(conn, cluster.NewRings(conn, log), log, s, "locator:test")
	inprocRun(t, "keys", keys.Run)
	await(t, "the test's key is published", keys.Published())
	return s
}

// inprocProblem checks that an answer is a problem document of the contract.
func inprocProblem(t *testing.T, a inprocAnswer, status int, code wire.Code) {
	t.Helper()
	if a.status != status {
		t.Fatalf("status %d, want %d: %s", a.status, status, a.body)
	}
	if ct := a.header.Get("Content-Type"); ct != "application/problem+json" {
		t.Errorf("Content-Type %q: %s", ct, a.body)
	}
	var p struct {
		Type, Title, Detail string
		Status              int
		Code                wire.Code
	}
	inprocDecode(t, a.body, &p)
	if p.Status != status || p.Code != code || p.Title == "" || p.Detail == "" || p.Type == "" {
		t.Errorf("want status %d and code %s: %s", status, code, a.body)
	}
	if (status == 429 || status == 503) != (a.header.Get("Retry-After") != "") {
		t.Errorf("Retry-After %q with %d", a.header.Get("Retry-After"), status)
	}
	if bytes.Contains(a.body, []byte("goroutine ")) {
		t.Errorf("a stack in an answer: %s", a.body)
	}
}
