package wsnode

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/dialring/dialring/internal/wire"
)

// FuzzFrames has any bytes behind the handshake, in pieces of any size. What the node
// answers, and how it ends the connection, is what RFC 6455 and the contract say, by a
// reading of them that shares nothing with the node's.
func FuzzFrames(f *testing.F) {
	n := newFuzzNode(f)
	const ping = `{"type":"ping","ref":1}`
	long := strings.Repeat("x", fuzzMessageBytes+1)
	for _, b := range [][]byte{
		nil, fuzzFrame(0x81, ping), fuzzFrame(0x89, "hello"), fuzzFrame(0x8A, ""), fuzzFrame(0x88, "\x03\xe8"), fuzzFrame(0x88, ""), fuzzFrame(0x88, "\x03"), fuzzFrame(0x88, "\x03\xed"), fuzzFrame(0x88, "\x0f\xa0\xff"),
		slices.Concat(fuzzFrame(0x01, ping[:9]), fuzzFrame(0x89, "p"), fuzzFrame(0x00, ""), fuzzFrame(0x80, ping[9:])), slices.Concat(fuzzFrame(0x81, ping), fuzzFrame(0x80, "")), slices.Concat(fuzzFrame(0x01, "{"), fuzzFrame(0x81, "}")),
		fuzzFrame(0x82, "x"), fuzzFrame(0xC1, ping), fuzzFrame(0x83, ""), fuzzFrame(0x09, ""), {0x81, 0x02, '{', '}'}, {0x81, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4}, {0x81, 0xFE, 0, 2, 1, 2, 3, 4, 0, 0},
		{0x81, 0xFF, 0, 0, 0, 0, 0, 0, 1, 0, 1, 2, 3, 4}, {0x81, 0xFE, 0xFF, 0xFF}, fuzzFrame(0x89, long[:126]), fuzzFrame(0x81, `{"type":"ping","ref":"`+"\xe2\x82"+`"}`), fuzzFrame(0x81, `{"type":"send","data":"`+long+`"}`),
		fuzzFrame(0x81, `{"type":"send","ref":"r","data":1}`), fuzzFrame(0x81, `{"type":"send","ref":"r","to":"bob","data":1}`), fuzzFrame(0x81, `{"type":"ack","cursor":"0"}`), fuzzFrame(0x81, `{"type":"ack"}`),
		fuzzFrame(0x81, `{"type":"resume","since":"0"}`), fuzzFrame(0x81, `{"type":"x"}`), fuzzFrame(0x81, `[]`), slices.Concat(fuzzFrame(0x88, "\x0f\xa1bye"), fuzzFrame(0x81, ping)), slices.Concat(fuzzFrame(0x82, ""), fuzzFrame(0x81, ping)),
		slices.Concat(fuzzFrame(0x01, long), bytes.Repeat(fuzzFrame(0x00, long), 5)), slices.Concat(fuzzFrame(0x81, ping), fuzzFrame(0x89, "1"), []byte{0x8B, 0x80}),
	} {
		for _, piece := range []byte{0, 1, 3} {
			f.Add(b, piece)
		}
	}
	f.Fuzz(func(t *testing.T, input []byte, piece byte) {
		if len(input) > 16<<10 {
			return
		}
		c := &fuzzConn{n: n, in: input, piece: int(piece)}
		r := &http.Request{Method: "GET", RequestURI: pathWS, URL: &url.URL{Path: pathWS}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Host: "node.test", RemoteAddr: "192.0.2.1:1", Header: http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"},
			"Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {fuzzKey}, "Sec-Websocket-Protocol": {"dialring.v1, dialring.ticket." + n.ticket()}}}
		n.handler.ServeHTTP(&fuzzHijack{c: c}, r)
		n.over(t)
		want := readByTheBook(input)
		if bytes.Count(input, []byte{0x81}) > sendBurst*20 {
			return // perhaps so many sends that they are refused for their rate, also one that is too big
		}
		got, code, err := c.wrote()
		if err != nil {
			t.Fatalf("%x: %v", input, err)
		}
		if code != want.code {
			t.Fatalf("%x: closed with %d, want %d", input, code, want.code)
		}
		if !slices.Equal(got, want.frames) && !(want.left && len(got) <= len(want.frames) && slices.Equal(got, want.frames[:len(got)])) {
			t.Fatalf("%x: wrote %q, want %q", input, got, want.frames)
		}
	})
}

func fuzzFrame(b0 byte, payload string) []byte {
	b := []byte{b0}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	}
	b = append(b, 1, 2, 3, 0x84)
	for i := range payload {
		b = append(b, payload[i]^b[len(b)-i-4+i%4])
	}
	return b
}

