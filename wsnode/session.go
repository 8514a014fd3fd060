package wsnode

import (
	"errors"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lxzan/gws"

	"github.com/dialring/dialring/internal/inbox"
	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/wire"
)

// Limits of a session's writing.
const (
	writeTimeout = 10 * time.Second // one write to a socket
	// stalledAfter is when a write counts as stuck: who waits for it is told
	// that it was not written, and nobody waits for this session any more.
	stalledAfter = time.Second
	closeTimeout = 2 * time.Second // from close to the end of the connection
)

// session is one connection of a device.
//
//	opening --welcome written--> open --close--> closing --reader ended--> gone
//	   \                          \--the peer left, or a write failed------^
//	    \--handshake failed----------------------------------------------^
//
// Frames for it wait in a queue of bounded bytes. An idle session has one
// goroutine, its reader; whoever queues a frame on an idle session starts the
// writer, which ends when the queue is empty. While opening, the queue is held,
// so that welcome is the first frame.
type session struct {
	id, user, device, remote string
	connectedAt              time.Time
	issued                   time.Time // its ticket was
	sendTo                   []string  // whom its user may send to
	sends                    sends
	inflow                   inflow
	drowned                  bool         // its client sent too much; the reader's own
	ackable                  atomic.Int64 // stored messages that were sent and not acknowledged one by one

	node  *Node
	conn  *gws.Conn
	net   *lingering
	guard guard // between the connection and gws
	owner *user

	log   *inbox.Log
	since string // the cursor that the dial asked for
	place        // in the log

	moved  bool // it came from another connection, by a move
	stray  bool // from a node that was taken for lost
	doomed int  // the close code with which it ends as soon as it has opened

	old     atomic.Bool            // the session goes on over a newer connection; this one is about to be left
	told    atomic.Pointer[moving] // it was told to move
	expires int64                  // second of the sweep's clock at which it is moved to a new connection

	peerCode   int          // with which the client closed; the reader's own
	unanswered atomic.Int32 // pings
	pingAt     int64        // second of the sweep's clock; the sweep's own

	mu       sync.Mutex
	queue    []outgoing
	queued   int        // bytes in queue, and of the frame being written
	writing  bool       // a writer runs, or the session is opening
	current  []outgoing // being written
	writeAt  time.Time  // when the write under way began
	stalled  bool
	closing  bool
	closedAt time.Time
	room     chan struct{} // closed when something of the queue was written, or never will be
}

// outgoing is a frame in the queue, as it goes over the wire.
type outgoing struct {
	frame  []byte
	push   *push  // whose delivery this is, if it is one
	code   uint16 // not 0: close the connection with it instead
	reason string
}

// push counts the sessions that one push is written to, and answers when that
// is known of all of them.
type push struct {
	left    atomic.Int32
	written atomic.Int32
	answer  func(delivered int)
}

// wrote books one session.
func (p *push) wrote(ok bool) {
	if ok {
		p.written.Add(1)
	}
	if p.left.Add(-1) == 0 {
		p.answer(int(p.written.Load()))
	}
}

// send writes a frame if the session is idle and its socket takes it, and
// queues it otherwise. If the queue is full the session is closed: a slow
// client loses its connection, not its messages.
func (s *session) send(o outgoing) {
	s.mu.Lock()
	if s.closing || s.queued+len(o.frame) > s.node.cfg.SessionQueueBytes {
		slow := !s.closing
		s.mu.Unlock()
		unwritten(o)
		if slow {
			s.node.limited(limitQueue)
			s.close(wire.CloseTooSlow, "")
		}
		return
	}
	if !s.writing {
		n, err := s.net.writeNow(o.frame)
		if err != nil || n == len(o.frame) {
			over := errors.Is(err, errOver)
			s.closing = s.closing || over
			s.mu.Unlock()
			if o.push != nil {
				o.push.wrote(err == nil)
			}
			if err != nil && !over {
				s.net.abort() // the reader cleans up
			}
			return
		}
		o.frame = o.frame[n:]
	}
	late := s.stalled
	p := o.push
	if late { // it will be written, perhaps; nobody waits to hear of it
		o.push = nil
	}
	s.queueLocked(o)
	s.mu.Unlock()
	if late && p != nil {
		p.wrote(false)
	}
}

