package httpd

import (
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/dialring/dialring/internal/wire"
)

// Limiter limits how often one address may ask. An IPv6 network of 64 bits
// counts as one address. It may be used concurrently.
type Limiter struct {
	rate  rate.Limit
	burst int

	mu    sync.Mutex
	by    map[netip.Addr]*rate.Limiter
	rest  *rate.Limiter // of all addresses together that find the book full
	swept time.Time     // when the idle ones were last looked for
}

// maxAddresses bounds the memory of a Limiter, to about 20 MiB.
const maxAddresses = 100_000

// NewLimiter allows perSecond asks a second and address, with bursts of four
// times that. perSecond of 0 or less: no limit.
func NewLimiter(perSecond int) *Limiter {
	if perSecond <= 0 {
		return &Limiter{}
	}
	return &Limiter{rate: rate.Limit(perSecond), burst: 4 * perSecond,
		by: map[netip.Addr]*rate.Limiter{}, rest: rate.NewLimiter(rate.Limit(perSecond), 4*perSecond)}
}

// Check returns the problem to answer with when the request's address has
// asked too often.
func (l *Limiter) Check(r *http.Request) *wire.Problem {
	if l.rate == 0 || l.of(addressOf(r)).Allow() {
		return nil
	}
	return wire.NewProblem(http.StatusTooManyRequests, wire.CodeRateLimited, "too many requests from this address; at most %d a second", int(l.rate))
}

func (l *Limiter) of(a netip.Addr) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if x := l.by[a]; x != nil {
		return x
	}
	if now := time.Now(); len(l.by) >= maxAddresses && now.Sub(l.swept) >= time.Second {
		l.swept = now
		for k, x := range l.by { // those with a full bucket have asked nothing for seconds
			if x.TokensAt(now) >= float64(l.burst) {
				delete(l.by, k)
			}
		}
	}
	if len(l.by) >= maxAddresses {
		return l.rest
	}
	x := rate.NewLimiter(l.rate, l.burst)
	l.by[a] = x
	return x
}

// addressOf is the address of the connection itself; forwarded headers count
// for nothing, since anyone can write them.
func addressOf(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	a := ap.Addr().Unmap().WithZone("")
	if a.Is6() {
		p, err := a.Prefix(64)
		if err != nil {
			return netip.Addr{}
		}
		return p.Addr()
	}
	return a
}
