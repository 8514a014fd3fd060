package cluster

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/wire"
)

// hold makes what processes report the test's own, from what they reported last.
func hold(procs map[string]*proc) {
	for _, p := range procs {
		p.stuck = true
	}
}

// report has a process say, by a heartbeat, that it goes by an epoch and that
// none of its sessions is misplaced by it.
func (w *world) report(p *proc, epoch uint64) {
	w.t.Helper()
	p.Epoch, p.Settled, p.nextBeat = epoch, epoch, w.now
	w.step()
}

// drain has processes say that they drain, in one step.
func (w *world) drain(procs ...*proc) {
	w.t.Helper()
	for _, p := range procs {
		p.State, p.nextBeat = wire.StateDraining, w.now
	}
	w.step()
}

// unfinished is the handoffs of the published ring: "1 join [d] of a=1 b=1 for [a b]".
func (w *world) unfinished() string {
	var l []string
	for _, h := range w.s.cur.Handoffs {
		var members []string
		for _, id := range slices.Sorted(maps.Keys(h.Members)) {
			members = append(members, fmt.Sprintf("%s=%d", id, h.Members[id]))
		}
		l = append(l, fmt.Sprintf("%d %s %v of %s for %v", h.Epoch, h.Reason, h.Nodes, strings.Join(members, " "), h.Pending))
	}
	return strings.Join(l, "; ")
}

// leaving is the processes that own nobody and still hold sessions.
func (w *world) leaving() string {
	var l []string
	for _, n := range w.s.cur.Leaving {
		l = append(l, n.Boot)
	}
	return strings.Join(l, " ")
}

// is fails unless the published ring, who leaves it and its handoffs are these.
func (w *world) is(ring, leaving, handoffs string) {
	w.t.Helper()
	if w.ring() != ring || w.leaving() != leaving || w.unfinished() != handoffs {
		w.t.Fatalf("ring %q, leaving %q, handoffs %q; want %q, %q, %q", w.ring(), w.leaving(), w.unfinished(), ring, leaving, handoffs)
	}
}

// reason is the newest change: "join [d]".
func (w *world) reason() string {
	c := w.last().Change
	return fmt.Sprintf("%s %v", c.Reason, c.Nodes)
}

func (w *world) wantReason(want string) {
	w.t.Helper()
	if got := w.reason(); got != want {
		w.t.Fatalf("the change is %q, want %q", got, want)
	}
}

const joinOfD = "1 join [d] of a=1 b=1 c=1 for [a b c]"

// joinedBy makes a ring of a, b and c that another node has just joined; nobody
// has reported.
func joinedBy(t *testing.T, id string) (*world, map[string]*proc) {
	t.Helper()
	w, by := ringOf(t, "a", "b", "c")
	w.is("a1 b1 c1", "", "") // the first ring takes users from nobody
	hold(by)
	by[id] = w.add(id, 1)
	w.until(2*second, "a1 b1 c1 "+id+"1")
	return w, by
}

func TestHandoffOfJoin(t *testing.T) {
	w, by := joinedBy(t, "d")
	w.is("a1 b1 c1 d1", "", joinOfD)
	w.wantReason("join [d]")
	w.stays(10*second, "a1 b1 c1 d1")
	w.report(by["a"], 1) // that is by the ring before
	w.report(by["b"], 2)
	w.report(by["c"], 2)
	w.is("a1 b1 c1 d1", "", joinOfD)
	if v := w.s.handoffView(); len(v) != 1 || v[0].FromEpoch != 1 || len(v[0].Pending) != 1 || v[0].Pending[0].Node != "a" {
		t.Errorf("shown as %+v, want a to be waited for alone", v)
	}
	w.run(10 * second)
	w.is("a1 b1 c1 d1", "", joinOfD)
	epoch := w.s.cur.Epoch
	w.report(by["a"], 2)
	w.is("a1 b1 c1 d1", "", "")
	w.wantReason("handoff [d]")
	if w.s.cur.Epoch != epoch+1 || len(w.s.handoffView()) != 0 {
		t.Errorf("epoch %d after %d, %+v", w.s.cur.Epoch, epoch, w.s.handoffView())
	}
	n := len(w.changes)
	w.run(20 * second)
	if len(w.changes) != n {
		t.Errorf("%d changes for nothing", len(w.changes)-n)
	}
}

func TestHandoffOfDrain(t *testing.T) {
	w, by := ringOf(t, "a", "b", "c")
	hold(by)
	w.drain(by["b"])
	const handoff = "1 leave [b] of a=1 b=1 c=1 for [b]"
	w.is("a1 c1", "b1", handoff)
	w.wantReason("leave [b]")
	if w.state("b") != wire.StateDraining {
		t.Errorf("shown as %q", w.state("b"))
	}
	w.run(20 * second)
	w.report(by["a"], 2) // nobody waits for these
	w.report(by["c"], 2)
	w.report(by["b"], 1)
	w.is("a1 c1", "b1", handoff)
	w.report(by["b"], 2)
	w.is("a1 c1", "", "")
	w.wantReason("handoff [b]")
	w.stays(20*second, "a1 c1") // its heartbeats go on
}

