package main

import (
	"errors"
	"fmt"
	"sync"
	"time"

	hdrhistogram "github.com/HdrHistogram/hdrhistogram-go"

	"github.com/dialring/dialring/client"
)

// latencies are some thousand buckets, whatever comes: to three digits, up to an hour.
type latencies struct {
	mu          sync.Mutex
	all, recent *hdrhistogram.Histogram // in microseconds
}

const longest = int64(time.Hour / time.Microsecond)

func newLatencies() *latencies {
	return &latencies{all: hdrhistogram.New(1, longest, 3), recent: hdrhistogram.New(1, longest, 3)}
}

func (l *latencies) record(d time.Duration) {
	us := min(max(d.Microseconds(), 1), longest)
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = l.all.RecordValue(us), l.recent.RecordValue(us) // it is in their range
}

// quantiles are milliseconds.
type quantiles struct {
	Count int64   `json:"count"`
	P50   float64 `json:"p50_ms"`
	P95   float64 `json:"p95_ms"`
	P99   float64 `json:"p99_ms"`
	Max   float64 `json:"max_ms"`
}

func quantilesOf(h *hdrhistogram.Histogram) quantiles {
	ms := func(us int64) float64 { return float64(us) / 1000 }
	return quantiles{Count: h.TotalCount(), P50: ms(h.ValueAtQuantile(50)), P95: ms(h.ValueAtQuantile(95)), P99: ms(h.ValueAtQuantile(99)), Max: ms(h.Max())}
}

func (l *latencies) total() quantiles {
	l.mu.Lock()
	defer l.mu.Unlock()
	return quantilesOf(l.all)
}

// sinceLast is of what came since the last call.
func (l *latencies) sinceLast() quantiles {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.recent.Reset()
	return quantilesOf(l.recent)
}

func (q quantiles) String() string {
	if q.Count == 0 {
		return "-"
	}
	return fmt.Sprintf("p50 %s  p95 %s  p99 %s  max %s", msText(q.P50), msText(q.P95), msText(q.P99), msText(q.Max))
}

func msText(ms float64) string {
	if ms < 10 {
		return fmt.Sprintf("%.2f ms", ms)
	}
	return fmt.Sprintf("%.0f ms", ms)
}

// tally counts errors by what they are.
type tally struct {
	mu sync.Mutex
	n  map[string]int
}

func (t *tally) add(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n == nil {
		t.n = map[string]int{}
	}
	t.n[kindOf(err)]++
}

func (t *tally) counts() map[string]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[string]int{}
	for k, n := range t.n {
		out[k] = n
	}
	return out
}

// kindOf is a code of the API, a close code, or what little is known.
func kindOf(err error) string {
	var api *client.APIError
	var closed *client.CloseError
	var stopped *client.StoppedError
	switch {
	case errors.As(err, &stopped) && stopped.Code != 0:
		return fmt.Sprintf("close_%d", stopped.Code)
	case errors.As(err, &stopped):
		return fmt.Sprintf("refused_%d", stopped.Status)
	case errors.As(err, &api) && api.Code != "":
		return api.Code
	case errors.As(err, &api):
		return fmt.Sprintf("http_%d", api.Status)
	case errors.As(err, &closed):
		return fmt.Sprintf("close_%d", closed.Code)
	case unreachable(err):
		return "unreachable"
	}
	return "connection_lost"
}
