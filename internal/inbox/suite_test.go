package inbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/dialring/dialring/internal/natsd"
)

var suiteLimits = Limits{Messages: 20, Age: 2 * time.Second, Window: 2 * time.Second}

// noKeys are those of a node that has none.
var noKeys, _ = LoadKeys("", slog.New(slog.DiscardHandler))

func Key(user, key, id string) string { return noKeys.Key(user, key, id) }

// stores are the implementations, each of which passes the suite.
func stores(t *testing.T) map[string]func(t *testing.T, l Limits) Store {
	return map[string]func(*testing.T, Limits) Store{
		"memory":    func(_ *testing.T, l Limits) Store { return NewMemory(l) },
		"jetstream": func(t *testing.T, l Limits) Store { return newJetStream(t, startNATS(t), l) },
		"sealed": func(t *testing.T, l Limits) Store {
			s := newJetStream(t, startNATS(t), l)
			s.o.Keys.cur.Store(keysOf(t, keysText("a", true, "a=A")).cur.Load())
			return s
		},
	}
}

func startNATS(t *testing.T) *natsd.Server {
	t.Helper()
	s, err := natsd.Start(t.Context(), natsd.Options{Name: "test", Listen: "127.0.0.1:0", Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

func newJetStream(t *testing.T, s *natsd.Server, l Limits) *JetStream {
	t.Helper()
	nc, err := nats.Connect("nats://"+s.Addr(), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	js, err := NewJetStream(Options{Conn: nc, Cluster: "c", Partitions: 3, Limits: l, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- js.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		js.Wait()
		nc.Close()
	})
	return js
}

// writer appends like an owner that nobody disturbs.
type writer struct {
	t    *testing.T
	s    Store
	user string
	head Cursor
	n    int
}

func (w *writer) entry(body string) *Entry {
	w.n++
	id := fmt.Sprintf("id-%d", w.n)
	return &Entry{Cursor: w.head.next(w.user, id, 0), Prev: w.head.Tag, ID: id, Time: time.Now().Truncate(time.Millisecond), JSON: true, Body: []byte(body)}
}

func (w *writer) append(body string) Entry {
	w.t.Helper()
	e := w.entry(body)
	pos, dup, err := w.s.Append(w.t.Context(), w.user, e, Key(w.user, "", e.ID), w.head.Pos)
	if err != nil || dup || pos <= w.head.Pos {
		w.t.Fatalf("append %s for %q: pos %d dup %v, %v", body, w.user, pos, dup, err)
	}
	e.Pos = pos
	w.head = e.Cursor
	return *e
}

func same(a, b Entry) bool {
	return a.Cursor == b.Cursor && a.Prev == b.Prev && a.ID == b.ID && a.Time.Equal(b.Time) && a.TTL == b.TTL && a.JSON == b.JSON && string(a.Body) == string(b.Body)
}

func TestStores(t *testing.T) {
	for name, make := range stores(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := make(t, suiteLimits)
			ctx := t.Context()
			t.Run("append and read", func(t *testing.T) {
				w := &writer{t: t, s: s, user: "alice"}
				if _, err := s.Last(ctx, "alice"); !errors.Is(err, ErrNone) {
					t.Errorf("the last of an empty log: %v", err)
				}
				if l, err := s.Read(ctx, "alice", 0); len(l) != 0 || err != nil {
					t.Errorf("an empty log: %v, %v", l, err)
				}
				var all []Entry
				for i := range 5 {
					all = append(all, w.append(fmt.Sprint(i)))
				}
				if last, err := s.Last(ctx, "alice"); err != nil || !same(last, all[4]) {
					t.Errorf("last %+v, %v; want %+v", last, err, all[4])
				}
				for from := range all {
					l, err := s.Read(ctx, "alice", all[from].Pos)
					if err != nil || len(l) != len(all)-from {
						t.Fatalf("read from %d: %v, %v", from, l, err)
					}
					for i := range l {
						if !same(l[i], all[from+i]) {
							t.Errorf("read from %d: %+v, want %+v", from, l[i], all[from+i])
						}
					}
					if e, err := s.At(ctx, "alice", all[from].Pos); err != nil || !same(e, all[from]) {
						t.Errorf("at %d: %+v, %v", from, e, err)
					}
				}
				if _, err := s.At(ctx, "alice", all[4].Pos+1); !errors.Is(err, ErrNone) {
					t.Errorf("at the end: %v", err)
				}
				if _, err := s.At(ctx, "bob", all[4].Pos); !errors.Is(err, ErrNone) {
					t.Errorf("another user's message: %v", err)
				}
			})
			t.Run("expected last", func(t *testing.T) {
				w := &writer{t: t, s: s, user: "carol"}
				e := w.entry("x")
				if _, _, err := s.Append(ctx, "carol", e, "k1", 7); !errors.Is(err, ErrConflict) {
					t.Errorf("an empty log took a message behind 7: %v", err)
				}
				first := w.append("1")
				for _, expect := range []uint64{0, first.Pos - 1, first.Pos + 1} {
					if _, _, err := s.Append(ctx, "carol", e, "k2", expect); !errors.Is(err, ErrConflict) {
						t.Errorf("expected %d, the last is %d: %v", expect, first.Pos, err)
					}
				}
			})
			t.Run("keys", func(t *testing.T) {
				w := &writer{t: t, s: s, user: "dora"}
				e := w.entry("first")
				pos, dup, err := s.Append(ctx, "dora", e, Key("dora", "k", ""), 0)
				if err != nil || dup {
					t.Fatal(pos, dup, err)
				}
				again, dup, err := s.Append(ctx, "dora", w.entry("second"), Key("dora", "k", ""), pos)
				if err != nil || !dup || again != pos {
					t.Errorf("a repeat: pos %d dup %v %v, want %d", again, dup, err, pos)
				}
				other, dup, err := s.Append(ctx, "emil", w.entry("other"), Key("emil", "k", ""), 0)
				if err != nil || dup || other == pos {
					t.Errorf("the key of another user: pos %d dup %v, %v", other, dup, err)
				}
			})
			t.Run("limit of messages", func(t *testing.T) {
				w := &writer{t: t, s: s, user: "frida"}
				var all []Entry
				for i := range suiteLimits.Messages + 5 {
					all = append(all, w.append(fmt.Sprint(i)))
				}
				l, err := s.Read(ctx, "frida", 0)
				if err != nil || len(l) != suiteLimits.Messages || !same(l[0], all[5]) {
					t.Errorf("%d are kept, from %+v, %v; want %d", len(l), l[0], err, suiteLimits.Messages)
				}
			})
			t.Run("chunks", func(t *testing.T) {
				w := &writer{t: t, s: s, user: "gerd"}
				big := strings.Repeat("x", Chunk/2-200)
				var all []Entry
				for range 5 {
					all = append(all, w.append(`"`+big+`"`))
				}
				var got []Entry
				for pos, calls := uint64(0), 0; len(got) < 5; calls++ {
					l, err := s.Read(ctx, "gerd", pos)
					if err != nil || len(l) == 0 || len(l) > 3 {
						t.Fatalf("a chunk of %d, %v", len(l), err)
					}
					got, pos = append(got, l...), l[len(l)-1].Pos+1
				}
				for i := range all {
					if !same(got[i], all[i]) {
						t.Errorf("message %d is another one", i)
					}
				}
			})
			t.Run("ids", func(t *testing.T) {
				ids := []string{"*", ">", "a.b", "a b", "a", "b", "a.*", "$JS", "é", "\u2028", "..", "_", "=", "a/b", "A", strings.Repeat("x", 128), strings.Repeat("é", 64)}
				for i, id := range ids {
					(&writer{t: t, s: s, user: id}).append(fmt.Sprint(i))
				}
				for i, id := range ids {
					l, err := s.Read(ctx, id, 0)
					if err != nil || len(l) != 1 || string(l[0].Body) != fmt.Sprint(i) {
						t.Errorf("%q has %v, %v", id, l, err)
					}
				}
			})
			t.Run("positions", func(t *testing.T) {
				c := Cursor{3, 4, 5}
				if _, _, err := s.Position(ctx, "hans", "d.1"); !errors.Is(err, ErrNone) {
					t.Errorf("none was set: %v", err)
				}
				rev, err := s.SetPosition(ctx, "hans", "d.1", c, 0)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := s.SetPosition(ctx, "hans", "d.1", c, 0); !errors.Is(err, ErrConflict) {
					t.Errorf("there is one already: %v", err)
				}
				c.Seq++
				if rev, err = s.SetPosition(ctx, "hans", "d.1", c, rev); err != nil {
					t.Fatal(err)
				}
				got, r, err := s.Position(ctx, "hans", "d.1")
				if err != nil || got != c || r != rev {
					t.Errorf("%+v rev %d, %v; want %+v rev %d", got, r, err, c, rev)
				}
				if _, _, err := s.Position(ctx, "hans", "d"); !errors.Is(err, ErrNone) {
					t.Errorf("another device: %v", err)
				}
			})
			t.Run("check", func(t *testing.T) {
				if err := s.Check(ctx); err != nil {
					t.Error(err)
				}
			})
			t.Run("an ended context", func(t *testing.T) {
				done, cancel := context.WithCancel(ctx)
				cancel()
				if _, _, err := s.Append(done, "ina", &Entry{ID: "i"}, "k", 0); err == nil {
					t.Error("an append went on")
				}
				if _, err := s.Read(done, "ina", 0); err == nil {
					t.Error("a read went on")
				}
			})
			t.Run("age", func(t *testing.T) {
				w := &writer{t: t, s: s, user: "jana"}
				e := w.append("old")
				for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
					if _, err := s.Last(ctx, "jana"); errors.Is(err, ErrNone) {
						break
					} else if time.Now().After(end) {
						t.Fatalf("it is still kept: %v", err)
					}
				}
				if time.Since(e.Time) < suiteLimits.Age {
					t.Errorf("it went after %s", time.Since(e.Time))
				}
			})
		})
	}
}

// The number of streams is fixed when the first node makes them; limits follow the
// node that started last.
func TestJetStreamSettings(t *testing.T) {
	srv := startNATS(t)
	s := newJetStream(t, srv, Limits{Messages: 10, Age: time.Hour, Window: time.Minute})
	w := &writer{t: t, s: s, user: "alice"}
	for i := range 8 {
		w.append(fmt.Sprint(i))
	}
	other, err := NewJetStream(Options{Conn: s.o.Conn, Cluster: "c", Partitions: 5, Limits: Limits{Messages: 4, Age: time.Hour, Window: time.Minute}, Log: s.o.Log})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.setup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if other.partitions != 3 {
		t.Errorf("%d partitions, want the 3 that were made first", other.partitions)
	}
	if l, err := other.Read(t.Context(), "alice", 0); err != nil || len(l) != 4 {
		t.Errorf("%d messages are kept, %v; want 4", len(l), err)
	}
	two, err := NewJetStream(Options{Conn: s.o.Conn, Cluster: "c2", Partitions: 2, Limits: suiteLimits, Log: s.o.Log})
	if err != nil {
		t.Fatal(err)
	}
	if err := two.setup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if l, err := two.Read(t.Context(), "alice", 0); err != nil || len(l) != 0 {
		t.Errorf("another cluster sees %v, %v", l, err)
	}
}

// NATS comes back without its data: the streams are made again.
func TestJetStreamMadeAnew(t *testing.T) {
	srv := startNATS(t)
	s := newJetStream(t, srv, suiteLimits)
	w := &writer{t: t, s: s, user: "alice"}
	w.append("1")
	for p := range 3 {
		if err := s.js.DeleteStream(t.Context(), s.stream(p)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		w := &writer{t: t, s: s, user: "alice"}
		e := w.entry("2")
		if _, _, err := s.Append(ctx, "alice", e, Key("alice", "", e.ID), 0); err == nil {
			return
		} else if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

func TestParseAck(t *testing.T) {
	for s, want := range map[string]struct {
		pos uint64
		dup bool
		ok  bool
	}{
		`{"stream":"x","seq":12}`:                         {12, false, true},
		`{"stream":"x","seq":12,"duplicate": true}`:       {12, true, true},
		`{"stream":"x","domain":"d","seq":9}`:             {9, false, true},
		`{"stream":"x","seq":0}`:                          {0, false, false},
		`{"stream":"x","seq":12,"batch":"b","count":1}`:   {12, false, false},
		`{"error":{"code":400,"err_code":10071},"seq":0}`: {0, false, false},
		`{"stream":"x","seq":99999999999999999999999}`:    {0, false, false},
		``: {0, false, false},
	} {
		pos, dup, ok := parseAck([]byte(s))
		if ok != want.ok || ok && (pos != want.pos || dup != want.dup) {
			t.Errorf("%s: %d %v %v", s, pos, dup, ok)
		}
	}
}
