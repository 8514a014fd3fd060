package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/wire"
)

// Two participants publish at the same instant, again and again: of each epoch
// there is one ring, and the loser learns that it lost.
func TestPublishRace(t *testing.T) {
	s := startNATS(t, t.TempDir(), "127.0.0.1:0")
	conns := []*Conn{dial(t, s, "c"), dial(t, s, "c")}
	for epoch := uint64(1); epoch <= 20; epoch++ {
		type try struct {
			by  string
			err error
		}
		tries := make(chan try, len(conns))
		read := make(chan struct{}) // closed when both have read
		ready := make(chan error, len(conns))
		for i, c := range conns {
			go func() {
				cur, rev, err := loadRing(t.Context(), c)
				if err == nil && cur.Epoch != epoch-1 {
					err = fmt.Errorf("epoch %d is stored, want %d", cur.Epoch, epoch-1)
				}
				ready <- err
				<-read
				by := fmt.Sprintf("ws-%d", i)
				tries <- try{by, swapRing(t.Context(), c, ringDoc("c", cur.Epoch+1, by), rev)}
			}()
		}
		for range conns {
			if err := await(t, "an answer of the store", ready); err != nil {
				t.Error(err)
			}
		}
		close(read)
		winner := ""
		for range conns {
			x := await(t, "the end of a publish", tries)
			switch {
			case x.err == nil && winner != "":
				t.Fatalf("epoch %d was published twice", epoch)
			case x.err == nil:
				winner = x.by
			case !errors.Is(x.err, errConflict):
				t.Fatalf("epoch %d: the loser is told %v", epoch, x.err)
			}
		}
		d, _, err := loadRing(t.Context(), conns[0])
		if err != nil || d.Epoch != epoch || winner == "" || d.Nodes[0].ID != winner {
			t.Fatalf("stored is %+v (%v), published by %q in epoch %d", d, err, winner, epoch)
		}
	}
}

// Two keepers over the same nodes: one history, in which epochs rise by one,
// and both see it.
func TestTwoKeepers(t *testing.T) {
	s := startNATS(t, t.TempDir(), "127.0.0.1:0")
	nodes := dial(t, s, "c")
	c1, c2 := dial(t, s, "c"), dial(t, s, "c")
	k1, r1 := keep(t, c1, "loc-1")
	_, r2 := keep(t, c2, "loc-2")
	a := startNode(t, nodes, "a", "a1")
	startNode(t, nodes, "b", "b1")
	has := func(r *Rings, ids ...string) func() bool {
		return func() bool {
			cur := r.Current()
			for _, id := range ids {
				if _, in := cur.Find(id); !in {
					return false
				}
			}
			return len(cur.Nodes) == len(ids)
		}
	}
	eventually(t, "a ring of both nodes", has(r1, "a", "b"))
	startNode(t, nodes, "d", "d1")
	eventually(t, "a ring of three", has(r2, "a", "b", "d"))
	waitRing(t, r1, r2.Current().Epoch)
	a.kill()
	k1.Failed("a")
	eventually(t, "a ring without the killed node", has(r1, "b", "d"))
	waitRing(t, r2, r1.Current().Epoch)
	if r1.Current().Hash != r2.Current().Hash || r1.Current().Epoch != r2.Current().Epoch {
		t.Errorf("one goes by epoch %d %s, the other by %d %s", r1.Current().Epoch, r1.Current().Hash, r2.Current().Epoch, r2.Current().Hash)
	}
	if got := r1.Current().Change.Reason; !strings.HasPrefix(got, "crash") { // "crash+handoff" if the join was not done
		t.Errorf("the killed node's change is %q", got)
	}
	kv, err := c1.bucket(t.Context(), bucketRing, false)
	if err != nil {
		t.Fatal(err)
	}
	history, err := kv.History(t.Context(), keyRing)
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range history {
		d, err := ring.Decode(e.Value(), "c")
		if err != nil || d.Epoch != uint64(i+1) {
			t.Errorf("the %d. ring of the history has epoch %d (%v)", i+1, d.Epoch, err)
		}
	}
	if v, _ := k1.View(r1.Current()); len(v) != 2 || v[0].ID != "b" || v[0].State != wire.StateActive {
		t.Errorf("view %+v", v)
	}
}

