package wsnode

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/ring"
)

// A node hands over its own users and nobody else's: with its key one gets no further.
func TestMayMove(t *testing.T) { synctest.Test(t, testMayMove) }

func testMayMove(t *testing.T) {
	n := &Node{cfg: Config{NodeID: "a"}}
	n.rings = cluster.NewRings(new(cluster.Conn), slog.New(slog.DiscardHandler))
	node := func(id string, weight int) ring.Node {
		return ring.Node{ID: id, Boot: id, URL: "ws://" + id + ".test", PeerURL: "http://" + id + ".test", Weight: weight}
	}
	// d was heavier before, so that some of its users are a's now; e is leaving.
	d := ring.Document{Epoch: 3, Nodes: []ring.Node{node("a", 1), node("b", 1), node("d", 1)}, Leaving: []ring.Node{node("e", 1)},
		Handoffs: []ring.Handoff{{Epoch: 2, Reason: "weight+leave", Nodes: []string{"d", "e"}, Members: map[string]int{"a": 1, "b": 1, "d": 8, "e": 8}, Pending: []string{"d", "e"}}}}
	d.Seal()
	if err := offer(n.rings, d); err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for i := range 2000 {
		user := "user-" + string(rune('a'+i%26)) + string(rune('a'+i/26%26)) + string(rune('a'+i/676))
		if !n.ownsUser(nil, user, n.rings.Current()) {
			continue
		}
		former := map[string]bool{}
		for _, o := range n.rings.Current().Former(user) {
			former[o.ID] = true
			seen[o.ID]++
		}
		for from, want := range map[string]bool{"a": true, "b": false, "d": former["d"], "e": former["e"], "gone": true /* nobody here knows */} {
			if got := n.mayMove(from, user); got != want {
				t.Fatalf("%s may move %s: %v, want %v (former owners: %v)", from, user, got, want, former)
			}
		}
	}
	// When the handoff is over a ticket of before is good for as long as it is.
	var moved string
	for i := range 2000 {
		user := "user-" + string(rune('a'+i%26)) + string(rune('a'+i/26%26)) + string(rune('a'+i/676))
		if f := n.rings.Current().Former(user); n.ownsUser(nil, user, n.rings.Current()) && len(f) == 1 && f[0].ID == "d" {
			moved = user
		}
	}
	d.Epoch, d.Leaving, d.Handoffs = 4, nil, nil
	d.Seal()
	if err := offer(n.rings, d); err != nil {
		t.Fatal(err)
	}
	if !n.mayMove("d", moved) || n.mayMove("b", moved) {
		t.Errorf("after the handoff d may move %s: %v, b: %v", moved, n.mayMove("d", moved), n.mayMove("b", moved))
	}
	// Who was not there for a minute does not know who was in the ring. Then nobody comes out of nowhere.
	if time.Sleep(2 * time.Minute); n.mayMove("gone", moved) {
		t.Error("a node that was in no ring of the last minute may move a user")
	}
	if seen["d"] == 0 || seen["e"] == 0 {
		t.Errorf("no user came from both: %v", seen)
	}
}

