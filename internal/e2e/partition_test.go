//go:build linux

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// partition is a cluster of which each process is a host of its own.
type partition struct {
	*network
	nats  *host
	url   string // of NATS
	at    map[string]*host
	locs  []*locatorProc
	nodes map[string]*nodeProc
	names []string // of the nodes
	epoch uint64   // once all nodes are in the ring
}

// newPartition starts NATS, locators (l1, l2, ...) and nodes, and waits until
// every locator has all of them.
func newPartition(t *testing.T, locators int, nodes ...string) *partition {
	t.Helper()
	p := &partition{network: newNet(t), at: map[string]*host{}, nodes: map[string]*nodeProc{}, names: nodes}
	p.nats = p.host(t, "nats")
	_, p.url = p.nats.nats(t, t.TempDir())
	for i := range locators {
		name := fmt.Sprintf("l%d", i+1)
		p.at[name] = p.host(t, name)
		p.locs = append(p.locs, p.at[name].locator(t, p.url))
	}
	for _, name := range nodes {
		p.node(t, name)
	}
	for _, l := range p.locs {
		l.waitMembers(t, nodes...)
		l.settled(t) // which has an epoch of its own
	}
	p.epoch = p.locs[0].ring(t).Epoch
	for _, l := range p.locs { // the first ring may have been one of some nodes only
		eventually(t, "the locators agree", func() bool { return l.ring(t).Epoch == p.epoch })
	}
	return p
}

// node adds a host with a node.
func (p *partition) node(t *testing.T, name string) *nodeProc {
	t.Helper()
	p.at[name] = p.host(t, name)
	p.nodes[name] = p.at[name].node(t, p.url)
	return p.nodes[name]
}

// missed waits until a locator has not heard these nodes for so long.
func (p *partition) missed(t *testing.T, l *locatorProc, d time.Duration, names ...string) {
	t.Helper()
	for _, name := range names {
		eventually(t, fmt.Sprintf("%s is suspect, unheard for %v", name, d), func() bool {
			n := l.members(t)[name]
			return n.State == wire.StateSuspect && n.LastSeenMS > d.Milliseconds()
		})
	}
}

// heard waits until a locator hears all nodes again, and the ring is the one
// that it was before the cut.
func (p *partition) heard(t *testing.T, l *locatorProc) {
	t.Helper()
	for _, name := range p.names {
		eventually(t, name+" is active", func() bool { return l.members(t)[name].State == wire.StateActive })
	}
	p.same(t, l)
}

func (p *partition) same(t *testing.T, l *locatorProc) {
	t.Helper()
	if r := l.ring(t); r.Epoch != p.epoch || len(r.Nodes) != len(p.names) {
		t.Errorf("the ring of %s changed, before it was epoch %d: %+v", l.name, p.epoch, r)
	}
}

// serves checks that a push through a locator reaches a user, who was connected
// all the time, and that a user who was not gets through to that node as well.
func (p *partition) serves(t *testing.T, l *locatorProc, u *listener, node, when string) {
	t.Helper()
	msg := fmt.Sprintf("%q", when+" through "+l.name)
	if r := l.push(t, u.user, msg); r.Node != node || r.Delivered != 1 {
		t.Errorf("a push through %s: %+v, want 1 session of %s", l.name, r, node)
	}
	u.expect(t, msg)
	select {
	case n := <-u.conn:
		t.Errorf("%s had to connect again, at %s", u.user, n)
	default:
	}
	fresh := ""
	for i := 0; fresh == ""; i++ {
		if s := fmt.Sprintf("new-%s-%s-%d", l.name, when, i); l.locate(t, s, "").Node == node {
			fresh = s
		}
	}
	hand := dialBare(t, l, fresh)
	if r := l.push(t, fresh, msg); r.Node != node || r.Delivered != 1 {
		t.Errorf("a push through %s to a new client: %+v, want 1 session of %s", l.name, r, node)
	}
	text := hand.text(t)
	if strings.Contains(text, `"type":"resumed"`) { // it was welcomed before the store was back, and hears where it goes on
		text = hand.text(t)
	}
	if got := data(text); got != msg {
		t.Errorf("the new client got %s", text)
	}
}

// A node loses NATS, and its packets vanish: it answers the locators' probes, so
// it stays, and goes on serving.
func TestPartitionNodeFromNATS(t *testing.T) {
	heavy(t)
	t.Parallel()
	p := newPartition(t, 1, "a", "b")
	l := p.locs[0]
	alice := listen(t, userOf(t, l, "a"), l)
	p.cut(p.nats, p.at["a"])
	p.nodes["a"].event(t, "nats_down")
	p.missed(t, l, 8*time.Second, "a")
	p.same(t, l)
	p.serves(t, l, alice, "a", "cut")
	p.heal()
	p.nodes["a"].event(t, "nats_up")
	p.heard(t, l)
	p.serves(t, l, alice, "a", "healed")
}

// A locator loses NATS: it hears of nobody any more, reaches the nodes all the
// same, and goes on with the ring that it has.
func TestPartitionLocatorFromNATS(t *testing.T) {
	heavy(t)
	t.Parallel()
	p := newPartition(t, 2, "a", "b")
	cut, other := p.locs[0], p.locs[1]
	alice := listen(t, userOf(t, cut, "a"), cut)
	p.cut(p.nats, p.at["l1"])
	p.serves(t, cut, alice, "a", "unnoticed") // nobody has noticed yet
	cut.event(t, "nats_down")
	p.missed(t, cut, 4*time.Second, p.names...)
	p.same(t, cut)
	p.serves(t, cut, alice, "a", "cut")
	p.heard(t, other) // who was not cut off has missed nothing
	p.serves(t, other, alice, "a", "cut")
	p.heal()
	cut.event(t, "nats_up")
	p.heard(t, cut)
	p.serves(t, cut, alice, "a", "healed")
}

// All lose NATS for ten seconds: nobody leaves the ring, and when it is back,
// nothing has changed, but new nodes can join.
func TestPartitionAllFromNATS(t *testing.T) {
	heavy(t)
	t.Parallel()
	p := newPartition(t, 2, "a", "b")
	alice := listen(t, userOf(t, p.locs[0], "a"), p.locs...)
	for _, h := range p.at {
		p.cut(p.nats, h)
	}
	for _, l := range p.locs {
		p.missed(t, l, 10*time.Second, p.names...)
		p.same(t, l)
		p.serves(t, l, alice, "a", "cut")
	}
	p.heal()
	for _, l := range p.locs {
		p.heard(t, l)
		p.serves(t, l, alice, "a", "healed")
	}
	p.node(t, "late")
	for _, l := range p.locs {
		l.waitMembers(t, "a", "b", "late")
		if r := l.ring(t); r.Epoch != p.epoch+1 && r.Epoch != p.epoch+2 { // the join, and the end of its handoff
			t.Errorf("the ring of %s after a node joined, before it was epoch %d: %+v", l.name, p.epoch, r)
		}
	}
}
