package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

var (
	errRefused = &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
	errBroken  = &net.OpError{Op: "read", Net: "tcp", Err: errors.New("connection reset by peer")}
)

// ways are all the ways to push; stored tells which carry idempotency keys.
var ways = map[string]struct {
	stored bool
	push   func(context.Context, *Pusher) error
}{
	"Push": {true, func(ctx context.Context, p *Pusher) error { _, err := p.Push(ctx, "a", 1); return err }},
	"Push, with a key": {true, func(ctx context.Context, p *Pusher) error {
		_, err := p.Push(ctx, "a", 1, IdempotencyKey("k"))
		return err
	}},
	"Push, ephemeral": {false, func(ctx context.Context, p *Pusher) error { _, err := p.Push(ctx, "a", 1, Ephemeral()); return err }},
	"Push, device":    {false, func(ctx context.Context, p *Pusher) error { _, err := p.Push(ctx, "a", 1, ToDevice("d")); return err }},
	"PushMany": {true, func(ctx context.Context, p *Pusher) error {
		_, err := p.PushMany(ctx, []Item{{User: "a", Data: 1}, {User: "b", Data: 1, Key: "k"}})
		return err
	}},
	"PushMany, ephemeral": {false, func(ctx context.Context, p *Pusher) error {
		_, err := p.PushMany(ctx, []Item{{User: "a", Data: 1}, {User: "b", Data: 1}}, Ephemeral())
		return err
	}},
	"PushUsers": {true, func(ctx context.Context, p *Pusher) error {
		_, err := p.PushUsers(ctx, []string{"a", "b"}, 1)
		return err
	}},
	"PushUsers, ephemeral": {false, func(ctx context.Context, p *Pusher) error {
		_, err := p.PushUsers(ctx, []string{"a", "b"}, 1, Ephemeral())
		return err
	}},
	"Broadcast": {false, func(ctx context.Context, p *Pusher) error { _, err := p.Broadcast(ctx, 1); return err }},
}

// A push is done again only when that is safe, and then it is the same request,
// to the next locator.
func TestPushRetries(t *testing.T) {
	status := func(status int) func() (answer, error) {
		return func() (answer, error) { return problem(status, wire.CodeInternal, ""), nil }
	}
	fails := func(err error) func() (answer, error) {
		return func() (answer, error) { return answer{}, err }
	}
	for name, c := range map[string]struct {
		first             func() (answer, error)
		stored, ephemeral bool // whether such a push is done again
	}{
		"refused connection": {fails(errRefused), true, true},
		"no such host":       {fails(&net.OpError{Op: "dial", Err: &net.DNSError{Name: "locator", IsNotFound: true}}), true, true},
		"503":                {status(503), true, true},
		"429":                {status(429), true, true},
		"broken connection":  {fails(errBroken), true, false},
		"no answer":          {fails(io.EOF), true, false},
		"half an answer":     {func() (answer, error) { return answer{body: `{"id":"m1`}, nil }, true, false},
		"an empty answer":    {func() (answer, error) { return answer{status: 204, body: ""}, nil }, true, false},
		"not a locator":      {func() (answer, error) { return answer{body: `<html>`}, nil }, true, false},
		"500":                {status(500), true, false},
		"502":                {status(502), true, false},
		"504":                {status(504), true, false},
		"400":                {status(400), false, false},
		"401":                {status(401), false, false},
		"403":                {status(403), false, false},
		"404":                {status(404), false, false},
		"413":                {status(413), false, false},
		"422":                {status(422), false, false},
	} {
		for way, w := range ways {
			t.Run(name+"/"+way, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := offlinePusher(t, PusherConfig{Locators: []string{"http://a", "http://b"}}, func(n int, _ *http.Request) (answer, error) {
						if n == 0 {
							return c.first()
						}
						return answer{body: `{"id":"m1","stored":true,"results":[{"id":"a"},{"id":"b"}]}`}, nil
					})
					err := w.push(t.Context(), p.Pusher)
					again := c.ephemeral
					if w.stored {
						again = c.stored
					}
					if !again {
						if err == nil || len(p.calls) != 1 {
							t.Errorf("%d calls, error %v; it must not be done again", len(p.calls), err)
						}
						return
					}
					if err != nil || len(p.calls) != 2 {
						t.Fatalf("%d calls, error %v; it must be done again", len(p.calls), err)
					}
					one, two := p.calls[0], p.calls[1]
					if one.host == two.host {
						t.Errorf("both went to %s", one.host)
					}
					if one.key != two.key || one.body != two.body || one.path != two.path || one.query.Encode() != two.query.Encode() || one.mediaType != two.mediaType {
						t.Errorf("they differ: %+v and %+v", one, two)
					}
				})
			})
		}
	}
}

