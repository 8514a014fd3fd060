package wsnode

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lxzan/gws"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/dialring/dialring/internal/inbox"
	"github.com/dialring/dialring/internal/metric"
	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/tracing"
	"github.com/dialring/dialring/internal/wire"
)

// A push that is stored, at the user's owner:
//
//	caller        owner                      store
//	  | push        |                          |
//	  |------------>|  its turn in the user's log (inbox.Log)
//	  |             |------- append ---------->|
//	  |             |<------ it is kept -------|
//	  |             | to the sessions that have all before it; others are
//	  |             | catching up from the store, and meet it there (resume.go)
//	  |             |------- stored ----------------> former owner, while users move
//	  |<------------| seq, delivered
//
// An append that ends after the ring took the user away tells the new owner to look.

const (
	// storeTimeout is how long a push may wait for the store. Callers wait longer.
	storeTimeout = 2 * time.Second
	// maxStoring bounds the bytes of pushes that wait for the store.
	maxStoring = 64 << 20
	// lookAgainAfter is when a node looks once more at the log of a user whom the
	// ring gave it: an append of the former owner may have been on its way.
	lookAgainAfter = 5 * time.Second
	looksAtOnce    = 16
)

// stored is what a node has of the inbox.
type stored struct {
	store     inbox.Store
	keys      *inbox.Keys
	logs      inbox.Logs
	positions inbox.Positions
	storing   atomic.Int64  // bytes
	reads     chan struct{} // a token for each session that may read the store at the same time
	health    storeHealth
	groups    inbox.Groups
	unopened  map[string]*rate.Sometimes // what the log is told of, by reason; not changed

	mu    sync.Mutex
	ring  *ring.Ring           // the newest
	past  []pastRing           // those before it, for as long as they matter
	looks map[string]time.Time // users to look at once more, and when
}

type pastRing struct {
	*ring.Ring
	until time.Time
}

func newStored(n *Node, store inbox.Store, keys *inbox.Keys, age time.Duration, log *slog.Logger) *stored {
	d := &stored{store: store, keys: keys, reads: make(chan struct{}, readsAtOnce), looks: map[string]time.Time{}, unopened: map[string]*rate.Sometimes{}}
	for _, why := range unopenedReasons {
		d.unopened[why] = &rate.Sometimes{Interval: time.Minute}
	}
	d.logs = inbox.Logs{Store: store, Age: age, Log: log, Owner: n.ownerOfLog, Ring: func() any { return n.rings.Current() }, Deliver: n.deliverStored, Behind: n.logBehind, Lost: n.logLost,
		Conflict: func() { n.metrics.appends.WithLabelValues(resultConflict).Inc() }, Late: n.tellOwner, Taken: d.taken, First: n.logFirst}
	d.positions.Store, d.positions.Log = store, log
	d.health = storeHealth{store: store, log: log, look: make(chan struct{}, 1)}
	return d
}

// ownerOfLog tells whether this node owns a user, and by which ring.
func (n *Node) ownerOfLog(user string) (any, bool) {
	cur := n.rings.Current()
	u, _ := n.hub.find([]byte(user))
	return cur, n.owns(u, []byte(user), cur)
}

// pushStored stores a push, writes it to the user's sessions, and answers.
func (n *Node) pushStored(in *peer.In) { n.pushStoredTo(in, in.Reply) }

func (n *Node) pushStoredTo(in *peer.In, reply func(peer.Reply)) {
	if n.stored.health.down.Load() {
		reply(storeReply(errors.New("the store has not taken anything for a while")))
		return
	}
	size := int64(len(in.Body))
	if n.stored.storing.Add(size) > maxStoring {
		n.stored.storing.Add(-size)
		n.limited(limitStoring)
		reply(storeReply(errors.New("too much waits for the store")))
		return
	}
	user, id := string(in.User), string(in.ID)
	c := &storing{node: n, in: in, reply: reply, at: time.Now(),
		Push: inbox.Push{ID: id, Key: n.stored.keys.Key(user, string(in.Key), id), JSON: in.JSON, From: string(in.From), Body: in.Body, TTL: in.TTL, Deadline: time.Now().Add(storeTimeout)}}
	c.Context, c.Fail, c.Repeat = c, c.fail, c.repeat
	if span, ok := in.Context.(*tracing.Span); ok {
		c.span = span.Child("append", c.at)
	}
	n.stored.logs.Append(user, &c.Push)
}

