package ring

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
	"strconv"
	"sync"

	"github.com/serialx/hashring"

	"github.com/dialring/dialring/internal/wire"
)

// Points is how many points on the circle a node has for each unit of weight.
// The spread of the load is about 1/sqrt(Points): with 1024 the most loaded of
// ten nodes has about 1.05 times the mean, and 1.10 in less than one of a
// hundred memberships. A node's points depend on its id and weight alone, so
// adding or removing one moves users between it and the others only.
// Never normalise weights by their sum: that would move users between others.
const Points = 1024

// point is a place on the circle: the first 8 bytes of a SHA-256, which has
// instructions of its own in today's CPUs and is faster than MD5 there.
// 64 bits: with 32, some points collide and the order of building decides.
type point uint64

// Less orders points around the circle, for hashring.
func (p point) Less(o hashring.HashKey) bool { return p < o.(point) }

func hash(key []byte) point {
	s := sha256.Sum256(key)
	return point(binary.BigEndian.Uint64(s[:]))
}

func hashKey(key []byte) hashring.HashKey { return hash(key) }

// Ring is a Document ready to be asked. It is immutable; all methods may be
// called concurrently.
type Ring struct {
	Document
	circle *circle
	byID   map[string]int // index into Nodes
	former []former
}

// former is a ring whose users may not all have arrived at their new owners.
type former struct {
	circle  *circle
	pending map[string]*Node
}

// circle is the points of some members: all that decides who owns whom.
type circle struct {
	members map[string]int // weight by id
	ring    *hashring.HashRing
	shares  func() map[string]float64
}

func newCircle(members map[string]int) *circle {
	c := &circle{members: members}
	c.ring = hashring.NewWithHashAndWeights(points(members), hashKey)
	c.shares = sync.OnceValue(c.computeShares)
	return c
}

// points is a fresh map each time: hashring keeps the one it is given.
func points(members map[string]int) map[string]int {
	w := make(map[string]int, len(members))
	for id, n := range members {
		w[id] = n * Points
	}
	return w
}

// New builds a ring. The document must have passed Check and must not be
// changed any more. It costs about 0.5 ms for each unit of weight, and as much
// for each handoff.
func New(d Document) *Ring { return (&Ring{}).Next(d) }

// Next builds the ring that follows r, of whose circles it takes those that did
// not change: a handoff that ends or an address that changes costs nothing.
func (r *Ring) Next(d Document) *Ring {
	circleOf := func(members map[string]int) *circle {
		if r.circle != nil && maps.Equal(r.circle.members, members) {
			return r.circle
		}
		for _, f := range r.former {
			if maps.Equal(f.circle.members, members) {
				return f.circle
			}
		}
		return newCircle(members)
	}
	next := &Ring{Document: d, circle: circleOf(d.Members()), byID: make(map[string]int, len(d.Nodes))}
	for i, n := range d.Nodes {
		next.byID[n.ID] = i
	}
	for _, h := range d.Handoffs {
		f := former{circle: circleOf(h.Members), pending: map[string]*Node{}}
		for _, id := range h.Pending {
			if n, ok := d.Process(id); ok {
				f.pending[id] = &n
			}
		}
		next.former = append(next.former, f)
	}
	return next
}

// Of builds a ring of members alone, for finding out what would be.
func Of(members map[string]int) *Ring {
	var d Document
	for id, w := range members {
		d.Nodes = append(d.Nodes, Node{ID: id, Weight: w})
	}
	d.Seal()
	return New(d)
}

// Owner returns the node that owns user; false if the ring is empty.
func (r *Ring) Owner(user string) (*Node, bool) {
	id, ok := r.circle.ring.GetNode(user)
	if !ok {
		return nil, false
	}
	return &r.Nodes[r.byID[id]], true
}

// NextOwner returns the node that would own user if its owner left; false if there is
// none other.
func (r *Ring) NextOwner(user string) (*Node, bool) {
	ids, ok := r.circle.ring.GetNodes(user, 2)
	if !ok {
		return nil, false
	}
	return &r.Nodes[r.byID[ids[1]]], true
}

// Ref names the ring to others.
func (r *Ring) Ref() wire.RingRef { return wire.RingRef{Epoch: r.Epoch, Hash: r.Hash} }

