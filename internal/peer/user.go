package peer

import (
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// UserQuery may be the body of OpSessions.
type UserQuery struct {
	Events bool `json:"events"` // asks also for what happened to the user's sessions
}

// User is the answer to OpSessions.
type User struct {
	Sessions []wire.Session `json:"sessions"`
	Head     uint64         `json:"head"` // of the newest stored message; only the owner knows
	// HeadUnknown: the store does not say it now; Head is the last that was known, or 0.
	HeadUnknown bool    `json:"head_unknown,omitempty"`
	Events      []Event `json:"events,omitempty"` // on this node, oldest first, if they were asked for
	// Forgotten: there may have been events before them, which the node has not kept.
	Forgotten bool `json:"forgotten,omitempty"`
}

// Event is something that happened to a session of a user on a node.
type Event struct {
	Time       time.Time `json:"time"` // by the node's clock
	Kind       string    `json:"kind"`
	Node       string    `json:"node"`
	Device     string    `json:"device"`
	Session    string    `json:"session"`
	RemoteAddr string    `json:"remote_addr"`
	Code       int       `json:"code,omitempty"` // with which the connection was closed
	Reason     string    `json:"reason,omitempty"`
	To         string    `json:"to,omitempty"` // the node that the session was told to go to
}

// Kinds of events.
const (
	EventConnected = "connected" // by a login
	EventArrived   = "arrived"   // by a move
	EventTold      = "told"      // to move
	EventMoved     = "moved"     // left after it was told to
	EventLeft      = "left"      // closed by the client
	EventLost      = "lost"      // ended without a close frame
	EventClosed    = "closed"    // by the node
	EventKicked    = "kicked"
	EventSlow      = "slow" // closed: it did not take its bytes
)
