package wsnode

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dialring/dialring/internal/inbox"
	"github.com/dialring/dialring/internal/peer"
)

// sealedStore is a store of whose messages some cannot be opened, by seq.
type sealedStore struct {
	inbox.Store

	mu       sync.Mutex
	unopened map[uint64]*inbox.Unopened
	reads    int
}

func (s *sealedStore) Read(ctx context.Context, user string, pos uint64) ([]inbox.Entry, error) {
	l, err := s.Store.Read(ctx, user, pos)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	for i := range l {
		if l[i].Unopened = s.unopened[l[i].Seq]; l[i].Unopened != nil {
			l[i].Body = nil
		}
	}
	return l, err
}

func (s *sealedStore) set(unopened map[uint64]*inbox.Unopened) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unopened = unopened
}

func newSealedNode(t *testing.T) (*storingNode, *sealedStore) {
	n := newStoringNode(t)
	s := &sealedStore{Store: n.store}
	n.stored.store, n.stored.logs.Store = s, s
	n.turn("me")
	return n, s
}

// unopenedOf is what the metric says of a reason.
func (n *storingNode) unopenedOf(why string) float64 {
	n.t.Helper()
	r := prometheus.NewRegistry()
	r.MustRegister(n.metrics.unopened)
	families, err := r.Gather()
	if err != nil {
		n.t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			if m.Label[0].GetValue() == why {
				return m.Counter.GetValue()
			}
		}
	}
	n.t.Fatal("the metric is not there")
	return 0
}

// At a message that cannot be opened for want of a key a session waits, with all that
// follows, until there are other keys; whoever has it already goes on.
func TestUnknownKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, store := newSealedNode(t)
		user := "alice"
		for i := uint64(1); i <= 4; i++ {
			n.push(user, fmt.Sprint("m", i), i)
		}
		replaced := make(chan struct{})
		store.set(map[uint64]*inbox.Unopened{3: {Why: inbox.UnopenedKey, Key: "a~1", Replaced: replaced}})
		s, w := n.arrive(user, "d", "0")
		live, _ := n.arrive(user, "live", "")
		if w.Head != 4 || w.Pending != 4 || w.Gap {
			t.Errorf("%+v", w)
		}
		wantFrames(t, s, "1", "2")
		n.push(user, "m5", 5)
		wantFrames(t, s, "1", "2")
		wantFrames(t, live, "5")
		time.Sleep(25 * time.Second)
		synctest.Wait()
		if store.reads > 12 {
			t.Errorf("%d reads while nothing could change", store.reads)
		}
		wantFrames(t, s, "1", "2")
		if got := n.unopenedOf(inbox.UnopenedKey); got == 0 {
			t.Error("nothing was counted")
		}
		store.set(nil)
		close(replaced)
		wantFrames(t, s, "1", "2", "3", "4", "5")
	})
}

// A message that will never be opened is one that will not come, and the client is told.
func TestForged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, store := newSealedNode(t)
		user := "alice"
		for i := uint64(1); i <= 6; i++ {
			n.push(user, fmt.Sprint("m", i), i)
		}
		store.set(map[uint64]*inbox.Unopened{2: {Why: inbox.UnopenedForged}, 3: {Why: inbox.UnopenedLost}, 6: {Why: inbox.UnopenedForged}})
		s, w := n.arrive(user, "d", "0")
		if w.Head != 6 || w.Pending != 3 {
			t.Errorf("%+v", w)
		}
		wantFrames(t, s, "1", "skip 3", "4", "5", "skip 6")
		n.push(user, "m7", 7)
		wantFrames(t, s, "1", "skip 3", "4", "5", "skip 6", "7")
		s.resume("0")
		wantFrames(t, s, "1", "skip 3", "4", "5", "skip 6", "7", "1", "skip 3", "4", "5", "skip 6", "7", "resumed")
	})
}

// What is refused for not being sealed waits like what has an unknown key; its time may
// end meanwhile.
func TestUnsealedExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, store := newSealedNode(t)
		user := "alice"
		n.push(user, "m1", 1)
		n.pushStoredTo(&peer.In{Op: peer.OpPush, Durable: true, JSON: true, User: []byte(user), ID: []byte("m2"), Body: []byte("1"), TTL: 15 * time.Second}, func(peer.Reply) {})
		n.push(user, "m3", 3)
		store.set(map[uint64]*inbox.Unopened{2: {Why: inbox.UnopenedUnsealed}})
		s, _ := n.arrive(user, "d", "0")
		time.Sleep(keysPatience)
		wantFrames(t, s, "1")
		time.Sleep(keysPatience)
		wantFrames(t, s, "1", "skip 2", "3")
	})
}
