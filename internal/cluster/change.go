package cluster

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/wire"
)

// How long a node that keeps joining and leaving is held off: from its
// flapHeld-th short stay on flapHold, twice as long each time. Stays of
// flapStay are not short; after flapForget the count starts anew.
const (
	flapStay   = time.Minute
	flapForget = 10 * time.Minute
	flapHeld   = 3
	flapHold   = 10 * time.Second
	flapMost   = 5 * time.Minute
)

// proposal is the ring that should follow the published one, while it is made.
//
//	failures   crashes, restarts in place, new addresses: at once, also in the
//	           middle of a handoff
//	handoffs   those end whose pending nodes have all reported, or are gone; with
//	           them leaving nodes go that nobody waits for
//	planned    only when no handoff is left: nodes that drain, else nodes that
//	           join, else weights
//	record     if users lost their owner, and that process lives: a new handoff
type proposal struct {
	s       *members
	now     time.Time
	d       ring.Document
	reasons []string
	changed []string
	flapped map[string]int // by node that leaves: its new count; 0: it does not flap
	removed int            // without refusal
	suspect map[string]bool
}

// next returns the ring that should follow the published one; ok is false if
// nothing is to change. The caller publishes it and, if that succeeded, calls
// setRing.
func (s *members) next(now time.Time) (d ring.Document, ok bool) {
	p := proposal{s: s, now: now, d: s.cur.With(), suspect: s.mostSuspect(now)}
	p.d.Change = ring.Change{}
	p.failures()
	failed := len(p.changed) > 0
	p.handoffs(failed)
	if !failed && len(p.d.Handoffs) == 0 {
		p.planned()
	}
	if len(p.reasons) == 0 {
		return p.d, false
	}
	slices.Sort(p.changed)
	p.record()
	p.d.Change = ring.Change{Reason: strings.Join(p.reasons, "+"), Nodes: slices.Compact(p.changed), By: s.self, Unrefused: p.removed}
	return p.d, true
}

func (p *proposal) change(reason string, ids ...string) {
	if !slices.Contains(p.reasons, reason) {
		p.reasons = append(p.reasons, reason)
	}
	p.changed = append(p.changed, ids...)
}

func (p *proposal) replace(n ring.Node) {
	p.d.Nodes[slices.IndexFunc(p.d.Nodes, func(x ring.Node) bool { return x.ID == n.ID })] = n
}

// drop takes a node out of the ring, and notes whether it stayed shortly only.
func (p *proposal) drop(id string) {
	p.d.Nodes = slices.DeleteFunc(p.d.Nodes, func(n ring.Node) bool { return n.ID == id })
	if p.flapped == nil {
		p.flapped = map[string]int{}
	}
	if m := p.s.get(id); !m.joined.IsZero() && p.now.Sub(m.joined) < flapStay {
		p.flapped[id] = p.s.flaps(id) + 1
	} else if m.joined.IsZero() {
		p.flapped[id] = p.s.flaps(id) // since when it was there is not known here
	} else {
		p.flapped[id] = 0
	}
}

// verdict is what the evidence says of the process in the ring.
type verdict struct {
	dead    bool
	refused bool // its address refused twice: nothing listens there any more
	kept    bool // it is dead, and its place is kept for its next process
}

// judge tells whether the process in the ring is to be taken out.
func (p *proposal) judge(n *ring.Node, m *member) verdict {
	v := verdict{refused: m.peer.refused >= 2}
	switch {
	case m.heir != "" && !m.silent(p.now):
		return v // its successor is about to report
	case p.s.deaf(p.now):
		// Whatever failed may be this locator's own trouble. A refusal is not, if
		// it came since this locator hears again.
		v.dead = p.s.hears(p.now) && m.refusedSince() && !m.peer.refusedAt[0].Before(p.s.hearing) && p.s.revived[n.ID] != n.Boot
	case m.silent(p.now):
		v.dead = m.peer.fails >= 2
	default:
		// Heartbeats that arrive while this locator cannot reach it are a broken
		// path, unless most locators find it broken.
		v.dead = m.refusedSince() && p.s.revived[n.ID] != n.Boot || p.suspect[n.Boot]
	}
	if _, stays := p.s.cur.Find(n.ID); !stays {
		return v // it has no place to keep
	}
	if grace := time.Duration(n.GraceMS) * time.Millisecond; v.dead && m.peer.fails > 0 && p.now.Sub(m.peer.failing) < grace {
		v.dead, v.kept = false, true
	}
	return v
}

