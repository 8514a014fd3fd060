package e2e

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// settled waits until a locator shows no unfinished handoff.
func (l *locatorProc) settled(t *testing.T) time.Duration {
	t.Helper()
	return eventually(t, "no handoff is left", func() bool { return len(l.ring(t).Handoffs) == 0 })
}

// ownersOf is who owns the users of a load, by a locator.
func ownersOf(t *testing.T, l *locatorProc, users []string) map[string]string {
	t.Helper()
	m := map[string]string{}
	for _, u := range users {
		m[u] = l.locate(t, u, "").Node
	}
	return m
}

// accepts judges a load in which a node was killed: ephemeral pushes to its users
// are excused for the time that it was missed, stored ones never.
func (l *load) accepts(t *testing.T, durable bool, excuse func(p pushRecord) bool) {
	t.Helper()
	if durable {
		l.arrived(t)
		return
	}
	l.excuse(excuse)
	r := l.stop(t)
	t.Log(r)
	if r.bad() {
		t.Errorf("%v", r)
	}
}

// bothKinds runs a scenario under a load of ephemeral pushes, and of stored ones.
func bothKinds(t *testing.T, scenario func(t *testing.T, durable bool)) {
	t.Run("ephemeral", func(t *testing.T) { scenario(t, false) })
	t.Run("stored", func(t *testing.T) { scenario(t, true) })
}

// clean fails unless every push was accepted at its only attempt, everything
// arrived once, and nobody had to reconnect: there was no fault to excuse more.
func (l *load) clean(t *testing.T) {
	t.Helper()
	l.arrived(t)
	if d := l.disconnects(); len(d) > 0 {
		t.Errorf("applications saw a disconnect: %v", d)
	}
}

// A node joins under load: who moves, and only who, dials first and leaves then.
func TestMoveJoin(t *testing.T) { bothKinds(t, moveJoin) }

func moveJoin(t *testing.T, durable bool) {
	l := startLocator(t)
	for i := 1; i <= 3; i++ {
		startNode(t, fmt.Sprintf("ws-%d", i), l.nats)
	}
	l.waitMembers(t, "ws-1", "ws-2", "ws-3")
	load := startLoad(t, loadConfig{Locators: []*locatorProc{l}, Users: 300, Devices: 2, Rate: 500, Durable: durable})
	before := ownersOf(t, l, load.users)
	startNode(t, "ws-4", l.nats)
	l.waitMembers(t, "ws-1", "ws-2", "ws-3", "ws-4")
	after := ownersOf(t, l, load.users)
	took := load.waitConnected(t, func(string) bool { return true })
	l.settled(t)
	moved := 0
	for _, u := range load.users {
		if before[u] != after[u] {
			moved++
			if after[u] != "ws-4" {
				t.Errorf("%s went from %s to %s", u, before[u], after[u])
			}
		}
		for d := range 2 {
			if n := load.nodeOf(u, fmt.Sprintf("d%d", d)); n != after[u] {
				t.Errorf("%s is at %s, its owner is %s", u, n, after[u])
			}
		}
	}
	if got := load.moves(); got != 2*moved {
		t.Errorf("%d moves, want %d", got, 2*moved)
	}
	share := l.members(t)["ws-4"].Share
	if dev := math.Abs(float64(moved) - share*300); dev > 4*math.Sqrt(share*(1-share)*300) {
		t.Errorf("%d of 300 users moved, the node's share is %.3f", moved, share)
	}
	t.Logf("%d users moved, share %.3f, after %v", moved, share, took)
	load.clean(t)
}

// Each node is drained and started again, under load.
func TestMoveRollingRestart(t *testing.T) {
	heavy(t)
	bothKinds(t, moveRollingRestart)
}

func moveRollingRestart(t *testing.T, durable bool) {
	l := startLocator(t)
	var nodes []*nodeProc
	for i := 1; i <= 3; i++ {
		nodes = append(nodes, startNode(t, fmt.Sprintf("ws-%d", i), l.nats))
	}
	l.waitMembers(t, "ws-1", "ws-2", "ws-3")
	load := startLoad(t, loadConfig{Locators: []*locatorProc{l}, Users: 300, Devices: 2, Rate: 500, Durable: durable})
	for i, n := range nodes {
		if i == 1 {
			if status, b := call(t, "POST", "http://"+l.addr+"/v1/nodes/"+n.id+"/drain", ""); status != 202 {
				t.Fatalf("drain: %d %s", status, b)
			}
			<-n.done
			if code := n.cmd.ProcessState.ExitCode(); code != 0 {
				t.Errorf("%s ended with %d", n.id, code)
			}
		} else if code := n.term(t); code != 0 {
			t.Errorf("%s ended with %d", n.id, code)
		}
		l.settled(t)
		startNode(t, n.id, l.nats)
		l.waitMembers(t, "ws-1", "ws-2", "ws-3")
		l.settled(t)
	}
	load.clean(t)
}

