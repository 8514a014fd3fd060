package wsnode

import (
	"hash/maphash"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// hub holds the sessions of this node by user, in shards so that pushes to
// different users do not wait for each other.
type hub struct {
	seed     maphash.Seed
	shards   [128]shard
	sessions atomic.Int64
	presence *presence

	mu      sync.Mutex
	closing map[*session]struct{} // left their user; their connection has not ended yet
}

type shard struct {
	mu    sync.RWMutex
	users map[string]*user
}

func newHub(p *presence) *hub {
	h := &hub{presence: p, seed: maphash.MakeSeed(), closing: map[*session]struct{}{}}
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
	s    *session // nil: it is at a former owner of the user, by the id
	id   string
	code int
}

// rival is a session of a user beside the one that is added.
type rival struct {
	local *session // nil: at a former owner of the user
	id    string
	at    time.Time
	dev   string
}

// add registers a session of its user and returns those that have to go for it,
// by the policies of the cluster; those that are here have left the user
// already. elsewhere are the user's sessions at former owners. A problem means
// that the new one is refused. A session that moved here is no new login: it is
// never refused, and of two with one device the one that connected first goes,
// which may be itself.
func (h *hub) add(s *session, cfg *Config, elsewhere []wire.Session) ([]victim, *wire.Problem) {
	sh := h.shardOf(s.user)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	u := sh.users[s.user]
	if u == nil {
		u = &user{id: s.user}
	}
	var rivals []rival
	for _, o := range u.sessions {
		if o.id != s.id && !o.old.Load() {
			rivals = append(rivals, rival{o, o.id, o.connectedAt, o.device})
		}
	}
	// Of a device that has come here by a login of its own, what a former owner still
	// lists is being replaced: counted too, it would cost another device its place.
	cameAgain := func(o wire.Session) bool {
		return cfg.DevicePolicy != "allow" && o.Device != s.device &&
			slices.ContainsFunc(rivals, func(r rival) bool { return r.local != nil && r.dev == o.Device })
	}
	for _, o := range elsewhere {
		if o.ID != s.id && !cameAgain(o) && !slices.ContainsFunc(rivals, func(r rival) bool { return r.id == o.ID }) {
			rivals = append(rivals, rival{nil, o.ID, o.ConnectedAt, o.Device})
		}
	}
	var out []victim
	gone := func(r rival) bool { return slices.ContainsFunc(out, func(v victim) bool { return v.id == r.id }) }
	goes := func(r rival, code int) {
		if !gone(r) {
			out = append(out, victim{r.local, r.id, code})
		}
	}
	self := rival{s, s.id, s.connectedAt, s.device}
	if cfg.DevicePolicy != "allow" {
		for _, r := range rivals {
			switch {
			case r.dev != s.device:
			case s.moved && r.at.After(s.connectedAt):
				goes(self, wire.CloseReplaced)
			case cfg.DevicePolicy == "reject" && !s.moved:
				return nil, wire.NewProblem(409, wire.CodeTooManySessions, "device %s of this user is connected already", s.device)
			default:
				goes(r, wire.CloseReplaced)
			}
		}
	}
	first := len(rivals) == 0 && len(u.sessions) == 0
	rivals = slices.DeleteFunc(rivals, gone)
	if over := len(rivals) + 1 - cfg.MaxSessionsPerUser; over > 0 && !gone(self) {
		if cfg.SessionPolicy == "newest" && !s.moved {
			return nil, wire.NewProblem(409, wire.CodeTooManySessions, "this user has %d sessions, which is the limit", len(rivals))
		}
		rivals = append(rivals, self)
		slices.SortStableFunc(rivals, func(a, b rival) int { return a.at.Compare(b.at) })
		for _, r := range rivals[:over] {
			goes(r, wire.CloseTooManySessions)
		}
	}
	// A session goes with the connection that it is about to leave.
	for _, v := range out {
		for _, o := range u.sessions {
			if o.id == v.id && o != v.s {
				out = append(out, victim{o, o.id, v.code})
			}
		}
		if v.s != nil && v.s != s && slices.ContainsFunc(elsewhere, func(o wire.Session) bool { return o.ID == v.id }) {
			out = append(out, victim{nil, v.id, v.code})
		}
	}
	stay := slices.Clone(u.sessions)
	for _, o := range stay {
		if o.id == s.id { // the same session, on the connection that it is about to leave
			o.old.Store(true)
		}
	}
	for _, v := range out {
		if i := slices.Index(stay, v.s); v.s != nil && i >= 0 {
			stay = slices.Delete(stay, i, i+1)
			h.sessions.Add(-1)
		}
	}
	u.sessions = append(stay, s)
	s.owner = u
	sh.users[s.user] = u
	h.sessions.Add(1)
	h.presence.arrived(s.user, first, s.moved && !s.stray)
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
		h.presence.emptied(s.user)
		return
	}
	u.sessions = slices.Delete(slices.Clone(u.sessions), i, i+1)
	if !s.old.Load() {
		for _, o := range slices.Backward(u.sessions) {
			if o.id == s.id { // its connection before that, which goes on alone
				o.old.Store(false)
				break
			}
		}
	}
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

// withUser calls f with a user's sessions, while none comes or goes.
func (h *hub) withUser(id string, f func(sessions []*session)) {
	sh := h.shardOf(id)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	var sessions []*session
	if u := sh.users[id]; u != nil {
		sessions = u.sessions
	}
	f(sessions)
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
	h.eachUser(func(_ *user, sessions []*session) {
		for _, s := range sessions {
			f(s)
		}
	})
}

// eachUser calls f with every user and their sessions, without holding a lock.
func (h *hub) eachUser(f func(u *user, sessions []*session)) {
	type entry struct {
		u        *user
		sessions []*session
	}
	var all []entry
	for i := range h.shards {
		sh := &h.shards[i]
		sh.mu.RLock()
		all = all[:0]
		for _, u := range sh.users {
			all = append(all, entry{u, u.sessions})
		}
		sh.mu.RUnlock()
		for _, e := range all {
			f(e.u, e.sessions)
		}
	}
}
