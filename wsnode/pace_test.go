package wsnode

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/dialring/dialring/internal/inbox"
	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/ticket"
)

// formerNode is a node that has lost all its users to others, and does not run.
func formerNode(users, devices int) *Node {
	n := &Node{cfg: Config{NodeID: "me", MoveDeadline: time.Hour, DevicePolicy: "allow", MaxSessionsPerUser: 99, SessionQueueBytes: 1 << 20},
		signer: ticket.NewSigner(), hub: newHub(newPresence(time.Second)), someLeft: make(chan struct{}, 1), log: slog.New(slog.DiscardHandler)}
	n.stored = newStored(n, inbox.NewMemory(inbox.Limits{Messages: 100, Age: time.Hour, Window: time.Minute}), noKeys, time.Hour, n.log)
	n.metrics = n.newMetrics(nil, nil)
	for u := range users {
		for d := range devices {
			n.hold(fmt.Sprint("u", u), fmt.Sprint(d))
		}
	}
	return n
}

// hold adds a session, of whomever: what it is sent stays in its queue.
func (n *Node) hold(user, device string) *session {
	s := &session{id: user + "-" + device, user: user, device: device, node: n, writing: true, log: n.stored.logs.Get(user)}
	if _, p := n.hub.add(s, &n.cfg, nil); p != nil {
		panic(p)
	}
	return s
}

func ringOf(rate int, ids ...string) *ring.Ring {
	d := ring.Document{Cluster: "c", Epoch: 2}
	for _, id := range ids {
		d.Nodes = append(d.Nodes, ring.Node{ID: id, Boot: "b-" + id, Weight: 1, AcceptRate: rate})
	}
	d.Seal()
	return ring.New(d)
}

// tellAll has everyone told, as watchRing does, and returns when, by node.
func (n *Node) tellAll(t *testing.T, cur *ring.Ring, p *pace) map[string][]time.Time {
	for {
		todo, _ := n.misplacedBy(cur)
		if len(todo) == 0 {
			break
		}
		n.tell(context.Background(), cur, todo, p, nil)
		if p.Len() > 0 { // as watchRing does
			time.Sleep(time.Until(p.queues[0].next))
		}
	}
	when := map[string][]time.Time{}
	n.hub.eachUser(func(u *user, sessions []*session) {
		owner, _ := cur.Owner(u.id)
		for _, s := range sessions {
			m := s.told.Load()
			if m.node != owner.ID || m.boot != owner.Boot || m.deadline != sessions[0].told.Load().deadline {
				t.Errorf("%s was told %+v, its owner is %s", s.id, m, owner.ID)
			}
			when[owner.ID] = append(when[owner.ID], m.deadline.Add(-n.cfg.MoveDeadline))
		}
	})
	for _, l := range when {
		slices.SortFunc(l, time.Time.Compare)
	}
	return when
}

// busiest is how many of the times are within one second at most.
func busiest(l []time.Time) int {
	most := 0
	for i, j := 0, 0; i < len(l); i++ {
		for l[i].Sub(l[j]) >= time.Second {
			j++
		}
		most = max(most, i-j+1)
	}
	return most
}

// No node is sent more than its rate in any second, but for the devices of one
// user; and none waits for another one.
func TestPace(t *testing.T) {
	for _, c := range []struct{ users, devices, rate int }{{300, 1, 20}, {300, 3, 20}, {60, 5, 1}, {500, 1, 1000}} {
		synctest.Test(t, func(t *testing.T) {
			n, cur := formerNode(c.users, c.devices), ringOf(c.rate, "a", "b", "c")
			var p pace
			began := time.Now()
			total := 0
			for id, l := range n.tellAll(t, cur, &p) {
				total += len(l)
				if got := busiest(l); got > c.rate+c.devices {
					t.Errorf("%+v: %s got %d in a second", c, id, got)
				}
				if l[0] != began {
					t.Errorf("%+v: %s waited for %v", c, id, l[0].Sub(began))
				}
				if c.rate < 1000 { // in steady flow: as fast as it may
					want := time.Duration(float64(len(l)-c.devices) / float64(c.rate) * float64(time.Second))
					if d := l[len(l)-1].Sub(began) - want; d < -time.Second || d > time.Second {
						t.Errorf("%+v: %s was told for %v, want %v", c, id, l[len(l)-1].Sub(began), want)
					}
				}
			}
			if total != c.users*c.devices {
				t.Errorf("%+v: %d were told", c, total)
			}
		})
	}
}

// What was not used in a pause is lost, and what was booked before stays booked.
func TestPacePause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 10
		var p pace
		var all []time.Time
		for _, pause := range []time.Duration{0, time.Hour, 0, 50 * time.Millisecond} {
			time.Sleep(pause)
			all = append(all, formerNode(35, 1).tellAll(t, ringOf(rate, "a"), &p)["a"]...)
		}
		if got := busiest(all); got > rate+1 {
			t.Errorf("%d in a second, over pauses", got)
		}
	})
}

// All pending nodes together use no more than all of a node's rate.
func TestPacePart(t *testing.T) {
	handoff := func(weights ...int) ring.Handoff {
		h := ring.Handoff{Members: map[string]int{"idle": 60}}
		for i, w := range weights {
			if w > 0 {
				id := fmt.Sprint("n", i)
				h.Members[id], h.Pending = w, append(h.Pending, id)
			}
		}
		return h
	}
	part := func(id string, h ...ring.Handoff) float64 {
		n := &Node{cfg: Config{NodeID: id}}
		return n.part(&ring.Ring{Document: ring.Document{Handoffs: h}})
	}
	if p := part("n0"); p != 1 {
		t.Errorf("alone: %v", p)
	}
	for i, want := range []float64{1.0 / 6, 2.0 / 6, 3.0 / 6} {
		if p := part(fmt.Sprint("n", i), handoff(1, 2, 3)); math.Abs(p-want) > 1e-12 {
			t.Errorf("n%d has %v, want %v", i, p, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		var h []ring.Handoff
		pending := map[string]bool{}
		for range rapid.IntRange(1, 3).Draw(t, "handoffs") {
			one := handoff(rapid.SliceOfN(rapid.IntRange(0, 9), 4, 4).Draw(t, "weights")...)
			for _, id := range one.Pending {
				pending[id] = true
			}
			h = append(h, one)
		}
		sum := 0.0
		for id := range pending {
			p := part(id, h...)
			if p <= 0 {
				t.Fatalf("%s has %v", id, p)
			}
			sum += p
		}
		if sum > 1+1e-9 || len(h) == 1 && len(pending) > 0 && sum < 1-1e-9 {
			t.Fatalf("together they have %v", sum)
		}
	})
}
