package cluster

import (
	"context"
	"errors"
	"log/slog"
	"math"

	"github.com/dialring/dialring/internal/trust"
)

// Bus is what the control plane needs of NATS: messages that may be lost, and
// keys with revisions. Conn is the real one; memory, in the tests, stands in for
// it where time is made up. Both pass the same suite. Subjects and buckets are
// of one cluster.
type Bus interface {
	// Up tells whether it is connected now.
	Up() bool
	// OnUp calls f, which must not block, at each connect and reconnect from now on.
	OnUp(f func())

	clusterName() string
	// identity is what this participant signs with, and whom it believes.
	identity() Identity
	logger() *slog.Logger
	// publish sends b to who is subscribed now, if the bus is up.
	publish(subject string, b []byte)
	// subscribe calls f with each message, one after the other, until ctx ends. It
	// survives reconnects. The last part of the subject may be *.
	subscribe(ctx context.Context, subject string, f func(subject string, b []byte)) error
	// get returns a key's value and revision, errNoKey or errNoBucket.
	get(ctx context.Context, bucket, key string) ([]byte, uint64, error)
	// latest does that for who is about to put: it asks the leader of the store, and the
	// revision is the store's own, whatever who wrote the value said that it is. With
	// errNoKey there may be a revision, of a value that was deleted.
	latest(ctx context.Context, bucket, key string) ([]byte, uint64, error)
	// put stores a value if the key's revision is still rev, else errConflict; 0:
	// if there is no value yet; anyRevision: in any case.
	put(ctx context.Context, bucket, key string, b []byte, rev uint64) error
}

// Identity is the key of a locator or of a node (see internal/trust), if its cluster has
// such keys. The zero value signs nothing and believes everybody who may write to NATS.
type Identity struct {
	Locator *trust.Authority
	Node    *trust.NodeKey
}

func (i Identity) anchor() *trust.Anchor {
	if i.Locator != nil {
		return i.Locator.Anchor()
	}
	return i.Node.Anchor()
}

const anyRevision = math.MaxUint64

var (
	errNoKey    = errors.New("the store has no such key")
	errNoBucket = errors.New("the store has no such bucket")
	errConflict = errors.New("another was faster")
)
