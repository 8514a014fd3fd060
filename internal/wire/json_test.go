package wire

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

var jsonSeeds = []string{
	"", " ", "null", "true", "0", "-0", "01", "1e999999", "1.", ".5", `""`, `"a`, `"\u0000"`, `"\ud800"`, `"\x"`, `"a` + "\n" + `"`, `"\\"`, `"\"[{"`, `"\\\"]"`,
	"{}", "[]", "[", "]", "[]]", "{}{}", "[] x", "[],", "{\"a\":1,}", `{"a":1,"a":2}`, `{"a":[{"b":[1,2,{}]}]}`, "{\"a\"}", "[1 2]", "\ufeff{}", "\xff", "\"\xff\"", "\"\xed\xa0\x80\"",
	"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[", `["]]]]]]]]", [[]]]`, "\t\r\n [ ]\n", "\v[]", "nul", "NaN", "Infinity", "'a'", "// x\n1", "\x00", "1\x00",
}

func nested(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }

// realDepth is how deep a valid JSON text is nested, by encoding/json.
func realDepth(b []byte) int {
	d := json.NewDecoder(strings.NewReader(string(b)))
	depth, deepest := 0, 0
	for {
		tok, err := d.Token()
		if err != nil {
			return deepest
		}
		switch tok {
		case json.Delim('['), json.Delim('{'):
			depth++
			deepest = max(deepest, depth)
		case json.Delim(']'), json.Delim('}'):
			depth--
		}
	}
}

// CheckJSON accepts what encoding/json does, if it is valid UTF-8 and not too deep.
func FuzzCheckJSON(f *testing.F) {
	for _, s := range jsonSeeds {
		f.Add([]byte(s))
	}
	for _, n := range []int{MaxDepth - 1, MaxDepth, MaxDepth + 1} {
		f.Add([]byte(nested(n)))
		f.Add([]byte(strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		valid := json.Valid(b)
		want := valid && utf8.Valid(b) && realDepth(b) <= MaxDepth
		if err := CheckJSON(b); (err == nil) != want {
			t.Errorf("%q: %v, acceptable should be %v", b, err, want)
		}
		var v json.RawMessage // with any a number may be too large
		if err := DecodeJSON(b, &v); (err == nil) != want {
			t.Errorf("%q: decoded with %v, acceptable should be %v", b, err, want)
		}
	})
}

func TestCheckJSON(t *testing.T) {
	for _, s := range []string{nested(MaxDepth), "[" + strings.Repeat("[],", 100_000) + "[]]", `"` + strings.Repeat("[", 1000) + `"`, `"\\\"[[["`, " {} \n", "1e999999"} {
		if err := CheckJSON([]byte(s)); err != nil {
			t.Errorf("%.40q: %v", s, err)
		}
	}
	for _, s := range []string{"", nested(MaxDepth + 1), strings.Repeat("[", 10_000_000), "{} {}", "[]x", "\"\xff\"", strings.Repeat(`{"a":`, 40) + "1" + strings.Repeat("}", 40)} {
		if CheckJSON([]byte(s)) == nil {
			t.Errorf("%.40q is accepted", s)
		}
		var v any
		if DecodeJSON([]byte(s), &v) == nil {
			t.Errorf("%.40q is decoded", s)
		}
	}
	var v struct{ A int }
	if err := DecodeJSON([]byte(`{"a":1,"unknown":[2]}`), &v); err != nil || v.A != 1 {
		t.Errorf("with an unknown field: %+v %v", v, err)
	}
	if DecodeJSON([]byte(`{"a":"x"}`), &v) == nil || DecodeJSON([]byte(`[]`), &v) == nil {
		t.Error("another form is decoded")
	}
}
