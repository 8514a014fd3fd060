package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// startView draws how the load goes, where stderr is a terminal, until the function that
// it returns is called.
func (l *load) startView(a *app) (stop func()) {
	s := newScreen(a.stderr)
	if s == nil {
		return func() {}
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(redraw)
		defer tick.Stop()
		v := view{load: l, at: time.Now()}
		for {
			_ = s.draw(v.text()) // a broken terminal is no reason to stop
			select {
			case <-tick.C:
			case <-done:
				s.clear()
				return
			}
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}

// view is what was drawn last, to tell rates.
type view struct {
	load                      *load
	at                        time.Time
	connected, sent, received int64
}

func (v *view) text() string {
	l, now := v.load, time.Now()
	took := now.Sub(v.at).Seconds()
	rate := func(last *int64, n int64) string {
		d := n - *last
		*last = n
		if took <= 0 {
			return "0/s"
		}
		return fmt.Sprintf("%.0f/s", float64(d)/took)
	}
	l.mu.Lock()
	phase, since := l.phase, now.Sub(l.since[l.phase])
	l.mu.Unlock()
	connected, sent, received := l.connected.Load(), l.sent.Load(), l.received.Load()
	var b strings.Builder
	fmt.Fprintf(&b, "load %s: %s, %s%s\n", l.id, phase, since.Round(time.Second), l.f.loopText())
	fmt.Fprintf(&b, "  sessions  %d of %d up, %s connects, %d moved, %d reconnected, connect %s\n", l.up.Load(), l.f.sessions,
		rate(&v.connected, connected), l.moves.Load(), l.reconnects.Load(), l.connect.total())
	fmt.Fprintf(&b, "  pushes    %d, %s, %d failed, call %s\n", sent, rate(&v.sent, sent), l.failed.Load(), l.answers.sinceLast())
	fmt.Fprintf(&b, "  received  %d, %s, after the push %s\n", received, rate(&v.received, received), l.arrivals.sinceLast())
	fmt.Fprintf(&b, "  errors    pushes: %s; sessions: %s\n", countsText(l.pushErrors.counts()), countsText(l.sessionErrors.counts()))
	v.at = now
	return b.String()
}

func (f *loadFlags) loopText() string {
	if f.rate == 0 {
		return fmt.Sprintf(" (closed loop, %d pushers)", f.pushers)
	}
	return fmt.Sprintf(" (open loop, %d/s: latency counts from when a push was due)", f.rate)
}

func countsText(n map[string]int) string {
	if len(n) == 0 {
		return "none"
	}
	var out []string
	for _, k := range slices.Sorted(maps.Keys(n)) {
		out = append(out, fmt.Sprintf("%s %d", k, n[k]))
	}
	return strings.Join(out, ", ")
}

// summary is what a load has found. Its JSON is stable.
type summary struct {
	Load        string          `json:"load"`
	Interrupted bool            `json:"interrupted"`
	Settings    summarySettings `json:"settings"`
	Nodes       int             `json:"nodes"` // when it began
	Sessions    summarySessions `json:"sessions"`
	Pushes      summaryPushes   `json:"pushes"`
	Received    summaryReceived `json:"received"`
	Errors      summaryErrors   `json:"errors"` // by code
}

type summarySettings struct {
	Sessions   int    `json:"sessions"`
	Rate       int    `json:"rate"` // 0: closed loop
	DurationMS int64  `json:"duration_ms"`
	Pushers    int    `json:"pushers"`
	Size       int    `json:"size"`
	Stored     bool   `json:"stored"`
	Loop       string `json:"loop"` // open: latency counts from when a push was due; closed: from the call
}

type summarySessions struct {
	Connected  int64     `json:"connected"` // ever
	Reconnects int64     `json:"reconnects"`
	Moves      int64     `json:"moves"` // to another node, without a gap
	Stopped    int64     `json:"stopped"`
	Gaps       int64     `json:"gaps"` // times that a session was told of lost messages
	Connect    quantiles `json:"connect"`
}

type summaryPushes struct {
	Sent      int64     `json:"sent"`
	Accepted  int64     `json:"accepted"`
	Failed    int64     `json:"failed"`
	NotSent   int64     `json:"not_sent"` // due, and no pusher was free before the end
	PerSecond float64   `json:"per_second"`
	Latency   quantiles `json:"latency"`        // of those accepted
	Failing   quantiles `json:"failed_latency"` // of those that failed, the SDK's retries included
}

type summaryReceived struct {
	Count        int64     `json:"count"`
	PerSecond    float64   `json:"per_second"`
	Lost         int       `json:"lost"`
	Twice        int       `json:"twice"`
	Misdelivered int       `json:"misdelivered"` // to another user
	Strange      int       `json:"strange"`      // numbers that were never pushed
	LostNumbers  []uint64  `json:"lost_numbers"` // the first 20
	Latency      quantiles `json:"latency"`
}

type summaryErrors struct {
	Pushes   map[string]int `json:"pushes"`
	Sessions map[string]int `json:"sessions"`
}

const showLost = 20

func (l *load) summary(interrupted bool) *summary {
	f, c := l.f, l.checker
	s := &summary{Load: l.id, Interrupted: interrupted, Nodes: l.nodes,
		Settings: summarySettings{f.sessions, int(f.rate), f.duration.Milliseconds(), f.pushers, f.size, !f.ephemeral, "open"},
		Sessions: summarySessions{l.connected.Load(), l.reconnects.Load(), l.moves.Load(), l.stopped.Load(), l.gaps.Load(), l.connect.total()},
		Pushes:   summaryPushes{Sent: l.sent.Load(), Accepted: l.accepted.Load(), Failed: l.failed.Load(), Latency: l.answers.total(), Failing: l.failures.total()},
		Received: summaryReceived{Count: l.received.Load(), Latency: l.arrivals.total(), LostNumbers: append([]uint64{}, c.lost(showLost)...)},
		Errors:   summaryErrors{l.pushErrors.counts(), l.sessionErrors.counts()},
	}
	if f.rate == 0 {
		s.Settings.Loop = "closed"
	} else {
		s.Pushes.NotSent = max(0, l.due-s.Pushes.Sent)
	}
	slices.Sort(s.Received.LostNumbers)
	s.Received.Lost, _ = c.missing()
	c.mu.Lock()
	s.Received.Twice, s.Received.Misdelivered, s.Received.Strange = c.twice, c.misdelivered, c.strange
	c.mu.Unlock()
	if t := l.pushed.Seconds(); t > 0 {
		s.Pushes.PerSecond, s.Received.PerSecond = float64(s.Pushes.Sent)/t, float64(s.Received.Count)/t
	}
	return s
}

func (s *summary) text() string {
	from := "from the call (closed loop)"
	if s.Settings.Loop == "open" {
		from = "from when each push was due (open loop)"
	}
	kind := "stored"
	if !s.Settings.Stored {
		kind = "ephemeral"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "load %s: %d of %s connected to %s\n", s.Load, s.Sessions.Connected, plural(s.Settings.Sessions, "session"), plural(s.Nodes, "node"))
	fmt.Fprintf(&b, "  connect   %s\n", s.Sessions.Connect)
	fmt.Fprintf(&b, "  since     %d moved, %d reconnected, %d stopped, %d gaps\n", s.Sessions.Moves, s.Sessions.Reconnects, s.Sessions.Stopped, s.Sessions.Gaps)
	fmt.Fprintf(&b, "%d %s pushes of %d bytes, %.0f/s; latency counts %s\n", s.Pushes.Sent, kind, s.Settings.Size, s.Pushes.PerSecond, from)
	fmt.Fprintf(&b, "  call      %s\n", s.Pushes.Latency)
	if s.Pushes.Failed > 0 {
		fmt.Fprintf(&b, "  failed    %s (%d calls, which are not in the line above)\n", s.Pushes.Failing, s.Pushes.Failed)
	}
	fmt.Fprintf(&b, "  received  %s\n", s.Received.Latency)
	fmt.Fprintf(&b, "  accepted  %d, failed %d, not sent %d\n", s.Pushes.Accepted, s.Pushes.Failed, s.Pushes.NotSent)
	fmt.Fprintf(&b, "%d received: %d lost, %d twice, %d to another user\n", s.Received.Count, s.Received.Lost, s.Received.Twice, s.Received.Misdelivered)
	fmt.Fprintf(&b, "errors of pushes: %s; of sessions: %s\n", countsText(s.Errors.Pushes), countsText(s.Errors.Sessions))
	if s.Pushes.NotSent > 0 {
		fmt.Fprintf(&b, "%d pushes were due and not sent, so the truth is worse than these latencies: lower --rate, or raise --pushers\n", s.Pushes.NotSent)
	}
	return b.String()
}

// verdict is an error if the cluster broke its promise.
func (s *summary) verdict() error {
	r := s.Received
	if r.Lost+r.Twice+r.Misdelivered+r.Strange > 0 {
		return exitError{exitFailed, fmt.Errorf("%d messages were lost, %d came twice, %d to another user, %d are of no push", r.Lost, r.Twice, r.Misdelivered, r.Strange)}
	}
	if s.Interrupted {
		return exitError{exitInterrupted, errors.New("interrupted")}
	}
	return nil
}
