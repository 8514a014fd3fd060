package wsnode

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/dialring/dialring/internal/inbox"
	"github.com/dialring/dialring/internal/wire"
)

// A session and its user's log:
//
//	              store away at the dial
//	opening ------------------------------> unresolved
//	   | welcome says from where it goes on     | the store is back
//	   v                                        v
//	 live <--has all up to the head-------- catching up <-----+
//	   |                                                      |
//	   +--a message is missing, or the client asks to resume--+
//
// While it is live each message is written to it as it is stored. While it is
// catching up a goroutine reads the store and writes what is behind its place, as
// fast as the client takes it; what is stored meanwhile it finds there. It turns
// live with the log locked, so nothing is missed and nothing comes twice.

const (
	// readsAtOnce is how many sessions of a node read the store at the same time.
	readsAtOnce = 64
	// attachTimeout is how long a dial waits for the store.
	attachTimeout = 2 * time.Second
	// catchPause is between two tries to read the store.
	catchPause = 100 * time.Millisecond
	// maxResumes is how many resumes of a client may wait.
	maxResumes = 16
)

// place is where a session is in its user's log. Guarded by the log.
type place struct {
	attached   bool         // welcome was made
	at         inbox.Cursor // written up to here
	acked      inbox.Cursor
	placed     bool         // the device has a position: what it acknowledged, or where it began
	early      inbox.Cursor // acknowledged, and not known to be written here yet
	live       bool
	catching   bool          // a goroutine catches up, or will as soon as the session has opened
	started    bool          // that goroutine runs
	unresolved bool          // at is not known
	now        inbox.Cursor  // with unresolved: where a device that is new goes on
	first      []inbox.Entry // what follows at, if it was read already
	resumes    []string      // cursors of the client's resumes that wait
}

// attach finds the session's place in the log, for welcome. When the store does
// not answer the session goes on without one and finds it later.
func (n *Node) attach(ctx context.Context, s *session, w *wire.Welcome) {
	var at resolved
	err := errStoreDown
	if !n.stored.health.down.Load() {
		ctx, cancel := context.WithTimeout(ctx, attachTimeout)
		defer cancel()
		at, err = n.resolve(ctx, s)
	}
	n.stored.positions.Open(s.user, s.device, at.rev, err == nil)
	if at.Gap {
		n.metrics.gaps.Inc()
		n.stored.positions.Reset(s.user, s.device)
	}
	s.log.With(func(now inbox.Cursor) {
		s.attached = true
		if err != nil {
			// It may be asked for again what it has, rather than miss something.
			s.unresolved, s.catching, s.now = true, true, now
			if w.Since = s.since; w.Since == "" {
				w.Since = wire.CursorStart
			}
			return
		}
		s.at, s.first, s.acked, s.placed = at.From, at.First, at.acked, at.placed && !at.Gap
		s.live = same(s.at, now)
		s.catching = !s.live
		w.Since, w.Head, w.Pending, w.Gap = at.From.String(), at.head.Seq, at.Pending, at.Gap
	})
	if err != nil {
		if skipped, say := n.refusals.Next("unresolved"); say { // all come at once when the store is slow
			n.log.Warn("the store does not say from where a session goes on; it gets what is stored when the store is back", "event", "unresolved", "session", s.id, "error", err, "skipped", skipped)
		}
	}
}

var errStoreDown = errors.New("the store is down")

// same tells whether two cursors are one place.
func same(a, b inbox.Cursor) bool { return a.Seq == b.Seq && a.Tag == b.Tag }

// resolved is from where a session goes on.
type resolved struct {
	inbox.Start
	head   inbox.Cursor
	acked  inbox.Cursor // of the device, if it is of this log
	placed bool         // the store has a position of the device
	rev    uint64       // of that
}

// resolve asks the store from where a session goes on: after the cursor that it
// asked for, else after what its device has acknowledged, else from now.
func (n *Node) resolve(ctx context.Context, s *session) (r resolved, err error) {
	type position struct {
		c   inbox.Cursor
		rev uint64
		err error
	}
	noted, unwritten := n.stored.positions.Noted(s.user, s.device)
	read := make(chan position, 1)
	go func() {
		c, rev, err := n.stored.store.Position(ctx, s.user, s.device)
		read <- position{c, rev, err}
	}()
	err = s.log.Fresh(ctx)
	p := <-read
	if err != nil {
		return r, err
	}
	if p.err != nil && !errors.Is(p.err, inbox.ErrNone) {
		return r, p.err
	}
	if unwritten && (p.err != nil || noted.Pos > p.c.Pos) { // the last connection has only just ended
		p.c, p.err = noted, nil
	}
	var since inbox.Cursor
	s.log.With(func(now inbox.Cursor) {
		if r.head, since = now, now; s.unresolved {
			since = s.now
		}
	})
	switch {
	case s.since != "":
		since = cursorOf(s.since)
	case p.err == nil:
		since = p.c
	}
	r.rev, r.placed = p.rev, p.err == nil
	if r.Start, r.head, err = n.find(ctx, s.log, since, r.head); err == nil && p.err == nil && s.since == "" && !r.Gap {
		r.acked = p.c
	}
	if err == nil {
		select {
		case n.stored.reads <- struct{}{}:
			r.Count(ctx, n.stored.store, s.user, r.head, time.Now())
			<-n.stored.reads
		case <-ctx.Done():
		}
	}
	return r, err
}

