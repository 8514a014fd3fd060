package e2e

import (
	"encoding/json"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/trust"
)

// presenceEvents collects the presence events of a cluster.
type presenceEvent struct {
	Event, User, Node string
	Time              time.Time
}

func presenceEvents(t *testing.T, natsURL string) <-chan presenceEvent {
	t.Helper()
	nc, err := nats.Connect(natsURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	out := make(chan presenceEvent, 10_000)
	if _, err := nc.Subscribe("dialring.presence", func(m *nats.Msg) {
		var e presenceEvent
		if err := json.Unmarshal(m.Data, &e); err != nil || e.Node == "" || e.Time.IsZero() {
			t.Errorf("an event is %s: %v", m.Data, err)
		}
		out <- e
	}); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return out
}

func wantEvent(t *testing.T, events <-chan presenceEvent, event, user, node string) {
	t.Helper()
	e := await(t, event+" of "+user+node, events)
	if e.Event != event || user != "" && e.User != user || node != "" && e.Node != node {
		t.Fatalf("the event is %+v, want %s of %s at %s", e, event, user, node)
	}
}

// Online with the first session, offline after the grace; other devices, reconnects and
// moves say nothing.
func TestPresenceEvents(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	nodes := nodesOf(t, l, l.nats, "DIALRING_PRESENCE_GRACE=2s")
	events := presenceEvents(t, l.nats)
	users := usersOf(t, l, nodes)
	first := dialEar(t, l, users[0], "one")
	wantEvent(t, events, "online", users[0], "ws-1")
	second := dialEar(t, l, users[0], "two")
	first.leave(t)
	first = dialEar(t, l, users[0], "one")
	first.leave(t)
	second.leave(t)
	second = dialEar(t, l, users[0], "two") // within the grace
	other := dialEar(t, l, users[1], "x")
	wantEvent(t, events, "online", users[1], "ws-2") // nothing of the first in between
	other.leave(t)
	wantEvent(t, events, "offline", users[1], "ws-2")

	// A drain moves the user: no event. Then it leaves from its new owner.
	if status, b := call(t, "POST", "http://"+l.addr+"/v1/nodes/ws-1/drain", ""); status != 202 {
		t.Fatalf("drain: %d %s", status, b)
	}
	moved := second.follows(t, second.told(t))
	second.leave(t)
	l.waitMembers(t, "ws-2", "ws-3")
	third := dialEar(t, l, users[2], "x")
	wantEvent(t, events, "online", users[2], "ws-3")
	moved.leave(t)
	wantEvent(t, events, "offline", users[0], "")
	if n := nodes[1].metric(t, `dialring_presence_events_total{event="online"}`); n != 1 {
		t.Errorf("ws-2 counts %v online events", n)
	}

	// A killed node says nothing of its users; that it is lost is said.
	nodes[2].kill()
	wantEvent(t, events, "node_lost", "", "ws-3")
	third.closes(t, 0)
	select {
	case e := <-events:
		t.Errorf("one more event: %+v", e)
	default:
	}
}

// A user who moves and then disconnects before the new owner saw it is said to be
// offline all the same, by whoever owns it.
func TestPresenceOfThoseLeftBehind(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	first := startNode(t, "ws-1", l.nats, "DIALRING_PRESENCE_GRACE=1s", "DIALRING_DRAIN_TIMEOUT=30s")
	startNode(t, "ws-2", l.nats, "DIALRING_PRESENCE_GRACE=1s")
	l.waitMembers(t, "ws-1", "ws-2")
	events := presenceEvents(t, l.nats)
	want := map[string]bool{}
	var ears []*ear
	for i := range 20 {
		user := fmt.Sprint("u", i)
		if l.locate(t, user, "").Node == "ws-1" {
			ears = append(ears, dialEar(t, l, user, "d"))
			want[user] = true
		}
	}
	for range ears {
		if e := await(t, "online", events); e.Event != "online" || !want[e.User] {
			t.Fatalf("%+v", e)
		}
	}
	status, _ := call(t, "POST", "http://"+l.addr+"/v1/nodes/ws-1/drain", "")
	if status != 202 {
		t.Fatalf("drain: %d", status)
	}
	for _, e := range ears { // told, and gone without a dial
		e.told(t)
		e.leave(t)
	}
	for len(want) > 0 {
		e := await(t, "offline", events)
		if e.Event != "offline" || !want[e.User] || e.Node != "ws-2" {
			t.Fatalf("%+v of %v", e, want)
		}
		delete(want, e.User)
	}
	await(t, "ws-1 ends", first.done)
}

// A node is killed that has no session left, and has not handed over yet who is missing
// there: it is lost, though its drain was all but over.
func TestPresenceOfThoseNotHandedOver(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	first := startNode(t, "ws-1", l.nats, "DIALRING_PRESENCE_GRACE=60s")
	second := startNode(t, "ws-2", l.nats)
	l.waitMembers(t, "ws-1", "ws-2")
	events := presenceEvents(t, l.nats)
	user := userOf(t, l, "ws-1")
	e := dialEar(t, l, user, "d")
	wantEvent(t, events, "online", user, "ws-1")
	e.leave(t)
	l.settled(t)
	before := l.ring(t).Epoch
	eventually(t, "its session has ended", func() bool { return first.metric(t, "dialring_sessions") == 0 })
	nc, err := nats.Connect(l.nats)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	beats, err := nc.SubscribeSync("dialring.beat.node.ws-1")
	if err != nil || nc.Flush() != nil {
		t.Fatal(err)
	}
	if err := second.cmd.Process.Signal(syscall.SIGSTOP); err != nil { // who owns the user next, and is asked
		t.Fatal(err)
	}
	if status, b := call(t, "POST", "http://"+l.addr+"/v1/nodes/ws-1/drain", ""); status != 202 {
		t.Fatalf("drain: %d %s", status, b)
	}
	first.event(t, "drained")
	for epoch := before; epoch == before; {
		m, err := beats.NextMsg(patience)
		if err != nil {
			t.Fatal(err)
		}
		var beat cluster.NodeBeat
		if b, _, err := trust.Detach(m.Data); err != nil || json.Unmarshal(b, &beat) != nil {
			t.Fatalf("a heartbeat is %s: %v", m.Data, err)
		}
		if epoch = beat.Epoch; beat.Settled > before {
			t.Fatalf("it lets the handoff end: %+v", beat)
		}
	}
	first.kill()
	if err := second.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if e := await(t, "news", events); (e.Event != "node_lost" || e.Node != "ws-1") && (e.Event != "offline" || e.User != user) { // that, if it was killed late
		t.Errorf("%+v", e)
	}
}

// A node that was stopped is lost; when it goes on, those whom it still holds move, and
// are said to be online. The last node of all says offline itself.
func TestPresenceOfStoppedAndOfLastNode(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	first := startNode(t, "ws-1", l.nats, "DIALRING_PRESENCE_GRACE=1s")
	second := startNode(t, "ws-2", l.nats, "DIALRING_PRESENCE_GRACE=1s")
	l.waitMembers(t, "ws-1", "ws-2")
	events := presenceEvents(t, l.nats)
	user := userOf(t, l, "ws-1")
	e := dialEar(t, l, user, "d")
	wantEvent(t, events, "online", user, "ws-1")
	if err := first.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	l.waitMembers(t, "ws-2")
	wantEvent(t, events, "node_lost", "", "ws-1")
	if err := first.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	moved := e.follows(t, e.told(t))
	wantEvent(t, events, "online", user, "ws-2")
	e.leave(t)
	first.kill()
	l.waitMembers(t, "ws-2")
	if code := second.term(t); code != 0 {
		t.Errorf("the last node ended with %d", code)
	}
	for {
		ev := await(t, "offline", events)
		if ev.Event == "offline" && ev.User == user {
			break
		}
	}
	moved.closes(t, 4202)
}
