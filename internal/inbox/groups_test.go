package inbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// changes is a GroupStore in memory, whose readers may be behind.
type changes struct {
	mu     sync.Mutex
	pos    uint64
	all    []GroupChange // the newest of each user, in order
	behind uint64        // readers do not have the changes from here on; 0: they have all
	reads  int
}

func (c *changes) Change(_ context.Context, _ string, add, remove []string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, list := range [][]string{add, remove} {
		for _, u := range list {
			c.pos++
			c.all = slices.DeleteFunc(c.all, func(o GroupChange) bool { return o.User == u })
			c.all = append(c.all, GroupChange{c.pos, u, i == 0})
		}
	}
	return nil
}

func (c *changes) LastChange(context.Context, string) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.all) == 0 {
		return 0, nil
	}
	return c.all[len(c.all)-1].Pos, nil
}

func (c *changes) Changes(_ context.Context, _ string, pos uint64) (out []GroupChange, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reads++
	for _, o := range c.all {
		if o.Pos >= pos && len(out) < 2 && (c.behind == 0 || o.Pos < c.behind) {
			out = append(out, o)
		}
	}
	return out, nil
}

func wantMembers(t *testing.T, g *Groups, want ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if got, err := g.Members(ctx, "g"); err != nil || !slices.Equal(got, want) {
		t.Errorf("the members are %v, %v, want %v", got, err, want)
	}
}

func TestGroups(t *testing.T) {
	ctx := t.Context()
	s := &changes{}
	a, b := &Groups{Store: s}, &Groups{Store: s} // two nodes
	wantMembers(t, a)
	if err := a.Change(ctx, "g", []string{"u3", "u1", "u2", "u1"}, nil); err != nil {
		t.Fatal(err)
	}
	wantMembers(t, a, "u1", "u2", "u3")
	wantMembers(t, b, "u1", "u2", "u3")
	if err := b.Change(ctx, "g", []string{"u4"}, []string{"u1"}); err != nil {
		t.Fatal(err)
	}
	wantMembers(t, a, "u2", "u3", "u4") // what another node changed
	before := s.reads
	wantMembers(t, a, "u2", "u3", "u4")
	if s.reads != before {
		t.Error("a group that did not change is read again")
	}
	// The store was made anew, and has fewer changes than were read.
	s.all, s.pos = nil, 0
	wantMembers(t, a)
	if err := a.Change(ctx, "g", []string{"new"}, nil); err != nil {
		t.Fatal(err)
	}
	wantMembers(t, a, "new")
	b.Forget() // as it does when NATS is back
	wantMembers(t, b, "new")
}

// A server that is behind the leader is waited for, and not taken at its word.
func TestGroupsOfServerThatIsBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &changes{behind: 3}
		g := &Groups{Store: s}
		if err := s.Change(t.Context(), "g", []string{"u1", "u2", "u3"}, nil); err != nil {
			t.Fatal(err)
		}
		go func() {
			time.Sleep(10 * time.Second)
			s.mu.Lock()
			s.behind = 0
			s.mu.Unlock()
		}()
		wantMembers(t, g, "u1", "u2", "u3")
		s.mu.Lock()
		s.behind = 4
		s.mu.Unlock()
		if err := s.Change(t.Context(), "g", nil, []string{"u1"}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if got, err := g.Members(ctx, "g"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without the newest change: %v, %v", got, err)
		}
	})
}

// A node remembers so many members, and forgets the groups that it used longest ago.
func TestGroupsForgotten(t *testing.T) {
	s := &changes{}
	g := &Groups{Store: s}
	for i := range 3 {
		e := g.get(fmt.Sprint("g", i))
		g.mu.Lock()
		e.used = time.Now().Add(time.Duration(i-10) * time.Minute)
		g.mu.Unlock()
		g.sized(e, keptMembers/2-1000)
	}
	if len(g.groups) != 2 || g.groups["g0"] != nil {
		t.Errorf("%d groups are remembered: %v", len(g.groups), g.groups)
	}
	old := g.get("g1")
	g.mu.Lock()
	old.used = time.Now().Add(-removedFor)
	g.mu.Unlock()
	if g.get("g1") == old {
		t.Error("what was not used for as long as removals are kept is used as it is")
	}
}

