package wsnode

import (
	"hash/maphash"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/dialring/dialring/internal/wire"
)

// hub holds the sessions of this node by user, in shards so that pushes to
// different users do not wait for each other.
type hub struct {
	seed     maphash.Seed
	shards   [128]shard
	sessions atomic.Int64

	mu      sync.Mutex
	closing map[*session]struct{} // left their user; their connection has not ended yet
}

type shard struct {
	mu    sync.RWMutex
	users map[string]*user
}

func newHub() *hub {
	h := &hub{seed: maphash.MakeSeed(), closing: map[*session]struct{}{}}
	for i := range h.shards {
		h.shards[i].users = map[string]*user{}
	}
	return h
}

func (h *hub) shardOf(id string) *shard {
	return &h.shards[maphash.String(h.seed, id)%uint64(len(h.shards))]
}

func (h *hub) shardOfBytes(id []byte) *shard {
	return &h.shards[maphash.Bytes(h.seed, id)%uint64(len(h.shards))]
}

// victim is a session that has to go for a new one.
type victim struct {
	s    *session
	code int
}

// add registers a session of its user and returns those that have to go for it,
// by the policies of the cluster; they have left the user already. A problem
// means that the new one is refused.
func (h *hub) add(s *session, cfg *Config) ([]victim, *wire.Problem) {
	sh := h.shardOf(s.user)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	u := sh.users[s.user]
	if u == nil {
		u = &user{id: s.user}
	}
	var out []victim
	stay := u.sessions
	if cfg.DevicePolicy != "allow" {
		if i := slices.IndexFunc(stay, func(o *session) bool { return o.device == s.device }); i >= 0 {
			if cfg.DevicePolicy == "reject" {
				return nil, wire.NewProblem(409, wire.CodeTooManySessions, "device %s of this user is connected already", s.device)
			}
			out = append(out, victim{stay[i], wire.CloseReplaced})
			stay = slices.Delete(slices.Clone(stay), i, i+1)
		}
	}
	if over := len(stay) + 1 - cfg.MaxSessionsPerUser; over > 0 {
		if cfg.SessionPolicy == "newest" {
			return nil, wire.NewProblem(409, wire.CodeTooManySessions, "this user has %d sessions, which is the limit", len(stay))
		}
		for _, o := range stay[:over] {
			out = append(out, victim{o, wire.CloseTooManySessions})
		}
		stay = stay[over:]
	}
	u.sessions = append(slices.Clone(stay), s)
	s.owner = u
	sh.users[s.user] = u
	h.sessions.Add(int64(1 - len(out)))
	return out, nil
}

// remove takes a session out of its user; a newer one of the same device is
// not touched.
func (h *hub) remove(s *session) {
	sh := h.shardOf(s.user)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	u := sh.users[s.user]
	if u == nil {
		return
	}
	i := slices.Index(u.sessions, s)
	if i < 0 {
		return
	}
	h.sessions.Add(-1)
	if len(u.sessions) == 1 {
		delete(sh.users, s.user)
		u.sessions = nil
		return
	}
	u.sessions = slices.Delete(slices.Clone(u.sessions), i, i+1)
}

// find returns a user who has sessions here, and them. The slice is never
// changed afterwards.
func (h *hub) find(id []byte) (*user, []*session) {
	sh := h.shardOfBytes(id)
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	u := sh.users[string(id)]
	if u == nil {
		return nil, nil
	}
	return u, u.sessions
}

// leaving and gone bracket the time from a session's close to the end of its
// connection.
func (h *hub) leaving(s *session) {
	h.mu.Lock()
	h.closing[s] = struct{}{}
	h.mu.Unlock()
}

func (h *hub) gone(s *session) {
	h.mu.Lock()
	delete(h.closing, s)
	h.mu.Unlock()
}

// eachLeaving calls f with every session that is between the two.
func (h *hub) eachLeaving(f func(*session)) {
	h.mu.Lock()
	all := slices.Collect(maps.Keys(h.closing))
	h.mu.Unlock()
	for _, s := range all {
		f(s)
	}
}

// each calls f with every session of a user, without holding a lock.
func (h *hub) each(f func(*session)) {
	var all []*session
	for i := range h.shards {
		sh := &h.shards[i]
		sh.mu.RLock()
		all = all[:0]
		for _, u := range sh.users {
			all = append(all, u.sessions...)
		}
		sh.mu.RUnlock()
		for _, s := range all {
			f(s)
		}
	}
}