// serves sends each of these users a push, all at once, and waits until all have
// got it.
func (l *load) serves(t *testing.T, users []string) {
	t.Helper()
	var pushing sync.WaitGroup
	nums := make([]uint64, len(users))
	for i, u := range users {
		pushing.Go(func() {
			num := l.begin(u, -1) // no worker's
			a := l.send(num, u)
			l.end(num, a)
			if a.kind != accepted || a.delivered < l.cfg.Devices {
				t.Errorf("%s is not served: %+v", u, a)
				return
			}
			nums[i] = num
		})
	}
	pushing.Wait()
	eventually(t, "what was pushed to each has come", func() bool {
		return !slices.ContainsFunc(nums, func(n uint64) bool { return n > 0 && !l.came(n) })
	})
}

// The contract has users of a node that was killed connected again within 0.5 s,
// and served within 1 s. This is with the race detector, on machines that do
// other things as well.
const (
	connectedAgain = 2 * time.Second
	servedAgain    = 4 * time.Second
)

// kill -9: users of the dead node are served again within moments, nobody else
// notices.
func TestMoveCrash(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	nodes := map[string]*nodeProc{}
	for i := 1; i <= 3; i++ {
		id := fmt.Sprintf("ws-%d", i)
		nodes[id] = startNode(t, id, l.nats)
	}
	l.waitMembers(t, "ws-1", "ws-2", "ws-3")
	load := startLoad(t, loadConfig{Locators: []*locatorProc{l}, Users: 300, Devices: 1, Rate: 500})
	before := ownersOf(t, l, load.users)
	theirs := slices.DeleteFunc(slices.Clone(load.users), func(u string) bool { return before[u] != "ws-2" })
	killed := load.now()
	nodes["ws-2"].kill()
	l.waitMembers(t, "ws-1", "ws-3")
	load.waitConnected(t, func(node string) bool { return node != "ws-2" })
	connected := load.now()
	load.serves(t, theirs)
	served := load.now()
	t.Logf("%d users are connected again after %v, served after %v", len(theirs), connected-killed, served-killed)
	if d := connected - killed; d > connectedAgain {
		t.Errorf("connected again after %v, at most %v is allowed", d, connectedAgain)
	}
	if d := served - killed; d > servedAgain {
		t.Errorf("served after %v, at most %v is allowed", d, servedAgain)
	}
	load.excuse(func(p pushRecord) bool { // not what serves pushed: all are connected then
		return before[p.user] == "ws-2" && p.after >= killed && p.before <= connected
	})
	r := load.stop(t)
	t.Log(r)
	if r.bad() {
		t.Errorf("%v", r)
	}
	for u := range load.disconnects() {
		if before[u] != "ws-2" {
			t.Errorf("%s of %s had to reconnect", u, before[u])
		}
	}
}

// A node is stopped for a while: it is out, its users are served elsewhere, and
// when it goes on it gives up what it holds and takes nothing for them.
func TestMoveStoppedNode(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	a := startNode(t, "a", l.nats)
	startNode(t, "b", l.nats)
	startNode(t, "c", l.nats)
	l.waitMembers(t, "a", "b", "c")
	u := userOf(t, l, "a")
	hand := dialBare(t, l, u)
	if err := a.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	l.waitMembers(t, "b", "c")
	second := dialBare(t, l, u)
	if second.Node == "a" {
		t.Errorf("connected at the stopped node")
	}
	if r := l.push(t, u, `"elsewhere"`); r.Delivered != 1 {
		t.Errorf("%+v", r)
	}
	if err := a.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	var m wire.Move
	hand.expectType(t, wire.TypeMove, &m)
	if m.Node != second.Node {
		t.Errorf("told to go to %s, the owner is %s", m.Node, second.Node)
	}
	l.waitMembers(t, "a", "b", "c") // it joins again
}
