package wire

import (
	"bytes"
	"encoding/json"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// golden is a frame of the contract as it is on the wire.
type golden struct {
	Name  string          `json:"name"`
	From  string          `json:"from"` // node or client
	Frame json.RawMessage `json:"frame"`
}

func goldenFrames(t *testing.T) []golden {
	t.Helper()
	b, err := os.ReadFile("testdata/frames.json")
	if err != nil {
		t.Fatal(err)
	}
	var list []golden
	if err := json.Unmarshal(b, &list); err != nil {
		t.Fatal(err)
	}
	return list
}

// typed are the types of this package for whole frames. Frame holds the fields of what
// clients send, but for a send.
var typed = map[string]func() any{
	"node welcome": func() any { return &Welcome{} },
	"node message": func() any { return &Message{} },
	"node skip":    func() any { return &Skip{} },
	"node resumed": func() any { return &Resumed{} },
	"node ack":     func() any { return &SendAck{} },
	"node error":   func() any { return &ErrorFrame{} },
	"node move":    func() any { return &Move{} },
	"node pong":    func() any { return &Pong{} },
	"client send":  func() any { return &Send{} },
	"client":       func() any { return &Frame{} },
}

// Every frame type of the contract has an example, which Go reads and writes
// without a change.
func TestGoldenFrames(t *testing.T) {
	want := []string{"node welcome", "node message", "node skip", "node resumed", "node ack", "node error", "node move", "node pong",
		"client ack", "client resume", "client send", "client ping"}
	for _, g := range goldenFrames(t) {
		f, err := ParseFrame(g.Frame)
		if err != nil {
			t.Errorf("%s: %v", g.Name, err)
			continue
		}
		kind := g.From + " " + f.Type
		want = slices.DeleteFunc(want, func(s string) bool { return s == kind })
		make := typed[kind]
		if make == nil {
			make = typed[g.From]
		}
		if make == nil {
			t.Errorf("%s: no type for a %s", g.Name, kind)
			continue
		}
		v := make()
		if err := json.Unmarshal(g.Frame, v); err != nil {
			t.Errorf("%s: %v", g.Name, err)
			continue
		}
		again, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		var before, after map[string]any
		_ = json.Unmarshal(g.Frame, &before)
		_ = json.Unmarshal(again, &after)
		if !reflect.DeepEqual(before, after) {
			t.Errorf("%s:\n %s\nbecomes\n %s", g.Name, g.Frame, again)
		}
	}
	if len(want) > 0 {
		t.Errorf("no example of %q", want)
	}
}

func TestParseFrame(t *testing.T) {
	for _, s := range []string{"", "null", "[]", "5", `"ping"`, "{}", `{"type":""}`, `{"type":5}`, `{"type":"ping"} x`, `{"type":"ping"}{"type":"ping"}`,
		`{"type":"ack","cursor":5}`, `{"type":"a","data":` + nested(MaxDepth) + `}`, "{\"type\":\"\xff\"}"} {
		if f, err := ParseFrame([]byte(s)); err == nil {
			t.Errorf("%s is read as %+v", s, f)
		}
	}
	for _, s := range []string{`{"type":"ping"}`, `{"type":"of the future","x":1}`, ` {"type":"send","data":` + nested(MaxDepth-1) + `} `} {
		if _, err := ParseFrame([]byte(s)); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
	// A payload is not re-encoded.
	const data = `{"b":1.0,"a":1e2,"n":12345678901234567890,"s":"\u00e9<\/"}`
	if f, err := ParseFrame([]byte(`{"type":"send","data":` + data + `}`)); err != nil || string(f.Data) != data {
		t.Errorf("data became %s (%v)", f.Data, err)
	}
}

func TestCheckRef(t *testing.T) {
	for _, ref := range []string{"", `"a"`, "1", "-1.5e3", `"` + strings.Repeat("a", 126) + `"`} {
		if err := CheckRef(json.RawMessage(ref)); err != nil {
			t.Errorf("%s: %v", ref, err)
		}
	}
	for _, ref := range []string{"{}", "[]", `{"a":1}`, `"` + strings.Repeat("a", 127) + `"`} {
		if CheckRef(json.RawMessage(ref)) == nil {
			t.Errorf("%s is accepted", ref)
		}
	}
}

// What is written by hand reads back as the contract's type.
func TestAppendMessage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.StringMatching(`[0-9a-z-]{1,30}`).Draw(t, "id")
		at := time.UnixMilli(rapid.Int64Range(0, 4e12).Draw(t, "ms")).In(time.FixedZone("x", rapid.IntRange(-12, 14).Draw(t, "zone")*3600))
		data := rapid.SliceOfN(rapid.Byte(), 1, 100).Draw(t, "data")
		isJSON := rapid.Bool().Draw(t, "json")
		if isJSON {
			data, _ = json.Marshal(map[string]any{"x": data, "y": 1.5})
		}
		b := AppendMessage([]byte("before"), id, Stamp(at), "", 0, "", data, isJSON)
		frame, ok := bytes.CutPrefix(b, []byte("before"))
		if !ok {
			t.Fatalf("what was there is gone: %s", b)
		}
		var m Message
		d := json.NewDecoder(bytes.NewReader(frame))
		d.DisallowUnknownFields()
		if err := d.Decode(&m); err != nil || d.More() {
			t.Fatalf("%s: %v", frame, err)
		}
		want := Message{Type: TypeMessage, ID: id, Time: at.UTC()}
		if isJSON {
			want.Data = data
		} else {
			want.DataB64 = data
		}
		if !m.Time.Equal(want.Time) || m.Time.Location() != time.UTC {
			t.Fatalf("time %s, want %s", m.Time, want.Time)
		}
		m.Time = want.Time
		if !reflect.DeepEqual(m, want) {
			t.Fatalf("%s reads as\n%+v, want\n%+v", frame, m, want)
		}
	})
}

