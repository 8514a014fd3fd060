package client

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/lxzan/gws"

	"github.com/dialring/dialring/internal/wire"
)

const (
	dialTimeout  = 10 * time.Second
	writeTimeout = 10 * time.Second
	closeTimeout = time.Second
	leaveTimeout = 10 * time.Second // how long what a node had sent before a goodbye may take on its way
	pingSlack    = 5 * time.Second  // how late a ping of the node may be
	usualPing    = 25 * time.Second // where a welcome does not tell the interval
	// maxFrame bounds a frame: the largest message there can be, in base64.
	maxFrame = 2 << 20
)

// conn is one WebSocket connection. Its reader, one goroutine, hands frames to
// receive; gws's callbacks all come from it.
type conn struct {
	gws.BuiltinEventHandler
	node   string
	user   string // that its welcome has to name
	ws     *gws.Conn
	frames chan []byte // closed when the reader has ended

	// run's own
	welcomed bool
	refused  bool // it welcomed another user
	session  string
	log      int  // that its messages are of
	resuming bool // a resume was sent and not answered
	progress bool // something of its replay came
	left     bool // goodbye was said

	mu       sync.Mutex
	code     int // of the close frame that came
	reason   string
	err      error
	interval time.Duration // of the node's pings; 0: not known yet
	watch    *time.Timer   // ends the connection when nothing was heard for long
	late     *time.Timer   // the node's ping is overdue
	leaving  bool          // goodbye was said: nothing more is sent
	leftBy   time.Time     // with leaving: then nothing more is read
	blocked  time.Time     // since when a frame waits for the handler; zero: none does

	overdue chan struct{} // tells receive that the node's ping is
}

// dial connects to the node that loc names, up to the first frame after.
func (c *Client) dial(ctx context.Context, loc *wire.LocateResponse) (*conn, *ended) {
	whole := ctx
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	fail := func(err error) *ended {
		if whole.Err() == nil { // else it was the client that gave up
			c.noteFailed(loc.Node)
		}
		return &ended{err: fmt.Errorf("dialring: dial %s: %w", loc.Node, err)}
	}
	u, err := url.Parse(loc.URL)
	if err != nil || u.Scheme != "ws" && u.Scheme != "wss" {
		return nil, &ended{err: fmt.Errorf("dialring: the locator gave %q, which is no ws or wss URL", loc.URL)}
	}
	nc, err := c.connect(ctx, u)
	if err != nil {
		return nil, fail(err)
	}
	addr := *u
	if since := c.place.cursor(); since != "" {
		q := addr.Query()
		q.Set("since", since)
		addr.RawQuery = q.Encode()
	}
	head := &headConn{Conn: nc, left: maxHead}
	k := &conn{node: loc.Node, user: loc.User, frames: make(chan []byte), overdue: make(chan struct{}, 1)}
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	h := http.Header{}
	h.Set("Sec-WebSocket-Protocol", wire.Subprotocol)
	h.Set("Authorization", "Bearer "+loc.Ticket)
	ws, resp, err := gws.NewClientFromConn(k, &gws.ClientOption{
		Addr: addr.String(), RequestHeader: h, HandshakeTimeout: dialTimeout,
		CheckUtf8Enabled: true, ReadMaxPayloadSize: maxFrame, Logger: quiet{},
	}, head)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = nc.Close()
		if resp != nil && resp.StatusCode != http.StatusSwitchingProtocols {
			b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // what has come is enough
			e := apiError(resp, b)
			return nil, &ended{err: e, after: e.RetryAfter}
		}
		return nil, fail(err)
	}
	k.ws, head.left = ws, math.MaxInt64 // frames have a bound of their own
	// Until welcome says otherwise: as long as a dial may take.
	k.watch = time.AfterFunc(dialTimeout, k.silent)
	k.late = time.AfterFunc(maxWait, k.doubt)
	go k.read()
	return k, nil
}

// maxHead bounds a node's answer to a dial.
const maxHead = 128 << 10

// headConn ends a connection that has brought more than that.
type headConn struct {
	net.Conn
	left int64
}

func (c *headConn) Read(b []byte) (int, error) {
	if c.left <= 0 {
		return 0, errors.New("the node's answer has too many bytes")
	}
	n, err := c.Conn.Read(b[:min(int64(len(b)), c.left)])
	c.left -= int64(n)
	return n, err
}

func (c *Client) connect(ctx context.Context, u *url.URL) (net.Conn, error) {
	port := u.Port()
	if port == "" {
		port = map[string]string{"ws": "80", "wss": "443"}[u.Scheme]
	}
	nc, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil || u.Scheme == "ws" {
		return nc, err
	}
	cfg := &tls.Config{}
	if c.cfg.TLS != nil {
		cfg = c.cfg.TLS.Clone()
	}
	if cfg.ServerName == "" {
		cfg.ServerName = u.Hostname()
	}
	cfg.NextProtos = []string{"http/1.1"}
	t := tls.Client(nc, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		_ = nc.Close()
		return nil, err
	}
	return t, nil
}

type quiet struct{}

func (quiet) Error(...any) {}

// read is the reader. gws panics on a frame whose length has its top bit set;
// that ends the connection and nothing else.
func (k *conn) read() {
	defer close(k.frames)
	defer k.watch.Stop()
	defer k.late.Stop()
	defer func() {
		if r := recover(); r != nil {
			k.ended(0, "", errors.New("the node sent a malformed frame"))
			_ = k.ws.WriteClose(1002, nil)
			_ = k.ws.NetConn().Close()
		}
	}()
	k.ws.ReadLoop()
}

