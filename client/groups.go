package client

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/dialring/dialring/internal/wire"
)

func groupPath(group string) string { return "/v1/groups/" + url.PathEscape(group) }

// ChangeGroup makes users members of a group, and others not any more. A group is there
// as soon as it has a member, and has at most a million. Pushes that are made when
// ChangeGroup has returned see the change. More than 10,000 users are several calls; if one fails,
// the others before it count.
func (p *Pusher) ChangeGroup(ctx context.Context, group string, add, remove []string) error {
	type change struct {
		Add    []string `json:"add,omitempty"`
		Remove []string `json:"remove,omitempty"`
	}
	var calls []change
	for part := range slices.Chunk(add, wire.MaxUsersPerCall) {
		calls = append(calls, change{Add: part})
	}
	for part := range slices.Chunk(remove, wire.MaxUsersPerCall) {
		calls = append(calls, change{Remove: part})
	}
	for _, c := range calls {
		body, err := json.Marshal(c)
		if err != nil {
			return err
		}
		if err := p.do(ctx, http.MethodPost, groupPath(group)+"/members", jsonHeader(), body, 0, true, nil); err != nil {
			return err
		}
	}
	return nil
}

// Members calls f with each member of a group, in the order of their ids, until f returns
// false. A change that is made meanwhile may or may not be seen.
func (p *Pusher) Members(ctx context.Context, group string, f func(user string) bool) error {
	for after := ""; ; {
		q := url.Values{"limit": {strconv.Itoa(wire.MaxUsersPerCall)}}
		if after != "" {
			q.Set("after", after)
		}
		var r wire.GroupResponse
		if err := p.do(ctx, http.MethodGet, groupPath(group)+"/members"+query(q), http.Header{}, nil, 0, true, &r); err != nil {
			return err
		}
		for _, u := range r.Members {
			if !f(u) {
				return nil
			}
		}
		if after = r.Next; after == "" {
			return nil
		}
	}
}

// GroupReceipt is what became of a push to a group.
type GroupReceipt struct {
	Members   int // that it was for
	Stored    int // whose message is stored
	Delivered int // sessions that it was written to at once
	Failed    int // members whose push was not accepted
	// Failures are the first 1,000 of those, with an *APIError each.
	Failures []Result
}

// PushGroup pushes data to each member of a group, as a message of its own: stored, unless
// Ephemeral is given. It waits until all are done: a million members take a minute or more. If it
// fails, or some members have, the same push with the same IdempotencyKey reaches those that
// are left, and the others only once. TTL goes, too.
func (p *Pusher) PushGroup(ctx context.Context, group string, data any, opts ...PushOption) (GroupReceipt, error) {
	o := options(opts)
	if o.wait > 0 || o.query.Has("device") {
		return GroupReceipt{}, errors.New("dialring: WaitAck and ToDevice do not go with a group")
	}
	body, h, err := o.request(data)
	if err != nil {
		return GroupReceipt{}, err
	}
	o.query.Set("group", group)
	var r pushedGroup
	err = p.do(ctx, http.MethodPost, "/v1/push"+query(o.query), h, body, groupTimeout, !o.ephemeral(), &r)
	out := GroupReceipt{Members: r.Members, Stored: r.Stored, Delivered: r.Delivered, Failed: r.FailedCount}
	for _, f := range r.Failed {
		out.Failures = append(out.Failures, Result{User: f.User, Err: &APIError{Code: string(f.Error.Code), Detail: f.Error.Detail}})
	}
	return out, err
}

// pushedGroup is the answer to a push to a group.
type pushedGroup struct{ wire.GroupPushResult }

func (r *pushedGroup) check() error {
	if r.Group == "" {
		return errors.New("it does not say what became of the push")
	}
	return nil
}

// groupTimeout is what a push to a group may take longer than one to a user.
const groupTimeout = wire.MaxGroupPush
