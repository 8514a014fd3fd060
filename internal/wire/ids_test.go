package wire

import (
	"net/url"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestCheckIDs(t *testing.T) {
	for name, c := range map[string]struct {
		check    func(string) error
		good, no []string
	}{
		"user": {CheckUser,
			[]string{"a", "a b", "a/b", "*", ">", "a.b", "日本", "👩‍👩‍👧", "\u202e", strings.Repeat("a", 128), strings.Repeat("é", 64), "%2F", "<&\"\\", " "},
			[]string{"", strings.Repeat("a", 129), strings.Repeat("é", 65), "\x00", "a\nb", "\x1f", "a\x7f", "\u0080", "日\u009f本", "日\n", "\xff", "a\xc3", "\xed\xa0\x80"}},
		"device": {CheckDevice,
			[]string{"a", "Web_1.2-x", strings.Repeat("Z", 64), ".", "-"},
			[]string{"", strings.Repeat("a", 65), "a b", "a/b", "é", "a\x00", "*", ">", "a:b"}},
		"node": {CheckNode,
			[]string{"a", "ws-1", "0", "-", strings.Repeat("a", 63)},
			[]string{"", strings.Repeat("a", 64), "A", "a.b", "a_b", "ws 1", "*", ">", "é"}},
		"cursor": {CheckCursor,
			[]string{"0", "a~!", strings.Repeat("x", 64)},
			[]string{"", strings.Repeat("x", 65), "a b", "\x7f", "é", "a\n"}},
	} {
		for _, id := range c.good {
			if err := c.check(id); err != nil {
				t.Errorf("%s %q: %v", name, id, err)
			}
		}
		for _, id := range c.no {
			if c.check(id) == nil {
				t.Errorf("%s %q is accepted", name, id)
			}
		}
	}
}

// The checks agree with the words of the contract, for any string.
func TestCheckIDsProperties(t *testing.T) {
	const lower, digits = "abcdefghijklmnopqrstuvwxyz", "0123456789"
	any := rapid.OneOf(rapid.String(), rapid.StringN(-1, -1, 140), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }),
		rapid.StringMatching(`[A-Za-z0-9._-]{0,70}`), rapid.StringMatching(`[a-z0-9-]{0,70}.?`), rapid.StringMatching(`[ -~]{120,130}`))
	rapid.Check(t, func(t *rapid.T) {
		s := any.Draw(t, "id")
		user := len(s) >= 1 && len(s) <= 128 && utf8.ValidString(s) && strings.IndexFunc(s, unicode.IsControl) < 0
		device := len(s) >= 1 && len(s) <= 64 && onlyOf(s, lower+strings.ToUpper(lower)+digits+"._-")
		node := len(s) >= 1 && len(s) <= 63 && onlyOf(s, lower+digits+"-")
		if got := CheckUser(s) == nil; got != user {
			t.Errorf("user %q: %v, want %v", s, got, user)
		}
		if got := CheckDevice(s) == nil; got != device {
			t.Errorf("device %q: %v, want %v", s, got, device)
		}
		if got := CheckNode(s) == nil; got != node {
			t.Errorf("node %q: %v, want %v", s, got, node)
		}
	})
}

// onlyOf tells whether s consists of these characters.
func onlyOf(s, allowed string) bool { return strings.Trim(s, allowed) == "" }

func TestPathUser(t *testing.T) {
	for path, want := range map[string]string{
		"/v1/push/alice":                         "alice",
		"/v1/push/a%2Fb":                         "a/b",
		"/v1/push/a%2fb":                         "a/b",
		"/v1/push/a%252Fb":                       "a%2Fb",
		"/v1/push/a%25252Fb":                     "a%252Fb",
		"/v1/push/a+b":                           "a+b",
		"/v1/push/a%20b":                         "a b",
		"/v1/push/%2E%2E":                        "..",
		"/v1/push/%E6%97%A5":                     "日",
		"/v1/push/日":                             "日",
		"/v1/push/*":                             "*",
		"/v1/push/%3E":                           ">",
		"/v1/push/a%3Fb":                         "a?b",
		"/v1/push/a;b":                           "a;b",
		"/v1/push/":                              "",
		"/v1/push/a/b":                           "",
		"/v1/push//":                             "",
		"/v1/push//a":                            "",
		"/v1/push/a/":                            "",
		"/v1/push/%00":                           "",
		"/v1/push/%0A":                           "",
		"/v1/push/%C3":                           "",
		"/v1/push/%FF":                           "",
		"/v1/push/%C2%80":                        "",
		"/v1/other/alice":                        "",
		"/v1/push":                               "",
		"/v1/push/" + strings.Repeat("%61", 128): strings.Repeat("a", 128),
		"/v1/push/" + strings.Repeat("%61", 129): "",
	} {
		u, err := url.ParseRequestURI(path) // as net/http reads a request line
		if err != nil {
			t.Fatal(err)
		}
		got, err := PathUser(u, "/v1/push/", "")
		if want == "" && err == nil || want != "" && (err != nil || got != want) {
			t.Errorf("%s: %q %v, want %q", path, got, err, want)
		}
	}
	for path, want := range map[string]string{
		"/v1/users/alice/sessions":        "alice",
		"/v1/users/sessions/sessions":     "sessions",
		"/v1/users/a%2Fsessions/sessions": "a/sessions",
		"/v1/users/a/sessions/sessions":   "",
		"/v1/users/sessions":              "",
		"/v1/users//sessions":             "",
		"/v1/users/alice":                 "",
		"/v1/users/alice%2Fsessions":      "",
		"/v1/users/alice/sessions/":       "",
	} {
		u, err := url.ParseRequestURI(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := PathUser(u, "/v1/users/", "/sessions")
		if want == "" && err == nil || want != "" && (err != nil || got != want) {
			t.Errorf("%s: %q %v, want %q", path, got, err, want)
		}
	}
	// A path that was put together by hand may have escapes that are none.
	for _, raw := range []string{"/v1/push/%", "/v1/push/%2", "/v1/push/%zz", "/v1/push/a%2"} {
		if got, err := PathUser(&url.URL{Path: raw, RawPath: raw}, "/v1/push/", ""); err == nil && strings.Contains(got, "/") {
			t.Errorf("%s: %q", raw, got)
		}
	}
}

// Any user id survives the path of a request, exactly once encoded.
func TestPathUserProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.StringN(1, -1, 128).Draw(t, "user")
		u, err := url.ParseRequestURI("/v1/push/" + url.PathEscape(id) + "?device=x")
		if err != nil {
			t.Fatal(err)
		}
		got, err := PathUser(u, "/v1/push/", "")
		if (err == nil) != (CheckUser(id) == nil) || err == nil && got != id {
			t.Fatalf("%q: %q %v", id, got, err)
		}
	})
}
