package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// MaxDepth is how deep arrays and objects may be nested in any JSON that is
// taken from outside.
const MaxDepth = 32

// CheckJSON reports why b is not one acceptable JSON value: well-formed, valid
// UTF-8, nothing behind it, nested at most MaxDepth deep. It does not allocate
// for valid input.
func CheckJSON(b []byte) error {
	if err := checkBytes(b); err != nil {
		return err
	}
	if !json.Valid(b) {
		var v any
		if err := json.Unmarshal(b, &v); err != nil {
			return fmt.Errorf("not valid JSON: %w", err)
		}
		return errors.New("not valid JSON")
	}
	return nil
}

// checkBytes checks what a JSON parser does not.
func checkBytes(b []byte) error {
	if !utf8.Valid(b) {
		return errors.New("the JSON is not valid UTF-8")
	}
	return checkDepth(b)
}

// checkDepth comes before any parsing, so that no parser recurses further. On
// malformed input its count means nothing, and the parser refuses that anyway.
func checkDepth(b []byte) error {
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			for i++; i < len(b) && b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			if depth++; depth > MaxDepth {
				return fmt.Errorf("the JSON is nested more than %d deep", MaxDepth)
			}
		case '}', ']':
			depth--
		}
	}
	return nil
}

// DecodeJSON decodes one JSON value, acceptable as by CheckJSON, into v. Unknown
// fields are ignored, as the contract says.
func DecodeJSON(b []byte, v any) error {
	if err := checkBytes(b); err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("the JSON does not have the expected form: %w", err)
	}
	return nil
}
