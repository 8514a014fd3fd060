package wsnode

import (
	"testing"
	"time"
)

// A steady rise is told as it is; what is longer ago than meterOver counts no more.
func TestMeter(t *testing.T) {
	var m meter
	if m.perSecond() != 0 {
		t.Errorf("before anything: %g", m.perSecond())
	}
	now, count := time.Now(), int64(1000) // a counter that did not begin now
	m.sample(now, count)
	if m.perSecond() != 0 {
		t.Errorf("by one sample: %g", m.perSecond())
	}
	for range 20 {
		now, count = now.Add(time.Second), count+30
		m.sample(now, count)
		if got := m.perSecond(); got != 30 {
			t.Fatalf("30 a second: %g", got)
		}
	}
	for range int(meterOver / time.Second) {
		now = now.Add(time.Second)
		m.sample(now, count)
	}
	if got := m.perSecond(); got != 0 {
		t.Errorf("after %s of nothing: %g", meterOver, got)
	}
	if len(m.samples) > int(meterOver/time.Second)+1 {
		t.Errorf("%d samples are kept", len(m.samples))
	}
	m.sample(now.Add(time.Minute), count+600) // the process was stopped
	if got := m.perSecond(); got < 9 || got > 11 {
		t.Errorf("600 in a minute without samples: %g", got)
	}
}
