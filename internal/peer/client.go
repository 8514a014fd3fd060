package peer

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"net"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/dialring/dialring/internal/certs"
	"github.com/dialring/dialring/internal/wire"
)

// Call is one thing asked of a node. Its fields are set before Do and not
// touched until Done was called, once, with Reply or Err set.
type Call struct {
	Op     Op
	Ring   wire.RingRef // by which the node was chosen
	User   string
	Device string // "": all devices
	ID     string // of the message
	JSON   bool   // whether Body is
	From   string // user who sends it; "": a service
	// Forwarded: by the owner to a former one, for the sessions that it still holds.
	Forwarded bool
	Have      []string // with Forwarded: sessions that have got it, over a newer connection
	Body      []byte
	// Durable: the message is to be stored, by Key (the service's, or none), and is
	// of use for TTL (0: always).
	Durable bool
	Key     string
	TTL     time.Duration
	// Stored, with Forwarded: it is stored already; Meta and Pos are the store's.
	Stored bool
	Pos    uint64
	Meta   string
	Trace  []byte      // the span that this is part of; nil: it is not traced
	Done   func(*Call) // must not block

	sentAt time.Time // the link's own

	Reply Reply
	Peer  wire.RingRef // the ring that the node goes by, with a reply
	Err   error        // instead of a reply
}

// Limits of a link.
const (
	dialTimeout = time.Second
	// gateTimeout is how long a node may take until it says that it got a batch.
	gateTimeout = 1500 * time.Millisecond
	// lateTimeout is how long, after that, it may take for each further answer:
	// longer than a node waits for a newer ring and then for the store.
	lateTimeout = 4 * time.Second
	// A link whose last batch had some calls, but not many, collects the next one
	// for hold longer: what a batch costs, for waking both processes, is then
	// worth more than the wait.
	someCalls = 4
	manyCalls = 16
	hold      = 500 * time.Microsecond

	writeTimeout = 2 * time.Second
	maxPending   = 64 << 20 // bytes that wait for a node
)

// Link is a caller's side of a connection to one node. It connects when first
// asked and again after it broke. It may be used concurrently.
//
//	down --Do--> connecting --101--> up --read or write failed--> down
//	                  \--failed--> down
//
// While down or connecting calls collect; a failed connect fails them all. When
// up, one batch is under way at a time (gate closed), until the node's first
// replies to it open the gate.
type Link struct {
	// Broken, if set before the first Do, is called when a connection that was up
	// has ended without Close, or could not be made. It must not block.
	Broken func()
	// TLS, if set before the first Do, is shown to the node and judges it.
	TLS *certs.Files
	// Guard, if set before the first Do, judges what address the node's name led to.
	Guard Guard

	url   string
	token func() string

	mu       sync.Mutex
	state    linkState
	conn     net.Conn
	gate     bool // closed: a batch is under way
	pending  []*Call
	bytes    int
	sent     map[uint64]*Call
	lastID   uint64
	last     int // calls in the last batch
	closed   bool
	cancel   context.CancelFunc // of a connect under way
	routines sync.WaitGroup
}

type linkState int

const (
	down linkState = iota
	connecting
	up
)

// NewLink makes a link to the node at url, a peer address. token signs a new
// peer token for that node.
func NewLink(url string, token func() string) *Link {
	return &Link{url: url, token: token, sent: map[uint64]*Call{}}
}

// Do sends a call, together with others if the link is busy, and returns at once.
func (l *Link) Do(c *Call) {
	l.mu.Lock()
	if l.closed || l.bytes > maxPending {
		err := ErrUnreachable
		if !l.closed {
			err = ErrBusy
		}
		l.mu.Unlock()
		c.Err = err
		c.Done(c)
		return
	}
	l.pending = append(l.pending, c)
	l.bytes += len(c.Body)
	switch {
	case l.state == down:
		l.connectLocked()
	case l.state == up && !l.gate:
		l.gate = true
		l.mu.Unlock()
		l.gather()
		return
	}
	l.mu.Unlock()
}

// Open connects if the link is down, without a call: whoever holds a link to a
// process hears of its death at once.
func (l *Link) Open() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == down && !l.closed {
		l.connectLocked()
	}
}

