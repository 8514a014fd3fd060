package httpd

import (
	"net"
	"time"
)

// Fresh has the connections of l, which are TCP's, wait for their first request as long as
// for any next one. net/http gives that no more time than a header. But an HTTP client opens
// connections that it then does not need (Go's does so whenever another one becomes free
// meanwhile), keeps them, and sends a push over one just as it is closed: who does not
// repeat what may have been done, as is right for a POST, does not know what became of it.
// Clients mostly keep such a connection for less than idleTimeout (Go's default transport for
// 90 s, one without IdleConnTimeout for ever), and then they are who closes. How many
// strangers have open without asking, Waiting bounds.
//
// tls says that TLS is spoken over them. A connection follows the deadlines that net/http
// sets for reading, in their order (TestFresh would see another one):
//
//	handshake --set, and taken back--> unasked
//	unasked --set for the header--> waits, for idleTimeout
//	waits --first bytes--> begun, with the header's time from now
//	begun --set for the whole request--> asked, with that time from its first bytes
//	waits --set for the whole request--> asked
//
// The last line is a header that came in one piece with the end of the handshake, and was
// read with that. (The rest of one of which only a part came so may be late by idleTimeout.)
// After asked it is a connection like any other.
func Fresh(l net.Listener, tls bool) net.Listener { return &freshListener{l, tls, idleTimeout} }

type freshListener struct {
	net.Listener
	tls  bool
	idle time.Duration
}

func (l *freshListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	t, ok := c.(*net.TCPConn)
	if err != nil || !ok {
		return c, err
	}
	f := &freshConn{TCPConn: t, state: freshUnasked, idle: l.idle}
	if l.tls {
		f.state = freshHandshake
	}
	return f, nil
}

type freshState int

const (
	freshHandshake freshState = iota
	freshUnasked
	freshWaits
	freshBegun
	freshAsked
)

// freshConn needs no lock: until it is asked only one goroutine of net/http has it, and
// then nothing changes here.
type freshConn struct {
	*net.TCPConn
	state  freshState
	idle   time.Duration // for which it may be silent before it asks
	since  time.Time     // when it began to wait
	waited time.Duration // from then to the first bytes
	header time.Duration // what net/http gives for it
}

func (c *freshConn) SetReadDeadline(t time.Time) error {
	switch c.state {
	case freshHandshake:
		if t.IsZero() {
			c.state = freshUnasked
		}
	case freshUnasked:
		if !t.IsZero() {
			c.state, c.since, c.header = freshWaits, time.Now(), time.Until(t)
			t = c.since.Add(c.idle)
		}
	case freshWaits:
		c.state = freshAsked
	case freshBegun:
		c.state = freshAsked
		if !t.IsZero() {
			t = t.Add(c.waited)
		}
	}
	return c.TCPConn.SetReadDeadline(t)
}

func (c *freshConn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	if c.state == freshWaits && n > 0 {
		c.state, c.waited = freshBegun, time.Since(c.since)
		_ = c.TCPConn.SetReadDeadline(time.Now().Add(c.header))
	}
	return n, err
}
