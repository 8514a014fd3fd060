package peer

import (
	"bufio"
	"encoding/binary"
	"math"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// firstReplies is how long the replies to a batch wait for each other. What
// takes longer, a session that does not take its bytes, is answered later and
// holds up nobody else.
const firstReplies = 5 * time.Millisecond

// maxMillis is the longest time in milliseconds that a time.Duration holds.
const maxMillis = uint64(math.MaxInt64 / time.Millisecond)

// In is a call as the node gets it. Its slices point into the frame and may be
// kept.
type In struct {
	Op               Op
	JSON             bool
	Forwarded        bool // by the user's owner: for the sessions that are still here, never to be forwarded again
	User, Device, ID []byte
	From             []byte // user who sends it; empty: a service
	Body             []byte
	Have             []string // with Forwarded: sessions that have got it, over a newer connection
	Durable          bool     // to be stored, by Key, for TTL
	Key              []byte
	TTL              time.Duration
	Stored           bool // by the owner, with Meta at Pos
	Pos              uint64
	Meta             []byte
	Trace            []byte // the caller's span
	Context          any    // the handler's own

	batch *Batch
	id    uint64
}

// Reply answers the call; exactly once, from any goroutine.
func (in *In) Reply(r Reply) {
	if f := in.batch.s.server.Replied; f != nil {
		f(in, r)
	}
	in.batch.reply(in.id, r)
}

// At is when the call arrived.
func (in *In) At() time.Time { return in.batch.at }

// Batch is what arrived together.
type Batch struct {
	From  string       // who calls, by its token
	Ring  wire.RingRef // the ring by which the caller chose this node
	Calls []In

	s  *serving
	at time.Time // when it arrived

	mu     sync.Mutex
	left   int
	n      int    // replies in buf
	buf    []byte // encoded replies that were not sent yet
	opened bool   // the gate: the first replies were sent
}

// Server answers links.
type Server struct {
	// Handle takes a batch. It must not block, and each call is to be replied to.
	Handle func(*Batch)
	// Replied, if set, is called with each call just before its reply goes out. It must
	// not block.
	Replied func(*In, Reply)
	// Ring is the ring that the node goes by, which each frame of replies names.
	Ring func() wire.RingRef

	mu     sync.Mutex
	conns  map[*serving]struct{}
	closed bool
	wg     sync.WaitGroup
}

// Upgrade turns a request that from authenticated into a link and serves it in
// goroutines of its own. The error is a problem to answer with.
func (s *Server) Upgrade(w http.ResponseWriter, r *http.Request, from string) error {
	if !strings.EqualFold(r.Header.Get("Upgrade"), Protocol) || r.ProtoMajor != 1 {
		return wire.NewProblem(http.StatusBadRequest, wire.CodeInvalidRequest, "a peer link starts with Upgrade: %s", Protocol)
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return err
	}
	_ = conn.SetDeadline(time.Time{})
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return conn.Close()
	}
	if s.conns == nil {
		s.conns = map[*serving]struct{}{}
	}
	v := &serving{server: s, conn: conn, from: from}
	s.conns[v] = struct{}{}
	s.wg.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.wg.Done()
		v.serve(rw.Reader)
		s.mu.Lock()
		delete(s.conns, v)
		s.mu.Unlock()
	}()
	return nil
}

// From tells whether a link is open whose caller's name begins with prefix.
func (s *Server) From(prefix string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for v := range s.conns {
		if strings.HasPrefix(v.from, prefix) {
			return true
		}
	}
	return false
}

// Close ends all links and waits for their goroutines.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.Drop()
	s.wg.Wait()
}

// Drop ends all links that there are now. No batch that has not been handed on
// by then will be.
func (s *Server) Drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for v := range s.conns {
		v.dropped.Store(true)
		_ = v.conn.Close()
	}
}

// serving is one link's node side.
type serving struct {
	server  *Server
	conn    net.Conn
	from    string
	dropped atomic.Bool
	mu      sync.Mutex // one frame at a time

	gate  sync.Mutex
	waits *Batch // the last one that was not answered at once
	since time.Time
	timer *time.Timer
	armed bool
}

func (v *serving) serve(br *bufio.Reader) {
	defer v.conn.Close()
	if !v.write([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + Protocol + "\r\n\r\n")) {
		return
	}
	for {
		typ, body, err := readFrame(br)
		if err != nil || typ != frameBatch {
			return
		}
		b, ok := v.decode(body)
		if !ok {
			return
		}
		b.From = v.from
		v.server.Handle(b)
		b.handled()
	}
}

