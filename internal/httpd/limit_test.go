package httpd

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/dialring/dialring/internal/wire"
)

// ask asks once from an address and tells whether it may.
func ask(l AddressLimiter, addr string) bool {
	r := httptest.NewRequest("GET", "/", nil)
	r.RemoteAddr = addr
	return l.Check(r) == nil
}

// exhaust asks from an address until it is refused, and returns how often it
// was allowed.
func exhaust(t *testing.T, l AddressLimiter, addr string) int {
	t.Helper()
	for n := range 100_000 {
		if !ask(l, addr) {
			return n
		}
	}
	t.Fatalf("%s is never refused", addr)
	return 0
}

func TestLimiter(t *testing.T) {
	l := NewAddressLimiter(2)
	if n := exhaust(t, l, "192.0.2.1:1"); n < 8 {
		t.Errorf("refused after %d, the burst is 8", n)
	}
	// The rate is low: what is refused stays so for half a second. Where another
	// address counts as the same one, its first ask is refused.
	for addr, same := range map[string]bool{
		"192.0.2.2:1":          false,
		"[2001:db8::1]:1":      false,
		"192.0.2.1:2":          true,
		"[::ffff:192.0.2.1]:3": true,
		"[::ffff:192.0.2.9]:3": false,
		"[2001:db8:0:1::1]:1":  false,
		"[fe80::1%eth0]:1":     false,
		"":                     false,
	} {
		exhaust(t, l, "192.0.2.1:1")
		if got := !ask(l, addr); got != same {
			t.Errorf("%q counts as 192.0.2.1: %v, want %v", addr, got, same)
		}
	}
	exhaust(t, l, "[2001:db8:1:1::1]:1")
	if ask(l, "[2001:db8:1:1:ffff:ffff:ffff:ffff]:9") {
		t.Error("another address of the same /64 has a share of its own")
	}
	if !ask(l, "[2001:db8:1:2::1]:1") {
		t.Error("another /64 does not have a share of its own")
	}
}

func TestLimiterAnswer(t *testing.T) {
	l := NewAddressLimiter(1)
	r := httptest.NewRequest("GET", "/", nil)
	var p *wire.Problem
	for i := 0; p == nil && i < 100_000; i++ {
		r.Header.Set("X-Forwarded-For", fmt.Sprintf("203.0.113.%d", i%256)) // changes nothing
		r.Header.Set("Forwarded", fmt.Sprintf("for=203.0.113.%d", i%256))
		p = l.Check(r)
	}
	if p == nil || p.Status != http.StatusTooManyRequests || p.Code != wire.CodeRateLimited || p.RetryAfter < 1 {
		t.Errorf("refused with %+v", p)
	}
	for _, n := range []int{0, -1} {
		free := NewAddressLimiter(n)
		for range 1000 {
			if !ask(free, "192.0.2.1:1") {
				t.Fatalf("a limit of %d refuses", n)
			}
		}
	}
}

// The book of addresses is bounded: those that do not fit share one limit, and
// those that have not asked for long make room.
func TestLimiterBook(t *testing.T) {
	l := NewAddressLimiter(1)
	drained := rate.NewLimiter(0, l.burst) // of an address that asks without end
	if !drained.AllowN(time.Now(), l.burst) {
		t.Fatal("not drained")
	}
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}) }
	for i := range maxKeys {
		l.by[addr(i)] = drained
	}
	if got := l.of(addr(maxKeys)); got != l.rest || len(l.by) != maxKeys {
		t.Errorf("one more address has a limit of its own: the book has %d", len(l.by))
	}
	if l.of(addr(5)) != drained {
		t.Error("an address in the book lost its limit")
	}
	for i := range maxKeys / 2 {
		l.by[addr(i)] = rate.NewLimiter(l.rate, l.burst) // has not asked for long
	}
	if l.of(addr(maxKeys)) != l.rest {
		t.Error("the whole book is looked through for each new address")
	}
	l.swept = time.Time{} // a second later
	if got := l.of(addr(maxKeys)); got == l.rest || got == drained {
		t.Error("no room was made")
	}
	if n := len(l.by); n != maxKeys/2+1 {
		t.Errorf("the book has %d addresses, want %d", n, maxKeys/2+1)
	}
}

func TestOrigins(t *testing.T) {
	list := Origins{Allowed: []string{"https://app.example.com", "http://localhost:3000"}}
	dev := Origins{Dev: true}
	for origin, want := range map[string]struct{ list, dev bool }{
		"https://app.example.com":                   {true, false},
		"http://localhost:3000":                     {true, true},
		"http://localhost":                          {false, true},
		"https://localhost:8443":                    {false, true},
		"http://127.0.0.1:5173":                     {false, true},
		"http://[::1]:5173":                         {false, true},
		"null":                                      {},
		"":                                          {},
		"https://app.example.com:443":               {},
		"https://app.example.com:8443":              {},
		"http://app.example.com":                    {},
		"https://app.example.com/":                  {},
		"https://app.example.com.":                  {},
		"https://App.example.com":                   {},
		"HTTPS://app.example.com":                   {},
		"https://app.example.com.evil.com":          {},
		"https://evilapp.example.com":               {},
		"https://evil.app.example.com":              {},
		"https://app.example.com@evil.com":          {},
		"https://evil.com@app.example.com":          {},
		"https://app.example.com ":                  {},
		"https://app.example.com, https://evil.com": {},
		"http://localhost.evil.com":                 {},
		"http://evil.com/localhost":                 {},
		"http://localhost@evil.com":                 {},
		"http://u@localhost":                        {},
		"http://localhost:3000/":                    {},
		"http://localhost#":                         {},
		"http://127.0.0.1.evil.com":                 {},
		"http://10.0.0.1":                           {},
		"http://0.0.0.0":                            {},
		"file://localhost":                          {},
		"file://":                                   {},
		"chrome-extension://localhost":              {},
		"localhost":                                 {},
		"*":                                         {},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header["Origin"] = []string{origin}
		for name, c := range map[string]struct {
			o    Origins
			want bool
		}{"the list": {list, want.list}, "development mode": {dev, want.dev}, "nothing": {Origins{}, false}} {
			if got := c.o.Allow(r); got != c.want {
				t.Errorf("%s allows %q: %v, want %v", name, origin, got, c.want)
			}
			h := http.Header{}
			c.o.CORS(h, r)
			if got := h.Get("Access-Control-Allow-Origin"); (got != "") != c.want || got != "" && got != origin || h.Get("Vary") != "Origin" {
				t.Errorf("%s, %q: headers %v", name, origin, h)
			}
			if h.Get("Access-Control-Allow-Credentials") != "" {
				t.Error("cookies are allowed")
			}
		}
	}
	r := httptest.NewRequest("GET", "/", nil)
	if !list.Allow(r) || !(Origins{}).Allow(r) {
		t.Error("a request of no page is refused")
	}
	r.Header["Origin"] = []string{"https://app.example.com", "https://evil.com"}
	if list.Allow(r) {
		t.Error("two origins are allowed")
	}
}
