package cluster

import (
	"slices"
	"strings"
	"time"

	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/wire"
)

// Timing of membership.
const (
	silentAfter  = 3 * time.Second        // without heartbeats: probe
	probeTimeout = 500 * time.Millisecond // no answer until then: failed
	probeAgain   = 50 * time.Millisecond  // after a failed probe
	wantedAgain  = 200 * time.Millisecond // evidence against a node that just answered waits for this
	probeQuiet   = time.Second            // after one that succeeded, while heartbeats are missing
	settle       = time.Second            // joins within it are one change
	halfWindow   = 30 * time.Second       // see mayLeaveUnrefused
	urlAgain     = time.Second            // after the public URL did not answer
	forgetAfter  = 30 * time.Second       // a process that is in no ring and silent
)

// members is what one locator knows of the nodes, and decides from that which
// ring should be next. It is pure: it reads no clock and does no I/O. The
// keeper feeds it heartbeats, evidence and the results of probes.
//
// A member, seen by its process (one boot id):
//
//	           heartbeat            public URL and peer address
//	(unknown) -----------> joining -----------------------------> eligible
//	                                answered a probe                 |
//	                     settle time over, published in the ring    |
//	          +------------------------------------------------------+
//	          v
//	        active <--- heartbeat, or a probe answered ----------- suspect
//	          |   \                                                   ^ |
//	          |    +-- silent for 3 s, or evidence: probe failed -----+ |
//	          |                                                         |
//	          | heartbeat says draining       two probes failed while   |
//	          |                               it was silent, or two     |
//	          v                               refused and no heartbeat  v
//	      out (leave)                         since: ............. out (crash)
//
// Evidence is a refused push or a client's failed hint: it starts the probe at
// once. Two processes with one id: the one in the ring keeps its place as long
// as it answers; when it does not (or its address answers with the new boot
// id), the other takes the place over, which moves no user.
type members struct {
	self string // this locator's id
	cur  ring.Document
	m    map[string]*member

	removed []time.Time // removals without refusal, by any locator, the last halfWindow
}

// member is all that is known of one node id.
type member struct {
	id string

	// The process in the ring, when there is one.
	beat   NodeBeat // last heartbeat of the ring's boot; zero if none came
	beatAt time.Time
	since  time.Time // when it was first seen in the ring: counts like a heartbeat
	peer   probeState
	heir   string // another boot id that answered at its address

	// A process of that id which is not in the ring, if one is alive.
	cand       NodeBeat
	candAt     time.Time
	candURL    probeState // of its public URL
	candPeer   probeState
	eligibleAt time.Time
}

// probeState is how the probes of one address went.
type probeState struct {
	target  string // boot and address: another target starts anew
	wanted  bool   // evidence: probe at once
	running bool
	next    time.Time
	fails   int // in a row
	refused int // in a row, of these
	failing time.Time
	okAt    time.Time
}

// probe is a request to probe an address, and later its result.
type probe struct {
	node, boot string
	public     bool // its public URL, else its peer address
	url        string

	ok, refused bool
	answered    string // boot id that answered (peer address only)
	sent        time.Time
}

func newMembers(self, cluster string) *members {
	return &members{self: self, cur: ring.Document{Cluster: cluster}, m: map[string]*member{}}
}

func (s *members) get(id string) *member {
	m := s.m[id]
	if m == nil {
		m = &member{id: id}
		s.m[id] = m
	}
	return m
}

// setRing takes the ring that is published now; one older than that is ignored.
func (s *members) setRing(d ring.Document, now time.Time) {
	if d.Epoch < s.cur.Epoch {
		return
	}
	if d.Epoch > s.cur.Epoch {
		for range d.Change.Unrefused {
			s.removed = append(s.removed, now)
		}
	}
	for _, n := range d.Nodes {
		m := s.get(n.ID)
		old, was := s.cur.Find(n.ID)
		if was && old.Boot == n.Boot {
			if m.cand.Boot == n.Boot && m.cand.node() == n { // its new address
				m.dropCandidate()
			}
			continue
		}
		m.since, m.peer, m.heir = now, probeState{}, ""
		m.beat, m.beatAt = NodeBeat{}, time.Time{}
		if m.cand.Boot == n.Boot {
			m.beat, m.beatAt = m.cand, m.candAt
			m.dropCandidate()
		}
	}
	for _, n := range s.cur.Nodes {
		if _, still := d.Find(n.ID); !still {
			m := s.get(n.ID) // it may be alive all the same, and join again
			m.beat, m.beatAt, m.since, m.peer, m.heir = NodeBeat{}, time.Time{}, time.Time{}, probeState{}, ""
		}
	}
	s.cur = d
}

// dropCandidate forgets the process that is not in the ring.
func (m *member) dropCandidate() {
	m.cand, m.candAt = NodeBeat{}, time.Time{}
	m.candURL, m.candPeer, m.eligibleAt = probeState{}, probeState{}, time.Time{}
}

