package httpd

import (
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/time/rate"
)

// Of refusals for each reason so many are logged at once, and then one in refusalEvery:
// strangers must not fill a disk with what they send.
const (
	refusalBurst = 5
	refusalEvery = time.Second
)

// Refusals bounds how often the log hears of requests that are refused. A reason is one of
// a few names, so that a flood for one does not hide the others. It may be used
// concurrently; its zero value is ready.
type Refusals struct {
	mu sync.Mutex
	by map[string]*refusal
}

type refusal struct {
	limit   *rate.Limiter
	skipped int64 // since the last line
}

// Next tells whether to log a refusal, and how many of that reason were not since the last
// line.
func (r *Refusals) Next(reason string) (skipped int64, say bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.by == nil {
		r.by = map[string]*refusal{}
	}
	x := r.by[reason]
	if x == nil {
		x = &refusal{limit: rate.NewLimiter(rate.Every(refusalEvery), refusalBurst)}
		r.by[reason] = x
	}
	if !x.limit.Allow() {
		x.skipped++
		return 0, false
	}
	skipped, x.skipped = x.skipped, 0
	return skipped, true
}

// maxShown is how many bytes of what a stranger wrote a line of the log has.
const maxShown = 128

// Cut shortens what a stranger wrote for the log, which quotes it.
func Cut(s string) string {
	if len(s) <= maxShown {
		return s
	}
	s = s[:maxShown]
	for len(s) > 0 {
		if r, n := utf8.DecodeLastRuneInString(s); r != utf8.RuneError || n != 1 {
			break
		}
		s = s[:len(s)-1]
	}
	return strings.ToValidUTF8(s, "\ufffd") + "…"
}
