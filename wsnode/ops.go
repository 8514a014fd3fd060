package wsnode

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/dialring/dialring/internal/inbox"
	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/ticket"
	"github.com/dialring/dialring/internal/wire"
)

// askPatience is how long a question to a former owner may take.
const askPatience = time.Second

// ask calls a former owner and waits for its answer.
func (n *Node) ask(ctx context.Context, o *ring.Node, c *peer.Call) (peer.Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	c.Forwarded = true
	return n.peers.Get(o.ID, o.Boot, o.PeerURL).Ask(ctx, c)
}

// op carries out a call that is no push, in a goroutine of its own.
func (n *Node) op(in *peer.In, from string, ringEpoch uint64) {
	n.tasks.Go(func() {
		if err := n.mayAsk(from, in, ringEpoch); err != nil {
			n.refuseCall(in, from, err)
			return
		}
		cur := n.rings.Current()
		if in.Op == peer.OpGroupChange || in.Op == peer.OpGroupMembers || in.Op == peer.OpGroupPush {
			n.replyGroup(in, cur)
			return
		}
		user := string(in.User)
		var former []*ring.Node
		if in.Op == peer.OpSessions || in.Op == peer.OpKick || in.Op == peer.OpAcked {
			if in.Forwarded {
				// For the sessions that are still here, whoever owns the user.
			} else if !n.ownsUser(nil, user, cur) {
				in.Reply(peer.Reply{Status: peer.StatusMisdirected})
				return
			} else {
				former = cur.Former(user)
			}
		}
		var out any
		var err error
		switch in.Op {
		case peer.OpSessions:
			out, err = n.userOf(n.ctx, user, in.Body, cur, former, in.Forwarded)
		case peer.OpKick:
			out, err = n.kick(user, in.Body, cur, former, in.Forwarded)
		case peer.OpPresence:
			out, err = n.presence(in, cur)
		case peer.OpAcked:
			var acked int
			if acked, err = n.awaitAck(user, in.Body, cur, former); err == nil {
				in.Reply(peer.Reply{Delivered: acked})
				return
			}
		case peer.OpLook:
			if err := n.look(user); err != nil {
				n.log.Debug("a look at a user's log failed; it is looked at again when it is used", "event", "look", "user", user, "error", err)
			}
		case peer.OpMissing:
			err = n.missingHere(in.Body)
		case peer.OpPlan:
			out, err = n.plan(in.Body)
		case peer.OpRing:
			err = n.takeRing(in.Body)
		case peer.OpDrain:
			n.askToDrain()
		default:
			err = errors.New("unknown")
		}
		if errors.Is(err, errMoved) {
			in.Reply(peer.Reply{Status: peer.StatusMisdirected})
			return
		}
		if errors.Is(err, errFormer) {
			in.Reply(peer.Reply{Status: peer.StatusUnreached})
			return
		}
		if err != nil {
			n.refuseCall(in, from, err)
			return
		}
		b, err := json.Marshal(out)
		if err != nil {
			panic(err) // plain fields always have an encoding
		}
		in.Reply(peer.Reply{Body: b})
	})
}

// userOf lists a user's sessions, here and at former owners, each once, and, at
// the owner, the newest stored message. Events are those of here.
func (n *Node) userOf(ctx context.Context, user string, body []byte, cur *ring.Ring, former []*ring.Node, forwarded bool) (peer.User, error) {
	u := peer.User{}
	if len(body) > 0 {
		var q peer.UserQuery
		if err := json.Unmarshal(body, &q); err != nil {
			return u, err
		}
		if q.Events {
			here, _ := n.hub.find([]byte(user))
			u.Events, u.Forgotten = n.history.of(user, here)
		}
	}
	l := n.stored.logs.Get(user)
	defer l.Release()
	if !forwarded {
		ctx, cancel := context.WithTimeout(ctx, askPatience)
		defer cancel()
		err := errStoreDown
		if !n.stored.health.down.Load() {
			err = l.Fresh(ctx)
		}
		if u.HeadUnknown = err != nil; u.HeadUnknown { // sessions are known without the store
			n.log.Warn("the store does not tell the head of a log", "event", "head_unknown", "user", user, "error", err)
		}
	}
	l.With(func(head inbox.Cursor) {
		u.Head = head.Seq
		_, here := n.hub.find([]byte(user))
		for _, s := range here {
			if !s.old.Load() {
				u.Sessions = append(u.Sessions, wire.Session{ID: s.id, Device: s.device, Node: n.cfg.NodeID, ConnectedAt: s.connectedAt, RemoteAddr: s.remote,
					AckedSeq: s.acked.Seq, QueuedBytes: s.queuedBytes()})
			}
		}
	})
	elsewhere, err := n.sessionsElsewhere(ctx, user, cur, former)
	for _, there := range elsewhere {
		if !slices.ContainsFunc(u.Sessions, func(s wire.Session) bool { return s.ID == there.ID }) {
			u.Sessions = append(u.Sessions, there)
		}
	}
	if err == nil && !forwarded && !n.ownsUser(nil, user, n.rings.Current()) {
		err = errMoved
	}
	return u, err
}

