// Package trust lets a cluster tell its locators and nodes from each other, and from
// whoever else can write to its NATS. NATS permissions alone cannot: JetStream answers a
// request on any subject that the request names, so that who may read one message can
// publish it anywhere. So what decides the ring is signed.
//
//	cluster key      held by locators only; signs rings, locators' heartbeats,
//	  |              revocations, and the public keys by which tickets are signed
//	  +-- node key   one for each node, or for a group of them: certified by the cluster
//	                 key for the node ids that it may go by; signs heartbeats
//
// A node's key names the cluster keys that the node believes. All signatures are Ed25519
// (RFC 8032) over a prefix that names the kind and the cluster, so that none passes for
// one of another kind or of another cluster. The package uses the standard library only.
package trust

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Kind is what a signature is about; one of one kind never passes for another.
type Kind string

// The kinds.
const (
	Ring        Kind = "ring"
	LocatorBeat Kind = "locator heartbeat"
	NodeBeat    Kind = "node heartbeat"
	LocatorKey  Kind = "locator key"
	Revocation  Kind = "revocation"
	nodeCert    Kind = "node certificate"
)

// Why something is not believed.
var (
	ErrUnsigned  = errors.New("it is not signed")
	ErrSignature = errors.New("its signature is by no key that this program believes")
)

// signed is what a signature is over.
func signed(kind Kind, cluster string, b []byte) []byte {
	out := make([]byte, 0, 64+len(b))
	out = fmt.Appendf(out, "dialring 1 %q %q\n", string(kind), cluster)
	return append(out, b...)
}

// Certificate says under which ids a node may go with a key.
type Certificate struct {
	Nodes     string            `json:"nodes"` // a node id, or the beginning of some with a * behind
	Public    ed25519.PublicKey `json:"public"`
	Signature []byte            `json:"signature"` // of a cluster key
}

func (c *Certificate) content() []byte {
	return fmt.Appendf(nil, "%q %x", c.Nodes, []byte(c.Public))
}

// covers tells whether the certificate is good for a node id.
func (c *Certificate) covers(node string) bool {
	if begin, many := strings.CutSuffix(c.Nodes, "*"); many {
		return strings.HasPrefix(node, begin)
	}
	return node == c.Nodes
}

// Signature goes behind what it is about, in a line of its own.
type Signature struct {
	Signature   []byte       `json:"signature"`
	Certificate *Certificate `json:"certificate,omitempty"` // of a node
}

// Attach puts a signature behind JSON, which has no line breaks.
func Attach(b []byte, s *Signature) []byte {
	if s == nil {
		return b
	}
	line, err := json.Marshal(s)
	if err != nil {
		panic(err) // plain fields always have an encoding
	}
	return append(append(b[:len(b):len(b)], '\n'), line...)
}

// Detach takes a message apart again; s is nil if there is none. It checks nothing.
func Detach(msg []byte) (b []byte, s *Signature, err error) {
	b, line, found := bytes.Cut(msg, []byte{'\n'})
	if !found {
		return b, nil, nil
	}
	if err := json.Unmarshal(line, &s); err != nil || s == nil {
		return b, nil, errors.New("what stands behind the first line is no signature")
	}
	return b, s, nil
}

// Anchor is the public halves of the cluster keys that a program believes. A nil Anchor
// believes everything: then who may write to NATS is believed. It may be used concurrently.
type Anchor struct {
	cluster string
	keys    []ed25519.PublicKey
}

// Check reports why what a cluster key should have signed is not to be believed.
func (a *Anchor) Check(kind Kind, b []byte, s *Signature) error {
	if a == nil {
		return nil
	}
	if s == nil || len(s.Signature) == 0 {
		return ErrUnsigned
	}
	return a.check(kind, b, s.Signature)
}

func (a *Anchor) check(kind Kind, b, sig []byte) error {
	m := signed(kind, a.cluster, b)
	for _, k := range a.keys {
		if ed25519.Verify(k, m, sig) {
			return nil
		}
	}
	return ErrSignature
}

// CheckNode reports why what a node should have signed is not to be believed.
func (a *Anchor) CheckNode(kind Kind, node string, b []byte, s *Signature) error {
	if a == nil {
		return nil
	}
	if s == nil || s.Certificate == nil || len(s.Signature) == 0 {
		return ErrUnsigned
	}
	c := s.Certificate
	if len(c.Public) != ed25519.PublicKeySize || a.check(nodeCert, c.content(), c.Signature) != nil {
		return errors.New("its key is certified by no cluster key that this program believes")
	}
	if !c.covers(node) {
		return fmt.Errorf("its key is for the node %q", c.Nodes)
	}
	if !ed25519.Verify(c.Public, signed(kind, a.cluster, b), s.Signature) {
		return ErrSignature
	}
	return nil
}
