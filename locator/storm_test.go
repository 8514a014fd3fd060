package locator

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/wire"
)

// The first rate dials go at once, those after that from the next second on,
// evenly, up to 20 s from now; who gets no time is not counted.
func TestArrivals(t *testing.T) {
	for _, rate := range []float64{0.5, 1, 2.5, 10, 500} {
		now := time.Unix(1000, 0)
		var a arrivals
		var at []time.Duration
		for len(at) < 100_000 {
			d, ok := a.next(now, rate)
			if !ok {
				if d <= maxDialIn {
					t.Errorf("rate %v: refused for a wait of %v", rate, d)
				}
				break
			}
			at = append(at, d)
		}
		first := max(1, int(rate))
		window := time.Duration(float64(first) / rate * float64(time.Second))
		for i, d := range at {
			want := time.Duration(0)
			if i >= first {
				want = window + time.Duration(float64(i-first)/rate*float64(time.Second))
			}
			if diff := d - want; diff < -time.Millisecond || diff > time.Millisecond {
				t.Fatalf("rate %v: dial %d in %v, want %v", rate, i, d, want)
			}
		}
		if over := at[len(at)-1]; over > maxDialIn || over < maxDialIn-3*time.Second {
			t.Errorf("rate %v: the last one is in %v", rate, over)
		}
		before := len(a.booked)
		if _, ok := a.next(now, rate); ok || len(a.booked) != before {
			t.Errorf("rate %v: one that got no time was booked", rate)
		}
		later := now.Add(at[len(at)-1] + window) // when even the last one does not count any more
		for i := range first {
			if d, ok := a.next(later, rate); d != 0 || !ok {
				t.Errorf("rate %v: after it was idle, dial %d is in %v", rate, i, d)
			}
		}
	}
}

// In no second there are more than rate+1, when all ask together, or in bursts
// that are further apart than what the one before booked.
func TestArrivalsWindow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.Float64Range(0.3, 50).Draw(t, "rate")
		now, a, all := time.Unix(1000, 0), arrivals{}, []time.Time{}
		for range rapid.IntRange(1, 3).Draw(t, "bursts") {
			for range rapid.IntRange(1, 200).Draw(t, "users") {
				if d, ok := a.next(now, rate); ok {
					all = append(all, now.Add(d))
				}
			}
			now = a.booked[len(a.booked)-1].Add(time.Second + time.Duration(rapid.IntRange(0, 5000).Draw(t, "pause"))*time.Millisecond)
		}
		slices.SortFunc(all, time.Time.Compare)
		for i, j := 0, 0; i < len(all); i++ {
			for all[i].Sub(all[j]) >= time.Second {
				j++
			}
			if n := i - j + 1; float64(n) > rate+1 {
				t.Fatalf("%d within a second, rate %v", n, rate)
			}
		}
	})
}

func stormRing(epoch uint64, rate int, ids ...string) *ring.Ring {
	d := ring.Document{Cluster: "c", Epoch: epoch}
	for _, id := range ids {
		d.Nodes = append(d.Nodes, ring.Node{ID: id, Weight: 1, AcceptRate: rate})
	}
	d.Seal()
	return ring.New(d)
}

// dials has users ask, and returns how long those have to wait whose owner by
// the rings before was gone since, and how long the others.
func (s *storm) dials(cur *ring.Ring, before []*ring.Ring, users, locators int, now time.Time) (hit, others []time.Duration) {
	for i := range users {
		u := fmt.Sprintf("u%d", i)
		owner, _ := cur.Owner(u)
		d, ok := s.dialAfter(cur, owner, u, func() int { return locators }, now)
		if !ok {
			d = -1
		}
		if slices.ContainsFunc(before, func(r *ring.Ring) bool { o, _ := r.Owner(u); _, in := cur.Find(o.ID); return !in }) {
			hit = append(hit, d)
		} else {
			others = append(others, d)
		}
	}
	return hit, others
}

func zeros(l []time.Duration) (n int) {
	for _, d := range l {
		if d == 0 {
			n++
		}
	}
	return n
}

