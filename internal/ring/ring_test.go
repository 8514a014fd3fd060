package ring

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func doc(nodes ...Node) Document {
	d := Document{Cluster: "c", Epoch: 1, Nodes: nodes}
	d.Seal()
	return d
}

func equal(n int) []Node {
	l := make([]Node, n)
	for i := range l {
		l[i] = Node{ID: fmt.Sprintf("ws-%d", i), Weight: 1}
	}
	return l
}

// peak returns the most loaded node's load over the mean, for ids user-0 to user-(n-1).
func peak(r *Ring, n int) float64 {
	count := map[string]int{}
	for i := range n {
		o, _ := r.Owner(fmt.Sprintf("user-%d", i))
		count[o.ID]++
	}
	top := 0
	for _, c := range count {
		top = max(top, c)
	}
	return float64(top) / (float64(n) / float64(len(r.Nodes)))
}

func TestBalance(t *testing.T) {
	const ids = 1_000_000 / smaller
	for _, c := range []struct {
		nodes int
		limit float64
	}{{3, 1.10}, {10, 1.10}, {100, 1.25}} {
		if p := peak(New(doc(equal(c.nodes)...)), ids); p > c.limit {
			t.Errorf("%d nodes: peak to mean is %.3f, want at most %.2f", c.nodes, p, c.limit)
		} else {
			t.Logf("%d nodes: peak to mean %.3f", c.nodes, p)
		}
	}
}

