package wsnode

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/lxzan/gws"

	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/inbox"
	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/ticket"
	"github.com/dialring/dialring/internal/wire"
)

const pathWS = "/v1/ws"

// readBuffer is small: what clients send is, and every idle session has one.
// Larger frames are read past it.
const readBuffer = 256

// envelope is what a frame of the contract has around its payload at most.
const envelope = 4096

// catchUp is how long a node that has an older ring than its caller waits for
// the newer one before it judges.
const catchUp = time.Second

// awaitRing waits until this node has a ring of that epoch, for catchUp at most.
func (n *Node) awaitRing(ctx context.Context, epoch uint64) {
	ctx, cancel := context.WithTimeout(ctx, catchUp)
	defer cancel()
	n.rings.WaitEpoch(ctx, epoch)
}

// maxRingWaits is how many batches and calls of others may wait for a ring, a quarter of them
// of one caller, who may have made its epoch up. Beyond that the ring that there is counts,
// and who is refused by it asks again.
const maxRingWaits = 1024

// awaitRingOf does that for a caller, who says that there is a ring of that epoch.
func (n *Node) awaitRingOf(from string, epoch uint64) {
	if n.rings.Current().Epoch >= epoch {
		return
	}
	if n.ringWaits.take(from, 1) {
		defer n.ringWaits.give(from, 1)
		n.awaitRing(n.ctx, epoch)
	}
}

// dialWS answers a dial. Everything is checked before the upgrade, with the
// status of the contract: gws hijacks first and answers 400 to everything.
func (n *Node) dialWS(c echo.Context) error {
	r, start := c.Request(), time.Now()
	c.Response().Header().Set(cluster.NodeHeader, n.cfg.NodeID)
	p, s := n.admit(r)
	if p != nil {
		n.metrics.handshakes.WithLabelValues(strconv.Itoa(p.Status)).Inc()
		return p
	}
	if err := n.open(c.Response(), r, s); err != nil {
		n.metrics.handshakes.WithLabelValues(resultFailed).Inc()
		n.log.Debug("a handshake failed", "event", "handshake_failed", "remote", s.remote, "error", err)
		return nil // the connection was hijacked: there is nobody to answer
	}
	n.metrics.handshakes.WithLabelValues("101").Inc()
	n.metrics.opening.Observe(time.Since(start).Seconds())
	how := openedLogin
	if s.moved {
		how = openedMove
	}
	n.log.Debug("session opened", "event", "session_opened", "session", s.id, "user", s.user, "device", s.device, "how", how, "remote", s.remote)
	n.metrics.opened.WithLabelValues(how).Inc()
	return nil
}