// A change arrives by its announcement: by polls alone the five would take
// longer than the test waits for.
func TestRingsFollow(t *testing.T) {
	s := startNATS(t, t.TempDir(), "127.0.0.1:0")
	publisher := dial(t, s, "c")
	r := follow(t, dial(t, s, "c"))
	if r.Current().Epoch != 0 || len(r.Current().Nodes) != 0 {
		t.Errorf("at first there is %+v", r.Current().Document)
	}
	eventually(t, "a first look at the store", r.Loaded)
	ids := []string{"a"}
	begin := time.Now()
	for epoch := range uint64(5) {
		ids = append(ids, fmt.Sprintf("n%d", epoch))
		want := store(t, publisher, ids...)
		waitRing(t, r, epoch+1)
		if got := r.Current(); got.Hash != want.Hash || got.Epoch != epoch+1 {
			t.Fatalf("follows epoch %d %s, published %d %s", got.Epoch, got.Hash, want.Epoch, want.Hash)
		}
	}
	if took := time.Since(begin); took > 4*ringPoll {
		t.Errorf("five changes took %s: as long as polling does", took)
	}
	if r.Lost() {
		t.Error("the store is said to have lost data")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.WaitEpoch(ctx, 99) // ends with its context
}

// An older ring is never taken, whoever offers it.
func TestRingsNeverGoBack(t *testing.T) {
	s := startNATS(t, t.TempDir(), "127.0.0.1:0")
	r := NewRings(dial(t, s, "c"), quiet)
	r.offer(ringDoc("c", 5, "a", "b"))
	changed := r.Changed()
	r.offer(ringDoc("c", 4, "a"))
	if r.Current().Epoch != 5 || !r.Lost() {
		t.Errorf("epoch %d, lost %v", r.Current().Epoch, r.Lost())
	}
	r.offer(ringDoc("c", 5, "a", "b"))
	if r.Lost() {
		t.Error("lost, though the store has the ring in force")
	}
	select {
	case <-changed:
		t.Error("a change is announced and there is none")
	default:
	}
	r.offer(ringDoc("c", 6, "a"))
	await(t, "an announcement", changed)
}

// NATS is stopped and started again: the ring is kept meanwhile, and what was
// published behind this participant's back is found after the reconnect.
func TestRingsSurviveNATS(t *testing.T) {
	dir := t.TempDir()
	s := startNATS(t, dir, "127.0.0.1:0")
	addr := s.Addr()
	c := dial(t, s, "c")
	held := store(t, c, "a", "b")
	r := follow(t, c)
	waitRing(t, r, 1)
	s.Stop()
	eventually(t, "a lost connection", func() bool { return !c.Up() })
	if _, _, err := loadRing(t.Context(), c); err == nil {
		t.Error("a store that is away can be read")
	}
	if r.Current().Hash != held.Hash || r.Lost() {
		t.Errorf("without NATS: epoch %d, lost %v", r.Current().Epoch, r.Lost())
	}
	elsewhere := startNATS(t, dir, "127.0.0.1:0") // at an address that c does not know
	store(t, dial(t, elsewhere, "c"), "a", "b", "d")
	elsewhere.Stop()
	startNATS(t, dir, addr)
	waitRing(t, r, 2)
	if len(r.Current().Nodes) != 3 || r.Lost() {
		t.Errorf("after the restart: %d nodes, lost %v", len(r.Current().Nodes), r.Lost())
	}
	eventually(t, "a connection", c.Up)
	store(t, c, "a")
	waitRing(t, r, 3) // announcements arrive again
}

// The store comes back empty: a keeper publishes the ring that it holds again,
// under a higher epoch, and nobody's owner changes.
func TestStoreLostItsData(t *testing.T) {
	s := startNATS(t, t.TempDir(), "127.0.0.1:0")
	addr := s.Addr()
	c, nodes, other := dial(t, s, "c"), dial(t, s, "c"), dial(t, s, "c")
	_, r := keep(t, c, "loc")
	follower := follow(t, other)
	startNode(t, nodes, "a", "a1")
	startNode(t, nodes, "b", "b1")
	eventually(t, "a ring of both nodes", func() bool { return len(r.Current().Nodes) == 2 })
	before := r.Current()
	waitRing(t, follower, before.Epoch)
	s.Stop()
	eventually(t, "a lost connection", func() bool { return !c.Up() })
	startNATS(t, t.TempDir(), addr)
	waitRing(t, r, before.Epoch+1)
	waitRing(t, follower, before.Epoch+1)
	var stored ring.Document
	eventually(t, "the ring in the store", func() bool {
		var err error
		stored, _, err = loadRing(t.Context(), other)
		return err == nil && stored.Epoch > before.Epoch
	})
	for _, d := range []ring.Document{r.Current().Document, follower.Current().Document, stored} {
		if len(d.Nodes) != 2 || d.Epoch <= before.Epoch {
			t.Errorf("afterwards: epoch %d (was %d), %+v", d.Epoch, before.Epoch, d.Change)
			continue
		}
		sameOwners(t, before.Document, d)
	}
	if r.Lost() {
		t.Error("the store is still said to have lost data")
	}
}

// A store that was set back, by a backup or a replay, while no locator lived: the ring counts
// on from the epoch that a node goes by; of what a node makes up it follows a step each countEvery.
func TestStoreSetBack(t *testing.T) {
	s := startNATS(t, t.TempDir(), "127.0.0.1:0")
	nodes, other := dial(t, s, "c"), dial(t, s, "c")
	a := startNode(t, nodes, "a", "a1")
	startNode(t, nodes, "b", "b1")
	var log logged
	k, r := keepWith(t, dial(t, s, "c"), "loc", slog.New(slog.NewTextHandler(&log, nil)))
	eventually(t, "a ring of both nodes", func() bool { return len(r.Current().Nodes) == 2 })
	if strings.Contains(log.String(), "ring_older") {
		t.Errorf("nothing was lost, and the log says %s", log.String())
	}
	follower := follow(t, other)
	before := r.Current().Epoch + 40
	a.newest.Store(before)
	eventually(t, "a ring that counts on", func() bool { return r.Current().Epoch > before })
	waitRing(t, follower, before+1)
	sameOwners(t, r.Current().Document, follower.Current().Document)
	a.newest.Store(before + 1<<40)
	k.Failed("a") // a probe, and a look at what is due
	eventually(t, "it has said so", func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.members.m["a"].beat.Epoch == before+1<<40
	})
	if err := k.publish(t.Context()); err != nil && !errors.Is(err, errConflict) {
		t.Fatal(err)
	}
	if e := r.Current().Epoch; e > before+maxStep+10 { // the step is taken now or, if the last one is not long ago, later
		t.Errorf("the ring has epoch %d, and only one node made that up", e)
	}
	if !strings.Contains(log.String(), "node=a") || !strings.Contains(log.String(), "event=ring_older stored="+fmt.Sprint(before-40)+" epoch="+fmt.Sprint(before)) {
		t.Errorf("epoch %d is %+v, and the log says %s", r.Current().Epoch, r.Current().Change, log.String())
	}
}

// A participant may start before NATS does.
func TestConnectBeforeNATS(t *testing.T) {
	addr := unusedAddr(t)
	c, err := Connect(Options{URL: "nats://" + addr, Cluster: "c", Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	up := make(chan struct{}, 1)
	c.OnUp(func() { up <- struct{}{} })
	if c.Up() {
		t.Error("connected to nothing")
	}
	BeatLocator(c, LocatorBeat{ID: "x"}) // goes nowhere, and blocks nobody
	startNATS(t, t.TempDir(), addr)
	await(t, "a connect", up)
	store(t, c, "a")
}

// Connect's error is shown and logged: a password in the URL is not.
func TestConnectHidesPassword(t *testing.T) {
	for _, url := range []string{"nats://user:hunter2@[::1", "nats://user:hunter2@127.0.0.1:port", "nats://user:hunter2@127.0.0.1:4222/%zz"} {
		c, err := Connect(Options{URL: url, Cluster: "c", Log: quiet})
		if err == nil {
			c.Close()
			t.Errorf("%s: no error", url)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error shows the password: %v", err)
		}
	}
}
