package cluster

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
)

// testBus holds what the control plane relies on. a and b are two participants
// of one cluster; down and up return when both know.
func testBus(t *testing.T, open func(t *testing.T) (a, b Bus, down, up func())) {
	for name, test := range map[string]func(*testing.T, Bus, Bus, func(), func()){
		"subjects": testBusSubjects, "order": testBusOrder, "down": testBusDown, "OnUp": testBusOnUp,
		"store": testBusStore, "store race": testBusRace, "store down": testBusStoreDown,
		"clusters": testBusClusters, "end": testBusEnd,
	} {
		t.Run(name, func(t *testing.T) {
			a, b, down, up := open(t)
			test(t, a, b, down, up)
		})
	}
}

func testBusSubjects(t *testing.T, a, b Bus, _, _ func()) {
	if !a.Up() || !b.Up() || a.clusterName() != "c" || a.logger() == nil {
		t.Fatalf("up %v %v, cluster %q", a.Up(), b.Up(), a.clusterName())
	}
	all, one := inbox(t, b, "beat.node.*"), inbox(t, b, "ring")
	own, twice := inbox(t, a, "beat.node.*"), inbox(t, b, "beat.node.*")
	for _, s := range []string{"beat.node.x", "beat.locator.x", "beat.node", "beat.node.x.y", "beat", "ring.x", "rin", "beat.node.ws-2", "ring"} {
		a.publish(s, []byte("1"))
	}
	a.publish("ring", nil)
	a.publish("beat.node.end", []byte{0, 255})
	for _, c := range []<-chan string{all, own, twice} {
		wantNext(t, c, "beat.node.x=1", "beat.node.ws-2=1", "beat.node.end=\x00\xff")
	}
	wantNext(t, one, "ring=1", "ring=")
	body := []byte("before")
	a.publish("ring", body)
	copy(body, "after!") // it is the caller's again
	wantNext(t, one, "ring=before")
}

func testBusOrder(t *testing.T, a, b Bus, _, _ func()) {
	x, y := inbox(t, b, "beat.node.*"), inbox(t, b, "beat.node.n7")
	for i := range 2000 {
		a.publish("beat.node.n"+strconv.Itoa(i%10), []byte(strconv.Itoa(i)))
	}
	for i := range 2000 {
		wantNext(t, x, fmt.Sprintf("beat.node.n%d=%d", i%10, i))
		if i%10 == 7 {
			wantNext(t, y, fmt.Sprintf("beat.node.n7=%d", i))
		}
	}
}

// What is published while it is down goes nowhere, also not later.
func testBusDown(t *testing.T, a, b Bus, down, up func()) {
	c := inbox(t, b, "ring")
	a.publish("ring", []byte("1"))
	wantNext(t, c, "ring=1")
	for i := range 2 {
		down()
		if a.Up() || b.Up() {
			t.Fatal("up")
		}
		a.publish("ring", []byte("lost"))
		b.publish("ring", []byte("lost"))
		meanwhile := make(chan string, 10)
		if err := b.subscribe(t.Context(), "late", func(_ string, m []byte) { meanwhile <- string(m) }); err != nil {
			t.Fatalf("subscribe while down: %v", err)
		}
		up()
		flush(t, b) // the server knows b's subscriptions again
		body := fmt.Sprintf("again %d", i)
		a.publish("ring", []byte(body))
		wantNext(t, c, "ring="+body)
		a.publish("late", []byte(body))
		wantNext(t, meanwhile, body)
	}
}

