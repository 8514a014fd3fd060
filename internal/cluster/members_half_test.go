package cluster

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/wire"
)

// When most nodes stop answering it is more likely that we cannot reach them.
func TestNeverMoreThanHalf(t *testing.T) {
	t.Run("of four", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c", "d")
		for _, id := range []string{"a", "b", "c"} {
			by[id].freeze()
		}
		w.run(10 * second)
		if n := len(w.s.cur.Nodes); n != 2 {
			t.Fatalf("%d nodes are left after 10 s: %s", n, w.ring())
		}
		w.stays(20*second, w.ring())
		w.until(15*second, "d1") // a half of the rest, once the window has passed
		w.stays(120*second, "d1")
	})
	t.Run("of three, one after the other", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c")
		by["a"].freeze()
		w.until(6*second, "b1 c1")
		by["b"].freeze()
		w.stays(20*second, "b1 c1")
	})
	t.Run("unless each was refused", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c", "d")
		for id, p := range by {
			p.kill()
			w.s.evidence(id)
		}
		if took := w.until(second, ""); took > 300*time.Millisecond {
			t.Errorf("out after %s", took)
		}
	})
	t.Run("refused ones do not count", func(t *testing.T) {
		w, by := ringOf(t, "a", "b", "c", "d")
		by["a"].kill()
		by["b"].kill()
		w.s.evidence("a")
		w.s.evidence("b")
		w.until(second, "c1 d1")
		by["c"].freeze()
		w.until(6*second, "d1")
	})
	t.Run("a ring of one never leaves on a timeout", func(t *testing.T) {
		w, by := ringOf(t, "a")
		by["a"].freeze()
		w.stays(120*second, "a1")
		by["a"].kill()
		w.until(5*second, "")
	})
	t.Run("whichever locator published", func(t *testing.T) {
		// Three locators, all of which lost sight of the same eight nodes.
		ids := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
		w, by := ringOf(t, ids...)
		others := []*members{newMembers("loc2", "c"), newMembers("loc3", "c")}
		for _, o := range others {
			for _, p := range by {
				o.heard(p.NodeBeat, w.now)
			}
			o.setRing(w.s.cur, w.now)
		}
		for _, p := range by {
			p.freeze()
		}
		for range 8 * int(second/tick) {
			w.step()
			for _, o := range others {
				o.setRing(w.s.cur, w.now)
				for _, p := range o.due(w.now) { // each probe fails
					p.ok, p.refused = false, false
					o.probed(p, w.now)
				}
				if d, ok := o.next(w.now); ok {
					d.Epoch++
					d.Seal()
					o.setRing(d, w.now)
					w.s.setRing(d, w.now)
				}
			}
		}
		if n := len(w.s.cur.Nodes); n < len(ids)/2 {
			t.Errorf("%d of %d nodes are left after 8 s, none was refused: %s", n, len(ids), w.ring())
		}
	})
}

// model is a members under random operations, and what must hold of it.
type model struct {
	s       *members
	now     time.Time
	running []probe
	// refusals in a row, by node, boot and address: what the rule about half of
	// the nodes is judged by.
	refusals map[string]int
	removed  []time.Time
}

func (m *model) check(t *rapid.T) (d ring.Document, unrefused int, ok bool) {
	before := m.s.cur.With()
	d, ok = m.s.next(m.now)
	unrefused = d.Change.Unrefused
	d2, ok2 := m.s.next(m.now)
	if ok != ok2 || !reflect.DeepEqual(d, d2) {
		t.Fatalf("next is not deterministic:\n%+v\n%+v", d, d2)
	}
	if !reflect.DeepEqual(before, m.s.cur.With()) {
		t.Fatal("next changed the ring in force")
	}
	if !ok {
		if unrefused != 0 || !slices.Equal(d.Nodes, before.Nodes) {
			t.Fatal("next says that nothing changes, and gives another ring")
		}
		return
	}
	d.Epoch++
	d.Seal()
	if err := d.Check(); err != nil {
		t.Fatal(err)
	}
	if slices.Equal(d.Nodes, before.Nodes) && slices.Equal(d.Leaving, before.Leaving) && reflect.DeepEqual(d.Handoffs, before.Handoffs) {
		t.Fatalf("a new epoch for nothing: %+v", d.Change)
	}
	if len(d.Change.Nodes) == 0 || d.Change.Reason == "" || d.Change.By == "" {
		t.Fatalf("a change that does not say what it is: %+v", d.Change)
	}
	return
}

// publish puts the next ring in force and judges who left.
func (m *model) publish(t *rapid.T) {
	d, unrefused, ok := m.check(t)
	if !ok {
		return
	}
	m.removed = slices.DeleteFunc(m.removed, func(at time.Time) bool { return m.now.Sub(at) >= halfWindow })
	gone := 0
	for _, n := range m.s.cur.Nodes {
		if _, still := d.Find(n.ID); still || m.s.m[n.ID].beat.State == wire.StateDraining {
			continue
		}
		if m.refusals[n.ID+n.Boot+n.PeerURL] < 2 {
			gone++
		}
	}
	if gone > unrefused {
		t.Fatalf("%d left without two refusals, next books %d", gone, unrefused)
	}
	if all := len(m.s.cur.Nodes) + len(m.removed); gone > 0 && len(m.removed)+gone > all/2 {
		t.Fatalf("%d of %d nodes left within 30 s, none refused", len(m.removed)+gone, all)
	}
	for range gone {
		m.removed = append(m.removed, m.now)
	}
	m.s.setRing(d, m.now)
}

