package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/golang-jwt/jwt/v5"

	"github.com/dialring/dialring/internal/wire"
	"github.com/dialring/dialring/locator"
	"github.com/dialring/dialring/wsnode"
)

// inprocRequest is a request and the problem it is answered with; 200: none.
type inprocRequest struct {
	name, method, path string
	contentType, body  string
	status             int
	code               wire.Code
	header             []string
}

func (c *inprocCluster) requests(table []inprocRequest) {
	c.t.Helper()
	for _, r := range table {
		name := r.name
		if name == "" {
			name = fmt.Sprintf("%s %.60s %.60s", r.method, r.path, r.body)
		}
		c.t.Run(name, func(t *testing.T) {
			a := c.with(t).call(r.method, r.path, r.contentType, r.body, r.header...)
			if r.status == 200 {
				if a.status != 200 || a.header.Get("Content-Type") != "application/json" || !json.Valid(a.body) {
					t.Errorf("%d %s %.300s, want 200", a.status, a.header.Get("Content-Type"), a.body)
				}
				return
			}
			inprocProblem(t, a, r.status, r.code)
			if r.status == 405 && a.header.Get("Allow") == "" {
				t.Error("405 without Allow")
			}
		})
	}
}

const (
	inprocJSON   = "application/json"
	inprocBad    = wire.CodeInvalidRequest
	inprocNoAuth = wire.CodeUnauthorized
)

func inprocNested(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }

