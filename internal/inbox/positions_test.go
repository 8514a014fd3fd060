package inbox

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// counting is a store that counts writes of positions.
type counting struct {
	*Memory
	mu     sync.Mutex
	writes map[[2]string]int
}

func (c *counting) SetPosition(ctx context.Context, user, device string, cur Cursor, rev uint64) (uint64, error) {
	rev, err := c.Memory.SetPosition(ctx, user, device, cur, rev)
	if err == nil {
		c.mu.Lock()
		c.writes[[2]string{user, device}]++
		c.mu.Unlock()
	}
	return rev, err
}

// bothInBubble is bothWays with a bubble's clock.
func bothInBubble(t *testing.T, test func(t *testing.T, as func(Store) Store)) {
	bothWays(t, func(t *testing.T, as func(Store) Store) {
		synctest.Test(t, func(t *testing.T) { test(t, as) })
	})
}

func positionsIn(t *testing.T, s Store) (p *Positions, run func()) {
	p = &Positions{Store: s, Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); p.Run(ctx) }()
	return p, func() { cancel(); <-done }
}

// However often a device acknowledges, its position is written once a second, and
// when it leaves.
func TestPositions(t *testing.T) {
	bothInBubble(t, func(t *testing.T, as func(Store) Store) {
		s := &counting{Memory: NewMemory(suiteLimits), writes: map[[2]string]int{}}
		p, end := positionsIn(t, as(s))
		defer end()
		p.Open("alice", "d", 0, true)
		for i := range uint64(100) { // ten seconds
			p.Note("alice", "d", Cursor{Seq: i, Pos: i, Tag: i})
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := s.writes[[2]string{"alice", "d"}]; n < 8 || n > 11 {
			t.Errorf("%d writes in ten seconds", n)
		}
		p.Note("alice", "d", Cursor{200, 200, 200})
		p.Close("alice", "d")
		time.Sleep(2 * writeLook)
		synctest.Wait()
		if c, _, err := s.Position(t.Context(), "alice", "d"); err != nil || c.Seq != 200 {
			t.Errorf("after it left: %+v, %v", c, err)
		}
		if len(p.byKey) != 0 {
			t.Errorf("%d positions are kept", len(p.byKey))
		}
	})
}

// Two nodes write one device's position: the one that is behind does not win.
func TestPositionsOfTwoNodes(t *testing.T) {
	bothInBubble(t, func(t *testing.T, as func(Store) Store) {
		m := NewMemory(suiteLimits)
		old, endOld := positionsIn(t, as(m))
		now, endNow := positionsIn(t, as(m))
		defer endOld()
		defer endNow()
		old.Open("alice", "d", 0, true)
		now.Open("alice", "d", 0, true)
		now.Note("alice", "d", Cursor{9, 9, 9})
		time.Sleep(500 * time.Millisecond)
		old.Note("alice", "d", Cursor{5, 5, 5})
		time.Sleep(2 * time.Second)
		if c, _, err := m.Position(t.Context(), "alice", "d"); err != nil || c.Seq != 9 {
			t.Errorf("%+v, %v", c, err)
		}
		old.Note("alice", "d", Cursor{12, 12, 12})
		old.Close("alice", "d")
		time.Sleep(time.Second)
		if c, _, err := m.Position(t.Context(), "alice", "d"); err != nil || c.Seq != 12 {
			t.Errorf("one that is ahead: %+v, %v", c, err)
		}
	})
}

// The store is away: what was noted is written when it is back.
func TestPositionsStoreAway(t *testing.T) {
	bothInBubble(t, func(t *testing.T, as func(Store) Store) {
		m := NewMemory(suiteLimits)
		p, end := positionsIn(t, as(m))
		defer end()
		m.Fail(errFault)
		p.Note("alice", "d", Cursor{3, 3, 3})
		time.Sleep(time.Minute)
		m.Fail(nil)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if c, _, err := m.Position(t.Context(), "alice", "d"); err != nil || c.Seq != 3 {
			t.Errorf("%+v, %v", c, err)
		}
		if len(p.byKey) != 0 {
			t.Errorf("%d positions are kept", len(p.byKey))
		}
	})
}

// Flush writes at once.
func TestPositionsFlush(t *testing.T) {
	bothWays(t, testPositionsFlush)
}

func testPositionsFlush(t *testing.T, as func(Store) Store) {
	m := NewMemory(suiteLimits)
	p := &Positions{Store: as(m), Log: slog.New(slog.DiscardHandler)}
	p.Note("alice", "d", Cursor{3, 3, 3})
	p.Open("bob", "d", 0, true)
	p.Note("bob", "d", Cursor{1, 1, 1})
	p.Flush(t.Context())
	for k, want := range map[[2]string]uint64{{"alice", "d"}: 3, {"bob", "d"}: 1} {
		if c, _, err := m.Position(t.Context(), k[0], k[1]); err != nil || c.Seq != want {
			t.Errorf("%v: %+v, %v", k, c, err)
		}
	}
}

// The store was made anew, and numbers its places from the start: a position of
// before does not stand in the way of those that follow.
func TestPositionsOfLostLog(t *testing.T) {
	bothInBubble(t, func(t *testing.T, as func(Store) Store) {
		m := NewMemory(suiteLimits)
		p, end := positionsIn(t, as(m))
		defer end()
		rev, err := m.SetPosition(t.Context(), "alice", "d", Cursor{900, 1000, 1}, 0)
		if err != nil {
			t.Fatal(err)
		}
		p.Open("alice", "d", rev, true)
		m.Fail(errFault)
		p.Note("alice", "d", Cursor{901, 1001, 1})
		time.Sleep(5 * time.Second)
		m.Fail(nil)
		p.Reset("alice", "d")
		p.Note("alice", "d", Cursor{1, 1, 2})
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if c, _, err := m.Position(t.Context(), "alice", "d"); err != nil || c != (Cursor{1, 1, 2}) {
			t.Errorf("%+v, %v", c, err)
		}
		p.Close("alice", "d")
	})
}
