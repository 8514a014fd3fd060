package httpd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const adminKey = "an admin key of the tests"

// admin is a handler of an admin listener whose API tells who asked.
type admin struct {
	http.Handler
	log bytes.Buffer
	// last is who asked for the API last.
	last *AdminCaller
}

func newAdmin(addr, key string) *admin {
	a := &admin{}
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewCounter(prometheus.CounterOpts{Name: "dialring_test"}))
	a.Handler = Admin(AdminOptions{Addr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr)), Key: key, Ready: func() error { return nil }, Metrics: reg,
		Log:   slog.New(slog.NewTextHandler(&a.log, nil)),
		Pages: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "page") }),
		API: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			a.last = AdminCallerOf(r.Context())
			fmt.Fprintf(w, "%s %s", a.last.Who, r.URL.EscapedPath())
		})})
	return a
}

// ask makes a request to 127.0.0.1; headers are names and values in turn, of which Host
// and From (the address it comes from) stand for themselves.
func (a *admin) ask(method, path, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Host = "127.0.0.1:8081"
	for i := 0; i < len(headers); i += 2 {
		switch headers[i] {
		case "Host":
			r.Host = headers[i+1]
		case "From":
			r.RemoteAddr = headers[i+1]
		default:
			r.Header.Add(headers[i], headers[i+1])
		}
	}
	w := httptest.NewRecorder()
	a.ServeHTTP(w, r)
	return w
}

const (
	onLoopback = "127.0.0.1:8081"
	beyond     = "0.0.0.0:8081"
)

// What is open to whom, by where the listener is and whether there is a key.
func TestAdmin(t *testing.T) {
	for _, addr := range []string{onLoopback, "[::1]:8081", beyond, "[::]:8081", "10.0.0.1:8081"} {
		local := addr == onLoopback || addr == "[::1]:8081"
		for _, key := range []string{"", adminKey} {
			a := newAdmin(addr, key)
			want := map[string]int{"/healthz": 200, "/readyz": 200}
			page, guarded := 200, 200
			switch {
			case key != "":
				guarded = 401
			case !local:
				page, guarded = 403, 403
			}
			want["/"], want["/dashboard/app.js"] = page, page
			for _, p := range []string{"/metrics", "/debug/pprof/", "/debug/pprof/goroutine", "/admin/v1/state", "/admin/v1/users/=a%2Fb"} {
				want[p] = guarded
			}
			for path, status := range want {
				w := a.ask("GET", path, "")
				if w.Code != status {
					t.Errorf("on %s, key %q, %s: %d, want %d", addr, key, path, w.Code, status)
				}
				if status > 400 && !strings.Contains(w.Body.String(), "DIALRING_ADMIN_KEY") {
					t.Errorf("on %s, %s does not say what to do: %s", addr, path, w.Body)
				}
				if key != "" && status == 401 {
					if w := a.ask("GET", path, "", "Authorization", "Bearer "+key); w.Code != 200 {
						t.Errorf("on %s, %s with the key: %d", addr, path, w.Code)
					}
				}
			}
			if w := a.ask("GET", "/metrics", "", "Authorization", "Bearer "+key); (local || key != "") != strings.Contains(w.Body.String(), "dialring_test 0") {
				t.Errorf("on %s, key %q, metrics: %s", addr, key, w.Body)
			}
			if w := a.ask("GET", "/metrics", "", "Authorization", "Bearer another key of the tests"); key != "" && (w.Code != 401 || !strings.Contains(w.Body.String(), "DIALRING_ADMIN_KEY")) {
				t.Errorf("on %s, metrics with another key: %d %s", addr, w.Code, w.Body)
			}
			if warned := strings.Contains(a.log.String(), "event=admin_without_key"); warned != (!local && key == "") {
				t.Errorf("on %s, key %q, the log is %s", addr, key, &a.log)
			}
		}
	}
	if w := newAdmin(onLoopback, "").ask("GET", "/admin/v1/users/=a%2Fb%252F", ""); w.Body.String() != "loopback /admin/v1/users/=a%2Fb%252F" {
		t.Errorf("the API was asked for %s", w.Body)
	}
	if w := newAdmin(onLoopback, "").ask("POST", "/", "{}", "Content-Type", "application/json"); w.Code != 405 {
		t.Errorf("a POST to a page: %d", w.Code)
	}
}

