package e2e

import (
	"fmt"
	"testing"
)

// A locator that nobody has asked before a node died spreads its users all the
// same: it follows the ring, also one that came just before.
func TestMoveCrashSpreads(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	slow := "DIALRING_ACCEPT_RATE=5"
	startNode(t, "a", l.nats, slow)
	startNode(t, "b", l.nats, slow)
	l.waitMembers(t, "a", "b")
	c := startNode(t, "c", l.nats, slow)
	l.waitMembers(t, "a", "b", "c")
	c.kill()
	l.waitMembers(t, "a", "b")
	waiting, n := 0, 120
	for i := range n {
		if l.locate(t, fmt.Sprintf("user-%d", i), "").DialAfterMS > 0 {
			waiting++
		}
	}
	// A third of them were the dead node's; ten a second are let in at once.
	if waiting < n/6 || waiting > n/2 {
		t.Errorf("%d of %d users are to wait, want about a third less ten", waiting, n)
	}
}
