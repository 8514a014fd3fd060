package cluster

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/wire"
)

// world plays the processes, the network and the clock around one locator's
// members, as the keeper would drive it. Its time is made up: a step is 50 ms.
type world struct {
	t       *testing.T
	s       *members
	start   time.Time
	now     time.Time
	procs   []*proc
	late    []result // of probes that are under way
	probes  []probe  // all that were asked for
	changes []change
	alone   bool                // nothing is heard and nobody reached: neither NATS nor a node
	slow    bool                // it writes no ring yet: its last write to the store is still under way
	others  map[string][]string // other locators that are heard, and whom they suspect, by boot id
}

// proc is a process of a node.
type proc struct {
	NodeBeat
	beating      bool
	stuck        bool // its Epoch and Settled are the test's
	public, peer answer
	nextBeat     time.Time
}

// answer is how an address takes a probe.
type answer int

const (
	answers answer = iota
	refuses
	mute // no answer: the probe times out
)

type result struct {
	at time.Time
	p  probe
}

type change struct {
	after time.Duration // since the world began
	d     ring.Document
}

func newWorld(t *testing.T) *world {
	start := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	return &world{t: t, s: newMembers("loc", "c"), start: start, now: start, others: map[string][]string{}}
}

// beatOf is the heartbeat of process n of a node.
func beatOf(id string, n int) NodeBeat {
	return NodeBeat{ID: id, Boot: fmt.Sprintf("%s%d", id, n), URL: "ws://" + id + ".test/v1/ws", PeerURL: "http://" + id + ".test:8092",
		Weight: 1, State: wire.StateActive}
}

// add starts process n of a node: it sends heartbeats and answers.
func (w *world) add(id string, n int) *proc {
	p := &proc{NodeBeat: beatOf(id, n), beating: true, nextBeat: w.now}
	w.procs = append(w.procs, p)
	return p
}

// ringOf starts nodes and waits until they are the ring.
func ringOf(t *testing.T, ids ...string) (*world, map[string]*proc) {
	w := newWorld(t)
	by := map[string]*proc{}
	for _, id := range ids {
		by[id] = w.add(id, 1)
	}
	w.run(1500 * time.Millisecond)
	if len(w.s.cur.Nodes) != len(ids) {
		t.Fatalf("the ring did not form: %s", w.ring())
	}
	return w, by
}

// kill ends a process as kill -9 does: nothing listens there any more.
func (p *proc) kill() { p.beating, p.public, p.peer = false, refuses, refuses }

// freeze stops it as SIGSTOP does.
func (p *proc) freeze() { p.beating, p.public, p.peer = false, mute, mute }

func (w *world) answer(p probe) result {
	how := refuses
	for _, x := range w.procs {
		a, url := x.peer, x.PeerURL
		if p.public {
			a, url = x.public, x.URL
		}
		if w.alone {
			a = mute
		}
		if url != p.url {
			continue
		}
		switch {
		case a == answers:
			how = answers
			p.health = Health{Node: x.ID, Boot: x.Boot, Epoch: x.Epoch, Settled: x.Settled}
		case a == mute && how == refuses:
			how = mute
		}
	}
	p.ok, p.refused = how == answers, how == refuses
	at := w.now
	if how == mute {
		at = at.Add(probeTimeout)
	}
	return result{at, p}
}

func (w *world) step() {
	w.now = w.now.Add(tick)
	for _, p := range w.procs {
		if p.beating && !w.now.Before(p.nextBeat) {
			if !p.stuck { // it goes by the published ring and has moved everyone
				p.Epoch, p.Settled = w.s.cur.Epoch, w.s.cur.Epoch
			}
			if !w.alone {
				w.s.heard(p.NodeBeat, w.now)
			}
			p.nextBeat = w.now.Add(BeatInterval)
		}
	}
	if !w.alone {
		w.s.heardLocator(LocatorBeat{ID: w.s.self}, w.now)
		for id, suspects := range w.others {
			w.s.heardLocator(LocatorBeat{ID: id, Suspects: suspects}, w.now)
		}
	}
	w.s.setRing(w.s.cur, w.now) // as the keeper does at each tick
	for _, p := range w.s.due(w.now) {
		w.probes = append(w.probes, p)
		w.late = append(w.late, w.answer(p))
	}
	var later []result
	for _, r := range w.late {
		if r.at.After(w.now) {
			later = append(later, r)
		} else {
			w.s.probed(r.p, w.now)
		}
	}
	w.late = later
	if !w.alone && !w.slow {
		w.publish()
	}
}

// publish puts in force what next says, as the keeper would.
func (w *world) publish() {
	w.t.Helper()
	d, ok := w.s.next(w.now)
	if !ok {
		return
	}
	d.Epoch = w.s.cur.Epoch + 1
	d.Seal()
	if err := d.Check(); err != nil {
		w.t.Fatalf("next gave a document that breaks the rules: %v", err)
	}
	w.s.setRing(d, w.now)
	w.changes = append(w.changes, change{w.now.Sub(w.start), d})
}

func (w *world) run(d time.Duration) {
	w.t.Helper()
	for end := w.now.Add(d); w.now.Before(end); {
		w.step()
	}
}

// until runs until the ring is want and returns how long that took; more than
// limit is an error.
func (w *world) until(limit time.Duration, want string) time.Duration {
	w.t.Helper()
	for begin := w.now; ; w.step() {
		took := w.now.Sub(begin)
		if w.ring() == want {
			return took
		}
		if took > limit {
			w.t.Fatalf("after %s the ring is %q, want %q", took, w.ring(), want)
		}
	}
}

// stays fails if the ring is, or within d becomes, another than want.
func (w *world) stays(d time.Duration, want string) {
	w.t.Helper()
	for begin := w.now; w.now.Sub(begin) < d; w.step() {
		if w.ring() != want {
			w.t.Fatalf("after %s the ring is %q, want %q all the time", w.now.Sub(begin), w.ring(), want)
		}
	}
}

// ring is the published ring, by the processes in it.
func (w *world) ring() string {
	var l []string
	for _, n := range w.s.cur.Nodes {
		l = append(l, n.Boot)
	}
	return strings.Join(l, " ")
}

// last is the newest change.
func (w *world) last() ring.Document { return w.changes[len(w.changes)-1].d }

// state is what view shows of a node.
func (w *world) state(id string) string {
	for _, n := range w.s.view(w.now, func(string) float64 { return 0 }) {
		if n.ID == id {
			return n.State
		}
	}
	return ""
}

// sameOwners fails if any user has another owner by b than by a.
func sameOwners(t *testing.T, a, b ring.Document) {
	t.Helper()
	ra, rb := ring.New(a), ring.New(b)
	for i := range 500 {
		if u := fmt.Sprintf("user-%d", i); ra.Moved(rb, u) {
			t.Fatalf("%s has another owner now", u)
		}
	}
}