// errMoved: the ring took the user away while the sessions were looked for, so that some
// may have gone before the look.
var errMoved = errors.New("another node owns the user by now")

// errFormer: a former owner that may still hold sessions did not answer.
var errFormer = errors.New("a former owner of the user does not answer")

// formerSilent notes that a former owner did not answer, and returns errFormer
// unless it is dead, its sessions with it.
func (n *Node) formerSilent(o *ring.Node, err error) error {
	n.log.Warn("a former owner does not answer for a user who is moving here", "event", "former_owner", "former", o.ID, "error", err)
	if peer.Refused(err) {
		return nil
	}
	return errFormer
}

// sessionsElsewhere asks former owners for a user's sessions. errFormer: these
// are not all.
func (n *Node) sessionsElsewhere(ctx context.Context, user string, cur *ring.Ring, former []*ring.Node) ([]wire.Session, error) {
	var out []wire.Session
	var missing error
	for _, o := range former {
		r, err := n.ask(ctx, o, &peer.Call{Op: peer.OpSessions, Ring: cur.Ref(), User: user})
		var u peer.User
		if err == nil {
			err = json.Unmarshal(r.Body, &u)
		}
		if err != nil {
			missing = errors.Join(missing, n.formerSilent(o, err))
			continue
		}
		out = append(out, u.Sessions...)
	}
	return out, missing
}

