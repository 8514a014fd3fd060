package cluster

import (
	"slices"
	"strings"
	"time"

	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/wire"
)

// view lists the nodes in the ring, those that leave it and those about to join.
func (s *members) view(now time.Time, share func(id string) float64) []wire.RingNode {
	var out []wire.RingNode
	show := func(n ring.Node, state string, share float64) {
		m := s.get(n.ID)
		v := wire.RingNode{ID: n.ID, URL: n.URL, Weight: n.Weight, State: state, Sessions: m.beat.Sessions, Share: share, PushRate: m.beat.PushRate, LastSeenMS: -1}
		if state == wire.StateActive && (m.silent(now) || m.peer.fails > 0) {
			v.State = wire.StateSuspect
		}
		if m.beat.State == wire.StateDraining {
			v.State = wire.StateDraining
		}
		if !m.beatAt.IsZero() {
			v.LastSeenMS = now.Sub(m.beatAt).Milliseconds()
		}
		out = append(out, v)
	}
	for _, n := range s.cur.Nodes {
		show(n, wire.StateActive, share(n.ID))
	}
	for _, n := range s.cur.Leaving {
		show(n, wire.StateDraining, 0)
	}
	for id, m := range s.m {
		if _, known := s.cur.Process(id); known || m.cand.Boot == "" || now.Sub(m.candAt) >= silentAfter {
			continue
		}
		state := wire.StateJoining
		if m.cand.State == wire.StateDraining {
			state = wire.StateDraining
		}
		out = append(out, wire.RingNode{ID: id, URL: m.cand.URL, Weight: m.cand.Weight, State: state,
			Sessions: m.cand.Sessions, PushRate: m.cand.PushRate, LastSeenMS: now.Sub(m.candAt).Milliseconds()})
	}
	slices.SortFunc(out, func(a, b wire.RingNode) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// handoffView lists the unfinished handoffs and how many sessions still have to
// go, by the nodes' last reports.
func (s *members) handoffView() []wire.RingHandoff {
	out := []wire.RingHandoff{}
	for _, h := range s.cur.Handoffs {
		v := wire.RingHandoff{FromEpoch: h.Epoch, Reason: h.Reason, Nodes: h.Nodes, Pending: []wire.HandoffNode{}}
		for _, id := range h.Pending {
			if n, known := s.cur.Process(id); known && s.settled(n) <= h.Epoch {
				v.Pending = append(v.Pending, wire.HandoffNode{Node: id, Sessions: s.get(id).misplaced(n.Boot)})
			}
		}
		out = append(out, v)
	}
	return out
}

// misplaced is how many sessions a process said to have that must go.
func (m *member) misplaced(boot string) int {
	if m.health.Boot == boot && m.health.Epoch > m.beat.Epoch || m.beat.Boot != boot {
		return m.health.Misplaced
	}
	return m.beat.Misplaced
}
