package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/time/rate"

	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/ticket"
	"github.com/dialring/dialring/internal/trust"
	"github.com/dialring/dialring/internal/wire"
)

// BeatInterval is the time between two heartbeats of a participant.
const BeatInterval = time.Second

// NodeBeat is a node's heartbeat.
type NodeBeat struct {
	ID         string    `json:"id"`
	Boot       string    `json:"boot"` // new at every start
	URL        string    `json:"url"`
	PeerURL    string    `json:"peer_url"`
	Weight     int       `json:"weight"`
	State      string    `json:"state"` // joining, active, draining
	Sessions   int       `json:"sessions"`
	AcceptRate int       `json:"accept_rate"`                // handshakes a second that others may send to it
	GraceMS    int64     `json:"restart_grace_ms,omitempty"` // how long it keeps its place after it died
	Epoch      uint64    `json:"epoch"`                      // of the ring that it goes by
	Settled    uint64    `json:"settled"`                    // newest epoch by which none of its sessions is misplaced
	Misplaced  int       `json:"misplaced"`                  // sessions that are on their way
	PushRate   float64   `json:"push_rate"`                  // pushes a second to its users, over the last seconds
	KID        string    `json:"kid"`
	Key        string    `json:"key"`             // its public key, in base64
	Time       time.Time `json:"time"`            // on the node's clock: tells its skew, never its age
	Count      uint64    `json:"count,omitempty"` // of this process's heartbeats, where they are signed
}

// LocatorBeat is a locator's heartbeat.
type LocatorBeat struct {
	ID    string    `json:"id"`
	Epoch uint64    `json:"epoch"`
	KID   string    `json:"kid"`
	Time  time.Time `json:"time"`
	// Suspects are the boot ids of processes whose heartbeats it hears and that it
	// cannot reach.
	Suspects []string `json:"suspects,omitempty"`
	Count    uint64   `json:"count,omitempty"` // as a node's
}

// beats counts the signed heartbeats of this process.
var beats atomic.Uint64

const (
	subjectNode    = "beat.node."
	subjectLocator = "beat.locator."
)

// BeatNode publishes a node's heartbeat.
func BeatNode(bus Bus, b NodeBeat) {
	if bus.identity().Node != nil {
		b.Count = beats.Add(1)
	}
	beat(bus, subjectNode+b.ID, b, func(m []byte) *trust.Signature { return bus.identity().Node.Sign(trust.NodeBeat, m) })
}

// BeatLocator publishes a locator's heartbeat.
func BeatLocator(bus Bus, b LocatorBeat) {
	if bus.identity().Locator != nil {
		b.Count = beats.Add(1)
	}
	beat(bus, subjectLocator+b.ID, b, func(m []byte) *trust.Signature { return bus.identity().Locator.Sign(trust.LocatorBeat, m) })
}

func beat(bus Bus, subject string, v any, sign func([]byte) *trust.Signature) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain fields always have an encoding
	}
	bus.publish(subject, trust.Attach(b, sign(b)))
}

// OnNodeBeat calls f with each valid heartbeat of a node until ctx ends.
func OnNodeBeat(ctx context.Context, bus Bus, dev bool, f func(NodeBeat)) error {
	return onBeatOf(ctx, bus, subjectNode, "*", nodeRules(bus, dev), f)
}

// OnBeatOf calls f with each valid heartbeat of one node until ctx ends.
func OnBeatOf(ctx context.Context, bus Bus, dev bool, node string, f func(NodeBeat)) error {
	return onBeatOf(ctx, bus, subjectNode, node, nodeRules(bus, dev), f)
}

// OnLocatorBeat calls f with each valid heartbeat of a locator until ctx ends.
func OnLocatorBeat(ctx context.Context, bus Bus, f func(LocatorBeat)) error {
	a := bus.identity().anchor()
	return onBeatOf(ctx, bus, subjectLocator, "*", rules[LocatorBeat]{
		id:    func(b LocatorBeat) (id, process string, count uint64) { return b.ID, b.ID, b.Count },
		check: func(b LocatorBeat) error { return b.check() },
		trust: func(_ string, m []byte, s *trust.Signature) error { return a.Check(trust.LocatorBeat, m, s) },
		fresh: newFreshness(a),
	}, f)
}

func nodeRules(bus Bus, dev bool) rules[NodeBeat] {
	a := bus.identity().anchor()
	return rules[NodeBeat]{
		id:    func(b NodeBeat) (id, process string, count uint64) { return b.ID, b.Boot, b.Count },
		check: func(b NodeBeat) error { return b.check(dev) },
		trust: func(id string, m []byte, s *trust.Signature) error { return a.CheckNode(trust.NodeBeat, id, m, s) },
		fresh: newFreshness(a),
	}
}

// rules are those that a heartbeat must keep to count.
type rules[B any] struct {
	id    func(B) (id, process string, count uint64)
	check func(B) error
	trust func(id string, m []byte, s *trust.Signature) error
	fresh *freshness
}

// freshness refuses heartbeats that were recorded and are sent again: each process counts
// its own. Of an id the last processes are remembered, those that have ended too. It is used
// by one subscription, one beat after the other. Without signatures it would prove nothing,
// and is nil. (Who starts to listen later cannot know which of two processes is the living
// one: that is what probes are for.)
type freshness struct{ last map[string][]seenBeat }

