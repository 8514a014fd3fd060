package cluster

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/wire"
)

// Timing of membership.
const (
	idleProbe    = 10 * time.Second       // a node of which nothing is wrong: its peer address may be cut off
	silentAfter  = 3 * time.Second        // without heartbeats: probe
	probeTimeout = 500 * time.Millisecond // no answer until then: failed
	probeAgain   = 25 * time.Millisecond  // after a failed probe
	wantedAgain  = 200 * time.Millisecond // evidence against a node that just answered waits for this
	quickProbes  = 4                      // failed ones in a row, then probeQuiet
	probeQuiet   = time.Second            // after one that succeeded, while heartbeats are missing
	settle       = time.Second            // joins within it are one change
	halfWindow   = 30 * time.Second       // see mayLeaveUnrefused
	urlAgain     = time.Second            // after the public URL did not answer
	forgetAfter  = 30 * time.Second       // a process that is in no ring and silent
	suspectAfter = 3 * time.Second        // of failed probes, while heartbeats arrive: told to the other locators
	doubtFor     = 1200 * time.Millisecond
	behindAfter  = 200 * time.Millisecond // a node that has not taken the new ring by then is sent it
	behindWeight = 2 * time.Millisecond   // for each unit of the ring's weight, if that is longer: it has to be built
	behindAgain  = 500 * time.Millisecond
)

// members is what one locator knows of the nodes, and decides from that which
// ring should be next (see change.go). It is pure: it reads no clock and does no
// I/O. The keeper feeds it heartbeats, evidence and the results of probes.
//
// A member, seen by its process (one boot id):
//
//	           heartbeat            public URL and peer address
//	(unknown) -----------> joining -----------------------------> eligible
//	                                answered a probe                 |
//	       settle time over, no handoff unfinished, not held off     |
//	          +------------------------------------------------------+
//	          v
//	        active <--- heartbeat, or a probe answered ----------- suspect
//	         |   \                                                    ^ |
//	         |    +-- silent for 3 s, or evidence: probe failed ------+ |
//	         | heartbeat says draining,                                 |
//	         | no handoff unfinished                                    |
//	         v                                                          |
//	      leaving --silent or refused, as from suspect--> out <---------+
//	         |                                            ^   two probes failed while it was silent;
//	         +--reports that none of its sessions is left-+   or two refused and no heartbeat since;
//	                                                          or most locators suspect it
//
// Evidence is a refused push, a broken link or a client's failed hint: it starts
// the probe at once. Two processes with one id: the one in the ring keeps its
// place as long as it answers; when it does not (or its address answers with the
// new boot id), the other takes the place over, which moves no user. A node with
// a restart grace keeps its place for so long after its death.
type members struct {
	self  string // this locator's id
	cur   ring.Document
	curAt time.Time // when cur came
	m     map[string]*member

	// A process that is heard after it was taken out for dead was not: its path
	// from here is broken, or was. Refusals alone are not believed of it again.
	crashed map[string]crash  // by node, the last one
	revived map[string]string // by node, its boot id

	locators map[string]locatorSeen
	// Since when this locator has heard something, itself at least, without a
	// break, and when it did last. Who was deaf for a while does not know who was silent.
	hearing, heardAt time.Time
	removed          []time.Time          // removals without refusal, by any locator, the last halfWindow
	left             map[string]time.Time // when a node that flaps left last
}

type crash struct {
	boot string
	at   time.Time
}

// revivedAfter is longer than a heartbeat is under way.
const revivedAfter = 500 * time.Millisecond

type locatorSeen struct {
	LocatorBeat
	at time.Time
}

// member is all that is known of one node id.
type member struct {
	id string

	// The process in the ring, when there is one.
	beat    NodeBeat // last heartbeat of the ring's boot; zero if none came
	beatAt  time.Time
	since   time.Time // when it was first seen in the ring: counts like a heartbeat
	peer    probeState
	health  Health    // what it answered to the last probe
	heir    string    // another boot id that answered at its address
	joined  time.Time // when it came into the ring; zero: before this locator looked
	offered time.Time // when it was last sent the ring

	// unreachable is the boot id of a process whose heartbeats come and whose
	// peer address does not answer.
	unreachable   string
	unreachableAt time.Time // when it was heard last

	// A process of that id which is not in the ring, if one is alive.
	cand       NodeBeat
	candAt     time.Time
	candURL    probeState // of its public URL
	candPeer   probeState
	eligibleAt time.Time
	saidAt     time.Time // when the log was told that it cannot join yet
}

// probeState is how the probes of one address went.
type probeState struct {
	target    string // boot and address: another target starts anew
	wanted    bool   // evidence: probe at once
	running   bool
	evidence  bool // for which this probe is
	next      time.Time
	fails     int          // in a row
	refused   int          // in a row, of these
	refusedAt [2]time.Time // when the last but one and the last of them were sent
	failing   time.Time
	okAt      time.Time
}