// fast has every node heard and answering, so that a ring forms.
func (m *model) fast(t *rapid.T, ids []string) {
	for range 30 {
		m.now = m.now.Add(tick)
		for _, id := range ids {
			m.s.heard(beatOf(id, 1), m.now)
		}
		for _, p := range m.s.due(m.now) {
			p.ok, p.health.Boot = true, p.boot
			m.s.probed(p, m.now)
		}
		m.publish(t)
	}
}

func TestMembersProperties(t *testing.T) {
	ids := []string{"a", "b", "c", "d", "e"}
	rapid.Check(t, func(t *rapid.T) {
		m := &model{s: newMembers("loc", "c"), now: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), refusals: map[string]int{}}
		m.fast(t, ids[:rapid.IntRange(0, len(ids)).Draw(t, "nodes")])
		// Not each run has refusals and drains: without them the rule about half
		// of the nodes is put to the test most.
		gentle := rapid.Bool().Draw(t, "gentle")
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				m.check(t)
				m.s.epochSeen(m.now)
				view := m.s.view(m.now, func(string) float64 { return 0 })
				if !slices.IsSortedFunc(view, func(a, b wire.RingNode) int { return int(a.ID[0]) - int(b.ID[0]) }) {
					t.Fatal("view is not sorted")
				}
			},
			"heard": func(t *rapid.T) {
				b := beatOf(rapid.SampledFrom(ids).Draw(t, "id"), rapid.IntRange(1, 3).Draw(t, "boot"))
				b.Weight = rapid.IntRange(1, 3).Draw(t, "weight")
				b.PeerURL += rapid.SampledFrom([]string{"", "1"}).Draw(t, "address")
				if !gentle {
					b.State = rapid.SampledFrom([]string{wire.StateActive, wire.StateActive, wire.StateJoining, wire.StateDraining}).Draw(t, "state")
				}
				b.Epoch = m.s.cur.Epoch
				if rapid.Bool().Draw(t, "settled") {
					b.Settled = b.Epoch
				}
				m.s.heard(b, m.now)
			},
			"evidence": func(t *rapid.T) { m.s.evidence(rapid.SampledFrom(ids).Draw(t, "id")) },
			"due": func(t *rapid.T) {
				for _, p := range m.s.due(m.now) {
					if p.url == "" || p.node == "" || p.boot == "" {
						t.Fatalf("a probe of nothing: %+v", p)
					}
					m.running = append(m.running, p)
				}
			},
			"probed": func(t *rapid.T) {
				if len(m.running) == 0 {
					t.Skip("none is running")
				}
				i := rapid.IntRange(0, len(m.running)-1).Draw(t, "which")
				p := m.running[i]
				m.running = slices.Delete(m.running, i, i+1)
				kinds := []string{"ok", "timeout", "timeout", "refused", "another"}
				if gentle {
					kinds = kinds[:3]
				}
				kind := rapid.SampledFrom(kinds).Draw(t, "result")
				p.ok, p.refused, p.health.Boot = kind == "ok" || kind == "another", kind == "refused", p.boot
				if kind == "another" {
					p.health.Boot = fmt.Sprintf("%s%d", p.node, rapid.IntRange(1, 3).Draw(t, "boot"))
				}
				if key := p.node + p.boot + p.url; !p.public {
					if p.refused || p.health.Boot != p.boot {
						m.refusals[key]++
					} else {
						m.refusals[key] = 0
					}
				}
				m.s.probed(p, m.now)
			},
			"time": func(t *rapid.T) {
				m.now = m.now.Add(time.Duration(rapid.IntRange(1, 2000).Draw(t, "ms")) * time.Millisecond)
			},
			"silence": func(*rapid.T) { m.now = m.now.Add(silentAfter) },
			"publish": func(t *rapid.T) { m.publish(t) },
			"foreign": func(t *rapid.T) { // another locator published
				d := m.s.cur.With()
				d.Epoch++
				d.Nodes = slices.DeleteFunc(d.Nodes, func(ring.Node) bool { return rapid.IntRange(0, 3).Draw(t, "drop") == 0 })
				b := beatOf(rapid.SampledFrom(ids).Draw(t, "id"), rapid.IntRange(1, 3).Draw(t, "boot"))
				if _, in := d.Find(b.ID); !in {
					d.Nodes = append(d.Nodes, b.node())
				}
				d.Leaving = slices.DeleteFunc(d.Leaving, func(n ring.Node) bool { return n.ID == b.ID })
				d.Seal()
				m.s.setRing(d, m.now)
			},
		})
	})
}
