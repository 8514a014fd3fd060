package wsnode

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/lxzan/gws"

	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/httpd"
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

// dialWS answers a dial. Everything is checked before the upgrade, with the
// status of the contract: gws hijacks first and answers 400 to everything.
func (n *Node) dialWS(c echo.Context) error {
	r := c.Request()
	c.Response().Header().Set(cluster.NodeHeader, n.cfg.NodeID)
	p, s := n.admit(r)
	if p != nil {
		n.metrics.handshakes.WithLabelValues(strconv.Itoa(p.Status)).Inc()
		return p
	}
	if err := n.open(c.Response(), r, s); err != nil {
		n.metrics.handshakes.WithLabelValues("failed").Inc()
		n.log.Debug("a handshake failed", "event", "handshake_failed", "remote", s.remote, "error", err)
		return nil // the connection was hijacked: there is nobody to answer
	}
	n.metrics.handshakes.WithLabelValues("101").Inc()
	return nil
}

// admit checks a dial and registers its session, or says why not.
func (n *Node) admit(r *http.Request) (*wire.Problem, *session) {
	if p := n.limiter.Check(r); p != nil {
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
	switch {
	case n.wasStopped():
		return wire.NewProblem(http.StatusServiceUnavailable, wire.CodeDraining, "this process was stopped and has to look at the ring first; locate again"), nil
	case n.hub.sessions.Load() >= n.maxSessions:
		return wire.NewProblem(http.StatusServiceUnavailable, wire.CodeRateLimited, "this node has as many sessions as it can hold"), nil
	}
	if token == "" {
		p := wire.NewProblem(http.StatusUnauthorized, wire.CodeUnauthorized, "a ticket is missing: ask a locator for one (POST /v1/locate)")
		p.Header = [2]string{"WWW-Authenticate", "Bearer"}
		return p, nil
	}
	t, err := n.verifier.Ticket(token, time.Now())
	if err != nil {
		return ticketProblem(err), nil
	}
	if wire.CheckUser(t.User) != nil || wire.CheckDevice(t.Device) != nil {
		return ticketProblem(ticket.ErrInvalid), nil
	}
	ctx, cancel := context.WithTimeout(r.Context(), catchUp)
	n.rings.WaitEpoch(ctx, t.Epoch)
	cancel()
	if !n.ownsUser(nil, t.User, n.rings.Current()) {
		return n.misdirected(), nil
	}
	s := &session{id: wire.RandomID(10), user: t.User, device: t.Device, remote: r.RemoteAddr, connectedAt: time.Now(),
		node: n, writing: true, since: since, sendTo: t.SendTo, issued: t.Issued}
	if t.Session != "" {
		s.id, s.moved, s.connectedAt = t.Session, true, t.Connected
		s.stray = len(n.rings.Current().Former(t.User)) == 0
	}
	if n.kicked.has(s) {
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
	n.readers.Add(1)
	n.admission.Unlock()
	s.log = n.stored.logs.Get(s.user)
	victims, p := n.hub.add(s, &n.cfg, elsewhere)
	if p != nil {
		s.log.Release()
		n.readers.Done()
		return p, nil
	}
	// The ring may have changed before the session was registered, and the walk
	// over all sessions missed it; or the session was kicked where it came from.
	var late *wire.Problem
	switch {
	case !n.ownsUser(s.owner, s.user, n.rings.Current()):
		late = n.misdirected()
	case n.kicked.has(s):
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

// checkUpgrade checks what RFC 6455, section 4.2.1, asks of a handshake.
func checkUpgrade(r *http.Request) *wire.Problem {
	bad := func(detail string) *wire.Problem {
		return wire.NewProblem(http.StatusBadRequest, wire.CodeInvalidRequest, "not a WebSocket handshake: %s", detail)
	}
	switch {
	case r.ProtoMajor != 1 || !r.ProtoAtLeast(1, 1):
		return bad("it must be HTTP/1.1")
	case !hasToken(r.Header["Connection"], "upgrade"):
		return bad("the header Connection must contain Upgrade")
	case !hasToken(r.Header["Upgrade"], "websocket"):
		return bad("the header Upgrade must be websocket")
	case r.ContentLength > 0 || len(r.TransferEncoding) > 0:
		return bad("it must not have a body")
	}
	if v := r.Header["Sec-Websocket-Version"]; len(v) != 1 || v[0] != "13" {
		p := wire.NewProblem(http.StatusUpgradeRequired, wire.CodeInvalidRequest, "the header Sec-WebSocket-Version must be 13")
		p.Header = [2]string{"Sec-WebSocket-Version", "13"}
		return p
	}
	key := r.Header["Sec-Websocket-Key"]
	if len(key) != 1 {
		return bad("there must be one header Sec-WebSocket-Key")
	}
	if k, err := base64.StdEncoding.DecodeString(key[0]); err != nil || len(k) != 16 {
		return bad("Sec-WebSocket-Key must be 16 bytes in base64")
	}
	return nil
}

// hasToken tells whether a comma list, perhaps over several headers, has token.
func hasToken(values []string, token string) bool {
	for t := range tokens(values) {
		if strings.EqualFold(t, token) {
			return true
		}
	}
	return false
}

func tokens(values []string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for _, v := range values {
			for t := range strings.SplitSeq(v, ",") {
				if !yield(strings.TrimSpace(t)) {
					return
				}
			}
		}
	}
}

// offered takes the ticket from the subprotocols or the Authorization header.
func offered(r *http.Request) (string, *wire.Problem) {
	ours := false
	var tickets []string
	for t := range tokens(r.Header["Sec-Websocket-Protocol"]) {
		if t == wire.Subprotocol {
			ours = true
		} else if x, ok := strings.CutPrefix(t, wire.TicketSubprotocol); ok {
			tickets = append(tickets, x)
		}
	}
	if !ours {
		return "", wire.NewProblem(http.StatusBadRequest, wire.CodeInvalidRequest, "the header Sec-WebSocket-Protocol must offer %s", wire.Subprotocol)
	}
	if x, ok := httpd.Bearer(r); ok {
		tickets = append(tickets, x)
	}
	switch len(tickets) {
	case 0:
		return "", nil
	case 1:
		return tickets[0], nil
	}
	return "", wire.NewProblem(http.StatusBadRequest, wire.CodeInvalidRequest, "send one ticket, either as a subprotocol or as a bearer token")
}

func sinceOf(r *http.Request) (string, *wire.Problem) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return "", wire.NewProblem(http.StatusBadRequest, wire.CodeInvalidRequest, "the query cannot be read: it is not validly percent-encoded")
	}
	since := q.Get("since")
	if since == "" {
		return "", nil
	}
	if err := wire.CheckCursor(since); err != nil {
		return "", wire.NewProblem(http.StatusBadRequest, wire.CodeInvalidRequest, "since: %v", err)
	}
	return since, nil
}

// ticketProblem says no more than a stranger may know.
func ticketProblem(err error) *wire.Problem {
	detail := "the ticket is not valid"
	switch {
	case errors.Is(err, ticket.ErrFull):
		return wire.NewProblem(http.StatusServiceUnavailable, wire.CodeRateLimited, "too many tickets were used lately; locate again")
	case errors.Is(err, ticket.ErrExpired):
		detail = "the ticket has expired"
	case errors.Is(err, ticket.ErrUsed):
		detail = "the ticket was used before; each is good once"
	case errors.Is(err, ticket.ErrAudience):
		detail = "the ticket is for another node"
	}
	return wire.NewProblem(http.StatusUnauthorized, wire.CodeUnauthorized, "%s: locate again", detail)
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
	var from io.Reader = conn
	if k := rw.Reader.Buffered(); k > 0 { // a client that did not wait for the answer
		early, _ := rw.Reader.Peek(k)
		from = io.MultiReader(bytes.NewReader(bytes.Clone(early)), conn)
	}
	// gws looks at the first header only, and must not keep the ticket.
	r.Header.Set("Sec-Websocket-Protocol", wire.Subprotocol)
	s.conn, err = n.upgrader.UpgradeFromConn(s.net, bufio.NewReaderSize(from, readBuffer), r)
	if err != nil {
		s.net.abort()
		n.abandon(s)
		return err
	}
	s.conn.Session().(*holder).s = s
	_ = s.net.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := s.net.Conn.Write(frame(gws.OpcodeText, welcome)); err != nil {
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
	rest := s.queue
	s.queue, s.closing = nil, true
	s.roomLocked()
	s.mu.Unlock()
	unwritten(rest...)
	s.detach()
	n.hub.gone(s)
	n.readers.Done()
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
