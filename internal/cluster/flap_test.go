package cluster

import (
	"testing"
	"time"

	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/wire"
)

// flapper is a node b that joins and leaves beside a, in the one way or the other.
type flapper struct {
	w *world
	p *proc
	n int // which process it is
	// leave makes it leave, and come back outside the ring right after; it returns
	// when it was out of the ring.
	leave func(*flapper) time.Time
}

func startFlapper(t *testing.T, leave func(*flapper) time.Time) *flapper {
	t.Helper()
	w, _ := ringOf(t, "a")
	f := &flapper{w: w, p: w.add("b", 1), n: 1, leave: leave}
	f.comeBack(w.now)
	return f
}

func (f *flapper) in() bool { _, in := f.w.s.cur.Find("b"); return in }

// comeBack waits until b is in the ring and returns how long it was out.
func (f *flapper) comeBack(left time.Time) time.Duration {
	f.w.t.Helper()
	for !f.in() {
		if f.w.now.Sub(left) > time.Hour {
			f.w.t.Fatal("it never joined again")
		}
		f.w.step()
	}
	return f.w.now.Sub(left)
}

// stay lets b be in the ring for d, leave, and come back.
func (f *flapper) stay(d time.Duration) (out time.Duration) {
	f.w.t.Helper()
	f.w.run(d)
	return f.comeBack(f.leave(f))
}

func (f *flapper) untilOut() time.Time {
	f.w.t.Helper()
	for begin := f.w.now; f.in(); f.w.step() {
		if f.w.now.Sub(begin) > 10*second {
			f.w.t.Fatal("it does not leave")
		}
	}
	return f.w.now
}

// crashes: kill -9, evidence, and a new process at once.
func crashes(f *flapper) time.Time {
	f.p.kill()
	f.w.s.evidence("b")
	left := f.untilOut()
	f.n++
	f.p = f.w.add("b", f.n)
	return left
}

// drains: the process leaves, has no sessions left, ends, and a new one starts.
func drains(f *flapper) time.Time {
	f.p.State, f.p.nextBeat = wire.StateDraining, f.w.now
	left := f.untilOut()
	for len(f.w.s.cur.Leaving) > 0 {
		f.p.nextBeat = f.w.now
		f.w.step()
	}
	f.p.kill()
	f.n++
	f.p = f.w.add("b", f.n)
	return left
}

// undrains: the same process leaves and wants to join again.
func undrains(f *flapper) time.Time {
	f.p.State, f.p.nextBeat = wire.StateDraining, f.w.now
	left := f.untilOut()
	for len(f.w.s.cur.Leaving) > 0 {
		f.p.nextBeat = f.w.now
		f.w.step()
	}
	f.p.State, f.p.nextBeat = wire.StateActive, f.w.now
	return left
}

// Who joins and leaves all the time is held off, twice as long each time.
func TestFlapping(t *testing.T) {
	for name, leave := range map[string]func(*flapper) time.Time{"crashes": crashes, "drains": drains, "undrains": undrains} {
		t.Run(name, func(t *testing.T) {
			f := startFlapper(t, leave)
			for i := range flapHeld - 1 {
				if out := f.stay(2 * second); out > 4*second {
					t.Errorf("after its %d. short stay it was held off for %s", i+1, out)
				}
			}
			var outs []time.Duration
			for range 8 {
				outs = append(outs, f.stay(2*second))
			}
			if outs[0] < flapHold || outs[0] > flapHold+3*second {
				t.Fatalf("held off for %v, want %s at first", outs, flapHold)
			}
			for i := 1; i < len(outs); i++ {
				ratio := float64(outs[i]) / float64(outs[i-1])
				switch {
				case outs[i] > flapMost+3*second:
					t.Errorf("held off for %v, want at most %s", outs, flapMost)
				case outs[i] < flapMost && (ratio < 1.7 || ratio > 2.1):
					t.Errorf("held off for %v: %.2f times the one before", outs, ratio)
				}
			}
			if outs[7] < flapMost {
				t.Errorf("held off for %v, want %s at last", outs, flapMost)
			}
			// A stay that is not short makes good for all of them.
			if out := f.stay(flapStay + second); out > 4*second {
				t.Errorf("held off for %s after a minute in the ring", out)
			}
		})
	}
}

func TestLongStaysAreNoFlapping(t *testing.T) {
	for name, leave := range map[string]func(*flapper) time.Time{"crashes": crashes, "drains": drains} {
		t.Run(name, func(t *testing.T) {
			f := startFlapper(t, leave)
			for range 8 {
				if out := f.stay(flapStay + second); out > 4*second {
					t.Fatalf("held off for %s", out)
				}
				if l := f.w.s.cur.Flapping; len(l) != 0 {
					t.Fatalf("counted: %v", l)
				}
			}
		})
	}
}

// withFlaps publishes that b, which is not in the ring, has flapped n times.
func (w *world) withFlaps(n int) {
	d := w.s.cur.With()
	d.Epoch++
	d.Flapping = []ring.Flaps{{ID: "b", Count: n}}
	d.Seal()
	w.s.setRing(d, w.now)
}

