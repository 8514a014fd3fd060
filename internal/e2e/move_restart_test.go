package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// A node with a grace that ends keeps its place and its users for its next
// process, however it ended; when none comes it is out after the grace, not
// before.
func TestMoveRestartGrace(t *testing.T) {
	heavy(t)
	t.Parallel()
	l := startLocator(t)
	const grace = 10 * time.Second
	setting := "DIALRING_RESTART_GRACE=" + grace.String()
	a := startNode(t, "a", l.nats, setting)
	startNode(t, "b", l.nats)
	l.waitMembers(t, "a", "b")
	l.settled(t)
	var users []string
	for i := range 100 {
		users = append(users, fmt.Sprintf("grace-%d", i))
	}
	was := ownersOf(t, l, users)
	mine := movers(equal("a", "b"), equal("b"), "a", "b", 1)[0]
	other := dialEar(t, l, movers(equal("a", "b"), equal("a", "b"), "b", "b", 1)[0], "d")
	for _, how := range []string{"kill -9", "SIGTERM"} {
		before := l.ring(t)
		e := dialEar(t, l, mine, "d")
		if how == "kill -9" {
			a.kill()
			e.closes(t, 0)
		} else {
			if code := a.term(t); code != 0 {
				t.Errorf("%s: it ended with %d", how, code)
			}
			e.closes(t, wire.CloseDraining)
			select {
			case m := <-e.moves: // nobody moves for a restart
				t.Errorf("%s: told to move: %+v", how, m.Move)
			default:
			}
		}
		eventually(t, "a is missed", func() bool {
			n := l.node(t, "a")
			return n.State == wire.StateSuspect && n.LastSeenMS > 4000
		})
		if r := l.ring(t); r.Epoch != before.Epoch || r.Hash != before.Hash || len(r.Nodes) != 2 || len(r.Handoffs) != 0 {
			t.Errorf("%s: the ring changed within the grace: %+v, before %+v", how, r, before)
		}
		for u, n := range ownersOf(t, l, users) {
			if was[u] != n {
				t.Errorf("%s: %s went from %s to %s while its node is away", how, u, was[u], n)
			}
		}
		if status, b := call(t, "POST", "http://"+l.addr+"/v1/push/"+mine+"?durable=false", `"away"`); status != 503 && status != 504 {
			t.Errorf("%s: a push to a user of the absent node: %d %s", how, status, b)
		}
		a = startNodeAt(t, "a", l.nats, a.addr, a.peer, setting)
		eventually(t, "the new process is in its place", func() bool {
			r := l.ring(t)
			return r.Epoch > before.Epoch && l.node(t, "a").State == wire.StateActive
		})
		r := l.ring(t)
		if r.Epoch != before.Epoch+1 || len(r.Nodes) != 2 || len(r.Handoffs) != 0 {
			t.Errorf("%s: the ring is %+v, before %+v", how, r, before)
		}
		for u, n := range ownersOf(t, l, users) {
			if was[u] != n {
				t.Errorf("%s: %s went from %s to %s by a restart", how, u, was[u], n)
			}
		}
		back := dialEar(t, l, mine, "d")
		if back.Node != "a" {
			t.Errorf("%s: back at %s", how, back.Node)
		}
		l.delivers(t, back, "back")
		back.leave(t)
	}
	l.delivers(t, other, "undisturbed")

	epoch := l.ring(t).Epoch
	begin := time.Now()
	a.kill()
	l.waitMembers(t, "b")
	if took := time.Since(begin); took < grace {
		t.Errorf("out of the ring %v after the kill, its grace is %v", took, grace)
	}
	if r := l.ring(t); r.Epoch != epoch+1 {
		t.Errorf("epoch %d, was %d", r.Epoch, epoch)
	}
	l.delivers(t, dialEar(t, l, mine, "d"), "at b")
	l.delivers(t, other, "undisturbed")
}
