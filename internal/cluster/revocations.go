package cluster

import (
	"context"
	"encoding/base64"
	"errors"
	"log/slog"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/time/rate"

	"github.com/dialring/dialring/internal/trust"
)

// A revocation says from when on tokens of a user must have been issued to be good. All
// of them are in a KV bucket and in the memory of each locator, which hears of a new one
// at once, and reads all again after each connect and every ten seconds: an
// announcement may be missed. What it knows, and the store has no longer, or has an older one
// of (a restored backup, or somebody with access to NATS), it puts back: revocations are gone
// only when no locator lives that knows of them.
const (
	bucketRevoked  = "revoked"
	subjectRevoked = "revoked"
	// RevokedFor is how long a revocation is kept: user tokens must not live longer.
	RevokedFor  = 30 * 24 * time.Hour
	rereadEvery = 10 * time.Second
	rereadSoon  = 500 * time.Millisecond // after a failure
	// restoreMost is how many are put back after each reading, and restoreBefore how long before
	// their end they are no more.
	restoreMost   = 1000
	restoreBefore = time.Hour
)

// Revocations are the revocations of a cluster. Run keeps them. All methods may be called
// concurrently.
type Revocations struct {
	conn *Conn
	log  *slog.Logger

	known   chan struct{}  // closed when they were read
	foreign rate.Sometimes // of somebody who is no locator

	mu sync.Mutex
	at map[string]time.Time
}

// NewRevocations makes an empty list.
func NewRevocations(c *Conn, log *slog.Logger) *Revocations {
	return &Revocations{conn: c, log: log, known: make(chan struct{}), foreign: rate.Sometimes{Interval: sayAgain}, at: map[string]time.Time{}}
}

// Known is closed once the list was read.
func (r *Revocations) Known() <-chan struct{} { return r.known }

// Since tells from when on tokens of a user must have been issued; zero: none is revoked.
func (r *Revocations) Since(user string) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.at[user]
}

// Revoke refuses tokens of a user that were issued before now, here at once and at other
// locators as soon as they hear it. It is kept when Revoke returns nil.
func (r *Revocations) Revoke(ctx context.Context, user string, now time.Time) error {
	if !r.conn.Up() {
		return errors.New("NATS is away")
	}
	key, ms := revokedKey(user), strconv.FormatInt(now.UnixMilli(), 10)
	sig, err := r.put(ctx, key, ms, anyRevision)
	if err != nil {
		return err
	}
	r.note(key, ms)
	r.conn.publish(subjectRevoked, trust.Attach(revoked(key, ms), sig))
	return nil
}

// put stores a revocation, signed.
func (r *Revocations) put(ctx context.Context, key, ms string, rev uint64) (*trust.Signature, error) {
	sig := r.conn.identity().Locator.Sign(trust.Revocation, revoked(key, ms))
	return sig, r.conn.put(ctx, bucketRevoked, key, trust.Attach([]byte(ms), sig), rev)
}

// restore puts back what is known and was not in the store, or not as new, when it was read.
// Of two locators that do so one is first, and the other one is told that there is a conflict.
// Whether that succeeds is no matter of the reading: it is tried again after the next one.
func (r *Revocations) restore(ctx context.Context, stored map[string]storedRevocation) {
	r.mu.Lock()
	known := maps.Clone(r.at) // locates wait for the lock
	r.mu.Unlock()
	restored, tried := 0, 0
	for user, t := range known {
		key, ms := revokedKey(user), t.UnixMilli()
		s := stored[key]
		if s.ms >= ms || time.Since(t) >= RevokedFor-restoreBefore {
			continue
		}
		if tried++; tried > restoreMost {
			break
		}
		switch _, err := r.put(ctx, key, strconv.FormatInt(ms, 10), s.rev); {
		case err == nil:
			restored++
		case !errors.Is(err, errConflict):
			r.log.Warn("revocations that are gone from the store cannot be put back now", "event", "revocations_unrestored", "error", err)
			return
		}
	}
	if restored > 0 {
		r.log.Warn("revocations were gone from the store, or older there: they were put back; was a backup restored, or who else writes to NATS?", "event", "revocations_restored", "count", restored)
	}
}