// An empty payload that is no JSON is still a payload.
func TestAppendMessageEmpty(t *testing.T) {
	b := AppendMessage(nil, "i", Stamp(time.Unix(0, 0)), "", 0, "", nil, false)
	if want := `{"type":"message","id":"i","time":"1970-01-01T00:00:00.000Z","data_b64":""}`; string(b) != want {
		t.Errorf("%s, want %s", b, want)
	}
}

func TestAppendPushResult(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := PushResult{
			User: rapid.String().Draw(t, "user"), ID: rapid.String().Draw(t, "id"), Seq: rapid.Uint64().Draw(t, "seq"),
			Stored: rapid.Bool().Draw(t, "stored"), Duplicate: rapid.Bool().Draw(t, "duplicate"),
			Delivered: rapid.Int().Draw(t, "delivered"), Acked: rapid.Int().Draw(t, "acked"),
			Node: rapid.StringMatching(`[a-z0-9-]{0,5}`).Draw(t, "node"), Epoch: rapid.Uint64().Draw(t, "epoch"),
		}
		if rapid.Bool().Draw(t, "short") {
			r.User, r.Seq = "", 0
		}
		ours := AppendPushResult(nil, &r)
		theirs, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var a, b any
		if err := json.Unmarshal(ours, &a); err != nil {
			t.Fatalf("%s: %v", ours, err)
		}
		if err := json.Unmarshal(theirs, &b); err != nil {
			t.Fatal(err)
		}
		var back PushResult
		if err := json.Unmarshal(ours, &back); err != nil || back != r || !reflect.DeepEqual(a, b) {
			t.Fatalf("%s\n%s", ours, theirs)
		}
	})
}

func TestAppendString(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.OneOf(rapid.String(), rapid.StringMatching(`[ -~]*`), rapid.Map(rapid.SliceOf(rapid.ByteRange(0, 127)), func(b []byte) string { return string(b) })).Draw(t, "s")
		b := AppendString([]byte("x"), s)
		var back string
		if err := json.Unmarshal(b[1:], &back); err != nil || back != s || b[0] != 'x' {
			t.Fatalf("%q is written as %s and read as %q (%v)", s, b, back, err)
		}
	})
}

