package cluster

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/natsd"
	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/ticket"
	"github.com/dialring/dialring/internal/trust"
)

// keys are those of a cluster, and of somebody who is not of it.
type keys struct {
	locator, stranger *trust.Authority
	node              func(nodes, node string) *trust.NodeKey
}

func clusterKeys(t *testing.T) keys {
	t.Helper()
	authority := func() *trust.Authority {
		a, err := trust.ParseAuthority("c", trust.NewClusterKey())
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	k := keys{locator: authority(), stranger: authority()}
	k.node = func(nodes, node string) *trust.NodeKey {
		text, err := k.locator.NewNodeKey(nodes)
		if err != nil {
			t.Fatal(err)
		}
		n, err := trust.ParseNodeKey("c", node, text)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return k
}

// dialAs connects with an identity.
func dialAs(t *testing.T, s *natsd.Server, i Identity) *Conn {
	t.Helper()
	c := dial(t, s, "c")
	c.ident = i
	return c
}

// Whoever may write to NATS cannot have anybody go by another ring: not with a ring that
// breaks the rules, nor, where there are cluster keys, with one that no locator signed.
func TestRingsRefused(t *testing.T) {
	k := clusterKeys(t)
	for _, signs := range []bool{false, true} {
		s := startNATS(t, t.TempDir(), "127.0.0.1:0")
		rogue := dial(t, s, "c")
		var locator, a, b Identity
		if signs {
			locator, a, b = Identity{Locator: k.locator}, Identity{Node: k.node("a", "a")}, Identity{Node: k.node("b*", "b1")}
		}
		_, held := keep(t, dialAs(t, s, locator), "loc")
		node := follow(t, dialAs(t, s, a))
		startNode(t, dialAs(t, s, a), "a", "a1")
		eventually(t, "a ring", func() bool { return len(held.Current().Nodes) == 1 })
		first, _, err := rogue.get(t.Context(), bucketRing, keyRing)
		if err != nil {
			t.Fatal(err)
		}
		startNode(t, dialAs(t, s, b), "b1", "b1")
		eventually(t, "a ring of both", func() bool { return len(held.Current().Nodes) == 2 && node.Current().Epoch == held.Current().Epoch })

		doc := func(f func(*ring.Document)) []byte {
			d := held.Current().With()
			d.Epoch++
			f(&d)
			b, err := d.Encode()
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		sign := func(b []byte, s *trust.Signature) []byte { return trust.Attach(b, s) }
		mine := func(b []byte) []byte { return sign(b, locator.Locator.Sign(trust.Ring, b)) }
		evil := func(d *ring.Document) { d.Nodes[0].URL = "ws://evil.test/v1/ws"; d.Seal() }
		attempts := map[string][]byte{
			"no ring":          []byte("not a ring"),
			"nothing":          {},
			"deep":             []byte(strings.Repeat("[", 100_000)),
			"another cluster":  mine(doc(func(d *ring.Document) { d.Cluster = "d"; d.Seal() })),
			"no epoch":         mine(doc(func(d *ring.Document) { d.Epoch = 0; d.Seal() })),
			"the last epoch":   mine(doc(func(d *ring.Document) { d.Epoch = 1<<63 + 1; d.Seal() })),
			"another hash":     mine(doc(func(d *ring.Document) { d.Nodes[0].URL = "ws://evil.test/v1/ws" })),
			"weight 10^9":      mine(doc(func(d *ring.Document) { d.Nodes[0].Weight = 1_000_000_000; d.Seal() })),
			"weight -1":        mine(doc(func(d *ring.Document) { d.Nodes[0].Weight = -1; d.Seal() })),
			"a node twice":     mine(doc(func(d *ring.Document) { d.Nodes = append(d.Nodes, d.Nodes[0]); d.Seal() })),
			"no node id":       mine(doc(func(d *ring.Document) { d.Nodes[0].ID = "../x"; d.Seal() })),
			"a long address":   mine(doc(func(d *ring.Document) { d.Nodes[0].URL = "ws://" + strings.Repeat("a", 600); d.Seal() })),
			"too many nodes":   mine(doc(func(d *ring.Document) { d.Nodes = ringDoc("c", 1, manyIDs(ring.MaxNodes+1)...).Nodes; d.Seal() })),
			"half a signature": append(mine(doc(evil)), '\n', '{'),
		}
		if signs {
			attempts["not signed"] = doc(evil)
			attempts["signed by a node"] = sign(doc(evil), a.Node.Sign(trust.Ring, doc(evil)))
			attempts["signed by a stranger"] = sign(doc(evil), k.stranger.Sign(trust.Ring, doc(evil)))
			attempts["signed as something else"] = sign(doc(evil), k.locator.Sign(trust.LocatorBeat, doc(evil)))
			attempts["the signature of another"] = append(doc(evil), first[bytes.IndexByte(first, '\n'):]...)
		}
		for name, attempt := range attempts {
			before, refusedHere, refusedThere := held.Current(), held.Refusals.Load(), node.Refusals.Load()
			if err := rogue.put(t.Context(), bucketRing, keyRing, attempt, anyRevision); err != nil {
				t.Fatal(err)
			}
			rogue.publish(subjectRing, nil)
			waitRing(t, held, before.Epoch+1) // the locator publishes what it had
			waitRing(t, node, before.Epoch+1)
			for who, r := range map[string]*Rings{"locator": held, "node": node} {
				d := r.Current().Document
				if d.Nodes[0].URL != before.Nodes[0].URL || len(d.Nodes) != 2 || d.Epoch > before.Epoch+10 {
					t.Errorf("%s: the %s goes by %+v", name, who, d)
				}
			}
			if held.Refusals.Load() == refusedHere {
				t.Errorf("%s: the locator did not report it", name)
			}
			_ = refusedThere // a node may see only the ring that came after it
		}
		// An older ring that was good once only has it published again.
		before := held.Current()
		if err := rogue.put(t.Context(), bucketRing, keyRing, first, anyRevision); err != nil {
			t.Fatal(err)
		}
		rogue.publish(subjectRing, nil)
		waitRing(t, held, before.Epoch+1)
		waitRing(t, node, before.Epoch+1)
		if len(node.Current().Nodes) != 2 {
			t.Errorf("an old ring counts: %+v", node.Current().Document)
		}
		// Handed over by a call it is checked as well.
		if signs {
			if err := node.Offer(attempts["not signed"]); err == nil {
				t.Error("a ring that is not signed is taken from a call")
			}
		}
		if all, err := rogue.PublishedRings(t.Context(), 0); err != nil || len(all) == 0 {
			t.Errorf("%d rings of before, %v", len(all), err)
		}
	}
}

func manyIDs(n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = "n" + strings.Repeat("x", i%40) + time.Duration(i).String()
		ids[i] = strings.Map(func(r rune) rune {
			if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' {
				return r
			}
			return '-'
		}, ids[i])
	}
	return ids
}

// A locator without the key of the others does not take the ring from them.
func TestLocatorWithoutKey(t *testing.T) {
	k := clusterKeys(t)
	s := startNATS(t, t.TempDir(), "127.0.0.1:0")
	_, held := keep(t, dialAs(t, s, Identity{Locator: k.locator}), "loc")
	conn := dialAs(t, s, Identity{Node: k.node("*", "a")})
	startNode(t, conn, "a", "a1")
	eventually(t, "a ring", func() bool { return len(held.Current().Nodes) == 1 })
	other := dial(t, s, "c")
	forgot := NewKeeper(other, NewRings(other, quiet), quiet, "forgot", true)
	if err := forgot.publish(t.Context()); err == nil || !strings.Contains(err.Error(), "DIALRING_CLUSTER_KEY") {
		t.Errorf("it says %v", err)
	}
}

// Heartbeats of nodes count if they are signed by a key for that node, and once.
func TestBeatsSigned(t *testing.T) {
	k := clusterKeys(t)
	s := startNATS(t, t.TempDir(), "127.0.0.1:0")
	good, some := Identity{Node: k.node("ws-1", "ws-1")}, Identity{Node: k.node("x-*", "x-1")}
	rogue, to := dial(t, s, "c"), dialAs(t, s, Identity{Locator: k.locator})
	got := make(chan NodeBeat, 100)
	if err := OnNodeBeat(t.Context(), to, true, func(b NodeBeat) { got <- b }); err != nil {
		t.Fatal(err)
	}
	locators := make(chan LocatorBeat, 100)
	if err := OnLocatorBeat(t.Context(), to, func(b LocatorBeat) { locators <- b }); err != nil {
		t.Fatal(err)
	}
	if err := to.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	encode := func(v any, sign func([]byte) *trust.Signature) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return trust.Attach(b, sign(b))
	}
	node := func(id string, sec int) NodeBeat {
		b := beatOf(id, 1)
		b.Time, b.Count = at.Add(time.Duration(sec)*time.Second), uint64(sec)
		return b
	}
	as := func(i Identity) func([]byte) *trust.Signature {
		return func(b []byte) *trust.Signature { return i.Node.Sign(trust.NodeBeat, b) }
	}
	nobody := func([]byte) *trust.Signature { return nil }
	send := func(subject string, m []byte) {
		if err := rogue.nc.Publish("c."+subject, m); err != nil {
			t.Fatal(err)
		}
	}
	first := encode(node("ws-1", 1), as(good))
	send(subjectNode+"ws-1", first)
	if b := await(t, "a signed heartbeat", got); b.ID != "ws-1" {
		t.Errorf("%+v", b)
	}
	sec := 2
	for name, m := range map[string][]byte{
		"not signed":         encode(node("ws-1", 90), nobody),
		"of another node":    encode(node("ws-1", 91), as(some)),
		"again":              first,
		"older":              encode(node("ws-1", 0), as(good)),
		"changed":            bytes.Replace(encode(node("ws-1", 92), as(good)), []byte(`"weight":1`), []byte(`"weight":9`), 1),
		"by a cluster key":   encode(node("ws-1", 93), func(b []byte) *trust.Signature { return k.locator.Sign(trust.NodeBeat, b) }),
		"of another subject": encode(node("x-1", 94), as(some)),
	} {
		send(subjectNode+"ws-1", m)
		send(subjectNode+"ws-1", encode(node("ws-1", sec), as(good)))
		if b := await(t, "the good heartbeat", got); !b.Time.Equal(at.Add(time.Duration(sec) * time.Second)) {
			t.Errorf("%s: accepted: %+v", name, b)
			await(t, "the good heartbeat", got)
		}
		sec++
	}
	// Those of a process before it, sent again: a process that was seen is remembered.
	second := node("ws-1", 1)
	second.Boot = "ws-1-again"
	send(subjectNode+"ws-1", encode(second, as(good)))
	if b := await(t, "the next process's heartbeat", got); b.Boot != second.Boot {
		t.Errorf("accepted: %+v", b)
	}
	send(subjectNode+"ws-1", first)
	send(subjectNode+"ws-1", encode(node("ws-1", sec-1), as(good)))
	second.Count++
	send(subjectNode+"ws-1", encode(second, as(good)))
	if b := await(t, "the next process's heartbeat", got); b.Boot != second.Boot {
		t.Errorf("one of the process before it is accepted: %+v", b)
	}
	send(subjectNode+"x-7", encode(node("x-7", 1), as(some)))
	if b := await(t, "a heartbeat of a group", got); b.ID != "x-7" {
		t.Errorf("%+v", b)
	}
	locator := func(sec int, sign func([]byte) *trust.Signature) []byte {
		return encode(LocatorBeat{ID: "l", Time: at.Add(time.Duration(sec) * time.Second), Count: uint64(sec)}, sign)
	}
	own := func(b []byte) *trust.Signature { return k.locator.Sign(trust.LocatorBeat, b) }
	for _, m := range [][]byte{locator(90, nobody), locator(91, func(b []byte) *trust.Signature { return good.Node.Sign(trust.LocatorBeat, b) }),
		locator(92, func(b []byte) *trust.Signature { return k.stranger.Sign(trust.LocatorBeat, b) }), locator(1, own)} {
		send(subjectLocator+"l", m)
	}
	send(subjectLocator+"l", locator(1, own)) // again
	send(subjectLocator+"l", locator(2, own))
	for _, want := range []int{1, 2} {
		if b := await(t, "a locator's heartbeat", locators); !b.Time.Equal(at.Add(time.Duration(want) * time.Second)) {
			t.Errorf("accepted: %+v", b)
		}
	}
}

