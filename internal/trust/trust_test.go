package trust

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
)

func authority(t *testing.T, cluster string, keys ...string) *Authority {
	t.Helper()
	a, err := ParseAuthority(cluster, strings.Join(keys, ","))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func nodeKeyOf(t *testing.T, a *Authority, nodes, node string) *NodeKey {
	t.Helper()
	text, err := a.NewNodeKey(nodes)
	if err != nil {
		t.Fatal(err)
	}
	k, err := ParseNodeKey(a.cluster, node, text)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// over sends a signature as it travels.
func over(t *testing.T, b []byte, s *Signature) ([]byte, *Signature) {
	t.Helper()
	got, sig, err := Detach(Attach(b, s))
	if err != nil || !bytes.Equal(got, b) {
		t.Fatalf("%q arrives as %q, %v", b, got, err)
	}
	return got, sig
}

func TestAuthority(t *testing.T) {
	one, two := NewClusterKey(), NewClusterKey()
	a, both, other := authority(t, "c", one), authority(t, "c", two, one), authority(t, "d", one)
	doc := []byte(`{"epoch":1}`)
	b, sig := over(t, doc, a.Sign(Ring, doc))
	for name, c := range map[string]struct {
		anchor *Anchor
		kind   Kind
		b      []byte
		sig    *Signature
		ok     bool
	}{
		"its own":            {a.Anchor(), Ring, b, sig, true},
		"one of two":         {both.Anchor(), Ring, b, sig, true},
		"nobody checks":      {nil, Ring, b, nil, true},
		"not signed":         {a.Anchor(), Ring, b, nil, false},
		"empty":              {a.Anchor(), Ring, b, &Signature{}, false},
		"another kind":       {a.Anchor(), LocatorBeat, b, sig, false},
		"another cluster":    {other.Anchor(), Ring, b, sig, false},
		"another key":        {a.Anchor(), Ring, b, both.Sign(Ring, b), false},
		"changed":            {a.Anchor(), Ring, []byte(`{"epoch":2}`), sig, false},
		"by a node":          {a.Anchor(), Ring, b, nodeKeyOf(t, a, "*", "n").Sign(Ring, b), false},
		"cut":                {a.Anchor(), Ring, b, &Signature{Signature: sig.Signature[:63]}, false},
		"longer":             {a.Anchor(), Ring, b, &Signature{Signature: append(bytes.Clone(sig.Signature), 0)}, false},
		"a kind with a part": {a.Anchor(), "ring\" \"c", b, sig, false},
	} {
		if err := c.anchor.Check(c.kind, c.b, c.sig); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNodeKey(t *testing.T) {
	key := NewClusterKey()
	a, stranger := authority(t, "c", key), authority(t, "c", NewClusterKey())
	one, some, alien := nodeKeyOf(t, a, "ws-1", "ws-1"), nodeKeyOf(t, a, "ws-*", "ws-7"), nodeKeyOf(t, stranger, "ws-1", "ws-1")
	b, sig := over(t, []byte(`{"id":"ws-1"}`), one.Sign(NodeBeat, []byte(`{"id":"ws-1"}`)))
	lent := *sig.Certificate
	lent.Nodes = "ws-2"
	mine := *alien.Sign(NodeBeat, b)
	mine.Certificate = sig.Certificate
	for name, c := range map[string]struct {
		node string
		sig  *Signature
		ok   bool
	}{
		"its own":                     {"ws-1", sig, true},
		"of a group":                  {"ws-2", some.Sign(NodeBeat, b), true},
		"of another group":            {"x-2", some.Sign(NodeBeat, b), false},
		"of another node":             {"ws-2", sig, false},
		"a longer id":                 {"ws-11", sig, false},
		"another kind":                {"ws-1", one.Sign(LocatorBeat, b), false},
		"not signed":                  {"ws-1", nil, false},
		"no certificate":              {"ws-1", &Signature{Signature: sig.Signature}, false},
		"a changed certificate":       {"ws-2", &Signature{Signature: sig.Signature, Certificate: &lent}, false},
		"of a stranger":               {"ws-1", alien.Sign(NodeBeat, b), false},
		"a stranger with a lent cert": {"ws-1", &mine, false},
		"by a cluster key":            {"ws-1", a.Sign(NodeBeat, b), false},
		"a certificate without key":   {"ws-1", &Signature{Signature: sig.Signature, Certificate: &Certificate{Nodes: "ws-1"}}, false},
	} {
		if err := a.Anchor().CheckNode(NodeBeat, c.node, b, c.sig); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What the node believes is what issued its key.
	if err := one.Anchor().Check(Ring, b, a.Sign(Ring, b)); err != nil {
		t.Error(err)
	}
	if one.Anchor().Check(Ring, b, stranger.Sign(Ring, b)) == nil {
		t.Error("a node believes a stranger")
	}
}

// The new key comes first or second; who believes both goes through the change.
func TestRotation(t *testing.T) {
	old, next := NewClusterKey(), NewClusterKey()
	before, during, after := authority(t, "c", old), authority(t, "c", old, next), authority(t, "c", next, old)
	key := nodeKeyOf(t, during, "ws-1", "ws-1")
	b := []byte("{}")
	for i, a := range []*Authority{before, during, after} {
		if err := key.Anchor().Check(Ring, b, a.Sign(Ring, b)); err != nil {
			t.Errorf("%d: the node does not believe the locator: %v", i, err)
		}
		if err := a.Anchor().CheckNode(NodeBeat, "ws-1", b, key.Sign(NodeBeat, b)); err != nil {
			t.Errorf("%d: the locator does not believe the node: %v", i, err)
		}
	}
	if authority(t, "c", next).Anchor().CheckNode(NodeBeat, "ws-1", b, key.Sign(NodeBeat, b)) == nil {
		t.Error("a key that the removed cluster key certified is believed still")
	}
}

func TestKeysRefused(t *testing.T) {
	secret := strings.Repeat("c2VjcmV0", 6)
	many := make([]string, 9)
	for i := range many {
		many[i] = NewClusterKey()
	}
	for _, text := range []string{"", " , ", secret, clusterPrefix, clusterPrefix + secret + "!", clusterPrefix + "AAAA", NewClusterKey() + "," + secret, strings.Join(many, ",")} {
		if _, err := ParseAuthority("c", text); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%q: %v", text, err)
		}
	}
	a := authority(t, "c", NewClusterKey())
	good, _ := a.NewNodeKey("ws-1")
	damaged := func(f func(*nodeKey)) string {
		b, _ := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(good, nodePrefix))
		var w nodeKey
		if err := json.Unmarshal(b, &w); err != nil {
			t.Fatal(err)
		}
		f(&w)
		b, _ = json.Marshal(w)
		return nodePrefix + base64.RawURLEncoding.EncodeToString(b)
	}
	for name, c := range map[string]struct{ cluster, node, text string }{
		"empty":              {"c", "ws-1", ""},
		"a cluster key":      {"c", "ws-1", NewClusterKey()},
		"cut":                {"c", "ws-1", good[:40]},
		"another cluster":    {"d", "ws-1", good},
		"another node":       {"c", "ws-2", good},
		"more nodes":         {"c", "ws-2", damaged(func(w *nodeKey) { w.Nodes = "*" })},
		"another seed":       {"c", "ws-1", damaged(func(w *nodeKey) { w.Seed[0]++ })},
		"believes nobody":    {"c", "ws-1", damaged(func(w *nodeKey) { w.Believes = nil })},
		"believes half keys": {"c", "ws-1", damaged(func(w *nodeKey) { w.Believes[0] = w.Believes[0][:31] })},
		"renamed cluster":    {"d", "ws-1", damaged(func(w *nodeKey) { w.Cluster = "d" })},
	} {
		if _, err := ParseNodeKey(c.cluster, c.node, c.text); err == nil || c.text != "" && strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, nodes := range []string{"", "WS", "ws 1", "a*b", "**", "ws_*"} {
		if k, err := a.NewNodeKey(nodes); err == nil {
			t.Errorf("a key for %q: %s", nodes, k)
		}
	}
	for _, nodes := range []string{"*", "a", "ws-*"} {
		if _, err := a.NewNodeKey(nodes); err != nil {
			t.Error(err)
		}
	}
}

func TestDetachRefuses(t *testing.T) {
	for _, msg := range []string{"{}\n", "{}\nnull", "{}\n[]", "{}\n{}\n{}", "\nx"} {
		if _, s, err := Detach([]byte(msg)); err == nil {
			t.Errorf("%q has the signature %v", msg, s)
		}
	}
	if b, s, err := Detach([]byte("{}")); err != nil || s != nil || string(b) != "{}" {
		t.Errorf("without a signature: %q %v %v", b, s, err)
	}
}

// Nobody without keys signs, or asks for signatures.
func TestNobody(t *testing.T) {
	var a *Authority
	var k *NodeKey
	if a.Sign(Ring, nil) != nil || k.Sign(NodeBeat, nil) != nil || a.Anchor() != nil || k.Anchor() != nil {
		t.Error("something is signed without a key")
	}
	if b := Attach([]byte("{}"), nil); string(b) != "{}" {
		t.Errorf("%q", b)
	}
}
