package inbox

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

// syncs has appends that a server acknowledged share a sync of its disk:
//
//	acknowledged --> waiting --a sync that began after that has ended--> done
//
// One sync is under way at a time; those that come meanwhile share the next one.
type syncs struct {
	// Sync is the store's option.
	Sync func(ctx context.Context, server string, streams []string) error

	mu      sync.Mutex
	waiting map[string]*syncing // by the server that acknowledged
	busy    bool
	wg      sync.WaitGroup
}

type syncing struct {
	streams map[string]bool
	done    []func(error)
}

// syncTimeout bounds a sync; who waits for longer tries again.
const syncTimeout = 2 * time.Second

// add calls done when what server has acknowledged for stream before is on the
// disk, or with an error.
func (s *syncs) add(server, stream string, done func(error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.waiting[server]
	if w == nil {
		if s.waiting == nil {
			s.waiting = map[string]*syncing{}
		}
		w = &syncing{streams: map[string]bool{}}
		s.waiting[server] = w
	}
	w.streams[stream] = true
	w.done = append(w.done, done)
	if !s.busy {
		s.busy = true
		s.wg.Go(s.run)
	}
}

func (s *syncs) run() {
	for {
		s.mu.Lock()
		waiting := s.waiting
		if len(waiting) == 0 {
			s.busy = false
			s.mu.Unlock()
			return
		}
		s.waiting = nil
		s.mu.Unlock()
		for server, w := range waiting {
			ctx, cancel := context.WithTimeout(context.Background(), syncTimeout)
			err := s.Sync(ctx, server, slices.Sorted(maps.Keys(w.streams)))
			cancel()
			for _, done := range w.done {
				done(err)
			}
		}
	}
}
