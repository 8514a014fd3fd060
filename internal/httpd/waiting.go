package httpd

import (
	"container/list"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// Waiting bounds the connections of a listener that no handler has taken over: those that
// have asked nothing yet, or not all of it, those that are being answered, and those that
// are kept for a next request. Without a bound who opens connections and says nothing would
// have the descriptors of everybody. It may be used concurrently, for one listener.
//
//	accepted --its address has too many: 429, closed
//	   |     --too many in all: one that is not being answered is closed for it
//	   v
//	asks --> answered --> kept
//
// Who goes for a newcomer is whoever has been silent for longest without ever having asked,
// if that is a second; then, of those that are kept, the one that was not used for longest.
// Kept ones of whom it is known who asks (Vouch) come last, unless they are more than half
// of all: a storm of strangers costs services no connections, but for those that they opened
// and have not used.
type Waiting struct {
	// Exempt, if set before Tune, tells which addresses may have more than perAddress: those
	// of proxies, whose connections are of whoever.
	Exempt func(netip.Addr) bool

	most, perAddress int
	full             func(byAddress bool)

	mu     sync.Mutex
	conns  map[net.Conn]*waiting
	silent list.List // of net.Conn: those that have asked nothing yet, the oldest first
	kept   list.List // of net.Conn: those that wait for a next request, the longest first
	known  list.List // the same, of those that were vouched for
	by     map[netip.Addr]int
}

type waiting struct {
	addr    netip.Addr
	since   time.Time
	in      *list.List // nil: it is being answered
	at      *list.Element
	vouched bool // for the address it does not count
}

// silence is how long a newcomer may take to ask before it goes for others, if that must be.
const silence = time.Second

// NewWaiting bounds them to most, and to perAddress of one address (0: no bound). full is
// called, without a lock, when a connection is closed for that.
func NewWaiting(most, perAddress int, full func(byAddress bool)) *Waiting {
	return &Waiting{most: most, perAddress: perAddress, full: full, conns: map[net.Conn]*waiting{}, by: map[netip.Addr]int{}}
}

// Len is how many there are.
func (w *Waiting) Len() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.conns)
}

// Tune is for Serve.
func (w *Waiting) Tune(s *http.Server) {
	s.ConnState = w.state
	before := s.ConnContext
	s.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if before != nil {
			ctx = before(ctx, c)
		}
		return context.WithValue(ctx, waitingKey{}, held{w, c})
	}
}

type waitingKey struct{}

type held struct {
	w *Waiting
	c net.Conn
}

// Vouch has a request's connection not count for its address any more: it is known who
// asks, and that may be a service with many connections.
func Vouch(r *http.Request) {
	h, ok := r.Context().Value(waitingKey{}).(held)
	if !ok {
		return
	}
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	if x := h.w.conns[h.c]; x != nil && !x.vouched {
		x.vouched = true
		h.w.countLocked(x.addr, -1)
	}
}

func (w *Waiting) state(c net.Conn, state http.ConnState) {
	w.mu.Lock()
	x := w.conns[c]
	var victim net.Conn
	byAddress, unsaid := false, false
	switch state {
	case http.StateNew:
		x = &waiting{addr: addressOf(&http.Request{RemoteAddr: c.RemoteAddr().String()}), since: time.Now()}
		x.in, x.at = &w.silent, w.silent.PushBack(c)
		w.conns[c] = x
		w.countLocked(x.addr, 1)
		switch {
		case w.perAddress > 0 && w.by[x.addr] > w.perAddress && (w.Exempt == nil || !w.Exempt(x.addr)):
			victim, byAddress = c, true
		case len(w.conns) > w.most:
			victim = w.victimLocked(x.since)
			unsaid = w.conns[victim].in != &w.silent
		}
	case http.StateActive:
		if x != nil && x.in != nil {
			x.in.Remove(x.at)
			x.in, x.at = nil, nil
		}
	case http.StateIdle:
		if x != nil && x.in == nil {
			if x.in = &w.kept; x.vouched {
				x.in = &w.known
			}
			x.at = x.in.PushBack(c)
		}
	case http.StateHijacked, http.StateClosed:
		w.removeLocked(c)
	}
	if victim != nil {
		w.removeLocked(victim)
	}
	w.mu.Unlock()
	if victim != nil {
		w.full(byAddress)
		refuse(victim, byAddress, unsaid)
	}
}

// victimLocked is who goes for a newcomer, which is one of the silent ones itself.
func (w *Waiting) victimLocked(now time.Time) net.Conn {
	oldest := w.silent.Front().Value.(net.Conn)
	e := w.kept.Front()
	if w.known.Len() > w.most/2 {
		e = w.known.Front()
	}
	if e != nil && now.Sub(w.conns[oldest].since) < silence {
		return e.Value.(net.Conn)
	}
	return oldest
}

func (w *Waiting) countLocked(a netip.Addr, n int) {
	if w.by[a] += n; w.by[a] == 0 {
		delete(w.by, a)
	}
}

func (w *Waiting) removeLocked(c net.Conn) {
	x := w.conns[c]
	if x == nil {
		return
	}
	delete(w.conns, c)
	if x.in != nil {
		x.in.Remove(x.at)
	}
	if !x.vouched {
		w.countLocked(x.addr, -1)
	}
}

// refuse closes a connection, with an answer where that can be written without waiting. What
// the peer may be sending is not read, so it sees the answer or a reset.
func refuse(c net.Conn, byAddress, unsaid bool) {
	if t, ok := c.(*tls.Conn); ok {
		_ = t.NetConn().Close() // its own Close may wait
		return
	}
	if unsaid { // what it asks next is asked again elsewhere, as ever when such a connection ends
		_ = c.Close()
		return
	}
	p := wire.NewProblem(http.StatusServiceUnavailable, wire.CodeRateLimited, "too many connections wait here; try again later")
	if byAddress {
		p = wire.NewProblem(http.StatusTooManyRequests, wire.CodeRateLimited, "too many connections of this address wait here")
	}
	_ = c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	_, _ = c.Write(rawProblem(p))
	_ = c.Close()
}

// rawProblem is the response of a problem document.
func rawProblem(p *wire.Problem) []byte {
	b, err := json.Marshal(p)
	if err != nil {
		panic(err) // plain fields always have an encoding
	}
	return fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nCache-Control: no-store\r\nRetry-After: %d\r\nConnection: close\r\n\r\n%s",
		p.Status, http.StatusText(p.Status), wire.ProblemType, len(b), p.RetryAfter, b)
}