// queueLocked appends a frame and sees to it that a writer runs.
func (s *session) queueLocked(o outgoing) {
	s.queue = append(s.queue, o)
	s.bookLocked(len(o.frame))
	if !s.writing {
		s.writing = true
		go s.write()
	}
}

// maxGather is how many frames go into one system call.
const maxGather = 64

// write is the writer: it ends when the queue is empty.
func (s *session) write() {
	for {
		s.mu.Lock()
		if len(s.queue) == 0 {
			s.queue, s.writing, s.writeAt = nil, false, time.Time{}
			_ = s.net.SetWriteDeadline(time.Time{}) // writeNow heeds it too
			s.mu.Unlock()
			return
		}
		n := min(len(s.queue), maxGather)
		var bufs net.Buffers
		bytes := 0
		for _, o := range s.queue[:n] {
			if o.code != 0 {
				break
			}
			bufs = append(bufs, o.frame)
			bytes += len(o.frame)
		}
		n = max(len(bufs), 1)
		s.current, s.queue = s.queue[:n:n], s.queue[n:]
		last := s.current[n-1]
		s.writeAt = time.Now()
		s.mu.Unlock()

		_ = s.net.SetWriteDeadline(s.writeAt.Add(writeTimeout))
		var err error
		if last.code != 0 {
			err = s.conn.WriteClose(last.code, []byte(last.reason))
		} else {
			err = s.net.writeAll(bufs)
		}

		s.mu.Lock()
		done := s.current // the sweep may have answered for them
		s.current, s.stalled = nil, false
		s.bookLocked(-bytes)
		s.roomLocked()
		var rest []outgoing
		if err != nil {
			rest, s.closing = s.dropLocked(), true
		}
		s.mu.Unlock()
		for _, o := range done {
			if o.push != nil {
				o.push.wrote(err == nil)
			}
		}
		clear(done) // the queue goes on in the same array
		unwritten(rest...)
		if err != nil && !errors.Is(err, gws.ErrConnClosed) {
			if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
				s.node.metrics.slowWrites.Inc()
				s.node.limited(limitSlowWrite)
			}
			s.net.abort()
		}
	}
}

// bookLocked counts bytes that wait in the queue, or with a minus that do not any more.
func (s *session) bookLocked(n int) {
	s.queued += n
	s.node.queues.add(n)
}

// dropLocked empties the queue, but for what is being written, and returns what was in it.
func (s *session) dropLocked() []outgoing {
	rest := s.queue
	s.queue = nil
	for _, o := range rest {
		s.bookLocked(-len(o.frame))
	}
	return rest
}

func (s *session) queuedBytes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queued
}

func (s *session) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// roomLocked wakes who waits for room in the queue.
func (s *session) roomLocked() {
	if s.room != nil {
		close(s.room)
		s.room = nil
	}
}

// awaitWritten waits until nothing is queued any more: a session that is closing has
// then sent its close frame, or never will.
func (s *session) awaitWritten() {
	for {
		s.mu.Lock()
		if len(s.queue) == 0 && s.current == nil {
			s.mu.Unlock()
			return
		}
		if s.room == nil {
			s.room = make(chan struct{})
		}
		room := s.room
		s.mu.Unlock()
		<-room
	}
}

// unwritten answers for frames that will not be written any more.
func unwritten(l ...outgoing) {
	for _, o := range l {
		if o.push != nil {
			o.push.wrote(false)
		}
	}
}

// close ends the session with a code of the contract, behind what is queued;
// one that is too slow loses its queue. It leaves the user at once.
func (s *session) close(code int, reason string) {
	if reason == "" {
		reason = wire.CloseText(code)
	}
	s.node.hub.remove(s)
	s.left()
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return
	}
	s.closing, s.closedAt = true, time.Now()
	s.roomLocked()
	s.node.hub.leaving(s)
	var rest []outgoing
	if code == wire.CloseTooSlow {
		rest = s.dropLocked()
	}
	s.queueLocked(outgoing{code: uint16(code), reason: reason}) // #nosec G115 -- close codes are below 5000
	s.mu.Unlock()
	unwritten(rest...)
	s.noteClose(code, reason)
	s.node.metrics.closes.WithLabelValues(wire.CloseText(code)).Inc()
	s.node.log.Debug("session closed", "event", "session_closed", "session", s.id, "user", s.user, "code", code, "reason", reason)
}

