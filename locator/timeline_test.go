package locator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/ring"
)

// fakeRings is a ring and its store.
type fakeRings struct {
	mu      sync.Mutex
	cur     *ring.Ring
	changed chan struct{}
	stored  []cluster.Published
	down    bool
}

func newFakeRings() *fakeRings {
	return &fakeRings{cur: ring.New(ring.Document{Cluster: "c"}), changed: make(chan struct{})}
}

func (f *fakeRings) Current() *ring.Ring {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cur
}

func (f *fakeRings) Changed() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}

func (f *fakeRings) published(_ context.Context, after uint64) ([]cluster.Published, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return nil, errors.New("the store is away")
	}
	var out []cluster.Published
	for _, p := range f.stored {
		if p.Revision > after {
			out = append(out, p)
		}
	}
	return out, nil
}

// publish makes the ring one of these nodes, and stores it under the next revision.
func (f *fakeRings) publish(epoch, revision uint64, reason string, nodes ...string) {
	d := ring.Document{Cluster: "c", Epoch: epoch, Change: ring.Change{Reason: reason, Nodes: nodes, By: "l"}}
	for _, id := range nodes {
		d.Nodes = append(d.Nodes, ring.Node{ID: id, Weight: 1})
	}
	d.Seal()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stored = append(f.stored, cluster.Published{Document: d, Revision: revision, Time: time.Unix(int64(epoch), 0)})
	f.cur = f.cur.Next(d)
	close(f.changed)
	f.changed = make(chan struct{})
}

func awaitEpoch(t *testing.T, tl *timeline, epoch uint64) []boardChange {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		all := tl.all()
		if len(all) > 0 && all[len(all)-1].Epoch == epoch {
			return all
		}
		if time.Now().After(end) {
			t.Fatalf("the timeline never has epoch %d: %+v", epoch, all)
		}
	}
}

func TestTimeline(t *testing.T) {
	f := newFakeRings()
	f.publish(7, 11, "join", "a", "b") // older ones are not kept any more
	f.publish(8, 12, "join", "a", "b", "c")
	tl := &timeline{rings: f, published: f.published, log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); tl.run(ctx) }()
	defer func() { cancel(); <-done }()

	all := awaitEpoch(t, tl, 8)
	if len(all) != 2 || all[0].Epoch != 7 || all[0].Share != nil || !all[0].Time.Equal(time.Unix(7, 0)) || all[0].Size != 2 {
		t.Errorf("from before the start: %+v", all)
	}
	if s := all[1].Share; s == nil || math.Abs(*s-1./3) > .05 {
		t.Errorf("a third node joined, and the share that moved is %v", s)
	}
	f.publish(9, 13, "handoff", "a", "b", "c")
	if all = awaitEpoch(t, tl, 9); *all[2].Share != 0 {
		t.Errorf("the end of a handoff moved %g", *all[2].Share)
	}
	// While the store is away the ring comes by another way; what it was is read later.
	f.mu.Lock()
	f.down = true
	f.mu.Unlock()
	f.publish(10, 14, "crash", "a", "b")
	f.publish(11, 15, "join", "a", "b", "c")
	f.mu.Lock()
	f.down = false
	f.mu.Unlock()
	if all = awaitEpoch(t, tl, 11); len(all) != 5 || all[3].Reason != "crash" || all[4].Share == nil {
		t.Errorf("after the store was away: %+v", all)
	}
	// A store that began anew numbers anew, and what was known stays known.
	f.mu.Lock()
	f.stored = nil
	f.mu.Unlock()
	f.publish(12, 1, "restored", "a", "b", "c")
	if all = awaitEpoch(t, tl, 12); len(all) != 6 || all[5].Reason != "restored" {
		t.Errorf("after the store began anew: %+v", all)
	}
	for i := range uint64(maxTimeline) {
		f.publish(13+i, 2+i, "update", "a", "b", "c")
	}
	if all = awaitEpoch(t, tl, 12+maxTimeline); len(all) != maxTimeline || all[0].Epoch != 13 {
		t.Errorf("%d changes are kept, from epoch %d on", len(all), all[0].Epoch)
	}
}

// A long history has the shares of its newest changes worked out only.
func TestTimelineOfLongHistory(t *testing.T) {
	f := newFakeRings()
	for i := range uint64(2 * maxShares) {
		f.publish(i+1, i+1, "join", "a", fmt.Sprintf("b%d", i))
	}
	tl := &timeline{rings: f, published: f.published}
	if err := tl.read(t.Context(), 2*maxShares); err != nil {
		t.Fatal(err)
	}
	for i, c := range tl.all() {
		if known := c.Share != nil; known != (i >= maxShares) {
			t.Errorf("change %d: its share is known: %t", i, known)
		}
	}
}
