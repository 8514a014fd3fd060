package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/dialring/dialring/internal/wire"
)

// The former owner of users who are moving is stopped: nobody says of them that
// they are offline, or that a kick was carried out; and the kick counts when it
// goes on.
func TestMoveMuteFormerOwner(t *testing.T) {
	heavy(t)
	t.Parallel()
	l := startLocator(t)
	patient := "DIALRING_MOVE_DEADLINE=120s"
	a := startNode(t, "a", l.nats, patient, "DIALRING_RESTART_GRACE=60s") // it keeps its place while it is stopped
	l.waitMembers(t, "a")
	users := movers(equal("a"), equal("a", "b"), "a", "b", 2)
	kicked, other := dialEar(t, l, users[0], "d1"), dialEar(t, l, users[1], "d1")
	startNode(t, "b", l.nats, patient)
	move, move2 := kicked.told(t), other.told(t)
	l.waitMembers(t, "a", "b")
	if err := a.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ask := func(method, path, body string) {
		t.Helper()
		status, b := call(t, method, "http://"+l.addr+path, body)
		var p wire.Problem
		if status != 503 || json.Unmarshal(b, &p) != nil || p.Code != wire.CodeOwnerUnreachable || strings.Contains(p.Detail, "message") {
			t.Errorf("%s %s while the former owner is stopped: %d %s, want 503 owner_unreachable", method, path, status, b)
		}
	}
	ask("DELETE", "/v1/users/"+users[0]+"/sessions", "")
	ask("GET", "/v1/users/"+users[0], "")
	ask("POST", "/v1/presence", fmt.Sprintf(`{"users":[%q]}`, users[0]))
	if err := a.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if status := dialStatus(t, move.URL, move.Ticket); status != 401 {
		t.Errorf("a kicked session arrives at the new owner: %d, want 401", status)
	}
	next := other.follows(t, move2)
	other.leave(t)
	eventually(t, "the other one is where it belongs, and served", func() bool {
		status, b := call(t, "POST", "http://"+l.addr+"/v1/push/"+users[1]+"?durable=false", `"on"`)
		return status == 200 && strings.Contains(string(b), `"delivered":1,`)
	})
	next.expect(t, `"on"`)
	eventually(t, "a kick is carried out", func() bool {
		status, b := call(t, "DELETE", "http://"+l.addr+"/v1/users/"+users[0]+"/sessions", "")
		return status == 200 && strings.Contains(string(b), `"closed":1`)
	})
	kicked.closes(t, wire.CloseKicked)
}
