package e2e

import (
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// A connection that has lasted its time is moved to a new one at the same node:
// the session goes on, and pushes count it once while both are open.
func TestMoveLifetime(t *testing.T) {
	heavy(t) // a minute is the shortest that the setting allows
	t.Parallel()
	l := startLocator(t)
	startNode(t, "a", l.nats, "DIALRING_SESSION_LIFETIME=1m")
	l.waitMembers(t, "a")
	app := listen(t, "app", l)
	old := dialBare(t, l, "alice")
	next := old.followBy(t, time.Now().Add(time.Minute+patience)) // some 54 to 60 s later
	if next.Node != "a" || next.welcome.Session != old.welcome.Session {
		t.Errorf("moved to %s with session %s, it was %s at a", next.Node, next.welcome.Session, old.welcome.Session)
	}
	if r := l.push(t, "alice", `"both"`); r.Delivered != 1 {
		t.Errorf("one session on two connections: %+v", r)
	}
	for _, b := range []*bare{old, next} {
		var m wire.Message
		if b.expectType(t, wire.TypeMessage, &m); string(m.Data) != `"both"` {
			t.Errorf("got %s", m.Data)
		}
	}
	old.Close()
	if r := l.push(t, "alice", `"one"`); r.Delivered != 1 {
		t.Errorf("after the old connection is gone: %+v", r)
	}
	// The SDK does the same, and its application sees it as connected again.
	if n := app.connected(t); n != "a" {
		t.Errorf("the SDK's client is at %q", n)
	}
	l.push(t, "app", `"on"`)
	app.expect(t, `"on"`)
}
