package wsnode

import (
	"context"
	"runtime/debug"
	"time"

	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/ticket"
	"github.com/dialring/dialring/internal/wire"
)

// A node's life, as its heartbeats tell it:
//
//	joining --in the published ring--> active --ctx ended, or asked to--> draining
//	   ^                                 |                                    |
//	   +---- out of the ring, alive -----+    out of the ring, all sessions   v
//	  (it was unreachable; it moves what it   moved, or DRAIN_TIMEOUT over: gone
//	   holds, and asks to join again)

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
		n.sendBeat()
	}
}

// sendBeat publishes a heartbeat, unless the ring has let this process go: one more would be taken
// for a newcomer's, and be in the way of the node's next process.
func (n *Node) sendBeat() {
	if n.joined.Load() && n.presenceOf.told() && n.isReleased() {
		return
	}
	h := n.healthNow()
	cluster.BeatNode(n.nats, cluster.NodeBeat{ID: n.cfg.NodeID, Boot: n.boot, URL: n.cfg.NodeURL, PeerURL: n.cfg.PeerURL, Weight: n.cfg.Weight,
		State: n.state(), Sessions: int(n.hub.sessions.Load()), AcceptRate: n.cfg.AcceptRate, GraceMS: n.cfg.RestartGrace.Milliseconds(),
		Epoch: h.Epoch, Settled: h.Settled, Misplaced: h.Misplaced, PushRate: n.pushRate.perSecond(),
		KID: n.signer.KID, Key: cluster.EncodeKey(n.signer.Public), Time: time.Now()})
}

// healthNow is what the node reports of its part in handoffs, by heartbeats and
// to probes.
func (n *Node) healthNow() cluster.Health {
	settled := n.settled.Load()
	return cluster.Health{Node: n.cfg.NodeID, Boot: n.boot, Epoch: max(settled, n.rings.Current().Epoch), Settled: settled, Misplaced: int(n.misplaced.Load())}
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

// drain has the locators take the node out of the ring, and moves everyone to
// their new owners. It returns when no session is left, or when DRAIN_TIMEOUT is
// over. Until the node is out of the ring it goes on like before.
func (n *Node) drain(ctx context.Context) {
	n.draining.Store(true)
	n.log.Info("draining", "event", "draining", "sessions", n.hub.sessions.Load())
	n.beatSoon()
	n.lookSoon()
	deadline := time.NewTimer(n.cfg.DrainTimeout)
	defer deadline.Stop()
	look := time.NewTicker(moveLook)
	defer look.Stop()
	alone := time.NewTimer(leaveTimeout)
	defer alone.Stop()
	for {
		changed := n.rings.Changed()
		if !n.inRing() && n.hub.sessions.Load() == 0 {
			n.log.Info("drained", "event", "drained")
			return
		}
		select {
		case <-changed:
			n.lookSoon()
		case <-look.C:
		case <-alone.C:
			alone.Reset(leaveTimeout)
			// While NATS is away the ring waits, and so does the node, with its
			// sessions. It leaves alone only if that helps nobody any more.
			away := !n.nats.Up() && n.hub.sessions.Load() == 0
			if n.inRing() && (away || n.sinceLocator() > leaveTimeout && !n.links.From(ticket.FromLocator)) {
				n.log.Warn("no locator is there to take this node out of the ring; leaving all the same", "event", "drain_alone")
				return
			}
		case <-deadline.C:
			n.log.Warn("not drained in time (DIALRING_DRAIN_TIMEOUT); the sessions that are left are closed", "event", "drain_timeout", "sessions", n.hub.sessions.Load())
			return
		case <-ctx.Done():
			return
		}
	}
}

// awaitRelease waits until the ring is without this process, which has reported that nothing
// is left: until then it is called, and who ends is missed.
func (n *Node) awaitRelease(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	for ctx.Err() == nil {
		changed := n.rings.Changed()
		if n.isReleased() || n.inRing() { // it has left, or leaves alone
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	n.sendBeat()
}

// isReleased tells whether the ring does not know this process, neither as a node nor as one that leaves.
func (n *Node) isReleased() bool {
	m, known := n.rings.Current().Process(n.cfg.NodeID)
	return !known || m.Boot != n.boot
}

// releaseTimeout is how long a node that has drained waits for the ring that says so.
const releaseTimeout = time.Second

// leaveTimeout is how long a node waits for a locator that would take it out.
const leaveTimeout = 3 * time.Second

// sinceLocator is how long ago a locator was heard.
func (n *Node) sinceLocator() time.Duration {
	return time.Since(n.start) - time.Duration(n.locatorAt.Load())
}

// lookSoon has all sessions compared with the ring.
func (n *Node) lookSoon() {
	select {
	case n.someLeft <- struct{}{}:
	default:
	}
}

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
				// Others may own its users by now: it asks before it goes on.
				confirm, cancel := context.WithTimeout(ctx, catchUp)
				n.rings.Confirm(confirm)
				cancel()
				n.lookSoon()
			}
			n.sweptAt.Store(int64(time.Since(n.start)))
			sec := n.seconds()
			n.hub.each(func(s *session) { s.sweep(now, sec) })
			n.hub.eachLeaving(func(s *session) { s.sweep(now, sec) })
			n.kicked.sweep(now)
			n.pushRate.sample(now, n.pushed.Load())
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
