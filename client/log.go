package client

import (
	"encoding/json"
	"sync"
	"time"

	"github.com/lxzan/gws"

	"github.com/dialring/dialring/internal/wire"
)

// inboxPlace is how far a Client has come in its user's stored messages:
//
//	unknown --a stored message--> at seq --seq+1--> at seq+1
//	   ^                            |  \--up to seq: dropped, it came before
//	   |                            |   \--beyond seq+1: a hole: resume after since
//	   +--gap: the log is another one, or lost something--+
//
// What is received moves it; what was handled is acknowledged, by acker.
type inboxPlace struct {
	mu    sync.Mutex
	since string // cursor of the last message that was received; "": none, and the node decides

	// run's own.
	seq   uint64
	known bool // seq is
}

func (p *inboxPlace) cursor() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.since
}

// received moves on to a message.
func (p *inboxPlace) received(seq uint64, cursor string) {
	p.seq, p.known = seq, true
	if cursor != "" {
		p.mu.Lock()
		p.since = cursor
		p.mu.Unlock()
	}
}

// reset forgets the place; the next message counts, whatever its number.
func (p *inboxPlace) reset(since string) {
	p.seq, p.known = 0, false
	p.mu.Lock()
	p.since = since
	p.mu.Unlock()
}

// acker acknowledges what the handler has handled, on whichever connection there
// is. It may be used concurrently.
type acker struct {
	mu     sync.Mutex
	conn   *conn
	log    int    // counts the logs that there were
	base   string // behind what was handled, or where this log began for the client
	cursor string // of the last message that was handled
	sent   string
	at     time.Time // when it was sent
	anchor string    // base, until a message comes: the node is to know it then
}

// A handler that is behind acknowledges every ackEvery; one that has caught up at once.
const ackEvery = 200 * time.Millisecond

// handled notes a message of a log; an ephemeral one has no cursor. more tells that
// others wait for the handler.
func (a *acker) handled(log int, cursor string, more bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if cursor != "" && log == a.log {
		a.cursor, a.base = cursor, cursor
	}
	if !more || time.Since(a.at) >= ackEvery {
		a.sendLocked()
	}
}

// current is the log that messages are of now.
func (a *acker) current() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.log
}

// last is the cursor behind which nothing was handled; "" if it is not known.
func (a *acker) last() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.base
}

// use has a connection used from now on; what the last one may have lost is said
// again.
func (a *acker) use(k *conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.conn, a.sent = k, ""
	a.sendLocked()
}

// reset forgets what was handled: it is of another log than what comes from base on.
func (a *acker) reset(base string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.log++
	a.base, a.cursor, a.sent, a.anchor = base, "", "", base
}

// anchored acknowledges the place where this log began for the client, before its first
// message: a device that never acknowledged anything would go on from now when it comes
// back, and what its handler had not finished would not come again.
func (a *acker) anchored() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.anchor != "" && a.cursor == "" && a.conn != nil {
		a.conn.send(wire.Ack{Type: wire.TypeAck, Cursor: a.anchor})
	}
	a.anchor = ""
}

func (a *acker) sendLocked() {
	if a.conn == nil || a.cursor == a.sent {
		return
	}
	if a.conn.send(wire.Ack{Type: wire.TypeAck, Cursor: a.cursor}) {
		a.sent, a.at = a.cursor, time.Now()
	}
}

// send writes a frame; false if that failed, and then the connection ends.
func (k *conn) send(v any) bool {
	return k.sendData(v, nil)
}

// sendData writes a frame with data, byte for byte, in its field data.
func (k *conn) sendData(v any, data json.RawMessage) bool {
	b := wire.WithData(v, data)
	k.mu.Lock()
	leaving := k.leaving
	k.mu.Unlock()
	if leaving {
		return false
	}
	_ = k.ws.NetConn().SetWriteDeadline(time.Now().Add(writeTimeout))
	return k.ws.WriteMessage(gws.OpcodeText, b) == nil
}

// stored takes a stored message.
func (r *receiver) stored(k *conn, m *wire.Message, out Message) {
	p := &r.c.place
	switch {
	case k.log != r.c.acks.current():
		return // from the old connection, of a log that is gone
	case p.known && m.Seq <= p.seq:
		return // it came before
	case p.known && m.Seq > p.seq+1:
		if k == r.cur && !k.resuming { // the replay brings this one, too
			k.resuming, k.progress = true, false
			k.send(wire.Resume{Type: wire.TypeResume, Since: p.cursor()})
		}
		return
	}
	k.progress = true
	r.c.acks.anchored()
	if r.hand(queued{Message: out, log: k.log, seen: r.c.seen.has(m.ID)}) {
		r.c.seen.add(m.ID)
		p.received(m.Seq, m.Cursor)
	}
}

// skip takes the node's word that messages will not come.
func (r *receiver) skip(k *conn, s *wire.Skip) {
	p := &r.c.place
	if k.log != r.c.acks.current() || !p.known || s.To <= p.seq {
		return
	}
	k.progress = true
	p.received(s.To, "")
	if s.Reason == wire.SkipLimit {
		r.tellGap(k)
	}
}

// resumed ends a replay that this client asked for. A gap without one message of a
// replay means another log: what it keeps follows.
func (r *receiver) resumed(k *conn, f *wire.Resumed) {
	asked, progress := k.resuming, k.progress
	k.resuming = false
	switch {
	case f.Gap && (!asked || !progress):
		r.c.place.reset(f.Since)
		r.c.acks.reset(f.Since)
		k.log = r.c.acks.current()
		r.tellGap(k)
	case !asked && !r.c.place.known: // only now the node knows where this client goes on
		r.c.place.reset(f.Since)
		r.c.acks.reset(f.Since)
		k.log = r.c.acks.current()
	case asked && !progress: // the node cannot fill the hole and does not say so
		r.c.place.reset(r.c.place.cursor())
		r.tellGap(k)
	}
}

func (r *receiver) tellGap(k *conn) {
	r.c.tell(Event{State: Connected, Node: k.node, Session: k.session, Gap: true})
}
