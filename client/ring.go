package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// Ring is the cluster as one locator sees it.
type Ring struct {
	Cluster  string
	Epoch    uint64 // counts the changes
	Hash     string // of who owns whom
	Nodes    []RingNode
	Handoffs []Handoff // that are not finished
}

// States of a RingNode.
const (
	NodeJoining  = wire.StateJoining  // alive, and no users are its own yet
	NodeActive   = wire.StateActive   // owns its share of the users
	NodeSuspect  = wire.StateSuspect  // the same, and it was not heard or not reached for a while
	NodeDraining = wire.StateDraining // hands its users over, and ends
)

// RingNode is a node of the ring, or one that joins or leaves it.
type RingNode struct {
	ID       string
	URL      string // that clients dial
	Weight   int
	State    string // NodeJoining, NodeActive, NodeSuspect or NodeDraining
	Sessions int
	Share    float64       // of all possible users, 0 to 1
	LastSeen time.Duration // since its last heartbeat came to that locator; negative: none came yet
}

// Handoff is a change of the ring after which some nodes may still hold sessions of users
// that they lost by it.
type Handoff struct {
	FromEpoch uint64 // of the ring before the change
	Reason    string
	Nodes     []string // that the change was about
	Pending   []HandoffNode
}

// HandoffNode is a node that has not finished a handoff.
type HandoffNode struct {
	Node     string
	Sessions int // that still have to go, by its last report
}

// Ring asks a locator for the ring.
func (p *Pusher) Ring(ctx context.Context) (Ring, error) {
	var r wire.RingResponse
	if err := p.do(ctx, http.MethodGet, "/v1/ring", http.Header{}, nil, 0, true, &r); err != nil {
		return Ring{}, err
	}
	out := Ring{Cluster: r.Cluster, Epoch: r.Epoch, Hash: r.Hash}
	for _, n := range r.Nodes {
		seen := time.Duration(n.LastSeenMS) * time.Millisecond
		out.Nodes = append(out.Nodes, RingNode{ID: n.ID, URL: n.URL, Weight: n.Weight, State: n.State, Sessions: n.Sessions, Share: n.Share, LastSeen: seen})
	}
	for _, h := range r.Handoffs {
		x := Handoff{FromEpoch: h.FromEpoch, Reason: h.Reason, Nodes: h.Nodes}
		for _, n := range h.Pending {
			x.Pending = append(x.Pending, HandoffNode(n))
		}
		out.Handoffs = append(out.Handoffs, x)
	}
	return out, nil
}

// Change is a change of the ring to plan.
type Change struct {
	// Add are nodes to add; one that is there changes its weight.
	Add []NodeWeight
	// Remove are ids of nodes to remove.
	Remove []string
}

// NodeWeight is a node and its share of the ring; a Weight of 0 is 1.
type NodeWeight struct {
	ID     string
	Weight int
}

// Plan is what a change of the ring would move: a part of all possible users, 0 to 1,
// and of the sessions that are open now.
type Plan struct {
	Epoch    uint64 // of the ring now
	Share    float64
	Sessions int
	Moves    []PlanMove
}

// PlanMove is what would move from one node to another.
type PlanMove struct {
	From, To string
	Share    float64
	Sessions int
}

// Plan asks what a change of the ring would move. It changes nothing.
func (p *Pusher) Plan(ctx context.Context, c Change) (Plan, error) {
	req := wire.PlanRequest{Add: []wire.PlanNode{}, Remove: append([]string{}, c.Remove...)}
	for _, n := range c.Add {
		req.Add = append(req.Add, wire.PlanNode{ID: n.ID, Weight: wire.PlanWeight(n.Weight)})
	}
	body, err := json.Marshal(req)
	if err != nil {
		return Plan{}, err
	}
	var r wire.PlanResponse
	if err := p.do(ctx, http.MethodPost, "/v1/ring/plan", jsonHeader(), body, 0, true, &r); err != nil {
		return Plan{}, err
	}
	out := Plan{Epoch: r.Epoch, Share: r.Share, Sessions: r.Sessions}
	for _, m := range r.Moves {
		out.Moves = append(out.Moves, PlanMove(m))
	}
	return out, nil
}

// Drain has a node hand all of its users over and end, as SIGTERM does there. It returns
// when that has begun; Ring shows how it goes on, until the node is not listed any more.
func (p *Pusher) Drain(ctx context.Context, node string) error {
	if err := wire.CheckNode(node); err != nil {
		return fmt.Errorf("dialring: %w", err)
	}
	var r struct{}
	return p.do(ctx, http.MethodPost, "/v1/nodes/"+url.PathEscape(node)+"/drain", http.Header{}, nil, 0, true, &r)
}