// heard takes a heartbeat that arrived now.
func (s *members) heard(b NodeBeat, now time.Time) {
	if s.m[b.ID] == nil && len(s.m) >= 2*ring.MaxNodes {
		return // far more than there can be
	}
	m := s.get(b.ID)
	if n, in := s.cur.Find(b.ID); in && n.Boot == b.Boot {
		m.beat, m.beatAt = b, now
		if n.URL == b.URL && n.PeerURL == b.PeerURL {
			return
		}
		// The same process at another address is a candidate for its own place:
		// the new address is probed before anybody is sent there.
	}
	if m.cand.Boot != b.Boot && m.cand.Boot != "" && now.Sub(m.candAt) < silentAfter {
		return // two newcomers of one id: the first one counts
	}
	if m.cand.Boot != b.Boot || m.cand.URL != b.URL || m.cand.PeerURL != b.PeerURL || now.Sub(m.candAt) >= silentAfter {
		m.dropCandidate()
	}
	m.cand, m.candAt = b, now
}

// evidence: somebody could not reach the node.
func (s *members) evidence(id string) {
	if _, in := s.cur.Find(id); in {
		s.get(id).peer.wanted = true
	}
}

// due returns the probes to be started now.
func (s *members) due(now time.Time) []probe {
	var out []probe
	start := func(st *probeState, p probe) {
		target := p.boot + " " + p.url
		if st.target != target {
			*st = probeState{target: target, wanted: st.wanted}
		}
		early := st.wanted && st.fails == 0 && now.Sub(st.okAt) >= wantedAgain
		if st.running || now.Before(st.next) && !early {
			return
		}
		st.running, st.wanted = true, false
		p.sent = now
		out = append(out, p)
	}
	for _, n := range s.cur.Nodes {
		m := s.get(n.ID)
		if m.peer.wanted || m.peer.fails > 0 || m.silent(now) || m.cand.Boot != "" {
			start(&m.peer, probe{node: n.ID, boot: n.Boot, url: n.PeerURL})
		}
	}
	for id, m := range s.m {
		_, in := s.cur.Find(id)
		switch {
		case m.cand.Boot == "":
			if !in {
				delete(s.m, id)
			}
		case now.Sub(m.candAt) > forgetAfter:
			m.dropCandidate()
		case now.Sub(m.candAt) < silentAfter && m.cand.State != wire.StateDraining && m.eligibleAt.IsZero():
			if m.candURL.okAt.IsZero() {
				start(&m.candURL, probe{node: id, boot: m.cand.Boot, url: m.cand.URL, public: true})
			}
			if m.candPeer.okAt.IsZero() {
				start(&m.candPeer, probe{node: id, boot: m.cand.Boot, url: m.cand.PeerURL})
			}
		}
	}
	return out
}

// probed takes the result of a probe that due asked for.
func (s *members) probed(p probe, now time.Time) {
	m := s.m[p.node]
	if m == nil {
		return
	}
	target := p.boot + " " + p.url
	if n, in := s.cur.Find(p.node); in && n.Boot == p.boot && !p.public && m.peer.target == target {
		r := p
		m.heir = ""
		if r.ok && r.answered != r.boot { // the process in the ring is gone
			m.heir, r.ok, r.refused = r.answered, false, true
		}
		m.peer.result(r, now, probeQuiet)
	}
	switch { // a candidate may have that address, too
	case p.public && m.candURL.target == target:
		m.candURL.result(p, now, urlAgain)
	case !p.public && m.candPeer.target == target:
		p.ok = p.ok && p.answered == p.boot
		m.candPeer.result(p, now, urlAgain)
	}
	if m.cand.Boot == p.boot && m.eligibleAt.IsZero() && !m.candURL.okAt.IsZero() && !m.candPeer.okAt.IsZero() {
		m.eligibleAt = now
	}
}

// result books a probe; quiet is the pause after a success, or after a failure
// that is no hurry.
func (st *probeState) result(p probe, now time.Time, quiet time.Duration) {
	st.running = false
	if p.ok {
		*st = probeState{target: st.target, wanted: st.wanted, okAt: now, next: now.Add(quiet)}
		return
	}
	if st.fails++; st.fails == 1 {
		st.failing = p.sent
	}
	if st.refused++; !p.refused {
		st.refused = 0
	}
	st.okAt, st.next = time.Time{}, now.Add(probeAgain)
	if p.public || st.fails > 2 {
		st.next = now.Add(quiet)
	}
}

// silent tells whether the process in the ring has not been heard for long.
func (m *member) silent(now time.Time) bool {
	last := m.since
	if m.beatAt.After(last) {
		last = m.beatAt
	}
	return now.Sub(last) >= silentAfter
}

// dead tells whether the process in the ring is to be taken out, and whether
// its address refused twice (nothing listens there any more).
func (m *member) dead(now time.Time) (dead, refused bool) {
	refused = m.peer.refused >= 2
	if m.heir != "" && !m.silent(now) {
		return false, refused // its successor is about to report
	}
	if m.silent(now) {
		return m.peer.fails >= 2, refused
	}
	// Heartbeats that arrive while this locator cannot reach it are a broken
	// path, not a dead node.
	return refused && m.beatAt.Before(m.peer.failing), refused
}

