package e2e

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/dialring/dialring/internal/wire"
)

// Calls for many users while some have both connections and some have not moved.
func TestMoveMany(t *testing.T) {
	l := startLocator(t)
	patient := "DIALRING_MOVE_DEADLINE=120s"
	startNode(t, "a", l.nats, patient)
	l.waitMembers(t, "a")
	users := movers(equal("a"), equal("a", "b"), "a", "b", 10)
	var old, next []*ear
	for _, u := range users {
		old = append(old, dialEar(t, l, u, "d"))
	}
	startNode(t, "b", l.nats, patient)
	for i, e := range old {
		if m := e.told(t); i%2 == 0 {
			next = append(next, e.follows(t, m))
		}
	}
	body, err := json.Marshal(map[string]any{"users": users, "data": "many"})
	if err != nil {
		t.Fatal(err)
	}
	status, b := call(t, "POST", "http://"+l.addr+"/v1/push?durable=false", string(body))
	var many struct{ Results []wire.PushResult }
	if err := json.Unmarshal(b, &many); status != 200 || err != nil || len(many.Results) != len(users) {
		t.Fatalf("push to many: %d %s", status, b)
	}
	for i, r := range many.Results {
		if r.User != users[i] || r.Delivered != 1 {
			t.Errorf("push to many: %+v", r)
		}
	}
	for i, e := range old {
		if i%2 == 0 {
			e = next[i/2]
		}
		e.expect(t, `"many"`)
	}
	if online := l.presence(t, users...); len(online) != len(users) || fmt.Sprint(online[users[0]], online[users[1]]) != "1 1" {
		t.Errorf("presence: %v", online)
	}
	status, b = call(t, "POST", "http://"+l.addr+"/v1/broadcast", `{"data":"all"}`)
	var bc wire.BroadcastResult
	if err := json.Unmarshal(b, &bc); status != 200 || err != nil || bc.Nodes != 2 || len(bc.Failed) != 0 {
		t.Errorf("broadcast: %d %s", status, b)
	}
	for i, e := range old {
		e.expect(t, `"all"`) // on both connections: clients drop what they have seen
		if i%2 == 0 {
			next[i/2].expect(t, `"all"`)
		}
	}
	p := l.plan(t, `{"remove":["b"]}`)
	if p.Sessions != len(next) {
		t.Errorf("plan of b's leave: %+v", p)
	}
}

// A node that waits to join is told to end.
func TestMoveJoiningEnds(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	patient := "DIALRING_MOVE_DEADLINE=120s"
	startNode(t, "a", l.nats, patient)
	l.waitMembers(t, "a")
	e := dialEar(t, l, movers(equal("a"), equal("a", "b"), "a", "b", 1)[0], "d")
	startNode(t, "b", l.nats, patient)
	e.told(t)
	l.waitMembers(t, "a", "b")
	c := startNode(t, "c", l.nats)
	eventually(t, "c wants to join", func() bool { return l.node(t, "c").State == wire.StateJoining })
	if code := c.term(t); code != 0 {
		t.Errorf("c ended with %d", code)
	}
	l.unchanged(t, "a", "b")
	l.delivers(t, e, "at a")
}

// Limits of a user's sessions count those at the former owner.
func TestMoveLimits(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	settings := []string{"DIALRING_MOVE_DEADLINE=120s", "DIALRING_MAX_SESSIONS_PER_USER=2"}
	startNode(t, "a", l.nats, settings...)
	l.waitMembers(t, "a")
	u := movers(equal("a"), equal("a", "b"), "a", "b", 1)[0]
	x, y := dialEar(t, l, u, "x"), dialEar(t, l, u, "y")
	startNode(t, "b", l.nats, settings...)
	l.waitMembers(t, "a", "b") // a may have the ring before the locator goes by it
	x.told(t)
	my := y.told(t)
	z := dialEar(t, l, u, "z")
	x.closes(t, wire.CloseTooManySessions)
	if r := l.push(t, u, `"two"`); r.Delivered != 2 {
		t.Errorf("%+v", r)
	}
	y.expect(t, `"two"`)
	z.expect(t, `"two"`)
	ny := y.follows(t, my) // no login: nobody goes
	y.leave(t)
	if r := l.push(t, u, `"still"`); r.Delivered != 2 {
		t.Errorf("%+v", r)
	}
	ny.expect(t, `"still"`)
	z.expect(t, `"still"`)
	l.settled(t)
}

// The locator is killed in the middle of a handoff and another one comes.
func TestMoveLocatorRestarts(t *testing.T) {
	t.Parallel()
	port := quietPort(t)
	url := fmt.Sprintf("nats://127.0.0.1:%d", port)
	startNATS(t, port, t.TempDir())
	first := startLocator(t, "DIALRING_NATS_URL="+url)
	patient := "DIALRING_MOVE_DEADLINE=120s"
	startNode(t, "a", url, patient)
	first.waitMembers(t, "a")
	users := movers(equal("a"), equal("a", "b"), "a", "b", 2)
	x, y := dialEar(t, first, users[0], "d"), dialEar(t, first, users[1], "d")
	startNode(t, "b", url, patient)
	mx, my := x.told(t), y.told(t)
	first.kill()
	nx := x.follows(t, mx) // without any locator
	x.leave(t)
	l := startLocator(t, "DIALRING_NATS_URL="+url)
	l.waitMembers(t, "a", "b")
	eventually(t, "ready", func() bool { s, _ := call(t, "GET", "http://"+l.addr+"/readyz", ""); return s == 200 })
	l.delivers(t, y, "at a")
	l.delivers(t, nx, "at b")
	eventually(t, "it knows what is pending", func() bool { return l.pendingAt(t, "a") == 1 })
	ny := y.follows(t, my)
	y.leave(t)
	l.settled(t)
	l.delivers(t, ny, "at b")
}