// Settled tells whether every user is with its owner: no handoff is unfinished.
func (r *Ring) Settled() bool { return len(r.former) == 0 }

// Former returns the nodes other than its owner that may still hold sessions
// of user: those that owned it by a former ring and have not reported yet.
func (r *Ring) Former(user string) []*Node {
	if len(r.former) == 0 {
		return nil
	}
	owner, _ := r.Owner(user)
	var out []*Node
	for _, f := range r.former {
		id, _ := f.circle.ring.GetNode(user)
		n := f.pending[id]
		if n == nil || owner != nil && n.ID == owner.ID || slices.ContainsFunc(out, func(o *Node) bool { return o.ID == n.ID }) {
			continue
		}
		out = append(out, n)
	}
	return out
}

// Moved tells whether user has another owner in next than in r.
func (r *Ring) Moved(next *Ring, user string) bool {
	a, okA := r.Owner(user)
	b, okB := next.Owner(user)
	return okA != okB || okA && a.ID != b.ID
}

// Share returns the part of all possible users, 0 to 1, that a node owns: the
// exact length of its arcs.
func (r *Ring) Share(id string) float64 { return r.circle.shares()[id] }

// arc is a part of the circle, from the end of the one before it to its own.
type arc struct {
	end  point
	node string
}

// arcs makes the points again, the way hashring does: it has no way to be asked
// for them, and building it for that would take three times as long.
func (c *circle) arcs() []arc {
	n := 0
	for _, w := range c.members {
		n += w * Points
	}
	arcs := make([]arc, 0, n)
	var key []byte
	for id, w := range c.members {
		key = append(append(key[:0], id...), '-')
		stem := len(key)
		for i := range w * Points {
			arcs = append(arcs, arc{hash(strconv.AppendInt(key[:stem], int64(i), 10)), id})
		}
	}
	slices.SortFunc(arcs, func(a, b arc) int { return cmp.Compare(a.end, b.end) })
	return arcs
}

func (c *circle) computeShares() map[string]float64 {
	arcs := c.arcs()
	shares := make(map[string]float64, len(c.members))
	for i, a := range arcs {
		// The arc reaches back to the point before; the first one wraps around,
		// as does the subtraction.
		before := arcs[(i+len(arcs)-1)%len(arcs)].end
		shares[a.node] += float64(a.end-before) / (1 << 64)
	}
	if len(c.members) == 1 { // all arcs of one node are the whole circle
		for id := range c.members {
			shares[id] = 1
		}
	}
	return shares
}

// Flow is users on their way from one node to another.
type Flow struct{ From, To string }

// Flows returns which part of all possible users, 0 to 1, each pair of nodes
// hands over when next follows r. Both rings must have nodes.
func (r *Ring) Flows(next *Ring) map[Flow]float64 { return flows(r.circle, next.circle) }

// HandoffFlows is Flows from the ring that the i-th unfinished handoff began with.
func (r *Ring) HandoffFlows(i int) map[Flow]float64 { return flows(r.former[i].circle, r.circle) }

// Between is Flows of members alone (weights by id), of which no ring is built.
func Between(before, after map[string]int) map[Flow]float64 {
	if maps.Equal(before, after) {
		return map[Flow]float64{}
	}
	return flows(&circle{members: before}, &circle{members: after})
}

func flows(from, to *circle) map[Flow]float64 {
	out := map[Flow]float64{}
	if from == to || len(from.members) == 0 || len(to.members) == 0 {
		return out
	}
	a, b := from.arcs(), to.arcs()
	// Between two neighbouring points, of either circle, the owner by each is the
	// node of its next point. The stretch behind the last one belongs to the first.
	last := max(a[len(a)-1].end, b[len(b)-1].end)
	before := last
	for i, j := 0, 0; i < len(a) || j < len(b); {
		x, y := a[i%len(a)], b[j%len(b)]
		end := last
		switch {
		case j == len(b) || i < len(a) && x.end <= y.end:
			end = x.end
		default:
			end = y.end
		}
		if x.node != y.node {
			out[Flow{x.node, y.node}] += float64(end-before) / (1 << 64)
		}
		before = end
		for i < len(a) && a[i].end == end {
			i++
		}
		for j < len(b) && b[j].end == end {
			j++
		}
	}
	return out
}
