package wsnode

import (
	"errors"
	"strings"

	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/ticket"
)

// What other nodes may do here, so that one that somebody took over gets no further than
// to its own users, but for what every node has to do: it pushes what its clients send to
// anybody, and asks for users of its own whom this node had or will have.

var (
	errLocatorsOnly = errors.New("only locators do that")
	errNotTheirs    = errors.New("that node does not own the user")
)

// mayAsk tells whether who calls, by a ring of this epoch, may have a call carried out; it
// waits for that ring, if this node has an older one and it matters.
func (n *Node) mayAsk(from string, in *peer.In, epoch uint64) error {
	node, isNode := strings.CutPrefix(from, ticket.FromNode)
	if !isNode {
		return nil
	}
	switch in.Op {
	case peer.OpLook, peer.OpMissing: // hints of what is looked up in the store, and of who is online here
		return nil
	case peer.OpPresence:
		if in.Forwarded {
			return nil
		}
	case peer.OpSessions, peer.OpKick, peer.OpAcked:
		if !in.Forwarded {
			break
		}
		n.awaitRingOf(from, epoch)
		if !n.rings.Had(node, string(in.User)) {
			return errNotTheirs
		}
		return nil
	}
	return errLocatorsOnly
}

func (n *Node) refuseCall(in *peer.In, from string, err error) {
	if skipped, say := n.refusals.Next("call of " + from); say {
		n.log.Warn("a call is refused", "event", "peer_call_refused", "from", from, "op", in.Op, "error", err, "skipped", skipped)
	}
	in.Reply(peer.Reply{Status: peer.StatusBad})
}

// mayMove tells whether a node may hand over a user's session: itself, and an owner of a
// moment ago. Who is new here does not know who that was: then also one that is out of the
// ring.
func (n *Node) mayMove(from, user string) bool {
	if from == n.cfg.NodeID || n.rings.Had(from, user) {
		return true
	}
	_, known := n.rings.Current().Process(from)
	return !known && !n.rings.Remembers()
}
