package wsnode

import (
	"errors"
	"io"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// inflow is what a session has left of what its client may send: two token buckets, as
// the times at which each would be full again (the generic cell rate algorithm), so that
// an idle session has 16 bytes of them and nothing has to fill them. The reader's own.
type inflow struct {
	frames, bytes int64 // nanoseconds since the node's start
}

// inflowRate is how much of a bucket one frame, or byte, takes, and how much it holds.
type inflowRate struct{ each, most float64 } // nanoseconds

// inflowBurst is how many seconds' worth may come at once.
const inflowBurst = 4

// newInflowRate is perSecond, with bursts of four seconds' worth, or of least if that is more.
func newInflowRate(perSecond, least int) inflowRate {
	each := float64(time.Second) / float64(perSecond)
	return inflowRate{each, each * float64(max(inflowBurst*perSecond, least))}
}

// take takes n of a bucket, and tells whether there was as much.
func (r inflowRate) take(full *int64, now int64, n int) bool {
	*full = max(*full, now) + int64(r.each*float64(n))
	return float64(*full-now) <= r.most
}

// give gives n back.
func (r inflowRate) give(full *int64, n int) { *full -= int64(r.each * float64(n)) }

// errInflow ends the reader of a client that sends too much.
var errInflow = errors.New("the client sends too much")

// now is the clock of limits: nanoseconds since the node's start.
func (n *Node) now() int64 { return int64(time.Since(n.start)) }

// came counts one frame of the client, and tells whether it may be handled.
func (s *session) came() bool {
	if s.node.frameRate.take(&s.inflow.frames, s.node.now(), 1) {
		return true
	}
	_ = s.flooded(limitFrames, "too many frames a second")
	return false
}

// ackFree makes an ack cost nothing for which the session has a message: who
// acknowledges each of a fast stream sends as many frames as it gets.
func (s *session) ackFree(payload int) {
	if s.ackable.Add(-1) < 0 {
		s.ackable.Add(1)
		return
	}
	const header, most = 8, 128 // of a short frame, and of the longest cursor with a type
	s.node.frameRate.give(&s.inflow.frames, 1)
	s.node.byteRate.give(&s.inflow.bytes, min(payload+header, most))
}

// cameBytes counts what comes over the connection, also what makes no message: fragments
// without end. The error says that it was too much.
func (s *session) cameBytes(n int) error {
	if s.node.byteRate.take(&s.inflow.bytes, s.node.now(), n) {
		return nil
	}
	return s.flooded(limitBytes, "too many bytes a second")
}

// flooded closes a session whose client sends too much, and returns when its connection
// has ended or is about to. It is called by the reader.
func (s *session) flooded(limit, reason string) error {
	if s.drowned {
		return errInflow
	}
	s.drowned = true
	s.node.limited(limit)
	s.close(wire.CloseRateLimit, reason)
	for { // until the client has closed, or lingerTime or closeTimeout is over
		if _, err := io.CopyN(io.Discard, s.net.Conn, floodChunk); err != nil {
			return errInflow
		}
		time.Sleep(floodPause)
	}
}

// What is still read of a client that sent too much, so that it gets to see the close
// frame: some MiB a second.
const (
	floodChunk = 64 << 10
	floodPause = 20 * time.Millisecond
)
