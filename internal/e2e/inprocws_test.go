package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// inprocDial is a handshake to the letter. Its defaults are a good one, but for
// the ticket.
type inprocDial struct {
	method, target, proto string
	headers               [][2]string
	body                  string
}

const inprocKey = "dGhlIHNhbXBsZSBub25jZQ=="

func newInprocDial(ticket string) *inprocDial {
	return &inprocDial{method: "GET", target: "/v1/ws", proto: "HTTP/1.1", headers: [][2]string{
		{"Host", "node.test"}, {"Connection", "Upgrade"}, {"Upgrade", "websocket"}, {"Sec-WebSocket-Version", "13"},
		{"Sec-WebSocket-Key", inprocKey}, {"Sec-WebSocket-Protocol", "dialring.v1, dialring.ticket." + ticket}}}
}

// set replaces all headers of a name; without values they are gone.
func (d *inprocDial) set(name string, values ...string) {
	var out [][2]string
	for _, h := range d.headers {
		if h[0] != name {
			out = append(out, h)
		}
	}
	for _, v := range values {
		out = append(out, [2]string{name, v})
	}
	d.headers = out
}

func (d *inprocDial) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s\r\n", d.method, d.target, d.proto)
	for _, h := range d.headers {
		fmt.Fprintf(&b, "%s: %s\r\n", h[0], h[1])
	}
	return b.String() + "\r\n" + d.body
}

// inprocConn is a raw connection that remembers what came over it until a
// response was read.
type inprocConn struct {
	t *testing.T
	net.Conn
	br  *bufio.Reader
	raw bytes.Buffer
}

func inprocConnect(t *testing.T, addr string) *inprocConn {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, inprocPatience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(2 * inprocPatience))
	return &inprocConn{t: t, Conn: conn, br: bufio.NewReader(conn)}
}

func (c *inprocConn) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.Conn, s); err != nil {
		c.t.Fatal(err)
	}
}

// answer reads a response. raw is all of it but the body of chunks.
func (c *inprocConn) answer() inprocAnswer {
	c.t.Helper()
	a, err := c.tryAnswer()
	if err != nil {
		c.t.Fatal(err)
	}
	return a
}

