package wsnode

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/ring"
)

// Presence events. What a node knows of a user:
//
//	        first login                 last session has ended
//	away --------------> online -----------------------------> missing
//	 ^     says online     ^  ^                                 |  |
//	 |                     |  +--a session, by login or move----+  | the grace is over
//	 +--says offline--none-+--who owns the user now has some? <----+
//
// A session that arrives by a move says nothing, and a node whose user left by a move
// finds the new owner having it. A node that does not own a missing user any more leaves
// the rest to the owner, who waits for the grace again.
//
// Events are told once by each node that saw the change, in order for each user; while
// NATS is away they wait. A killed node says nothing of its users: a locator then says
// that the node is lost, and services ask who is still there.
type presence struct {
	grace time.Duration
	wake  chan struct{} // events wait

	deciding   sync.Mutex // held while missing users are asked for
	publishing sync.Mutex // held while events are on their way, for their order

	mu      sync.Mutex
	missing map[string]time.Time // users, and when their grace is over
	events  []cluster.PresenceEvent
	over    bool // the node is about to end: it takes no missing users over
}

func newPresence(grace time.Duration) *presence {
	return &presence{grace: grace, wake: make(chan struct{}, 1), missing: map[string]time.Time{}}
}

const (
	presenceLook = time.Second
	// maxMissing is how many users are asked about in one question.
	maxMissing = 10_000
	// maxAsked is how many nodes are asked at once.
	maxAsked = 64
	// maxEvents is how many events may wait for NATS; then the oldest are lost.
	maxEvents = 100_000
)

// arrived is called, with the user's shard locked, for each new session: first if the
// user has no other, here or at a former owner, and moved if it came from there.
func (p *presence) arrived(user string, first, moved bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, waits := p.missing[user]
	delete(p.missing, user)
	if first && !moved && !waits {
		p.sayLocked(cluster.PresenceOnline, user)
	}
}

// emptied is called, with the user's shard locked, when the last session has gone.
func (p *presence) emptied(user string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.missing[user] = time.Now().Add(p.grace)
}

// watch has a user waited for who is still missing.
func (p *presence) watch(user string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.watchLocked(user)
}

// takeOver does that for another node, unless this one is about to end.
func (p *presence) takeOver(user string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.over {
		p.watchLocked(user)
	}
	return !p.over
}

func (p *presence) watchLocked(user string) {
	if _, waits := p.missing[user]; !waits {
		p.missing[user] = time.Now().Add(p.grace)
	}
}

func (p *presence) sayLocked(event, user string) {
	if len(p.events) == maxEvents {
		p.events = p.events[1:]
	}
	p.events = append(p.events, cluster.PresenceEvent{Event: event, User: user, Time: time.Now().UTC().Truncate(time.Millisecond)})
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// due takes the users whose grace is over; all of them if the node is about to end.
func (p *presence) due(now time.Time, all bool) (out []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = p.over || all
	for u, at := range p.missing {
		if all || now.After(at) {
			out = append(out, u)
			delete(p.missing, u)
		}
	}
	return out
}

// sayPresence publishes events and looks after missing users, until ctx ends.
func (n *Node) sayPresence(ctx context.Context) {
	t := time.NewTicker(presenceLook)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.presenceOf.wake:
			n.publishPresence()
		case now := <-t.C:
			n.tellMissing(now, false)
		}
	}
}

// tellMissing finds out about users whose grace is over, and tells. ending: about all who
// are missing, for nobody here will find out later.
func (n *Node) tellMissing(now time.Time, ending bool) {
	n.presenceOf.deciding.Lock()
	defer n.presenceOf.deciding.Unlock()
	n.decide(n.presenceOf.due(now, ending), ending)
	n.publishPresence()
}

// told tells whether a node that is about to end has nothing left to tell: nobody is missing,
// or just asked for, and no event waits.
func (p *presence) told() bool {
	if !p.deciding.TryLock() {
		return false
	}
	defer p.deciding.Unlock()
	p.publishing.Lock()
	defer p.publishing.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.over && len(p.events) == 0 && len(p.missing) == 0
}

func (n *Node) publishPresence() {
	p := n.presenceOf
	if !n.nats.Up() { // they wait
		return
	}
	p.publishing.Lock()
	defer p.publishing.Unlock()
	p.mu.Lock()
	events := p.events
	p.events = nil
	p.mu.Unlock()
	for _, e := range events {
		e.Node = n.cfg.NodeID
		if n.nats.PublishPresence(e) {
			n.metrics.presence.WithLabelValues(e.Event).Inc()
		} else {
			n.metrics.presence.WithLabelValues("lost").Inc()
		}
	}
}

// decide finds out what became of users who are missing here. Whoever does not answer holds up
// its own users only.
func (n *Node) decide(users []string, ending bool) {
	cur := n.rings.Current()
	elsewhere := map[*ring.Node][]string{}
	var mine []string
	for _, u := range users {
		if n.ownsUser(nil, u, cur) {
			mine = append(mine, u)
		} else if o, ok := cur.Owner(u); ok {
			elsewhere[o] = append(elsewhere[o], u)
		} else { // no node is left
			n.sayOffline(u)
		}
	}
	for list := range slices.Chunk(mine, maxMissing) {
		out, err := n.presenceNow(list, false, cur)
		if err != nil {
			n.log.Error("it is not known who is missing", "event", "presence_unknown", "error", err)
			continue
		}
		unknown := map[string]bool{}
		for _, u := range out.Misdirected { // a former owner does not answer, or the ring is another one
			unknown[u] = true
			n.presenceOf.watch(u)
		}
		for _, u := range list {
			if len(out.Sessions[u]) == 0 && !unknown[u] {
				n.sayOffline(u)
			}
		}
	}
	var asks errgroup.Group
	asks.SetLimit(maxAsked)
	for o, all := range elsewhere {
		asks.Go(func() error {
			for list := range slices.Chunk(all, maxMissing) {
				n.handMissing(o, list, cur, ending)
			}
			return nil
		})
	}
	_ = asks.Wait()
}

// sayOffline says that a user is, unless somebody has just come.
func (n *Node) sayOffline(user string) {
	n.hub.withUser(user, func(sessions []*session) {
		p := n.presenceOf
		p.mu.Lock()
		defer p.mu.Unlock()
		if _, waits := p.missing[user]; len(sessions) == 0 && !waits {
			p.sayLocked(cluster.PresenceOffline, user)
		}
	})
}

// handMissing leaves missing users to the node that owns them now.
func (n *Node) handMissing(o *ring.Node, users []string, cur *ring.Ring, ending bool) {
	body, err := json.Marshal(users)
	if err != nil {
		panic(err) // strings always have an encoding
	}
	r, err := n.ask(n.ctx, o, &peer.Call{Op: peer.OpMissing, Ring: cur.Ref(), JSON: true, Body: body})
	if err == nil && r.Status == peer.StatusOK {
		return
	}
	for _, u := range users {
		if ending {
			n.sayOffline(u)
		} else { // by the next time somebody else may own them
			n.presenceOf.watch(u)
		}
	}
}

// missingHere takes users over from a node that missed them: those who are here, or
// are waited for already, are not missing. A node that has looked for the last time takes none:
// the caller keeps them, and finds their next owner.
func (n *Node) missingHere(body []byte) error {
	var users []string
	if err := json.Unmarshal(body, &users); err != nil {
		return err
	}
	for _, u := range users {
		over := false
		n.hub.withUser(u, func(sessions []*session) {
			if len(sessions) == 0 {
				over = !n.presenceOf.takeOver(u)
			}
		})
		if over {
			return errMoved
		}
	}
	return nil
}