func testBusOnUp(t *testing.T, a, _ Bus, down, up func()) {
	var first, late atomic.Int32
	a.OnUp(func() { first.Add(1) })
	if first.Load() == 0 {
		t.Fatal("it is up, and f was not called at once")
	}
	down()
	a.OnUp(func() { late.Add(1) })
	if late.Load() != 0 {
		t.Error("called while down")
	}
	up()
	eventually(t, "a call after the reconnect", func() bool { return first.Load() >= 2 && late.Load() >= 1 })
	down()
	n, m := first.Load(), late.Load()
	up()
	eventually(t, "a call after the second reconnect", func() bool { return first.Load() > n && late.Load() > m })
	// A Conn may be told of its very first connect late, after OnUp has looked.
	if n, m := first.Load(), late.Load(); n > 4 || m != 2 {
		t.Errorf("called %d and %d times, want 3 and 2", n, m)
	}
}

func testBusStore(t *testing.T, a, b Bus, down, up func()) {
	ctx := t.Context()
	put := func(x Bus, key, v string, rev uint64, want error) {
		t.Helper()
		if err := x.put(ctx, bucketRing, key, []byte(v), rev); !errors.Is(err, want) {
			t.Fatalf("put %q at %d: %v, want %v", v, rev, err, want)
		}
	}
	get := func(x Bus, key, want string) uint64 {
		t.Helper()
		v, rev, err := x.get(ctx, bucketRing, key)
		if err != nil || string(v) != want || rev == 0 {
			t.Fatalf("get: %q at %d, %v; want %q", v, rev, err, want)
		}
		if l, at, err := x.latest(ctx, bucketRing, key); err != nil || string(l) != want || at != rev {
			t.Fatalf("latest: %q at %d, %v; want %q at %d", l, at, err, want, rev)
		}
		return rev
	}
	if _, _, err := a.get(ctx, bucketRing, "k"); !errors.Is(err, errNoBucket) {
		t.Fatalf("before anything was put: %v", err)
	}
	if _, _, err := a.get(ctx, bucketKeys, "k"); !errors.Is(err, errNoBucket) {
		t.Fatalf("before anything was put: %v", err)
	}
	if _, _, err := a.latest(ctx, bucketRing, "k"); !errors.Is(err, errNoBucket) {
		t.Fatalf("the latest before anything was put: %v", err)
	}
	put(a, "k", "one", 7, errConflict) // there is none at that revision
	put(a, "k", "one", 0, nil)
	one := get(b, "k", "one")
	if _, _, err := b.get(ctx, bucketRing, "other"); !errors.Is(err, errNoKey) {
		t.Fatalf("a key that nobody put: %v", err)
	}
	if _, _, err := b.latest(ctx, bucketRing, "other"); !errors.Is(err, errNoKey) {
		t.Fatalf("the latest of a key that nobody put: %v", err)
	}
	put(b, "k", "two", 0, errConflict)
	put(b, "k", "two", one, nil)
	two := get(a, "k", "two")
	if two <= one {
		t.Errorf("revision %d after %d", two, one)
	}
	put(a, "k", "three", one, errConflict)
	put(a, "k", "three", two+100, errConflict)
	get(b, "k", "two")
	put(a, "other", "x", anyRevision, nil)
	put(a, "k", "three", two, nil) // whatever was put elsewhere
	put(b, "k", "four", anyRevision, nil)
	put(a, "k", "five", two, errConflict)
	four := get(a, "k", "four")
	get(b, "other", "x")
	down()
	up()
	eventually(t, "the store", func() bool { _, _, err := b.get(ctx, bucketRing, "k"); return err == nil })
	if rev := get(b, "k", "four"); rev != four {
		t.Errorf("revision %d after a restart, was %d", rev, four)
	}
	put(b, "k", "five", four, nil)
	get(a, "k", "five")
}

// Of those who put at one revision, one succeeds and the others learn it.
func testBusRace(t *testing.T, a, b Bus, _, _ func()) {
	rev := uint64(0)
	for i := range 10 {
		errs := make(chan error, 8)
		for j := range cap(errs) {
			go func() {
				errs <- []Bus{a, b}[j%2].put(t.Context(), bucketRing, "k", []byte{byte(j)}, rev)
			}()
		}
		won := 0
		for range cap(errs) {
			switch err := await(t, "the end of a put", errs); {
			case err == nil:
				won++
			case !errors.Is(err, errConflict):
				t.Fatal(err)
			}
		}
		if won != 1 {
			t.Fatalf("in round %d %d have won", i, won)
		}
		var err error
		if _, rev, err = a.get(t.Context(), bucketRing, "k"); err != nil {
			t.Fatal(err)
		}
	}
}