// next returns the ring that should follow the published one; ok is false if
// nothing is to change. The caller publishes it and, if that succeeded, calls
// setRing.
func (s *members) next(now time.Time) (d ring.Document, ok bool) {
	d = s.cur.With()
	d.Change = ring.Change{}
	unrefused := 0
	var reasons, changed []string
	change := func(reason, id string) {
		if !slices.Contains(reasons, reason) {
			reasons = append(reasons, reason)
		}
		changed = append(changed, id)
	}
	replace := func(n ring.Node) {
		i := slices.IndexFunc(d.Nodes, func(x ring.Node) bool { return x.ID == n.ID })
		d.Nodes[i] = n
	}
	drop := func(id string) {
		d.Nodes = slices.DeleteFunc(d.Nodes, func(n ring.Node) bool { return n.ID == id })
	}
	mayLeave := s.mayLeaveUnrefused(now)
	for _, n := range s.cur.Nodes {
		m := s.get(n.ID)
		dead, refused := m.dead(now)
		gone := dead || m.heir != "" || refused && !m.beatAt.After(m.peer.failing)
		switch {
		case gone && m.ready(now) && (m.heir == "" || m.heir == m.cand.Boot):
			next := m.cand.node()
			next.Weight = n.Weight // a change of that is one of its own
			replace(next)
			change("restart", n.ID)
		case m.beat.State == wire.StateDraining:
			drop(n.ID)
			change("leave", n.ID)
		case dead && (refused || mayLeave > 0):
			if !refused {
				mayLeave--
				unrefused++
			}
			drop(n.ID)
			change("crash", n.ID)
		case m.cand.Boot == n.Boot && m.ready(now):
			next := m.cand.node()
			next.Weight = n.Weight
			replace(next)
			change("update", n.ID)
		case m.beat.Boot == n.Boot && m.beat.Weight != n.Weight && d.Weight()-n.Weight+m.beat.Weight <= ring.MaxTotalWeight:
			n.Weight = m.beat.Weight
			replace(n)
			change("update", n.ID)
		}
	}
	for _, m := range s.joining(now) {
		if len(d.Nodes) >= ring.MaxNodes || d.Weight()+m.cand.Weight > ring.MaxTotalWeight {
			continue // it stays joining, and the others go on
		}
		d.Nodes = append(d.Nodes, m.cand.node())
		change("join", m.id)
	}
	if len(changed) == 0 {
		return d, false
	}
	slices.Sort(changed)
	d.Change = ring.Change{Reason: strings.Join(reasons, "+"), Nodes: changed, By: s.self, Unrefused: unrefused}
	return d, true
}

// ready tells whether the candidate could be in the ring: it is alive, wants to,
// and its addresses answered.
func (m *member) ready(now time.Time) bool {
	return !m.eligibleAt.IsZero() && now.Sub(m.candAt) < silentAfter && m.cand.State != wire.StateDraining
}

// joining returns who may join now: everyone who is eligible, once the first of
// them has waited for the settle time.
func (s *members) joining(now time.Time) []*member {
	var out []*member
	var first time.Time
	for id, m := range s.m {
		if _, in := s.cur.Find(id); in || !m.ready(now) {
			continue
		}
		out = append(out, m)
		if first.IsZero() || m.eligibleAt.Before(first) {
			first = m.eligibleAt
		}
	}
	if now.Sub(first) < settle {
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

// epochSeen is the newest epoch that a node goes by: a store that lost its data
// must not number again what was there before.
func (s *members) epochSeen() uint64 {
	e := s.cur.Epoch
	for _, m := range s.m {
		e = max(e, m.beat.Epoch, m.cand.Epoch)
	}
	return e
}

func (b *NodeBeat) node() ring.Node {
	return ring.Node{ID: b.ID, Boot: b.Boot, URL: b.URL, PeerURL: b.PeerURL, Weight: b.Weight}
}

// view lists the nodes in the ring and those about to join.
func (s *members) view(now time.Time, share func(id string) float64) []wire.RingNode {
	var out []wire.RingNode
	for _, n := range s.cur.Nodes {
		m := s.get(n.ID)
		v := wire.RingNode{ID: n.ID, URL: n.URL, Weight: n.Weight, State: wire.StateActive, Sessions: m.beat.Sessions, Share: share(n.ID), LastSeenMS: -1}
		if m.silent(now) || m.peer.fails > 0 {
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
	for id, m := range s.m {
		if _, in := s.cur.Find(id); in || m.cand.Boot == "" || now.Sub(m.candAt) >= silentAfter {
			continue
		}
		state := wire.StateJoining
		if m.cand.State == wire.StateDraining {
			state = wire.StateDraining
		}
		out = append(out, wire.RingNode{ID: id, URL: m.cand.URL, Weight: m.cand.Weight, State: state,
			Sessions: m.cand.Sessions, LastSeenMS: now.Sub(m.candAt).Milliseconds()})
	}
	slices.SortFunc(out, func(a, b wire.RingNode) int { return strings.Compare(a.ID, b.ID) })
	return out
}