// probe is a request to probe an address, and later its result.
type probe struct {
	node, boot string
	public     bool // its public URL, else its peer address
	url        string

	ok, refused bool
	err         error  // why not ok
	health      Health // that answered (peer address only)
	sent        time.Time
}

func newMembers(self, cluster string) *members {
	return &members{self: self, cur: ring.Document{Cluster: cluster}, m: map[string]*member{},
		crashed: map[string]crash{}, revived: map[string]string{}, locators: map[string]locatorSeen{}, left: map[string]time.Time{}}
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
	if d.Epoch < s.cur.Epoch || d.Epoch == s.cur.Epoch && d.Hash == s.cur.Hash {
		return
	}
	first := s.cur.Epoch == 0
	for range d.Change.Unrefused {
		s.removed = append(s.removed, now)
	}
	for _, n := range slices.Concat(d.Nodes, d.Leaving) {
		m := s.get(n.ID)
		old, was := s.cur.Process(n.ID)
		if _, in := s.cur.Find(n.ID); !in && !first {
			m.joined = now
		}
		if was && old.Boot == n.Boot {
			if m.cand.Boot == n.Boot && m.cand.URL == n.URL && m.cand.PeerURL == n.PeerURL { // its new address
				m.dropCandidate()
			}
			continue
		}
		if m.forget(); s.revived[n.ID] != n.Boot {
			delete(s.revived, n.ID)
			delete(s.crashed, n.ID)
		}
		m.since = now
		if m.cand.Boot == n.Boot {
			m.beat, m.beatAt = m.cand, m.candAt
			m.dropCandidate()
		}
	}
	for _, n := range slices.Concat(s.cur.Nodes, s.cur.Leaving) {
		if _, still := d.Process(n.ID); !still {
			if d.Change.Has("crash") && slices.Contains(d.Change.Nodes, n.ID) {
				s.crashed[n.ID] = crash{n.Boot, now}
			}
			m := s.get(n.ID) // it may be alive all the same, and join again
			m.forget()
			m.since = time.Time{}
		}
	}
	maps.DeleteFunc(s.left, func(id string, _ time.Time) bool {
		return !slices.ContainsFunc(d.Flapping, func(f ring.Flaps) bool { return f.ID == id })
	})
	for _, f := range d.Flapping {
		if _, in := d.Find(f.ID); in {
			delete(s.left, f.ID)
		} else if s.left[f.ID].IsZero() {
			s.left[f.ID] = now
		}
	}
	s.cur, s.curAt = d, now
}

// forget drops what is known of the process that was in the ring.
func (m *member) forget() {
	m.beat, m.beatAt, m.peer, m.health, m.heir = NodeBeat{}, time.Time{}, probeState{}, Health{}, ""
}

// dropCandidate forgets the process that is not in the ring.
func (m *member) dropCandidate() {
	m.cand, m.candAt = NodeBeat{}, time.Time{}
	m.candURL, m.candPeer, m.eligibleAt = probeState{}, probeState{}, time.Time{}
}

// heard takes a heartbeat that arrived now.
func (s *members) heard(b NodeBeat, now time.Time) {
	s.hear(now)
	if s.m[b.ID] == nil && len(s.m) >= 2*ring.MaxNodes {
		return // far more than there can be
	}
	m := s.get(b.ID)
	if b.Boot == m.unreachable {
		m.unreachableAt = now
	}
	if c := s.crashed[b.ID]; c.boot == b.Boot && now.Sub(c.at) >= revivedAfter {
		s.revived[b.ID] = b.Boot
	}
	if n, known := s.cur.Process(b.ID); known && n.Boot == b.Boot {
		m.beat, m.beatAt = b, now
		if _, in := s.cur.Find(b.ID); !in || n.URL == b.URL && n.PeerURL == b.PeerURL {
			return
		}
		// The same process at another address is a candidate for its own place:
		// the new address is probed before anybody is sent there.
	}
	if m.cand.Boot != b.Boot && m.cand.Boot != "" && m.cand.State != wire.StateDraining && now.Sub(m.candAt) < silentAfter && m.candPeer.fails < 2 {
		return // two newcomers of one id: the first one counts, if it is there and wants to join
	}
	if m.cand.Boot != b.Boot || m.cand.URL != b.URL || m.cand.PeerURL != b.PeerURL || now.Sub(m.candAt) >= silentAfter {
		m.dropCandidate()
	}
	m.cand, m.candAt = b, now
}

// deafAfter is how long nothing at all may be heard, this locator's own
// heartbeats included, which also take the way through NATS.
const deafAfter = 2500 * time.Millisecond