// storing is a push that this node appends, and its own context.
type storing struct {
	inbox.Push
	node  *Node
	in    *peer.In
	reply func(peer.Reply)
	at    time.Time     // when it came, and then when it was stored
	kept  bool          // it was stored
	span  *tracing.Span // of what it is at
}

// answer answers it, once.
func (c *storing) answer(r peer.Reply) {
	c.node.stored.storing.Add(-int64(len(c.Body)))
	if c.kept {
		c.node.metrics.delivering[metric.Kind(true)].Observe(time.Since(c.at).Seconds())
	}
	failed := ""
	if !c.kept {
		failed = statusNames[r.Status]
	}
	c.span.End(failed)
	c.reply(r)
}

// stored notes that the store has it.
func (c *storing) stored() {
	now := time.Now()
	c.node.metrics.appended.Inc()
	c.node.metrics.appending.Observe(now.Sub(c.at).Seconds())
	c.at, c.kept = now, true
	if c.span != nil {
		c.span.EndAt(now)
		c.span = c.in.Context.(*tracing.Span).Child("deliver", now)
	}
}

func (c *storing) repeat(l *inbox.Log, first *inbox.Entry) {
	c.node.metrics.appends.WithLabelValues(resultDuplicate).Inc()
	r := peer.Reply{Status: peer.StatusDuplicate}
	if first != nil {
		r.Seq, r.Body = first.Seq, []byte(first.ID)
		l.With(func(inbox.Cursor) { r.Delivered = c.node.haveWritten(l.User, first.Seq) })
	}
	c.answer(r)
}

func (c *storing) fail(err error) {
	switch {
	case errors.Is(err, inbox.ErrNotOwner):
		c.answer(peer.Reply{Status: peer.StatusMisdirected})
	case errors.Is(err, inbox.ErrKeyReused):
		c.answer(peer.Reply{Status: peer.StatusKeyReused})
	default:
		c.node.metrics.appends.WithLabelValues(resultFailed).Inc()
		c.node.stored.health.suspect()
		c.answer(storeReply(err))
	}
}

func storeReply(err error) peer.Reply {
	return peer.Reply{Status: peer.StatusStore, Body: []byte(strings.ReplaceAll(err.Error(), "\n", ": "))}
}

// deliverStored writes a message that was just stored to the user's sessions.
// The log is locked.
func (n *Node) deliverStored(l *inbox.Log, e *inbox.Entry, p *inbox.Push) {
	c := p.Context.(*storing)
	c.stored()
	frame := storedFrame(e)
	if cur := n.rings.Current(); !cur.Settled() {
		if former := cur.Former(l.User); len(former) > 0 {
			n.storedBoth(c, l, e, frame, cur, former)
			return
		}
	}
	_, sessions := n.hub.find([]byte(l.User))
	out := &push{answer: func(delivered int) { c.answer(peer.Reply{Delivered: delivered, Seq: e.Seq}) }}
	// #nosec G115 -- at most MAX_SESSIONS_PER_USER, 10,000
	out.left.Store(int32(len(sessions) + 1)) // and this loop itself
	for _, s := range sessions {
		if s.old.Load() { // counted by the connection that follows it
			s.storedLocked(e, frame, nil)
			out.wrote(false)
			continue
		}
		s.storedLocked(e, frame, out)
	}
	out.wrote(false)
}

// haveWritten counts the user's sessions here that a stored message was written
// to. The log is locked.
func (n *Node) haveWritten(user string, seq uint64) int {
	k := 0
	_, sessions := n.hub.find([]byte(user))
	for _, s := range sessions {
		if s.attached && !s.old.Load() && s.at.Seq >= seq {
			k++
		}
	}
	return k
}

// storedFrame is the frame of a stored message.
func storedFrame(e *inbox.Entry) []byte {
	b := make([]byte, maxHeader, maxHeader+len(e.Body)*4/3+256+len(e.From))
	return headed(gws.OpcodeText, wire.AppendMessage(b, e.ID, wire.Stamp(e.Time), e.From, e.Seq, e.Cursor.String(), e.Body, e.JSON))
}

