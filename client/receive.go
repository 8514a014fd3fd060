package client

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// takeOverWait is how long a client without a connection waits for the one that
// it was dialing already, before it locates.
const takeOverWait = time.Second

// receiver is a Client while it is connected: over one connection, or, while it
// moves from one node to another, over up to three.
//
//	cur --move frame, or another owner at a recheck--> cur, and next is dialed
//	     <------- the dial failed, or next ended: locate again, dial that -------+
//	     --next has welcomed--> cur is next; old is told goodbye and read on
//	                            until it has ended
//
// So there is no moment without a connection, and whatever comes twice is
// dropped by its id. All of it is run's goroutine, but for the dialing.
type receiver struct {
	c     *Client
	ctx   context.Context
	queue chan<- queued

	cur, next, old *conn
	dialing        bool
	stopLook       context.CancelFunc // ends the waiting and locating before a dial
	again          *wire.Move         // came while another one was under way
	tries          int                // of connections that ended before they had welcomed
	dialed         chan *conn         // result of the dialing: nil if it gave up
	recheck        *time.Timer        // locates again when the node said nothing of a move for long
	leaving        <-chan time.Time   // then the old one is told goodbye, whatever it owes; nil: it was
	wg             sync.WaitGroup
	cancel         context.CancelFunc // ends the dialing
}

// receive takes frames until the connection ends, or closes it when ctx does.
func (c *Client) receive(ctx context.Context, k *conn, queue chan<- queued) ended {
	r := &receiver{c: c, ctx: ctx, queue: queue, cur: k, stopLook: func() {}, dialed: make(chan *conn, 1), recheck: time.NewTimer(c.recheckIn())}
	defer r.recheck.Stop()
	var dialCtx context.Context
	dialCtx, r.cancel = context.WithCancel(ctx)
	e := r.run(dialCtx)
	if ctx.Err() != nil {
		c.awaitHandler()
	}
	r.cancel()
	r.stopLook()
	r.wg.Wait()
	select {
	case k := <-r.dialed:
		r.end(k)
	default:
	}
	for _, k := range []*conn{r.cur, r.next, r.old} {
		r.end(k)
	}
	return e
}

func (c *Client) recheckIn() time.Duration { return c.recheck + rand.N(c.recheck) } // #nosec G404 -- jitter

// run returns when no connection is left, or ctx has ended.
func (r *receiver) run(dialCtx context.Context) ended {
	for {
		select {
		case <-r.ctx.Done():
			return r.cur.why()
		case b, ok := <-r.cur.frames:
			if ok {
				r.frame(dialCtx, r.cur, b)
				break
			}
			e := r.cur.why()
			r.c.sends.lost(r.cur)
			// One that is being dialed may take over; not against the server's word,
			// but what replaces this one may be that one.
			moving := r.dialing || r.next != nil
			if wire.ActionFor(e.code) == wire.Stop && !(moving && e.code == wire.CloseReplaced) || !r.takeOver() {
				return e
			}
			if e.code == 0 {
				r.c.noteFailed(e.node)
			}
		case b, ok := <-framesOf(r.next):
			if !ok { // it ended before it had welcomed: ask a locator, after a back-off
				r.next = nil
				r.tries++
				r.move(dialCtx, r.again)
				break
			}
			welcomed := r.next
			r.frame(dialCtx, welcomed, b)
			if welcomed.welcomed {
				if r.old != nil { // two moves in a row: the rest of the oldest first
					r.leaving = nil
					r.leaveOld()
					r.readOut(dialCtx, r.old)
					r.end(r.old)
				}
				r.old, r.cur, r.next = r.cur, welcomed, nil
				r.again, r.tries = nil, 0
				r.leaving = time.After(answerWait)
				r.leaveOld()
			}
		case b, ok := <-framesOf(r.old):
			if !ok {
				r.c.sends.lost(r.old)
				r.old = nil
				break
			}
			r.frame(dialCtx, r.old, b)
			r.leaveOld()
		case <-r.leaving:
			r.leaving = nil
			r.leaveOld()
		case k := <-r.dialed:
			r.dialing, r.next = false, k
			if k == nil && r.c.State().State == Moving { // it stays where it is
				r.c.tell(Event{State: Connected, Node: r.cur.node, Session: r.cur.session})
			}
			if r.stopLook(); k == nil && r.again != nil {
				r.move(dialCtx, r.again)
			}
		case <-r.cur.overdue:
			r.move(dialCtx, nil)
		case <-r.recheck.C:
			r.recheck.Reset(r.c.recheckIn())
			r.move(dialCtx, nil)
		}
	}
}

