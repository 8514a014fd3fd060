package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// documentedTypes are the types of all frames, by who sends them.
var documentedTypes = map[string]func() any{
	"node welcome":  func() any { return &Welcome{} },
	"node message":  func() any { return &Message{} },
	"node skip":     func() any { return &Skip{} },
	"node resumed":  func() any { return &Resumed{} },
	"node ack":      func() any { return &SendAck{} },
	"node error":    func() any { return &ErrorFrame{} },
	"node move":     func() any { return &Move{} },
	"node pong":     func() any { return &Pong{} },
	"client ack":    func() any { return &Ack{} },
	"client resume": func() any { return &Resume{} },
	"client send":   func() any { return &Send{} },
	"client ping":   func() any { return &Pong{} }, // the two have the same fields
}

// FRAMES.md has examples of all frames, with all their fields, which the types read
// and write without a change.
func TestFramesDocument(t *testing.T) {
	b, err := os.ReadFile("FRAMES.md")
	if err != nil {
		t.Fatal(err)
	}
	fence := regexp.MustCompile("(?ms)^```(.*?)\n(.*?)^```$")
	shown := map[string]map[string]bool{} // the fields in the examples of each frame
	for _, m := range fence.FindAllSubmatch(b, -1) {
		from, ok := strings.CutPrefix(string(m[1]), "json ")
		example := m[2]
		var fields map[string]any
		if err := exactly(example, &fields); !ok || err != nil {
			t.Errorf("%s: %q: %v", example, m[1], err)
			continue
		}
		if !bytes.HasPrefix(example, []byte(`{"type": `)) {
			t.Errorf("%s: the type is first", example)
		}
		kind := from + " " + fmt.Sprint(fields["type"])
		make := documentedTypes[kind]
		if make == nil {
			t.Errorf("%s: there is no type for %s", example, kind)
			continue
		}
		v := make()
		if err := exactly(example, v); err != nil {
			t.Errorf("%s: %v", example, err)
			continue
		}
		again, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		var after map[string]any
		if err := exactly(again, &after); err != nil || !reflect.DeepEqual(fields, after) {
			t.Errorf("%s becomes\n%s (%v)", example, again, err)
		}
		if s, ok := v.(*Send); ok && s.CheckSend() != nil {
			t.Errorf("%s: %v", example, s.CheckSend())
		}
		if f, err := ParseFrame(example); err != nil || CheckRef(f.Ref) != nil {
			t.Errorf("%s: %v %v", example, err, CheckRef(f.Ref))
		}
		if shown[kind] == nil {
			shown[kind] = map[string]bool{}
		}
		for name := range fields {
			shown[kind][name] = true
		}
	}
	for kind, make := range documentedTypes {
		var want []string
		for _, f := range reflect.VisibleFields(reflect.TypeOf(make()).Elem()) {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			want = append(want, name)
		}
		slices.Sort(want)
		if got := slices.Sorted(maps.Keys(shown[kind])); !slices.Equal(got, want) {
			t.Errorf("the examples of %s have the fields %q, want %q", kind, got, want)
		}
	}
	types := constants(t, "frames.go", "Type")
	if len(types) == 0 {
		t.Fatal("frames.go has no types: have they moved?")
	}
	for name, value := range types {
		text, err := strconv.Unquote(value)
		if err != nil {
			t.Fatal(err)
		}
		if documentedTypes["node "+text] == nil && documentedTypes["client "+text] == nil {
			t.Errorf("%s has no example", name)
		}
	}
}

// FRAMES.md lists all close codes, with their names and what a client does.
func TestFramesDocumentCloseCodes(t *testing.T) {
	b, err := os.ReadFile("FRAMES.md")
	if err != nil {
		t.Fatal(err)
	}
	does := map[string]Action{"stops, and says so": Stop, "locates again after its back-off": RetryBackoff, "locates again at once": RetryNow}
	listed := map[int]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\| (\d{4}) \| (.*?) \| (.*?) \|$`).FindAllStringSubmatch(string(b), -1) {
		code, err := strconv.Atoi(m[1])
		if err != nil || listed[code] {
			t.Errorf("%s: %v, or it is listed twice", m[0], err)
		}
		listed[code] = true
		if action, ok := does[m[3]]; m[2] != closeText[code] || !ok || action != ActionFor(code) {
			t.Errorf("%s: it is %q, and what is done is %d", m[0], closeText[code], ActionFor(code))
		}
	}
	for _, code := range []int{CloseNormal, CloseGoingAway} { // a row of their own, of which nothing is done
		listed[code] = strings.Contains(string(b), fmt.Sprintf("\n| %d, %d | from the client", CloseNormal, CloseGoingAway))
	}
	codes := constants(t, "close.go", "Close")
	if len(codes) == 0 {
		t.Fatal("close.go has no codes: have they moved?")
	}
	for name, value := range codes {
		code, err := strconv.Atoi(value)
		if err != nil {
			t.Fatal(err)
		}
		if !listed[code] {
			t.Errorf("%s, %d, is not listed", name, code)
		}
	}
	if len(listed) != len(codes) {
		t.Errorf("%d codes are listed, and there are %d", len(listed), len(codes))
	}
}

// exactly decodes one JSON value without fields that v does not have, its numbers as
// they are written.
func exactly(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	d.UseNumber()
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.More() {
		return fmt.Errorf("there is more than one value")
	}
	return nil
}

// constants returns the literals of a file's constants whose names begin with prefix.
func constants(t *testing.T, file, prefix string) map[string]string {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, decl := range parsed.Decls {
		g, ok := decl.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, spec := range g.Specs {
			for i, name := range spec.(*ast.ValueSpec).Names {
				if strings.HasPrefix(name.Name, prefix) {
					out[name.Name] = spec.(*ast.ValueSpec).Values[i].(*ast.BasicLit).Value
				}
			}
		}
	}
	return out
}
