package inbox

import (
	"bytes"
	"context"
	"errors"
	"hash/maphash"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Why a push was not stored, or is not known to be.
var (
	ErrNotOwner    = errors.New("another node owns the user")
	ErrKeyReused   = errors.New("this idempotency key was used for another message")
	ErrUnavailable = errors.New("the store did not take the message in time")
)

// Push is a message on its way into a log.
type Push struct {
	ID       string
	Key      string // what the store compares, by the function Key
	JSON     bool
	From     string // user who sends it; "": a service
	Body     []byte
	TTL      time.Duration
	Deadline time.Time // after which it fails with ErrUnavailable
	Context  any       // the caller's, for Logs.Deliver

	// Fail is called instead of Logs.Deliver, once, when the push ends without a
	// message that is stored.
	Fail func(error)
	// Repeat is called instead of Logs.Deliver when the key was used before, for
	// the same message. first is nil if that is not kept any more.
	Repeat func(l *Log, first *Entry)
}

// Logs are the logs that a node works on. Its fields are set before use; the
// functions must not block. All methods may be called concurrently.
type Logs struct {
	Store Store
	// Owner tells whether this node owns a user, and by which ring: a log is read
	// anew when that is another one than when it was read last.
	Owner func(user string) (ring any, ok bool)
	// Ring tells the ring that Owner would go by now.
	Ring func() any
	// Deliver gets each push, in order, once its message is stored. Called with the
	// log locked.
	Deliver func(l *Log, e *Entry, p *Push)
	// Behind is called, with the log locked, when the log turns out to have
	// messages that were not delivered here.
	Behind func(l *Log)
	// Lost is called, with the log locked, when the store has another log than it
	// had: it lost data.
	Lost func(l *Log)
	// Taken is called when a log was read by a ring by which it was not read before.
	Taken func(user string, ring any)
	// Late is called when a message was stored and the user belongs to another
	// node by then, who has to look.
	Late func(user string)
	// Conflict, if set, is called when an append met a message of another node's.
	Conflict func()
	// First is called, with the log locked, when its end is known for the first time.
	First func(l *Log, head Cursor)
	// Age is how long the store keeps a message.
	Age time.Duration
	Log *slog.Logger

	seed   maphash.Seed
	once   sync.Once
	shards [64]logShard
	wg     sync.WaitGroup
	// Workers that wait for a log take it from here: a goroutine of its own for each
	// append would grow its stack anew each time.
	work chan *Log
	over chan struct{}
	idle atomic.Int64
}

// idleWorkers is how many wait at most.
const idleWorkers = 64

type logShard struct {
	mu   sync.Mutex
	logs map[string]*Log
}

// keptLogs is how many logs without a session or an append a shard remembers.
const keptLogs = 2048

// Log is the log of one user, as its owner sees it; other nodes that still have
// sessions of the user use it for those.
//
//	unread --Last--> read --Append--> read, one longer
//	  ^               | | \--conflict: another node wrote, or was the owner meanwhile--+
//	  |               | \--no answer: it may be stored; the key makes the repeat safe--+
//	  |               \--the ring is another one---------------------------------------+
//	  +--------------------------------------------------------------------------------+
//
// One push is in work at a time, in a goroutine that lives while there is one.
type Log struct {
	User string
	logs *Logs
	pins atomic.Int32 // never from 0 to 1 without the shard's lock

	mu      sync.Mutex
	head    Cursor    // newest message that is known
	at      time.Time // of that message
	known   bool      // head was read, or told by the owner
	ring    any       // by which it was read as the owner; nil: it was not
	queue   []work
	running bool

	// Readers is the user's: sessions, acknowledgements. Guarded by the log.
	Readers any
}

// work is a push, or, with p nil, a look at the store.
type work struct {
	p    *Push
	done chan error // of a look
	ctx  context.Context
}

func (l *Logs) shard(user string) *logShard {
	l.once.Do(func() { l.seed, l.work, l.over = maphash.MakeSeed(), make(chan *Log), make(chan struct{}) })
	return &l.shards[maphash.String(l.seed, user)%uint64(len(l.shards))]
}

// Get returns a user's log and holds on to it until Release.
func (l *Logs) Get(user string) *Log {
	sh := l.shard(user)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	g := sh.logs[user]
	if g == nil {
		if sh.logs == nil {
			sh.logs = map[string]*Log{}
		}
		if len(sh.logs) >= keptLogs {
			sh.evictLocked()
		}
		g = &Log{User: user, logs: l}
		sh.logs[user] = g
	}
	g.pins.Add(1)
	return g
}

// evictLocked drops some log that nobody holds, at random. It only saves a read
// of the store.
func (sh *logShard) evictLocked() {
	tries := 0
	for user, g := range sh.logs {
		if g.pins.Load() == 0 {
			delete(sh.logs, user)
			return
		}
		if tries++; tries == 16 { // many sessions: the shard grows with them
			return
		}
	}
}

// Release lets go of a log.
func (g *Log) Release() { g.pins.Add(-1) }

// Wait returns when no goroutine of a log is left. Nothing may be added any more.
func (l *Logs) Wait() {
	l.shard("") // for over
	close(l.over)
	l.wg.Wait()
}

// start has a worker run a log that has work.
func (l *Logs) start(g *Log) {
	select {
	case l.work <- g:
	default:
		l.wg.Go(func() {
			for g := g; g != nil; {
				g.run()
				if l.idle.Add(1) > idleWorkers {
					l.idle.Add(-1)
					return
				}
				select {
				case g = <-l.work:
				case <-l.over:
					return
				}
				l.idle.Add(-1)
			}
		})
	}
}

// Together calls f, which must not block: what it appends goes to the store together.
func (l *Logs) Together(f func()) { together(l.Store, f) }

// Append stores a push as the user's next message, after those that were given
// before it.
func (l *Logs) Append(user string, p *Push) {
	g := l.Get(user)
	g.mu.Lock()
	if g.running {
		g.queue = append(g.queue, work{p: p})
		g.mu.Unlock()
		return
	}
	g.running = true
	g.nextLocked(work{p: p})
}

// nextLocked begins with w, and unlocks: without a goroutine if nothing speaks
// against it, which is nearly always.
func (g *Log) nextLocked(w work) {
	async, ok := g.logs.Store.(AsyncStore)
	ring := g.logs.Ring()
	if !ok || w.p == nil || g.ring == nil || g.ring != ring {
		g.queue = append([]work{w}, g.queue...)
		g.mu.Unlock()
		g.logs.start(g)
		return
	}
	head := g.head
	g.mu.Unlock()
	e := w.p.entry(g.User, head)
	async.AppendAsync(g.User, e, w.p.Key, head.Pos, w.p.Deadline, func(pos uint64, dup bool, err error) {
		if err != nil || dup { // the goroutine tries again, and sees what it is
			g.mu.Lock()
			if err != nil {
				g.ring = nil
				g.logs.met(err)
			}
			g.queue = append([]work{w}, g.queue...)
			g.mu.Unlock()
			g.logs.start(g)
			return
		}
		e.Pos = pos
		g.stored(e, w.p, ring)
		g.Release()
		g.mu.Lock()
		if next, ok := g.popLocked(); ok {
			g.nextLocked(next)
			return
		}
		g.mu.Unlock()
	})
}

// met counts a conflict.
func (l *Logs) met(err error) {
	if l.Conflict != nil && errors.Is(err, ErrConflict) {
		l.Conflict()
	}
}

// entry is the message that a push becomes behind head.
func (p *Push) entry(user string, head Cursor) *Entry {
	return &Entry{Cursor: head.next(user, p.ID, 0), Prev: head.Tag, ID: p.ID, Time: time.Now().Truncate(time.Millisecond), TTL: p.TTL, JSON: p.JSON, From: p.From, Body: p.Body}
}

// stored takes note of a message that is stored, and delivers it. ring is that by
// which this node owned the user.
func (g *Log) stored(e *Entry, p *Push, ring any) {
	g.mu.Lock()
	if e.Seq > g.head.Seq {
		g.setLocked(e.Cursor, e.Time)
	}
	g.logs.Deliver(g, e, p)
	g.mu.Unlock()
	if g.logs.Ring() == ring {
		return
	}
	if _, ok := g.logs.Owner(g.User); !ok {
		g.logs.Late(g.User)
	}
}

// Look reads the end of the user's log from the store, so that what another
// node wrote is delivered. It returns when that is done.
func (g *Log) Look(ctx context.Context) error {
	w := work{done: make(chan error, 1), ctx: ctx}
	g.logs.Get(g.User)
	g.add(w)
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Fresh makes sure that the log was read by the ring of now, as its owner.
func (g *Log) Fresh(ctx context.Context) error {
	ring, ok := g.logs.Owner(g.User)
	g.mu.Lock()
	fresh := ok && g.ring == ring
	g.mu.Unlock()
	if fresh {
		return nil
	}
	return g.Look(ctx)
}

// add queues work whose log is held; run lets go of it.
func (g *Log) add(w work) {
	g.mu.Lock()
	g.queue = append(g.queue, w)
	if !g.running {
		g.running = true
		g.mu.Unlock()
		g.logs.start(g)
		return
	}
	g.mu.Unlock()
}

// popLocked takes the next work; without any the log does not run any more.
func (g *Log) popLocked() (work, bool) {
	if len(g.queue) == 0 {
		g.queue, g.running = nil, false
		return work{}, false
	}
	w := g.queue[0]
	g.queue[0] = work{}
	g.queue = g.queue[1:]
	return w, true
}

func (g *Log) run() {
	for {
		g.mu.Lock()
		w, ok := g.popLocked()
		g.mu.Unlock()
		if !ok {
			return
		}
		if w.p != nil {
			if err := g.append(w.p); err != nil {
				w.p.Fail(err)
			}
		} else {
			ring, ok := g.logs.Owner(g.User)
			if !ok {
				ring = nil
			}
			w.done <- g.read(w.ctx, ring)
		}
		g.Release()
	}
}

// pause is between two tries of a push; after a conflict only when there were
// many.
const (
	pause      = 50 * time.Millisecond
	quickTries = 8
)

// append carries out one push. An error means that no message of it is known to
// be stored.
func (g *Log) append(p *Push) error {
	ctx, cancel := context.WithDeadline(context.Background(), p.Deadline)
	defer cancel()
	var last error
	for n := 0; ; n++ {
		ring, ok := g.logs.Owner(g.User)
		if !ok {
			return ErrNotOwner
		}
		err := g.try(ctx, p, ring)
		if err == nil || errors.Is(err, ErrKeyReused) {
			return err
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		g.mu.Lock()
		g.ring = nil // read it again
		g.mu.Unlock()
		g.logs.met(err)
		if errors.Is(err, ErrConflict) && n < quickTries {
			continue
		}
		if !sleep(ctx, pause) {
			return errors.Join(ErrUnavailable, last)
		}
	}
}

// try appends once.
func (g *Log) try(ctx context.Context, p *Push, ring any) error {
	g.mu.Lock()
	fresh := g.ring == ring
	g.mu.Unlock()
	if !fresh {
		if err := g.read(ctx, ring); err != nil {
			return err
		}
	}
	g.mu.Lock()
	head := g.head
	g.mu.Unlock()
	e := p.entry(g.User, head)
	pos, dup, err := g.logs.Store.Append(ctx, g.User, e, p.Key, head.Pos)
	if err != nil {
		return err
	}
	if dup {
		first, err := g.logs.Store.At(ctx, g.User, pos)
		if pos > head.Pos && (err != nil || first.ID != p.ID) {
			// An earlier push with this key, which failed, was still on its way to the store when
			// the log was read: nobody has delivered it.
			if err := g.read(ctx, ring); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, ErrNone):
			p.Repeat(g, nil)
			return nil
		case err != nil:
			return err
		case first.Unopened != nil && (first.Unopened.Final() || first.ID != p.ID): // it cannot be compared
			return first.Unopened
		case first.ID == p.ID: // this very push, which was tried before
			first.JSON, first.From, first.Body, first.Unopened = p.JSON, p.From, p.Body, nil
			e = &first
		case first.JSON == p.JSON && first.From == p.From && bytes.Equal(first.Body, p.Body):
			p.Repeat(g, &first)
			return nil
		default:
			return ErrKeyReused
		}
	} else {
		e.Pos = pos
	}
	g.stored(e, p, ring)
	return nil
}

// read takes the end of the log from the store. ring is that by which this node
// owns the user, nil if it does not.
func (g *Log) read(ctx context.Context, ring any) error {
	g.mu.Lock()
	was, known, at := g.head, g.known, g.at
	g.mu.Unlock()
	last, err := g.logs.Store.Last(ctx, g.User)
	head := last.Cursor
	if errors.Is(err, ErrNone) { // nothing is kept
		head, err, last.Time = Cursor{}, nil, at
		if known && was.Seq > 0 && time.Since(at) >= g.logs.Age { // its time was over: the numbers go on
			head = Cursor{Seq: was.Seq, Tag: was.Tag}
		}
	}
	if err != nil {
		return err
	}
	same := was.Seq == head.Seq && was.Tag == head.Tag
	lost := false
	if known && !same && !(head.Seq == was.Seq+1 && last.Prev == was.Tag) {
		st, err := Find(ctx, g.logs.Store, g.User, was, head, time.Now())
		if err != nil {
			return err
		}
		lost = st.Gap
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.known && !lost && head.Seq < g.head.Seq && last.Pos <= g.head.Pos { // the owner told of more meanwhile
		g.ring = ring
		return nil
	}
	g.setLocked(head, last.Time)
	if g.ring != ring && ring != nil {
		g.logs.Taken(g.User, ring)
	}
	g.ring = ring
	switch {
	case lost:
		g.logs.Log.Warn("the store has another log of a user than it had: it lost messages", "event", "log_lost", "user", g.User, "had", was.String(), "has", head.String())
		g.logs.Lost(g)
	case known && !same:
		g.logs.Behind(g)
	}
	return nil
}

func (g *Log) setLocked(c Cursor, at time.Time) {
	first := !g.known
	g.head, g.at, g.known = c, at, true
	if first {
		g.logs.First(g, c)
	}
}

// With calls f with the log locked: nothing is delivered meanwhile. f must not
// block. head is the newest message that is known.
func (g *Log) With(f func(head Cursor)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f(g.head)
}

// Told takes note of a message that the user's owner has stored, and calls f with
// the log locked.
func (g *Log) Told(e *Entry, f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.known { // to whoever waits for it the message is new
		g.setLocked(before(e), e.Time)
	}
	if e.Seq > g.head.Seq || e.Pos > g.head.Pos {
		g.setLocked(e.Cursor, e.Time)
	}
	f()
}