// answerWait is how long the old connection is kept for the answers that it owes.
const answerWait = 2 * time.Second

// leaveOld says goodbye to the old connection, once, when it owes no answer any more or
// its time is over.
func (r *receiver) leaveOld() {
	if r.old == nil || r.old.left || r.leaving != nil && r.c.sends.waits(r.old) {
		return
	}
	r.old.left, r.leaving = true, nil
	r.old.leave()
}

// readOut takes what is left of a connection that was told goodbye, until it or ctx ends.
func (r *receiver) readOut(dialCtx context.Context, k *conn) {
	for {
		select {
		case b, ok := <-k.frames:
			if !ok {
				return
			}
			r.frame(dialCtx, k, b)
		case <-r.ctx.Done():
			return
		}
	}
}

// takeOver waits, when the connection has ended in the middle of a move, for the
// one that follows it.
func (r *receiver) takeOver() bool {
	if r.next == nil && r.dialing {
		select {
		case r.next = <-r.dialed:
			r.dialing = false
			r.stopLook()
		case <-time.After(takeOverWait):
		case <-r.ctx.Done():
		}
	}
	if r.next == nil {
		return false
	}
	r.cur, r.next = r.next, nil
	return true
}

func framesOf(k *conn) <-chan []byte {
	if k == nil {
		return nil
	}
	return k.frames
}

// end closes a connection without losing the reader.
func (r *receiver) end(k *conn) {
	if k == nil {
		return
	}
	if r.ctx.Err() != nil {
		k.leave()
	}
	_ = k.ws.NetConn().Close()
	for range k.frames { // until the reader has ended
	}
	r.c.sends.lost(k)
}

// move dials another node, in a goroutine: the one that m names, or, if there is
// none or it cannot be reached, whoever owns the user by a locator, until that
// is where the client is. The connection that there is stays.
func (r *receiver) move(ctx context.Context, m *wire.Move) {
	if r.dialing || r.next != nil { // one at a time
		if m != nil {
			r.again = m
			r.stopLook()
		}
		return
	}
	r.dialing, r.again = true, nil
	var look context.Context
	look, r.stopLook = context.WithCancel(ctx)
	here, tries := r.cur.node, r.tries
	if m != nil { // not for a look whether the user has moved
		r.c.tell(Event{State: Moving, Node: m.Node, Session: r.cur.session})
	}
	r.wg.Go(func() { r.dialed <- r.dialNext(ctx, look, m, here, tries) })
}

// moveEvery is how often nodes may move a client in the long run; seven times at once.
const moveEvery = 5 * time.Second

// pace is a bucket of moves: another one may begin at next.
type pace struct{ next time.Time }

func (p *pace) wait() time.Duration { return min(time.Until(p.next), moveEvery) }

func (p *pace) count() {
	if full := time.Now().Add(-6 * moveEvery); p.next.Before(full) {
		p.next = full
	}
	p.next = p.next.Add(moveEvery)
}

