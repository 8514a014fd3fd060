package locator

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dialring/dialring/internal/httpd"
)

// fakeSource is a board that a test changes.
type fakeSource struct {
	mu sync.Mutex
	b  board
}

func (f *fakeSource) look() board {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.b
}

func (f *fakeSource) watch() {}

// figures gives some of the nodes other figures.
func (f *fakeSource) figures(change func(i int, n *nodeFigures) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.b.Nodes = slices.Clone(f.b.Nodes)
	for i := range f.b.Nodes {
		n := *f.b.Nodes[i].nodeFigures
		if change(i, &n) {
			f.b.Nodes[i].nodeFigures = &n
		}
	}
}

const testAdminKey = "an admin key of the tests"

// serveBoard serves the dashboard of a board as the admin listener does, until the test
// ends, and returns its viewers and address.
func serveBoard(t testing.TB, source *fakeSource, key string) (*viewers, string) {
	t.Helper()
	front, end := context.WithCancel(context.Background())
	l := &Locator{log: slog.New(slog.DiscardHandler)}
	l.viewers = &viewers{source: source, ended: front.Done()}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := httpd.Admin(httpd.AdminOptions{Addr: listener.Addr(), Key: key, Ready: func() error { return nil }, Metrics: prometheus.NewRegistry(), Log: l.log,
		Pages: dashboardPages(), API: l.dashboardAPI()})
	ended := make(chan error, 1)
	go func() { ended <- httpd.Serve(front, listener, h, l.log) }()
	t.Cleanup(func() {
		end()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return l.viewers, "http://" + listener.Addr().String()
}

// stream opens the stream of events and returns what reads one: its name and its data.
func stream(t testing.TB, url string, header ...string) (resp *http.Response, next func() (string, string)) {
	t.Helper()
	req, err := http.NewRequest("GET", url+"/admin/v1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err = c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	in := bufio.NewReader(resp.Body)
	return resp, func() (name, data string) {
		for {
			line, err := in.ReadString('\n')
			switch line = strings.TrimSuffix(line, "\n"); {
			case err != nil:
				return "", err.Error()
			case line == "":
				return name, data
			case strings.HasPrefix(line, "event: "):
				name = line[7:]
			case strings.HasPrefix(line, "data: "):
				data = line[6:]
			}
		}
	}
}

func (v *viewers) count() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.all)
}

// awaitViewers waits until so many look.
func awaitViewers(t testing.TB, v *viewers, n int) {
	t.Helper()
	for end := time.Now().Add(patience); v.count() != n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d viewers, want %d", v.count(), n)
		}
	}
}

// Each viewer has the whole board first and then what changes, which is encoded once.
func TestViewers(t *testing.T) {
	source := &fakeSource{b: aBoard(3)}
	v, url := serveBoard(t, source, "")
	_, first := stream(t, url)
	if name, data := first(); name != "whole" || strings.Count(data, `"id":`) != 3 {
		t.Fatalf("%s %s", name, data)
	}
	v.tick()
	source.figures(func(i int, n *nodeFigures) bool { n.Sessions = 7; return i == 1 })
	resp, second := stream(t, url) // it comes in the middle
	if name, data := second(); name != "whole" || !strings.Contains(data, `"sessions":7`) {
		t.Fatalf("%s %s", name, data)
	}
	if ct := resp.Header.Get("Content-Type"); ct != "text/event-stream" || resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("headers %v", resp.Header)
	}
	if name, data := first(); name != "change" || strings.Count(data, `"id":`) != 1 || !strings.Contains(data, `{"id":"ws-001","sessions":7,`) {
		t.Errorf("%s %s", name, data)
	}
	source.figures(func(i int, n *nodeFigures) bool { n.Sessions = 8; return i == 2 })
	v.tick()
	a, b := "", ""
	_, a = first()
	_, b = second()
	if a != b || !strings.Contains(a, `{"id":"ws-002","sessions":8,`) {
		t.Errorf("one has %s, the other %s", a, b)
	}
}

