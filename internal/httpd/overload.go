package httpd

import (
	"context"
	"crypto/tls"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// Overload refuses a part of one kind of requests, before any work was done for them, while
// more come than can be answered in time. What stands in a queue is not seen by counting
// requests, since it waits in the kernel, unread; so each request is asked how long it has
// waited there. As CoDel does (RFC 8289) it heeds a wait that lasts for an interval: a burst
// that was worked off is no overload, a queue that stays is. (CoDel takes the least wait of
// the interval, of a queue that is served in its order. Connections are not: most of them
// have to have waited.) Which requests are refused is chance, as in PIE (RFC 8033), with a
// share that falls while the queue stays and grows when it is gone. Chance, and not the
// longest wait: all wait about equally long, and if refusing alone took all the time there
// is, nobody would be served. A refusal is sent after a while (Hold): who asks again at once,
// over a connection that is open, would else spend the time of those who are served. (That
// is a tarpit; it costs a timer, since each connection has its goroutine anyway.)
//
//	everybody --most of 100 ms waited over 30 ms--> fewer, down to every fourth
//	    ^                                              |
//	    +-----------not so, or nobody asks-------------+
//
// It may be used concurrently.
type Overload struct {
	most    int64 // under way; beyond that all are refused
	running atomic.Int64
	held    atomic.Int64 // refusals that wait
	share   atomic.Int64 // of those that have waited, in thousandths

	mu         sync.Mutex
	began      time.Time // of this interval
	seen, late int       // in it
}

const (
	overloadTarget   = 30 * time.Millisecond // some ticks of the kernel's clock
	overloadInterval = 100 * time.Millisecond
	// overloadSeen is how many have to come in an interval: when a handful waits it is the
	// machine that was busy with other things.
	overloadSeen = 64
	// leastShare keeps serving worth while, since refusing is not free.
	leastShare = 250
	lessShare  = 700 // thousandths of it, after an interval of overload
	moreShare  = 50  // thousandths more, after one without
	// holdTime is how long a refusal waits at most, and maxHeld how many do: with HTTP/2 one
	// connection may have many.
	holdTime = 500 * time.Millisecond
	maxHeld  = 10_000
)

// NewOverload also bounds the requests under way to most.
func NewOverload(most int) *Overload {
	o := &Overload{most: int64(most)}
	o.share.Store(1000)
	return o
}

// Enter tells whether a request is let in; then Leave has to follow.
func (o *Overload) Enter(r *http.Request) bool { return o.enter(waitedFor(r), time.Now()) }

func (o *Overload) enter(wait time.Duration, now time.Time) bool {
	share := o.look(wait, now)
	if wait > overloadTarget && share < 1000 && rand.Int64N(1000) >= share { // #nosec G404 -- which of those that wait are refused
		return false
	}
	if o.running.Add(1) > o.most {
		o.running.Add(-1)
		return false
	}
	return true
}

// Hold has who was refused wait for the answer, for half a second at most, or until ctx ends.
func (o *Overload) Hold(ctx context.Context) {
	defer o.held.Add(-1)
	if o.held.Add(1) > maxHeld {
		return
	}
	t := time.NewTimer(holdTime/2 + rand.N(holdTime/2)) // #nosec G404 -- jitter
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// Leave ends what Enter let in.
func (o *Overload) Leave() { o.running.Add(-1) }

// Running is how many are under way.
func (o *Overload) Running() int64 { return o.running.Load() }

// Share is the part of the requests that are let in, at the moment, though they had to wait.
func (o *Overload) Share() float64 { return float64(o.share.Load()) / 1000 }

// look takes notice of a wait, and judges the interval when it is over.
func (o *Overload) look(wait time.Duration, now time.Time) int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	if past := now.Sub(o.began); past >= overloadInterval {
		share := o.share.Load()
		if o.seen >= overloadSeen && o.late > o.seen/2 {
			share = max(leastShare, share*lessShare/1000)
		} else {
			share = min(1000, share+moreShare)
		}
		share = min(1000, share+moreShare*int64(min(past/overloadInterval-1, 1000))) // nobody came in these
		o.share.Store(share)
		o.began, o.seen, o.late = now, 0, 0
	}
	o.seen++
	if wait > overloadTarget {
		o.late++
	}
	return o.share.Load()
}

// Busy is the answer to who was refused; the wait is drawn, so that they do not all come
// back at the same moment.
func Busy(format string, args ...any) *wire.Problem {
	p := wire.NewProblem(http.StatusServiceUnavailable, wire.CodeRateLimited, format, args...)
	p.RetryAfter = 1 + rand.IntN(maxBusy) // #nosec G404 -- jitter
	return p
}

// maxBusy is how many seconds who was refused has to wait at most.
const maxBusy = 5

type connKey struct{}

// rawConn is put into the context of each connection, so that its requests can be asked how
// long they have waited.
func rawConn(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if s, ok := c.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			return context.WithValue(ctx, connKey{}, raw)
		}
	}
	return ctx
}

func waitedFor(r *http.Request) time.Duration {
	if raw, ok := r.Context().Value(connKey{}).(syscall.RawConn); ok {
		return waited(raw)
	}
	return 0
}

// InFlight bounds what each key has under way at a time: calls, and bytes of their bodies.
// It may be used concurrently.
type InFlight[K comparable] struct {
	calls        int // 0: no bound
	bytes, total int64
	few, reserve int64

	mu  sync.Mutex
	by  map[K]load
	all load
}

type load struct {
	calls int
	bytes int64
}

// NewInFlight bounds each key to so many calls (0 or less: no bound) and bytes, and all keys
// together to total bytes. For keys that have few bytes under way there is a reserve beside
// that, so that some with many do not keep out all others.
func NewInFlight[K comparable](calls int, bytes, total, few, reserve int64) *InFlight[K] {
	return &InFlight[K]{calls: max(calls, 0), bytes: bytes, total: total, few: few, reserve: reserve, by: map[K]load{}}
}

// Reasons why Enter does not let in.
type Full int

const (
	NotFull   Full = iota
	FullCalls      // of the key
	FullBytes      // of the key, or of all together
)

// Enter lets a call with a body of so many bytes in, or says why not. A call that is let in
// ends with Leave.
func (f *InFlight[K]) Enter(k K, bytes int64) Full {
	f.mu.Lock()
	defer f.mu.Unlock()
	x := f.by[k]
	switch {
	case f.calls > 0 && x.calls >= f.calls:
		return FullCalls
	case x.bytes+bytes > f.bytes, f.all.bytes+bytes > f.total && x.bytes+bytes > f.few, f.all.bytes+bytes > f.total+f.reserve:
		return FullBytes
	}
	f.by[k] = load{x.calls + 1, x.bytes + bytes}
	f.all = load{f.all.calls + 1, f.all.bytes + bytes}
	return NotFull
}

// Leave ends what Enter let in.
func (f *InFlight[K]) Leave(k K, bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	x := f.by[k]
	if x = (load{x.calls - 1, x.bytes - bytes}); x.calls == 0 {
		delete(f.by, k)
	} else {
		f.by[k] = x
	}
	f.all = load{f.all.calls - 1, f.all.bytes - bytes}
}

// Load is what is under way of all keys.
func (f *InFlight[K]) Load() (calls int, bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.all.calls, f.all.bytes
}
