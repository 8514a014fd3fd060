package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// pushCall is a request as a locator gets it.
type pushCall struct {
	at                                       time.Time
	host, method, path, key, mediaType, auth string
	query                                    url.Values
	body                                     string
}

type pushes struct {
	*Pusher
	calls []pushCall
}

// offlinePusher makes a Pusher whose locators are a function.
func offlinePusher(t *testing.T, cfg PusherConfig, locator func(n int, r *http.Request) (answer, error)) *pushes {
	t.Helper()
	if cfg.Locators == nil {
		cfg.Locators = []string{"http://locator"}
	}
	if cfg.APIKey == "" {
		cfg.APIKey = "secret"
	}
	p := &pushes{}
	var err error
	if p.Pusher, err = NewPusher(cfg); err != nil {
		t.Fatal(err)
	}
	p.cfg.HTTP.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		h, n := r.Header, len(p.calls)
		p.calls = append(p.calls, pushCall{at: time.Now(), host: r.URL.Host, method: r.Method, path: r.URL.EscapedPath(), query: r.URL.Query(), body: string(b),
			key: h.Get("Idempotency-Key"), mediaType: h.Get("Content-Type"), auth: h.Get("Authorization")})
		r.Body = io.NopCloser(bytes.NewReader(b))
		a, err := locator(n, r)
		if err != nil {
			return nil, err
		}
		return a.response(), nil
	})
	return p
}

// took answers as a locator that took a push.
func took(int, *http.Request) (answer, error) {
	return answer{body: `{"id":"m1","seq":1235,"stored":true,"duplicate":true,"delivered":2,"acked":1,"node":"ws-3","epoch":42,"later":1}`}, nil
}

// tookAll answers as one that took a call, with a result for each message of several.
func tookAll(_ int, r *http.Request) (answer, error) {
	var call struct{ Users, Messages []json.RawMessage }
	if err := json.NewDecoder(r.Body).Decode(&call); err != nil {
		return answer{}, err
	}
	results := make([]map[string]string, len(call.Users)+len(call.Messages))
	for i := range results {
		results[i] = map[string]string{"id": "m1"}
	}
	return answer{body: map[string]any{"id": "m1", "stored": true, "results": results}}, nil
}

func TestPush(t *testing.T) {
	for name, c := range map[string]struct {
		data      any
		opts      []PushOption
		query     string
		body      string
		mediaType string
		key       string // "*": any
	}{
		"struct":         {data: struct{ A int }{1}, body: `{"A":1}`, mediaType: "application/json", key: "*"},
		"string":         {data: "hi", body: `"hi"`, mediaType: "application/json", key: "*"},
		"nil":            {data: nil, body: `null`, mediaType: "application/json", key: "*"},
		"raw JSON":       {data: json.RawMessage(` {"b":1.0, "a":"<&>\u00e9"}` + "\n"), body: ` {"b":1.0, "a":"<&>\u00e9"}` + "\n", mediaType: "application/json", key: "*"},
		"bytes":          {data: []byte("\x00\xff{}"), body: "\x00\xff{}", mediaType: "application/octet-stream", key: "*"},
		"no bytes":       {data: []byte{}, body: "", mediaType: "application/octet-stream", key: "*"},
		"key":            {data: 1, opts: []PushOption{IdempotencyKey("order 7/é")}, body: "1", mediaType: "application/json", key: "order 7/é"},
		"ttl":            {data: 1, opts: []PushOption{TTL(90 * time.Second)}, query: "ttl_ms=90000", body: "1", mediaType: "application/json", key: "*"},
		"wait":           {data: 1, opts: []PushOption{WaitAck(5 * time.Second)}, query: "timeout_ms=5000&wait=ack", body: "1", mediaType: "application/json", key: "*"},
		"ephemeral":      {data: 1, opts: []PushOption{Ephemeral()}, query: "durable=false", body: "1", mediaType: "application/json"},
		"device":         {data: 1, opts: []PushOption{ToDevice("web-1")}, query: "device=web-1&durable=false", body: "1", mediaType: "application/json"},
		"several things": {data: 1, opts: []PushOption{TTL(time.Second), IdempotencyKey("k")}, query: "ttl_ms=1000", body: "1", mediaType: "application/json", key: "k"},
	} {
		t.Run(name, func(t *testing.T) {
			p := offlinePusher(t, PusherConfig{Locators: []string{"http://locator/base/"}}, took)
			r, err := p.Push(t.Context(), "alice", c.data, c.opts...)
			if err != nil {
				t.Fatal(err)
			}
			if want := (Receipt{ID: "m1", Delivered: 2, Node: "ws-3", Epoch: 42, Seq: 1235, Stored: true, Duplicate: true, Acked: 1}); r != want {
				t.Errorf("receipt %+v, want %+v", r, want)
			}
			got := p.calls[0]
			if got.method != "POST" || got.path != "/base/v1/push/alice" || got.auth != "Bearer secret" || got.query.Encode() != c.query || got.body != c.body || got.mediaType != c.mediaType {
				t.Errorf("request %+v", got)
			}
			if c.key == "*" && got.key != "" && len(got.key) <= wire.MaxIdempotencyKey {
				return
			}
			if got.key != c.key {
				t.Errorf("Idempotency-Key %q, want %q", got.key, c.key)
			}
		})
	}
}

