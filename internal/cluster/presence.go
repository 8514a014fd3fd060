package cluster

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/dialring/dialring/internal/ring"
)

// Presence events go to the subject <cluster>.presence.
const (
	PresenceOnline   = "online"
	PresenceOffline  = "offline"
	PresenceNodeLost = "node_lost"
)

const subjectPresence = "presence"

// PresenceEvent is one event, as JSON. Events of a user may come twice, from two nodes.
type PresenceEvent struct {
	Event string    `json:"event"`
	User  string    `json:"user,omitempty"`
	Node  string    `json:"node"` // that says so, or that is lost
	Time  time.Time `json:"time"` // by the clock of who says so
}

// PublishPresence publishes an event; false if NATS is away.
func (c *Conn) PublishPresence(e PresenceEvent) bool {
	if !c.Up() {
		return false
	}
	c.publish(subjectPresence, encodePresence(e))
	return true
}

// lostNodes lists the processes of a ring that the next one does not have, and that may
// have had sessions: they ended without a word of their users.
func lostNodes(was, is ring.Document) (out []string) {
	there := func(n ring.Node) bool {
		same := func(o ring.Node) bool { return o.ID == n.ID && o.Boot == n.Boot }
		return slices.ContainsFunc(is.Nodes, same) || slices.ContainsFunc(is.Leaving, same)
	}
	for _, n := range was.Nodes {
		if !there(n) {
			out = append(out, n.ID)
		}
	}
	for _, n := range was.Leaving {
		if !there(n) && strings.Contains(is.Change.Reason, "crash") && slices.Contains(is.Change.Nodes, n.ID) {
			out = append(out, n.ID)
		}
	}
	return out
}

func encodePresence(e PresenceEvent) []byte {
	b, err := json.Marshal(e)
	if err != nil {
		panic(err) // plain fields always have an encoding
	}
	return b
}
