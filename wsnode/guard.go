package wsnode

import (
	"cmp"
	"encoding/binary"
	"io"
	"net"
	"unicode/utf8"

	"github.com/dialring/dialring/internal/wire"
)

// guard is what gws reads a session's connection through. It judges the head of each
// frame, before gws sees it and before anything is allocated for it, by what RFC 6455
// asks of clients and gws lets pass, answers with another code, or breaks on:
//
//   - a length with its top bit set (5.2), on which gws panics,
//   - a length that is not in its shortest form (5.2), which gws takes,
//   - a control frame that announces much (5.5): that is 1002, whatever its length,
//   - what cannot follow (5.4), and what makes a message too long: gws reads all of
//     that frame before it says so,
//   - a close frame (5.5.1): its code is echoed, where gws answers most with 1000.
//
// It has no goroutine and no buffer; all of it is the reader's. Read must stay small:
// each idle session waits in it, and a larger frame doubles its stack.
type guard struct {
	s     *session
	conn  net.Conn
	early []byte // what the client sent without waiting for the answer

	head  [10]byte // of the frame at hand: up to its length
	have  int      // bytes of head
	left  uint64   // bytes of its mask and payload that are still to come
	amid  bool     // in a message of fragments
	total uint64   // bytes of that message
	body  []byte   // mask and payload of a close frame; nil: it is none
	end   int      // the close code with which it ends, when gws has what came before; 0: not yet
	leave bool     // end is the client's own
}

// Read implements io.Reader.
func (g *guard) Read(p []byte) (int, error) {
	if g.end != 0 || len(g.early) > 0 {
		return g.rarely(p)
	}
	n, err := g.conn.Read(p)
	return g.pass(p[:n], err)
}

// rarely is what Read has to do but for reading, kept out of its frame.
//
//go:noinline
func (g *guard) rarely(p []byte) (int, error) {
	if g.end != 0 {
		return 0, g.over()
	}
	n := copy(p, g.early)
	if g.early = g.early[n:]; len(g.early) == 0 {
		g.early = nil
	}
	return g.pass(p[:n], nil)
}

// over answers a close frame, or closes the session behind what it still has to write,
// and then reads on for as long as that takes. gws hears of it when the connection ends.
func (g *guard) over() error {
	s := g.s
	if g.leave {
		if s.isClosing() { // this node was first
			s.awaitWritten()
		}
		_ = s.conn.WriteClose(uint16(g.end), nil) // #nosec G115 -- close codes are below 5000
		return io.EOF
	}
	s.close(g.end, "")
	_, err := io.Copy(io.Discard, g.conn)
	s.awaitWritten()
	return cmp.Or(err, io.EOF)
}

// pass looks at b, which goes to gws next, and returns how much of it may. A frame that
// ends the connection is cut off, with all behind it.
//
//go:noinline
func (g *guard) pass(b []byte, err error) (int, error) {
	if len(b) > 0 {
		if err := g.s.cameBytes(len(b)); err != nil {
			return 0, err
		}
	}
	start := 0 // of the frame at hand, in b
	for i := 0; i < len(b); {
		if g.left > 0 {
			k := int(min(g.left, uint64(len(b)-i))) // #nosec G115 -- at most what is in b
			if g.body != nil {
				g.body = append(g.body, b[i:i+k]...)
			}
			i += k
			if g.left -= uint64(k); g.left == 0 && g.body != nil {
				g.closed()
			}
		} else {
			if g.have == 0 {
				start = i
			}
			g.head[g.have] = b[i]
			g.have++
			i++
			g.judge()
		}
		if g.end == 0 {
			continue
		}
		if start > 0 {
			return start, nil // gws has frames to see first
		}
		return 0, g.over()
	}
	if err != nil && g.s.isClosing() { // else gws has its own close frame overtake this node's
		g.s.awaitWritten()
	}
	return len(b), err
}

// judge looks at what there is of a head, and sets end if that can be of no frame.
func (g *guard) judge() {
	if g.have < 2 {
		return
	}
	op, final, masked, short := g.head[0]&0x0F, g.head[0]&0x80 != 0, g.head[1]&0x80 != 0, g.head[1]&0x7F
	control := op >= 8
	if g.have == 2 {
		switch {
		case g.head[0]&0x70 != 0, // no extension gives the reserved bits a meaning
			op > 2 && op < 8, op > 10, !masked,
			control && (!final || short > 125),
			op == 0 && !g.amid, !control && op != 0 && g.amid:
			g.end = wire.CloseBroken
			return
		}
	}
	n, shortest := uint64(short), uint64(0)
	switch {
	case short == 126 && g.have == 4:
		n, shortest = uint64(binary.BigEndian.Uint16(g.head[2:])), 126
	case short == 127 && g.have == 10:
		n, shortest = binary.BigEndian.Uint64(g.head[2:]), 1<<16
	case short >= 126:
		return // the length is to come
	}
	most := uint64(g.s.node.cfg.MaxMessageBytes + envelope) // #nosec G115 -- a limit, at most 1 MiB and an envelope
	switch {
	case n < shortest || n >= 1<<63:
		g.end = wire.CloseBroken
		return
	case n > most || !control && g.total+n > most:
		g.end = wire.CloseTooLong
		return
	case op == 8:
		g.body = make([]byte, 0, 4+n)
	case !control:
		if g.amid, g.total = !final, g.total+n; final {
			g.total = 0
		}
	}
	g.have, g.left = 0, 4+n
}

// closed reads a close frame.
func (g *guard) closed() {
	mask, p := g.body[:4], g.body[4:]
	for i := range p {
		p[i] ^= mask[i%4]
	}
	switch {
	case len(p) == 0: // a browser's close()
		g.end, g.leave = wire.CloseNormal, true
		g.s.peerCode = closeNoStatus
	case len(p) < 2 || !mayClose(int(binary.BigEndian.Uint16(p))):
		g.end = wire.CloseBroken
	case !utf8.Valid(p[2:]):
		g.end = wire.CloseNoText
	default:
		g.end, g.leave = int(binary.BigEndian.Uint16(p)), true
		g.s.peerCode = g.end
	}
	g.body = nil
}

// closeNoStatus is how RFC 6455, 7.1.5, numbers a close frame without a code.
const closeNoStatus = 1005

// mayClose tells whether a close frame may have a code: one that RFC 6455, 7.4, or the
// registry that it made, has for use on the wire, or one of libraries and applications.
func mayClose(code int) bool {
	switch code {
	case 1004, 1005, 1006:
		return false
	}
	return code >= 1000 && code <= 1014 || code >= 3000 && code <= 4999
}
