package e2e

import (
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// A node that comes and goes is held off from its third short stay on, while
// the others are served. The count of its stays outlasts each join.
func TestMoveFlapping(t *testing.T) {
	heavy(t)
	t.Parallel()
	l := startLocator(t)
	startNode(t, "a", l.nats)
	l.waitMembers(t, "a")
	e := dialEar(t, l, movers(equal("a"), equal("a", "b"), "a", "a", 1)[0], "d")
	var left time.Time
	for range 3 {
		b := startNode(t, "b", l.nats)
		l.waitMembers(t, "a", "b")
		l.settled(t)
		b.kill()
		left = time.Now()
		l.waitMembers(t, "a")
		time.Sleep(300 * time.Millisecond) // the locator may forget the process, not that it flaps
	}
	epoch := l.ring(t).Epoch
	startNode(t, "b", l.nats)
	eventually(t, "b wants to join", func() bool { return l.node(t, "b").State == wire.StateJoining })
	l.unchanged(t, "a")
	if s := l.node(t, "b").State; s != wire.StateJoining {
		t.Errorf("b is %q", s)
	}
	if r := l.ring(t); r.Epoch != epoch || len(r.Handoffs) != 0 {
		t.Errorf("the ring changed while b is held off: %+v", r)
	}
	l.delivers(t, e, "meanwhile")
	// Another node is not held off.
	startNode(t, "c", l.nats)
	l.waitMembers(t, "a", "c")
	if s := l.node(t, "b").State; s != wire.StateJoining {
		t.Errorf("b is %q", s)
	}
	l.waitMembers(t, "a", "b", "c")
	held := time.Since(left)
	t.Logf("held off for %v", held)
	if held < 10*time.Second {
		t.Errorf("in the ring again %v after its third short stay", held)
	}
}
