package locator

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/labstack/echo/v4"

	"github.com/dialring/dialring/internal/httpd"
	"github.com/dialring/dialring/internal/peer"
)

// BenchmarkLocate compares a locate, over a real connection, with an echo
// handler that does nothing behind the same middleware. What a locate does
// beyond that is find the owner, sign the ticket (nearly all of it: some 15 us)
// and answer. call is what a Go program's call takes, server what is left with a
// client that does next to nothing.
//
//	go test ./locator -run '^$' -bench Locate -count 5
func BenchmarkLocate(b *testing.B) {
	l := runLocator(b)
	join(b, l, "a", func(_ *fakeNode, x *peer.Batch) { answer(x, peer.Reply{}) })
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"sub": "alice", "exp": time.Now().Add(time.Hour).Unix()}).SignedString([]byte(testSecret))
	if err != nil {
		b.Fatal(err)
	}
	e := httpd.New(l.log)
	e.GET("/empty", l.asUser(func(c echo.Context, _ caller, _ url.Values) error { return c.NoContent(http.StatusOK) }), l.started)
	e.GET("/locate", l.asUser(l.locate), l.started)
	s := httptest.NewServer(e)
	defer s.Close()
	for _, path := range []string{"/empty", "/locate"} {
		b.Run("call"+path, func(b *testing.B) { calls(b, s.Client(), s.URL+path+"?device=d", token) })
	}
	for _, path := range []string{"/empty", "/locate"} {
		b.Run("server"+path, func(b *testing.B) { requests(b, s.Listener.Addr().String(), path+"?device=d", token) })
	}
}

// calls does b.N requests as a Go program would.
func calls(b *testing.B, c *http.Client, url, token string) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		b.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	for b.Loop() {
		resp, err := c.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			b.Fatal(resp.Status, err)
		}
	}
}

// requests does b.N requests on one connection, with as little of its own as
// possible.
func requests(b *testing.B, addr, path, token string) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	req := "GET " + path + " HTTP/1.1\r\nHost: " + addr + "\r\nAuthorization: Bearer " + token + "\r\n\r\n"
	br := bufio.NewReader(c)
	for b.Loop() {
		if _, err := io.WriteString(c, req); err != nil {
			b.Fatal(err)
		}
		length := 0
		for first := true; ; first = false {
			line, err := br.ReadSlice('\n')
			if err != nil {
				b.Fatal(err)
			}
			if first && string(line[9:12]) != "200" {
				b.Fatalf("%s", line)
			}
			if n, ok := strings.CutPrefix(string(line), "Content-Length: "); ok {
				if _, err := fmt.Sscan(n, &length); err != nil {
					b.Fatal(err)
				}
			}
			if len(line) == 2 {
				break
			}
		}
		if _, err := br.Discard(length); err != nil {
			b.Fatal(err)
		}
	}
}
