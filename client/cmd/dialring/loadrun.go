package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	mrand "math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/dialring/dialring/client"
)

// load is one run of the load generator.
type load struct {
	f        *loadFlags
	id       string // of this run, in each payload
	locators []string
	secret   []byte       // signs tokens; nil: development mode
	http     *http.Client // for locates
	pusher   *client.Pusher
	nodes    int
	checker  *checker

	sessions sync.WaitGroup
	end      context.CancelFunc // of the sessions

	connect, answers, failures, arrivals *latencies
	sessionErrors, pushErrors            tally

	up, connected, stopped  atomic.Int64 // now; ever; for good
	reconnects, moves, gaps atomic.Int64
	sent, accepted, failed  atomic.Int64
	received                atomic.Int64

	mu      sync.Mutex
	phase   string
	since   map[string]time.Time // when each phase began
	pushed  time.Duration        // how long the pushing took
	due     int64                // pushes that were, in that time
	stopErr error
}

func (a *app) newLoad(f *loadFlags) (*load, error) {
	locators, err := a.locatorList()
	if err != nil {
		return nil, err
	}
	// As many connections as are used at a time; the default of two would make a new one
	// for most locates.
	a.transport.MaxIdleConns, a.transport.MaxIdleConnsPerHost = 0, f.pushers+64
	l := &load{f: f, id: strings.ToLower(rand.Text()[:8]), locators: locators, http: a.locating(), checker: newChecker(),
		connect: newLatencies(), answers: newLatencies(), failures: newLatencies(), arrivals: newLatencies(), phase: connecting, since: map[string]time.Time{connecting: time.Now()}}
	if f.secretFile != "" {
		secret, err := secretFile("--jwt-secret-file", f.secretFile)
		if err != nil {
			return nil, err
		}
		l.secret = []byte(secret)
	}
	l.pusher, err = a.pusher()
	return l, err
}

func (l *load) enter(phase string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.phase, l.since[phase] = phase, time.Now()
}

func (l *load) user(i int) string { return l.f.prefix + strconv.Itoa(i) }

// token signs a user's token.
func (l *load) token(user string) (string, error) {
	now := time.Now()
	return jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.RegisteredClaims{Subject: user,
		IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(time.Hour))}).SignedString(l.secret)
}

// connectAll begins the sessions, at the ramp, and waits until all are connected.
func (l *load) connectAll(ctx context.Context) error {
	var sessions context.Context
	sessions, l.end = context.WithCancel(context.WithoutCancel(ctx)) // they outlive Ctrl-C
	began := time.Now()
	for i := range l.f.sessions {
		at := began.Add(time.Duration(i) * time.Second / time.Duration(l.f.ramp))
		if !sleepUntil(ctx, at) {
			return ctx.Err()
		}
		if err := l.session(sessions, i); err != nil {
			return err
		}
	}
	want, settled, progress := int64(l.f.sessions), int64(0), time.Now()
	for l.connected.Load() < want {
		if n := l.connected.Load() + l.stopped.Load(); n > settled {
			settled, progress = n, time.Now()
		}
		if settled >= want || time.Since(progress) > connectPatience {
			return l.notAll()
		}
		if !sleepUntil(ctx, time.Now().Add(poll)) {
			return ctx.Err()
		}
	}
	return nil
}

// notAll is why not all sessions connected.
func (l *load) notAll() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.connected.Load()
	var stopped *client.StoppedError
	if errors.As(l.stopErr, &stopped) && stopped.Status == http.StatusUnauthorized {
		advice := "outside development mode --jwt-secret-file must have the locators' DIALRING_USER_JWT_SECRET"
		if l.secret != nil {
			advice = "does --jwt-secret-file have the locators' DIALRING_USER_JWT_SECRET?"
		}
		// Not as a StoppedError: what is said of one is for listen.
		return fmt.Errorf("%d of %s connected: the locator refuses these users (%s): %s", n, plural(l.f.sessions, "session"), stopped.Reason, advice)
	}
	if l.stopErr != nil {
		return fmt.Errorf("%d of %s connected: %w", n, plural(l.f.sessions, "session"), l.stopErr)
	}
	return fmt.Errorf("%d of %s connected, and none more for %s: %s", n, plural(l.f.sessions, "session"), connectPatience, countsText(l.sessionErrors.counts()))
}

