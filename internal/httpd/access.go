package httpd

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/dialring/dialring/internal/config"
	"github.com/dialring/dialring/internal/wire"
)

// access decides who gets at what an admin listener guards, which is all but health:
//
//	listener     without a key            with a key
//	loopback     everybody who gets there who has the key
//	beyond it    nobody                   who has the key
//
// The key comes as a bearer token, or by the login form, which sets a cookie.
//
// Other pages that the operator's browser has open get there, too, and are kept out by
// more than the key, which a listener on loopback may not have: by the name under which
// they ask (a page that has its own name point to 127.0.0.1 asks under that name), and
// by what browsers say of where a request comes from.
type access struct {
	loopback bool
	key      *[sha256.Size]byte // nil: there is none
	log      *slog.Logger
	origin   *http.CrossOriginProtection
	sessions adminSessions
	loud     rate.Sometimes // how often the log hears of pages that are kept out
	failures AddressLimiter // wrong keys by address
}

// So many wrong keys of an address are told to be wrong and logged, and then one in
// failAgain; the others get 429.
const (
	failBurst = 10
	failAgain = 6 * time.Second
)

func newAccess(addr net.Addr, key string, log *slog.Logger) *access {
	a := &access{log: log, origin: http.NewCrossOriginProtection(), failures: AddressLimiter{newLimiter[netip.Addr](rate.Every(failAgain), failBurst)},
		loud: rate.Sometimes{First: 10, Interval: time.Second}}
	_, port, _ := net.SplitHostPort(addr.String())
	a.loopback = OnLoopback(addr)
	a.sessions.cookie = "dialring_admin_" + port // cookies do not tell ports apart, and a machine may have two locators
	if key != "" {
		d := sha256.Sum256([]byte(key))
		a.key = &d
	}
	if a.key == nil && !a.loopback {
		log.Warn("the admin listener is reachable from other machines and has no key, so it serves health only: set DIALRING_ADMIN_KEY, or let DIALRING_ADMIN_LISTEN be on 127.0.0.1", "event", "admin_without_key", "listen", addr.String())
	}
	return a
}

// OnLoopback tells whether only this machine can reach a listener.
func OnLoopback(addr net.Addr) bool {
	host, _, err := net.SplitHostPort(addr.String())
	return err == nil && config.IsLoopback(host)
}

// AdminCaller is who asks for something that is guarded.
type AdminCaller struct {
	Who string // key, session or loopback

	valid func() bool
}

// Whole is who asks as the log has it, beside services: "admin:session".
func (c *AdminCaller) Whole() string { return "admin:" + c.Who }

// Valid tells whether the caller would be let in now as well: a stream ends when the
// session by which it was opened does.
func (c *AdminCaller) Valid() bool { return c.valid() }

type callerKey struct{}

// AdminCallerOf returns who asks, in a handler of AdminOptions.API.
func AdminCallerOf(ctx context.Context) *AdminCaller { return ctx.Value(callerKey{}).(*AdminCaller) }

// guard lets only those through who may.
func (a *access) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := a.foreign(r); p != nil {
			a.refuse(w, r, p)
			return
		}
		c, p := a.caller(r)
		if p != nil {
			WriteProblem(w, p)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, c)))
	})
}

