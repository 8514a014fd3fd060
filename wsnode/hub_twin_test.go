package wsnode

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// The earlier connection of a session that is replaced goes with it.
func TestReplacedTwinStays(t *testing.T) {
	cfg := Config{DevicePolicy: "replace", SessionPolicy: "oldest", MaxSessionsPerUser: 16}
	h := newHub(newPresence(time.Second))
	h.add(login("m", "d", 1), &cfg, nil)
	h.add(movedHere("m", "d", 1), &cfg, nil)
	h.add(login("new", "d", 2), &cfg, nil)
	_, l := h.find([]byte("alice"))
	for _, s := range l {
		if s.id == "m" {
			t.Errorf("replaced session m is still here, old=%v", s.old.Load())
		}
	}
}

// Of three connections of a session the last goes: the one before it counts.
func TestThreeConnections(t *testing.T) {
	cfg := Config{DevicePolicy: "replace", SessionPolicy: "oldest", MaxSessionsPerUser: 16}
	h := newHub(newPresence(time.Second))
	a, b, c := login("m", "d", 1), movedHere("m", "d", 1), movedHere("m", "d", 1)
	for _, s := range []*session{a, b, c} {
		h.add(s, &cfg, nil)
	}
	h.remove(c)
	if !a.old.Load() && !b.old.Load() {
		t.Error("two connections of one session count")
	}
}

// tell does not wait for the next user's time far beyond tellFor.
func TestTellWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, cur := formerNode(3, 10), ringOf(1, "a")
		var p pace
		todo, _ := n.misplacedBy(cur)
		began := time.Now()
		n.tell(context.Background(), cur, todo, &p, nil)
		if d := time.Since(began); d > 2*tellFor {
			t.Errorf("tell returned after %v, tellFor is %v", d, tellFor)
		}
	})
}