// byTheBook is what a client's bytes have to lead to.
type byTheBook struct {
	frames []string // control pongs, and the types of texts but for those of the log
	code   int      // of the close frame
	left   bool     // the client closed: what was on its way may be lost
}

// readByTheBook reads the bytes of a client as RFC 6455 and the contract say.
func readByTheBook(b []byte) (out byTheBook) {
	const limit = fuzzMessageBytes + 4096
	var message []byte
	text, amid := false, false
	for {
		out.code = 1000 // the bytes end here, and the connection with them
		if len(b) < 2 {
			return out
		}
		final, op, masked, n := b[0]&0x80 != 0, b[0]&15, b[1]&0x80 != 0, uint64(b[1]&0x7F)
		control := op&8 != 0
		if b[0]&0x70 != 0 || !slices.Contains([]byte{0, 1, 2, 8, 9, 10}, op) || !masked || control && (!final || n > 125) || !control && (op == 0) != amid {
			out.code = 1002
			return out
		}
		b = b[2:]
		if n >= 126 {
			size, least := 2, uint64(126)
			if n == 127 {
				size, least = 8, 65536
			}
			if len(b) < size {
				return out
			}
			n = 0
			for _, x := range b[:size] {
				n = n<<8 | uint64(x)
			}
			b = b[size:]
			if n < least || n > 1<<63-1 {
				out.code = 1002
				return out
			}
		}
		if !control && uint64(len(message))+n > limit {
			out.code = 1009
			return out
		}
		if uint64(len(b)) < 4+n {
			return out
		}
		p := bytes.Clone(b[4 : 4+n])
		for i := range p {
			p[i] ^= b[i%4]
		}
		b = b[4+n:]
		switch op {
		case 8:
			if n > 0 { // 1000 answers one without a code
				out.code = 1002
			}
			if n >= 2 {
				c := int(p[0])<<8 | int(p[1])
				if c >= 1000 && c < 1015 && c != 1004 && c != 1005 && c != 1006 || c >= 3000 && c < 5000 {
					if out.code = c; !utf8.Valid(p[2:]) {
						out.code = 1007
						return out
					}
				}
			}
			out.left = out.code != 1002
			return out
		case 9:
			out.frames = append(out.frames, "pong "+string(p))
			continue
		case 10:
			continue
		}
		if op != 0 {
			text = op == 1
		}
		message = append(message, p...)
		if amid = !final; amid {
			continue
		}
		answer, code := byTheContract(message, text)
		if code != 0 {
			out.code = code
			return out
		}
		if answer != "" {
			out.frames = append(out.frames, answer)
		}
		message = nil
	}
}

func byTheContract(b []byte, text bool) (answer string, code int) {
	if !text {
		return "", 4005
	}
	if !utf8.Valid(b) {
		return "", 1007
	}
	var m struct {
		Type, Cursor, Since string
		Ref, Data           json.RawMessage
	}
	if wire.CheckJSON(b) != nil || json.Unmarshal(b, &m) != nil || m.Type == "" || wire.CheckRef(m.Ref) != nil {
		return "", 4005
	}
	switch m.Type {
	case "ping":
		return "pong", 0
	case "ack":
		if wire.CheckCursor(m.Cursor) != nil {
			return "", 4005
		}
	case "resume":
		if wire.CheckCursor(m.Since) != nil {
			return "", 4005
		}
	case "send":
		if json.Unmarshal(b, new(wire.Send)) == nil && len(m.Data) > fuzzMessageBytes {
			return "", 4006
		}
		return "error", 0
	}
	return "", 0
}

