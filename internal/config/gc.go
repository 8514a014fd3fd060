package config

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// A small heap is collected less often than Go would: at most smallHeap of garbage
// costs no operator anything, and collecting each few MiB costs a node with few
// sessions and many pushes a tenth of its CPU time, and a locator a fifth. With more
// sessions it becomes Go's own rule. GOGC in the environment overrides it.
const (
	smallHeap  = 64 << 20 // bytes of garbage that are always allowed
	leastGC    = 100      // percent, Go's default
	mostGC     = 400
	lookAtHeap = time.Second
)

// gcPercent is the percentage of garbage to allow with so many live bytes.
func gcPercent(live uint64) int {
	return int(max(leastGC, min(mostGC, smallHeap*100/max(live, 1))))
}

// TuneGC keeps to gcPercent until ctx ends, unless GOGC says something itself.
func TuneGC(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	t := time.NewTicker(lookAtHeap)
	defer t.Stop()
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	for now := 0; ; {
		metrics.Read(live)
		// Setting it stops the process for a moment: not for a trifle.
		if p := gcPercent(live[0].Value.Uint64()); p > now+now/8 || p < now-now/8 {
			debug.SetGCPercent(p)
			now = p
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}
