package wsnode

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/lxzan/gws"
)

// lingerTime is how long a closed connection is read on for, so that the peer
// gets to see the close frame: closing a socket with unread bytes resets it,
// and the reset overtakes what was sent.
const lingerTime = time.Second

// lingering is a session's connection. gws reads from it and writes the close
// frame; all other frames are the session's own, encoded once for all sessions
// of a push and written without a goroutine as long as the socket takes them:
// gws's own write blocks for ever when the peer does not read, and a goroutine
// for each write made a push cost the node a fifth more.
//
// Its Close ends only the writing side at first. The reader goes on until the
// peer has closed too, or for lingerTime, and then calls finish.
type lingering struct {
	net.Conn
	raw    syscall.RawConn // nil where there is none: TLS
	closed atomic.Bool

	mu sync.Mutex // held while the session's frames are written
	// partial: the beginning of a frame was written and its rest waits.
	// Nothing else may be written then.
	partial bool
	// over: gws writes the close frame, and nothing may come behind it. The session
	// hears of that later: gws writes one by itself when the client's bytes end.
	// Guarded by mu, and by deadline for who has that only.
	over bool

	deadline sync.Mutex // held while the write deadline is set
}

func newLingering(c net.Conn) *lingering {
	l := &lingering{Conn: c}
	if t, ok := c.(*net.TCPConn); ok {
		l.raw, _ = t.SyscallConn()
	}
	return l
}

var errPartial = errors.New("a frame is half written")

// errOver is of a frame that came behind the close frame. The reader is at its end, and
// ends the connection when the close frame is written, or writeTimeout later.
var errOver = fmt.Errorf("nothing is written behind the close frame: %w", gws.ErrConnClosed)

// Write is gws's, of its answer to the handshake and of the close frame. That waits for
// what is being written, and then for the peer, without mu: the session must not wait, too.
func (c *lingering) Write(b []byte) (int, error) {
	c.mu.Lock()
	partial := c.partial
	if !partial && len(b) > 0 && b[0] == 0x80|byte(gws.OpcodeCloseConnection) {
		c.deadline.Lock()
		c.over = true
		_ = c.Conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		c.deadline.Unlock()
	}
	c.mu.Unlock()
	if partial {
		return 0, errPartial
	}
	return c.Conn.Write(b)
}

// SetWriteDeadline is the session's. The close frame has its own, that nobody lifts.
func (c *lingering) SetWriteDeadline(t time.Time) error {
	c.deadline.Lock()
	defer c.deadline.Unlock()
	if c.over {
		return nil
	}
	return c.Conn.SetWriteDeadline(t)
}

// writeAll writes the rest of a frame that writeNow began, and what follows. It
// waits for the peer, up to the write deadline.
func (c *lingering) writeAll(bufs net.Buffers) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return errOver
	}
	_, err := bufs.WriteTo(c.Conn)
	if err == nil {
		c.partial = false
	}
	return err
}

// maxHeader is the longest header of a frame to a client (RFC 6455, 5.2; they
// are not masked).
const maxHeader = 10

// headed turns b, which has maxHeader free bytes in front of a payload, into a
// frame.
func headed(op gws.Opcode, b []byte) []byte {
	n := len(b) - maxHeader
	start := maxHeader - 2
	switch {
	case n < 126:
		b[start+1] = byte(n) // #nosec G115 -- below 126
	case n < 1<<16:
		start -= 2
		b[start+1] = 126
		binary.BigEndian.PutUint16(b[start+2:], uint16(n))
	default:
		start -= 8
		b[start+1] = 127
		binary.BigEndian.PutUint64(b[start+2:], uint64(n))
	}
	b[start] = 0x80 | byte(op) // final
	return b[start:]
}

// frame makes a frame of a payload.
func frame(op gws.Opcode, payload []byte) []byte {
	return headed(op, append(make([]byte, maxHeader, maxHeader+len(payload)), payload...))
}

// Close says goodbye: no more is written, and reading ends soon.
func (c *lingering) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	_ = c.Conn.SetReadDeadline(time.Now().Add(lingerTime))
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return c.Conn.Close()
}

// abort closes at once and drops what the peer did not take.
func (c *lingering) abort() {
	c.closed.Store(true)
	raw := c.Conn
	if t, ok := raw.(*tls.Conn); ok {
		raw = t.NetConn() // its own Close may wait for a peer that takes nothing
	}
	if t, ok := raw.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = raw.Close()
}

// finish is the reader's last call: it reads what the peer still sends, within
// bounds, and closes.
func (c *lingering) finish() {
	_ = c.Close()
	_, _ = io.CopyN(io.Discard, c.Conn, 1<<20)
	_ = c.Conn.Close()
}
