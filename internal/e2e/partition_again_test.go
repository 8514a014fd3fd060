//go:build linux

package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// A former owner that has lost NATS takes the forwarded pushes of a new owner that
// it never met: the ring has its key.
func TestPartitionForwardToNodeWithoutNATS(t *testing.T) {
	heavy(t)
	atATime(t)
	p := newPartition(t, 1, nodesAB...)
	l, a := p.locs[0], p.nodes["a"]
	leave := dialAll(t, l, usersBy(t, 2, nodesAB, "a", nodesABC, "c"))
	p.cut(p.nats, p.at["a"])
	a.event(t, "nats_down")
	p.node(t, "c")
	l.waitMembers(t, nodesABC...)
	for _, h := range leave { // who have not followed yet
		var m wire.Move
		h.expectType(t, wire.TypeMove, &m)
	}
	for _, h := range leave {
		if r := l.push(t, h.user, `"still here"`); r.Delivered != 1 {
			t.Errorf("a push to %s, who is connected at a: %+v", h.user, r)
		}
	}
}

// The same with clients of the SDK under load.
func TestPartitionLoadNodeWithoutNATS(t *testing.T) {
	heavy(t)
	atATime(t)
	bothKinds(t, loadNodeWithoutNATS)
}

func loadNodeWithoutNATS(t *testing.T, durable bool) {
	p := newPartition(t, 1, nodesAB...)
	l, a := p.locs[0], p.nodes["a"]
	load := startLoad(t, loadConfig{Locators: p.locs, Users: 100, Devices: 1, Rate: 200, Durable: durable})
	p.cut(p.nats, p.at["a"])
	a.event(t, "nats_down")
	p.node(t, "c")
	l.waitMembers(t, nodesABC...)
	l.settled(t)
	if durable { // what a owns is stored when it has its store again
		p.heal()
	}
	load.clean(t)
}

// A node that most locators cannot reach is out, and stays out though the third
// one reaches it.
func TestPartitionMostLocatorsRejoin(t *testing.T) {
	heavy(t)
	atATime(t)
	p := newPartition(t, 3, nodesABC...)
	user := usersBy(t, 1, nodesABC, "a", []string{"b", "c"}, "b")[0]
	for _, name := range []string{"l1", "l2"} {
		p.cutPort(p.at[name], p.at["a"], 8092)
	}
	for _, l := range p.locs[:2] {
		l.try(t, user, `"evidence"`)
	}
	l3 := p.locs[2]
	l3.waitMembers(t, "b", "c")
	began, in := time.Now(), false
	for time.Since(began) < 15*time.Second {
		r := l3.ring(t)
		was := in
		in = slices.ContainsFunc(r.Nodes, func(n wire.RingNode) bool { return n.ID == "a" && n.Share > 0 })
		if in != was {
			t.Errorf("%v after it was out, a is in the ring: %v; epoch %d", time.Since(began), in, r.Epoch)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// What was pushed into a link whose path was cut does not arrive after the heal.
func TestPartitionPushAfterHeal(t *testing.T) {
	heavy(t)
	atATime(t)
	p := newPartition(t, 1, nodesABC...)
	l := p.locs[0]
	user := usersBy(t, 1, nodesABC, "a", []string{"b", "c"}, "b")[0]
	old := dialBare(t, l, user)
	p.cut(p.nats, p.at["a"])
	for _, name := range []string{"l1", "b", "c"} {
		p.cut(p.at[name], p.at["a"])
	}
	r := l.try(t, user, `"into the cut"`)
	l.waitMembers(t, "b", "c")
	next := dialBare(t, l, user)
	again := l.try(t, user, `"after"`)
	t.Logf("answered %+v, and after a was out %+v at %s", r, again, next.Node)
	p.heal()
	node, before := p.movedOrBack(t, old, "a")
	if len(before) > 0 {
		t.Errorf("a wrote %s to its old session, of a user whom %s serves (who goes to %s)", fmt.Sprint(before), next.Node, node)
	}
}