// session runs one user's session until it is ended.
func (l *load) session(ctx context.Context, i int) error {
	s := &session{load: l, began: time.Now()}
	cfg := client.Config{Locators: l.locators, Device: "load", HTTP: l.http, QueueSize: 16, OnEvent: s.event,
		OnMessage: func(_ context.Context, m client.Message) { l.arrive(i, m) }}
	if user := l.user(i); l.secret != nil {
		cfg.Token = func(context.Context) (string, error) { return l.token(user) }
	} else {
		cfg.User = user
	}
	c, err := client.New(cfg)
	if err != nil {
		return err
	}
	l.sessions.Go(func() {
		if err := c.Run(ctx); err != nil {
			l.sessionErrors.add(err)
			l.mu.Lock()
			if l.stopErr == nil {
				l.stopErr = err
			}
			l.mu.Unlock()
			l.stopped.Add(1)
		}
	})
	return nil
}

// session follows the events of one client.
type session struct {
	load  *load
	began time.Time
	node  string // "": it was never connected
	up    bool
}

func (s *session) event(e client.Event) {
	l := s.load
	switch e.State {
	case client.Connected:
		switch {
		case s.node == "":
			l.connected.Add(1)
			l.connect.record(time.Since(s.began))
		case !s.up:
			l.reconnects.Add(1)
		case s.node != e.Node:
			l.moves.Add(1)
		}
		if e.Gap {
			l.gaps.Add(1)
		}
		s.set(true)
		s.node = e.Node
	case client.Moving: // it is connected all the time
	default:
		// Each attempt that failed, once. A token that is refused is asked for once more, and
		// then Run ends with that: it is counted there.
		var api *client.APIError
		if refused := errors.As(e.Err, &api) && api.Status == http.StatusUnauthorized; e.State == client.Locating && e.Err != nil && !refused {
			l.sessionErrors.add(e.Err)
		}
		s.set(false)
	}
}

func (s *session) set(up bool) {
	if up != s.up {
		s.up = up
		s.load.up.Add(map[bool]int64{true: 1, false: -1}[up])
	}
}

// arrive takes a message of a user's.
func (l *load) arrive(user int, m client.Message) {
	var x letter
	if !m.JSON || json.Unmarshal(m.Data, &x) != nil || x.Load != l.id {
		return // of an earlier load, or another service
	}
	if due, ok := l.checker.arrive(user, x.N); ok {
		l.received.Add(1)
		l.arrivals.record(time.Since(due))
	}
}

// pushAll pushes for the duration, and waits for the answers.
func (l *load) pushAll(ctx context.Context) {
	began := time.Now()
	end := began.Add(l.f.duration)
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range l.f.pushers {
		wg.Go(func() {
			for {
				at := time.Now()
				if l.f.rate > 0 { // the next one that is due, whoever is free
					at = began.Add(time.Duration(next.Add(1)-1) * time.Second / time.Duration(l.f.rate))
				}
				if !at.Before(end) || !sleepUntil(ctx, at) {
					return
				}
				l.push(context.WithoutCancel(ctx), at)
			}
		})
	}
	<-ctx.Done()
	l.mu.Lock()
	l.pushed = min(time.Since(began), l.f.duration)
	l.due = int64(math.Ceil(l.pushed.Seconds() * float64(l.f.rate)))
	l.mu.Unlock()
	wg.Wait()
}

// push pushes to some user; the time counts from due.
func (l *load) push(ctx context.Context, due time.Time) {
	user := mrand.IntN(l.f.sessions) // #nosec G404 -- which session gets a push
	n := l.checker.begin(user, due)
	var opts []client.PushOption
	if l.f.ephemeral {
		opts = append(opts, client.Ephemeral())
	}
	l.sent.Add(1)
	r, err := l.pusher.Push(ctx, l.user(user), payloadOf(l.id, n, l.f.size), opts...)
	if err != nil {
		l.failed.Add(1)
		l.failures.record(time.Since(due))
		l.pushErrors.add(err)
		l.checker.answer(n, false)
		return
	}
	l.accepted.Add(1)
	l.answers.record(time.Since(due))
	l.checker.answer(n, r.Stored || r.Delivered > 0)
}

// awaitArrivals waits for what was accepted, until nothing more comes.
func (l *load) awaitArrivals() {
	for asked := time.Now(); ; time.Sleep(poll) {
		owed, quiet := l.checker.missing()
		quiet = min(quiet, time.Since(asked))
		if quiet >= arrivePatience || owed == 0 && quiet >= settle {
			return
		}
	}
}

func (l *load) leave() {
	l.end()
	l.sessions.Wait()
}

// sleepUntil waits; false: ctx has ended.
func sleepUntil(ctx context.Context, t time.Time) bool {
	if ctx.Err() != nil {
		return false
	}
	d := time.Until(t)
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
