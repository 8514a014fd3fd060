package inbox

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Memory is a Store in memory: for tests, and for time that is made up. It
// forgets everything with the process.
type Memory struct {
	limits Limits

	mu        sync.Mutex
	pos       uint64
	logs      map[string][]Entry
	keys      map[string]memoryKey
	positions map[[2]string]memoryPosition
	rev       uint64
	fail      error
}

type memoryKey struct {
	pos uint64
	at  time.Time
}

type memoryPosition struct {
	c   Cursor
	rev uint64
}

// NewMemory makes an empty store.
func NewMemory(l Limits) *Memory {
	return &Memory{limits: l, logs: map[string][]Entry{}, keys: map[string]memoryKey{}, positions: map[[2]string]memoryPosition{}}
}

// Fail has all calls fail with err from now on; nil ends that.
func (m *Memory) Fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

// enter takes the lock, drops what is too old, and tells whether calls fail.
func (m *Memory) enter(ctx context.Context, user string) error {
	m.mu.Lock()
	if err := ctx.Err(); err != nil {
		return err
	}
	now := time.Now()
	if l := m.logs[user]; m.limits.Age > 0 {
		m.logs[user] = slices.DeleteFunc(l, func(e Entry) bool { return now.Sub(e.Time) >= m.limits.Age })
	}
	return m.fail
}

// Append implements Store.
func (m *Memory) Append(ctx context.Context, user string, e *Entry, key string, expect uint64) (uint64, bool, error) {
	err := m.enter(ctx, user)
	defer m.mu.Unlock()
	if err != nil {
		return 0, false, err
	}
	l := m.logs[user]
	last := uint64(0)
	if len(l) > 0 {
		last = l[len(l)-1].Pos
	}
	if last != expect {
		return 0, false, ErrConflict
	}
	if k, ok := m.keys[key]; ok && time.Since(k.at) < m.limits.Window {
		return k.pos, true, nil
	}
	m.pos++
	c := *e
	c.Pos, c.Body = m.pos, slices.Clone(e.Body)
	l = append(l, c)
	if over := len(l) - m.limits.Messages; m.limits.Messages > 0 && over > 0 {
		l = slices.Delete(l, 0, over)
	}
	m.logs[user] = l
	m.keys[key] = memoryKey{m.pos, time.Now()}
	return m.pos, false, nil
}

// Last implements Store.
func (m *Memory) Last(ctx context.Context, user string) (Entry, error) {
	err := m.enter(ctx, user)
	defer m.mu.Unlock()
	if err != nil {
		return Entry{}, err
	}
	if l := m.logs[user]; len(l) > 0 {
		return l[len(l)-1], nil
	}
	return Entry{}, ErrNone
}

// At implements Store.
func (m *Memory) At(ctx context.Context, user string, pos uint64) (Entry, error) {
	err := m.enter(ctx, user)
	defer m.mu.Unlock()
	if err != nil {
		return Entry{}, err
	}
	for _, e := range m.logs[user] {
		if e.Pos == pos {
			return e, nil
		}
	}
	return Entry{}, ErrNone
}

// Read implements Store.
func (m *Memory) Read(ctx context.Context, user string, pos uint64) ([]Entry, error) {
	err := m.enter(ctx, user)
	defer m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	var out []Entry
	bytes := 0
	for _, e := range m.logs[user] {
		if e.Pos < pos {
			continue
		}
		if bytes += len(e.Body); len(out) > 0 && (bytes > Chunk || len(out) == chunkMessages) {
			break
		}
		out = append(out, e)
	}
	return out, nil
}

// Position implements Store.
func (m *Memory) Position(ctx context.Context, user, device string) (Cursor, uint64, error) {
	err := m.enter(ctx, user)
	defer m.mu.Unlock()
	if err != nil {
		return Cursor{}, 0, err
	}
	p, ok := m.positions[[2]string{user, device}]
	if !ok {
		return Cursor{}, 0, ErrNone
	}
	return p.c, p.rev, nil
}

// SetPosition implements Store.
func (m *Memory) SetPosition(ctx context.Context, user, device string, c Cursor, rev uint64) (uint64, error) {
	err := m.enter(ctx, user)
	defer m.mu.Unlock()
	if err != nil {
		return 0, err
	}
	k := [2]string{user, device}
	if m.positions[k].rev != rev {
		return 0, ErrConflict
	}
	m.rev++
	m.positions[k] = memoryPosition{c, m.rev}
	return m.rev, nil
}

// Check implements Store.
func (m *Memory) Check(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.fail
}
