package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dialring/dialring/client"
	"github.com/dialring/dialring/internal/wire"
	"github.com/dialring/dialring/locator"
)

// What the checker must find, each by itself.
func TestChecker(t *testing.T) {
	now := time.Now()
	type counts struct{ lost, twice, misdelivered, strange int }
	for name, c := range map[string]struct {
		do   func(*checker)
		want counts
	}{
		"all is well": {func(c *checker) {
			a, b := c.begin(1, now), c.begin(2, now)
			c.arrive(2, b) // before its answer, and before the one pushed before it
			c.answer(a, true)
			c.answer(b, true)
			c.arrive(1, a)
		}, counts{}},
		"a hole": {func(c *checker) {
			a, b, d := c.begin(1, now), c.begin(1, now), c.begin(1, now)
			for _, n := range []uint64{a, b, d} {
				c.answer(n, true)
			}
			c.arrive(1, a)
			c.arrive(1, d)
		}, counts{lost: 1}},
		"twice, at once": {func(c *checker) {
			a := c.begin(1, now)
			c.arrive(1, a)
			c.arrive(1, a)
			c.answer(a, true)
		}, counts{twice: 1}},
		"twice, long after": {func(c *checker) {
			a := c.begin(1, now)
			c.answer(a, true)
			c.arrive(1, a)
			c.begin(1, now)
			c.arrive(1, a)
			c.arrive(1, a)
		}, counts{twice: 2}},
		"to another user": {func(c *checker) {
			a := c.begin(1, now)
			c.answer(a, true)
			c.arrive(2, a)
			c.arrive(1, a)
		}, counts{misdelivered: 1}},
		"never pushed": {func(c *checker) { c.arrive(1, 1); c.arrive(1, 0) }, counts{strange: 2}},
		"failed, and gone": {func(c *checker) {
			a := c.begin(1, now)
			c.answer(a, false)
		}, counts{}},
		"failed, and arrives all the same, twice": {func(c *checker) {
			a := c.begin(1, now)
			c.answer(a, false)
			c.arrive(1, a)
			c.arrive(1, a)
		}, counts{twice: 1}},
	} {
		k := newChecker()
		c.do(k)
		lost, _ := k.missing()
		if got := (counts{lost, k.twice, k.misdelivered, k.strange}); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
		if n := len(k.lost(10)); n != c.want.lost {
			t.Errorf("%s: %d are listed as lost, want %d", name, n, c.want.lost)
		}
	}
	// What is settled takes no memory.
	k := newChecker()
	for range 1000 {
		n := k.begin(1, now)
		k.arrive(1, n)
		k.answer(n, true)
	}
	if len(k.open) != 0 {
		t.Errorf("%d pushes are kept", len(k.open))
	}
}

func TestVerdict(t *testing.T) {
	for code, s := range map[int]summary{
		exitDone:        {},
		exitInterrupted: {Interrupted: true},
	} {
		if got := codeOrDone(t, s.verdict()); got != code {
			t.Errorf("%+v ends with %d, want %d", s, got, code)
		}
	}
	for _, r := range []summaryReceived{{Lost: 1}, {Twice: 1}, {Misdelivered: 1}, {Strange: 1}} {
		s := summary{Received: r, Interrupted: true}
		if got := codeOrDone(t, s.verdict()); got != exitFailed {
			t.Errorf("%+v ends with %d", r, got)
		}
	}
}

func codeOrDone(t *testing.T, err error) int {
	if err == nil {
		return exitDone
	}
	return codeOf(t.Context(), err)
}

func TestPayload(t *testing.T) {
	for _, size := range []int{minPayload, 128, 5000} {
		for _, n := range []uint64{1, 1<<64 - 1} {
			b := payloadOf("abcdefgh", n, size)
			var x letter
			if err := json.Unmarshal(b, &x); err != nil || x.N != n || x.Load != "abcdefgh" || len(b) != size {
				t.Errorf("%d bytes, %v: %s", len(b), err, b)
			}
		}
	}
}

