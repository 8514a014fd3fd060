package wsnode

import (
	"context"
	"sync"
)

// slots are how many things may be done at the same time, a quarter of them for one user:
// whoever the application is slow to answer leaves the rest to others. It may be used
// concurrently.
type slots struct {
	all  chan struct{}
	each int

	mu sync.Mutex
	by map[string]*userSlots
}

type userSlots struct {
	taken chan struct{}
	users int // that take one, or wait for it
}

func newSlots(all int) *slots {
	return &slots{all: make(chan struct{}, all), each: max(1, all/4), by: map[string]*userSlots{}}
}

// take waits for a slot, or until ctx ends; then it returns false. A slot that was taken is
// to be left.
func (s *slots) take(ctx context.Context, user string) bool {
	s.mu.Lock()
	u := s.by[user]
	if u == nil {
		u = &userSlots{taken: make(chan struct{}, s.each)}
		s.by[user] = u
	}
	u.users++
	s.mu.Unlock()
	select {
	case u.taken <- struct{}{}:
	case <-ctx.Done():
		s.drop(user, u)
		return false
	}
	select {
	case s.all <- struct{}{}:
		return true
	case <-ctx.Done():
		<-u.taken
		s.drop(user, u)
		return false
	}
}

func (s *slots) leave(user string) {
	<-s.all
	s.mu.Lock()
	u := s.by[user]
	s.mu.Unlock()
	<-u.taken
	s.drop(user, u)
}

func (s *slots) drop(user string, u *userSlots) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u.users--; u.users == 0 {
		delete(s.by, user)
	}
}
