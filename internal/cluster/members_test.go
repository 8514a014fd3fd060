package cluster

import (
	"math"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/wire"
)

const second = time.Second

func TestJoin(t *testing.T) {
	t.Run("after the settle time", func(t *testing.T) {
		w := newWorld(t)
		w.add("a", 1)
		w.step() // heard, probed and eligible
		if took := w.until(2*second, "a1"); took != settle {
			t.Errorf("joined %s after it was eligible, want %s", took, settle)
		}
		if d := w.last(); d.Epoch != 1 || d.Change.Reason != "join" || d.Change.By != "loc" || d.Cluster != "c" {
			t.Errorf("first ring %+v", d)
		}
	})
	t.Run("several within it are one change", func(t *testing.T) {
		w := newWorld(t)
		w.add("a", 1)
		w.run(500 * time.Millisecond)
		w.add("c", 1)
		w.run(400 * time.Millisecond)
		w.add("b", 1)
		w.until(2*second, "a1 b1 c1")
		if len(w.changes) != 1 {
			t.Errorf("%d changes, want one", len(w.changes))
		}
	})
	t.Run("a later one is the next change", func(t *testing.T) {
		w, _ := ringOf(t, "a", "b")
		w.add("c", 1)
		if took := w.until(2*second, "a1 b1 c1"); took < settle {
			t.Errorf("joined after %s", took)
		}
		if len(w.changes) != 2 || w.last().Epoch != 2 {
			t.Errorf("%d changes, epoch %d", len(w.changes), w.last().Epoch)
		}
	})
}

// A node joins only after its public URL and its own peer address answered.
func TestJoinNeedsAnswers(t *testing.T) {
	for name, broken := range map[string]func(p *proc){
		"public URL refuses":   func(p *proc) { p.public = refuses },
		"public URL is mute":   func(p *proc) { p.public = mute },
		"peer address refuses": func(p *proc) { p.peer = refuses },
		"peer address is mute": func(p *proc) { p.peer = mute },
		"draining":             func(p *proc) { p.State = wire.StateDraining },
	} {
		t.Run(name, func(t *testing.T) {
			w, _ := ringOf(t, "a")
			p := w.add("b", 1)
			broken(p)
			w.stays(20*second, "a1")
			if n := len(w.probes); n > 60 {
				t.Errorf("%d probes in 20 s", n)
			}
			if got := w.state("b"); got != wire.StateJoining && got != wire.StateDraining {
				t.Errorf("shown as %q", got)
			}
			p.public, p.peer, p.State = answers, answers, wire.StateActive
			w.until(5*second, "a1 b1")
		})
	}
	t.Run("its peer address is another process's", func(t *testing.T) {
		w, by := ringOf(t, "a")
		p := w.add("b", 1)
		p.PeerURL, p.peer = by["a"].PeerURL, refuses // a answers there, not b
		w.stays(20*second, "a1")
	})
	t.Run("it went away before it joined", func(t *testing.T) {
		w, _ := ringOf(t, "a")
		p := w.add("b", 1)
		p.public = mute
		w.run(2 * second)
		p.kill()
		w.stays(40*second, "a1")
		if w.s.m["b"] != nil {
			t.Error("it is remembered for ever")
		}
	})
	// What answered is what joins: an address that nobody asked does not.
	t.Run("its address changed after the probe", func(t *testing.T) {
		w := newWorld(t)
		p := w.add("a", 1)
		w.step() // eligible by its first address
		p.URL, p.public, p.nextBeat = "ws://elsewhere.test/v1/ws", refuses, w.now
		w.stays(10*second, "")
	})
}

func TestSilence(t *testing.T) {
	t.Run("and two probes failed", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c")
		last := w.s.m["b"].beatAt
		by["b"].freeze()
		w.until(6*second, "a1 c1")
		if took := w.now.Sub(last); took < silentAfter+2*probeTimeout || took > silentAfter+2*probeTimeout+second {
			t.Errorf("out %s after its last heartbeat", took)
		}
		if w.last().Change.Reason != "crash" || w.last().Change.Nodes[0] != "b" {
			t.Errorf("change %+v", w.last().Change)
		}
	})
	t.Run("but its probes answer", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c")
		for _, p := range by {
			p.beating = false
		}
		w.run(5 * second)
		n := len(w.probes)
		w.stays(60*second, "a1 b1 c1")
		if n = len(w.probes) - n; n < 150 || n > 200 {
			t.Errorf("%d probes of three nodes in 60 s, want one a second each", n)
		}
		if w.state("b") != wire.StateSuspect {
			t.Errorf("shown as %q", w.state("b"))
		}
	})
	t.Run("one failed probe is not enough", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c")
		by["b"].freeze()
		for w.s.m["b"].peer.fails == 0 {
			w.step()
		}
		by["b"].peer = answers
		w.stays(20*second, "a1 b1 c1")
	})
	t.Run("back again, it joins again", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c")
		by["b"].freeze()
		w.until(6*second, "a1 c1")
		by["b"].beating, by["b"].public, by["b"].peer = true, answers, answers
		if took := w.until(3*second, "a1 b1 c1"); took < settle {
			t.Errorf("joined again after %s", took)
		}
	})
}

