package e2e

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/dialring/dialring/internal/wire"
)

// leakSearch looks for secrets in all that a cluster shows of itself. Each secret has a core
// of letters and digits that nothing else has, and is looked for by that, in each form in which
// it could have been written. It may be used concurrently.
type leakSearch struct {
	mu     sync.Mutex
	cores  map[string]string   // of secrets, by what they are
	places map[string][]byte   // what was gathered there
	proofs map[string][]string // texts that must be there, or it was not gathered
}

func newLeakSearch() *leakSearch {
	return &leakSearch{cores: map[string]string{}, places: map[string][]byte{}, proofs: map[string][]string{}}
}

// canary makes a secret's core.
func (s *leakSearch) canary(what string) string {
	core := "cnry" + wire.RandomID(8)
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := 2; s.cores[what] != ""; n++ {
		what = fmt.Sprintf("%s, %d", strings.TrimSuffix(what, fmt.Sprintf(", %d", n-1)), n)
	}
	s.cores[what] = core
	return core
}

// secret has a value looked for that was not made here: the last part of it.
func (s *leakSearch) secret(what, value string) {
	if len(value) < 16 {
		panic(what + " is no secret")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cores[what] = value[len(value)-16:]
}

// gather adds to what was found at a place.
func (s *leakSearch) gather(place string, b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.places[place] = append(append(s.places[place], b...), '\n')
}

// proof has find fail unless a place has this text.
func (s *leakSearch) proof(place string, texts ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.proofs[place] = append(s.proofs[place], texts...)
}

// leakForms are the ways to write a core; those that leave letters as they are, such as JSON
// and URLs, are the plain one.
func leakForms(core string) map[string]string {
	each := func(format string) string {
		var b strings.Builder
		for _, c := range []byte(core) {
			fmt.Fprintf(&b, format, c)
		}
		return b.String()
	}
	forms := map[string]string{"plain": core, "hex": hex.EncodeToString([]byte(core)), "HEX": each("%02X"), "percent": each("%%%02x"), "PERCENT": each("%%%02X"), `\u`: each(`\u%04x`), `\x`: each(`\x%02x`),
		"numbers": strings.Trim(fmt.Sprint([]byte(core)), "[]")}
	// In base64 what stands before it moves it by 0 to 2 bytes; the ends depend on the neighbours.
	for i := range 3 {
		b := base64.RawURLEncoding.EncodeToString([]byte(strings.Repeat("x", i) + core))
		forms[fmt.Sprintf("base64, at %d", i)] = b[(i*8+5)/6 : (i+len(core))*8/6]
	}
	return forms
}

// anyToken is the begin of a JWT: a token, a ticket, or a peer token.
var anyToken = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{12,}`)

// find tells what was found where, and what was not gathered.
func (s *leakSearch) find() (leaks, missing []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for place, b := range s.places {
		for what, core := range s.cores {
			for form, text := range leakForms(core) {
				if at := bytes.Index(b, []byte(text)); at >= 0 {
					leaks = append(leaks, fmt.Sprintf("%s shows %s (%s): %.300q", place, what, form, b[max(0, at-150):min(len(b), at+100)]))
				}
			}
		}
		if at := anyToken.FindIndex(b); at != nil {
			leaks = append(leaks, fmt.Sprintf("%s shows a token: %.300q", place, b[max(0, at[0]-150):min(len(b), at[1])]))
		}
	}
	for place, texts := range s.proofs {
		for _, text := range texts {
			if !bytes.Contains(s.places[place], []byte(text)) {
				missing = append(missing, fmt.Sprintf("%s has no %q: %.300q", place, text, s.places[place]))
			}
		}
	}
	for _, place := range slices.Sorted(maps.Keys(s.places)) {
		if len(s.proofs[place]) == 0 {
			missing = append(missing, fmt.Sprintf("%s has no proof that anything was gathered there", place))
		}
	}
	slices.Sort(leaks)
	return leaks, missing
}

// gunzipped is what a compressed profile says.
func gunzipped(t *testing.T, b []byte) []byte {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// The search finds what is there, however it is written, and misses what was not gathered.
func TestLeakSearch(t *testing.T) {
	for form, write := range map[string]func(string) string{
		"plain":        func(s string) string { return s },
		"JSON":         func(s string) string { b, _ := json.Marshal(map[string]string{"a": s}); return string(b) },
		"quoted":       func(s string) string { return fmt.Sprintf("%q %+q", s, s) },
		"query":        url.QueryEscape,
		"path":         url.PathEscape,
		"hex":          func(s string) string { return fmt.Sprintf("%x", s) },
		"HEX":          func(s string) string { return fmt.Sprintf("%X", s) },
		"bytes":        func(s string) string { return fmt.Sprint([]byte(s)) },
		"base64":       func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
		"base64 and 1": func(s string) string { return base64.StdEncoding.EncodeToString([]byte(":" + s)) },
		"base64 and 2": func(s string) string { return base64.URLEncoding.EncodeToString([]byte("u:" + s)) },
		"base64 and 7": func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte("Bearer " + s + "!")) },
		"cut off":      func(s string) string { return fmt.Sprintf("%.30q", s) },
	} {
		s := newLeakSearch()
		secret := `"<ü>/+ ` + s.canary("a key") + ` %&"`
		s.gather("the log", []byte("before "+write(secret)+" after"))
		s.proof("the log", "before", "after")
		if leaks, missing := s.find(); len(leaks) == 0 || len(missing) != 0 {
			t.Errorf("%s: %q %q", form, leaks, missing)
		}
	}
	s := newLeakSearch()
	s.gather("the log", []byte("ticket=eyJhbGciOiJFZERTQSIsImtpZCI6"))
	s.gather("a page", []byte("<p>"))
	s.proof("the log", "user")
	if leaks, missing := s.find(); len(leaks) != 1 || len(missing) != 2 {
		t.Errorf("a token, a text that is missing, a place without proof: %q %q", leaks, missing)
	}
	s = newLeakSearch()
	s.canary("a key")
	s.gather("the log", []byte("nothing"))
	s.proof("the log", "nothing")
	if leaks, missing := s.find(); len(leaks)+len(missing) != 0 {
		t.Errorf("of nothing: %q %q", leaks, missing)
	}
}
