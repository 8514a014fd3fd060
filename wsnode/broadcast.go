package wsnode

import (
	"sync"
	"time"

	"github.com/dialring/dialring/internal/peer"
)

// Broadcasts that a session gets when it arrives from another node: it may have
// left there before the broadcast came there, and come here after it was here.
const (
	recentFor   = 3 * time.Second
	recentCount = 64
	recentBytes = 4 << 20
)

// recent are the last broadcasts.
type recent struct {
	mu    sync.Mutex
	list  []recentFrame
	bytes int
}

type recentFrame struct {
	at    time.Time
	frame []byte
}

// add notes a broadcast, before any session gets it.
func (r *recent) add(frame []byte, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, recentFrame{now, frame})
	r.bytes += len(frame)
	r.trimLocked(now)
}

func (r *recent) trimLocked(now time.Time) {
	for len(r.list) > 0 && (now.Sub(r.list[0].at) > recentFor || len(r.list) > recentCount || r.bytes > recentBytes) {
		r.bytes -= len(r.list[0].frame)
		r.list[0] = recentFrame{}
		r.list = r.list[1:]
	}
}

// frames returns the broadcasts that are recent at now.
func (r *recent) frames(now time.Time) [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.trimLocked(now)
	var out [][]byte
	for _, f := range r.list {
		out = append(out, f.frame)
	}
	return out
}

// broadcast writes a message to every session of the node.
func (n *Node) broadcast(in *peer.In, stamp string) {
	n.tasks.Go(func() {
		f := message(in, stamp)
		n.recent.add(f, time.Now())
		p := &push{answer: func(delivered int) { in.Reply(peer.Reply{Delivered: delivered}) }}
		p.left.Store(1) // this loop itself
		n.hub.each(func(s *session) {
			if s.old.Load() { // counted by the connection that follows it
				s.send(outgoing{frame: f})
				return
			}
			p.left.Add(1)
			s.send(outgoing{frame: f, push: p})
		})
		p.wrote(false)
	})
}

// catchUpBroadcasts gives a session that moved here what it may have missed.
func (n *Node) catchUpBroadcasts(s *session) {
	for _, f := range n.recent.frames(time.Now()) {
		s.send(outgoing{frame: f})
	}
}
