package locator

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/dialring/dialring/internal/httpd"
)

// limitedLocator runs a locator outside development mode, with two API keys; change is for its
// settings, and prepare for what has none.
func limitedLocator(t *testing.T, change func(*Config), prepare func(*Locator)) *Locator {
	t.Helper()
	c := Config{NATSToken: "token", Listen: "127.0.0.1:0", AdminListen: "127.0.0.1:0", NATSListen: "127.0.0.1:0", DataDir: t.TempDir(), DataSync: "interval",
		UserJWTSecret: testSecret, APIKeys: []string{"key-1", "key-2"}, AllowedOrigins: []string{"https://app.example.com"}, RatePerAddress: -1, Log: slog.New(slog.DiscardHandler)}
	change(&c)
	l, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	prepare(l)
	runUntilEnd(t, l)
	select {
	case <-l.book.Published():
	case <-time.After(patience):
		t.Fatal("the locator's key is not published")
	}
	select {
	case <-l.revoked.Known():
	case <-time.After(patience):
		t.Fatal("revocations are not read")
	}
	return l
}

func asIs(*Locator) {}

// request asks a locator; bearer may be empty.
func (l *Locator) request(t *testing.T, method, path, bearer, body string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequest(method, "http://"+l.addrs.Listen+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Close = true
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Origin", "https://app.example.com")
	if bearer != "" {
		r.Header.Set("Authorization", "Bearer "+bearer)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if (resp.StatusCode == 429 || resp.StatusCode == 503) && resp.Header.Get("Retry-After") == "" {
		t.Errorf("%s %s: %d without Retry-After", method, path, resp.StatusCode)
	}
	return resp, string(b)
}

func userToken(t *testing.T, user string) string {
	t.Helper()
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"sub": user, "exp": time.Now().Add(time.Hour).Unix()}).SignedString([]byte(testSecret))
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// counted reads how often a limit refused something, from the admin listener.
func (l *Locator) counted(t *testing.T, limit string) int {
	t.Helper()
	resp, err := http.Get("http://" + l.addrs.Admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), fmt.Sprintf("\ndialring_limited_total{limit=%q} ", limit))
	n, err := strconv.Atoi(strings.SplitN(rest, "\n", 2)[0])
	if !ok || err != nil {
		t.Fatalf("no metric for %s", limit)
	}
	return n
}

// eventuallyCounted waits until a limit refused so much, and returns what it says then.
func (l *Locator) eventuallyCounted(t *testing.T, limit string, least int) (n int) {
	t.Helper()
	for end := time.Now().Add(patience); n < least && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		n = l.counted(t, limit)
	}
	return n
}

