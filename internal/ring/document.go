// Package ring decides which node owns which user. It is pure: a Document says
// who the members are, a Ring is built of it once, never changes, and answers
// the same everywhere. The points come from serialx/hashring.
package ring

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
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
	// MaxHandoffs bounds how many former rings a document names. Planned changes
	// wait for the one before them, so there are rarely two.
	MaxHandoffs = 8
	// MaxEpoch is more than a cluster ever gets to; who may go beyond would use up the
	// numbers.
	MaxEpoch = 1 << 48
	// MaxURL is the longest address, in bytes.
	MaxURL = 512
)

// Node is a member of the ring. Its place depends on ID and Weight only, so a
// changed address or a restart (a new Boot) moves no user.
type Node struct {
	ID      string `json:"id"`
	Boot    string `json:"boot"`
	URL     string `json:"url"`      // the ws or wss URL that clients are given
	PeerURL string `json:"peer_url"` // where locators and nodes reach it
	Weight  int    `json:"weight"`
	// AcceptRate is how many handshakes a second others may send to it.
	AcceptRate int `json:"accept_rate"`
	// KID and Key are its public key, in base64: who moves sessions and who asks
	// for them know each other by the ring alone.
	KID string `json:"kid,omitempty"`
	Key string `json:"key,omitempty"`
	// GraceMS is how long it keeps its place after its process has died.
	GraceMS int64 `json:"restart_grace_ms,omitempty"`
}

// Handoff is a change of the ring after which some nodes may still hold
// sessions of users that they lost by it.
//
//	published --a pending node reports that none of its sessions is
//	            misplaced, or dies--> fewer pending --> none: dropped
type Handoff struct {
	Epoch   uint64         `json:"epoch"`   // of the ring before the change
	Reason  string         `json:"reason"`  // of the change
	Nodes   []string       `json:"nodes"`   // that it was about
	Members map[string]int `json:"members"` // of the ring before: weight by id
	Pending []string       `json:"pending"` // former owners that have not reported yet
}

// Flaps counts how often a node left the ring soon after it had joined.
type Flaps struct {
	ID    string `json:"id"`
	Count int    `json:"count"`
}

// Change says why a document differs from the one before it.
type Change struct {
	Reason string   `json:"reason"` // one of Reasons, or several joined by +
	Nodes  []string `json:"nodes"`
	By     string   `json:"by"` // the locator that published it
	// Unrefused counts those of the nodes of which it was only known that they
	// do not answer. No more than half may leave so: every locator counts.
	Unrefused int `json:"unrefused,omitempty"`
}

// Reasons are those that a change may have.
var Reasons = []string{"join", "leave", "weight", "crash", "restart", "update", "handoff", "restored"}

// Has tells whether a reason is among the change's.
func (c *Change) Has(reason string) bool {
	return slices.Contains(strings.Split(c.Reason, "+"), reason)
}

// Document is the ring as it is published. Epochs rise by one.
type Document struct {
	Cluster string `json:"cluster"`
	Epoch   uint64 `json:"epoch"`
	Hash    string `json:"hash"`
	Nodes   []Node `json:"nodes"`
	// Leaving are nodes that own nobody any more and still hold sessions.
	Leaving  []Node    `json:"leaving,omitempty"`
	Handoffs []Handoff `json:"handoffs,omitempty"` // unfinished, oldest first
	Change   Change    `json:"change"`
	Flapping []Flaps   `json:"flapping,omitempty"`
}

func byID(a, b Node) int { return strings.Compare(a.ID, b.ID) }

// Seal sorts the nodes and sets the hash.
func (d *Document) Seal() {
	slices.SortFunc(d.Nodes, byID)
	slices.SortFunc(d.Leaving, byID)
	d.Hash = d.hash()
}

