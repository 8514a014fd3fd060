package locator

import (
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/dialring/dialring/internal/httpd"
	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/route"
	"github.com/dialring/dialring/internal/ticket"
	"github.com/dialring/dialring/internal/wire"
)

const (
	maxLocateBody = 16 << 10
	maxFailed     = 16 // failed hints that are heeded
)

// userHandler answers a request of a user, whose query is q.
type userHandler func(c echo.Context, who caller, q url.Values) error

// asUser is what stands before everything that clients ask, behind admitted: it lets in
// pages of allowed origins, and finds out who the user is.
func (l *Locator) asUser(next userHandler) echo.HandlerFunc {
	return func(c echo.Context) error {
		r := c.Request()
		l.origins.CORS(c.Response().Header(), r)
		if !l.origins.Allow(r) {
			return wrongOrigin()
		}
		q, err := url.ParseQuery(r.URL.RawQuery)
		if err != nil {
			return badRequest("the query cannot be read: it is not validly percent-encoded")
		}
		who, p := l.callerOf(r, q)
		if p != nil {
			return p
		}
		if !l.perUser.Allow(who.user) {
			l.limited(limitUser)
			return wire.NewProblem(http.StatusTooManyRequests, wire.CodeRateLimited, "too many locates of this user; at most %d a second", l.perUser.PerSecond())
		}
		return next(c, who, q)
	}
}

// measured counts a locate, by what becomes of it.
func (l *Locator) measured(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		start := time.Now()
		err := next(c)
		if err == nil {
			l.metrics.located.Inc()
		} else {
			l.metrics.locates.WithLabelValues(codeOf(err)).Inc()
		}
		l.metrics.locating.Observe(time.Since(start).Seconds())
		return err
	}
}

// codeOf is what a metric says of a call that failed.
func codeOf(err error) string {
	var p *wire.Problem
	if errors.As(err, &p) {
		return string(p.Code)
	}
	return string(wire.CodeInternal)
}

// locate tells a client which node owns its user, and after a crash when to dial
// it. Nothing on this path does I/O: the ring and the keys are in memory.
func (l *Locator) locate(c echo.Context, who caller, q url.Values) error {
	r, user := c.Request(), who.user
	req, p := l.locateRequest(r, q)
	if p != nil {
		return p
	}
	for _, id := range req.Failed {
		l.keeper.Failed(id)
	}
	owner, cur, ok := l.owner(r.Context(), user)
	if !ok {
		return route.NoNodes()
	}
	now := time.Now()
	wait, ok := l.storm.dialAfter(cur, owner, user, l.keeper.Locators, now)
	if !ok {
		p := wire.NewProblem(http.StatusServiceUnavailable, wire.CodeRateLimited, "many clients of a node that is gone connect again: locate again later")
		p.Header = [2]string{"Retry-After", strconv.Itoa(int((wait - maxDialIn/2) / time.Second))}
		return p
	}
	t := l.signer.Ticket(ticket.Ticket{User: user, Device: req.Device, Node: owner.ID, Epoch: cur.Epoch, SendTo: who.sendTo}, now)
	if len(who.sendTo) > 0 && len(t) > ticket.MaxBytes-ticket.MoveBytes {
		return badRequest("the claim send_to of the user token does not fit into a ticket: use fewer or shorter entries, or prefixes")
	}
	if wait > 0 {
		l.metrics.delayed.Inc()
	}
	c.Response().Header()["Cache-Control"] = noStore
	return httpd.JSON(c.Response(), appendLocate(make([]byte, 0, 1024), user, req.Device, owner, t, cur, wait))
}

func wrongOrigin() *wire.Problem {
	return wire.NewProblem(http.StatusForbidden, wire.CodeForbidden, "pages of this origin may not locate; DIALRING_ALLOWED_ORIGINS of the locator lists those that may")
}

func badRequest(format string, args ...any) *wire.Problem {
	return wire.NewProblem(http.StatusBadRequest, wire.CodeInvalidRequest, format, args...)
}

