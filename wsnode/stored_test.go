package wsnode

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/inbox"
	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/wire"
)

// storing is a node with a store in memory, and no network: what its sessions are
// sent stays in their queues.
type storingNode struct {
	*Node
	t     *testing.T
	store *inbox.Memory
	epoch uint64
}

func newStoringNode(t *testing.T) *storingNode {
	n := &storingNode{Node: formerNode(0, 0), t: t, epoch: 10}
	n.boot = "b-me"
	n.rings = cluster.NewRings(new(cluster.Conn), n.log)
	n.store = n.stored.store.(*inbox.Memory)
	ctx, cancel := context.WithCancel(t.Context())
	n.ctx = ctx
	done := make(chan struct{})
	go func() { defer close(done); n.lookAgain(ctx) }()
	t.Cleanup(func() {
		n.hub.each(func(s *session) {
			s.mu.Lock()
			s.closing = true
			s.roomLocked()
			s.mu.Unlock()
		})
		cancel()
		<-done
		n.tasks.Wait()
		n.stored.logs.Wait()
	})
	return n
}

// turn gives the node a ring of these members.
func (n *storingNode) turn(ids ...string) {
	n.t.Helper()
	n.epoch++
	d := ringOf(1000, ids...).Document
	d.Cluster, d.Epoch = "", n.epoch // that of a connection to nowhere
	d.Seal()
	if err := offer(n.rings, d); err != nil {
		n.t.Fatal(err)
	}
	n.stored.turned(n.rings.Current())
}

// arrive attaches a session, as open does, and returns it with its welcome.
func (n *storingNode) arrive(user, device, since string) (*session, wire.Welcome) {
	s := n.hold(user, device)
	s.since = since
	var w wire.Welcome
	n.attach(n.ctx, s, &w)
	s.log.With(func(inbox.Cursor) { s.startLocked() })
	return s, w
}

// push stores a message, and fails unless it is this one of the log. The answer waits
// for sessions whose frames are never written.
func (n *storingNode) push(user, id string, seq uint64) {
	n.t.Helper()
	n.pushStoredTo(&peer.In{Op: peer.OpPush, Durable: true, JSON: true, User: []byte(user), ID: []byte(id), Body: []byte("1")}, func(peer.Reply) {})
	synctest.Wait()
	if last, err := n.store.Last(n.ctx, user); err != nil || last.ID != id || last.Seq != seq {
		n.t.Fatalf("the last message is %d (%s), %v; want %d (%s)", last.Seq, last.ID, err, seq, id)
	}
}

// frames are those that wait in a session's queue, by type; a message by its seq.
func frames(s *session) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, o := range s.queue {
		var f struct {
			Type string
			Seq  uint64
			To   uint64
		}
		start := 2
		switch o.frame[1] {
		case 126:
			start = 4
		case 127:
			start = 10
		}
		if err := json.Unmarshal(o.frame[start:], &f); err != nil {
			panic(err)
		}
		switch f.Type {
		case wire.TypeMessage:
			out = append(out, fmt.Sprint(f.Seq))
		case wire.TypeSkip:
			out = append(out, fmt.Sprint("skip ", f.To))
		default:
			out = append(out, f.Type)
		}
	}
	return out
}

func wantFrames(t *testing.T, s *session, want ...string) {
	t.Helper()
	synctest.Wait()
	if got := frames(s); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s was sent %v, want %v", s.id, got, want)
	}
}

// noKeys are the keys for stored payloads of a node that has none.
var noKeys, _ = inbox.LoadKeys("", slog.New(slog.DiscardHandler))