// pages serves what holds no secret, where a key can be asked for.
func (a *access) pages(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := a.served(r); p != nil {
			a.refuse(w, r, p)
			return
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			WriteProblem(w, wire.NewProblem(http.StatusMethodNotAllowed, wire.CodeMethodNotAllowed, "pages are only read"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// adminPolicy is of what has no policy of its own, such as the list of profiles, which has a style.
const adminPolicy = "default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"

// guarded sets the headers of everything at an admin listener.
func guarded(h http.Header) {
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", adminPolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
}

func (a *access) refuse(w http.ResponseWriter, r *http.Request, p *wire.Problem) {
	a.loud.Do(func() {
		a.log.Warn("a request to the admin listener is refused", "event", "admin_refused", "remote", r.RemoteAddr, "path", r.URL.Path, "why", p.Detail)
	})
	WriteProblem(w, p)
}

// served tells whether there is anything here for a request, whoever sends it.
func (a *access) served(r *http.Request) *wire.Problem {
	if !a.loopback && a.key == nil {
		return wire.NewProblem(http.StatusForbidden, wire.CodeForbidden, "this listener is reachable from other machines and has no key: set DIALRING_ADMIN_KEY, or let DIALRING_ADMIN_LISTEN be on 127.0.0.1 and come through a tunnel")
	}
	if a.loopback && !localHost(r.Host) {
		return wire.NewProblem(http.StatusForbidden, wire.CodeForbidden, "on loopback this listener answers under an IP address or localhost only, not under the name %.100q: another page's name may point here", r.Host)
	}
	return nil
}

// localHost tells whether a Host header is an IP address or localhost.
func localHost(host string) bool {
	name := (&url.URL{Host: host}).Hostname()
	_, err := netip.ParseAddr(name)
	return err == nil || strings.EqualFold(name, "localhost")
}

// foreign tells whether a request must not be heard, whoever sends it, because another
// page may have made the browser send it.
func (a *access) foreign(r *http.Request) *wire.Problem {
	if p := a.served(r); p != nil {
		return p
	}
	site := r.Header.Get("Sec-Fetch-Site")
	if site != "" && site != "same-origin" && site != "none" || a.origin.Check(r) != nil {
		return wire.NewProblem(http.StatusForbidden, wire.CodeForbidden, "the request comes from a page of another origin")
	}
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return nil
	}
	// Forms of other pages cannot send this type.
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return wire.NewProblem(http.StatusUnsupportedMediaType, wire.CodeInvalidRequest, "what changes something takes JSON: send Content-Type: application/json")
	}
	return nil
}

// caller finds out who asks, or why that is nobody who may.
func (a *access) caller(r *http.Request) (*AdminCaller, *wire.Problem) {
	c := &AdminCaller{}
	if a.key == nil {
		c.Who, c.valid = "loopback", func() bool { return true }
		return c, nil
	}
	if key, ok := Bearer(r); ok {
		if p := a.try(r, key, "ask"); p != nil {
			return nil, p
		}
		c.Who, c.valid = "key", func() bool { return true }
		return c, nil
	}
	token := a.sessions.of(r)
	if c.valid = func() bool { return a.sessions.has(token, time.Now()) }; !c.valid() {
		p := wire.NewProblem(http.StatusUnauthorized, wire.CodeUnauthorized, "the admin key (DIALRING_ADMIN_KEY of this process) is missing: send it as Authorization: Bearer <key>, or log in on the dashboard")
		p.Header = [2]string{"WWW-Authenticate", "Bearer"}
		return nil, p
	}
	c.Who = "session"
	return c, nil
}

// try compares a key. Who fails too often waits, but not with the right one: others behind
// the same address (a proxy, a tunnel) may guess, and must not keep the operator out. So
// the limit bounds the log and warns; against guesses the key has to be long and random.
func (a *access) try(r *http.Request, key, act string) *wire.Problem {
	d := sha256.Sum256([]byte(key))
	if subtle.ConstantTimeCompare(d[:], a.key[:]) == 1 {
		return nil
	}
	if !a.failures.of(addressOf(r)).Allow() {
		p := wire.NewProblem(http.StatusTooManyRequests, wire.CodeRateLimited, "too many wrong keys from this address; wait some seconds")
		p.RetryAfter = int(failAgain / time.Second)
		return p
	}
	a.log.Warn("a wrong admin key", "event", "audit", "act", act, "target", Cut(r.URL.Path), "who", "", "remote", r.RemoteAddr, "result", string(wire.CodeUnauthorized))
	p := wire.NewProblem(http.StatusUnauthorized, wire.CodeUnauthorized, "that is not the admin key (DIALRING_ADMIN_KEY of this process; keys of services are not good here)")
	p.Header = [2]string{"WWW-Authenticate", "Bearer"}
	return p
}
