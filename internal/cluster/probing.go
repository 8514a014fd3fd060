package cluster

import (
	"slices"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

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
		st.running, st.evidence, st.wanted = true, st.wanted, false
		p.sent = now
		out = append(out, p)
	}
	for _, n := range slices.Concat(s.cur.Nodes, s.cur.Leaving) {
		m := s.get(n.ID)
		idle := now.Sub(m.peer.okAt) >= idleProbe && now.Sub(m.since) >= idleProbe
		if idle || m.peer.wanted || m.peer.fails > 0 || m.silent(now) || m.cand.Boot != "" {
			start(&m.peer, probe{node: n.ID, boot: n.Boot, url: n.PeerURL})
		}
	}
	for id, m := range s.m {
		_, in := s.cur.Process(id)
		switch {
		case m.cand.Boot == "":
			if !in && (m.unreachable == "" || now.Sub(m.unreachableAt) >= silentAfter) {
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
	if !p.public && p.ok && p.health.Boot == p.boot && m.unreachable == p.boot {
		m.unreachable = ""
	}
	if n, in := s.cur.Process(p.node); in && n.Boot == p.boot && !p.public && m.peer.target == target {
		r := p
		m.heir = ""
		if r.ok && r.health.Boot != r.boot { // the process in the ring is gone
			m.heir, r.ok, r.refused = r.health.Boot, false, true
		} else if r.ok {
			m.health = r.health
		}
		m.peer.result(r, now, probeQuiet)
		if m.peer.fails > 2 && now.Sub(m.peer.failing) >= suspectAfter && !m.silent(now) {
			m.unreachable, m.unreachableAt = n.Boot, now
		}
	}
	switch { // a candidate may have that address, too
	case p.public && m.candURL.target == target:
		m.candURL.result(p, now, urlAgain)
	case !p.public && m.candPeer.target == target:
		p.ok = p.ok && p.health.Boot == p.boot
		m.candPeer.result(p, now, urlAgain)
		if m.candPeer.fails > 2 && now.Sub(m.candPeer.failing) >= suspectAfter {
			m.unreachable, m.unreachableAt = p.boot, now
		}
	}
	if m.cand.Boot == p.boot && m.eligibleAt.IsZero() && !m.candURL.okAt.IsZero() && !m.candPeer.okAt.IsZero() {
		m.eligibleAt = now
	}
}

// sayWaits tells whether the log is to hear that a probe keeps its node from joining.
func (s *members) sayWaits(p probe, now time.Time) bool {
	m := s.m[p.node]
	if m == nil || m.cand.Boot != p.boot || now.Sub(m.saidAt) < sayAgain {
		return false
	}
	m.saidAt = now
	return true
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
	st.refused++
	st.refusedAt = [2]time.Time{st.refusedAt[1], p.sent}
	if !p.refused {
		st.refused = 0
	}
	st.okAt, st.next = time.Time{}, now.Add(probeAgain)
	if p.public || st.fails > quickProbes {
		st.next = now.Add(quiet)
	}
}

// refusedSince tells whether the process refused twice since it was heard last: a
// heartbeat may have been under way when it was killed.
func (m *member) refusedSince() bool {
	return m.peer.refused >= 2 && !m.beatAt.After(m.peer.refusedAt[0])
}
