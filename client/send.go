package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// Send sends data, as JSON, to another user, if this user's token allows that (its
// claim send_to): stored, for all of the user's devices, unless Ephemeral is given. It
// waits for a connection, and until the message is accepted, or ctx ends; what ctx's end
// interrupts may have been sent. A stored message is sent again over the next
// connection when one breaks, and is one message in the end: the cluster knows it by its
// key for two minutes (DIALRING_IDEMPOTENCY_WINDOW of the nodes), so one that was first sent
// 100 s ago is not repeated, and fails with ErrConnectionLost. So does an ephemeral one, at
// once. IdempotencyKey names a message over restarts of the app as well, for as long. When the node asks for less haste, Send waits and tries again.
//
// The error is a *SendError when the cluster refuses the message, and that with which Run
// ended when it has. Messages of one Client to one user keep their order as long as each
// Send is called after the one before has returned.
func (c *Client) Send(ctx context.Context, to string, data any, opts ...PushOption) (Receipt, error) {
	if err := wire.CheckUser(to); err != nil {
		return Receipt{}, fmt.Errorf("dialring: %w", err)
	}
	o := options(opts)
	ephemeral := o.ephemeral()
	if o.query.Del("durable"); len(o.query) > 0 {
		return Receipt{}, errors.New("dialring: Send takes Ephemeral and IdempotencyKey, no other option")
	}
	if ephemeral && o.key != "" {
		return Receipt{}, errors.New("dialring: an IdempotencyKey is of a stored message; leave it out, or Ephemeral")
	}
	a, err := c.send(ctx, &wire.Send{To: to, Ephemeral: ephemeral, ID: o.key}, data)
	if err != nil {
		return Receipt{}, err
	}
	r := Receipt{ID: a.ID, Seq: a.Seq, Stored: a.Stored, Duplicate: a.Duplicate}
	if a.Delivered != nil {
		r.Delivered = *a.Delivered
	}
	return r, nil
}

// Request sends data, as JSON, to the application behind the cluster and returns what
// it answered: JSON, or nil. It is asked again over the next connection when one
// breaks; the application can tell by the message's id, which is the same. The error is
// a *SendError when the application refuses it, or is not there. Requests that are under
// way at the same time may reach the application in any order.
func (c *Client) Request(ctx context.Context, data any) (json.RawMessage, error) {
	a, err := c.send(ctx, &wire.Send{}, data)
	if err != nil {
		return nil, err
	}
	return a.Data, nil
}

// SendError is why a message of this client was refused.
type SendError struct {
	Code   string // stable, such as forbidden, too_large, no_application
	Detail string
}

func (e *SendError) Error() string {
	return "dialring: the message was refused: " + e.Code + ": " + e.Detail
}

var (
	// ErrConnectionLost means that the connection broke before a message was answered that
	// is not sent again, since it is ephemeral or too old: it may have been delivered.
	ErrConnectionLost = errors.New("dialring: the connection broke before the message was answered")
	// ErrNotRunning means that Run has ended, without an error.
	ErrNotRunning = errors.New("dialring: the client has stopped")
)

const (
	// maxUnanswered is how many messages are written and not answered at a time: a node
	// refuses more.
	maxUnanswered = 64
	// hasteWait is how long nothing is sent when a node asks for less haste.
	hasteWait = time.Second
	// repeatFor is how long after its first write a message to a user may be written again.
	// A node knows its key for two minutes; the rest is for the way, and for clocks.
	repeatFor = 100 * time.Second
)

// sender keeps what was sent and not answered.
//
//	new --there is a connection, or one comes--> written --ack or error--> answered
//	 ^                                           |   ^ \--ctx ends--> forgotten
//	 +--error rate_limited, after a while--------+   |
//	                       its connection has ended, and it may be sent again; else
//	                       it fails: then, or, if it grew too old, with the next one
//
// One goroutine writes, while there is something to write.
type sender struct {
	prefix string        // of refs: this Client's own
	repeat time.Duration // repeatFor

	mu      sync.Mutex
	n       uint64
	calls   map[string]*call // by ref
	order   []*call
	conn    *conn // in use; nil: none
	limit   int   // bytes of data that the node takes; 0: not known yet
	writing bool
	pause   time.Time // until then nothing is written
	ended   error     // of Run, once it has
	writers sync.WaitGroup
}

type call struct {
	frame wire.Send // without data
	data  json.RawMessage
	ref   string
	on    *conn         // it was written to
	first time.Time     // it was written, and not refused
	lost  bool          // a connection that it was written to has ended
	done  chan struct{} // closed with ack or err set
	over  bool          // it is
	ack   wire.SendAck
	err   error
}

