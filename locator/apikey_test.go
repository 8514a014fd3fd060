package locator

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/dialring/dialring/internal/config"
	"github.com/dialring/dialring/internal/metric"
	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/wire"
)

// logBuffer is a log that can be read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

// lines are those that contain all of the texts.
func (l *logBuffer) lines(texts ...string) (out []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
lines:
	for line := range strings.Lines(l.b.String()) {
		for _, s := range texts {
			if !strings.Contains(line, s) {
				continue lines
			}
		}
		out = append(out, line)
	}
	return out
}

func (l *logBuffer) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// metricLines are the lines of the metrics that begin so, without that.
func metricLines(t *testing.T, l *Locator, begin string) (out []string) {
	t.Helper()
	w := httptest.NewRecorder()
	promhttp.HandlerFor(l.metrics.registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for line := range strings.Lines(w.Body.String()) {
		if rest, ok := strings.CutPrefix(line, begin); ok {
			out = append(out, strings.TrimSpace(rest))
		}
	}
	return out
}

// metricOf is the value of one series.
func metricOf(t *testing.T, l *Locator, series string) float64 {
	t.Helper()
	lines := metricLines(t, l, series+" ")
	if len(lines) != 1 {
		t.Fatalf("%d series are %s", len(lines), series)
	}
	v, err := strconv.ParseFloat(lines[0], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// testKeys are keys of a file, by name; each key is its name behind "the key of ".
var testKeys = []wire.KeyEntry{
	{Name: "pusher", Scopes: []string{wire.ScopePush}},
	{Name: "reader", Scopes: []string{wire.ScopeRead}},
	{Name: "ops", Scopes: []string{wire.ScopeAdmin}},
	{Name: "all", Scopes: wire.Scopes},
	{Name: "tenant", Scopes: wire.Scopes, Users: []string{"t1:", "shared"}},
}

func testKey(name string) string { return "the key of " + name }

// writeKeys writes a file of keys as an operator's tools do: whole, under another name first.
func writeKeys(t *testing.T, file string, entries ...wire.KeyEntry) {
	t.Helper()
	for i := range entries {
		entries[i].SHA256 = wire.Digest(testKey(entries[i].Name))
	}
	b, err := json.Marshal(map[string]any{"keys": entries})
	if err != nil {
		t.Fatal(err)
	}
	replaceFile(t, file, string(b))
}

func replaceFile(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// withKeys has a locator take its keys from a file.
func withKeys(file string, log *logBuffer) func(*Config) {
	return func(c *Config) { c.APIKeysFile, c.Log = file, log.logger() }
}

// as sends a request with a key.
func as(t *testing.T, l *Locator, key, method, path, contentType, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+l.addrs.Listen+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	c := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// Who may what: each route with each key.
func TestKeyScopes(t *testing.T) {
	file, log := filepath.Join(t.TempDir(), "keys.json"), &logBuffer{}
	writeKeys(t, file, testKeys...)
	l := runLocator(t, withKeys(file, log))
	join(t, l, "ws-1", answerAPI)
	const js, nd = "application/json", "application/x-ndjson"
	for _, c := range []struct {
		name, method, path, contentType, body string
		scope                                 string
		tenant                                bool // the key that is limited to some users may
	}{
		{"push", "POST", "/v1/push/t1:a?durable=false", js, "1", wire.ScopePush, true},
		{"push to another", "POST", "/v1/push/t2:a?durable=false", js, "1", wire.ScopePush, false},
		{"push to the end of a prefix", "POST", "/v1/push/shared?durable=false", js, "1", wire.ScopePush, true},
		{"push to a part of a prefix", "POST", "/v1/push/t1?durable=false", js, "1", wire.ScopePush, false},
		{"push to an id that is decoded", "POST", "/v1/push/t1%3Aa?durable=false", js, "1", wire.ScopePush, true},
		{"push to one that is encoded twice", "POST", "/v1/push/t1%253Aa?durable=false", js, "1", wire.ScopePush, false},
		{"push in capitals", "POST", "/v1/push/T1:a?durable=false", js, "1", wire.ScopePush, false},
		{"push to a group", "POST", "/v1/push?group=t1:team", js, "1", wire.ScopePush, true},
		{"push to another group", "POST", "/v1/push?group=team", js, "1", wire.ScopePush, false},
		{"broadcast", "POST", "/v1/broadcast", js, `{"data":1}`, wire.ScopePush, false},
		{"user", "GET", "/v1/users/t1:a", "", "", wire.ScopeRead, true},
		{"another user", "GET", "/v1/users/a", "", "", wire.ScopeRead, false},
		{"presence", "POST", "/v1/presence", js, `{"users":["t1:a","shared"]}`, wire.ScopeRead, true},
		{"presence of another", "POST", "/v1/presence", js, `{"users":["t1:a","alice"]}`, wire.ScopeRead, false},
		{"group", "GET", "/v1/groups/t1:team", "", "", wire.ScopeRead, true},
		{"members", "GET", "/v1/groups/t1:team/members", "", "", wire.ScopeRead, true},
		{"members of another group", "GET", "/v1/groups/team/members", "", "", wire.ScopeRead, false},
		{"ring", "GET", "/v1/ring", "", "", wire.ScopeRead, false},
		{"plan", "POST", "/v1/ring/plan", js, `{"add":[{"id":"ws-9"}]}`, wire.ScopeRead, false},
		{"kick", "DELETE", "/v1/users/t1:a/sessions", "", "", wire.ScopeAdmin, true},
		{"kick another", "DELETE", "/v1/users/a/sessions", "", "", wire.ScopeAdmin, false},
		{"revoke", "DELETE", "/v1/users/t1:a/sessions?revoke=true", "", "", wire.ScopeAdmin, true},
		{"revoke another", "DELETE", "/v1/users/a/sessions?revoke=true", "", "", wire.ScopeAdmin, false},
		{"change a group", "POST", "/v1/groups/t1:team/members", js, `{"add":["t1:a"],"remove":["t1:b"]}`, wire.ScopeAdmin, true},
		{"add another user", "POST", "/v1/groups/t1:team/members", js, `{"add":["t1:a","t2:a"]}`, wire.ScopeAdmin, false},
		{"remove another user", "POST", "/v1/groups/t1:team/members", js, `{"remove":["t2:a"]}`, wire.ScopeAdmin, false},
		{"change another group", "POST", "/v1/groups/team/members", js, `{"add":["t1:a"]}`, wire.ScopeAdmin, false},
		{"add one", "PUT", "/v1/groups/t1:team/members/t1:a", "", "", wire.ScopeAdmin, true},
		{"add one of another", "PUT", "/v1/groups/t1:team/members/a", "", "", wire.ScopeAdmin, false},
		{"remove one", "DELETE", "/v1/groups/t1:team/members/t1:a", "", "", wire.ScopeAdmin, true},
		{"remove one of another", "DELETE", "/v1/groups/team/members/t1:a", "", "", wire.ScopeAdmin, false},
		{"drain", "POST", "/v1/nodes/ws-1/drain", "", "", wire.ScopeAdmin, false},
	} {
		for _, k := range testKeys {
			may := false
			for _, s := range k.Scopes {
				may = may || s == c.scope
			}
			may = may && (k.Users == nil || c.tenant)
			status, body := as(t, l, testKey(k.Name), c.method, c.path, c.contentType, c.body)
			if may && (status < 200 || status > 299) || !may && (status != 403 || !strings.Contains(body, `"code":"forbidden"`)) {
				t.Errorf("%s with the key %s: %d %s", c.name, k.Name, status, body)
			}
			if strings.Contains(body, k.Name) && status == 403 {
				t.Errorf("the answer tells how the key is called: %s", body)
			}
		}
		for _, key := range []string{"", "dev", "the key of nobody", wire.Digest(testKey("all"))} {
			if status, body := as(t, l, key, c.method, c.path, c.contentType, c.body); status != 401 {
				t.Errorf("%s with the key %q: %d %s", c.name, key, status, body)
			}
		}
	}

	// Of several users each has its own answer.
	for _, body := range []string{`{"users":["t1:a","bob","shared:x"],"data":1}`, `{"messages":[{"user":"t1:a","data":1},{"user":"bob","data":1},{"user":"shared:x","data":1}]}`} {
		status, got := as(t, l, testKey("tenant"), "POST", "/v1/push?durable=false", js, body)
		var many struct {
			Results []struct {
				User  string
				Error *wire.PushError
			}
		}
		if err := json.Unmarshal([]byte(got), &many); err != nil || status != 200 || len(many.Results) != 3 {
			t.Fatalf("%d %s", status, got)
		}
		for i, r := range many.Results {
			if forbidden := i == 1; (r.Error != nil) != forbidden || forbidden && r.Error.Code != wire.CodeForbidden {
				t.Errorf("result %d of %s", i, got)
			}
		}
	}
	status, got := as(t, l, testKey("tenant"), "POST", "/v1/push?durable=false", nd, `{"user":"bob","data":1}`+"\n"+`{"user":"t1:a","data":1}`+"\n")
	if status != 200 || strings.Count(got, "forbidden") != 1 || strings.Count(got, "delivered") != 1 {
		t.Errorf("a stream: %d %s", status, got)
	}
	if status, _ := as(t, l, testKey("reader"), "POST", "/v1/push", nd, `{"user":"bob","data":1}`); status != 403 {
		t.Errorf("a stream without the scope: %d", status)
	}

	// Who pushed what, and who was refused why.
	if n := metricOf(t, l, `dialring_api_key_pushes_total{key="tenant",result="failed"}`); n < 5 {
		t.Errorf("%v pushes of tenant failed", n)
	}
	if n := metricOf(t, l, `dialring_api_key_pushes_total{key="pusher",result="ok"}`); n < 8 {
		t.Errorf("%v pushes of pusher were counted", n)
	}
	for _, r := range keyReasons {
		if metricOf(t, l, fmt.Sprintf("dialring_unauthorized_total{credential=%q,reason=%q}", credentialKey, r)) == 0 || len(log.lines("event=api_key_refused", "reason="+r, "remote=127.0.0.1:")) == 0 {
			t.Errorf("no refusal for %s was counted and logged", r)
		}
	}
	// Hundreds were refused; the log has a few of each reason.
	if n := len(log.lines("event=api_key_refused")); n > 4*(5+60) {
		t.Errorf("%d refusals were logged", n)
	}
	for _, want := range [][]string{
		{"act=kick", "target=t1:a", "who=api_key:ops", "result=ok"},
		{"act=kick", "target=a ", "who=api_key:tenant", "result=forbidden", "level=WARN"},
		{"act=kick", "who=api_key:pusher", "result=forbidden"},
		{"act=revoke", "target=t1:a", "who=api_key:all", "result=ok", `query="revoke=true"`},
		{"act=group", "target=t1:team", "add=1", "remove=1", "result=ok"},
		{"act=group", "target=t1:team", "add=t1:a", "result=ok"},
		{"act=group", "target=t1:team", "remove=t1:a", "result=ok"},
		{"act=drain", "target=ws-1", "who=api_key:ops", "remote=127.0.0.1:", "result=ok"},
		{"act=drain", "target=ws-1", "who=api_key:tenant", "result=forbidden"},
		{"act=api_keys", "who=file", "result=ok", `added="all ops pusher reader tenant"`},
	} {
		if len(log.lines(append(want, "event=audit")...)) == 0 {
			t.Errorf("the audit has no %q", want)
		}
	}
	for _, k := range testKeys {
		if len(log.lines(testKey(k.Name))) > 0 || len(log.lines(k.SHA256)) > 0 {
			t.Errorf("the log has the key %s, or its digest", k.Name)
		}
	}
}

// A file that changed is read again: a key that is gone is refused, one that came is good.
// One that cannot be used changes nothing.
func TestKeyFileIsReadAgain(t *testing.T) {
	t.Parallel()
	file, log := filepath.Join(t.TempDir(), "keys.json"), &logBuffer{}
	writeKeys(t, file, testKeys[0], testKeys[1])
	l := runLocator(t, withKeys(file, log), func(c *Config) { c.APIKeys = []string{"a key of the environment"} })
	status := func(key string) int {
		s, _ := as(t, l, key, "GET", "/v1/ring", "", "")
		return s
	}
	if a, b, c := status(testKey("pusher")), status(testKey("reader")), status("a key of the environment"); a != 403 || b != 200 || c != 200 {
		t.Fatalf("at first: %d %d %d", a, b, c)
	}
	if n := len(metricLines(t, l, "dialring_api_key_pushes_total{")); n != 6 {
		t.Errorf("%d series of three keys", n)
	}
	both := testKeys[0]
	both.Scopes = []string{wire.ScopePush, wire.ScopeRead}
	writeKeys(t, file, both, testKeys[2])
	eventually(t, "the new file is read", func() bool { return status(testKey("ops")) == 403 })
	if a, b, c := status(testKey("pusher")), status(testKey("reader")), status("a key of the environment"); a != 200 || b != 401 || c != 200 {
		t.Errorf("after the change: %d %d %d", a, b, c)
	}
	if n := len(metricLines(t, l, "dialring_api_key_pushes_total{")); n != 6 {
		t.Errorf("%d series of three keys, after one went and one came", n)
	}
	if len(log.lines("event=audit", "act=api_keys", "added=ops", "removed=reader", "changed=pusher", "result=ok")) != 1 {
		t.Errorf("the audit of the change is missing: %s", log.lines("act=api_keys"))
	}
	for i, bad := range []string{`{"keys":[{"name":"x"}]}`, "gone"} {
		if bad == "gone" {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		} else {
			replaceFile(t, file, bad)
		}
		eventually(t, "the bad file is noticed", func() bool {
			return len(log.lines("event=api_keys_unread")) == i+1 && len(log.lines("event=audit", "act=api_keys", "result=refused", "error=")) == i+1
		})
		if l.keys.ok.Load() || status(testKey("pusher")) != 200 || status(testKey("reader")) != 401 {
			t.Errorf("with the file %q the keys are others, or it counts as good", bad)
		}
	}
	writeKeys(t, file, testKeys[1])
	eventually(t, "the mended file is read", func() bool { return status(testKey("reader")) == 200 })
	eventually(t, "the metric says so", l.keys.ok.Load)
	if s := status(testKey("pusher")); s != 401 {
		t.Errorf("a key that went with the mended file: %d", s)
	}
	if len(log.lines("event=api_keys_none")) != 0 {
		t.Error("the log says that there is no key, and there are some")
	}
}

// A file without a key is one, and the log says what it means.
func TestKeyFileWithoutKeys(t *testing.T) {
	t.Parallel()
	file, log := filepath.Join(t.TempDir(), "keys.json"), &logBuffer{}
	writeKeys(t, file, testKeys[0])
	l := runLocator(t, withKeys(file, log), func(c *Config) { c.APIKeys = nil })
	replaceFile(t, file, `{"keys":[]}`)
	eventually(t, "the log says that there is none", func() bool { return len(log.lines("event=api_keys_none")) == 1 })
	if s, _ := as(t, l, testKey(testKeys[0].Name), "GET", "/v1/ring", "", ""); s != 401 {
		t.Errorf("a key that is gone: %d", s)
	}
}

// A stream whose key goes ends at its next line, and one whose key may less goes by that.
func TestKeyGoesDuringStream(t *testing.T) {
	t.Parallel()
	file, log := filepath.Join(t.TempDir(), "keys.json"), &logBuffer{}
	writeKeys(t, file, testKeys[0], testKeys[1])
	l := runLocator(t, withKeys(file, log))
	join(t, l, "ws-1", func(_ *fakeNode, b *peer.Batch) { answer(b, peer.Reply{Delivered: 1}) })
	in, out := io.Pipe()
	req, err := http.NewRequest("POST", "http://"+l.addrs.Listen+"/v1/push?durable=false", in)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	req.Header.Set("Authorization", "Bearer "+testKey("pusher"))
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	defer out.Close()
	answers := bufio.NewReader(resp.Body)
	line := func(user string) string {
		t.Helper()
		if _, err := fmt.Fprintf(out, `{"user":%q,"data":1}`+"\n", user); err != nil {
			t.Fatal(err)
		}
		b, err := answers.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	change := func(entries ...wire.KeyEntry) {
		t.Helper()
		before := l.keys.set.Load()
		writeKeys(t, file, entries...)
		eventually(t, "the file is read", func() bool { return l.keys.set.Load() != before })
	}
	if b := line("alice"); !strings.Contains(b, `"delivered":1`) {
		t.Fatalf("at first: %s", b)
	}
	limited := testKeys[0]
	limited.Users = []string{"b"}
	change(limited)
	if a, b := line("alice"), line("bob"); !strings.Contains(a, "forbidden") || !strings.Contains(b, `"delivered":1`) {
		t.Errorf("limited to b: %s %s", a, b)
	}
	change(testKeys[1])
	if b := line("bob"); !strings.Contains(b, `"code":"unauthorized"`) || !strings.Contains(b, "lines behind 3 were not read") {
		t.Errorf("without the key: %s", b)
	}
	if b, err := answers.ReadString('\n'); !errors.Is(err, io.EOF) {
		t.Errorf("the stream goes on: %q %v", b, err)
	}
}

// What cannot be at the start is an error of settings that shows no digest.
func TestKeyFileAtStart(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct{ text, want string }{
		"none":       {"", "keys.json"},
		"bad":        {`{"keys":[{"name":"a","sha256":"` + wire.Digest("k") + `","scopes":["all"]}]}`, `entry 1 ("a")`},
		"also env":   {`{"keys":[{"name":"a","sha256":"` + wire.Digest("in both") + `","scopes":["push"]}]}`, "DIALRING_API_KEYS has too (env-2)"},
		"named env":  {`{"keys":[{"name":"env-1","sha256":"` + wire.Digest("k") + `","scopes":["push"]}]}`, "choose another"},
		"whole file": {`{"keys":[{"name":"env-3","sha256":"` + wire.Digest("k") + `","scopes":["push"]}]}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(dir, name+"-keys.json")
			if name != "none" {
				replaceFile(t, file, c.text)
			}
			l, err := New(Config{Dev: "true", APIKeys: []string{"short", "in both", "in both"}, APIKeysFile: file, Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			err = l.keys.start(l.testCounters())
			if c.want == "" {
				if err != nil || len(l.keys.current()) != 3 {
					t.Errorf("%d keys, %v", len(l.keys.current()), err)
				}
				return
			}
			var settings *config.Error
			if err == nil || !errors.As(err, &settings) || !strings.Contains(err.Error(), "DIALRING_API_KEYS_FILE") || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("the error is %v", err)
			}
			for _, key := range []string{"k", "in both"} {
				if strings.Contains(err.Error(), wire.Digest(key)) {
					t.Errorf("the error has a digest: %v", err)
				}
			}
		})
	}
}

// The log warns of keys that can be guessed, and does not tell them.
func TestShortKeys(t *testing.T) {
	log := &logBuffer{}
	l := &Locator{log: log.logger(), cfg: Config{APIKeys: []string{"hunter2", strings.Repeat("k", 16)}}}
	l.warnShort()
	if got := log.lines("event=api_key_short"); len(got) != 1 || !strings.Contains(got[0], "key=env-1") || strings.Contains(got[0], "hunter2") {
		t.Errorf("%q", got)
	}
	l.cfg.dev = true
	if l.warnShort(); len(log.lines("event=api_key_short")) != 1 {
		t.Error("development mode warns of its key")
	}
}

// testCounters are counters of pushes by key that nobody reads.
func (l *Locator) testCounters() *prometheus.CounterVec {
	return metric.Counters("pushes", "Pushes.", "key", "result")
}