// What one call may have is a setting; beyond it nothing is done, and it is counted.
func TestBatchAndBody(t *testing.T) {
	l := limitedLocator(t, func(c *Config) { c.MaxBatch, c.MaxBodyBytes, c.MaxMessageBytes = 3, 2048, 1024 }, asIs)
	for _, x := range []struct {
		path, two, four string
	}{
		{"/v1/push", `{"users":["a","b"],"data":1}`, `{"users":["a","b","c","d"],"data":1}`},
		{"/v1/push", `{"messages":[{"user":"a","data":1}]}`, `{"messages":[{"user":"a","data":1},{"user":"a","data":1},{"user":"a","data":1},{"user":"a","data":1}]}`},
		{"/v1/presence", `{"users":["a","b"]}`, `{"users":["a","b","c","d"]}`},
		{"/v1/groups/g/members", `{"add":["a","b"]}`, `{"add":["a","b"],"remove":["c","d"]}`},
	} {
		batch, body := l.counted(t, limitBatch), l.counted(t, limitBody)
		if resp, b := l.request(t, "POST", x.path, "key-1", x.two); resp.StatusCode == 400 || resp.StatusCode == 413 {
			t.Errorf("%s of two: %d %s", x.path, resp.StatusCode, b)
		}
		if resp, b := l.request(t, "POST", x.path, "key-1", x.four); resp.StatusCode != 400 || !strings.Contains(b, "at most 3") || !strings.Contains(b, "DIALRING_MAX_BATCH") {
			t.Errorf("%s of four: %d %s", x.path, resp.StatusCode, b)
		}
		if resp, b := l.request(t, "POST", x.path, "key-1", x.two+strings.Repeat(" ", 2048)); resp.StatusCode != 413 || !strings.Contains(b, "2048 bytes") {
			t.Errorf("%s of more than 2 KiB: %d %s", x.path, resp.StatusCode, b)
		}
		if n := l.counted(t, limitBatch) - batch; n != 1 {
			t.Errorf("%s: %d calls count as too large batches", x.path, n)
		}
		if n := l.counted(t, limitBody) - body; n != 1 {
			t.Errorf("%s: %d bodies count as too large", x.path, n)
		}
	}
	long := `"` + strings.Repeat("x", 1100) + `"`
	for _, x := range []struct{ path, contentType, body string }{
		{"/v1/push", "application/json", `{"messages":[{"user":"a","data":` + long + `}]}`},
		{"/v1/push", "application/x-ndjson", `{"user":"a","data":` + long + `}`},
		{"/v1/push", "application/x-ndjson", `{"user":"a","data":1` + strings.Repeat(" ", 1024+lineExtra) + `}`},
		{"/v1/broadcast", "application/json", `{"data":` + long + `}`},
	} {
		body := l.counted(t, limitBody)
		req, err := http.NewRequest("POST", "http://"+l.addrs.Listen+x.path, strings.NewReader(x.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{"Authorization": {"Bearer key-1"}, "Content-Type": {x.contentType}}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !strings.Contains(string(b), `"too_large"`) {
			t.Errorf("%s %.30s: %d %s %v", x.path, x.body, resp.StatusCode, b, err)
		}
		if n := l.counted(t, limitBody) - body; n != 1 {
			t.Errorf("%s %.30s counts %d times", x.path, x.body, n)
		}
	}
	body := l.counted(t, limitBody)
	for path, max := range map[string]int{"/v1/push/a": 1024, "/v1/broadcast": 2048, "/v1/locate": maxLocateBody} {
		bearer := "key-1"
		if path == "/v1/locate" {
			bearer = userToken(t, "a")
		}
		if resp, b := l.request(t, "POST", path, bearer, strings.Repeat(" ", max+1)); resp.StatusCode != 413 {
			t.Errorf("%s: %d %s", path, resp.StatusCode, b)
		}
	}
	if n := l.counted(t, limitBody) - body; n != 3 {
		t.Errorf("%d bodies of 3 count as too large", n)
	}
}

// The devices of one user that come back at once are not hurt; a user who asks without end is
// limited, and nobody else.
func TestRatePerUser(t *testing.T) {
	l := limitedLocator(t, func(*Config) {}, asIs)
	alice, bob := userToken(t, "alice"), userToken(t, "bob")
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() { // each device, and once more since its first dial failed
			for range 2 {
				if resp, b := l.request(t, "POST", fmt.Sprintf("/v1/locate?device=d-%d", i), alice, ""); resp.StatusCode != 503 || !strings.Contains(b, `"no_nodes"`) { // there is no node
					t.Errorf("device %d: %d %s", i, resp.StatusCode, b)
				}
			}
		})
	}
	wg.Wait()
	strict := limitedLocator(t, func(c *Config) { c.RatePerUser = 1 }, asIs)
	limited := 0
	for range 40 {
		resp, b := strict.request(t, "POST", "/v1/locate?device=d", alice, "")
		if resp.StatusCode == 429 {
			limited++
			if !strings.Contains(b, `"rate_limited"`) || !strings.Contains(b, "user") || resp.Header.Get("Access-Control-Allow-Origin") == "" {
				t.Errorf("%v %s", resp.Header, b)
			}
		}
	}
	if limited == 0 || limited > 36 { // four at once are always good
		t.Errorf("%d of 40 locates of a user were refused", limited)
	}
	if n := strict.counted(t, limitUser); n != limited {
		t.Errorf("the metric says %d, %d were refused", n, limited)
	}
	if resp, b := strict.request(t, "POST", "/v1/locate?device=d", bob, ""); resp.StatusCode == 429 {
		t.Errorf("another user: %s", b)
	}
	// What only says that it is somebody does not count as theirs.
	for range 40 {
		if resp, b := strict.request(t, "POST", "/v1/locate?device=d", bob+"x", ""); resp.StatusCode != 401 {
			t.Fatalf("a forged token: %d %s", resp.StatusCode, b)
		}
	}
	if resp, b := strict.request(t, "POST", "/v1/locate?device=d", bob, ""); resp.StatusCode == 429 {
		t.Errorf("after forged tokens of that user: %s", b)
	}
}

