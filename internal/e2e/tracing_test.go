package e2e

import (
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// otlp is an OpenTelemetry collector that keeps what it gets.
type otlp struct {
	url string

	mu    sync.Mutex
	spans []span
	raw   []byte
}

type span struct {
	*trace.Span
	service string
}

func startCollector(t *testing.T) *otlp {
	t.Helper()
	c := &otlp{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		var req collector.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(b, &req)
		}
		if err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("the collector was asked for %s: %v", r.URL.Path, err)
			http.Error(w, "bad", http.StatusBadRequest)
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.raw = append(c.raw, b...)
		for _, rs := range req.ResourceSpans {
			service := ""
			for _, a := range rs.Resource.Attributes {
				if a.Key == "service.name" {
					service = a.Value.GetStringValue()
				}
			}
			for _, ss := range rs.ScopeSpans {
				for _, sp := range ss.Spans {
					c.spans = append(c.spans, span{sp, service})
				}
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(s.Close)
	c.url = s.URL
	return c
}

// of waits until a trace has n spans, and returns them by name.
func (c *otlp) of(t *testing.T, id string, n int) map[string]span {
	t.Helper()
	out := map[string]span{}
	eventually(t, "the spans of trace "+id, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		clear(out)
		for _, s := range c.spans {
			if hex.EncodeToString(s.TraceId) == id {
				out[s.Name] = s
			}
		}
		return len(out) >= n
	})
	return out
}

// A push that its service traces is one trace: locator, node, append and delivery, each
// within the one before. Nothing of the payload is in it, and what is not traced sends nothing.
func TestTrace(t *testing.T) {
	t.Parallel()
	c := startCollector(t)
	l := startLocator(t, "DIALRING_OTLP_ENDPOINT="+c.url, "DIALRING_TRACE_RATIO=0")
	startNode(t, "ws-1", l.nats, "DIALRING_OTLP_ENDPOINT="+c.url)
	startNode(t, "ws-2", l.nats, "DIALRING_OTLP_ENDPOINT="+c.url)
	l.waitMembers(t, "ws-1", "ws-2")
	alice := listen(t, "alice", l)

	const id, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	post := func(path, body, id, flags string) {
		t.Helper()
		r, err := http.NewRequest("POST", "http://"+l.addr+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer dev")
		r.Header.Set("Content-Type", "application/json")
		if id != "" {
			r.Header.Set("traceparent", "00-"+id+"-"+parent+"-"+flags)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 {
			t.Fatalf("push: %d %s", resp.StatusCode, b)
		}
	}
	post("/v1/push/alice", `"canary-untraced"`, "", "")
	post("/v1/push/alice", `"canary-unsampled"`, strings.Replace(id, "0a", "0b", 1), "00")
	post("/v1/push/alice", `"canary-stored"`, id, "01")
	for range 3 {
		await(t, "the messages", alice.got)
	}
	spans := c.of(t, id, 4)
	within := parent
	for _, want := range []struct{ name, service string }{{"POST /v1/push/{user}", "dialring-locator"}, {"push", "dialring-wsnode"}} {
		s := spans[want.name]
		if s.Span == nil || s.service != want.service || hex.EncodeToString(s.ParentSpanId) != within || s.EndTimeUnixNano < s.StartTimeUnixNano || s.Status.GetCode() == trace.Status_STATUS_CODE_ERROR {
			t.Fatalf("span %q is %+v, want it of %s within %s", want.name, s, want.service, within)
		}
		within = hex.EncodeToString(s.SpanId)
	}
	for _, name := range []string{"append", "deliver"} {
		if s := spans[name]; s.Span == nil || hex.EncodeToString(s.ParentSpanId) != within || s.EndTimeUnixNano < s.StartTimeUnixNano {
			t.Errorf("span %q is %+v, want it within %s", name, s, within)
		}
	}
	if a, d := spans["append"], spans["deliver"]; a.Span != nil && d.Span != nil && a.EndTimeUnixNano > d.StartTimeUnixNano {
		t.Errorf("it was delivered before it was stored")
	}

	const many = "1af7651916cd43dd8448eb211c80319c"
	post("/v1/push?durable=false", `{"users":["alice","bob"],"data":"canary-many"}`, many, "01")
	if s := c.of(t, many, 3); s["POST /v1/push"].Span == nil || s["push"].Span == nil || s["deliver"].Span == nil {
		t.Errorf("a call with two users: %v", s)
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spans {
		if got := hex.EncodeToString(s.TraceId); got != id && got != many {
			t.Errorf("a push that is not traced has the span %s", s.Name)
		}
	}
	if strings.Contains(string(c.raw), "canary") {
		t.Errorf("a payload is in the spans")
	}
}

// A collector that is not there costs pushes nothing but a line in the log.
func TestTraceWithoutCollector(t *testing.T) {
	t.Parallel()
	l := startLocator(t, "DIALRING_OTLP_ENDPOINT=http://127.0.0.1:1", "DIALRING_TRACE_RATIO=1")
	startNode(t, "ws-1", l.nats, "DIALRING_OTLP_ENDPOINT=http://127.0.0.1:1")
	l.waitMembers(t, "ws-1")
	l.push(t, "alice", `1`)
	l.event(t, "traces_unsent")
	l.push(t, "alice", `2`)
}
