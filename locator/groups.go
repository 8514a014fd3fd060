package locator

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/wire"
)

const (
	// maxMembersPage is how many members a call lists.
	maxMembersPage = 10_000
	// groupPart is how many members a node pushes to at a time.
	groupPart = 2000
	// maxFailedListed bounds the list of members whose push failed.
	maxFailedListed = 1000
)

// groupPatience is how long a call waits for a group's new owner to read its members.
const groupPatience = 30 * time.Second

// groupCall asks a group's owner. repeatable: the call may be carried out twice, as
// changes may, and pushes that the store compares by their key.
func (l *Locator) groupCall(op peer.Op, group string, repeatable bool, in, out any) *wire.Problem {
	body, err := json.Marshal(in)
	if err != nil {
		panic(err) // plain fields always have an encoding
	}
	for end := time.Now().Add(groupPatience); ; {
		j, p := l.ask(&peer.Call{Op: op, User: peer.GroupKey(group), JSON: true, Body: body, Durable: repeatable})
		switch {
		case p != nil && p.Status == http.StatusGatewayTimeout && !repeatable:
			return wire.NewProblem(http.StatusGatewayTimeout, wire.CodeOwnerUnreachable, "the node that owns the group took the push and did not answer: some members may have it")
		case p != nil && p.Code == wire.CodeOwnerUnreachable:
			return wire.NewProblem(http.StatusServiceUnavailable, wire.CodeOwnerUnreachable, "the node that owns the group cannot be reached; try again")
		case p != nil:
			return p
		case j.Reply.Status == peer.StatusFull:
			l.limited(limitMembers)
			return wire.NewProblem(http.StatusUnprocessableEntity, wire.CodeTooLarge, "a group has at most %d members", wire.MaxMembers)
		case j.Reply.Status == peer.StatusReading && time.Now().Before(end) && l.front.Err() == nil:
			continue
		case j.Reply.Status == peer.StatusStore || j.Reply.Status == peer.StatusReading:
			return wire.NewProblem(http.StatusServiceUnavailable, wire.CodeStoreUnavailable, "node %s cannot read or change the group (%s); try again", j.Owner.ID, j.Reply.Body)
		case j.Reply.Status != peer.StatusOK:
			return unreachable(j.Owner.ID)
		}
		if err := json.Unmarshal(j.Reply.Body, out); err != nil {
			return wire.NewProblem(http.StatusInternalServerError, wire.CodeInternal, "node %s gives an answer that cannot be read", j.Owner.ID)
		}
		return nil
	}
}

// groups answers what is under /v1/groups/: a group, its members, one member.
func (l *Locator) groups(c echo.Context) error {
	r := c.Request()
	ids, err := wire.PathIDs(r.URL, "/v1/groups/")
	if err != nil {
		return badRequest("%v", err)
	}
	is := func(method string, n int) bool {
		return r.Method == method && len(ids) == n && (n == 1 || ids[1] == "members")
	}
	var group string
	if len(ids) > 0 {
		group = ids[0]
		if err := wire.CheckUser(group); err != nil {
			return badRequest("the group: %v", err)
		}
		if p := l.reach(c, group); p != nil {
			return p
		}
	}
	switch {
	case is(http.MethodGet, 1):
		return l.getMembers(c, group, true)
	case is(http.MethodGet, 2):
		return l.getMembers(c, group, false)
	case is(http.MethodPost, 2):
		return l.changeMembers(c, group)
	case is(http.MethodPut, 3), is(http.MethodDelete, 3):
		if err := wire.CheckUser(ids[2]); err != nil {
			return badRequest("%v", err)
		}
		if p := l.reach(c, ids[2]); p != nil {
			return p
		}
		change := peer.GroupChange{Group: group}
		if r.Method == http.MethodPut {
			change.Add = []string{ids[2]}
		} else {
			change.Remove = []string{ids[2]}
		}
		if p := l.groupCall(peer.OpGroupChange, group, true, change, &struct{}{}); p != nil {
			return p
		}
		return c.NoContent(http.StatusNoContent)
	}
	return wire.NewProblem(http.StatusNotFound, wire.CodeNotFound, "groups are GET /v1/groups/{group}, GET and POST /v1/groups/{group}/members, PUT and DELETE /v1/groups/{group}/members/{user}")
}