// hash covers all that decides ownership, addresses and who is asked besides
// the owner, and how points are made: two programs with the same hash route alike.
func (d *Document) hash() string {
	h := sha256.New()
	fmt.Fprintf(h, "%s %d points=%d sha256-64\n", d.Cluster, d.Epoch, Points)
	nodes := func(list []Node) {
		for _, n := range list {
			for _, s := range []string{n.ID, n.Boot, n.URL, n.PeerURL, strconv.Itoa(n.Weight), n.KID, n.Key} {
				fmt.Fprintf(h, "%d:%s,", len(s), s)
			}
		}
	}
	nodes(d.Nodes)
	if len(d.Leaving) > 0 || len(d.Handoffs) > 0 {
		fmt.Fprint(h, "\nleaving ")
		nodes(d.Leaving)
	}
	for _, f := range d.Handoffs {
		fmt.Fprintf(h, "\nhandoff %d %q", f.Epoch, f.Pending)
		for _, id := range slices.Sorted(maps.Keys(f.Members)) {
			fmt.Fprintf(h, " %s=%d", id, f.Members[id])
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
	if d.Epoch == 0 || d.Epoch > MaxEpoch {
		return fmt.Errorf("ring document with epoch %d; epochs are 1 to %d", d.Epoch, uint64(MaxEpoch))
	}
	if len(d.Nodes) > MaxNodes {
		return fmt.Errorf("ring document with %d nodes, at most %d are allowed", len(d.Nodes), MaxNodes)
	}
	if len(d.Leaving) > MaxNodes || len(d.Handoffs) > MaxHandoffs {
		return fmt.Errorf("ring document with %d leaving nodes and %d handoffs, at most %d and %d are allowed", len(d.Leaving), len(d.Handoffs), MaxNodes, MaxHandoffs)
	}
	for _, list := range [][]Node{d.Nodes, d.Leaving} {
		for i, n := range list {
			if err := wire.CheckNode(n.ID); err != nil {
				return fmt.Errorf("ring document: %w", err)
			}
			if i > 0 && list[i-1].ID >= n.ID {
				return fmt.Errorf("ring document: node %q is repeated or out of order", n.ID)
			}
			if err := checkWeight(n.ID, n.Weight); err != nil {
				return err
			}
			if len(n.URL) > MaxURL || len(n.PeerURL) > MaxURL || len(n.Boot) > 64 || len(n.KID) > 64 || len(n.Key) > 64 {
				return fmt.Errorf("ring document: an address, boot id or key of node %s is too long", n.ID)
			}
			if n.AcceptRate < 0 || n.GraceMS < 0 {
				return fmt.Errorf("ring document: accept rate %d and grace %d ms of node %s cannot be", n.AcceptRate, n.GraceMS, n.ID)
			}
		}
	}
	if len(d.Flapping) > 2*MaxNodes {
		return fmt.Errorf("ring document with %d flapping nodes", len(d.Flapping))
	}
	for _, n := range d.Leaving {
		if _, in := d.Find(n.ID); in {
			return fmt.Errorf("ring document: node %s is in the ring and leaving at once", n.ID)
		}
	}
	if w := d.Weight(); w > MaxTotalWeight {
		return fmt.Errorf("ring document: the weights add up to %d, at most %d are allowed", w, MaxTotalWeight)
	}
	for i, f := range d.Handoffs {
		if err := d.checkHandoff(&f); err != nil {
			return err
		}
		if i > 0 && d.Handoffs[i-1].Epoch >= f.Epoch {
			return fmt.Errorf("ring document: the handoff of epoch %d is repeated or out of order", f.Epoch)
		}
	}
	if h := d.hash(); d.Hash != h {
		return fmt.Errorf("ring document of epoch %d says hash %s, its content has %s", d.Epoch, d.Hash, h)
	}
	return nil
}

func checkWeight(id string, w int) error {
	if w < 1 || w > MaxWeight {
		return fmt.Errorf("ring document: weight %d of node %s is not within 1 to %d", w, id, MaxWeight)
	}
	return nil
}

func (d *Document) checkHandoff(f *Handoff) error {
	if f.Epoch == 0 || f.Epoch >= d.Epoch || len(f.Pending) == 0 {
		return fmt.Errorf("ring document of epoch %d with a handoff of epoch %d and %d pending nodes", d.Epoch, f.Epoch, len(f.Pending))
	}
	sum := 0
	for id, w := range f.Members {
		if err := wire.CheckNode(id); err != nil {
			return fmt.Errorf("ring document: %w", err)
		}
		if err := checkWeight(id, w); err != nil {
			return err
		}
		sum += w
	}
	if sum > MaxTotalWeight {
		return fmt.Errorf("ring document: the weights of epoch %d add up to %d, at most %d are allowed", f.Epoch, sum, MaxTotalWeight)
	}
	for i, id := range f.Pending {
		if _, member := f.Members[id]; !member || i > 0 && f.Pending[i-1] >= id {
			return fmt.Errorf("ring document: node %q that epoch %d waits for was no member, or is repeated or out of order", id, f.Epoch)
		}
		if _, known := d.Process(id); !known {
			return fmt.Errorf("ring document: epoch %d waits for node %s, whose address is unknown", f.Epoch, id)
		}
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

// Find returns the node of the ring with this id.
func (d *Document) Find(id string) (Node, bool) { return find(d.Nodes, id) }

// Process returns the node with this id, in the ring or leaving.
func (d *Document) Process(id string) (Node, bool) {
	if n, ok := find(d.Nodes, id); ok {
		return n, true
	}
	return find(d.Leaving, id)
}

func find(list []Node, id string) (Node, bool) {
	i, ok := slices.BinarySearchFunc(list, id, func(n Node, id string) int { return strings.Compare(n.ID, id) })
	if !ok {
		return Node{}, false
	}
	return list[i], true
}

// Members are the weights of the nodes, which decide who owns whom.
func (d *Document) Members() map[string]int {
	m := make(map[string]int, len(d.Nodes))
	for _, n := range d.Nodes {
		m[n.ID] = n.Weight
	}
	return m
}

// With returns a copy whose lists may be changed without touching d's; what is
// in a handoff may not.
func (d *Document) With() Document {
	c := *d
	c.Nodes, c.Leaving = slices.Clone(d.Nodes), slices.Clone(d.Leaving)
	c.Handoffs, c.Flapping = slices.Clone(d.Handoffs), slices.Clone(d.Flapping)
	return c
}
