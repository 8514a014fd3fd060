package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/dialring/dialring/internal/wire"
	"github.com/dialring/dialring/locator"
)

func decode(t *testing.T, text string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
}

// lying is a locator that is none: it answers what a test wants.
func lying(t *testing.T, h http.HandlerFunc) (env []string) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return []string{"DIALRING_CLI_LOCATOR=" + s.URL}
}

func problem(w http.ResponseWriter, status int, code wire.Code) {
	w.Header().Set("Content-Type", wire.ProblemType)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(wire.NewProblem(status, code, "says the test"))
}

// nobody is an address where nobody listens, nor will as long as the test runs: the local
// end of a connection.
func nobody(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	return "http://" + nc.LocalAddr().String()
}

func TestExitByStatus(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		status int
		code   wire.Code
		want   int
		text   string
	}{
		{400, wire.CodeInvalidRequest, exitFailed, "invalid_request: says the test"},
		{401, wire.CodeUnauthorized, exitFailed, "set DIALRING_CLI_API_KEY"},
		{403, wire.CodeForbidden, exitFailed, "scopes or users in the locators' file do not allow it"},
		{404, wire.CodeNotFound, exitFailed, "not_found"},
		{500, wire.CodeInternal, exitFailed, "internal"},
		{429, wire.CodeRateLimited, exitAgain, "rate_limited"},
		{502, "", exitAgain, "502"},
		{503, wire.CodeNoNodes, exitAgain, "no_nodes"},
		{504, wire.CodeOwnerUnreachable, exitAgain, "owner_unreachable"},
	} {
		t.Run(fmt.Sprint(c.status), func(t *testing.T) {
			t.Parallel()
			env := lying(t, func(w http.ResponseWriter, _ *http.Request) { problem(w, c.status, c.code) })
			for _, args := range [][]string{{"ring"}, {"where", "alice"}, {"plan", "--add", "ws-4"}, {"drain", "ws-1", "--yes"}, {"kick", "alice"}, {"load"}} {
				o := command(t, "", env, args...)
				o.want(t, c.want, c.text)
				if o.out != "" {
					t.Errorf("%v wrote %q to stdout", args, o.out)
				}
			}
		})
	}
}

// A push that may be repeated tells its key: the random one that was sent, or the given one.
func TestExitTellsTheKey(t *testing.T) {
	t.Parallel()
	sent := make(chan string, 64)
	env := lying(t, func(w http.ResponseWriter, r *http.Request) {
		sent <- r.Header.Get("Idempotency-Key")
		problem(w, 503, wire.CodeStoreUnavailable)
	})
	o := command(t, "", env, "push", "alice", "hi")
	o.want(t, exitAgain, "repeat it with --key "+<-sent+":")
	command(t, "", env, "push", "alice", "hi", "--key", "order-1").want(t, exitAgain, "repeat it with --key order-1:")
	command(t, "", env, "push", "--group", "g", "hi", "--key", "order-1").want(t, exitAgain, "repeat it with --key order-1:")
	command(t, "", env, "push", "a", "b", "-d", "hi", "--key", "order-1").want(t, exitAgain, "repeat it with --key order-1:")
	o = command(t, "", env, "push", "alice", "hi", "--ephemeral")
	if o.want(t, exitAgain, "store_unavailable"); strings.Contains(o.errors, "--key") {
		t.Errorf("an ephemeral push has no key: %s", o.errors)
	}
}

// Of several users what is refused for good counts more than what may be tried again.
func TestExitOfSeveral(t *testing.T) {
	t.Parallel()
	answer := func(codes ...string) []string {
		return lying(t, func(w http.ResponseWriter, _ *http.Request) {
			results := []any{wire.PushResult{User: "a", ID: "m1", Seq: 1, Stored: true, Node: "ws-1"}}
			for _, c := range codes {
				if c == "" {
					results = append(results, wire.PushResult{User: "b", ID: "m2", Seq: 1, Stored: true, Node: "ws-1"})
					continue
				}
				results = append(results, wire.GroupFailed{User: "b", Error: wire.PushError{Code: wire.Code(c), Detail: "says the test"}})
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"results": results})
		})
	}
	args := []string{"push", "a", "b", "--data", "1"}
	command(t, "", answer(""), args...).want(t, exitDone, "")
	command(t, "", answer("store_unavailable"), args...).want(t, exitAgain, "the push failed for 1 of 2 users\nrepeat it with --key")
	o := command(t, "", answer("store_unavailable", "too_large"), "push", "a", "b", "c", "--data", "1")
	o.want(t, exitFailed, "the push failed for 2 of 3 users")
	if want := `{"user":"b","error":{"code":"too_large","detail":"says the test"}}`; !strings.Contains(o.out, want) {
		t.Errorf("stdout is %s, want %s in it", o.out, want)
	}
	golden(t, "push-failed", command(t, "", answer("store_unavailable"), append(args, "-o", "table")...).out)
}