func TestPushAttempts(t *testing.T) {
	for attempts, want := range map[int]int{0: 4, 1: 1, 7: 7} {
		synctest.Test(t, func(t *testing.T) {
			p := offlinePusher(t, PusherConfig{Locators: []string{"http://a", "http://b", "http://c"}, Attempts: attempts}, func(int, *http.Request) (answer, error) {
				return problem(503, wire.CodeNoNodes, "20"), nil
			})
			_, err := p.Push(t.Context(), "alice", 1)
			var api *APIError
			if !errors.As(err, &api) || api.Status != 503 || api.Code != "no_nodes" || api.RetryAfter != 20*time.Second {
				t.Errorf("%#v", err)
			}
			if len(p.calls) != want {
				t.Errorf("Attempts: %d: %d calls, want %d", attempts, len(p.calls), want)
			}
			var hosts, keys []string
			for i, c := range p.calls {
				hosts, keys = append(hosts, c.host), append(keys, c.key)
				if i > 0 && c.at.Sub(p.calls[i-1].at) < 20*time.Second {
					t.Errorf("call %d came %v after the one before; Retry-After was 20", i, c.at.Sub(p.calls[i-1].at))
				}
				if i >= 3 && hosts[i] != hosts[i-3] || i == 2 && len(slices.Compact(slices.Sorted(slices.Values(hosts)))) != 3 {
					t.Errorf("the locators are not asked in turn: %v", hosts)
				}
			}
			if slices.Sort(keys); len(slices.Compact(keys)) != 1 || keys[0] == "" {
				t.Errorf("the keys are %q", keys)
			}
		})
	}
}

// Of a locator that is dead and one that answers 503, the error is the answer, whichever
// was asked last.
func TestPushTellsTheAnswer(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		problem(503, wire.CodeNoNodes, "").write(w)
	}))
	defer srv.Close()
	dead := "http://" + closedAddr(t)
	for attempts := 2; attempts <= 3; attempts++ {
		for range 20 { // the order is random
			p, err := NewPusher(PusherConfig{Locators: []string{dead, srv.URL}, APIKey: "dev", Attempts: attempts})
			if err != nil {
				t.Fatal(err)
			}
			_, err = p.Push(t.Context(), "a", 1)
			p.cfg.HTTP.CloseIdleConnections()
			if api := (*APIError)(nil); !errors.As(err, &api) || api.Status != 503 {
				t.Fatalf("%d attempts: %v", attempts, err)
			}
		}
	}
}

// A push that may have been taken is not said to be refused, though an earlier attempt was.
func TestPushTellsTheDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := offlinePusher(t, PusherConfig{}, func(n int, _ *http.Request) (answer, error) {
			if n == 0 {
				return problem(503, wire.CodeNoNodes, ""), nil
			}
			return answer{}, errBroken
		})
		_, err := p.Push(t.Context(), "a", 1, Ephemeral())
		if !errors.Is(err, errBroken) || answered(err) || len(p.calls) != 2 {
			t.Errorf("after %d calls: %v", len(p.calls), err)
		}
	})
}