// getMembers: how many members a group has, and if not only that, a page of them.
func (l *Locator) getMembers(c echo.Context, group string, only bool) error {
	q := peer.GroupMembers{Group: group, Limit: maxMembersPage}
	for name, v := range c.QueryParams() {
		switch {
		case len(v) != 1:
			return badRequest("%s is given more than once", name)
		case name == "after" && !only:
			q.After = v[0]
		case name == "limit" && !only:
			n, err := strconv.Atoi(v[0])
			if err != nil || n < 1 || n > maxMembersPage {
				return badRequest("limit is %q; it is a number from 1 to %d", v[0], maxMembersPage)
			}
			q.Limit = n
		default:
			return badRequest("the query has %q; a list of members may have after and limit", name)
		}
	}
	if only {
		q.Limit = 0
	}
	var got peer.GroupMembers
	if p := l.groupCall(peer.OpGroupMembers, group, true, q, &got); p != nil {
		return p
	}
	out := wire.GroupResponse{Group: group, Count: got.Total}
	if !only {
		out.Members = append([]string{}, got.Members...)
		if n := len(got.Members); n == q.Limit {
			out.Next = got.Members[n-1]
		}
	}
	return writeJSON(c, http.StatusOK, out)
}

// changeMembers: POST /v1/groups/{group}/members {"add":[…],"remove":[…]}
func (l *Locator) changeMembers(c echo.Context, group string) error {
	body, p := l.readJSON(c.Request(), l.cfg.MaxBodyBytes)
	if p != nil {
		return p
	}
	var req struct {
		Add    []string `json:"add"`
		Remove []string `json:"remove"`
	}
	if err := wire.DecodeJSON(body, &req); err != nil {
		return badRequest("the body: %v", err)
	}
	n := len(req.Add) + len(req.Remove)
	if n == 0 {
		return badRequest(`the body must name users: {"add":["a"],"remove":["b"]}`)
	}
	if p := l.checkBatch(n); p != nil {
		return p
	}
	halves := wire.HalfEscapes(body)
	check := func(u string) error {
		if wire.BrokenID(u, halves) {
			return errors.New("a user id has an escape that is no character")
		}
		return wire.CheckUser(u)
	}
	removed := map[string]bool{}
	for _, u := range req.Remove {
		if err := check(u); err != nil {
			return badRequest("remove: %v", err)
		}
		removed[u] = true
	}
	for _, u := range req.Add {
		if err := check(u); err != nil {
			return badRequest("add: %v", err)
		}
		if removed[u] {
			return badRequest("a user is both in add and in remove")
		}
	}
	if p := l.reach(c, slices.Concat(req.Add, req.Remove)...); p != nil {
		return p
	}
	note(c, "add", len(req.Add), "remove", len(req.Remove))
	if p := l.groupCall(peer.OpGroupChange, group, true, peer.GroupChange{Group: group, Add: req.Add, Remove: req.Remove}, &struct{}{}); p != nil {
		return p
	}
	return c.NoContent(http.StatusNoContent)
}

// pushGroup: POST /v1/push?group=, each member gets it as a push of its own.
func (l *Locator) pushGroup(c echo.Context, q pushQuery) error {
	r := c.Request()
	if q.wait > 0 || q.device != "" {
		return badRequest("wait and device do not go with group")
	}
	refused := func(p *wire.Problem) *wire.Problem { return l.refusedPush(keyOf(c), q.durable, p) }
	if p := l.reach(c, q.group); p != nil {
		return refused(p)
	}
	if p := checkKey(r.Header.Values("Idempotency-Key")); p != nil {
		return refused(p)
	}
	body, isJSON, p := l.readPayload(r)
	if p != nil {
		return refused(p)
	}
	l.metrics.calls.WithLabelValues("group").Inc()
	span := l.tracer.Request(r, "/v1/push")
	span.Set("dialring.group", q.group)
	failed := ""
	defer func() { span.End(failed) }()
	push := peer.GroupPush{Group: q.group, Limit: groupPart, Durable: q.durable, TTLMS: q.ttl.Milliseconds(), JSON: isJSON, Body: body}
	if push.Key = r.Header.Get("Idempotency-Key"); push.Key == "" && q.durable {
		push.Key = "group:" + l.ids.Next() // a part that is asked for twice must not come twice
	}
	out := wire.GroupPushResult{Group: q.group, Failed: []wire.GroupFailed{}}
	for {
		var got peer.GroupPushed
		if p := l.groupCall(peer.OpGroupPush, q.group, q.durable, push, &got); p != nil {
			failed = string(p.Code)
			if push.After != "" {
				p.Detail += " (" + strconv.Itoa(out.Members) + " members were pushed to before)"
			}
			return p
		}
		keyOf(c).counted(got.Members-len(got.Failed), true)
		keyOf(c).counted(len(got.Failed), false)
		out.Members += got.Members
		out.Stored += got.Stored
		out.Delivered += got.Delivered
		out.FailedCount += len(got.Failed)
		for _, f := range got.Failed[:min(len(got.Failed), maxFailedListed-len(out.Failed))] {
			out.Failed = append(out.Failed, wire.GroupFailed{User: f.User, Error: wire.PushError{Code: wire.Code(f.Code), Detail: f.Detail}})
		}
		if got.Next == "" || r.Context().Err() != nil {
			break
		}
		push.After = got.Next
	}
	return writeJSON(c, http.StatusOK, out)
}
