package e2e

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// checker knows every push and every delivery, and tells in the end what does
// not fit together. All times are since its start, on the monotonic clock.
type checker struct {
	// ordered has report look for pushes that overtook others. Ephemeral pushes
	// promise no order, so it is off by default.
	ordered bool
	now     func() time.Duration

	mu       sync.Mutex
	pushes   []*pushRecord // number n is at n-1
	answers  int
	handlers map[handlerID]*handler
	devices  map[string]int // of each user: how many are expected to get its pushes
	last     time.Duration  // of the last delivery
	excuses  []func(pushRecord) bool
}

// outcome is what a pusher knows of its push.
type outcome int

const (
	unanswered  outcome = iota
	accepted            // 200
	refused             // 4xx: it must not be delivered
	unavailable         // 503, or never sent: it must not be delivered, but may be tried again
	unknown             // 504, a broken connection: it may have been delivered
)

func (o outcome) String() string {
	return [...]string{"unanswered", "accepted", "refused", "unavailable", "unknown"}[o]
}

// answer is what a push was answered.
type answer struct {
	kind      outcome
	status    int    // of HTTP, 0: none
	delivered int    // to how many sessions, it says
	node      string // that took it
	stored    bool   // so each device gets it, whatever delivered says
	why       string // it was not accepted
}

// pushRecord is one push.
type pushRecord struct {
	num           uint64 // unique; it is the payload
	user          string
	producer      int // whose pushes never overlap
	before, after time.Duration
	answer

	seen  int           // devices of the user that got it
	first time.Duration // when the first of them did
}

func (p *pushRecord) String() string {
	return fmt.Sprintf("push %d to %s by producer %d at %s, %s (%d %s, delivered %d by %q, stored %t) at %s",
		p.num, p.user, p.producer, p.before, p.kind, p.status, p.why, p.delivered, p.node, p.stored, p.after)
}

type handlerID struct{ user, device string }

// handler is where one device of a user gets its messages.
type handler struct {
	handlerID
	expected bool
	arrivals []arrival
	count    map[uint64]int
}

type arrival struct {
	num  uint64
	node string // the device was connected to, if that is known
	at   time.Duration
}

func newChecker() *checker {
	start := time.Now()
	return &checker{now: func() time.Duration { return time.Since(start) },
		handlers: map[handlerID]*handler{}, devices: map[string]int{}}
}

// expect says that this device is to get the pushes to its user.
func (c *checker) expect(user, device string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := c.handler(user, device); !h.expected {
		h.expected = true
		c.devices[user]++
	}
}

// handler is called with the lock held.
func (c *checker) handler(user, device string) *handler {
	id := handlerID{user, device}
	h := c.handlers[id]
	if h == nil {
		h = &handler{handlerID: id, count: map[uint64]int{}}
		c.handlers[id] = h
	}
	return h
}

// begin notes a push that is about to be sent, and returns its number.
func (c *checker) begin(user string, producer int) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := &pushRecord{num: uint64(len(c.pushes)) + 1, user: user, producer: producer, before: c.now()}
	c.pushes = append(c.pushes, p)
	return p.num
}

// end notes how a push was answered.
func (c *checker) end(num uint64, a answer) {
	at := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.pushes[num-1]
	p.after, p.answer = at, a
	c.answers++
}

// deliver notes that a handler got a push. The calls for one device must come
// one after the other, as those of OnMessage do.
func (c *checker) deliver(user, device, node string, num uint64) {
	at := c.now() // before waiting for the lock: that is not the cluster's time
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = max(c.last, at)
	h := c.handler(user, device)
	h.arrivals = append(h.arrivals, arrival{num, node, at})
	h.count[num]++
	if p := c.push(num); p != nil && p.user == user && h.expected && h.count[num] == 1 {
		if p.seen++; p.seen == 1 {
			p.first = at
		}
	}
}

// push returns the push with this number, nil if there is none. It is called
// with the lock held.
func (c *checker) push(num uint64) *pushRecord {
	if num == 0 || num > uint64(len(c.pushes)) {
		return nil
	}
	return c.pushes[num-1]
}