// Each push has a key of its own unless it is told one.
func TestPushKeysDiffer(t *testing.T) {
	p := offlinePusher(t, PusherConfig{}, took)
	keys := map[string]bool{}
	for range 100 {
		_, _ = p.Push(t.Context(), "alice", 1)
		keys[p.calls[len(p.calls)-1].key] = true
	}
	if len(keys) != 100 {
		t.Errorf("100 pushes have %d keys", len(keys))
	}
}

// Over a real connection, a locator decodes the user that was meant.
func TestPushUserInPath(t *testing.T) {
	t.Parallel()
	var got string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var err error
		if got, err = wire.PathUser(r.URL, "/v1/push/", ""); err != nil {
			t.Errorf("%s: %v", r.RequestURI, err)
		}
		a, _ := took(0, nil)
		a.write(w)
	}))
	defer srv.Close()
	p, err := NewPusher(PusherConfig{Locators: []string{srv.URL}, APIKey: "dev", HTTP: srv.Client()})
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{"alice", "a/b", "a%2Fb", "a%252Fb", "..", ".", "../../v1/broadcast", "a?b=c", "a#b", "a b", "a+b", "a;b", "%", "😀", "é", "\u00a0", `"`, "a:b@c", "//", strings.Repeat("x", 128)} {
		if _, err := p.Push(t.Context(), user, 1); err != nil {
			t.Errorf("%q: %v", user, err)
		}
		if got != user {
			t.Errorf("%q came as %q", user, got)
		}
	}
}

func TestAPIError(t *testing.T) {
	for name, c := range map[string]struct {
		a    answer
		want APIError
	}{
		"problem":      {problem(422, wire.CodeKeyReused, ""), APIError{Status: 422, Code: "key_reused", Detail: "says the fake"}},
		"not JSON":     {answer{status: 404, body: "<html>"}, APIError{Status: 404, Detail: "404 Not Found"}},
		"another JSON": {answer{status: 403, body: `{"error":"no"}`}, APIError{Status: 403, Detail: "403 Forbidden"}},
		"with a wait":  {problem(413, wire.CodeTooLarge, "7"), APIError{Status: 413, Code: "too_large", Detail: "says the fake", RetryAfter: 7 * time.Second}},
		"bad wait":     {problem(413, wire.CodeTooLarge, "-7"), APIError{Status: 413, Code: "too_large", Detail: "says the fake"}},
	} {
		p := offlinePusher(t, PusherConfig{}, func(int, *http.Request) (answer, error) { return c.a, nil })
		_, err := p.Push(t.Context(), "alice", 1)
		var api *APIError
		if !errors.As(err, &api) || *api != c.want {
			t.Errorf("%s: %#v, want %+v", name, err, c.want)
		}
		if len(p.calls) != 1 {
			t.Errorf("%s: %d calls, want 1", name, len(p.calls))
		}
	}
}