func TestEvidence(t *testing.T) {
	t.Run("refused twice and no heartbeat since: out at once", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c")
		by["b"].kill()
		w.s.evidence("b")
		if took := w.until(second, "a1 c1"); took > 300*time.Millisecond {
			t.Errorf("out after %s", took)
		}
	})
	t.Run("without evidence a killed process is found by its silence", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c")
		by["b"].kill()
		if took := w.until(5*second, "a1 c1"); took < silentAfter-BeatInterval {
			t.Errorf("out after %s", took)
		}
	})
	t.Run("refused but its heartbeats go on: suspect, stays while other locators reach it", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c")
		w.others["two"], w.others["three"] = nil, nil
		by["b"].peer = refuses
		w.s.evidence("b")
		w.until(second, "a1 c1") // like a killed one, once
		by["b"].peer = answers
		w.until(4*second, "a1 b1 c1")
		by["b"].peer = refuses
		w.s.evidence("b")
		w.stays(60*second, "a1 b1 c1")
		if w.state("b") != wire.StateSuspect {
			t.Errorf("shown as %q", w.state("b"))
		}
		by["b"].peer = answers
		w.run(2 * second)
		if w.state("b") != wire.StateActive {
			t.Errorf("shown as %q after it answered again", w.state("b"))
		}
	})
	t.Run("timeouts while heartbeats are fresh: stays while other locators reach it", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c")
		w.others["two"] = nil
		by["b"].peer = mute
		w.s.evidence("b")
		w.stays(60*second, "a1 b1 c1")
		if w.s.m["b"].peer.fails < 2 {
			t.Error("it was not probed twice")
		}
	})
	t.Run("against a node that answers", func(t *testing.T) {
		w, _ := ringOf(t, "a", "b", "c")
		n := len(w.probes)
		for range 40 { // 2 s
			w.s.evidence("b")
			w.step()
		}
		if n = len(w.probes) - n; n < 5 || n > 11 {
			t.Errorf("%d probes in 2 s of steady evidence, want one in 200 ms", n)
		}
		w.stays(second, "a1 b1 c1")
	})
	t.Run("against an unknown node", func(t *testing.T) {
		w, _ := ringOf(t, "a")
		w.s.evidence("nobody")
		w.stays(second, "a1")
		if w.s.m["nobody"] != nil {
			t.Error("evidence made a member of a name that anyone can make up")
		}
	})
}

