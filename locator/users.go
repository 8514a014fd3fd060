package locator

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/route"
	"github.com/dialring/dialring/internal/wire"
)

// callTimeout bounds a call to one node that is no push.
const callTimeout = 3 * time.Second

var errBad = errors.New("the node refuses the call")

// call asks one node and waits for its answer.
func (r *router) call(ctx context.Context, n *ring.Node, c *peer.Call) (peer.Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	reply, err := r.Link(n).Ask(ctx, c)
	if err == nil && reply.Status == peer.StatusBad {
		err = errBad
	}
	return reply, err
}

// ask carries a call to the node that owns its user, or its group, like a push.
func (l *Locator) ask(c *peer.Call) (*route.Job, *wire.Problem) {
	j := &route.Job{Call: *c, Group: route.NewGroup(1)}
	l.router.Send(l.ctx, j)
	<-j.Group.Done
	if j.Problem == nil && j.Err != nil {
		return nil, unreachable(j.Owner.ID)
	}
	return j, j.Problem
}

// askOwner is ask for a call that has no other answer than OK.
func (l *Locator) askOwner(c *peer.Call) (*route.Job, *wire.Problem) {
	j, p := l.ask(c)
	switch {
	case p != nil && p.Code == wire.CodeOwnerUnreachable && j != nil: // its text is about a message
		return nil, unreachable(j.Owner.ID)
	case p != nil:
		return nil, p
	case j.Reply.Status != peer.StatusOK:
		return nil, unreachable(j.Owner.ID)
	}
	return j, nil
}

// getUser: GET /v1/users/{user}, who is connected where.
func (l *Locator) getUser(c echo.Context) error {
	user, err := wire.PathUser(c.Request().URL, "/v1/users/", "")
	if err != nil {
		return badRequest("%v", err)
	}
	if p := l.reach(c, user); p != nil {
		return p
	}
	out, _, p := l.userNow(user, nil)
	if p != nil {
		return p
	}
	return writeJSON(c, http.StatusOK, out)
}

// userNow asks a user's owner for the sessions, and what else a peer.UserQuery says.
func (l *Locator) userNow(user string, query []byte) (out wire.UserResponse, u peer.User, p *wire.Problem) {
	j, p := l.askOwner(&peer.Call{Op: peer.OpSessions, User: user, JSON: len(query) > 0, Body: query})
	if p != nil {
		return out, u, p
	}
	if err := json.Unmarshal(j.Reply.Body, &u); err != nil {
		return out, u, wire.NewProblem(http.StatusInternalServerError, wire.CodeInternal, "node %s gives an answer that cannot be read", j.Owner.ID)
	}
	out = wire.UserResponse{User: user, Node: j.Owner.ID, Epoch: j.Epoch, Online: len(u.Sessions) > 0, Sessions: u.Sessions, Head: u.Head, HeadUnknown: u.HeadUnknown}
	if out.Sessions == nil {
		out.Sessions = []wire.Session{}
	}
	return out, u, nil
}

// kick: DELETE /v1/users/{user}/sessions?device=&session=
func (l *Locator) kick(c echo.Context) error {
	r := c.Request()
	if !strings.HasSuffix(r.URL.EscapedPath(), "/sessions") {
		return wire.NewProblem(http.StatusNotFound, wire.CodeNotFound, "sessions are ended by DELETE /v1/users/{user}/sessions")
	}
	user, err := wire.PathUser(r.URL, "/v1/users/", "/sessions")
	if err != nil {
		return badRequest("%v", err)
	}
	if p := l.reach(c, user); p != nil {
		return p
	}
	return l.kickUser(c, user)
}