// Who guesses keys or tokens is limited by address; who has one is let in from there.
func TestGuessing(t *testing.T) {
	l := limitedLocator(t, func(c *Config) { c.RatePerAddress = 1 }, asIs)
	for what, guess := range map[string]func() *http.Response{
		"keys":   func() *http.Response { r, _ := l.request(t, "GET", "/v1/ring", "guess", ""); return r },
		"no key": func() *http.Response { r, _ := l.request(t, "POST", "/v1/push/alice", "", "1"); return r },
		"tokens": func() *http.Response { r, _ := l.request(t, "POST", "/v1/locate", "guess", ""); return r },
	} {
		was, limited := l.counted(t, limitAddress), 0
		for range 40 {
			switch r := guess(); r.StatusCode {
			case 429:
				limited++
			case 401:
			default:
				t.Fatalf("%s: %d", what, r.StatusCode)
			}
		}
		if limited == 0 {
			t.Errorf("%s: none of 40 were refused with 429", what)
		}
		if n := l.counted(t, limitAddress) - was; n != limited {
			t.Errorf("%s: the metric says %d, %d were refused", what, n, limited)
		}
		for range 40 {
			if r, b := l.request(t, "GET", "/v1/ring", "key-1", ""); r.StatusCode != 200 {
				t.Fatalf("%s: who has a key: %d %s", what, r.StatusCode, b)
			}
		}
	}
}

// begin sends the head of a request of a service, and nothing of its body.
func (l *Locator) begin(t *testing.T, path, key, headers string) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", l.addrs.Listen)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: l\r\nAuthorization: Bearer %s\r\n%s\r\n", path, key, headers)
	return c, bufio.NewReader(c)
}

// eventuallyRunning waits until so many calls of services are under way.
func (l *Locator) eventuallyRunning(t *testing.T, n int) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if calls, _ := l.calls.Load(); calls == n {
			return
		} else if time.Now().After(end) {
			t.Fatalf("%d calls are under way, want %d", calls, n)
		}
	}
}

// One service cannot take all there is: its key has so many calls, and bytes of bodies.
func TestCallsPerKey(t *testing.T) {
	l := limitedLocator(t, func(c *Config) { c.CallsPerKey = 5 }, asIs)
	stream, br := l.begin(t, "/v1/push", "key-1", "Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n")
	if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != 200 { // its head
		t.Fatalf("%+v %v", resp, err)
	}
	var bodies []net.Conn
	for i := range 3 {
		c, _ := l.begin(t, "/v1/push", "key-1", "Content-Type: application/json\r\nContent-Length: 33554432\r\n")
		bodies = append(bodies, c)
		l.eventuallyRunning(t, 2+i)
	}
	// 98 MiB of 128 are taken, and four calls of five.
	_, br = l.begin(t, "/v1/push", "key-1", "Content-Type: application/json\r\nContent-Length: 33554432\r\n")
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("a body beyond the bytes of a key: %+v %v", resp, err)
	}
	if r, b := l.request(t, "GET", "/v1/ring", "key-1", ""); r.StatusCode != 200 {
		t.Errorf("a call without a body: %d %s", r.StatusCode, b)
	}
	fifth, _ := l.begin(t, "/v1/push", "key-1", "Content-Type: application/json\r\nContent-Length: 10\r\n")
	l.eventuallyRunning(t, 5)
	if r, b := l.request(t, "GET", "/v1/ring", "key-1", ""); r.StatusCode != 429 || !strings.Contains(b, "DIALRING_CALLS_PER_KEY") {
		t.Errorf("a sixth call: %d %s", r.StatusCode, b)
	}
	if r, b := l.request(t, "GET", "/v1/ring", "key-2", ""); r.StatusCode != 200 {
		t.Errorf("another service: %d %s", r.StatusCode, b)
	}
	if calls, bytes := l.counted(t, limitKey), l.counted(t, limitBodies); calls != 1 || bytes != 1 {
		t.Errorf("the metrics say %d and %d", calls, bytes)
	}
	for _, c := range append(bodies, fifth, stream) {
		_ = c.Close()
	}
	l.eventuallyRunning(t, 0)
	if r, b := l.request(t, "GET", "/v1/ring", "key-1", ""); r.StatusCode != 200 {
		t.Errorf("afterwards: %d %s", r.StatusCode, b)
	}
}

