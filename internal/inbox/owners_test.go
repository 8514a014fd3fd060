package inbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"
)

// gated is a store whose calls wait until the test lets them through.
type gated struct {
	Store
	at  chan struct{} // a call has come
	go_ chan struct{}
}

func (g *gated) wait() {
	g.at <- struct{}{}
	<-g.go_
}

func (g *gated) Append(ctx context.Context, user string, e *Entry, key string, expect uint64) (uint64, bool, error) {
	g.wait()
	return g.Store.Append(ctx, user, e, key, expect)
}

func (g *gated) Last(ctx context.Context, user string) (Entry, error) {
	g.wait()
	return g.Store.Last(ctx, user)
}

// async makes of any store one that appends without a goroutine of the log's.
type async struct{ Store }

func (a async) AppendAsync(user string, e *Entry, key string, expect uint64, deadline time.Time, done func(pos uint64, dup bool, err error)) {
	go func() {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		defer cancel()
		done(a.Append(ctx, user, e, key, expect))
	}()
}

func (a async) SetPositionAsync(user, device string, c Cursor, rev uint64, deadline time.Time, done func(rev uint64, err error)) {
	go func() {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		defer cancel()
		done(a.SetPosition(ctx, user, device, c, rev))
	}()
}

func (a async) Together(f func()) { f() }

// bothWays runs a test with the store as it is, and as one that appends by itself.
func bothWays(t *testing.T, test func(t *testing.T, as func(Store) Store)) {
	t.Run("with goroutines", func(t *testing.T) { test(t, func(s Store) Store { return s }) })
	t.Run("without", func(t *testing.T) { test(t, func(s Store) Store { return async{s} }) })
}

// owner is a node that may believe that it owns the user.
type owner struct {
	gate   *gated
	logs   *Logs
	owns   *atomic.Pointer[string]
	name   string
	result chan string // of each push: "stored 1", or why not
	calls  int         // pushes that have not ended
	seen   []uint64    // what was delivered here, in order
}

func newOwner(name string, s Store, owns *atomic.Pointer[string], as func(Store) Store) *owner {
	o := &owner{gate: &gated{Store: s, at: make(chan struct{}), go_: make(chan struct{})}, owns: owns, name: name, result: make(chan string, 10)}
	o.logs = &Logs{Store: as(o.gate), Log: slog.New(slog.DiscardHandler), Age: time.Hour,
		Owner: func(string) (any, bool) {
			now := owns.Load()
			return now, *now == name
		},
		Ring: func() any { return owns.Load() },
		Deliver: func(_ *Log, e *Entry, p *Push) {
			o.seen = append(o.seen, e.Seq)
			o.result <- fmt.Sprintf("stored %s as %d", p.ID, e.Seq)
		},
		Behind: func(*Log) {}, Lost: func(*Log) { o.result <- "lost" }, Late: func(string) {}, First: func(*Log, Cursor) {}, Taken: func(string, any) {}}
	return o
}

func (o *owner) push(id string) {
	o.calls++
	o.logs.Append("alice", &Push{ID: id, Key: Key("alice", "", id), Body: []byte(id), Deadline: time.Now().Add(time.Minute),
		Fail:   func(err error) { o.result <- err.Error() },
		Repeat: func(*Log, *Entry) { o.result <- "repeat" }})
}

// Two nodes both work on a user's log, of which the ring makes first one and then
// the other the owner: at every interleaving of their reads, appends and the
// change, what is answered as stored is in the log, once, at its number, and the
// log is one chain.
func TestTwoOwners(t *testing.T) { bothWays(t, twoOwners) }

func twoOwners(t *testing.T, as func(Store) Store) {
	const steps = 9
	stored := map[string]int{}
	for order := range 1 << steps {
		for turn := 0; turn <= steps; turn++ {
			m := NewMemory(Limits{Messages: 100, Age: time.Hour, Window: time.Minute})
			var owns atomic.Pointer[string]
			a, b := "a", "b"
			owns.Store(&a)
			oa, ob := newOwner("a", m, &owns, as), newOwner("b", m, &owns, as)
			if turn == 0 {
				owns.Store(&b)
			}
			nodes := []*owner{oa, ob}
			waiting := make([]bool, 2)
			answers := map[string]string{}
			// settle waits until the node is at its gate, or has nothing to do.
			settle := func(i int) {
				o := nodes[i]
				for !waiting[i] && o.calls > 0 {
					select {
					case <-o.gate.at:
						waiting[i] = true
					case r := <-o.result:
						if r == "lost" {
							t.Fatal("a log was taken for lost")
						}
						answers[fmt.Sprint(o.name, len(answers))] = r
						o.calls--
					}
				}
			}
			oa.push("a1")
			ob.push("b1")
			settle(0)
			if ob.calls > 0 {
				settle(1)
			}
			second := [2]bool{}
			step := func(i int) {
				settle(i)
				if waiting[i] {
					waiting[i] = false
					nodes[i].gate.go_ <- struct{}{}
					settle(i)
				}
				if nodes[i].calls == 0 && !second[i] {
					second[i] = true
					nodes[i].push(nodes[i].name + "2")
					settle(i)
				}
			}
			for s := range steps {
				if s+1 == turn {
					owns.Store(&b)
				}
				step(order >> s & 1)
			}
			for nodes[0].calls+nodes[1].calls > 0 { // to the end
				step(0)
				step(1)
			}
			for _, o := range nodes {
				o.logs.Wait()
			}
			log, err := m.Read(t.Context(), "alice", 0)
			if err != nil {
				t.Fatal(err)
			}
			where := map[string]uint64{}
			c := Cursor{}
			for _, e := range log {
				if e.Seq != c.Seq+1 || e.Prev != c.Tag || e.Cursor != c.next("alice", e.ID, e.Pos) || where[e.ID] != 0 {
					t.Fatalf("order %b, turn %d: the log is no chain at %d: %+v", order, turn, e.Seq, log)
				}
				c, where[e.ID] = e.Cursor, e.Seq
			}
			n := 0
			for _, r := range answers {
				var id string
				var seq uint64
				if _, err := fmt.Sscanf(r, "stored %s as %d", &id, &seq); err == nil {
					if where[id] != seq {
						t.Fatalf("order %b, turn %d: %q, the log has it at %d", order, turn, r, where[id])
					}
					n++
				} else if r != ErrNotOwner.Error() {
					t.Fatalf("order %b, turn %d: %q", order, turn, r)
				}
			}
			if n != len(log) {
				t.Fatalf("order %b, turn %d: %d are answered as stored, %d are: %v", order, turn, n, len(log), answers)
			}
			stored[fmt.Sprint(n)]++
		}
	}
	t.Log("runs by the number of stored messages:", stored)
	if len(stored) < 3 {
		t.Error("the interleavings did not differ")
	}
}

// faulty is a store that now and then does not answer, before or after it has done
// what it was asked.
type faulty struct {
	Store
	next func() fault
}

type fault int

const (
	noFault fault = iota
	before_       // it was not done
	after         // it was done
)

var errFault = errors.New("no answer")

func (f *faulty) Append(ctx context.Context, user string, e *Entry, key string, expect uint64) (uint64, bool, error) {
	switch f.next() {
	case before_:
		return 0, false, errFault
	case after:
		_, _, _ = f.Store.Append(ctx, user, e, key, expect)
		return 0, false, errFault
	}
	return f.Store.Append(ctx, user, e, key, expect)
}