// kickUser ends the sessions of a user that the query says, and answers how many.
func (l *Locator) kickUser(c echo.Context, user string) error {
	k := peer.Kick{Code: wire.CloseKicked}
	for name, v := range c.QueryParams() {
		switch {
		case len(v) != 1:
			return badRequest("%s is given more than once", name)
		case name == "device":
			if err := wire.CheckDevice(v[0]); err != nil {
				return badRequest("device: %v", err)
			}
			k.Device = v[0]
		case name == "session":
			if v[0] == "" || len(v[0]) > 64 {
				return badRequest("session is the id of a session, as GET /v1/users/{user} lists it")
			}
			k.Session = v[0]
		case name == "revoke":
			if v[0] != "true" && v[0] != "false" {
				return badRequest("revoke is %q; it is true or false", v[0])
			}
			k.Revoke = v[0] == "true"
		default:
			return badRequest("the query has %q; it may have device, session and revoke", name)
		}
	}
	if k.Revoke {
		called(c, actRevoke)
		if k.Device != "" || k.Session != "" {
			return badRequest("revoke is about all tokens of the user: leave device and session out")
		}
		if err := l.revoked.Revoke(c.Request().Context(), user, time.Now()); err != nil {
			l.log.Warn("tokens of a user could not be revoked", "event", "revoke_failed", "user", user, "error", err)
			return wire.NewProblem(http.StatusServiceUnavailable, wire.CodeStoreUnavailable, "the revocation could not be stored: nothing was done; try again")
		}
		l.log.Info("tokens of a user were revoked", "event", "revoked", "user", user)
	}
	body, err := json.Marshal(k)
	if err != nil {
		return err
	}
	j, p := l.askOwner(&peer.Call{Op: peer.OpKick, User: user, JSON: true, Body: body})
	if p != nil {
		return p
	}
	var ids []string
	if err := json.Unmarshal(j.Reply.Body, &ids); err != nil {
		return err
	}
	return writeJSON(c, http.StatusOK, map[string]int{"closed": len(ids)})
}

// presence: POST /v1/presence {"users":[…]}, one question to each node.
func (l *Locator) presence(c echo.Context) error {
	body, p := l.readJSON(c.Request(), l.cfg.MaxBodyBytes)
	if p != nil {
		return p
	}
	var req struct {
		Users []string `json:"users"`
	}
	if err := wire.DecodeJSON(body, &req); err != nil {
		return badRequest("the body: %v", err)
	}
	if req.Users == nil {
		return badRequest(`the body must name users: {"users":["a","b"]}`)
	}
	if p := l.checkBatch(len(req.Users)); p != nil {
		return p
	}
	halves := wire.HalfEscapes(body)
	for _, u := range req.Users {
		if err := wire.CheckUser(u); err != nil {
			return badRequest("users: %v", err)
		}
		if wire.BrokenID(u, halves) {
			return badRequest("users: a user id has an escape that is no character")
		}
	}
	if p := l.reach(c, req.Users...); p != nil {
		return p
	}
	online := map[string]int{}
	end := time.Now().Add(route.Timeout)
	for left := req.Users; len(left) > 0; {
		changed := l.rings.Changed()
		var p *wire.Problem
		if left, p = l.presenceOf(c.Request().Context(), left, online); p != nil && (len(left) == 0 || time.Now().After(end)) {
			return p
		}
		if c.Request().Context().Err() != nil {
			return wire.NewProblem(http.StatusServiceUnavailable, wire.CodeOwnerUnreachable, "the caller has gone")
		}
		if time.Now().After(end) {
			return wire.NewProblem(http.StatusServiceUnavailable, wire.CodeOwnerUnreachable, "the nodes do not agree on who owns whom; try again")
		}
		if len(left) > 0 { // the ring is changing
			select {
			case <-changed:
			case <-time.After(route.Pause):
			case <-c.Request().Context().Done():
			}
		}
	}
	return writeJSON(c, http.StatusOK, map[string]any{"online": online})
}

// presenceOf asks the owners of users by the ring of now, and returns those who
// turned out to have another one.
func (l *Locator) presenceOf(ctx context.Context, users []string, online map[string]int) ([]string, *wire.Problem) {
	cur := l.rings.Current()
	by := map[*ring.Node][]string{}
	for _, u := range users {
		o, ok := cur.Owner(u)
		if !ok {
			return nil, route.NoNodes()
		}
		by[o] = append(by[o], u)
	}
	var mu sync.Mutex
	var again []string
	var failed *wire.Problem
	var wg sync.WaitGroup
	for n, list := range by {
		wg.Go(func() {
			body, err := json.Marshal(list)
			var r peer.Reply
			if err == nil {
				r, err = l.router.call(ctx, n, &peer.Call{Op: peer.OpPresence, Ring: cur.Ref(), JSON: true, Body: body})
			}
			var got struct {
				Sessions    map[string][]string `json:"sessions"`
				Misdirected []string            `json:"misdirected"`
			}
			if err == nil {
				err = json.Unmarshal(r.Body, &got)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				if ctx.Err() == nil {
					l.keeper.Failed(n.ID) // they may have another owner in a moment
				}
				failed, again = unreachable(n.ID), append(again, list...)
				return
			}
			for u, ids := range got.Sessions {
				online[u] = len(ids)
			}
			again = append(again, got.Misdirected...)
		})
	}
	wg.Wait()
	return again, failed
}
