package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"

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
	AcceptRate int       `json:"accept_rate"`
	Epoch      uint64    `json:"epoch"` // of the ring that it goes by
	KID        string    `json:"kid"`
	Time       time.Time `json:"time"` // on the node's clock: tells its skew, never its age
}

// LocatorBeat is a locator's heartbeat.
type LocatorBeat struct {
	ID    string    `json:"id"`
	Epoch uint64    `json:"epoch"`
	KID   string    `json:"kid"`
	Time  time.Time `json:"time"`
}

const (
	subjectNode    = "beat.node."
	subjectLocator = "beat.locator."
)

// BeatNode publishes a node's heartbeat.
func (c *Conn) BeatNode(b NodeBeat) { c.beat(subjectNode+b.ID, b) }

// BeatLocator publishes a locator's heartbeat.
func (c *Conn) BeatLocator(b LocatorBeat) { c.beat(subjectLocator+b.ID, b) }

func (c *Conn) beat(subject string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain fields always have an encoding
	}
	c.publish(subject, b)
}

// OnNodeBeat calls f with each valid heartbeat of a node until ctx ends.
func (c *Conn) OnNodeBeat(ctx context.Context, dev bool, f func(NodeBeat)) error {
	return onBeat(ctx, c, subjectNode, func(b NodeBeat) (string, error) { return b.ID, b.check(dev) }, f)
}

// OnLocatorBeat calls f with each valid heartbeat of a locator until ctx ends.
func (c *Conn) OnLocatorBeat(ctx context.Context, f func(LocatorBeat)) error {
	return onBeat(ctx, c, subjectLocator, func(b LocatorBeat) (string, error) { return b.ID, wire.CheckNode(b.ID) }, f)
}

func onBeat[B any](ctx context.Context, c *Conn, prefix string, check func(B) (string, error), f func(B)) error {
	return c.subscribe(ctx, prefix+"*", func(m *nats.Msg) {
		var b B
		err := json.Unmarshal(m.Data, &b)
		var id string
		if err == nil {
			id, err = check(b)
		}
		// The subject is what NATS lets a participant publish on.
		if err == nil && m.Subject != c.subject(prefix+id) {
			err = fmt.Errorf("it names %q", id)
		}
		if err != nil {
			c.log.Warn("a heartbeat is refused", "event", "beat_refused", "subject", m.Subject, "error", err)
			return
		}
		f(b)
	})
}

// maxEpoch is more than a cluster ever gets to; a heartbeat beyond it would use
// up the numbers.
const maxEpoch = 1 << 48

// check reports what of a heartbeat breaks the rules.
func (b *NodeBeat) check(dev bool) error {
	if err := wire.CheckNode(b.ID); err != nil {
		return err
	}
	if b.Weight < 1 || b.Weight > ring.MaxWeight {
		return fmt.Errorf("weight %d is not within 1 to %d", b.Weight, ring.MaxWeight)
	}
	if b.Epoch > maxEpoch {
		return fmt.Errorf("epoch %d cannot be", b.Epoch)
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