// A page of another origin, or one under a name that points here, gets nothing, with or
// without a key.
func TestAdminOtherPages(t *testing.T) {
	const asJSON = "application/json"
	for _, key := range []string{"", adminKey} {
		a := newAdmin(onLoopback, key)
		for name, c := range map[string]struct {
			method  string
			headers []string
			want    int
		}{
			"localhost":                    {"GET", []string{"Host", "LocalHost:9000"}, 200},
			"IPv6":                         {"GET", []string{"Host", "[::1]:8081"}, 200},
			"an address without a port":    {"GET", []string{"Host", "127.0.0.1"}, 200},
			"a name that points here":      {"GET", []string{"Host", "evil.example:8081"}, 403},
			"a name like localhost":        {"GET", []string{"Host", "localhost.evil.example"}, 403},
			"a name like an address":       {"GET", []string{"Host", "127.0.0.1.evil.example"}, 403},
			"no name":                      {"GET", []string{"Host", ""}, 403},
			"its own page":                 {"GET", []string{"Sec-Fetch-Site", "same-origin"}, 200},
			"typed by hand":                {"GET", []string{"Sec-Fetch-Site", "none"}, 200},
			"another site":                 {"GET", []string{"Sec-Fetch-Site", "cross-site"}, 403},
			"another port of this machine": {"GET", []string{"Sec-Fetch-Site", "same-site"}, 403},
			"a change":                     {"POST", []string{"Content-Type", asJSON}, 200},
			"a change, own page":           {"POST", []string{"Content-Type", asJSON + "; charset=utf-8", "Sec-Fetch-Site", "same-origin", "Origin", "http://127.0.0.1:8081"}, 200},
			"a change, own origin":         {"POST", []string{"Content-Type", asJSON, "Origin", "http://127.0.0.1:8081"}, 200},
			"a change, another origin":     {"POST", []string{"Content-Type", asJSON, "Origin", "http://evil.example"}, 403},
			"a change, another port":       {"POST", []string{"Content-Type", asJSON, "Origin", "http://127.0.0.1:8082"}, 403},
			"a change, no origin":          {"POST", []string{"Content-Type", asJSON, "Origin", "null"}, 403},
			"a change, another site":       {"DELETE", []string{"Content-Type", asJSON, "Sec-Fetch-Site", "cross-site"}, 403},
			"a change by a form":           {"POST", []string{"Content-Type", "application/x-www-form-urlencoded"}, 415},
			"a change by a text form":      {"POST", []string{"Content-Type", "text/plain; a=application/json"}, 415},
			"a change without a type":      {"DELETE", nil, 415},
		} {
			headers := c.headers
			if key != "" {
				headers = append([]string{"Authorization", "Bearer " + key}, headers...)
			}
			a.last = nil
			w := a.ask(c.method, "/admin/v1/x", "{}", headers...)
			if w.Code != c.want || (a.last != nil) != (c.want == 200) {
				t.Errorf("key %q, %s: %d, want %d: %s", key, name, w.Code, c.want, w.Body)
			}
		}
		for _, path := range []string{"/healthz", "/readyz"} { // what checks health may ask under any name, and learns no secret
			if w := a.ask("GET", path, "", "Host", "evil.example"); w.Code != 200 {
				t.Errorf("key %q, %s under another name: %d", key, path, w.Code)
			}
		}
		for _, path := range []string{"/", "/metrics", "/debug/pprof/"} {
			if w := a.ask("GET", path, "", "Host", "evil.example", "Authorization", "Bearer "+key); w.Code != 403 {
				t.Errorf("key %q, %s under another name: %d", key, path, w.Code)
			}
		}
		for _, path := range []string{"/admin/login", "/admin/logout"} {
			for _, other := range [][]string{{"Host", "evil.example"}, {"Origin", "http://evil.example"}, {"Sec-Fetch-Site", "cross-site"}, {"Content-Type", "text/plain"}} {
				h := append([]string{"Content-Type", asJSON}, other...)
				if other[0] == "Content-Type" {
					h = other
				}
				if w := a.ask("POST", path, `{"key":"`+adminKey+`"}`, h...); w.Code != 403 && w.Code != 415 || len(w.Result().Cookies()) > 0 {
					t.Errorf("key %q, %s with %q: %d", key, path, other, w.Code)
				}
			}
		}
		if !strings.Contains(a.log.String(), "event=admin_refused") || strings.Contains(a.log.String(), adminKey) {
			t.Errorf("the log: %s", &a.log)
		}
	}
	// Beyond loopback the key decides: names are what such a listener is reached by.
	for _, path := range []string{"/metrics", "/admin/v1/x"} {
		if w := newAdmin(beyond, adminKey).ask("GET", path, "", "Host", "locator-1.internal:8081", "Authorization", "Bearer "+adminKey); w.Code != 200 {
			t.Errorf("%s by name: %d", path, w.Code)
		}
	}
}