func (c *Client) send(ctx context.Context, f *wire.Send, data any) (*wire.SendAck, error) {
	b, err := jsonOf(data)
	if err != nil {
		return nil, err
	}
	f.Type = wire.TypeSend
	if f.ID == "" && !f.Ephemeral {
		f.ID = randomKey()
	}
	k, err := c.sends.add(f, b)
	if err != nil {
		return nil, err
	}
	defer c.sends.forget(k)
	select {
	case <-k.done:
		return &k.ack, k.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *sender) add(f *wire.Send, data json.RawMessage) (*call, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended != nil {
		return nil, s.ended
	}
	s.n++
	ref := s.prefix + strconv.FormatUint(s.n, 36)
	f.Ref, _ = json.Marshal(ref) // a string always has an encoding
	k := &call{frame: *f, data: data, ref: ref, done: make(chan struct{})}
	s.calls[ref] = k
	s.order = append(s.order, k)
	s.kickLocked()
	return k, nil
}

// forget lets go of a call whose caller has gone.
func (s *sender) forget(k *call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.calls, k.ref)
	for i, o := range s.order {
		if o == k {
			s.order = append(s.order[:i:i], s.order[i+1:]...)
			break
		}
	}
	s.kickLocked()
}

func (s *sender) endLocked(k *call, err error) {
	if !k.over {
		k.over, k.err = true, err
		close(k.done)
	}
}

// kickLocked sees to it that what can be written is.
func (s *sender) kickLocked() {
	if s.conn != nil && !s.writing {
		s.writing = true
		s.writers.Go(s.write)
	}
}

// write writes what was not written, in order, until nothing is left.
func (s *sender) write() {
	for {
		s.mu.Lock()
		next := s.nextLocked()
		if next == nil {
			s.writing = false
			s.mu.Unlock()
			return
		}
		conn := s.conn
		if next.on = conn; next.first.IsZero() {
			next.first = time.Now()
		}
		s.mu.Unlock()
		conn.sendData(next.frame, next.data) // if that fails the connection ends, and the next one has it
	}
}

// nextLocked is the next call to write; nil if there is none, or not now.
func (s *sender) nextLocked() *call {
	if s.conn == nil {
		return nil
	}
	if wait := time.Until(s.pause); wait > 0 {
		time.AfterFunc(wait, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.kickLocked()
		})
		return nil
	}
	under := 0
	for _, k := range s.order {
		switch {
		case k.over:
		case k.on != nil:
			if under++; under >= maxUnanswered {
				return nil
			}
		case s.spentLocked(k):
			s.endLocked(k, ErrConnectionLost)
		case s.limit > 0 && len(k.data) > s.limit:
			s.endLocked(k, &SendError{Code: string(wire.CodeTooLarge), Detail: fmt.Sprintf("a message has at most %d bytes, this one has %d", s.limit, len(k.data))})
		default:
			return k
		}
	}
	return nil
}

// use has messages written to a connection from now on.
func (s *sender) use(k *conn, limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn, s.limit = k, limit
	s.kickLocked()
}

// waits tells whether an answer is to come over a connection.
func (s *sender) waits(on *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.order {
		if k.on == on && !k.over {
			return true
		}
	}
	return false
}

// spentLocked tells whether a message may not be written again, since it might be two then.
// The application's own is told by its id, whenever it comes.
func (s *sender) spentLocked(k *call) bool {
	return k.lost && (k.frame.Ephemeral || k.frame.To != "" && time.Since(k.first) >= s.repeat)
}

// lost notes that a connection has ended.
func (s *sender) lost(k *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == k {
		s.conn = nil
	}
	for _, o := range s.order {
		if o.on != k || o.over {
			continue
		}
		if o.on, o.lost = nil, true; s.spentLocked(o) {
			s.endLocked(o, ErrConnectionLost)
		}
	}
	s.kickLocked()
}

// begin and end bracket a Run. When it has ended, so have all calls, and later ones.
func (s *sender) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = nil
}

func (s *sender) end(err error) {
	if err == nil {
		err = ErrNotRunning
	}
	s.mu.Lock()
	s.ended, s.conn = err, nil
	for _, k := range s.order {
		s.endLocked(k, err)
	}
	s.mu.Unlock()
	s.writers.Wait()
}

// answer takes an ack or an error of a node.
func (s *sender) answer(b []byte, refused bool) {
	var f struct {
		wire.SendAck
		Code   string `json:"code"`
		Detail string `json:"detail"`
	}
	var ref string
	if json.Unmarshal(b, &f) != nil || json.Unmarshal(f.Ref, &ref) != nil {
		return // of no send of ours
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.calls[ref]
	switch {
	case k == nil || k.over:
		return
	case refused && f.Code == string(wire.CodeRateLimited):
		k.on, s.pause = nil, time.Now().Add(hasteWait)
		if !k.lost {
			k.first = time.Time{} // it certainly was not taken
		}
	case refused:
		s.endLocked(k, &SendError{Code: f.Code, Detail: f.Detail})
	default:
		k.ack = f.SendAck
		s.endLocked(k, nil)
	}
	s.kickLocked()
}
