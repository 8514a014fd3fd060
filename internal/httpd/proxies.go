package httpd

import (
	"net/http"
	"net/netip"
	"strings"
)

// Proxies are the networks of proxies in front of a listener, whose word counts for the
// address of a client. None: the connection's own address counts, whatever headers say.
type Proxies []netip.Prefix

// Client has next see the client's address as RemoteAddr, with port 0 if that is unknown:
// limits, logs and sessions all take it from there. X-Forwarded-For is read from its end,
// where each proxy adds whom it saw: the first address that is no proxy's is the client's.
// What stands before it anyone may have written.
func (p Proxies) Client(next http.Handler) http.Handler {
	if len(p) == 0 {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a, ok := p.client(r); ok {
			r.RemoteAddr = a.String()
		}
		next.ServeHTTP(w, r)
	})
}

// client is who a trusted proxy says that it is; false: nobody says so. What cannot be read
// ends the search: the last proxy before it is as much as is known.
func (p Proxies) client(r *http.Request) (netip.AddrPort, bool) {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !p.Has(at.Addr()) {
		return netip.AddrPort{}, false
	}
	known := false
	headers := r.Header["X-Forwarded-For"]
	for i := len(headers) - 1; i >= 0; i-- {
		for rest, more := headers[i], true; more; {
			var hop string
			if comma := strings.LastIndexByte(rest, ','); comma >= 0 {
				rest, hop = rest[:comma], rest[comma+1:]
			} else {
				hop, more = rest, false
			}
			a, ok := parseHop(hop)
			if !ok {
				return at, known
			}
			at, known = a, true
			if !p.Has(a.Addr()) {
				return at, true
			}
		}
	}
	return at, known
}

// Has tells whether an address is a proxy's.
func (p Proxies) Has(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	for _, n := range p {
		if n.Contains(a) {
			return true
		}
	}
	return false
}

// parseHop reads an element of X-Forwarded-For: an address, which some proxies write with
// a port, and IPv6 in brackets.
func parseHop(s string) (netip.AddrPort, bool) {
	s = strings.Trim(s, " \t")
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a.Unmap().WithZone(""), 0), true
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port()), true
	}
	if in, ok := strings.CutPrefix(s, "["); ok {
		if a, err := netip.ParseAddr(strings.TrimSuffix(in, "]")); err == nil && a.Is6() && strings.HasSuffix(in, "]") {
			return netip.AddrPortFrom(a.Unmap().WithZone(""), 0), true
		}
	}
	return netip.AddrPort{}, false
}
