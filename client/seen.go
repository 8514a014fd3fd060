package client

// seenSize is how many message ids are remembered: far more than can be under
// way while two connections of a client overlap.
const seenSize = 1024

// seen remembers the last message ids, so that a message that comes on two
// connections, or twice after a retry between servers, is handled once. It takes no
// memory before there are any: most clients of a process with thousands get few.
type seen struct {
	ids  map[string]struct{}
	ring []string // of up to seenSize
	next int
}

// has tells whether id came before.
func (s *seen) has(id string) bool {
	_, ok := s.ids[id]
	return ok
}

// remove forgets an id: it may come again.
func (s *seen) remove(id string) { delete(s.ids, id) }

// add remembers an id; the oldest one is forgotten for it.
func (s *seen) add(id string) {
	if id == "" {
		return
	}
	if s.ids == nil {
		s.ids = map[string]struct{}{}
	}
	if len(s.ring) < seenSize {
		s.ring = append(s.ring, id)
	} else {
		delete(s.ids, s.ring[s.next])
		s.ring[s.next] = id
		s.next = (s.next + 1) % seenSize
	}
	s.ids[id] = struct{}{}
}
