package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/dialring/dialring/internal/wire"
)

// Send sends data, as JSON, to another user, if this user's token allows that (its
// claim send_to): stored, for all of the user's devices, unless Ephemeral is given. It
// waits for a connection, and until the message is accepted, or ctx ends; what ctx's end
// interrupts may have been sent. A stored message is sent again over the next
// connection when one breaks, and is one message in the end; IdempotencyKey names it
// over restarts of the app as well. An ephemeral one is not, and fails with
// ErrConnectionLost then.
//
// The error is a *SendError when the cluster refuses the message. Run must be running.
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
// a *SendError when the application refuses it, or is not there.
func (c *Client) Request(ctx context.Context, data any) (json.RawMessage, error) {
	a, err := c.send(ctx, &wire.Send{}, data)
	if err != nil {
		return nil, err
	}
	return a.Data, nil
}

// SendError is why a message of this client was refused.
type SendError struct {
	Code   string // stable, such as forbidden, rate_limited, no_application
	Detail string
}

func (e *SendError) Error() string {
	return "dialring: the message was refused: " + e.Code + ": " + e.Detail
}

// ErrConnectionLost means that the connection broke before an ephemeral message was
// answered: it may have been delivered.
var ErrConnectionLost = errors.New("dialring: the connection broke before the message was answered")

// sender keeps what was sent and not answered.
//
//	new --there is a connection, or one comes--> written --ack or error--> answered
//	                                             |   ^ \--ctx ends--> forgotten
//	                     its connection was lost +---+ (an ephemeral one: ErrConnectionLost)
type sender struct {
	prefix string // of refs: this Client's own

	mu    sync.Mutex
	n     uint64
	calls map[string]*call // by ref
	order []*call
	conn  *conn // in use; nil: none

	write sync.Mutex // frames go out in order
}

type call struct {
	frame wire.Send // without data
	data  json.RawMessage
	ref   string
	on    *conn         // it was written to last
	done  chan struct{} // closed with ack or err set
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
	k := c.sends.add(f, b)
	defer c.sends.forget(k)
	c.sends.flush()
	select {
	case <-k.done:
		return &k.ack, k.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *sender) add(f *wire.Send, data json.RawMessage) *call {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	ref := s.prefix + strconv.FormatUint(s.n, 36)
	f.Ref, _ = json.Marshal(ref) // a string always has an encoding
	k := &call{frame: *f, data: data, ref: ref, done: make(chan struct{})}
	s.calls[ref] = k
	s.order = append(s.order, k)
	return k
}

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
}

// flush writes what was not written to the connection in use, in order.
func (s *sender) flush() {
	s.write.Lock()
	defer s.write.Unlock()
	for {
		s.mu.Lock()
		conn := s.conn
		var next *call
		for _, k := range s.order {
			if k.on != conn && (k.on == nil || !k.frame.Ephemeral) && !k.answered() {
				next = k
				break
			}
		}
		if conn == nil || next == nil {
			s.mu.Unlock()
			return
		}
		next.on = conn
		s.mu.Unlock()
		conn.sendData(next.frame, next.data) // if that fails the connection ends, and the next one has it
	}
}

func (k *call) answered() bool {
	select {
	case <-k.done:
		return true
	default:
		return false
	}
}

// use has what is not answered written to a connection from now on.
func (s *sender) use(k *conn) {
	s.mu.Lock()
	s.conn = k
	s.mu.Unlock()
}

// lost notes that a connection has ended.
func (s *sender) lost(k *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == k {
		s.conn = nil
	}
	for _, o := range s.order {
		if o.on == k && o.frame.Ephemeral && !o.answered() {
			o.err = ErrConnectionLost
			close(o.done)
		}
	}
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
	if k == nil || k.answered() {
		return
	}
	if k.ack = f.SendAck; refused {
		k.err = &SendError{Code: f.Code, Detail: f.Detail}
	}
	close(k.done)
}