// admit checks a dial and registers its session, or says why not.
func (n *Node) admit(r *http.Request) (*wire.Problem, *session) {
	if p := n.limiter.Check(r); p != nil {
		n.limited(limitAddress)
		return p, nil
	}
	if p := checkUpgrade(r); p != nil {
		return p, nil
	}
	if !n.origins.Allow(r) {
		return wire.NewProblem(http.StatusForbidden, wire.CodeForbidden, "pages of this origin may not connect; DIALRING_ALLOWED_ORIGINS of the node lists those that may"), nil
	}
	token, p := offered(r)
	if p != nil {
		return p, nil
	}
	since, p := sinceOf(r)
	if p != nil {
		return p, nil
	}
	if n.wasStopped() {
		return wire.NewProblem(http.StatusServiceUnavailable, wire.CodeDraining, "this process was stopped and has to look at the ring first; locate again"), nil
	}
	if p := n.full(); p != nil {
		return p, nil
	}
	if token == "" {
		p := wire.NewProblem(http.StatusUnauthorized, wire.CodeUnauthorized, "a ticket is missing: ask a locator for one (POST /v1/locate)")
		p.Header = [2]string{"WWW-Authenticate", "Bearer"}
		n.refusedTicket(r, ticketMissing, "", "")
		return p, nil
	}
	t, err := n.verifier.Ticket(token, time.Now())
	if err == nil && (wire.CheckUser(t.User) != nil || wire.CheckDevice(t.Device) != nil) {
		err = ticket.ErrInvalid
	}
	if err != nil {
		if errors.Is(err, ticket.ErrFull) {
			n.limited(limitTickets)
		}
		n.refusedTicket(r, reasonOf(err), token, t.User)
		return ticketProblem(err), nil
	}
	if t.Session == "" && !n.perUser.Allow(t.User) { // a move is the cluster's doing, not the user's
		n.limited(limitUser)
		return wire.NewProblem(http.StatusTooManyRequests, wire.CodeRateLimited, "too many connections of this user; at most %d a second", n.perUser.PerSecond()), nil
	}
	n.awaitRing(r.Context(), t.Epoch)
	if !n.ownsUser(nil, t.User, n.rings.Current()) {
		return n.misdirected(), nil
	}
	if t.From != "" && !n.mayMove(t.From, t.User) {
		n.log.Warn("a ticket is refused: its node never owned that user", "event", "move_refused", "from", t.From, "user", t.User)
		n.metrics.tickets.WithLabelValues(ticketInvalid).Inc()
		return ticketProblem(ticket.ErrInvalid), nil
	}
	s := &session{id: wire.RandomID(10), user: t.User, device: t.Device, remote: r.RemoteAddr, connectedAt: time.Now(),
		node: n, writing: true, since: since, sendTo: t.SendTo, issued: t.Issued}
	if t.Session != "" {
		s.id, s.moved, s.connectedAt = t.Session, true, t.Connected
		s.stray = len(n.rings.Current().Former(t.User)) == 0
	}
	if n.kicked.has(s) {
		n.refusedTicket(r, ticketKicked, token, t.User)
		return ticketProblem(ticket.ErrInvalid), nil
	}
	now := n.seconds()
	s.pingAt, s.expires = now+n.pingEvery, now+n.lifetime()
	cur := n.rings.Current()
	var former []*ring.Node
	var elsewhere []wire.Session
	if !s.moved { // a login: it may replace one that has not moved yet
		if former = cur.Former(t.User); len(former) > 0 {
			// One that does not answer has none that anything can be done about.
			elsewhere, _ = n.sessionsElsewhere(r.Context(), t.User, cur, former)
		}
	}
	n.admission.Lock()
	if n.closed {
		n.admission.Unlock()
		return drainingProblem(), nil
	}
	if !n.enter() {
		n.admission.Unlock()
		return n.noPlace(), nil
	}
	n.readers.Add(1)
	n.admission.Unlock()
	s.log = n.stored.logs.Get(s.user)
	victims, p := n.hub.add(s, &n.cfg, elsewhere)
	if p != nil || slices.ContainsFunc(victims, func(v victim) bool { return v.code == wire.CloseTooManySessions }) {
		n.limited(limitUserSessions)
	}
	if p != nil {
		s.log.Release()
		n.leave()
		return p, nil
	}
	// The ring may have changed before the session was registered, and the walk
	// over all sessions missed it; or the session was kicked where it came from.
	var late *wire.Problem
	switch {
	case !n.ownsUser(s.owner, s.user, n.rings.Current()):
		late = n.misdirected()
	case n.kicked.has(s):
		n.refusedTicket(r, ticketKicked, token, t.User)
		late = ticketProblem(ticket.ErrInvalid)
	}
	if late != nil {
		for _, v := range victims { // they have left their user already
			if v.s != nil && v.s != s {
				v.s.close(wire.CloseNotTheOwner, "")
			}
		}
		n.abandon(s)
		return late, nil
	}
	n.admitted.Add(1)
	for _, v := range victims {
		switch v.s {
		case nil:
			n.kickFormer(former, t.User, peer.Kick{Session: v.id, Code: v.code}, cur)
			_, here := n.hub.find([]byte(t.User))
			for _, o := range here { // it may just have arrived from there
				if o.id == v.id {
					o.closeFor(v.code)
				}
			}
		case s:
			s.doomed = v.code
		default:
			v.s.closeFor(v.code)
		}
	}
	return nil, s
}

