package locator

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/dialring/dialring/internal/httpd"
	"github.com/dialring/dialring/internal/wire"
)

// bodyPatience is less than what a body may take to arrive: nobody waits for as long for one
// that is not wanted.
const bodyPatience = 25 * time.Second

// send sends a request as it is, and more of its body for as long as somebody reads; it returns
// the answer, which must be a problem document if it is an error.
func send(t *testing.T, addr, head string, more []byte, times int) int {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(bodyPatience))
	if _, err := io.WriteString(c, head); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range times {
			if _, err := c.Write(more); err != nil {
				return
			}
		}
	}()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Errorf("%.100q: %v", head, err)
		_ = c.Close()
		<-done
		return 0
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%.100q: %v", head, err)
	}
	_ = c.Close()
	<-done
	var p wire.Problem
	if resp.StatusCode >= 400 && (json.Unmarshal(b, &p) != nil || p.Code == "" || p.Status != resp.StatusCode) {
		t.Errorf("%.100q: %d %.200s", head, resp.StatusCode, b)
	}
	return resp.StatusCode
}

// Whatever is announced or sent as a body, every route of both listeners answers, and none
// waits for more than it takes. Of what is no route, too.
func TestBodies(t *testing.T) {
	l := limitedLocator(t, func(c *Config) { c.RatePerUser, c.Edge = -1, true }, asIs)
	token := userToken(t, "alice")
	type route struct{ addr, method, path, bearer string }
	var all []route
	listed := func(h http.Handler, addr string) {
		for _, r := range h.(*echo.Echo).Routes() {
			if r.Method == echo.RouteNotFound {
				continue
			}
			bearer := "key-1"
			if r.Path == "/v1/locate" {
				bearer = token
			}
			all = append(all, route{addr, r.Method, strings.NewReplacer("*", "x", ":node", "ws-1").Replace(r.Path), bearer})
		}
	}
	listed(l.handler(), l.addrs.Listen)
	listed(l.dashboardAPI(), l.addrs.Admin)
	for _, addr := range []string{l.addrs.Listen, l.addrs.Admin} {
		for _, path := range []string{"/", "/v1/none", "/admin/v1/none", "/admin/login", "/metrics", "/readyz"} {
			all = append(all, route{addr, "POST", path, ""})
		}
	}
	if len(all) < 30 {
		t.Fatalf("only %d routes", len(all))
	}
	var wg sync.WaitGroup
	for _, r := range all {
		if strings.HasSuffix(r.path, "/events") && r.addr == l.addrs.Admin {
			continue // has no end
		}
		head := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n", r.method, r.path, r.bearer)
		wg.Go(func() {
			for what, s := range map[string]int{
				"announced": send(t, r.addr, head+"Content-Length: 1099511627776\r\n\r\n", nil, 0),
				"endless":   send(t, r.addr, head+"Transfer-Encoding: chunked\r\n\r\n", append([]byte("100000\r\n"+strings.Repeat("[", 1<<20)), "\r\n"...), 64),
			} {
				if s == 0 || s >= 500 && s != 503 {
					t.Errorf("%s %s, %s: %d", r.method, r.path, what, s)
				}
			}
			// Of who has no key or token nobody wants a body.
			if r.addr == l.addrs.Listen || r.method == "GET" {
				if s := send(t, r.addr, strings.Replace(head, "Bearer "+r.bearer, "Bearer x", 1)+"Content-Length: 200000\r\n\r\n", nil, 0); s == 0 || s >= 500 && s != 503 {
					t.Errorf("%s %s, missing: %d", r.method, r.path, s)
				}
			}
		})
	}
	wg.Wait()

	// One after another: a body in chunks counts as the largest while it arrives, and of those
	// one key may have no more than four (CALL_BYTES).
	keys := `{"a":1` + strings.Repeat(`,"a":1`, 1_000_000) + `}`
	for _, r := range []struct {
		route
		limit int
	}{
		{route{l.addrs.Listen, "POST", "/v1/locate", token}, maxLocateBody},
		{route{l.addrs.Listen, "POST", "/v1/push/alice", "key-1"}, l.cfg.MaxMessageBytes},
		{route{l.addrs.Listen, "POST", "/v1/push?group=g", "key-1"}, l.cfg.MaxMessageBytes},
		{route{l.addrs.Listen, "POST", "/v1/push", "key-1"}, wire.MaxCallBytes},
		{route{l.addrs.Listen, "POST", "/v1/broadcast", "key-1"}, l.cfg.MaxMessageBytes + 1024},
		{route{l.addrs.Listen, "POST", "/v1/presence", "key-1"}, wire.MaxCallBytes},
		{route{l.addrs.Listen, "POST", "/v1/groups/g/members", "key-1"}, wire.MaxCallBytes},
		{route{l.addrs.Listen, "POST", "/v1/ring/plan", "key-1"}, 1 << 20},
		{route{l.addrs.Admin, "POST", httpd.AdminAPI + "plan", ""}, 1 << 20},
		{route{l.addrs.Admin, "POST", httpd.AdminAPI + "users/=alice/push", ""}, l.cfg.MaxMessageBytes},
	} {
		for what, c := range map[string]struct {
			headers, body string
			want          []int
		}{
			"one byte too many":  {fmt.Sprintf("Content-Length: %d\r\n", r.limit+1), "", []int{413}},
			"too many in chunks": {"Transfer-Encoding: chunked\r\n", fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", r.limit+1, strings.Repeat(" ", r.limit+1)), []int{413}},
			"encoded":            {"Content-Encoding: gzip\r\nContent-Length: 2\r\n", "{}", []int{415}},
			"33 deep":            {"Content-Length: 66\r\n", strings.Repeat("[", 33) + strings.Repeat("]", 33), []int{400}},
			"trailing data":      {"Content-Length: 5\r\n", "{} {}", []int{400}},
			"a million keys":     {fmt.Sprintf("Content-Length: %d\r\n", len(keys)), keys, []int{400, 413}},
			"not UTF-8":          {"Content-Length: 8\r\n", "{\"\xff\":1}\n", []int{400}},
		} {
			head := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n%s\r\n", r.method, r.path, r.bearer, c.headers)
			got := send(t, r.addr, head, []byte(c.body), 1)
			ok := false
			for _, w := range c.want {
				ok = ok || got == w
			}
			if !ok {
				t.Errorf("%s %s, %s: %d, want %v", r.method, r.path, what, got, c.want)
			}
		}
	}
	// A number that fits nothing is a number in a payload, and an error where it is to be one.
	for body, want := range map[string]int{`{"add":[{"id":"ws-1","weight":1e400}]}`: 400, `{"add":[{"id":"ws-1","weight":99999999999999999999}]}`: 400, `{"add":[{"id":"ws-1","weight":-1}]}`: 400} {
		if r, b := l.request(t, "POST", "/v1/ring/plan", "key-1", body); r.StatusCode != want {
			t.Errorf("%s: %d %s", body, r.StatusCode, b)
		}
	}
}
