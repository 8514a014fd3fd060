package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/browser"
	"github.com/dialring/dialring/internal/peer"
)

// headersOf asks by hand, so that nothing of a client's is in the way.
func headersOf(t *testing.T, addr, method, path string, headers ...string) *http.Response {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: 2\r\nContent-Type: application/json\r\n", method, path)
	for i := 0; i < len(headers); i += 2 {
		fmt.Fprintf(c, "%s: %s\r\n", headers[i], headers[i+1])
	}
	fmt.Fprint(c, "\r\n{}")
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	resp.Body.Close()
	return resp
}

// Every route of every listener, well and badly asked: nothing is kept or guessed, no banner, no page
// of another origin reads or frames it, and the cookie is for its own site and for no script.
func TestResponseHeaders(t *testing.T) {
	t.Parallel()
	const key = "an admin key of the tests"
	c := startNormalWith(t, []string{"DIALRING_EDGE=true", "DIALRING_ADMIN_KEY=" + key, "DIALRING_ALLOWED_ORIGINS=https://app.example.com"}, 1, "DIALRING_ADMIN_KEY="+key)
	l, n := c.l, c.nodes[0]
	const (
		public = iota
		pages  // of which there can be none without an operator
	)
	user := []string{"Authorization", "Bearer " + l.token("alice")}
	service, operator := []string{"Authorization", "Bearer dev"}, []string{"Authorization", "Bearer " + key}
	for _, c := range []struct {
		name, addr string
		kind       int
		auth       []string
		routes     string // method, path, and what is answered with the key
	}{
		{"the locator", l.addr, public, service, `GET /v1/locate 401, POST /v1/push/alice 200, POST /v1/push 400, POST /v1/broadcast 400, GET /v1/users/alice 200,
			DELETE /v1/users/alice/sessions 200, POST /v1/presence 400, GET /v1/groups/g/members 200, POST /v1/groups/g 404, GET /v1/ring 200, POST /v1/ring/plan 400, POST /v1/nodes/none/drain 404,
			GET /n/ws-1/v1/ws 400, GET /n/none/v1/ws 400, GET /v1/openapi.json 200, GET /healthz 200, GET /readyz 200, GET /nothing 404, GET / 404, PUT /v1/push 405, TRACE / 404`},
		{"the locator, asked by a user", l.addr, public, user, `POST /v1/locate 200, GET /v1/locate 200, POST /v1/push/alice 401`},
		{"the node", n.addr, public, nil, `GET /v1/ws 400, GET /healthz 200, GET /readyz 200, GET / 404, POST /v1/ws 405`},
		{"the node's peer address", n.peer, public, nil, `GET /v1/ws 401, GET ` + peer.Path + ` 401, GET /healthz 200, GET /readyz 200, GET / 404`},
		{"the locator's admin listener", l.admin, pages, operator, `GET / 200, GET /app.js 200, GET /nothing 404, POST / 405, GET /admin/v1/me 200, GET /admin/v1/state 200, GET /admin/v1/users/=alice 200,
			POST /admin/v1/users/=alice/push 200, DELETE /admin/v1/users/=alice/sessions 200, POST /admin/v1/plan 400, POST /admin/v1/nodes/none/drain 404, GET /admin/v1/nothing 404, POST /admin/login 400,
			POST /admin/logout 204, GET /metrics 200, GET /healthz 200, GET /readyz 200, GET /debug/pprof/ 200, GET /debug/pprof/cmdline 404, GET /debug/pprof/heap 200, GET /debug/pprof/symbol 200`},
		{"the node's admin listener", n.admin, pages, operator, `GET /metrics 200, GET /healthz 200, GET /debug/pprof/ 200, GET / 404, POST /metrics 405, GET /admin/v1/state 404`},
	} {
		for route := range strings.SplitSeq(c.routes, ",") {
			f := strings.Fields(route)
			for i, auth := range [][]string{c.auth, nil} {
				resp := headersOf(t, c.addr, f[0], f[1], append([]string{"Origin", "https://evil.example.com", "Sec-Fetch-Site", "none"}, auth...)...)
				if len(auth) > 0 {
					resp = headersOf(t, c.addr, f[0], f[1], auth...)
				}
				h, want := resp.Header, map[string]string{"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
				if status := fmt.Sprint(resp.StatusCode); i == 0 && len(auth) > 0 && status != f[2] {
					t.Errorf("%s, %s: %s", c.name, route, status)
				}
				if c.kind == pages {
					want["Referrer-Policy"], want["Cross-Origin-Resource-Policy"], want["Cross-Origin-Opener-Policy"] = "no-referrer", "same-origin", "same-origin"
					if p := h.Get("Content-Security-Policy"); !strings.Contains(p, "default-src 'none'") || !strings.Contains(p, "frame-ancestors 'none'") {
						t.Errorf("%s, %s: the policy is %q", c.name, route, p)
					}
				}
				for name, v := range want {
					if got := h.Values(name); len(got) != 1 || got[0] != v {
						t.Errorf("%s, %s, key %v, %d: %s is %q, want %q", c.name, route, i == 0, resp.StatusCode, name, got, v)
					}
				}
				for _, name := range []string{"Server", "X-Powered-By", "Via", "Strict-Transport-Security", "Access-Control-Allow-Origin", "Access-Control-Allow-Credentials"} {
					if v, there := h[name]; there {
						t.Errorf("%s, %s, key %v: %s is %q", c.name, route, i == 0, name, v)
					}
				}
				if strings.HasPrefix(f[1], "/v1/locate") && !slices.Contains(h.Values("Vary"), "Origin") {
					t.Errorf("%s, %s: Vary is %q", c.name, route, h.Values("Vary"))
				}
				if len(resp.Cookies()) > 0 && f[1] != "/admin/logout" {
					t.Errorf("%s, %s sets the cookie %v", c.name, route, resp.Cookies())
				}
			}
		}
	}
	for _, origin := range []string{"", "http://" + l.admin, "https://proxy.example.com"} {
		req, err := http.NewRequest("POST", "http://"+l.admin+"/admin/login", strings.NewReader(`{"key":"`+key+`"}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		if origin != "" {
			req.Header.Set("Origin", origin)
			if strings.HasPrefix(origin, "https") {
				req.Header.Set("Sec-Fetch-Site", "same-origin") // as a browser says through a proxy with TLS
			}
		}
		req.Close = true
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		cookies := resp.Cookies()
		if resp.StatusCode != 204 || len(cookies) != 1 {
			t.Fatalf("login of %q: %d %v", origin, resp.StatusCode, cookies)
		}
		if c := cookies[0]; !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != "/" || c.Domain != "" || c.MaxAge <= 0 || c.Secure != strings.HasPrefix(origin, "https") {
			t.Errorf("the cookie of %q is %s", origin, c)
		}
	}
}

// The origins of others, spelled like the one that is allowed: neither a locator nor a node, nor a
// node behind a locator, lets a page of them in.
func TestForeignOrigins(t *testing.T) {
	const ours = "https://app.example.com"
	env := "DIALRING_ALLOWED_ORIGINS=" + ours + ",https://b.example.com:8443"
	c := startNormalWith(t, []string{env, "DIALRING_EDGE=true"}, 1, env, "DIALRING_RATE_PER_ADDRESS=-1", "DIALRING_RATE_PER_USER=-1")
	l, n := c.l, c.nodes[0]
	for origin, want := range map[string]bool{ours: true, "https://b.example.com:8443": true,
		"https://app.example.com.evil.com": false, "https://evilapp.example.com": false, "https://evil.com/https://app.example.com": false, "https://app.example.com:443": false, "https://app.example.com:8443": false,
		"https://b.example.com": false, "http://app.example.com": false, "HTTPS://APP.EXAMPLE.COM": false, "https://App.example.com": false, "https://u@app.example.com": false, "https://app.example.com@evil.com": false,
		"https://app.example.com/": false, "https://app.example.com#": false, "https://app.example.com.": false, "null": false, "file://": false, "https://": false, "*": false, "app.example.com": false, "https://app.example.com https://evil.com": false} {
		for _, method := range []string{"POST", "GET", "OPTIONS"} {
			resp := headersOf(t, l.addr, method, "/v1/locate", "Origin", origin, "Authorization", "Bearer "+l.token("alice"))
			allowed := ""
			if want {
				allowed = origin
			}
			if got := resp.Header.Get("Access-Control-Allow-Origin"); (resp.StatusCode != 403) != want || got != allowed || resp.Header.Get("Vary") != "Origin" || resp.Header.Get("Access-Control-Allow-Credentials") != "" {
				t.Errorf("%s of %s: %d %v", method, origin, resp.StatusCode, resp.Header)
			}
		}
		for _, at := range [][2]string{{n.addr, "/v1/ws"}, {l.addr, "/n/ws-1/v1/ws"}} {
			d := newInprocDial(l.locate(t, "alice", `{}`).Ticket)
			d.target = at[1]
			d.set("Origin", origin)
			a, c := inprocRaw(t, at[0], d.String())
			_ = c.Close()
			if (a.status == 101) != want || !want && a.status != 403 || a.header.Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("a dial to %s of %s: %d %s", at, origin, a.status, a.body)
			}
		}
	}
}

// In a browser a page of the origin that is allowed gets in, and the same page of another origin
// does not, with the same token: neither a ticket nor, with a ticket that it was given, a connection.
func TestForeignPageInBrowser(t *testing.T) {
	b := browser.Start(t)
	site := func() string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, `<!doctype html><link rel="icon" href="data:,">`)
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	ours, others := site(), site()
	ip := ownAddress(t)
	const secret = "0123456789abcdef0123456789abcdef"
	x := &leaks{leakSearch: newLeakSearch(), t: t, ip: ip, signer: secret}
	env := []string{"DIALRING_DEV=false", "DIALRING_NATS_TOKEN=t", "DIALRING_ALLOWED_ORIGINS=" + ours}
	l := startLocator(t, append(env, "DIALRING_USER_JWT_SECRET="+secret, "DIALRING_API_KEYS=dev")...)
	addr, peerAddr := fmt.Sprintf("%s:%d", ip, freePort(t)), fmt.Sprintf("%s:%d", ip, freePort(t))
	startNodeAt(t, "ws-1", l.nats, addr, peerAddr, append(env, "DIALRING_NODE_URL=ws://"+addr, "DIALRING_PEER_URL=http://"+peerAddr)...)
	l.waitMembers(t, "ws-1")
	for _, c := range []struct {
		origin string
		want   [2]string
	}{{ours, [2]string{"200", "welcome"}}, {others, [2]string{"TypeError", "closed 1006"}}} {
		ticket := x.locate(l, "alice").Ticket
		p := b.Open(c.origin)
		out, err := p.Run(fmt.Sprintf(`(async () => {
			const located = await fetch(%q, { method: "POST", headers: { Authorization: "Bearer " + %q } }).then(r => String(r.status), e => e.name);
			const dialed = await new Promise(done => {
				const ws = new WebSocket(%q, ["dialring.v1", "dialring.ticket." + %q]);
				ws.onmessage = e => { done(JSON.parse(e.data).type); ws.close(); };
				ws.onclose = e => done("closed " + e.code);
			});
			return [located, dialed];
		})()`, "http://"+l.addr+"/v1/locate", x.token("alice", time.Hour, secret), "ws://"+addr+"/v1/ws", ticket))
		var got [2]string
		if err != nil || json.Unmarshal([]byte(out), &got) != nil || got != c.want {
			t.Errorf("a page of %s: %s %v, want %q", c.origin, out, err, c.want)
		}
		p.Complaints() // the browser says what it refused
	}
}
