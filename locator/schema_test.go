package locator

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

type object = map[string]any

// schemas checks values against schemas of a document. It is stricter than JSON Schema:
// a property that an object's schema does not list is an error, since it would be one
// that nobody wrote down, and so is a keyword that it does not know.
type schemas struct{ root object }

// resolve follows a reference.
func (s schemas) resolve(v object) (object, error) {
	ref, ok := v["$ref"].(string)
	if !ok {
		return v, nil
	}
	var at any = s.root
	for part := range strings.SplitSeq(strings.TrimPrefix(ref, "#/"), "/") {
		m, _ := at.(object)
		if at, ok = m[part]; !ok {
			return nil, fmt.Errorf("%s: there is no %q", ref, part)
		}
	}
	m, ok := at.(object)
	if !ok || m["$ref"] != nil {
		return nil, fmt.Errorf("%s: it is no object, or a reference itself", ref)
	}
	return m, nil
}

// annotations are keywords that say nothing about which values are valid. format is
// checked where it is date-time.
var annotations = []string{"$ref", "description", "default"}

// check reports why v, decoded with UseNumber, is not valid.
func (s schemas) check(schema object, v any, at string) error {
	schema, err := s.resolve(schema)
	if err != nil {
		return err
	}
	wrong := func(format string, args ...any) error { return fmt.Errorf("%s: %s", at, fmt.Sprintf(format, args...)) }
	for word, want := range schema {
		switch word {
		case "type":
			if !isType(want, v) {
				return wrong("%v is not of type %v", v, want)
			}
		case "enum":
			if !slices.Contains(want.([]any), v) {
				return wrong("%v is none of %v", v, want)
			}
		case "oneOf", "anyOf":
			var errs []string
			list := want.([]any)
			for _, one := range list {
				if err := s.check(one.(object), v, at); err != nil {
					errs = append(errs, err.Error())
				}
			}
			if n := len(list) - len(errs); n == 0 || word == "oneOf" && n > 1 {
				return wrong("%s has %d that fit: %s", word, n, strings.Join(errs, "; "))
			}
		case "items":
			list, _ := v.([]any)
			for i, x := range list {
				if err := s.check(want.(object), x, fmt.Sprintf("%s[%d]", at, i)); err != nil {
					return err
				}
			}
		case "required":
			if m, ok := v.(object); ok {
				for _, name := range want.([]any) {
					if _, ok := m[name.(string)]; !ok {
						return wrong("%s is missing", name)
					}
				}
			}
		case "properties", "additionalProperties": // below
		case "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems":
			if n, ok := sizeOf(word, v); ok {
				limit, err := want.(json.Number).Float64()
				if err != nil {
					return wrong("%s: %v", word, err)
				}
				if strings.HasPrefix(word, "min") && n < limit || strings.HasPrefix(word, "max") && n > limit {
					return wrong("%v is beyond %s %v", v, word, want)
				}
			}
		case "pattern":
			if x, ok := v.(string); ok && !regexp.MustCompile(want.(string)).MatchString(x) {
				return wrong("%q does not match %s", x, want)
			}
		case "format":
			if want != "date-time" {
				return wrong("the checker does not know the format %v", want)
			}
			if _, err := time.Parse(time.RFC3339, v.(string)); err != nil {
				return wrong("%v", err)
			}
		default:
			if !slices.Contains(annotations, word) {
				return wrong("the checker does not know the keyword %q", word)
			}
		}
	}
	return s.checkProperties(schema, v, at)
}

func (s schemas) checkProperties(schema object, v any, at string) error {
	properties, listed := schema["properties"].(object)
	more, open := schema["additionalProperties"].(object)
	m, ok := v.(object)
	if !ok || !listed && !open {
		return nil
	}
	for name, x := range m {
		p, known := properties[name].(object)
		if !known {
			if p = more; !open {
				return fmt.Errorf("%s: the property %q is not documented", at, name)
			}
		}
		if err := s.check(p, x, at+"."+name); err != nil {
			return err
		}
	}
	return nil
}