func TestPushManyCall(t *testing.T) {
	results := func(int, *http.Request) (answer, error) {
		return answer{body: `{"results":[{"user":"a","id":"m1","seq":1,"stored":true,"delivered":1,"node":"ws-1"},{"user":"b","error":{"code":"owner_unreachable","detail":"later"}}]}`}, nil
	}
	check := func(name string, got []Result, err error) {
		t.Helper()
		if err != nil || len(got) != 2 {
			t.Fatalf("%s: %+v, %v", name, got, err)
		}
		if want := (Result{User: "a", Receipt: Receipt{ID: "m1", Seq: 1, Stored: true, Delivered: 1, Node: "ws-1"}}); got[0] != want {
			t.Errorf("%s: %+v, want %+v", name, got[0], want)
		}
		var api *APIError
		if got[1].User != "b" || !errors.As(got[1].Err, &api) || api.Code != "owner_unreachable" || api.Detail != "later" {
			t.Errorf("%s: %+v", name, got[1])
		}
	}
	type message struct {
		User string          `json:"user"`
		Data json.RawMessage `json:"data"`
		ID   string          `json:"id"`
	}
	type call struct {
		Users    []string        `json:"users"`
		Data     json.RawMessage `json:"data"`
		Messages []message       `json:"messages"`
	}
	p := offlinePusher(t, PusherConfig{}, results)
	last := func() (pushCall, call) {
		var c call
		got := p.calls[len(p.calls)-1]
		if err := json.Unmarshal([]byte(got.body), &c); err != nil || got.path != "/v1/push" || got.mediaType != "application/json" || got.key != "" {
			t.Errorf("%+v: %v", got, err)
		}
		return got, c
	}

	got, err := p.PushMany(t.Context(), []Item{{User: "a", Data: 1, Key: "k1"}, {User: "b", Data: "x"}}, TTL(time.Second))
	check("many", got, err)
	req, c := last()
	if req.query.Encode() != "ttl_ms=1000" || c.Users != nil || len(c.Messages) != 2 || c.Messages[0].ID != "k1" || c.Messages[1].ID == "" ||
		c.Messages[1].User != "b" || string(c.Messages[1].Data) != `"x"` {
		t.Errorf("many: %+v", req)
	}

	got, err = p.PushMany(t.Context(), []Item{{User: "a", Data: 1}, {User: "b", Data: 2}}, Ephemeral())
	check("many, ephemeral", got, err)
	if req, c = last(); req.query.Encode() != "durable=false" || strings.Contains(req.body, `"id"`) || len(c.Messages) != 2 {
		t.Errorf("many, ephemeral: %+v", req)
	}

	got, err = p.PushUsers(t.Context(), []string{"a", "b"}, "x")
	check("users", got, err)
	if req, c = last(); len(req.query) != 0 || len(c.Messages) != 2 || c.Messages[0].ID == "" || c.Messages[0].ID == c.Messages[1].ID || string(c.Messages[1].Data) != `"x"` {
		t.Errorf("users: each message needs a key of its own: %+v", req)
	}

	got, err = p.PushUsers(t.Context(), []string{"a", "b"}, "x", Ephemeral())
	check("users, ephemeral", got, err)
	if req, c = last(); req.query.Encode() != "durable=false" || !slices.Equal(c.Users, []string{"a", "b"}) || string(c.Data) != `"x"` {
		t.Errorf("users, ephemeral: %+v", req)
	}
}

