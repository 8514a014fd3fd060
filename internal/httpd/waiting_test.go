package httpd

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// waitingServer serves what answers each request when answer lets it.
func waitingServer(t *testing.T, most, perAddress int) (addr string, w *Waiting, answer chan struct{}, full *[2]atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	full, answer = new([2]atomic.Int64), make(chan struct{})
	w = NewWaiting(most, perAddress, func(byAddress bool) {
		if byAddress {
			full[1].Add(1)
		} else {
			full[0].Add(1)
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, l, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/hijack" {
				c, _, err := http.NewResponseController(rw).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				t.Cleanup(func() { c.Close() })
				_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\n\r\n")
				return
			}
			if r.URL.Path == "/known" {
				Vouch(r)
				Vouch(r)
			}
			<-answer
		}), slog.New(slog.DiscardHandler), w.Tune)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String(), w, answer, full
}

type waitingConn struct {
	net.Conn
	br *bufio.Reader
}

func waitingDial(t *testing.T, addr, from, send string) *waitingConn {
	t.Helper()
	c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, send); err != nil {
		t.Fatal(err)
	}
	return &waitingConn{c, bufio.NewReader(c)}
}

// status is that of a response, 0 if the connection ended without one.
func (c *waitingConn) status(t *testing.T) int {
	t.Helper()
	r, err := http.ReadResponse(c.br, nil)
	if err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, r.Body)
	r.Body.Close()
	return r.StatusCode
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: ", what)
		}
	}
}

const (
	waitingHalf  = "GET / HTTP/1.1\r\nHost: x\r\n"
	waitingWhole = waitingHalf + "\r\n"
	waitingKnown = "GET /known HTTP/1.1\r\nHost: x\r\n\r\n"
)

// Half-open connections do not keep others out: the oldest goes for each new one.
func TestWaitingOldestGoes(t *testing.T) {
	addr, w, answer, full := waitingServer(t, 4, 0)
	active := waitingDial(t, addr, "127.0.0.1", waitingWhole) // it is being answered: it stays
	waitFor(t, "the first is being answered", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.silent.Len() == 0 && len(w.conns) == 1 })
	var half []*waitingConn
	for i := range 4 {
		half = append(half, waitingDial(t, addr, "127.0.0.1", waitingHalf))
		waitFor(t, "it is counted", func() bool { return w.Len() == min(i+2, 4) })
	}
	if got := half[0].status(t); got != http.StatusServiceUnavailable {
		t.Errorf("the oldest half-open one was answered with %d, want 503", got)
	}
	if full[0].Load() != 1 || full[1].Load() != 0 {
		t.Errorf("counted %d and %d", full[0].Load(), full[1].Load())
	}
	close(answer)
	if got := active.status(t); got != http.StatusOK {
		t.Errorf("one that was being answered got %d", got)
	}
	// It is kept for a next request now, and goes before those that came a moment ago, without
	// a word.
	waitFor(t, "it is kept", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.kept.Len() == 1 })
	w.mu.Lock()
	for _, x := range w.conns {
		x.since = time.Now()
	}
	w.mu.Unlock()
	late := waitingDial(t, addr, "127.0.0.1", waitingWhole)
	if got := late.status(t); got != http.StatusOK {
		t.Errorf("a new one got %d", got)
	}
	if b, err := active.br.ReadByte(); err != io.EOF {
		t.Errorf("the kept one got %q, %v", b, err)
	}
	for _, c := range half[1:] {
		if _, err := io.WriteString(c, "\r\n"); err != nil {
			t.Fatal(err)
		}
		if got := c.status(t); got != http.StatusOK {
			t.Errorf("a younger half-open one got %d", got)
		}
	}
}

// When all that there are are being answered, the new one is refused.
func TestWaitingAllActive(t *testing.T) {
	addr, w, answer, full := waitingServer(t, 1, 0)
	first := waitingDial(t, addr, "127.0.0.1", waitingWhole)
	waitFor(t, "it is being answered", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.silent.Len() == 0 && len(w.conns) == 1 })
	if got := waitingDial(t, addr, "127.0.0.1", "").status(t); got != http.StatusServiceUnavailable {
		t.Errorf("one more was answered with %d, want 503", got)
	}
	close(answer)
	if got := first.status(t); got != http.StatusOK || full[0].Load() != 1 {
		t.Errorf("the first got %d; %d were refused", got, full[0].Load())
	}
}

// One address has no more than its share; others, and those that were taken over, do not count.
func TestWaitingByAddress(t *testing.T) {
	addr, w, _, full := waitingServer(t, 100, 2)
	for range 3 {
		if got := waitingDial(t, addr, "127.0.0.1", "GET /hijack HTTP/1.1\r\nHost: x\r\n\r\n").status(t); got != http.StatusSwitchingProtocols {
			t.Fatalf("hijacked: %d", got)
		}
	}
	waitFor(t, "they do not count", func() bool { return w.Len() == 0 })
	first := waitingDial(t, addr, "127.0.0.1", waitingHalf)
	waitingDial(t, addr, "127.0.0.1", waitingHalf)
	waitFor(t, "two wait", func() bool { return w.Len() == 2 })
	if got := waitingDial(t, addr, "127.0.0.1", "").status(t); got != http.StatusTooManyRequests {
		t.Errorf("a third of one address was answered with %d, want 429", got)
	}
	waitingDial(t, addr, "127.0.0.2", waitingHalf)
	waitFor(t, "another address has a share", func() bool { return w.Len() == 3 })
	if full[0].Load() != 0 || full[1].Load() != 1 {
		t.Errorf("counted %d and %d", full[0].Load(), full[1].Load())
	}
	first.Close()
	waitFor(t, "it has ended", func() bool { return w.Len() == 2 })
	waitingDial(t, addr, "127.0.0.1", waitingHalf)
	waitFor(t, "there is room", func() bool { return w.Len() == 3 })
}