func isType(want, v any) bool {
	if list, ok := want.([]any); ok {
		return slices.ContainsFunc(list, func(one any) bool { return isType(one, v) })
	}
	switch v := v.(type) {
	case nil:
		return want == "null"
	case bool:
		return want == "boolean"
	case string:
		return want == "string"
	case json.Number:
		return want == "number" || want == "integer" && !strings.ContainsAny(v.String(), ".eE")
	case []any:
		return want == "array"
	case object:
		return want == "object"
	}
	return false
}

// sizeOf is what a limit is about; false if it is about values of another type.
func sizeOf(limit string, v any) (float64, bool) {
	switch x := v.(type) {
	case json.Number:
		n, err := x.Float64()
		return n, err == nil && len(limit) == len("minimum")
	case string:
		return float64(utf8.RuneCountInString(x)), strings.HasSuffix(limit, "Length")
	case []any:
		return float64(len(x)), strings.HasSuffix(limit, "Items")
	}
	return 0, false
}

// decode decodes JSON with its numbers as they are written.
func decode(b string) (any, error) {
	d := json.NewDecoder(strings.NewReader(b))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	if d.More() {
		return nil, fmt.Errorf("there is more than one value")
	}
	return v, nil
}

// The checker finds what is wrong, and nothing else.
func TestSchemas(t *testing.T) {
	root, err := decode(`{"components":{"schemas":{"id":{"type":"string","minLength":1,"maxLength":2,"pattern":"^a"}}}}`)
	if err != nil {
		t.Fatal(err)
	}
	s := schemas{root.(object)}
	const id = `{"$ref":"#/components/schemas/id"}`
	for _, c := range []struct{ schema, good, bad string }{
		{`{"type":"string"}`, `"a" ""`, `1 null [] {}`},
		{`{"type":"integer","minimum":0,"maximum":2}`, `0 2`, `-1 3 1.0 1e0 "1"`},
		{`{"type":"number"}`, `0 1.5`, `true`},
		{`{"type":["string","number"]}`, `"a" 1`, `true`},
		{`{"type":"boolean"}`, `true`, `"true"`},
		{`{"enum":["a","b"]}`, `"a"`, `"c" 1`},
		{id, `"a" "aé"`, `"" "abc" "b" 1`},
		{`{"$ref":"#/components/schemas/none"}`, ``, `"a"`},
		{`{"type":"array","items":` + id + `,"minItems":1,"maxItems":2}`, `["a"] ["a","ab"]`, `[] ["b"] ["a","a","a"] {}`},
		{`{"type":"object","required":["a"],"properties":{"a":` + id + `,"b":{}}}`, `{"a":"a"} {"a":"a","b":1}`, `{} {"b":1} {"a":"b"} {"a":"a","c":1} []`},
		{`{"type":"object","additionalProperties":` + id + `}`, `{} {"x":"a"}`, `{"x":1}`},
		{`{"oneOf":[{"type":"integer"},{"type":"number"}]}`, `1.5`, `1 "a"`},
		{`{"anyOf":[{"type":"integer"},{"type":"number"}]}`, `1 1.5`, `"a"`},
		{`{"type":"string","format":"date-time"}`, `"2030-01-02T03:04:05.678Z"`, `"2030-01-02"`},
		{`{"of the future":1}`, ``, `1`},
		{`{}`, `1 {"a":[1]}`, ``},
	} {
		schema, err := decode(c.schema)
		if err != nil {
			t.Fatal(c.schema, err)
		}
		for i, values := range []string{c.good, c.bad} {
			for v := range strings.FieldsSeq(values) {
				x, err := decode(v)
				if err != nil {
					t.Fatal(v, err)
				}
				if err := s.check(schema.(object), x, "it"); (err == nil) != (i == 0) {
					t.Errorf("%s by %s: %v", v, c.schema, err)
				}
			}
		}
	}
}
