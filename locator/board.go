package locator

import (
	"cmp"
	"slices"
	"time"

	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/wire"
)

// board is what the dashboard shows of the cluster, whole or, as an update, the parts
// that are other than before: nodes with the figures that changed, new changes of the
// ring, and each other part whole.
type board struct {
	Now      time.Time       `json:"now"` // by this locator's clock
	Cluster  string          `json:"cluster,omitempty"`
	Locator  string          `json:"locator,omitempty"` // this one
	NATSUp   *bool           `json:"nats_up,omitempty"`
	Ring     *boardRing      `json:"ring,omitempty"`
	Locators *[]boardLocator `json:"locators,omitempty"` // the others
	Nodes    []boardNode     `json:"nodes,omitempty"`
	Gone     []string        `json:"gone,omitempty"` // nodes, in an update
	Handoffs *[]boardHandoff `json:"handoffs,omitempty"`
	Timeline []boardChange   `json:"timeline,omitempty"` // oldest first
}

// boardRing is what changes with an epoch only.
type boardRing struct {
	Epoch uint64 `json:"epoch"`
	Hash  string `json:"hash"`
	// Segments are equal parts of the circle, each with the index in Owners of the node
	// that owns most of it.
	Owners   []string    `json:"owners"`
	Segments []int       `json:"segments"`
	Flows    []boardFlow `json:"flows"` // of unfinished handoffs
}

// boardFlow is a part of all users on their way.
type boardFlow struct {
	FromEpoch uint64  `json:"from_epoch"`
	From      string  `json:"from"`
	To        string  `json:"to"`
	Share     float64 `json:"share"`
}

const (
	boardSegments = 720
	maxBoardFlows = 400 // of a handoff, the largest
)

type boardLocator struct {
	ID       string `json:"id"`
	Epoch    uint64 `json:"epoch"`
	Suspects int    `json:"suspects"` // nodes that it hears and cannot reach
}

// boardNode is a node. An update leaves out what did not change.
type boardNode struct {
	ID string `json:"id"`
	*nodeFacts
	*nodeFigures
}

type nodeFacts struct {
	URL    string  `json:"url"`
	Weight int     `json:"weight"`
	State  string  `json:"state"`
	Share  float64 `json:"share"`
}

type nodeFigures struct {
	Sessions int     `json:"sessions"`
	Pushes   float64 `json:"pushes_per_second"`
	// SilentMS is 0 as long as heartbeats come, -1 if none came yet, so that it does not
	// change all the time.
	SilentMS int64 `json:"silent_ms"`
}

// silentShown is from when on a node counts as silent here.
const silentShown = 2 * cluster.BeatInterval

type boardHandoff struct {
	FromEpoch uint64   `json:"from_epoch"`
	Reason    string   `json:"reason"`
	Nodes     []string `json:"nodes"`
	// Began is the most sessions that had to go at a time, node by node, since this
	// locator looked; Left those that still have to.
	Began   int                `json:"began"`
	Left    int                `json:"left"`
	Pending []wire.HandoffNode `json:"pending"`
}

// boardSource makes boards of what this locator knows. It is not for several goroutines
// at once.
type boardSource struct {
	l        *Locator
	timeline *timeline

	ring  *boardRing
	began map[handoffPart]int
}

type handoffPart struct {
	epoch uint64
	node  string
}

// watch is called when nobody looks: the progress of a handoff is judged by its beginning.
func (s *boardSource) watch() {
	if cur := s.l.rings.Current(); len(cur.Handoffs) > 0 {
		_, handoffs := s.l.keeper.View(cur)
		s.progress(handoffs)
	}
}

func (s *boardSource) look() board {
	cur := s.l.rings.Current()
	nodes, handoffs := s.l.keeper.View(cur)
	up := s.l.nats.Up()
	locators := []boardLocator{}
	for _, o := range s.l.keeper.OthersSeen() {
		locators = append(locators, boardLocator{o.ID, o.Epoch, o.Suspects})
	}
	shown := s.progress(handoffs)
	b := board{Now: time.Now().UTC(), Cluster: s.l.cfg.Cluster, Locator: s.l.id, NATSUp: &up, Ring: s.ringOf(cur), Locators: &locators,
		Nodes: make([]boardNode, 0, len(nodes)), Handoffs: &shown, Timeline: s.timeline.all()}
	for _, n := range nodes {
		silent := n.LastSeenMS
		if silent > 0 {
			silent = max(0, silent-silent%500)
			if silent < silentShown.Milliseconds() {
				silent = 0
			}
		}
		b.Nodes = append(b.Nodes, boardNode{n.ID, &nodeFacts{n.URL, n.Weight, n.State, n.Share}, &nodeFigures{n.Sessions, round(n.PushRate), silent}})
	}
	return b
}