// kick closes sessions of a user, here and at former owners, and returns their
// ids. One that is on its way from there to here does not arrive any more, also
// if a former owner did not answer; then the caller is told so, with errFormer.
func (n *Node) kick(user string, body []byte, cur *ring.Ring, former []*ring.Node, forwarded bool) ([]string, error) {
	var k peer.Kick
	if err := json.Unmarshal(body, &k); err != nil {
		return nil, err
	}
	if k.Code < 4000 || k.Code > 4299 {
		return nil, errors.New("no close code of the contract")
	}
	if !forwarded { // also for sessions of a node that was taken for dead, and wakes
		n.kicked.addUser(user, k)
	}
	ids := []string{}
	var missing error
	add := func(id string) {
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	for _, o := range former {
		r, err := n.ask(n.ctx, o, &peer.Call{Op: peer.OpKick, Ring: cur.Ref(), User: user, JSON: true, Body: body})
		var l []string
		if err == nil {
			err = json.Unmarshal(r.Body, &l)
		}
		if err != nil {
			missing = errors.Join(missing, n.formerSilent(o, err))
			continue
		}
		for _, id := range l {
			add(id)
		}
	}
	for _, id := range ids {
		n.kicked.add(id)
	}
	_, here := n.hub.find([]byte(user))
	for _, s := range here {
		if (k.Device == "" || s.device == k.Device) && (k.Session == "" || s.id == k.Session) {
			n.kicked.add(s.id)
			s.closeFor(k.Code)
			add(s.id)
		}
	}
	if missing == nil && !forwarded && !n.ownsUser(nil, user, n.rings.Current()) {
		missing = errMoved // the new owner has to know of the kick
	}
	return ids, missing
}

// presenceReply says which sessions users have. It lists users of other nodes, and
// those whose former owner does not answer: who is online is not known of them.
type presenceReply struct {
	Sessions    map[string][]string `json:"sessions"`
	Misdirected []string            `json:"misdirected,omitempty"`
}

func (n *Node) presence(in *peer.In, cur *ring.Ring) (*presenceReply, error) {
	var users []string
	if err := json.Unmarshal(in.Body, &users); err != nil {
		return nil, err
	}
	return n.presenceNow(users, in.Forwarded, cur)
}

// presenceNow finds the sessions of users, here and, unless it was forwarded by their
// owner, at former owners.
func (n *Node) presenceNow(users []string, forwarded bool, cur *ring.Ring) (*presenceReply, error) {
	out := &presenceReply{Sessions: map[string][]string{}}
	mine := make([]string, 0, len(users))
	add := func(user, id string) {
		if l := out.Sessions[user]; !slices.Contains(l, id) {
			out.Sessions[user] = append(l, id)
		}
	}
	elsewhere := map[*ring.Node][]string{}
	for _, u := range users {
		if !forwarded {
			if !n.ownsUser(nil, u, cur) {
				out.Misdirected = append(out.Misdirected, u)
				continue
			}
			for _, o := range cur.Former(u) {
				elsewhere[o] = append(elsewhere[o], u)
			}
		}
		mine = append(mine, u)
	}
	// Former owners first: who moves meanwhile is here by then.
	for o, list := range elsewhere {
		body, err := json.Marshal(list)
		if err != nil {
			return nil, err
		}
		r, err := n.ask(n.ctx, o, &peer.Call{Op: peer.OpPresence, Ring: cur.Ref(), JSON: true, Body: body})
		var there presenceReply
		if err == nil {
			err = json.Unmarshal(r.Body, &there)
		}
		if err != nil {
			if n.formerSilent(o, err) != nil {
				out.Misdirected = append(out.Misdirected, list...)
			}
			continue
		}
		for u, ids := range there.Sessions {
			for _, id := range ids {
				add(u, id)
			}
		}
	}
	for _, u := range mine {
		_, here := n.hub.find([]byte(u))
		for _, s := range here {
			add(u, s.id)
		}
	}
	if now := n.rings.Current(); !forwarded && now != cur {
		// The ring has changed since these users were found to be this node's: who was
		// told to move may have gone before the look. The new owner finds them.
		for _, u := range mine {
			if !n.ownsUser(nil, u, now) {
				delete(out.Sessions, u)
				out.Misdirected = append(out.Misdirected, u)
			}
		}
		slices.Sort(out.Misdirected)
		out.Misdirected = slices.Compact(out.Misdirected)
	}
	return out, nil
}

// plan counts the sessions here that another ring would give to other nodes.
func (n *Node) plan(body []byte) (map[string]int, error) {
	var members map[string]int
	if err := json.Unmarshal(body, &members); err != nil {
		return nil, err
	}
	sum := 0
	for id, w := range members {
		if err := wire.CheckNode(id); err != nil {
			return nil, err
		}
		if w < 1 || w > ring.MaxWeight {
			return nil, errors.New("a weight out of range")
		}
		sum += w
	}
	if sum > ring.MaxTotalWeight {
		return nil, errors.New("the weights add up to too much")
	}
	n.planning.Lock() // one at a time: each builds a ring
	defer n.planning.Unlock()
	r := ring.Of(members)
	out := map[string]int{}
	n.hub.eachUser(func(u *user, sessions []*session) {
		if o, ok := r.Owner(u.id); ok && o.ID != n.cfg.NodeID {
			out[o.ID] += len(sessions)
		}
	})
	return out, nil
}

// takeRing takes a ring from a locator: this node may be cut off from NATS.
func (n *Node) takeRing(body []byte) error {
	err := n.rings.Offer(body)
	if err != nil {
		n.log.Error("a ring that a locator handed over is refused", "event", "ring_refused", "error", err)
	}
	return err
}

// askToDrain does what SIGTERM does.
func (n *Node) askToDrain() {
	n.drainOnce.Do(func() { close(n.drainAsked) })
}

// kickedFor is how long a kick counts against sessions that arrive by a move: longer than a
// session that was told to move may stay and its ticket lasts, by default.
const kickedFor = 2 * time.Minute

// kickedSessions remembers which sessions were kicked for as long as a ticket
// that moves one may be on its way.
type kickedSessions struct {
	mu    sync.Mutex
	until map[string]time.Time
	users map[string][]kickedUser // what was kicked here, wherever it is now
	// revoked is since when tickets of users must have been issued.
	revoked map[string]time.Time
}

// kickedUser is a kick for those sessions that began before it.
type kickedUser struct {
	peer.Kick
	at time.Time
}

func (k *kickedSessions) add(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	if k.until == nil {
		k.until = map[string]time.Time{}
	}
	k.until[id] = now.Add(ticket.Life)
}

// addUser remembers a kick for sessions that may still arrive.
func (k *kickedSessions) addUser(user string, kick peer.Kick) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.users == nil {
		k.users = map[string][]kickedUser{}
	}
	l := append(k.users[user], kickedUser{kick, time.Now()})
	k.users[user] = l[max(0, len(l)-maxKicks):]
	if kick.Revoke {
		if k.revoked == nil {
			k.revoked = map[string]time.Time{}
		}
		k.revoked[user] = time.Now()
	}
}

// revokeSlack is how long after a revocation a locator may still have taken a token that
// was revoked.
const revokeSlack = time.Second

// maxKicks of one user are remembered.
const maxKicks = 100

// has tells whether a session that arrives was kicked before.
func (k *kickedSessions) has(s *session) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !s.moved {
		at, ok := k.revoked[s.user]
		return ok && s.issued.Before(at.Add(revokeSlack))
	}
	return time.Now().Before(k.until[s.id]) || slices.ContainsFunc(k.users[s.user], func(u kickedUser) bool {
		return (u.Device == "" || u.Device == s.device) && (u.Session == "" || u.Session == s.id) && s.connectedAt.Before(u.at)
	})
}

// sweep forgets those whose time is over.
func (k *kickedSessions) sweep(now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.DeleteFunc(k.until, func(_ string, t time.Time) bool { return !now.Before(t) })
	maps.DeleteFunc(k.revoked, func(_ string, t time.Time) bool { return now.Sub(t) > kickedFor })
	maps.DeleteFunc(k.users, func(_ string, l []kickedUser) bool { return now.Sub(l[len(l)-1].at) > kickedFor })
}