// A group does not grow beyond its limit.
func TestGroupFull(t *testing.T) {
	s := &changes{}
	g := &Groups{Store: s}
	e := g.get("g")
	for i := range MaxMembers - 1 {
		e.members[fmt.Sprint(i)] = struct{}{}
	}
	if err := g.Change(t.Context(), "g", []string{"0", "one more"}, nil); err != nil {
		t.Errorf("the last one that fits: %v", err)
	}
	if err := g.Change(t.Context(), "g", []string{"one more", "two more"}, nil); !errors.Is(err, ErrGroupFull) {
		t.Errorf("beyond the limit: %v", err)
	}
}

// The same with JetStream: ids of any bytes, many changes, a node that starts later.
func TestGroupsInJetStream(t *testing.T) {
	s := newJetStream(t, startNATS(t), suiteLimits)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	g := &Groups{Store: s}
	var add []string
	for i := range 2000 {
		add = append(add, fmt.Sprintf("u%04d", i))
	}
	odd := []string{"*", ">", "a.b", "a b", "日本"}
	for _, group := range []string{"g", "*", "g.h"} {
		if err := g.Change(ctx, group, append(slices.Clone(add), odd...), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Change(ctx, "g", nil, add[1:]); err != nil {
		t.Fatal(err)
	}
	for name, g := range map[string]*Groups{"this node": g, "another": {Store: s}} {
		want := append([]string{"u0000"}, odd...)
		slices.Sort(want)
		if got, err := g.Members(ctx, "g"); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		if got, err := g.Members(ctx, "g.h"); err != nil || len(got) != 2005 {
			t.Errorf("%s: %d members of another group, %v", name, len(got), err)
		}
		if got, err := g.Members(ctx, "none"); err != nil || len(got) != 0 {
			t.Errorf("%s: %v of a group that is not there, %v", name, got, err)
		}
	}
}

// A member who was not read yet is added again while the group is read: the change moves
// behind the end that the reader saw, and is read all the same.
func TestGroupChangedWhileItIsRead(t *testing.T) {
	s := &changes{}
	if err := s.Change(t.Context(), "g", []string{"u1", "u2", "u3", "u4"}, nil); err != nil {
		t.Fatal(err)
	}
	again := true
	g := &Groups{Store: duringRead{s, func() {
		if again {
			again = false
			_ = s.Change(t.Context(), "g", []string{"u3"}, nil)
		}
	}}}
	wantMembers(t, g, "u1", "u2", "u3", "u4")
}

type duringRead struct {
	*changes
	f func()
}

func (d duringRead) Changes(ctx context.Context, group string, pos uint64) ([]GroupChange, error) {
	defer d.f()
	return d.changes.Changes(ctx, group, pos)
}

// A group that is not read to its end in time says so, and the next call goes on.
func TestGroupReadInParts(t *testing.T) {
	s := &changes{}
	if err := s.Change(t.Context(), "g", []string{"u1", "u2", "u3", "u4", "u5"}, nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	fails := errors.New("it took too long")
	g := &Groups{Store: failing{s, ctx, fails}}
	s.mu.Lock()
	s.reads = 0
	s.mu.Unlock()
	if _, err := g.Members(t.Context(), "g"); !errors.Is(err, ErrReading) || !errors.Is(err, fails) {
		t.Errorf("the first call: %v", err)
	}
	cancel()
	wantMembers(t, g, "u1", "u2", "u3", "u4", "u5")
	if s.reads > 4 {
		t.Errorf("%d reads: it began anew", s.reads)
	}
}

// failing fails from its second read on, until ctx ends.
type failing struct {
	*changes
	ctx context.Context
	err error
}

func (f failing) Changes(ctx context.Context, group string, pos uint64) ([]GroupChange, error) {
	if pos > 1 && f.ctx.Err() == nil {
		return nil, f.err
	}
	return f.changes.Changes(ctx, group, pos)
}

// Groups that are only changed count, too.
func TestGroupsOnlyChanged(t *testing.T) {
	s := &changes{}
	g := &Groups{Store: s}
	if err := g.Change(t.Context(), "g", []string{"u1"}, nil); err != nil {
		t.Fatal(err)
	}
	if g.groups["g"].size == 0 {
		t.Error("it counts for nothing")
	}
	old := g.groups["g"]
	old.used = time.Now().Add(-removedFor)
	if err := g.Change(t.Context(), "h", []string{"u1"}, nil); err != nil {
		t.Fatal(err)
	}
	if g.groups["g"] != nil {
		t.Error("what was not used for long is remembered")
	}
}
