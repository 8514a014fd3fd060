package cluster

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/dialring/dialring/internal/ticket"
	"github.com/dialring/dialring/internal/trust"
)

// How published keys live. A key is put again each keyRefresh; the store
// forgets it keyLife after its owner's last put, which is long after the last
// token that it signed. A copy held here is compared with the store after
// keyRefresh; while the store cannot be asked it stays good.
const (
	bucketKeys   = "keys"
	keyRefresh   = time.Minute
	keyLife      = 5 * time.Minute
	unknownFor   = 30 * time.Second // how long a key that is not in the store is not asked for again
	fetchTimeout = 500 * time.Millisecond
	maxUnknown   = 4096
)

// keyRecord is a published key. With cluster keys (see internal/trust) those of locators
// are signed, and those of nodes are known by the ring, which is signed.
type keyRecord struct {
	Owner  string `json:"owner"`
	Public []byte `json:"public"`
}

type knownKey struct {
	public  ed25519.PublicKey // nil: not in the store
	owner   string
	checked time.Time
	asking  bool
}

// Keys publishes this process's public key and finds the others': those of nodes
// in the ring, and all in the store. It implements ticket.Keys. All methods may be called concurrently.
type Keys struct {
	bus    Bus
	rings  *Rings
	log    *slog.Logger
	signer *ticket.Signer
	owner  string
	limit  *rate.Limiter // fetches of unknown keys, which a stranger can cause

	foreign rate.Sometimes // keys that are not believed

	published chan struct{} // closed once the store has the key

	mu    sync.Mutex
	known map[string]*knownKey
	skew  map[string]skew
}

// NewKeys makes the key book of the process that signs with signer.
func NewKeys(bus Bus, rings *Rings, log *slog.Logger, signer *ticket.Signer, owner string) *Keys {
	return &Keys{bus: bus, rings: rings, log: log, signer: signer, owner: owner, limit: rate.NewLimiter(5, 50),
		foreign: rate.Sometimes{Interval: sayAgain}, published: make(chan struct{}), known: map[string]*knownKey{}, skew: map[string]skew{}}
}

// Published is closed once the store has this process's key, so that what it
// signs can be checked by others.
func (k *Keys) Published() <-chan struct{} { return k.published }

// Run publishes the key and keeps it published until ctx ends.
func (k *Keys) Run(ctx context.Context) error {
	up := make(chan struct{}, 1)
	k.bus.OnUp(func() {
		select {
		case up <- struct{}{}:
		default:
		}
	})
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-up: // the store may be a new one
		case <-next.C:
		}
		wait := keyRefresh
		if err := k.publish(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			level := slog.LevelWarn
			if !k.bus.Up() { // that is said already
				level = slog.LevelDebug
			}
			k.log.Log(ctx, level, "the public key cannot be published, trying again", "event", "key_unpublished", "error", err)
			wait = 500 * time.Millisecond
		} else {
			select {
			case <-k.published:
			default:
				close(k.published)
			}
		}
		next.Reset(wait)
	}
}

func (k *Keys) publish(ctx context.Context) error {
	if !k.bus.Up() {
		return errors.New("NATS is not connected")
	}
	b, err := json.Marshal(keyRecord{Owner: k.owner, Public: k.signer.Public})
	if err != nil {
		return err
	}
	b = trust.Attach(b, k.bus.identity().Locator.Sign(trust.LocatorKey, b))
	return k.bus.put(ctx, bucketKeys, k.signer.KID, b, anyRevision)
}

// EncodeKey writes a public key as heartbeats and the ring carry it.
func EncodeKey(pub ed25519.PublicKey) string { return base64.RawStdEncoding.EncodeToString(pub) }

// decodeKey reads one; nil if it cannot be one.
func decodeKey(s string) ed25519.PublicKey {
	if b, err := base64.RawStdEncoding.DecodeString(s); err == nil && len(b) == ed25519.PublicKeySize {
		return b
	}
	return nil
}

// Saw notes from a heartbeat that kid is in use, and how far the clock of its
// owner is ahead of this one's. A new key is fetched before it is needed.
func (k *Keys) Saw(kid string, theirTime time.Time) {
	if !plausibleKID(kid) {
		return
	}
	now := time.Now()
	k.mu.Lock()
	s := k.skew[kid]
	s.saw(theirTime.Sub(processTime()), now)
	k.skew[kid] = s
	e := k.known[kid]
	fetch := e == nil || e.public == nil && !e.asking
	if fetch {
		if e == nil {
			e = &knownKey{}
			k.known[kid] = e
		}
		e.asking = true
	}
	k.mu.Unlock()
	if fetch {
		go k.fetch(kid)
	}
}