// What a node may have another one do: what every node has to, and for users of its own.
func TestMayAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		n := &Node{cfg: Config{NodeID: "a"}, ctx: ctx, ringWaits: newShares(maxRingWaits, 1)}
		n.rings = cluster.NewRings(new(cluster.Conn), slog.New(slog.DiscardHandler))
		d := ring.Document{Epoch: 1}
		for _, id := range []string{"a", "b", "c"} {
			d.Nodes = append(d.Nodes, ring.Node{ID: id, Boot: id, URL: "ws://" + id + ".test", PeerURL: "http://" + id + ".test", Weight: 1})
		}
		d.Seal()
		if err := offer(n.rings, d); err != nil {
			t.Fatal(err)
		}
		user, owner := "alice", "b"
		for o, _ := n.rings.Current().Owner(user); o.ID != owner; o, _ = n.rings.Current().Owner(user) {
			user += "x"
		}
		const nobodys = 99 // no operation
		for _, x := range []struct {
			op        peer.Op
			forwarded bool
			may       map[string]bool
		}{
			{peer.OpLook, false, map[string]bool{"locator:l": true, "node:b": true, "node:c": true}},
			{peer.OpMissing, false, map[string]bool{"locator:l": true, "node:b": true, "node:c": true}},
			{peer.OpPresence, false, map[string]bool{"locator:l": true}},
			{peer.OpPresence, true, map[string]bool{"locator:l": true, "node:b": true, "node:c": true}},
			{peer.OpSessions, false, map[string]bool{"locator:l": true}},
			{peer.OpSessions, true, map[string]bool{"locator:l": true, "node:b": true}},
			{peer.OpKick, false, map[string]bool{"locator:l": true}},
			{peer.OpKick, true, map[string]bool{"locator:l": true, "node:b": true}},
			{peer.OpAcked, false, map[string]bool{"locator:l": true}},
			{peer.OpAcked, true, map[string]bool{"locator:l": true, "node:b": true}},
			{peer.OpBroadcast, false, map[string]bool{"locator:l": true}},
			{peer.OpBroadcast, true, map[string]bool{"locator:l": true}},
			{peer.OpRing, false, map[string]bool{"locator:l": true}},
			{peer.OpDrain, false, map[string]bool{"locator:l": true}},
			{peer.OpPlan, false, map[string]bool{"locator:l": true}},
			{peer.OpGroupChange, false, map[string]bool{"locator:l": true}},
			{peer.OpGroupMembers, false, map[string]bool{"locator:l": true}},
			{peer.OpGroupPush, true, map[string]bool{"locator:l": true}},
			{nobodys, false, map[string]bool{"locator:l": true}}, // op knows that there is none
		} {
			for _, from := range []string{"locator:l", "node:b", "node:c"} {
				err := n.mayAsk(from, &peer.In{Op: x.op, User: []byte(user), Forwarded: x.forwarded}, 1)
				if (err == nil) != x.may[from] || err != nil && !errors.Is(err, errLocatorsOnly) && !errors.Is(err, errNotTheirs) {
					t.Errorf("operation %d, forwarded %v, by %s: %v", x.op, x.forwarded, from, err)
				}
			}
		}
		// A new owner may ask before this node has the ring by which it is one.
		kick := &peer.In{Op: peer.OpKick, User: []byte(user), Forwarded: true}
		asked := make(chan error)
		go func() { asked <- n.mayAsk("node:c", kick, 2) }()
		synctest.Wait()
		d.Epoch, d.Nodes = 2, []ring.Node{d.Nodes[0], d.Nodes[2]}
		for o, _ := ring.New(d).Owner(user); o.ID != "c"; o, _ = ring.New(d).Owner(user) {
			d.Nodes[1].Weight++
		}
		d.Seal()
		if err := offer(n.rings, d); err != nil {
			t.Fatal(err)
		}
		if err := <-asked; err != nil {
			t.Errorf("the owner by the next ring: %v", err)
		}
		if err := n.mayAsk("node:b", kick, 2); err != nil {
			t.Errorf("the owner of a moment ago: %v", err)
		}
		// A ring that never comes is not awaited for long.
		if err := n.mayAsk("node:d", kick, 1<<60); !errors.Is(err, errNotTheirs) {
			t.Errorf("by a ring that there is not: %v", err)
		}
	})
}

// Who makes up an epoch has a few calls wait for it, and not all that it sends.
func TestRingWaitsAreBounded(t *testing.T) { synctest.Test(t, testRingWaitsAreBounded) }

func testRingWaitsAreBounded(t *testing.T) {
	n := &Node{ctx: t.Context(), ringWaits: newShares(maxRingWaits, 1)}
	n.rings = cluster.NewRings(new(cluster.Conn), slog.New(slog.DiscardHandler))
	waits := func(from string, calls int) int64 {
		for range calls {
			go n.awaitRingOf(from, 1<<40)
		}
		synctest.Wait()
		return n.ringWaits.taken()
	}
	if got := waits("bad", 10*maxRingWaits); got != maxRingWaits/4 {
		t.Errorf("%d calls of one node wait", got)
	}
	if got := waits("good", 1); got != maxRingWaits/4+1 {
		t.Errorf("with one of another node %d wait", got)
	}
	time.Sleep(catchUp) // in the bubble's time
	synctest.Wait()
	if got := n.ringWaits.taken(); got != 0 {
		t.Errorf("%d wait for longer than %v", got, catchUp)
	}
}
