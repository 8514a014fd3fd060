package e2e

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/wire"
)

// locatorEdge is a cluster whose clients come through a locator (DIALRING_EDGE), with
// its own TLS. The nodes listen where clients cannot get to: they know one name only.
type locatorEdge struct {
	*edge
	edgeLocator, other *locatorProc
	nodes              []*nodeProc
}

func (c *locatorEdge) node(t *testing.T, i int) *nodeProc {
	t.Helper()
	id := fmt.Sprintf("ws-%d", i+1)
	return startNode(t, id, c.other.nats, "DIALRING_NODE_URL=wss"+strings.TrimPrefix(c.url, "https")+"/n/"+id+"/v1/ws")
}

func startLocatorEdge(t *testing.T) *locatorEdge {
	t.Helper()
	c := &locatorEdge{edge: newEdge(t, "locator")}
	env := []string{"SSL_CERT_FILE=" + c.ca}
	c.other = startLocator(t, env...)
	c.edgeLocator = startLocator(t, append(env, "DIALRING_EDGE=true", "DIALRING_NATS_URL="+c.other.nats, "DIALRING_LISTEN="+c.addr,
		"DIALRING_TLS_CERT_FILE="+filepath.Join(c.dir, "tls.crt"), "DIALRING_TLS_KEY_FILE="+filepath.Join(c.dir, "tls.key"))...)
	for i := range 3 {
		c.nodes = append(c.nodes, c.node(t, i))
	}
	c.other.waitMembers(t, "ws-1", "ws-2", "ws-3")
	for i := range c.nodes { // this locator may get the ring later than the other
		path := fmt.Sprintf("/n/ws-%d/healthz", i+1)
		eventually(t, "the locator relays to "+path, func() bool {
			status, _ := c.get(t, path, "")
			return status == 200
		})
	}
	return c
}

// Clients behind a locator, while a node drains, comes back, and one is killed: nothing
// is lost and nothing comes twice.
func TestLocatorEdge(t *testing.T) {
	heavy(t)
	t.Parallel()
	c := startLocatorEdge(t)
	load := startLoad(t, loadConfig{Locators: []*locatorProc{c.other}, Edge: c.edge, Users: 40, Devices: 2, Rate: 100, Durable: true})
	load.pushed(t, 800) // for eight seconds at least: no time that a handshake has ends a session
	if n := scrapeValue(t, c.edgeLocator.admin, "dialring_edge_sessions"); n < 80 {
		t.Errorf("%v sessions go through the locator, at least 80 should", n)
	}
	if d := load.disconnects(); len(d) > 0 {
		t.Errorf("applications saw a disconnect though nothing happened: %v", d)
	}
	if code := c.nodes[0].term(t); code != 0 {
		t.Errorf("ws-1 ended with %d", code)
	}
	if d := load.disconnects(); len(d) > 0 {
		t.Errorf("applications saw a disconnect when a node drained: %v", d)
	}
	load.pushed(t, 100)
	c.node(t, 0)
	c.other.waitMembers(t, "ws-1", "ws-2", "ws-3")
	load.pushed(t, 100)
	c.nodes[1].kill()
	c.other.waitMembers(t, "ws-1", "ws-3")
	load.pushed(t, 200)
	c.node(t, 1)
	c.other.waitMembers(t, "ws-1", "ws-2", "ws-3")
	load.pushed(t, 100)
	load.arrived(t)
	load.stop(t)
	eventually(t, "the locator lets go of connections that have ended", func() bool {
		return scrapeValue(t, c.edgeLocator.admin, "dialring_edge_sessions") == 0
	})
}

// scrapeValue reads one series without labels.
func scrapeValue(t *testing.T, admin, name string) float64 {
	t.Helper()
	n := &nodeProc{admin: admin}
	return n.metric(t, name)
}