func (p *proposal) failures() {
	mayLeave := p.s.mayLeaveUnrefused(p.now)
	for _, n := range p.s.cur.Nodes {
		m := p.s.get(n.ID)
		v := p.judge(&n, m)
		gone := v.dead || v.kept || m.heir != "" || m.refusedSince()
		switch {
		case gone && m.ready(p.now) && (m.heir == "" || m.heir == m.cand.Boot):
			next := m.cand.node()
			next.Weight = n.Weight // a change of that is one of its own
			p.replace(next)
			p.change("restart", n.ID)
		case v.dead && (v.refused || mayLeave > 0):
			if !v.refused {
				mayLeave--
				p.removed++
			}
			p.drop(n.ID)
			p.change("crash", n.ID)
		case m.cand.Boot == n.Boot && m.ready(p.now):
			next := m.cand.node()
			next.Weight = n.Weight
			p.replace(next)
			p.change("update", n.ID)
		}
	}
	for _, n := range p.s.cur.Leaving {
		if m := p.s.get(n.ID); p.awaited(n) && (m.heir != "" || p.judge(&n, m).dead) {
			p.leaves(n, "crash")
		}
	}
}

func (p *proposal) leaves(n ring.Node, reason string) {
	p.d.Leaving = slices.DeleteFunc(p.d.Leaving, func(x ring.Node) bool { return x.ID == n.ID })
	p.change(reason, n.ID)
}

// awaited tells whether a handoff waits for a process, which may still have sessions of
// users that it does not own.
func (p *proposal) awaited(n ring.Node) bool {
	settled := p.s.settled(n)
	return slices.ContainsFunc(p.d.Handoffs, func(h ring.Handoff) bool {
		return settled <= h.Epoch && slices.Contains(h.Pending, n.ID)
	})
}

// handoffs takes those off the list that are done, and the leaving nodes that
// nobody waits for, which wait for that before they end. If somebody failed, these are for
// the next change: who is named by a crash is told as lost.
func (p *proposal) handoffs(failed bool) {
	for _, n := range p.s.cur.Leaving {
		if !failed && !p.awaited(n) {
			p.leaves(n, "handoff")
		}
	}
	list := p.d.Handoffs
	p.d.Handoffs = nil
	for _, h := range list {
		var pending []string
		for _, id := range h.Pending {
			n, known := p.d.Process(id)
			_, in := p.d.Find(id)
			if known && (failed && !in || p.s.settled(n) <= h.Epoch) {
				pending = append(pending, id)
			}
		}
		if len(pending) == 0 && failed {
			p.change("handoff")
			continue
		}
		if len(pending) == 0 {
			p.change("handoff", h.Nodes...)
			continue
		}
		h.Pending = pending
		p.d.Handoffs = append(p.d.Handoffs, h)
	}
	p.d.Leaving = slices.DeleteFunc(p.d.Leaving, func(n ring.Node) bool {
		return !slices.ContainsFunc(p.d.Handoffs, func(h ring.Handoff) bool { return slices.Contains(h.Pending, n.ID) })
	})
}

// settled is the newest epoch by which a process is known to hold no session of
// a user that it does not own. A report of a ring that is newer than the published one is of
// one that the store has lost.
func (s *members) settled(n ring.Node) uint64 {
	e, m := uint64(0), s.get(n.ID)
	if b := m.beat; b.Boot == n.Boot && b.Settled <= s.cur.Epoch {
		e = b.Settled
	}
	if h := m.health; h.Boot == n.Boot && h.Settled <= s.cur.Epoch {
		e = max(e, h.Settled)
	}
	return e
}

func (p *proposal) planned() {
	for _, n := range p.s.cur.Nodes {
		if p.s.get(n.ID).beat.State == wire.StateDraining {
			p.drop(n.ID)
			p.d.Leaving = append(p.d.Leaving, n)
			p.change("leave", n.ID)
		}
	}
	if len(p.changed) > 0 {
		return
	}
	for _, m := range p.joining() {
		if len(p.d.Nodes) >= ring.MaxNodes || p.d.Weight()+m.cand.Weight > ring.MaxTotalWeight {
			continue // it stays joining, and the others go on
		}
		p.d.Nodes = append(p.d.Nodes, m.cand.node())
		p.change("join", m.id)
	}
	if len(p.changed) > 0 {
		return
	}
	for _, n := range p.s.cur.Nodes {
		m := p.s.get(n.ID)
		if m.beat.Boot == n.Boot && m.beat.Weight != n.Weight && p.d.Weight()-n.Weight+m.beat.Weight <= ring.MaxTotalWeight {
			n.Weight = m.beat.Weight
			p.replace(n)
			p.change("weight", n.ID)
		}
	}
}

