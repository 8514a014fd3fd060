package locator

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// aBoard is a board of n nodes.
func aBoard(n int) board {
	up := true
	b := board{Now: time.Now(), Cluster: "c", Locator: "l", NATSUp: &up, Ring: &boardRing{Epoch: 1, Owners: []string{}, Segments: []int{}, Flows: []boardFlow{}},
		Locators: &[]boardLocator{}, Handoffs: &[]boardHandoff{}, Timeline: []boardChange{{Epoch: 1, Reason: "join", Nodes: []string{}}}}
	for i := range n {
		b.Nodes = append(b.Nodes, boardNode{fmt.Sprintf("ws-%03d", i), &nodeFacts{URL: "wss://ws.example.com/v1/ws", Weight: 1, State: wire.StateActive, Share: 1 / float64(n)}, &nodeFigures{}})
	}
	return b
}

// page takes boards as the page does: the parts that came take the place of those before.
type page struct {
	parts map[string]json.RawMessage
	nodes map[string]map[string]any
	times map[uint64]boardChange
}

func (p *page) take(t *testing.T, b board, whole bool) {
	t.Helper()
	raw, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	var parts map[string]json.RawMessage
	if err := json.Unmarshal(raw, &parts); err != nil {
		t.Fatal(err)
	}
	if whole {
		*p = page{map[string]json.RawMessage{}, map[string]map[string]any{}, map[uint64]boardChange{}}
	}
	var nodes []map[string]any
	if err := json.Unmarshal(parts["nodes"], &nodes); err != nil && parts["nodes"] != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		id := n["id"].(string)
		if p.nodes[id] == nil {
			p.nodes[id] = map[string]any{}
		}
		maps.Copy(p.nodes[id], n)
	}
	for _, id := range b.Gone {
		delete(p.nodes, id)
	}
	for _, c := range b.Timeline {
		p.times[c.Epoch] = c
	}
	for _, own := range []string{"nodes", "gone", "timeline", "now"} {
		delete(parts, own)
	}
	maps.Copy(p.parts, parts)
}

// Whoever takes the whole board once and then every change has what who takes the whole
// board now has, whatever changed; and what did not change is not told.
func TestBoardChanges(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	last := aBoard(20)
	var p page
	p.take(t, last, true)
	for step := range 300 {
		next := last
		next.Nodes = slices.Clone(last.Nodes)
		switch i := random.IntN(9); {
		case i == 0:
			// Nothing.
		case i == 1 && len(next.Nodes) > 1:
			next.Nodes = slices.Delete(next.Nodes, 0, 1)
		case i == 2:
			n := aBoard(1).Nodes[0]
			n.ID = fmt.Sprintf("new-%d", step)
			next.Nodes = append(next.Nodes, n)
		case i == 3:
			f := *next.Nodes[0].nodeFacts
			f.State = wire.StateDraining
			next.Nodes[0].nodeFacts = &f
		case i == 4:
			up := !*last.NATSUp
			next.NATSUp = &up
		case i == 5:
			next.Ring = &boardRing{Epoch: last.Ring.Epoch + 1, Hash: "h", Owners: []string{"a"}, Segments: []int{0}, Flows: []boardFlow{}}
			next.Timeline = append(slices.Clone(last.Timeline), boardChange{Epoch: last.Ring.Epoch + 1, Reason: "leave", Nodes: []string{"a"}})
		case i == 6:
			next.Handoffs = &[]boardHandoff{{FromEpoch: 1, Left: step, Nodes: []string{}, Pending: []wire.HandoffNode{{Node: "a", Sessions: step}}}}
		case i == 7:
			next.Locators = &[]boardLocator{{ID: "other", Epoch: uint64(step)}}
		default:
			f := *next.Nodes[len(next.Nodes)-1].nodeFigures
			f.Sessions++
			next.Nodes[len(next.Nodes)-1].nodeFigures = &f
		}
		change, any := next.since(&last)
		var want page
		want.take(t, next, true)
		if !any {
			if !reflect.DeepEqual(p, want) {
				t.Fatalf("step %d: something changed, and it is not told", step)
			}
			last = next
			continue
		}
		p.take(t, change, false)
		if !reflect.DeepEqual(p, want) {
			t.Fatalf("step %d: the change %+v makes %+v, the board is %+v", step, change, p, want)
		}
		last = next
	}
	next := last
	next.Nodes = slices.Clone(last.Nodes)
	next.Nodes[0].nodeFigures = &nodeFigures{Sessions: 4711}
	change, _ := next.since(&last)
	b, err := json.Marshal(change)
	if err != nil || len(change.Nodes) != 1 || strings.Contains(string(b), "url") || len(b) > 200 {
		t.Errorf("one node has another number of sessions, and this is told: %s", b)
	}
}

// A handoff's progress is measured by the most that each node had to move.
func TestHandoffProgress(t *testing.T) {
	var s boardSource
	at := func(epoch uint64, pending ...wire.HandoffNode) wire.RingHandoff {
		return wire.RingHandoff{FromEpoch: epoch, Pending: pending}
	}
	for i, c := range []struct {
		handoffs    []wire.RingHandoff
		began, left []int
	}{
		{nil, nil, nil},
		{[]wire.RingHandoff{at(1, wire.HandoffNode{Node: "a"}, wire.HandoffNode{Node: "b"})}, []int{0}, []int{0}}, // they have not reported yet
		{[]wire.RingHandoff{at(1, wire.HandoffNode{Node: "a", Sessions: 100}, wire.HandoffNode{Node: "b", Sessions: 20})}, []int{120}, []int{120}},
		{[]wire.RingHandoff{at(1, wire.HandoffNode{Node: "a", Sessions: 30}, wire.HandoffNode{Node: "b", Sessions: 25})}, []int{125}, []int{55}},
		{[]wire.RingHandoff{at(1, wire.HandoffNode{Node: "a", Sessions: 30})}, []int{125}, []int{30}},
		{[]wire.RingHandoff{at(1, wire.HandoffNode{Node: "a", Sessions: 1}), at(2, wire.HandoffNode{Node: "c", Sessions: 9})}, []int{125, 9}, []int{1, 9}},
		{[]wire.RingHandoff{at(2, wire.HandoffNode{Node: "c", Sessions: 3})}, []int{9}, []int{3}},
		{nil, nil, nil},
	} {
		got := s.progress(c.handoffs)
		if len(got) != len(c.began) {
			t.Fatalf("step %d: %+v", i, got)
		}
		for k, h := range got {
			if h.Began != c.began[k] || h.Left != c.left[k] {
				t.Errorf("step %d: began with %d, %d left; want %d and %d", i, h.Began, h.Left, c.began[k], c.left[k])
			}
		}
	}
	if len(s.began) != 0 {
		t.Errorf("%d handoffs that are over are remembered", len(s.began))
	}
}

func TestRound(t *testing.T) {
	for v, want := range map[float64]float64{0: 0, 0.04: 0, 0.26: 0.3, 9.94: 9.9, 12.5: 13, 1234.4: 1234} {
		if got := round(v); got != want {
			t.Errorf("%g is shown as %g, want %g", v, got, want)
		}
	}
}