func TestHandoffOfTheLastNode(t *testing.T) {
	w, by := ringOf(t, "a")
	hold(by)
	w.drain(by["a"])
	w.is("", "a1", "1 leave [a] of a=1 for [a]")
	w.report(by["a"], 2)
	w.is("", "", "")
}

// A crash: its sessions are gone, and nobody else loses a user.
func TestCrashStartsNoHandoff(t *testing.T) {
	w, by := ringOf(t, "a", "b", "c")
	hold(by)
	by["b"].kill()
	w.s.evidence("b")
	w.until(second, "a1 c1")
	w.is("a1 c1", "", "")
	w.wantReason("crash [b]")
}

func TestCrashDuringHandoff(t *testing.T) {
	t.Run("of one that is waited for", func(t *testing.T) {
		w, by := joinedBy(t, "d")
		by["b"].kill()
		w.s.evidence("b")
		if took := w.until(second, "a1 c1 d1"); took > 300*time.Millisecond {
			t.Errorf("out after %s: it waited for the handoff", took)
		}
		w.is("a1 c1 d1", "", "1 join [d] of a=1 b=1 c=1 for [a c]")
		w.wantReason("crash [b]")
		w.report(by["a"], 2)
		w.report(by["c"], 2) // by the epoch of the join is enough
		w.is("a1 c1 d1", "", "")
	})
	t.Run("of the last one that is waited for", func(t *testing.T) {
		w, by := joinedBy(t, "d")
		w.report(by["a"], 2)
		w.report(by["c"], 2)
		by["b"].kill()
		w.s.evidence("b")
		w.until(second, "a1 c1 d1")
		w.is("a1 c1 d1", "", "")
		w.wantReason("crash+handoff [b]") // d is well
	})
	t.Run("of the joiner", func(t *testing.T) {
		w, by := joinedBy(t, "d")
		by["d"].kill()
		w.s.evidence("d")
		w.until(second, "a1 b1 c1")
		w.is("a1 b1 c1", "", joinOfD)
		for _, user := range []string{"u1", "u2", "u3", "u4"} { // they are where they were
			if f := ring.New(w.s.cur).Former(user); len(f) > 0 {
				t.Errorf("%s is looked for at %s besides its owner", user, f[0].ID)
			}
		}
		for _, id := range []string{"a", "b", "c"} {
			w.report(by[id], 3)
		}
		w.is("a1 b1 c1", "", "")
	})
	t.Run("of a leaving node", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c")
		hold(by)
		w.drain(by["b"])
		w.is("a1 c1", "b1", "1 leave [b] of a=1 b=1 c=1 for [b]")
		by["b"].kill()
		w.s.evidence("b")
		for begin := w.now; w.leaving() != ""; w.step() {
			if w.now.Sub(begin) > 300*time.Millisecond {
				t.Fatal("it is still leaving")
			}
		}
		w.is("a1 c1", "", "")
		w.wantReason("crash+handoff [b]")
	})
	// Such a node ended well, and nobody is told that it is lost.
	well := func(w *world, id string, before ring.Document) {
		w.t.Helper()
		if lost := lostNodes(before, w.last()); slices.Contains(lost, id) {
			w.t.Errorf("told as lost: %v", lost)
		}
		if _, crashed := w.s.crashed[id]; crashed {
			w.t.Errorf("%s is kept as crashed", id)
		}
	}
	t.Run("not of a leaving node that had reported", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c")
		hold(by)
		w.drain(by["b"])
		w.slow = true
		w.report(by["b"], 2)
		by["b"].kill() // it has ended
		w.s.evidence("b")
		w.run(second)
		w.is("a1 c1", "b1", "1 leave [b] of a=1 b=1 c=1 for [b]")
		if n := w.s.m["b"].peer.refused; n < 2 {
			t.Fatalf("%d probes were refused: it is not missed yet", n)
		}
		w.slow = false
		before := w.s.cur
		w.step()
		w.is("a1 c1", "", "")
		w.wantReason("handoff [b]")
		well(w, "b", before)
	})
	t.Run("not of one of two leaving nodes that had reported", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c")
		hold(by)
		w.drain(by["b"], by["c"])
		w.is("a1", "b1 c1", "1 leave [b c] of a=1 b=1 c=1 for [b c]")
		before := w.s.cur
		w.report(by["b"], 2) // it may end, and nobody asks it for its former users any more
		w.is("a1", "c1", "1 leave [b c] of a=1 b=1 c=1 for [c]")
		w.wantReason("handoff [b]")
		well(w, "b", before)
		by["b"].kill()
		w.s.evidence("b")
		w.run(second)
		w.is("a1", "c1", "1 leave [b c] of a=1 b=1 c=1 for [c]")
	})
	t.Run("of another one, as a leaving node reports", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c")
		hold(by)
		w.drain(by["b"], by["c"])
		w.slow = true
		w.report(by["b"], 2)
		by["b"].kill()
		by["c"].kill()
		w.s.evidence("b")
		w.s.evidence("c")
		w.run(second)
		w.slow = false
		before := w.s.cur
		w.step()
		w.is("a1", "b1", "1 leave [b c] of a=1 b=1 c=1 for [b]")
		w.wantReason("crash [c]")
		if lost := lostNodes(before, w.last()); !slices.Equal(lost, []string{"c"}) {
			t.Errorf("told as lost: %v", lost)
		}
		before = w.s.cur
		w.step()
		w.is("a1", "", "")
		well(w, "b", before)
	})
	t.Run("of a leaving node, by its silence", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c")
		hold(by)
		w.drain(by["b"])
		by["b"].freeze()
		w.run(6 * second)
		w.is("a1 c1", "", "")
	})
	t.Run("a restart in place", func(t *testing.T) {
		w, by := joinedBy(t, "d")
		before := w.s.cur
		by["b"].kill()
		w.add("b", 2) // it has no sessions, and says so
		w.until(second, "a1 b2 c1 d1")
		w.wantReason("restart [b]")
		sameOwners(t, before, w.s.cur)
		if len(w.s.cur.Handoffs) != 1 {
			t.Fatalf("handoffs %q", w.unfinished())
		}
		w.run(2 * second)
		w.report(by["a"], 2)
		if len(w.s.cur.Handoffs) != 1 {
			t.Fatal("c has not reported yet")
		}
		w.report(by["c"], 2)
		w.is("a1 b2 c1 d1", "", "")
	})
	t.Run("a restart of a leaving node", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c")
		hold(by)
		w.drain(by["b"])
		by["b"].kill()
		w.add("b", 2)
		w.until(8*second, "a1 b2 c1") // it joins as any other
		hold(by)
		if len(w.s.cur.Leaving) != 0 {
			t.Errorf("leaving %q", w.leaving())
		}
	})
}