// other appends as another node does.
func (n *storingNode) other(user, id string) {
	n.t.Helper()
	o := newStored(n.Node, n.store, noKeys, time.Hour, n.log)
	o.logs.Owner = func(string) (any, bool) { return 1, true }
	o.logs.Ring = func() any { return 1 }
	o.logs.Deliver = func(_ *inbox.Log, _ *inbox.Entry, p *inbox.Push) { p.Context.(chan error) <- nil }
	out := make(chan error, 1)
	o.logs.Append(user, &inbox.Push{ID: id, Key: id, JSON: true, Body: []byte("1"), Deadline: time.Now().Add(time.Second), Context: out,
		Fail: func(err error) { out <- err }})
	if err := <-out; err != nil {
		n.t.Fatal(err)
	}
	o.logs.Wait()
}

// A node that the ring gave a user looks at the log once more 5 s later: an append
// of the former owner that came late is delivered, without any push.
func TestLateAppendIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newStoringNode(t)
		n.turn("a")
		n.turn("me")
		s, w := n.arrive("alice", "d", "")
		if w.Head != 0 || w.Since != wire.CursorStart {
			t.Errorf("%+v", w)
		}
		n.other("alice", "late")
		time.Sleep(lookAgainAfter - time.Second)
		wantFrames(t, s)
		time.Sleep(3 * time.Second)
		wantFrames(t, s, "1")
		// Told by the node that appended it, it does not have to wait.
		n.other("alice", "later")
		if err := n.look("alice"); err != nil {
			t.Error(err)
		}
		wantFrames(t, s, "1", "2")
		n.push("alice", "own", 3)
		wantFrames(t, s, "1", "2", "3")
	})
}

// A user who was this node's before is not looked at again.
func TestNoLookWithoutReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newStoringNode(t)
		n.turn("me")
		time.Sleep(2 * lookAgainAfter)
		n.turn("me")
		n.arrive("alice", "d", "")
		if len(n.stored.looks) != 0 {
			t.Error("it looks again at a user that it had before")
		}
	})
}

// An append that ends when the user belongs to another node is delivered here, and
// the other node is told.
func TestLateAppendIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newStoringNode(t)
		n.turn("me")
		s, _ := n.arrive("alice", "d", "")
		told := make(chan string, 1)
		n.stored.logs.Late = func(user string) { told <- user }
		gate := make(chan struct{})
		n.stored.logs.Store = slowStore{n.store, gate}
		n.pushStoredTo(&peer.In{Op: peer.OpPush, Durable: true, JSON: true, User: []byte("alice"), ID: []byte("x"), Body: []byte("1")}, func(r peer.Reply) {})
		synctest.Wait()
		n.turn("a")
		close(gate)
		select {
		case user := <-told:
			if user != "alice" {
				t.Errorf("told of %s", user)
			}
		case <-time.After(time.Second):
			t.Error("the new owner is not told")
		}
		wantFrames(t, s, "1")
	})
}

// slowStore appends when the gate is open.
type slowStore struct {
	inbox.Store
	gate chan struct{}
}

func (s slowStore) Append(ctx context.Context, user string, e *inbox.Entry, key string, expect uint64) (uint64, bool, error) {
	<-s.gate
	return s.Store.Append(ctx, user, e, key, expect)
}

// The store is away when sessions arrive: they open, and go on where they should
// when it is back, also those that are new and for whom that is now.
func TestArriveWithoutStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newStoringNode(t)
		n.turn("me")
		for i := range 3 {
			n.push("alice", fmt.Sprint(i), uint64(i+1))
		}
		read, _ := n.arrive("alice", "read", "0")
		wantFrames(t, read, "1", "2", "3")
		n.stored.positions.Note("alice", "known", read.at)
		n.stored.positions.Flush(n.ctx)
		n.push("alice", "3", 4)
		m := newStoringNode(t) // another process
		m.Node.stored = newStored(m.Node, n.store, noKeys, time.Hour, m.log)
		m.turn("me")
		n.store.Fail(context.DeadlineExceeded)
		fresh, w := m.arrive("alice", "fresh", "")
		if w.Since != wire.CursorStart || w.Gap {
			t.Errorf("%+v", w)
		}
		known, _ := m.arrive("alice", "known", "")
		foreign, w := m.arrive("alice", "foreign", "9-9-9")
		if w.Since != "9-9-9" || w.Gap {
			t.Errorf("%+v", w)
		}
		time.Sleep(5 * time.Second)
		for _, s := range []*session{fresh, known, foreign} {
			wantFrames(t, s)
		}
		n.store.Fail(nil)
		m.store = n.store
		m.push("alice", "4", 5)
		time.Sleep(time.Second)
		wantFrames(t, fresh, "resumed", "5")
		wantFrames(t, known, "resumed", "4", "5")
		wantFrames(t, foreign, "resumed", "1", "2", "3", "4", "5")
	})
}

