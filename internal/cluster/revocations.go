package cluster

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// A revocation says from when on tokens of a user must have been issued to be good. All
// of them are in a KV bucket and in the memory of each locator, which hears of a new one
// at once, and reads all again after each connect and every ten seconds: an
// announcement may be missed.
const (
	bucketRevoked  = "revoked"
	subjectRevoked = "revoked"
	// RevokedFor is how long a revocation is kept: user tokens must not live longer.
	RevokedFor  = 30 * 24 * time.Hour
	rereadEvery = 10 * time.Second
	rereadSoon  = 500 * time.Millisecond // after a failure
)

// Revocations are the revocations of a cluster. Run keeps them. All methods may be called
// concurrently.
type Revocations struct {
	conn *Conn
	log  *slog.Logger

	known chan struct{} // closed when they were read

	mu sync.Mutex
	at map[string]time.Time
}

// NewRevocations makes an empty list.
func NewRevocations(c *Conn, log *slog.Logger) *Revocations {
	return &Revocations{conn: c, log: log, known: make(chan struct{}), at: map[string]time.Time{}}
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
	if err := r.conn.put(ctx, bucketRevoked, key, []byte(ms), anyRevision); err != nil {
		return err
	}
	r.note(key, ms)
	r.conn.publish(subjectRevoked, []byte(key+" "+ms))
	return nil
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
		var key, ms string
		if _, err := fmt.Sscan(string(b), &key, &ms); err == nil {
			r.note(key, ms)
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

// read takes all that are stored, and forgets those whose time is over.
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
	for {
		select {
		case e, open := <-w.Updates():
			switch {
			case !open:
				return errors.New("the reading of revocations was interrupted")
			case e == nil: // these were all
				return nil
			}
			r.note(e.Key(), string(e.Value()))
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
