package httpd

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// letIn has n requests come in an interval that begins at start, each of which has waited, and
// returns how many are let in.
func letIn(o *Overload, start time.Time, n int, wait time.Duration) (in int) {
	for i := range n {
		if o.enter(wait, start.Add(time.Duration(i)*overloadInterval/time.Duration(n))) {
			in++
			o.Leave()
		}
	}
	return in
}

func TestOverload(t *testing.T) {
	o := NewOverload(10)
	now := time.Now()
	next := func() time.Time { now = now.Add(overloadInterval); return now }
	const late, soon = overloadTarget + time.Millisecond, overloadTarget

	// A burst is none, nor is it if few wait, or if most do not.
	if n := letIn(o, next(), 1000, late); n != 1000 {
		t.Errorf("of a burst of 1000, %d are let in", n)
	}
	o = NewOverload(10)
	for range 20 {
		if n := letIn(o, next(), overloadSeen-1, late); n != overloadSeen-1 {
			t.Fatalf("of %d in an interval, %d are let in", overloadSeen-1, n)
		}
	}
	for range 20 {
		start := next()
		if n := letIn(o, start, 500, soon) + letIn(o, start, 499, late); n != 999 {
			t.Fatalf("of 999, most of which did not wait, %d are let in", n)
		}
	}
	// Who waits for longer is refused, but never all of them; who does not, is served.
	for range 20 {
		letIn(o, next(), 1000, late)
	}
	if n := letIn(o, next(), 10_000, late); n < 2000 || n > 3000 {
		t.Errorf("in overload %d of 10,000 are let in; every fourth should be", n)
	}
	if n := letIn(o, next(), 1000, soon); n != 1000 {
		t.Errorf("in overload %d of 1000 that did not wait are let in", n)
	}
	// It ends by itself: when they do not wait any more, and when nobody comes.
	share := o.Share()
	letIn(o, next(), 1, soon)
	if o.Share() <= share {
		t.Errorf("the share does not grow from %v: %v", share, o.Share())
	}
	now = now.Add(time.Minute)
	if n := letIn(o, now, 1000, late); n != 1000 {
		t.Errorf("a minute later %d of 1000 are let in", n)
	}
	if o.Running() != 0 {
		t.Errorf("%d are under way", o.Running())
	}
	// No more than the bound at a time.
	for i := range 12 {
		if got := o.enter(0, now); got != (i < 10) {
			t.Errorf("number %d at a time is let in: %v", i+1, got)
		}
	}
	if o.Leave(); !o.enter(0, now) || o.enter(0, now) {
		t.Error("a place that was left is not for one")
	}
}

func TestBusy(t *testing.T) {
	seen := map[int]bool{}
	for range 1000 {
		p := Busy("x")
		if p.Status != 503 || p.RetryAfter < 1 || p.RetryAfter > maxBusy {
			t.Fatalf("%+v", p)
		}
		seen[p.RetryAfter] = true
	}
	if len(seen) != maxBusy {
		t.Errorf("all come back after one of %v", seen)
	}
}

// How long a request has waited is seen also where it waited before anything of it was read.
func TestWaited(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // what is measured: nobody accepts it
	ctx, cancel := context.WithCancel(context.Background())
	waits, ended := make(chan time.Duration, 1), make(chan error, 1)
	go func() {
		ended <- Serve(ctx, l, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { waits <- waitedFor(r) }), slog.New(slog.DiscardHandler))
	}()
	if d := <-waits; waitsAreKnown && d < 80*time.Millisecond {
		t.Errorf("a request that waited for 100 ms says %v", d)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestInFlight(t *testing.T) {
	f := NewInFlight[string](2, 100, 150, 0, 0)
	enter := func(k string, bytes int64, want Full) {
		t.Helper()
		if got := f.Enter(k, bytes); got != want {
			t.Errorf("%s with %d bytes: %v, want %v", k, bytes, got, want)
		}
	}
	enter("a", 10, NotFull)
	enter("a", 91, FullBytes) // of the key
	enter("a", 90, NotFull)
	enter("a", 0, FullCalls)
	enter("b", 51, FullBytes) // of all
	enter("b", 50, NotFull)
	enter("c", 0, NotFull)
	if n, bytes := f.Load(); n != 4 || bytes != 150 {
		t.Errorf("%d calls, %d bytes", n, bytes)
	}
	f.Leave("a", 10)
	enter("a", 10, NotFull)
	for _, x := range []struct {
		k string
		n int64
	}{{"a", 90}, {"a", 10}, {"b", 50}, {"c", 0}} {
		f.Leave(x.k, x.n)
	}
	if n, bytes := f.Load(); n != 0 || bytes != 0 || len(f.by) != 0 {
		t.Errorf("%d calls, %d bytes, %d keys are left", n, bytes, len(f.by))
	}
	free := NewInFlight[string](-1, 100, 100, 0, 0)
	for range 1000 {
		if free.Enter("a", 0) != NotFull {
			t.Fatal("no limit refuses")
		}
	}
}

// Two that have all the bytes do not keep out a third that has few.
func TestInFlightReserve(t *testing.T) {
	f := NewInFlight[string](0, 100, 200, 10, 15)
	for _, c := range []struct {
		key   string
		bytes int64
		want  Full
	}{{"a", 100, NotFull}, {"b", 100, NotFull}, {"a", 1, FullBytes}, {"c", 11, FullBytes}, {"c", 6, NotFull}, {"c", 5, FullBytes}, {"d", 9, NotFull}, {"e", 1, FullBytes}} {
		if got := f.Enter(c.key, c.bytes); got != c.want {
			t.Errorf("%s with %d: %v, want %v", c.key, c.bytes, got, c.want)
		}
	}
	f.Leave("a", 100)
	if got := f.Enter("c", 50); got != NotFull {
		t.Errorf("when there is room again: %v", got)
	}
}

// A refusal waits for a while, or until its client has left; of too many, none does.
func TestOverloadHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := NewOverload(1)
		for range 100 {
			start := time.Now()
			if o.Hold(t.Context()); time.Since(start) < holdTime/2 || time.Since(start) > holdTime {
				t.Fatalf("held for %s", time.Since(start))
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		start := time.Now()
		for range maxHeld {
			wg.Go(func() { o.Hold(ctx) })
		}
		synctest.Wait()
		if o.Hold(ctx); time.Since(start) != 0 {
			t.Errorf("one too many is held for %s", time.Since(start))
		}
		cancel()
		if wg.Wait(); time.Since(start) != 0 {
			t.Errorf("those who have left are held for %s", time.Since(start))
		}
		if o.held.Load() != 0 {
			t.Errorf("%d are held, and nobody is", o.held.Load())
		}
	})
}