func (n *Node) misdirected() *wire.Problem {
	return wire.NewProblem(http.StatusMisdirectedRequest, wire.CodeMisdirected, "by ring epoch %d another node owns this user; locate again", n.rings.Current().Epoch)
}

func drainingProblem() *wire.Problem {
	return wire.NewProblem(http.StatusServiceUnavailable, wire.CodeDraining, "this node is about to stop; locate again")
}

// open upgrades the connection of an admitted session, writes welcome, and
// starts its reader.
func (n *Node) open(w http.ResponseWriter, r *http.Request, s *session) error {
	welcome := n.welcome(r.Context(), s) // before the answer: it asks the store
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		n.abandon(s)
		return err
	}
	s.mu.Lock()
	s.net = newLingering(conn)
	s.mu.Unlock()
	s.guard.s, s.guard.conn = s, conn
	if k := rw.Reader.Buffered(); k > 0 { // a client that did not wait for the answer
		early, _ := rw.Reader.Peek(k)
		s.guard.early = bytes.Clone(early)
	}
	// gws looks at the first header of a name only, and not for tokens in a list; and it
	// must not keep the ticket. All of it was checked above.
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", "websocket")
	r.Header.Set("Sec-Websocket-Protocol", wire.Subprotocol)
	s.conn, err = n.upgrader.UpgradeFromConn(s.net, bufio.NewReaderSize(&s.guard, readBuffer), r)
	if err != nil {
		s.net.abort()
		n.abandon(s)
		return err
	}
	s.conn.Session().(*holder).s = s
	kind := peer.EventConnected
	if s.moved {
		kind = peer.EventArrived
	}
	s.note(peer.Event{Kind: kind}) // before the client can have left where it comes from
	_ = s.net.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := s.net.Conn.Write(frame(gws.OpcodeText, welcome)); err != nil {
		s.noteEnd()
		s.net.abort()
		n.abandon(s)
		return err
	}
	_ = s.net.SetWriteDeadline(time.Time{})
	if s.moved {
		n.catchUpBroadcasts(s)
	}
	s.opened()
	s.log.With(func(inbox.Cursor) { s.startLocked() })
	go s.read()
	if s.doomed != 0 {
		s.close(s.doomed, "")
	}
	return nil
}

// kickFormer has former owners close a session that a new one replaced.
func (n *Node) kickFormer(former []*ring.Node, user string, k peer.Kick, cur *ring.Ring) {
	n.kicked.add(k.Session)
	b, err := json.Marshal(k)
	if err != nil {
		panic(err) // plain fields always have an encoding
	}
	for _, o := range former {
		n.callFormer(o, &peer.Call{Op: peer.OpKick, Ring: cur.Ref(), User: user, JSON: true, Body: b, Done: func(c *peer.Call) {
			if c.Err != nil {
				n.log.Warn("a replaced session could not be closed", "event", "former_owner", "session", k.Session, "error", c.Err)
			}
		}})
	}
}

// abandon undoes admit for a session whose connection never opened.
func (n *Node) abandon(s *session) {
	n.hub.remove(s)
	s.mu.Lock()
	rest := s.dropLocked()
	s.closing = true
	s.roomLocked()
	s.mu.Unlock()
	unwritten(rest...)
	s.detach()
	n.hub.gone(s)
	n.leave()
}

// welcome is the first frame, from which on the session is part of its user's log.
func (n *Node) welcome(ctx context.Context, s *session) []byte {
	w := wire.Welcome{Type: wire.TypeWelcome, Session: s.id, User: s.user, Device: s.device, Node: n.cfg.NodeID,
		Epoch: n.rings.Current().Epoch, PingIntervalMS: n.cfg.PingInterval.Milliseconds(), MaxMessageBytes: n.cfg.MaxMessageBytes}
	n.attach(ctx, s, &w)
	b, err := json.Marshal(w)
	if err != nil {
		panic(err) // plain fields always have an encoding
	}
	return b
}
