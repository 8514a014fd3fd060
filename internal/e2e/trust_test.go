package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/ticket"
	"github.com/dialring/dialring/internal/trust"
	"github.com/dialring/dialring/internal/wire"
	"github.com/dialring/dialring/locator"
	"github.com/dialring/dialring/wsnode"
)

// newClusterKeys makes the key of a cluster, and keys of its nodes.
func newClusterKeys(t *testing.T) (clusterKey string, nodeKey func(nodes string) string) {
	t.Helper()
	clusterKey = trust.NewClusterKey()
	authority, err := trust.ParseAuthority("dialring", clusterKey)
	if err != nil {
		t.Fatal(err)
	}
	return clusterKey, func(nodes string) string {
		t.Helper()
		k, err := authority.NewNodeKey(nodes)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
}

// Somebody has the NATS password of a node, in a cluster with cluster keys, and does what
// that lets him: nobody goes by his ring, he is no locator, and no node loses its place.
func TestTrust(t *testing.T) {
	t.Parallel()
	addr := startNATSConf(t)
	clusterKey, key := newClusterKeys(t)
	locatorURL, nodeURL := natsURLOf("locator", addr), natsURLOf("node", addr)
	l := startNormalLocator(t, "DIALRING_NATS_URL="+locatorURL, "DIALRING_CLUSTER_KEY="+clusterKey)
	var nodes []*nodeProc
	for i := range 3 {
		id := fmt.Sprintf("ws-%d", i+1)
		nodes = append(nodes, startNormalNode(t, id, nodeURL, "DIALRING_INBOX_PARTITIONS=8", "DIALRING_NODE_KEY="+key([]string{"ws-1", "ws-2", "ws-*"}[i])))
	}
	l.waitMembers(t, "ws-1", "ws-2", "ws-3")
	eventually(t, "messages are stored", func() bool { status, _ := l.tryStore("probe", "1"); return status == 200 })
	load := startLoad(t, loadConfig{Locators: []*locatorProc{l}, Users: 20, Devices: 2, Rate: 50, Durable: true})
	load.pushed(t, 50)

	nc := natsAs(t, "node", addr)
	operator := natsAs(t, "operator", addr)
	stored := func() (ring.Document, string) {
		m, err := operator.Request("$JS.API.DIRECT.GET.KV_dialring_ring.$KV.dialring_ring.ring", nil, patience)
		if err != nil {
			t.Fatal(err)
		}
		b, _, err := trust.Detach(m.Data)
		if err != nil {
			return ring.Document{}, string(m.Data)
		}
		var d ring.Document
		_ = json.Unmarshal(b, &d)
		return d, string(m.Data)
	}
	// elsewhere has JetStream publish what a node may store on a subject that it may not publish on.
	elsewhere := func(subject string, b []byte) {
		t.Helper()
		if _, err := nc.Request("dialring.inbox.0.rogue", b, patience); err != nil {
			t.Fatal(err)
		}
		if err := nc.PublishRequest("$JS.API.DIRECT.GET.dialring_inbox_0.dialring.inbox.0.rogue", subject, nil); err != nil {
			t.Fatal(err)
		}
	}

	// A ring, by the detour.
	before, _ := stored()
	evil := before.With()
	evil.Epoch++
	for i := range evil.Nodes {
		evil.Nodes[i].URL = "ws://192.0.2.1:1/evil"
	}
	evil.Seal()
	b, err := evil.Encode()
	if err != nil {
		t.Fatal(err)
	}
	elsewhere("$KV.dialring_ring.ring", b)
	elsewhere("dialring.ring", nil)
	if e := l.event(t, "ring_refused"); !strings.Contains(fmt.Sprint(e["error"]), "not signed") {
		t.Errorf("the locator says %v", e)
	}
	eventually(t, "the locator publishes its ring again", func() bool {
		d, _ := stored()
		return d.Epoch > evil.Epoch-1 && len(d.Nodes) == 3 && !strings.Contains(d.Nodes[0].URL, "evil") && d.Change.By != ""
	})
	for _, n := range []struct{ admin, who string }{{l.admin, "locator"}, {nodes[0].admin, "ws-1"}, {nodes[1].admin, "ws-2"}, {nodes[2].admin, "ws-3"}} {
		eventually(t, n.who+" goes on", func() bool { return scrapeValue(t, n.admin, "dialring_ring_epoch") > float64(before.Epoch) })
	}
	if scrapeValue(t, l.admin, "dialring_rings_refused_total") < 1 {
		t.Error("the locator counts no refused ring")
	}
	if loc := l.locate(t, "probe", ""); strings.Contains(loc.URL, "evil") {
		t.Errorf("clients are sent to %s", loc.URL)
	}

	// Heartbeats of another node: not signed, and signed with the key of a node that he has.
	mine, err := trust.ParseNodeKey("dialring", "ws-9", key("ws-9"))
	if err != nil {
		t.Fatal(err)
	}
	seen := l.ring(t)
	for i := range 20 {
		beat, err := json.Marshal(cluster.NodeBeat{ID: "ws-2", Boot: before.Nodes[1].Boot, URL: before.Nodes[1].URL, PeerURL: before.Nodes[1].PeerURL, Weight: 1, State: wire.StateDraining,
			Time: time.Now().Add(time.Duration(i) * time.Minute)})
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range [][]byte{beat, trust.Attach(beat, mine.Sign(trust.NodeBeat, beat))} {
			if err := nc.Publish("dialring.beat.node.ws-2", m); err != nil {
				t.Fatal(err)
			}
		}
		suspects, err := json.Marshal(cluster.LocatorBeat{ID: fmt.Sprint("evil-", i), Suspects: []string{before.Nodes[1].Boot}, Time: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		elsewhere(fmt.Sprintf("dialring.beat.locator.evil-%d", i), suspects)
	}
	if e := l.event(t, "beat_refused"); !strings.HasPrefix(fmt.Sprint(e["subject"]), "beat.") {
		t.Errorf("the locator says %v", e)
	}
	load.pushed(t, 50)

	// A key of his own, as a locator's: not signed, and signed with a node's key. Each is
	// another, since a node remembers for a while that it did not believe one.
	for _, sign := range []func([]byte) *trust.Signature{
		func([]byte) *trust.Signature { return nil },
		func(b []byte) *trust.Signature { return mine.Sign(trust.LocatorKey, b) },
	} {
		signer := ticket.NewSigner()
		record, err := json.Marshal(map[string]any{"owner": "locator:evil", "public": []byte(signer.Public)})
		if err != nil {
			t.Fatal(err)
		}
		if err := nc.Publish("$KV.dialring_keys."+signer.KID, trust.Attach(record, sign(record))); err != nil {
			t.Fatal(err)
		}
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		forged := l.locate(t, "probe", "")
		forged.Ticket = signer.Ticket(ticket.Ticket{User: "probe", Device: "d", Node: forged.Node, Epoch: 1}, time.Now())
		if _, status, p, err := tryDial(forged); status != 401 || p.Code != wire.CodeUnauthorized {
			t.Errorf("a ticket by a key that no locator published: %d %+v %v", status, p, err)
		}
		for _, n := range nodes {
			if status := peerStatus(t, n.peer, signer.Peer("locator:evil", n.id, time.Now())); status != 401 {
				t.Errorf("a call to %s by that key: %d", n.id, status)
			}
		}
	}

	// A node without a key, or with another cluster's, does not get in.
	stranger := startNormalNode(t, "ws-7", nodeURL, "DIALRING_INBOX_PARTITIONS=8")
	alien, err := trust.ParseAuthority("dialring", trust.NewClusterKey())
	if err != nil {
		t.Fatal(err)
	}
	alienKey, err := alien.NewNodeKey("ws-8")
	if err != nil {
		t.Fatal(err)
	}
	foreign := startNormalNode(t, "ws-8", nodeURL, "DIALRING_INBOX_PARTITIONS=8", "DIALRING_NODE_KEY="+alienKey)
	if e := foreign.event(t, "ring_refused"); e["error"] == nil {
		t.Errorf("%v", e)
	}
	wrong := start(t, "wrong", filepath.Join(bin, "wsnode"), append(normalNodeEnv(nodeURL, nodes[2].addr, nodes[2].peer), "DIALRING_NODE_ID=ws-3", "DIALRING_NODE_KEY="+key("ws-1")))
	await(t, "a node with another's key ends", wrong.done)
	if code := wrong.cmd.ProcessState.ExitCode(); code != 78 || !strings.Contains(wrong.text(), "DIALRING_NODE_KEY") {
		t.Errorf("it ended with %d: %s", code, wrong.text())
	}
	load.pushed(t, 50)

	// And all that is good goes on: a drain, a kill, a new node of a group.
	if code := nodes[0].term(t); code != 0 {
		t.Errorf("ws-1 ended with %d", code)
	}
	l.waitMembers(t, "ws-2", "ws-3")
	startNormalNode(t, "ws-4", nodeURL, "DIALRING_INBOX_PARTITIONS=8", "DIALRING_NODE_KEY="+key("ws-*"))
	l.waitMembers(t, "ws-2", "ws-3", "ws-4")
	nodes[2].kill()
	l.waitMembers(t, "ws-2", "ws-4")
	load.pushed(t, 50)
	load.arrived(t)
	if now := l.ring(t); now.Epoch < seen.Epoch {
		t.Errorf("the ring went back from %d to %d", seen.Epoch, now.Epoch)
	}
	_, raw := stored()
	if _, s, err := trust.Detach([]byte(raw)); err != nil || s == nil {
		t.Errorf("the ring is not signed: %v", err)
	}
	for _, p := range []*process{l.process, nodes[1].process, stranger.process, foreign.process} {
		unpermitted(t, p)
	}
}

// peerStatus is what a node's peer address answers who wants to open a link.
func peerStatus(t *testing.T, addr, token string) int {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: %s\r\nAuthorization: Bearer %s\r\n\r\n", peer.Path, addr, peer.Protocol, token)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// Who calls a node shows a token for that node, once, signed in its own name.
func TestPeerCallsRefused(t *testing.T) {
	t.Parallel()
	c := processes(t, locator.Config{}, wsnode.Config{}, wsnode.Config{})
	s, stranger := c.signer(), ticket.NewSigner()
	addr := c.node("ws-1").at.Peer
	now := time.Now()
	good := s.Peer("locator:test", "ws-1", now)
	if status := peerStatus(t, addr, good); status != http.StatusSwitchingProtocols {
		t.Fatalf("a good token: %d", status)
	}
	for name, token := range map[string]string{
		"none":                  "",
		"nonsense":              "nonsense",
		"replayed":              good,
		"for another node":      s.Peer("locator:test", "ws-2", now),
		"expired":               s.Peer("locator:test", "ws-1", now.Add(-ticket.Life-time.Second)),
		"good for too long":     s.Peer("locator:test", "ws-1", now.Add(time.Hour)),
		"of an unknown key":     stranger.Peer("locator:test", "ws-1", now),
		"of another locator":    s.Peer("locator:other", "ws-1", now),
		"of a node":             s.Peer("node:ws-2", "ws-1", now),
		"a client's ticket":     s.Ticket(ticket.Ticket{User: "alice", Device: "d", Node: "ws-1"}, now),
		"for relayed dials":     s.Edge("locator:test", "ws-1", now),
		"forged":                s.Peer("locator:test", "ws-1", now) + "A",
		"with another's claims": strings.Join([]string{strings.Split(good, ".")[0], strings.Split(s.Peer("locator:test", "ws-1", now), ".")[1], strings.Split(good, ".")[2]}, "."),
	} {
		if status := peerStatus(t, addr, token); status != http.StatusUnauthorized {
			t.Errorf("%s: %d", name, status)
		}
	}
}
