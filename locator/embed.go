package locator

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/natsd"
	"github.com/dialring/dialring/internal/wire"
)

// startNATS starts the embedded NATS. syncer is not nil if nodes are to ask for the
// syncs of its disk.
func (l *Locator) startNATS(ctx context.Context) (s *natsd.Server, syncer cluster.Syncer, err error) {
	c := &l.cfg
	o := natsd.Options{Name: l.id, Listen: c.NATSListen, Dir: c.DataDir, Token: string(c.NATSToken), TLS: l.peerTLS, MaxPending: int64(c.NATSPendingBytes), Log: l.log}
	always := c.DataSync == "always"
	if len(c.NATSRoutes) > 0 {
		// Each server syncs its own disk: a majority has a message on it when it is
		// acknowledged.
		o.Name, o.NameSet, o.SyncAlways = cmp.Or(c.NATSName, wire.HostID(hostName(), 63)), c.NATSName != "", always
		o.Routes = &natsd.Routes{Cluster: cluster.OwnNATS(c.Cluster), Listen: c.NATSRouteListen, Peers: c.NATSRoutes, Secret: string(c.NATSRouteSecret)}
	} else if always {
		o.Name, o.SyncEvery = cluster.SyncedName+l.id, time.Second
	}
	if s, err = natsd.Start(ctx, o); err != nil {
		return nil, nil, err
	}
	if always && o.Routes == nil {
		syncer = s
	}
	return s, syncer, nil
}

// watchNATS ends the locator if its NATS cannot go on.
func (l *Locator) watchNATS(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-l.embedded.Failed():
		return fmt.Errorf("embedded NATS: %w", err)
	}
}