func TestBroadcast(t *testing.T) {
	p := offlinePusher(t, PusherConfig{}, func(int, *http.Request) (answer, error) {
		return answer{body: `{"nodes":3,"failed":["ws-2"],"delivered":12034}`}, nil
	})
	r, err := p.Broadcast(t.Context(), map[string]int{"a": 1})
	if err != nil || r.Nodes != 3 || r.Delivered != 12034 || !slices.Equal(r.Failed, []string{"ws-2"}) {
		t.Errorf("%+v, %v", r, err)
	}
	if c := p.calls[0]; c.path != "/v1/broadcast" || c.body != `{"data":{"a":1}}` || len(c.query) != 0 || c.key != "" {
		t.Errorf("%+v", c)
	}
}

// JSON that the caller has already is not encoded anew, whichever way it goes.
func TestRawJSONOfSeveral(t *testing.T) {
	raw := json.RawMessage(`{"b":1.0, "a":"<&>\u00e9"}`)
	for name, push := range map[string]func(p *Pusher) error{
		"PushMany":             func(p *Pusher) error { _, err := p.PushMany(t.Context(), []Item{{User: "a", Data: raw}}); return err },
		"PushUsers":            func(p *Pusher) error { _, err := p.PushUsers(t.Context(), []string{"a"}, raw); return err },
		"PushUsers, ephemeral": func(p *Pusher) error { _, err := p.PushUsers(t.Context(), []string{"a"}, raw, Ephemeral()); return err },
		"Broadcast":            func(p *Pusher) error { _, err := p.Broadcast(t.Context(), raw); return err },
	} {
		p := offlinePusher(t, PusherConfig{}, tookAll)
		if err := push(p.Pusher); err != nil {
			t.Error(err)
		}
		if !strings.Contains(p.calls[0].body, string(raw)) {
			t.Errorf("%s: %s went as %s", name, raw, p.calls[0].body)
		}
	}
}

// A call within the limits of the contract, 10,000 users and 64 KiB, is one that
// a locator can take: it bounds a call with many users to wire.MaxCallBytes.
func TestPushToManyUsersFits(t *testing.T) {
	users := make([]string, wire.MaxUsersPerCall)
	for i := range users {
		users[i] = fmt.Sprint("user-", i)
	}
	for name, opts := range map[string][]PushOption{"ephemeral": {Ephemeral()}, "stored": nil} {
		p := offlinePusher(t, PusherConfig{}, tookAll)
		if _, err := p.PushUsers(t.Context(), users, strings.Repeat("x", 4096), opts...); err != nil {
			t.Error(err)
		}
		for _, c := range p.calls {
			if len(c.body) > wire.MaxCallBytes {
				t.Errorf("%s: the body has %d bytes, a locator takes %d", name, len(c.body), wire.MaxCallBytes)
			}
		}
	}
}

func TestPushOfWhatIsNoJSON(t *testing.T) {
	p := offlinePusher(t, PusherConfig{}, took)
	ctx := context.Background()
	bad := make(chan int)
	_, one := p.Push(ctx, "a", bad)
	_, many := p.PushMany(ctx, []Item{{User: "a", Data: bad}})
	_, users := p.PushUsers(ctx, []string{"a"}, bad, Ephemeral())
	_, all := p.Broadcast(ctx, bad)
	for name, err := range maps.All(map[string]error{"Push": one, "PushMany": many, "PushUsers": users, "Broadcast": all}) {
		var typed *json.UnsupportedTypeError
		if !errors.As(err, &typed) {
			t.Errorf("%s of a channel: %v", name, err)
		}
	}
	if len(p.calls) != 0 {
		t.Errorf("%d calls were made", len(p.calls))
	}
}

func TestBadPusherConfig(t *testing.T) {
	for name, cfg := range map[string]PusherConfig{
		"locator": {APIKey: "k"},
		"APIKey":  {Locators: []string{"http://x"}},
		"ftp://x": {Locators: []string{"ftp://x"}, APIKey: "k"},
	} {
		if p, err := NewPusher(cfg); err == nil || p != nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v, %v", name, p, err)
		}
	}
}
