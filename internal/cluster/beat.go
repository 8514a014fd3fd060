package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/dialring/dialring/internal/ring"
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
	KID        string    `json:"kid"`
	Key        string    `json:"key"`  // its public key, in base64
	Time       time.Time `json:"time"` // on the node's clock: tells its skew, never its age
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
}

const (
	subjectNode    = "beat.node."
	subjectLocator = "beat.locator."
)

// BeatNode publishes a node's heartbeat.
func BeatNode(bus Bus, b NodeBeat) { beat(bus, subjectNode+b.ID, b) }

// BeatLocator publishes a locator's heartbeat.
func BeatLocator(bus Bus, b LocatorBeat) { beat(bus, subjectLocator+b.ID, b) }

func beat(bus Bus, subject string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain fields always have an encoding
	}
	bus.publish(subject, b)
}

// OnNodeBeat calls f with each valid heartbeat of a node until ctx ends.
func OnNodeBeat(ctx context.Context, bus Bus, dev bool, f func(NodeBeat)) error {
	return onBeat(ctx, bus, subjectNode, func(b NodeBeat) (string, error) { return b.ID, b.check(dev) }, f)
}

// OnBeatOf calls f with each valid heartbeat of one node until ctx ends.
func OnBeatOf(ctx context.Context, bus Bus, dev bool, node string, f func(NodeBeat)) error {
	return onBeatOf(ctx, bus, subjectNode, node, func(b NodeBeat) (string, error) { return b.ID, b.check(dev) }, f)
}

// OnLocatorBeat calls f with each valid heartbeat of a locator until ctx ends.
func OnLocatorBeat(ctx context.Context, bus Bus, f func(LocatorBeat)) error {
	return onBeat(ctx, bus, subjectLocator, func(b LocatorBeat) (string, error) { return b.ID, b.check() }, f)
}

func onBeat[B any](ctx context.Context, bus Bus, prefix string, check func(B) (string, error), f func(B)) error {
	return onBeatOf(ctx, bus, prefix, "*", check, f)
}

func onBeatOf[B any](ctx context.Context, bus Bus, prefix, who string, check func(B) (string, error), f func(B)) error {
	return bus.subscribe(ctx, prefix+who, func(subject string, data []byte) {
		var b B
		err := json.Unmarshal(data, &b)
		var id string
		if err == nil {
			id, err = check(b)
		}
		// The subject is what NATS lets a participant publish on.
		if err == nil && subject != prefix+id {
			err = fmt.Errorf("it names %q", id)
		}
		if err != nil {
			bus.logger().Warn("a heartbeat is refused", "event", "beat_refused", "subject", subject, "error", err)
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

// maxEpoch is more than a cluster ever gets to; a heartbeat beyond it would use
// up the numbers.
const maxEpoch = 1 << 48

const (
	maxAcceptRate = 1_000_000
	maxGrace      = time.Hour
)

// check reports what of a heartbeat breaks the rules.
func (b *NodeBeat) check(dev bool) error {
	if err := wire.CheckNode(b.ID); err != nil {
		return err
	}
	if b.Weight < 1 || b.Weight > ring.MaxWeight {
		return fmt.Errorf("weight %d is not within 1 to %d", b.Weight, ring.MaxWeight)
	}
	if b.Epoch > maxEpoch || b.Settled > b.Epoch {
		return fmt.Errorf("epoch %d, settled %d cannot be", b.Epoch, b.Settled)
	}
	if b.AcceptRate < 0 || b.AcceptRate > maxAcceptRate || b.GraceMS < 0 || b.GraceMS > maxGrace.Milliseconds() {
		return fmt.Errorf("accept rate %d or grace %d ms is out of range", b.AcceptRate, b.GraceMS)
	}
	if b.Key != "" && (decodeKey(b.Key) == nil || !plausibleKID(b.KID)) {
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
	if err != nil {
		return fmt.Errorf("address %q: %w", raw, err)
	}
	ok := false
	for _, s := range schemes {
		ok = ok || u.Scheme == s
	}
	switch {
	case len(raw) > 512:
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
