package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/dialring/dialring/internal/ring"
)

// ringsKept is how many published rings the store keeps, the newest included: the most
// that it can. A bucket that was made by an earlier version keeps 16.
const ringsKept = 64

// Published is a ring as the store has it.
type Published struct {
	ring.Document
	Revision uint64
	Time     time.Time // when the store took it, by the server's clock
}

// PublishedRings reads the published rings that the store still has and whose revision
// is newer than after, oldest first. What is refused is left out.
func (c *Conn) PublishedRings(ctx context.Context, after uint64) ([]Published, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*requestTimeout) // a large ring, many times
	defer cancel()
	kv, err := c.bucket(ctx, bucketRing, false)
	switch {
	case errors.Is(err, errNoBucket):
		return nil, nil
	case err != nil:
		return nil, err
	}
	w, err := kv.Watch(ctx, keyRing, jetstream.IncludeHistory(), jetstream.IgnoreDeletes(), jetstream.ResumeFromRevision(after+1))
	if err != nil {
		c.forget(bucketRing)
		return nil, fmt.Errorf("read the rings of before: %w", err)
	}
	defer func() { _ = w.Stop() }()
	var out []Published
	for {
		select {
		case e, open := <-w.Updates():
			switch {
			case !open:
				return nil, errors.New("the reading of the rings of before was interrupted")
			case e == nil: // these were all
				return out, nil
			}
			if d, _, err := decodeRing(e.Value(), c); err == nil {
				out = append(out, Published{d, e.Revision(), e.Created()})
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