func (c *inprocConn) tryAnswer() (inprocAnswer, error) {
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil {
		return inprocAnswer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	_ = resp.Header.Write(&c.raw)
	c.raw.WriteString(resp.Status)
	c.raw.Write(b)
	return inprocAnswer{resp.StatusCode, resp.Header, b}, err
}

// inprocRaw sends a request as it is and reads the response.
func inprocRaw(t *testing.T, addr, request string) (inprocAnswer, *inprocConn) {
	t.Helper()
	c := inprocConnect(t, addr)
	c.send(request)
	return c.answer(), c
}

// inprocWS is a WebSocket client that does what it is told, frame by frame.
type inprocWS struct {
	*inprocConn
	welcome    wire.Welcome
	welcomeRaw []byte
	silent     bool // does not answer pings
}

var errInprocClosed = errors.New("closed")

// connect locates a user and dials the node.
func (c *inprocCluster) connect(user, device string) *inprocWS {
	c.t.Helper()
	return c.connectWith(user, device, func(*inprocDial) {})
}

func (c *inprocCluster) connectWith(user, device string, edit func(*inprocDial)) *inprocWS {
	c.t.Helper()
	l := c.locate(user, device)
	d := newInprocDial(l.Ticket)
	edit(d)
	a, conn := inprocRaw(c.t, c.node(l.Node).at.Listen, d.String())
	return inprocOpened(c.t, a, conn)
}

// inprocOpened checks a handshake that must have worked, and welcome.
func inprocOpened(t *testing.T, a inprocAnswer, conn *inprocConn) *inprocWS {
	t.Helper()
	if a.status != 101 {
		t.Fatalf("the dial was answered with %d %s", a.status, a.body)
	}
	sum := sha1.Sum([]byte(inprocKey + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	if got := a.header.Get("Sec-WebSocket-Accept"); got != base64.StdEncoding.EncodeToString(sum[:]) {
		t.Errorf("Sec-WebSocket-Accept %q", got)
	}
	if p := a.header["Sec-Websocket-Protocol"]; len(p) != 1 || p[0] != "dialring.v1" {
		t.Errorf("the node selected %q", p)
	}
	if ext := a.header.Get("Sec-WebSocket-Extensions"); ext != "" {
		t.Errorf("an extension that was not offered: %q", ext)
	}
	w := &inprocWS{inprocConn: conn}
	w.welcomeRaw = w.text()
	inprocDecode(t, w.welcomeRaw, &w.welcome)
	if w.welcome.Type != "welcome" {
		t.Fatalf("the first frame is %s", w.welcomeRaw)
	}
	return w
}

// inprocMask is not zero, so that an unmasking that does not happen is seen.
var inprocMask = [4]byte{0x11, 0x22, 0x83, 0x44}

// inprocFrame makes a masked frame; b0 is its first byte: 0x81 is a whole text.
func inprocFrame(b0 byte, payload []byte) []byte {
	b := inprocHead(b0, uint64(len(payload)))
	for i, x := range payload {
		b = append(b, x^inprocMask[i%4])
	}
	return b
}

// inprocHead is the head of a masked frame that announces n bytes.
func inprocHead(b0 byte, n uint64) []byte {
	b := []byte{b0}
	switch {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), n)
	}
	return append(b, inprocMask[:]...)
}

// sendText sends a text frame.
func (w *inprocWS) sendText(s string) {
	w.t.Helper()
	w.send(string(inprocFrame(0x81, []byte(s))))
}

// frame reads one frame of the node.
func (w *inprocWS) frame() (b0 byte, payload []byte, err error) {
	var h [8]byte
	if _, err = io.ReadFull(w.br, h[:2]); err != nil {
		return 0, nil, err
	}
	b0, n := h[0], uint64(h[1])
	switch n {
	case 126:
		_, err = io.ReadFull(w.br, h[:2])
		n = uint64(binary.BigEndian.Uint16(h[:2]))
	case 127:
		_, err = io.ReadFull(w.br, h[:8])
		n = binary.BigEndian.Uint64(h[:8])
	}
	if err == nil && n > 1<<22 {
		err = fmt.Errorf("a frame of %d bytes (or a masked one)", n)
	}
	if err != nil {
		return 0, nil, err
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(w.br, payload)
	return b0, payload, err
}

// next returns the next text frame; pings are answered. At a close frame it
// returns errInprocClosed and the frame's payload.
func (w *inprocWS) next() ([]byte, error) {
	for {
		b0, p, err := w.frame()
		switch {
		case err != nil:
			return nil, err
		case b0 == 0x81:
			return p, nil
		case b0 == 0x88:
			_, _ = w.Write(inprocFrame(0x88, p)) // perhaps nobody reads it any more
			_ = w.Close()
			return p, errInprocClosed
		case b0 == 0x89 && !w.silent:
			_, _ = w.Write(inprocFrame(0x8A, p))
		case b0 == 0x89:
		default:
			return nil, fmt.Errorf("an unexpected frame: %#x %q", b0, p)
		}
	}
}

// text returns the next text frame, which has its type first.
func (w *inprocWS) text() []byte {
	w.t.Helper()
	p, err := w.next()
	if err != nil {
		w.t.Fatalf("no text frame: %v %q", err, p)
	}
	if !bytes.HasPrefix(p, []byte(`{"type":"`)) {
		w.t.Fatalf("a frame without type in front: %s", p)
	}
	return p
}

// message returns the next frame, which is a message.
func (w *inprocWS) message() wire.Message {
	w.t.Helper()
	b := w.text()
	var m wire.Message
	inprocDecode(w.t, b, &m)
	if m.Type != "message" || m.ID == "" || m.Time.IsZero() || m.Seq != 0 {
		w.t.Fatalf("not an ephemeral message: %s", b)
	}
	return m
}

// expect reads a message and compares its data.
func (w *inprocWS) expect(data string) {
	w.t.Helper()
	if m := w.message(); string(m.Data) != data {
		w.t.Fatalf("data %s, want %s", m.Data, data)
	}
}

// alive checks by a ping that the session still works, and that nothing came
// before the pong.
func (w *inprocWS) alive() {
	w.t.Helper()
	w.sendText(`{"type":"ping","ref":"alive?"}`)
	if got := string(w.text()); got != `{"type":"pong","ref":"alive?"}` {
		w.t.Fatalf("not a pong: %s", got)
	}
}

// closed reads up to the end of the connection and returns the code of the
// close frame, 0 if there was none.
func (w *inprocWS) closed() (code int, reason string) {
	for {
		p, err := w.next()
		switch {
		case errors.Is(err, errInprocClosed) && len(p) >= 2:
			return int(binary.BigEndian.Uint16(p)), string(p[2:])
		case err != nil:
			return 0, err.Error()
		}
	}
}

// closes checks the code with which the node ends the connection.
func (w *inprocWS) closes(want int) {
	w.t.Helper()
	if code, reason := w.closed(); code != want {
		w.t.Errorf("closed with %d (%s), want %d", code, reason, want)
	}
}
