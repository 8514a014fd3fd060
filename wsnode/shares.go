package wsnode

import "sync"

// shares bound what waits for something, such as bytes of users: to most in all, and to a
// quarter of that of one of them, yet at least the largest thing, so that none has all of it. It may be used
// concurrently.
type shares struct {
	most, each int64

	mu  sync.Mutex
	all int64
	by  map[string]int64
}

func newShares(most, largest int64) *shares {
	return &shares{most: most, each: max(most/4, largest), by: map[string]int64{}}
}

// take takes size bytes, which give gives back; false: they are too many.
func (s *shares) take(user string, size int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all+size > s.most || s.by[user]+size > s.each {
		return false
	}
	s.all += size
	s.by[user] += size
	return true
}

func (s *shares) give(user string, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all -= size
	if s.by[user] -= size; s.by[user] == 0 {
		delete(s.by, user)
	}
}

// taken is how many are.
func (s *shares) taken() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all
}
