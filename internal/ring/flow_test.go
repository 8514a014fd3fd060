package ring

import (
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// someMembers draws the weights of up to five nodes out of ten.
func someMembers(t *rapid.T, label string) map[string]int {
	return rapid.MapOfN(rapid.StringMatching(`n[0-9]`), rapid.IntRange(1, 2), 1, 5).Draw(t, label)
}

// checkFlows checks what must hold between any two rings.
func checkFlows(t interface {
	Errorf(string, ...any)
}, a, b *Ring) map[Flow]float64 {
	flows := a.Flows(b)
	gain := map[string]float64{}
	for f, share := range flows {
		if f.From == f.To || share <= 0 || share > 1+1e-9 {
			t.Errorf("flow %v of %v", f, share)
		}
		if _, in := a.Find(f.From); !in {
			t.Errorf("flow %v from a node that was not there", f)
		}
		if _, in := b.Find(f.To); !in {
			t.Errorf("flow %v to a node that is not there", f)
		}
		gain[f.To] += share
		gain[f.From] -= share
	}
	for _, n := range slices.Concat(a.Nodes, b.Nodes) {
		if d := math.Abs(gain[n.ID] - (b.Share(n.ID) - a.Share(n.ID))); d > 1e-9 {
			t.Errorf("%s: the flows change its share by %v, it went from %v to %v", n.ID, gain[n.ID], a.Share(n.ID), b.Share(n.ID))
		}
	}
	return flows
}

// The flows are what counting users by their owners finds, within the error of
// a sample: six standard deviations of each flow.
func TestFlowsCounted(t *testing.T) {
	const users = 300_000 / smaller
	base := map[string]int{"a": 1, "b": 2, "c": 1, "d": 3}
	for name, after := range map[string]map[string]int{
		"join":     {"a": 1, "b": 2, "c": 1, "d": 3, "e": 2},
		"leave":    {"a": 1, "c": 1, "d": 3},
		"heavier":  {"a": 4, "b": 2, "c": 1, "d": 3},
		"lighter":  {"a": 1, "b": 2, "c": 1, "d": 1},
		"all":      {"e": 1, "f": 1},
		"some":     {"a": 2, "c": 1, "d": 1, "e": 1, "f": 5},
		"one left": {"b": 2},
	} {
		a, b := Of(base), Of(after)
		flows := checkFlows(t, a, b)
		count := map[Flow]int{}
		for i := range users {
			u := fmt.Sprintf("user-%d", i)
			x, _ := a.Owner(u)
			y, _ := b.Owner(u)
			if x.ID != y.ID {
				count[Flow{x.ID, y.ID}]++
			}
			if (x.ID != y.ID) != a.Moved(b, u) {
				t.Fatalf("%s: Moved says %v for %s and %s", u, a.Moved(b, u), x.ID, y.ID)
			}
		}
		for f, n := range count {
			if flows[f] == 0 {
				t.Errorf("%s: %d users went by %v, which is no flow", name, n, f)
			}
		}
		for f, p := range flows {
			if d := math.Abs(float64(count[f])/users - p); d > 6*math.Sqrt(p*(1-p)/users)+2.0/users {
				t.Errorf("%s: flow %v is %.5f, counted %.5f", name, f, p, float64(count[f])/users)
			}
		}
	}
}

// Between any two rings: flows add up to the changes of share, in both directions.
func TestFlowsAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before, after := someMembers(t, "before"), someMembers(t, "after")
		a, b := Of(before), Of(after)
		flows := checkFlows(t, a, b)
		if maps.Equal(before, after) && len(flows) > 0 {
			t.Errorf("from %v to itself the flows are %v", before, flows)
		}
		back := b.Flows(a)
		if len(back) != len(flows) {
			t.Errorf("%d flows, and %d back", len(flows), len(back))
		}
		for f, share := range flows {
			if d := math.Abs(share - back[Flow{f.To, f.From}]); d > 1e-12 {
				t.Errorf("flow %v is %v, back %v", f, share, back[Flow{f.To, f.From}])
			}
		}
	})
}