// OnMessage hands a frame on.
func (k *conn) OnMessage(_ *gws.Conn, m *gws.Message) {
	defer m.Close()
	k.heard()
	if m.Opcode != gws.OpcodeText {
		return // unknown to this version of the contract
	}
	b := append([]byte(nil), m.Bytes()...)
	select {
	case k.frames <- b:
		return
	default:
	}
	// The handler is slow: until it takes the frame nothing is read, and that
	// nothing is heard is not the node's fault.
	k.mu.Lock()
	k.blocked = time.Now()
	k.watch.Stop()
	k.late.Stop()
	k.mu.Unlock()
	k.frames <- b // whoever ends the connection takes what is left
	k.mu.Lock()
	k.leftBy = k.leftBy.Add(time.Since(k.blocked))
	k.blocked = time.Time{}
	k.mu.Unlock()
	k.heard()
}

// OnPing answers the node's ping.
func (k *conn) OnPing(_ *gws.Conn, payload []byte) {
	k.heard()
	k.mu.Lock()
	leaving := k.leaving
	k.mu.Unlock()
	if leaving { // the node may have closed: its reset would drop what was not read yet
		return
	}
	_ = k.ws.NetConn().SetWriteDeadline(time.Now().Add(writeTimeout))
	_ = k.ws.WritePong(payload)
}

// OnClose notes why the connection ended.
func (k *conn) OnClose(_ *gws.Conn, err error) {
	var ce *gws.CloseError
	if errors.As(err, &ce) {
		code := int(ce.Code)
		if code == 0 {
			code = 1005 // a close frame without a code, as RFC 6455 numbers it
		}
		k.ended(code, string(ce.Reason), &CloseError{Code: code, Reason: string(ce.Reason)})
		return
	}
	k.ended(0, "", err)
}

// CloseError is how a node closed a connection.
type CloseError struct {
	Code   int // of the close frame; 1005: it had none
	Reason string
}

func (e *CloseError) Error() string {
	return strings.TrimSpace(fmt.Sprintf("dialring: the node closed the connection: %d %s", e.Code, e.Reason))
}

// ended notes the first reason.
func (k *conn) ended(code int, reason string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err == nil {
		k.code, k.reason, k.err = code, reason, err
	}
}

// heard puts the watch off: the node pings each interval, so two of them
// without anything mean that the connection is dead.
func (k *conn) heard() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.blocked.IsZero() {
		return // it is not read now
	}
	if k.leaving {
		k.watch.Reset(min(closeTimeout, time.Until(k.leftBy)))
	} else if k.interval > 0 {
		k.watch.Reset(2*k.interval + pingSlack)
		if k.interval > pingSlack { // else the watch comes as soon
			k.late.Reset(k.interval + pingSlack + rand.N(time.Second)) // #nosec G404 -- jitter
		}
	} else {
		k.watch.Reset(dialTimeout) // welcome is still to come
	}
}

// leave says goodbye and reads on: what the node sent before it hears that still
// comes, however slow the handler is. The connection ends when the node closes
// it, when nothing more came for a while, or when it has been read for leaveTimeout:
// a node may go on sending for ever.
func (k *conn) leave() {
	k.mu.Lock()
	if !k.leaving {
		k.leaving, k.leftBy = true, time.Now().Add(leaveTimeout)
		if !k.blocked.IsZero() {
			k.blocked = time.Now() // only what comes from now on counts
		}
	}
	k.mu.Unlock()
	k.sayGoodbye()
	k.heard()
}

// refuse leaves a node that the client did not mean, and reads nothing more of it. It
// was reached: it is not reported.
func (k *conn) refuse(err error) {
	k.refused = true
	k.ended(wire.CloseNormal, "", err)
	k.sayGoodbye()
	_ = k.ws.NetConn().Close()
}

// sayGoodbye writes goodbye by itself: gws would close the socket behind it.
func (k *conn) sayGoodbye() {
	_ = k.ws.NetConn().SetWriteDeadline(time.Now().Add(closeTimeout))
	_, _ = k.ws.NetConn().Write(goodbye())
}

// goodbye is a close frame with 1000, masked as RFC 6455, 5.3, asks of clients.
func goodbye() []byte {
	var mask [4]byte
	binary.BigEndian.PutUint32(mask[:], rand.Uint32()) // #nosec G404 -- ChaCha8 with a seed of the system: a mask must not be predicted, and is no secret
	return append(append([]byte{0x88, 0x82}, mask[:]...), wire.CloseNormal>>8^mask[0], wire.CloseNormal&0xff^mask[1])
}

// why tells how the connection ended.
func (k *conn) why() ended {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err == nil {
		k.err = io.EOF
	}
	return ended{err: k.err, code: k.code, text: k.reason, node: k.node}
}

// doubt has the client ask a locator: the node may be frozen, or gone without a
// word, and its users elsewhere. The connection stays until there is another one.
func (k *conn) doubt() {
	select {
	case k.overdue <- struct{}{}:
	default:
	}
	k.late.Reset(pingSlack) // until it is heard again, or ends
}

func (k *conn) silent() {
	k.ended(0, "", errors.New("nothing was heard from the node for too long"))
	_ = k.ws.NetConn().Close()
}
