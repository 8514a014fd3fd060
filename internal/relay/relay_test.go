package relay

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tcp returns both ends of a connection over loopback.
func tcp(t testing.TB) (near, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// joined returns the outer ends of a pair, and a channel that is closed when it ended. One of
// the inner ends is wrapped, as those of a locator's listener are.
func joined(t testing.TB) (client, server *net.TCPConn, p *Pair, ended chan struct{}) {
	t.Helper()
	client, in := tcp(t)
	out, server := tcp(t)
	ended = make(chan struct{})
	return client, server, Join(struct{ *net.TCPConn }{in}, out, func() { close(ended) }), ended
}

func within(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(30 * time.Second):
		t.Fatal("waited too long for " + what)
	}
}

// Both directions carry everything, and the end of one is heard at the other.
func TestJoin(t *testing.T) {
	client, server, _, ended := joined(t)
	sent := make([]byte, 3<<20)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(sent)
	var wg sync.WaitGroup
	for _, pair := range [][2]*net.TCPConn{{client, server}, {server, client}} {
		wg.Go(func() {
			_, err := pair[0].Write(sent)
			if err == nil {
				err = pair[0].CloseWrite()
			}
			if err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			got, err := io.ReadAll(pair[1])
			if err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%d bytes of %d arrived: %v", len(got), len(sent), err)
			}
		})
	}
	wg.Wait()
	within(t, "the end of the pair", ended)
}

// One side ends, and the other still may say what it has to.
func TestHalfClosed(t *testing.T) {
	client, server, _, ended := joined(t)
	if err := server.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(client); err != nil || len(b) != 0 {
		t.Fatalf("%q, %v", b, err)
	}
	if _, err := client.Write([]byte("bye")); err != nil {
		t.Fatal(err)
	}
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(server); err != nil || string(b) != "bye" {
		t.Fatalf("%q, %v", b, err)
	}
	within(t, "the end of the pair", ended)
}

// A side that is gone takes the other with it.
func TestReset(t *testing.T) {
	client, server, _, ended := joined(t)
	_ = client.SetLinger(0)
	client.Close()
	_, _ = io.ReadAll(server) // a reset, or its end
	within(t, "the end of the pair", ended)
}

func TestClose(t *testing.T) {
	client, server, p, ended := joined(t)
	p.Close()
	within(t, "the end of the pair", ended)
	for _, c := range []net.Conn{client, server} {
		_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("there was something to read")
		} else if ne, ok := err.(net.Error); ok && ne.Timeout() {
			t.Error("an end of a closed pair is open")
		}
	}
}

// What is read goes into a buffer of the pool, also where a listener has wrapped the connection.
func TestReader(t *testing.T) {
	for name, wrap := range map[string]func(*net.TCPConn) net.Conn{
		"TCP": func(c *net.TCPConn) net.Conn { return c }, "wrapped": func(c *net.TCPConn) net.Conn { return struct{ *net.TCPConn }{c} },
	} {
		near, far := tcp(t)
		if _, err := far.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if b, n, err := reader(wrap(near))(); err != nil || n != 1 || canAsk && len(*b) != bufferBytes {
			t.Errorf("%s: %d bytes into a buffer of %d, %v", name, n, len(*b), err)
		}
	}
}

// An idle pair holds no buffer.
func TestIdle(t *testing.T) {
	const pairs = 200
	var before, after runtime.MemStats
	for range 3 { // whatever the runtime keeps of the last test
		runtime.GC()
	}
	runtime.ReadMemStats(&before)
	var all []*Pair
	var ends []chan struct{}
	for range pairs {
		client, server, p, ended := joined(t)
		for _, c := range [][2]net.Conn{{client, server}, {server, client}} { // it has carried something
			if _, err := c[0].Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c[1], make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		all, ends = append(all, p), append(ends, ended)
	}
	for range 3 { // the pool lets go of what is not used for two collections
		runtime.GC()
	}
	runtime.ReadMemStats(&after)
	if each := (int64(after.HeapInuse) - int64(before.HeapInuse) + int64(after.StackInuse) - int64(before.StackInuse)) / pairs; each > bufferBytes/2 {
		t.Errorf("an idle pair costs %d bytes", each)
	} else {
		t.Logf("an idle pair and its four sockets cost %d bytes", each)
	}
	for i, p := range all {
		p.Close()
		within(t, "the end of a pair", ends[i])
	}
}
