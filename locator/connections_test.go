package locator

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

func TestConnectionShares(t *testing.T) {
	for _, c := range []struct {
		setting     int
		edge        bool
		files       int64
		most, pairs int
	}{
		{10_000, false, 1_048_376, 10_000, 0},
		{10_000, false, 824, 824, 0},
		{10_000, true, 1_048_376, 10_000, 519_188},
		{10_000, true, 824, 206, 309},
		{10_000, true, 1, 1, 0},
	} {
		if most, pairs := connections(c.setting, c.edge, c.files); most != c.most || pairs != c.pairs || int64(most+2*pairs) > max(c.files, 1) {
			t.Errorf("%+v: %d and %d pairs", c, most, pairs)
		}
	}
}

// Connections that ask nothing do not keep others out, and those that are kept for a next
// request make room; both listeners have a bound.
func TestMaxConnections(t *testing.T) {
	l := limitedLocator(t, func(c *Config) { c.MaxConnections = 20 }, asIs)
	dial := func(addr string) net.Conn {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(patience))
		return c
	}
	kept := dial(l.addrs.Listen)
	br := bufio.NewReader(kept)
	_, _ = io.WriteString(kept, "GET /healthz HTTP/1.1\r\nHost: l\r\n\r\n")
	if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != 200 {
		t.Fatalf("%+v %v", resp, err)
	} else {
		_, _ = io.Copy(io.Discard, resp.Body)
	}
	for range 100 {
		_, _ = io.WriteString(dial(l.addrs.Listen), "GET /healthz HTTP/1.1\r\nHost: l\r\nX-Slow: ") // and no more
	}
	if _, err := br.ReadByte(); err == nil {
		t.Error("a connection that is not used was kept, with five times as many connections as may be")
	}
	for range 20 {
		if r, b := l.request(t, "GET", "/v1/ring", "key-1", ""); r.StatusCode != 200 {
			t.Fatalf("among connections that ask nothing: %d %s", r.StatusCode, b)
		}
	}
	if n := l.waiting.Len(); n > 20 {
		t.Errorf("%d connections are open", n)
	}
	if n := l.counted(t, limitConnections); n < 80 {
		t.Errorf("the metric says %d", n)
	}
	for range maxAdmin + 50 {
		dial(l.addrs.Admin)
	}
	if n := l.eventuallyCounted(t, limitAdmin, 50); n < 50 { // they are accepted one by one
		t.Errorf("the metric of the admin listener says %d", n)
	}
}

// One address has its share of the connections, but for those of services.
func TestAddressConnections(t *testing.T) {
	l := limitedLocator(t, func(c *Config) { c.RatePerAddress = 5 }, asIs) // 20 connections
	for range 30 {
		_, br := l.begin(t, "/v1/push", "key-1", "Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n")
		if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != 200 {
			t.Fatalf("a service: %+v %v", resp, err)
		}
	}
	for range 40 {
		c, err := net.Dial("tcp", l.addrs.Listen)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	refused := l.eventuallyCounted(t, limitAddressConnections, 20)
	if n := l.waiting.Len(); refused != 20 || n != 50 {
		t.Errorf("%d refused, %d are open", refused, n)
	}
}

// Who sends a request slowly is cut off, whatever is slow. (Who sends nothing: see httpd's TestFreshSilent.)
func TestSlowRequests(t *testing.T) {
	l := limitedLocator(t, func(*Config) {}, asIs)
	for what, head := range map[string]string{
		"half a line": "POST /v1/locate HT",
		"half a head": "POST /v1/locate HTTP/1.1\r\nHost: l\r\nX-Slow: ",
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			c, err := net.Dial("tcp", l.addrs.Listen)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(patience))
			_, _ = io.WriteString(c, head)
			done := make(chan struct{})
			go func() { // a byte now and then changes nothing
				defer close(done)
				for {
					time.Sleep(500 * time.Millisecond)
					if _, err := io.WriteString(c, "x"); err != nil {
						return
					}
				}
			}()
			b, err := io.ReadAll(c)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("it is not cut off")
			}
			if s := string(b); s != "" && !strings.HasPrefix(s, "HTTP/1.1 4") {
				t.Errorf("the answer is %q", s)
			}
			_ = c.Close()
			<-done
		})
	}
}
