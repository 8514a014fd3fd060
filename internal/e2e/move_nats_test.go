package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// quietPort returns a port that nobody gets by chance: one below those that the
// system gives to whoever asks for any. What listens there can go away and come
// back.
func quietPort(t *testing.T) int {
	t.Helper()
	for range 100 {
		port := 20000 + rand.IntN(10000)
		if _, given := quietPorts.LoadOrStore(port, true); given { // it may not be in use yet
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

var quietPorts sync.Map

// All of NATS is away for half a minute: nobody moves, nobody has to reconnect,
// and every push arrives.
func TestMoveNATSAway(t *testing.T) {
	heavy(t)
	t.Parallel()
	bothKinds(t, moveNATSAway)
}

func moveNATSAway(t *testing.T, durable bool) {
	port, dir := quietPort(t), t.TempDir()
	url := fmt.Sprintf("nats://127.0.0.1:%d", port)
	nats := startNATS(t, port, dir)
	l1, l2 := startLocator(t, "DIALRING_NATS_URL="+url), startLocator(t, "DIALRING_NATS_URL="+url)
	all := []*locatorProc{l1, l2}
	ids := []string{"a", "b", "c"}
	for _, id := range ids {
		startNode(t, id, url)
	}
	for _, l := range all {
		l.waitMembers(t, ids...)
		l.settled(t)
	}
	load := startLoad(t, loadConfig{Locators: all, Users: 150, Devices: 1, Rate: 100, Durable: durable})
	before := l1.ring(t)
	same := func(when string) {
		t.Helper()
		for _, l := range all {
			if r := l.ring(t); r.Hash != before.Hash || len(l.members(t)) != len(ids) {
				t.Errorf("%s: the ring is %+v, was %+v", when, r, before)
			}
		}
	}
	nats.kill()
	for _, l := range all {
		l.event(t, "nats_down")
	}
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(time.Second) {
		same("while NATS is away")
	}
	// New sessions come, too.
	for i, l := range all {
		l.delivers(t, dialEar(t, l, fmt.Sprintf("new-%d", i), "d"), "new")
	}
	startNATS(t, port, dir)
	for _, l := range all {
		l.event(t, "nats_up")
	}
	for _, l := range all {
		eventually(t, "all nodes are heard again", func() bool {
			for _, n := range l.members(t) {
				if n.State != wire.StateActive || n.LastSeenMS > 2000 {
					return false
				}
			}
			return true
		})
	}
	same("after NATS has come back")
	if n := load.moves(); n != 0 {
		t.Errorf("%d moves", n)
	}
	load.clean(t)
	t.Logf("most that a push was sent late: %v", load.lag())
}

// heal lets connections through again.
func (c *cable) heal() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone, c.cuts = false, nil
}

// A locator is cut off from NATS and goes by an old ring while a node joins: it
// delivers, or says that it did not; it never says 200 to nobody who is there.
func TestMoveOldLocator(t *testing.T) {
	heavy(t)
	t.Parallel()
	port := quietPort(t)
	url := fmt.Sprintf("nats://127.0.0.1:%d", port)
	startNATS(t, port, t.TempDir())
	cut := newCable(t, fmt.Sprintf("127.0.0.1:%d", port))
	fresh, old := startLocator(t, "DIALRING_NATS_URL="+url), startLocator(t, "DIALRING_NATS_URL=nats://"+cut.addr)
	patient := "DIALRING_MOVE_DEADLINE=120s"
	startNode(t, "a", url, patient)
	startNode(t, "b", url, patient)
	for _, l := range []*locatorProc{fresh, old} {
		l.waitMembers(t, "a", "b")
		l.settled(t)
	}
	two, three := equal("a", "b"), equal("a", "b", "c")
	mover := dialEar(t, fresh, movers(two, three, "a", "c", 1)[0], "d")
	stay := dialEar(t, fresh, movers(two, three, "b", "b", 1)[0], "d")
	old.delivers(t, mover, "before")
	old.delivers(t, stay, "before")
	epoch := old.ring(t).Epoch
	cut.cut()
	old.event(t, "nats_down")
	startNode(t, "c", url, patient)
	fresh.waitMembers(t, "a", "b", "c")
	m := mover.told(t)

	// through pushes by the locator with the old ring.
	through := func(e *ear, what string) {
		t.Helper()
		status, b := call(t, "POST", "http://"+old.addr+"/v1/push/"+e.user+"?durable=false", `"`+what+`"`)
		var r wire.PushResult
		switch {
		case status == 503:
			t.Logf("%s: 503 %s", what, b)
		case status == 200 && json.Unmarshal(b, &r) == nil && r.Delivered == 1:
			e.expect(t, `"`+what+`"`)
			t.Logf("%s: delivered at epoch %d", what, r.Epoch)
		default:
			t.Errorf("%s: %d %s", what, status, b)
		}
	}
	old.delivers(t, stay, "to one who stays")
	through(mover, "not moved yet")
	next := mover.follows(t, m)
	through(next, "on two connections")
	mover.leave(t)
	fresh.settled(t)
	through(next, "moved")
	fresh.delivers(t, next, "by the other locator")
	if old.ring(t).Epoch == epoch {
		// By an old ring it sends clients to the former owner, which refuses them.
		loc := old.locate(t, mover.user, `{"device":"d2"}`)
		if loc.Node != "a" {
			t.Errorf("by the old ring %s belongs to %s", mover.user, loc.Node)
		}
		if status := dialStatus(t, loc.URL, loc.Ticket); status != 421 {
			t.Errorf("a dial by the old ring: %d, want 421", status)
		}
	}

	cut.heal()
	old.event(t, "nats_up")
	eventually(t, "it has caught up", func() bool {
		x, y := old.ring(t), fresh.ring(t)
		return x.Epoch == y.Epoch && x.Hash == y.Hash
	})
	old.delivers(t, next, "caught up")
	old.delivers(t, stay, "caught up")
	eventually(t, "nothing more came", func() bool { return len(next.got) == 0 && len(stay.got) == 0 })
	if old.members(t)["c"].Share == 0 {
		t.Errorf("it does not know c: %+v", old.ring(t))
	}
}
