package client

import (
	"errors"
	"net/http"
	"reflect"
	"testing"
	"time"
)

func TestRing(t *testing.T) {
	p := offlinePusher(t, PusherConfig{}, func(int, *http.Request) (answer, error) {
		return answer{body: `{"cluster":"c","epoch":42,"hash":"5f1c","nodes":[
			{"id":"ws-1","url":"ws://1/v1/ws","weight":2,"state":"active","sessions":7,"share":0.5,"last_seen_ms":412},
			{"id":"ws-2","url":"ws://2/v1/ws","weight":1,"state":"draining","sessions":3,"share":0,"last_seen_ms":-1}],
			"handoffs":[{"from_epoch":41,"reason":"drain","nodes":["ws-2"],"pending":[{"node":"ws-2","sessions":3}]}],"later":1}`}, nil
	})
	got, err := p.Ring(t.Context())
	want := Ring{Cluster: "c", Epoch: 42, Hash: "5f1c", Nodes: []RingNode{
		{ID: "ws-1", URL: "ws://1/v1/ws", Weight: 2, State: NodeActive, Sessions: 7, Share: 0.5, LastSeen: 412 * time.Millisecond},
		{ID: "ws-2", URL: "ws://2/v1/ws", Weight: 1, State: NodeDraining, Sessions: 3, LastSeen: -time.Millisecond},
	}, Handoffs: []Handoff{{FromEpoch: 41, Reason: "drain", Nodes: []string{"ws-2"}, Pending: []HandoffNode{{Node: "ws-2", Sessions: 3}}}}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v\nwant %+v", got, err, want)
	}
	if c := p.calls[0]; c.method != "GET" || c.path != "/v1/ring" || c.auth != "Bearer secret" {
		t.Errorf("the call is %+v", c)
	}
}

func TestPlan(t *testing.T) {
	p := offlinePusher(t, PusherConfig{}, func(int, *http.Request) (answer, error) {
		return answer{body: `{"epoch":42,"share":0.25,"sessions":10,"moves":[{"from":"ws-3","to":"ws-4","share":0.25,"sessions":10}]}`}, nil
	})
	got, err := p.Plan(t.Context(), Change{Add: []NodeWeight{{"ws-4", 2}}, Remove: []string{"ws-1"}})
	want := Plan{Epoch: 42, Share: 0.25, Sessions: 10, Moves: []PlanMove{{"ws-3", "ws-4", 0.25, 10}}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	if _, err := p.Plan(t.Context(), Change{Remove: []string{"ws-1"}}); err != nil {
		t.Error(err)
	}
	for i, body := range []string{`{"add":[{"id":"ws-4","weight":2}],"remove":["ws-1"]}`, `{"add":[],"remove":["ws-1"]}`} {
		if c := p.calls[i]; c.method != "POST" || c.path != "/v1/ring/plan" || c.mediaType != "application/json" || c.body != body {
			t.Errorf("call %d is %+v, want %s", i, c, body)
		}
	}
}

func TestDrain(t *testing.T) {
	p := offlinePusher(t, PusherConfig{}, func(n int, _ *http.Request) (answer, error) {
		if n > 0 {
			return problem(404, "not_found", ""), nil
		}
		return answer{status: 202, body: `{"node":"ws-1","state":"draining"}`}, nil
	})
	if err := p.Drain(t.Context(), "ws-1"); err != nil {
		t.Error(err)
	}
	if c := p.calls[0]; c.method != "POST" || c.path != "/v1/nodes/ws-1/drain" {
		t.Errorf("the call is %+v", c)
	}
	var api *APIError
	if err := p.Drain(t.Context(), "ws-9"); !errors.As(err, &api) || api.Status != 404 {
		t.Errorf("a node that is not there: %v", err)
	}
	if err := p.Drain(t.Context(), "../x"); err == nil || len(p.calls) != 2 {
		t.Errorf("what is no node id: %v after %d calls", err, len(p.calls))
	}
}