func (l *Link) connectLocked() {
	l.state = connecting
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	l.cancel = cancel
	l.routines.Go(func() {
		defer cancel()
		l.connect(ctx)
	})
}

// gather lets callers that are ready to run add their calls to the batch, and
// sends it. On an idle machine there are none and it costs nothing; on a busy
// one the batches get larger just when that saves most.
func (l *Link) gather() {
	runtime.Gosched()
	l.mu.Lock()
	if l.state != up {
		l.mu.Unlock()
		return
	}
	l.sendLocked()
}

// Close ends the link; calls without a reply fail. It waits for its goroutines.
func (l *Link) Close() {
	l.mu.Lock()
	l.closed = true
	if l.cancel != nil {
		l.cancel()
	}
	l.mu.Unlock()
	l.fail(nil, ErrUnreachable)
	l.routines.Wait()
}

// Idle tells whether no call waits for anything.
func (l *Link) Idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.pending) == 0 && len(l.sent) == 0
}

// sendLocked sends the next batch of those that wait, and unlocks.
func (l *Link) sendLocked() {
	n, size := 0, 0
	for n < len(l.pending) && n < batchCalls && (n == 0 || size+len(l.pending[n].Body) <= batchBytes) && l.pending[n].Ring == l.pending[0].Ring {
		size += len(l.pending[n].Body) + len(l.pending[n].User) + 64
		n++
	}
	if n == 0 {
		l.gate = false
		l.mu.Unlock()
		return
	}
	b := make([]byte, 0, size+32)
	b = appendHeader(b, frameBatch, l.pending[0].Ring)
	b = binary.AppendUvarint(b, uint64(n))
	now := time.Now()
	for _, c := range l.pending[:n] {
		c.sentAt = now
		l.lastID++
		l.sent[l.lastID] = c
		l.bytes -= len(c.Body)
		b = binary.AppendUvarint(b, l.lastID)
		flags := byte(0)
		if c.JSON {
			flags |= flagJSON
		}
		if c.Forwarded {
			flags |= flagForwarded
		}
		if c.Durable {
			flags |= flagDurable
		}
		if c.Stored {
			flags |= flagStored
		}
		if c.From != "" {
			flags |= flagFrom
		}
		if c.Trace != nil {
			flags |= flagTrace
		}
		b = append(b, byte(c.Op), flags)
		b = appendBytes(b, c.User)
		b = appendBytes(b, c.Device)
		b = appendBytes(b, c.ID)
		b = appendBytes(b, c.Body)
		if c.Forwarded {
			b = binary.AppendUvarint(b, uint64(len(c.Have)))
			for _, id := range c.Have {
				b = appendBytes(b, id)
			}
		}
		if c.Durable {
			b = appendBytes(b, c.Key)
			b = binary.AppendUvarint(b, uint64(c.TTL.Milliseconds())) // #nosec G115 -- no TTL is negative
		}
		if c.Stored {
			b = binary.AppendUvarint(b, c.Pos)
			b = appendBytes(b, c.Meta)
		}
		if c.From != "" {
			b = appendBytes(b, c.From)
		}
		if c.Trace != nil {
			b = appendBytes(b, c.Trace)
		}
	}
	if n == len(l.pending) {
		l.pending = nil
	} else {
		l.pending = l.pending[n:]
	}
	l.gate, l.last = true, n
	conn := l.conn
	l.mu.Unlock()
	_ = conn.SetReadDeadline(now.Add(gateTimeout)) // replies moves or clears it
	_ = conn.SetWriteDeadline(now.Add(writeTimeout))
	if _, err := conn.Write(finish(b)); err != nil {
		l.fail(conn, err)
	}
}

func (l *Link) connect(ctx context.Context) {
	conn, br, err := l.dial(ctx)
	l.mu.Lock()
	if err == nil && l.closed {
		_ = conn.Close()
		err = net.ErrClosed
	}
	if err != nil {
		l.mu.Unlock()
		l.fail(nil, err)
		return
	}
	l.conn, l.state = conn, up
	l.routines.Go(func() { l.read(conn, br) })
	l.sendLocked()
}

