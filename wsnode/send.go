package wsnode

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lxzan/gws"
	"golang.org/x/time/rate"

	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/route"
	"github.com/dialring/dialring/internal/wire"
)

// What clients send:
//
//	client        its node                      the receiver's owner, or the application
//	  | send        |                                 |
//	  |------------>| may it, and not too often?      |
//	  |             |-- a push, from set by the node ->|  to a user: stored, written to sessions
//	  |             |-- a request ------------------->|  to the application (application.go)
//	  |<-- ack -----|<--------------------------------|
//
// Every send is answered, by ack or error, as long as its connection lives.

// maxSends is how many sends of one session may wait for their answer.
const maxSends = 64

// sends is what a session has of that.
type sends struct {
	limiter *rate.Limiter // the reader's own
	under   atomic.Int32
	order   route.Ordered

	mu     sync.Mutex
	asks   []*sending // for the application
	askers int
}

// sending is one send on its way.
type sending struct {
	wire.Send
	s    *session
	size int64 // of its frame
}

// sent handles a send of the client. It is called by the reader only.
func (s *session) sent(b []byte, ref json.RawMessage) {
	n := s.node
	if s.sends.limiter == nil {
		s.sends.limiter = rate.NewLimiter(rate.Limit(n.cfg.SendRate), sendBurst*n.cfg.SendRate)
	}
	m := &sending{s: s, size: int64(len(b))}
	m.Ref = ref
	switch {
	case !s.sends.limiter.Allow():
		n.limited(limitSends)
		m.refuse(wire.CodeRateLimited, "this session sends too often; try again in a second")
		return
	case s.sends.under.Load() >= maxSends:
		n.limited(limitSends)
		m.refuse(wire.CodeRateLimited, "too many sends of this session wait for their answer")
		return
	}
	if err := wire.DecodeJSON(b, &m.Send); err != nil {
		m.Send = wire.Send{Ref: ref}
		m.refuse(wire.CodeInvalidRequest, err.Error())
		return
	}
	if len(m.Data) > n.cfg.MaxMessageBytes {
		s.close(wire.CloseTooBig, "")
		return
	}
	err := m.CheckSend()
	switch {
	case err != nil:
		m.refuse(wire.CodeInvalidRequest, err.Error())
	case wire.BrokenID(m.To, wire.HalfEscapes(b)):
		m.refuse(wire.CodeInvalidRequest, "to has an escape that is no character")
	case m.To == "" && n.app == nil:
		m.refuse(wire.CodeNoApplication, "no application receives what clients send in this cluster (DIALRING_APP of the nodes)")
	case m.To != "" && !wire.MaySend(s.sendTo, m.To):
		m.refuse(wire.CodeForbidden, "the token of this user does not allow it to send to that one (claim send_to)")
	case !m.begin():
		n.limited(limitSendQueue)
		m.refuse(wire.CodeRateLimited, "too much that this user, or all clients of this node, have sent waits for an answer; try again later")
	case m.To != "":
		m.toUser()
	default:
		s.sends.ask(n, m)
	}
}

// begin takes a place among the sends that wait for an answer, which end gives back; false:
// there is none.
func (m *sending) begin() bool {
	if !m.s.node.sending.take(m.s.user, m.size) {
		return false
	}
	m.s.sends.under.Add(1)
	return true
}

func (m *sending) end() {
	m.s.node.sending.give(m.s.user, m.size)
	m.s.sends.under.Add(-1)
}

// sendBurst is how many seconds' worth of sends may come at once.
const sendBurst = 4

func (m *sending) refuse(code wire.Code, detail string) {
	m.s.node.metrics.sends.WithLabelValues(m.target(), string(code)).Inc()
	m.s.reply(wire.ErrorFrame{Type: wire.TypeError, Ref: m.Ref, Code: code, Detail: detail})
}

func (m *sending) accept(a wire.SendAck) {
	m.s.node.metrics.sends.WithLabelValues(m.target(), resultOK).Inc()
	a.Type, a.Ref = wire.TypeAck, m.Ref
	data := a.Data
	a.Data = nil
	m.s.send(outgoing{frame: frame(gws.OpcodeText, wire.WithData(a, data))})
}

func (m *sending) target() string {
	if m.To == "" {
		return "application"
	}
	return "user"
}

// key makes of the id that the client gave one that no service's and no other
// sender's is; "" if it gave none.
func (m *sending) key() string {
	if m.ID == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(m.s.user + "\x00" + m.ID))
	return "send:" + base64.RawURLEncoding.EncodeToString(sum[:18])
}

// toUser sends to another user: the way of a push.
func (m *sending) toUser() {
	n := m.s.node
	m.s.sends.order.Send(n.ctx, &n.router, &route.Job{Call: peer.Call{Op: peer.OpPush, User: m.To, From: m.s.user, ID: n.ids.Next(), JSON: true, Body: m.Data,
		Durable: !m.Ephemeral, Key: m.key()},
		Ended: func(j *route.Job) {
			m.end()
			res, p := j.Result()
			if p != nil {
				detail := p.Detail
				if better, ok := sendDetails[p.Code]; ok { // it speaks to services
					detail = better
				}
				m.refuse(p.Code, detail)
				return
			}
			m.accept(wire.SendAck{ID: res.ID, Seq: res.Seq, Stored: res.Stored, Duplicate: res.Duplicate, Delivered: &res.Delivered})
		}})
}

var sendDetails = map[wire.Code]string{
	wire.CodeOwnerUnreachable: "the user cannot be reached now; send it again, with the same id",
	wire.CodeStoreUnavailable: "the message could not be stored; send it again, with the same id",
	wire.CodeKeyReused:        "this id was used for another message to this user; use a new id for each",
}

// maxAskers is how many sends of one session the application has at a time: others of
// the session wait for them, and other sessions do not. A stream takes one after the other, in their order.
const maxAskers = 8

// ask has the application asked, in the session's turn.
func (q *sends) ask(n *Node, m *sending) {
	most := maxAskers
	if n.cfg.App == appJetStream {
		most = 1
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.asks = append(q.asks, m)
	if q.askers < most {
		q.askers++
		n.tasks.Go(q.askAll)
	}
}

func (q *sends) askAll() {
	for {
		q.mu.Lock()
		if len(q.asks) == 0 {
			q.asks = nil
			q.askers--
			q.mu.Unlock()
			return
		}
		m := q.asks[0]
		q.asks = q.asks[1:]
		q.mu.Unlock()
		m.toApplication()
	}
}

// toApplication asks the application, and answers with what it says.
func (m *sending) toApplication() {
	defer m.end()
	n, s := m.s.node, m.s
	ctx, cancel := context.WithTimeout(n.ctx, n.cfg.AppTimeout)
	defer cancel()
	id := m.key()
	if id == "" {
		id = n.ids.Next()
	}
	start := time.Now()
	data, dup, p := n.app.ask(ctx, &wire.AppMessage{ID: id, User: s.user, Device: s.device, Session: s.id, Node: n.cfg.NodeID, Time: time.Now().UTC().Truncate(time.Millisecond), Data: m.Data})
	n.metrics.asking.Observe(time.Since(start).Seconds())
	if p != nil {
		m.refuse(p.Code, p.Detail)
		return
	}
	m.accept(wire.SendAck{ID: id, Duplicate: dup, Data: data})
}