func TestHandoffOfWeight(t *testing.T) {
	w, by := ringOf(t, "a", "b", "c")
	hold(by)
	by["b"].Weight, by["b"].nextBeat = 3, w.now
	w.step()
	w.wantReason("weight [b]")
	if len(w.s.cur.Handoffs) != 1 {
		t.Fatalf("more weight: handoffs %q", w.unfinished())
	}
	h := w.s.cur.Handoffs[0]
	if !slices.Contains(h.Pending, "a") || !slices.Contains(h.Pending, "c") || h.Members["b"] != 1 || h.Reason != "weight" {
		t.Errorf("more weight: handoff %q: the others lose users", w.unfinished())
	}
	for _, p := range by {
		w.report(p, 2)
	}
	w.is("a1 b1 c1", "", "")
	by["b"].Weight, by["b"].nextBeat = 2, w.now
	w.step()
	w.is("a1 b1 c1", "", fmt.Sprintf("%d weight [b] of a=1 b=3 c=1 for [b]", w.s.cur.Epoch-1))
	w.report(by["b"], w.s.cur.Epoch)
	w.is("a1 b1 c1", "", "")
}

// Planned changes wait while users are on their way; the dead are taken out at once.
func TestPlannedChangesWait(t *testing.T) {
	w, by := joinedBy(t, "d")
	w.drain(by["a"])
	by["e"] = w.add("e", 1)
	by["c"].Weight, by["c"].nextBeat = 2, w.now
	w.stays(10*second, "a1 b1 c1 d1")
	w.is("a1 b1 c1 d1", "", joinOfD)
	by["b"].kill()
	w.s.evidence("b")
	if took := w.until(second, "a1 c1 d1"); took > 300*time.Millisecond {
		t.Errorf("the killed one is out after %s", took)
	}
	hold(by)
	report := func() { // all in one step
		for _, p := range by {
			if p.beating {
				p.Epoch, p.Settled, p.nextBeat = w.s.cur.Epoch, w.s.cur.Epoch, w.now
			}
		}
		w.step()
		w.step() // what was waiting
	}
	report()
	w.is("c1 d1", "a1", "3 handoff+leave [a d] of a=1 c=1 d=1 for [a]")
	report()
	if h := w.s.cur.Handoffs; w.ring() != "c1 d1 e1" || len(h) != 1 || !slices.Equal(h[0].Pending, []string{"c", "d"}) {
		t.Fatalf("after the leave: ring %q, handoffs %q", w.ring(), w.unfinished())
	}
	report()
	if n, _ := w.s.cur.Find("c"); n.Weight != 2 || len(w.s.cur.Handoffs) != 1 || !strings.HasSuffix(w.s.cur.Handoffs[0].Reason, "weight") {
		t.Fatalf("after the join: c %+v, handoffs %q", n, w.unfinished())
	}
	report()
	w.is("c1 d1 e1", "", "")
}

