package wsnode

import (
	"log/slog"
	"math"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dialring/dialring/internal/wire"
)

// A bucket lets through four seconds' worth at once and then so many a second, whatever
// the order, and what is given back counts as never taken.
func TestInflowRate(t *testing.T) {
	r := newInflowRate(10, 0)
	var full int64
	taken := func(now time.Duration, n int) (k int) {
		for range n {
			if r.take(&full, int64(now), 1) {
				k++
			} else {
				r.give(&full, 1) // who is refused ends; here it goes on
			}
		}
		return k
	}
	if got := taken(time.Hour, 100); got != 40 {
		t.Errorf("%d at once, want 40", got)
	}
	if got := taken(time.Hour+time.Second, 100); got != 10 {
		t.Errorf("%d a second later, want 10", got)
	}
	if got := taken(2*time.Hour, 100); got != 40 {
		t.Errorf("%d after a long time, want 40", got)
	}
	for range 1000 {
		if r.give(&full, 1); !r.take(&full, int64(2*time.Hour), 1) {
			t.Fatal("what was given back was not there")
		}
	}
	large := newInflowRate(1000, 70_000)
	full = 0
	if !large.take(&full, int64(time.Hour), 70_000) || large.take(&full, int64(time.Hour), 1000) {
		t.Error("a bucket does not hold exactly one frame of the largest size")
	}
}

// limitedNode is one that only its limits work of.
func limitedNode(t *testing.T) *Node {
	t.Helper()
	n := &Node{log: slog.New(slog.DiscardHandler), start: time.Now(), presenceOf: newPresence(0), queues: queues{over: make(chan struct{}, 1), limit: math.MaxInt64}}
	n.cfg.SessionQueueBytes, n.cfg.MaxSessionsPerUser = 1<<20, 16
	n.hub = newHub(n.presenceOf)
	n.metrics = &metrics{limited: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "x"}, []string{"limit"}), closes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "y"}, []string{"reason"})}
	return n
}

// Past the limit of all queues those with the most go, and no more of them than have to.
func TestCloseLongest(t *testing.T) {
	n := limitedNode(t)
	all := map[int]*session{}
	for _, kib := range []int{1, 2, 10, 100, 200, 300} {
		s := &session{id: wire.RandomID(5), user: wire.RandomID(5), device: "d", node: n, writing: true}
		if _, p := n.hub.add(s, &n.cfg, nil); p != nil {
			t.Fatal(p)
		}
		for range kib {
			s.send(outgoing{frame: make([]byte, 1<<10)})
		}
		all[kib] = s
	}
	if got := n.queues.total.Load(); got != 613<<10 {
		t.Fatalf("%d bytes wait", got)
	}
	n.queues.limit = 613 << 10
	n.closeLongest()
	for kib, s := range all {
		if s.isClosing() {
			t.Errorf("the session with %d KiB was closed at the limit", kib)
		}
	}
	n.queues.limit = 400 << 10 // 300 are too much still, but for the largest 313, below nine tenths
	n.closeLongest()
	for kib, s := range all {
		if s.isClosing() != (kib == 300) {
			t.Errorf("the session with %d KiB: closed is %v", kib, s.isClosing())
		}
	}
	if got := n.queues.total.Load(); got != 313<<10 {
		t.Errorf("%d bytes wait when the longest has gone, want %d", got, 313<<10)
	}
	n.queues.limit = 100 << 10
	n.closeLongest()
	for kib, s := range all {
		if s.isClosing() != (kib >= 100) {
			t.Errorf("the session with %d KiB: closed is %v", kib, s.isClosing())
		}
	}
	// Whoever queues past the limit has it looked at, once.
	all[1].send(outgoing{frame: make([]byte, 200<<10)})
	select {
	case <-n.queues.over:
	default:
		t.Error("nobody looks")
	}
	for _, s := range all {
		s.mu.Lock()
		s.dropLocked()
		s.mu.Unlock()
	}
	if got := n.queues.total.Load(); got != 0 {
		t.Errorf("%d bytes wait when all queues are empty", got)
	}
}

func TestMemoryFull(t *testing.T) {
	n := limitedNode(t)
	n.maxSessions = 1
	n.memory.limit = 1000
	for _, c := range []struct {
		held int64
		full bool
	}{{1000, false}, {1001, true}, {999, true}, {951, true}, {950, false}, {1000, false}, {5000, true}, {0, false}} {
		n.lookAtMemory(c.held)
		if p := n.full(); (p != nil) != c.full || p != nil && p.Status != 503 {
			t.Errorf("with %d bytes: %v, want full %v", c.held, p, c.full)
		}
	}
	if held := heldMemory(); held < 1<<20 || held > 1<<40 {
		t.Errorf("this process holds %d bytes", held)
	}
	for _, c := range []struct {
		cfg           Config
		memory, queue int64 // 0: whatever the machine has
	}{
		{Config{MemoryLimit: 1 << 30, SessionQueueBytes: 1 << 20}, 1 << 30, 1 << 28},
		{Config{MemoryLimit: 1 << 30, NodeQueueBytes: 1 << 25, SessionQueueBytes: 1 << 20}, 1 << 30, 1 << 25},
		{Config{MemoryLimit: 1 << 26, SessionQueueBytes: 1 << 25}, 1 << 26, 1 << 25}, // one session's fits always
		{Config{MemoryLimit: -1, SessionQueueBytes: 1 << 20}, math.MaxInt64, 1 << 30},
	} {
		m := c.cfg.memoryLimit()
		if q := c.cfg.queueLimit(m); m != c.memory || q != c.queue {
			t.Errorf("%+v: %d and %d, want %d and %d", c.cfg, m, q, c.memory, c.queue)
		}
	}
}

// Places are counted exactly, also when many come at once.
func TestEnter(t *testing.T) {
	n := limitedNode(t)
	n.maxSessions = 10
	in := make(chan bool)
	for range 50 {
		go func() { in <- n.enter() }()
	}
	k := 0
	for range 50 {
		if <-in {
			k++
		}
	}
	if k != 10 || n.connections.Load() != 10 || n.full() == nil {
		t.Errorf("%d of 10 came in, %d are counted", k, n.connections.Load())
	}
}
