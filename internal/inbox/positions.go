package inbox

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Positions writes behind how far devices have read: at most one write a second
// for each device. What was not written when the process dies is read again: the
// device then gets some messages a second time.
type Positions struct {
	Store Store
	Log   *slog.Logger

	mu    sync.Mutex
	byKey map[[2]string]*position
	// What waits, in the order in which it is due: a second after it was noted, or
	// at once. An entry that was written since, or stands twice, is passed over.
	queues [2][]*position
}

const (
	queueSoon = iota
	queueNow
)

type position struct {
	key     [2]string // user, device
	c       Cursor
	noted   bool      // c is something: also the place before the first message is
	at      time.Time // when it is to be written; zero: it was
	rev     uint64
	known   bool // rev is
	anew    bool // what is stored may be of another log
	pins    int
	writing bool
}

const (
	writeEvery   = time.Second
	writeLook    = 100 * time.Millisecond
	writesAtOnce = 32
)

// Open holds on to a device's position, whose revision is known if it was read.
func (p *Positions) Open(user, device string, rev uint64, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.entryLocked(user, device)
	e.pins++
	if known && !e.known {
		e.rev, e.known = rev, true
	}
}

// Close lets go of it, and has what is not written yet written now.
func (p *Positions) Close(user, device string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.byKey[[2]string{user, device}]
	if e == nil {
		return
	}
	e.pins--
	if !e.at.IsZero() {
		e.at = time.Now()
		p.queues[queueNow] = append(p.queues[queueNow], e)
	}
	p.forgetLocked(e)
}

// Reset forgets a device's position: it is of another log than what will be noted.
func (p *Positions) Reset(user, device string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.byKey[[2]string{user, device}]; e != nil {
		e.c, e.noted, e.at, e.anew = Cursor{}, false, time.Time{}, true
	}
}

// Note notes a position.
func (p *Positions) Note(user, device string, c Cursor) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.entryLocked(user, device)
	if c.Pos < e.c.Pos { // two sessions of one device: the one that is ahead
		return
	}
	e.c, e.noted = c, true
	if e.at.IsZero() {
		e.at = time.Now().Add(writeEvery)
		p.queues[queueSoon] = append(p.queues[queueSoon], e)
	}
}

// Noted is a position that was noted and that the store may not have yet. Ask before the
// store is read: what is missing here then, it has.
func (p *Positions) Noted(user, device string) (c Cursor, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.byKey[[2]string{user, device}]
	if e == nil {
		return Cursor{}, false
	}
	return e.c, e.noted
}

func (p *Positions) entryLocked(user, device string) *position {
	k := [2]string{user, device}
	e := p.byKey[k]
	if e == nil {
		if p.byKey == nil {
			p.byKey = map[[2]string]*position{}
		}
		e = &position{key: k}
		p.byKey[k] = e
	}
	return e
}

func (p *Positions) forgetLocked(e *position) {
	if e.pins == 0 && e.at.IsZero() && !e.writing && p.byKey[e.key] == e {
		delete(p.byKey, e.key)
	}
}

// Run writes what is due until ctx ends.
func (p *Positions) Run(ctx context.Context) {
	t := time.NewTicker(writeLook)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			p.write(ctx, now)
		}
	}
}

// Flush writes all that was noted, or as much as ctx gives time for.
func (p *Positions) Flush(ctx context.Context) {
	for {
		p.write(ctx, time.Now().Add(1000*time.Hour))
		if !p.dirty() || !sleep(ctx, writeLook/10) { // what Run is just writing is waited for
			return
		}
	}
}

func (p *Positions) dirty() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.byKey {
		if e.writing || !e.at.IsZero() {
			return true
		}
	}
	return false
}

// sleep waits; false if ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// write writes what is due by now. Nearly always the revision of what is stored is
// known, and all of that is sent together, without a goroutine for each.
func (p *Positions) write(ctx context.Context, now time.Time) {
	async, _ := p.Store.(AsyncStore)
	var g errgroup.Group
	g.SetLimit(writesAtOnce)
	var slow []*position
	together(p.Store, func() {
		for _, e := range p.due(now) {
			p.mu.Lock()
			c, noted, rev, known := e.c, e.noted, e.rev, e.known
			p.mu.Unlock()
			switch {
			case !noted:
				p.written(e, nil)
			case async == nil || !known:
				slow = append(slow, e)
			default:
				async.SetPositionAsync(e.key[0], e.key[1], c, rev, time.Now().Add(writeTimeout), func(rev uint64, err error) {
					p.stored(e, rev, err)
					p.written(e, err)
				})
			}
		}
	})
	for _, e := range slow {
		g.Go(func() error {
			p.mu.Lock()
			c := e.c
			p.mu.Unlock()
			p.written(e, p.writeOne(ctx, e, c))
			return nil
		})
	}
	_ = g.Wait() // the errors are handled above
}

// stored takes note of the revision that a write has, or that it failed.
func (p *Positions) stored(e *position, rev uint64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.rev, e.known = rev, err == nil
}

// written ends a write; one that failed is tried again, after a look at what is stored.
func (p *Positions) written(e *position, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.writing = false
	switch {
	case err == nil || !e.at.IsZero(): // or noted anew meanwhile
	case errors.Is(err, ErrConflict):
		e.at = time.Now()
		p.queues[queueNow] = append(p.queues[queueNow], e)
	default:
		p.Log.Debug("a position was not written; trying again", "event", "position_unwritten", "user", e.key[0], "device", e.key[1], "error", err)
		e.at = time.Now().Add(writeEvery)
		p.queues[queueSoon] = append(p.queues[queueSoon], e)
	}
	p.forgetLocked(e)
}

// due takes off the queues what is to be written by now.
func (p *Positions) due(now time.Time) []*position {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []*position
	for i, q := range p.queues {
		var again []*position
		for len(q) > 0 && !q[0].at.After(now) {
			e := q[0]
			q[0], q = nil, q[1:]
			switch {
			case e.at.IsZero():
			case e.writing: // noted anew meanwhile
				again = append(again, e)
			default:
				e.at, e.writing = time.Time{}, true
				out = append(out, e)
			}
		}
		if len(q) == 0 {
			q = nil
		}
		p.queues[i] = append(again, q...)
	}
	return out
}

// writeTimeout bounds one write of a position.
const writeTimeout = 2 * time.Second

func (p *Positions) writeOne(ctx context.Context, e *position, c Cursor) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	for {
		p.mu.Lock()
		rev, known, anew := e.rev, e.known, e.anew
		p.mu.Unlock()
		if !known {
			there, r, err := p.Store.Position(ctx, e.key[0], e.key[1])
			if err != nil && !errors.Is(err, ErrNone) {
				return err
			}
			if err == nil && there.Pos >= c.Pos && !anew { // another node knows more
				return nil
			}
			rev = r
		}
		rev, err := p.Store.SetPosition(ctx, e.key[0], e.key[1], c, rev)
		p.stored(e, rev, err)
		if !errors.Is(err, ErrConflict) {
			return err
		}
	}
}
