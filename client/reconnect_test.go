package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// Whatever a node answers to a dial, the client locates again, after
// Retry-After if there is one. Such a node was reached: it is not reported.
func TestDialRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		status int
		code   wire.Code
		after  string
	}{
		{400, wire.CodeInvalidRequest, ""},
		{401, wire.CodeUnauthorized, ""},
		{403, wire.CodeForbidden, ""},
		{409, wire.CodeTooManySessions, ""},
		{421, wire.CodeMisdirected, ""},
		{426, wire.CodeInvalidRequest, ""},
		{429, wire.CodeRateLimited, "1"},
		{500, wire.CodeInternal, ""},
		{503, wire.CodeDraining, "1"},
	} {
		t.Run(fmt.Sprint(c.status), func(t *testing.T) {
			t.Parallel()
			f := newFake(t, script{dial: func(_ *fake, n int) *answer {
				if n > 0 {
					return nil
				}
				a := problem(c.status, c.code, c.after)
				return &a
			}})
			began := time.Now()
			r := start(t, f.config())
			recv(t, f.locates, "a locate")
			if e := r.await(Dialing); e.Node != "ws-1" {
				t.Errorf("dialing %+v", e)
			}
			e := r.await(Locating)
			var api *APIError
			if !errors.As(e.Err, &api) || api.Status != c.status {
				t.Errorf("the reason is %v, want an APIError with status %d", e.Err, c.status)
			}
			if call := recv(t, f.locates, "a second locate"); len(call.Failed) != 0 {
				t.Errorf("%v are reported as failed", call.Failed)
			}
			if took := time.Since(began); c.after != "" && took < time.Second {
				t.Errorf("it came back after %v, Retry-After was %s s", took, c.after)
			}
			recv(t, f.sessions, "an accepted dial").welcome(20_000)
			r.await(Connected)
		})
	}
}

func TestCloseCodesThatEndRun(t *testing.T) {
	t.Parallel()
	for _, code := range []int{4000, 4001, 4002, 4003, 4004, 4005, 4006, 4007, 4099} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			t.Parallel()
			f := newFake(t, script{})
			r := start(t, f.config())
			recv(t, f.sessions, "a dial").welcome(20_000).close(code, "because")
			var stopped *StoppedError
			if err := r.result(); !errors.As(err, &stopped) || stopped.Code != code || stopped.Status != 0 {
				t.Fatalf("Run returned %v", err)
			}
			if stopped.Reason != "because" {
				t.Errorf("the reason is %q, want %q as the node sent it", stopped.Reason, "because")
			}
			if want := fmt.Sprintf("dialring: the server ended the session for good: %d because", code); stopped.Error() != want {
				t.Errorf("the error reads %q, want %q", stopped.Error(), want)
			}
			if e := r.State(); e.State != Stopped || !errors.Is(e.Err, stopped) {
				t.Errorf("State() is %+v", e)
			}
			if n := len(f.locates); n != 1 {
				t.Errorf("%d locates, want 1", n)
			}
		})
	}
}

func TestCloseCodesToComeBackFrom(t *testing.T) {
	t.Parallel()
	for _, code := range []int{1000, 1001, 1002, 1011, 1012, 3000, 3999, 4100, 4101, 4102, 4103, 4104, 4199, 4200, 4201, 4202, 4203, 4204, 4299, 4300, 4999} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			t.Parallel()
			// For 42xx the locator's back-off is a long one, which must not count.
			retry, ceiling := wire.Retry{BaseMS: 20, MaxMS: 20}, 20*time.Millisecond
			if code/100 == 42 {
				retry, ceiling = wire.Retry{BaseMS: 3_600_000, MaxMS: 3_600_000}, 100*time.Millisecond
			}
			f := newFake(t, script{locate: func(f *fake, n int, _ locateCall) answer {
				return f.here(func(l *wire.LocateResponse) { l.Retry = retry })
			}})
			r := start(t, f.config())
			recv(t, f.locates, "a locate")
			recv(t, f.sessions, "a dial").welcome(20_000).close(code, "")
			r.await(Connected)
			if e := recv(t, r.events, "an event"); e.State != Waiting || e.Wait > ceiling || e.Err == nil {
				t.Errorf("after the close came %+v; it waits at most %v", e, ceiling)
			}
			if call := recv(t, f.locates, "a second locate"); len(call.Failed) != 0 {
				t.Errorf("%v are reported as failed, but the connection was closed properly", call.Failed)
			}
			recv(t, f.sessions, "a second dial").welcome(20_000)
			r.await(Connected)
		})
	}
}