// Of one change of one node: users go to it or from it, and to or from no other,
// all that it has or has had.
func TestFlowsOfOneNode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before := someMembers(t, "before")
		with := maps.Clone(before)
		with["joiner"] = rapid.IntRange(1, 2).Draw(t, "weight")
		heavier := maps.Clone(with)
		heavier["joiner"] += rapid.IntRange(1, 2).Draw(t, "more")
		a, b, c := Of(before), Of(with), Of(heavier)
		only := func(what string, x, y *Ring, node func(Flow) string) {
			sum := 0.0
			for f, share := range checkFlows(t, x, y) {
				if node(f) != "joiner" {
					t.Errorf("%s: flow %v", what, f)
				}
				sum += share
			}
			if want := math.Abs(y.Share("joiner") - x.Share("joiner")); math.Abs(sum-want) > 1e-9 {
				t.Errorf("%s: moved %v in all, its share changed by %v", what, sum, want)
			}
		}
		to, from := func(f Flow) string { return f.To }, func(f Flow) string { return f.From }
		only("join", a, b, to)
		only("heavier", b, c, to)
		only("lighter", c, b, from)
		only("leave", b, a, from)
		if !maps.Equal(b.Flows(Of(with)), map[Flow]float64{}) || !maps.Equal(b.Flows(b), map[Flow]float64{}) {
			t.Error("users move between equal rings")
		}
	})
}

func TestFlowsOfSingleNodes(t *testing.T) {
	a, heavy, b, none := Of(map[string]int{"a": 1}), Of(map[string]int{"a": 7}), Of(map[string]int{"b": 2}), Of(nil)
	for name, x := range map[string]map[Flow]float64{
		"the same node, heavier": a.Flows(heavy), "lighter": heavy.Flows(a), "from none": none.Flows(a), "to none": a.Flows(none), "none": none.Flows(none),
	} {
		if len(x) != 0 {
			t.Errorf("%s: %v", name, x)
		}
	}
	if f := a.Flows(b); len(f) != 1 || math.Abs(f[Flow{"a", "b"}]-1) > 1e-12 {
		t.Errorf("from one node to another: %v", f)
	}
}

func nodesOf(members map[string]int, boot string) []Node {
	var out []Node
	for id, w := range members {
		out = append(out, Node{ID: id, Weight: w, Boot: boot, URL: "ws://" + id + boot, PeerURL: "http://" + id, AcceptRate: 5, GraceMS: 7})
	}
	return out
}

// document draws one with up to three handoffs.
func document(t *rapid.T, handoffs int) Document {
	d := Document{Cluster: "c", Epoch: 100, Nodes: nodesOf(someMembers(t, "nodes"), "boot")}
	d.Seal()
	for i := range handoffs {
		h := Handoff{Epoch: uint64(10 + i), Reason: "join", Nodes: []string{"n0"}, Members: someMembers(t, fmt.Sprint("members", i))}
		h.Pending = rapid.SliceOfNDistinct(rapid.SampledFrom(slices.Sorted(maps.Keys(h.Members))), 1, len(h.Members), rapid.ID[string]).Draw(t, fmt.Sprint("pending", i))
		slices.Sort(h.Pending)
		for _, id := range h.Pending {
			if _, in := d.Process(id); !in {
				d.Leaving = append(d.Leaving, Node{ID: id, Weight: h.Members[id], Boot: "old", PeerURL: "http://left-" + id})
				d.Seal()
			}
		}
		d.Handoffs = append(d.Handoffs, h)
	}
	d.Seal()
	if err := d.Check(); err != nil {
		t.Fatal(err)
	}
	return d
}

// By brute force: who owned the user by a former ring, where that node is pending.
func TestFormer(t *testing.T) {
	found := 0
	rapid.Check(t, func(t *rapid.T) {
		d := document(t, rapid.IntRange(0, 3).Draw(t, "handoffs"))
		r := New(d)
		if r.Settled() != (len(d.Handoffs) == 0) {
			t.Errorf("settled: %v with %d handoffs", r.Settled(), len(d.Handoffs))
		}
		var rings []*Ring
		for _, h := range d.Handoffs {
			rings = append(rings, Of(h.Members))
		}
		now := Of(d.Members())
		for i := range 300 {
			u := fmt.Sprintf("u%d", i)
			var want []Node
			owner, _ := now.Owner(u)
			for k, h := range d.Handoffs {
				was, _ := rings[k].Owner(u)
				known := slices.ContainsFunc(want, func(n Node) bool { return n.ID == was.ID })
				if n, _ := d.Process(was.ID); was.ID != owner.ID && slices.Contains(h.Pending, was.ID) && !known {
					want = append(want, n)
				}
			}
			var got []Node
			for _, n := range r.Former(u) {
				got = append(got, *n)
			}
			if !slices.Equal(got, want) {
				t.Fatalf("%s: former owners %v, want %v", u, got, want)
			}
			found += len(got)
		}
	})
	if found == 0 {
		t.Error("no user had a former owner")
	}
}

