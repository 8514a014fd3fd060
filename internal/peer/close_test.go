package peer

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// Close fails what waits, at any moment, and leaves nothing running (TestMain looks).
func TestLinkClose(t *testing.T) {
	n := startNode(t, func(*Batch) {}) // never answers
	for i := range 30 {
		l := NewLink(n.http.URL, func() string { return "token" })
		var calls []<-chan *Call
		for range i {
			calls = append(calls, do(l, "a"))
		}
		l.Close()
		calls = append(calls, do(l, "b"))
		for _, c := range calls {
			if x := await(t, "an end", c); !errors.Is(x.Err, ErrUnreachable) && !errors.Is(x.Err, ErrLost) {
				t.Fatalf("ended with %v", x.Err)
			}
		}
		if !l.Idle() {
			t.Fatal("closed and not idle")
		}
	}
}

// What waits for one node is bounded.
func TestBusy(t *testing.T) {
	hold, connected := make(chan struct{}), make(chan struct{}, 1)
	n := startNode(t, func(b *Batch) {
		connected <- struct{}{}
		<-hold
		answerAll(b)
	})
	l := startLink(t, n.http.URL)
	defer close(hold)
	do(l, "first")
	await(t, "a batch", connected)
	body := make([]byte, 8<<20)
	var errs []error
	for range 12 {
		c := do(l, "big", func(c *Call) { c.Body = body })
		select {
		case x := <-c:
			errs = append(errs, x.Err)
		default:
		}
	}
	if !slices.ContainsFunc(errs, func(err error) bool { return errors.Is(err, ErrBusy) }) {
		t.Errorf("96 MiB wait for a node that does not answer: %v", errs)
	}
}

// Many goroutines use a link that breaks again and again: each call ends
// exactly once, answered or with one of the two errors.
func TestBreakingLink(t *testing.T) {
	var count atomic.Int32
	n := startNode(t, func(b *Batch) {
		if count.Add(1)%5 == 0 {
			b.Drop()
			return
		}
		answerAll(b)
	})
	l := startLink(t, n.http.URL)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var wg sync.WaitGroup
	var ok, lost atomic.Int32
	for range 8 {
		wg.Go(func() {
			for range 100 {
				select {
				case c := <-do(l, "a"):
					switch {
					case c.Err == nil:
						ok.Add(1)
					case errors.Is(c.Err, ErrLost), errors.Is(c.Err, ErrUnreachable):
						lost.Add(1)
					default:
						t.Errorf("ended with %v", c.Err)
					}
				case <-ctx.Done():
					t.Error("a call does not end")
					return
				}
			}
		})
	}
	wg.Wait()
	if ok.Load() == 0 || lost.Load() == 0 || ok.Load()+lost.Load() != 800 {
		t.Errorf("%d answered, %d lost, of 800", ok.Load(), lost.Load())
	}
}

// A connection that ends by itself is told at once, even when nothing waits for
// an answer; one that Close ended is not.
func TestBroken(t *testing.T) {
	n := startNode(t, answerAll)
	l := NewLink(n.http.URL, func() string { return "token" })
	broken := make(chan struct{}, 2)
	l.Broken = func() { broken <- struct{}{} }
	if c := await(t, "an answer", do(l, "a")); c.Err != nil {
		t.Fatal(c.Err)
	}
	n.Server.Close()
	await(t, "word of the broken link", broken)
	l.Close()

	n = startNode(t, answerAll)
	l = NewLink(n.http.URL, func() string { return "token" })
	l.Broken = func() { t.Error("Close is told as a broken link") }
	if c := await(t, "an answer", do(l, "a")); c.Err != nil {
		t.Fatal(c.Err)
	}
	l.Close()
}
