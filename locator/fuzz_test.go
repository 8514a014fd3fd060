package locator

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/wire"
)

// fuzzRoutes are those that take a body.
var fuzzRoutes = []struct{ method, path, contentType string }{
	{"POST", "/v1/push/alice", ""}, {"POST", "/v1/push", "application/json"}, {"POST", "/v1/push", ndjson}, {"POST", "/v1/broadcast", "application/json"}, {"POST", "/v1/presence", "application/json"},
	{"POST", "/v1/ring/plan", "application/json"}, {"POST", "/v1/locate", "application/json"}, {"POST", "/v1/groups/g/members", "application/json"}, {"DELETE", "/v1/users/alice/sessions", ""},
}

const (
	fuzzOne = iota
	fuzzMany
	fuzzStream
	fuzzBroadcast
	fuzzPresence
	fuzzPlan
	fuzzLocate
	fuzzMembers
	fuzzKick
)

// FuzzBodies has any body, query and content type in each call of the API that takes one.
// The answer is one of the contract's, and what reached the node is what the call had.
func FuzzBodies(f *testing.F) {
	const ct = "application/json"
	for _, x := range []struct {
		route              int
		query, contentType string
		bodies             []string
	}{
		{fuzzOne, "durable=false", ct, []string{`{"n":1.0}`, ``, `1 2`, `{"a":`, "\xff", strings.Repeat("[", 40), `"\ud800"`, ` "x" `, strings.Repeat("1", 70_000)}},
		{fuzzOne, "durable=false", "", []string{"", "\x00\xff", "text"}},
		{fuzzOne, "ttl_ms=5&device=web", "text/plain; charset=x", []string{"x"}},
		{fuzzOne, "ttl_ms=0", ct, []string{"1"}},
		{fuzzOne, "durable=%zz", "application/json; charset=latin1", []string{"1"}},
		{fuzzMany, "", ct, []string{`{"users":["a","b"],"data":1}`, `{"messages":[{"user":"a","data":1,"id":"k"},{"user":"a","data":{"x":2}}]}`, `{}`, `{"users":[],"data":1}`, `{"users":["a"]}`, `{"users":["a"],"data":null}`,
			`{"users":["\u0000",""],"data":1}`, `{"users":["\ud800"],"data":1}`, `{"users":["a"],"data":1,"messages":[]}`, `{"users":"a","data":1}`, `null`, `[]`, `{"messages":[{}]}`, `{"users":["a","a"],"data":1}`, `{"users":["a"],"data":1}{}`}},
		{fuzzMany, "group=g", ct, []string{`1`, `{"x":1}`, ``}},
		{fuzzMany, "durable=false&device=web", ct, []string{`{"users":["a"],"data":1}`}},
		{fuzzStream, "", ndjson, []string{"{\"user\":\"a\",\"data\":1}\n{\"user\":\"b\",\"data\":2,\"id\":\"k\",\"ref\":\"r\"}\n", "", "\n\n\n", "x\n", "{\"user\":\"a\",\"data\":1}", "{\"user\":\"a\",\"ref\":{}}\n", "{\"user\":\"a\",\"data\":1,\"ref\":1e400}\r\n",
			"[]\n1\nnull\n", "{\"user\":\"\\ud800\",\"data\":1}\n", "{\"user\":\"a\",\"data\":\"" + strings.Repeat("x", 70_000) + "\"}\n{\"user\":\"a\",\"data\":1}\n", "\xff\n"}},
		{fuzzBroadcast, "", ct, []string{`{"data":1}`, `{}`, `{"data":null}`, `1`, ``, `{"data":"\ud800"}`}},
		{fuzzPresence, "", ct, []string{`{"users":["alice","bob"]}`, `{"users":[]}`, `{"users":[""]}`, `{"users":null}`, `{"users":[1]}`, `{}`, `[]`}},
		{fuzzPlan, "", ct, []string{`{}`, `{"add":[{"id":"ws-4","weight":2}]}`, `{"remove":["ws-1"]}`, `{"add":[{"id":"ws-4","weight":0}]}`, `{"add":[{"id":"WS","weight":-1}]}`, `{"add":[{"id":"ws-4","weight":1e9}]}`, `{"remove":["nobody"]}`, `{"add":{}}`, `null`}},
		{fuzzLocate, "user=alice", ct, []string{``, `{}`, `{"device":"web","failed":["ws-1"]}`, `{"device":"a b"}`, `{"failed":"ws-1"}`, `{"failed":["*"]}`, `{"device":null}`, `[]`}},
		{fuzzLocate, "user=%00", ct, []string{`{}`}},
		{fuzzLocate, "user=alice&send_to=bob,*", ct, []string{`{}`}},
		{fuzzMembers, "", ct, []string{`{"add":["alice"],"remove":["bob"]}`, `{"add":["alice"],"remove":["alice"]}`, `{}`, `{"add":[""]}`, `{"add":"a"}`}},
		{fuzzKick, "device=web", "", []string{""}},
		{fuzzKick, "session=%0a&revoke=x", "", []string{""}},
	} {
		for _, b := range x.bodies {
			f.Add(byte(x.route), x.query, x.contentType, []byte(b))
		}
	}
	l := runLocator(f)
	var mu sync.Mutex
	var pushed []peer.In
	n := join(f, l, "ws-1", func(n *fakeNode, b *peer.Batch) {
		mu.Lock()
		for _, in := range b.Calls {
			pushed = append(pushed, peer.In{Op: in.Op, JSON: in.JSON, User: bytes.Clone(in.User), Device: bytes.Clone(in.Device), Body: bytes.Clone(in.Body), Key: bytes.Clone(in.Key), Durable: in.Durable})
		}
		mu.Unlock()
		answerAPI(n, b)
	})
	n.epoch.Store(l.rings.Current().Epoch)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1, DisableCompression: true}, Timeout: patience}
	f.Cleanup(client.CloseIdleConnections)
	f.Fuzz(func(t *testing.T, route byte, query, contentType string, body []byte) {
		r := fuzzRoutes[int(route)%len(fuzzRoutes)]
		if len(body) > 200<<10 {
			return
		}
		if strings.Contains(query, "wait") {
			return // it takes its time
		}
		if r.contentType != "" {
			contentType = r.contentType // another is 415, or another route
		}
		u := &url.URL{Scheme: "http", Host: l.addrs.Listen, Path: r.path, RawQuery: query}
		req, err := http.NewRequest(r.method, u.String(), bytes.NewReader(body))
		if err != nil || !validHeader(contentType) || strings.ContainsAny(query, " #\x7f") || strings.ContainsFunc(query, func(r rune) bool { return r < ' ' || r >= utf8.RuneSelf }) {
			return // no request that net/http sends
		}
		req.Header.Set("Content-Type", contentType)
		req.Header.Set("Authorization", "Bearer dev")
		mu.Lock()
		pushed = pushed[:0]
		mu.Unlock()
		resp, err := client.Do(req)
		if err != nil {
			t.Fatalf("%s %s %q: %v", r.method, u, body, err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatalf("%s %s %q: %v", r.method, u, body, err)
		}
		if resp.StatusCode == 503 || resp.StatusCode == 504 {
			return // this machine is so busy that the node was taken for dead
		}
		if !slices.Contains([]int{200, 202, 204, 400, 401, 404, 409, 413, 415, 422}, resp.StatusCode) {
			t.Fatalf("%s %s %q is answered with %d %s", r.method, u, body, resp.StatusCode, b)
		}
		if resp.StatusCode >= 400 {
			var p wire.Problem
			if err := json.Unmarshal(b, &p); err != nil || resp.Header.Get("Content-Type") != wire.ProblemType || p.Status != resp.StatusCode || p.Code == "" || p.Detail == "" || len(p.Detail) > 2000 || !utf8.Valid(b) {
				t.Fatalf("%s %s %q is answered with %d %s", r.method, u, body, resp.StatusCode, b)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		for _, in := range pushed {
			if in.Op != peer.OpPush && in.Op != peer.OpBroadcast {
				continue
			}
			switch {
			case resp.StatusCode != 200:
				t.Fatalf("%s %s %q was refused with %d, and pushed %q to %q", r.method, u, body, resp.StatusCode, in.Body, in.User)
			case in.Op == peer.OpPush && wire.CheckUser(string(in.User)) != nil, in.JSON && wire.CheckJSON(in.Body) != nil:
				t.Fatalf("%q: pushed %q to %q", body, in.Body, in.User)
			case !bytes.Contains(body, in.Body): // as it was, nothing re-encoded
				t.Fatalf("%q became %q", body, in.Body)
			}
		}
		if resp.StatusCode == http.StatusOK {
			fuzzGood(t, int(route)%len(fuzzRoutes), query, body, b, pushed)
		}
	})
}

func validHeader(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' && s[i] != '\t' || s[i] == 0x7f {
			return false
		}
	}
	return true
}

