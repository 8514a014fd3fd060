package inbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/dialring/dialring/internal/wire"
)

// Groups of users, which services keep by name. A group is the messages below one
// subject of the stream <cluster>_groups, one for each user who is or was a member, of
// which the newest counts:
//
//	<cluster>.group.<group, encoded>.<user, encoded>
//
// The node that owns a group keeps its members in memory, and before it uses them reads
// what was added to the stream since: so every change that was answered is seen,
// whichever node wrote it.
const (
	groupAdd    = "+"
	groupRemove = "-"
	// removedFor is how long it is kept that a user is no member any more; members that
	// were not used for half of that are read anew.
	removedFor = 24 * time.Hour
	// MaxMembers of a group.
	MaxMembers = wire.MaxMembers
	// keptMembers bounds what a node remembers of all groups.
	keptMembers = 2 * MaxMembers
)

// GroupStore keeps the changes of groups.
type GroupStore interface {
	// Change stores that users are members, or are not any more. What it returns an
	// error for may be stored in part.
	Change(ctx context.Context, group string, add, remove []string) error
	// LastChange returns where the newest change of a group lies, 0 if there is none: what
	// the store holds now.
	LastChange(ctx context.Context, group string) (uint64, error)
	// Changes returns changes of a group from pos on, in order, at least one if there is
	// one. It may not know the newest ones yet.
	Changes(ctx context.Context, group string, pos uint64) ([]GroupChange, error)
}

// GroupChange is one change of a group.
type GroupChange struct {
	Pos    uint64
	User   string
	Member bool
}

func (s *JetStream) groups() string { return s.o.Cluster + "_groups" }

func (s *JetStream) groupSubject(group, user string) string {
	return s.o.Cluster + ".group." + encode(group) + "." + user
}

func (s *JetStream) groupConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{Name: s.groups(), Description: "dialring: members of groups", Subjects: []string{s.o.Cluster + ".group.*.*"},
		Storage: jetstream.FileStorage, Replicas: s.replicas(), AllowDirect: true, AllowMsgTTL: true, MaxMsgsPerSubject: 1, Duplicates: time.Second}
}

// Change implements GroupStore. Changes of one call share round trips and syncs.
func (s *JetStream) Change(ctx context.Context, group string, add, remove []string) error {
	if _, _, _, err := s.place(ctx, ""); err != nil {
		return err
	}
	end, ok := ctx.Deadline()
	if !ok {
		return errors.New("a change of a group has a deadline")
	}
	done := make(chan error, len(add)+len(remove))
	change := func(users []string, id, ttl string) {
		for _, u := range users {
			e := Entry{ID: id, From: u, Time: time.Now()}
			s.acks.add(&waiting{message: message{subject: s.groupSubject(group, encode(u)), meta: e.Meta(), expect: anySequence, ttl: ttl},
				deadline: end, stream: s.groups(), done: func(_ uint64, _ bool, err error) { done <- err }})
		}
	}
	s.Together(func() {
		change(add, groupAdd, "")
		change(remove, groupRemove, removedFor.String())
	})
	var failed error
	for range cap(done) {
		if err := <-done; err != nil && failed == nil {
			failed = err
		}
	}
	return failed
}

// LastChange implements GroupStore.
func (s *JetStream) LastChange(ctx context.Context, group string) (uint64, error) {
	_, _, leaderOnly, err := s.place(ctx, "")
	if err != nil {
		return 0, err
	}
	e, err := s.get(ctx, s.groups(), leaderOnly, fmt.Appendf(nil, `{"last_by_subj":%q}`, s.groupSubject(group, "*")))
	if errors.Is(err, ErrNone) {
		return 0, nil
	}
	return e.Pos, err
}

// A read of many changes: for each one the server counts what is left, which in a large
// group takes as long as reading thousands.
const (
	groupChanges = 16_384
	groupBytes   = 4 << 20
)

// Changes implements GroupStore.
func (s *JetStream) Changes(ctx context.Context, group string, pos uint64) ([]GroupChange, error) {
	if _, _, _, err := s.place(ctx, ""); err != nil {
		return nil, err
	}
	l, err := s.readFrom(ctx, s.groups(), s.groupSubject(group, "*"), pos, groupChanges, groupBytes)
	out := make([]GroupChange, len(l))
	for i, e := range l {
		if e.sealed.key != "" { // only what messages carry is sealed
			return nil, errMeta
		}
		out[i] = GroupChange{e.Pos, e.From, e.ID == groupAdd}
	}
	return out, err
}

