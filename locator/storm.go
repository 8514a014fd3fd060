package locator

import (
	"context"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/ring"
)

// Bounds of what a locate tells a client whose node has left the ring.
const (
	stormLasts = time.Minute      // after the node left
	doubtWait  = time.Second      // for knowing whether a node is dead
	maxDialIn  = 20 * time.Second // a ticket is good for 30 s; who had to wait longer asks again
)

// owner returns who owns a user, and the ring by which. If that node is just
// being probed since somebody lost it, it waits for the outcome: who is sent to
// a dead node comes back much later.
func (l *Locator) owner(ctx context.Context, user string) (*ring.Node, *ring.Ring, bool) {
	var end <-chan time.Time
	for {
		cur := l.rings.Current()
		owner, ok := cur.Owner(user)
		if !ok {
			return nil, cur, false
		}
		over, doubted := l.keeper.Doubted(owner.ID)
		if !doubted {
			return owner, cur, true
		}
		changed := l.rings.Changed()
		if l.rings.Current() != cur {
			continue
		}
		if end == nil {
			t := time.NewTimer(doubtWait)
			defer t.Stop()
			end = t.C
		}
		select {
		case <-changed:
		case <-over:
		case <-end:
			return owner, cur, true
		case <-ctx.Done():
			return owner, cur, true
		}
	}
}

// storm spreads the reconnects of users whose node has left the ring, so that no
// node is asked for more handshakes a second than it advertises. Nobody else
// waits.
type storm struct {
	lost atomic.Pointer[[]lostNodes] // nil: none

	seen atomic.Pointer[ring.Ring]

	mu sync.Mutex
	to map[string]*arrivals
}

// lostNodes are nodes that a change took out of the ring.
type lostNodes struct {
	before *ring.Ring
	gone   map[string]bool
	until  time.Time
}

// dialAfter returns how long user has to wait before they dial owner; locators
// counts those that send clients there, this one included. false: it would be
// too long; they are to ask again then.
func (s *storm) dialAfter(cur *ring.Ring, owner *ring.Node, user string, locators func() int, now time.Time) (time.Duration, bool) {
	s.observe(cur, now)
	lost := s.lost.Load()
	if lost == nil {
		return 0, true
	}
	hit := false
	for _, l := range *lost {
		if o, ok := l.before.Owner(user); ok && l.gone[o.ID] && (now.Before(l.until) || leaving(cur, o.ID)) {
			hit = true
		}
	}
	if !hit || owner.AcceptRate < 1 {
		return 0, true
	}
	share := float64(locators())
	rate := float64(owner.AcceptRate) / share
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.to[owner.ID]
	if a == nil {
		a = &arrivals{}
		s.to[owner.ID] = a
	}
	if share > 1 {
		// Clients choose a locator at random: what one gets is uneven by about its
		// square root, and nobody has to wait for that. Together it comes to a
		// quarter more at most.
		a.spare = min(3*math.Sqrt(rate), rate/4)
	}
	return a.next(now, rate)
}

// follow observes each ring as it comes: a node may leave while nobody locates.
func (s *storm) follow(ctx context.Context, rings *cluster.Rings) {
	for {
		changed := rings.Changed()
		s.observe(rings.Current(), time.Now())
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// leaving tells whether a node has left the ring and still moves its sessions;
// at the end of its time it closes those that are left.
func leaving(cur *ring.Ring, id string) bool {
	return slices.ContainsFunc(cur.Leaving, func(n ring.Node) bool { return n.ID == id })
}

// over tells whether nobody of these nodes' users is to be expected any more.
func (l *lostNodes) over(cur *ring.Ring, now time.Time) bool {
	for id := range l.gone {
		if leaving(cur, id) {
			return false
		}
	}
	return !now.Before(l.until)
}

// observe notes which nodes have left since the ring that was seen last.
func (s *storm) observe(cur *ring.Ring, now time.Time) {
	if s.seen.Load() == cur {
		if lost := s.lost.Load(); lost != nil && (*lost)[len(*lost)-1].over(cur, now) {
			s.lost.CompareAndSwap(lost, nil)
		}
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.seen.Load()
	if before == cur || before != nil && before.Epoch > cur.Epoch {
		return
	}
	s.seen.Store(cur)
	if before == nil {
		return
	}
	l := lostNodes{before: before, gone: map[string]bool{}, until: now.Add(stormLasts)}
	for _, n := range before.Nodes {
		if _, in := cur.Find(n.ID); !in {
			l.gone[n.ID] = true
		}
	}
	list := []lostNodes{}
	if old := s.lost.Load(); old != nil {
		for _, o := range *old {
			for id := range o.gone {
				if leaving(before, id) && !leaving(cur, id) { // it has ended just now
					o.until = now.Add(stormLasts)
				}
			}
			if !o.over(cur, now) {
				list = append(list, o)
			}
		}
	}
	if len(l.gone) > 0 {
		list = append(list, l)
	}
	if len(list) == 0 {
		s.lost.Store(nil)
		return
	}
	s.lost.Store(&list)
	if len(l.gone) == 0 {
		return
	}
	if len(list) == 1 { // else what was booked counts
		s.to = map[string]*arrivals{}
	}
}

// arrivals are the dials that one node is about to get: never more in any second
// than it takes (and spare), at once as long as that allows it, and evenly after.
type arrivals struct {
	booked []time.Time // the last of them, as many as fit into window
	spare  float64     // beyond the rate, for those who came unevenly
}

// maxBooked bounds booked; a node that takes more in a second is judged by a
// shorter window.
const maxBooked = 4096

func (a *arrivals) next(now time.Time, rate float64) (time.Duration, bool) {
	fits := max(1, min(maxBooked, int(rate+a.spare)))
	window := time.Duration(float64(fits) / (rate + a.spare) * float64(time.Second))
	if over := len(a.booked) - fits; over > 0 {
		a.booked = a.booked[over:]
	}
	at := now
	if len(a.booked) == fits {
		if t := a.booked[0].Add(window); t.After(now) {
			at = t
			if t := a.booked[fits-1].Add(time.Duration(float64(time.Second) / rate)); t.After(at) {
				at = t
			}
		}
	}
	wait := at.Sub(now)
	if wait > maxDialIn {
		return wait, false
	}
	a.booked = append(a.booked, at)
	return wait, true
}