// The caller's context bounds it all.
func TestPushContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := offlinePusher(t, PusherConfig{}, func(int, *http.Request) (answer, error) { return problem(503, wire.CodeNoNodes, "3600"), nil })
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		began := time.Now()
		_, err := p.Push(ctx, "alice", 1)
		var api *APIError
		if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &api) || api.Status != 503 {
			t.Errorf("the error is %v; it should say why and that the time was over", err)
		}
		if d := time.Since(began); d > 10*time.Second || len(p.calls) != 1 {
			t.Errorf("%d calls in %v", len(p.calls), d)
		}
	})
	synctest.Test(t, func(t *testing.T) { // while it is under way
		p := offlinePusher(t, PusherConfig{}, func(_ int, r *http.Request) (answer, error) {
			<-r.Context().Done()
			return answer{}, r.Context().Err()
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := p.Push(ctx, "alice", 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
}

// WaitAck may be up to a minute; the Pusher's own client has to wait as long.
func TestWaitAckOfAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := offlinePusher(t, PusherConfig{}, func(_ int, r *http.Request) (answer, error) {
			if sleep(r.Context(), time.Minute) {
				return took(0, r)
			}
			return answer{}, r.Context().Err()
		})
		if _, err := p.Push(t.Context(), "alice", 1, WaitAck(time.Minute)); err != nil || len(p.calls) != 1 {
			t.Errorf("after %d calls: %v", len(p.calls), err)
		}
	})
}

// Over real connections: a locator that is not there, one that takes the request
// and breaks, and one that breaks a connection that was used before.
func TestPushRetriesOverTheNetwork(t *testing.T) {
	t.Parallel()
	for name, w := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var calls atomic.Int32
			var broken atomic.Bool
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls.Add(1)
				_, _ = io.Copy(io.Discard, r.Body)
				if broken.CompareAndSwap(true, false) {
					panic(http.ErrAbortHandler)
				}
				_, _ = fmt.Fprint(w, `{"id":"m1","stored":true,"results":[{"id":"a"},{"id":"b"}]}`)
			}))
			defer srv.Close()
			newPusher := func(locators ...string) *Pusher {
				p, err := NewPusher(PusherConfig{Locators: locators, APIKey: "dev"})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(p.cfg.HTTP.CloseIdleConnections)
				return p
			}
			dead := "http://" + closedAddr(t)
			for range 8 { // whichever comes first
				if err := w.push(t.Context(), newPusher(dead, srv.URL)); err != nil {
					t.Errorf("with a dead locator first: %v", err)
				}
			}
			if n := calls.Load(); n != 8 {
				t.Errorf("8 pushes are %d calls", n)
			}
			p := newPusher(srv.URL)
			for used := range 2 {
				calls.Store(0)
				broken.Store(true)
				err := w.push(t.Context(), p)
				if n := calls.Load(); w.stored && (n != 2 || err != nil) || !w.stored && (n != 1 || err == nil) {
					t.Errorf("broken on a connection, used before: %d: %d calls, error %v", used, n, err)
				}
				if err := w.push(t.Context(), p); err != nil { // leaves a connection to use
					t.Error(err)
				}
			}
		})
	}
}

// What cannot be meant is an error before anything is sent.
func TestPushRefusedHere(t *testing.T) {
	p, err := NewPusher(PusherConfig{Locators: []string{"http://127.0.0.1:1"}, APIKey: "k"})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	for name, do := range map[string]func() error{
		"key and ephemeral": func() error { _, err := p.Push(ctx, "a", 1, IdempotencyKey("k"), Ephemeral()); return err },
		"one key for many":  func() error { _, err := p.PushMany(ctx, []Item{{User: "a"}}, IdempotencyKey("k")); return err },
		"no user":           func() error { _, err := p.Push(ctx, "", 1); return err },
		"bytes to many":     func() error { _, err := p.PushUsers(ctx, []string{"a"}, []byte{1}); return err },
		"bytes to all":      func() error { _, err := p.Broadcast(ctx, []byte{1}); return err },
		"invalid JSON":      func() error { _, err := p.Push(ctx, "a", json.RawMessage("{")); return err },
		"no JSON":           func() error { _, err := p.Push(ctx, "a", make(chan int)); return err },
	} {
		var op *net.OpError
		if err := do(); err == nil || errors.As(err, &op) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
