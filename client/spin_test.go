package client

import (
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// Servers that send a client on at once, with a back-off of a millisecond, do not keep it
// spinning. Each lap is a locate, or a dial; without a bound 60 take a small part of the time.
func TestNoSpinning(t *testing.T) {
	t.Parallel()
	const laps, most = 60, 2 * time.Second
	nowhere := "ws://" + closedAddr(t) + "/v1/ws"
	ends := func(code int) func(*fake, *session) {
		return func(_ *fake, s *session) { s.welcome(20_000).close(code, "") }
	}
	for name, x := range map[string]struct {
		sc   script
		play func(*fake, *session) // with each session; nil: locates are counted
	}{
		"moved": {play: func(f *fake, s *session) {
			s.welcome(20_000).moveTo(f.ws, "ws-1", "t")
			for op, _, err := s.read(); err == nil && op != opClose; {
				op, _, err = s.read()
			}
			_ = s.nc.Close()
		}},
		"moved before its end":    {play: func(f *fake, s *session) { s.welcome(20_000).moveTo(f.ws, "ws-1", "t"); s.close(wire.CloseMoved, "") }},
		"closed":                  {play: ends(1001)},
		"told to come back":       {play: ends(wire.CloseNotTheOwner)},
		"lost":                    {play: func(_ *fake, s *session) { _ = s.welcome(20_000).nc.Close() }},
		"lost before its welcome": {play: func(_ *fake, s *session) { _ = s.nc.Close() }},
		"locators are overloaded": {sc: script{locate: func(*fake, int, locateCall) answer { return problem(503, wire.CodeNoNodes, "0") }}},
		"dials are refused":       {sc: script{dial: func(*fake, int) *answer { a := problem(503, wire.CodeDraining, "0"); return &a }}},
		"sent to nowhere": {sc: script{locate: func(f *fake, _ int, _ locateCall) answer {
			return f.here(func(l *wire.LocateResponse) { l.URL = nowhere })
		}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, x.sc)
			start(t, f.config())
			over := time.After(most)
			for range laps {
				locates, sessions := f.locates, f.sessions
				if x.play == nil {
					sessions = nil
				} else {
					locates = nil
				}
				select {
				case <-locates:
				case s := <-sessions:
					go x.play(f, s)
				case <-over:
					return
				}
			}
			t.Errorf("%d laps in less than %v", laps, most)
		})
	}
	t.Run("told to move to nowhere", func(t *testing.T) {
		t.Parallel()
		f := newFake(t, script{})
		r, s := connected(t, f)
		over := time.After(most)
		for range laps {
			s.moveTo(nowhere, "ws-2", "t")
			select { // that it stays is asked of a locator
			case <-f.locates:
			case <-over:
				return
			}
			r.await(Connected)
		}
		t.Errorf("%d laps in less than %v", laps, most)
	})
}

// What bounds a wait at least doubles up to 5 s.
func TestLeast(t *testing.T) {
	for n, ceiling := range map[int]time.Duration{0: time.Millisecond, 4: 16 * time.Millisecond, 12: 4096 * time.Millisecond, 13: 5 * time.Second, 100_000: 5 * time.Second} {
		within(t, n, 0, wire.Retry{BaseMS: 1, MaxMS: 1}, ceiling)
	}
}

// Seven moves do not wait for each other; those behind them come every 5 s at most.
func TestPace(t *testing.T) {
	var p pace
	for n := range 100 {
		if w := p.wait(); n < 7 && w > 0 || n >= 7 && (w < moveEvery-time.Second || w > moveEvery) {
			t.Fatalf("move %d waits %v", n, w)
		}
		if p.count(); n >= 7 {
			p.next = p.next.Add(-moveEvery) // it has waited
		}
	}
	p.next = time.Now().Add(-time.Hour)
	for range 7 {
		p.count()
	}
	if w := p.wait(); w < moveEvery-time.Second {
		t.Errorf("after a long time more than seven at once: the next waits %v", w)
	}
}
