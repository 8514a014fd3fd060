package inbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Whoever waits is done by a sync that began after it came, those that come while
// one is under way share the next one, and each run of a server answers for its own.
func TestSyncs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var calls []string
		done := map[int]time.Duration{}
		begin := time.Now()
		s := syncs{Sync: func(_ context.Context, server string, streams []string) error {
			time.Sleep(time.Second)
			mu.Lock()
			defer mu.Unlock()
			calls = append(calls, fmt.Sprint(server, streams))
			if server == "old" {
				return errors.New("another run")
			}
			return nil
		}}
		add := func(i int, server, stream string, fails bool) {
			s.add(server, stream, func(err error) {
				mu.Lock()
				defer mu.Unlock()
				done[i] = time.Since(begin)
				if (err != nil) != fails {
					t.Errorf("%d: %v", i, err)
				}
			})
		}
		add(0, "new", "a", false)
		time.Sleep(500 * time.Millisecond)
		for i := 1; i <= 10; i++ { // the one under way began before
			add(i, "new", []string{"a", "b"}[i%2], false)
		}
		time.Sleep(2 * time.Second)
		add(11, "old", "a", true)
		s.wg.Wait()
		if want := []string{"new[a]", "new[a b]", "old[a]"}; !slices.Equal(calls, want) {
			t.Errorf("syncs %v, want %v", calls, want)
		}
		for i, want := range map[int]time.Duration{0: time.Second, 1: 2 * time.Second, 10: 2 * time.Second, 11: 3500 * time.Millisecond} {
			if done[i] != want {
				t.Errorf("%d was done after %s, want %s", i, done[i], want)
			}
		}
	})
}