func TestInprocLocate(t *testing.T) {
	t.Parallel()
	c := inprocStart(t, locator.Config{AllowedOrigins: []string{"https://app.example.com"}}, wsnode.Config{})
	const at = "/v1/locate?user=alice"
	pad := func(n int) string { return `{"device":"` + strings.Repeat(" ", n-13) + `"}` }
	c.requests([]inprocRequest{
		{"", "GET", at, "", "", 200, "", nil},
		{"", "POST", at, "", "", 200, "", nil},
		{"", "POST", at, inprocJSON, `{}`, 200, "", nil},
		{"", "POST", at + "&device=A.b_c-9&failed=ws-9,ws-8", "", "", 200, "", nil},
		{"unknown fields", "POST", at + "&x=y", inprocJSON, `{"device":"d","x":[{}],"failed":["ws-7"]}`, 200, "", nil},
		{"emoji", "GET", "/v1/locate?user=%F0%9F%98%80", "", "", 200, "", nil},
		{"128 bytes", "GET", "/v1/locate?user=" + strings.Repeat("u", 128), "", "", 200, "", nil},
		{"device of 64", "GET", at + "&device=" + strings.Repeat("d", 64), "", "", 200, "", nil},
		{"depth 32", "POST", at, inprocJSON, `{"x":` + inprocNested(31) + `}`, 200, "", nil},
		{"the body wins", "POST", at + "&device=bad!", inprocJSON, `{"device":"good"}`, 200, "", nil},

		{"nobody", "GET", "/v1/locate", "", "", 401, inprocNoAuth, nil},
		{"empty user", "GET", "/v1/locate?user=", "", "", 400, inprocBad, nil},
		{"NUL", "GET", "/v1/locate?user=a%00", "", "", 400, inprocBad, nil},
		{"newline", "GET", "/v1/locate?user=a%0Ab", "", "", 400, inprocBad, nil},
		{"C1 control", "GET", "/v1/locate?user=a%C2%85b", "", "", 400, inprocBad, nil},
		{"invalid UTF-8", "GET", "/v1/locate?user=%FF", "", "", 400, inprocBad, nil},
		{"129 bytes", "GET", "/v1/locate?user=" + strings.Repeat("u", 129), "", "", 400, inprocBad, nil},
		{"5,000 bytes", "GET", "/v1/locate?user=" + strings.Repeat("u", 5000), "", "", 400, inprocBad, nil},
		{"broken query", "GET", "/v1/locate?user=%zz", "", "", 400, inprocBad, nil},
		{"device with a space", "GET", at + "&device=a%20b", "", "", 400, inprocBad, nil},
		{"device of 65", "GET", at + "&device=" + strings.Repeat("d", 65), "", "", 400, inprocBad, nil},
		{"device of umlauts", "POST", at, inprocJSON, `{"device":"ä"}`, 400, inprocBad, nil},
		{"device of a number", "POST", at, inprocJSON, `{"device":7}`, 400, inprocBad, nil},
		{"failed with a star", "GET", at + "&failed=ws-1,*", "", "", 400, inprocBad, nil},
		{"failed, upper case", "POST", at, inprocJSON, `{"failed":["WS-1"]}`, 400, inprocBad, nil},
		{"failed, 64 bytes", "POST", at, inprocJSON, `{"failed":["` + strings.Repeat("w", 64) + `"]}`, 400, inprocBad, nil},
		{"failed of a string", "POST", at, inprocJSON, `{"failed":"ws-1"}`, 400, inprocBad, nil},
		{"not JSON", "POST", at, inprocJSON, `device=d`, 400, inprocBad, nil},
		{"array", "POST", at, inprocJSON, `[]`, 400, inprocBad, nil},
		{"trailing data", "POST", at, inprocJSON, `{} {}`, 400, inprocBad, nil},
		{"invalid UTF-8 in the body", "POST", at, inprocJSON, "{\"x\":\"\xff\"}", 400, inprocBad, nil},
		{"depth 33", "POST", at, inprocJSON, `{"x":` + inprocNested(32) + `}`, 400, inprocBad, nil},
		{"depth 8,000", "POST", at, inprocJSON, strings.Repeat("[", 8000), 400, inprocBad, nil},
		{"too large", "POST", at, inprocJSON, pad(200 << 10), 413, wire.CodeTooLarge, nil},
		{"gzip", "POST", at, inprocJSON, `{}`, 415, inprocBad, []string{"Content-Encoding", "gzip"}},
		{"DELETE", "DELETE", at, "", "", 405, wire.CodeMethodNotAllowed, nil},
		{"PUT", "PUT", at, "", "", 405, wire.CodeMethodNotAllowed, nil},

		{"no origin of ours", "GET", at, "", "", 403, wire.CodeForbidden, []string{"Origin", "https://evil.com"}},
		{"origin null", "GET", at, "", "", 403, wire.CodeForbidden, []string{"Origin", "null"}},
		{"two origins", "GET", at, "", "", 403, wire.CodeForbidden, []string{"Origin", "https://app.example.com", "Origin", "https://app.example.com"}},
		{"preflight of a stranger", "OPTIONS", "/v1/locate", "", "", 403, wire.CodeForbidden, []string{"Origin", "https://app.example.com.evil.com"}},
	})
	t.Run("answer", func(t *testing.T) {
		var ring wire.RingResponse
		c.getJSON("/v1/ring", &ring)
		a := c.call("POST", at+"&device=x", inprocJSON, `{"device":"web-1","failed":["ws-1","ws-9"]}`)
		if cc := a.header.Get("Cache-Control"); cc != "no-store" {
			t.Errorf("Cache-Control %q", cc)
		}
		var l wire.LocateResponse
		inprocDecode(t, a.body, &l)
		want := wire.LocateResponse{User: "alice", Device: "web-1", Node: "ws-1", URL: "ws://" + c.nodes[0].at.Listen + "/v1/ws", Ticket: l.Ticket,
			TicketExpiresInMS: 30000, Ring: wire.RingRef{Epoch: ring.Epoch, Hash: ring.Hash}, Retry: wire.Retry{BaseMS: 200, MaxMS: 30000}}
		if l != want || l.Ticket == "" {
			t.Errorf("got %+v, want %+v", l, want)
		}
		var fields map[string]json.RawMessage
		inprocDecode(t, a.body, &fields)
		if string(fields["dial_after_ms"]) != "0" {
			t.Errorf("dial_after_ms is %s", fields["dial_after_ms"])
		}
		if one, two := c.locate("alice", "d"), c.locate("alice", "d"); one.Ticket == two.Ticket || one.Node != two.Node {
			t.Error("two locates gave one ticket, or two nodes")
		}
	})
	// The longest ids, also those that grow when they are encoded.
	for _, char := range []string{"u", `"`, `\`, "<", "&", "\u2028", "😀", "ü<", `"&`} {
		t.Run("ticket of a long id "+char, func(t *testing.T) {
			c := c.with(t)
			last, n := utf8.DecodeLastRuneInString(char) // which is the most of it
			user, device := strings.TrimSuffix(char, string(last)), strings.Repeat("d", 64)
			user += strings.Repeat(string(last), (128-len(user))/n)
			l := c.locate(user, device)
			if l.User != user || l.Device != device {
				t.Errorf("located %q %q", l.User, l.Device)
			}
			if len(l.Ticket) > 1024 {
				t.Errorf("a ticket of %d bytes", len(l.Ticket))
			}
			a, conn := inprocRaw(t, c.nodes[0].at.Listen, newInprocDial(l.Ticket).String())
			if w := inprocOpened(t, a, conn); w.welcome.User != user {
				t.Errorf("welcome of %q", w.welcome.User)
			}
		})
	}
	// What a signature hides its key behind must never come twice: the first half
	// of an Ed25519 signature shows it.
	t.Run("signatures", func(t *testing.T) {
		c := c.with(t)
		for range 500 {
			c.locate("alice", "d")
		}
		seen := map[string]string{}
		for _, tk := range c.issued.all() {
			sig, err := base64.RawURLEncoding.DecodeString(tk[strings.LastIndex(tk, ".")+1:])
			if err != nil || len(sig) != 64 {
				t.Fatalf("a signature of %d bytes: %v", len(sig), err)
			}
			if was, ok := seen[string(sig[:32])]; ok && was != tk {
				t.Fatal("two tickets have one nonce")
			}
			seen[string(sig[:32])] = tk
		}
	})
	t.Run("CORS", func(t *testing.T) {
		c := c.with(t)
		for _, o := range []string{"https://app.example.com", "http://localhost:3000"} {
			a := inprocDo(t, "OPTIONS", "http://"+c.at.Listen+"/v1/locate", nil, "Origin", o,
				"Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "authorization,content-type")
			allowed := strings.ToLower(a.header.Get("Access-Control-Allow-Headers"))
			if a.status != 204 && a.status != 200 || a.header.Get("Access-Control-Allow-Origin") != o ||
				!strings.Contains(a.header.Get("Access-Control-Allow-Methods"), "POST") ||
				!strings.Contains(allowed, "authorization") || !strings.Contains(allowed, "content-type") {
				t.Errorf("preflight of %s: %d %v", o, a.status, a.header)
			}
			for path, status := range map[string]int{at: 200, at + "&device=a!": 400, "/v1/locate": 401} {
				a := c.call("POST", path, "", "", "Origin", o)
				if a.status != status || a.header.Get("Access-Control-Allow-Origin") != o || a.header.Get("Vary") != "Origin" ||
					a.header.Get("Access-Control-Allow-Credentials") != "" {
					t.Errorf("%s of %s: %d %v", path, o, a.status, a.header)
				}
			}
		}
		for _, o := range []string{"https://evil.com", "null"} {
			for _, m := range []string{"OPTIONS", "POST"} {
				if a := c.call(m, at, "", "", "Origin", o); a.status != 403 || a.header.Get("Access-Control-Allow-Origin") != "" {
					t.Errorf("%s of %s: %d %v", m, o, a.status, a.header)
				}
			}
		}
		// Pages have no business with the API of services.
		a := c.call("POST", "/v1/push/alice?durable=false", "", "x", "Origin", "https://app.example.com")
		if a.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("pages may read answers to pushes: %v", a.header)
		}
	})
}

