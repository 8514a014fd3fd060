package wsnode

import (
	"slices"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/cluster"
)

// What a node may say of whom it misses before it ends.
func TestPresenceOver(t *testing.T) {
	p := newPresence(time.Minute)
	p.emptied("alice")
	if p.told() || !p.takeOver("bob") {
		t.Error("it goes on, and is said to have told all, or takes nobody over")
	}
	if u := p.due(time.Now(), false); len(u) != 0 {
		t.Errorf("%v are due within their grace", u)
	}
	u := p.due(time.Now(), true)
	if slices.Sort(u); !slices.Equal(u, []string{"alice", "bob"}) {
		t.Errorf("at its end %v are due", u)
	}
	if !p.told() || p.takeOver("carol") || !p.told() {
		t.Error("it ends, and has not told all, or takes another one over")
	}
	p.deciding.Lock()
	if p.told() {
		t.Error("some are just asked for")
	}
	p.deciding.Unlock()
	p.watch("alice") // nobody could be asked
	if p.told() {
		t.Error("one is missing of whom nothing was told")
	}
	p.due(time.Now(), true)
	p.sayLocked(cluster.PresenceOffline, "alice")
	if p.told() {
		t.Error("an event waits")
	}
}
