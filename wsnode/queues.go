package wsnode

import (
	"cmp"
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// queues is what waits in the queues of all sessions together. Past the limit of it the
// sessions with the most are closed, as those that are too slow: nobody else pays for them.
type queues struct {
	total atomic.Int64 // bytes, those of frames that are being written too
	limit int64        // set by Run
	over  chan struct{}
}

// add books bytes that wait, or with a minus that do not any more.
func (q *queues) add(n int) {
	if q.total.Add(int64(n)) > q.limit && n > 0 {
		select {
		case q.over <- struct{}{}:
		default:
		}
	}
}

// relievePause is between two looks at all sessions.
const relievePause = 100 * time.Millisecond

// relieve closes sessions whenever there is too much, until ctx ends.
func (n *Node) relieve(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.queues.over:
		}
		n.closeLongest()
		select {
		case <-ctx.Done():
			return
		case <-time.After(relievePause):
		}
	}
}

// closeLongest closes the sessions that have the most waiting, until what is left is nine
// tenths of the limit. Those that end already count for nothing: what they hold will go.
func (n *Node) closeLongest() {
	type long struct {
		s     *session
		bytes int
	}
	var all []long
	sum := int64(0)
	n.hub.each(func(s *session) {
		if b := s.queuedBytes(); b > 0 {
			all = append(all, long{s, b})
			sum += int64(b)
		}
	})
	if sum <= n.queues.limit {
		return
	}
	slices.SortFunc(all, func(a, b long) int { return cmp.Compare(b.bytes, a.bytes) })
	closed := 0
	for _, l := range all {
		if sum <= n.queues.limit/10*9 {
			break
		}
		n.limited(limitNodeQueue)
		l.s.close(wire.CloseTooSlow, "")
		sum -= int64(l.bytes)
		closed++
	}
	n.log.Warn("too much waits for slow sessions; those with the most are closed", "event", "queues_full", "closed", closed, "limit", n.queues.limit)
}
