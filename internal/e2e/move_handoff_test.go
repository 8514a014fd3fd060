package e2e

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/dialring/dialring/internal/wire"
)

// Clients stay where they were while the ring has given them to another node:
// everything reaches them there, and further changes wait.
func TestMoveHandoff(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	patient := "DIALRING_MOVE_DEADLINE=120s"
	startNode(t, "a", l.nats, patient)
	l.waitMembers(t, "a")
	one, two := equal("a"), equal("a", "b")
	users := movers(one, two, "a", "b", 6)
	stayer := dialEar(t, l, movers(one, two, "a", "a", 1)[0], "d1")
	var at []*ear // one session of each user, at a
	for _, u := range users {
		at = append(at, dialEar(t, l, u, "d1"))
	}
	second := dialEar(t, l, users[1], "d2")
	before := l.ring(t)
	startNode(t, "b", l.nats, patient)
	moves := map[*ear]toldMove{}
	for _, e := range append(slices.Clone(at), second) {
		moves[e] = e.told(t)
	}

	l.waitMembers(t, "a", "b") // a may have the ring before the locator goes by it
	r := l.ring(t)
	if len(r.Handoffs) != 1 || r.Handoffs[0].FromEpoch != before.Epoch || !slices.Equal(r.Handoffs[0].Nodes, []string{"b"}) ||
		len(r.Handoffs[0].Pending) != 1 || r.Handoffs[0].Pending[0].Node != "a" {
		t.Fatalf("handoffs %+v, want one from epoch %d to b with a pending", r.Handoffs, before.Epoch)
	}
	eventually(t, "a reports 7 sessions that have to go", func() bool { return l.pendingAt(t, "a") == 7 })

	// A second change waits while the first is under way.
	startNode(t, "c", l.nats, patient)
	eventually(t, "c wants to join", func() bool { return l.node(t, "c").State == wire.StateJoining })

	l.delivers(t, at[0], "to the former owner")
	for _, e := range at[:1] {
		u := l.getUser(t, e.user)
		if u.Node != "b" || !u.Online || len(u.Sessions) != 1 || u.Sessions[0].Node != "a" || u.Sessions[0].ID != e.welcome.Session {
			t.Errorf("GET user: %+v, want the session %s at a, of b's user", u, e.welcome.Session)
		}
	}
	online := l.presence(t, users[0], users[1], stayer.user, "nobody")
	if online[users[0]] != 1 || online[users[1]] != 2 || online[stayer.user] != 1 || len(online) != 3 {
		t.Errorf("presence: %v", online)
	}

	// A push for one device reaches that one only.
	status, body := call(t, "POST", "http://"+l.addr+"/v1/push/"+users[1]+"?device=d2", `"device"`)
	var p wire.PushResult
	if err := json.Unmarshal(body, &p); status != 200 || err != nil || p.Delivered != 1 {
		t.Errorf("push to a device: %d %s", status, body)
	}
	second.expect(t, `"device"`)

	// Kicks: by device, by session, all.
	if n := l.kick(t, users[1], "?device=d2"); n != 1 {
		t.Errorf("kick by device closed %d", n)
	}
	second.closes(t, wire.CloseKicked)
	if n := l.kick(t, users[1], "?session="+at[1].welcome.Session); n != 1 {
		t.Errorf("kick by session closed %d", n)
	}
	at[1].closes(t, wire.CloseKicked)
	if n := l.kick(t, users[2], ""); n != 1 {
		t.Errorf("kick of all closed %d", n)
	}
	at[2].closes(t, wire.CloseKicked)
	// One that was kicked does not come back with the ticket it was told.
	if status := dialStatus(t, moves[at[2]].URL, moves[at[2]].Ticket); status != 401 {
		t.Errorf("a kicked session arrives at the new owner: %d, want 401", status)
	}
	// A new login replaces the session that has not moved yet.
	login := dialEar(t, l, users[3], "d1")
	if login.Node != "b" || login.welcome.Session == at[3].welcome.Session {
		t.Errorf("the new login is %+v", login.welcome)
	}
	at[3].closes(t, wire.CloseMoved) // not 4003: it may be its own client that logged in
	l.delivers(t, login, "to the new login")
	eventually(t, "a reports 3 sessions that have to go", func() bool { return l.pendingAt(t, "a") == 3 })

	// A broadcast reaches those at both.
	status, body = call(t, "POST", "http://"+l.addr+"/v1/broadcast", `{"data":"all"}`)
	var bc wire.BroadcastResult
	if err := json.Unmarshal(body, &bc); status != 200 || err != nil || bc.Nodes != 2 || bc.Delivered != 5 || len(bc.Failed) != 0 {
		t.Errorf("broadcast: %d %s, want 5 sessions of 2 nodes", status, body)
	}
	for _, e := range []*ear{stayer, at[0], at[4], at[5], login} {
		e.expect(t, `"all"`)
	}

	l.unchanged(t, "a", "b") // c still waits
	if s := l.node(t, "c").State; s != wire.StateJoining {
		t.Errorf("c is %q while the first handoff is under way", s)
	}
	for i, e := range []*ear{at[0], at[4], at[5]} {
		next := e.follows(t, moves[e])
		e.leave(t)
		if r := l.push(t, e.user, `"moved"`); r.Delivered != 1 {
			t.Errorf("%+v", r)
		}
		// A recent broadcast may come again to who arrives: clients drop its id.
		got := await(t, "a push comes", next.got)
		if got == `"all"` {
			got = await(t, "a push comes", next.got)
		}
		if got != `"moved"` {
			t.Errorf("%s got %s", e.user, got)
		}
		if left := 2 - i; left > 0 {
			eventually(t, "a reports one session less", func() bool { return l.pendingAt(t, "a") == left })
		}
	}
	eventually(t, "c is in the ring", func() bool {
		r := l.ring(t)
		for _, n := range r.Nodes {
			if n.ID == "c" && n.Share > 0 {
				for _, h := range r.Handoffs {
					if slices.Contains(h.Nodes, "b") {
						t.Fatalf("c joined before the handoff of b was done: %+v", r)
					}
				}
				return true
			}
		}
		return false
	})
}

