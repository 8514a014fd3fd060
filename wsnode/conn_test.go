package wsnode

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/lxzan/gws"
)

// Nothing comes behind a close frame, whoever writes it, and what came too late for that
// does not end the connection so hard that the close frame gets lost.
func TestNothingBehindClose(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	peer, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	l := newLingering(conn)
	defer l.finish()
	defer peer.Close()
	s := &session{node: &Node{cfg: Config{SessionQueueBytes: 1 << 20}}, net: l}

	before, goodbye, behind := frame(gws.OpcodeText, []byte("before")), frame(gws.OpcodeCloseConnection, []byte{3, 0xE8}), frame(gws.OpcodeText, []byte("behind"))
	if _, err := l.Write([]byte("HTTP/1.1 101 Switching Protocols\r\n\r\n")); err != nil { // gws's too
		t.Fatal(err)
	}
	if err := l.writeAll(net.Buffers{before}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Write(goodbye); err != nil {
		t.Fatal(err)
	}
	if err := l.writeAll(net.Buffers{behind}); !errors.Is(err, errOver) {
		t.Errorf("written behind the close frame: %v", err)
	}
	told := make(chan int, 1)
	p := &push{answer: func(n int) { told <- n }}
	p.left.Store(1)
	s.send(outgoing{frame: behind, push: p})
	if n := <-told; n != 0 {
		t.Errorf("a push behind the close frame reached %d sessions", n)
	}
	if l.closed.Load() {
		t.Error("a push behind the close frame ended the connection")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(peer)
	if err != nil {
		t.Fatal(err)
	}
	if _, got, _ := bytes.Cut(got, []byte("\r\n\r\n")); !bytes.Equal(got, append(before, goodbye...)) {
		t.Errorf("the client got %q", got)
	}
}

// deadlined notes the write deadline of a connection.
type deadlined struct {
	net.Conn
	at time.Time
}

func (c *deadlined) SetWriteDeadline(t time.Time) error { c.at = t; return nil }
func (c *deadlined) Write(b []byte) (int, error)        { return len(b), nil }

// A close frame that the peer does not take has a deadline that the session's writer, at
// the end of its queue, does not lift; half a frame has no close frame behind it.
func TestCloseFrameDeadline(t *testing.T) {
	raw := &deadlined{}
	l := newLingering(raw)
	goodbye := frame(gws.OpcodeCloseConnection, []byte{3, 0xE8})
	l.partial = true
	if _, err := l.Write(goodbye); !errors.Is(err, errPartial) || l.over {
		t.Errorf("behind half a frame: %v, over is %v", err, l.over)
	}
	if err := l.writeAll(net.Buffers{[]byte("rest")}); err != nil {
		t.Errorf("the rest of the frame: %v", err)
	}
	if _, err := l.Write(goodbye); err != nil {
		t.Error(err)
	}
	if err := l.SetWriteDeadline(time.Time{}); err != nil {
		t.Error(err)
	}
	if left := time.Until(raw.at); left <= 0 || left > writeTimeout {
		t.Errorf("the close frame has %v", left)
	}
}
