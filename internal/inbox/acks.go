package inbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// acks are the appends that wait for their acknowledgement, by the last part of the
// subject that it comes to.
type acks struct {
	mu      sync.Mutex
	prefix  string // of the subjects
	last    uint64
	waiting map[string]*waiting
	closed  bool
	queue   []*nats.Msg    // to be published
	wake    chan struct{}  // the publisher
	calls   sync.WaitGroup // of done that are under way
}

type waiting struct {
	done     func(pos uint64, dup bool, err error)
	deadline time.Time
	stream   string
	server   string // that it was published to, if that wants a sync
}

var (
	errNoAnswer = errors.New("JetStream did not answer in time")
	errBroken   = errors.New("the connection to NATS broke")
)

// expireEvery is how often it is looked whose time is over.
const expireEvery = 100 * time.Millisecond

// AppendAsync implements AsyncStore.
func (s *JetStream) AppendAsync(user string, e *Entry, key string, expect uint64, deadline time.Time, done func(pos uint64, dup bool, err error)) {
	select {
	case <-s.known:
	default:
		done(0, false, errors.New("the streams of the inbox are not there yet"))
		return
	}
	p, subject, _ := s.placeKnown(user)
	reply, err := s.acks.add(&waiting{done: done, deadline: deadline, stream: s.stream(p)})
	if err != nil {
		done(0, false, err)
		return
	}
	m := message(subject, e, key, expect)
	m.Reply = reply
	s.acks.mu.Lock()
	s.acks.queue = append(s.acks.queue, m)
	s.acks.mu.Unlock()
	select {
	case s.acks.wake <- struct{}{}:
	default:
	}
}

// publishLoop publishes what AppendAsync queued, until ctx ends: nats.go may hold up
// whoever publishes while it dials, or while the server takes no bytes.
func (s *JetStream) publishLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.acks.wake:
		}
		s.acks.mu.Lock()
		queue := s.acks.queue
		s.acks.queue = nil
		s.acks.mu.Unlock()
		server, err := s.o.Synced()
		for _, m := range s.acks.to(server, queue) {
			err := err
			if err == nil {
				err = s.o.Conn.PublishMsg(m)
			}
			if err != nil {
				if w, ok := s.acks.take(m.Reply); ok {
					w.done(0, false, err)
					s.acks.calls.Done()
				}
			}
		}
	}
}

// listen subscribes to the acknowledgements.
func (s *JetStream) listen() error {
	prefix := s.o.Conn.NewInbox() + "."
	_, err := s.o.Conn.Subscribe(prefix+"*", s.acknowledged)
	s.acks.mu.Lock()
	defer s.acks.mu.Unlock()
	s.acks.prefix, s.acks.waiting = prefix, map[string]*waiting{}
	return err
}

// add has an acknowledgement waited for, and returns the subject for it.
func (a *acks) add(w *waiting) (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed || a.waiting == nil {
		return "", errBroken
	}
	a.last++
	reply := a.prefix + strconv.FormatUint(a.last, 36)
	a.waiting[reply] = w
	return reply, nil
}

// take takes who waits for an acknowledgement; the caller ends the call with Done.
func (a *acks) take(reply string) (*waiting, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w, ok := a.waiting[reply]
	if ok {
		a.calls.Add(1)
		delete(a.waiting, reply)
	}
	return w, ok
}

// acknowledged takes the answer to an append.
func (s *JetStream) acknowledged(m *nats.Msg) {
	w, ok := s.acks.take(m.Subject)
	if !ok {
		return // it came too late
	}
	defer s.acks.calls.Done()
	if len(m.Data) == 0 && m.Header.Get(statusHeader) == statusNoResponders {
		s.Wake()
		w.done(0, false, nats.ErrNoResponders)
		return
	}
	pos, dup, err := readAck(m.Data)
	if err != nil || w.server == "" {
		w.done(pos, dup, err)
		return
	}
	s.syncs.add(w.server, w.stream, func(err error) { w.done(pos, dup, err) })
}

const statusNoResponders = "503"

// to notes where messages are published. It drops those whose time is over: somebody
// was told so.
func (a *acks) to(server string, queue []*nats.Msg) []*nats.Msg {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := queue[:0]
	for _, m := range queue {
		if w := a.waiting[m.Reply]; w != nil {
			w.server = server
			out = append(out, m)
		}
	}
	return out
}

// fail ends those whose time is over at now, or all, with err.
func (a *acks) fail(now time.Time, all bool, err error) {
	a.mu.Lock()
	var out []*waiting
	for reply, w := range a.waiting {
		if all || now.After(w.deadline) {
			delete(a.waiting, reply)
			a.calls.Add(1)
			out = append(out, w)
		}
	}
	a.mu.Unlock()
	for _, w := range out {
		w.done(0, false, err)
		a.calls.Done()
	}
}

// expire ends appends whose time is over, until ctx ends, and then all. No callback
// is under way any more when it returns.
func (s *JetStream) expire(ctx context.Context) {
	t := time.NewTicker(expireEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			s.acks.mu.Lock()
			s.acks.closed = true
			s.acks.mu.Unlock()
			s.acks.fail(time.Time{}, true, errBroken)
			s.acks.calls.Wait()
			return
		case now := <-t.C:
			s.acks.fail(now, false, errNoAnswer)
		}
	}
}

// Reconnected is to be called when NATS was connected again: acknowledgements that
// were under way are lost, and the streams may be.
func (s *JetStream) Reconnected() {
	s.acks.fail(time.Time{}, true, errBroken)
	s.Wake()
}

// readAck reads an acknowledgement, or why there is none.
func readAck(b []byte) (uint64, bool, error) {
	if pos, dup, ok := parseAck(b); ok {
		return pos, dup, nil
	}
	var ack struct {
		Seq       uint64 `json:"seq"`
		Duplicate bool   `json:"duplicate"`
		Error     *struct {
			Code        int    `json:"err_code"`
			Description string `json:"description"`
		} `json:"error"`
	}
	if err := json.Unmarshal(b, &ack); err != nil {
		return 0, false, fmt.Errorf("the answer of JetStream cannot be read: %w", err)
	}
	switch {
	case ack.Error == nil && ack.Seq > 0:
		return ack.Seq, ack.Duplicate, nil
	case ack.Error == nil:
		return 0, false, errors.New("JetStream does not say where the message is")
	case ack.Error.Code == errWrongLast || ack.Error.Code == errWrongLastText:
		return 0, false, ErrConflict
	}
	return 0, false, fmt.Errorf("JetStream refuses the message: %s (%d)", ack.Error.Description, ack.Error.Code)
}

// parseAck reads a JetStream acknowledgement as the server writes it; anything
// else is left to encoding/json, which takes as long as all the rest.
func parseAck(b []byte) (pos uint64, dup, ok bool) {
	_, b, ok = bytes.Cut(b, []byte(`,"seq":`))
	if !ok {
		return 0, false, false
	}
	for len(b) > 0 && b[0] >= '0' && b[0] <= '9' && pos < math.MaxUint64/20 {
		pos, b = 10*pos+uint64(b[0]-'0'), b[1:]
	}
	switch string(b) {
	case "}":
	case `,"duplicate": true}`:
		dup = true
	default:
		return 0, false, false
	}
	return pos, dup, pos > 0
}

// JetStream's error codes for an unexpected last sequence.
const (
	errWrongLast     = 10071
	errWrongLastText = 10164
)
