package locator

import (
	"testing"
	"time"
)

func worst(all []time.Time) int {
	most := 0
	for i := range all {
		n := 0
		for _, x := range all {
			if d := x.Sub(all[i]); d >= 0 && d < time.Second {
				n++
			}
		}
		most = max(most, n)
	}
	return most
}

// One dial, then the others 0.9 s later: still no second with more than the rate.
func TestArrivalsLateInTheWindow(t *testing.T) {
	now, a, all := time.Unix(1000, 0), arrivals{}, []time.Time{}
	for i := range 40 {
		at := now
		if i > 0 {
			at = now.Add(900 * time.Millisecond)
		}
		d, _ := a.next(at, 10)
		all = append(all, at.Add(d))
	}
	if n := worst(all); n > 11 {
		t.Errorf("%d dials within a second, rate 10", n)
	}
}

// When a second node is lost, what was booked counts.
func TestSecondLossForgets(t *testing.T) {
	var s storm
	now := time.Unix(1000, 0)
	r1, r2, r3 := stormRing(1, 10, "a", "b", "c"), stormRing(2, 10, "b", "c"), stormRing(3, 10, "c")
	_ = r2
	s.observe(r1, now)
	var all []time.Time
	rings := []*struct{ d time.Duration }{{0}, {100 * time.Millisecond}}
	for k, x := range rings {
		cur := r2
		if k == 1 {
			cur = r3
		}
		at := now.Add(x.d)
		s.observe(cur, at)
		for i := range 300 {
			u := "u" + string(rune('0'+i/100)) + string(rune('0'+i/10%10)) + string(rune('0'+i%10))
			o, _ := cur.Owner(u)
			was, _ := r1.Owner(u)
			if o.ID != "c" || was.ID == "c" {
				continue
			}
			if d, ok := s.dialAfter(cur, o, u, func() int { return 1 }, at); ok {
				all = append(all, at.Add(d))
			}
		}
	}
	if n := worst(all); n > 11 {
		t.Errorf("%d dials of c within a second, rate 10", n)
	}
}
