package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/dialring/dialring/internal/wire"
)

// threeNodes starts a locator with its NATS and three nodes.
func threeNodes(t *testing.T, env ...string) (*locatorProc, []*nodeProc) {
	t.Helper()
	l := startLocator(t)
	return l, nodesOf(t, l, l.nats, env...)
}

func nodesOf(t *testing.T, l *locatorProc, nats string, env ...string) []*nodeProc {
	t.Helper()
	var nodes []*nodeProc
	for i := 1; i <= 3; i++ {
		nodes = append(nodes, startNode(t, fmt.Sprintf("ws-%d", i), nats, env...))
	}
	l.waitMembers(t, "ws-1", "ws-2", "ws-3")
	return nodes
}

// posted is what a POST was answered; status 0: nobody answered.
type posted struct {
	status int
	body   []byte
	header http.Header
}

// post posts with the development key, from any goroutine.
func (l *locatorProc) post(path, contentType, body, key string) posted {
	req, err := http.NewRequest(http.MethodPost, "http://"+l.addr+path, strings.NewReader(body))
	if err != nil {
		return posted{}
	}
	req.Header.Set("Authorization", "Bearer dev")
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return posted{}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return posted{}
	}
	return posted{resp.StatusCode, b, resp.Header}
}

// store pushes a stored message, with a query and a key if they are not empty, and
// returns the status and what was answered.
func (l *locatorProc) store(t *testing.T, user, body, query, key string) (int, wire.PushResult, wire.Problem) {
	t.Helper()
	p := l.post("/v1/push/"+url.PathEscape(user)+query, "application/json", body, key)
	var r wire.PushResult
	var problem wire.Problem
	if err := errors.Join(json.Unmarshal(p.body, &r), json.Unmarshal(p.body, &problem)); err != nil {
		t.Fatalf("push to %s: %d %q: %v", user, p.status, p.body, err)
	}
	if p.header.Get("Retry-After") != "" {
		problem.RetryAfter = 1
	}
	return p.status, r, problem
}

// tryStore pushes a stored message from any goroutine.
func (l *locatorProc) tryStore(user, body string) (int, wire.PushResult) {
	p := l.post("/v1/push/"+url.PathEscape(user), "application/json", body, "")
	var r wire.PushResult
	if json.Unmarshal(p.body, &r) != nil {
		return 0, r
	}
	return p.status, r
}

// restartable returns a function that starts a locator with its NATS, each time on
// the same addresses and store, and the directory of the store.
func restartable(t *testing.T, dir string, env ...string) func() *locatorProc {
	t.Helper()
	nats, listen := fmt.Sprintf("127.0.0.1:%d", freePort(t)), fmt.Sprintf("127.0.0.1:%d", freePort(t))
	return func() *locatorProc {
		return startLocator(t, append(env, "DIALRING_DATA_DIR="+dir, "DIALRING_NATS_LISTEN="+nats, "DIALRING_LISTEN="+listen)...)
	}
}

// keep pushes a stored message that has to be accepted.
func (l *locatorProc) keep(t *testing.T, user, body string) wire.PushResult {
	t.Helper()
	status, r, p := l.store(t, user, body, "", "")
	if status != 200 || !r.Stored || r.Duplicate || r.Seq == 0 {
		t.Fatalf("stored push to %s: %d %+v %+v", user, status, r, p)
	}
	return r
}

// dialSince dials with a cursor, or without one if it is empty.
func dialSince(t *testing.T, l *locatorProc, user, device, since string) *bare {
	t.Helper()
	loc := l.locate(t, user, `{"device":"`+device+`"}`)
	if since != "" {
		loc.URL += "?since=" + url.QueryEscape(since)
	}
	return dialLocated(t, loc)
}

// write sends a text frame, masked as RFC 6455 asks of clients (with zeros).
func (b *bare) write(t *testing.T, v any) {
	t.Helper()
	p, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if len(p) > 125 {
		t.Fatal("a frame that this does not write")
	}
	if _, err := b.Write(append([]byte{0x81, 0x80 | byte(len(p)), 0, 0, 0, 0}, p...)); err != nil {
		t.Fatal(err)
	}
}

// message reads up to the next message and fails unless it is the one with seq,
// and data.
func (b *bare) message(t *testing.T, seq uint64, data string) wire.Message {
	t.Helper()
	var m wire.Message
	b.expectType(t, wire.TypeMessage, &m)
	if m.Seq != seq || string(m.Data) != data || m.Cursor == "" {
		t.Fatalf("message %d %s (cursor %q) came, want %d %s", m.Seq, m.Data, m.Cursor, seq, data)
	}
	return m
}

// welcomed fails unless the welcome said this.
func (b *bare) welcomed(t *testing.T, head, pending uint64, gap bool) {
	t.Helper()
	if w := b.welcome; w.Head != head || w.Pending != pending || w.Gap != gap || w.Since == "" {
		t.Fatalf("welcome %+v, want head %d, pending %d, gap %v", w, head, pending, gap)
	}
}

// waitServes waits until this process of a node is in the ring that the locator has, and the node has that ring: each
// hears of it by itself. The address tells the process, for one before it of the same id had another.
func (l *locatorProc) waitServes(t *testing.T, n *nodeProc) {
	t.Helper()
	eventually(t, n.id+" serves its part of the ring", func() bool {
		r := l.ring(t)
		return strings.Contains(n.text(), fmt.Sprintf(`"event":"ring","epoch":%d,`, r.Epoch)) && slices.ContainsFunc(r.Nodes, func(x wire.RingNode) bool {
			return x.ID == n.id && x.Share > 0 && strings.Contains(x.URL, "//"+n.addr+"/")
		})
	})
}

// metric reads one of a node's metrics, with its labels if it has any.
func (n *nodeProc) metric(t *testing.T, name string) float64 {
	t.Helper()
	status, b := call(t, "GET", "http://"+n.admin+"/metrics", "")
	for line := range strings.Lines(string(b)) {
		if text, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("no metric %s: %d", name, status)
	return 0
}

// streamLeader returns which server of natsCluster leads a stream.
func streamLeader(t *testing.T, natsURL, stream string) int {
	t.Helper()
	nc, err := nats.Connect(natsURL)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	m, err := nc.Request("$JS.API.STREAM.INFO."+stream, nil, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ Cluster struct{ Leader string } }
	if err := json.Unmarshal(m.Data, &info); err != nil {
		t.Fatal(err)
	}
	i, err := strconv.Atoi(strings.TrimPrefix(info.Cluster.Leader, "n"))
	if err != nil {
		t.Fatalf("leader %q: %s", info.Cluster.Leader, m.Data)
	}
	return i
}
