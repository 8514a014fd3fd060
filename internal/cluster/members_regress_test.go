package cluster

import (
	"testing"
	"time"

	"github.com/dialring/dialring/internal/ring"
)

// Whoever took a suspect out goes on suspecting it as long as it beats.
func TestSuspicionOutlivesTheRing(t *testing.T) {
	w, by := ringOf(t, "a", "b", "c")
	w.others["two"], w.others["three"] = []string{"b1"}, nil
	w.unreachable(by["b"])
	w.until(6*second, "a1 c1")
	for begin := w.now; w.now.Sub(begin) < 10*second; w.step() {
		if w.suspects() != "b1" {
			t.Fatalf("%s after it took b out it suspects %q: b still beats and does not answer", w.now.Sub(begin), w.suspects())
		}
	}
}

// So the third locator, which reaches it, does not join it again.
func TestSyncSuspectStaysOut(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.abc()
		for _, l := range b.locs[:2] {
			b.block(mute, l, "c")
			l.keeper.Failed("c")
		}
		b.until(10*second, "a b", b.locs...)
		b.quiet(5 * time.Minute)
	})
}

// A node that crashes again and again is held off also when its next process
// takes a moment to start.
func TestSlowRestartsAreFlapping(t *testing.T) {
	f := startFlapper(t, func(f *flapper) time.Time {
		f.p.kill()
		f.w.s.evidence("b")
		left := f.untilOut()
		f.w.run(500 * time.Millisecond) // the next process takes a moment to start
		f.n++
		f.p = f.w.add("b", f.n)
		return left
	})
	for range flapHeld - 1 {
		f.stay(2 * second)
	}
	if out := f.stay(2 * second); out < flapHold {
		t.Errorf("held off for %s after its %d. short stay, want %s", out, flapHeld, flapHold)
	}
}

// A locator that has just started does not know when nodes joined, and does not
// take that for long ago.
func TestFreshLocatorKeepsFlaps(t *testing.T) {
	w, _ := ringOf(t, "a", "b")
	d := w.s.cur.With()
	d.Epoch++
	d.Flapping = []ring.Flaps{{ID: "b", Count: 4}}
	d.Seal()
	w.s = newMembers("new", "c")
	w.s.setRing(d, w.now)
	w.add("c", 1)
	w.until(3*second, "a1 b1 c1")
	if len(w.s.cur.Flapping) != 1 {
		t.Errorf("a locator that has just started forgot the flaps of b at the first change: %v", w.s.cur.Flapping)
	}
}

// One locator alone, whose path to a healthy node is refused (a firewall that
// rejects), takes it out once, and learns.
func TestSyncRefusedByOne(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.abc()
		b.quiet(300 * time.Millisecond)
		b.block(refuses, b.locs[0], "c")
		for range 120 {
			b.locs[0].keeper.Failed("c") // pushes
			time.Sleep(second)
		}
		if n := len(b.published()); n > 4 {
			t.Errorf("%d changes in two minutes", n)
		}
	})
}

// A count that was forgotten leaves nothing for the next one.
func TestStaleLeft(t *testing.T) {
	w, _ := ringOf(t, "a")
	w.withFlaps(1)
	w.run(flapForget + second)
	w.add("c", 1) // some change: the count is forgotten
	w.until(2*second, "a1 c1")
	p := w.add("b", 1)
	w.until(2*second, "a1 b1 c1")
	w.run(2 * second)
	p.kill()
	w.s.evidence("b")
	w.until(second, "a1 c1")
	if len(w.s.cur.Flapping) != 1 {
		t.Fatal("not counted")
	}
	w.add("d", 1)
	w.until(2*second, "a1 c1 d1")
	if len(w.s.cur.Flapping) != 1 {
		t.Error("forgotten 2 s after it left")
	}
}

// A heartbeat that was under way when its process was killed arrives after the
// first probe.
func TestLateHeartbeat(t *testing.T) {
	w, by := ringOf(t, "a", "b", "c")
	by["b"].kill()
	w.s.evidence("b")
	w.step()                           // the first probe is refused
	w.s.heard(by["b"].NodeBeat, w.now) // it was under way
	if took := w.until(6*second, "a1 c1"); took > 2*second {
		t.Errorf("out after %s", took)
	}
}
