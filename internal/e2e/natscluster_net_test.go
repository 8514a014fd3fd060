//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// connectedTo is the NATS server to which a process was connected last.
func (p *process) connectedTo(t *testing.T) string {
	t.Helper()
	url := ""
	for line := range strings.Lines(p.text()) {
		var m struct{ Event, URL string }
		if json.Unmarshal([]byte(line), &m) == nil && m.Event == "nats_up" {
			url = m.URL
		}
	}
	return url
}

// One of three locators with embedded NATS is cut off from the two others, not from
// nodes and clients. It locates and pushes by the ring that it has; its NATS takes
// nobody any more, so that the nodes that were connected to it go to the others, and
// stored pushes go on, also through it. When the cut is over it has all that it missed.
func TestNATSClusterIsolated(t *testing.T) {
	heavy(t)
	atATime(t)
	n := newNet(t)
	var hosts []*host
	var routes, urls []string
	for i := range 3 {
		h := n.host(t, fmt.Sprintf("l%d", i))
		hosts, routes, urls = append(hosts, h), append(routes, h.ip+":6222"), append(urls, "nats://"+h.ip+":4222")
	}
	var locs []*locatorProc
	for i, h := range hosts {
		l := &locatorProc{process: h.start(t, h.name, filepath.Join(bin, "locator"), "DIALRING_DEV=insecure", "DIALRING_LOG_FORMAT=json",
			"DIALRING_LISTEN=0.0.0.0:8080", "DIALRING_ADMIN_LISTEN=127.0.0.1:8081", "DIALRING_NATS_LISTEN=0.0.0.0:4222", "DIALRING_DATA_DIR="+t.TempDir(),
			"DIALRING_NATS_ROUTES="+strings.Join(routes, ","), "DIALRING_NATS_ROUTE_LISTEN="+h.ip+":6222", "DIALRING_NATS_ROUTE_SECRET="+trioSecret,
			fmt.Sprintf("DIALRING_NATS_NAME=n%d", i)), addr: h.ip + ":8080"}
		l.event(t, "listening")
		locs = append(locs, l)
	}
	nodes := map[string]*nodeProc{}
	for _, name := range []string{"a", "b", "c"} {
		nodes[name] = n.host(t, name).node(t, strings.Join(urls, ","), "DIALRING_INBOX_PARTITIONS=3")
	}
	for _, l := range locs {
		l.waitMembers(t, "a", "b", "c")
		l.waitReady(t)
	}
	victim := slices.Index(urls, nodes["a"].connectedTo(t)) // so at least one node is connected to it
	alice := listen(t, "alice", locs...)
	load := durableLoad(t, locs...)
	load.pushed(t, 200)
	epoch := locs[0].ring(t).Epoch
	for i, h := range hosts {
		if i != victim {
			n.cut(h, hosts[victim])
		}
	}
	began := time.Now()
	alone := locs[victim]
	alone.event(t, "nats_minority")
	t.Log("it knows that it is alone after", time.Since(began))
	for name, p := range nodes {
		eventually(t, name+" is connected to another server", func() bool { return p.connectedTo(t) != urls[victim] })
		t.Log(name, "is connected to another server after", time.Since(began))
	}
	load.pushed(t, 300)
	t.Log("300 pushes more are answered after", time.Since(began))
	for i := range 10 {
		if r := alone.push(t, "alice", fmt.Sprint(i)); r.Delivered != 1 {
			t.Errorf("an ephemeral push through the lone locator: %+v", r)
		}
		alice.expect(t, fmt.Sprint(i))
		alone.locate(t, fmt.Sprint("new-", i), "")
	}
	alone.stores(t, "somebody", "1")
	if r := alone.ring(t); r.Epoch != epoch || len(r.Nodes) != 3 {
		t.Errorf("the lone locator's ring changed: %+v", r)
	}
	n.heal()
	began = time.Now()
	alone.event(t, "nats_majority")
	t.Log("it is not alone any more after", time.Since(began))
	load.pushed(t, 200)
	for _, l := range locs {
		eventually(t, "it hears all nodes", func() bool {
			for _, m := range l.members(t) {
				if m.State != "active" {
					return false
				}
			}
			return len(l.members(t)) == 3
		})
	}
	load.arrived(t)
	if r := locs[0].ring(t); r.Epoch != epoch {
		t.Errorf("the ring changed: %+v", r)
	}
}
