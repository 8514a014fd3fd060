package reread

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// Each failure is told with its place in a row, which a success ends; of a row the second is
// said, and then one each ten minutes.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var rows []int
		looks, bad := 0, errors.New("bad")
		done := make(chan struct{})
		go func() {
			defer close(done)
			Watch(ctx, func() error {
				if looks++; looks == 1 || looks == 4 {
					return nil
				}
				return bad
			}, func(err error, nth int) {
				if err != bad {
					t.Error(err)
				}
				rows = append(rows, nth)
			})
		}()
		time.Sleep(6*Look + time.Millisecond)
		synctest.Wait()
		cancel()
		<-done
		if looks != 6 || !slices.Equal(rows, []int{1, 2, 1, 2}) {
			t.Errorf("%d looks, failures %v", looks, rows)
		}
	})
	var said []int
	for nth := 1; nth <= Again+3; nth++ {
		if Say(nth) {
			said = append(said, nth)
		}
	}
	if !slices.Equal(said, []int{2, Again + 2}) {
		t.Errorf("said %v", said)
	}
}

func TestRead(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	for limit, want := range map[int64]string{3: "1234", 5: "12345", 9: "12345"} {
		if b, err := Read(name, limit); err != nil || string(b) != want {
			t.Errorf("at most %d: %q %v", limit, b, err)
		}
	}
	if _, err := Read(name+"x", 1); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