// read takes replies until the link ends.
func (l *Link) read(conn net.Conn, br *bufio.Reader) {
	for {
		typ, body, err := readFrame(br)
		if err == nil && typ != frameReplies {
			err = errFrame
		}
		if err == nil {
			err = l.replies(conn, body)
		}
		if err != nil {
			l.fail(conn, err)
			return
		}
	}
}

func (l *Link) replies(conn net.Conn, body []byte) error {
	r := reader{b: body}
	ref := r.ref()
	first := r.byte()&flagFirst != 0
	n := r.uvarint()
	if n > batchCalls {
		return errFrame
	}
	done := make([]*Call, 0, n)
	l.mu.Lock()
	busy := l.last >= someCalls && l.last < manyCalls
	for range n {
		id := r.uvarint()
		rep := Reply{Status: Status(r.byte()), Delivered: int(r.uvarint()), Seq: r.uvarint(), Body: r.bytes()} // #nosec G115 -- a count; the link is of our cluster
		c := l.sent[id]
		if !r.bad && c == nil && id > 0 && id <= l.lastID {
			continue // it came too late
		}
		if r.bad || c == nil {
			l.mu.Unlock()
			l.finish(done)
			return errFrame
		}
		delete(l.sent, id)
		c.Reply, c.Peer = rep, ref
		done = append(done, c)
	}
	if first || !l.gate {
		var end time.Time
		if len(l.sent) > 0 {
			now := time.Now()
			end = now.Add(lateTimeout)
			for id, c := range l.sent { // others keep the link busy: the deadline does not find these
				if now.Sub(c.sentAt) > gateTimeout+lateTimeout {
					delete(l.sent, id)
					c.Err = ErrLost
					done = append(done, c)
				}
			}
		}
		_ = conn.SetReadDeadline(end)
	}
	l.mu.Unlock()
	l.finish(done)
	switch {
	case first && busy:
		time.AfterFunc(hold, l.gather)
	case first:
		l.gather()
	}
	return nil
}

func (l *Link) finish(calls []*Call) {
	for _, c := range calls {
		c.Done(c)
	}
}

// fail ends the connection conn (nil: the one that was being made) and fails
// what waits for it.
func (l *Link) fail(conn net.Conn, err error) {
	l.mu.Lock()
	if conn != nil && conn != l.conn {
		l.mu.Unlock()
		_ = conn.Close()
		return
	}
	if l.conn != nil {
		discard(l.conn)
	}
	pending, sent := l.pending, l.sent
	broken := l.state != down && !l.closed && l.Broken != nil
	l.conn, l.state, l.gate, l.pending, l.bytes, l.sent = nil, down, false, nil, 0, map[uint64]*Call{}
	l.mu.Unlock()
	if broken {
		l.Broken()
	}
	for _, c := range pending {
		c.Err = &linkError{ErrUnreachable, err}
		c.Done(c)
	}
	for _, c := range sent {
		c.Err = &linkError{ErrLost, err}
		c.Done(c)
	}
}

// discard closes a connection with what it has not delivered yet: after a cut has
// healed, the kernel would deliver calls that were given up long ago.
func discard(c net.Conn) {
	raw := c
	if t, ok := c.(*tls.Conn); ok {
		raw = t.NetConn()
	}
	if t, ok := raw.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = raw.Close()
}

// Ask sends a call whose Done is not set and waits for its reply, until ctx ends.
func (l *Link) Ask(ctx context.Context, c *Call) (Reply, error) {
	done := make(chan struct{})
	c.Done = func(*Call) { close(done) }
	l.Do(c)
	select {
	case <-done:
		return c.Reply, c.Err
	case <-ctx.Done():
		return Reply{}, ctx.Err()
	}
}

// Withdraw takes back a call that has not been sent. It reports whether it could;
// then the call has not been carried out, and Done is not called any more.
func (l *Link) Withdraw(c *Call) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.pending, c)
	if i < 0 {
		return false
	}
	l.pending = slices.Delete(slices.Clone(l.pending), i, i+1)
	l.bytes -= len(c.Body)
	return true
}