// round keeps a figure from changing in digits that nobody reads.
func round(v float64) float64 {
	if v >= 10 {
		return float64(int64(v + .5))
	}
	return float64(int64(v*10+.5)) / 10
}

// ringOf makes the picture of a ring once.
func (s *boardSource) ringOf(cur *ring.Ring) *boardRing {
	if s.ring != nil && s.ring.Epoch == cur.Epoch && s.ring.Hash == cur.Hash {
		return s.ring
	}
	r := &boardRing{Epoch: cur.Epoch, Hash: cur.Hash, Owners: []string{}, Segments: []int{}, Flows: []boardFlow{}}
	index := map[string]int{}
	for _, id := range cur.Segments(boardSegments) {
		if _, ok := index[id]; !ok {
			index[id] = len(r.Owners)
			r.Owners = append(r.Owners, id)
		}
		r.Segments = append(r.Segments, index[id])
	}
	for i, h := range cur.Handoffs {
		var list []boardFlow
		for f, share := range cur.HandoffFlows(i) {
			list = append(list, boardFlow{h.Epoch, f.From, f.To, share})
		}
		slices.SortFunc(list, func(a, b boardFlow) int {
			return cmp.Or(cmp.Compare(b.Share, a.Share), cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To))
		})
		r.Flows = append(r.Flows, list[:min(len(list), maxBoardFlows)]...)
	}
	s.ring = r
	return r
}

// progress compares the handoffs with how they began.
func (s *boardSource) progress(handoffs []wire.RingHandoff) []boardHandoff {
	out := []boardHandoff{}
	began := map[handoffPart]int{}
	for _, h := range handoffs {
		v := boardHandoff{FromEpoch: h.FromEpoch, Reason: h.Reason, Nodes: h.Nodes, Pending: h.Pending}
		for _, p := range h.Pending {
			v.Left += p.Sessions
			k := handoffPart{h.FromEpoch, p.Node}
			began[k] = max(s.began[k], p.Sessions)
			v.Began += began[k]
		}
		for k, n := range s.began { // nodes that are done
			if _, pending := began[k]; !pending && k.epoch == h.FromEpoch {
				began[k] = n
				v.Began += n
			}
		}
		out = append(out, v)
	}
	s.began = began
	return out
}

// since returns what of b is other than in old, and whether anything is.
func (b *board) since(old *board) (board, bool) {
	out := board{Now: b.Now}
	changed := false
	if *b.NATSUp != *old.NATSUp {
		out.NATSUp, changed = b.NATSUp, true
	}
	if b.Ring != old.Ring {
		out.Ring, changed = b.Ring, true
	}
	if !slices.Equal(*b.Locators, *old.Locators) {
		out.Locators, changed = b.Locators, true
	}
	if !slices.EqualFunc(*b.Handoffs, *old.Handoffs, sameHandoff) {
		out.Handoffs, changed = b.Handoffs, true
	}
	had := make(map[string]boardNode, len(old.Nodes))
	for _, n := range old.Nodes {
		had[n.ID] = n
	}
	for _, n := range b.Nodes {
		o, known := had[n.ID]
		delete(had, n.ID)
		if known && *o.nodeFacts == *n.nodeFacts {
			n.nodeFacts = nil
		}
		if known && *o.nodeFigures == *n.nodeFigures {
			n.nodeFigures = nil
		}
		if n.nodeFacts != nil || n.nodeFigures != nil {
			out.Nodes = append(out.Nodes, n)
		}
	}
	for id := range had {
		out.Gone = append(out.Gone, id)
	}
	slices.Sort(out.Gone)
	known := map[uint64]bool{}
	for _, c := range old.Timeline {
		known[c.Epoch] = true
	}
	for _, c := range b.Timeline {
		if !known[c.Epoch] {
			out.Timeline = append(out.Timeline, c)
		}
	}
	return out, changed || len(out.Nodes) > 0 || len(out.Gone) > 0 || len(out.Timeline) > 0
}

func sameHandoff(a, b boardHandoff) bool {
	return a.FromEpoch == b.FromEpoch && a.Began == b.Began && a.Left == b.Left && slices.Equal(a.Nodes, b.Nodes) && slices.Equal(a.Pending, b.Pending)
}