// fuzzGood checks an answer of 200 against its call.
func fuzzGood(t *testing.T, route int, query string, body, answer []byte, pushed []peer.In) {
	t.Helper()
	bad := func() { t.Helper(); t.Fatalf("?%s %q is answered with %s; pushed %+v", query, body, answer, pushed) }
	if route == fuzzStream {
		lines, want := map[int]bool{}, 0
		for _, l := range bytes.Split(body, []byte("\n")) {
			if len(bytes.TrimSpace(l)) > 0 {
				want++
			}
		}
		refused := 0
		for l := range bytes.Lines(answer) {
			var res struct {
				wire.PushResult
				Line  int
				Error *wire.PushError
			}
			if json.Unmarshal(l, &res) != nil || res.Line < 1 || res.Line > want || lines[res.Line] || res.Error == nil && (res.ID == "" || wire.CheckUser(res.User) != nil) {
				bad()
			}
			if lines[res.Line] = true; res.Error != nil {
				refused++
			}
		}
		if len(lines) != want || len(pushed) != want-refused {
			bad()
		}
		return
	}
	if !json.Valid(answer) {
		bad()
	}
	switch route {
	case fuzzOne:
		if len(pushed) != 1 || !bytes.Equal(pushed[0].Body, body) || string(pushed[0].User) != "alice" {
			bad()
		}
	case fuzzMany:
		if strings.Contains(query, "group") {
			return
		}
		var in struct {
			Users    []string
			Messages []json.RawMessage
		}
		var out struct {
			Results []struct {
				wire.PushResult
				Error *wire.PushError
			}
		}
		if json.Unmarshal(body, &in) != nil || json.Unmarshal(answer, &out) != nil || len(out.Results) != len(in.Users)+len(in.Messages) {
			bad()
		}
		good := 0
		for i, r := range out.Results {
			if i < len(in.Users) && r.User != in.Users[i] {
				bad()
			}
			if r.Error == nil {
				good++
			}
		}
		if good != len(pushed) {
			bad()
		}
	case fuzzLocate:
		var out wire.LocateResponse
		if json.Unmarshal(answer, &out) != nil || wire.CheckUser(out.User) != nil || wire.CheckDevice(out.Device) != nil || out.Node != "ws-1" || out.Ticket == "" || len(out.Ticket) > 1024 {
			bad()
		}
	}
}
