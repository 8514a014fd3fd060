package wsnode

import (
	"time"

	"github.com/dialring/dialring/internal/inbox"
)

// What a session does at a stored message that it cannot be given (replay):
//
//	its own time is over, forged, its key is lost --> passed over; the client gets skip
//	its key is not known here, not sealed ----------> waits for other keys, and all that
//	                                                  follows waits with it
//
// The first will never come, and skip's reason says that it is not kept: there is none
// of its own in the contract. The second is an operator's mistake and can be mended: a
// message that was promised must not be lost to that.

// unopenedReasons are all.
var unopenedReasons = [...]string{inbox.UnopenedKey, inbox.UnopenedUnsealed, inbox.UnopenedForged, inbox.UnopenedLost}

// passed are messages that will not come and that the client was not told of yet.
type passed struct {
	to     uint64
	reason string
}

// by passes over one more.
func (p *passed) by(s *session, seq uint64, reason string) {
	if p.reason != reason {
		p.say(s)
	}
	p.to, p.reason = seq, reason
}

// say tells the client of them, if there are any.
func (p *passed) say(s *session) {
	if p.to > 0 {
		s.skip(p.to, p.reason)
	}
	*p = passed{}
}

// sayUnopened counts a message that cannot be opened, and tells the log, once a minute
// for each reason at most.
func (s *session) sayUnopened(e *inbox.Entry) {
	n := s.node
	why := e.Unopened.Why
	n.metrics.unopened.WithLabelValues(why).Inc()
	n.stored.unopened[why].Do(func() {
		text := "a stored message cannot be opened: its user's devices wait for it until this node has the key (DIALRING_INBOX_KEYS_FILE)"
		switch why {
		case inbox.UnopenedUnsealed:
			text = "a stored message is not sealed, and the keys' file refuses such ones: its user's devices wait for it until that is changed"
		case inbox.UnopenedForged:
			text = "a stored message is not what was sealed: it is passed over; somebody else writes to NATS, or a disk is bad"
		case inbox.UnopenedLost:
			text = "a stored message was sealed by a key that is lost: it is passed over"
		}
		n.log.Error(text, "event", "unopened", "reason", why, "key", e.Unopened.Key, "user", s.user, "seq", e.Seq, "position", e.Pos)
	})
}

// keysPatience is how long a session waits for other keys before it looks whether the
// message that it waits for is still kept.
const keysPatience = 10 * time.Second

// awaitKeys waits for other keys.
func (s *session) awaitKeys(u *inbox.Unopened) {
	t := time.NewTimer(keysPatience)
	defer t.Stop()
	select {
	case <-u.Replaced:
	case <-t.C:
	case <-s.node.ctx.Done():
	}
}
