package inbox

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
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// owned makes the logs of a node that owns everybody by ring, which the test may
// change, and hands what is delivered to got.
func owned(s Store, ring *atomic.Int64, got func(e *Entry, p *Push)) *Logs {
	return &Logs{Store: s, Log: slog.New(slog.DiscardHandler), Age: time.Hour,
		Owner:   func(string) (any, bool) { return ring.Load(), true },
		Ring:    func() any { return ring.Load() },
		Deliver: func(_ *Log, e *Entry, p *Push) { got(e, p) },
		Behind:  func(*Log) {}, Lost: func(*Log) {}, Late: func(string) {}, First: func(*Log, Cursor) {}, Taken: func(string, any) {}}
}

// answer is how a push ended.
type answer struct {
	seq    uint64
	repeat bool
	err    error
}

// send pushes and waits for the answer.
func send(l *Logs, user, id, key, body string) answer {
	return sendAs(l, user, id, Key(user, key, id), body)
}

// sendAs pushes with what the store compares.
func sendAs(l *Logs, user, id, key, body string) answer {
	out := make(chan answer, 1)
	l.Append(user, &Push{ID: id, Key: key, Body: []byte(body), Deadline: time.Now().Add(2 * time.Second), Context: out,
		Fail: func(err error) { out <- answer{err: err} },
		Repeat: func(_ *Log, first *Entry) {
			a := answer{repeat: true}
			if first != nil {
				a.seq = first.Seq
			}
			out <- a
		}})
	return <-out
}

func deliver(e *Entry, p *Push) { p.Context.(chan answer) <- answer{seq: e.Seq} }

// A service pushes with keys to a store that loses answers, and repeats what was
// not answered: whatever happens, each key is one message, the repeat says which,
// and the log counts without holes.
func TestLogUnderFaults(t *testing.T) { bothWays(t, logUnderFaults) }

func logUnderFaults(t *testing.T, as func(Store) Store) {
	rapid.Check(t, func(rt *rapid.T) {
		synctest.Test(t, func(*testing.T) {
			faults := rapid.SliceOfN(rapid.SampledFrom([]fault{noFault, noFault, before_, after}), 1, 40).Draw(rt, "faults")
			n := 0
			m := NewMemory(Limits{Messages: 1000, Age: time.Hour, Window: time.Hour})
			f := &faulty{Store: m, next: func() fault {
				if n++; n > len(faults) {
					return noFault
				}
				return faults[n-1]
			}}
			var ring atomic.Int64
			l := owned(as(f), &ring, deliver)
			defer l.Wait()
			at := map[string]uint64{} // by key
			for i := range rapid.IntRange(1, 12).Draw(rt, "pushes") {
				key := fmt.Sprint("k", rapid.IntRange(0, 5).Draw(rt, "key"))
				if rapid.Bool().Draw(rt, "ring changes") {
					ring.Store(int64(i))
				}
				for try := 0; ; try++ {
					a := send(l, "alice", fmt.Sprintf("id-%d-%d", i, try), key, "body of "+key)
					if a.err != nil {
						if !errors.Is(a.err, ErrUnavailable) {
							rt.Fatalf("push %d: %v", i, a.err)
						}
						continue // the service repeats it
					}
					if was := at[key]; was != 0 && (a.seq != was || !a.repeat) {
						rt.Fatalf("key %s is message %d and %+v", key, was, a)
					}
					at[key] = a.seq
					break
				}
				if a := send(l, "alice", "other", key, "another body"); !errors.Is(a.err, ErrKeyReused) && !errors.Is(a.err, ErrUnavailable) {
					rt.Fatalf("the key with another body: %+v", a)
				}
			}
			log, err := m.Read(context.Background(), "alice", 0)
			if err != nil || len(log) != len(at) {
				rt.Fatalf("%d messages of %d keys, %v", len(log), len(at), err)
			}
			for i, e := range log {
				if e.Seq != uint64(i+1) {
					rt.Fatalf("message %d has seq %d", i, e.Seq)
				}
			}
		})
	})
}

// While the store is away a push fails within its time, and none is left behind.
func TestLogStoreAway(t *testing.T) { bothWays(t, logStoreAway) }

func logStoreAway(t *testing.T, as func(Store) Store) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory(Limits{Messages: 10, Age: time.Hour, Window: time.Hour})
		var ring atomic.Int64
		l := owned(as(m), &ring, deliver)
		defer l.Wait()
		m.Fail(errFault)
		begin := time.Now()
		if a := send(l, "alice", "1", "", "x"); !errors.Is(a.err, ErrUnavailable) || !strings.Contains(a.err.Error(), errFault.Error()) {
			t.Errorf("%+v", a)
		}
		if took := time.Since(begin); took > 2*time.Second+2*pause {
			t.Errorf("it took %s", took)
		}
		m.Fail(nil)
		if a := send(l, "alice", "2", "", "x"); a.seq != 1 {
			t.Errorf("after that: %+v", a)
		}
	})
}

