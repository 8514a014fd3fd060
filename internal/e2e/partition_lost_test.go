//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// movedOrClosed reads up to the move that a client gets, or to the end of its
// connection. It returns where to go, and what came before.
func (b *bare) movedOrClosed(t *testing.T) (node string, before []string) {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		op, p, err := b.frameBy(t, end, "a move, or the end")
		if err != nil || op == 8 {
			t.Logf("the old session of %s ended: %v", b.user, err)
			return "", before
		}
		var m wire.Move
		if op == 1 && json.Unmarshal(p, &m) == nil && m.Type == wire.TypeMove {
			return m.Node, before
		}
		if op == 1 {
			before = append(before, string(p))
		}
	}
}

// movedOrBack does that for a session at a node that was cut off, which may be in the ring again
// before it hears that it was out: then the user is its own again, and the session is ended here.
func (p *partition) movedOrBack(t *testing.T, b *bare, node string) (to string, before []string) {
	t.Helper()
	read := make(chan struct{})
	var look sync.WaitGroup
	look.Go(func() {
		for rejoined := `"reason":"join","changed":["` + node + `"]`; !strings.Contains(p.nodes[node].text(), rejoined); {
			select {
			case <-read:
				return
			case <-time.After(20 * time.Millisecond): // the log is another process's
			}
		}
		b.Close()
	})
	to, before = b.movedOrClosed(t)
	close(read)
	look.Wait()
	return to, before
}

// A node loses everybody but its clients: it is out, and they are served elsewhere
// as soon as they ask. When it is back it gives up what it held, and joins.
func TestPartitionMoveNodeFromAll(t *testing.T) {
	heavy(t)
	atATime(t)
	p := newPartition(t, 2, nodesABC...)
	l := p.locs[0]
	user := usersBy(t, 1, nodesABC, "a", []string{"b", "c"}, "b")[0]
	old := dialBare(t, l, user)
	reaches(t, l, "a", "before", old)
	p.cut(p.nats, p.at["a"])
	for name, h := range p.at {
		if name != "a" {
			p.cut(h, p.at["a"])
		}
	}
	for _, l := range p.locs {
		l.waitMembers(t, "b", "c")
	}
	next := listen(t, user, p.locs...)
	served := func(l *locatorProc, what string) {
		t.Helper()
		msg := fmt.Sprintf("%q", what)
		if r := l.push(t, user, msg); r.Delivered != 1 {
			t.Errorf("%s: %+v", what, r)
		}
		next.expect(t, msg) // once: see listen
	}
	for _, l := range p.locs {
		if n := l.locate(t, user, "").Node; n != "b" {
			t.Errorf("by %s the owner is %s, want b", l.name, n)
		}
		served(l, "elsewhere, through "+l.name)
	}

	p.heal()
	node, before := p.movedOrBack(t, old, "a")
	if node != "" && node != "b" {
		t.Errorf("the old session was told to go to %s", node)
	}
	if len(before) > 0 {
		t.Errorf("the old session got %q before the move", before)
	}
	old.Close()
	eventually(t, "the old session is gone", func() bool {
		var u wire.UserResponse
		status, b := call(t, "GET", "http://"+l.addr+"/v1/users/"+user, "")
		return status == 200 && json.Unmarshal(b, &u) == nil && len(u.Sessions) == 1
	})
	back := 0
	eventually(t, "a is in the ring again, and has its users", func() bool {
		back++
		served(p.locs[back%2], fmt.Sprintf("healed %d", back))
		r := l.ring(t)
		return l.members(t)["a"].State == wire.StateActive && len(r.Handoffs) == 0
	})
	p.agree(t, nodesABC...)
	for _, l := range p.locs {
		served(l, "back, through "+l.name)
	}
	if n := l.push(t, user, `"last"`); n.Node != "a" || n.Delivered != 1 {
		t.Errorf("a push to who is back at a: %+v", n)
	}
	next.expect(t, `"last"`)
}

// A node's packets to NATS vanish: nobody hears it, and for as long as TCP lets
// it, it hears the others. It stays, and serves.
func TestPartitionMoveNodeOneWay(t *testing.T) {
	heavy(t)
	atATime(t)
	p := newPartition(t, 2, nodesAB...)
	alice := listen(t, userOf(t, p.locs[0], "a"), p.locs...)
	p.cutOneWay(p.at["a"], p.nats)
	for _, l := range p.locs {
		p.serves(t, l, alice, "a", "unnoticed")
	}
	p.nodes["a"].event(t, "nats_down") // no answer comes to its pings
	for _, l := range p.locs {
		p.missed(t, l, 8*time.Second, "a")
		p.same(t, l)
		p.serves(t, l, alice, "a", "one-way")
	}
	p.heal()
	p.nodes["a"].event(t, "nats_up")
	for _, l := range p.locs {
		p.heard(t, l)
		p.serves(t, l, alice, "a", "healed")
	}
}

// The new owner of users cannot reach the former one while they move. What is
// pushed to those who have not moved yet does not get there, and the answer says
// so; those who move are served.
func TestPartitionMoveFormerOwner(t *testing.T) {
	heavy(t)
	atATime(t)
	p := newPartition(t, 1, "b")
	l := p.locs[0]
	p.at["a"] = p.host(t, "a")
	p.nodes["a"] = p.at["a"].node(t, p.url, "DIALRING_MOVE_DEADLINE=5m") // clients take their time
	l.waitMembers(t, nodesAB...)
	l.settled(t)
	hands := dialAll(t, l, usersBy(t, 2, nodesAB, "a", nodesABC, "c"))
	slow, quick := hands[0], hands[1]
	p.node(t, "c")
	l.waitMembers(t, nodesABC...)
	var m wire.Move
	slow.expectType(t, wire.TypeMove, &m)
	reaches(t, l, "c", "handed over", slow)
	epoch := l.ring(t).Epoch

	p.cut(p.at["a"], p.at["c"])
	sent := map[string]bool{}
	for i := range 3 {
		msg := fmt.Sprintf(`"cut %d"`, i)
		sent[msg] = true
		r := l.try(t, slow.user, msg)
		if r.delivered > 0 {
			t.Errorf("a push that cannot get there: %+v", r)
		}
		t.Logf("a push that cannot get there: %+v", r)
	}
	quick = quick.follow(t) // its old connection stays open
	reaches(t, l, "c", "cut", quick)
	late := dialBare(t, l, usersBy(t, 3, nodesAB, "a", nodesABC, "c")[2])
	reaches(t, l, "c", "cut, a new login", late)
	if r := l.ring(t); r.Epoch != epoch || len(r.Handoffs) != 1 {
		t.Errorf("the handoff should go on: %+v", r)
	}

	p.heal()
	n := 0
	eventually(t, "pushes get there again", func() bool {
		n++
		return l.try(t, slow.user, fmt.Sprintf(`"healed %d"`, n)).delivered == 1
	})
	for want, f := fmt.Sprintf(`"healed %d"`, n), ""; f != want; {
		if f = data(slow.text(t)); sent[f] {
			t.Logf("after the heal came what had been answered with delivered 0: %s", f)
		}
	}
	reaches(t, l, "c", "healed", quick)
	for _, h := range hands {
		h.Close()
	}
	l.settled(t)
	if s := l.ring(t); len(s.Nodes) != 3 {
		t.Errorf("the ring after all: %+v", s)
	}
}
