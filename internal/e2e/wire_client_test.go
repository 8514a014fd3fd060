package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// wireClient is a client that follows the contract and forgives nothing: the SDK
// would heal a hole, drop a repeat and go on after a gap, and hide them. It asks for
// everything from the start, and finds fault with each frame that does not follow
// the one before, also over reconnects and moves.
type wireClient struct {
	user     string
	token    string // outside development mode
	locators []string
	tls      *tls.Config // for https and wss; nil: the default
	got      func(node string, num uint64)

	since string
	seq   uint64

	mu       sync.Mutex
	findings []string
}

const wireDevice = "wire"

func (w *wireClient) find(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.findings = append(w.findings, fmt.Sprintf("%s at %d: ", w.user, w.seq)+fmt.Sprintf(format, args...))
}

// run receives until ctx ends.
func (w *wireClient) run(ctx context.Context) {
	w.since = wire.CursorStart
	var next *wireConn
	for ctx.Err() == nil {
		c := next
		if next = nil; c == nil {
			if c = w.connect(ctx); c == nil {
				select { // its back-off
				case <-time.After(rand.N(200 * time.Millisecond)):
				case <-ctx.Done():
				}
				continue
			}
		}
		next = w.receive(ctx, c)
		c.Close()
	}
	if next != nil {
		next.Close()
	}
}

type wireConn struct {
	*bare
	node string
}

func (w *wireClient) connect(ctx context.Context) *wireConn {
	u := w.locators[rand.IntN(len(w.locators))] + "/v1/locate?user=" + url.QueryEscape(w.user) + "&device=" + wireDevice
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u, nil)
	if err != nil {
		return nil
	}
	if w.token != "" {
		req.Header.Set("Authorization", "Bearer "+w.token)
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: w.tls}}).Do(req)
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	var loc wire.LocateResponse
	if resp.StatusCode != 200 || json.NewDecoder(resp.Body).Decode(&loc) != nil {
		return nil
	}
	select {
	case <-time.After(time.Duration(loc.DialAfterMS) * time.Millisecond):
	case <-ctx.Done():
		return nil
	}
	return w.dial(ctx, loc.URL, loc.Ticket, loc.Node)
}

// dial dials behind what it has, and checks the welcome.
func (w *wireClient) dial(ctx context.Context, to, ticket, node string) *wireConn {
	u, err := url.Parse(to)
	if err != nil {
		w.find("the URL %q: %v", to, err)
		return nil
	}
	c, err := (&net.Dialer{Timeout: 2 * time.Second}).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil
	}
	if u.Scheme == "wss" {
		config := w.tls.Clone()
		config.ServerName = u.Hostname()
		c = tls.Client(c, config)
	}
	context.AfterFunc(ctx, func() { c.Close() })
	b := &bare{Conn: c, br: bufio.NewReader(c), user: w.user}
	fmt.Fprintf(c, "GET %s?since=%s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: dialring.v1, dialring.ticket.%s\r\n\r\n", u.Path, url.QueryEscape(w.since), u.Host, ticket)
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	resp, err := http.ReadResponse(b.br, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		c.Close()
		return nil
	}
	_, p, err := b.frame()
	if err != nil {
		c.Close()
		return nil
	}
	if err := json.Unmarshal(p, &b.welcome); err != nil || b.welcome.Type != wire.TypeWelcome || b.welcome.Since == "" || b.welcome.Gap {
		w.find("dialed %s since %s, and was welcomed by %s", node, w.since, p)
	}
	return &wireConn{b, node}
}

// receive takes frames until the connection ends, or there is one to follow it.
func (w *wireClient) receive(ctx context.Context, c *wireConn) *wireConn {
	pending := c.welcome.Pending
	for {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		op, p, err := c.frame()
		if err != nil || ctx.Err() != nil {
			return nil
		}
		if op == 8 {
			if code := int(p[0])<<8 | int(p[1]); code < 4200 || code > 4299 {
				w.find("closed with %d %s", code, p[2:])
			}
			return nil
		}
		if op != 1 {
			continue
		}
		var f struct {
			Type, Cursor, URL, Ticket, Node string
			Seq                             uint64
			Data                            json.RawMessage
			AfterMS                         int64 `json:"after_ms"`
		}
		if err := json.Unmarshal(p, &f); err != nil {
			w.find("%v in %s", err, p)
			return nil
		}
		switch {
		case f.Type == wire.TypeMessage && f.Seq > 0:
			if f.Seq != w.seq+1 {
				w.find("message %d from %s; welcome %+v", f.Seq, c.node, c.welcome)
			}
			if f.Seq <= c.welcome.Head {
				pending--
			} else if pending != 0 {
				w.find("%d pending messages did not come before %d; welcome %+v", pending, f.Seq, c.welcome)
				pending = 0
			}
			w.seq, w.since = f.Seq, f.Cursor
			num, _ := strconv.ParseUint(string(f.Data), 10, 64)
			w.got(c.node, num)
		case f.Type == wire.TypeSkip, f.Type == wire.TypeResumed:
			w.find("%s from %s", p, c.node)
		case f.Type == wire.TypeMove:
			select {
			case <-time.After(time.Duration(f.AfterMS) * time.Millisecond):
			case <-ctx.Done():
				return nil
			}
			// What is still under way on the old connection comes again on the new one.
			if n := w.dial(ctx, f.URL, f.Ticket, f.Node); n != nil {
				return n
			}
		}
	}
}

func (w *wireClient) report() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.findings[:min(len(w.findings), 5)], "\n")
}