func TestStorm(t *testing.T) {
	now := time.Unix(1000, 0)
	r1, r2, r3 := stormRing(1, 10, "a", "b", "c", "d"), stormRing(2, 10, "b", "c", "d"), stormRing(3, 10, "c", "d")
	for _, locators := range []int{1, 5} {
		var s storm
		if hit, others := s.dials(r1, nil, 200, locators, now); len(hit) > 0 || zeros(others) != 200 {
			t.Fatalf("at first %v and %v have to wait", hit, others)
		}
		hit, others := s.dials(r2, []*ring.Ring{r1}, 1000, locators, now)
		if zeros(others) != len(others) || len(others) == 0 {
			t.Errorf("%d locators: %d of those whose node is there wait", locators, len(others)-zeros(others))
		}
		if want := 3 * 10 / locators; zeros(hit) != want {
			t.Errorf("%d locators: %d are let in at once, want %d at three nodes", locators, zeros(hit), want)
		}
		if late := slices.Contains(hit, -1); late != (locators == 5) {
			t.Errorf("%d locators: some are to ask again: %v", locators, late)
		}
		// One more is lost while that lasts: users of both wait.
		now2 := now.Add(30 * time.Second)
		hit, others = s.dials(r3, []*ring.Ring{r1, r2}, 1000, locators, now2)
		if zeros(others) != len(others) || zeros(hit) != 2*10/locators {
			t.Errorf("%d locators, the second: %d and %d are let in at once", locators, zeros(others), zeros(hit))
		}
		// An old ring, seen by a request that took long, changes nothing.
		s.observe(r2, now2)
		if s.seen.Load() != r3 {
			t.Error("it went back to an older ring")
		}
		// A minute after the first loss only the second counts, then none.
		hit, others = s.dials(r3, []*ring.Ring{r2}, 300, locators, now.Add(stormLasts+time.Second))
		if zeros(others) != len(others) || zeros(hit) == len(hit) {
			t.Errorf("%d locators, after a minute: %d of %d and %d of %d are let in at once", locators, zeros(others), len(others), zeros(hit), len(hit))
		}
		hit, others = s.dials(r3, []*ring.Ring{r1, r2}, 300, locators, now2.Add(stormLasts+time.Second))
		if zeros(hit)+zeros(others) != 300 || s.lost.Load() != nil {
			t.Errorf("%d locators: somebody waits when all is over", locators)
		}
	}
}

// A node that joins, or that advertises no rate, makes nobody wait.
func TestStormNone(t *testing.T) {
	now := time.Unix(1000, 0)
	for name, next := range map[string]*ring.Ring{"join": stormRing(2, 1, "a", "b", "c"), "no rate": stormRing(2, 0, "b")} {
		var s storm
		s.dials(stormRing(1, 1, "a", "b"), nil, 1, 1, now)
		if _, all := s.dials(next, nil, 300, 1, now); zeros(all) != 300 {
			t.Errorf("%s: %d wait", name, 300-zeros(all))
		}
	}
}