// storedHere carries out what the owner stored and handed on: to the sessions
// that are still here, and no further.
func (n *Node) storedHere(in *peer.In) {
	e, err := inbox.ParseMeta(string(in.Meta), in.Pos, in.Body)
	if err != nil {
		in.Reply(peer.Reply{Status: peer.StatusBad})
		return
	}
	l := n.stored.logs.Get(string(in.User))
	defer l.Release()
	l.Told(&e, func() {
		frame := storedFrame(&e)
		n.pushSessions(in, func(s *session, p *push) { s.storedLocked(&e, frame, p) })
	})
}

// logBehind has sessions catch up with what another node appended. The log is locked.
func (n *Node) logBehind(l *inbox.Log) {
	_, sessions := n.hub.find([]byte(l.User))
	for _, s := range sessions {
		s.catchUpLocked()
	}
}

// logFirst notes where sessions that came while the store was away go on, if
// nothing else says so: what is stored from now on is new to them. The log is locked.
func (n *Node) logFirst(l *inbox.Log, head inbox.Cursor) {
	_, sessions := n.hub.find([]byte(l.User))
	for _, s := range sessions {
		if s.attached && s.unresolved {
			s.now = head
		}
	}
}

// logLost ends the sessions of a log whose store lost data: their clients come
// back with their cursors, and their welcome tells them. What was acknowledged was
// of another log. The log is locked.
func (n *Node) logLost(l *inbox.Log) {
	readersOf(l).acked = 0
	_, sessions := n.hub.find([]byte(l.User))
	for _, s := range sessions {
		n.stored.positions.Reset(s.user, s.device)
		s.close(wire.CloseMoved, "the store lost messages: resume by the cursor")
	}
}

// tellOwner has the owner of a user look for a message that this node appended.
func (n *Node) tellOwner(user string) {
	cur := n.rings.Current()
	o, ok := cur.Owner(user)
	if !ok || o.ID == n.cfg.NodeID {
		return
	}
	n.peers.Get(o.ID, o.Boot, o.PeerURL).Do(&peer.Call{Op: peer.OpLook, Ring: cur.Ref(), User: user, Done: func(c *peer.Call) {
		if c.Err != nil { // it looks by itself a little later
			n.log.Info("the new owner of a user could not be told of a message that came late", "event", "late_append", "node", o.ID, "error", c.Err)
		}
	}})
}

// look carries out an OpLook.
func (n *Node) look(user string) error {
	ctx, cancel := context.WithTimeout(n.ctx, storeTimeout)
	defer cancel()
	l := n.stored.logs.Get(user)
	defer l.Release()
	return l.Look(ctx)
}

// turned takes note of a new ring.
func (d *stored) turned(cur *ring.Ring) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.turnedLocked(cur)
}

func (d *stored) turnedLocked(cur *ring.Ring) {
	if d.ring != nil && cur.Epoch <= d.ring.Epoch {
		return
	}
	now := time.Now()
	if d.ring != nil {
		d.past = append(d.past, pastRing{d.ring, now})
	}
	d.ring = cur
	for len(d.past) > 0 && now.Sub(d.past[0].until) > lookAgainAfter {
		d.past = d.past[1:]
	}
}

// taken notes that a log was read by a ring for the first time. If the ring is
// young, and gave this node the user, it is looked at once more later.
func (d *stored) taken(user string, by any) {
	cur, _ := by.(*ring.Ring)
	if cur == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.turnedLocked(cur) // it may be seen here first
	now, in := cur.Owner(user)
	for _, p := range d.past {
		was, ok := p.Owner(user)
		if time.Since(p.until) > lookAgainAfter || ok && in && was.ID == now.ID && was.Boot == now.Boot {
			continue
		}
		d.looks[user] = p.until.Add(lookAgainAfter)
	}
}

// lookAgain looks at the logs that taken noted, until ctx ends.
func (n *Node) lookAgain(ctx context.Context) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		var now time.Time
		select {
		case <-ctx.Done():
			return
		case now = <-t.C:
		}
		d := n.stored
		d.mu.Lock()
		var due []string
		for user, at := range d.looks {
			if now.After(at) {
				due = append(due, user)
				delete(d.looks, user)
			}
		}
		d.mu.Unlock()
		var g errgroup.Group
		g.SetLimit(looksAtOnce)
		for _, user := range due {
			g.Go(func() error {
				if err := n.look(user); err != nil && ctx.Err() == nil {
					d.mu.Lock()
					d.looks[user] = time.Now().Add(time.Second)
					d.mu.Unlock()
				}
				return nil
			})
		}
		_ = g.Wait() // the errors are handled above
	}
}
