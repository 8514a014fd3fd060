// Package ring decides which node owns which user. It is pure: a Document says
// who the members are, a Ring is built of it once, never changes, and answers
// the same everywhere. The points come from serialx/hashring.
package ring

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/dialring/dialring/internal/wire"
)

// Bounds of a ring document. A document that breaks them is refused.
const (
	MaxNodes  = 2000
	MaxWeight = 64
	// MaxTotalWeight bounds what building a ring costs: 2,000 nodes of weight 1
	// or fewer heavier ones.
	MaxTotalWeight = MaxNodes
)

// Node is a member of the ring. Its place depends on ID and Weight only, so a
// changed address or a restart (a new Boot) moves no user.
type Node struct {
	ID      string `json:"id"`
	Boot    string `json:"boot"`
	URL     string `json:"url"`      // the ws or wss URL that clients are given
	PeerURL string `json:"peer_url"` // where locators and nodes reach it
	Weight  int    `json:"weight"`
}

// Change says why a document differs from the one before it.
type Change struct {
	Reason string   `json:"reason"` // join, leave, crash, update; several joined by +
	Nodes  []string `json:"nodes"`
	By     string   `json:"by"` // the locator that published it
	// Unrefused counts those of the nodes of which it was only known that they
	// do not answer. No more than half may leave so: every locator counts.
	Unrefused int `json:"unrefused,omitempty"`
}

// Document is the ring as it is published. Epochs rise by one.
type Document struct {
	Cluster string `json:"cluster"`
	Epoch   uint64 `json:"epoch"`
	Hash    string `json:"hash"`
	Nodes   []Node `json:"nodes"`
	Change  Change `json:"change"`
}

// Seal sorts the nodes and sets the hash.
func (d *Document) Seal() {
	slices.SortFunc(d.Nodes, func(a, b Node) int { return strings.Compare(a.ID, b.ID) })
	d.Hash = d.hash()
}

// hash covers all that decides ownership and addresses, and how points are
// made: two programs with the same hash route alike.
func (d *Document) hash() string {
	h := sha256.New()
	fmt.Fprintf(h, "%s %d points=%d sha256-64\n", d.Cluster, d.Epoch, Points)
	for _, n := range d.Nodes {
		for _, s := range []string{n.ID, n.Boot, n.URL, n.PeerURL, strconv.Itoa(n.Weight)} {
			fmt.Fprintf(h, "%d:%s,", len(s), s)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:4])
}

// Encode returns the document as it is stored.
func (d *Document) Encode() ([]byte, error) { return json.Marshal(d) }

// Decode reads a stored document and checks it.
func Decode(b []byte, cluster string) (Document, error) {
	var d Document
	if err := json.Unmarshal(b, &d); err != nil {
		return d, fmt.Errorf("ring document: %w", err)
	}
	if d.Cluster != cluster {
		return d, fmt.Errorf("ring document is of cluster %q, not %q", d.Cluster, cluster)
	}
	return d, d.Check()
}

// Check reports which rule the document breaks.
func (d *Document) Check() error {
	if d.Epoch == 0 {
		return fmt.Errorf("ring document without an epoch")
	}
	if len(d.Nodes) > MaxNodes {
		return fmt.Errorf("ring document with %d nodes, at most %d are allowed", len(d.Nodes), MaxNodes)
	}
	for i, n := range d.Nodes {
		if err := wire.CheckNode(n.ID); err != nil {
			return fmt.Errorf("ring document: %w", err)
		}
		if i > 0 && d.Nodes[i-1].ID >= n.ID {
			return fmt.Errorf("ring document: node %q is repeated or out of order", n.ID)
		}
		if n.Weight < 1 || n.Weight > MaxWeight {
			return fmt.Errorf("ring document: weight %d of node %s is not within 1 to %d", n.Weight, n.ID, MaxWeight)
		}
	}
	if w := d.Weight(); w > MaxTotalWeight {
		return fmt.Errorf("ring document: the weights add up to %d, at most %d are allowed", w, MaxTotalWeight)
	}
	if h := d.hash(); d.Hash != h {
		return fmt.Errorf("ring document of epoch %d says hash %s, its content has %s", d.Epoch, d.Hash, h)
	}
	return nil
}

// Weight is the sum of the nodes' weights.
func (d *Document) Weight() int {
	sum := 0
	for _, n := range d.Nodes {
		sum += n.Weight
	}
	return sum
}

// Find returns the node with this id.
func (d *Document) Find(id string) (Node, bool) {
	i, ok := slices.BinarySearchFunc(d.Nodes, id, func(n Node, id string) int { return strings.Compare(n.ID, id) })
	if !ok {
		return Node{}, false
	}
	return d.Nodes[i], true
}

// With returns a copy whose nodes may be changed without touching d.
func (d *Document) With() Document {
	c := *d
	c.Nodes = slices.Clone(d.Nodes)
	return c
}
