package wsnode

import (
	"math"
	"sync/atomic"
	"time"
)

// meter turns a counter into how much it rose a second, over the last meterOver.
type meter struct {
	samples []sample // of the sweep: its own
	now     atomic.Uint64
}

type sample struct {
	at    time.Time
	count int64
}

// meterOver is long enough that a figure which is read once a second does not jump, and
// short enough that it tells of now.
const meterOver = 5 * time.Second

// sample takes the counter as it is at a time.
func (r *meter) sample(at time.Time, count int64) {
	r.samples = append(r.samples, sample{at, count})
	for len(r.samples) > 2 && at.Sub(r.samples[1].at) >= meterOver {
		r.samples = r.samples[1:]
	}
	first := r.samples[0]
	if d := at.Sub(first.at).Seconds(); d > 0 {
		r.now.Store(math.Float64bits(float64(count-first.count) / d))
	}
}

// perSecond is what the last samples say.
func (r *meter) perSecond() float64 { return math.Float64frombits(r.now.Load()) }
