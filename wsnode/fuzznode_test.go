package wsnode

import (
	"context"
	"crypto/ed25519"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/httpd"
	"github.com/dialring/dialring/internal/inbox"
	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/ticket"
)

// fuzzNode is a node outside development mode that owns everybody, with a store in
// memory, its own tickets, and no network: cheap enough for thousands of dials a second.
type fuzzNode struct {
	*Node
	tickets *ticket.Signer
	handler http.Handler
	before  int // goroutines
}

// fuzzMessageBytes is small, so that a fuzzer finds the limits.
const fuzzMessageBytes = 1024

type fuzzKeys struct{ s *ticket.Signer }

func (k fuzzKeys) Key(kid string) (ed25519.PublicKey, string) {
	if kid == k.s.KID {
		return k.s.Public, ticket.FromLocator + "1"
	}
	return nil, ""
}

func (fuzzKeys) Skew(string) time.Duration { return 0 }

func newFuzzNode(f *testing.F) *fuzzNode {
	n, err := New(Config{NodeID: "ws-1", NodeURL: "ws://node.test", PeerURL: "http://node.test", Log: slog.New(slog.DiscardHandler), RatePerAddress: -1, RatePerUser: -1, MaxMessageBytes: fuzzMessageBytes})
	if err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.ctx = ctx
	n.rings = cluster.NewRings(new(cluster.Conn), n.log)
	d := ring.Document{Epoch: 2, Nodes: []ring.Node{{ID: "ws-1", Boot: n.boot, Weight: 1, AcceptRate: 1}}}
	d.Seal()
	if err := offer(n.rings, d); err != nil {
		f.Fatal(err)
	}
	n.stored = newStored(n, inbox.NewMemory(inbox.Limits{Messages: 100, Age: time.Hour, Window: time.Minute}), noKeys, time.Hour, n.log)
	n.metrics = n.newMetrics(nil, nil)
	x := &fuzzNode{Node: n, tickets: ticket.NewSigner(), handler: n.publicHandler()}
	n.verifier = ticket.NewVerifier("ws-1", fuzzKeys{x.tickets}, 1<<22)
	f.Cleanup(func() {
		cancel()
		n.tasks.Wait()
		n.stored.logs.Wait()
	})
	return x
}

// ticket is one for alice's web, that is good now.
func (n *fuzzNode) ticket() string {
	n.sweptAt.Store(int64(time.Since(n.start))) // no sweep runs
	return n.tickets.Ticket(ticket.Ticket{User: "alice", Device: "web", Node: "ws-1"}, time.Now())
}

// over checks, when the client has gone, that nothing of it is left.
func (n *fuzzNode) over(t *testing.T) {
	t.Helper()
	n.readers.Wait()
	n.tasks.Wait()
	if k := n.hub.sessions.Load(); k != 0 {
		t.Fatalf("%d sessions are left", k)
	}
	if n.before == 0 {
		n.before = runtime.NumGoroutine()
	}
	for end := time.Now().Add(time.Minute); runtime.NumGoroutine() > n.before+100; time.Sleep(time.Millisecond) { // some are about to end
		if time.Now().After(end) {
			t.Fatalf("%d goroutines, %d at first", runtime.NumGoroutine(), n.before)
		}
	}
}

// fuzzListener hands the node's ends of pipes to its HTTP server.
type fuzzListener chan net.Conn

func (l fuzzListener) Accept() (net.Conn, error) {
	c, ok := <-l
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (l fuzzListener) Close() error   { return nil }
func (l fuzzListener) Addr() net.Addr { return &net.TCPAddr{} }

// serve has the node's own HTTP server answer on pipes.
func (n *fuzzNode) serve(f *testing.F) (dial func() net.Conn) {
	l, done := make(fuzzListener), make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(done)
		_ = httpd.Serve(ctx, l, n.handler, n.log)
	}()
	f.Cleanup(func() {
		cancel()
		close(l)
		<-done
	})
	return func() net.Conn {
		ours, its := net.Pipe()
		l <- its
		return ours
	}
}
