package inbox

import (
	"context"
	"sync"
	"time"
)

// syncs has appends that the server acknowledged share a sync of its disk:
//
//	acknowledged --> waiting --a sync that began after that has ended--> done
//
// One sync is under way at a time; those that come meanwhile share the next one.
type syncs struct {
	// Sync syncs streams.
	Sync func(ctx context.Context, streams []string) error

	mu      sync.Mutex
	waiting []func(error)
	streams map[string]bool
	busy    bool
	wg      sync.WaitGroup
}

// syncTimeout bounds a sync; who waits for longer tries again.
const syncTimeout = 2 * time.Second

// add calls done when what was acknowledged for stream before is on the disk, or
// with an error.
func (s *syncs) add(stream string, done func(error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = append(s.waiting, done)
	if s.streams == nil {
		s.streams = map[string]bool{}
	}
	s.streams[stream] = true
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
		var streams []string
		for name := range s.streams {
			streams = append(streams, name)
		}
		s.waiting, s.streams = nil, nil
		s.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), syncTimeout)
		err := s.Sync(ctx, streams)
		cancel()
		for _, done := range waiting {
			done(err)
		}
	}
}
