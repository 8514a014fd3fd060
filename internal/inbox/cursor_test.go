package inbox

import (
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/dialring/dialring/internal/wire"
)

func TestCursorText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Cursor{rapid.Uint64().Draw(t, "seq"), rapid.Uint64().Draw(t, "pos"), rapid.Uint64().Draw(t, "tag")}
		s := c.String()
		if err := wire.CheckCursor(s); err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		got, err := ParseCursor(s)
		if err != nil || got != c {
			t.Fatalf("%q is read as %+v, %v", s, got, err)
		}
	})
	if s := (Cursor{math.MaxUint64, math.MaxUint64, math.MaxUint64}).String(); len(s) > wire.MaxCursor {
		t.Errorf("a cursor of %d bytes", len(s))
	}
	if s := (Cursor{}).String(); s != "0" {
		t.Errorf("the start of a log is %q", s)
	}
}

// Chains of other users, or with other messages, have other tags.
func TestCursorTags(t *testing.T) {
	a := Cursor{}.next("alice", "1", 1).next("alice", "2", 2)
	for name, b := range map[string]Cursor{
		"user":    Cursor{}.next("bob", "1", 1).next("bob", "2", 2),
		"message": Cursor{}.next("alice", "1", 1).next("alice", "3", 2),
		"before":  Cursor{}.next("alice", "0", 1).next("alice", "2", 2),
	} {
		if a.Tag == b.Tag || a.Seq != b.Seq {
			t.Errorf("another %s: %+v and %+v", name, a, b)
		}
	}
	if b := (Cursor{}).next("alice", "1", 7).next("alice", "2", 9); b.Tag != a.Tag {
		t.Error("the tag depends on the place")
	}
}

func FuzzParseCursor(f *testing.F) {
	for _, s := range []string{"0", "1-2-3", "", "-", "--", "1-2", "01-2-3", "+1-2-3", "A-2-3", "zzzzzzzzzzzzzz-1-1", "1-2-3-4", "0-0-0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseCursor(s)
		if err == nil && c.String() != s {
			t.Errorf("%q is read as %q", s, c.String())
		}
	})
}

// No two ids are encoded alike, and no byte of an encoding means anything to NATS.
func FuzzEncode(f *testing.F) {
	for _, s := range []string{"a", "*", ">", "a.b", "é", "\x00", " "} {
		f.Add(s, "a")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		x, y := encode(a), encode(b)
		if a != b && x == y {
			t.Errorf("%q and %q are both %q", a, b, x)
		}
		if strings.ContainsAny(x, ".*> \t\r\n$") || a != "" && len(x) < 2 {
			t.Errorf("%q is %q", a, x)
		}
		if Key(a, b, "") == Key(a, "", b) && b != "" {
			t.Errorf("key and id %q of %q meet", b, a)
		}
	})
}

func FuzzMeta(f *testing.F) {
	f.Add((&Entry{Cursor: Cursor{1, 2, 3}, ID: "x", Time: time.UnixMilli(5)}).Meta())
	f.Add("1 1 1 1 1 1 j id")
	f.Fuzz(func(t *testing.T, s string) {
		e, err := ParseMeta(s, 9, nil)
		if err != nil || !utf8.ValidString(s) {
			return
		}
		again, err := ParseMeta(e.Meta(), 9, nil)
		if err != nil || !same(again, e) {
			t.Errorf("%q: %+v, then %+v, %v", s, e, again, err)
		}
	})
}

func TestMeta(t *testing.T) {
	now := time.Now().Truncate(time.Millisecond)
	for _, e := range []Entry{
		{Cursor: Cursor{1, 2, 3}, Prev: 4, ID: "abc-1", Time: now, JSON: true},
		{Cursor: Cursor{math.MaxUint64, 2, math.MaxUint64}, Prev: math.MaxUint64, ID: "x", Time: now, TTL: 1500 * time.Millisecond},
	} {
		got, err := ParseMeta(e.Meta(), e.Pos, nil)
		if err != nil || !same(got, e) {
			t.Errorf("%q: %+v, %v", e.Meta(), got, err)
		}
	}
	for _, s := range []string{"", "2 1 1 1 1 1 j id", "1 1 1 1 1 1 x id", "1 1 1 1 1 1 j", "1 1 ! 1 1 1 j id"} {
		if _, err := ParseMeta(s, 1, nil); err == nil {
			t.Errorf("%q was read", s)
		}
	}
}