// excuse has pushes that f accepts not count as lost, told or denied, nor in the
// latency. Nothing excuses a duplicate, a wrong receiver, a changed order, or a
// push that came though it was not to.
func (c *checker) excuse(f func(p pushRecord) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.excuses = append(c.excuses, f)
}

func (c *checker) excused(p *pushRecord) bool {
	return slices.ContainsFunc(c.excuses, func(f func(pushRecord) bool) bool { return f(*p) })
}

// came tells whether a push has come to all devices of its user.
func (c *checker) came(num uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.push(num)
	return p != nil && p.seen >= c.devices[p.user]
}

// answered is the number of pushes that have their answer.
func (c *checker) answered() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.answers
}

// outstanding is the number of pushes that were accepted and are still to come
// to as many devices as the answer said, or to all of them if it is stored.
func (c *checker) outstanding() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, p := range c.pushes {
		want := c.devices[p.user]
		if !p.stored {
			want = min(want, p.delivered)
		}
		if p.kind == accepted && p.seen < want {
			n++
		}
	}
	return n
}

// quiet is how long ago the last delivery was.
func (c *checker) quiet() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now() - c.last
}

// counts are the numbers of a report. Pushes count once, however many devices
// missed them; dups, wrong and reordered are deliveries.
type counts struct {
	pushes, accepted, refused, unavailable, unknown int

	lost       int // accepted for all devices, or stored, and never seen at one of them
	dups       int // came again to the same handler
	wrong      int // came to another user than the one pushed to, or was never pushed
	phantom    int // refused with 4xx, and came nevertheless
	phantom503 int // answered 503, or never sent, and came nevertheless
	reordered  int // came after a later push of the same producer to the same user

	told    int // accepted, and the answer said that not all devices got it
	short   int // of those: came to fewer devices than the answer said
	denied  int // not accepted, whatever the reason, and no phantom
	excused int // would have been lost, told or denied
}

type report struct {
	counts
	deliveries int
	latency    []time.Duration // sorted; from before the call to each handler
	findings   map[string][]finding
}

// finding is one thing that does not fit.
type finding struct {
	at   time.Duration
	p    *pushRecord
	what string
}

// kinds is the order in which a report lists findings.
var kinds = []string{"lost", "dups", "wrong", "phantom", "phantom503", "reordered", "short", "told", "refused", "unavailable", "unknown"}

// report compares what was pushed with what came. Deliveries that are still
// under way count as lost, so call it when everything has settled.
func (c *checker) report() *report {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &report{findings: map[string][]finding{}}
	byUser := map[string][]*handler{}
	for _, h := range c.handlers {
		byUser[h.user] = append(byUser[h.user], h)
	}
	excused := make([]bool, len(c.pushes))
	for i, p := range c.pushes {
		excused[i] = c.excused(p)
		r.push(p, byUser[p.user], c.devices[p.user], excused[i])
	}
	for _, h := range c.handlers {
		c.arrivals(r, h, excused)
	}
	slices.Sort(r.latency)
	for _, f := range r.findings {
		slices.SortFunc(f, func(a, b finding) int { return cmp.Compare(a.at, b.at) })
	}
	r.lost, r.dups, r.wrong = len(r.findings["lost"]), len(r.findings["dups"]), len(r.findings["wrong"])
	r.phantom, r.phantom503 = len(r.findings["phantom"]), len(r.findings["phantom503"])
	r.reordered, r.short, r.told = len(r.findings["reordered"]), len(r.findings["short"]), len(r.findings["told"])
	r.denied = len(r.findings["refused"]) + len(r.findings["unavailable"]) + len(r.findings["unknown"])
	return r
}

func (r *report) find(kind string, at time.Duration, p *pushRecord, what string, args ...any) {
	r.findings[kind] = append(r.findings[kind], finding{at, p, fmt.Sprintf(what, args...)})
}