// Keys in NATS are believed if they are what their id says, and, where there are cluster
// keys, if a locator published them.
func TestKeysBelieved(t *testing.T) {
	k := clusterKeys(t)
	s := startNATS(t, t.TempDir(), "127.0.0.1:0")
	rogue := dial(t, s, "c")
	locator := dialAs(t, s, Identity{Locator: k.locator})
	signed := NewKeys(locator, NewRings(locator, quiet), quiet, ticket.NewSigner(), "locator:1")
	background(t, signed.Run)
	await(t, "a published key", signed.Published())
	put := func(kid, owner string, pub []byte, sign func([]byte) *trust.Signature) {
		b, err := json.Marshal(keyRecord{Owner: owner, Public: pub})
		if err != nil {
			t.Fatal(err)
		}
		if err := rogue.put(t.Context(), bucketKeys, kid, trust.Attach(b, sign(b)), anyRevision); err != nil {
			t.Fatal(err)
		}
	}
	nobody := func([]byte) *trust.Signature { return nil }
	var log bytes.Buffer
	reader := func(i Identity) *Keys {
		c := dialAs(t, s, i)
		return NewKeys(c, NewRings(c, quiet), slog.New(slog.NewTextHandler(&log, nil)), ticket.NewSigner(), "node:a")
	}
	nodeKey := k.node("a", "a")
	believes, open := Identity{Node: nodeKey}, Identity{}
	if pub, owner := reader(believes).Key(signed.signer.KID); !pub.Equal(signed.signer.Public) || owner != "locator:1" {
		t.Errorf("a locator's key: %x of %q", pub, owner)
	}
	for name, c := range map[string]struct {
		owner string
		sign  func([]byte) *trust.Signature
	}{
		"not signed":       {"locator:evil", nobody},
		"signed by a node": {"locator:evil", func(b []byte) *trust.Signature { return nodeKey.Sign(trust.LocatorKey, b) }},
		"of a stranger":    {"locator:evil", func(b []byte) *trust.Signature { return k.stranger.Sign(trust.LocatorKey, b) }},
		"of a node":        {"node:b", func(b []byte) *trust.Signature { return k.locator.Sign(trust.LocatorKey, b) }},
	} {
		own := ticket.NewSigner()
		put(own.KID, c.owner, own.Public, c.sign)
		if pub, owner := reader(believes).Key(own.KID); pub != nil {
			t.Errorf("%s: it is believed, as %q", name, owner)
		}
		if !strings.Contains(log.String(), "key_refused") {
			t.Errorf("%s: nothing in the log: %s", name, log.String())
		}
		log.Reset()
	}
	// Over another's: no cluster key is needed to see that.
	other := ticket.NewSigner()
	put(signed.signer.KID, "locator:1", other.Public, nobody)
	for _, i := range []Identity{believes, open} {
		if pub, _ := reader(i).Key(signed.signer.KID); pub != nil && !pub.Equal(signed.signer.Public) {
			t.Error("somebody's key counts as another's")
		}
	}
}

