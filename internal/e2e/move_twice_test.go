package e2e

import (
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// A session is on two connections, at its former owner and at the new one, and its
// device logs in anew: both go. The one that was told to move is not told to stop:
// its client may be the one that logged in.
func TestMoveReplacedOnBoth(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	patient := "DIALRING_MOVE_DEADLINE=120s"
	startNode(t, "a", l.nats, patient)
	l.waitMembers(t, "a")
	old := dialEar(t, l, movers(equal("a"), equal("a", "b"), "a", "b", 1)[0], "d")
	startNode(t, "b", l.nats, patient)
	next := old.follows(t, old.told(t))
	l.waitMembers(t, "a", "b") // a may have the ring before the locator goes by it
	login := dialEar(t, l, old.user, "d")
	next.closes(t, wire.CloseReplaced)
	select {
	case <-old.ended:
	case <-time.After(3 * time.Second):
		t.Errorf("the connection at the former owner stays open")
	}
	if r := l.push(t, old.user, `"one"`); r.Delivered != 1 {
		t.Errorf("delivered %d, there is one session", r.Delivered)
	}
	login.expect(t, `"one"`)
	if n := l.presence(t, old.user)[old.user]; n != 1 {
		t.Errorf("presence counts %d sessions of one device", n)
	}
	if u := l.getUser(t, old.user); len(u.Sessions) != 1 {
		t.Errorf("GET user: %+v", u.Sessions)
	}
	if !old.open() && old.code != wire.CloseMoved {
		t.Errorf("the connection at the former owner was closed with %d", old.code)
	}
}

// A node with a restart grace is drained by the API and ends at its drain timeout:
// its handoff ends with it, and planned changes go on.
func TestMoveDrainWithGrace(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	a := startNode(t, "a", l.nats, "DIALRING_RESTART_GRACE=10m", "DIALRING_DRAIN_TIMEOUT=2s")
	startNode(t, "b", l.nats)
	l.waitMembers(t, "a", "b")
	l.settled(t)
	deaf := dialEar(t, l, movers(equal("a", "b"), equal("b"), "a", "b", 1)[0], "d")
	l.drainByAPI(t, "a")
	deaf.closes(t, wire.CloseDraining)
	a.ends(t)
	ended := time.Now()
	startNode(t, "c", l.nats)
	l.waitMembers(t, "b", "c")
	t.Logf("c is in %v after a ended", time.Since(ended))
	l.settled(t)
}

// The same when it is killed while it drains.
func TestMoveKilledWithGrace(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	a := startNode(t, "a", l.nats, "DIALRING_RESTART_GRACE=10m")
	startNode(t, "b", l.nats)
	l.waitMembers(t, "a", "b")
	l.settled(t)
	deaf := dialEar(t, l, movers(equal("a", "b"), equal("b"), "a", "b", 1)[0], "d")
	l.drainByAPI(t, "a")
	deaf.told(t)
	a.kill()
	ended := time.Now()
	startNode(t, "c", l.nats)
	l.waitMembers(t, "b", "c")
	t.Logf("c is in %v after a was killed", time.Since(ended))
	l.settled(t)
}

// A broadcast reaches the sessions of a node that is leaving, too.
func TestMoveBroadcastToLeaving(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	startNode(t, "a", l.nats, "DIALRING_MOVE_DEADLINE=120s")
	startNode(t, "b", l.nats)
	l.waitMembers(t, "a", "b")
	l.settled(t)
	deaf := dialEar(t, l, movers(equal("a", "b"), equal("b"), "a", "b", 1)[0], "d")
	l.drainByAPI(t, "a")
	deaf.told(t) // the ring is without a
	l.waitMembers(t, "b")
	if status, b := call(t, "POST", "http://"+l.addr+"/v1/broadcast", `{"data":"all"}`); status != 200 {
		t.Fatalf("broadcast: %d %s", status, b)
	}
	deaf.expect(t, `"all"`)
}