// Whatever the names: ten nodes of random ids stay within 1.10 by share.
func TestBalanceOfRandomNames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z][a-z0-9-]{0,20}`), 10, 10, rapid.ID[string]).Draw(t, "names")
		var nodes []Node
		for _, n := range names {
			nodes = append(nodes, Node{ID: n, Weight: 1})
		}
		r := New(doc(nodes...))
		sum := 0.0
		for _, n := range r.Nodes {
			s := r.Share(n.ID)
			if sum += s; s > 0.125 { // 5.5 standard deviations: no draw gets there
				t.Fatalf("%s owns %.4f of a ring of ten", n.ID, s)
			}
		}
		if math.Abs(sum-1) > 1e-9 {
			t.Fatalf("the shares add up to %v", sum)
		}
	})
}

func TestEleventhNode(t *testing.T) {
	before, after := New(doc(equal(10)...)), New(doc(equal(11)...))
	moved := 0
	const ids = 1_000_000 / smaller
	for i := range ids {
		u := fmt.Sprintf("user-%d", i)
		if before.Moved(after, u) {
			moved++
			if o, _ := after.Owner(u); o.ID != "ws-10" {
				t.Fatalf("%s moved to %s, an old node", u, o.ID)
			}
		}
	}
	if want := after.Share("ws-10"); math.Abs(float64(moved)/ids-want) > 0.002 {
		t.Errorf("moved %.4f of the users, the new node's share is %.4f", float64(moved)/ids, want)
	}
}

// Adding, removing or reweighting one node never moves a user between two
// others, whatever the membership, the weights and the order of input.
func TestMinimalMovement(t *testing.T) {
	node := rapid.Custom(func(t *rapid.T) Node {
		return Node{ID: rapid.StringMatching(`[a-z0-9-]{1,12}`).Draw(t, "id"), Weight: rapid.IntRange(1, 6).Draw(t, "weight")}
	})
	rapid.Check(t, func(t *rapid.T) {
		nodes := rapid.SliceOfNDistinct(node, 2, 12, func(n Node) string { return n.ID }).Draw(t, "nodes")
		all := New(doc(slices.Clone(nodes)...))
		one := nodes[rapid.IntRange(0, len(nodes)-1).Draw(t, "one")]
		rest := slices.DeleteFunc(slices.Clone(nodes), func(n Node) bool { return n.ID == one.ID })
		without := New(doc(slices.Clone(rest)...))
		heavier := one
		heavier.Weight++
		shuffled := append(slices.Clone(rest), heavier)
		rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		more := New(doc(shuffled...))
		rand.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
		again := New(doc(nodes...))
		if again.Hash != all.Hash {
			t.Fatalf("the order of input changes the hash: %s, %s", again.Hash, all.Hash)
		}
		for i := range 2000 {
			u := fmt.Sprintf("u%d", i)
			a, _ := all.Owner(u)
			b, _ := without.Owner(u)
			m, _ := more.Owner(u)
			g, _ := again.Owner(u)
			if a.ID != g.ID {
				t.Fatalf("%s: owner %s or %s, by the order of input", u, a.ID, g.ID)
			}
			if a.ID != one.ID && a.ID != b.ID {
				t.Fatalf("%s moved from %s to %s though %s was removed", u, a.ID, b.ID, one.ID)
			}
			if a.ID != m.ID && m.ID != one.ID {
				t.Fatalf("%s moved from %s to %s though only %s got heavier", u, a.ID, m.ID, one.ID)
			}
		}
	})
}

func TestWeights(t *testing.T) {
	r := New(doc(Node{ID: "a", Weight: 1}, Node{ID: "b", Weight: 3}))
	if s := r.Share("b"); s < 0.70 || s > 0.80 {
		t.Errorf("a node of weight 3 beside one of 1 owns %.3f", s)
	}
}

// The shares are the arcs' lengths: a sample of users agrees with them.
func TestShares(t *testing.T) {
	r := New(doc(equal(7)...))
	count := map[string]int{}
	const n = 400_000
	for i := range n {
		o, _ := r.Owner(fmt.Sprintf("x%d", i))
		count[o.ID]++
	}
	for id, c := range count {
		if d := math.Abs(float64(c)/n - r.Share(id)); d > 0.004 {
			t.Errorf("%s: share %.4f, sampled %.4f", id, r.Share(id), float64(c)/n)
		}
	}
}

func TestOneAndNone(t *testing.T) {
	if _, ok := New(doc()).Owner("alice"); ok {
		t.Error("an empty ring has an owner")
	}
	r := New(doc(Node{ID: "a", Weight: 1}))
	if o, ok := r.Owner("alice"); !ok || o.ID != "a" || r.Share("a") != 1 {
		t.Errorf("owner %v %v, share %v", o, ok, r.Share("a"))
	}
	if !New(doc()).Moved(r, "alice") || r.Moved(r, "alice") {
		t.Error("Moved is wrong about the empty ring or the same")
	}
}

func TestCheck(t *testing.T) {
	good := doc(Node{ID: "a", Weight: 1}, Node{ID: "b", Weight: 2})
	b, _ := good.Encode()
	if _, err := Decode(b, "c"); err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(b, "other"); err == nil {
		t.Error("a ring of another cluster is accepted")
	}
	many := equal(MaxNodes + 1)
	heavy := equal(40)
	for i := range heavy {
		heavy[i].Weight = MaxWeight
	}
	for name, d := range map[string]Document{
		"twice":     doc(Node{ID: "a", Weight: 1}, Node{ID: "a", Weight: 1}),
		"weight 0":  doc(Node{ID: "a"}),
		"weight":    doc(Node{ID: "a", Weight: 1_000_000_000}),
		"id":        doc(Node{ID: "A.b", Weight: 1}),
		"too many":  doc(many...),
		"too heavy": doc(heavy...),
		"hash":      {Cluster: "c", Epoch: 1, Hash: "00000000"},
		"no epoch":  {Cluster: "c"},
	} {
		if d.Check() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Golden owners: a change of the hash or of the points would move every user
// of every cluster, and must not happen by accident.
func TestGoldenOwners(t *testing.T) {
	r := New(doc(equal(5)...))
	var got []string
	for _, u := range []string{"alice", "bob", "carol", "日本", "a/b", "u1", "u2", "u3"} {
		o, _ := r.Owner(u)
		got = append(got, o.ID)
	}
	want := []string{"ws-1", "ws-0", "ws-1", "ws-1", "ws-3", "ws-4", "ws-1", "ws-3"}
	if !slices.Equal(got, want) {
		t.Errorf("owners %q, want %q", got, want)
	}
}

func BenchmarkOwner(b *testing.B) {
	r := New(doc(equal(10)...))
	for b.Loop() {
		r.Owner("user-12345")
	}
}

func BenchmarkBuild100(b *testing.B) {
	d := doc(equal(100)...)
	for b.Loop() {
		New(d)
	}
}