func TestExitUnreachable(t *testing.T) {
	t.Parallel()
	url := nobody(t)
	for _, args := range [][]string{{"ring"}, {"push", "alice", "hi"}, {"listen", "--user", "alice"}, {"load"}, {"ring", "--watch"}, {"drain", "ws-1", "--yes"}} {
		o := command(t, "", nil, append(args, "--locator", url)...)
		o.want(t, exitUnreachable, "no locator at "+url+" answers (connect: connection refused): is one running? Set DIALRING_CLI_LOCATOR or --locator")
	}
	// One of them is enough.
	env := lying(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"nodes":[]}`)) })
	for range 10 { // they are asked in a random order
		command(t, "", nil, "ring", "--locator", url+","+strings.TrimPrefix(env[0], "DIALRING_CLI_LOCATOR=")).want(t, exitDone, "")
	}
}

// What was shown once is watched on, also when a locator fails for a while.
func TestWatchGoesOn(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	c := &cluster{env: lying(t, func(w http.ResponseWriter, _ *http.Request) {
		if calls.Add(1) == 2 {
			problem(w, 500, wire.CodeInternal) // the SDK tries that again
			return
		}
		if calls.Load() == 4 {
			problem(w, 404, wire.CodeNotFound)
			return
		}
		_, _ = w.Write([]byte(`{"cluster":"c","nodes":[]}`))
	})}
	b := c.begin(t, "ring", "--watch")
	b.says("404 not_found")
	eventually(t, "it goes on", func() bool {
		out, _ := b.text()
		return strings.Count(out, "\n") >= 3
	})
	b.cancel()
	var r wire.RingResponse
	if decode(t, strings.SplitN(b.ends(exitDone), "\n", 2)[0], &r); r.Cluster != "c" {
		t.Errorf("%+v", r)
	}
}

// A drain that nobody waits for any more goes on.
func TestDrainInterrupted(t *testing.T) {
	t.Parallel()
	c := &cluster{env: lying(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			w.WriteHeader(http.StatusAccepted)
		}
		_, _ = w.Write([]byte(`{"epoch":2,"nodes":[{"id":"ws-1","state":"draining","sessions":3}]}`))
	})}
	b := c.begin(t, "drain", "ws-1", "--yes", "--wait")
	b.says("ws-1: draining, 3 of 3 sessions left")
	b.cancel()
	if out := b.ends(exitInterrupted); out != `{"node":"ws-1","state":"draining"}`+"\n" {
		t.Errorf("%s", out)
	}
	b.says("ws-1 goes on draining")
}

func TestExitInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	env := lying(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // only then the server looks whether the caller is still there
		cancel()
		<-r.Context().Done()
	})
	var out, errs bytes.Buffer
	if code := run(ctx, []string{"push", "alice", "hi"}, getenv(env), strings.NewReader(""), &out, &errs); code != exitInterrupted || errs.String() != "dialring: interrupted\n" {
		t.Errorf("ended with %d, %s", code, errs.String())
	}
}

// A locator that takes a connection and never answers.
func TestHangingLocator(t *testing.T) {
	t.Parallel()
	c := &cluster{env: lying(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})}
	for _, args := range [][]string{{"ring"}, {"where", "alice"}, {"push", "alice", "hi"}, {"push", "a", "b", "-d", "1"}, {"drain", "ws-1", "--yes"}, {"kick", "alice"}, {"plan", "--remove", "ws-1"}, {"load"}} {
		o := c.do(t, append(args, "--timeout", "50ms")...)
		o.want(t, exitUnreachable, "(nothing came within 50ms, see --timeout): is one running?")
		if key := strings.Contains(o.errors, "repeat it with --key"); key != (args[0] == "push") {
			t.Errorf("%v: %s", args, o.errors)
		}
	}
	b := c.begin(t, "ring")
	b.says("dialring: still waiting for http://127.0.0.1:")
	b.says("gives up after 20s (--timeout)")
	b.cancel()
	b.ends(exitInterrupted)
}

// A locator that asks to wait for longer than --timeout is told as what it is.
func TestLocatorAsksToWait(t *testing.T) {
	t.Parallel()
	env := lying(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "3600")
		problem(w, 503, wire.CodeNoNodes)
	})
	command(t, "", env, "ring").want(t, exitAgain, "no_nodes: says the test; trying again takes longer than 20s (--timeout)")
}

// What answers is no locator.
func TestNoLocatorThere(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, locator.Config{})
	r, err := c.pusher.Ring(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(r.Nodes[0].URL)
	if err != nil {
		t.Fatal(err)
	}
	plain := lying(t, func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) })
	page := lying(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) })
	for name, at := range map[string]string{"a node": "http://" + u.Host, "nothing there": addressIn(plain), "a page": addressIn(page), "NATS": "http://" + c.nats, "an admin port": "http://" + c.admin} {
		for _, args := range [][]string{{"ring"}, {"push", "alice", "hi"}, {"listen", "--user", "alice"}} {
			o := command(t, "", nil, append(args, "--locator", at)...)
			if !strings.Contains(o.errors, "no locator answers at "+at+", but something else does") || o.code == exitDone || strings.Contains(o.errors, "INFO") {
				t.Errorf("%s, %v: ended with %d, %s", name, args, o.code, o.errors)
			}
		}
	}
}

func addressIn(env []string) string { return strings.TrimPrefix(env[0], "DIALRING_CLI_LOCATOR=") }

// A user whom the locator refuses is not tried again.
func TestListenRefused(t *testing.T) {
	t.Parallel()
	env := lying(t, func(w http.ResponseWriter, _ *http.Request) { problem(w, 401, wire.CodeUnauthorized) })
	command(t, "", env, "listen", "--user", "alice").want(t, exitFailed, "the locator refuses this user (says the test)")
	command(t, "", append(env, "DIALRING_CLI_TOKEN=x"), "listen").want(t, exitFailed, "the locator refuses this user (says the test)")
}

func TestWrongUsage(t *testing.T) {
	t.Parallel()
	called := false
	env := lying(t, func(http.ResponseWriter, *http.Request) { called = true })
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		line string
		text string
	}{
		{"rong", `there is no command "rong"`},
		{"ring --wat", "unknown flag: --wat"},
		{"ring now", `dialring ring takes no argument, and there is "now"`},
		{"ring -o xml", `--output is "xml"`},
		{"ring --locator ftp://x", "is no locator's URL"},
		{"ring --locator https://push.example.com", "an API key is needed"},
		{"ring --api-key-file /nowhere/key", "--api-key-file"},
		{"ring --api-key-file " + empty, "has 0 bytes"},
		{"listen", "who listens?"},
		{"listen vip", "say --user vip"},
		{"ring --timeout 0s", "--timeout is 0s"},
		{"completion nope", `there is no completion for "nope"`},
		{"completion bash now", "unknown command"},
		{"help nope", `there is no command "nope"`},
		{"help push nope", `there is no command "push nope"`},
		{"listen --user a --token b", "none of the others can be"},
		{"listen --user a --device /", "a device id"},
		{"listen --user a --count -1", "--count is -1"},
		{"listen --user a --since \x01", "a cursor"},
		{"listen --token-file /nowhere/token", "--token-file"},
		{"listen --user a --send-to \x01", "--send-to"},
		{"push", "to whom?"},
		{"push alice", "stdin is empty"},
		{"push alice bob hello", "Say: push alice bob --data"},
		{"push --group g a b", "at most one argument"},
		{"push --group g a --data b", "no user is an argument"},
		{"push --users /nowhere/users hi", "--users"},
		{"push --users " + empty + " hi", "there is no user in"},
		{"push --users -", "stdin is for the users"},
		{"push --users x --group y hi", "none of the others can be"},
		{"push a\x01b hi", "control characters"},
		{"push alice hi --json", "the data is not valid JSON"},
		{"push alice hi --json --raw", "none of the others can be"},
		{"push a b --data hi --raw", "--raw goes to one user"},
		{"push alice hi --key k --ephemeral", "--key, --ttl and --wait-ack are of stored messages"},
		{"push alice hi --device d --ttl 1s", "--key, --ttl and --wait-ack are of stored messages"},
		{"push alice hi --device /", "--device"},
		{"push alice hi --ttl 1us", "--ttl is a millisecond at least"},
		{"push alice hi --wait-ack 2m", "a millisecond to a minute"},
		{"push --group g hi --wait-ack 1s", "do not go with --group"},
		{"push alice hi --key " + strings.Repeat("k", 129), "at most 128"},
		{"where", "takes one user, and there are 0: say dialring where alice"},
		{"where a b", "takes one user, and there are 2"},
		{"where \x01", "control characters"},
		{"kick", "takes one user"},
		{"kick alice --device d --revoke", "none of the others can be"},
		{"kick \x01", "control characters"},
		{"plan", "give --add, --remove or both"},
		{"plan --add ws-4:0", "is no number from 1"},
		{"plan --add WS", "a node id"},
		{"plan --remove WS", "a node id"},
		{"drain", "takes one node, and there are 0: say dialring drain ws-1"},
		{"drain WS --yes", "a node id"},
		{"drain ws-1", "stdin is no terminal"},
		{"load --sessions 0", "at least 1"},
		{"load --size 10", "--size is at least 64"},
		{"load --rate x", "such as 500 or 500/s"},
		{"load --ramp 0", "--ramp is at least 1"},
		{"load --duration 0s", "--duration is 0s"},
		{"load --durable --ephemeral", "none of the others can be"},
		{"load --users-prefix " + strings.Repeat("u", 128), "--users-prefix"},
		{"load --jwt-secret-file /nowhere/secret", "--jwt-secret-file"},
		{"version now", "takes no argument"},
	} {
		o := command(t, "", env, strings.Split(c.line, " ")...)
		if o.want(t, exitUsage, c.text); o.out != "" || !strings.Contains(o.errors, "--help says more\n") {
			t.Errorf("%s: stdout %q, stderr %q", c.line, o.out, o.errors)
		}
	}
	if called {
		t.Error("something was asked of the locator")
	}
}
