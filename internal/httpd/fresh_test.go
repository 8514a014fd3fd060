package httpd

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"
)

const (
	freshHeader  = 3 * time.Second // for a header, and for TLS's handshake
	freshRequest = 4 * time.Second // for a whole request, where that is not patience
)

// freshServer serves connections of Fresh. Of /body it tells each part as it has come; /raw
// it hijacks, and echoes.
type freshServer struct {
	addr  string
	roots *tls.Config // nil: without TLS
	parts chan string
}

func newFreshServer(t *testing.T, secure bool, request, idle time.Duration) *freshServer {
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &freshServer{addr: raw.Addr().String(), parts: make(chan string)}
	l := net.Listener(&freshListener{raw, secure, idle})
	if secure {
		given := httptest.NewUnstartedServer(nil) // for its certificate
		given.StartTLS()
		t.Cleanup(given.Close)
		s.roots = &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "example.com"}
		s.roots.RootCAs.AddCert(given.Certificate())
		l = tls.NewListener(l, &tls.Config{Certificates: given.TLS.Certificates, NextProtos: []string{"http/1.1"}})
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- Serve(ctx, l, s, discard, func(h *http.Server) {
			h.ReadHeaderTimeout, h.ReadTimeout = freshHeader, request
			h.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
				if t, ok := c.(*tls.Conn); ok {
					c = t.NetConn()
				}
				return context.WithValue(ctx, freshKey{}, c)
			}
		})
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return s
}

type freshKey struct{}

func (s *freshServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if c := r.Context().Value(freshKey{}).(*freshConn); c.state != freshAsked {
		http.Error(w, "a connection that has asked is not like any other", http.StatusInternalServerError)
		return
	}
	switch r.URL.Path {
	case "/raw":
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Time{})
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_, _ = io.Copy(c, rw)
		return
	case "/body":
		b := make([]byte, 5)
		for {
			n, err := io.ReadFull(r.Body, b)
			if err == io.EOF {
				break
			}
			if err != nil {
				s.parts <- err.Error()
				return
			}
			s.parts <- string(b[:n])
		}
	}
	w.WriteHeader(http.StatusNoContent)
}

// freshClient is a connection to one.
type freshClient struct {
	*testing.T
	net.Conn
	r    *bufio.Reader
	cork *cork
}

// cork keeps what is written behind the first record of TLS until it is drawn, so that the
// end of the handshake and what follows leave together.
type cork struct {
	net.Conn
	in     bool
	writes int
	kept   []byte
}