// Groups are the members of groups that a node has read. All methods may be called
// concurrently.
type Groups struct {
	Store GroupStore

	mu     sync.Mutex
	groups map[string]*Group
}

// Group is what is known of one.
type Group struct {
	mu      sync.Mutex // held while it is read
	pos     uint64     // read up to here
	members map[string]struct{}
	sorted  []string // members, if they were sorted since they last changed

	used time.Time // guarded by Groups
	size int       // the same
}

// Members returns the members of a group as the store has them now, sorted. The slice
// must not be changed.
func (g *Groups) Members(ctx context.Context, group string) ([]string, error) {
	e := g.get(group)
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.read(ctx, g.Store, group); err != nil {
		return nil, err
	}
	if e.sorted == nil {
		e.sorted = make([]string, 0, len(e.members))
		for u := range e.members {
			e.sorted = append(e.sorted, u)
		}
		slices.Sort(e.sorted)
	}
	g.sized(e, len(e.members))
	return e.sorted, nil
}

// Change changes a group. ErrGroupFull: it would have more than MaxMembers.
func (g *Groups) Change(ctx context.Context, group string, add, remove []string) error {
	if len(add) > 0 {
		e := g.get(group)
		e.mu.Lock()
		err := e.read(ctx, g.Store, group)
		n := len(e.members)
		added := map[string]struct{}{}
		for _, u := range add {
			if _, in := e.members[u]; !in {
				added[u] = struct{}{}
			}
		}
		e.mu.Unlock()
		g.sized(e, n)
		if err != nil {
			return err
		}
		if n+len(added) > MaxMembers {
			return ErrGroupFull
		}
	}
	return g.Store.Change(ctx, group, add, remove)
}

// ErrGroupFull means that a group has as many members as it may have.
var ErrGroupFull = errors.New("the group is full")

// get returns what is known of a group; what was not used for long is forgotten.
func (g *Groups) get(group string) *Group {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	e := g.groups[group]
	if e == nil || now.Sub(e.used) > removedFor/2 {
		if g.groups == nil {
			g.groups = map[string]*Group{}
		}
		e = &Group{members: map[string]struct{}{}}
		g.groups[group] = e
	}
	e.used = now
	return e
}

// Forget has all groups read anew.
func (g *Groups) Forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.groups = nil
}

// sized notes how large a group is, and forgets those that were not used for longest
// until all fit.
func (g *Groups) sized(e *Group, n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	e.size = n + 100 // a group itself costs something
	for name, o := range g.groups {
		if o != e && time.Since(o.used) > removedFor/2 {
			delete(g.groups, name)
		}
	}
	for {
		sum, oldest := 0, ""
		for name, o := range g.groups {
			sum += o.size
			if o != e && (oldest == "" || o.used.Before(g.groups[oldest].used)) {
				oldest = name
			}
		}
		if sum <= keptMembers || oldest == "" {
			return
		}
		delete(g.groups, oldest)
	}
}

// ErrReading means that a group is read, and not read to its end yet: the next call goes
// on.
var ErrReading = errors.New("the members of the group are still being read")

// read takes what was changed since. Its end is where the store has nothing newer: a
// change of a member who was not read yet moves that behind the end that there was.
func (e *Group) read(ctx context.Context, s GroupStore, group string) error {
	for began := e.pos; ; {
		last, err := s.LastChange(ctx, group)
		if err == nil && last == e.pos {
			return nil
		}
		if err == nil && last < e.pos { // the store lost data, or the newest change was a removal whose time is over
			e.pos, e.members, e.sorted = 0, map[string]struct{}{}, nil
		}
		for err == nil && e.pos < last {
			var l []GroupChange
			l, err = s.Changes(ctx, group, e.pos+1)
			for _, c := range l {
				if e.pos = c.Pos; c.Member {
					e.members[c.User] = struct{}{}
				} else {
					delete(e.members, c.User)
				}
				e.sorted = nil
			}
			if err == nil && len(l) == 0 && !sleep(ctx, pause) { // a server that is behind
				err = ctx.Err()
			}
		}
		switch {
		case err != nil && e.pos > began:
			return errors.Join(ErrReading, err)
		case err != nil:
			return err
		}
	}
}
