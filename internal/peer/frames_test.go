package peer

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// fakeNode takes one link after the other and lets serve speak to it: it gets
// the connection after the 101.
func fakeNode(t *testing.T, serve func(net.Conn, *bufio.Reader)) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-ended })
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			br := bufio.NewReader(c)
			if _, err := http.ReadRequest(br); err == nil {
				_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+Protocol+"\r\n\r\n")
				serve(c, br)
			}
			_ = c.Close()
		}
	}()
	return "http://" + l.Addr().String()
}

// untilEnd reads until the other side ends the connection.
func untilEnd(c io.Reader) { _, _ = io.Copy(io.Discard, c) }

// Nodes that do not answer: every call ends, by the limits of the link.
func TestNoAnswer(t *testing.T) {
	for name, c := range map[string]struct {
		want  error
		serve func(net.Conn, *bufio.Reader)
	}{
		"to the batch": {ErrLost, func(_ net.Conn, br *bufio.Reader) { untilEnd(br) }},
		"to one of its calls": {ErrLost, func(c net.Conn, br *bufio.Reader) {
			_, _, _ = readFrame(br)
			_, _ = c.Write(frame(frameReplies, flagFirst, 0)) // the gate opens, and that is all
			untilEnd(br)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := await(t, "an end of the call", do(startLink(t, fakeNode(t, c.serve)), "a"))
			if !errors.Is(x.Err, c.want) {
				t.Errorf("ended with %v", x.Err)
			}
		})
	}
	t.Run("to the upgrade", func(t *testing.T) {
		t.Parallel()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		x := await(t, "an end of the call", do(startLink(t, "http://"+l.Addr().String()), "a"))
		if !errors.Is(x.Err, ErrUnreachable) || Refused(x.Err) {
			t.Errorf("ended with %v", x.Err)
		}
	})
	t.Run("while it takes no bytes", func(t *testing.T) {
		t.Parallel()
		stop := make(chan struct{})
		url := fakeNode(t, func(c net.Conn, _ *bufio.Reader) { <-stop })
		defer close(stop)
		l := startLink(t, url)
		x := await(t, "an end of the call", do(l, "a", func(c *Call) { c.Body = make([]byte, 48<<20) }))
		if !errors.Is(x.Err, ErrLost) {
			t.Errorf("ended with %v", x.Err)
		}
	})
}

// frame is a frame of raw parts behind a ring's epoch and hash.
func frame(typ byte, parts ...byte) []byte {
	return finish(append(appendHeader(nil, typ, nodeRing), parts...))
}

// A node that answers nonsense loses its link; the call counts as lost, once.
func TestMalformedReplies(t *testing.T) {
	big := make([]byte, headerBytes)
	binary.BigEndian.PutUint32(big, MaxFrame+1)
	for name, answer := range map[string][]byte{
		"empty frame":      {0, 0, 0, 0, frameReplies},
		"too large":        big,
		"a batch":          frame(frameBatch, flagFirst, 1, 1, 0, 1),
		"unknown type":     frame(99, flagFirst, 1, 1, 0, 1),
		"unknown call":     frame(frameReplies, flagFirst, 1, 77, 0, 1),
		"call 0":           frame(frameReplies, flagFirst, 1, 0, 0, 1),
		"too many":         frame(frameReplies, append([]byte{flagFirst}, binary.AppendUvarint(nil, batchCalls+1)...)...),
		"more than any":    frame(frameReplies, append([]byte{flagFirst}, binary.AppendUvarint(nil, 1<<63)...)...),
		"cut off":          frame(frameReplies, flagFirst, 1, 1, 0),
		"number too long":  frame(frameReplies, flagFirst, 1, 1, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1),
		"without a ring":   finish([]byte{0, 0, 0, 0, frameReplies}),
		"end in the frame": {0, 0, 1, 0, frameReplies, 1, 2, 3},
	} {
		t.Run(name, func(t *testing.T) {
			url := fakeNode(t, func(c net.Conn, br *bufio.Reader) {
				_, _, _ = readFrame(br)
				_, _ = c.Write(answer)
				if name == "end in the frame" {
					return
				}
				untilEnd(br)
			})
			if x := await(t, "an end of the call", do(startLink(t, url), "a")); !errors.Is(x.Err, ErrLost) {
				t.Errorf("ended with %+v %v", x.Reply, x.Err)
			}
		})
	}
	t.Run("one call twice", func(t *testing.T) {
		url := fakeNode(t, func(c net.Conn, br *bufio.Reader) {
			_, _, _ = readFrame(br)
			_, _ = c.Write(frame(frameReplies, flagFirst, 2, 1, 0, 1, 1, 0, 2))
			untilEnd(br)
		})
		l := startLink(t, url)
		if x := await(t, "an end of the call", do(l, "a")); x.Err != nil || x.Reply.Delivered != 1 {
			t.Errorf("ended with %+v %v", x.Reply, x.Err)
		}
	})
}

