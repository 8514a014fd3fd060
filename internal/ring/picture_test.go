package ring

import (
	"fmt"
	"math"
	"testing"

	"pgregory.net/rapid"
)

// The picture against one that looks the owner of very many places up, one by one.
func TestSegments(t *testing.T) {
	if s := New(Document{}).Segments(8); s != nil {
		t.Errorf("an empty ring has the segments %q", s)
	}
	for _, nodes := range [][]Node{equal(1), equal(2), equal(7), {{ID: "a", Weight: 1}, {ID: "b", Weight: 9}}} {
		r := New(doc(nodes...))
		const n, each = 720, 512
		arcs := r.circle.arcs()
		at := func(x uint64) string { // the node of the first point that is not before x
			for _, a := range arcs {
				if uint64(a.end) > x {
					return a.node
				}
			}
			return arcs[0].node
		}
		segments := r.Segments(n)
		if len(segments) != n {
			t.Fatalf("%d segments", len(segments))
		}
		for i := 0; i < n; i += 31 {
			count := map[string]int{}
			for k := range each {
				count[at(uint64((float64(i)+(float64(k)+.5)/each)/n*math.MaxUint64))]++
			}
			for node, c := range count { // sampling may take the second for the first when they are close
				if c > count[segments[i]]+each/50 {
					t.Errorf("%d nodes, segment %d is %s's, who has %d of %d; %s has %d", len(nodes), i, segments[i], count[segments[i]], each, node, c)
				}
			}
		}
	}
}

// Who owns a user when its owner has left is who was said to be next.
func TestNextOwner(t *testing.T) {
	if n, ok := New(doc(equal(1)...)).NextOwner("u"); ok {
		t.Errorf("one node alone has %s next", n.ID)
	}
	if _, ok := New(Document{}).NextOwner("u"); ok {
		t.Error("an empty ring has a next owner")
	}
	r := New(doc(Node{ID: "a", Weight: 1}, Node{ID: "b", Weight: 3}, Node{ID: "c", Weight: 1}, Node{ID: "d", Weight: 2}))
	without := map[string]*Ring{}
	for id := range r.Members() {
		m := r.Members()
		delete(m, id)
		without[id] = Of(m)
	}
	rapid.Check(t, func(t *rapid.T) {
		user := rapid.StringN(1, 40, 128).Draw(t, "user")
		o, _ := r.Owner(user)
		next, ok := r.NextOwner(user)
		want, _ := without[o.ID].Owner(user)
		if !ok || next.ID != want.ID {
			t.Fatalf("%q: next is %v, want %s", user, next, want.ID)
		}
	})
}

// What a handoff moves, and what two lists of members tell of it, is what two rings do.
func TestFlowsOfHandoff(t *testing.T) {
	before := doc(equal(3)...)
	after := doc(equal(4)...)
	after.Epoch = 2
	after.Handoffs = []Handoff{{Epoch: 1, Members: before.Members(), Pending: []string{"ws-0"}}}
	a, b := New(before), New(after)
	want := a.Flows(b)
	if len(want) != 3 {
		t.Fatalf("flows %v", want)
	}
	for name, got := range map[string]map[Flow]float64{"handoff": b.HandoffFlows(0), "members": Between(before.Members(), after.Members())} {
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	if got := Between(before.Members(), before.Members()); len(got) != 0 {
		t.Errorf("nothing changed, and %v moves", got)
	}
}