// What goes through a locator: nodes of the ring, their paths for clients, and nothing else.
func TestLocatorEdgePaths(t *testing.T) {
	t.Parallel()
	c := startLocatorEdge(t)
	problem := func(what string, status int, body string, want int, code wire.Code) {
		t.Helper()
		var p wire.Problem
		if err := json.Unmarshal([]byte(body), &p); status != want || err != nil || p.Code != code {
			t.Errorf("%s: %d %s, want %d %s", what, status, body, want, code)
		}
	}
	for _, id := range []string{"ws-1", "ws-2", "ws-3"} {
		status, body := c.get(t, "/n/"+id+"/v1/ws", handshakeHeaders+"\r\n")
		problem("a handshake without a ticket at "+id, status, body, 401, wire.CodeUnauthorized)
		status, body = c.get(t, "/n/"+id+"/v1/ws", "")
		problem("no handshake at "+id, status, body, 400, wire.CodeInvalidRequest)
		if status, body := c.get(t, "/n/"+id+"/healthz", ""); status != 200 {
			t.Errorf("health of %s: %d %s", id, status, body)
		}
	}
	peerAddr, admin := c.nodes[0].peer, c.nodes[0].admin
	for _, path := range []string{"/n/unknown/v1/ws", "/n/ws-4/v1/ws", "/n/ws-11/v1/ws", "/n/127.0.0.1/v1/ws", "/n/" + peerAddr + "/v1/ws", "/n/" + admin + "/metrics",
		"/n/localhost/v1/ws", "/n//v1/ws", "/n/../v1/ws", "/n/%2e%2e/v1/ws", "/n/ws-1/../ws-2/v1/ws", "/n/ws-1%2fv1/ws", "/n/ws-1@127.0.0.1/v1/ws",
		"/n/ws-1/v1/ws/", "/n/ws-1/v1/wsx", "/n/ws-1/v1%2fws", "/n/ws-1//v1/ws", "/n/ws-1/metrics", "/n/ws-1" + peer.Path, "/n/ws-1", "/n/", "/n/WS-1/v1/ws"} {
		for _, headers := range []string{"", handshakeHeaders + "\r\n", "Upgrade: dialring-peer/1\r\nConnection: Upgrade\r\nAuthorization: Bearer x\r\n"} {
			if status, body := c.get(t, path, headers); status != 404 || !strings.Contains(body, string(wire.CodeNotFound)) {
				t.Errorf("%s with %q: %d %.200s, want 404", path, headers, status, body)
			}
		}
	}
	if status, body := c.raw(t, "GET /n/ws-1/v1/ws HTTP/1.0\r\nHost: localhost\r\n"+handshakeHeaders+"\r\n\r\n"); status != 400 {
		t.Errorf("HTTP/1.0: %d %s", status, body)
	}
	if status, body := c.raw(t, "GET /n/ws-1/v1/ws HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n"+handshakeHeaders+"\r\n\r\nx"); status != 400 {
		t.Errorf("a handshake with a body: %d %s", status, body)
	}
	if status, body := c.raw(t, "POST /n/ws-1/v1/ws HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"); status != 405 {
		t.Errorf("a POST: %d %s", status, body)
	}
	req, err := http.NewRequest("GET", c.url+"/n/ws-1/v1/ws", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"8"}, "Sec-Websocket-Key": {"AAAAAAAAAAAAAAAAAAAAAA=="}}
	tr := &http.Transport{TLSClientConfig: c.tls.Clone()}
	defer tr.CloseIdleConnections()
	old, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	old.Body.Close()
	if u := old.Header.Get("Upgrade"); old.StatusCode != 426 || u != "websocket" || old.Header.Get("Sec-Websocket-Version") != "13" {
		t.Errorf("version 8: %s, Upgrade %q", old.Status, u)
	}
	// Without the setting a locator relays nothing, and a node's peer address only takes it
	// from locators.
	if status, _ := call(t, "GET", "http://"+c.other.addr+"/n/ws-1/v1/ws", ""); status != 404 {
		t.Errorf("a locator without DIALRING_EDGE: %d", status)
	}
	for _, token := range []string{"", "x", c.other.locate(t, "alice", "").Ticket} {
		r, err := http.NewRequest("GET", "http://"+peerAddr+"/v1/ws", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set(peer.HeaderEdge, token)
		r.Header.Set(peer.HeaderClient, "203.0.113.7:1")
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 401 {
			t.Errorf("a stranger at the peer address with token %q: %d", token, resp.StatusCode)
		}
	}
}

