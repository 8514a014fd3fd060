package cluster

import (
	"slices"
	"time"
)

// skewWindow is for how long no heartbeat has to tell of as great a difference before a
// smaller one is believed: five heartbeats, the last of which may come a little early.
const skewWindow = 9 * BeatInterval / 2

// maxSkewBeats bounds what is remembered; beats that come each second are fewer.
const maxSkewBeats = 16

// skew estimates by how much another clock is ahead of this process's (processTime), from the
// times that heartbeats carry. What a heartbeat was under way is missing from that, which is
// much if the network was cut: TCP keeps those that were sent, and brings them all when it is
// healed. So the one with the least delay tells, as in NTP's clock filter (RFC 5905, section
// 10): the greatest difference of the last while. The while of a heartbeat begins when the
// next one comes: old ones, behind a silence, come in one moment, and a new one follows.
//
// The zero value knows nothing. It may not be used concurrently.
type skew struct {
	beats []skewBeat // each of a smaller difference than the one before it; the first counts
}

type skewBeat struct {
	ahead time.Duration
	next  time.Time // when the next heartbeat came; zero: none has
}

// saw takes the difference that a heartbeat tells, which came now.
func (s *skew) saw(ahead time.Duration, now time.Time) {
	if n := len(s.beats); n > 0 && s.beats[n-1].next.IsZero() {
		s.beats[n-1].next = now
	}
	for len(s.beats) > 0 && s.beats[len(s.beats)-1].ahead <= ahead {
		s.beats = s.beats[:len(s.beats)-1]
	}
	s.beats = append(s.beats, skewBeat{ahead: ahead})
	for len(s.beats) > 1 && now.Sub(s.beats[0].next) >= skewWindow {
		s.beats = slices.Delete(s.beats, 0, 1)
	}
	if len(s.beats) > maxSkewBeats {
		s.beats = slices.Delete(s.beats, 1, 2)
	}
}

// value is the estimate; there must have been a heartbeat.
func (s *skew) value() time.Duration { return s.beats[0].ahead }

// processStart is from when processTime counts.
var processStart = time.Now()

// processTime is the time by a clock that nobody sets: that of the machine when the process
// started, and what has passed since. It has no monotonic reading itself, so that its
// difference to another time is that of the clocks.
func processTime() time.Time { return processStart.Round(0).Add(time.Since(processStart)) }