func TestSeveralInOneHandoff(t *testing.T) {
	t.Run("joins within the settle time", func(t *testing.T) {
		w, by := ringOf(t, "a", "b")
		hold(by)
		w.add("d", 1)
		w.run(600 * time.Millisecond)
		w.add("c", 1)
		w.until(2*second, "a1 b1 c1 d1")
		w.is("a1 b1 c1 d1", "", "1 join [c d] of a=1 b=1 for [a b]")
		if len(w.changes) != 2 {
			t.Errorf("%d changes, want two", len(w.changes))
		}
	})
	t.Run("drains at the same time", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c")
		hold(by)
		w.drain(by["a"], by["c"])
		w.is("b1", "a1 c1", "1 leave [a c] of a=1 b=1 c=1 for [a c]")
		w.report(by["a"], 2)
		w.is("b1", "c1", "1 leave [a c] of a=1 b=1 c=1 for [c]") // a need not wait for c
		w.report(by["c"], 2)
		w.is("b1", "", "")
	})
}

// What nodes report is of rings that the store has lost: it ends no handoff of the ring that
// counts on from them.
func TestHandoffOfRingThatCountsOn(t *testing.T) {
	w, by := ringOf(t, "a", "b", "c")
	hold(by)
	for _, p := range by {
		w.report(p, 50)
	}
	w.slow = true
	w.add("d", 1)
	w.run(2 * second)
	d, ok := w.s.next(w.now)
	if !ok || len(d.Handoffs) != 1 {
		t.Fatalf("%v, %+v", ok, d.Handoffs)
	}
	countOn(&d, 51)
	d.Seal()
	if err := d.Check(); err != nil {
		t.Fatal(err)
	}
	w.s.setRing(d, w.now)
	w.slow = false
	const handoff = "50 join [d] of a=1 b=1 c=1 for "
	w.step()
	w.is("a1 b1 c1 d1", "", handoff+"[a b c]")
	for _, id := range []string{"a", "b", "c"} {
		w.is("a1 b1 c1 d1", "", handoff+"[a b c]")
		w.report(by[id], 51)
	}
	w.is("a1 b1 c1 d1", "", "")

	w, by = joinedBy(t, "d") // and none of an older one, that is published again
	for _, id := range []string{"a", "b", "c"} {
		w.report(by[id], 50)
	}
	w.is("a1 b1 c1 d1", "", joinOfD)
}

// Heartbeats do not come through; what the probes are answered does.
func TestHandoffEndsByProbes(t *testing.T) {
	for name, drains := range map[string]bool{"join": false, "drain": true} {
		t.Run(name, func(t *testing.T) {
			w, by := ringOf(t, "a", "b", "c")
			hold(by)
			want, leaving := "a1 b1 c1 d1", ""
			if drains {
				w.drain(by["b"])
				want, leaving = "a1 c1", "b1"
			} else {
				w.add("d", 1)
				w.until(2*second, want)
			}
			w.report(by["a"], 2)
			w.report(by["c"], 2)
			by["b"].beating = false
			w.stays(10*second, want)
			if len(w.s.cur.Handoffs) != 1 || w.leaving() != leaving {
				t.Fatalf("handoffs %q, leaving %q: b has not moved its users", w.unfinished(), w.leaving())
			}
			by["b"].Epoch, by["b"].Settled = 2, 2
			w.run(1500 * time.Millisecond)
			w.is(want, "", "")
		})
	}
}

// Who is asked besides the owner is part of what two programs must agree on.
func TestHashCoversHandoffs(t *testing.T) {
	w, _ := joinedBy(t, "d")
	with := w.s.cur
	without := with.With()
	without.Handoffs = nil
	without.Seal()
	fewer := with.With()
	fewer.Handoffs[0].Pending = []string{"a", "b"}
	fewer.Seal()
	if err := fewer.Check(); err != nil {
		t.Fatal(err)
	}
	if with.Hash == without.Hash || with.Hash == fewer.Hash || fewer.Hash == without.Hash {
		t.Errorf("hashes %s, %s without the handoff, %s with fewer pending", with.Hash, without.Hash, fewer.Hash)
	}
}