// The node knows the client's own address, whatever the client says it is.
func TestLocatorEdgeAddress(t *testing.T) {
	t.Parallel()
	c := startLocatorEdge(t)
	loc := c.other.locate(t, "alice", `{"device":"d"}`)
	config := c.tls.Clone()
	config.ServerName = "localhost"
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", c.addr, config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /n/%s/v1/ws HTTP/1.1\r\nHost: localhost\r\n%s, %s%s\r\nDialring-Client: 203.0.113.7:1\r\nX-Forwarded-For: 203.0.113.8\r\n\r\n", loc.Node, handshakeHeaders, wire.TicketSubprotocol, loc.Ticket)
	if line, err := bufio.NewReader(io.LimitReader(conn, 32)).ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 101") {
		t.Fatalf("the locator answers %q, %v", line, err)
	}
	eventually(t, "alice is online", func() bool { return len(c.other.getUser(t, "alice").Sessions) == 1 })
	if got := c.other.getUser(t, "alice").Sessions[0].RemoteAddr; got != conn.LocalAddr().String() {
		t.Errorf("the node takes %s for the client's address, it is %s", got, conn.LocalAddr())
	}
	// A node that dies takes its connections through the locator with it, at once.
	for _, n := range c.nodes {
		if n.id == loc.Node {
			n.kill()
		}
	}
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	for {
		if _, err := conn.Read(make([]byte, 4096)); err != nil {
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Error("the connection to a dead node stays open")
			}
			break
		}
	}
}

// A certificate is renewed without a restart; files that do not fit change nothing.
func TestCertificateRenewed(t *testing.T) {
	t.Parallel()
	e := newEdge(t, "tls")
	files := []string{"DIALRING_TLS_CERT_FILE=" + filepath.Join(e.dir, "tls.crt"), "DIALRING_TLS_KEY_FILE=" + filepath.Join(e.dir, "tls.key")}
	env := []string{"SSL_CERT_FILE=" + e.ca}
	l := startLocator(t, append(env, files...)...)
	port := freePort(t)
	n := startNodeAt(t, "ws-1", l.nats, fmt.Sprintf("127.0.0.1:%d", port), "127.0.0.1:0", append(files, fmt.Sprintf("DIALRING_NODE_URL=wss://localhost:%d/v1/ws", port))...)
	shown := func(addr string) (serial string) {
		t.Helper()
		conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", addr, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		s := conn.ConnectionState()
		if s.Version < tls.VersionTLS12 {
			t.Errorf("TLS %x", s.Version)
		}
		return fmt.Sprintf("%x", s.PeerCertificates[0].Signature)
	}
	first := map[string]string{l.addr: shown(l.addr), n.addr: shown(n.addr)}
	expires := scrapeValue(t, l.admin, "dialring_certificate_expires_timestamp_seconds")
	if left := time.Until(time.Unix(int64(expires), 0)); left < time.Hour || left > 25*time.Hour {
		t.Errorf("the certificate expires in %v", left)
	}
	// An old TLS is refused, plain HTTP is not answered.
	if conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", l.addr, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}); err == nil {
		conn.Close()
		t.Error("TLS 1.1 is taken")
	}
	if resp, err := http.Get("http://" + l.addr + "/healthz"); err == nil {
		resp.Body.Close()
		if resp.StatusCode == 200 {
			t.Error("plain HTTP is answered")
		}
	}
	// A client over TLS, which the renewal does not touch.
	alice := listenAt(t, "alice", e.tls, "https://"+strings.Replace(l.addr, "127.0.0.1", "localhost", 1))

	writeFile(t, filepath.Join(e.dir, "tls.key"), "no key")
	l.event(t, "certificate_unread")
	for addr, was := range first {
		if shown(addr) != was {
			t.Errorf("%s shows another certificate while its files are broken", addr)
		}
	}
	edgeCertificate(t, e.dir)
	for addr, was := range first {
		eventually(t, addr+" shows the new certificate", func() bool { return shown(addr) != was })
	}
	r, err := http.NewRequest("POST", "https://"+l.addr+"/v1/push/alice", strings.NewReader(`"renewed"`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer dev")
	r.Header.Set("Content-Type", "application/json")
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("push: %d", resp.StatusCode)
	}
	alice.expect(t, `"renewed"`)
	select {
	case node := <-alice.conn:
		t.Errorf("the client had to connect again, at %s", node)
	default:
	}
}

