package e2e

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"strings"
	"testing"

	"github.com/dialring/dialring/internal/wire"
)

// plan asks what would move.
func (l *locatorProc) plan(t *testing.T, body string) wire.PlanResponse {
	t.Helper()
	var r wire.PlanResponse
	status, b := call(t, "POST", "http://"+l.addr+"/v1/ring/plan", body)
	if status != 200 || json.Unmarshal(b, &r) != nil {
		t.Fatalf("plan %s: %d %s", body, status, b)
	}
	share, sessions := 0.0, 0
	for _, m := range r.Moves {
		share += m.Share
		sessions += m.Sessions
		if m.From == m.To || m.Share <= 0 || m.Share > 1 {
			t.Errorf("plan %s: a move %+v", body, m)
		}
	}
	if math.Abs(share-r.Share) > 1e-9 || sessions != r.Sessions {
		t.Errorf("plan %s: its moves add up to %f and %d sessions, it says %f and %d", body, share, sessions, r.Share, r.Sessions)
	}
	return r
}

type flow struct{ from, to string }

// agrees compares a plan with what then happened: the users that changed their
// owner, of whom each has so many sessions, and the nodes' shares.
func agrees(t *testing.T, p wire.PlanResponse, devices int, was, is map[string]string, shareWas, shareIs map[string]wire.RingNode) {
	t.Helper()
	really := map[flow]int{}
	for u, from := range was {
		if to := is[u]; to != from {
			really[flow{from, to}] += devices
		}
	}
	gain := map[string]float64{}
	for _, m := range p.Moves {
		if really[flow{m.From, m.To}] != m.Sessions {
			t.Errorf("from %s to %s: planned %d sessions, moved %d", m.From, m.To, m.Sessions, really[flow{m.From, m.To}])
		}
		delete(really, flow{m.From, m.To})
		gain[m.From] -= m.Share
		gain[m.To] += m.Share
	}
	for f, n := range really {
		t.Errorf("from %s to %s: %d sessions moved, none was planned", f.from, f.to, n)
	}
	for _, id := range []string{"a", "b", "c", "d"} {
		if got := shareIs[id].Share - shareWas[id].Share; math.Abs(got-gain[id]) > 1e-9 {
			t.Errorf("the share of %s changed by %f, planned was %f", id, got, gain[id])
		}
	}
}

// What a plan says of a node that joins, changes its weight and leaves is what
// happens then.
func TestMovePlan(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	nodes := map[string]*nodeProc{}
	for _, id := range []string{"a", "b", "c"} {
		nodes[id] = startNode(t, id, l.nats)
	}
	l.waitMembers(t, "a", "b", "c")
	l.settled(t)
	const devices = 2
	load := startLoad(t, loadConfig{Locators: []*locatorProc{l}, Users: 120, Devices: devices})

	if p := l.plan(t, `{"add":[{"id":"b","weight":1}]}`); p.Share != 0 || p.Sessions != 0 || len(p.Moves) != 0 {
		t.Errorf("a plan that changes nothing: %+v", p)
	}
	step := func(what, plan string, only func(m wire.PlanMove) bool, change func()) {
		t.Helper()
		was, shareWas := ownersOf(t, l, load.users), l.members(t)
		eventually(t, "the nodes have all sessions", func() bool {
			n := 0
			for _, x := range l.ring(t).Nodes {
				n += x.Sessions
			}
			return n == len(load.users)*devices
		})
		p := l.plan(t, plan)
		if r := l.ring(t); p.Epoch != r.Epoch {
			t.Errorf("%s: planned for epoch %d, it is %d", what, p.Epoch, r.Epoch)
		}
		if len(p.Moves) == 0 {
			t.Errorf("%s: nothing is planned", what)
		}
		for _, m := range p.Moves {
			if !only(m) {
				t.Errorf("%s: a move that is not needed: %+v", what, m)
			}
		}
		change()
		l.settled(t)
		is := ownersOf(t, l, load.users)
		agrees(t, p, devices, was, is, shareWas, l.members(t))
		for _, u := range load.users {
			for d := range devices {
				eventually(t, u+" is where it belongs", func() bool { return load.nodeOf(u, fmt.Sprintf("d%d", d)) == is[u] })
			}
		}
		t.Logf("%s: %d sessions, share %.3f", what, p.Sessions, p.Share)
	}
	step("join", `{"add":[{"id":"d"}]}`, func(m wire.PlanMove) bool { return m.To == "d" }, func() {
		nodes["d"] = startNode(t, "d", l.nats)
		l.waitMembers(t, "a", "b", "c", "d")
	})
	if n := load.moves(); len(load.disconnects()) > 0 || n == 0 {
		t.Errorf("%d moves, and disconnects of %v", n, load.disconnects())
	}
	step("weight", `{"add":[{"id":"d","weight":3}]}`, func(m wire.PlanMove) bool { return m.To == "d" }, func() {
		nodes["d"].kill()
		nodes["d"] = startNodeAt(t, "d", l.nats, nodes["d"].addr, nodes["d"].peer, "DIALRING_WEIGHT=3")
		eventually(t, "d has its weight", func() bool { return l.members(t)["d"].Weight == 3 })
	})
	step("leave", `{"remove":["a"]}`, func(m wire.PlanMove) bool { return m.From == "a" }, func() {
		l.drainByAPI(t, "a")
		nodes["a"].ends(t)
		l.waitMembers(t, "b", "c", "d")
	})
	// Both at once is planned, too: nothing moves between those that stay.
	p := l.plan(t, `{"add":[{"id":"e","weight":2}],"remove":["b"]}`)
	for _, m := range p.Moves {
		if m.From != "b" && m.To != "e" {
			t.Errorf("a move between nodes that stay: %+v", m)
		}
	}
}

