package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

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

// store pushes a stored message, with a query and a key if they are not empty, and
// returns the status and what was answered.
func (l *locatorProc) store(t *testing.T, user, body, query, key string) (int, wire.PushResult, wire.Problem) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+l.addr+"/v1/push/"+url.PathEscape(user)+query, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer dev")
	req.Header.Set("Content-Type", "application/json")
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var both struct {
		wire.PushResult
		Code   wire.Code
		Detail string
		Status int
	}
	if err := json.NewDecoder(resp.Body).Decode(&both); err != nil {
		t.Fatal(err)
	}
	p := wire.Problem{Code: both.Code, Detail: both.Detail, Status: both.Status}
	if resp.Header.Get("Retry-After") != "" {
		p.RetryAfter = 1
	}
	return resp.StatusCode, both.PushResult, p
}

// tryStore pushes a stored message from any goroutine; status 0: nobody answered.
func (l *locatorProc) tryStore(user, body string) (int, wire.PushResult) {
	req, err := http.NewRequest(http.MethodPost, "http://"+l.addr+"/v1/push/"+url.PathEscape(user), strings.NewReader(body))
	if err != nil {
		return 0, wire.PushResult{}
	}
	req.Header.Set("Authorization", "Bearer dev")
	req.Header.Set("Content-Type", "application/json")
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, wire.PushResult{}
	}
	defer resp.Body.Close()
	var r wire.PushResult
	if json.NewDecoder(resp.Body).Decode(&r) != nil {
		return 0, r
	}
	return resp.StatusCode, r
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