// One request of a client's gets to a node, and nothing behind it: neither with it, nor after
// it was refused, whatever it asks to upgrade to.
func TestLocatorEdgeSmuggling(t *testing.T) {
	t.Parallel()
	c := startLocatorEdge(t)
	config := c.tls.Clone()
	config.ServerName = "localhost"
	second := "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
	for name, first := range map[string]string{
		"no ticket":      "GET /n/ws-1/v1/ws HTTP/1.1\r\nHost: localhost\r\n" + handshakeHeaders + "\r\n\r\n",
		"bad ticket":     "GET /n/ws-1/v1/ws HTTP/1.1\r\nHost: localhost\r\n" + handshakeHeaders + ", " + wire.TicketSubprotocol + "abc\r\n\r\n",
		"no upgrade":     "GET /n/ws-1/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"odd upgrade":    "GET /n/ws-1/v1/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: foo\r\n\r\n",
		"peer upgrade":   "GET /n/ws-1/v1/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: " + peer.Protocol + "\r\n\r\n",
		"health upgrade": "GET /n/ws-1/healthz HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
	} {
		for how, together := range map[string]bool{"pipelined": true, "after the answer": false} {
			conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", c.addr, config)
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.SetDeadline(time.Now().Add(patience))
			br := bufio.NewReader(conn)
			send := first
			if together {
				send += second
			}
			if _, err := io.WriteString(conn, send); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Fatalf("%s, %s: %v", name, how, err)
			}
			if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode == http.StatusSwitchingProtocols {
				t.Errorf("%s, %s: it is upgraded", name, how)
			}
			if !together {
				_, _ = io.WriteString(conn, second) // or it is closed already
			}
			// Whatever answers is the locator, whose health is plain text.
			if resp, err := http.ReadResponse(br, nil); err == nil {
				b, _ := io.ReadAll(resp.Body)
				if strings.Contains(string(b), "ws-1") || resp.Header.Get("Dialring-Node") != "" {
					t.Errorf("%s, %s: the node answers a second request: %d %s", name, how, resp.StatusCode, b)
				}
			}
			conn.Close()
		}
	}
	for _, n := range c.nodes {
		if strings.Contains(n.text(), "peer_refused") {
			t.Errorf("something got to the peer address of %s", n.id)
		}
	}
}

// A node that hangs costs its client some seconds; a client that leaves is no evidence
// against a node.
func TestLocatorEdgeHangs(t *testing.T) {
	t.Parallel()
	c := startLocatorEdge(t)
	dials := func(result string) float64 {
		return scrapeValue(t, c.edgeLocator.admin, `dialring_edge_dials_total{result="`+result+`"}`)
	}
	before := dials("unreachable")
	if err := c.nodes[0].cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.nodes[0].cmd.Process.Signal(syscall.SIGCONT) }()
	config := c.tls.Clone()
	config.ServerName = "localhost"
	for range 5 { // they leave while the node does not answer
		conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", c.addr, config)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET /n/ws-1/v1/ws HTTP/1.1\r\nHost: localhost\r\n%s\r\n\r\n", handshakeHeaders)
		conn.Close()
	}
	eventually(t, "they are counted", func() bool { return dials("refused") >= 5 })
	if after := dials("unreachable"); after != before {
		t.Errorf("%v clients that left count against the node", after-before)
	}
	if status, body := c.get(t, "/n/ws-1/v1/ws", handshakeHeaders+"\r\n"); status != 503 && status != 404 {
		t.Errorf("a dial of a node that hangs: %d %s", status, body)
	}
}