// storedRevocation is one as the store has it.
type storedRevocation struct {
	rev uint64
	ms  int64 // 0: it is none
}

// storedAt is the time of one in the store, for restore. One that is not believed here may be of
// a locator whose key this one does not know yet: if it is newer it stays. What can be no
// revocation does not.
func storedAt(rev uint64, ms string, now time.Time) storedRevocation {
	at, err := strconv.ParseInt(ms, 10, 64)
	if err != nil || at > now.Add(time.Minute).UnixMilli() {
		at = 0
	}
	return storedRevocation{rev, at}
}

// revoked is a revocation as it is announced, and what is signed of it.
func revoked(key, ms string) []byte { return []byte(key + " " + ms) }

// believe takes a revocation that a locator made.
func (r *Revocations) believe(key, ms string, s *trust.Signature) {
	if err := r.conn.identity().anchor().Check(trust.Revocation, revoked(key, ms), s); err != nil {
		r.foreign.Do(func() {
			r.log.Error("a revocation is not believed", "event", "revocation_bad", "key", key, "error", err)
		})
		return
	}
	r.note(key, ms)
}

func revokedKey(user string) string { return base64.RawURLEncoding.EncodeToString([]byte(user)) }

// note takes a revocation; the newest of a user counts.
func (r *Revocations) note(key, ms string) {
	user, err := base64.RawURLEncoding.DecodeString(key)
	at, err2 := strconv.ParseInt(ms, 10, 64)
	if err != nil || err2 != nil {
		r.log.Error("a revocation cannot be read", "event", "revocation_bad", "key", key)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if t := time.UnixMilli(at); t.After(r.at[string(user)]) {
		r.at[string(user)] = t
	}
}

// Run keeps the list until ctx ends.
func (r *Revocations) Run(ctx context.Context) error {
	err := r.conn.subscribe(ctx, subjectRevoked, func(_ string, b []byte) {
		b, sig, err := trust.Detach(b)
		key, ms, ok := strings.Cut(string(b), " ")
		if err == nil && ok {
			r.believe(key, ms, sig)
		}
	})
	if err != nil {
		return err
	}
	up := make(chan struct{}, 1)
	r.conn.OnUp(func() {
		select {
		case up <- struct{}{}:
		default:
		}
	})
	t := time.NewTimer(rereadEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-up:
		case <-t.C:
		}
		t.Reset(rereadEvery)
		if err := r.read(ctx); err != nil {
			if ctx.Err() == nil && r.conn.Up() {
				r.log.Warn("the revocations cannot be read; going on with those that are known", "event", "revocations_unread", "error", err)
			}
			t.Reset(rereadSoon)
			continue
		}
		select {
		case <-r.known:
		default:
			close(r.known)
		}
	}
}

// read takes all that are stored, forgets those whose time is over, and puts back what is
// missing.
func (r *Revocations) read(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, rereadEvery)
	defer cancel()
	r.mu.Lock()
	for u, t := range r.at {
		if time.Since(t) > RevokedFor {
			delete(r.at, u)
		}
	}
	r.mu.Unlock()
	kv, err := r.conn.bucket(ctx, bucketRevoked, false)
	if errors.Is(err, errNoBucket) {
		r.restore(ctx, nil)
		return nil
	}
	if err != nil {
		return err
	}
	w, err := kv.WatchAll(ctx, jetstream.IgnoreDeletes())
	if err != nil {
		r.conn.forget(bucketRevoked)
		return err
	}
	defer func() { _ = w.Stop() }()
	stored := map[string]storedRevocation{}
	for {
		select {
		case e, open := <-w.Updates():
			switch {
			case !open:
				return errors.New("the reading of revocations was interrupted")
			case e == nil: // these were all
				r.restore(ctx, stored)
				return nil
			}
			b, sig, err := trust.Detach(e.Value())
			if err != nil {
				r.log.Error("a revocation cannot be read", "event", "revocation_bad", "key", e.Key(), "error", err)
				stored[e.Key()] = storedRevocation{rev: e.Revision()}
				continue
			}
			r.believe(e.Key(), string(b), sig)
			stored[e.Key()] = storedAt(e.Revision(), string(b), time.Now())
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
