package wire

import (
	"fmt"
	"strconv"
	"time"
)

// Subprotocol and the prefix of the one that carries a ticket.
const (
	Subprotocol       = "dialring.v1"
	TicketSubprotocol = "dialring.ticket."
)

// Limits of calls with many users.
const (
	MaxUsersPerCall = 10_000
	// MaxCallBytes bounds the body of a call with many users.
	MaxCallBytes = 32 << 20
	// MaxIdempotencyKey is in bytes.
	MaxIdempotencyKey = 128
)

// LocateRequest is the optional body of a locate.
type LocateRequest struct {
	Device string   `json:"device,omitempty"`
	Failed []string `json:"failed,omitempty"`
}

// LocateResponse tells a client where to dial, and with what.
type LocateResponse struct {
	User              string  `json:"user"`
	Device            string  `json:"device"`
	Node              string  `json:"node"`
	URL               string  `json:"url"`
	Ticket            string  `json:"ticket"`
	TicketExpiresInMS int64   `json:"ticket_expires_in_ms"`
	Ring              RingRef `json:"ring"`
	DialAfterMS       int64   `json:"dial_after_ms"`
	Retry             Retry   `json:"retry"`
}

// RingRef names a ring.
type RingRef struct {
	Epoch uint64 `json:"epoch"`
	Hash  string `json:"hash"`
}

// Retry tells a client its back-off.
type Retry struct {
	BaseMS int64 `json:"base_ms"`
	MaxMS  int64 `json:"max_ms"`
}

// DefaultRetry is what locators tell clients unless there is a reason for more:
// with a base of 200 ms a client that was sent to a node in the moment it died,
// and so waits twice, is back within half a second.
var DefaultRetry = Retry{BaseMS: 200, MaxMS: 30_000}

// PushResult is the answer to a push.
type PushResult struct {
	User      string `json:"user,omitempty"` // in the results of a call with many users
	ID        string `json:"id"`
	Seq       uint64 `json:"seq,omitempty"`
	Stored    bool   `json:"stored"`
	Duplicate bool   `json:"duplicate"`
	Delivered int    `json:"delivered"`
	Acked     int    `json:"acked"`
	Node      string `json:"node"`
	Epoch     uint64 `json:"epoch"`
}

// PushError is the result of one user in a call with many.
type PushError struct {
	Code   Code   `json:"code"`
	Detail string `json:"detail"`
}

// BroadcastResult is the answer to a broadcast: how many nodes answered, which
// did not, and to how many sessions it was written.
type BroadcastResult struct {
	Nodes     int      `json:"nodes"`
	Failed    []string `json:"failed"`
	Delivered int      `json:"delivered"`
	// Counts are the sessions that it was written to, by node.
	Counts map[string]int `json:"counts"`
}

// RingNode is a node as GET /v1/ring shows it.
type RingNode struct {
	ID         string  `json:"id"`
	URL        string  `json:"url"`
	Weight     int     `json:"weight"`
	State      string  `json:"state"`
	Sessions   int     `json:"sessions"`
	Share      float64 `json:"share"`
	PushRate   float64 `json:"pushes_per_second,omitempty"` // to its users, over the last seconds
	LastSeenMS int64   `json:"last_seen_ms"`                // since its last heartbeat came here; -1: none came yet
}

// States of a node in the ring.
const (
	StateJoining  = "joining"
	StateActive   = "active"
	StateSuspect  = "suspect"
	StateDraining = "draining"
)

// RingResponse is the answer to GET /v1/ring.
type RingResponse struct {
	Cluster  string        `json:"cluster"`
	Epoch    uint64        `json:"epoch"`
	Hash     string        `json:"hash"`
	Nodes    []RingNode    `json:"nodes"`
	Handoffs []RingHandoff `json:"handoffs"`
}

// RingHandoff is a change of the ring after which some nodes may still hold
// sessions of users that they lost by it.
type RingHandoff struct {
	FromEpoch uint64        `json:"from_epoch"` // of the ring before the change
	Reason    string        `json:"reason"`
	Nodes     []string      `json:"nodes"` // that the change was about
	Pending   []HandoffNode `json:"pending"`
}

// HandoffNode is a node that has not finished a handoff.
type HandoffNode struct {
	Node     string `json:"node"`
	Sessions int    `json:"sessions"` // that still have to go, by its last report
}

// PlanRequest asks what a change of the ring would move. Add also changes the
// weight of a node that is there.
type PlanRequest struct {
	Add    []PlanNode `json:"add"`
	Remove []string   `json:"remove"`
}

// PlanNode is a node to be added, with a weight of 1 if none is given.
type PlanNode struct {
	ID     string     `json:"id"`
	Weight PlanWeight `json:"weight,omitzero"`
}

// PlanWeight is a weight that may be missing, which is 0 here, but is neither 0 nor null
// where it is given.
type PlanWeight int

func (w *PlanWeight) UnmarshalJSON(b []byte) error {
	n, err := strconv.Atoi(string(b))
	if err != nil || n < 1 {
		return fmt.Errorf("the weight %.40s is no whole number from 1; leave it out for 1", b)
	}
	*w = PlanWeight(n)
	return nil
}

// PlanResponse is what would move: a part of all possible users, 0 to 1, and of
// the sessions that are open now.
type PlanResponse struct {
	Epoch    uint64     `json:"epoch"`
	Share    float64    `json:"share"`
	Sessions int        `json:"sessions"`
	Moves    []PlanMove `json:"moves"`
}

// PlanMove is what would move from one node to another.
type PlanMove struct {
	From     string  `json:"from"`
	To       string  `json:"to"`
	Share    float64 `json:"share"`
	Sessions int     `json:"sessions"`
}

// UserResponse is the answer to GET /v1/users/{user}.
type UserResponse struct {
	User     string    `json:"user"`
	Node     string    `json:"node"`
	Epoch    uint64    `json:"epoch"`
	Online   bool      `json:"online"`
	Sessions []Session `json:"sessions"`
	Head     uint64    `json:"head"`
	// HeadUnknown: the store is away; Head is the last that was known, or 0.
	HeadUnknown bool `json:"head_unknown,omitempty"`
}

// Session is one connection of a user, as services see it.
type Session struct {
	ID          string    `json:"id"`
	Device      string    `json:"device"`
	Node        string    `json:"node"`
	ConnectedAt time.Time `json:"connected_at"`
	RemoteAddr  string    `json:"remote_addr"`
	AckedSeq    uint64    `json:"acked_seq"`
	QueuedBytes int       `json:"queued_bytes"`
}

// GroupResponse is the answer to GET /v1/groups/{group} and its members.
type GroupResponse struct {
	Group   string   `json:"group"`
	Count   int      `json:"count"`
	Members []string `json:"members,omitempty"`
	Next    string   `json:"next,omitempty"` // for after, if there may be more
}

// MaxMembers is how many members a group has at most.
const MaxMembers = 1_000_000

// MaxGroupPush is how long a push to a group may take.
const MaxGroupPush = 15 * time.Minute

// GroupPushResult is the answer to a push to a group.
type GroupPushResult struct {
	Group       string        `json:"group"`
	Members     int           `json:"members"`   // that it was about
	Stored      int           `json:"stored"`    // whose message is stored
	Delivered   int           `json:"delivered"` // sessions that it was written to
	FailedCount int           `json:"failed_count"`
	Failed      []GroupFailed `json:"failed"` // the first of them
}

// GroupFailed is a member whose push was not accepted.
type GroupFailed struct {
	User  string    `json:"user"`
	Error PushError `json:"error"`
}