// A locator that has no time for locates says so before it looks at anything of them, also
// to pages; all else is served.
func TestBusy(t *testing.T) {
	l := limitedLocator(t, func(*Config) {}, func(l *Locator) { l.locates = httpd.NewOverload(0) })
	after := map[string]bool{}
	for range 50 {
		resp, b := l.request(t, "POST", "/v1/locate", "not even a token", "")
		if resp.StatusCode != 503 || !strings.Contains(b, `"rate_limited"`) || resp.Header.Get("Access-Control-Allow-Origin") == "" {
			t.Fatalf("%d %v %s", resp.StatusCode, resp.Header, b)
		}
		after[resp.Header.Get("Retry-After")] = true
	}
	if len(after) < 2 {
		t.Errorf("all are told to come back after %v", after)
	}
	if n := l.counted(t, limitOverload); n != 50 {
		t.Errorf("the metric says %d", n)
	}
	if r, b := l.request(t, "GET", "/v1/ring", "key-1", ""); r.StatusCode != 200 {
		t.Errorf("a service: %d %s", r.StatusCode, b)
	}
	if r, b := l.request(t, "GET", "/healthz", "", ""); r.StatusCode != 200 {
		t.Errorf("health: %d %s", r.StatusCode, b)
	}
}

// Only what is a stream counts as one, and what is no JSON is refused unread.
func TestBodySize(t *testing.T) {
	l := &Locator{cfg: Config{MaxMessageBytes: 1000, MaxBodyBytes: 32 << 20}}
	for _, c := range []struct {
		path, contentType string
		length, want      int64
	}{
		{"/v1/push", ndjson, 1 << 25, streamSize},
		{"/v1/push", ndjson, -1, streamSize},
		{"/v1/push", "application/json", 1 << 25, 1 << 25},
		{"/v1/push", "application/json", -1, 32 << 20},
		{"/v1/presence", ndjson, 1 << 25, 1 << 25},
		{"/v1/groups/g/members", ndjson, 1 << 25, 1 << 25},
		{"/v1/push/alice", ndjson, 500, 500},
		{"/v1/push/alice", "", -1, 1000},
	} {
		r := &http.Request{Method: "POST", URL: &url.URL{Path: c.path}, Header: http.Header{"Content-Type": {c.contentType}}, ContentLength: c.length}
		if got := l.bodySize(r); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
	run := limitedLocator(t, func(*Config) {}, asIs)
	_, br := run.begin(t, "/v1/presence", "key-1", "Content-Type: application/x-ndjson\r\nContent-Length: 33554432\r\n")
	if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != 415 {
		t.Errorf("a stream to another route: %+v %v", resp, err)
	}
}

// Two services that have all the bytes do not keep out a third.
func TestCallsOfOthers(t *testing.T) {
	l := limitedLocator(t, func(c *Config) { c.APIKeys = append(c.APIKeys, "key-3") }, asIs)
	n := 0
	for _, key := range []string{"key-1", "key-2"} {
		for range 4 { // 32 MiB each
			l.begin(t, "/v1/push", key, "Content-Type: application/json\r\nContent-Length: 33554432\r\n")
			n++
			l.eventuallyRunning(t, n)
		}
	}
	if r, b := l.request(t, "POST", "/v1/presence", "key-3", `{"users":["a"]}`); r.StatusCode == 429 || strings.Contains(b, "bodies") {
		t.Errorf("a third service: %d %s", r.StatusCode, b)
	}
	if r, b := l.request(t, "POST", "/v1/presence", "key-1", `{"users":["a"]}`); r.StatusCode != 503 {
		t.Errorf("one of the two: %d %s", r.StatusCode, b)
	}
}
