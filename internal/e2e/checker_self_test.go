package e2e

import (
	"strings"
	"testing"
	"time"
)

// history is a made-up run: what was pushed and answered, and what came.
type history struct {
	*checker
	clock time.Duration
	came  []came
}

type came struct {
	num          uint64
	user, device string
	at           time.Duration
}

const (
	historyUsers  = 10
	historyPushes = 5000
)

// newHistory has each push come to both devices of its user, 3 ms after it.
// Two producers take turns, each with its own users.
func newHistory() *history {
	h := &history{checker: newChecker()}
	h.now = func() time.Duration { return h.clock }
	h.ordered = true
	for i := range historyUsers {
		h.expect(historyUser(i), "d0")
		h.expect(historyUser(i), "d1")
	}
	for i := range historyPushes {
		h.add(historyUser(i%historyUsers), i%2, answer{kind: accepted, status: 200, delivered: 2})
	}
	return h
}

func historyUser(i int) string { return string(rune('a' + i)) }

// add adds a push, and its deliveries as if it were accepted for all.
func (h *history) add(user string, producer int, a answer) uint64 {
	h.clock += time.Millisecond
	began := h.clock
	num := h.begin(user, producer)
	h.clock += time.Millisecond
	h.end(num, a)
	for _, d := range []string{"d0", "d1"} {
		h.came = append(h.came, came{num, user, d, began + 3*time.Millisecond})
	}
	return num
}

// drop removes the delivery of a push at a device.
func (h *history) drop(num uint64, device string) {
	i := h.find(num, device)
	h.came = append(h.came[:i], h.came[i+1:]...)
}

func (h *history) find(num uint64, device string) int {
	for i, d := range h.came {
		if d.num == num && d.device == device {
			return i
		}
	}
	panic("a delivery that is not in the history")
}

// swap has a device get two pushes in the other order.
func (h *history) swap(a, b uint64, device string) {
	i, j := h.find(a, device), h.find(b, device)
	h.came[i].num, h.came[j].num = b, a
}

func (h *history) play() *report {
	for _, d := range h.came {
		h.clock = d.at
		h.deliver(d.user, d.device, "n", d.num)
	}
	return h.report()
}