func TestPlanned(t *testing.T) {
	cur := stormRing(1, 1, "a", "b")
	add := func(id string, w int) []wire.PlanNode { return []wire.PlanNode{{ID: id, Weight: wire.PlanWeight(w)}} }
	var many []wire.PlanNode
	for i := range ring.MaxNodes - 1 {
		many = append(many, wire.PlanNode{ID: fmt.Sprintf("n%d", i)})
	}
	var heavy []wire.PlanNode
	for i := range 32 {
		heavy = append(heavy, wire.PlanNode{ID: fmt.Sprintf("n%d", i), Weight: ring.MaxWeight})
	}
	for name, c := range map[string]struct {
		req  wire.PlanRequest
		want map[string]int // nil: refused
	}{
		"empty":             {wire.PlanRequest{}, nil},
		"remove unknown":    {wire.PlanRequest{Remove: []string{"c"}}, nil},
		"remove twice":      {wire.PlanRequest{Remove: []string{"a", "a"}}, nil},
		"bad id":            {wire.PlanRequest{Add: add("A b", 1)}, nil},
		"no id":             {wire.PlanRequest{Add: add("", 1)}, nil},
		"negative":          {wire.PlanRequest{Add: add("c", -1)}, nil},
		"too heavy":         {wire.PlanRequest{Add: add("c", ring.MaxWeight+1)}, nil},
		"too many":          {wire.PlanRequest{Add: many}, nil},
		"too much in all":   {wire.PlanRequest{Add: heavy}, nil},
		"add":               {wire.PlanRequest{Add: add("c", 2)}, map[string]int{"a": 1, "b": 1, "c": 2}},
		"default weight":    {wire.PlanRequest{Add: add("c", 0)}, map[string]int{"a": 1, "b": 1, "c": 1}},
		"other weight":      {wire.PlanRequest{Add: add("a", 64)}, map[string]int{"a": 64, "b": 1}},
		"remove":            {wire.PlanRequest{Remove: []string{"a"}}, map[string]int{"b": 1}},
		"in place of":       {wire.PlanRequest{Add: add("c", 1), Remove: []string{"b"}}, map[string]int{"a": 1, "c": 1}},
		"as many as can be": {wire.PlanRequest{Add: many[:1], Remove: []string{"a", "b"}}, map[string]int{"n0": 1}},
	} {
		got, p := planned(cur, &c.req)
		if (p != nil) != (c.want == nil) || p != nil && p.Status != 400 || !maps.Equal(got, c.want) {
			t.Errorf("%s: %v, %v; want %v", name, got, p, c.want)
		}
	}
	if !maps.Equal(cur.Members(), map[string]int{"a": 1, "b": 1}) {
		t.Error("a plan changed the ring")
	}
}

// A node that left and still has sessions closes those that are left at the end of
// its time: its users wait their turn until a minute after that.
func TestStormLeaving(t *testing.T) {
	now := time.Unix(1000, 0)
	r1 := stormRing(1, 1, "a", "b", "c")
	leaves := ring.Document{Cluster: "c", Epoch: 2, Leaving: []ring.Node{{ID: "c", Weight: 1, AcceptRate: 1}}}
	leaves.Nodes = stormRing(2, 1, "a", "b").Nodes
	leaves.Seal()
	r2, r3 := ring.New(leaves), stormRing(3, 1, "a", "b")
	var s storm
	s.observe(r1, now)
	s.observe(r2, now)
	late := now.Add(10 * stormLasts)
	if hit, _ := s.dials(r2, []*ring.Ring{r1}, 100, 1, late); len(hit) == 0 || zeros(hit) > 2 {
		t.Errorf("it is still leaving: %d of %d are let in at once by two nodes that take one a second", zeros(hit), len(hit))
	}
	s.observe(r3, late)
	if hit, _ := s.dials(r3, []*ring.Ring{r1}, 100, 1, late.Add(stormLasts-time.Second)); zeros(hit) > 2 {
		t.Errorf("it has just ended: %d of %d are let in at once", zeros(hit), len(hit))
	}
	if hit, _ := s.dials(r3, []*ring.Ring{r1}, 100, 1, late.Add(stormLasts)); zeros(hit) != len(hit) || s.lost.Load() != nil {
		t.Errorf("a minute after its end %d of %d are let in at once", zeros(hit), len(hit))
	}
}

// A weight may be missing, but what is given is a whole number from 1.
func TestPlanWeights(t *testing.T) {
	for weight, want := range map[string]int{"": 1, `,"weight":1`: 1, `,"weight":64`: 64,
		`,"weight":0`: 0, `,"weight":null`: 0, `,"weight":-1`: 0, `,"weight":1.5`: 0, `,"weight":"2"`: 0, `,"weight":65`: 0} {
		var req wire.PlanRequest
		err := wire.DecodeJSON([]byte(`{"add":[{"id":"c"`+weight+`}]}`), &req)
		got := 0
		if err == nil {
			members, p := planned(stormRing(1, 1, "a"), &req)
			if (p != nil) != (want == 0) {
				t.Errorf("%s: %v", weight, p)
			}
			got = members["c"]
		} else if !strings.Contains(err.Error(), "no whole number from 1") {
			t.Errorf("%s: %v", weight, err)
		}
		if got != want {
			t.Errorf("%s is a weight of %d, want %d (0: refused)", weight, got, want)
		}
	}
}