// cursorOf reads a client's cursor; one that was never given out is of no log.
func cursorOf(since string) inbox.Cursor {
	c, err := inbox.ParseCursor(since)
	if err != nil {
		return inbox.Cursor{Seq: math.MaxUint64}
	}
	return c
}

// find is inbox.Find, within the bound for reads, and again while the store and the
// head do not fit together. It returns the head by which it went: a cursor beyond
// the one that is known has the log read anew, since another node may have stored
// more.
func (n *Node) find(ctx context.Context, l *inbox.Log, since, head inbox.Cursor) (inbox.Start, inbox.Cursor, error) {
	look := since.Seq > head.Seq && since.Seq < math.MaxUint64
	for {
		if look {
			if err := l.Look(ctx); err != nil {
				return inbox.Start{}, head, err
			}
			l.With(func(now inbox.Cursor) { head = now })
		}
		select {
		case n.stored.reads <- struct{}{}:
		case <-ctx.Done():
			return inbox.Start{}, head, ctx.Err()
		}
		st, err := inbox.Find(ctx, n.stored.store, l.User, since, head, time.Now())
		<-n.stored.reads
		if !errors.Is(err, inbox.ErrBehind) {
			return st, head, err
		}
		select {
		case <-time.After(catchPause / 2):
		case <-ctx.Done():
			return st, head, err
		}
		look = true
	}
}

// detach lets go of the log when the session has ended.
func (s *session) detach() {
	attached := false
	s.log.With(func(inbox.Cursor) {
		attached, s.attached = s.attached, false
		s.live, s.first, s.resumes = false, nil, nil
	})
	if attached {
		s.node.stored.positions.Close(s.user, s.device)
	}
	s.log.Release()
}

// storedLocked writes a message that was just stored, if the session has all
// before it; otherwise it will catch up. p, if there is one, is told whether it
// was written. The log is locked.
func (s *session) storedLocked(e *inbox.Entry, frame []byte, p *push) {
	switch {
	case s.live && e.Seq == s.at.Seq+1:
		s.at = e.Cursor
		s.ackable.Add(1)
		s.send(outgoing{frame: frame, push: p})
		s.advancedLocked()
		return
	case s.attached && !s.unresolved && e.Seq <= s.at.Seq && e.Pos > s.at.Pos:
		// Its numbers began anew: the client has to hear of that.
		s.close(wire.CloseMoved, "the log has begun anew: resume by the cursor")
	case s.attached && !s.unresolved && e.Seq <= s.at.Seq:
		if p != nil {
			p.wrote(true)
		}
		return
	case s.live:
		s.catchUpLocked()
	}
	if p != nil {
		p.wrote(false)
	}
}

// catchUpLocked has a live session read the store. The log is locked.
func (s *session) catchUpLocked() {
	if s.live {
		s.live, s.catching = false, true
		s.startLocked()
	}
}

// startLocked starts the goroutine of a session that is to catch up, once. The log
// is locked.
func (s *session) startLocked() {
	if s.catching && !s.started {
		s.started = true
		s.node.tasks.Go(s.catchUp)
	}
}

// resume answers a client's resume.
func (s *session) resume(since string) {
	tooMany := false
	s.log.With(func(inbox.Cursor) {
		if tooMany = len(s.resumes) == maxResumes; !tooMany && s.attached {
			s.resumes = append(s.resumes, since)
			s.catchUpLocked()
		}
	})
	if tooMany && s.isOpen() { // the reader may have more of them
		s.node.limited(limitResumes)
		s.close(wire.CloseRateLimit, "too many resumes wait for an answer")
	}
}

// catchUp brings the session up to the head of the log and turns it live. It ends
// early when the session does.
func (s *session) catchUp() {
	s.node.metrics.catchUps.Inc()
	var answer *wire.Resumed // to a resume whose replay is under way
	for s.isOpen() {
		var head, at inbox.Cursor
		var first []inbox.Entry
		var resume string
		unresolved, done := false, false
		s.log.With(func(now inbox.Cursor) {
			head, at, unresolved = now, s.at, s.unresolved
			first, s.first = s.first, nil
			switch {
			case !s.attached:
				done = true
			case unresolved:
			case same(at, head) && answer != nil:
			case len(s.resumes) > 0 && answer == nil:
				resume, s.resumes = s.resumes[0], s.resumes[1:]
			case same(at, head):
				s.live, s.catching, s.started, done = true, false, false, true
			}
		})
		switch {
		case done:
			return
		case unresolved:
			s.resolveLate()
		case same(at, head) && answer != nil:
			answer.Head = head.Seq
			s.reply(answer)
			answer = nil
		case resume != "":
			answer = s.rewind(resume, head)
		case len(first) > 0:
			s.replay(at, first)
		default:
			s.goOn(at, head)
		}
	}
}

