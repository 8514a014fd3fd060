package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// cli starts the command line program on a cluster.
func cli(t *testing.T, l *locatorProc, args ...string) *process {
	t.Helper()
	return start(t, "dialring", filepath.Join(bin, "dialring"), []string{"DIALRING_CLI_LOCATOR=http://" + l.addr}, args...)
}

// loadSummary is what the tests read of what dialring load says.
type loadSummary struct {
	Sessions struct{ Connected, Reconnects, Moves, Stopped, Gaps int }
	Pushes   struct{ Sent, Accepted, Failed int }
	Received struct{ Count, Lost, Twice, Misdelivered, Strange int }
	Errors   map[string]map[string]int
}

// ended waits for the end of a load and reads its summary.
func ended(t *testing.T, p *process) loadSummary {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(2 * patience):
		t.Fatalf("the load did not end:\n%s", p.text())
	}
	var s loadSummary
	for line := range strings.Lines(p.text()) {
		if strings.HasPrefix(line, "{") {
			if err := json.Unmarshal([]byte(line), &s); err != nil {
				t.Fatal(err)
			}
			return s
		}
	}
	t.Fatalf("the load has no summary:\n%s", p.text())
	return s
}

// The load generator sees a node killed while it pushes: its sessions come back, and every
// stored push that was accepted has come, once.
func TestCLILoadNodeKilled(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	nodes := map[string]*nodeProc{}
	for i := 1; i <= 3; i++ {
		id := fmt.Sprintf("ws-%d", i)
		nodes[id] = startNode(t, id, l.nats)
	}
	l.waitMembers(t, "ws-1", "ws-2", "ws-3")
	eventually(t, "the locator is ready", func() bool {
		status, _ := call(t, "GET", "http://"+l.addr+"/readyz", "")
		return status == 200
	})
	p := cli(t, l, "load", "--sessions", "200", "--rate", "200", "--duration", "4s", "-o", "json")
	eventually(t, "it pushes", func() bool {
		for i := range 20 { // whom it pushes to it draws: one of 200 may never be
			var u wire.UserResponse
			status, b := call(t, "GET", fmt.Sprintf("http://%s/v1/users/load-%d", l.addr, i), "")
			if status == 200 && json.Unmarshal(b, &u) == nil && u.Head > 0 {
				return true
			}
		}
		return false
	})
	held := l.members(t)["ws-2"].Sessions
	nodes["ws-2"].kill()
	s := ended(t, p)
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("it ended with %d", code)
	}
	t.Logf("%d sessions were at the killed node: %+v", held, s)
	if s.Sessions.Connected != 200 || s.Sessions.Reconnects == 0 || s.Sessions.Stopped != 0 {
		t.Errorf("sessions: %+v", s.Sessions)
	}
	if s.Pushes.Accepted < 200 || s.Received.Count < s.Pushes.Accepted || s.Received.Lost+s.Received.Twice+s.Received.Misdelivered+s.Received.Strange > 0 {
		t.Errorf("%+v, %+v", s.Pushes, s.Received)
	}
}

// A node is drained under load, with the program itself: nobody reconnects, nothing is lost.
func TestCLILoadNodeDrained(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	var last *nodeProc
	for i := 1; i <= 3; i++ {
		last = startNode(t, fmt.Sprintf("ws-%d", i), l.nats)
	}
	l.waitMembers(t, "ws-1", "ws-2", "ws-3")
	eventually(t, "the locator is ready", func() bool {
		status, _ := call(t, "GET", "http://"+l.addr+"/readyz", "")
		return status == 200
	})
	p := cli(t, l, "load", "--sessions", "200", "--rate", "100", "--duration", "4s", "-o", "json")
	eventually(t, "all sessions are there", func() bool {
		n := 0
		for _, m := range l.members(t) {
			n += m.Sessions
		}
		return n == 200
	})
	d := cli(t, l, "drain", "ws-3", "--yes", "--wait")
	select {
	case <-d.done:
	case <-time.After(2 * patience):
		t.Fatalf("the drain did not end:\n%s", d.text())
	}
	if d.cmd.ProcessState.ExitCode() != 0 || !strings.Contains(d.text(), `{"node":"ws-3","state":"gone"}`) {
		t.Errorf("%s", d.text())
	}
	select {
	case <-last.done:
	case <-time.After(patience):
		t.Error("the node that was drained runs on")
	}
	s := ended(t, p)
	if s.Sessions.Connected != 200 || s.Sessions.Moves == 0 || s.Sessions.Reconnects != 0 || s.Pushes.Failed != 0 ||
		s.Received.Count != s.Pushes.Accepted || s.Received.Lost+s.Received.Twice > 0 || p.cmd.ProcessState.ExitCode() != 0 {
		t.Errorf("%+v", s)
	}
}
