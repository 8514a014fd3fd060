package e2e

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
	"github.com/dialring/dialring/locator"
	"github.com/dialring/dialring/wsnode"
)

// The client's address is what a trusted proxy says, directly and through a locator that
// relays; what anybody else says changes nothing.
func TestProxies(t *testing.T) {
	t.Parallel()
	c := processes(t, locator.Config{Edge: true, TrustedProxies: []string{"127.0.0.1"}}, wsnode.Config{TrustedProxies: []string{"127.0.0.1"}})
	dial := func(from, to, target, forwarded string) (got, local string) {
		t.Helper()
		conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: inprocPatience}).Dial("tcp", to)
		if err != nil {
			t.Skipf("this machine has no address %s: %v", from, err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(inprocPatience))
		d := newInprocDial(c.locate("alice", "web").Ticket)
		d.target = target
		d.set("X-Forwarded-For", forwarded)
		d.set("Dialring-Client", "198.51.100.9:1")
		fmt.Fprint(conn, d.String())
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.StatusCode != 101 {
			t.Fatalf("a dial from %s to %s: %+v %v", from, target, resp, err)
		}
		resp.Body.Close()
		var u wire.UserResponse
		c.getJSON("/v1/users/alice", &u)
		if len(u.Sessions) != 1 {
			t.Fatalf("sessions: %+v", u.Sessions)
		}
		return u.Sessions[0].RemoteAddr, conn.LocalAddr().String()
	}
	node := c.nodes[0]
	for way, at := range map[string][2]string{"directly": {node.at.Listen, "/v1/ws"}, "through a locator": {c.at.Listen, "/n/" + node.id + "/v1/ws"}} {
		for forwarded, want := range map[string]string{
			"203.0.113.7":                        "203.0.113.7:0",
			"198.51.100.1, 203.0.113.7":          "203.0.113.7:0",
			"198.51.100.1, [2001:db8::7]:4711":   "[2001:db8::7]:4711",
			"198.51.100.1, 203.0.113.7, unknown": "",
			"unknown":                            "",
		} {
			got, local := dial("127.0.0.1", at[0], at[1], forwarded)
			if want == "" {
				want = local
			}
			if got != want {
				t.Errorf("%s, a proxy says %q: the client's address is %s, want %s", way, forwarded, got, want)
			}
		}
		if got, local := dial("127.0.0.2", at[0], at[1], "203.0.113.7"); got != local {
			t.Errorf("%s: a client at %s claims another address and gets it: %s", way, local, got)
		}
	}
}

// Limits count the clients that a trusted proxy names, each for itself, by whatever else
// they write into the header.
func TestProxyLimits(t *testing.T) {
	t.Parallel()
	c := processes(t, locator.Config{RatePerAddress: 1, TrustedProxies: []string{"127.0.0.0/8"}}, wsnode.Config{RatePerAddress: 1, TrustedProxies: []string{ownAddress(t)}})
	la, na := c.at, c.nodes[0].at
	for what, ask := range map[string]func(forwarded string) int{
		"locates": func(f string) int {
			return inprocDo(t, "POST", "http://"+la.Listen+"/v1/locate", nil, "X-Forwarded-For", f).status
		},
		"dials": func(f string) int {
			d := newInprocDial("x")
			d.set("X-Forwarded-For", f)
			a, _ := inprocRaw(t, na.Listen, d.String())
			return a.status
		},
	} {
		limited := 0
		for i := range 40 {
			if ask(fmt.Sprintf("198.51.100.%d, 203.0.113.1", i)) == 429 {
				limited++
			}
			// Each other client, and each IPv6 network, has a share of its own.
			for _, other := range []string{fmt.Sprintf("203.0.113.%d", 100+i), fmt.Sprintf("2001:db8:0:%x::1", i)} {
				if got := ask(other); got != 401 {
					t.Errorf("%s: the first of %s was answered %d, want 401", what, other, got)
				}
			}
		}
		if limited == 0 || limited > 36 { // four at once are always good
			t.Errorf("%s: %d of 40 of one client were refused with 429", what, limited)
		}
		limited = 0
		for i := range 40 {
			if ask(fmt.Sprintf("2001:db8:ffff:ffff::%x", i)) == 429 {
				limited++
			}
		}
		if limited == 0 {
			t.Errorf("%s: 40 addresses of one IPv6 network were not limited together", what)
		}
	}
}

// remoteBehind dials a user's node through a proxy, from another address than the proxy's,
// and returns what the node takes for the client's address, and what it is.
func (c *edgeCluster) remoteBehind(t *testing.T) (got, want string) {
	t.Helper()
	loc := c.locators[0].locate(t, "remote", `{"device":"d"}`)
	config := c.tls.Clone()
	config.ServerName, config.NextProtos = "localhost", []string{"http/1.1"}
	conn, err := tls.DialWithDialer(&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}, Timeout: patience}, "tcp", c.addr, config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /n/%s/v1/ws HTTP/1.1\r\nHost: localhost\r\n%s, %s%s\r\nX-Forwarded-For: 203.0.113.8\r\nForwarded: for=203.0.113.8\r\n\r\n", loc.Node, handshakeHeaders, wire.TicketSubprotocol, loc.Ticket)
	eventually(t, "the user is online", func() bool { return len(c.locators[0].getUser(t, "remote").Sessions) == 1 })
	host, _, err := net.SplitHostPort(c.locators[0].getUser(t, "remote").Sessions[0].RemoteAddr)
	if err != nil {
		t.Fatal(err)
	}
	return host, strings.Split(conn.LocalAddr().String(), ":")[0]
}
