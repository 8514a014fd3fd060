package wsnode

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/dialring/dialring/internal/cluster"
)

// The ring takes users away between the look at who owns them and the look for their
// sessions, which have gone by then: nobody is said to be away.
func TestLookAfterMove(t *testing.T) {
	n := formerNode(0, 0)
	n.rings = cluster.NewRings(new(cluster.Conn), slog.New(slog.DiscardHandler))
	before, now := ringOf(1000, "me"), ringOf(1000, "a", "me")
	now.Cluster = "" // that of a connection to nowhere
	now.Epoch++
	now.Seal()
	if err := offer(n.rings, now.Document); err != nil {
		t.Fatal(err)
	}
	moved, stays := "", ""
	for _, u := range []string{"u0", "u1", "u2", "u3", "u4", "u5", "u6", "u7", "u8", "u9"} {
		if o, _ := n.rings.Current().Owner(u); o.ID == "a" {
			moved = u
		} else {
			stays = u
		}
	}
	n.hold(stays, "d")
	out, err := n.presenceNow([]string{moved, stays}, false, before)
	if err != nil || len(out.Misdirected) != 1 || out.Misdirected[0] != moved || len(out.Sessions) != 1 || len(out.Sessions[stays]) != 1 {
		t.Errorf("presence of one who moved and one who stays: %+v, %v", out, err)
	}
	// To the new owner's question it is an answer all the same.
	if out, err = n.presenceNow([]string{moved, stays}, true, before); err != nil || len(out.Misdirected) != 0 || len(out.Sessions) != 1 {
		t.Errorf("asked by the new owner: %+v, %v", out, err)
	}
	if u, err := n.userOf(t.Context(), moved, nil, before, nil, false); !errors.Is(err, errMoved) {
		t.Errorf("sessions of one who moved: %+v, %v", u, err)
	}
	for u, forwarded := range map[string]bool{stays: false, moved: true} {
		if _, err := n.userOf(t.Context(), u, nil, before, nil, forwarded); err != nil {
			t.Errorf("sessions of %s: %v", u, err)
		}
	}
}