// Those that a service keeps open stay while others say nothing: who has been silent for a
// second goes first, then the one that was not used for longest.
func TestWaitingKept(t *testing.T) {
	addr, w, answer, full := waitingServer(t, 4, 0)
	close(answer)
	var kept []*waitingConn
	for range 3 {
		c := waitingDial(t, addr, "127.0.0.1", waitingWhole)
		if got := c.status(t); got != http.StatusOK {
			t.Fatal(got)
		}
		kept = append(kept, c)
		waitFor(t, "it is kept", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.kept.Len() == len(kept) })
	}
	silent := waitingDial(t, addr, "127.0.0.1", waitingHalf)
	waitFor(t, "four wait", func() bool { return w.Len() == 4 })
	age := func(by time.Duration) { // as if that had passed
		w.mu.Lock()
		defer w.mu.Unlock()
		for e := w.silent.Front(); e != nil; e = e.Next() {
			w.conns[e.Value.(net.Conn)].since = time.Now().Add(-by)
		}
	}
	age(2 * silence)
	again := waitingDial(t, addr, "127.0.0.1", waitingHalf)
	if got := silent.status(t); got != http.StatusServiceUnavailable {
		t.Errorf("the silent one got %d", got)
	}
	waitFor(t, "four wait", func() bool { return w.Len() == 4 })
	if _, err := io.WriteString(kept[0], waitingWhole); err != nil || kept[0].status(t) != http.StatusOK { // now the second is idle for longest
		t.Fatal("a kept one is not answered: ", err)
	}
	waitFor(t, "it is kept again", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.kept.Len() == 3 })
	age(0)
	waitingDial(t, addr, "127.0.0.1", waitingHalf)
	if b, err := kept[1].br.ReadByte(); err != io.EOF {
		t.Errorf("the one that was idle for longest got %q, %v", b, err)
	}
	for _, c := range []*waitingConn{kept[0], kept[2]} {
		if _, err := io.WriteString(c, waitingWhole); err != nil || c.status(t) != http.StatusOK {
			t.Errorf("another kept one went: %v", err)
		}
	}
	if _, err := io.WriteString(again, "\r\n"); err != nil || again.status(t) != http.StatusOK {
		t.Errorf("a newcomer that asks went: %v", err)
	}
	if full[0].Load() != 2 {
		t.Errorf("counted %d", full[0].Load())
	}
}

// Who is known does not count for the address, nor does one that is exempt.
func TestWaitingVouched(t *testing.T) {
	addr, w, answer, _ := waitingServer(t, 100, 2)
	close(answer)
	for range 4 {
		if got := waitingDial(t, addr, "127.0.0.1", waitingKnown).status(t); got != http.StatusOK {
			t.Fatalf("one that is known: %d", got)
		}
	}
	w.mu.Lock()
	if len(w.by) != 0 || len(w.conns) != 4 {
		t.Errorf("%v count, of %d", w.by, len(w.conns))
	}
	w.Exempt = func(a netip.Addr) bool { return a == netip.MustParseAddr("127.0.0.3") }
	w.mu.Unlock()
	for range 3 {
		waitingDial(t, addr, "127.0.0.3", waitingHalf)
	}
	waitFor(t, "all of them wait", func() bool { return w.Len() == 7 })
}

// Strangers, however many, take no connection of who is known.
func TestWaitingKnownStay(t *testing.T) {
	const most = 6
	addr, w, answer, full := waitingServer(t, most, 0)
	close(answer)
	keep := func(ask string, n int) (kept []*waitingConn) {
		for range n {
			c := waitingDial(t, addr, "127.0.0.1", ask)
			if got := c.status(t); got != http.StatusOK {
				t.Fatal(got)
			}
			kept = append(kept, c)
			waitFor(t, "it is kept", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.kept.Len()+w.known.Len() == len(w.conns) })
		}
		return kept
	}
	known := keep(waitingKnown, most/2)
	keep(waitingWhole, most/2)
	for i := range 3 * most {
		waitingDial(t, addr, "127.0.0.1", waitingHalf)
		waitFor(t, "another one went", func() bool { return full[0].Load() == int64(i+1) })
	}
	for _, c := range known {
		if _, err := io.WriteString(c, waitingKnown); err != nil || c.status(t) != http.StatusOK {
			t.Errorf("one that is known went: %v", err)
		}
	}
}

// Who is known has half in any case, and the rest only while nobody else wants it.
func TestWaitingKnownHalf(t *testing.T) {
	const most = 4
	addr, w, answer, _ := waitingServer(t, most, 0)
	close(answer)
	var known []*waitingConn
	for i := range most {
		c := waitingDial(t, addr, "127.0.0.1", waitingKnown)
		if got := c.status(t); got != http.StatusOK {
			t.Fatal(got)
		}
		known = append(known, c)
		waitFor(t, "it is kept", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.known.Len() == i+1 })
	}
	stranger := waitingDial(t, addr, "127.0.0.1", waitingHalf)
	if b, err := known[0].br.ReadByte(); err != io.EOF {
		t.Errorf("the one that was idle for longest got %q, %v", b, err)
	}
	if _, err := io.WriteString(stranger, "\r\n"); err != nil || stranger.status(t) != http.StatusOK {
		t.Errorf("the stranger went: %v", err)
	}
}
