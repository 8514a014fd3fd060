package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// memory stands in for NATS, without I/O: with testing/synctest the time of
// all that talks over it can be made up. Each is one participant's connection.
type memory struct {
	srv     *memoryServer
	cluster string
	cut     bool // this connection is away, the server is not
	onUp    []func()
}

// memoryServer is what the connections have in common; its lock is for them, too.
type memoryServer struct {
	lag    time.Duration // of each call to the store; two calls may overlap
	stored func(cluster, bucket, key string, b []byte)

	conflicts atomic.Int64

	mu      sync.Mutex
	off     bool
	conns   []*memory
	subs    []*memorySub
	rev     uint64
	buckets map[string]map[string]memoryValue
}

type memoryValue struct {
	b   []byte
	rev uint64
}

type memorySub struct {
	conn    *memory
	subject string
	wake    *sync.Cond
	queue   []memoryMsg
	ended   bool
}

type memoryMsg struct {
	subject string
	b       []byte
}

var errMemoryDown = errors.New("memory: not connected")

func newMemoryServer() *memoryServer {
	return &memoryServer{buckets: map[string]map[string]memoryValue{}}
}

func (s *memoryServer) connect(cluster string) *memory {
	m := &memory{srv: s, cluster: cluster}
	s.mu.Lock()
	s.conns = append(s.conns, m)
	s.mu.Unlock()
	return m
}

// set changes who is connected, and tells those who are again.
func (s *memoryServer) set(change func()) {
	var again []func()
	s.mu.Lock()
	var before []bool
	for _, m := range s.conns {
		before = append(before, m.upLocked())
	}
	change()
	for i, m := range s.conns {
		if m.upLocked() && !before[i] {
			again = append(again, m.onUp...)
		}
	}
	s.mu.Unlock()
	for _, f := range again {
		f()
	}
}

func (s *memoryServer) down() { s.set(func() { s.off = true }) }
func (s *memoryServer) up()   { s.set(func() { s.off = false }) }
func (m *memory) down()       { m.srv.set(func() { m.cut = true }) }
func (m *memory) up()         { m.srv.set(func() { m.cut = false }) }

func (m *memory) upLocked() bool { return !m.srv.off && !m.cut }

func (m *memory) Up() bool {
	m.srv.mu.Lock()
	defer m.srv.mu.Unlock()
	return m.upLocked()
}

func (m *memory) OnUp(f func()) {
	m.srv.mu.Lock()
	m.onUp = append(m.onUp, f)
	up := m.upLocked()
	m.srv.mu.Unlock()
	if up {
		f()
	}
}

func (m *memory) clusterName() string  { return m.cluster }
func (m *memory) identity() Identity   { return Identity{} }
func (m *memory) logger() *slog.Logger { return quiet }

func (m *memory) publish(subject string, b []byte) {
	m.srv.mu.Lock()
	defer m.srv.mu.Unlock()
	if !m.upLocked() {
		return
	}
	for _, s := range m.srv.subs {
		if s.conn.cluster == m.cluster && s.conn.upLocked() && subjectMatches(s.subject, subject) {
			s.queue = append(s.queue, memoryMsg{subject, slices.Clone(b)})
			s.wake.Signal()
		}
	}
}

func subjectMatches(pattern, subject string) bool {
	if prefix, any := strings.CutSuffix(pattern, "*"); any {
		rest, ok := strings.CutPrefix(subject, prefix)
		return ok && rest != "" && !strings.Contains(rest, ".")
	}
	return pattern == subject
}

func (m *memory) subscribe(ctx context.Context, subject string, f func(subject string, b []byte)) error {
	s := &memorySub{conn: m, subject: subject, wake: sync.NewCond(&m.srv.mu)}
	m.srv.mu.Lock()
	m.srv.subs = append(m.srv.subs, s)
	m.srv.mu.Unlock()
	context.AfterFunc(ctx, func() {
		m.srv.mu.Lock()
		defer m.srv.mu.Unlock()
		s.ended = true
		m.srv.subs = slices.DeleteFunc(m.srv.subs, func(x *memorySub) bool { return x == s })
		s.wake.Signal()
	})
	go func() {
		for {
			m.srv.mu.Lock()
			for len(s.queue) == 0 && !s.ended {
				s.wake.Wait()
			}
			if s.ended {
				m.srv.mu.Unlock()
				return
			}
			msg := s.queue[0]
			s.queue = s.queue[1:]
			m.srv.mu.Unlock()
			f(msg.subject, msg.b)
		}
	}()
	return nil
}

