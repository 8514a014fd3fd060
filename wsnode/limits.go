package wsnode

import (
	"net/http"

	"github.com/dialring/dialring/internal/httpd"
	"github.com/dialring/dialring/internal/wire"
)

// Limits as the metric dialring_limited_total names them.
const (
	limitAddress           = "address"            // RATE_PER_ADDRESS
	limitUser              = "user"               // RATE_PER_USER
	limitSessions          = "sessions"           // MAX_SESSIONS, open files
	limitTickets           = "tickets"            // used ones that are remembered
	limitFrames            = "frames"             // FRAME_RATE
	limitBytes             = "bytes"              // BYTE_RATE
	limitQueue             = "queue"              // SESSION_QUEUE_BYTES
	limitNodeQueue         = "node_queue"         // NODE_QUEUE_BYTES
	limitHandshakes        = "handshakes"         // MAX_HANDSHAKES
	limitAddressHandshakes = "address_handshakes" // of an address; RATE_PER_ADDRESS
	limitSends             = "sends"              // SEND_RATE, and those of a session that wait for an answer
	limitSendQueue         = "send_queue"         // SEND_QUEUE_BYTES
	limitMemory            = "memory"             // MEMORY_LIMIT
	limitUserSessions      = "user_sessions"      // MAX_SESSIONS_PER_USER, DEVICE_POLICY
	limitResumes           = "resumes"            // of a session that wait
	limitStoring           = "storing"            // bytes that wait for the store
	limitApplication       = "application"        // APP_CONCURRENCY
	limitSlowWrite         = "slow_write"         // a write that took too long
	limitAdmin             = "admin"              // connections of the admin listener
)

var allLimits = []string{limitAddress, limitUser, limitSessions, limitTickets, limitFrames, limitBytes, limitQueue, limitNodeQueue, limitHandshakes, limitAddressHandshakes, limitSends, limitSendQueue, limitMemory,
	limitUserSessions, limitResumes, limitStoring, limitApplication, limitSlowWrite, limitAdmin}

// limited counts what was refused or ended for a limit.
func (n *Node) limited(limit string) { n.metrics.limited.WithLabelValues(limit).Inc() }

// full says why this node takes no more sessions; nil: it does.
func (n *Node) full() *wire.Problem {
	if n.memory.full.Load() {
		n.limited(limitMemory)
		return wire.NewProblem(http.StatusServiceUnavailable, wire.CodeRateLimited, "this node has no memory for more sessions now; locate again")
	}
	if n.connections.Load() >= n.maxSessions {
		return n.noPlace()
	}
	return nil
}

func (n *Node) noPlace() *wire.Problem {
	n.limited(limitSessions)
	return wire.NewProblem(http.StatusServiceUnavailable, wire.CodeRateLimited, "this node has as many sessions as it can hold; locate again")
}

// enter takes a place for a session, which leave gives back when its connection has ended.
// false: there is none.
func (n *Node) enter() bool {
	if n.connections.Add(1) > n.maxSessions {
		n.connections.Add(-1)
		return false
	}
	return true
}

func (n *Node) leave() {
	n.connections.Add(-1)
	n.readers.Done()
}

// handshakes is the bound of a listener's connections that are no sessions. The reserve of
// descriptors for two such listeners is kept free of sessions (see New).
func (n *Node) handshakes(perAddress int) *httpd.Waiting {
	return httpd.NewWaiting(n.maxHandshakes, perAddress, func(byAddress bool) {
		if byAddress {
			n.limited(limitAddressHandshakes)
		} else {
			n.limited(limitHandshakes)
		}
	})
}

// maxAdmin bounds the connections of the admin listener.
const maxAdmin = 64
