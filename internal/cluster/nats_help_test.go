package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/natsd"
	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/wire"
)

// patience bounds every wait; nothing that works comes near it.
const patience = 30 * time.Second

var quiet = slog.New(slog.DiscardHandler)

// startNATS runs an embedded server until the test ends or it is stopped.
func startNATS(t *testing.T, dir, listen string) *natsd.Server {
	t.Helper()
	s, err := natsd.Start(t.Context(), natsd.Options{Name: "test", Listen: listen, Dir: dir, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

// dial connects a participant and waits until it is connected.
func dial(t *testing.T, s *natsd.Server, cluster string) *Conn {
	t.Helper()
	c, err := Connect(Options{URL: "nats://" + s.Addr(), Cluster: cluster, Name: t.Name(), Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	eventually(t, "a connection", c.Up)
	return c
}

// background runs f until the test ends, before what was set up earlier is
// taken down.
func background(t *testing.T, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("it ended with %v", err)
			}
		case <-time.After(patience):
			t.Error("it does not end")
		}
	})
}

// eventually polls for what nothing announces.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("there never was %s", what)
		}
	}
}

// await waits for something, or fails.
func await[T any](t *testing.T, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatalf("there never was %s", what)
	}
	return v
}

// ringDoc is a ring of these nodes.
func ringDoc(cluster string, epoch uint64, ids ...string) ring.Document {
	d := ring.Document{Cluster: cluster, Epoch: epoch}
	for _, id := range ids {
		b := beatOf(id, 1)
		d.Nodes = append(d.Nodes, b.node())
	}
	d.Seal()
	return d
}

// store publishes the next ring of these nodes, as a keeper would.
func store(t *testing.T, c *Conn, ids ...string) ring.Document {
	t.Helper()
	cur, rev, err := loadRing(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	d := ringDoc(c.cluster, cur.Epoch+1, ids...)
	if err := swapRing(t.Context(), c, d, rev); err != nil {
		t.Fatal(err)
	}
	return d
}

// follow starts a Rings on c.
func follow(t *testing.T, c *Conn) *Rings {
	t.Helper()
	r := NewRings(c, quiet)
	background(t, r.Run)
	return r
}

// waitRing waits for a change, without asking for one, until the ring has this
// epoch.
func waitRing(t *testing.T, r *Rings, epoch uint64) {
	t.Helper()
	limit := time.After(patience)
	for {
		changed := r.Changed()
		if r.Current().Epoch >= epoch {
			return
		}
		select {
		case <-changed:
		case <-limit:
			t.Fatalf("the ring stays at epoch %d, want %d", r.Current().Epoch, epoch)
		}
	}
}

// fakeNode is a node as far as the ring is concerned: it answers probes and
// sends heartbeats.
type fakeNode struct {
	beat     NodeBeat
	srv      *httptest.Server
	silenced atomic.Bool
	newest   atomic.Uint64 // epoch that it has seen, as a node does that never goes back
}

func startNode(t *testing.T, c *Conn, id, boot string) *fakeNode {
	t.Helper()
	n := &fakeNode{}
	n.srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" {
			_ = json.NewEncoder(w).Encode(Health{Node: id, Boot: boot})
			return
		}
		w.Header().Set(NodeHeader, id)
		http.Error(w, "not a WebSocket request", http.StatusBadRequest)
	}))
	t.Cleanup(n.srv.Close)
	host := n.srv.Listener.Addr().String()
	n.beat = NodeBeat{ID: id, Boot: boot, URL: "ws://" + host + "/v1/ws", PeerURL: "http://" + host, Weight: 1, State: wire.StateActive, Time: time.Now()}
	background(t, func(ctx context.Context) error {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			if !n.silenced.Load() {
				b := n.beat
				if d, _, err := loadRing(ctx, c); err == nil { // it has nothing to move
					newest := max(d.Epoch, n.newest.Load())
					n.newest.Store(newest)
					b.Epoch, b.Settled = newest, newest
				}
				b.Time = time.Now()
				BeatNode(c, b)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	})
	return n
}

// kill ends it as kill -9 does.
func (n *fakeNode) kill() {
	n.silenced.Store(true)
	n.srv.Close()
}

// keep starts a locator's keeper and its ring on c.
func keep(t *testing.T, c *Conn, self string) (*Keeper, *Rings) {
	t.Helper()
	return keepWith(t, c, self, quiet)
}

func keepWith(t *testing.T, c *Conn, self string, log *slog.Logger) (*Keeper, *Rings) {
	t.Helper()
	r := follow(t, c)
	k := NewKeeper(c, r, log, self, true)
	background(t, k.Run)
	return k, r
}

// logged is a log that can be read while it is written.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// unusedAddr is an address at which nothing listens.
func unusedAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