type seenBeat struct {
	process string
	count   uint64
}

// maxSeenIDs and maxSeenProcesses, of each id, bound the memory of a freshness.
const (
	maxSeenIDs       = 4 * ring.MaxNodes
	maxSeenProcesses = 16
)

func newFreshness(a *trust.Anchor) *freshness {
	if a == nil {
		return nil
	}
	return &freshness{map[string][]seenBeat{}}
}

func (f *freshness) check(id, process string, count uint64) error {
	if f == nil {
		return nil
	}
	seen := f.last[id]
	for i := range seen {
		if seen[i].process == process {
			if count <= seen[i].count {
				return errors.New("it is not newer than the one before it")
			}
			seen[i].count = count
			return nil
		}
	}
	if seen == nil && len(f.last) >= maxSeenIDs {
		clear(f.last)
	}
	if len(seen) == maxSeenProcesses {
		seen = append(seen[:0], seen[1:]...)
	}
	f.last[id] = append(seen, seenBeat{process, count})
	return nil
}

func onBeatOf[B any](ctx context.Context, bus Bus, prefix, who string, r rules[B], f func(B)) error {
	refused := rate.Sometimes{Interval: sayAgain} // they come each second
	return bus.subscribe(ctx, prefix+who, func(subject string, data []byte) {
		var b B
		data, sig, err := trust.Detach(data)
		if err == nil {
			err = json.Unmarshal(data, &b)
		}
		id, process, count := r.id(b)
		if err == nil {
			err = r.check(b)
		}
		// The subject is what NATS lets a participant publish on.
		if err == nil && subject != prefix+id {
			err = fmt.Errorf("it names %q", id)
		}
		if err == nil {
			err = r.trust(id, data, sig)
		}
		if err == nil {
			err = r.fresh.check(id, process, count)
		}
		if err != nil {
			refused.Do(func() {
				bus.logger().Warn("a heartbeat is refused", "event", "beat_refused", "subject", subject, "error", err)
			})
			return
		}
		f(b)
	})
}

// check reports what of a locator's heartbeat breaks the rules.
func (b *LocatorBeat) check() error {
	if len(b.Suspects) > ring.MaxNodes {
		return fmt.Errorf("%d suspects", len(b.Suspects))
	}
	return wire.CheckNode(b.ID)
}

const (
	maxAcceptRate = 1_000_000
	maxGrace      = time.Hour
	maxPushRate   = 1e9
)

// check reports what of a heartbeat breaks the rules.
func (b *NodeBeat) check(dev bool) error {
	if err := wire.CheckNode(b.ID); err != nil {
		return err
	}
	if b.Weight < 1 || b.Weight > ring.MaxWeight {
		return fmt.Errorf("weight %d is not within 1 to %d", b.Weight, ring.MaxWeight)
	}
	if b.Epoch > ring.MaxEpoch || b.Settled > b.Epoch {
		return fmt.Errorf("epoch %d, settled %d cannot be", b.Epoch, b.Settled)
	}
	if b.AcceptRate < 0 || b.AcceptRate > maxAcceptRate || b.GraceMS < 0 || b.GraceMS > maxGrace.Milliseconds() {
		return fmt.Errorf("accept rate %d or grace %d ms is out of range", b.AcceptRate, b.GraceMS)
	}
	if b.PushRate < 0 || b.PushRate > maxPushRate {
		return fmt.Errorf("a push rate of %g is out of range", b.PushRate)
	}
	if pub := decodeKey(b.Key); b.Key != "" && (pub == nil || ticket.KID(pub) != b.KID) {
		return fmt.Errorf("the key %q cannot be one", b.KID)
	}
	if b.Boot == "" || len(b.Boot) > 64 {
		return fmt.Errorf("boot id of %d bytes", len(b.Boot))
	}
	if err := CheckAddress(b.URL, dev, "ws", "wss"); err != nil {
		return err
	}
	return CheckAddress(b.PeerURL, dev, "http", "https")
}

// CheckAddress reports why a URL cannot be advertised: it has one of the
// schemes, a host, no user, and outside development mode the host is not this
// machine's own loopback, link-local or unspecified address.
func CheckAddress(raw string, dev bool, schemes ...string) error {
	u, err := url.Parse(raw)
	if err != nil || strings.Contains(raw, "@") { // it is not shown: it may have a password in it
		return errors.New("the address must be scheme://host:port/path, without a user or a password")
	}
	ok := false
	for _, s := range schemes {
		ok = ok || u.Scheme == s
	}
	switch {
	case len(raw) > ring.MaxURL:
		return fmt.Errorf("address of %d bytes", len(raw))
	case !ok:
		return fmt.Errorf("address %q must start with %s://", raw, strings.Join(schemes, ":// or "))
	case u.Hostname() == "" || u.User != nil || u.Fragment != "":
		return fmt.Errorf("address %q must be scheme://host:port/path", raw)
	}
	for _, c := range u.Hostname() {
		if c >= utf8.RuneSelf { // resolvers turn wide digits and dots into plain ones
			return fmt.Errorf("the host of address %q must be ASCII (write international names in their xn-- form)", raw)
		}
	}
	if !dev && isLocal(u.Hostname()) {
		return fmt.Errorf("address %q is of this machine only (or link-local); other machines cannot reach it", raw)
	}
	return nil
}
