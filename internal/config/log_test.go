package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

// What an id may have in it to mislead a reader is not written as it is.
func TestLogShowsMarks(t *testing.T) {
	const id = "ab\u202ecd\u2028\u200b\u009b31m\u0085\x7f\x1b\nlevel=ERROR"
	for _, format := range []string{"text", "json"} {
		var b bytes.Buffer
		l, err := Logger(&b, "info", format)
		if err != nil {
			t.Fatal(err)
		}
		l.Info("x", "event", "y", "user", id, "error", errors.New(id), "plain", "日本 é")
		line := b.String()
		if strings.ContainsAny(strings.TrimSuffix(line, "\n"), "\u202e\u2028\u200b\u009b\u0085\x7f\x1b\n") || strings.Count(line, `\u202e`) != 2 || !strings.Contains(line, "日本 é") {
			t.Errorf("%s: %q", format, line)
		}
		if format == "json" && !json.Valid(b.Bytes()) {
			t.Errorf("no JSON: %s", line)
		}
	}
}