func TestRestart(t *testing.T) {
	t.Run("on the same address", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c")
		before := w.s.cur
		by["b"].kill()
		w.add("b", 2)
		if took := w.until(second, "a1 b2 c1"); took >= settle {
			t.Errorf("updated after %s: as if it were a join", took)
		}
		sameOwners(t, before, w.s.cur)
		if w.last().Change.Reason != "restart" || w.last().Epoch != before.Epoch+1 {
			t.Errorf("change %+v of epoch %d", w.last().Change, w.last().Epoch)
		}
		w.stays(20*second, "a1 b2 c1")
	})
	t.Run("after it was already taken out, it joins", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c")
		by["b"].kill()
		w.s.evidence("b")
		w.until(second, "a1 c1")
		w.add("b", 2)
		if took := w.until(3*second, "a1 b2 c1"); took < settle {
			t.Errorf("joined after %s", took)
		}
	})
	t.Run("another address while the old one answers: the old keeps its place", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c")
		before := w.s.cur
		other := w.add("b", 2)
		other.URL, other.PeerURL = "ws://other.test/v1/ws", "http://other.test:8092"
		w.stays(60*second, "a1 b1 c1")
		by["b"].beating = false // trouble with NATS only
		w.stays(20*second, "a1 b1 c1")
		by["b"].kill()
		w.until(2*second, "a1 b2 c1")
		sameOwners(t, before, w.s.cur)
		if n, _ := w.s.cur.Find("b"); n.URL != other.URL {
			t.Errorf("the address is still %s", n.URL)
		}
	})
	// Whoever takes a place over must be alive and willing.
	for name, end := range map[string]func(*proc){
		"gone":     func(p *proc) { p.kill() },
		"draining": func(p *proc) { p.State = wire.StateDraining },
	} {
		t.Run("the other one is "+name+" when the old one dies", func(t *testing.T) {
			w, by := ringOf(t, "a", "b", "c")
			other := w.add("b", 2)
			other.URL, other.PeerURL = "ws://other.test/v1/ws", "http://other.test:8092"
			w.run(5 * second)
			end(other)
			w.run(5 * second)
			by["b"].kill()
			w.s.evidence("b")
			w.until(5*second, "a1 c1")
			for _, c := range w.changes {
				if n, _ := c.d.Find("b"); n.Boot == "b2" {
					t.Errorf("after %s users were sent to the one that was %s", c.after, name)
				}
			}
		})
	}
	t.Run("late heartbeats of the process before", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c")
		by["b"].kill()
		w.add("b", 2)
		w.until(second, "a1 b2 c1")
		w.s.heard(by["b"].NodeBeat, w.now)
		w.stays(40*second, "a1 b2 c1")
		if w.s.m["b"].cand.Boot != "" {
			t.Error("the process before is remembered for ever")
		}
	})
	t.Run("one that drains is in nobody's way", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c")
		b := by["b"]
		b.State, b.nextBeat = wire.StateDraining, w.now
		w.until(2*second, "a1 c1")
		for end := w.now.Add(2 * second); w.leaving() != "" && w.now.Before(end); {
			w.step()
		}
		w.is("a1 c1", "", "")
		w.s.heard(b.NodeBeat, w.now) // its last one comes when the ring has let it go
		b.kill()
		next := w.add("b", 2)
		next.nextBeat = w.now
		w.step()
		if boot := w.s.m["b"].cand.Boot; boot != next.Boot {
			t.Errorf("the candidate is %q, want %q", boot, next.Boot)
		}
		w.until(10*second, "a1 b2 c1")
	})
	t.Run("of two newcomers with one id the first counts while it lives", func(t *testing.T) {
		w := newWorld(t)
		first := w.add("a", 1)
		first.public = mute
		second2 := w.add("a", 2)
		second2.URL, second2.PeerURL = "ws://other.test/v1/ws", "http://other.test:8092"
		w.stays(20*second, "")
		first.kill()
		w.until(10*second, "a2")
	})
}

func TestLeave(t *testing.T) {
	w, by := ringOf(t, "a", "b", "c")
	by["b"].State, by["b"].nextBeat = wire.StateDraining, w.now
	w.step()
	if w.ring() != "a1 c1" || w.last().Change.Reason != "leave" {
		t.Fatalf("ring %q, change %+v", w.ring(), w.last().Change)
	}
	w.stays(30*second, "a1 c1") // its heartbeats go on
	if w.state("b") != wire.StateDraining {
		t.Errorf("shown as %q", w.state("b"))
	}
}

func TestUpdate(t *testing.T) {
	w, by := ringOf(t, "a", "b", "c")
	by["b"].Weight, by["b"].nextBeat = 3, w.now
	w.step()
	if n, _ := w.s.cur.Find("b"); n.Weight != 3 || w.last().Change.Reason != "weight" {
		t.Errorf("after a new weight: %+v, %+v", n, w.last().Change)
	}
	w.run(2 * second) // the weight's handoff ends
	before := w.s.cur
	by["b"].URL, by["b"].PeerURL, by["b"].nextBeat = "ws://new.test/v1/ws", "http://new.test:1", w.now
	w.step()
	if n, _ := w.s.cur.Find("b"); n.URL != "ws://new.test/v1/ws" || n.PeerURL != "http://new.test:1" {
		t.Errorf("after a new address: %+v", n)
	}
	sameOwners(t, before, w.s.cur)
	n := len(w.changes)
	w.run(20 * second)
	if len(w.changes) != n {
		t.Errorf("%d changes for nothing", len(w.changes)-n)
	}
}

