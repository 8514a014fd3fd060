package e2e

import (
	"testing"
	"time"

	"github.com/dialring/dialring/internal/ring"
)

// The node that joins is killed before anybody went to it: everybody stays where
// they are, also at the deadline they had been told.
func TestMoveCrashOfJoiner(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	deadline := 3 * time.Second
	startNode(t, "a", l.nats, "DIALRING_MOVE_DEADLINE="+deadline.String())
	l.waitMembers(t, "a")
	var at []*ear
	for _, u := range movers(equal("a"), equal("a", "b"), "a", "b", 5) {
		at = append(at, dialEar(t, l, u, "d"))
	}
	b := startNode(t, "b", l.nats)
	at[0].told(t)
	b.kill()
	killed := time.Now()
	l.waitMembers(t, "a")
	l.settled(t)
	for _, e := range at {
		if !e.open() {
			t.Errorf("%s was closed with %d", e.user, e.code)
			continue
		}
		l.delivers(t, e, "stays")
	}
	if time.Since(killed) > deadline {
		t.Logf("this took %v: the deadline is over already", time.Since(killed))
	}
	// That it is not closed at the deadline has no event.
	time.Sleep(time.Until(killed.Add(deadline + 2*time.Second)))
	for _, e := range at {
		if !e.open() {
			t.Errorf("%s was closed with %d at the deadline of a move that is off", e.user, e.code)
			continue
		}
		l.delivers(t, e, "still there")
	}
	// They are told again when it comes again.
	b = startNode(t, "b", l.nats)
	for _, e := range at {
		m := e.told(t)
		for m.URL != "ws://"+b.addr+"/v1/ws" { // from the first time
			m = e.told(t)
		}
		next := e.follows(t, m)
		e.leave(t)
		l.delivers(t, next, "moved after all")
	}
	l.settled(t)
}

// A former owner is killed in the middle of a join: the other one's part of the
// handoff goes on.
func TestMoveCrashOfFormerOwner(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	patient := "DIALRING_MOVE_DEADLINE=120s"
	a := startNode(t, "a", l.nats, patient)
	startNode(t, "b", l.nats, patient)
	l.waitMembers(t, "a", "b")
	l.settled(t)
	two, three := equal("a", "b"), equal("a", "b", "c")
	victim := dialEar(t, l, movers(two, three, "a", "c", 1)[0], "d")
	stay := dialEar(t, l, movers(two, three, "a", "a", 1)[0], "d")
	other := dialEar(t, l, movers(two, three, "b", "c", 1)[0], "d")
	startNode(t, "c", l.nats, patient)
	victim.told(t)
	m := other.told(t)
	a.kill()
	l.waitMembers(t, "b", "c")
	for _, e := range []*ear{victim, stay} {
		e.closes(t, 0)
		back := dialEar(t, l, e.user, "d")
		if back.Node == "a" {
			t.Errorf("%s is at the dead node", e.user)
		}
		l.delivers(t, back, "back")
	}
	if l.pendingAt(t, "a") != -1 {
		t.Errorf("the dead node is waited for: %+v", l.ring(t).Handoffs)
	}
	if l.pendingAt(t, "b") < 1 {
		t.Errorf("the handoff of b is forgotten: %+v", l.ring(t).Handoffs)
	}
	l.delivers(t, other, "at the former owner")
	next := other.follows(t, m)
	other.leave(t)
	l.delivers(t, next, "moved")
	l.settled(t)
}

// Under load a node joins slowly, and it, or a former owner, is killed then:
// only pushes to users of that node may be lost, while it was missed.
func TestMoveCrashUnderLoad(t *testing.T) {
	heavy(t)
	t.Parallel()
	bothKinds(t, moveCrashUnderLoad)
}

func moveCrashUnderLoad(t *testing.T, durable bool) {
	for _, kill := range []string{"c", "a"} {
		t.Run("kill "+kill, func(t *testing.T) {
			l := startLocator(t)
			nodes := map[string]*nodeProc{"a": startNode(t, "a", l.nats), "b": startNode(t, "b", l.nats)}
			l.waitMembers(t, "a", "b")
			l.settled(t)
			load := startLoad(t, loadConfig{Locators: []*locatorProc{l}, Users: 200, Devices: 2, Rate: 300, Durable: durable})
			nodes["c"] = startNode(t, "c", l.nats, "DIALRING_ACCEPT_RATE=20")
			eventually(t, "some have moved", func() bool { return load.moves() >= 20 })
			before, during := ring.Of(equal("a", "b")), ring.Of(equal("a", "b", "c"))
			theirs := func(user string) bool { // may have been at the node that was killed
				x, _ := before.Owner(user)
				y, _ := during.Owner(user)
				return x.ID == kill || y.ID == kill
			}
			if n := load.moves(); n > 100 {
				t.Logf("%d moves before the kill: it may come too late", n)
			}
			killed := load.now()
			nodes[kill].kill()
			eventually(t, kill+" is out", func() bool { _, in := l.members(t)[kill]; return !in })
			load.waitConnected(t, func(node string) bool { return node != kill })
			served := load.now()
			t.Logf("all are back after %v", served-killed)
			l.settled(t)
			for _, u := range load.users {
				owner := l.locate(t, u, "").Node
				for _, d := range []string{"d0", "d1"} {
					eventually(t, u+" is where it belongs", func() bool { return load.nodeOf(u, d) == owner })
				}
			}
			load.accepts(t, durable, func(p pushRecord) bool {
				return theirs(p.user) && p.after >= killed && p.before <= served
			})
			for u := range load.disconnects() {
				if !theirs(u) {
					t.Errorf("%s had to reconnect", u)
				}
			}
		})
	}
}
