package trust

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/dialring/dialring/internal/wire"
)

// How the keys are written, so that nobody takes one for the other.
const (
	clusterPrefix = "drcluster_"
	nodePrefix    = "drnode_"
)

// maxClusterKeys is how many cluster keys there may be at a time; a rotation needs two.
const maxClusterKeys = 8

// NewClusterKey makes a cluster key, as text.
func NewClusterKey() string {
	seed := make([]byte, ed25519.SeedSize)
	_, _ = rand.Read(seed) // never fails, by its documentation
	return clusterPrefix + base64.RawURLEncoding.EncodeToString(seed)
}

// Authority signs with the first of some cluster keys, and believes all of them. A nil
// Authority signs nothing. It may be used concurrently.
type Authority struct {
	cluster string
	key     ed25519.PrivateKey
	anchor  *Anchor
}

// ParseAuthority reads the cluster keys of a cluster: one or more, separated by commas or
// white space. The error never shows them.
func ParseAuthority(cluster, text string) (*Authority, error) {
	a := &Authority{cluster: cluster, anchor: &Anchor{cluster: cluster}}
	for i, f := range strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(", \t\r\n", r) }) {
		coded, ok := strings.CutPrefix(f, clusterPrefix)
		seed, err := base64.RawURLEncoding.Strict().DecodeString(coded)
		if !ok || err != nil || len(seed) != ed25519.SeedSize {
			return nil, fmt.Errorf("number %d is no cluster key; dialring cluster-key makes one, which begins with %s", i+1, clusterPrefix)
		}
		key := ed25519.NewKeyFromSeed(seed)
		if a.key == nil {
			a.key = key
		}
		a.anchor.keys = append(a.anchor.keys, key.Public().(ed25519.PublicKey))
	}
	switch n := len(a.anchor.keys); {
	case n == 0:
		return nil, errors.New("there is no cluster key in it")
	case n > maxClusterKeys:
		return nil, fmt.Errorf("there are %d cluster keys, at most %d are allowed", n, maxClusterKeys)
	}
	return a, nil
}

// Anchor is what this authority believes; nil for a nil Authority.
func (a *Authority) Anchor() *Anchor {
	if a == nil {
		return nil
	}
	return a.anchor
}

// Sign signs b as what kind says; nil for a nil Authority.
func (a *Authority) Sign(kind Kind, b []byte) *Signature {
	if a == nil {
		return nil
	}
	return &Signature{Signature: ed25519.Sign(a.key, signed(kind, a.cluster, b))}
}

// nodeKey is a node's key as it is written.
type nodeKey struct {
	Cluster   string              `json:"cluster"`
	Nodes     string              `json:"nodes"`
	Seed      []byte              `json:"seed"`
	Signature []byte              `json:"signature"` // the certificate's
	Believes  []ed25519.PublicKey `json:"believes"`
}

// NewNodeKey makes a key for the nodes of one id, or, with a * behind, of all ids that
// begin so. It believes all cluster keys of the authority.
func (a *Authority) NewNodeKey(nodes string) (string, error) {
	id := strings.TrimSuffix(nodes, "*")
	if nodes != "*" && (id == "" || wire.CheckNode(id) != nil) {
		return "", fmt.Errorf("%q is no node id, nor the beginning of some with a * behind", nodes)
	}
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return "", err
	}
	c := Certificate{Nodes: nodes, Public: pub}
	b, err := json.Marshal(nodeKey{Cluster: a.cluster, Nodes: nodes, Seed: key.Seed(), Believes: a.anchor.keys,
		Signature: ed25519.Sign(a.key, signed(nodeCert, a.cluster, c.content()))})
	if err != nil {
		return "", err
	}
	return nodePrefix + base64.RawURLEncoding.EncodeToString(b), nil
}

// NodeKey signs what a node says. A nil NodeKey signs nothing. It may be used concurrently.
type NodeKey struct {
	cluster string
	key     ed25519.PrivateKey
	cert    Certificate
	anchor  *Anchor
}

// ParseNodeKey reads the key of the node with this id. The error never shows it.
func ParseNodeKey(cluster, node, text string) (*NodeKey, error) {
	coded, ok := strings.CutPrefix(strings.TrimSpace(text), nodePrefix)
	b, err := base64.RawURLEncoding.Strict().DecodeString(coded)
	var w nodeKey
	if err == nil {
		err = json.Unmarshal(b, &w)
	}
	if !ok || err != nil || len(w.Seed) != ed25519.SeedSize || len(w.Believes) == 0 || len(w.Believes) > maxClusterKeys {
		return nil, fmt.Errorf("it is no node key; dialring node-key makes one, which begins with %s", nodePrefix)
	}
	if w.Cluster != cluster {
		return nil, fmt.Errorf("it is a key for the cluster %q, and this one is %q", w.Cluster, cluster)
	}
	for _, k := range w.Believes {
		if len(k) != ed25519.PublicKeySize {
			return nil, errors.New("a cluster key in it is damaged")
		}
	}
	key := ed25519.NewKeyFromSeed(w.Seed)
	k := &NodeKey{cluster: cluster, key: key, cert: Certificate{Nodes: w.Nodes, Public: key.Public().(ed25519.PublicKey), Signature: w.Signature},
		anchor: &Anchor{cluster: cluster, keys: w.Believes}}
	probe := []byte("probe")
	if err := k.anchor.CheckNode(NodeBeat, node, probe, k.Sign(NodeBeat, probe)); err != nil {
		return nil, fmt.Errorf("this node is %q: %w", node, err)
	}
	return k, nil
}

// Anchor is what the node believes; nil for a nil NodeKey.
func (k *NodeKey) Anchor() *Anchor {
	if k == nil {
		return nil
	}
	return k.anchor
}

// Sign signs b as what kind says; nil for a nil NodeKey.
func (k *NodeKey) Sign(kind Kind, b []byte) *Signature {
	if k == nil {
		return nil
	}
	return &Signature{Signature: ed25519.Sign(k.key, signed(kind, k.cluster, b)), Certificate: &k.cert}
}
