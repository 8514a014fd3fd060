package e2e

import (
	"syscall"
	"testing"

	"github.com/dialring/dialring/internal/wire"
)

// A session that is on two connections: what is done to it is done to both, and
// either may go.
func TestMoveTwoConnections(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	patient := "DIALRING_MOVE_DEADLINE=120s"
	startNode(t, "a", l.nats, patient)
	l.waitMembers(t, "a")
	var old []*ear
	for _, u := range movers(equal("a"), equal("a", "b"), "a", "b", 4) {
		old = append(old, dialEar(t, l, u, "d"))
	}
	b := startNode(t, "b", l.nats, patient)
	var next []*ear
	for _, e := range old {
		next = append(next, e.follows(t, e.told(t)))
	}
	for i, query := range []string{"", "?session=" + old[1].welcome.Session} {
		if n := l.kick(t, old[i].user, query); n != 1 {
			t.Errorf("kick %q of one session on two connections closed %d", query, n)
		}
		next[i].closes(t, wire.CloseKicked)
		old[i].closes(t, wire.CloseKicked)
		if n := l.presence(t, old[i].user)[old[i].user]; n != 0 {
			t.Errorf("presence counts %d sessions after the kick", n)
		}
	}
	// The newer connection goes first: the earlier one is served as before.
	next[2].leave(t)
	l.delivers(t, old[2], "on the earlier one")
	// The new owner dies: the earlier connection is the session again.
	b.kill()
	l.waitMembers(t, "a")
	next[3].closes(t, 0)
	for _, e := range []*ear{old[2], old[3]} {
		if !e.open() {
			t.Errorf("%s was closed with %d", e.user, e.code)
			continue
		}
		l.delivers(t, e, "alone again")
		if u := l.getUser(t, e.user); len(u.Sessions) != 1 || u.Sessions[0].ID != e.welcome.Session {
			t.Errorf("GET user: %+v", u)
		}
	}
	l.settled(t)
}

// The joiner is restarted on its addresses before anybody went to it: everyone
// is told again, with a ticket for the new process.
func TestMoveJoinerRestarts(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	patient := "DIALRING_MOVE_DEADLINE=120s"
	startNode(t, "a", l.nats, patient)
	l.waitMembers(t, "a")
	var at []*ear
	for _, u := range movers(equal("a"), equal("a", "b"), "a", "b", 4) {
		at = append(at, dialEar(t, l, u, "d"))
	}
	b := startNode(t, "b", l.nats, patient)
	for _, e := range at {
		e.told(t)
	}
	b.kill()
	startNodeAt(t, "b", l.nats, b.addr, b.peer, patient)
	for _, e := range at {
		m := e.told(t)
		next := e.follows(t, m)
		if !e.open() {
			t.Errorf("%s was closed with %d", e.user, e.code)
		}
		l.delivers(t, next, "on two connections")
		e.leave(t)
		l.delivers(t, next, "moved")
	}
	l.waitMembers(t, "a", "b")
	l.settled(t)
}

// A former owner is restarted on its addresses in the middle of a join: its
// sessions ended with it, and so does its part of the handoff.
func TestMoveFormerOwnerRestarts(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	patient := "DIALRING_MOVE_DEADLINE=120s"
	a := startNode(t, "a", l.nats, patient)
	l.waitMembers(t, "a")
	users := movers(equal("a"), equal("a", "b"), "a", "b", 2)
	first, second := dialEar(t, l, users[0], "d"), dialEar(t, l, users[1], "d")
	startNode(t, "b", l.nats, patient)
	m := first.told(t)
	second.told(t)
	next := first.follows(t, m)
	a.kill()
	startNodeAt(t, "a", l.nats, a.addr, a.peer, patient)
	l.waitMembers(t, "a", "b")
	l.settled(t)
	l.delivers(t, next, "it had moved")
	if u := l.getUser(t, second.user); u.Online || len(u.Sessions) != 0 {
		t.Errorf("sessions of a process that is gone: %+v", u)
	}
	l.delivers(t, dialEar(t, l, second.user, "d"), "back")
}

// The node that joins is told to end in the middle of it. Its drain has to wait
// for the join, which does not end; at its deadline it goes, and the users are
// where they were.
func TestMoveJoinerDrains(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	patient := "DIALRING_MOVE_DEADLINE=120s"
	startNode(t, "a", l.nats, patient)
	l.waitMembers(t, "a")
	users := movers(equal("a"), equal("a", "b"), "a", "b", 2)
	holds, moves := dialEar(t, l, users[0], "d"), dialEar(t, l, users[1], "d")
	b := startNode(t, "b", l.nats, "DIALRING_DRAIN_TIMEOUT=3s")
	holds.told(t)
	next := moves.follows(t, moves.told(t))
	moves.leave(t)
	if err := b.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	b.event(t, "draining")
	l.delivers(t, holds, "while b waits")
	l.delivers(t, next, "while b waits")
	next.closes(t, wire.CloseDraining)
	b.ends(t)
	l.waitMembers(t, "a")
	l.settled(t)
	if !holds.open() {
		t.Fatalf("%s was closed with %d", holds.user, holds.code)
	}
	l.delivers(t, holds, "b is gone")
	l.delivers(t, dialEar(t, l, next.user, "d"), "back at a")
}

// Several changes in a row under load, planned ones and one that is not: only
// who was at the node that died may notice.
func TestMoveManyChanges(t *testing.T) {
	heavy(t)
	t.Parallel()
	bothKinds(t, moveManyChanges)
}

func moveManyChanges(t *testing.T, durable bool) {
	l := startLocator(t)
	nodes := map[string]*nodeProc{}
	for _, id := range []string{"a", "b"} {
		nodes[id] = startNode(t, id, l.nats)
	}
	l.waitMembers(t, "a", "b")
	l.settled(t)
	load := startLoad(t, loadConfig{Locators: []*locatorProc{l}, Users: 150, Devices: 2, Rate: 250, Durable: durable})
	nodes["c"] = startNode(t, "c", l.nats)
	l.waitMembers(t, "a", "b", "c")
	l.drainByAPI(t, "a") // at once, in the middle of the join
	nodes["d"] = startNode(t, "d", l.nats)
	nodes["a"].ends(t)
	l.waitMembers(t, "b", "c", "d")
	l.settled(t)
	was := ownersOf(t, l, load.users)
	startNode(t, "e", l.nats)
	eventually(t, "e is in the ring", func() bool { return l.members(t)["e"].Share > 0 })
	killed := load.now()
	nodes["b"].kill() // in the middle of that join
	l.waitMembers(t, "c", "d", "e")
	load.waitConnected(t, func(node string) bool { return node != "a" && node != "b" })
	served := load.now()
	l.settled(t)
	is := ownersOf(t, l, load.users)
	for _, u := range load.users {
		for _, d := range []string{"d0", "d1"} {
			eventually(t, u+" is where it belongs", func() bool { return load.nodeOf(u, d) == is[u] })
		}
	}
	load.accepts(t, durable, func(p pushRecord) bool { return was[p.user] == "b" && p.after >= killed && p.before <= served })
	for u := range load.disconnects() {
		if was[u] != "b" {
			t.Errorf("%s of %s had to reconnect", u, was[u])
		}
	}
}
