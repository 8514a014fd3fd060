package cluster

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/ring"
)

// What was published is read back in order, with the times of the store, all of it and
// what is newer than a revision; what is no ring is left out.
func TestPublishedRings(t *testing.T) {
	s := startNATS(t, t.TempDir(), "127.0.0.1:0")
	c := dial(t, s, "c")
	ctx := t.Context()
	if got, err := c.PublishedRings(ctx, 0); err != nil || len(got) != 0 {
		t.Fatalf("without a bucket: %v, %v", got, err)
	}
	began := time.Now()
	rev := uint64(0)
	publish := func(ctx context.Context, epoch uint64) {
		d := ring.Document{Cluster: "c", Epoch: epoch, Nodes: []ring.Node{{ID: "a", Weight: 1}}, Change: ring.Change{Reason: "join"}}
		d.Seal()
		if err := swapRing(ctx, c, d, rev); err != nil {
			t.Fatal(err)
		}
		var err error
		if _, rev, err = loadRing(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	for epoch := range uint64(5) {
		publish(ctx, epoch+1)
	}
	if err := c.put(ctx, bucketRing, keyRing, []byte("no ring"), rev); err != nil {
		t.Fatal(err)
	}
	rev++
	publish(ctx, 6)
	got, err := c.PublishedRings(ctx, 0)
	if err != nil || len(got) != 6 {
		t.Fatalf("%d rings, %v", len(got), err)
	}
	for i, p := range got {
		if p.Epoch != uint64(i+1) || p.Time.Before(began.Add(-time.Minute)) || p.Time.After(time.Now().Add(time.Minute)) || i > 0 && p.Time.Before(got[i-1].Time) {
			t.Errorf("ring %d: epoch %d at %s", i, p.Epoch, p.Time)
		}
	}
	newer, err := c.PublishedRings(ctx, got[3].Revision)
	if err != nil || len(newer) != 2 || newer[0].Epoch != 5 || newer[1].Epoch != 6 {
		t.Errorf("newer than epoch 4: %+v, %v", newer, err)
	}
	if none, err := c.PublishedRings(ctx, got[5].Revision); err != nil || len(none) != 0 {
		t.Errorf("newer than the newest: %+v, %v", none, err)
	}
	for epoch := range uint64(ringsKept) {
		publish(ctx, epoch+7)
	}
	if all, err := c.PublishedRings(ctx, 0); err != nil || len(all) != ringsKept || all[0].Epoch != 7 {
		t.Errorf("%d rings are kept, the first has epoch %d; %v", len(all), all[0].Epoch, err)
	}
}

// The other locators are those that were heard lately.
func TestOthersSeen(t *testing.T) {
	s := newMembers("self", "c")
	now := time.Now()
	s.heardLocator(LocatorBeat{ID: "self", Epoch: 5}, now)
	s.heardLocator(LocatorBeat{ID: "b", Epoch: 4, Suspects: []string{"x", "y"}}, now)
	s.heardLocator(LocatorBeat{ID: "a", Epoch: 5}, now.Add(time.Second))
	want := []LocatorSeen{{"a", 5, time.Second, 0}, {"b", 4, 2 * time.Second, 2}}
	if got := s.locatorView(now.Add(2 * time.Second)); !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := s.locatorView(now.Add(silentAfter)); !slices.Equal(got, []LocatorSeen{{"a", 5, silentAfter - time.Second, 0}}) {
		t.Errorf("after the silence of one: %+v", got)
	}
}