func TestActionFor(t *testing.T) {
	for code, want := range map[int]Action{
		0: RetryBackoff, 1000: RetryBackoff, 1001: RetryBackoff, 1002: RetryBackoff, 1006: RetryBackoff, 1007: RetryBackoff, 1009: RetryBackoff, 1011: RetryBackoff, 1012: RetryBackoff,
		3000: RetryBackoff, 3999: RetryBackoff,
		4000: Stop, 4001: Stop, 4002: Stop, 4003: Stop, 4004: Stop, 4005: Stop, 4006: Stop, 4099: Stop,
		4100: RetryBackoff, 4101: RetryBackoff, 4102: RetryBackoff, 4103: RetryBackoff, 4104: RetryBackoff, 4199: RetryBackoff,
		4200: RetryNow, 4201: RetryNow, 4202: RetryNow, 4203: RetryNow, 4204: RetryNow, 4299: RetryNow,
		4300: RetryBackoff, 4999: RetryBackoff, -1: RetryBackoff, 5000: RetryBackoff,
	} {
		if got := ActionFor(code); got != want {
			t.Errorf("%d (%s): %v, want %v", code, CloseText(code), got, want)
		}
	}
	names := map[string]int{}
	for code := 4000; code < 4300; code++ {
		if s := CloseText(code); s == "" {
			t.Errorf("%d has no text", code)
		} else if names[s] != 0 {
			t.Errorf("%d and %d are both %q", code, names[s], s)
		} else {
			names[s] = code
		}
	}
	if CloseText(4003) != "replaced by the same device" || CloseText(4999) != "4999" {
		t.Error("wrong texts")
	}
}

func TestProblem(t *testing.T) {
	p := NewProblem(503, CodeNoNodes, "100%% of %d", 3)
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"type":"about:blank","title":"Service Unavailable","status":503,"code":"no_nodes","detail":"100% of 3"}`; string(b) != want || p.RetryAfter != 1 {
		t.Errorf("%s, Retry-After %d", b, p.RetryAfter)
	}
	detail := "50 %d without arguments" // such as an error's own text
	newProblem := NewProblem            // by another name vet does not take it for a format
	if p := newProblem(400, CodeInvalidRequest, detail); p.Detail != detail || p.RetryAfter != 0 {
		t.Errorf("%+v", p)
	}
	if p := NewProblem(429, CodeRateLimited, "x"); p.RetryAfter != 1 {
		t.Errorf("429 without Retry-After: %+v", p)
	}
}

// The short way for an ack reads what encoding/json reads, and the same.
func FuzzPlainAck(f *testing.F) {
	own, err := json.Marshal(Ack{Type: TypeAck, Cursor: "1a-2b-zz9"})
	if err != nil {
		f.Fatal(err)
	}
	if c, ok := plainAck(own); !ok || c != "1a-2b-zz9" {
		f.Fatalf("%s is not read the short way: %q %v", own, c, ok)
	}
	f.Add(own)
	for _, s := range []string{`{"type":"ack","cursor":"`, `{"type":"ack","cursor":""}`, `{"type":"ack","cursor":"0"}`, `{"type":"ack","cursor":"a"} `,
		`{"type":"ack","cursor":"a\u0062"}`, `{"type":"ack","cursor":"a","ref":"b"}`, `{"type":"ack","cursor":"a","type":"ping"}`,
		`{"type":"ack","cursor":"a\"}`, `{"type":"ack","cursor":"A"}`, "{\"type\":\"ack\",\"cursor\":\"a\n\"}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, ok := plainAck(b)
		if !ok {
			return
		}
		var want Frame
		if err := DecodeJSON(b, &want); err != nil || want.Type != TypeAck || want.Cursor != c || len(want.Ref)+len(want.Since)+len(want.Data)+len(want.To) > 0 {
			t.Fatalf("%q is an ack of %q the short way, and %+v, %v", b, c, want, err)
		}
	})
}