func TestMovePlanRefused(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	startNode(t, "a", l.nats)
	l.waitMembers(t, "a")
	epoch := l.ring(t).Epoch
	for name, body := range map[string]string{
		"nothing":         `{}`,
		"empty lists":     `{"add":[],"remove":[]}`,
		"no JSON":         `{"add":`,
		"no body":         ``,
		"a list":          `[]`,
		"unknown node":    `{"remove":["nobody"]}`,
		"the last node":   `{"remove":["a"]}`,
		"twice":           `{"remove":["a","a"]}`,
		"bad id":          `{"add":[{"id":"A_B"}]}`,
		"no id":           `{"add":[{"weight":1}]}`,
		"weight 65":       `{"add":[{"id":"b","weight":65}]}`,
		"weight below 0":  `{"add":[{"id":"b","weight":-1}]}`,
		"weight a string": `{"add":[{"id":"b","weight":"1"}]}`,
		"weight 1.5":      `{"add":[{"id":"b","weight":1.5}]}`,
		"too many":        `{"add":[` + strings.TrimSuffix(manyNodes(2000), ",") + `]}`,
	} {
		status, b := call(t, "POST", "http://"+l.addr+"/v1/ring/plan", body)
		var p wire.Problem
		if err := json.Unmarshal(b, &p); status != 400 || err != nil || p.Code != wire.CodeInvalidRequest {
			t.Errorf("%s: %d %s, want 400", name, status, b)
		}
	}
	req, err := http.NewRequest("POST", "http://"+l.addr+"/v1/ring/plan", strings.NewReader(`{"remove":["a"]}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 401 {
		t.Errorf("without a key: %d", resp.StatusCode)
	}
	if r := l.ring(t); r.Epoch != epoch || len(r.Nodes) != 1 {
		t.Errorf("a plan changed the ring: %+v", r)
	}
}

func manyNodes(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `{"id":"n-%d","weight":64},`, i)
	}
	return b.String()
}

// A node comes back in place with another weight: what moves goes to it when it
// has more, comes from it when it has less, and nobody else notices.
func TestMoveWeight(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	startNode(t, "a", l.nats)
	b := startNode(t, "b", l.nats)
	startNode(t, "c", l.nats)
	l.waitMembers(t, "a", "b", "c")
	l.settled(t)
	load := startLoad(t, loadConfig{Locators: []*locatorProc{l}, Users: 150, Devices: 1})
	may := map[string]bool{} // have to reconnect: they were at b when it was killed
	for _, weight := range []int{2, 1} {
		was, epoch := ownersOf(t, l, load.users), l.ring(t).Epoch
		for u, n := range was {
			may[u] = may[u] || n == "b"
		}
		b.kill()
		b = startNodeAt(t, "b", l.nats, b.addr, b.peer, fmt.Sprintf("DIALRING_WEIGHT=%d", weight))
		eventually(t, "b has its weight", func() bool { return l.members(t)["b"].Weight == weight })
		l.settled(t)
		is := ownersOf(t, l, load.users)
		load.waitConnected(t, func(string) bool { return true })
		moved := 0
		for u, from := range was {
			to := is[u]
			if from == to {
				continue
			}
			moved++
			if weight == 2 && to != "b" || weight == 1 && from != "b" {
				t.Errorf("weight %d: %s went from %s to %s", weight, u, from, to)
			}
		}
		if moved == 0 || len(l.members(t)) != 3 {
			t.Errorf("weight %d: %d users moved, members %v", weight, moved, l.members(t))
		}
		for _, u := range load.users {
			eventually(t, u+" is where it belongs", func() bool { return load.nodeOf(u, "d0") == is[u] })
		}
		t.Logf("weight %d: %d of %d users moved, epoch %d to %d", weight, moved, len(was), epoch, l.ring(t).Epoch)
	}
	for u := range load.disconnects() {
		if !may[u] {
			t.Errorf("%s had to reconnect, its node was not restarted", u)
		}
	}
}
