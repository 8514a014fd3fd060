package cluster

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestSkew(t *testing.T) {
	type beat struct{ at, ahead, want time.Duration } // it comes at, and says that the clock is ahead
	const s = time.Second
	for name, beats := range map[string][]beat{
		"steady":        {{0, -time.Millisecond, -time.Millisecond}, {1 * s, -3 * time.Millisecond, -time.Millisecond}, {2 * s, 0, 0}},
		"drifts behind": {{0, 0, 0}, {1 * s, -time.Millisecond, 0}, {4 * s, -2 * time.Millisecond, 0}, {5 * s, -3 * time.Millisecond, 0}, {6 * s, -3 * time.Millisecond, -time.Millisecond}},
		"held back, and brought in one moment": {{0, 0, 0}, {60 * s, -59 * s, 0}, {60 * s, -58 * s, 0}, {60 * s, -30 * s, 0}, {60 * s, -1 * s, 0},
			{61 * s, -time.Millisecond, 0}, {62 * s, -2 * time.Millisecond, 0}, {64 * s, -2 * time.Millisecond, 0}, {65 * s, -2 * time.Millisecond, -time.Millisecond}},
		"slow for a while, and one in time": {{0, 0, 0}, {4 * s, -2 * s, 0}, {6 * s, -2 * s, 0}, {8 * s, 0, 0}, {9 * s, -2 * s, 0}, {13 * s, -2 * s, 0}, {14 * s, -2 * s, -2 * s}},
		"the first one was old":             {{0, -50 * s, -50 * s}, {0, -1 * s, -1 * s}, {1 * s, 0, 0}},
		"set forward":                       {{0, 0, 0}, {1 * s, 3600 * s, 3600 * s}, {2 * s, 3600 * s, 3600 * s}},
		"set back":                          {{0, 0, 0}, {1 * s, -3600 * s, 0}, {3 * s, -3600 * s, 0}, {6 * s, -3601 * s, -3600 * s}, {7 * s, -3600 * s, -3600 * s}},
		"ahead, and one that is held back":  {{0, 300 * s, 300 * s}, {9 * s, 292 * s, 300 * s}, {9 * s, 300 * s, 300 * s}},
		"behind, and one that is held back": {{0, -300 * s, -300 * s}, {9 * s, -308 * s, -300 * s}, {10 * s, -300 * s, -300 * s}},
		"set back while a while lasts":      {{0, 0, 0}, {1 * s, -time.Millisecond, 0}, {4 * s, -3600 * s, 0}, {5 * s, -3600 * s, 0}, {6 * s, -3600 * s, -time.Millisecond}, {9 * s, -3600 * s, -3600 * s}},
		"set back twice":                    {{0, 0, 0}, {1 * s, -60 * s, 0}, {6 * s, -60 * s, -60 * s}, {7 * s, -120 * s, -60 * s}, {11 * s, -120 * s, -60 * s}, {12 * s, -120 * s, -120 * s}},
		"falling, of the same moment": {{0, 0, 0}, {1 * s, -1 * s, 0}, {1 * s, -2 * s, 0}, {1 * s, -3 * s, 0}, {1 * s, -4 * s, 0}, {1 * s, -5 * s, 0}, {1 * s, -6 * s, 0}, {1 * s, -7 * s, 0}, {1 * s, -8 * s, 0},
			{1 * s, -9 * s, 0}, {1 * s, -10 * s, 0}, {1 * s, -11 * s, 0}, {1 * s, -12 * s, 0}, {1 * s, -13 * s, 0}, {1 * s, -14 * s, 0}, {1 * s, -15 * s, 0}, {1 * s, -16 * s, 0}, {1 * s, -17 * s, 0},
			{3 * s, -1500 * time.Millisecond, 0}, {6 * s, -20 * s, -1500 * time.Millisecond}},
	} {
		var e skew
		for i, b := range beats {
			e.saw(b.ahead, time.Unix(1e9, 0).Add(b.at))
			if e.value() != b.want {
				t.Errorf("%s: after beat %d it is %s, want %s", name, i, e.value(), b.want)
			}
			if len(e.beats) > maxSkewBeats {
				t.Errorf("%s: %d beats are remembered", name, len(e.beats))
			}
		}
	}
}

// With delays as they are, a clock that was set back is believed before the seventh
// heartbeat, and one that was not is known to the least delay of the last while.
func TestSkewJitter(t *testing.T) {
	for seed := range uint64(500) {
		random := rand.New(rand.NewPCG(seed, 1))
		var e skew
		set := 20 + random.IntN(20)
		for i := range 60 {
			delay := time.Duration(random.Int64N(int64(20 * time.Millisecond)))
			at, ahead := time.Duration(i)*time.Second+delay, -delay
			if i >= set {
				ahead -= time.Minute
			}
			e.saw(ahead, time.Unix(1e9, 0).Add(at))
			if off := e.value(); i < set && off < -20*time.Millisecond || i >= set+6 && (off > -time.Minute || off < -time.Minute-20*time.Millisecond) {
				t.Fatalf("seed %d: at heartbeat %d (it was set back at %d) it is %s", seed, i, set, off)
			}
		}
	}
}
