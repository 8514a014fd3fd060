package cluster

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/ring"
)

// unreachable has a process's peer address answer nobody while its heartbeats
// go on, and somebody notice.
func (w *world) unreachable(procs ...*proc) {
	for _, p := range procs {
		p.peer = mute
		w.s.evidence(p.ID)
	}
}

func (w *world) suspects() string { return strings.Join(w.s.suspects(w.now), " ") }

// A node whose heartbeats come and that cannot be reached stays until most
// locators find that.
func TestMajorityOfSuspicion(t *testing.T) {
	t.Run("one of three", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c")
		w.others["two"], w.others["three"] = nil, nil
		w.unreachable(by["b"])
		w.stays(2*second, "a1 b1 c1")
		if w.suspects() != "" {
			t.Errorf("after 2 s it already suspects %q", w.suspects())
		}
		w.stays(3*second, "a1 b1 c1")
		if w.suspects() != "b1" {
			t.Errorf("after 5 s it suspects %q", w.suspects())
		}
		w.stays(60*second, "a1 b1 c1")
		by["b"].peer = answers
		w.run(2 * second)
		if w.suspects() != "" {
			t.Errorf("b answers, and it suspects %q", w.suspects())
		}
	})
	t.Run("two of three, this one included", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c")
		w.others["two"], w.others["three"] = []string{"b1"}, nil
		w.stays(10*second, "a1 b1 c1") // it is one alone
		w.unreachable(by["b"])
		if took := w.until(6*second, "a1 c1"); took < suspectAfter {
			t.Errorf("out after %s", took)
		}
		if c := w.last().Change; c.Reason != "crash" || c.Unrefused != 1 {
			t.Errorf("change %+v", c)
		}
	})
	t.Run("two of three, all but this one", func(t *testing.T) {
		w, _ := ringOf(t, "a", "b", "c")
		w.run(silentAfter) // it has heard for long enough to know who is there
		w.others["two"], w.others["three"] = []string{"b1"}, []string{"b1", "x9"}
		w.until(second, "a1 c1")
	})
	t.Run("two of four are not most", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c")
		w.others["two"], w.others["three"], w.others["four"] = []string{"b1"}, nil, nil
		w.unreachable(by["b"])
		w.stays(30*second, "a1 b1 c1")
	})
	t.Run("of another process with its id", func(t *testing.T) {
		w, _ := ringOf(t, "a", "b", "c")
		w.others["two"], w.others["three"] = []string{"b0"}, []string{"b2"}
		w.stays(30*second, "a1 b1 c1")
	})
	t.Run("a single locator", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c")
		w.unreachable(by["b"])
		took := w.until(6*second, "a1 c1")
		if took < suspectAfter || took > suspectAfter+1600*time.Millisecond {
			t.Errorf("out after %s", took)
		}
		if c := w.last().Change; c.Reason != "crash" || c.Unrefused != 1 {
			t.Errorf("change %+v", c)
		}
		w.stays(60*second, "a1 c1")
		by["b"].peer = answers
		if took := w.until(4*second, "a1 b1 c1"); took < settle {
			t.Errorf("joined again after %s", took)
		}
	})
	t.Run("answers now and then", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c")
		for range 10 {
			w.unreachable(by["b"])
			w.stays(2*second, "a1 b1 c1")
			by["b"].peer = answers
			w.stays(1600*time.Millisecond, "a1 b1 c1")
		}
	})
}

// Locators that are not heard any more have no say, and are not counted.
func TestSuspicionOfSilentLocators(t *testing.T) {
	for _, c := range []struct {
		age  time.Duration
		want string
	}{
		{silentAfter - 2*tick, "a1 c1"},
		{silentAfter, "a1 b1 c1"},
	} {
		w, _ := ringOf(t, "a", "b", "c")
		w.run(silentAfter)
		for _, id := range []string{"two", "three"} {
			w.s.locators[id] = locatorSeen{LocatorBeat{ID: id, Suspects: []string{"b1"}}, w.now.Add(-c.age)}
		}
		w.step() // at once, or not at all
		if w.ring() != c.want {
			t.Errorf("they were heard %s ago: the ring is %q, want %q", c.age, w.ring(), c.want)
		}
	}
	w, by := ringOf(t, "a", "b", "c")
	w.others["two"], w.others["three"] = nil, nil
	w.unreachable(by["b"])
	w.stays(20*second, "a1 b1 c1")
	clear(w.others) // two and three die: what is left is this one
	if took := w.until(4*second, "a1 c1"); took < silentAfter-2*tick {
		t.Errorf("out %s after the others were heard last", took)
	}
}