// Another node appended: it is noticed by the next append, or by a look, and what
// has to catch up is told.
func TestLogOfAnother(t *testing.T) { bothWays(t, logOfAnother) }

func logOfAnother(t *testing.T, as func(Store) Store) {
	m := NewMemory(Limits{Messages: 10, Age: time.Hour, Window: time.Hour})
	var ring atomic.Int64
	behind := 0
	mine, other := owned(as(m), &ring, deliver), owned(m, &ring, deliver)
	mine.Behind = func(*Log) { behind++ }
	mine.Lost = func(*Log) { t.Error("taken for lost") }
	defer mine.Wait()
	defer other.Wait()
	g := mine.Get("alice")
	defer g.Release()
	if err := g.Fresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	send(other, "alice", "o1", "", "x")
	if err := g.Look(t.Context()); err != nil || behind != 1 {
		t.Errorf("a look: %v, told %d times", err, behind)
	}
	send(other, "alice", "o2", "", "x")
	send(other, "alice", "o3", "", "x")
	if a := send(mine, "alice", "m1", "", "x"); a.seq != 4 || behind != 2 {
		t.Errorf("an append after others: %+v, told %d times", a, behind)
	}
	g.With(func(head Cursor) {
		if head.Seq != 4 {
			t.Errorf("the head is %+v", head)
		}
	})
}

// lateStore takes the first append only when the second comes, after that has read the log:
// a slow store, whose answer the first did not wait for. It knows the key then, as a NATS
// cluster does, before it looks at what is expected.
type lateStore struct {
	Store
	first func() (uint64, error)
	key   string
}

func (s *lateStore) Append(ctx context.Context, user string, e *Entry, key string, expect uint64) (uint64, bool, error) {
	if s.first == nil {
		s.key, s.first = key, sync.OnceValues(func() (uint64, error) {
			pos, _, err := s.Store.Append(context.Background(), user, e, key, expect)
			return pos, err
		})
		<-ctx.Done()
		return 0, false, ctx.Err()
	}
	if key == s.key {
		pos, err := s.first()
		return pos, true, err
	}
	return s.Store.Append(ctx, user, e, key, expect)
}

// A push that failed, and is stored all the same while it is pushed again with its key, is
// delivered: its answer says that it was accepted.
func TestLogLate(t *testing.T) { bothWays(t, logLate) }

func logLate(t *testing.T, as func(Store) Store) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory(Limits{Messages: 10, Age: time.Hour, Window: time.Hour})
		var ring atomic.Int64
		l := owned(as(&lateStore{Store: m}), &ring, deliver)
		defer l.Wait()
		behind := 0
		l.Behind = func(*Log) { behind++ }
		g := l.Get("alice")
		defer g.Release()
		if err := g.Fresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if a := send(l, "alice", "1", "key", "x"); !errors.Is(a.err, ErrUnavailable) {
			t.Fatalf("the first: %+v", a)
		}
		if err := g.Fresh(t.Context()); err != nil { // or it is read once more first
			t.Fatal(err)
		}
		if a := send(l, "alice", "2", "key", "x"); !a.repeat || a.seq != 1 || behind != 1 {
			t.Errorf("the same once more: %+v; sessions were told %d times that they are behind", a, behind)
		}
		if a := send(l, "alice", "3", "", "y"); a.seq != 2 || behind != 1 {
			t.Errorf("the next: %+v, told %d times", a, behind)
		}
	})
}

// The store was made anew, or lost its end: that is noticed, and not taken for a
// log that goes on.
func TestLogLost(t *testing.T) { bothWays(t, logLost) }

func logLost(t *testing.T, as func(Store) Store) {
	for name, lose := range map[string]func(m *Memory){
		"all":       func(m *Memory) { clear(m.logs); clear(m.positions) },
		"its end":   func(m *Memory) { m.logs["alice"] = m.logs["alice"][:2] },
		"and again": func(m *Memory) { m.logs["alice"] = m.logs["alice"][:2]; m.pos = 2 },
	} {
		m := NewMemory(Limits{Messages: 10, Age: time.Hour, Window: time.Nanosecond})
		var ring atomic.Int64
		lost := 0
		l := owned(as(m), &ring, deliver)
		l.Lost = func(*Log) { lost++ }
		for i := range 3 {
			send(l, "alice", fmt.Sprint(i), "", "x")
		}
		lose(m)
		if name == "and again" { // as long as it was, with other messages
			other := owned(m, &ring, deliver)
			send(other, "alice", "new", "", "y")
			other.Wait()
			ring.Store(2) // or it would append to what it knows, and find that out then
		}
		before := len(m.logs["alice"])
		if a := send(l, "alice", "next", "", "x"); a.seq != uint64(before+1) || lost != 1 {
			t.Errorf("%s: %+v, noticed %d times; want message %d", name, a, lost, before+1)
		}
		l.Wait()
	}
}

