package wsnode

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/dialring/dialring/internal/inbox"
	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/ring"
)

// readers is what a log has beside its sessions. Guarded by the log.
type readers struct {
	acked   uint64 // the newest message that any session here acknowledged
	waiting map[*ackWaiter]struct{}
}

// ackWaiter waits until a message is acknowledged.
type ackWaiter struct {
	seq  uint64
	done chan struct{}
}

func readersOf(l *inbox.Log) *readers {
	r, _ := l.Readers.(*readers)
	if r == nil {
		r = &readers{waiting: map[*ackWaiter]struct{}{}}
		l.Readers = r
	}
	return r
}

// ack takes a client's word that it has handled every message up to a cursor. A
// cursor beyond what was written to it counts for nothing.
func (s *session) ack(cursor string) {
	c, err := inbox.ParseCursor(cursor)
	if err != nil {
		return // of no log
	}
	s.log.With(func(inbox.Cursor) {
		switch {
		case !s.attached:
		case !s.unresolved && c.Seq <= s.at.Seq:
			s.ackedLocked(c)
		case c.Seq > s.early.Seq:
			s.early = c
		}
	})
}

// advancedLocked takes an acknowledgement of what has been written by now. It may come
// before this node knows that: from a replay that is under way, or of what the client
// got over the connection that it leaves. The log is locked.
func (s *session) advancedLocked() {
	c := s.early
	if s.unresolved || c.Seq == 0 || c.Seq > s.at.Seq {
		return
	}
	s.early = inbox.Cursor{}
	s.ackedLocked(c)
}

func (s *session) ackedLocked(c inbox.Cursor) {
	// A device that has no position yet may say where it began, before any message.
	if s.placed && c.Seq <= s.acked.Seq || c.Seq == s.at.Seq && c.Tag != s.at.Tag {
		return
	}
	s.acked, s.placed = c, true
	s.node.metrics.acks.Inc()
	s.node.stored.positions.Note(s.user, s.device, c)
	r := readersOf(s.log)
	r.acked = max(r.acked, c.Seq)
	for w := range r.waiting {
		if w.seq <= c.Seq {
			delete(r.waiting, w)
			close(w.done)
		}
	}
}

// ackedBy counts the sessions here that have acknowledged a message; one that did
// and has left counts if no other did. The log is locked.
func (n *Node) ackedBy(l *inbox.Log, seq uint64) int {
	k := 0
	_, sessions := n.hub.find([]byte(l.User))
	for _, s := range sessions {
		if s.attached && !s.old.Load() && s.acked.Seq >= seq {
			k++
		}
	}
	if k == 0 && readersOf(l).acked >= seq {
		k = 1
	}
	return k
}

// maxAckWait bounds one question; who wants to wait longer asks again.
const maxAckWait = 2 * time.Second

// awaitAck carries out an OpAcked: it answers when a session, here or at a former
// owner, has acknowledged the message, or when the time is over.
func (n *Node) awaitAck(user string, body []byte, cur *ring.Ring, former []*ring.Node) (int, error) {
	var a peer.Acked
	if err := json.Unmarshal(body, &a); err != nil {
		return 0, err
	}
	if a.Seq == 0 || a.WaitMS < 0 {
		return 0, errors.New("no message, or no time, to wait for")
	}
	ctx, cancel := context.WithTimeout(n.ctx, min(time.Duration(a.WaitMS)*time.Millisecond, maxAckWait))
	defer cancel()
	there := make(chan int, len(former))
	for _, o := range former {
		go func() {
			r, err := n.peers.Get(o.ID, o.Boot, o.PeerURL).Ask(ctx, &peer.Call{Op: peer.OpAcked, Ring: cur.Ref(), User: user, JSON: true, Body: body, Forwarded: true})
			if err != nil {
				r.Delivered = 0 // its sessions acknowledge to the new owner when they are here
			}
			there <- r.Delivered
		}()
	}
	l := n.stored.logs.Get(user)
	defer l.Release()
	w := &ackWaiter{a.Seq, make(chan struct{})}
	count := 0
	l.With(func(inbox.Cursor) {
		if count = n.ackedBy(l, a.Seq); count == 0 {
			readersOf(l).waiting[w] = struct{}{}
		}
	})
	for left := len(former); count == 0; {
		select {
		case k := <-there:
			if left--; k > 0 {
				count = k
			}
			continue
		case <-w.done:
		case <-ctx.Done():
		}
		l.With(func(inbox.Cursor) { count = n.ackedBy(l, a.Seq) })
		break
	}
	l.With(func(inbox.Cursor) { delete(readersOf(l).waiting, w) })
	return count, nil
}