// Next takes over the circles that did not change, and answers like New.
func TestNext(t *testing.T) {
	one, two := map[string]int{"a": 1, "b": 2}, map[string]int{"a": 1, "b": 2, "c": 1}
	d := Document{Cluster: "c", Epoch: 5, Nodes: nodesOf(one, "boot")}
	d.Seal()
	first := New(d)
	d = Document{Cluster: "c", Epoch: 6, Nodes: nodesOf(one, "again")}
	d.Seal()
	moved := first.Next(d)
	if moved.circle != first.circle {
		t.Error("new boots and addresses: another circle")
	}
	if o, _ := moved.Owner("alice"); o.Boot != "again" {
		t.Errorf("the owner is still %+v", o)
	}
	d = Document{Cluster: "c", Epoch: 7, Nodes: nodesOf(two, "again"), Handoffs: []Handoff{{Epoch: 6, Members: one, Pending: []string{"a", "b"}}}}
	d.Seal()
	grown := moved.Next(d)
	if grown.circle == moved.circle || grown.former[0].circle != moved.circle {
		t.Error("a handoff: not the circle of the ring before")
	}
	d = Document{Cluster: "c", Epoch: 8, Nodes: nodesOf(one, "again"), Leaving: []Node{{ID: "c", Weight: 1}}, Handoffs: []Handoff{
		{Epoch: 6, Members: one, Pending: []string{"b"}}, {Epoch: 7, Members: two, Pending: []string{"c"}}}}
	d.Seal()
	back := grown.Next(d)
	if back.circle != first.circle || back.former[0].circle != first.circle || back.former[1].circle != grown.circle {
		t.Error("back again: not the circles that were there")
	}
}

func TestNextLikeNew(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := New(Document{Cluster: "c"})
		for range 3 {
			d := document(t, rapid.IntRange(0, 2).Draw(t, "handoffs"))
			r = r.Next(d)
			fresh := New(d)
			if !reflect.DeepEqual(r.Document, fresh.Document) || r.Settled() != fresh.Settled() {
				t.Fatal("another document")
			}
			for _, n := range d.Nodes {
				if r.Share(n.ID) != fresh.Share(n.ID) {
					t.Fatalf("%s: share %v, want %v", n.ID, r.Share(n.ID), fresh.Share(n.ID))
				}
			}
			for i := range 200 {
				u := fmt.Sprintf("u%d", i)
				a, _ := r.Owner(u)
				b, _ := fresh.Owner(u)
				if *a != *b || !reflect.DeepEqual(r.Former(u), fresh.Former(u)) {
					t.Fatalf("%s: %v and %v, want %v and %v", u, a, r.Former(u), b, fresh.Former(u))
				}
			}
		}
	})
}

// sample is a document with all that there can be.
func sample() Document {
	d := Document{Cluster: "c", Epoch: 9, Nodes: nodesOf(map[string]int{"a": 1, "b": 2}, "boot"), Leaving: nodesOf(map[string]int{"x": 1, "y": 3}, "old"),
		Handoffs: []Handoff{{Epoch: 6, Reason: "leave", Nodes: []string{"x"}, Members: map[string]int{"a": 1, "x": 2}, Pending: []string{"a", "x"}},
			{Epoch: 8, Reason: "join+leave", Nodes: []string{"y"}, Members: map[string]int{"a": 1, "b": 1, "y": 3}, Pending: []string{"b", "y"}}},
		Change: Change{Reason: "leave", Nodes: []string{"y"}, By: "l", Unrefused: 1}, Flapping: []Flaps{{"x", 2}}}
	d.Seal()
	return d
}

func TestHandoffRoundTrip(t *testing.T) {
	d := sample()
	b, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(b, "c")
	if err != nil || !reflect.DeepEqual(got, d) {
		t.Errorf("%+v, %v; want %+v", got, err, d)
	}
	if c := d.With(); !reflect.DeepEqual(c, d) {
		t.Error("With is no copy")
	} else {
		c.Nodes[0].Boot, c.Leaving[0].Boot, c.Handoffs[0].Epoch, c.Flapping[0].Count = "other", "other", 1, 9
		if !reflect.DeepEqual(got, d) {
			t.Error("a change of the copy changed the document")
		}
	}
}