// abort ends the connection without waiting for anything.
func (s *session) abort() {
	s.mu.Lock()
	c := s.net
	s.mu.Unlock()
	if c != nil { // nil while the session is opening: that is bounded by itself
		c.abort()
	}
}

// opened releases the queue once welcome was written.
func (s *session) opened() {
	s.mu.Lock()
	waiting := len(s.queue) > 0
	s.writing = waiting
	s.mu.Unlock()
	if waiting {
		go s.write()
	}
}

// read runs the connection until it ends. It is kept shallow: with one frame
// more on the way to the system call, the stack of each idle session doubles.
func (s *session) read() {
	defer s.gone()
	s.conn.ReadLoop()
}

// gone cleans up behind the reader. If gws panics, outside of what it recovers itself
// and without calling OnClose, as it does on a length with its top bit set, which guard
// keeps from it: that must end the connection and nothing else.
func (s *session) gone() {
	if r := recover(); r != nil {
		s.node.log.Warn("a frame broke the reader; the connection is closed", "event", "frame_panic", "session", s.id,
			"remote", s.remote, "panic", r)
		s.node.log.Debug("where it broke", "event", "frame_panic_stack", "session", s.id, "stack", string(debug.Stack()))
		_ = s.net.SetWriteDeadline(time.Now().Add(time.Second))
		_ = s.conn.WriteClose(1002, []byte("protocol error"))
	}
	s.node.hub.remove(s)
	s.left()
	s.mu.Lock()
	ours := !s.closedAt.IsZero()
	s.closing = true
	s.roomLocked()
	rest := s.dropLocked()
	s.mu.Unlock()
	if !ours {
		s.noteEnd()
	}
	unwritten(rest...)
	s.detach()
	s.net.finish()
	s.node.hub.gone(s)
	s.node.leave()
}

// sweep looks at the session once a second: sec is the sweep's clock.
func (s *session) sweep(now time.Time, sec int64) {
	s.mu.Lock()
	var rest []outgoing
	if (s.current != nil || len(s.queue) > 0) && !s.writeAt.IsZero() && now.Sub(s.writeAt) > stalledAfter {
		s.stalled = true
		rest, s.current = s.current, nil
		for i, o := range s.queue {
			rest = append(rest, outgoing{push: o.push})
			s.queue[i].push = nil
		}
	}
	over := s.closing && !s.closedAt.IsZero() && now.Sub(s.closedAt) > closeTimeout
	s.mu.Unlock()
	unwritten(rest...)
	if over {
		s.abort()
		return
	}
	if s.overdue(now, sec) {
		return
	}
	if sec < s.pingAt {
		return
	}
	s.pingAt = sec + s.node.pingEvery
	if s.unanswered.Add(1) > maxUnanswered {
		s.close(wire.ClosePingTimeout, "")
		return
	}
	s.send(outgoing{frame: pingFrame})
}

var pingFrame = frame(gws.OpcodePing, nil)

// maxUnanswered pings end a session.
const maxUnanswered = 2

// holder is what gws keeps for us on its connection, instead of a map.
type holder struct{ s *session }

func (h *holder) Len() int                     { return 0 }
func (h *holder) Load(string) (any, bool)      { return nil, false }
func (h *holder) Delete(string)                {}
func (h *holder) Store(string, any)            {}
func (h *holder) Range(func(string, any) bool) {}

// user is everything of one user's on this node.
type user struct {
	id       string
	sessions []*session // guarded by the shard
	// owned is the last ring by which this node was found to own the user.
	owned atomic.Pointer[ring.Ring]
	// events are the last ones, guarded by the node's history.
	events []pastEvent
}