// While it is down the store is not taken for an empty one.
func testBusStoreDown(t *testing.T, a, b Bus, down, up func()) {
	if err := a.put(t.Context(), bucketRing, "k", []byte("v"), 0); err != nil {
		t.Fatal(err)
	}
	down()
	for _, x := range []Bus{a, b} { // b has never used it
		for what, err := range map[string]error{
			"put": x.put(t.Context(), bucketRing, "k", []byte("lost"), anyRevision),
			"get": func() error { _, _, err := x.get(t.Context(), bucketRing, "k"); return err }(),
		} {
			if err == nil || errors.Is(err, errNoKey) || errors.Is(err, errNoBucket) || errors.Is(err, errConflict) {
				t.Errorf("%s while down: %v", what, err)
			}
		}
	}
	up()
	eventually(t, "the store", func() bool {
		v, _, err := b.get(t.Context(), bucketRing, "k")
		return err == nil && string(v) == "v"
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := a.get(ctx, bucketRing, "k"); err == nil {
		t.Error("get with a context that has ended succeeds")
	}
}

func testBusClusters(t *testing.T, a, b Bus, _, _ func()) {
	var x Bus // of another cluster on the same server
	switch c := a.(type) {
	case *memory:
		x = c.srv.connect("c2")
	case *Conn:
		conn, err := Connect(Options{URL: "nats://" + c.nc.ConnectedAddr(), Cluster: "c2", Log: quiet})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(conn.Close)
		eventually(t, "a connection", conn.Up)
		x = conn
	}
	atB, atX := inbox(t, b, "beat.node.*"), inbox(t, x, "beat.node.*")
	a.publish("beat.node.n", []byte("of c"))
	flush(t, a)
	x.publish("beat.node.n", []byte("of c2"))
	flush(t, x)
	a.publish("beat.node.n", []byte("end"))
	x.publish("beat.node.n", []byte("end"))
	wantNext(t, atB, "beat.node.n=of c", "beat.node.n=end")
	wantNext(t, atX, "beat.node.n=of c2", "beat.node.n=end")
	if err := a.put(t.Context(), bucketRing, "k", []byte("c"), 0); err != nil {
		t.Fatal(err)
	}
	if _, _, err := x.get(t.Context(), bucketRing, "k"); !errors.Is(err, errNoBucket) {
		t.Errorf("the other cluster's bucket: %v", err)
	}
	if err := x.put(t.Context(), bucketRing, "k", []byte("c2"), 0); err != nil {
		t.Errorf("the same key of another cluster: %v", err)
	}
	if v, _, err := b.get(t.Context(), bucketRing, "k"); err != nil || string(v) != "c" {
		t.Errorf("got %q %v", v, err)
	}
}

func testBusEnd(t *testing.T, a, b Bus, _, _ func()) {
	ctx, cancel := context.WithCancel(t.Context())
	ended, n := inboxUntil(t, ctx, b, "ring")
	other := inbox(t, b, "ring")
	a.publish("ring", []byte("1"))
	wantNext(t, ended, "ring=1")
	wantNext(t, other, "ring=1")
	cancel()
	send := func(body string) { // and what b's other subscription gets, this one would have got
		t.Helper()
		a.publish("ring", []byte(body))
		wantNext(t, other, "ring="+body)
	}
	eventually(t, "an end of the subscription", func() bool {
		before := n.Load()
		for range 50 {
			send("after")
		}
		flush(t, b)
		return n.Load() == before
	})
}
