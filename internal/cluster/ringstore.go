package cluster

import (
	"context"
	"errors"
	"fmt"

	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/trust"
)

const (
	bucketRing  = "ring"
	keyRing     = "ring"
	subjectRing = "ring" // announces that the key changed
)

// refusedRing is a stored ring that nobody may go by: it breaks the rules of a document,
// or no cluster key signed it. Locators put the ring that they go by in its place.
type refusedRing struct {
	revision uint64
	err      error
}

func (e *refusedRing) Error() string { return "the stored ring is refused: " + e.err.Error() }
func (e *refusedRing) Unwrap() error { return e.err }

// loadRing reads the published ring and its revision; a ring that was never
// published is the empty document at revision 0.
func loadRing(ctx context.Context, bus Bus) (ring.Document, uint64, error) {
	b, rev, err := bus.get(ctx, bucketRing, keyRing)
	d, rev, _, err := readRing(bus, b, rev, err)
	return d, rev, err
}

// latestRing does that for who is about to publish the next one, and tells whether the
// ring has a signature.
func latestRing(ctx context.Context, bus Bus) (d ring.Document, rev uint64, isSigned bool, err error) {
	b, rev, err := bus.latest(ctx, bucketRing, keyRing)
	return readRing(bus, b, rev, err)
}

func readRing(bus Bus, b []byte, rev uint64, err error) (d ring.Document, _ uint64, isSigned bool, _ error) {
	empty := ring.Document{Cluster: bus.clusterName()}
	switch {
	case errors.Is(err, errNoKey), errors.Is(err, errNoBucket):
		return empty, rev, false, nil
	case err != nil:
		return empty, 0, false, fmt.Errorf("read the ring: %w", err)
	}
	d, isSigned, err = decodeRing(b, bus)
	if err != nil {
		return empty, rev, isSigned, &refusedRing{rev, err}
	}
	return d, rev, isSigned, nil
}

// decodeRing reads a ring as it travels and is stored, and checks it.
func decodeRing(b []byte, bus Bus) (d ring.Document, isSigned bool, err error) {
	b, s, err := trust.Detach(b)
	if err == nil {
		err = bus.identity().anchor().Check(trust.Ring, b, s)
	}
	if err != nil {
		return d, s != nil, err
	}
	d, err = ring.Decode(b, bus.clusterName())
	return d, s != nil, err
}

// encodeRing writes a ring as it travels and is stored.
func encodeRing(d ring.Document, bus Bus) ([]byte, error) {
	b, err := d.Encode()
	if err != nil {
		return nil, err
	}
	return trust.Attach(b, bus.identity().Locator.Sign(trust.Ring, b)), nil
}

// swapRing publishes d if the stored revision is still rev, and announces it.
func swapRing(ctx context.Context, bus Bus, d ring.Document, rev uint64) error {
	b, err := encodeRing(d, bus)
	if err != nil {
		return err
	}
	if err := bus.put(ctx, bucketRing, keyRing, b, rev); err != nil {
		return fmt.Errorf("publish the ring: %w", err)
	}
	bus.publish(subjectRing, nil)
	return nil
}