// hear notes that something was heard. After a break probes that failed start
// anew: it may have been this locator that could reach nobody.
func (s *members) hear(now time.Time) {
	if now.Sub(s.heardAt) >= deafAfter {
		s.hearing = now
		for _, m := range s.m {
			if m.peer.fails > 0 {
				m.peer = probeState{target: m.peer.target, running: m.peer.running, wanted: true}
			}
		}
	}
	s.heardAt = now
}

// hears tells whether something was heard lately.
func (s *members) hears(now time.Time) bool { return now.Sub(s.heardAt) < deafAfter }

// deaf tells whether this locator has not heard for long enough to judge by what
// it did not hear.
func (s *members) deaf(now time.Time) bool {
	return !s.hears(now) || now.Sub(s.hearing) < silentAfter
}

// heardLocator takes a locator's heartbeat that arrived now; its own counts as a
// proof that this locator hears.
func (s *members) heardLocator(b LocatorBeat, now time.Time) {
	s.hear(now)
	for id, l := range s.locators {
		if now.Sub(l.at) >= silentAfter {
			delete(s.locators, id)
		}
	}
	if b.ID != s.self && len(s.locators) < maxLocators {
		s.locators[b.ID] = locatorSeen{b, now}
	}
}

// maxLocators is far more than there can be.
const maxLocators = 1000

// liveLocators counts this one and those that are heard.
func (s *members) liveLocators(now time.Time) int {
	n := 1
	for _, l := range s.locators {
		if now.Sub(l.at) < silentAfter {
			n++
		}
	}
	return n
}

// locatorView lists the other locators that are heard.
func (s *members) locatorView(now time.Time) []LocatorSeen {
	var out []LocatorSeen
	for _, l := range s.locators {
		if age := now.Sub(l.at); age < silentAfter {
			out = append(out, LocatorSeen{l.ID, l.Epoch, age, len(l.Suspects)})
		}
	}
	slices.SortFunc(out, func(a, b LocatorSeen) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// suspects lists the processes that this locator hears and cannot reach.
func (s *members) suspects(now time.Time) []string {
	var out []string
	for _, m := range s.m {
		if m.unreachable == "" {
			continue
		}
		if now.Sub(m.unreachableAt) >= silentAfter {
			m.unreachable = ""
			continue
		}
		out = append(out, m.unreachable)
	}
	slices.Sort(out)
	return out
}

// mostSuspect returns the processes, by boot id, that more than half of the live
// locators hear and cannot reach.
func (s *members) mostSuspect(now time.Time) map[string]bool {
	if s.deaf(now) { // it does not know how many others there are
		return nil
	}
	count := map[string]int{}
	for _, boot := range s.suspects(now) {
		count[boot]++
	}
	for _, l := range s.locators {
		if now.Sub(l.at) < silentAfter {
			for _, boot := range slices.Compact(slices.Sorted(slices.Values(l.Suspects))) {
				count[boot]++
			}
		}
	}
	most := map[string]bool{}
	live := s.liveLocators(now)
	for boot, n := range count {
		most[boot] = 2*n > live
	}
	return most
}

// evidence: somebody could not reach the node.
func (s *members) evidence(id string) {
	if _, in := s.cur.Process(id); in {
		s.get(id).peer.wanted = true
	}
}

// doubted lists the nodes of which it will be known in a moment whether they are
// dead: who asks for their address had better wait for that.
func (s *members) doubted(now time.Time) map[string]bool {
	var out map[string]bool
	for _, n := range s.cur.Nodes {
		p := &s.get(n.ID).peer
		asked := (p.wanted || p.running && p.evidence) && now.Sub(p.okAt) >= wantedAgain
		if p.fails == 0 && !asked || p.fails > 0 && now.Sub(p.failing) >= doubtFor || n.GraceMS > 0 {
			continue
		}
		if out == nil {
			out = map[string]bool{}
		}
		out[n.ID] = true
	}
	return out
}

// behind returns the nodes that have not taken the published ring by themselves:
// they may be cut off from NATS.
func (s *members) behind(now time.Time) []ring.Node {
	var out []ring.Node
	if now.Sub(s.curAt) < max(behindAfter, time.Duration(s.cur.Weight())*behindWeight) {
		return nil
	}
	for _, n := range slices.Concat(s.cur.Nodes, s.cur.Leaving) {
		m := s.get(n.ID)
		known := m.beat.Epoch
		if m.health.Boot == n.Boot {
			known = max(known, m.health.Epoch)
		}
		if known == 0 || known >= s.cur.Epoch || now.Sub(m.offered) < behindAgain {
			continue
		}
		m.offered = now
		m.peer.wanted = true // its answer tells whether it took it
		out = append(out, n)
	}
	return out
}

// silent tells whether the process in the ring has not been heard for long.
func (m *member) silent(now time.Time) bool { return m.silence(now) >= silentAfter }

// silence is how long it was not heard.
func (m *member) silence(now time.Time) time.Duration {
	last := m.since
	if m.beatAt.After(last) {
		last = m.beatAt
	}
	return now.Sub(last)
}
