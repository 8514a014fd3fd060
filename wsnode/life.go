package wsnode

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/wire"
)

// A node's life, as its heartbeats tell it:
//
//	joining --in the published ring--> active --ctx ended--> draining --> gone
//	   ^                                 |
//	   +---- out of the ring, alive -----+  (it was unreachable; it asks to join again)

// beat publishes heartbeats until ctx ends.
func (n *Node) beat(ctx context.Context) error {
	n.nats.OnUp(n.beatSoon)
	t := time.NewTicker(cluster.BeatInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		case <-n.beatNow:
		}
		n.nats.BeatNode(cluster.NodeBeat{ID: n.cfg.NodeID, Boot: n.boot, URL: n.cfg.NodeURL, PeerURL: n.cfg.PeerURL, Weight: n.cfg.Weight,
			State: n.state(), Sessions: int(n.hub.sessions.Load()), AcceptRate: n.cfg.AcceptRate,
			Epoch: n.rings.Current().Epoch, KID: n.signer.KID, Time: time.Now()})
	}
}

func (n *Node) state() string {
	switch {
	case n.draining.Load():
		return wire.StateDraining
	case n.inRing():
		return wire.StateActive
	}
	return wire.StateJoining
}

// beatSoon publishes a heartbeat without waiting for the next second.
func (n *Node) beatSoon() {
	select {
	case n.beatNow <- struct{}{}:
	default:
	}
}

// watchRing acts on each new ring: sessions whose user has another owner now
// are closed, and their clients locate again at once. It fails when another
// process has this node's place.
func (n *Node) watchRing(ctx context.Context) error {
	for {
		changed := n.rings.Changed()
		cur := n.rings.Current()
		if m, ok := cur.Find(n.cfg.NodeID); ok && m.Boot == n.boot {
			n.joined.Store(true)
		} else if ok && n.joined.Load() && !n.draining.Load() {
			return fmt.Errorf("another process runs as node %q now (at %s): give each node a DIALRING_NODE_ID of its own", n.cfg.NodeID, m.PeerURL)
		}
		n.beatSoon()
		if !n.draining.Load() { // then all of them are closed anyway
			n.hub.each(func(s *session) {
				if !n.owns(s.owner, []byte(s.user), cur) {
					s.close(wire.CloseNotTheOwner, "")
				}
			})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// leave asks the locators to take the node out of the ring, and waits until it
// is out, so that clients that are told to go do not come back.
func (n *Node) leave(ctx context.Context) {
	n.draining.Store(true)
	n.log.Info("leaving", "event", "draining", "sessions", n.hub.sessions.Load())
	n.beatSoon()
	deadline := time.NewTimer(min(leaveTimeout, n.cfg.DrainTimeout))
	defer deadline.Stop()
	for {
		changed := n.rings.Changed()
		if !n.inRing() {
			return
		}
		select {
		case <-changed:
		case <-deadline.C:
			n.log.Warn("still in the ring, leaving all the same", "event", "drain_timeout")
			return
		case <-ctx.Done():
			return
		}
	}
}

// leaveTimeout is how long a node waits for the locators to take it out.
const leaveTimeout = 3 * time.Second

// closeSessions closes every session and waits, within bounds, until their
// connections have ended. None is admitted any more.
func (n *Node) closeSessions(code int) {
	n.admission.Lock()
	n.closed = true
	n.admission.Unlock()
	n.hub.each(func(s *session) { s.close(code, "") })
	ended := make(chan struct{})
	go func() {
		n.readers.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(closeTimeout):
		n.hub.eachLeaving((*session).abort)
		<-ended
	}
}

// sweepInterval is how often sessions are looked at: pings, stuck writes.
const sweepInterval = time.Second

// stoppedAfter is how long the sweep may be overdue: a caller waits at least
// until then (see the locator's pushTimeout).
const stoppedAfter = 2500 * time.Millisecond

// sweep is the one timer of all sessions.
func (n *Node) sweep(ctx context.Context) {
	var after storm
	t := time.NewTicker(sweepInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			if n.wasStopped() {
				// Whatever waits in the sockets of the links is from before. The
				// links go first: who then sees the sweep up to date sees that, too.
				n.log.Warn("this process did not run for a while; the links of locators start anew", "event", "stopped")
				n.links.Drop()
			}
			n.sweptAt.Store(int64(time.Since(n.start)))
			sec := n.seconds()
			n.hub.each(func(s *session) { s.sweep(now, sec) })
			n.hub.eachLeaving(func(s *session) { s.sweep(now, sec) })
			if after.over(n.admitted.Load()) {
				debug.FreeOSMemory()
			}
		}
	}
}

// storm notices when a storm of handshakes is over. Each leaves some 10 KiB of
// garbage, which would stay with the process for as long as the new sessions
// are idle and cause no collection: it is given back once.
type storm struct {
	last, trimmed int64
	quiet         int // calls in a row with few handshakes
}

// over is called once a second with the handshakes so far.
func (s *storm) over(admitted int64) bool {
	const few, many, enough = 10, 500, 5
	s.quiet++
	if admitted-s.last >= few {
		s.quiet = 0
	}
	s.last = admitted
	if s.quiet < enough || admitted-s.trimmed < many {
		return false
	}
	s.trimmed = admitted
	return true
}

// seconds is the sweep's clock.
func (n *Node) seconds() int64 { return int64(time.Since(n.start) / sweepInterval) }