// How often it has flapped is in the document: a locator that has just started,
// and one that publishes nothing, hold it off as well.
func TestFlappingIsPublished(t *testing.T) {
	for _, c := range []struct {
		flaps int
		hold  time.Duration
	}{{0, 0}, {2, 0}, {3, flapHold}, {4, 2 * flapHold}, {7, 16 * flapHold}, {8, flapMost}, {100, flapMost}, {1 << 40, flapMost}} {
		w, _ := ringOf(t, "a")
		w.withFlaps(c.flaps)
		doc := w.s.cur
		w.s = newMembers("new", "c") // all that it has is the document
		w.s.setRing(doc, w.now)
		w.add("b", 1)
		took := w.until(flapMost+5*second, "a1 b1")
		if want := max(c.hold, settle); took < want || took > want+200*time.Millisecond {
			t.Errorf("after %d flaps it was held off for %s, want %s", c.flaps, took, want)
		}
	}
}

// Ten minutes after it left the count is gone.
func TestFlapsAreForgotten(t *testing.T) {
	w, _ := ringOf(t, "a")
	w.withFlaps(5)
	w.run(flapForget - 10*second)
	w.add("c", 1) // some change
	w.until(2*second, "a1 c1")
	if l := w.s.cur.Flapping; len(l) != 1 || l[0].Count != 5 {
		t.Errorf("before ten minutes are over: %v", l)
	}
	w.run(10 * second)
	w.add("b", 1)
	w.until(2*second, "a1 b1 c1")
	if l := w.s.cur.Flapping; len(l) != 0 {
		t.Errorf("ten minutes later: %v", l)
	}
}

// Others that join or leave meanwhile do not shorten it, and are not held off.
func TestFlappingOfOneHoldsNobodyElse(t *testing.T) {
	w, _ := ringOf(t, "a")
	w.withFlaps(3)
	begin := w.now
	w.add("b", 1)
	w.run(2 * second)
	w.add("c", 1)
	w.until(2*second, "a1 c1")
	w.until(flapHold, "a1 b1 c1")
	if took := w.now.Sub(begin); took < flapHold {
		t.Errorf("held off for %s", took)
	}
}

// A killed node keeps its place for its grace; a new process takes it over.
func TestRestartGrace(t *testing.T) {
	const grace = 20 * second
	start := func(t *testing.T) (*world, *proc) {
		w := newWorld(t)
		w.add("a", 1)
		w.add("c", 1)
		b := w.add("b", 1)
		b.GraceMS = grace.Milliseconds()
		w.until(2*second, "a1 b1 c1")
		w.run(2 * second)
		return w, b
	}
	again := func(w *world) *proc {
		p := w.add("b", 2)
		p.GraceMS = grace.Milliseconds()
		return p
	}
	t.Run("a new process within it", func(t *testing.T) {
		w, b := start(t)
		before, n := w.s.cur, len(w.changes)
		b.kill()
		w.s.evidence("b")
		w.stays(grace-2*second, "a1 b1 c1")
		again(w)
		if took := w.until(second, "a1 b2 c1"); took > 300*time.Millisecond {
			t.Errorf("it took its place %s after it was there", took)
		}
		if len(w.changes) != n+1 || len(w.s.cur.Handoffs) != 0 {
			t.Errorf("%d changes, handoffs %q", len(w.changes)-n, w.unfinished())
		}
		w.wantReason("restart [b]")
		sameOwners(t, before, w.s.cur)
		w.stays(60*second, "a1 b2 c1")
	})
	t.Run("at another address", func(t *testing.T) {
		w, b := start(t)
		before := w.s.cur
		b.kill()
		w.s.evidence("b")
		w.run(5 * second)
		p := again(w)
		p.URL, p.PeerURL = "ws://other.test/v1/ws", "http://other.test:8092"
		w.until(second, "a1 b2 c1")
		sameOwners(t, before, w.s.cur)
	})
	t.Run("a slow start", func(t *testing.T) { // it answers before it sends heartbeats
		w, b := start(t)
		b.kill()
		w.s.evidence("b")
		w.run(5 * second)
		p := again(w)
		p.beating = false
		w.stays(10*second, "a1 b1 c1")
		p.beating = true
		w.until(second, "a1 b2 c1")
	})
	t.Run("without a new process", func(t *testing.T) {
		w, b := start(t)
		b.kill()
		w.s.evidence("b")
		if took := w.until(grace+2*second, "a1 c1"); took < grace || took > grace+1200*time.Millisecond {
			t.Errorf("out after %s", took)
		}
		w.wantReason("crash [b]")
		again(w) // too late: it joins as any other
		if took := w.until(3*second, "a1 b2 c1"); took < settle {
			t.Errorf("joined after %s", took)
		}
	})
	t.Run("without evidence", func(t *testing.T) {
		w, b := start(t)
		b.kill()
		if took := w.until(grace+silentAfter+2*second, "a1 c1"); took < grace+silentAfter-BeatInterval {
			t.Errorf("out after %s", took)
		}
	})
	t.Run("of a frozen one", func(t *testing.T) {
		w, b := start(t)
		b.freeze()
		w.stays(grace, "a1 b1 c1")
		b.beating, b.public, b.peer = true, answers, answers
		w.stays(60*second, "a1 b1 c1")
	})
	t.Run("each death has its own", func(t *testing.T) {
		w, b := start(t)
		b.kill()
		w.s.evidence("b")
		w.run(15 * second)
		p := again(w)
		w.until(second, "a1 b2 c1")
		w.run(2 * second)
		p.kill()
		w.s.evidence("b")
		w.stays(grace, "a1 b2 c1")
		w.until(2*second, "a1 c1")
	})
	t.Run("others have none", func(t *testing.T) {
		w, _ := start(t)
		w.procs[0].kill()
		w.s.evidence("a")
		w.until(300*time.Millisecond, "b1 c1")
	})
}