// What a user sends with a good token: a locate goes by the token, whatever the query and the
// body say, and each body is bounded.
func TestLocateRequests(t *testing.T) {
	t.Parallel()
	const ours = "https://app.example.com"
	c := processes(t, locator.Config{AllowedOrigins: []string{ours}}, wsnode.Config{})
	const at = "/v1/locate"
	pad := func(n int) string { return `{"device":"` + strings.Repeat(" ", n-13) + `"}` }
	table := []inprocRequest{
		{"", "GET", at, "", "", 200, "", nil},
		{"another user in the query", "POST", at + "?user=bob&sub=bob", "", "", 200, "", nil},
		{"another user in the body", "POST", at, inprocJSON, `{"user":"bob","sub":"bob","device":"d"}`, 200, "", nil},
		{"depth 32", "POST", at, inprocJSON, `{"x":` + inprocNested(31) + `}`, 200, "", nil},
		{"depth 33", "POST", at, inprocJSON, `{"x":` + inprocNested(32) + `}`, 400, inprocBad, nil},
		{"depth 8,000", "POST", at, inprocJSON, strings.Repeat("[", 8000), 400, inprocBad, nil},
		{"10^6 keys", "POST", at, inprocJSON, `{"a":1` + strings.Repeat(`,"a":1`, 1_000_000) + `}`, 413, wire.CodeTooLarge, nil},
		{"a huge number", "POST", at, inprocJSON, `{"device":1` + strings.Repeat("0", 9000) + "e999999}", 400, inprocBad, nil},
		{"trailing data", "POST", at, inprocJSON, `{} {}`, 400, inprocBad, nil},
		{"array", "POST", at, inprocJSON, `[]`, 400, inprocBad, nil},
		{"invalid UTF-8", "POST", at, inprocJSON, "{\"x\":\"\xff\"}", 400, inprocBad, nil},
		{"too large", "POST", at, inprocJSON, pad(200 << 10), 413, wire.CodeTooLarge, nil},
		{"gzip", "POST", at, inprocJSON, `{}`, 415, inprocBad, []string{"Content-Encoding", "gzip"}},
		{"device with a newline", "POST", at, inprocJSON, `{"device":"a\nb"}`, 400, inprocBad, nil},
		{"device with a star", "POST", at, inprocJSON, `{"device":"*"}`, 400, inprocBad, nil},
		{"device of 65", "GET", at + "?device=" + strings.Repeat("d", 65), "", "", 400, inprocBad, nil},
		{"device with NUL", "GET", at + "?device=a%00", "", "", 400, inprocBad, nil},
		{"device with a slash", "GET", at + "?device=a%2Fb", "", "", 400, inprocBad, nil},
		{"failed with a wildcard", "POST", at, inprocJSON, `{"failed":["ws-1",">"]}`, 400, inprocBad, nil},
		{"broken query", "GET", at + "?device=%zz", "", "", 400, inprocBad, nil},
		{"DELETE", "DELETE", at, "", "", 405, wire.CodeMethodNotAllowed, nil},
		{"our origin", "GET", at, "", "", 200, "", []string{"Origin", ours}},
	}
	for _, o := range []string{"https://evil.com", "null", "http://localhost:3000", "http://127.0.0.1", ours + ".evil.com", ours + ":443"} {
		table = append(table, inprocRequest{"origin " + o, "GET", at, "", "", 403, wire.CodeForbidden, []string{"Origin", o}})
	}
	services := *c
	services.key = inprocToken(t, jwt.SigningMethodHS256, []byte(inprocSecret), nil, inprocClaims(nil))
	services.requests(table)
	for _, q := range []string{"?user=bob", "?user=bob&access_token=x"} {
		var l wire.LocateResponse
		inprocDecode(t, services.call("POST", at+q, inprocJSON, `{"user":"bob","device":"d"}`).body, &l)
		c.issued.add(l.Ticket)
		if l.User != "alice" {
			t.Errorf("with alice's token and %s %q was located", q, l.User)
			continue
		}
		a, conn := inprocRaw(t, c.node(l.Node).at.Listen, newInprocDial(l.Ticket).String())
		if w := inprocOpened(t, a, conn); w.welcome.User != "alice" {
			t.Errorf("with alice's token %q is welcome", w.welcome.User)
		}
	}
	// And a user is no service, nor a service a user.
	for _, r := range [][2]string{{"POST", "/v1/push/alice"}, {"POST", "/v1/broadcast"}, {"GET", "/v1/ring"}, {"GET", "/v1/users/alice"}, {"DELETE", "/v1/users/alice/sessions"}} {
		inprocProblem(t, services.call(r[0], r[1], inprocJSON, `{}`), 401, inprocNoAuth)
	}
	inprocProblem(t, c.call("POST", at+"?user=alice", "", ""), 401, inprocNoAuth)
}