// dialNext waits and locates until look ends. A dial that has begun is carried
// through: the node may count the session as arrived.
func (r *receiver) dialNext(ctx, look context.Context, m *wire.Move, here string, tries int) *conn {
	if m != nil {
		if sleep(look, max(millis(m.AfterMS), r.c.moves.wait())) {
			r.c.moves.count()
			if k, e := r.c.dial(ctx, &wire.LocateResponse{User: r.c.userNow(), Node: m.Node, URL: m.URL, Ticket: m.Ticket}); e == nil {
				return k
			}
		}
	}
	asked := m != nil || tries > 0 // by the node; else it is a recheck
	for n := tries; look.Err() == nil; n++ {
		if (m != nil || n > 0) && !sleep(look, r.c.jitter(n)) {
			return nil
		}
		refusals := r.c.refusalsNow()
		loc, e := r.c.locate(look)
		if e != nil {
			if !asked {
				r.c.setRefusals(refusals) // nobody needed this one
				return nil
			}
			if e.stop != nil || !sleep(look, min(e.after, maxWait)) {
				return nil
			}
			continue
		}
		if loc.Node == here {
			return nil
		}
		if !sleep(look, millis(loc.DialAfterMS)) {
			return nil
		}
		if k, e := r.c.dial(ctx, loc); e == nil {
			return k
		}
	}
	return nil
}

// frame handles one frame of a node; types it does not know it ignores.
func (r *receiver) frame(dialCtx context.Context, k *conn, b []byte) {
	var t struct {
		Type string `json:"type"`
	}
	if json.Unmarshal(b, &t) != nil || k.refused || k.welcomed == (t.Type == wire.TypeWelcome) {
		return // no frame; or one in front of the welcome, which is the first, and comes once
	}
	switch t.Type {
	case wire.TypeWelcome:
		var w wire.Welcome
		if json.Unmarshal(b, &w) == nil {
			r.welcome(k, &w)
		}
	case wire.TypeMove:
		var m wire.Move
		if json.Unmarshal(b, &m) == nil && m.URL != "" && m.Ticket != "" && k == r.cur {
			r.recheck.Reset(r.c.recheckIn())
			r.move(dialCtx, &m)
		}
	case wire.TypeMessage:
		var m wire.Message
		if json.Unmarshal(b, &m) != nil {
			return
		}
		out := Message{ID: m.ID, Time: m.Time, From: m.From, Seq: m.Seq, Cursor: m.Cursor, Data: m.Data, JSON: true}
		if m.Data == nil {
			out.Data, out.JSON = m.DataB64, false
		}
		if m.Seq > 0 {
			r.stored(k, &m, out)
		} else if !r.c.seen.has(m.ID) && r.hand(queued{Message: out}) {
			r.c.seen.add(m.ID)
		}
	case wire.TypeAck, wire.TypeError:
		r.c.sends.answer(b, t.Type == wire.TypeError)
	case wire.TypeSkip:
		var f wire.Skip
		if json.Unmarshal(b, &f) == nil {
			r.skip(k, &f)
		}
	case wire.TypeResumed:
		var f wire.Resumed
		if json.Unmarshal(b, &f) == nil {
			r.resumed(k, &f)
		}
	}
}

// hand gives a message to the handler's queue; false if the Client ends.
func (r *receiver) hand(m queued) bool {
	select {
	case r.queue <- m:
		return true
	case <-r.ctx.Done():
		return false
	}
}

func (r *receiver) welcome(k *conn, w *wire.Welcome) {
	if w.User != k.user { // whose messages these are is not this client's business
		k.refuse(fmt.Errorf("dialring: node %.63q answers for another user", k.node))
		return
	}
	r.c.setUser(w.User)
	k.welcomed = true
	k.mu.Lock()
	k.interval = millis(w.PingIntervalMS)
	if k.interval == 0 {
		k.interval = usualPing
	}
	k.mu.Unlock()
	k.heard()
	r.recheck.Reset(r.c.recheckIn())
	k.session = w.Session
	switch {
	case w.Gap:
		r.c.place.reset(w.Since)
		r.c.acks.reset(w.Since)
	case r.c.place.cursor() == "":
		r.c.place.reset(w.Since)
		r.c.acks.reset(w.Since)
	}
	k.log = r.c.acks.current()
	r.c.acks.use(k)
	r.c.sends.use(k, w.MaxMessageBytes)
	r.c.tell(Event{State: Connected, Node: k.node, Session: w.Session, Pending: w.Pending, Gap: w.Gap})
}
