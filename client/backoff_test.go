package client

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// sample calls backoff for attempt n many times and returns the shortest and
// the longest wait.
func sample(n, code int, retry wire.Retry) (shortest, longest time.Duration) {
	shortest = 1<<63 - 1
	for range 300 {
		c := &Client{attempt: n, retry: retry}
		d := c.backoff(code)
		if c.attempt != n+1 {
			panic("an attempt is not counted")
		}
		shortest, longest = min(shortest, d), max(longest, d)
	}
	return shortest, longest
}

// within checks that waits are in [0, ceiling] and use it all: that of 300
// uniform ones none is in the lower, or none in the upper third, has a chance of 1e-52.
func within(t *testing.T, n, code int, retry wire.Retry, ceiling time.Duration) {
	t.Helper()
	lo, hi := sample(n, code, retry)
	if lo < 0 || lo > ceiling/3 || hi > ceiling || hi < ceiling*2/3 {
		t.Errorf("attempt %d after %d with %+v waits %v to %v, want 0 to %v", n, code, retry, lo, hi, ceiling)
	}
}

func TestBackoff(t *testing.T) {
	for n, ceiling := range map[int]time.Duration{
		0: 200 * time.Millisecond, 1: 400 * time.Millisecond, 2: 800 * time.Millisecond, 5: 6400 * time.Millisecond, 7: 25600 * time.Millisecond,
		8: 30 * time.Second, 29: 30 * time.Second, 30: 30 * time.Second, 31: 30 * time.Second, 63: 30 * time.Second, 64: 30 * time.Second, 100_000: 30 * time.Second,
	} {
		for _, code := range []int{0, 1000, 1006, 3000, 4100, 4104, 4199, 4300} {
			within(t, n, code, wire.DefaultRetry, ceiling)
		}
		if n > 0 { // only the first attempt after a 42xx is quick
			within(t, n, 4201, wire.DefaultRetry, ceiling)
		}
	}
	for _, code := range []int{4200, 4201, 4202, 4203, 4204, 4299} {
		within(t, 0, code, wire.DefaultRetry, 100*time.Millisecond)
		within(t, 0, code, wire.Retry{BaseMS: 3_600_000, MaxMS: 3_600_000}, 100*time.Millisecond)
	}
	within(t, 0, 0, wire.Retry{BaseMS: 7, MaxMS: 7}, 7*time.Millisecond)
	within(t, 4, 0, wire.Retry{BaseMS: 10, MaxMS: 100}, 100*time.Millisecond)
}

// Whatever base and max a locator asks for, and however long it is away
// afterwards, the back-off stays within them.
func TestBackoffOfLargeValues(t *testing.T) {
	const day = 24 * 3_600_000
	for _, retry := range []wire.Retry{
		{BaseMS: 20_000, MaxMS: 30_000},
		{BaseMS: 30_000, MaxMS: 30_000},
		{BaseMS: 60_000, MaxMS: 600_000},
		{BaseMS: day, MaxMS: 7 * day},
		{BaseMS: 1, MaxMS: 1 << 62},
		{BaseMS: 1 << 62, MaxMS: 1 << 62},
	} {
		t.Run(fmt.Sprint(retry), func(t *testing.T) {
			n := 0
			defer func() {
				if p := recover(); p != nil {
					t.Errorf("attempt %d panics: %v", n, p)
				}
			}()
			for ; n < 70; n++ {
				lo, hi := sample(n, 0, retry)
				// With values beyond time.Duration, any bound of the SDK's own will do.
				if most := time.Duration(retry.MaxMS) * time.Millisecond; lo < 0 || retry.MaxMS <= 7*day && hi > most {
					t.Fatalf("attempt %d waits %v to %v, max is %v", n, lo, hi, most)
				}
				if n > 40 && hi < time.Second {
					t.Fatalf("attempt %d waits %v at most: clients would spin", n, hi)
				}
			}
		})
	}
}

func TestSleep(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	if !sleep(ctx, time.Nanosecond) {
		t.Error("a sleep was not slept")
	}
	cancel()
	if sleep(ctx, time.Hour) {
		t.Error("an ended context sleeps on")
	}
}