// Skew implements ticket.Keys: it is about this machine's clock, which may have been set
// since the heartbeats came.
func (k *Keys) Skew(kid string) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	s, ok := k.skew[kid]
	if !ok {
		return 0
	}
	return s.value() - time.Since(processTime())
}

// Key implements ticket.Keys. For a key not met before it asks the store, for
// at most half a second.
func (k *Keys) Key(kid string) (pub ed25519.PublicKey, owner string) {
	if kid == k.signer.KID {
		return k.signer.Public, k.owner
	}
	if !plausibleKID(kid) {
		return nil, ""
	}
	if r, ok := k.rings.Key(kid); ok {
		return r.Public, ticket.FromNode + r.Node
	}
	now := time.Now()
	k.mu.Lock()
	e := k.known[kid]
	if e != nil {
		old := now.Sub(e.checked) > keyRefresh
		if e.public != nil {
			if old && !e.asking { // answer at once, and look whether it is still there
				e.asking = true
				go k.fetch(kid)
			}
			pub, owner := e.public, e.owner
			k.mu.Unlock()
			return pub, owner
		}
		if !e.checked.IsZero() && now.Sub(e.checked) < unknownFor {
			k.mu.Unlock()
			return nil, ""
		}
	}
	if !k.limit.AllowN(now, 1) {
		k.mu.Unlock()
		return nil, ""
	}
	if e == nil {
		k.dropStaleLocked(now)
		e = &knownKey{}
		k.known[kid] = e
	}
	e.asking = true
	k.mu.Unlock()
	if pub, owner := k.fetch(kid); pub != nil {
		return pub, owner
	}
	if r, ok := k.rings.Key(kid); ok { // a ring may have come meanwhile
		return r.Public, ticket.FromNode + r.Node
	}
	return nil, ""
}

// fetch reads kid from the store into the book.
func (k *Keys) fetch(kid string) (ed25519.PublicKey, string) {
	ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
	defer cancel()
	pub, owner, err := k.read(ctx, kid)
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.known[kid]
	if e == nil {
		return pub, owner
	}
	e.asking = false
	switch {
	case err == nil:
		e.public, e.owner, e.checked = pub, owner, time.Now()
	case errors.Is(err, errNoKey):
		e.public, e.checked = nil, time.Now()
		delete(k.skew, kid)
	case errors.Is(err, errForeignKey) && e.public == nil:
		e.checked = time.Now()
		k.foreign.Do(func() {
			k.log.Warn("a public key in NATS is not believed", "event", "key_refused", "kid", kid, "owner", owner, "error", err)
		})
	case e.public != nil: // the store cannot be asked, or somebody wrote over it: what is known stays good
		e.checked = time.Now()
	}
	return e.public, e.owner
}

// errForeignKey: what is in the store under a key's id is not to be believed.
var errForeignKey = errors.New("it is not to be believed")

func (k *Keys) read(ctx context.Context, kid string) (pub ed25519.PublicKey, owner string, err error) {
	if !k.bus.Up() {
		return nil, "", errors.New("NATS is not connected")
	}
	v, _, err := k.bus.get(ctx, bucketKeys, kid)
	if err != nil {
		return nil, "", err
	}
	v, sig, err := trust.Detach(v)
	var r keyRecord
	if err == nil {
		err = json.Unmarshal(v, &r)
	}
	switch {
	case err != nil:
		return nil, "", fmt.Errorf("%w: %w", errForeignKey, err)
	case len(r.Public) != ed25519.PublicKeySize || ticket.KID(r.Public) != kid:
		return nil, r.Owner, fmt.Errorf("%w: it is another key than its id says", errForeignKey)
	}
	if a := k.bus.identity().anchor(); a == nil {
		return r.Public, r.Owner, nil
	} else if !strings.HasPrefix(r.Owner, ticket.FromLocator) { // it is in the ring, or it is none of ours
		return nil, r.Owner, fmt.Errorf("%w: the keys of nodes are those in the ring", errForeignKey)
	} else if err := a.Check(trust.LocatorKey, v, sig); err != nil {
		return nil, r.Owner, fmt.Errorf("%w: %w", errForeignKey, err)
	}
	return r.Public, r.Owner, nil
}

// dropStaleLocked keeps strangers' made-up keys from filling the book.
func (k *Keys) dropStaleLocked(now time.Time) {
	if len(k.known) < maxUnknown {
		return
	}
	for id, e := range k.known {
		if e.public == nil && !e.asking && now.Sub(e.checked) > unknownFor {
			delete(k.known, id)
		}
	}
}

// plausibleKID tells whether kid has the form of the ids that signers make.
func plausibleKID(kid string) bool {
	if len(kid) != 16 {
		return false
	}
	for i := range len(kid) {
		if c := kid[i]; !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}
