package config

import (
	"context"
	"runtime/debug"
	"testing"
)

// A small heap may have much garbage for its size, a large one no more than Go allows.
func TestGCPercent(t *testing.T) {
	for live, want := range map[uint64]int{0: mostGC, 1 << 20: mostGC, 16 << 20: mostGC, 32 << 20: 200, 64 << 20: leastGC, 4 << 30: leastGC} {
		if got := gcPercent(live); got != want {
			t.Errorf("with %d live bytes: %d %%, want %d", live, got, want)
		}
	}
}

// The process goes by it from the start.
func TestTuneGC(t *testing.T) {
	was := debug.SetGCPercent(leastGC)
	defer debug.SetGCPercent(was)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	TuneGC(ctx)
	if got := debug.SetGCPercent(was); got <= leastGC {
		t.Errorf("the garbage collector is left at %d %%", got)
	}
}