// push judges one push by what its user's devices got.
func (r *report) push(p *pushRecord, handlers []*handler, devices int, excused bool) {
	r.pushes++
	switch p.kind {
	case accepted:
		r.accepted++
	case refused:
		r.refused++
		if p.seen > 0 {
			r.find("phantom", p.first, p, "came at %s", p.first)
			return
		}
	case unavailable:
		r.unavailable++
		if p.seen > 0 {
			r.find("phantom503", p.first, p, "came at %s", p.first)
			return
		}
	default:
		r.unknown++
	}
	if p.kind != accepted {
		if excused {
			r.excused++
			return
		}
		kind := "unknown" // an unanswered push is one, too
		if p.kind == refused || p.kind == unavailable {
			kind = p.kind.String()
		}
		r.find(kind, p.before, p, "came to %d devices", p.seen)
		return
	}
	told := !p.stored && p.delivered < devices
	if !told && p.seen >= devices {
		return
	}
	if excused {
		r.excused++
		return
	}
	var missing []string
	for _, h := range handlers {
		if h.expected && h.count[p.num] == 0 {
			missing = append(missing, h.device)
		}
	}
	slices.Sort(missing)
	if !told {
		r.find("lost", p.before, p, "never came to %v", missing)
		return
	}
	r.find("told", p.before, p, "never came to %v", missing)
	if p.seen < p.delivered {
		r.find("short", p.before, p, "never came to %v", missing)
	}
}

// arrivals judges what one handler got.
func (c *checker) arrivals(r *report, h *handler, excused []bool) {
	r.deliveries += len(h.arrivals)
	newest := map[int]*pushRecord{} // by producer, of those that have come
	came := map[uint64]time.Duration{}
	for _, a := range h.arrivals {
		p := c.push(a.num)
		if p == nil || p.user != h.user {
			r.find("wrong", a.at, p, "%d came to %s/%s (at node %q) at %s", a.num, h.user, h.device, a.node, a.at)
			continue
		}
		if first, again := came[a.num]; again {
			r.find("dups", a.at, p, "came to %s at %s and at %s (at node %q)", h.device, first, a.at, a.node)
			continue
		}
		came[a.num] = a.at
		if p.kind != accepted {
			continue // it may come late, if at all
		}
		if !excused[a.num-1] {
			r.latency = append(r.latency, a.at-p.before)
		}
		// If one push overlaps another, nobody can say which is the earlier one.
		n := newest[p.producer]
		if c.ordered && n != nil && p.after < n.before {
			r.find("reordered", a.at, p, "came to %s at %s, after %d, which was pushed at %s", h.device, a.at, n.num, n.before)
		}
		if n == nil || p.before > n.before {
			newest[p.producer] = p
		}
	}
}

// bad tells whether anything happened that never may while users are connected,
// but for what is excused. An honest answer that a push was not accepted, or that
// it missed a device, is bad, too: otherwise a cluster that drops what it does not
// manage and says so would pass.
func (r *report) bad() bool {
	return r.lost+r.dups+r.wrong+r.phantom+r.phantom503+r.reordered+r.told+r.denied > 0
}

// percentile returns the latency that p percent of the deliveries do not exceed.
func (r *report) percentile(p float64) time.Duration {
	if len(r.latency) == 0 {
		return 0
	}
	return r.latency[min(int(p/100*float64(len(r.latency))), len(r.latency)-1)]
}

// String is the numbers, and the first few findings of each kind.
func (r *report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d pushes: %d accepted, %d refused, %d unavailable, %d unknown; %d deliveries\n",
		r.pushes, r.accepted, r.refused, r.unavailable, r.unknown, r.deliveries)
	fmt.Fprintf(&b, "lost %d, dups %d, wrong %d, phantom %d, phantom503 %d, reordered %d, told %d (short %d), denied %d, excused %d\n",
		r.lost, r.dups, r.wrong, r.phantom, r.phantom503, r.reordered, r.told, r.short, r.denied, r.excused)
	fmt.Fprintf(&b, "latency: p50 %s, p90 %s, p99 %s, p99.9 %s, most %s\n",
		r.percentile(50), r.percentile(90), r.percentile(99), r.percentile(99.9), r.percentile(100))
	const few = 5
	for _, kind := range kinds {
		for i, f := range r.findings[kind] {
			if i == few {
				fmt.Fprintf(&b, "%s: and %d more\n", kind, len(r.findings[kind])-few)
				break
			}
			if f.p == nil {
				fmt.Fprintf(&b, "%s: %s; it was never pushed\n", kind, f.what)
			} else {
				fmt.Fprintf(&b, "%s: %s; %s\n", kind, f.what, f.p)
			}
		}
	}
	return b.String()
}
