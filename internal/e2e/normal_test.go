package e2e

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/machine"
	"github.com/dialring/dialring/internal/ticket"
	"github.com/dialring/dialring/internal/wire"
)

// normal is a cluster of real processes outside development mode: with user tokens, a
// token for NATS, and limits for each address and user. Its nodes are at an address of
// this machine that is not loopback, which clients reach from any address of loopback.
type normal struct {
	l      *locatorProc
	nodes  []*nodeProc
	signer *ticket.Signer // of tickets, beside the locator's
}

const normalNATSToken = "0123456789abcdef"

// ownAddress is an address of this machine that is not loopback.
func ownAddress(t *testing.T) string {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	machine.Lacks(t, "this machine has no address but loopback")
	return ""
}

// startNormal starts a locator and nodes with these settings.
func startNormal(t *testing.T, nodes int, env ...string) *normal {
	t.Helper()
	return startNormalWith(t, nil, nodes, env...)
}

// startNormalWith does that, and the locator has settings, too.
func startNormalWith(t *testing.T, ofLocator []string, nodes int, env ...string) *normal {
	t.Helper()
	c := &normal{l: startNormalLocator(t, ofLocator...)}
	var ids []string
	for i := range nodes {
		id := fmt.Sprintf("ws-%d", i+1)
		c.nodes = append(c.nodes, startNormalNode(t, id, c.l.nats, env...))
		ids = append(ids, id)
	}
	c.l.waitMembers(t, ids...)
	for _, n := range c.nodes {
		c.l.waitServes(t, n)
	}
	c.l.waitReady(t)
	c.signer = joinSigner(t, c.l.nats, normalNATSToken, slog.New(slog.DiscardHandler))
	return c
}

// startNormalLocator starts a locator outside development mode. Limits of who asks are for
// the tests that set them.
func startNormalLocator(t *testing.T, env ...string) *locatorProc {
	t.Helper()
	base := []string{"DIALRING_DEV=false", "DIALRING_API_KEYS=dev", "DIALRING_RATE_PER_ADDRESS=-1", "DIALRING_RATE_PER_USER=-1"}
	given := strings.Join(env, " ")
	if !strings.Contains(given, "DIALRING_NATS_URL") {
		base = append(base, "DIALRING_DATA_SYNC=interval")
	}
	if !strings.Contains(given, "DIALRING_NATS_URL") || !strings.Contains(given, "@") { // else the URL says who it is
		base = append(base, "DIALRING_NATS_TOKEN="+normalNATSToken)
	}
	secret := ""
	if !strings.Contains(given, "DIALRING_USER_JW") {
		secret = inprocSecret
		base = append(base, "DIALRING_USER_JWT_SECRET="+secret)
	}
	l := startLocator(t, append(base, env...)...)
	l.secret = secret
	return l
}

// startNormalNode starts a node outside development mode.
func startNormalNode(t *testing.T, id, nats string, env ...string) *nodeProc {
	t.Helper()
	ip := ownAddress(t)
	addr, peer := freeAddress(t, ip), freeAddress(t, ip)
	return startNodeAt(t, id, nats, addr, peer, append(normalNodeEnv(nats, addr, peer), env...)...)
}

func normalNodeEnv(nats, addr, peer string) []string {
	env := []string{"DIALRING_DEV=false", "DIALRING_NODE_URL=ws://" + addr, "DIALRING_PEER_URL=http://" + peer}
	if !strings.Contains(nats, "@") {
		env = append(env, "DIALRING_NATS_TOKEN="+normalNATSToken)
	}
	return env
}

// refusal is how a dial ended that was not let in; the zero value: it was.
type refusal struct {
	status int
	code   wire.Code
	after  string // Retry-After
}

// try dials a node from an address of this machine ("": any) with a ticket of the test's
// own, that no locator limits.
func (c *normal) try(t *testing.T, node *nodeProc, from string, tk ticket.Ticket) (*bare, refusal) {
	t.Helper()
	if tk.Device == "" {
		tk.Device = "bare"
	}
	tk.Node = node.id
	return ticketDial(t, node.addr, from, tk.User, c.signer.Ticket(tk, time.Now()))
}

// ticketDial dials with a ticket.
func ticketDial(t *testing.T, addr, from, user, ticket string) (*bare, refusal) {
	t.Helper()
	conn := connectFrom(t, addr, from)
	fmt.Fprintf(conn, "GET /v1/ws HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: dialring.v1, dialring.ticket.%s\r\n\r\n", addr, ticket)
	b := &bare{Conn: conn, br: bufio.NewReader(conn), user: user}
	if r := readRefusal(t, b.br); r.status != 0 {
		conn.Close()
		return nil, r
	}
	b.expectType(t, wire.TypeWelcome, &b.welcome)
	return b, refusal{}
}

// connectFrom opens a connection from an address of this machine.
func connectFrom(t *testing.T, addr, from string) net.Conn {
	t.Helper()
	d := net.Dialer{Timeout: patience}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	conn, err := d.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	return conn
}

// readRefusal reads the answer to a dial, which is a problem unless it is 101.
func readRefusal(t *testing.T, br *bufio.Reader) refusal {
	t.Helper()
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatalf("no answer to a dial: %v", err)
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return refusal{}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var p wire.Problem
	inprocDecode(t, body, &p)
	return refusal{resp.StatusCode, p.Code, resp.Header.Get("Retry-After")}
}

// limited is how often a limit of a node was reached.
func (n *nodeProc) limited(t *testing.T, limit string) float64 {
	t.Helper()
	return n.metric(t, `dialring_limited_total{limit="`+limit+`"}`)
}
