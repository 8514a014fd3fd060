package wsnode

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/dialring/dialring/internal/inbox"
)

// How often the store is tried: when all seems well, after a push that it did not
// take, and while it is down.
const (
	canaryEvery   = 5 * time.Second
	canaryTimeout = 2 * time.Second
	canaryAgain   = 500 * time.Millisecond
)

// storeHealth tells whether the store takes messages, by writing one that nobody
// gets: a full disk, for one, shows in nothing else than that.
//
//	up --a canary is not taken--> down --one is--> up
//
// While it is down pushes are refused at once, instead of all waiting in vain.
type storeHealth struct {
	store inbox.Store
	log   *slog.Logger
	down  atomic.Bool
	look  chan struct{}
}

// suspect has the store tried soon.
func (h *storeHealth) suspect() {
	select {
	case h.look <- struct{}{}:
	default:
	}
}

// run tries the store until ctx ends.
func (h *storeHealth) run(ctx context.Context) {
	wait := time.NewTimer(0)
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-wait.C:
		case <-h.look:
		}
		once, cancel := context.WithTimeout(ctx, canaryTimeout)
		err := h.store.Check(once)
		cancel()
		if ctx.Err() != nil {
			return
		}
		switch was := h.down.Swap(err != nil); {
		case err != nil && !was:
			h.log.Error("the store takes no messages; stored pushes are refused until it does", "event", "store_down", "error", err)
		case err == nil && was:
			h.log.Info("the store takes messages again", "event", "store_up")
		}
		if err != nil {
			wait.Reset(canaryAgain)
		} else {
			wait.Reset(canaryEvery)
		}
	}
}
