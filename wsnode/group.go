package wsnode

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/dialring/dialring/internal/inbox"
	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/route"
)

// A group is owned by a node of the ring like a user is. Its owner fans pushes out:
//
//	locator            the group's owner                 the members' owners
//	  | push, a part       |                                  |
//	  |------------------->| members, as the store has them   |
//	  |                    |---- a push for each ------------>|
//	  |<-- counts, next ---|<---------------------------------|
//	  | the next part …    |
//
// In parts, so that no call takes long, and a locator goes on with the group's next owner
// when one dies.

const (
	// maxGroupPart is how many members a part has at most, and groupPartBytes how many bytes
	// are pushed to all of them.
	maxGroupPart   = 2000
	groupPartBytes = 16 << 20
	// groupTimeout is how long members are read in one call; the pushes may take as long
	// again, and a link waits a little longer than both.
	groupTimeout = 2 * time.Second
	// groupWindow bounds the bytes of one part that are on their way, and groupWeight is
	// what a small message counts.
	groupWindow = 8 << 20
	groupWeight = 4 << 10
)

// group carries out a call about a group. errStore: the store did not answer.
func (n *Node) group(in *peer.In) (any, error) {
	ctx, cancel := context.WithTimeout(n.ctx, groupTimeout)
	defer cancel()
	switch in.Op {
	case peer.OpGroupChange:
		var c peer.GroupChange
		if err := json.Unmarshal(in.Body, &c); err != nil {
			return nil, err
		}
		return struct{}{}, n.stored.groups.Change(ctx, c.Group, c.Add, c.Remove)
	case peer.OpGroupMembers:
		var c peer.GroupMembers
		if err := json.Unmarshal(in.Body, &c); err != nil {
			return nil, err
		}
		all, err := n.stored.groups.Members(ctx, c.Group)
		c.Members, c.Total = part(all, c.After, c.Limit), len(all)
		return c, err
	}
	var c peer.GroupPush
	if err := json.Unmarshal(in.Body, &c); err != nil {
		return nil, err
	}
	all, err := n.stored.groups.Members(ctx, c.Group)
	if err != nil {
		return nil, err
	}
	return n.pushGroup(&c, all), nil
}

// part is what follows after in a sorted list, at most limit of it.
func part(all []string, after string, limit int) []string {
	if after != "" {
		i, found := slices.BinarySearch(all, after)
		if found {
			i++
		}
		all = all[i:]
	}
	return all[:min(len(all), max(0, limit))]
}

// pushPart is the part of the members that a push goes to now, and, if there are more, whom
// the next part comes after.
func pushPart(c *peer.GroupPush, all []string) (members []string, next string) {
	members = part(all, c.After, min(c.Limit, maxGroupPart, max(1, groupPartBytes/max(1, len(c.Body)))))
	if n := len(members); n > 0 && members[n-1] != all[len(all)-1] {
		next = members[n-1]
	}
	return members, next
}

// pushGroup pushes to a part of the members, each the way of a push of its own.
func (n *Node) pushGroup(c *peer.GroupPush, all []string) *peer.GroupPushed {
	members, next := pushPart(c, all)
	out := &peer.GroupPushed{Members: len(members), Next: next}
	if len(members) == 0 {
		return out
	}
	jobs := make([]route.Job, len(members))
	g := route.NewGroup(len(jobs))
	g.Window = semaphore.NewWeighted(groupWindow)
	for i, user := range members {
		j := &jobs[i]
		j.Group = g
		j.Call = peer.Call{Op: peer.OpPush, User: user, ID: n.ids.Next(), JSON: c.JSON, Body: c.Body, Durable: c.Durable,
			TTL: time.Duration(c.TTLMS) * time.Millisecond, Key: c.Key}
		j.Weight = max(len(c.Body), groupWeight)
		if err := g.Window.Acquire(n.ctx, int64(j.Weight)); err != nil {
			j.Weight, j.Problem = 0, drainingProblem()
			g.One(0)
			continue
		}
		n.router.Send(n.ctx, j)
	}
	<-g.Done
	for i := range jobs {
		res, p := jobs[i].Result()
		if p != nil {
			out.Failed = append(out.Failed, peer.GroupFailed{User: members[i], Code: string(p.Code), Detail: p.Detail})
			continue
		}
		out.Delivered += res.Delivered
		if res.Stored {
			out.Stored++
		}
	}
	return out
}

// replyGroup answers a call about a group.
func (n *Node) replyGroup(in *peer.In, cur *ring.Ring) {
	if !n.ownsUser(nil, string(in.User), cur) {
		in.Reply(peer.Reply{Status: peer.StatusMisdirected})
		return
	}
	out, err := n.group(in)
	bad := (*json.SyntaxError)(nil)
	switch {
	case err == nil:
		b, err := json.Marshal(out)
		if err != nil {
			panic(err) // plain fields always have an encoding
		}
		in.Reply(peer.Reply{Body: b})
	case errors.Is(err, inbox.ErrGroupFull):
		in.Reply(peer.Reply{Status: peer.StatusFull})
	case errors.Is(err, inbox.ErrReading):
		in.Reply(peer.Reply{Status: peer.StatusReading, Body: []byte(inbox.ErrReading.Error())})
	case errors.As(err, &bad):
		in.Reply(peer.Reply{Status: peer.StatusBad})
	default:
		n.log.Warn("a call about a group fails", "event", "group", "error", err)
		in.Reply(storeReply(err))
	}
}