func TestQuantiles(t *testing.T) {
	l := newLatencies()
	for i := range 1000 {
		l.record(time.Duration(i+1) * time.Millisecond)
	}
	near := func(got, want float64) bool { return got > want*0.998 && got < want*1.002 }
	if q := l.total(); q.Count != 1000 || !near(q.P50, 500) || !near(q.P95, 950) || !near(q.P99, 990) || !near(q.Max, 1000) {
		t.Errorf("%+v", q)
	}
	if q := l.sinceLast(); q.Count != 1000 {
		t.Errorf("%+v", q)
	}
	l.record(0)
	l.record(100 * time.Hour)
	if q := l.sinceLast(); q.Count != 2 || !near(q.Max, 3_600_000) || l.total().Count != 1002 {
		t.Errorf("%+v of the last two, %+v of all", q, l.total())
	}
}

func summaryOf(t *testing.T, o outcome) *summary {
	t.Helper()
	s := &summary{}
	decode(t, o.out, s)
	return s
}

func TestLoad(t *testing.T) {
	t.Parallel()
	const secret = "a secret of at least thirty-two bytes"
	c := startCluster(t, 3, locator.Config{UserJWTSecret: secret})
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Run("open loop, with tokens", func(t *testing.T) {
		t.Parallel()
		o := c.do(t, "load", "--sessions", "50", "--rate", "100/s", "--duration", "1s", "--jwt-secret-file", file, "--users-prefix", "token-")
		o.want(t, exitDone, "")
		s := summaryOf(t, o)
		if s.Nodes != 3 || s.Sessions.Connected != 50 || s.Sessions.Connect.Count != 50 || s.Settings.Loop != "open" || !s.Settings.Stored ||
			s.Pushes.Sent+s.Pushes.NotSent != 100 || s.Pushes.Accepted != s.Pushes.Sent || s.Received.Count != s.Pushes.Sent ||
			s.Received.Latency.Count != s.Received.Count || s.Received.Latency.P50 <= 0 || s.Received.LostNumbers == nil {
			t.Errorf("%s", o.out)
		}
	})
	t.Run("closed loop, ephemeral", func(t *testing.T) {
		t.Parallel()
		o := c.do(t, "load", "--sessions", "20", "--rate", "0", "--duration", "500ms", "--pushers", "4", "--size", "1000", "--ephemeral", "--users-prefix", "eph-", "-o", "table")
		o.want(t, exitDone, "")
		for _, text := range []string{"20 of 20 sessions connected to 3 nodes\n", " ephemeral pushes of 1000 bytes", "from the call (closed loop)\n", "0 lost, 0 twice, 0 to another user\n", "failed 0, not sent 0\n"} {
			if !strings.Contains(o.out, text) {
				t.Errorf("%q is missing in\n%s", text, o.out)
			}
		}
	})
	t.Run("a wrong secret", func(t *testing.T) {
		t.Parallel()
		wrong := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(wrong, []byte(strings.ToUpper(secret)), 0o600); err != nil {
			t.Fatal(err)
		}
		o := c.do(t, "load", "--sessions", "5", "--jwt-secret-file", wrong, "--users-prefix", "wrong-")
		o.want(t, exitFailed, "5 sessions connected: the locator refuses these users")
		o.want(t, exitFailed, "does --jwt-secret-file have")
		if strings.Contains(o.errors, "--user") {
			t.Errorf("load has no --user: %s", o.errors)
		}
		if s := summaryOf(t, o); s.Sessions.Connected != 0 || s.Sessions.Stopped != 5 || s.Pushes.Sent != 0 || countsText(s.Errors.Sessions) != "refused_401 5" {
			t.Errorf("%s", o.out)
		}
	})
	t.Run("interrupted", func(t *testing.T) {
		t.Parallel()
		b := c.begin(t, "load", "--sessions", "5", "--rate", "50", "--duration", "1h", "--users-prefix", "int-")
		eventually(t, "it pushes", func() bool {
			var u wire.UserResponse
			decode(t, c.ok(t, "where", "int-3"), &u)
			return u.Head > 0
		})
		b.cancel()
		var s summary
		if decode(t, b.ends(exitInterrupted), &s); !s.Interrupted || s.Received.Count != s.Pushes.Accepted || s.Pushes.Failed != 0 {
			t.Errorf("%+v", s)
		}
	})
	t.Run("more than its pushers can", func(t *testing.T) {
		t.Parallel()
		slow := between(t, c, func(next http.Handler, w http.ResponseWriter, r *http.Request) {
			time.Sleep(100 * time.Millisecond) // the answer is that late, so one pusher sends 10 a second
			next.ServeHTTP(w, r)
		})
		o := command(t, "", slow, "load", "--sessions", "5", "--rate", "100", "--duration", "2s", "--pushers", "1", "--users-prefix", "slow-")
		o.want(t, exitDone, "")
		s := summaryOf(t, o)
		// Latency counts from when a push was due: the last ones waited for more than a second.
		if s.Pushes.NotSent < 150 || s.Pushes.Sent > 21 || s.Pushes.Latency.Max < 1000 || s.Received.Latency.Max < 1000 {
			t.Errorf("%s", o.out)
		}
	})
}

