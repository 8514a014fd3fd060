package locator

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/wire"
)

const (
	testSecret = "0123456789abcdef0123456789abcdef"
	patience   = time.Minute // a bound on hangs
)

// runLocator runs a locator with an embedded NATS until the test ends.
func runLocator(t testing.TB, change ...func(*Config)) *Locator {
	t.Helper()
	cfg := Config{Dev: "true", Listen: "127.0.0.1:0", AdminListen: "127.0.0.1:0", NATSListen: "127.0.0.1:0",
		DataDir: t.TempDir(), DataSync: "interval", UserJWTSecret: testSecret, Log: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&cfg)
	}
	l, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	runUntilEnd(t, l)
	return l
}

// runUntilEnd runs a locator until the test ends, and returns when it listens.
func runUntilEnd(t testing.TB, l *Locator) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	if _, err := l.Addrs(ctx); err != nil {
		t.Fatal(err)
	}
}

// fakeNode is a node that does what a test says: it sends heartbeats, answers
// probes, and takes links.
type fakeNode struct {
	id    string
	http  *httptest.Server
	links *peer.Server
	calls atomic.Int64
	epoch atomic.Uint64 // what its replies say of its ring
	stop  func()        // of its heartbeats
}

// join starts a fake node and waits until it is in the ring. handle answers its
// calls.
func join(t testing.TB, l *Locator, id string, handle func(n *fakeNode, b *peer.Batch)) *fakeNode {
	t.Helper()
	n := &fakeNode{id: id}
	n.links = &peer.Server{
		Ring: func() wire.RingRef { return wire.RingRef{Epoch: n.epoch.Load(), Hash: "00000000"} },
		Handle: func(b *peer.Batch) {
			n.calls.Add(int64(len(b.Calls)))
			handle(n, b)
		},
	}
	n.http = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == peer.Path {
			if err := n.links.Upgrade(w, r, "test"); err != nil {
				t.Errorf("link: %v", err)
			}
			return
		}
		w.Header().Set(cluster.NodeHeader, id)
		_ = json.NewEncoder(w).Encode(cluster.Health{Node: id, Boot: "boot-" + id})
	}))
	nats, err := cluster.Connect(cluster.Options{URL: l.addrs.NATS, Cluster: l.cfg.Cluster, Name: id, Log: l.log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	beating := make(chan struct{})
	go func() {
		defer close(beating)
		for ctx.Err() == nil {
			epoch := l.rings.Current().Epoch
			cluster.BeatNode(nats, cluster.NodeBeat{Epoch: epoch, Settled: epoch, ID: id, Boot: "boot-" + id, URL: "ws" + strings.TrimPrefix(n.http.URL, "http") + "/v1/ws",
				PeerURL: n.http.URL, Weight: 1, State: wire.StateActive, Time: time.Now()})
			select {
			case <-ctx.Done():
			case <-time.After(cluster.BeatInterval / 5):
			}
		}
	}()
	n.stop = func() { cancel(); <-beating }
	t.Cleanup(func() {
		n.stop()
		nats.Close()
		n.links.Close()
		n.http.Close()
	})
	deadline := time.After(patience)
	for {
		changed := l.rings.Changed()
		if _, in := l.rings.Current().Find(id); in && l.ready() == nil {
			return n
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("%s never joined", id)
		}
	}
}

// die makes the node refuse connections and end its heartbeats.
func (n *fakeNode) die() {
	n.stop()
	n.links.Close()
	n.http.CloseClientConnections()
	n.http.Listener.Close()
}

// answer replies to all calls of a batch.
func answer(b *peer.Batch, r peer.Reply) {
	for i := range b.Calls {
		b.Calls[i].Reply(r)
	}
}

// ownedBy returns a user of the node.
func ownedBy(t testing.TB, l *Locator, id string) string {
	t.Helper()
	for i := range 10_000 {
		u := "user-" + wire.RandomID(3) + string(rune('a'+i%26))
		if n, ok := l.rings.Current().Owner(u); ok && n.ID == id {
			return u
		}
	}
	t.Fatalf("%s owns nobody", id)
	return ""
}

// push does one through the API.
func push(t *testing.T, l *Locator, user string) (int, http.Header, wire.PushResult, wire.Problem) {
	t.Helper()
	req, err := http.NewRequest("POST", "http://"+l.addrs.Listen+"/v1/push/"+user+"?durable=false", strings.NewReader("1"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer dev")
	req.Header.Set("Content-Type", "application/json")
	c := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{}).DialContext}}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var both struct {
		wire.PushResult
		wire.Problem
	}
	if err := json.NewDecoder(resp.Body).Decode(&both); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, both.PushResult, both.Problem
}
