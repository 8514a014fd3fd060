package locator

import (
	"os"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/wire"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			println(err.Error())
			code = 1
		}
	}
	os.Exit(code)
}

// A node that says that the user is not its own, by a newer ring: the locator
// catches up with that ring and follows the user.
func TestPushMisdirected(t *testing.T) {
	l := runLocator(t)
	var wrong atomic.Int64
	a := join(t, l, "a", func(n *fakeNode, b *peer.Batch) {
		if wrong.Add(1) <= 3 { // it takes a while until both agree
			answer(b, peer.Reply{Status: peer.StatusMisdirected})
			return
		}
		answer(b, peer.Reply{Delivered: 2})
	})
	a.epoch.Store(l.rings.Current().Epoch)
	status, _, r, p := push(t, l, "alice")
	if status != 200 || r.Delivered != 2 || r.Node != "a" {
		t.Errorf("%d %+v %+v", status, r, p)
	}
	if a.calls.Load() != 4 {
		t.Errorf("%d calls, want 4", a.calls.Load())
	}
}

// It never gets better: an answer within a bound, and it says what to do.
func TestPushMisdirectedForEver(t *testing.T) {
	l := runLocator(t)
	a := join(t, l, "a", func(_ *fakeNode, b *peer.Batch) { answer(b, peer.Reply{Status: peer.StatusMisdirected}) })
	a.epoch.Store(l.rings.Current().Epoch)
	status, h, _, p := push(t, l, "alice")
	if status != 503 || p.Code != wire.CodeOwnerUnreachable || h.Get("Retry-After") == "" {
		t.Errorf("%d %+v %v", status, p, h)
	}
}

// The owner is gone: the refused connection is evidence, the probe confirms it,
// and the push goes to the new owner.
func TestPushFollowsTheUser(t *testing.T) {
	l := runLocator(t)
	a := join(t, l, "a", func(_ *fakeNode, b *peer.Batch) { answer(b, peer.Reply{Delivered: 1}) })
	join(t, l, "b", func(_ *fakeNode, b *peer.Batch) { answer(b, peer.Reply{Delivered: 1}) })
	u := ownedBy(t, l, "a")
	if status, _, r, _ := push(t, l, u); status != 200 || r.Node != "a" {
		t.Fatalf("before: %d %+v", status, r)
	}
	before := l.rings.Current().Epoch
	a.die()
	status, _, r, p := push(t, l, u)
	if status != 200 || r.Node != "b" || r.Epoch <= before {
		t.Errorf("after: %d %+v %+v", status, r, p)
	}
}

// A node that takes a call and does not answer, and stays: the call may have
// been carried out, so it is not sent again, and the caller is told in time.
func TestPushUnanswered(t *testing.T) {
	l := runLocator(t)
	silent := make(chan struct{})
	a := join(t, l, "a", func(_ *fakeNode, b *peer.Batch) { <-silent })
	t.Cleanup(func() { close(silent) }) // before the node's own
	status, _, _, p := push(t, l, "alice")
	if status != 504 || p.Code != wire.CodeOwnerUnreachable { // 503 would say: not accepted
		t.Errorf("%d %+v", status, p)
	}
	if a.calls.Load() != 1 {
		t.Errorf("the call was sent %d times", a.calls.Load())
	}
}

// The link breaks under a call: it is sent again only once that process has
// left the ring.
func TestPushOverABrokenLink(t *testing.T) {
	l := runLocator(t)
	a := join(t, l, "a", func(_ *fakeNode, b *peer.Batch) { b.Drop() })
	status, _, _, p := push(t, l, "alice")
	if status != 504 || p.Code != wire.CodeOwnerUnreachable || a.calls.Load() != 1 {
		t.Errorf("%d %+v after %d calls", status, p, a.calls.Load())
	}
}

// One of two nodes does not answer a broadcast: the counts are of the other.
func TestBroadcastWithADeafNode(t *testing.T) {
	l := runLocator(t)
	silent := make(chan struct{})
	join(t, l, "a", func(_ *fakeNode, b *peer.Batch) { answer(b, peer.Reply{Delivered: 7}) })
	join(t, l, "b", func(_ *fakeNode, b *peer.Batch) { <-silent })
	t.Cleanup(func() { close(silent) })
	r := l.router.broadcast("id", []byte("1"))
	if r.Nodes != 1 || r.Delivered != 7 || len(r.Failed) != 1 || r.Failed[0] != "b" || len(r.Counts) != 1 || r.Counts["a"] != 7 {
		t.Errorf("%+v", r)
	}
}

// A locator without nodes says so at once.
func TestPushWithoutNodes(t *testing.T) {
	l := runLocator(t)
	select {
	case <-l.book.Published():
	case <-time.After(patience):
		t.Fatal("the key is never published")
	}
	if status, _, _, p := push(t, l, "alice"); status != 503 || p.Code != wire.CodeNoNodes {
		t.Errorf("%d %+v", status, p)
	}
}
