package cluster

import (
	"testing"
	"time"
)

// A locator is cut off from NATS and from all nodes, and then everything heals:
// it must not take out whom it could not reach, before it has heard anew.
func TestIsolatedLocatorHeals(t *testing.T) {
	for ms := 0; ms < 1000; ms += 50 {
		w, by := ringOf(t, "a", "b", "c")
		w.others["two"], w.others["three"] = nil, nil
		w.run(4 * time.Second)
		w.alone = true
		w.run(8*time.Second + time.Duration(ms)*time.Millisecond)
		w.alone = false
		for i, id := range []string{"a", "b", "c"} { // their next beats
			by[id].nextBeat = w.now.Add(time.Duration(300+200*i) * time.Millisecond)
		}
		w.stays(10*time.Second, "a1 b1 c1")
		// And it judges again.
		by["b"].kill()
		w.s.evidence("b")
		if took := w.until(time.Second, "a1 c1"); took > 500*time.Millisecond {
			t.Errorf("a killed node was out after %s", took)
		}
	}
}

// A node dies while its locator is cut off: it is found dead once the locator
// hears again, refusing or not.
func TestDeathWhileIsolated(t *testing.T) {
	for name, dies := range map[string]func(*proc){"killed": (*proc).kill, "frozen": (*proc).freeze} {
		w, by := ringOf(t, "a", "b", "c")
		w.others["two"] = nil
		w.run(4 * time.Second)
		w.alone = true
		w.run(5 * time.Second)
		dies(by["b"])
		w.run(2 * time.Second)
		w.alone = false
		w.until(6*time.Second, "a1 c1")
		t.Log(name)
	}
}

// One locator of three cannot reach b. NATS restarts, and the heartbeats of nodes
// come before those of the other locators: alone it is no majority.
func TestMinorityAfterNATSRestart(t *testing.T) {
	w, by := ringOf(t, "a", "b", "c")
	w.others["two"], w.others["three"] = nil, nil
	w.unreachable(by["b"])
	w.stays(10*time.Second, "a1 b1 c1")
	w.alone = true
	w.run(5 * time.Second)
	w.alone = false
	others := w.others
	w.others = map[string][]string{}
	w.run(800 * time.Millisecond)
	w.others = others
	w.stays(10*time.Second, "a1 b1 c1")
}

// A node with a grace comes back at another address, and its old one is mute: the
// place is kept for it, and not from it.
func TestGraceAtNewAddress(t *testing.T) {
	w := newWorld(t)
	a := w.add("a", 1)
	a.GraceMS = time.Minute.Milliseconds()
	w.add("b", 1)
	w.run(1500 * time.Millisecond)
	a.freeze()
	w.run(5 * time.Second)
	n := w.add("a", 2)
	n.URL, n.PeerURL, n.GraceMS = "ws://a-new.test/v1/ws", "http://a-new.test:8092", a.GraceMS
	w.until(5*time.Second, "a2 b1")
}

// How often a node flapped is remembered by a locator that was not there when it
// joined.
func TestFlapsKeptByNewLocator(t *testing.T) {
	w, by := ringOf(t, "a", "b")
	for i := 1; i <= 2; i++ { // two short stays
		by["b"].kill()
		w.until(10*time.Second, "a1")
		by["b"] = w.add("b", 1+i)
		w.run(3 * time.Second)
	}
	had := w.s.flaps("b")
	if had == 0 {
		t.Fatal("no short stay was counted")
	}
	w.s.get("b").joined = time.Time{} // another locator
	by["b"].kill()
	w.until(10*time.Second, "a1")
	if got := w.s.flaps("b"); got < had {
		t.Errorf("%d short stays are known, there were %d", got, had)
	}
}
