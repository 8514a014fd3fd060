package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"unicode/utf8"

	"github.com/dialring/dialring/internal/wire"
)

// form says what the bytes of a payload are.
type form struct{ json, text, raw bool }

// payload makes of bytes what a Pusher takes. Without a form, JSON is JSON and other text
// becomes a JSON string; doubt tells that this may not be what was meant.
func (f form) payload(b []byte) (data any, doubt string, err error) {
	if f.raw {
		return b, "", nil
	}
	if !utf8.Valid(b) {
		return nil, "", usagef("the data is not UTF-8 text; --raw sends bytes as they are")
	}
	trimmed := bytes.TrimSpace(b)
	broken := wire.CheckJSON(trimmed)
	if broken == nil && !f.text {
		return json.RawMessage(trimmed), "", nil
	}
	if f.json {
		return nil, "", usagef("the data is %w", broken)
	}
	if !f.text && len(trimmed) > 0 && (trimmed[0] == '{' || trimmed[0] == '[') {
		doubt = fmt.Sprintf("the data begins like JSON and is %v: it was sent as a string; --json refuses that", broken)
	}
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false)
	if err := e.Encode(string(b)); err != nil {
		return nil, "", err
	}
	return json.RawMessage(bytes.TrimSuffix(text.Bytes(), []byte("\n"))), doubt, nil
}
