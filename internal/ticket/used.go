package ticket

import (
	"sync"
	"time"
)

// usedID is the beginning of a token's hash: short, and of one size.
type usedID [16]byte

// used remembers which tokens were used, until they expire. Its memory is two
// generations: each holds the ids of one span of time longer than any token
// lives, and when a span is over the older generation is dropped whole.
type used struct {
	max int

	mu       sync.Mutex
	young    map[usedID]struct{}
	old      map[usedID]struct{}
	rotateAt time.Time
}

// leeway is how much longer than Life a token may seem good, by clocks whose
// difference is known to a few milliseconds only.
const leeway = 5 * time.Second

// span is longer than a token can be good here: see the check in verify.
const span = Life + leeway + time.Second

func newUsed(max int) *used {
	return &used{max: max, young: map[usedID]struct{}{}, old: map[usedID]struct{}{}}
}

// use marks id as used; exactly one of several concurrent calls wins.
func (u *used) use(id usedID, now time.Time) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !now.Before(u.rotateAt) {
		if now.Sub(u.rotateAt) >= span { // idle for long: both are stale
			u.young = map[usedID]struct{}{}
		}
		u.old, u.young = u.young, map[usedID]struct{}{}
		u.rotateAt = now.Add(span)
	}
	if _, ok := u.young[id]; ok {
		return ErrUsed
	}
	if _, ok := u.old[id]; ok {
		return ErrUsed
	}
	if len(u.young)+len(u.old) >= u.max {
		return ErrFull
	}
	u.young[id] = struct{}{}
	return nil
}