// While most suspect it, a node does not join either.
func TestSuspectDoesNotJoin(t *testing.T) {
	w, _ := ringOf(t, "a", "b", "c")
	w.run(silentAfter)
	w.others["two"], w.others["three"] = []string{"b1", "d1"}, []string{"b1", "d1"}
	w.until(second, "a1 c1")
	w.add("d", 1)
	w.stays(60*second, "a1 c1") // this locator reaches both
	w.others["two"] = []string{"d1"}
	w.until(2*second, "a1 b1 c1")
	w.stays(20*second, "a1 b1 c1")
	w.others["three"] = nil
	w.until(4*second, "a1 b1 c1 d1")
}

// However many suspect them: no more than half leave in half a minute.
func TestSuspicionIsBounded(t *testing.T) {
	t.Run("by this one", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c", "d")
		w.unreachable(by["a"], by["b"], by["c"], by["d"])
		w.run(8 * second)
		if n := len(w.s.cur.Nodes); n != 2 {
			t.Fatalf("%d nodes are left: %q", n, w.ring())
		}
		w.stays(20*second, w.ring())
	})
	t.Run("by all", func(t *testing.T) {
		w, _ := ringOf(t, "a", "b", "c", "d")
		all := []string{"a1", "b1", "c1", "d1"}
		w.others["two"], w.others["three"] = all, all
		w.run(8 * second)
		if n := len(w.s.cur.Nodes); n != 2 {
			t.Fatalf("%d nodes are left: %q", n, w.ring())
		}
		w.stays(20*second, w.ring())
	})
}

// doubted tells whether a node is doubted some time from now.
func (w *world) doubted(id string, in time.Duration) bool { return w.s.doubted(w.now.Add(in))[id] }

func TestDoubted(t *testing.T) {
	t.Run("until it answered", func(t *testing.T) {
		w, _ := ringOf(t, "a", "b")
		if w.doubted("b", 0) {
			t.Error("without evidence")
		}
		w.s.evidence("b")
		if !w.doubted("b", 0) || w.doubted("a", 0) {
			t.Error("b must be doubted right after evidence, and a must not")
		}
		due := w.s.due(w.now) // the probe is under way
		if len(due) != 1 || !w.doubted("b", 0) || !w.doubted("b", 400*time.Millisecond) {
			t.Fatalf("b must be doubted while it is probed (%d probes)", len(due))
		}
		due[0].ok, due[0].health.Boot = true, "b1"
		w.s.probed(due[0], w.now)
		if w.doubted("b", 0) {
			t.Error("it answered and is doubted")
		}
		w.s.evidence("b") // some are late
		if w.doubted("b", 0) || w.doubted("b", wantedAgain-time.Millisecond) {
			t.Error("it answered just now and is doubted again")
		}
		if len(w.s.due(w.now.Add(wantedAgain-time.Millisecond))) != 0 {
			t.Error("it is probed again at once")
		}
		if !w.doubted("b", wantedAgain) || len(w.s.due(w.now.Add(wantedAgain))) != 1 {
			t.Error("evidence is forgotten")
		}
	})
	t.Run("until it is out", func(t *testing.T) {
		w, by := ringOf(t, "a", "b")
		by["b"].kill()
		w.s.evidence("b")
		for begin := w.now; w.ring() != "a1"; w.step() {
			if !w.doubted("b", 0) {
				t.Fatalf("not doubted %s after the evidence", w.now.Sub(begin))
			}
		}
		if w.doubted("b", 0) {
			t.Error("out and doubted")
		}
	})
	t.Run("for 1.2 s at most", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c")
		w.others["two"] = nil
		w.unreachable(by["b"])
		w.step() // the first probe
		for sent := w.now; w.now.Sub(sent) < 10*second; w.step() {
			if after := w.now.Sub(sent); w.doubted("b", 0) != (after < doubtFor) {
				t.Fatalf("%s after the first probe: doubted %v", after, w.doubted("b", 0))
			}
			w.s.evidence("b") // it goes on
		}
		by["b"].peer = answers
		w.run(2 * second)
		w.s.evidence("b") // a doubt of its own
		if !w.doubted("b", wantedAgain) {
			t.Error("not doubted after it had answered")
		}
	})
	t.Run("not one with a restart grace", func(t *testing.T) { // it stays for longer than anybody waits
		w := newWorld(t)
		p := w.add("a", 1)
		p.GraceMS = 5000
		w.until(2*second, "a1")
		w.run(second)
		w.s.evidence("a")
		if w.doubted("a", 0) {
			t.Error("doubted")
		}
	})
}