func TestAPIKeys(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "keys.json")
	keys := func(keyScope ...string) string {
		var all []string
		for i := 0; i < len(keyScope); i += 2 {
			all = append(all, fmt.Sprintf(`{"name":%q,"sha256":%q,"scopes":[%q]}`, keyScope[i], wire.Digest(keyScope[i]), keyScope[i+1]))
		}
		return `{"keys":[` + strings.Join(all, ",") + `]}`
	}
	writeFile(t, file, keys("reader-key", "read", "pusher-key", "push"))
	c := processes(t, locator.Config{APIKeys: []string{"first-key", "second-key"}, APIKeysFile: file})
	for _, r := range [][2]string{{"POST", "/v1/push/alice?durable=false"}, {"POST", "/v1/push?durable=false"}, {"POST", "/v1/broadcast"}, {"GET", "/v1/ring"}} {
		for _, auth := range []string{"", "Bearer", "Bearer ", "Bearer dev", "Bearer first-ke", "Bearer first-key2", "Bearer FIRST-KEY", "Bearer first-key,second-key",
			"Basic first-key", "first-key", "Bearer first-key second-key"} {
			a := inprocDo(t, r[0], "http://"+c.at.Listen+r[1], strings.NewReader(`{}`), "Authorization", auth, "Content-Type", inprocJSON)
			inprocProblem(t, a, 401, inprocNoAuth)
			if a.header.Get("WWW-Authenticate") == "" {
				t.Error("401 without WWW-Authenticate")
			}
		}
		for _, auth := range []string{"Bearer first-key", "Bearer second-key", "bearer first-key"} {
			a := inprocDo(t, r[0], "http://"+c.at.Listen+r[1], strings.NewReader(`{}`), "Authorization", auth, "Content-Type", inprocJSON)
			if a.status == 401 {
				t.Errorf("%s %s with %q: 401", r[0], r[1], auth)
			}
		}
		if a := inprocDo(t, r[0], "http://"+c.at.Listen+r[1]+"?api_key=first-key", nil); a.status != 401 {
			t.Errorf("a key in the query: %d", a.status)
		}
	}
	// Those of the file, as digests: each may do what it is for, and no more, until it is no
	// longer in it. A digest is no key.
	ask := func(key, method, path string) int {
		return inprocDo(t, method, "http://"+c.at.Listen+path, strings.NewReader("1"), "Authorization", "Bearer "+key, "Content-Type", inprocJSON).status
	}
	for _, x := range []struct {
		key, method, path string
		want              int
	}{{"reader-key", "GET", "/v1/ring", 200}, {"reader-key", "POST", "/v1/push/alice?durable=false", 403}, {"reader-key", "POST", "/v1/broadcast", 403}, {"reader-key", "DELETE", "/v1/users/alice/sessions", 403},
		{"reader-key", "POST", "/v1/nodes/ws-1/drain", 403}, {"pusher-key", "GET", "/v1/ring", 403}, {"pusher-key", "DELETE", "/v1/users/alice/sessions?revoke=true", 403},
		{"late-key", "GET", "/v1/ring", 401}, {wire.Digest("reader-key"), "GET", "/v1/ring", 401}, {wire.Digest("first-key"), "GET", "/v1/ring", 401}} {
		if got := ask(x.key, x.method, x.path); got != x.want {
			t.Errorf("%s %s with %s: %d, want %d", x.method, x.path, x.key, got, x.want)
		}
	}
	if got := ask("pusher-key", "POST", "/v1/push/alice?durable=false"); got == 401 || got == 403 {
		t.Errorf("a push with a key for pushes: %d", got)
	}
	writeFile(t, file, keys("late-key", "read"))
	inprocEventually(t, "the new key is good", func() bool { return ask("late-key", "GET", "/v1/ring") == 200 })
	for key, want := range map[string]int{"reader-key": 401, "pusher-key": 401, "first-key": 200, "second-key": 200} {
		if got := ask(key, "GET", "/v1/ring"); got != want {
			t.Errorf("%s afterwards: %d, want %d", key, got, want)
		}
	}
}

