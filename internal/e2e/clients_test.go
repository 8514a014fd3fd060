package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dialring/dialring/client"
	"github.com/dialring/dialring/internal/wire"
)

// listener is a user of the SDK that records what it gets.
type listener struct {
	user string
	got  chan string
	conn chan string // nodes, at each connect

	mu    sync.Mutex
	count map[string]int
}

// listen connects a user through the SDK and waits until it is connected.
func listen(t *testing.T, user string, locators ...*locatorProc) *listener {
	t.Helper()
	var urls []string
	for _, p := range locators {
		urls = append(urls, "http://"+p.addr)
	}
	return listenAs(t, user, nil, locators[0].as(user), urls...)
}

// listenAt does it at locators' URLs.
func listenAt(t *testing.T, user string, trust *tls.Config, urls ...string) *listener {
	t.Helper()
	return listenAs(t, user, trust, client.Config{User: user}, urls...)
}

func listenAs(t *testing.T, user string, trust *tls.Config, as client.Config, urls ...string) *listener {
	t.Helper()
	l := &listener{user: user, got: make(chan string, 4096), conn: make(chan string, 64), count: map[string]int{}}
	c, err := client.New(client.Config{Locators: urls, User: as.User, Token: as.Token, TLS: trust,
		HTTP: &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: trust}},
		OnMessage: func(_ context.Context, m client.Message) {
			l.mu.Lock()
			l.count[string(m.Data)]++
			l.mu.Unlock()
			l.got <- string(m.Data)
		},
		OnEvent: func(e client.Event) {
			if e.State == client.Connected {
				l.conn <- e.Node
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", user, err)
		}
		for m, n := range l.count {
			if n > 1 {
				t.Errorf("%s got %s %d times", user, m, n)
			}
		}
	})
	l.connected(t)
	return l
}

func (l *listener) connected(t *testing.T) string {
	t.Helper()
	return await(t, l.user+" connects", l.conn)
}

func (l *listener) expect(t *testing.T, want string) {
	t.Helper()
	if got := await(t, l.user+" gets "+want, l.got); got != want {
		t.Fatalf("%s got %s, want %s", l.user, got, want)
	}
}

func await[V any](t *testing.T, what string, c <-chan V) V {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	select {
	case v := <-c:
		return v
	case <-ctx.Done():
		t.Fatalf("not within %s: %s", patience, what)
		panic("unreachable")
	}
}

// bare is a client that shares nothing with the SDK: it writes its own
// handshake and reads its own frames.
type bare struct {
	net.Conn
	br      *bufio.Reader
	Node    string
	user    string
	welcome wire.Welcome
}

// dialBare locates and dials by hand, and returns after the welcome.
func dialBare(t *testing.T, l *locatorProc, user string) *bare {
	t.Helper()
	return dialLocated(t, l.locate(t, user, `{"device":"bare"}`))
}

// dialLocated dials what a locate, or a move, named.
func dialLocated(t *testing.T, loc wire.LocateResponse) *bare {
	t.Helper()
	u, err := url.Parse(loc.URL)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: dialring.v1, dialring.ticket.%s\r\n\r\n", u.RequestURI(), u.Host, loc.Ticket)
	b := &bare{Conn: c, br: bufio.NewReader(c), Node: loc.Node, user: loc.User}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	resp, err := http.ReadResponse(b.br, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Fatalf("handshake: %v %+v", err, resp)
	}
	b.expectType(t, wire.TypeWelcome, &b.welcome)
	if b.welcome.User != loc.User || b.welcome.Node != loc.Node {
		t.Fatalf("welcome: %+v", b.welcome)
	}
	return b
}

// expectType reads up to the next frame of a type.
func (b *bare) expectType(t *testing.T, typ string, v any) {
	t.Helper()
	b.expectTypeBy(t, time.Now().Add(patience), typ, v)
}

func (b *bare) expectTypeBy(t *testing.T, end time.Time, typ string, v any) {
	t.Helper()
	for {
		f := b.textBy(t, end, "a frame of type "+typ)
		var head struct{ Type string }
		if err := json.Unmarshal([]byte(f), &head); err != nil {
			t.Fatalf("%v in %s", err, f)
		}
		if head.Type == typ {
			if err := json.Unmarshal([]byte(f), v); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
}

// follow does what a move frame asks: it dials the new node; both are open then.
func (b *bare) follow(t *testing.T) *bare {
	t.Helper()
	return b.followBy(t, time.Now().Add(patience))
}

func (b *bare) followBy(t *testing.T, end time.Time) *bare {
	t.Helper()
	var m wire.Move
	b.expectTypeBy(t, end, wire.TypeMove, &m)
	return dialLocated(t, wire.LocateResponse{User: b.user, Node: m.Node, URL: m.URL, Ticket: m.Ticket})
}

// text reads frames up to the next text frame.
func (b *bare) text(t *testing.T) string {
	t.Helper()
	return b.textBy(t, time.Now().Add(patience), "a text frame")
}

func (b *bare) textBy(t *testing.T, end time.Time, what string) string {
	t.Helper()
	for {
		op, p, err := b.frameBy(t, end, what)
		if err != nil {
			t.Fatalf("%s awaits %s: %v", b.user, what, err)
		}
		if op == 1 {
			return string(p)
		}
	}
}

// closeCode reads up to the end and returns the close code, 0 without one.
func (b *bare) closeCode(t *testing.T) int {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		op, p, err := b.frameBy(t, end, "a close")
		if err != nil {
			return 0
		}
		if op == 8 && len(p) >= 2 {
			return int(binary.BigEndian.Uint16(p))
		}
	}
}

// frameBy reads a frame, and fails the test if none comes by then, rather than
// that it hangs. The deadline is taken back: an ear reads on for as long as it takes.
func (b *bare) frameBy(t *testing.T, end time.Time, what string) (op byte, p []byte, err error) {
	t.Helper()
	_ = b.SetReadDeadline(end)
	op, p, err = b.frame()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("not in time: %s gets %s", b.user, what)
	}
	_ = b.SetReadDeadline(time.Time{})
	return op, p, err
}

func (b *bare) frame() (op byte, p []byte, err error) {
	var h [2]byte
	if _, err = io.ReadFull(b.br, h[:]); err != nil {
		return
	}
	n := uint64(h[1])
	switch n {
	case 126:
		var x [2]byte
		_, err = io.ReadFull(b.br, x[:])
		n = uint64(binary.BigEndian.Uint16(x[:]))
	case 127:
		var x [8]byte
		_, err = io.ReadFull(b.br, x[:])
		n = binary.BigEndian.Uint64(x[:])
	}
	if err == nil {
		p = make([]byte, n)
		_, err = io.ReadFull(b.br, p)
	}
	return h[0] & 15, p, err
}

// userOf returns a user that node owns.
func userOf(t *testing.T, l *locatorProc, node string) string {
	t.Helper()
	for i := range 1000 {
		u := fmt.Sprintf("user-%d", i)
		if l.locate(t, u, "").Node == node {
			return u
		}
	}
	t.Fatalf("%s owns nobody", node)
	return ""
}

func data(frame string) string {
	var m wire.Message
	_ = json.Unmarshal([]byte(frame), &m)
	return strings.TrimSpace(string(m.Data))
}