// fuzzConn gives the node its input, in pieces, each when it has written what it had to,
// and then the end of the connection.
type fuzzConn struct {
	n     *fuzzNode
	in    []byte
	piece int // 0: all at once
	s     *session

	mu  sync.Mutex
	out bytes.Buffer
}

func (c *fuzzConn) Read(p []byte) (int, error) {
	if c.s == nil {
		c.n.hub.each(func(s *session) { c.s = s })
	}
	if c.s != nil {
		c.s.awaitWritten()
	}
	if len(c.in) == 0 {
		return 0, io.EOF
	}
	k := len(c.in)
	if c.piece > 0 {
		k = min(k, c.piece)
	}
	k = copy(p, c.in[:k])
	c.in = c.in[k:]
	return k, nil
}

func (c *fuzzConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Write(p)
}

func (c *fuzzConn) Close() error                     { return nil }
func (c *fuzzConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *fuzzConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *fuzzConn) SetDeadline(time.Time) error      { return nil }
func (c *fuzzConn) SetReadDeadline(time.Time) error  { return nil }
func (c *fuzzConn) SetWriteDeadline(time.Time) error { return nil }

// wrote reads what the node wrote: well-formed frames of a server, the last of which is
// the only close frame.
func (c *fuzzConn) wrote() (frames []string, code int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	br := bufio.NewReader(bytes.NewReader(c.out.Bytes()))
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, 0, fmt.Errorf("no upgrade: %v", err)
	}
	for first := true; ; first = false {
		var h [2]byte
		if _, err := io.ReadFull(br, h[:]); err != nil {
			return nil, 0, fmt.Errorf("no close frame behind %q", frames)
		}
		n := uint64(h[1])
		if n == 126 {
			var l [2]byte
			_, _ = io.ReadFull(br, l[:])
			n = uint64(binary.BigEndian.Uint16(l[:]))
		}
		if n > 1<<16 || h[0]&8 != 0 && n > 125 { // or masked
			return nil, 0, fmt.Errorf("a frame of %x", h)
		}
		p := make([]byte, n)
		if _, err := io.ReadFull(br, p); err != nil {
			return nil, 0, err
		}
		var m struct{ Type string }
		switch {
		case h[0] == 0x81 && bytes.HasPrefix(p, []byte(`{"type":"`)) && json.Unmarshal(p, &m) == nil:
			if first != (m.Type == "welcome") {
				return nil, 0, fmt.Errorf("welcome is not the first frame, or comes again: %s", p)
			}
			if m.Type == "pong" || m.Type == "error" {
				frames = append(frames, m.Type)
			}
		case h[0] == 0x8A:
			frames = append(frames, "pong "+string(p))
		case h[0] == 0x88 && n != 1:
			if n > 0 {
				if code = int(binary.BigEndian.Uint16(p)); !utf8.Valid(p[2:]) {
					return nil, 0, fmt.Errorf("the reason %q", p[2:])
				}
			}
			if rest, _ := io.ReadAll(br); len(rest) > 0 {
				return nil, 0, fmt.Errorf("%q behind the close frame", rest)
			}
			return frames, code, nil
		default:
			return nil, 0, fmt.Errorf("the frame %x %q", h, p)
		}
	}
}

// fuzzHijack is a response of net/http of which only the connection is wanted.
type fuzzHijack struct {
	c      *fuzzConn
	header http.Header
}

func (h *fuzzHijack) Header() http.Header {
	if h.header == nil {
		h.header = http.Header{}
	}
	return h.header
}

func (h *fuzzHijack) Write(b []byte) (int, error) { return len(b), nil }
func (h *fuzzHijack) WriteHeader(int)             {}
func (h *fuzzHijack) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return h.c, bufio.NewReadWriter(bufio.NewReader(bytes.NewReader(nil)), bufio.NewWriter(h.c)), nil
}
