package wsnode

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// One user has a quarter of the slots at most, and waits for those; others do not wait for them.
func TestSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(8)
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for range 2 {
			if !s.take(t.Context(), "greedy") {
				t.Fatal("no slot of eight")
			}
		}
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if s.take(short, "greedy") {
					t.Error("a third slot of one user")
				}
			})
		}
		synctest.Wait()
		for _, user := range []string{"a", "a", "b", "b", "c", "c"} {
			if !s.take(short, user) {
				t.Fatalf("%s waits for another user", user)
			}
		}
		wg.Wait() // until short has ended
		if s.take(short, "d") {
			t.Error("a ninth slot of eight")
		}
		// Who waits gets the slot that is left.
		got := make(chan bool)
		go func() { got <- s.take(t.Context(), "greedy") }()
		synctest.Wait()
		s.leave("greedy")
		if !<-got {
			t.Error("a slot that was left is nobody's")
		}
		for _, user := range []string{"greedy", "greedy", "a", "a", "b", "b", "c", "c"} {
			s.leave(user)
		}
		if len(s.by) != 0 || len(s.all) != 0 {
			t.Errorf("slots that nobody has: %d, of users %v", len(s.all), s.by)
		}
		if one := newSlots(1); !one.take(t.Context(), "a") {
			t.Error("no slot of one")
		}
	})
}