// All of a log has become too old: numbers go on for who knew them. For a node that
// did not they begin anew, and a cursor of before is a gap.
func TestLogTooOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemory(Limits{Messages: 10, Age: time.Hour, Window: time.Minute})
		var ring atomic.Int64
		l := owned(m, &ring, deliver)
		l.Lost = func(*Log) { t.Error("taken for lost") }
		defer l.Wait()
		send(l, "alice", "1", "", "x")
		send(l, "alice", "2", "", "x")
		time.Sleep(2 * time.Hour)
		ring.Store(2)
		if a := send(l, "alice", "3", "", "x"); a.seq != 3 {
			t.Errorf("the next is %+v", a)
		}
		last, err := m.Last(t.Context(), "alice")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour)
		fresh := owned(m, &ring, deliver)
		defer fresh.Wait()
		if a := send(fresh, "alice", "4", "", "x"); a.seq != 1 {
			t.Errorf("another node's next is %+v", a)
		}
		head, err := m.Last(t.Context(), "alice")
		if err != nil {
			t.Fatal(err)
		}
		if st, err := Find(t.Context(), m, "alice", last.Cursor, head.Cursor, time.Now()); err != nil || !st.Gap || len(st.First) != 1 {
			t.Errorf("from a cursor of before: %+v, %v", st, err)
		}
	})
}

// Logs that nobody holds are forgotten, and those that are held are not.
func TestLogsForget(t *testing.T) {
	m := NewMemory(Limits{Messages: 2, Age: time.Hour, Window: time.Nanosecond})
	var ring atomic.Int64
	l := owned(m, &ring, deliver)
	defer l.Wait()
	held := l.Get("held")
	for i := range 3 * keptLogs * len(l.shards) / 2 {
		l.Get(fmt.Sprint("u", i)).Release()
	}
	n := 0
	for i := range l.shards {
		n += len(l.shards[i].logs)
	}
	if n > keptLogs*len(l.shards) {
		t.Errorf("%d logs are kept", n)
	}
	if l.Get("held") != held {
		t.Error("one that is held was forgotten")
	}
}

// A cursor that lies behind all that the store has now is of another log, however
// far: the store was made anew.
func TestFindFarBehind(t *testing.T) {
	m := NewMemory(Limits{Messages: 10, Age: time.Hour, Window: time.Minute})
	head := Cursor{}
	for i := range 6 {
		e := &Entry{Cursor: head.next("alice", fmt.Sprint(i), 0), Prev: head.Tag, ID: fmt.Sprint(i), Time: time.Now()}
		e.Pos, _, _ = m.Append(t.Context(), "alice", e, fmt.Sprint(i), head.Pos)
		head = e.Cursor
	}
	for _, since := range []Cursor{{3, 54, 7}, {3, 6, 7}, {3, 3, 7}, {9, 9, 7}, {9, 1, 7}, {6, 6, 7}} {
		st, err := Find(t.Context(), m, "alice", since, head, time.Now())
		if err != nil || !st.Gap || len(st.First) != 6 || st.From != (Cursor{}) {
			t.Errorf("since %#v: %+v, %v", since, st, err)
		}
	}
}