// A ring that another locator published is taken as it is.
func TestForeignRing(t *testing.T) {
	w, _ := ringOf(t, "a", "b")
	d := w.s.cur.With()
	d.Nodes = append(d.Nodes, ring.Node{ID: "z", Boot: "z1", URL: "ws://z.test", PeerURL: "http://z.test", Weight: 1})
	d.Epoch++
	d.Seal()
	w.s.setRing(d, w.now)
	w.stays(silentAfter-tick, "a1 b1 z1") // being in the ring counts like a heartbeat
	w.until(3*second, "a1 b1")            // nothing answers there
}

// Whatever joins, the ring that follows can be published: else one node that
// is too many would keep a dead one from leaving.
func TestWeightsAddUp(t *testing.T) {
	w := newWorld(t)
	for i := range 33 {
		p := w.add("n"+string(rune('a'+i/6))+string(rune('a'+i%6)), 1)
		p.Weight = ring.MaxWeight
	}
	w.run(2 * second) // publish checks each document
	if n := len(w.s.cur.Nodes); n == 0 {
		t.Error("nobody joined")
	}
}

func TestEpochSeen(t *testing.T) {
	w, by := ringOf(t, "a", "b", "c")
	says := func(id string, epoch uint64) {
		by[id].Epoch, by[id].Settled, by[id].nextBeat, by[id].stuck = epoch, 0, w.now, true
		w.step()
	}
	seen := func(what string, epoch uint64, node string) {
		t.Helper()
		if e, n := w.s.epochSeen(w.now); e != epoch || n != node {
			t.Errorf("%s: epoch %d by %q is seen, want %d by %q", what, e, n, epoch, node)
		}
	}
	cur := w.s.cur.Epoch
	seen("nobody is ahead", cur, "")
	says("a", cur+41)
	seen("one is", cur+41, "a")
	// One node must not be able to use up the numbers: no ring could ever be published again.
	for _, far := range []uint64{cur + maxStep + 1, 1 << 47, ring.MaxEpoch} {
		says("a", far)
		seen("one is far ahead", cur+maxStep, "a")
	}
	for e, want := range map[uint64]uint64{ring.MaxEpoch/2 - 5: ring.MaxEpoch / 2, ring.MaxEpoch / 2: 0, ring.MaxEpoch/2 + 9: 0} {
		at := *w.s
		at.cur.Epoch = e
		if got, node := at.epochSeen(w.now); want == 0 && (got != e || node != "") || want > 0 && got != want {
			t.Errorf("at epoch %d: %d by %q is seen", e, got, node)
		}
	}
	says("a", cur+7)
	says("b", cur+3)
	says("c", 0) // it has only just started
	seen("some are ahead", cur+7, "a")
	// Who has never answered does not count, nor who is not heard any more.
	p := w.add("d", 1)
	p.public, p.stuck, p.Epoch = mute, true, cur+9
	w.run(2 * second)
	seen("a newcomer that does not answer", w.s.cur.Epoch+7-(w.s.cur.Epoch-cur), "a")
	w.now = w.now.Add(silentAfter)
	seen("silence", w.s.cur.Epoch, "")
	b := beatOf("e", 1)
	b.Epoch = math.MaxUint64
	if b.check(true) == nil {
		t.Error("a heartbeat with the largest number is taken")
	}
}

func TestView(t *testing.T) {
	w, by := ringOf(t, "a", "b", "c")
	by["a"].Sessions, by["a"].nextBeat = 7, w.now
	w.step()
	w.add("d", 1).public = mute
	by["b"].freeze()
	by["c"].peer = mute
	w.s.evidence("c")
	w.run(second)
	got := map[string]wire.RingNode{}
	for _, n := range w.s.view(w.now, func(id string) float64 { return map[string]float64{"a": 0.5}[id] }) {
		got[n.ID] = n
	}
	if a := got["a"]; a.State != wire.StateActive || a.Sessions != 7 || a.Share != 0.5 || a.LastSeenMS < 0 || a.LastSeenMS > 1000 || a.URL != "ws://a.test/v1/ws" || a.Weight != 1 {
		t.Errorf("a: %+v", a)
	}
	for id, want := range map[string]string{"b": wire.StateActive, "c": wire.StateSuspect, "d": wire.StateJoining} {
		if got[id].State != want {
			t.Errorf("%s is %q, want %q", id, got[id].State, want)
		}
	}
	fresh := newMembers("other", "c") // a locator that has just started
	fresh.setRing(w.s.cur, w.now)
	for _, n := range fresh.view(w.now, func(string) float64 { return 0 }) {
		if n.LastSeenMS != -1 || n.State != wire.StateActive {
			t.Errorf("of a node that was not heard yet: %+v", n)
		}
	}
}
