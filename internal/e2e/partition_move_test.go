//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/wire"
)

// Users move while paths are cut.

// moveSlots is how many of these clusters run at a time, however many CPUs
// there are: each is six processes and more, with race detection.
var moveSlots = make(chan struct{}, 3)

func atATime(t *testing.T) {
	t.Helper()
	t.Parallel()
	moveSlots <- struct{}{}
	t.Cleanup(func() { <-moveSlots }) // the last one: its processes are gone by then
}

// usersBy returns n users whom the ring of some nodes gives to from, and the ring
// of others to to.
func usersBy(t *testing.T, n int, before []string, from string, after []string, to string) []string {
	t.Helper()
	of := func(nodes []string) *ring.Ring {
		weights := map[string]int{}
		for _, id := range nodes {
			weights[id] = 1
		}
		return ring.Of(weights)
	}
	old, next := of(before), of(after)
	var out []string
	for i := range 10_000 {
		u := fmt.Sprintf("%s-%s-%d", from, to, i)
		a, _ := old.Owner(u)
		b, _ := next.Owner(u)
		if a.ID == from && b.ID == to {
			if out = append(out, u); len(out) == n {
				return out
			}
		}
	}
	t.Fatalf("no %d users go from %s to %s", n, from, to)
	return nil
}

var (
	nodesAB  = []string{"a", "b"}
	nodesABC = []string{"a", "b", "c"}
)

// dialAll connects users by hand, each at the node that owns them.
func dialAll(t *testing.T, l *locatorProc, users []string) []*bare {
	t.Helper()
	var out []*bare
	for _, u := range users {
		out = append(out, dialBare(t, l, u))
	}
	return out
}

// reaches pushes to hand-written clients, whose next frame is that message: no
// move, above all.
func reaches(t *testing.T, l *locatorProc, node, when string, hands ...*bare) {
	t.Helper()
	for _, h := range hands {
		msg := fmt.Sprintf("%q", when+" to "+h.user)
		if r := l.push(t, h.user, msg); r.Delivered != 1 || r.Node != node {
			t.Errorf("%s, a push to %s: %+v, want 1 session of %s", when, h.user, r, node)
			continue
		}
		if f := h.text(t); data(f) != msg {
			t.Errorf("%s, %s got %s", when, h.user, f)
		}
	}
}

// followed waits for the moves of clients, follows them, and ends the old
// connections.
func followed(t *testing.T, hands []*bare, to string) []*bare {
	t.Helper()
	var out []*bare
	for _, h := range hands {
		next := h.follow(t)
		if next.Node != to || next.welcome.Session != h.welcome.Session {
			t.Errorf("%s followed to %s as session %s; want %s, %s", h.user, next.Node, next.welcome.Session, to, h.welcome.Session)
		}
		h.Close()
		out = append(out, next)
	}
	return out
}

// tried is the answer to a push that need not be accepted.
type tried struct {
	status    int
	code      wire.Code
	delivered int
	took      time.Duration
}

// try pushes. Whatever is cut, the answer comes, and it is one of the contract.
func (l *locatorProc) try(t *testing.T, user, msg string) tried {
	t.Helper()
	begin := time.Now()
	status, b := call(t, "POST", "http://"+l.addr+"/v1/push/"+user+"?durable=false", msg)
	a := tried{status: status, took: time.Since(begin)}
	var r wire.PushResult
	var p wire.Problem
	switch {
	case status == 200 && json.Unmarshal(b, &r) == nil:
		a.delivered = r.Delivered
	case (status == 503 || status == 504) && json.Unmarshal(b, &p) == nil:
		a.code = p.Code
	default:
		t.Errorf("a push to %s through %s: %d %s", user, l.name, status, b)
	}
	if a.took > pushTimeout {
		t.Errorf("a push to %s through %s was answered after %v", user, l.name, a.took)
	}
	return a
}

// agree waits until all locators have the same ring, of these nodes, and no
// handoff is left.
func (p *partition) agree(t *testing.T, nodes ...string) wire.RingResponse {
	t.Helper()
	for _, l := range p.locs {
		l.waitMembers(t, nodes...)
		l.settled(t)
	}
	var first wire.RingResponse
	eventually(t, "the locators agree", func() bool {
		first = p.locs[0].ring(t)
		return !slices.ContainsFunc(p.locs, func(l *locatorProc) bool {
			r := l.ring(t)
			return r.Epoch != first.Epoch || r.Hash != first.Hash || len(r.Handoffs) > 0
		})
	})
	return first
}

// A node that has lost NATS learns from a locator that another one has joined,
// moves whom it lost, and only those, and the handoff ends by what it answers to
// probes.
func TestPartitionMoveNodeFromNATS(t *testing.T) {
	heavy(t)
	atATime(t)
	p := newPartition(t, 1, nodesAB...)
	l, a := p.locs[0], p.nodes["a"]
	stay := dialAll(t, l, usersBy(t, 3, nodesAB, "a", nodesABC, "a"))
	leave := dialAll(t, l, usersBy(t, 5, nodesAB, "a", nodesABC, "c"))
	p.cut(p.nats, p.at["a"])
	a.event(t, "nats_down")
	p.missed(t, l, 4*time.Second, "a")
	reaches(t, l, "a", "cut", slices.Concat(stay, leave)...)

	p.node(t, "c")
	if m := l.event(t, "ring_sent"); m["node"] != "a" || m["error"] != nil || m["epoch"] != float64(p.epoch+1) {
		t.Errorf("the ring was sent so: %v; want epoch %d to a", m, p.epoch+1)
	}
	if m := a.event(t, "ring"); m["epoch"] != float64(p.epoch+1) || m["nodes"] != 3. || m["reason"] != "join" {
		t.Errorf("the ring that a got: %v", m)
	}
	leave = followed(t, leave, "c")
	reaches(t, l, "c", "moved", leave...)
	reaches(t, l, "a", "not moved", stay...)
	l.settled(t)
	if n := l.members(t)["a"]; n.State != wire.StateSuspect || n.LastSeenMS < 4000 {
		t.Errorf("the handoff ended, and a was heard: %+v", n)
	}
	reaches(t, l, "c", "settled", leave...)
	reaches(t, l, "a", "settled", stay...)
	after := l.ring(t)

	p.heal()
	a.event(t, "nats_up")
	eventually(t, "a is active", func() bool { return l.members(t)["a"].State == wire.StateActive })
	reaches(t, l, "c", "healed", leave...)
	reaches(t, l, "a", "healed", stay...)
	if r := l.ring(t); r.Epoch != after.Epoch || r.Hash != after.Hash {
		t.Errorf("the ring changed after the heal: %+v, before it was %+v", r, after)
	}
}

