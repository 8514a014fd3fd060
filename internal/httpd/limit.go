package httpd

import (
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/dialring/dialring/internal/wire"
)

// Limiter limits how often each key may ask. It may be used concurrently. The zero value
// has no limit.
type Limiter[K comparable] struct {
	rate  rate.Limit
	burst int

	mu    sync.Mutex
	by    map[K]*rate.Limiter
	rest  *rate.Limiter // of all keys together that find the book full
	swept time.Time     // when the idle ones were last looked for
}

// maxKeys bounds the memory of a Limiter, to about 20 MiB beside the keys.
const maxKeys = 100_000

// NewLimiter allows perSecond asks a second and key, with bursts of at most burst, or
// of four times perSecond if that is more. perSecond of 0 or less: no limit.
func NewLimiter[K comparable](perSecond, burst int) *Limiter[K] {
	if perSecond <= 0 {
		return &Limiter[K]{}
	}
	return newLimiter[K](rate.Limit(perSecond), max(burst, 4*perSecond))
}

func newLimiter[K comparable](r rate.Limit, burst int) *Limiter[K] {
	return &Limiter[K]{rate: r, burst: burst, by: map[K]*rate.Limiter{}, rest: rate.NewLimiter(r, burst)}
}

// Allow counts one ask of a key, and tells whether it may.
func (l *Limiter[K]) Allow(k K) bool { return l.rate == 0 || l.of(k).Allow() }

// PerSecond is the limit; 0: none.
func (l *Limiter[K]) PerSecond() int { return int(l.rate) }

func (l *Limiter[K]) of(k K) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if x := l.by[k]; x != nil {
		return x
	}
	if now := time.Now(); len(l.by) >= maxKeys && now.Sub(l.swept) >= time.Second {
		l.swept = now
		for k, x := range l.by { // those with a full bucket have asked nothing for seconds
			if x.TokensAt(now) >= float64(l.burst) {
				delete(l.by, k)
			}
		}
	}
	if len(l.by) >= maxKeys {
		return l.rest
	}
	x := rate.NewLimiter(l.rate, l.burst)
	l.by[k] = x
	return x
}

// AddressLimiter limits how often one address may ask. An IPv6 network of 64 bits
// counts as one address.
type AddressLimiter struct{ *Limiter[netip.Addr] }

// NewAddressLimiter is NewLimiter for addresses, with bursts of four times perSecond.
func NewAddressLimiter(perSecond int) AddressLimiter {
	return AddressLimiter{NewLimiter[netip.Addr](perSecond, 0)}
}

// Check returns the problem to answer with when the request's address has
// asked too often.
func (l AddressLimiter) Check(r *http.Request) *wire.Problem {
	if l.Allow(addressOf(r)) {
		return nil
	}
	return wire.NewProblem(http.StatusTooManyRequests, wire.CodeRateLimited, "too many requests from this address; at most %d a second", l.PerSecond())
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