// The check of what handoffs and leaving nodes may not be, and the hash of what
// they are. What a case changes the hash must cover: unless it is sealed again,
// the document is refused for that, too.
func TestCheckHandoffs(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*Document)
		want string // in the error after sealing; empty: it is right
	}{
		"leaving boot":         {func(d *Document) { d.Leaving[0].Boot = "other" }, ""},
		"leaving address":      {func(d *Document) { d.Leaving[0].PeerURL = "http://other" }, ""},
		"leaving weight":       {func(d *Document) { d.Leaving[0].Weight = 2 }, ""},
		"one more leaves":      {func(d *Document) { d.Leaving = append(d.Leaving, Node{ID: "z", Weight: 1}) }, ""},
		"handoff epoch":        {func(d *Document) { d.Handoffs[1].Epoch = 7 }, ""},
		"handoff gone":         {func(d *Document) { d.Handoffs = d.Handoffs[1:] }, ""},
		"pending less":         {func(d *Document) { d.Handoffs[0].Pending = []string{"a"} }, ""},
		"member's weight":      {func(d *Document) { d.Handoffs[0].Members["a"] = 3 }, ""},
		"member more":          {func(d *Document) { d.Handoffs[0].Members["c"] = 3 }, ""},
		"leaving twice":        {func(d *Document) { d.Leaving = append(d.Leaving, d.Leaving[0]) }, "repeated or out of order"},
		"leaving id":           {func(d *Document) { d.Leaving[0].ID = "X.y" }, "ring document"},
		"leaving no weight":    {func(d *Document) { d.Leaving[0].Weight = 0 }, "weight 0"},
		"leaving too heavy":    {func(d *Document) { d.Leaving[0].Weight = MaxWeight + 1 }, "weight 65"},
		"in and leaving":       {func(d *Document) { d.Leaving = append(d.Leaving, d.Nodes[0]) }, "leaving at once"},
		"too many leave":       {func(d *Document) { d.Leaving = equal(MaxNodes + 1) }, "leaving nodes"},
		"too many handoffs":    {func(d *Document) { d.Handoffs = slices.Repeat(d.Handoffs[:1], MaxHandoffs+1) }, "handoffs"},
		"epoch is its own":     {func(d *Document) { d.Handoffs[1].Epoch = 9 }, "handoff of epoch 9"},
		"epoch to come":        {func(d *Document) { d.Handoffs[1].Epoch = 10 }, "handoff of epoch 10"},
		"epochs repeated":      {func(d *Document) { d.Handoffs[1].Epoch = 6 }, "repeated or out of order"},
		"epochs out of order":  {func(d *Document) { slices.Reverse(d.Handoffs) }, "repeated or out of order"},
		"none pending":         {func(d *Document) { d.Handoffs[0].Pending = nil }, "0 pending"},
		"pending no member":    {func(d *Document) { d.Handoffs[0].Pending = []string{"a", "b"} }, "was no member"},
		"pending twice":        {func(d *Document) { d.Handoffs[0].Pending = []string{"a", "a"} }, "repeated"},
		"pending out of order": {func(d *Document) { d.Handoffs[0].Pending = []string{"x", "a"} }, "out of order"},
		"pending unknown":      {func(d *Document) { d.Leaving = d.Leaving[1:] }, "address is unknown"},
		"member's id":          {func(d *Document) { d.Handoffs[0].Members["A b"] = 1 }, "ring document"},
		"member no weight":     {func(d *Document) { d.Handoffs[0].Members["c"] = 0 }, "weight 0"},
		"member too heavy":     {func(d *Document) { d.Handoffs[0].Members["c"] = 65 }, "weight 65"},
		"members too heavy": {func(d *Document) {
			for i := range 32 {
				d.Handoffs[0].Members[fmt.Sprintf("m%d", i)] = MaxWeight
			}
		}, "add up to"},
	} {
		d := sample()
		c.edit(&d)
		if d.hash() == d.Hash {
			t.Errorf("%s: the hash is the same", name)
		}
		if err := d.Check(); err == nil {
			t.Errorf("%s: accepted with the hash of another", name)
		}
		slices.SortFunc(d.Leaving, byID)
		d.Hash = d.hash() // not Seal: it would put things right
		err := d.Check()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
