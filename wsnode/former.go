package wsnode

import (
	"context"

	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/ring"
)

// formerBeats listens to the nodes from which users are moving here: it knows
// their keys, and how far their clocks are off, before their clients dial with
// the tickets that they signed. Listening to all nodes would cost a large
// cluster the square of its size.
type formerBeats struct {
	n    *Node
	stop map[string]context.CancelFunc
}

// follow listens to the pending nodes of a ring's handoffs from which users come
// here, and to no others: when a node joins, all others are pending, and they
// hand over to the new one only.
func (f *formerBeats) follow(ctx context.Context, cur *ring.Ring) {
	want := map[string]bool{}
	weight := func(id string) int {
		n, _ := cur.Find(id)
		return n.Weight
	}
	self := f.n.cfg.NodeID
	for _, h := range cur.Handoffs {
		gained := weight(self) > h.Members[self]
		for _, id := range h.Pending {
			if id != self && (gained || weight(id) < h.Members[id]) {
				want[id] = true
			}
		}
	}
	for id, stop := range f.stop {
		if !want[id] {
			stop()
			delete(f.stop, id)
		}
	}
	for id := range want {
		if f.stop[id] != nil {
			continue
		}
		sub, stop := context.WithCancel(ctx)
		err := cluster.OnBeatOf(sub, f.n.nats, f.n.cfg.dev, id, func(b cluster.NodeBeat) {
			if k, ok := f.n.rings.Key(b.KID); ok && k.Node == b.ID { // of its own clock, not of another's
				f.n.keys.Saw(b.KID, b.Time)
			}
		})
		if err != nil { // its key is fetched when it is needed
			f.n.log.Warn("the heartbeats of a node cannot be heard", "event", "nats_error", "former", id, "error", err)
			stop()
			continue
		}
		f.stop[id] = stop
	}
}
