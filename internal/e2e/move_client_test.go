package e2e

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// Two clients are told to move: one ignores it and is closed at the deadline,
// the other dials first and leaves then.
func TestMoveDeadline(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	startNode(t, "a", l.nats, "DIALRING_MOVE_DEADLINE=2s")
	l.waitMembers(t, "a")
	users := movers(equal("a"), equal("a", "b"), "a", "b", 2)
	deaf, good := dialEar(t, l, users[0], "deaf"), dialEar(t, l, users[1], "good")
	startNode(t, "b", l.nats)

	m := good.told(t)
	l.waitMembers(t, "a", "b") // a may have the ring before the locator goes by it
	r := l.ring(t)
	var reason string
	if len(r.Handoffs) == 1 {
		reason = r.Handoffs[0].Reason
	}
	if m.Node != "b" || m.URL != l.node(t, "b").URL || m.Ticket == "" || len(m.Ticket) > 1024 || m.DeadlineMS != 2000 || m.AfterMS != 0 || m.Epoch == 0 || m.Epoch > r.Epoch {
		t.Errorf("move frame: %+v", m.Move)
	}
	if r.Epoch == m.Epoch && (m.Reason != "join" || reason != "join") {
		t.Errorf("the move frame says %q, the handoff %q, want join", m.Reason, reason)
	}
	ignored := deaf.told(t)

	// Both connections are open: the session is one, and the push comes once.
	next := good.follows(t, m)
	if next.Node != "b" {
		t.Errorf("it is at %s", next.Node)
	}
	l.delivers(t, next, "both open")
	if n := l.presence(t, good.user)[good.user]; n != 1 {
		t.Errorf("presence counts %d sessions, it is one on two connections", n)
	}
	if u := l.getUser(t, good.user); len(u.Sessions) != 1 || u.Sessions[0].ID != good.welcome.Session || u.Sessions[0].Device != "good" {
		t.Errorf("it is one session: %+v", u)
	}
	if status := dialStatus(t, m.URL, m.Ticket); status != 401 {
		t.Errorf("the same ticket again: %d, want 401", status)
	}
	if !good.open() {
		t.Errorf("the old connection was closed with %d before the client left it", good.code)
	} else {
		good.leave(t)
	}
	l.delivers(t, next, "left")

	for deaf.open() { // the handoff lasts until it is closed
		if r := l.ring(t); len(r.Handoffs) == 0 {
			if seen := time.Now(); deaf.open() {
				await(t, "the client is closed", deaf.ended)
				if deaf.endedAt.After(seen) {
					t.Errorf("the handoff was over %v before the last session", deaf.endedAt.Sub(seen))
				}
			}
		}
	}
	deaf.closes(t, wire.CloseMoved)
	// Half a second is for a node that is held up between noting the deadline and
	// writing the frame.
	if stayed := deaf.endedAt.Sub(ignored.at); stayed < 1500*time.Millisecond {
		t.Errorf("closed %v after the frame that said 2 s", stayed)
	}
	l.settled(t)
	if !next.open() {
		t.Errorf("the moved session was closed with %d", next.code)
	}
	l.delivers(t, next, "settled")
	select {
	case extra := <-next.got:
		t.Errorf("it came twice: %s", extra)
	default:
	}
	if n := l.presence(t, deaf.user)[deaf.user]; n != 0 {
		t.Errorf("presence counts %d sessions of the closed client", n)
	}
	// Its ticket is still good: it comes late, with the same session.
	late := deaf.follows(t, ignored)
	l.delivers(t, late, "late")
}

// Clients that follow while pushes come: each push is counted once, and comes on
// one of the two connections at least, on none of them twice.
func TestMoveWhilePushed(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	startNode(t, "a", l.nats)
	l.waitMembers(t, "a")
	const pushes = 8
	var old []*ear
	for _, u := range movers(equal("a"), equal("a", "b"), "a", "b", 12) {
		old = append(old, dialEar(t, l, u, "d"))
	}
	startNode(t, "b", l.nats)
	for _, e := range old {
		m := e.told(t)
		pushed := make(chan struct{})
		go func() {
			defer close(pushed)
			for i := range pushes {
				status, b := call(t, "POST", "http://"+l.addr+"/v1/push/"+e.user+"?durable=false", fmt.Sprint(i))
				var r wire.PushResult
				if err := json.Unmarshal(b, &r); status != 200 || err != nil || r.Delivered != 1 {
					t.Errorf("push %d to %s: %d %s", i, e.user, status, b)
				}
			}
		}()
		next := e.follows(t, m)
		<-pushed
		e.leave(t) // whatever was written to it has been read now
		if r := l.push(t, e.user, `"last"`); r.Delivered != 1 {
			t.Errorf("the last push: %+v", r)
		}
		count := map[string]int{}
		for _, c := range []*ear{e, next} {
			seen := map[string]bool{}
			for c == next || len(c.got) > 0 {
				d := await(t, e.user+" gets the last push", c.got)
				if d == `"last"` {
					break
				}
				if seen[d] {
					t.Errorf("%s got %s twice at %s", e.user, d, c.Node)
				}
				seen[d] = true
				count[d]++
			}
		}
		for i := range pushes {
			if count[fmt.Sprint(i)] == 0 {
				t.Errorf("%s never got push %d: %v", e.user, i, count)
			}
		}
	}
	l.settled(t)
}
