package cluster

import (
	"context"
	"errors"
	"fmt"

	"github.com/dialring/dialring/internal/ring"
)

const (
	bucketRing  = "ring"
	keyRing     = "ring"
	subjectRing = "ring" // announces that the key changed
)

// loadRing reads the published ring and its revision; a ring that was never
// published is the empty document at revision 0.
func loadRing(ctx context.Context, bus Bus) (ring.Document, uint64, error) {
	empty := ring.Document{Cluster: bus.clusterName()}
	b, rev, err := bus.get(ctx, bucketRing, keyRing)
	switch {
	case errors.Is(err, errNoKey), errors.Is(err, errNoBucket):
		return empty, 0, nil
	case err != nil:
		return empty, 0, fmt.Errorf("read the ring: %w", err)
	}
	d, err := ring.Decode(b, bus.clusterName())
	return d, rev, err
}

// swapRing publishes d if the stored revision is still rev, and announces it.
func swapRing(ctx context.Context, bus Bus, d ring.Document, rev uint64) error {
	b, err := d.Encode()
	if err != nil {
		return err
	}
	if err := bus.put(ctx, bucketRing, keyRing, b, rev); err != nil {
		return fmt.Errorf("publish the ring: %w", err)
	}
	bus.publish(subjectRing, nil)
	return nil
}
