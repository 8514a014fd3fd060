package main

import (
	"context"
	"fmt"
	"testing"

	"github.com/dialring/dialring/client"
	"github.com/dialring/dialring/locator"
)

// A drain that is waited for is done when it is told to be: the node has left, and its
// users are elsewhere.
func TestDrainWait(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, locator.Config{})
	clients := connect(t, c, 60)
	if sessionsOf(t, c, "ws-2") == 0 {
		t.Fatal("ws-2 has no session")
	}
	o := c.do(t, "drain", "ws-2", "--yes", "--wait")
	o.want(t, exitDone, "")
	if o.out != `{"node":"ws-2","state":"draining"}`+"\n"+`{"node":"ws-2","state":"gone"}`+"\n" {
		t.Errorf("stdout: %s", o.out)
	}
	r, err := c.pusher.Ring(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range r.Nodes { // its last heartbeat may still be shown
		if n.ID == "ws-2" && (n.Share > 0 || n.Sessions > 0) {
			t.Errorf("it is there: %+v", n)
		}
	}
	for _, x := range clients {
		if s := x.State(); s.Node == "ws-2" {
			t.Errorf("%+v", s)
		}
	}
	c.do(t, "drain", "ws-2", "--yes").want(t, exitFailed, `no node "ws-2" is in the ring`)
	o = c.do(t, "drain", "ws-1", "--yes", "--wait", "-o", "table")
	o.want(t, exitDone, "")
	golden(t, "drain", o.out)
}

func sessionsOf(t *testing.T, c *cluster, node string) int {
	t.Helper()
	r, err := c.pusher.Ring(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range r.Nodes {
		if n.ID == node {
			return n.Sessions
		}
	}
	return 0
}

// connect connects so many clients, until the test ends, and waits until the nodes have
// told of them.
func connect(t *testing.T, c *cluster, n int) []*client.Client {
	t.Helper()
	a := &app{transport: keepNothing()}
	var out []*client.Client
	for i := range n {
		x, err := client.New(client.Config{Locators: []string{c.url}, User: fmt.Sprint("user-", i), HTTP: a.locating(), OnMessage: func(context.Context, client.Message) {}})
		if err != nil {
			t.Fatal(err)
		}
		background(t, "client", x.Run)
		out = append(out, x)
	}
	eventually(t, "all are connected", func() bool {
		r, err := c.pusher.Ring(t.Context())
		sum := 0
		for _, node := range r.Nodes {
			sum += node.Sessions
		}
		return err == nil && sum == n
	})
	return out
}

// What locators say of a node that drains, one of them late.
func TestDrained(t *testing.T) {
	node := func(epoch uint64, state string, sessions int) client.Ring {
		return client.Ring{Epoch: epoch, Nodes: []client.RingNode{{ID: "ws-1", State: "active"}, {ID: "ws-2", State: state, Sessions: sessions}}}
	}
	without := client.Ring{Epoch: 9, Nodes: []client.RingNode{{ID: "ws-1", State: "active"}}}
	for name, c := range map[string]struct {
		steps []client.Ring
		text  string
	}{
		"it leaves":                   {[]client.Ring{node(5, "active", 7), node(5, "draining", 7), node(6, "draining", 3), without}, "ws-2: draining, 3 of 7 sessions left"},
		"a locator has just started":  {[]client.Ring{node(6, "draining", 2), {}, {Epoch: 4}, {Epoch: 6}}, "ws-2: draining, 2 of 2 sessions left"},
		"a locator is late":           {[]client.Ring{node(6, "draining", 3), node(5, "active", 7), node(6, "active", 0), node(6, "draining", 0), without}, "ws-2: draining, 0 of 3 sessions left"},
		"its next process is there":   {[]client.Ring{node(6, "draining", 3), node(8, "joining", 0)}, "ws-2: draining, 3 of 3 sessions left"},
		"its next process was quick":  {[]client.Ring{node(6, "draining", 1), node(8, "active", 0)}, "ws-2: draining, 1 of 1 session left"},
		"it had gone before":          {[]client.Ring{without}, "ws-2: about to leave the ring, 0 sessions"},
		"it has not heard of it yet":  {[]client.Ring{node(5, "active", 7), node(6, "active", 7), without}, "ws-2: about to leave the ring, 7 sessions"},
		"another node's ring in turn": {[]client.Ring{node(6, "draining", 3), node(7, "draining", 2), node(7, "active", 2), without}, "ws-2: draining, 2 of 3 sessions left"},
	} {
		var d drained
		for i, r := range c.steps {
			if gone := d.see(r, "ws-2"); gone != (i == len(c.steps)-1) {
				t.Errorf("%s: after step %d gone is %t", name, i, gone)
			}
		}
		if got := d.text("ws-2"); got != c.text {
			t.Errorf("%s: %q, want %q", name, got, c.text)
		}
	}
}
