package e2e

import (
	"fmt"
	"testing"
)

// Somebody puts back a ring that the cluster signed long ago while no locator lives, as the
// restore of a backup does: the locator that starts then finds it old by the heartbeats of
// the nodes, says so, and the ring counts on. No node has to be restarted.
func TestRingPutBack(t *testing.T) {
	t.Parallel()
	addr := startNATSConf(t)
	clusterKey, key := newClusterKeys(t)
	startLocator := func() *locatorProc {
		return startNormalLocator(t, "DIALRING_NATS_URL="+natsURLOf("locator", addr), "DIALRING_CLUSTER_KEY="+clusterKey)
	}
	var nodes []*nodeProc
	join := func() {
		id := fmt.Sprintf("ws-%d", len(nodes)+1)
		nodes = append(nodes, startNormalNode(t, id, natsURLOf("node", addr), "DIALRING_INBOX_PARTITIONS=8", "DIALRING_NODE_KEY="+key(id)))
	}
	l := startLocator()
	join()
	l.waitMembers(t, "ws-1")
	operator := natsAs(t, "operator", addr)
	m, err := operator.Request("$JS.API.DIRECT.GET.KV_dialring_ring.$KV.dialring_ring.ring", nil, patience)
	if err != nil {
		t.Fatal(err)
	}
	old, epoch := m.Data, l.ring(t).Epoch
	join()
	join()
	l.waitMembers(t, "ws-1", "ws-2", "ws-3")
	eventually(t, "the handoffs are over, and all go by one ring", func() bool {
		r := l.ring(t)
		for _, n := range nodes {
			if uint64(scrapeValue(t, n.admin, "dialring_ring_epoch")) != r.Epoch {
				return false
			}
		}
		return len(r.Handoffs) == 0
	})
	newest := l.ring(t).Epoch
	l.kill()
	if _, err := operator.Request("$KV.dialring_ring.ring", old, patience); err != nil {
		t.Fatal(err)
	}

	l = startLocator()
	if e := l.event(t, "ring_older"); e["stored"] != float64(epoch) || e["epoch"] != float64(newest) {
		t.Errorf("epoch %d was put back in place of %d, and the log says %v", epoch, newest, e)
	}
	l.waitMembers(t, "ws-1", "ws-2", "ws-3")
	if e := l.ring(t).Epoch; e <= newest {
		t.Errorf("the ring has epoch %d, before it was %d", e, newest)
	}
	for _, n := range nodes {
		eventually(t, n.id+" takes pushes by the ring that counts on", func() bool {
			status, _ := l.tryStore(userOf(t, l, n.id), "1")
			return status == 200 && uint64(scrapeValue(t, n.admin, "dialring_ring_epoch")) == l.ring(t).Epoch
		})
	}
}