// A node is to drain while another one's join is under way: it leaves when that
// is done, and serves until then.
func TestMoveDrainWaits(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	patient := "DIALRING_MOVE_DEADLINE=120s"
	startNode(t, "a", l.nats, patient)
	b := startNode(t, "b", l.nats, patient)
	l.waitMembers(t, "a", "b")
	l.settled(t)
	two, three, last := equal("a", "b"), equal("a", "b", "c"), equal("a", "c")
	holder := dialEar(t, l, movers(two, three, "a", "c", 1)[0], "d") // holds the join up
	at := dialEar(t, l, movers(three, last, "b", "a", 1)[0], "d")
	if at.Node != "b" {
		t.Fatalf("%s is at %s", at.user, at.Node)
	}
	startNode(t, "c", l.nats)
	m := holder.told(t)
	l.waitMembers(t, "a", "b", "c")
	for range 2 { // asked twice is asked once
		if status, body := call(t, "POST", "http://"+l.addr+"/v1/nodes/b/drain", ""); status != 202 {
			t.Fatalf("drain: %d %s", status, body)
		}
	}
	eventually(t, "b is draining", func() bool { return l.node(t, "b").State == wire.StateDraining })
	l.unchanged(t, "a", "b", "c")
	l.delivers(t, at, "still at b")
	l.delivers(t, holder, "still at a")
	if at.Node != l.locate(t, at.user, "").Node {
		t.Errorf("%s has moved already", at.user)
	}
	next := holder.follows(t, m)
	holder.leave(t)
	l.waitMembers(t, "a", "c")
	d := at.told(t)
	if d.Reason == "" || d.Node != "a" {
		t.Errorf("told to move: %+v", d.Move)
	}
	after := at.follows(t, d)
	at.leave(t)
	await(t, "b ends", b.done)
	if code := b.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("b ended with %d", code)
	}
	l.settled(t)
	l.delivers(t, next, "at c")
	l.delivers(t, after, "at a")
}