func TestViewersLimit(t *testing.T) {
	v, url := serveBoard(t, &fakeSource{b: aBoard(1)}, "")
	var open []*http.Response
	for range maxViewers {
		resp, next := stream(t, url)
		if name, _ := next(); name != "whole" {
			t.Fatalf("viewer %d: %d", len(open), resp.StatusCode)
		}
		open = append(open, resp)
	}
	if resp, _ := stream(t, url); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("one too many: %d", resp.StatusCode)
	}
	open[3].Body.Close()
	awaitViewers(t, v, maxViewers-1)
	if resp, _ := stream(t, url); resp.StatusCode != 200 {
		t.Errorf("after one has left: %d", resp.StatusCode)
	}
}

// A viewer that does not read is dropped; the others are not held up.
func TestViewerSlow(t *testing.T) {
	source := &fakeSource{b: aBoard(500)}
	v, url := serveBoard(t, source, "")
	_, quick := stream(t, url)
	slow, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	_ = slow.(*net.TCPConn).SetReadBuffer(4096)
	fmt.Fprintf(slow, "GET /admin/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
	awaitViewers(t, v, 2)
	if name, _ := quick(); name != "whole" {
		t.Fatal(name)
	}
	rounds := 0
	for end := time.Now().Add(patience); v.count() == 2; rounds++ {
		if time.Now().After(end) {
			t.Fatal("it is never dropped")
		}
		source.figures(func(_ int, n *nodeFigures) bool { n.Sessions++; return true })
		v.tick()
		if name, data := quick(); name != "change" || !strings.Contains(data, fmt.Sprintf(`"sessions":%d,`, rounds+1)) {
			t.Fatalf("round %d: %s %.100s", rounds, name, data)
		}
	}
	if rounds < viewerFrames {
		t.Errorf("dropped after %d changes", rounds)
	}
}

// A stream ends with the login that opened it, and with the locator.
func TestViewersEnd(t *testing.T) {
	v, url := serveBoard(t, &fakeSource{b: aBoard(1)}, testAdminKey)
	if resp, _ := stream(t, url); resp.StatusCode != 401 {
		t.Errorf("without a key: %d", resp.StatusCode)
	}
	if resp, next := stream(t, url, "Authorization", "Bearer "+testAdminKey); resp.StatusCode != 200 {
		t.Errorf("with the key: %d", resp.StatusCode)
	} else if name, _ := next(); name != "whole" {
		t.Error(name)
	}
	post := func(path, body, cookie string) *http.Response {
		req, err := http.NewRequest("POST", url+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		if cookie != "" {
			req.Header.Set("Cookie", cookie)
		}
		req.Close = true
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}
	in := post("/admin/login", `{"key":"`+testAdminKey+`"}`, "")
	if len(in.Cookies()) != 1 {
		t.Fatalf("login: %d", in.StatusCode)
	}
	cookie := in.Cookies()[0].Name + "=" + in.Cookies()[0].Value
	resp, next := stream(t, url, "Cookie", cookie)
	if name, _ := next(); resp.StatusCode != 200 || name != "whole" {
		t.Fatalf("with the cookie: %d %s", resp.StatusCode, name)
	}
	awaitViewers(t, v, 2)
	if out := post("/admin/logout", "{}", cookie); out.StatusCode != 204 {
		t.Fatalf("logout: %d", out.StatusCode)
	}
	if name, why := next(); name != "" { // looked at with the next sign of life
		t.Errorf("after the logout comes %s %s", name, why)
	}
	awaitViewers(t, v, 1)
}

// The page itself: what it may do is said, and nothing of it is kept.
func TestDashboardPages(t *testing.T) {
	for _, path := range []string{"/", "/app.js", "/dashboard.css", "/icon.svg"} {
		w := httptest.NewRecorder()
		dashboardPages().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != 200 || w.Body.Len() == 0 {
			t.Errorf("%s: %d", path, w.Code)
		}
		policy := w.Header().Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "frame-ancestors 'none'", "require-trusted-types-for 'script'"} {
			if !strings.Contains(policy, want) {
				t.Errorf("%s: the policy %q lacks %s", path, policy, want)
			}
		}
		if strings.Contains(policy, "unsafe") || strings.Contains(policy, "*") || strings.Contains(policy, "http") {
			t.Errorf("%s: the policy is %q", path, policy)
		}
	}
	w := httptest.NewRecorder()
	dashboardPages().ServeHTTP(w, httptest.NewRequest("GET", "/../dashboard.go", nil))
	if w.Code == 200 {
		t.Error("the page serves more than its folder")
	}
}