// Find against a log that a model kept all of: whatever cursor a client comes with,
// it gets each message once and in order, and a gap says when some are missing.
func TestFind(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := NewMemory(Limits{Messages: rapid.IntRange(1, 8).Draw(rt, "kept"), Age: time.Hour, Window: time.Nanosecond})
		ctx := context.Background()
		m.pos = rapid.Uint64Range(0, 50).Draw(rt, "noise before")
		var all []Cursor // of the log as it is
		foreign := []Cursor{{Seq: 99, Pos: 99, Tag: 99}, {Seq: 1, Pos: 1, Tag: 1}}
		head := Cursor{}
		for i := range rapid.IntRange(0, 25).Draw(rt, "steps") {
			switch rapid.SampledFrom([]string{"append", "append", "append", "append", "noise", "lose", "wipe"}).Draw(rt, "step") {
			case "append":
				e := &Entry{Cursor: head.next("alice", fmt.Sprint(i), 0), Prev: head.Tag, ID: fmt.Sprint(i), Time: time.Now()}
				pos, _, err := m.Append(ctx, "alice", e, fmt.Sprint(i), head.Pos)
				if err != nil {
					rt.Fatal(err)
				}
				e.Pos = pos
				head = e.Cursor
				all = append(all, head)
			case "noise":
				m.pos++
			case "wipe": // the store is made anew
				foreign = append(foreign, all...)
				all, head = nil, Cursor{}
				m.logs["alice"], m.pos = nil, 0
			case "lose": // a power cut: the end is gone, and its places are used again
				l := m.logs["alice"]
				if len(l) < 2 {
					continue
				}
				k := rapid.IntRange(1, len(l)-1).Draw(rt, "left")
				for _, e := range l[k:] {
					foreign = append(foreign, e.Cursor)
					all = all[:len(all)-1]
				}
				m.logs["alice"] = l[:k]
				head = l[k-1].Cursor
				m.pos = head.Pos
			}
		}
		kept := m.logs["alice"]
		since := rapid.SampledFrom(append(slices.Clone(append(all, Cursor{})), foreign...)).Draw(rt, "since")
		st, err := Find(ctx, m, "alice", since, head, time.Now())
		if err != nil {
			rt.Fatal(err)
		}
		own := since == Cursor{} || slices.Contains(all, since)
		oldest := uint64(1)
		if len(kept) > 0 {
			oldest = kept[0].Seq
		}
		wantGap := !own || since.Seq+1 < oldest
		if st.Gap != wantGap {
			rt.Fatalf("since %#v of %#v (oldest %d): gap %v, want %v", since, head, oldest, st.Gap, wantGap)
		}
		next := since.Seq + 1
		if wantGap {
			next = oldest
		}
		got := st.First
		for _, e := range got {
			if e.Seq != next {
				rt.Fatalf("since %#v: message %d came, want %d", since, e.Seq, next)
			}
			next++
		}
		if next != head.Seq+1 || st.Pending != uint64(len(got)) || st.From.Seq+uint64(len(got)) != head.Seq {
			rt.Fatalf("since %#v: up to %d of %d, pending %d, from %#v", since, next-1, head.Seq, st.Pending, st.From)
		}
		// What it says to go on from is a cursor of this log.
		again, err := Find(ctx, m, "alice", st.From, head, time.Now())
		if err != nil || again.Gap && !(st.From == Cursor{}) || len(again.First) != len(got) {
			rt.Fatalf("from %#v once more: %+v, %v", st.From, again, err)
		}
	})
}

// What the store has beyond the head is not part of it yet.
func TestFindBeyondHead(t *testing.T) {
	m := NewMemory(Limits{Messages: 10, Age: time.Hour, Window: time.Minute})
	head, at := Cursor{}, []Cursor{{}}
	for i := range 4 {
		e := &Entry{Cursor: head.next("alice", fmt.Sprint(i), 0), Prev: head.Tag, ID: fmt.Sprint(i), Time: time.Now()}
		e.Pos, _, _ = m.Append(t.Context(), "alice", e, fmt.Sprint(i), head.Pos)
		head = e.Cursor
		at = append(at, head)
	}
	for since := range at {
		for known := since; known < len(at); known++ {
			st, err := Find(t.Context(), m, "alice", at[since], at[known], time.Now())
			if err != nil || st.Gap || len(st.First) != known-since || st.Pending != uint64(known-since) {
				t.Errorf("since %d of %d: %d follow, pending %d, gap %v, %v", since, known, len(st.First), st.Pending, st.Gap, err)
			}
		}
	}
}

// A message whose own time is over does not count as pending.
func TestFindExpired(t *testing.T) {
	m := NewMemory(Limits{Messages: 10, Age: time.Hour, Window: time.Minute})
	head := Cursor{}
	now := time.Now()
	for i, ttl := range []time.Duration{0, time.Second, 0} {
		e := &Entry{Cursor: head.next("alice", fmt.Sprint(i), 0), Prev: head.Tag, ID: fmt.Sprint(i), Time: now, TTL: ttl}
		e.Pos, _, _ = m.Append(t.Context(), "alice", e, fmt.Sprint(i), head.Pos)
		head = e.Cursor
	}
	for at, want := range map[time.Duration]uint64{0: 3, time.Second - time.Millisecond: 3, time.Second: 2} {
		if st, err := Find(t.Context(), m, "alice", Cursor{}, head, now.Add(at)); err != nil || st.Pending != want || st.Gap {
			t.Errorf("after %s: %d pending, gap %v, %v; want %d", at, st.Pending, st.Gap, err, want)
		}
	}
}