// resolveLate does what attach could not.
func (s *session) resolveLate() {
	ctx, cancel := context.WithTimeout(s.node.ctx, attachTimeout)
	defer cancel()
	r, err := s.node.resolve(ctx, s)
	if err != nil {
		s.pause()
		return
	}
	if r.Gap {
		s.node.metrics.gaps.Inc()
		s.node.stored.positions.Reset(s.user, s.device)
	}
	s.log.With(func(inbox.Cursor) {
		s.unresolved, s.at, s.first, s.acked, s.placed = false, r.From, r.First, r.acked, r.placed && !r.Gap
		s.advancedLocked()
	})
	if !r.Gap && s.since != "" {
		return // from where it asked for
	}
	// Welcome could not say so.
	s.reply(wire.Resumed{Type: wire.TypeResumed, Since: r.From.String(), Head: r.head.Seq, Gap: r.Gap})
}

// rewind sets the session back to where a resume wants it, and returns the answer
// for when it has come to the head again. A cursor that is not of this log is
// answered at once, so that the client forgets what it has before all that is
// kept follows.
func (s *session) rewind(since string, head inbox.Cursor) *wire.Resumed {
	ctx, cancel := context.WithTimeout(s.node.ctx, attachTimeout)
	defer cancel()
	c := cursorOf(since)
	st, head, err := s.node.find(ctx, s.log, c, head)
	if err != nil {
		s.log.With(func(inbox.Cursor) { s.resumes = append([]string{since}, s.resumes...) })
		s.pause()
		return nil
	}
	answer := &wire.Resumed{Type: wire.TypeResumed, Since: st.From.String(), Head: head.Seq, Gap: st.Gap}
	s.log.With(func(inbox.Cursor) { s.at, s.first = st.From, st.First })
	switch {
	case st.Gap && st.From.Seq > c.Seq: // a part of what it wants is not kept any more
		s.skip(st.From.Seq, wire.SkipLimit)
	case st.Gap:
		s.node.metrics.gaps.Inc()
		s.reply(answer)
		return nil
	}
	return answer
}

// goOn reads the store from the session's place on, and writes what it finds.
func (s *session) goOn(at, head inbox.Cursor) {
	ctx, cancel := context.WithTimeout(s.node.ctx, attachTimeout)
	defer cancel()
	st, _, err := s.node.find(ctx, s.log, at, head)
	switch {
	case err != nil:
		s.pause()
		return
	case st.Gap && st.From.Seq <= at.Seq:
		s.close(wire.CloseMoved, "the store lost messages: resume by the cursor")
		return
	case st.Gap: // the limits were faster than the client
		s.skip(st.From.Seq, wire.SkipLimit)
		s.log.With(func(inbox.Cursor) { s.at = st.From })
	}
	s.replay(st.From, st.First)
}

// replay writes messages that follow the session's place, as fast as the client
// takes them. At one that other keys may open it waits for them: a message that was
// promised is not passed over since an operator has mislaid a key.
func (s *session) replay(at inbox.Cursor, l []inbox.Entry) {
	now := time.Now()
	var passed passed
	var waits *inbox.Entry
	for i := range l {
		e := &l[i]
		if e.Seq != at.Seq+1 || e.Prev != at.Tag {
			break // somewhere between the limits took some: goOn says so
		}
		expired := e.Expired(now)
		if e.Unopened != nil && !expired {
			s.sayUnopened(e)
			if !e.Unopened.Final() {
				waits = e
				break
			}
		}
		at = e.Cursor
		switch {
		case expired:
			passed.by(s, e.Seq, wire.SkipExpired)
			continue
		case e.Unopened != nil:
			passed.by(s, e.Seq, wire.SkipLimit)
			continue
		}
		passed.say(s)
		s.ackable.Add(1)
		if !s.sendWaiting(storedFrame(e)) {
			return
		}
		s.node.metrics.replayed.Inc()
	}
	passed.say(s)
	s.log.With(func(inbox.Cursor) {
		s.at = at
		s.advancedLocked()
	})
	if waits != nil {
		s.awaitKeys(waits.Unopened)
	}
}

func (s *session) skip(to uint64, reason string) {
	s.node.metrics.skips.WithLabelValues(reason).Inc()
	s.reply(wire.Skip{Type: wire.TypeSkip, To: to, Reason: reason})
}

// sendWaiting queues a frame once there is room; false if the session ends.
func (s *session) sendWaiting(frame []byte) bool {
	for {
		s.mu.Lock()
		switch {
		case s.closing:
			s.mu.Unlock()
			return false
		case s.queued == 0 || s.queued+len(frame) <= s.node.cfg.SessionQueueBytes/2: // the other half is for what comes meanwhile
			s.mu.Unlock()
			s.send(outgoing{frame: frame})
			return true
		}
		if s.room == nil {
			s.room = make(chan struct{})
		}
		room := s.room
		s.mu.Unlock()
		<-room
	}
}

// isOpen tells whether the session goes on.
func (s *session) isOpen() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.closing
}

// pause waits a little before the store is asked again.
func (s *session) pause() {
	select {
	case <-time.After(catchPause):
	case <-s.node.ctx.Done():
	}
}