// Pushes that fail have percentiles of their own.
func TestLoadTellsFailedCalls(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, locator.Config{})
	var n atomic.Int64
	env := between(t, c, func(next http.Handler, w http.ResponseWriter, r *http.Request) {
		if n.Add(1)%3 == 0 {
			problem(w, 400, wire.CodeInvalidRequest) // is not tried again
			return
		}
		next.ServeHTTP(w, r)
	})
	args := []string{"load", "--sessions", "5", "--rate", "50", "--duration", "1s"}
	o := command(t, "", env, args...)
	o.want(t, exitDone, "")
	p := summaryOf(t, o).Pushes
	if p.Failed == 0 || p.Failing.Count != p.Failed || p.Latency.Count != p.Accepted || p.Failing.Max <= 0 {
		t.Errorf("%+v", p)
	}
	o = command(t, "", env, append(args, "-o", "table", "--users-prefix", "more-")...)
	o.want(t, exitDone, "")
	if !strings.Contains(o.out, " calls, which are not in the line above)\n") {
		t.Errorf("%s", o.out)
	}
}

// between is a locator in front of a cluster that does something with pushes.
func between(t *testing.T, c *cluster, f func(next http.Handler, w http.ResponseWriter, r *http.Request)) (env []string) {
	t.Helper()
	u, err := url.Parse(c.url)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(u)
	proxy.Transport = keepNothing()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v1/push/") {
			f(proxy, w, r)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return []string{"DIALRING_CLI_LOCATOR=" + s.URL}
}

// A cluster that loses some messages and sends others twice, to sessions that are real.
func TestLoadFindsFaults(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, locator.Config{})
	var n, dropped, doubled atomic.Int64
	env := between(t, c, func(next http.Handler, w http.ResponseWriter, r *http.Request) {
		switch n.Add(1) % 20 {
		case 7: // said to be stored, and gone
			dropped.Add(1)
			_ = json.NewEncoder(w).Encode(wire.PushResult{ID: "m", Seq: 1, Stored: true, Node: "ws-1"})
		case 14: // stored twice
			doubled.Add(1)
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			again := r.Clone(r.Context())
			again.Header.Del("Idempotency-Key")
			again.Body, r.Body = io.NopCloser(bytes.NewReader(body)), io.NopCloser(bytes.NewReader(body))
			next.ServeHTTP(httptest.NewRecorder(), again)
			next.ServeHTTP(w, r)
		default:
			next.ServeHTTP(w, r)
		}
	})
	o := command(t, "", env, "load", "--sessions", "20", "--rate", "100", "--duration", "1s")
	o.want(t, exitFailed, " messages were lost, ")
	s := summaryOf(t, o)
	if s.Received.Lost != int(dropped.Load()) || s.Received.Twice != int(doubled.Load()) || s.Received.Lost == 0 || s.Received.Twice == 0 || len(s.Received.LostNumbers) != s.Received.Lost {
		t.Errorf("%d were dropped and %d doubled: %s", dropped.Load(), doubled.Load(), o.out)
	}
}

func TestKindOf(t *testing.T) {
	var seen tally
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() { seen.add(errors.New("x")) })
	}
	wg.Wait()
	for _, err := range []error{
		&client.APIError{Status: 503, Code: "no_nodes"}, &client.APIError{Status: 502}, &client.CloseError{Code: 4201},
		&client.StoppedError{Code: 4003}, &client.StoppedError{Status: 401}, &url.Error{Op: "Get", Err: errors.New("refused")},
	} {
		seen.add(fmt.Errorf("dialring: %w", err))
	}
	want := "close_4003 1, close_4201 1, connection_lost 10, http_502 1, no_nodes 1, refused_401 1, unreachable 1"
	if got := countsText(seen.counts()); got != want || countsText(nil) != "none" {
		t.Errorf("%s, want %s", got, want)
	}
}
