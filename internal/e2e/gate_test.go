package e2e

import (
	"net"
	"sync"
	"testing"
)

// gate stands before a node and lets bytes through while it is open. Shut, it keeps
// them: to both sides the network is as good as gone, without a word.
type gate struct {
	l net.Listener

	mu    sync.Mutex
	to    string
	open  chan struct{} // closed while the gate is open
	conns []net.Conn
	wg    sync.WaitGroup
}

func newGate(t *testing.T) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{l: l, open: make(chan struct{})}
	close(g.open)
	g.wg.Go(g.accept)
	t.Cleanup(func() {
		l.Close()
		g.mu.Lock()
		for _, c := range g.conns {
			c.Close()
		}
		g.mu.Unlock()
		g.set(true)
		g.wg.Wait()
	})
	return g
}

func (g *gate) accept() {
	for {
		c, err := g.l.Accept()
		if err != nil {
			return
		}
		g.mu.Lock()
		to := g.to
		g.mu.Unlock()
		n, err := net.Dial("tcp", to)
		if err != nil {
			c.Close()
			continue
		}
		g.mu.Lock()
		g.conns = append(g.conns, c, n)
		g.mu.Unlock()
		g.wg.Go(func() { g.carry(c, n) })
		g.wg.Go(func() { g.carry(n, c) })
	}
}

// carry copies, and ends both sides when one has ended.
func (g *gate) carry(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		g.mu.Lock()
		open := g.open
		g.mu.Unlock()
		<-open
		if _, werr := to.Write(b[:n]); err != nil || werr != nil {
			return
		}
	}
}

// leadsTo says where the gate leads.
func (g *gate) leadsTo(addr string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.to = addr
}

// set opens or shuts it.
func (g *gate) set(open bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.open:
		if !open {
			g.open = make(chan struct{})
		}
	default:
		if open {
			close(g.open)
		}
	}
}