// Only the first attempt after a 42xx is quick: two nodes that send a client to
// each other do not keep it spinning.
func TestMovedInACircle(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	r := start(t, f.config())
	for range 5 {
		recv(t, f.sessions, "a dial").welcome(20_000).close(wire.CloseNotTheOwner, "")
	}
	r.await(Connected)
	r.cancel()
	if err := r.result(); err != nil {
		t.Fatal(err)
	}
	if r.attempt < 4 {
		t.Errorf("5 short connections count as %d attempts", r.attempt)
	}
}

// hintsAfter tells which nodes are reported by the locate after the first.
func hintsAfter(t *testing.T, sc script, play func(f *fake)) []string {
	t.Helper()
	f := newFake(t, sc)
	start(t, f.config())
	if first := recv(t, f.locates, "a locate"); len(first.Failed) != 0 {
		t.Errorf("the first locate reports %v", first.Failed)
	}
	if play != nil {
		play(f)
	}
	return recv(t, f.locates, "a second locate").Failed
}

func TestFailedHints(t *testing.T) {
	t.Parallel()
	sentTo := func(url string) script {
		return script{locate: func(f *fake, n int, _ locateCall) answer {
			return f.here(func(l *wire.LocateResponse) {
				if n == 0 {
					l.URL = url
				}
			})
		}}
	}
	after := func(play func(*session)) func(*fake) {
		return func(f *fake) { play(recv(t, f.sessions, "a dial").welcome(20_000)) }
	}
	web := newFake(t, script{})
	for name, c := range map[string]struct {
		sc   script
		play func(*fake)
		want []string
	}{
		"nobody listens":         {sc: sentTo("ws://" + closedAddr(t) + "/v1/ws"), want: []string{"ws-1"}},
		"no such host":           {sc: sentTo("ws://127.0.0.1:0/v1/ws"), want: []string{"ws-1"}},
		"not a node":             {sc: sentTo("ws" + web.url[4:] + "/nothing"), want: nil}, // it answers
		"lost":                   {play: after(func(s *session) { _ = s.nc.Close() }), want: []string{"ws-1"}},
		"lost before welcome":    {play: func(f *fake) { _ = recv(t, f.sessions, "a dial").nc.Close() }, want: []string{"ws-1"}},
		"closed":                 {play: after(func(s *session) { s.close(4103, "") }), want: nil},
		"closed before welcome":  {play: func(f *fake) { recv(t, f.sessions, "a dial").close(4204, "") }, want: nil},
		"closed without a code":  {play: after(func(s *session) { s.raw(frame(opClose, nil)); s.gone() }), want: nil},
		"lost in mid of a frame": {play: after(func(s *session) { s.raw([]byte{0x81, 10, '{'}); _ = s.nc.Close() }), want: []string{"ws-1"}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := hintsAfter(t, c.sc, c.play); !slices.Equal(got, c.want) {
				t.Errorf("%v are reported, want %v", got, c.want)
			}
		})
	}
}

func TestFailedHintsAreForgotten(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	start(t, f.config(), func(c *Client) {
		c.failed["old"] = time.Now().Add(-failedFor - time.Second)
		c.failed["new-1"] = time.Now()
		c.failed["new-2"] = time.Now().Add(failedFor) // far from the end of its minute
	})
	call := recv(t, f.locates, "a locate")
	slices.Sort(call.Failed)
	if !slices.Equal(call.Failed, []string{"new-1", "new-2"}) {
		t.Errorf("%v are reported", call.Failed)
	}
}

