package cluster

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/dialring/dialring/internal/ticket"
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

type keyRecord struct {
	Owner  string `json:"owner"`
	Public []byte `json:"public"`
}

type knownKey struct {
	public  ed25519.PublicKey // nil: not in the store
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

	published chan struct{} // closed once the store has the key

	mu    sync.Mutex
	known map[string]*knownKey
	skew  map[string]time.Duration
}

// NewKeys makes the key book of the process that signs with signer.
func NewKeys(bus Bus, rings *Rings, log *slog.Logger, signer *ticket.Signer, owner string) *Keys {
	return &Keys{bus: bus, rings: rings, log: log, signer: signer, owner: owner, limit: rate.NewLimiter(5, 50),
		published: make(chan struct{}), known: map[string]*knownKey{}, skew: map[string]time.Duration{}}
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
	k.mu.Lock()
	k.skew[kid] = time.Until(theirTime)
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

// Skew implements ticket.Keys.
func (k *Keys) Skew(kid string) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.skew[kid]
}

// Key implements ticket.Keys. For a key not met before it asks the store, for
// at most half a second.
func (k *Keys) Key(kid string) ed25519.PublicKey {
	if kid == k.signer.KID {
		return k.signer.Public
	}
	if !plausibleKID(kid) {
		return nil
	}
	if pub := decodeKey(k.rings.Current().Key(kid)); pub != nil {
		return pub
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
			pub := e.public
			k.mu.Unlock()
			return pub
		}
		if !e.checked.IsZero() && now.Sub(e.checked) < unknownFor {
			k.mu.Unlock()
			return nil
		}
	}
	if !k.limit.AllowN(now, 1) {
		k.mu.Unlock()
		return nil
	}
	if e == nil {
		k.dropStaleLocked(now)
		e = &knownKey{}
		k.known[kid] = e
	}
	e.asking = true
	k.mu.Unlock()
	if pub := k.fetch(kid); pub != nil {
		return pub
	}
	return decodeKey(k.rings.Current().Key(kid)) // a ring may have come meanwhile
}

// fetch reads kid from the store into the book.
func (k *Keys) fetch(kid string) ed25519.PublicKey {
	ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
	defer cancel()
	pub, err := k.read(ctx, kid)
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.known[kid]
	if e == nil {
		return pub
	}
	e.asking = false
	switch {
	case err == nil:
		e.public, e.checked = pub, time.Now()
	case errors.Is(err, errNoKey):
		e.public, e.checked = nil, time.Now()
		delete(k.skew, kid)
	case e.public != nil: // the store cannot be asked: what is known stays good
		e.checked = time.Now()
	}
	return e.public
}

func (k *Keys) read(ctx context.Context, kid string) (ed25519.PublicKey, error) {
	if !k.bus.Up() {
		return nil, errors.New("NATS is not connected")
	}
	v, _, err := k.bus.get(ctx, bucketKeys, kid)
	if err != nil {
		return nil, err
	}
	var r keyRecord
	if err := json.Unmarshal(v, &r); err != nil {
		return nil, err
	}
	if len(r.Public) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("key %s has %d bytes", kid, len(r.Public))
	}
	return r.Public, nil
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
		if c := kid[i]; !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return false
		}
	}
	return true
}