func (v *serving) decode(body []byte) (*Batch, bool) {
	r := reader{b: body}
	b := &Batch{s: v, at: time.Now(), Ring: r.ref()}
	n := r.uvarint()
	if r.bad || n == 0 || n > batchCalls {
		return nil, false
	}
	b.left = int(n)
	b.Calls = make([]In, n)
	for i := range b.Calls {
		in := &b.Calls[i]
		in.batch, in.id, in.Op = b, r.uvarint(), Op(r.byte())
		flags := r.byte()
		in.JSON, in.Forwarded = flags&flagJSON != 0, flags&flagForwarded != 0
		in.Durable, in.Stored = flags&flagDurable != 0, flags&flagStored != 0
		in.User, in.Device, in.ID, in.Body = r.bytes(), r.bytes(), r.bytes(), r.bytes()
		if in.Forwarded {
			for k := r.uvarint(); k > 0 && !r.bad; k-- {
				in.Have = append(in.Have, string(r.bytes()))
			}
		}
		if in.Durable {
			in.Key = r.bytes()
			in.TTL = time.Duration(min(r.uvarint(), maxMillis)) * time.Millisecond
		}
		if in.Stored {
			in.Pos, in.Meta = r.uvarint(), r.bytes()
		}
		if flags&flagFrom != 0 {
			in.From = r.bytes()
		}
		if flags&flagTrace != 0 {
			in.Trace = r.bytes()
		}
	}
	return b, !r.bad
}

func (b *Batch) reply(id uint64, r Reply) {
	b.mu.Lock()
	if b.buf == nil {
		b.buf = make([]byte, 0, 32+8*b.left)
	}
	b.buf = binary.AppendUvarint(b.buf, id)
	b.buf = append(b.buf, byte(r.Status))
	b.buf = binary.AppendUvarint(b.buf, uint64(r.Delivered)) // #nosec G115 -- a count
	b.buf = binary.AppendUvarint(b.buf, r.Seq)
	b.buf = appendBytes(b.buf, r.Body)
	b.n++
	b.left--
	if b.left > 0 && !b.opened {
		b.mu.Unlock()
		return
	}
	b.sendLocked()
}

// Drop ends the link instead of answering: the caller takes its calls as lost.
func (b *Batch) Drop() { _ = b.s.conn.Close() }

// Dropped tells whether the link was ended by Server.Drop: what came on it must
// not be carried out.
func (b *Batch) Dropped() bool { return b.s.dropped.Load() }

// handled is called when the handler has returned: what is not answered yet
// has a little while to be.
func (b *Batch) handled() {
	b.mu.Lock()
	opened := b.opened
	b.mu.Unlock()
	if !opened {
		b.s.await(b)
	}
}

// open sends what is answered of a batch that has waited long enough.
func (b *Batch) open() {
	b.mu.Lock()
	if b.opened {
		b.mu.Unlock()
		return
	}
	b.sendLocked()
}

// await has a batch opened in a while. One timer serves a link, since its batches
// come one by one, and it is left alone when they are answered in time: to set one
// for each would wake a thread for each.
func (v *serving) await(b *Batch) {
	v.gate.Lock()
	defer v.gate.Unlock()
	v.waits, v.since = b, time.Now()
	switch {
	case v.armed:
	case v.timer == nil:
		v.armed, v.timer = true, time.AfterFunc(firstReplies, v.late)
	default:
		v.armed = true
		v.timer.Reset(firstReplies)
	}
}

// late opens the batch that waits, if its time is over.
func (v *serving) late() {
	v.gate.Lock()
	defer v.gate.Unlock()
	b := v.waits
	if left := firstReplies - time.Since(v.since); b != nil && left > 0 {
		v.timer.Reset(left)
		return
	}
	v.waits, v.armed = nil, false
	if b != nil {
		go b.open() // writing may take long
	}
}

// sendLocked sends what is answered, and unlocks.
func (b *Batch) sendLocked() {
	f := make([]byte, 0, len(b.buf)+32)
	f = appendHeader(f, frameReplies, b.s.server.Ring())
	flags := byte(0)
	if !b.opened {
		flags = flagFirst
		b.opened = true
	}
	f = append(f, flags)
	f = binary.AppendUvarint(f, uint64(b.n)) // #nosec G115 -- a count
	f = append(f, b.buf...)
	b.buf, b.n = b.buf[:0], 0
	b.mu.Unlock()
	b.s.write(finish(f))
}

// write sends a frame; when that fails the link ends, and the caller treats
// what was not answered as lost.
func (v *serving) write(f []byte) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	_ = v.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := v.conn.Write(f); err != nil {
		_ = v.conn.Close()
		return false
	}
	return true
}