// behindTimes runs for d and returns when b was listed, since the last change.
func (w *world) behindTimes(d time.Duration) (out []time.Duration) {
	w.t.Helper()
	for end := w.now.Add(d); w.now.Before(end); w.step() {
		since := w.now.Sub(w.s.curAt)
		for _, n := range w.s.behind(w.now) {
			if n.ID != "b" {
				w.t.Errorf("%s is behind", n.ID)
				continue
			}
			out = append(out, since)
		}
	}
	return out
}

func TestBehind(t *testing.T) {
	every := func(times []time.Duration) bool {
		for i, at := range times {
			if at != behindAfter+time.Duration(i)*behindAgain {
				return false
			}
		}
		return true
	}
	start := func(t *testing.T) (*world, *proc) {
		w, by := ringOf(t, "a", "b", "c", "d")
		w.run(2 * second) // all have reported that ring
		by["b"].stuck = true
		by["d"].kill()
		w.s.evidence("d")
		w.until(second, "a1 b1 c1")
		by["a"].nextBeat, by["c"].nextBeat = w.now, w.now // they have taken it
		return w, by["b"]
	}
	t.Run("until a heartbeat", func(t *testing.T) {
		w, b := start(t)
		if got := w.behindTimes(3 * second); len(got) != 6 || !every(got) {
			t.Errorf("behind at %v, want each %s from %s on", got, behindAgain, behindAfter)
		}
		w.report(b, w.s.cur.Epoch)
		if got := w.behindTimes(3 * second); len(got) != 0 {
			t.Errorf("it has the ring and is behind at %v", got)
		}
	})
	t.Run("until the answer to a probe", func(t *testing.T) {
		w, b := start(t)
		b.beating = false // it is cut off
		if got := w.behindTimes(4 * second); len(got) != 8 || !every(got) {
			t.Errorf("behind at %v", got)
		}
		b.Epoch = w.s.cur.Epoch // it took what it was sent
		w.behindTimes(600 * time.Millisecond)
		if got := w.behindTimes(5 * second); len(got) != 0 {
			t.Errorf("it has the ring and is behind at %v", got)
		}
	})
	t.Run("by the answer to a probe", func(t *testing.T) { // a locator that never heard it
		w, b := start(t)
		b.beating = false
		fresh := newMembers("new", "c")
		fresh.setRing(w.s.cur, w.now)
		p := probe{node: "b", boot: "b1", url: b.PeerURL}
		fresh.evidence("b")
		fresh.due(w.now)
		if got := fresh.behind(w.now.Add(second)); len(got) != 0 {
			t.Errorf("behind, of whom nothing is known: %v", got)
		}
		p.ok, p.health = true, Health{Boot: "b1", Epoch: b.Epoch}
		fresh.probed(p, w.now)
		if got := fresh.behind(w.now.Add(second)); !slices.ContainsFunc(got, func(n ring.Node) bool { return n.ID == "b" }) {
			t.Errorf("behind are %v, b has epoch %d of %d", got, b.Epoch, w.s.cur.Epoch)
		}
	})
	t.Run("not at once", func(t *testing.T) {
		w, _ := start(t)
		for w.now.Sub(w.s.curAt) < behindAfter {
			if got := w.s.behind(w.now); len(got) != 0 {
				t.Fatalf("behind after %s: %v", w.now.Sub(w.s.curAt), got)
			}
			w.step()
		}
		if got := w.s.behind(w.now); len(got) != 1 {
			t.Errorf("after %s: %v", behindAfter, got)
		}
	})
	t.Run("one that leaves", func(t *testing.T) {
		w, by := ringOf(t, "a", "b")
		w.run(2 * second)
		hold(by)
		w.drain(by["b"])
		by["a"].stuck, by["a"].nextBeat = false, w.now
		if got := w.behindTimes(2 * second); len(got) != 4 || !every(got) {
			t.Errorf("behind at %v", got)
		}
	})
}
