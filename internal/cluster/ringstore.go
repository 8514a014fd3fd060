package cluster

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/dialring/dialring/internal/ring"
)

const (
	bucketRing  = "ring"
	keyRing     = "ring"
	subjectRing = "ring" // announces that the key changed
)

// errConflict: another locator published first.
var errConflict = errors.New("the ring was published by another locator meanwhile")

// loadRing reads the published ring and its revision; a ring that was never
// published is the empty document at revision 0.
func (c *Conn) loadRing(ctx context.Context) (ring.Document, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	empty := ring.Document{Cluster: c.cluster}
	kv, err := c.bucket(ctx, bucketRing, nil)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return empty, 0, nil
	}
	if err != nil {
		return empty, 0, err
	}
	e, err := kv.Get(ctx, keyRing)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return empty, 0, nil
	case err != nil:
		c.forget(bucketRing)
		return empty, 0, fmt.Errorf("read the ring: %w", err)
	}
	d, err := ring.Decode(e.Value(), c.cluster)
	return d, e.Revision(), err
}

// swapRing publishes d if the stored revision is still rev, and announces it.
func (c *Conn) swapRing(ctx context.Context, d ring.Document, rev uint64) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	b, err := d.Encode()
	if err != nil {
		return err
	}
	kv, err := c.bucket(ctx, bucketRing, &jetstream.KeyValueConfig{Description: "dialring: the ring of this cluster", History: 16})
	if err != nil {
		return err
	}
	if rev == 0 {
		_, err = kv.Create(ctx, keyRing, b)
	} else {
		_, err = kv.Update(ctx, keyRing, b, rev)
	}
	switch {
	case errors.Is(err, jetstream.ErrKeyExists):
		return errConflict
	case err != nil:
		c.forget(bucketRing)
		return fmt.Errorf("publish the ring: %w", err)
	}
	c.publish(subjectRing, nil)
	return nil
}

// onRingAnnounced calls f, which must not block, whenever a ring was published.
func (c *Conn) onRingAnnounced(ctx context.Context, f func()) error {
	return c.subscribe(ctx, subjectRing, func(*nats.Msg) { f() })
}
