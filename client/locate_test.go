package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// roundTrip is an HTTP transport without a network, for tests in fake time.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func (a answer) response() *http.Response {
	rec := httptest.NewRecorder()
	a.write(rec)
	return rec.Result()
}

var errDead = errors.New("connection refused, says the fake")

// offline is what a client did within a time, with locators that are a function.
type offline struct {
	locates []time.Duration // when
	hosts   []string        // which
	tokens  []string        // with which authorization
	events  []Event
	at      []time.Duration // of the events
	err     error
}

// runOffline runs a client for some time, of the bubble that it is called in.
func runOffline(t *testing.T, d time.Duration, cfg Config, locator func(n int, r *http.Request) (answer, error)) *offline {
	t.Helper()
	o, began := &offline{}, time.Now()
	if cfg.Locators == nil {
		cfg.Locators = []string{"http://locator"}
	}
	if cfg.Token == nil {
		cfg.User = "alice"
	}
	cfg.OnMessage = func(context.Context, Message) {}
	cfg.OnEvent = func(e Event) { o.events, o.at = append(o.events, e), append(o.at, time.Since(began)) }
	cfg.HTTP = &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		n := len(o.locates)
		o.locates, o.hosts = append(o.locates, time.Since(began)), append(o.hosts, r.URL.Host)
		o.tokens = append(o.tokens, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
		a, err := locator(n, r)
		if err != nil {
			return nil, err
		}
		return a.response(), nil
	})}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	o.err = c.Run(ctx)
	return o
}

// nowhere is a locator's answer that leads to a URL that cannot be dialed.
func nowhere(edit func(*wire.LocateResponse)) answer {
	l := wire.LocateResponse{User: "alice", Node: "ws-1", URL: "http://no-web-socket", Ticket: "t"}
	edit(&l)
	return answer{body: l}
}

func TestRetryAfterOfLocator(t *testing.T) {
	for _, status := range []int{429, 503} {
		synctest.Test(t, func(t *testing.T) {
			o := runOffline(t, time.Hour, Config{}, func(int, *http.Request) (answer, error) {
				return problem(status, wire.CodeRateLimited, "40"), nil // more than the back-off's 30 s
			})
			if n := len(o.locates); n < 80 || n > 91 {
				t.Errorf("%d: %d locates in an hour with Retry-After: 40", status, n)
			}
			for i := 1; i < len(o.locates); i++ {
				if d := o.locates[i] - o.locates[i-1]; d < 40*time.Second {
					t.Errorf("%d: the client came back after %v", status, d)
				}
			}
		})
	}
}

// It is a lower bound also when another locator was asked after the one that said it.
func TestRetryAfterOfOneLocator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, last, shortest := time.Now(), -time.Hour, time.Hour
		runOffline(t, time.Hour, Config{Locators: []string{"http://busy", "http://dead"}}, func(_ int, r *http.Request) (answer, error) {
			if r.URL.Host == "dead" {
				return answer{}, errDead
			}
			now := time.Since(began)
			shortest, last = min(shortest, now-last), now
			return problem(503, wire.CodeNoNodes, "60"), nil
		})
		if shortest < 60*time.Second {
			t.Errorf("the busy locator was asked again after %v; it said Retry-After: 60", shortest)
		}
	})
}

func TestRetryFromLocate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Without a word of a locator: the default.
		o := runOffline(t, 24*time.Hour, Config{}, func(int, *http.Request) (answer, error) { return answer{}, errDead })
		var longest time.Duration
		for i, e := range waits(o) {
			longest = max(longest, e)
			if ceiling := min(30*time.Second, 500*time.Millisecond<<min(i, 10)); e > ceiling {
				t.Errorf("wait %d is %v, want at most %v", i, e, ceiling)
			}
		}
		if longest < 20*time.Second {
			t.Errorf("in a day the longest wait is %v", longest)
		}
		// As a locator says, from then on.
		o = runOffline(t, 24*time.Hour, Config{}, func(n int, _ *http.Request) (answer, error) {
			if n == 0 {
				return nowhere(func(l *wire.LocateResponse) { l.Retry = wire.Retry{BaseMS: 2000, MaxMS: 200_000} }), nil
			}
			return answer{}, errDead
		})
		longest = 0
		for i, e := range waits(o) {
			longest = max(longest, e)
			if ceiling := min(200*time.Second, 2*time.Second<<min(i, 10)); e > ceiling {
				t.Errorf("wait %d is %v, want at most %v", i, e, ceiling)
			}
		}
		if longest < 100*time.Second {
			t.Errorf("in a day the longest wait is %v", longest)
		}
		// Nonsense changes nothing, and does not make the client spin.
		for _, retry := range []wire.Retry{{}, {BaseMS: -1, MaxMS: -1}, {BaseMS: 0, MaxMS: 10}, {BaseMS: 10, MaxMS: 5}, {BaseMS: -5, MaxMS: 5}} {
			o = runOffline(t, time.Hour, Config{}, func(int, *http.Request) (answer, error) {
				return nowhere(func(l *wire.LocateResponse) { l.Retry = retry }), nil
			})
			if n := len(o.locates); n > 1000 {
				t.Errorf("with %+v there are %d locates in an hour", retry, n)
			}
		}
	})
}

func waits(o *offline) (list []time.Duration) {
	for _, e := range o.events {
		if e.State == Waiting {
			list = append(list, e.Wait)
		}
	}
	return list
}

func TestDialAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := runOffline(t, time.Minute, Config{}, func(int, *http.Request) (answer, error) {
			return nowhere(func(l *wire.LocateResponse) { l.DialAfterMS = 25_000 }), nil
		})
		if len(o.events) < 3 || o.events[1].State != Waiting || o.events[1].Wait != 25*time.Second || o.events[2].State != Dialing {
			t.Fatalf("events %+v", o.events)
		}
		if d := o.at[2] - o.locates[0]; d < 25*time.Second {
			t.Errorf("it dialed %v after the locate, dial_after_ms was 25000", d)
		}
		// A nonsensical one does not stop it either.
		o = runOffline(t, time.Minute, Config{}, func(int, *http.Request) (answer, error) {
			return nowhere(func(l *wire.LocateResponse) { l.DialAfterMS = -25_000 }), nil
		})
		if len(o.events) < 2 || o.events[1].State != Dialing {
			t.Errorf("events with a negative dial_after_ms: %+v", o.events)
		}
	})
}

// tokens counts: each call of the source returns another token.
func tokens(calls *int) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		*calls++
		return fmt.Sprint("t", *calls), nil
	}
}

func TestTokenBeforeEachLocate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		o := runOffline(t, 5*time.Minute, Config{Token: tokens(&calls)}, func(n int, r *http.Request) (answer, error) {
			if r.URL.RawQuery != "" {
				t.Errorf("the query is %q", r.URL.RawQuery)
			}
			return answer{}, errDead
		})
		if calls < 5 || calls != len(o.locates) {
			t.Fatalf("%d calls for %d locates", calls, len(o.locates))
		}
		for i, tok := range o.tokens {
			if want := fmt.Sprint("t", i+1); tok != want {
				t.Errorf("locate %d came with the token %s, want %s", i, tok, want)
			}
		}
		if o.err != nil {
			t.Errorf("Run returned %v", o.err)
		}
	})
}

func TestTokenSourceFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down, calls := errors.New("sign-in is down"), 0
		o := runOffline(t, time.Minute, Config{Token: func(ctx context.Context) (string, error) {
			if calls++; calls < 3 {
				return "", down
			}
			return "good", nil
		}}, func(int, *http.Request) (answer, error) { return answer{}, errDead })
		if !slices.ContainsFunc(o.events, func(e Event) bool { return e.State == Waiting && errors.Is(e.Err, down) }) {
			t.Errorf("no event tells of the failing token source: %+v", o.events)
		}
		if len(o.tokens) == 0 || o.tokens[0] != "good" {
			t.Errorf("locates with the tokens %q", o.tokens)
		}
	})
}

func TestRefusedToken(t *testing.T) {
	refuse := func(int, *http.Request) (answer, error) { return problem(401, wire.CodeUnauthorized, ""), nil }
	two := []string{"http://a", "http://b"}
	for name, c := range map[string]struct {
		locators []string
		locator  func(int, *http.Request) (answer, error)
		stops    bool
		calls    int
	}{
		"once": {nil, func(n int, r *http.Request) (answer, error) {
			if n == 0 {
				return refuse(n, r)
			}
			return answer{}, errDead
		}, false, 0},
		"twice": {nil, refuse, true, 2},
		"again and again, but not in a row": {nil, func(n int, r *http.Request) (answer, error) {
			if n%2 == 0 {
				return refuse(n, r)
			}
			return nowhere(func(*wire.LocateResponse) {}), nil
		}, false, 0},
		// Both know that the first token has expired.
		"once by each of two locators": {two, func(n int, r *http.Request) (answer, error) {
			if r.Header.Get("Authorization") == "Bearer t1" {
				return refuse(n, r)
			}
			return answer{}, errDead
		}, false, 0},
		"twice by each of two locators": {two, refuse, true, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				calls := 0
				o := runOffline(t, time.Minute, Config{Locators: c.locators, Token: tokens(&calls)}, c.locator)
				var stopped *StoppedError
				if got := errors.As(o.err, &stopped); got != c.stops || !got && o.err != nil {
					t.Fatalf("Run returned %v", o.err)
				}
				if calls < 2 || c.calls != 0 && calls != c.calls {
					t.Errorf("the token source was called %d times", calls)
				}
				if c.stops && (stopped.Status != 401 || stopped.Code != 0 || stopped.Reason != "says the fake") {
					t.Errorf("%+v", stopped)
				}
			})
		})
	}
}

func TestStatusOfLocator(t *testing.T) {
	for status, final := range map[int]bool{
		400: true, 403: true, 404: true, 413: true,
		408: false, 429: false, 500: false, 502: false, 503: false, 504: false, 204: false,
	} {
		synctest.Test(t, func(t *testing.T) {
			o := runOffline(t, time.Minute, Config{}, func(int, *http.Request) (answer, error) {
				return problem(status, wire.CodeInternal, ""), nil
			})
			var stopped *StoppedError
			switch got := errors.As(o.err, &stopped); {
			case got != final:
				t.Errorf("%d: Run returned %v", status, o.err)
			case final && (stopped.Status != status || len(o.locates) != 1):
				t.Errorf("%d: %+v after %d locates", status, stopped, len(o.locates))
			case !final && (o.err != nil || len(o.locates) < 3):
				t.Errorf("%d: Run returned %v after %d locates", status, o.err, len(o.locates))
			}
		})
	}
}

// Of a locator that is dead and one that answers, what is told is the answer.
func TestLocateTellsTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := runOffline(t, time.Hour, Config{Locators: []string{"http://dead", "http://busy"}}, func(_ int, r *http.Request) (answer, error) {
			if r.URL.Host == "dead" {
				return answer{}, errDead
			}
			return problem(503, wire.CodeNoNodes, ""), nil
		})
		told := 0
		for _, e := range o.events {
			if e.Err == nil {
				continue
			}
			if told++; !answered(e.Err) {
				t.Errorf("%+v", e)
			}
		}
		if told < 20 {
			t.Errorf("only %d failures were told", told)
		}
	})
}