func TestRing(t *testing.T) {
	t.Parallel()
	c := processes(t, locator.Config{}, wsnode.Config{}, wsnode.Config{Weight: 3})
	w := c.connect(c.userOf("ws-2"), "web")
	var r wire.RingResponse
	inprocEventually(t, "the ring shows the session and both nodes active", func() bool {
		r = wire.RingResponse{}
		c.getJSON("/v1/ring", &r)
		return len(r.Nodes) == 2 && r.Nodes[1].Sessions == 1 && r.Nodes[0].State == wire.StateActive && r.Nodes[1].State == wire.StateActive
	})
	if r.Cluster != "dialring" || r.Epoch == 0 || r.Epoch < w.welcome.Epoch || len(r.Hash) == 0 || r.Handoffs == nil {
		t.Errorf("the ring is %+v", r)
	}
	sum := 0.0
	for i, n := range r.Nodes {
		if n.ID != fmt.Sprintf("ws-%d", i+1) || n.URL != "ws://"+c.node(n.ID).at.Listen+"/v1/ws" || n.Weight != 1+2*i || n.LastSeenMS < 0 {
			t.Errorf("node %d is %+v", i, n)
		}
		sum += n.Share
	}
	if math.Abs(sum-1) > 1e-6 || r.Nodes[0].Share <= 0 || r.Nodes[1].Share <= r.Nodes[0].Share {
		t.Errorf("the shares are %v and %v", r.Nodes[0].Share, r.Nodes[1].Share)
	}
	c.requests([]inprocRequest{
		{"", "GET", "/nope", "", "", 404, wire.CodeNotFound, nil},
		{"", "GET", "/", "", "", 404, wire.CodeNotFound, nil},
		{"", "GET", "/v1/", "", "", 404, wire.CodeNotFound, nil},
		{"", "GET", "/v2/ring", "", "", 404, wire.CodeNotFound, nil},
		{"", "GET", "/metrics", "", "", 404, wire.CodeNotFound, nil}, // of the admin listener
		{"", "GET", "/debug/pprof/", "", "", 404, wire.CodeNotFound, nil},
		{"", "POST", "/v1/ring", "", "", 405, wire.CodeMethodNotAllowed, nil},
		{"", "GET", "/v1/push/alice", "", "", 405, wire.CodeMethodNotAllowed, nil},
		{"", "PUT", "/v1/push/alice", inprocJSON, "1", 405, wire.CodeMethodNotAllowed, nil},
		{"", "GET", "/v1/push", "", "", 405, wire.CodeMethodNotAllowed, nil},
		{"", "DELETE", "/v1/broadcast", "", "", 405, wire.CodeMethodNotAllowed, nil},
	})
	for _, path := range []string{"/healthz", "/readyz"} {
		for _, addr := range []string{c.at.Listen, c.at.Admin, c.nodes[0].at.Listen, c.nodes[0].at.Admin} {
			if a := inprocDo(t, "GET", "http://"+addr+path, nil); a.status != 200 {
				t.Errorf("%s%s: %d %s", addr, path, a.status, a.body)
			}
		}
	}
	for _, addr := range []string{c.at.Admin, c.nodes[0].at.Admin} {
		if a := inprocDo(t, "GET", "http://"+addr+"/metrics", nil); a.status != 200 || !strings.Contains(string(a.body), "dialring_ring_epoch") {
			t.Errorf("%s/metrics: %d", addr, a.status)
		}
	}
}

// inprocChunked hides the length of a body, so that it is sent in chunks.
func inprocChunked(s string) io.Reader { return struct{ io.Reader }{strings.NewReader(s)} }

func inprocUserPath(user string) string { return "/v1/push/" + url.PathEscape(user) + "?durable=false" }
