package peer

import (
	"sync"
	"time"

	"github.com/dialring/dialring/internal/certs"
)

// Pool keeps one link to each process that is called. It may be used
// concurrently.
type Pool struct {
	// Token signs a new peer token for a node.
	Token func(node string) string
	// Broken, if set, is called when a connection to a node has broken or could
	// not be made. It must not block.
	Broken func(node string)
	// TLS, if not nil, is shown to nodes and judges them.
	TLS *certs.Files
	// Guard, if not nil, judges what addresses the names of nodes lead to.
	Guard Guard

	mu     sync.Mutex
	links  map[string]*pooled
	closed bool
	wg     sync.WaitGroup // links that are being closed
}

type pooled struct {
	*Link
	boot, url string
}

// How long a link that is not needed any more waits for its calls.
const (
	retireTimeout = 3 * time.Second
	retireLook    = 50 * time.Millisecond
)

// Get returns the link to the process boot of a node at url, and a new one if
// the process or the address is new.
func (p *Pool) Get(node, boot, url string) *Link {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.links[node]
	if l != nil && l.boot == boot && l.url == url {
		return l.Link
	}
	if l != nil {
		p.retireLocked(node, l)
	}
	l = &pooled{NewLink(url, func() string { return p.Token(node) }), boot, url}
	l.TLS, l.Guard = p.TLS, p.Guard
	if p.Broken != nil {
		l.Broken = func() { p.Broken(node) }
	}
	if p.closed {
		l.Close()
		return l.Link
	}
	if p.links == nil {
		p.links = map[string]*pooled{}
	}
	p.links[node] = l
	return l.Link
}

// Retain closes the links to processes for which keep says no, once their
// calls are answered.
func (p *Pool) Retain(keep func(node, boot string) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for node, l := range p.links {
		if !keep(node, l.boot) {
			p.retireLocked(node, l)
		}
	}
}

func (p *Pool) retireLocked(node string, l *pooled) {
	delete(p.links, node)
	p.wg.Go(func() {
		for end := time.Now().Add(retireTimeout); !l.Idle() && time.Now().Before(end); {
			time.Sleep(retireLook)
		}
		l.Close()
	})
}

// Close closes all links and waits for their goroutines.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	links := p.links
	p.links = nil
	p.mu.Unlock()
	for _, l := range links {
		l.Close()
	}
	p.wg.Wait()
}
