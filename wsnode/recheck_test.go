package wsnode

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dialring/dialring/internal/cluster"
)

// A session that another node owns, and that no event tells of, is told to move by
// the walk over all sessions: whatever left it here, it does not stay.
func TestRecheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := formerNode(0, 0)
		n.boot = "b-me"
		n.rings = cluster.NewRings(new(cluster.Conn), slog.New(slog.DiscardHandler))
		cur := ringOf(1000, "a", "me")
		cur.Cluster = "" // that of a connection to nowhere
		cur.Seal()
		if err := offer(n.rings, cur.Document); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- n.watchRing(ctx) }()
		defer func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}()
		for round := range 3 {
			time.Sleep(recheck / 2) // until it looks at nothing more often than every recheck
			synctest.Wait()
			var here []*session
			astray := 0
			for u := range 10 {
				here = append(here, n.hold(fmt.Sprint("u", round, "-", u), "d"))
			}
			time.Sleep(recheck)
			synctest.Wait()
			for _, s := range here {
				owner, _ := n.rings.Current().Owner(s.user)
				m := s.told.Load()
				switch {
				case owner.ID == "me":
					if m != nil {
						t.Errorf("round %d: %s was told to go to %s, and belongs here", round, s.user, m.node)
					}
					continue
				case m == nil:
					t.Errorf("round %d: %s belongs to %s, and was not told within %v", round, s.user, owner.ID, recheck)
				case m.node != owner.ID || len(s.queue) != 1:
					t.Errorf("round %d: %s was told to go to %s by %d frames, its owner is %s", round, s.user, m.node, len(s.queue), owner.ID)
				}
				astray++
				n.hub.remove(s) // it follows
			}
			if astray == 0 {
				t.Fatal("all users belong here")
			}
		}
	})
}