// With cluster keys nobody but a locator revokes a user's tokens, or makes an older
// revocation count again.
func TestRevocationsSigned(t *testing.T) {
	k := clusterKeys(t)
	s := startNATS(t, t.TempDir(), "127.0.0.1:0")
	rogue, locator, other := dial(t, s, "c"), dialAs(t, s, Identity{Locator: k.locator}), dialAs(t, s, Identity{Locator: k.locator})
	mine, theirs := NewRevocations(locator, quiet), NewRevocations(other, quiet)
	background(t, mine.Run)
	background(t, theirs.Run)
	await(t, "the list", theirs.Known())
	if err := other.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	now := time.Now().Truncate(time.Millisecond)
	evil := revoked(revokedKey("bob"), "9999999999999")
	for _, m := range [][]byte{evil, trust.Attach(evil, k.stranger.Sign(trust.Revocation, evil)), trust.Attach(evil, k.node("*", "a").Sign(trust.Revocation, evil)), []byte("x\ny"), nil} {
		rogue.publish(subjectRevoked, m)
		if err := rogue.put(t.Context(), bucketRevoked, revokedKey("bob"), append([]byte("9999999999999\n"), m...), anyRevision); err != nil {
			t.Fatal(err)
		}
	}
	if err := rogue.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := mine.Revoke(t.Context(), "alice", now); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the revocation at the other", func() bool { return theirs.Since("alice").Equal(now) })
	late := NewRevocations(other, quiet)
	if err := late.read(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*Revocations{theirs, late} {
		if !r.Since("bob").IsZero() || !r.Since("alice").Equal(now) {
			t.Errorf("bob's tokens are good since %v, alice's since %v", r.Since("bob"), r.Since("alice"))
		}
	}
}

// What a locator knows and the store has lost, or has an older one of, comes back: who starts
// later knows it too.
func TestRevocationsPutBack(t *testing.T) {
	k := clusterKeys(t)
	s := startNATS(t, t.TempDir(), "127.0.0.1:0")
	rogue, locator, other := dial(t, s, "c"), dialAs(t, s, Identity{Locator: k.locator}), dialAs(t, s, Identity{Locator: k.locator})
	mine := NewRevocations(locator, quiet)
	now := time.Now().Truncate(time.Millisecond)
	var older []byte
	for _, at := range []time.Time{now.Add(-time.Minute), now} {
		for _, user := range []string{"purged", "replaced", "garbage", "kept"} {
			if err := mine.Revoke(t.Context(), user, at); err != nil {
				t.Fatal(err)
			}
		}
		if older == nil {
			b, _, err := locator.get(t.Context(), bucketRevoked, revokedKey("replaced"))
			if err != nil {
				t.Fatal(err)
			}
			older = b
		}
	}
	mine.at["old"] = now.Add(-RevokedFor) // its time is over
	kv, err := rogue.bucket(t.Context(), bucketRevoked, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := kv.Purge(t.Context(), revokedKey("purged")); err != nil {
		t.Fatal(err)
	}
	for user, b := range map[string][]byte{"replaced": older, "garbage": []byte("x")} {
		if err := rogue.put(t.Context(), bucketRevoked, revokedKey(user), b, anyRevision); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := kv.Get(t.Context(), revokedKey("kept"))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := mine.read(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	late := NewRevocations(other, quiet)
	if err := late.read(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{"purged", "replaced", "garbage", "kept"} {
		if !late.Since(user).Equal(now) {
			t.Errorf("%s: tokens are good since %v, want %v", user, late.Since(user), now)
		}
	}
	if again, err := kv.Get(t.Context(), revokedKey("kept")); err != nil || again.Revision() != kept.Revision() {
		t.Errorf("one that was there is written again: %v", err)
	}
	if !late.Since("old").IsZero() {
		t.Error("one whose time is over is put back")
	}
	// The whole bucket.
	if err := rogue.js.DeleteKeyValue(t.Context(), "c_"+bucketRevoked); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all of them are back", func() bool {
		locator.forget(bucketRevoked)
		other.forget(bucketRevoked)
		late = NewRevocations(other, quiet)
		return mine.read(t.Context()) == nil && late.read(t.Context()) == nil && late.Since("kept").Equal(now)
	})
}