// One locator that cannot reach a node proves nothing; two of three do.
func TestPartitionMoveMostLocators(t *testing.T) {
	heavy(t)
	atATime(t)
	p := newPartition(t, 3, nodesABC...)
	l1, l2, l3 := p.locs[0], p.locs[1], p.locs[2]
	users := usersBy(t, 2, nodesABC, "a", []string{"b", "c"}, "b")
	hand, sdk := dialBare(t, l3, users[0]), listen(t, users[1], l3)

	p.cutPort(p.at["l1"], p.at["a"], 8092)
	if r := l1.try(t, users[0], `"cut from l1"`); r.status == 200 { // which it notices by that
		t.Errorf("a push over the cut path: %+v", r)
	}
	eventually(t, "l1 suspects a", func() bool { return l1.members(t)["a"].State == wire.StateSuspect })
	for began := time.Now(); time.Since(began) < 8*time.Second; time.Sleep(100 * time.Millisecond) {
		for _, l := range p.locs {
			p.same(t, l)
		}
		if s := l1.members(t)["a"].State; s != wire.StateSuspect {
			t.Errorf("a is %s at l1", s)
		}
	}
	for _, l := range p.locs[1:] {
		eventually(t, "a is active at "+l.name, func() bool { return l.members(t)["a"].State == wire.StateActive })
		p.serves(t, l, sdk, "a", "cut-from-l1")
		reaches(t, l, "a", "cut from l1 through "+l.name, hand)
	}

	p.cutPort(p.at["l2"], p.at["a"], 8092)
	l2.try(t, users[0], `"cut from l2"`)
	for _, l := range p.locs { // that it stays out: see TestPartitionMostLocatorsRejoin
		l.waitMembers(t, "b", "c")
	}
	if n := sdk.connected(t); n != "b" {
		t.Errorf("%s was moved to %s, the owner is b", sdk.user, n)
	}
	hand = followed(t, []*bare{hand}, "b")[0]
	if s := p.nodes["a"].text(); strings.Contains(s, `"event":"nats_down"`) {
		t.Errorf("a lost NATS")
	}

	p.heal()
	hand = followed(t, []*bare{hand}, "a")[0]
	p.agree(t, nodesABC...)
	for _, l := range p.locs {
		reaches(t, l, "a", "healed through "+l.name, hand)
		if r := l.push(t, users[1], `"`+l.name+`"`); r.Delivered != 1 || r.Node != "a" {
			t.Errorf("healed, a push through %s: %+v", l.name, r)
		}
		sdk.expect(t, `"`+l.name+`"`)
	}
}

// A locator that has lost NATS goes by an old ring while users move: it never says
// that one is not connected who is.
func TestPartitionMoveLocatorFromNATS(t *testing.T) {
	heavy(t)
	atATime(t)
	p := newPartition(t, 2, nodesAB...)
	cut, other := p.locs[0], p.locs[1]
	stay := dialAll(t, cut, usersBy(t, 2, nodesAB, "a", nodesABC, "a"))
	leave := dialAll(t, cut, usersBy(t, 2, nodesAB, "a", nodesABC, "c"))
	busy := listen(t, usersBy(t, 3, nodesAB, "a", nodesABC, "c")[2], other) // follows as clients do
	p.cut(p.nats, p.at["l1"])
	cut.event(t, "nats_down")

	var pushing sync.WaitGroup
	stop := make(chan struct{})
	statuses := map[int]int{}
	pushing.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			r := cut.try(t, busy.user, fmt.Sprint(i))
			statuses[r.status]++
			if r.status == 200 && r.delivered != 1 {
				t.Errorf("push %d to a user who moves: %+v", i, r)
			}
		}
	})
	p.node(t, "c")
	other.waitMembers(t, nodesABC...)
	leave = followed(t, leave, "c")
	if n := busy.connected(t); n != "c" {
		t.Errorf("%s moved to %s", busy.user, n)
	}
	other.settled(t)
	for _, h := range leave {
		switch r := cut.try(t, h.user, `"old ring"`); {
		case r.status == 200 && r.delivered != 1:
			t.Errorf("a push by the old ring to a user who is connected: %+v", r)
		case r.status == 503: // not delivered, it says: the next frame is another one
			reaches(t, other, "c", "cut", h)
		default:
			h.text(t)
		}
	}
	close(stop)
	pushing.Wait()
	t.Logf("pushes by the old ring to a user who moved: %v", statuses)
	reaches(t, cut, "a", "old ring, not moved", stay...)
	if n := len(cut.ring(t).Nodes); n != 2 {
		t.Errorf("the locator that is cut off has %d nodes", n)
	}

	p.heal()
	cut.event(t, "nats_up")
	p.agree(t, nodesABC...)
	reaches(t, cut, "c", "healed", leave...)
	reaches(t, cut, "a", "healed", stay...)
}