// record adds the handoff that this change starts, if any, and how often nodes
// have flapped.
func (p *proposal) record() {
	before, after := p.s.cur.Members(), p.d.Members()
	gains := false // somebody takes users from all others
	for id, w := range after {
		gains = gains || w > before[id]
	}
	var pending []string
	for _, n := range slices.Concat(p.d.Nodes, p.d.Leaving) {
		if w := before[n.ID]; w > 0 && (gains || after[n.ID] < w) {
			pending = append(pending, n.ID)
		}
	}
	if len(pending) > 0 && !maps.Equal(before, after) {
		slices.Sort(pending)
		p.d.Handoffs = append(p.d.Handoffs, ring.Handoff{Epoch: p.s.cur.Epoch, Reason: strings.Join(p.reasons, "+"),
			Nodes: slices.Compact(slices.Clone(p.changed)), Members: before, Pending: pending})
		// It cannot come to more, since planned changes wait; if it does, those
		// that were forgotten lose pushes in the moment their users move.
		p.d.Handoffs = p.d.Handoffs[max(0, len(p.d.Handoffs)-ring.MaxHandoffs):]
	}
	p.d.Flapping = slices.DeleteFunc(p.d.Flapping, func(f ring.Flaps) bool {
		if _, leaves := p.flapped[f.ID]; leaves {
			return true
		}
		m := p.s.m[f.ID]
		if _, in := p.d.Find(f.ID); in {
			_, was := p.s.cur.Find(f.ID)
			return was && m != nil && !m.joined.IsZero() && p.now.Sub(m.joined) >= flapForget
		}
		return p.now.Sub(p.s.left[f.ID]) >= flapForget
	})
	for id, n := range p.flapped {
		if n > 0 {
			p.d.Flapping = append(p.d.Flapping, ring.Flaps{ID: id, Count: n})
		}
	}
	slices.SortFunc(p.d.Flapping, func(a, b ring.Flaps) int { return strings.Compare(a.ID, b.ID) })
}

// flaps returns how often a node has flapped lately.
func (s *members) flaps(id string) int {
	for _, f := range s.cur.Flapping {
		if f.ID == id {
			return f.Count
		}
	}
	return 0
}

// heldOff tells whether a node that flaps has to wait before it joins again.
func (s *members) heldOff(id string, now time.Time) bool {
	n := s.flaps(id) - flapHeld
	if n < 0 {
		return false
	}
	return now.Sub(s.left[id]) < min(flapHold<<min(n, 8), flapMost)
}

// ready tells whether the candidate could be in the ring: it is alive, wants to,
// and its addresses answered.
func (m *member) ready(now time.Time) bool {
	return !m.eligibleAt.IsZero() && now.Sub(m.candAt) < silentAfter && m.cand.State != wire.StateDraining
}

// joining returns who may join now: everyone who is eligible, once the first of
// them has waited for the settle time.
func (p *proposal) joining() []*member {
	var out []*member
	var first time.Time
	for id, m := range p.s.m {
		if _, known := p.s.cur.Process(id); known || !m.ready(p.now) || p.s.heldOff(id, p.now) || p.suspect[m.cand.Boot] {
			continue
		}
		out = append(out, m)
		if first.IsZero() || m.eligibleAt.Before(first) {
			first = m.eligibleAt
		}
	}
	if p.now.Sub(first) < settle {
		return nil
	}
	slices.SortFunc(out, func(a, b *member) int { return strings.Compare(a.id, b.id) })
	return out
}

// mayLeaveUnrefused returns how many nodes may leave now of which we only know
// that they do not answer: over half a minute never more than half, whichever
// locators took them out, since it is then more likely that it is us who cannot
// reach them.
func (s *members) mayLeaveUnrefused(now time.Time) int {
	s.removed = slices.DeleteFunc(s.removed, func(t time.Time) bool { return now.Sub(t) >= halfWindow })
	return max(0, (len(s.cur.Nodes)+len(s.removed))/2-len(s.removed))
}

// maxStep is how far a ring counts on at once from what nodes say. One bad node, which says
// what it likes, can so make the number grow by that each countEvery, and needs years to use
// up the numbers, of which the upper half is for real changes. Where a ring is further behind
// it takes several steps.
const maxStep = 1 << 24

// epochSeen is the newest epoch that this locator or a node goes by, but for maxStep, and that
// node ("": none is ahead): a store that has lost its data, or has it from a backup, must not
// number again what was there before. A node counts that is heard, and is in the ring or has
// answered at its addresses. There is no vote: who is heard first would decide it, and one
// node that is ahead and not followed takes no ring any more.
func (s *members) epochSeen(now time.Time) (epoch uint64, node string) {
	epoch = s.cur.Epoch
	limit := min(epoch+maxStep, ring.MaxEpoch/2)
	furthest := epoch
	for id, m := range s.m {
		var theirs uint64
		if n, in := s.cur.Process(id); in && m.beat.Boot == n.Boot && now.Sub(m.beatAt) < silentAfter {
			theirs = m.beat.Epoch
		} else if !m.eligibleAt.IsZero() && now.Sub(m.candAt) < silentAfter {
			theirs = m.cand.Epoch
		}
		if theirs > furthest && limit > s.cur.Epoch {
			furthest, epoch, node = theirs, min(theirs, limit), id
		}
	}
	return epoch, node
}

// ahead tells whether a node goes by a newer ring than this locator.
func (s *members) ahead(now time.Time) bool {
	_, node := s.epochSeen(now)
	return node != ""
}

func (b *NodeBeat) node() ring.Node {
	return ring.Node{ID: b.ID, Boot: b.Boot, URL: b.URL, PeerURL: b.PeerURL, Weight: b.Weight, AcceptRate: b.AcceptRate, GraceMS: b.GraceMS,
		KID: b.KID, Key: b.Key}
}