// login logs in and returns the cookie.
func (a *admin) login(t *testing.T, key string, headers ...string) *http.Cookie {
	t.Helper()
	body, _ := json.Marshal(map[string]string{"key": key})
	w := a.ask("POST", "/admin/login", string(body), append([]string{"Content-Type", "application/json"}, headers...)...)
	cookies := w.Result().Cookies()
	if w.Code != 204 || len(cookies) != 1 {
		t.Fatalf("login: %d %v %s", w.Code, cookies, w.Body)
	}
	return cookies[0]
}

func TestAdminLogin(t *testing.T) {
	a := newAdmin(beyond, adminKey)
	c := a.login(t, adminKey)
	if !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != "/" || c.Secure || c.MaxAge != 12*60*60 || len(c.Value) < 20 || !strings.Contains(c.Name, "8081") {
		t.Errorf("cookie %+v", c)
	}
	if c := a.login(t, adminKey, "Origin", "https://127.0.0.1:8081"); !c.Secure {
		t.Error("with TLS the cookie is not Secure")
	}
	with := func(c *http.Cookie) int { return a.ask("GET", "/admin/v1/x", "", "Cookie", c.Name+"="+c.Value).Code }
	if with(c) != 200 || a.last.Who != "session" || !a.last.Valid() {
		t.Errorf("with the cookie: %d, %+v", with(c), a.last)
	}
	stream := a.last // opened by this session
	if with(&http.Cookie{Name: c.Name, Value: "x"}) != 401 || with(&http.Cookie{Name: c.Name}) != 401 || with(&http.Cookie{Name: "dialring_admin_1", Value: c.Value}) != 401 {
		t.Error("a cookie that is none is good")
	}
	out := a.ask("POST", "/admin/logout", "{}", "Content-Type", "application/json", "Cookie", c.Name+"="+c.Value)
	if gone := out.Result().Cookies(); out.Code != 204 || len(gone) != 1 || gone[0].MaxAge >= 0 {
		t.Errorf("logout: %d %v", out.Code, gone)
	}
	if with(c) != 401 || stream.Valid() {
		t.Error("the session goes on after its end")
	}
	a.ask("POST", "/admin/login", `{"key":"not the key"}`, "Content-Type", "application/json")
	a.ask("GET", "/admin/v1/x", "", "Authorization", "Bearer not the key")
	a.ask("GET", "/debug/pprof/symbol", "", "Authorization", "Bearer "+adminKey)
	for _, want := range []string{
		"level=INFO msg=\"an operator logged in\" event=audit act=login target=dashboard who=admin:key remote=",
		"event=audit act=logout target=dashboard who=admin:session remote=",
		"level=WARN msg=\"a wrong admin key\" event=audit act=login target=/admin/login who=\"\" remote=",
		"event=audit act=ask target=/admin/v1/x who=\"\" remote=",
		"event=audit act=profile target=/debug/pprof/symbol who=admin:key remote=",
	} {
		if !strings.Contains(a.log.String(), want) {
			t.Errorf("the log has no %s:\n%s", want, &a.log)
		}
	}
	if s := a.log.String(); strings.Contains(s, "not the key") || strings.Contains(s, adminKey) || strings.Contains(s, c.Value) {
		t.Errorf("the log has a key or a session: %s", s)
	}
	for _, body := range []string{"", "{}", "[]", `{"key":5}`, "key"} {
		if w := a.ask("POST", "/admin/login", body, "Content-Type", "application/json"); w.Code != 400 {
			t.Errorf("login with %q: %d", body, w.Code)
		}
	}
	if w := newAdmin(onLoopback, "").ask("POST", "/admin/login", `{"key":"x"}`, "Content-Type", "application/json"); w.Code != 404 {
		t.Errorf("login without a key set: %d", w.Code)
	}
	if w := newAdmin(beyond, "").ask("POST", "/admin/login", `{"key":"x"}`, "Content-Type", "application/json"); w.Code != 403 {
		t.Errorf("login beyond loopback without a key set: %d", w.Code)
	}
}