func (m *memory) get(ctx context.Context, bucket, key string) ([]byte, uint64, error) {
	if err := m.wait(ctx); err != nil {
		return nil, 0, err
	}
	m.srv.mu.Lock()
	defer m.srv.mu.Unlock()
	if !m.upLocked() {
		return nil, 0, errMemoryDown
	}
	kv, ok := m.srv.buckets[m.cluster+"_"+bucket]
	if !ok {
		return nil, 0, errNoBucket
	}
	v, ok := kv[key]
	if !ok {
		return nil, 0, errNoKey
	}
	return slices.Clone(v.b), v.rev, nil
}

func (m *memory) latest(ctx context.Context, bucket, key string) ([]byte, uint64, error) {
	return m.get(ctx, bucket, key)
}

func (m *memory) put(ctx context.Context, bucket, key string, b []byte, rev uint64) error {
	if err := m.wait(ctx); err != nil {
		return err
	}
	m.srv.mu.Lock()
	defer m.srv.mu.Unlock()
	if !m.upLocked() {
		return errMemoryDown
	}
	full := m.cluster + "_" + bucket
	kv := m.srv.buckets[full]
	if kv == nil {
		kv = map[string]memoryValue{}
		m.srv.buckets[full] = kv
	}
	if rev != anyRevision && kv[key].rev != rev {
		m.srv.conflicts.Add(1)
		return errConflict
	}
	m.srv.rev++
	kv[key] = memoryValue{slices.Clone(b), m.srv.rev}
	if m.srv.stored != nil {
		m.srv.stored(m.cluster, bucket, key, kv[key].b)
	}
	return nil
}

func (m *memory) wait(ctx context.Context) error {
	if m.srv.lag == 0 {
		return ctx.Err()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(m.srv.lag):
		return nil
	}
}

func TestMemoryBus(t *testing.T) {
	testBus(t, func(*testing.T) (a, b Bus, down, up func()) {
		s := newMemoryServer()
		return s.connect("c"), s.connect("c"), s.down, s.up
	})
}

func TestConnBus(t *testing.T) {
	testBus(t, func(t *testing.T) (a, b Bus, down, up func()) {
		dir := t.TempDir()
		s := startNATS(t, dir, "127.0.0.1:0")
		addr := s.Addr()
		x, y := dial(t, s, "c"), dial(t, s, "c")
		down = func() {
			s.Stop()
			eventually(t, "lost connections", func() bool { return !x.Up() && !y.Up() })
		}
		up = func() {
			s = startNATS(t, dir, addr)
			eventually(t, "connections", func() bool { return x.Up() && y.Up() })
		}
		return x, y, down, up
	})
}

// Beside the server: what a memory is told, one participant alone is.
func TestMemoryCut(t *testing.T) {
	s := newMemoryServer()
	a, b, c := s.connect("c"), s.connect("c"), s.connect("c")
	atB, atC := inbox(t, b, "ring"), inbox(t, c, "ring")
	var ups atomic.Int32
	b.OnUp(func() { ups.Add(1) })
	b.down()
	if !a.Up() || b.Up() || !c.Up() {
		t.Error("not b alone is away")
	}
	a.publish("ring", []byte("1"))
	b.publish("ring", []byte("2"))
	if err := b.put(t.Context(), bucketRing, "k", nil, anyRevision); err == nil {
		t.Error("b wrote")
	}
	s.up() // it was never down
	b.up()
	a.publish("ring", []byte("3"))
	wantNext(t, atB, "ring=3")
	wantNext(t, atC, "ring=1", "ring=3")
	if n := ups.Load(); n != 2 {
		t.Errorf("told %d times that it is up, want 2", n)
	}
}

// inbox subscribes and returns what comes, as "subject=body". The server knows
// of it when this returns.
func inbox(t *testing.T, b Bus, subject string) <-chan string {
	t.Helper()
	c, _ := inboxUntil(t, t.Context(), b, subject)
	return c
}

func inboxUntil(t *testing.T, ctx context.Context, b Bus, subject string) (<-chan string, *atomic.Int32) {
	t.Helper()
	c, n, busy := make(chan string, 10_000), new(atomic.Int32), new(atomic.Bool)
	err := b.subscribe(ctx, subject, func(subject string, body []byte) {
		if !busy.CompareAndSwap(false, true) {
			t.Error("two messages at once")
		}
		n.Add(1)
		c <- subject + "=" + string(body)
		busy.Store(false)
	})
	if err != nil {
		t.Fatal(err)
	}
	flush(t, b)
	return c, n
}

// flush waits until the server has seen all that b did.
func flush(t *testing.T, b Bus) {
	t.Helper()
	if c, real := b.(*Conn); real {
		if err := c.nc.FlushTimeout(patience); err != nil {
			t.Fatal(err)
		}
	}
}

func wantNext(t *testing.T, c <-chan string, want ...string) {
	t.Helper()
	for _, w := range want {
		if got := await(t, fmt.Sprintf("message %q", w), c); got != w {
			t.Fatalf("got %q, want %q", got, w)
		}
	}
}
