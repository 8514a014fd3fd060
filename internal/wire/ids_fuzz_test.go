package wire

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// FuzzIDs has any text as each kind of id, against what the contract says of it.
func FuzzIDs(f *testing.F) {
	for _, s := range []string{"", "alice", "a b", "a\x00", "\u0085", "\u200b", "\ufffd", "\xff", "é", "*", ">", "a.b", "web-1_A.b", strings.Repeat("a", 63), strings.Repeat("a", 64),
		strings.Repeat("é", 64), strings.Repeat("a", 129), "ws-1", "WS-1", "0", "\u202e", "~", "\x7f"} {
		f.Add(s)
	}
	only := func(s string, most int, ok func(c byte) bool) bool {
		for i := range len(s) {
			if !ok(s[i]) {
				return false
			}
		}
		return len(s) >= 1 && len(s) <= most
	}
	lower := func(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' }
	f.Fuzz(func(t *testing.T, s string) {
		for name, x := range map[string]struct {
			err  error
			good bool
		}{
			"user": {CheckUser(s), len(s) >= 1 && len(s) <= 128 && utf8.ValidString(s) && strings.IndexFunc(s, unicode.IsControl) < 0},
			"device": {CheckDevice(s), only(s, 64, func(c byte) bool {
				return lower(c) || c >= 'A' && c <= 'Z' || c == '.' || c == '_'
			})},
			"node":   {CheckNode(s), only(s, 63, lower)},
			"cursor": {CheckCursor(s), only(s, 64, func(c byte) bool { return c > ' ' && c < 0x7f })},
		} {
			if (x.err == nil) != x.good {
				t.Errorf("%q as the id of a %s: %v", s, name, x.err)
			}
			if x.err != nil && (len(x.err.Error()) > 200 || strings.ContainsFunc(x.err.Error(), unicode.IsControl)) {
				t.Errorf("the error is %q", x.err)
			}
		}
		if id := HostID(s, MaxNodeID); id != "" && CheckNode(id) != nil {
			t.Errorf("host %q makes the node id %q", s, id)
		}
		if utf8.ValidString(s) {
			want, err := http.NewRequest("GET", "http://x/v1/users/"+url.PathEscape(s)+"/sessions", nil)
			if err != nil {
				t.Fatal(err)
			}
			id, err := PathUser(want.URL, "/v1/users/", "/sessions")
			if CheckUser(s) == nil && (id != s || err != nil) || CheckUser(s) != nil && err == nil {
				t.Errorf("user %q, encoded in a path, is read as %q, %v", s, id, err)
			}
		}
	})
}

// FuzzPath has any path, as it comes over the network: it is decoded exactly once, and
// PathUser and PathIDs see the same.
func FuzzPath(f *testing.F) {
	for _, s := range []string{"alice", "a%2Fb", "a%252Fb", "a/b", "%00", "%zz", "%", "a%", "%e2%82", "%E2%82%AC", "€", "a%20b", "a+b", "%2e%2e", "..", "*", "%2A", ";a=b", "a%3Fb", "//", "", "%ff", "%25", "a%2fb%2Fc", "%F0%9F%98%80", "é%2Fb", `"%2F"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if strings.ContainsAny(s, "?#") {
			return // ends the path
		}
		u, err := url.ParseRequestURI("/v1/users/" + s + "/sessions")
		if err != nil {
			return // net/http answers it
		}
		// Decoded by hand, once.
		want, ok := make([]byte, 0, len(s)), !strings.Contains(s, "/")
		for i := 0; i < len(s); i++ {
			if s[i] != '%' {
				want = append(want, s[i])
				continue
			}
			c := strings.IndexByte("0123456789abcdef", lowerHex(s[i+1]))<<4 | strings.IndexByte("0123456789abcdef", lowerHex(s[i+2]))
			want, i = append(want, byte(c)), i+2
		}
		id, err := PathUser(u, "/v1/users/", "/sessions")
		switch {
		case (err == nil) != (ok && CheckUser(string(want)) == nil):
			t.Fatalf("%q: %q, %v", s, id, err)
		case err == nil && id != string(want):
			t.Fatalf("%q is decoded to %q, want %q", s, id, want)
		case err == nil:
			ids, err := PathIDs(u, "/v1/users/")
			if err != nil || len(ids) != 2 || ids[0] != id || ids[1] != "sessions" {
				t.Fatalf("%q: PathIDs gives %q, %v, and PathUser %q", s, ids, err, id)
			}
			// Encoding it again names the same user, and no other encoding is needed.
			again, err := url.ParseRequestURI("/v1/users/" + url.PathEscape(id) + "/sessions")
			if err != nil {
				t.Fatal(err)
			}
			if back, err := PathUser(again, "/v1/users/", "/sessions"); back != id || err != nil {
				t.Fatalf("%q, encoded again, is %q, %v", id, back, err)
			}
		}
	})
}

func lowerHex(c byte) byte {
	if c >= 'A' && c <= 'F' {
		return c | 0x20
	}
	return c
}