// The checker finds each mistake, and only that one.
func TestChecker(t *testing.T) {
	const last = historyPushes + 1 // of a push that a case adds
	for _, c := range []struct {
		name  string
		plant func(h *history)
		want  counts // pushes and accepted: those of the clean history, and what is here
		says  string // in the report
	}{
		{"clean", func(h *history) {}, counts{}, "p50 3ms, p90 3ms, p99 3ms, p99.9 3ms, most 3ms"},
		{"one in a thousand dropped", func(h *history) {
			for n := uint64(500); n <= historyPushes; n += 1000 {
				h.drop(n, "d0")
				h.drop(n+1, "d1")
			}
		}, counts{lost: 10}, "never came to [d0]; push 500 to j"},
		{"dropped at both devices", func(h *history) { h.drop(7, "d0"); h.drop(7, "d1") }, counts{lost: 1}, "never came to [d0 d1]; push 7"},
		{"the very last one dropped", func(h *history) { h.drop(historyPushes, "d1") }, counts{lost: 1}, "push 5000"},
		{"two swapped", func(h *history) { h.swap(21, 31, "d0") }, counts{reordered: 1}, "after 31"},
		{"two swapped, no order promised", func(h *history) { h.ordered = false; h.swap(21, 31, "d0") }, counts{}, ""},
		{"one overtaken by many", func(h *history) {
			h.swap(21, 31, "d0")
			h.swap(31, 41, "d0")
		}, counts{reordered: 2}, ""},
		{"two producers swapped", func(h *history) {
			ok := answer{kind: accepted, status: 200, delivered: 2}
			h.swap(h.add("a", 0, ok), h.add("a", 1, ok), "d0")
		}, counts{pushes: 2, accepted: 2}, ""},
		{"overlapping pushes swapped", func(h *history) {
			x, y := h.begin("a", 7), h.begin("a", 7)
			h.clock++
			for _, n := range []uint64{x, y} {
				h.end(n, answer{kind: accepted, status: 200, delivered: 2})
			}
			for _, n := range []uint64{y, x} {
				h.came = append(h.came, came{n, "a", "d0", h.clock}, came{n, "a", "d1", h.clock})
			}
		}, counts{pushes: 2, accepted: 2}, ""},
		{"delivered twice", func(h *history) {
			h.came = append(h.came, came{9, "i", "d1", h.clock})
		}, counts{dups: 1}, "came to d1 at 20ms and at 10s"},
		{"delivered twice, and never to the other device", func(h *history) {
			h.came[h.find(9, "d0")].device = "d1"
		}, counts{dups: 1, lost: 1}, "never came to [d0]; push 9"},
		{"delivered to a neighbour, too", func(h *history) {
			h.came = append(h.came, came{9, "a", "d0", h.clock})
		}, counts{wrong: 1}, `9 came to a/d0 (at node "n")`},
		{"delivered to a neighbour instead", func(h *history) {
			h.came[h.find(9, "d0")].user = "a"
		}, counts{wrong: 1, lost: 1}, "push 9 to i"},
		{"never pushed", func(h *history) {
			h.came = append(h.came, came{last, "a", "d0", 1}, came{0, "a", "d0", 1})
		}, counts{wrong: 2}, "it was never pushed"},
		{"a refused one delivered", func(h *history) {
			h.drop(h.add("b", 1, answer{kind: refused, status: 413}), "d1")
		}, counts{pushes: 1, refused: 1, phantom: 1}, "phantom: came at 10.004s; push 5001 to b"},
		{"a 503 delivered", func(h *history) {
			h.add("b", 1, answer{kind: unavailable, status: 503})
		}, counts{pushes: 1, unavailable: 1, phantom503: 1}, ""},
		{"refused and not delivered", func(h *history) {
			for _, k := range []outcome{refused, unavailable, unknown} {
				n := h.add("b", 1, answer{kind: k})
				h.drop(n, "d0")
				h.drop(n, "d1")
			}
		}, counts{pushes: 3, refused: 1, unavailable: 1, unknown: 1, denied: 3}, "unavailable: came to 0 devices; push 5002"},
		{"refused", func(h *history) {
			n := h.add("b", 1, answer{kind: refused, status: 429})
			h.drop(n, "d0")
			h.drop(n, "d1")
		}, counts{pushes: 1, refused: 1, denied: 1}, "refused: came to 0 devices; push 5001"},
		{"never answered", func(h *history) { h.begin("b", 1) }, counts{pushes: 1, unknown: 1, denied: 1}, "unknown: came to 0 devices; push 5001"},
		{"nobody knows, and delivered", func(h *history) {
			h.add("b", 1, answer{kind: unknown, status: 504})
		}, counts{pushes: 1, unknown: 1, denied: 1}, "unknown: came to 2 devices; push 5001"},
		{"told that nobody got it", func(h *history) {
			n := h.add("b", 1, answer{kind: accepted, status: 200})
			h.drop(n, "d0")
			h.drop(n, "d1")
		}, counts{pushes: 1, accepted: 1, told: 1}, "told: never came to [d0 d1]; push 5001"},
		{"told that one device got it, and none did", func(h *history) {
			n := h.add("b", 1, answer{kind: accepted, status: 200, delivered: 1})
			h.drop(n, "d0")
			h.drop(n, "d1")
		}, counts{pushes: 1, accepted: 1, told: 1, short: 1}, ""},
		{"stored for both, and one did not get it", func(h *history) {
			h.drop(h.add("b", 1, answer{kind: accepted, status: 200, delivered: 1, stored: true}), "d1")
		}, counts{pushes: 1, accepted: 1, lost: 1}, ""},
		{"excused within a window", func(h *history) {
			h.excuse(func(p pushRecord) bool { return p.user == "a" && p.before < 100*time.Millisecond })
			h.drop(11, "d0")  // excused
			h.drop(12, "d0")  // another user
			h.drop(101, "d0") // too late
			h.came = append(h.came, came{11, "a", "d1", h.clock})
		}, counts{lost: 2, excused: 1, dups: 1}, "push 12 to b"},
		{"not accepted within a window", func(h *history) {
			h.excuse(func(p pushRecord) bool { return p.user == "a" })
			for _, u := range []string{"a", "b"} {
				for _, k := range []outcome{refused, unavailable, unknown} {
					n := h.add(u, 1, answer{kind: k})
					h.drop(n, "d0")
					h.drop(n, "d1")
				}
			}
			h.add("a", 1, answer{kind: unavailable, status: 503}) // came: nothing excuses that
		}, counts{pushes: 7, refused: 2, unavailable: 3, unknown: 2, denied: 3, phantom503: 1, excused: 3}, "unavailable: came to 0 devices; push 5005 to b"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHistory()
			c.plant(h)
			r := h.play()
			c.want.pushes += historyPushes
			c.want.accepted += historyPushes
			if r.counts != c.want {
				t.Errorf("got  %+v\nwant %+v\n%s", r.counts, c.want, r)
			}
			if !strings.Contains(r.String(), c.says) {
				t.Errorf("the report does not say %q:\n%s", c.says, r)
			}
			w := c.want
			if want := w.lost+w.dups+w.wrong+w.phantom+w.phantom503+w.reordered+w.told+w.denied > 0; r.bad() != want {
				t.Errorf("bad: %t", r.bad())
			}
		})
	}
}

// What a run waits for before it reports.
func TestCheckerOutstanding(t *testing.T) {
	c := newChecker()
	c.expect("a", "d0")
	c.expect("a", "d1")
	steps := []struct {
		do   func()
		want int
	}{
		{func() { c.begin("a", 0) }, 0}, // not answered: nothing is promised
		{func() { c.deliver("a", "d0", "", 1) }, 0},
		{func() { c.end(1, answer{kind: accepted, delivered: 2}) }, 1},
		{func() { c.deliver("a", "d0", "", 1) }, 1}, // the same device again
		{func() { c.deliver("b", "d1", "", 1) }, 1}, // somebody else
		{func() { c.deliver("a", "d1", "", 1) }, 0},
		{func() { c.end(c.begin("a", 0), answer{kind: accepted, delivered: 1}) }, 1},
		{func() { c.deliver("a", "d1", "", 2) }, 0}, // no more were promised
		{func() { c.end(c.begin("a", 0), answer{kind: accepted, stored: true}) }, 1},
		{func() { c.deliver("a", "d1", "", 3) }, 1},
		{func() { c.deliver("a", "d0", "", 3) }, 0},
	}
	for i, s := range steps {
		if s.do(); c.outstanding() != s.want {
			t.Fatalf("after step %d: %d outstanding, want %d", i, c.outstanding(), s.want)
		}
	}
	if c.answered() != 3 {
		t.Errorf("%d answered", c.answered())
	}
}