// A caller that sends nonsense loses its link; nothing of it is handled, and
// other links do not notice.
func TestMalformedBatches(t *testing.T) {
	n := startNode(t, func(b *Batch) {
		for i := range b.Calls {
			if string(b.Calls[i].User) != "good" {
				t.Errorf("handled: %+v", b.Calls[i])
			}
		}
		answerAll(b)
	})
	good := startLink(t, n.http.URL)
	big := make([]byte, headerBytes)
	binary.BigEndian.PutUint32(big, MaxFrame+1)
	for name, raw := range map[string][]byte{
		"empty frame":     {0, 0, 0, 0, frameBatch},
		"too large":       big,
		"replies":         frame(frameReplies, flagFirst, 0),
		"unknown type":    frame(99),
		"no calls":        frame(frameBatch, 0),
		"too many":        frame(frameBatch, binary.AppendUvarint(nil, batchCalls+1)...),
		"more than any":   frame(frameBatch, binary.AppendUvarint(nil, 1<<63)...),
		"missing calls":   frame(frameBatch, 2, 1, byte(OpPush), 0, 1, 'u', 0, 1, 'i', 0),
		"cut off":         frame(frameBatch, 1, 1, byte(OpPush), 0, 4, 'u'),
		"long user":       frame(frameBatch, 1, 1, byte(OpPush), 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 'u'),
		"without a ring":  finish([]byte{0, 0, 0, 0, frameBatch}),
		"HTTP once more":  []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"ring cut off":    finish([]byte{0, 0, 0, 0, frameBatch, 42, 1, 2}),
		"epoch too large": finish([]byte{0, 0, 0, 0, frameBatch, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}),
	} {
		l := NewLink(n.http.URL, func() string { return "token" })
		conn, br, err := l.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(raw); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		got, err := io.ReadAll(br)
		if e := net.Error(nil); len(got) > 0 || errors.As(err, &e) && e.Timeout() {
			t.Errorf("%s: answered %q, and the link did not end: %v", name, got, err)
		}
		_ = conn.Close()
		answered(t, do(good, "good"))
	}
}

// FuzzDecode feeds any bytes to both sides of a link: never a panic, nothing
// is made up, and each call ends at most once.
func FuzzDecode(f *testing.F) {
	call := []byte{1, byte(OpPush), flagJSON, 5, 'a', 'l', 'i', 'c', 'e', 1, 'd', 2, 'i', 'd', 2, '{', '}'}
	f.Add(frame(frameBatch, append([]byte{1}, call...)...))
	f.Add(frame(frameBatch, append(append([]byte{2}, call...), call...)...))
	f.Add(frame(frameBatch, 0))
	f.Add(frame(frameBatch, binary.AppendUvarint(nil, 1<<63)...))
	f.Add(frame(frameReplies, flagFirst, 2, 1, 0, 1, 2, 1, 0))
	f.Add(frame(frameReplies, 0, 1, 1, 0, 1))
	f.Add(frame(frameReplies, flagFirst, 2, 1, 0, 1, 1, 0, 2))
	f.Add(frame(frameReplies, flagFirst, 1, 77, 0, 1))
	f.Add([]byte{0, 0, 0, 0, 1})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, body, err := readFrame(bytes.NewReader(raw))
		if err != nil {
			body = raw
		}
		decodeBatch(t, body)
		decodeReplies(t, body)
	})
}

func decodeBatch(t *testing.T, body []byte) {
	b, ok := (&serving{}).decode(body)
	if !ok {
		return
	}
	if len(b.Calls) == 0 || len(b.Calls) > batchCalls || b.left != len(b.Calls) {
		t.Fatalf("%d calls, %d to answer", len(b.Calls), b.left)
	}
	size := 0
	var again []byte // the same batch as a caller would send it
	again = appendHeader(again, frameBatch, b.Ring)
	again = binary.AppendUvarint(again, uint64(len(b.Calls)))
	for _, in := range b.Calls {
		size += len(in.User) + len(in.Device) + len(in.ID) + len(in.Body)
		again = binary.AppendUvarint(again, in.id)
		again = append(again, byte(in.Op), map[bool]byte{true: flagJSON}[in.JSON])
		for _, v := range [][]byte{in.User, in.Device, in.ID, in.Body} {
			again = appendBytes(again, v)
		}
	}
	if size > len(body) {
		t.Fatalf("%d bytes of calls from %d", size, len(body))
	}
	c, ok := (&serving{}).decode(again[headerBytes:])
	if !ok || c.Ring != b.Ring || len(c.Calls) != len(b.Calls) {
		t.Fatalf("does not read what it would write: %+v, %+v", b, c)
	}
	for i := range b.Calls {
		x, y := b.Calls[i], c.Calls[i]
		if x.id != y.id || x.Op != y.Op || x.JSON != y.JSON || !bytes.Equal(x.User, y.User) || !bytes.Equal(x.Device, y.Device) ||
			!bytes.Equal(x.ID, y.ID) || !bytes.Equal(x.Body, y.Body) {
			t.Fatalf("call %d: %+v, then %+v", i, x, y)
		}
	}
}

func decodeReplies(t *testing.T, body []byte) {
	conn, other := net.Pipe()
	defer conn.Close()
	defer other.Close()
	l := NewLink("http://127.0.0.1", nil)
	ends := map[uint64]int{}
	for id := uint64(1); id <= 3; id++ {
		l.sent[id] = &Call{Done: func(c *Call) { ends[id]++ }}
	}
	err := l.replies(conn, body)
	for id, n := range ends {
		if n > 1 || l.sent[id] != nil {
			t.Fatalf("call %d ended %d times (%v), still waits: %v", id, n, err, l.sent[id] != nil)
		}
	}
	if len(ends)+len(l.sent) != 3 {
		t.Fatalf("%d ended, %d wait, of 3", len(ends), len(l.sent))
	}
}

// Numbers and hashes of rings travel unchanged.
func TestHeader(t *testing.T) {
	for _, ref := range []wire.RingRef{{}, {Epoch: 1, Hash: "00000000"}, nodeRing, {Epoch: 1<<64 - 1, Hash: "ffffffff"}} {
		b := finish(appendHeader(nil, frameBatch, ref))
		typ, body, err := readFrame(bytes.NewReader(b))
		r := reader{b: body}
		if got := r.ref(); err != nil || typ != frameBatch || got != ref || r.bad || len(r.b) != 0 {
			t.Errorf("%+v arrives as %+v (%v)", ref, got, err)
		}
	}
}