// callerOf returns whose locate it is: by the token, and in development mode also
// by the query.
func (l *Locator) callerOf(r *http.Request, q url.Values) (caller, *wire.Problem) {
	unauthorized := func(e *tokenError) *wire.Problem {
		l.refusedToken(r, e)
		detail := e.detail
		if e.reason == tokenNoKeys { // not the token's fault
			p := wire.NewProblem(http.StatusServiceUnavailable, wire.CodeStoreUnavailable, "%s", detail)
			p.RetryAfter = int(jwksFirst.Seconds())
			return p
		}
		p := wire.NewProblem(http.StatusUnauthorized, wire.CodeUnauthorized, "%s", detail)
		p.Header = [2]string{"WWW-Authenticate", "Bearer"}
		return p
	}
	if token, ok := httpd.Bearer(r); ok && l.tokens != nil {
		who, err := l.tokens.caller(token)
		if err != nil {
			var e *tokenError
			if !errors.As(err, &e) {
				e = &tokenError{reason: tokenMalformed, detail: invalidToken, err: err}
			}
			return caller{}, unauthorized(e)
		}
		if since := l.revoked.Since(who.user); who.issued.Before(since) {
			return caller{}, unauthorized(&tokenError{reason: tokenRevoked, detail: "the user token was revoked: log in again", user: who.user})
		}
		return who, nil
	}
	if l.cfg.dev {
		if !q.Has("user") {
			return caller{}, unauthorized(&tokenError{reason: tokenMissing, detail: "say who you are: ?user=alice in development mode, or a user token as Authorization: Bearer"})
		}
		if err := wire.CheckUser(q.Get("user")); err != nil {
			return caller{}, badRequest("user: %v", err)
		}
		who := caller{user: q.Get("user")}
		if to := q.Get("send_to"); to != "" {
			who.sendTo = strings.Split(to, ",")
		}
		if err := wire.CheckSendTo(who.sendTo); err != nil {
			return caller{}, badRequest("%v", err)
		}
		return who, nil
	}
	return caller{}, unauthorized(&tokenError{reason: tokenMissing, detail: "a user token is missing: send it as Authorization: Bearer <token>"})
}

// refusedToken counts a refusal, and tells the log what the stranger is not told.
func (l *Locator) refusedToken(r *http.Request, e *tokenError) {
	l.metrics.refused.WithLabelValues(credentialToken, e.reason).Inc()
	skipped, say := l.refusals.Next(credentialToken + e.reason)
	if !say {
		return
	}
	why := ""
	if e.err != nil {
		why = httpd.Cut(e.err.Error())
	}
	l.log.Info("a user token is refused", "event", "token_refused", "reason", e.reason, "remote", r.RemoteAddr, "user", httpd.Cut(e.user),
		"kid", httpd.Cut(e.kid), "alg", httpd.Cut(e.alg), "why", why, "skipped", skipped)
}

// locateRequest reads device and failed from the query and the body, which
// wins. A device that is not given is made up.
func (l *Locator) locateRequest(r *http.Request, q url.Values) (wire.LocateRequest, *wire.Problem) {
	req := wire.LocateRequest{Device: q.Get("device")}
	if f := q.Get("failed"); f != "" {
		req.Failed = strings.Split(f, ",")
	}
	b, p := l.readBody(r, maxLocateBody)
	if p != nil {
		return req, p
	}
	if len(b) > 0 {
		var body wire.LocateRequest
		if err := wire.DecodeJSON(b, &body); err != nil {
			return req, badRequest("the body: %v", err)
		}
		if body.Device != "" {
			req.Device = body.Device
		}
		if body.Failed != nil {
			req.Failed = body.Failed
		}
	}
	if req.Device == "" {
		req.Device = "d-" + wire.RandomID(10)
	}
	if err := wire.CheckDevice(req.Device); err != nil {
		return req, badRequest("device: %v", err)
	}
	for _, id := range req.Failed {
		if err := wire.CheckNode(id); err != nil {
			return req, badRequest("failed: %v", err)
		}
	}
	req.Failed = req.Failed[:min(len(req.Failed), maxFailed)]
	return req, nil
}

var noStore = []string{"no-store"} // net/http only reads it

// appendLocate appends a wire.LocateResponse; a test compares the two.
func appendLocate(b []byte, user, device string, n *ring.Node, ticket string, cur *ring.Ring, wait time.Duration) []byte {
	field := func(name, value string) {
		b = append(b, name...)
		b = wire.AppendString(b, value)
	}
	field(`{"user":`, user)
	field(`,"device":`, device)
	field(`,"node":`, n.ID)
	field(`,"url":`, n.URL)
	field(`,"ticket":`, ticket)
	b = append(b, locateTail...)
	b = strconv.AppendUint(b, cur.Epoch, 10)
	field(`,"hash":`, cur.Hash)
	b = append(b, `},"dial_after_ms":`...)
	b = strconv.AppendInt(b, (wait + time.Millisecond - 1).Milliseconds(), 10)
	b = append(b, `,"retry":{"base_ms":`...)
	b = strconv.AppendInt(b, wire.DefaultRetry.BaseMS, 10)
	b = append(b, `,"max_ms":`...)
	b = strconv.AppendInt(b, wire.DefaultRetry.MaxMS, 10)
	return append(b, "}}"...)
}

var locateTail = `,"ticket_expires_in_ms":` + strconv.FormatInt(ticket.Life.Milliseconds(), 10) + `,"ring":{"epoch":`

// preflight answers a browser that asks whether a page may locate.
func (l *Locator) preflight(c echo.Context) error {
	r, h := c.Request(), c.Response().Header()
	l.origins.CORS(h, r)
	if !l.origins.Allow(r) {
		return wrongOrigin()
	}
	h.Set("Access-Control-Allow-Methods", "GET, POST")
	h.Set("Access-Control-Allow-Headers", "Authorization, Content-Type")
	h.Set("Access-Control-Max-Age", "600")
	return c.NoContent(http.StatusNoContent)
}
