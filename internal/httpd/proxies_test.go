package httpd

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
)

func TestProxies(t *testing.T) {
	proxies := Proxies{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("fd00::/8")}
	for _, c := range []struct {
		name, remote string
		headers      []string
		want         string
	}{
		{"no header", "10.0.0.1:9", nil, "10.0.0.1:9"},
		{"a client by itself", "203.0.113.9:9", nil, "203.0.113.9:9"},
		{"a client that claims another address", "203.0.113.9:9", []string{"198.51.100.1"}, "203.0.113.9:9"},
		{"a client that claims a proxy's address", "203.0.113.9:9", []string{"10.0.0.1"}, "203.0.113.9:9"},
		{"one proxy", "10.0.0.1:9", []string{"203.0.113.9"}, "203.0.113.9:0"},
		{"one proxy, by address", "192.0.2.1:9", []string{"203.0.113.9"}, "203.0.113.9:0"},
		{"next to that address", "192.0.2.2:9", []string{"203.0.113.9"}, "192.0.2.2:9"},
		{"a proxy that appends", "10.0.0.1:9", []string{"198.51.100.1, 203.0.113.9"}, "203.0.113.9:0"},
		{"two proxies", "10.0.0.1:9", []string{"198.51.100.1, 203.0.113.9, 10.0.0.2"}, "203.0.113.9:0"},
		{"two proxies, a header each", "10.0.0.1:9", []string{"198.51.100.1", "203.0.113.9", "10.0.0.2"}, "203.0.113.9:0"},
		{"spoofed as a proxy", "10.0.0.1:9", []string{"198.51.100.1, 10.0.0.7, 203.0.113.9"}, "203.0.113.9:0"},
		{"a client inside", "10.0.0.1:9", []string{"10.0.0.9, 10.0.0.2"}, "10.0.0.9:0"},
		{"with a port", "10.0.0.1:9", []string{"203.0.113.9:4711"}, "203.0.113.9:4711"},
		{"IPv6", "[fd00::1]:9", []string{"2001:db8::9"}, "[2001:db8::9]:0"},
		{"IPv6 in brackets", "[fd00::1]:9", []string{"[2001:db8::9]"}, "[2001:db8::9]:0"},
		{"IPv6 with a port", "[fd00::1]:9", []string{"[2001:db8::9]:4711"}, "[2001:db8::9]:4711"},
		{"IPv6 with a zone", "[fd00::1%eth0]:9", []string{"2001:db8::9%eth0"}, "[2001:db8::9]:0"},
		{"a mapped proxy", "[::ffff:10.0.0.1]:9", []string{"203.0.113.9"}, "203.0.113.9:0"},
		{"a mapped client", "10.0.0.1:9", []string{"::ffff:203.0.113.9"}, "203.0.113.9:0"},
		{"blanks", "10.0.0.1:9", []string{" 203.0.113.9\t,  10.0.0.2 "}, "203.0.113.9:0"},
		{"garbage", "10.0.0.1:9", []string{"203.0.113.9, unknown"}, "10.0.0.1:9"},
		{"garbage before a proxy", "10.0.0.1:9", []string{"_hidden, 10.0.0.2"}, "10.0.0.2:0"},
		{"garbage that a client sent", "10.0.0.1:9", []string{"<script>, 203.0.113.9"}, "203.0.113.9:0"},
		{"empty", "10.0.0.1:9", []string{""}, "10.0.0.1:9"},
		{"an empty end", "10.0.0.1:9", []string{"203.0.113.9,"}, "10.0.0.1:9"},
		{"half a bracket", "10.0.0.1:9", []string{"[2001:db8::9"}, "10.0.0.1:9"},
		{"brackets around IPv4", "10.0.0.1:9", []string{"[203.0.113.9]"}, "10.0.0.1:9"},
		{"a network", "10.0.0.1:9", []string{"203.0.113.0/24"}, "10.0.0.1:9"},
		{"octal", "10.0.0.1:9", []string{"0203.0.113.9"}, "10.0.0.1:9"},
		{"no connection of TCP", "@", []string{"203.0.113.9"}, "@"},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = c.remote
		r.Header["X-Forwarded-For"] = c.headers
		r.Header.Set("Forwarded", "for=198.51.100.7") // never counts
		r.Header.Set("X-Real-Ip", "198.51.100.7")
		r.Header.Set("True-Client-Ip", "198.51.100.7")
		got := ""
		see := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.RemoteAddr })
		proxies.Client(see).ServeHTTP(nil, r)
		if got != c.want {
			t.Errorf("%s: %q from %s is %s, want %s", c.name, c.headers, c.remote, got, c.want)
		}
		if _, err := netip.ParseAddrPort(got); err != nil && c.remote != "@" {
			t.Errorf("%s: %q has no port", c.name, got)
		}
		r.RemoteAddr = c.remote
		Proxies(nil).Client(see).ServeHTTP(nil, r)
		if got != c.remote {
			t.Errorf("%s: without trusted proxies %s is %s", c.name, c.remote, got)
		}
	}
}

// Whatever stands in the header before what the proxy wrote, the client's limit is the same.
func FuzzProxies(f *testing.F) {
	f.Add("203.0.113.7", "10.0.0.1")
	f.Add("", ",")
	f.Add("10.0.0.2, [::1]:1", "%")
	p := Proxies{netip.MustParsePrefix("10.0.0.0/8")}
	f.Fuzz(func(t *testing.T, first, second string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = "10.0.0.1:9"
		r.Header["X-Forwarded-For"] = []string{first, second + ", 203.0.113.9"}
		p.Client(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if addressOf(r) != netip.MustParseAddr("203.0.113.9") {
				t.Errorf("%q, %q: counted as %s", first, second, addressOf(r))
			}
		})).ServeHTTP(nil, r)
	})
}