// A former owner's link that answers at once does not hold up the log.
func TestForwardDoesNotLock(t *testing.T) {
	n := newStoringNode(t)
	n.turn("me")
	n.peers.Token = func(string) string { return "" }
	n.peers.Close() // Do answers at once
	l := n.stored.logs.Get("alice")
	defer l.Release()
	n.hold("alice", "a")
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			default:
				n.hub.remove(n.hold("alice", "b"))
			}
		}
	}()
	for i := range 2000 {
		out := make(chan peer.Reply, 1)
		l.With(func(inbox.Cursor) {
			c := &storing{node: n.Node, in: &peer.In{User: []byte("alice")}, reply: func(r peer.Reply) { out <- r }}
			n.storedBoth(c, l, &inbox.Entry{Cursor: inbox.Cursor{Seq: uint64(i + 1)}}, nil, n.rings.Current(), []*ring.Node{{ID: "old"}})
		})
		select {
		case <-out:
		case <-time.After(30 * time.Second):
			t.Fatalf("push %d is stuck", i)
		}
	}
	close(stop)
	<-ended
}

// An acknowledgement that comes before the node knows that the message was written
// counts when it does: the client got it over the connection that it left.
func TestEarlyAck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newStoringNode(t)
		n.turn("me")
		s, _ := n.arrive("alice", "old", "")
		n.push("alice", "1", 1)
		n.push("alice", "2", 2)
		second := s.at
		next, w := n.arrive("alice", "new", "0")
		if w.Pending != 2 {
			t.Errorf("%+v", w)
		}
		next.log.With(func(inbox.Cursor) { next.at = inbox.Cursor{} }) // its replay is under way
		next.ack(second.String())
		if next.acked.Seq != 0 {
			t.Error("acknowledged before it was written")
		}
		next.log.With(func(inbox.Cursor) {
			next.at = second
			next.advancedLocked()
		})
		if next.acked != second {
			t.Errorf("acknowledged %+v, want %+v", next.acked, second)
		}
		next.ack("9-9-9") // never written
		next.ack("nonsense")
		n.push("alice", "3", 3)
		if next.acked != second {
			t.Errorf("acknowledged %+v by cursors of nothing", next.acked)
		}
		next.log.With(func(inbox.Cursor) { next.live, next.catching = true, false })
		n.push("alice", "4", 4)
		next.ack(next.at.String())
		if next.acked.Seq != 4 {
			t.Errorf("acknowledged %+v, want 4", next.acked)
		}
	})
}

// A log that begins anew at a new owner is no repeat to a session of the former one.
func TestToldOfNewLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newStoringNode(t)
		n.turn("me")
		s, _ := n.arrive("alice", "d", "")
		for i := uint64(1); i <= 5; i++ {
			n.push("alice", fmt.Sprint(i), i)
		}
		e := &inbox.Entry{Cursor: inbox.Cursor{Seq: 1, Pos: 99, Tag: 7}, ID: "new", JSON: true, Body: []byte("1"), Time: time.Now()}
		s.log.Told(e, func() { s.storedLocked(e, nil, nil) })
		if s.isOpen() {
			t.Error("the message is taken for one that was written")
		}
	})
}

// offer has a ring taken as if a locator had handed it over.
func offer(r *cluster.Rings, d ring.Document) error {
	b, err := r.Encode(d)
	if err != nil {
		return err
	}
	return r.Offer(b)
}
