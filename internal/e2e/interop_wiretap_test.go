package e2e

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
)

// wiretap stands before a node, passes what comes on, frame by frame, and notes what a client and
// the node do not tell: the handshake, pings and their answers, and who closed with which code.
type wiretap struct {
	l  net.Listener
	wg sync.WaitGroup

	mu    sync.Mutex
	to    string
	shut  bool
	conns []*wiretapped
}

// wiretapped is a connection; what it notes is guarded by its wiretap.
type wiretapped struct {
	client, node net.Conn
	request      string // head of the handshake
	user         string // of the welcome

	clientPongs, nodePongs int
	clientPings            int
	clientClose, nodeClose int // codes; 0: none
}

func newWiretap(t *testing.T, host string) *wiretap {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	p := &wiretap{l: l}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		l.Close()
		p.set(false)
		p.wg.Wait()
	})
	return p
}

func (p *wiretap) leadsTo(addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.to = addr
}

// set lets connections through; or cuts those that there are, without a close frame, and
// lets none through until it is set again.
func (p *wiretap) set(open bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shut = !open
	for _, c := range p.conns {
		if p.shut {
			cut(c.client, c.node)
		}
	}
}

func cut(conns ...net.Conn) {
	for _, c := range conns {
		_ = c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
}

func (p *wiretap) accept() {
	for {
		in, err := p.l.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		to := p.to
		p.mu.Unlock()
		out, err := net.Dial("tcp", to)
		if err != nil {
			in.Close()
			continue
		}
		c := &wiretapped{client: in, node: out}
		p.mu.Lock()
		if p.shut {
			cut(in, out)
		}
		p.conns = append(p.conns, c)
		p.mu.Unlock()
		p.wg.Go(func() {
			p.carry(in, out, func(head string) { c.request = head }, func(op byte, b []byte) {
				switch {
				case op == 8 && len(b) >= 2:
					c.clientClose = int(binary.BigEndian.Uint16(b))
				case op == 9:
					c.clientPings++
				case op == 10:
					c.clientPongs++
				}
			})
		})
		p.wg.Go(func() {
			p.carry(out, in, func(string) {}, func(op byte, b []byte) {
				switch {
				case op == 8 && len(b) >= 2:
					c.nodeClose = int(binary.BigEndian.Uint16(b))
				case op == 10:
					c.nodePongs++
				case op == 1 && c.user == "":
					var w struct{ User string }
					_ = json.Unmarshal(b, &w)
					c.user = w.User
				}
			})
		})
	}
}

// carry copies one direction: the head, then frames.
func (p *wiretap) carry(from, to net.Conn, head func(string), frame func(op byte, payload []byte)) {
	defer from.Close()
	defer to.Close()
	in := bufio.NewReader(from)
	var text strings.Builder
	for !strings.HasSuffix(text.String(), "\r\n\r\n") {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		text.WriteString(line)
	}
	p.mu.Lock()
	head(text.String())
	p.mu.Unlock()
	if _, err := io.WriteString(to, text.String()); err != nil {
		return
	}
	for {
		raw, payload, err := wiretapFrame(in)
		if err != nil {
			return
		}
		p.mu.Lock()
		frame(raw[0]&15, payload)
		p.mu.Unlock()
		if _, err := to.Write(raw); err != nil {
			return
		}
	}
}

// wiretapFrame reads a frame, and returns it as it came, and its payload in clear.
func wiretapFrame(in *bufio.Reader) (raw, payload []byte, err error) {
	take := func(n uint64) []byte {
		at := len(raw)
		raw = append(raw, make([]byte, n)...)
		if err == nil {
			_, err = io.ReadFull(in, raw[at:])
		}
		return raw[at:]
	}
	h := slices.Clone(take(2))
	n := uint64(h[1] & 127)
	switch n {
	case 126:
		n = uint64(binary.BigEndian.Uint16(take(2)))
	case 127:
		n = binary.BigEndian.Uint64(take(8))
	}
	if err != nil || n > 1<<24 {
		return nil, nil, io.ErrUnexpectedEOF
	}
	var mask [4]byte
	if h[1]&128 != 0 {
		copy(mask[:], take(4))
	}
	payload = slices.Clone(take(n))
	for i := range payload {
		payload[i] ^= mask[i%4]
	}
	return raw, payload, err
}

// of are the connections of a user, in the order of their dials; copies.
func (p *wiretap) of(user string) (out []wiretapped) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		if c.user == user {
			out = append(out, *c)
		}
	}
	return out
}
