package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/certs/certtest"
	"github.com/dialring/dialring/internal/machine"
	"github.com/dialring/dialring/internal/wire"
)

// edge is a proxy with the one TLS name of a cluster, by the files in deploy/edge.
type edge struct {
	name  string
	addr  string
	url   string // https://localhost:port
	tls   *tls.Config
	dir   string // of its files
	ca    string // file
	start func() *process
	logs  func() (access, all string) // what it has logged
	// reload has it read its files anew; nil: that would end all connections.
	reload func()
}

// edgeFile reads a file that ships, with what is of a site put in for each example. An
// example that is not there is an error: the file must be what was tested.
func edgeFile(t *testing.T, name string, site map[string]string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "deploy", "edge", name))
	if err != nil {
		t.Fatal(err)
	}
	s := string(b)
	for example, value := range site {
		if !strings.Contains(s, example) {
			t.Fatalf("deploy/edge/%s has no %q", name, example)
		}
		s = strings.ReplaceAll(s, example, value)
	}
	return s
}

func writeFile(t *testing.T, file, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// edgeSite is where the parts behind an edge are, as host:port.
type edgeSite struct {
	locators, nodes []string
}

// newEdge makes what both proxies need: an address and a certificate.
func newEdge(t *testing.T, name string) *edge {
	t.Helper()
	// nginx's workers are another user's: they must be able to get here.
	dir, err := os.MkdirTemp("", "dialring-edge")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	port := quietPort(t)
	e := &edge{name: name, addr: fmt.Sprintf("127.0.0.1:%d", port), url: fmt.Sprintf("https://localhost:%d", port), dir: dir, ca: filepath.Join(dir, "ca.pem")}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(edgeCertificate(t, dir))
	e.tls = &tls.Config{RootCAs: pool}
	return e
}

// edgeCertificate writes ca.pem, tls.crt and tls.key for localhost, and returns the first.
func edgeCertificate(t *testing.T, dir string) []byte {
	t.Helper()
	ca := certtest.New(t, "test CA")
	ca.Write(t, dir, certtest.Leaf{Names: []string{"localhost"}, Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	return ca.PEM
}

// nginxEdge is nginx by deploy/edge/nginx.conf, to the byte; of the files of a site only
// addresses, paths and the name are others.
func nginxEdge(t *testing.T, site edgeSite) *edge {
	t.Helper()
	program := machine.Program(t, "nginx", "nginx-light")
	e := newEdge(t, "nginx")
	dir := e.dir
	writeFile(t, filepath.Join(dir, "nginx.conf"), edgeFile(t, "nginx.conf", nil))
	writeFile(t, filepath.Join(dir, "nginx", "listen.conf"), edgeFile(t, "nginx/listen.conf", map[string]string{
		"listen 443": "listen " + e.addr, "listen [::]:443 ssl;\n": "", "ws.example.com": "localhost", "/etc/nginx/tls": dir}))
	writeFile(t, filepath.Join(dir, "nginx", "locators.conf"), edgeFile(t, "nginx/locators.conf", map[string]string{
		"10.0.0.1:8080": site.locators[0], "10.0.0.2:8080": site.locators[1]}))
	writeFile(t, filepath.Join(dir, "nginx", "nodes.conf"), edgeFile(t, "nginx/nodes.conf", map[string]string{
		"10.0.0.11:8090": site.nodes[0], "10.0.0.12:8090": site.nodes[1], "10.0.0.13:8090": site.nodes[2]}))
	writeFile(t, filepath.Join(dir, "nginx", "services.conf"), edgeFile(t, "nginx/services.conf", nil))
	writeFile(t, filepath.Join(dir, "nginx", "log.conf"), edgeFile(t, "nginx/log.conf", map[string]string{"/var/log/nginx": dir}))
	e.start = func() *process {
		p := start(t, "nginx", program, nil, "-p", dir+"/", "-c", filepath.Join(dir, "nginx.conf"), "-e", "stderr", "-g", "daemon off; pid "+filepath.Join(dir, "pid")+";")
		t.Cleanup(func() { p.term(t) }) // its workers would outlive a kill
		e.reload = func() { _ = p.cmd.Process.Signal(syscall.SIGHUP) }
		waitTCP(t, e.addr)
		return p
	}
	e.logs = func() (access, all string) {
		a, err := os.ReadFile(filepath.Join(dir, "access.log"))
		b, err2 := os.ReadFile(filepath.Join(dir, "error.log"))
		if err := errors.Join(err, err2); err != nil {
			t.Error(err)
		}
		return string(a), string(a) + string(b)
	}
	return e
}

// caddyEdge is Caddy by deploy/edge/Caddyfile, to the byte.
func caddyEdge(t *testing.T, site edgeSite) *edge {
	t.Helper()
	program := machine.Program(t, "caddy", "caddy")
	e := newEdge(t, "caddy")
	dir := e.dir
	writeFile(t, filepath.Join(dir, "Caddyfile"), edgeFile(t, "Caddyfile", nil))
	writeFile(t, filepath.Join(dir, "caddy", "nodes.caddy"), edgeFile(t, "caddy/nodes.caddy", map[string]string{
		"10.0.0.11:8090": site.nodes[0], "10.0.0.12:8090": site.nodes[1], "10.0.0.13:8090": site.nodes[2]}))
	writeFile(t, filepath.Join(dir, "caddy", "tls.caddy"), edgeFile(t, "caddy/tls.caddy", map[string]string{"# tls ": "tls ", "/etc/caddy/tls": dir}))
	var p *process
	e.start = func() *process {
		p = start(t, "caddy", program, []string{"EDGE_DOMAIN=" + strings.TrimPrefix(e.url, "https://"), "EDGE_ADMIN=off",
			fmt.Sprintf("EDGE_HTTP_PORT=%d", quietPort(t)), "EDGE_LOCATORS=" + strings.Join(site.locators, " "), "XDG_DATA_HOME=" + dir, "XDG_CONFIG_HOME=" + dir},
			"run", "--config", filepath.Join(dir, "Caddyfile"))
		waitTCP(t, e.addr)
		return p
	}
	e.logs = func() (access, all string) { return p.text(), p.text() }
	return e
}

// raw sends bytes and returns the status, and the body, of the answer.
func (e *edge) raw(t *testing.T, request string) (int, string) {
	t.Helper()
	config := e.tls.Clone()
	config.ServerName, config.NextProtos = "localhost", []string{"http/1.1"}
	c, err := (&tls.Dialer{NetDialer: &net.Dialer{Timeout: patience}, Config: config}).DialContext(t.Context(), "tcp", e.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func (e *edge) get(t *testing.T, path, headers string) (int, string) {
	t.Helper()
	return e.raw(t, "GET "+path+" HTTP/1.1\r\nHost: localhost\r\n"+headers+"\r\n")
}

// handshakeHeaders are those of a handshake, without a ticket and without the last end of a line.
const handshakeHeaders = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n" +
	"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: dialring.v1"

// edgeCluster is two locators, NATS and three nodes behind an edge.
type edgeCluster struct {
	*edge
	locators []*locatorProc
	nats     string
	site     edgeSite
	nodes    []*nodeProc
	proxy    *process
}

func (c *edgeCluster) node(t *testing.T, i int, env ...string) *nodeProc {
	t.Helper()
	id := fmt.Sprintf("ws-%d", i+1)
	return startNodeAt(t, id, c.nats, c.site.nodes[i], "127.0.0.1:0", append(env, "DIALRING_TRUSTED_PROXIES=127.0.0.1", "DIALRING_NODE_URL=wss"+strings.TrimPrefix(c.url, "https")+"/n/"+id+"/v1/ws")...)
}

func startEdgeCluster(t *testing.T, proxy func(*testing.T, edgeSite) *edge) *edgeCluster {
	t.Helper()
	c := &edgeCluster{}
	for range 3 {
		c.site.nodes = append(c.site.nodes, fmt.Sprintf("127.0.0.1:%d", quietPort(t)))
	}
	for range 2 {
		c.site.locators = append(c.site.locators, fmt.Sprintf("127.0.0.1:%d", quietPort(t)))
	}
	c.edge = proxy(t, c.site)
	natsPort := quietPort(t)
	startNATS(t, natsPort, t.TempDir())
	c.nats = fmt.Sprintf("nats://127.0.0.1:%d", natsPort)
	c.proxy = c.start()
	for _, addr := range c.site.locators {
		c.locators = append(c.locators, startLocator(t, "DIALRING_NATS_URL="+c.nats, "DIALRING_LISTEN="+addr, "SSL_CERT_FILE="+c.ca, "DIALRING_TRUSTED_PROXIES=127.0.0.1"))
	}
	for i := range c.site.nodes {
		c.nodes = append(c.nodes, c.node(t, i))
	}
	for _, l := range c.locators {
		l.waitMembers(t, "ws-1", "ws-2", "ws-3")
		eventually(t, l.addr+" is ready", func() bool { status, _ := call(t, "GET", "http://"+l.addr+"/readyz", ""); return status == 200 })
	}
	return c
}

var edges = map[string]func(*testing.T, edgeSite) *edge{"nginx": nginxEdge, "caddy": caddyEdge}

// Clients and services behind each proxy, while a node drains, comes back, and one is
// killed, and then a locator: nothing is lost and nothing comes twice. No ticket, token or key is logged.
func TestEdge(t *testing.T) {
	heavy(t)
	t.Parallel()
	for name, proxy := range edges {
		t.Run(name, func(t *testing.T) {
			c := startEdgeCluster(t, proxy)
			load := startLoad(t, loadConfig{Locators: c.locators, Edge: c.edge, Users: 40, Devices: 2, Rate: 100, Durable: true})
			load.pushed(t, 200)
			if c.reload != nil {
				c.reload()
				load.pushed(t, 100)
			}
			if code := c.nodes[0].term(t); code != 0 {
				t.Errorf("ws-1 ended with %d", code)
			}
			if d := load.disconnects(); len(d) > 0 {
				t.Errorf("applications saw a disconnect when the proxy was reloaded or a node drained: %v", d)
			}
			load.pushed(t, 100)
			c.node(t, 0)
			c.locators[0].waitMembers(t, "ws-1", "ws-2", "ws-3")
			load.pushed(t, 100)
			c.nodes[1].kill()
			// A request that fails is logged in other ways than one that does not.
			if status, body := c.get(t, "/n/ws-2/v1/ws?since=1-2-3", handshakeHeaders+", "+wire.TicketSubprotocol+"secret\r\nAuthorization: Bearer secret\r\n"); status != 502 {
				t.Errorf("a dial of a node that is not there: %d %.200s", status, body)
			}
			c.locators[0].waitMembers(t, "ws-1", "ws-3")
			load.pushed(t, 200)
			c.node(t, 1)
			c.locators[0].waitMembers(t, "ws-1", "ws-2", "ws-3")
			load.pushed(t, 100)
			c.locators[1].kill()
			load.pushed(t, 100)
			load.arrived(t)
			access, all := c.logs()
			if !strings.Contains(access, "/n/ws-1/v1/ws") || !strings.Contains(access, "/v1/push/load-1") {
				t.Errorf("the log does not show what was asked:\n%.2000s", access)
			}
			for secret, log := range map[string]string{wire.TicketSubprotocol: all, "Bearer": all, "secret": all, "user=load": access, "since=": access} {
				if i := strings.Index(log, secret); i >= 0 {
					t.Errorf("the log has %q:\n%.600s", secret, log[max(0, i-300):])
				}
			}
		})
	}
}

// What an edge lets through, and what not.
func TestEdgePaths(t *testing.T) {
	t.Parallel()
	for name, proxy := range edges {
		t.Run(name, func(t *testing.T) {
			c := startEdgeCluster(t, proxy)
			handshake := func(path string) (int, string) {
				return c.get(t, path, handshakeHeaders+"\r\n")
			}
			problem := func(what string, status int, body string, want int, code wire.Code) {
				t.Helper()
				var p wire.Problem
				if err := json.Unmarshal([]byte(body), &p); status != want || err != nil || p.Code != code {
					t.Errorf("%s: %d %s, want %d %s", what, status, body, want, code)
				}
			}
			// The nodes' own answers: the one that is named, and what it says.
			for _, id := range []string{"ws-1", "ws-2", "ws-3"} {
				status, body := handshake("/n/" + id + "/v1/ws")
				problem("a handshake without a ticket at "+id, status, body, 401, wire.CodeUnauthorized)
				status, body = c.get(t, "/n/"+id+"/v1/ws", "")
				problem("no handshake at "+id, status, body, 400, wire.CodeInvalidRequest)
			}
			// Everything else below /n is nothing, whatever it looks like. The last ones are of
			// the node itself, whose other paths are not for clients.
			admin := strings.TrimPrefix(c.nodes[0].adminOf(t), "http://")
			for _, path := range []string{"/n/unknown/v1/ws", "/n/ws-4/v1/ws", "/n/ws-11/v1/ws", "/n/127.0.0.1/v1/ws", "/n/" + admin + "/v1/ws", "/n/" + admin + "/metrics",
				"/n/127.0.0.1:8091/v1/ws", "/n/localhost/v1/ws", "/n//v1/ws", "/n/../v1/ws", "/n/%2e%2e/v1/ws", "/n/..%2fv1/ws", "/n/ws-1/../ws-4/v1/ws", "/n/ws-1@127.0.0.1/v1/ws",
				"/n/ws-1.example.com/v1/ws", "/n/ws-1%00/v1/ws", "/n/ws-1%0d%0aX:1/v1/ws", "/n/ws-1/v1/ws/", "/n/ws-1/v1/wsx", "/n/ws-1/healthz", "/n/ws-1/metrics", "/n/ws-1/readyz", "/n/ws-1", "/n/", "/"} {
				for how, ask := range map[string]func() (int, string){"GET": func() (int, string) { return c.get(t, path, "") }, "handshake": func() (int, string) { return handshake(path) }} {
					// 400 is for what is no path at all, such as one with a zero byte.
					status, body := ask()
					if status != 404 && (status != 400 || !strings.Contains(path, "%0")) || strings.Contains(body, "ws-1") {
						t.Errorf("%s %s: %d %.200s, want 404 of the edge", how, path, status, body)
					}
				}
			}
			// Paths of the programs that are not for here.
			for _, path := range []string{"/metrics", "/debug/pprof/", "/v2/locate", "/link", "/v1/ws"} {
				if status, body := c.get(t, path, ""); status != 404 {
					t.Errorf("GET %s: %d %.200s", path, status, body)
				}
			}
			for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/v1/openapi.json": 200, "/v1/ring": 401} {
				if status, body := c.get(t, path, ""); status != want {
					t.Errorf("GET %s: %d %.200s, want %d", path, status, body, want)
				}
			}
			status, body := c.raw(t, "POST /v1/locate?user=x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20000\r\n\r\n"+strings.Repeat(" ", 20000))
			if status != 413 {
				t.Errorf("a locate of 20,000 bytes: %d %.200s", status, body)
			}
			if got, want := c.remoteBehind(t); got != want {
				t.Errorf("a node takes %s for the address of the client at %s", got, want)
			}
		})
	}
}

// nginx in front limits addresses before the programs do, and keeps services of
// other networks out.
func TestEdgeLimits(t *testing.T) {
	t.Parallel()
	c := startEdgeCluster(t, nginxEdge)
	transport := &http.Transport{TLSClientConfig: c.tls}
	defer transport.CloseIdleConnections()
	ask := func(method, path string) (*http.Response, wire.Problem) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, c.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := (&http.Client{Transport: transport, Timeout: patience}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var p wire.Problem
		if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK && json.Unmarshal(b, &p) != nil {
			t.Fatalf("%s %s: %d %s %v", method, path, resp.StatusCode, b, err)
		}
		return resp, p
	}
	for path, usual := range map[string]int{"/v1/locate?user=x": 200, "/n/ws-1/v1/ws": 400} {
		// As fast as one can ask, which is faster than 50 a second.
		for n, end := 0, time.Now().Add(patience); ; n++ {
			resp, p := ask("GET", path)
			if resp.StatusCode == 429 {
				if n < 200 || p.Code != wire.CodeRateLimited || resp.Header.Get("Retry-After") == "" {
					t.Errorf("%s was limited after %d, the burst is 200: %+v %v", path, n, p, resp.Header)
				}
				break
			}
			if resp.StatusCode != usual || time.Now().After(end) {
				t.Fatalf("%s, number %d: %d %+v", path, n, resp.StatusCode, p)
			}
		}
	}
	if resp, p := ask("GET", "/v1/ring"); resp.StatusCode != 401 || p.Code != wire.CodeUnauthorized {
		t.Errorf("a service of this machine without a key: %d %+v", resp.StatusCode, p)
	}
	writeFile(t, filepath.Join(c.dir, "nginx", "services.conf"), edgeFile(t, "nginx/services.conf", map[string]string{"allow 127.0.0.0/8;\n": ""}))
	c.reload()
	for _, path := range []string{"/v1/ring", "/v1/push", "/v1/users/x"} {
		eventually(t, path+" is not for other networks", func() bool {
			transport.CloseIdleConnections() // or an old worker goes on to answer
			resp, p := ask("GET", path)
			return resp.StatusCode == 403 && p.Code == wire.CodeForbidden
		})
	}
	if resp, _ := ask("GET", "/v1/locate?user=x"); resp.StatusCode != 200 && resp.StatusCode != 429 {
		t.Errorf("a locate from another network: %d", resp.StatusCode)
	}
}

// A stream of pushes goes on in both directions: its results come while it is open.
func TestEdgeStream(t *testing.T) {
	t.Parallel()
	for name, proxy := range edges {
		t.Run(name, func(t *testing.T) {
			c := startEdgeCluster(t, proxy)
			transport := &http.Transport{TLSClientConfig: c.tls, ForceAttemptHTTP2: true}
			defer transport.CloseIdleConnections()
			pr, pw := io.Pipe()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, "POST", c.url+"/v1/push", pr)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer dev")
			req.Header.Set("Content-Type", "application/x-ndjson")
			lines := func(n int) []byte { return bytes.Repeat([]byte(`{"user":"x","data":1}`+"\n"), n) }
			go func() { _, _ = pw.Write(lines(1)) }()
			resp, err := (&http.Client{Transport: transport}).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			t.Log(resp.Proto)
			results := bufio.NewScanner(resp.Body)
			for i := range 3 {
				if i > 0 {
					if _, err := pw.Write(lines(1)); err != nil {
						t.Fatal(err)
					}
				}
				if !results.Scan() || !strings.Contains(results.Text(), `"stored":true`) {
					t.Fatalf("result %d: %s %v", i, results.Text(), results.Err())
				}
			}
			pw.Close()
		})
	}
}