func (c *cork) Write(b []byte) (int, error) {
	if c.writes++; c.in && c.writes > 1 {
		c.kept = append(c.kept, b...)
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (s *freshServer) dial(t *testing.T, corked bool) *freshClient {
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := &freshClient{T: t, Conn: conn}
	if s.roots != nil {
		c.cork = &cork{Conn: conn, in: corked}
		secure := tls.Client(c.cork, s.roots)
		_ = secure.SetDeadline(time.Now().Add(patience))
		if err := secure.Handshake(); err != nil {
			t.Fatal(err)
		}
		c.Conn = secure
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	c.r = bufio.NewReader(c.Conn)
	return c
}

func (c *freshClient) send(s string) {
	c.T.Helper()
	if _, err := io.WriteString(c.Conn, s); err != nil {
		c.Fatal(err)
	}
}

// draw draws the cork, if there is one.
func (c *freshClient) draw() {
	c.T.Helper()
	if c.cork == nil {
		return
	}
	c.cork.in = false
	if _, err := c.cork.Conn.Write(c.cork.kept); err != nil {
		c.Fatal(err)
	}
}

func (c *freshClient) answer(status int) {
	c.T.Helper()
	if resp, err := http.ReadResponse(c.r, nil); err != nil || resp.StatusCode != status {
		c.Fatalf("%+v, %v", resp, err)
	}
}

func (c *freshClient) ask() {
	c.T.Helper()
	c.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	c.answer(http.StatusNoContent)
}

// silent fails unless nothing comes for so long, not even the end.
func (c *freshClient) silent(d time.Duration) {
	c.T.Helper()
	_ = c.SetReadDeadline(time.Now().Add(d))
	if _, err := c.r.ReadByte(); !errors.Is(err, os.ErrDeadlineExceeded) {
		c.Fatalf("a silent connection: %v", err)
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
}

// cut fails unless a header that was begun ends the connection.
func (c *freshClient) cut() {
	c.T.Helper()
	c.send("GET / HTTP/1.1\r\nHost: x\r\nX: ")
	if _, err := c.r.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		c.Fatalf("a header that was begun: %v", err)
	}
}

func (c *freshClient) echoed(s string) {
	c.T.Helper()
	c.send(s)
	b := make([]byte, len(s))
	if _, err := io.ReadFull(c.r, b); err != nil || string(b) != s {
		c.Fatalf("%q, %v", b, err)
	}
}

// body sends a request with one whose parts come when their time has come.
func (s *freshServer) body(c *freshClient, pause time.Duration) {
	c.T.Helper()
	c.send("POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
	c.draw()
	for _, part := range []string{"first", "other"} {
		c.send(part)
		if got := await(c.T, "a part of the body", s.parts); got != part {
			c.Fatalf("it got %q", got)
		}
		if part == "first" && pause > 0 {
			c.silent(pause)
		}
	}
	c.answer(http.StatusNoContent)
}

// A new connection may be silent for longer than a header, or a whole request, may take, as
// one that was used before may. Then it is served like any other: a header that was begun
// may not take longer, a body has its own time, and who hijacks it its own deadlines.
func TestFresh(t *testing.T) {
	for name, secure := range map[string]bool{"plain": false, "TLS": true} {
		for what, f := range map[string]func(t *testing.T, s *freshServer){
			"silent": func(t *testing.T, s *freshServer) {
				c := s.dial(t, false)
				c.silent(freshRequest + time.Second)
				c.ask()
				c.silent(freshHeader + time.Second)
				c.ask()
				c.cut()
			},
			"silent, then a header": func(t *testing.T, s *freshServer) {
				c := s.dial(t, false)
				c.silent(freshHeader + time.Second)
				c.cut()
			},
			"silent, then a body": func(t *testing.T, s *freshServer) {
				c := s.dial(t, false)
				c.silent(freshRequest + time.Second)
				s.body(c, 0)
				c.ask()
			},
			"a body": func(t *testing.T, s *freshServer) {
				s.body(s.dial(t, true), freshHeader+500*time.Millisecond)
			},
			"hijacked": func(t *testing.T, s *freshServer) {
				c := s.dial(t, true)
				c.send("GET /raw HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
				c.draw()
				c.answer(http.StatusSwitchingProtocols)
				c.echoed("hello")
				c.silent(freshHeader + time.Second)
				c.echoed("still there")
			},
		} {
			t.Run(name+"/"+what, func(t *testing.T) {
				t.Parallel() // it waits, most of the time
				request := freshRequest
				if what == "a body" { // which takes its time
					request = patience
				}
				f(t, newFreshServer(t, secure, request, idleTimeout))
			})
		}
	}
}

// A handshake of TLS that is not made has the time of a header.
func TestFreshHandshake(t *testing.T) {
	c, err := net.Dial("tcp", newFreshServer(t, true, freshRequest, idleTimeout).addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a connection without a handshake: %v", err)
	}
}

// One that is silent for as long as one may be ends.
func TestFreshSilent(t *testing.T) {
	for _, secure := range []bool{false, true} {
		c := newFreshServer(t, secure, freshRequest, 50*time.Millisecond).dial(t, false)
		if _, err := c.r.ReadByte(); err != io.EOF {
			t.Errorf("TLS %t: %v", secure, err)
		}
	}
	if l := Fresh(nil, false).(*freshListener); l.idle != idleTimeout {
		t.Errorf("it may be silent for %s", l.idle)
	}
}