// Sessions end after their time, and there are never more than maxAdminSessions.
func TestAdminSessions(t *testing.T) {
	s := &adminSessions{}
	now := time.Now()
	first := s.open(now)
	if !s.has(first, now.Add(adminSession-time.Second)) || s.has(first, now.Add(adminSession)) || s.has("", now) {
		t.Error("a session does not last as long as it should")
	}
	var all []string
	for i := range maxAdminSessions {
		all = append(all, s.open(now.Add(time.Duration(i+1)*time.Second)))
	}
	if len(s.end) != maxAdminSessions || s.has(first, now) {
		t.Errorf("%d sessions, the oldest among them: %t", len(s.end), s.has(first, now))
	}
	for i, token := range all {
		if !s.has(token, now.Add(time.Hour)) {
			t.Errorf("session %d was forgotten", i)
		}
	}
	s.open(now.Add(adminSession + time.Hour))
	if len(s.end) != 1 {
		t.Errorf("%d sessions are kept after their time", len(s.end))
	}
}

// Who tries keys is told to wait, however many it tries at once and by whichever way; who
// has the right one never waits, from the same address or from another.
func TestAdminGuessing(t *testing.T) {
	a := newAdmin(beyond, adminKey)
	var wrong, waits atomic.Int64
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			var w *httptest.ResponseRecorder
			if i%2 == 0 {
				w = a.ask("GET", "/admin/v1/x", "", "Authorization", fmt.Sprintf("Bearer guess %d", i), "From", "192.0.2.7:1234")
			} else {
				w = a.ask("POST", "/admin/login", fmt.Sprintf(`{"key":"guess %d"}`, i), "Content-Type", "application/json", "From", "192.0.2.7:4321")
			}
			switch w.Code {
			case 401:
				wrong.Add(1)
			case 429:
				waits.Add(1)
			default:
				t.Errorf("a guess: %d", w.Code)
			}
		})
	}
	wg.Wait()
	if wrong.Load() < failBurst || wrong.Load() > failBurst+10 || waits.Load() == 0 { // some come back while this goes on
		t.Errorf("of 100 guesses %d were told to be wrong and %d to wait", wrong.Load(), waits.Load())
	}
	if w := a.ask("GET", "/admin/v1/x", "", "Authorization", "Bearer "+adminKey, "From", "192.0.2.7:1"); w.Code != 200 {
		t.Errorf("the right key from there: %d", w.Code)
	}
	a.login(t, adminKey, "From", "192.0.2.7:1")
	if w := a.ask("GET", "/admin/v1/x", "", "Authorization", "Bearer guess", "From", "192.0.2.7:1"); w.Code != 429 || w.Header().Get("Retry-After") == "" {
		t.Errorf("another guess from there: %d", w.Code)
	}
	if w := a.ask("GET", "/admin/v1/x", "", "Authorization", "Bearer "+adminKey, "From", "192.0.2.8:1"); w.Code != 200 {
		t.Errorf("the right key from elsewhere: %d", w.Code)
	}
	if n := strings.Count(a.log.String(), "a wrong admin key"); int64(n) != wrong.Load() {
		t.Errorf("%d wrong keys were logged, %d were told to be wrong", n, wrong.Load())
	}
}

// hurriedWriter notes whether the handler gives a body little time.
type hurriedWriter struct {
	*httptest.ResponseRecorder
	hurried bool
}

func (w *hurriedWriter) SetReadDeadline(time.Time) error { w.hurried = true; return nil }

// Nobody at an admin listener waits for the body of a call that there is not.
func TestAdminUnwantedBody(t *testing.T) {
	h := Admin(AdminOptions{Addr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}, Ready: func() error { return nil }, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)})
	for _, path := range []string{"/", "/nothing", "/metrics", "/readyz", "/admin/login"} {
		w := &hurriedWriter{ResponseRecorder: httptest.NewRecorder()}
		h.ServeHTTP(w, httptest.NewRequest("POST", path, strings.NewReader("body")))
		if !w.hurried || w.Code != 404 && w.Code != 405 {
			t.Errorf("%s is answered %d, and its body has little time: %v", path, w.Code, w.hurried)
		}
	}
}
