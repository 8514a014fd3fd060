package inbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// acks are the messages that wait for their acknowledgement, by the last part of the
// subject that it comes to.
type acks struct {
	mu      sync.Mutex
	prefix  string // of the subjects
	last    uint64
	waiting map[uint64]*waiting
	closed  bool
	queue   []*waiting     // to be published
	more    int            // calls of Together that are under way
	wake    chan struct{}  // the publisher
	calls   sync.WaitGroup // of done that are under way
}

// waiting is a message that is to be stored.
type waiting struct {
	message
	done     func(pos uint64, dup bool, err error)
	deadline time.Time
	stream   string // to be synced; "": it need not be safe

	n      uint64 // that it waits by
	over   bool   // it does not wait any more; guarded by acks
	server string // that it was published to, if that wants a sync
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
	meta, body := s.o.Keys.sealed(s.o.Cluster, user, e)
	s.acks.add(&waiting{message: message{subject: subject, meta: meta, key: key, expect: expect, body: body}, done: done, deadline: deadline, stream: s.stream(p)})
}

// SetPositionAsync implements AsyncStore.
func (s *JetStream) SetPositionAsync(user, device string, c Cursor, rev uint64, deadline time.Time, done func(rev uint64, err error)) {
	s.acks.add(&waiting{message: s.position(user, device, c, rev), deadline: deadline, done: func(rev uint64, _ bool, err error) { done(rev, err) }})
}

// Together implements AsyncStore.
func (s *JetStream) Together(f func()) {
	s.acks.mu.Lock()
	s.acks.more++
	s.acks.mu.Unlock()
	defer func() {
		s.acks.mu.Lock()
		s.acks.more--
		any := len(s.acks.queue) > 0
		s.acks.mu.Unlock()
		if any {
			s.acks.publish()
		}
	}()
	f()
}

// manyAppends are published also while more may come.
const manyAppends = 256

// publish wakes publishLoop.
func (a *acks) publish() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// publishLoop publishes what AppendAsync queued, until ctx ends: nats.go may hold up
// whoever publishes while it dials, or while the server takes no bytes.
func (s *JetStream) publishLoop(ctx context.Context) {
	var out envelope
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.acks.wake:
		}
		server, err := s.o.Synced()
		for _, w := range s.acks.next(server) {
			err := err
			if err == nil {
				err = s.o.Conn.PublishMsg(out.with(&w.message, s.acks.reply(w.n)))
			}
			if err != nil && s.acks.take(w.n) != nil {
				w.done(0, false, err)
				s.acks.calls.Done()
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
	s.acks.prefix, s.acks.waiting = prefix, map[uint64]*waiting{}
	return err
}

// add has w published, and hear what becomes of it.
func (a *acks) add(w *waiting) {
	a.mu.Lock()
	if a.closed || a.waiting == nil {
		a.mu.Unlock()
		w.done(0, false, errBroken)
		return
	}
	a.last++
	w.n = a.last
	a.waiting[w.n] = w
	a.queue = append(a.queue, w)
	now := a.more == 0 || len(a.queue) >= manyAppends
	a.mu.Unlock()
	if now {
		a.publish()
	}
}

// next takes off the queue what is to be published, at that server, but those whose
// time is over: somebody was told so.
func (a *acks) next(server string) []*waiting {
	a.mu.Lock()
	defer a.mu.Unlock()
	queue := a.queue
	a.queue = nil
	out := queue[:0]
	for _, w := range queue {
		if w.over {
			continue
		}
		if w.stream != "" {
			w.server = server
		}
		out = append(out, w)
	}
	return out
}

// reply is the subject that an acknowledgement comes to.
func (a *acks) reply(n uint64) string { return a.prefix + strconv.FormatUint(n, 36) }

// take takes who waits for an acknowledgement, nil if nobody does any more; the
// caller ends the call with Done.
func (a *acks) take(n uint64) *waiting {
	a.mu.Lock()
	defer a.mu.Unlock()
	w := a.waiting[n]
	if w != nil {
		a.takeLocked(w)
	}
	return w
}

func (a *acks) takeLocked(w *waiting) {
	w.over = true
	a.calls.Add(1)
	delete(a.waiting, w.n)
}

// acknowledged takes the answer to an append.
func (s *JetStream) acknowledged(m *nats.Msg) {
	n, _ := strconv.ParseUint(strings.TrimPrefix(m.Subject, s.acks.prefix), 36, 64)
	w := s.acks.take(n)
	if w == nil {
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

// fail ends those whose time is over at now, or all, with err.
func (a *acks) fail(now time.Time, all bool, err error) {
	a.mu.Lock()
	var out []*waiting
	for _, w := range a.waiting {
		if all || now.After(w.deadline) {
			a.takeLocked(w)
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
