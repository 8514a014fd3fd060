package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"testing"

	"github.com/dialring/dialring/internal/wire"
)

// Presence of as many users as a call may name is asked for again and again while a node
// drains and its clients move: each answer lists exactly those who are connected, which
// all of them are all the time, and nobody else.
func TestPresenceOfManyWhileDraining(t *testing.T) {
	t.Parallel()
	const online = 300
	l := startLocator(t)
	// The pace makes the move last for some answers: about 100 users leave ws-1.
	nodes := nodesOf(t, l, l.nats, "DIALRING_ACCEPT_RATE=20", "DIALRING_MOVE_DEADLINE=120s")
	l.settled(t)
	var users []string
	var all []*handset
	want, mine := map[string]int{}, 0
	for i := range wire.MaxUsersPerCall {
		u := fmt.Sprintf("seen-%d", i)
		users = append(users, u)
		if i%(wire.MaxUsersPerCall/online) == 0 && len(all) < online {
			all = append(all, pickUp(t, u, "d", l))
			want[u] = 1
		}
	}
	for _, h := range all {
		eventually(t, h.user+" is connected", h.connected)
		if at, _ := h.been(); at[0] == "ws-1" {
			mine++
		}
	}
	body, err := json.Marshal(map[string]any{"users": users})
	if err != nil {
		t.Fatal(err)
	}
	answers := 0
	ask := func(when string) {
		t.Helper()
		answers++
		p := l.post("/v1/presence", "application/json", string(body), "")
		var r struct{ Online map[string]int }
		if err := json.Unmarshal(p.body, &r); p.status != 200 || err != nil {
			t.Fatalf("presence %s is answered %d %.300s", when, p.status, p.body)
		}
		if maps.Equal(r.Online, want) {
			return
		}
		missing, wrong := []string{}, map[string]int{}
		for u := range want {
			if r.Online[u] == 0 {
				missing = append(missing, u)
			}
		}
		for u, n := range r.Online {
			if n != want[u] {
				wrong[u] = n
			}
		}
		t.Errorf("answer %d, %s: %d are missing, %.200s; others than it is: %v", answers, when, len(missing), fmt.Sprint(missing), wrong)
	}
	// One more stays on its way until enough answers have come, however slow they are.
	const enough = 5
	var last *ear
	for _, u := range users {
		if want[u] == 0 && l.locate(t, u, "").Node == "ws-1" {
			last = dialEar(t, l, u, "d")
			want[u] = 1
			break
		}
	}
	for range 3 {
		ask("before the drain")
	}
	l.drainByAPI(t, "ws-1")
	before, moving := answers, 0
	for ended := false; !ended; {
		select {
		case <-nodes[0].done:
			ended = true
		default:
		}
		ask("while it drains")
		if len(l.ring(t).Handoffs) > 0 {
			if moving++; moving == enough {
				last.follows(t, last.told(t))
				last.leave(t)
			}
		}
	}
	t.Logf("%d answers while ws-1 drained, %d of them with users on their way", answers-before, moving)
	if moving < enough {
		t.Errorf("only %d answers came while users moved", moving)
	}
	nodes[0].ends(t)
	l.waitMembers(t, "ws-2", "ws-3")
	l.settled(t)
	for range 3 {
		ask("after the drain")
	}
	moved := 0
	for _, h := range all {
		at, lost := h.been()
		if len(lost) > 0 || !h.connected() {
			t.Errorf("%s was without a connection: %v, at %v", h.user, lost, at)
		}
		if len(at) > 1 {
			moved++
		}
	}
	if mine == 0 || moved != mine {
		t.Errorf("%d users moved, %d were at the node that drained", moved, mine)
	}
	// Who leaves is not listed any more: the answers are not of what was.
	all[0].stop()
	<-all[0].ended
	delete(want, all[0].user)
	eventually(t, "one less is online", func() bool { return len(l.presence(t, all[0].user, all[1].user)) == 1 })
	ask("without the one that left")
}