// When Run ends because its context does, no node has failed.
func TestNoHintsOfOwnEnd(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	r := start(t, f.config())
	recv(t, f.locates, "a locate")
	recv(t, f.sessions, "a dial").welcome(20_000)
	r.await(Connected)
	r.cancel()
	if err := r.result(); err != nil {
		t.Fatal(err)
	}
	r.again()
	if call := recv(t, f.locates, "the locate of a second Run"); len(call.Failed) != 0 {
		t.Errorf("%v are reported as failed, but the client left by itself", call.Failed)
	}
}

// Each attempt of a failing dial is an attempt of the back-off.
func TestEvents(t *testing.T) {
	t.Parallel()
	dead := "ws://" + closedAddr(t) + "/v1/ws"
	f := newFake(t, script{locate: func(f *fake, n int, _ locateCall) answer {
		switch n {
		case 0:
			return problem(503, wire.CodeNoNodes, "1")
		case 1:
			return f.here(func(l *wire.LocateResponse) { l.URL, l.Retry = dead, wire.Retry{BaseMS: 40, MaxMS: 1000} })
		}
		return f.here(func(l *wire.LocateResponse) { l.DialAfterMS = 3 })
	}})
	r := start(t, f.config())
	recv(t, f.sessions, "a dial").welcome(20_000)
	var states []State
	var list []Event
	for len(states) == 0 || states[len(states)-1] != Connected {
		e := recv(t, r.events, "an event")
		list, states = append(list, e), append(states, e.State)
	}
	if want := []State{Locating, Waiting, Locating, Dialing, Waiting, Locating, Waiting, Dialing, Connected}; !slices.Equal(states, want) {
		t.Fatalf("the states are %v, want %v", states, want)
	}
	var api *APIError
	if e := list[1]; !errors.As(e.Err, &api) || api.Status != 503 || api.RetryAfter != time.Second || e.Wait < time.Second {
		t.Errorf("waiting for a locator: %+v", e)
	}
	if e := list[4]; e.Err == nil || e.Wait > 80*time.Millisecond { // attempt 1 of base 40
		t.Errorf("waiting after a failed dial: %+v", e)
	}
	if e := list[6]; e.Wait != 3*time.Millisecond || e.Node != "ws-1" {
		t.Errorf("waiting for dial_after_ms: %+v", e)
	}
	if e := list[8]; e.Node != "ws-1" || e.Session != "s-1" || e.Err != nil || e != r.State() {
		t.Errorf("connected: %+v, State() %+v", e, r.State())
	}
	for s, want := range map[State]string{Waiting: "waiting", Locating: "locating", Dialing: "dialing", Connected: "connected", Stopped: "stopped"} {
		if s.String() != want {
			t.Errorf("%d is %q", s, s.String())
		}
	}
}

// A locator that is down does not keep a client from the other one.
func TestFirstLocatorDead(t *testing.T) {
	t.Parallel()
	f := newFake(t, script{})
	web := newFake(t, script{locate: func(*fake, int, locateCall) answer { return answer{body: "<html>"} }})
	for range 12 { // the order is random
		c, err := New(Config{Locators: []string{"http://" + closedAddr(t), web.url, f.url}, User: "alice", OnMessage: func(context.Context, Message) {}})
		if err != nil {
			t.Fatal(err)
		}
		loc, e := c.locate(context.Background())
		if e != nil {
			t.Fatal(e.err)
		}
		if loc.URL != f.ws {
			t.Errorf("located at %s", loc.URL)
		}
	}
	c, _ := New(Config{Locators: []string{"http://" + closedAddr(t)}, User: "alice", OnMessage: func(context.Context, Message) {}, HTTP: &http.Client{}})
	if _, e := c.locate(context.Background()); e == nil || e.stop != nil {
		t.Errorf("with dead locators only: %+v", e)
	}
}
