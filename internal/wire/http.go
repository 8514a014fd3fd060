package wire

import (
	"encoding/json"
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

// DefaultRetry is what locators tell clients unless there is a reason for more.
var DefaultRetry = Retry{BaseMS: 500, MaxMS: 30_000}

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
}

// RingNode is a node as GET /v1/ring shows it.
type RingNode struct {
	ID         string  `json:"id"`
	URL        string  `json:"url"`
	Weight     int     `json:"weight"`
	State      string  `json:"state"`
	Sessions   int     `json:"sessions"`
	Share      float64 `json:"share"`
	LastSeenMS int64   `json:"last_seen_ms"` // since its last heartbeat came here; -1: none came yet
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
	Cluster  string            `json:"cluster"`
	Epoch    uint64            `json:"epoch"`
	Hash     string            `json:"hash"`
	Nodes    []RingNode        `json:"nodes"`
	Handoffs []json.RawMessage `json:"handoffs"`
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
