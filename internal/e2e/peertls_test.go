package e2e

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/dialring/dialring/internal/certs"
	"github.com/dialring/dialring/internal/certs/certtest"
	"github.com/dialring/dialring/internal/config"
	"github.com/dialring/dialring/internal/machine"
	"github.com/dialring/dialring/internal/peer"
)

// here is where all listen in these tests.
var here = certtest.Leaf{Names: []string{"127.0.0.1"}}

// peerTLS writes a certificate of ca into a new directory, and returns that with the settings
// for it.
func peerTLS(t *testing.T, ca *certtest.CA, l certtest.Leaf) (dir string, env []string) {
	t.Helper()
	dir = t.TempDir()
	ca.Write(t, dir, l)
	return dir, tlsFiles("PEER_", dir)
}

func tlsFiles(prefix, dir string) []string {
	var env []string
	for setting, file := range map[string]string{"CERT": "tls.crt", "KEY": "tls.key", "CA": "ca.pem"} {
		env = append(env, "DIALRING_"+prefix+"TLS_"+setting+"_FILE="+filepath.Join(dir, file))
	}
	return env
}

// callerTLS is for calls with a certificate of ca.
func callerTLS(t *testing.T, ca *certtest.CA, l certtest.Leaf, roots ...[]byte) *tls.Config {
	t.Helper()
	certPEM, key := ca.Issue(t, l)
	c, err := tls.X509KeyPair(certPEM, key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	for _, r := range append(roots, ca.PEM) {
		pool.AppendCertsFromPEM(r)
	}
	// It is shown whether the CA is one that was asked for or not.
	return &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c, nil }}
}

// Everything within the cluster, in normal mode, by mutual TLS: peer calls, the relay of a locator to nodes, and
// the embedded NATS. Nothing is lost while a node drains, and one is killed. All that is
// strange is refused before anything of it is looked at.
func TestPeerTLS(t *testing.T) {
	t.Parallel()
	ca := certtest.New(t, "cluster")
	host := ownAddress(t)
	_, env := peerTLS(t, ca, certtest.Leaf{Names: []string{"127.0.0.1", host}})
	l := startNormalLocator(t, env...)
	if !strings.HasPrefix(l.nats, "tls://") {
		t.Fatalf("the embedded NATS is at %s", l.nats)
	}
	relay := startNormalLocator(t, append(env, "DIALRING_NATS_URL="+l.nats, "DIALRING_EDGE=true")...)
	var nodes []*nodeProc
	for i := range 3 {
		addr, peer := freeAddress(t, host), freeAddress(t, host)
		nodes = append(nodes, startNodeAt(t, fmt.Sprintf("ws-%d", i+1), l.nats, addr, peer, append(append(normalNodeEnv(l.nats, addr, peer), env...), "DIALRING_PEER_URL=https://"+peer)...))
	}
	l.waitMembers(t, "ws-1", "ws-2", "ws-3")
	for _, admin := range []string{l.admin, nodes[0].admin} {
		if left := time.Until(time.Unix(int64(scrapeValue(t, admin, "dialring_peer_certificate_expires_timestamp_seconds")), 0)); left < 23*time.Hour || left > 25*time.Hour {
			t.Errorf("the cluster's certificate expires in %v", left)
		}
	}
	eventually(t, "a locator relays to a node", func() bool {
		status, b := call(t, "GET", "http://"+relay.addr+"/n/ws-1/healthz", "")
		return status == 200 && strings.Contains(string(b), "ws-1")
	})
	t.Run("strangers", func(t *testing.T) { peerStrangers(t, ca, l, nodes[2]) })

	load := startLoad(t, loadConfig{Locators: []*locatorProc{l, relay}, Users: 20, Devices: 2, Rate: 100, Durable: true})
	load.pushed(t, 100)
	if code := nodes[0].term(t); code != 0 {
		t.Errorf("ws-1 ended with %d", code)
	}
	load.pushed(t, 100)
	if d := load.disconnects(); len(d) > 0 {
		t.Errorf("applications saw a disconnect when a node drained: %v", d)
	}
	nodes[1].kill()
	l.waitMembers(t, "ws-3")
	load.pushed(t, 100)
	load.arrived(t)
}

// peerStrangers is what a node and an embedded NATS of a cluster with TLS refuse.
func peerStrangers(t *testing.T, ca *certtest.CA, l *locatorProc, n *nodeProc) {
	other := certtest.New(t, "another cluster")
	late, onlyServer := here, here
	late.To = time.Now().Add(-time.Minute)
	onlyServer.Usages = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	good := callerTLS(t, ca, here)
	old := good.Clone()
	old.MaxVersion = tls.VersionTLS12
	bare := good.Clone()
	bare.GetClientCertificate = nil
	// Each asks for what is for everybody who gets in, and, with a token that is none, for a link.
	requests := []string{"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET " + peer.Path + " HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: " + peer.Protocol + "\r\nAuthorization: Bearer x\r\n\r\n"}
	for _, c := range []struct {
		name   string
		config *tls.Config
		why    string // in the node's log
	}{
		{"one without a certificate", bare, "didn't provide a certificate"},
		{"one of another CA", callerTLS(t, other, here, ca.PEM), "unknown authority"},
		{"an expired one", callerTLS(t, ca, late), "expired"},
		{"one for servers only", callerTLS(t, ca, onlyServer), "incompatible key usage"},
		{"TLS 1.2", old, "unsupported versions"},
	} {
		for _, request := range requests {
			answer, err := peerRequest(t, n.peer, c.config, request)
			if err == nil {
				t.Errorf("%s is answered: %q", c.name, answer)
			}
		}
		// The log hears once a second at most.
		eventually(t, "the log says why "+c.name+" is refused", func() bool {
			_, _ = peerRequest(t, n.peer, c.config, requests[0])
			return slices.ContainsFunc(strings.Split(n.text(), "\n"), func(line string) bool {
				return strings.Contains(line, `"event":"peer_refused"`) && strings.Contains(line, c.why)
			})
		})
	}
	if status, b := call(t, "GET", "http://"+n.peer+"/healthz", ""); status == 200 || strings.Contains(string(b), "ws-") {
		t.Errorf("plain HTTP: %d %s", status, b)
	}
	// A certificate is not enough: the token still is.
	for i, want := range []string{"200", "401"} {
		if answer, err := peerRequest(t, n.peer, good, requests[i]); err != nil || !strings.Contains(answer, " "+want+" ") {
			t.Errorf("with a good certificate: %q, %v; want %s", answer, err, want)
		}
	}

	token := nats.Token(normalNATSToken)
	plain := "nats" + strings.TrimPrefix(l.nats, "tls")
	for name, o := range map[string][]nats.Option{
		"no certificate": {token, nats.Secure(bare.Clone())},
		"another CA":     {token, nats.Secure(callerTLS(t, other, here, ca.PEM))},
		"TLS 1.2":        {token, nats.Secure(old.Clone())},
		"no token":       {nats.Secure(good.Clone())},
	} {
		if nc, err := nats.Connect(l.nats, o...); err == nil {
			nc.Close()
			t.Errorf("the embedded NATS takes %s", name)
		}
	}
	if nc, err := nats.Connect(plain, token, nats.Secure(good.Clone())); err != nil {
		t.Errorf("the embedded NATS refuses who has both: %v", err)
	} else {
		nc.Close()
	}
	// Without TLS nobody is heard: it is silent until a handshake comes.
	c, err := net.Dial("tcp", strings.TrimPrefix(l.nats, "tls://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(c, "CONNECT {\"verbose\":false,\"auth_token\":%q}\r\nPING\r\n", normalNATSToken)
	if b, _ := io.ReadAll(c); strings.Contains(string(b), "PONG") {
		t.Errorf("the embedded NATS takes who has no TLS: %q", b)
	}
}

// peerRequest sends one request by TLS, and returns the head of the answer.
func peerRequest(t *testing.T, addr string, config *tls.Config, request string) (string, error) {
	t.Helper()
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(patience))
	c := tls.Client(raw, config)
	if _, err := io.WriteString(c, request); err != nil {
		return "", err
	}
	return bufio.NewReader(c).ReadString('\n')
}

// A node whose certificate has not the name of its PEER_URL does not join, nor one without
// TLS, and the locator says why. One that the locator can call does.
func TestPeerTLSNames(t *testing.T) {
	t.Parallel()
	ca, other := certtest.New(t, "cluster"), certtest.New(t, "another")
	port := freePort(t)
	startNATS(t, port, t.TempDir())
	url := fmt.Sprintf("nats://127.0.0.1:%d", port)
	_, env := peerTLS(t, ca, here)
	l := startLocator(t, append(env, "DIALRING_NATS_URL="+url)...)
	_, wrong := peerTLS(t, ca, certtest.Leaf{Names: []string{"ws-9.example.com", "127.0.0.9"}})
	_, strange := peerTLS(t, other, here)
	startNode(t, "wrong-name", url, wrong...)
	startNode(t, "wrong-ca", url, strange...)
	startNode(t, "plain", url)
	startNode(t, "good", url, env...)
	l.waitMembers(t, "good")
	for node, why := range map[string]string{"wrong-name": "not 127.0.0.1", "wrong-ca": "unknown authority", "plain": "is not https"} {
		eventually(t, "the log says why "+node+" does not join", func() bool {
			return slices.ContainsFunc(strings.Split(l.text(), "\n"), func(line string) bool {
				return strings.Contains(line, `"event":"join_waits"`) && strings.Contains(line, `"node":"`+node+`"`) && strings.Contains(line, "DIALRING_PEER_URL") && strings.Contains(line, why)
			})
		})
	}
	l.waitMembers(t, "good")
}

// The certificates and then the CA of a cluster are changed while it works: no push fails, no
// client has to connect again, and in the end who has the old CA's certificate is a stranger.
func TestPeerTLSRotation(t *testing.T) {
	heavy(t)
	t.Parallel()
	old, next := certtest.New(t, "old"), certtest.New(t, "new")
	dirs, envs := make([]string, 3), make([][]string, 3)
	for i := range dirs {
		dirs[i], envs[i] = peerTLS(t, old, here)
	}
	l := startLocator(t, envs[0]...)
	a, b := startNode(t, "a", l.nats, envs[1]...), startNode(t, "b", l.nats, envs[2]...)
	l.waitMembers(t, "a", "b")
	all := []*process{l.process, a.process, b.process}
	load := startLoad(t, loadConfig{Locators: []*locatorProc{l}, Users: 20, Devices: 1, Rate: 100})
	load.pushed(t, 50)
	change := func(what string, f func(dir string)) {
		t.Helper()
		for _, dir := range dirs {
			f(dir)
		}
		for _, p := range all {
			p.event(t, "certificate")
		}
		load.pushed(t, 50)
		t.Log(what)
	}
	ca := func(b ...[]byte) func(string) {
		return func(dir string) { certtest.Put(t, filepath.Join(dir, "ca.pem"), slices.Concat(b...)) }
	}
	change("both CAs", ca(old.PEM, next.PEM))
	certPEM, key := next.Issue(t, here)
	// Certificate and key are two files: in between they do not fit, and the last ones go on.
	change("certificates of the new one", func(dir string) {
		certtest.Put(t, filepath.Join(dir, "tls.key"), key)
		certtest.Put(t, filepath.Join(dir, "tls.crt"), certPEM)
	})
	change("the new one only", ca(next.PEM))
	// What is new knows the new CA only, and all call it and are called.
	_, env := peerTLS(t, next, here)
	late := startNode(t, "late", l.nats, env...)
	l.waitMembers(t, "a", "b", "late")
	sameRing(t, l, l)
	if code := a.term(t); code != 0 { // over links that are made now
		t.Errorf("a ended with %d", code)
	}
	l.waitMembers(t, "b", "late")
	load.pushed(t, 100)
	for _, n := range []*nodeProc{b, late} {
		if answer, err := peerRequest(t, n.peer, callerTLS(t, old, here, next.PEM), "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); err == nil {
			t.Errorf("%s answers who has a certificate of the old CA: %s", n.id, answer)
		}
	}
	if d := load.disconnects(); len(d) > 0 {
		t.Errorf("applications saw a disconnect: %v", d)
	}
	load.arrived(t)
}

// Wrong files are wrong settings: an error that says which, and status 78.
func TestPeerTLSFiles(t *testing.T) {
	t.Parallel()
	ca, other := certtest.New(t, "cluster"), certtest.New(t, "another")
	dir, env := peerTLS(t, ca, here)
	broken := t.TempDir()
	other.Write(t, broken, here)
	certtest.Put(t, filepath.Join(broken, "ca.pem"), ca.PEM)
	for _, c := range []struct {
		name string
		env  []string
		want []string
	}{
		{"a file that is not there", append(slices.Clone(env), "DIALRING_PEER_TLS_CA_FILE="+filepath.Join(dir, "missing.pem")), []string{"DIALRING_PEER_TLS_CA_FILE", "missing.pem", "no such file"}},
		{"a certificate of another CA", tlsFiles("PEER_", broken), []string{"DIALRING_PEER_TLS_CERT_FILE", "unknown authority"}},
		{"a CA that is none", append(slices.Clone(env), "DIALRING_PEER_TLS_CA_FILE="+filepath.Join(dir, "tls.key")), []string{"DIALRING_PEER_TLS_CA_FILE", "PRIVATE KEY"}},
		{"two of three", []string{env[0], env[1]}, []string{"all three"}},
		{"a CA of NATS that is not there", []string{"DIALRING_NATS_URL=tls://127.0.0.1:1", "DIALRING_NATS_TLS_CA_FILE=/nowhere/ca.pem"}, []string{"DIALRING_NATS_TLS_CA_FILE", "/nowhere/ca.pem"}},
		{"a key for clients that does not fit", []string{"DIALRING_TLS_CERT_FILE=" + filepath.Join(dir, "tls.crt"), "DIALRING_TLS_KEY_FILE=" + filepath.Join(broken, "tls.key")}, []string{"DIALRING_TLS_CERT_FILE", "does not match"}},
	} {
		for _, program := range []string{"locator", "wsnode"} {
			cmd := exec.Command(filepath.Join(bin, program))
			cmd.Dir = t.TempDir()
			cmd.Env = append([]string{"DIALRING_DEV=true", "DIALRING_LISTEN=127.0.0.1:0", "DIALRING_PEER_LISTEN=127.0.0.1:0", "DIALRING_ADMIN_LISTEN=127.0.0.1:0"}, c.env...)
			if program == "locator" {
				cmd.Env = slices.DeleteFunc(cmd.Env, func(s string) bool { return strings.HasPrefix(s, "DIALRING_PEER_LISTEN") })
			}
			out, _ := cmd.CombinedOutput()
			if code := cmd.ProcessState.ExitCode(); code != 78 {
				t.Errorf("%s, %s: it ended with %d:\n%s", program, c.name, code, out)
			}
			for _, w := range c.want {
				if !strings.Contains(string(out), w) {
					t.Errorf("%s, %s: it does not say %q:\n%s", program, c.name, w, out)
				}
			}
		}
	}
}

// What the guide says makes certificates that the programs take.
func TestPeerTLSGuide(t *testing.T) {
	t.Parallel()
	machine.Program(t, "openssl", "openssl")
	guide, err := os.ReadFile(filepath.Join("..", "..", "deploy", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, text, found := strings.Cut(string(guide), "A CA and a certificate for each program by openssl")
	var script strings.Builder
	for line := range strings.Lines(text) {
		if command, ok := strings.CutPrefix(line, "    "); ok {
			script.WriteString(command)
		} else if script.Len() > 0 {
			break
		}
	}
	dir := t.TempDir()
	cmd := exec.Command("sh", "-ec", script.String())
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil || !found {
		t.Fatalf("%v\n%s\n%s", err, script.String(), out)
	}
	files := config.TLSFiles{Prefix: "PEER_", Cert: filepath.Join(dir, "peer.crt"), Key: filepath.Join(dir, "peer.key"), CA: filepath.Join(dir, "peer-ca.crt"), Mutual: true}
	f, err := certs.Load(files, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ws-1.internal.example.com", "10.0.0.11"} {
		if err := f.Certificate().Leaf.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
}

// A NATS of its own with a private CA, which asks for certificates: both programs get in, say
// what is wrong when they do not, and take the server's new CA without a restart.
func TestNATSTLS(t *testing.T) {
	t.Parallel()
	ca, clients := certtest.New(t, "NATS"), certtest.New(t, "clients")
	serverDir, clientDir := t.TempDir(), t.TempDir()
	ca.Write(t, serverDir, here)
	certtest.Put(t, filepath.Join(serverDir, "ca.pem"), clients.PEM)
	clients.Write(t, clientDir, certtest.Leaf{Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	certtest.Put(t, filepath.Join(clientDir, "ca.pem"), ca.PEM)
	port, store := freePort(t), t.TempDir()
	server := startNATS(t, port, store, "DR_E2E_NATS_TLS="+serverDir)
	url := fmt.Sprintf("tls://127.0.0.1:%d", port)
	env := append(tlsFiles("NATS_", clientDir), "DIALRING_NATS_URL="+url)
	l := startLocator(t, env...)
	n := startNode(t, "a", url, env...)
	l.waitMembers(t, "a")
	l.keep(t, "alice", "1")

	for why, p := range map[string]*nodeProc{ // what nats.go says of a certificate that is missing differs
		"x509: certificate signed by unknown authority": startNode(t, "stranger", url),
		"tls": startNode(t, "bare", url, "DIALRING_NATS_TLS_CA_FILE="+filepath.Join(clientDir, "ca.pem")),
	} {
		eventually(t, "it says "+why, func() bool {
			return slices.ContainsFunc(strings.Split(p.text(), "\n"), func(line string) bool {
				return strings.Contains(line, `"event":"nats_down"`) && strings.Contains(line, why)
			})
		})
	}

	next := certtest.New(t, "the next of NATS")
	certtest.Put(t, filepath.Join(clientDir, "ca.pem"), slices.Concat(ca.PEM, next.PEM))
	for _, p := range []*process{l.process, n.process} {
		p.event(t, "certificate")
	}
	next.Write(t, serverDir, here)
	certtest.Put(t, filepath.Join(serverDir, "ca.pem"), clients.PEM)
	server.kill()
	for _, p := range []*process{l.process, n.process} {
		p.event(t, "nats_down")
	}
	startNATS(t, port, store, "DR_E2E_NATS_TLS="+serverDir)
	for _, p := range []*process{l.process, n.process} {
		p.event(t, "nats_up")
	}
	l.stores(t, "alice", "2")
}

// Beyond loopback an admin listener has the certificate of the listener for clients, if there
// is one: a key does not go over the network as clear text.
func TestAdminTLS(t *testing.T) {
	t.Parallel()
	e := newEdge(t, "tls")
	files := []string{"DIALRING_TLS_CERT_FILE=" + filepath.Join(e.dir, "tls.crt"), "DIALRING_TLS_KEY_FILE=" + filepath.Join(e.dir, "tls.key"),
		"DIALRING_DEV=insecure", "DIALRING_ADMIN_LISTEN=0.0.0.0:0", "DIALRING_ADMIN_KEY=an admin key of the tests"}
	l := startLocator(t, files...)
	n := startNode(t, "a", l.nats, files...)
	transport := &http.Transport{TLSClientConfig: e.tls}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: patience}
	for name, admin := range map[string]string{"locator": l.admin, "node": n.admin} {
		_, port, err := net.SplitHostPort(admin)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{"/metrics", "/debug/pprof/", "/healthz"} {
			req, err := http.NewRequest("GET", "https://localhost:"+port+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer an admin key of the tests")
			resp, err := client.Do(req)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			resp.Body.Close()
			if resp.StatusCode != 200 {
				t.Errorf("%s, %s: %d", name, path, resp.StatusCode)
			}
		}
		if status, b := adminCall(t, "GET", "http://127.0.0.1:"+port+"/metrics", ""); status == 200 {
			t.Errorf("%s: plain HTTP is answered: %.100s", name, b)
		}
	}
}

// The NATS servers of three locators, by mutual TLS between each other and for nodes: under
// load, while the CA changes and each is started anew, which makes new routes; and one with the
// old CA's certificate stays out.
func TestPeerTLSRoutes(t *testing.T) {
	heavy(t)
	atATime(t)
	old, next := certtest.New(t, "old"), certtest.New(t, "new")
	g := newTrio(t)
	g.natsURL = strings.ReplaceAll(g.natsURL, "nats://", "tls://")
	var dirs []string
	for i := range g.env {
		dir, env := peerTLS(t, old, here)
		dirs, g.env[i] = append(dirs, dir), append(g.env[i], env...)
		g.start(t, i)
	}
	dir, env := peerTLS(t, old, here)
	dirs = append(dirs, dir)
	nodes := nodesOf(t, g.l[0], g.natsURL, append(env, "DIALRING_INBOX_PARTITIONS=3")...)
	for _, l := range g.l {
		l.waitReady(t)
	}
	load := durableLoad(t, g.l[:]...)
	load.pushed(t, 100)
	change := func(f func(dir string)) {
		t.Helper()
		for _, dir := range dirs {
			f(dir)
		}
		for _, l := range g.l {
			l.event(t, "certificate")
		}
		for _, n := range nodes {
			n.event(t, "certificate")
		}
	}
	change(func(dir string) { certtest.Put(t, filepath.Join(dir, "ca.pem"), slices.Concat(old.PEM, next.PEM)) })
	certPEM, key := next.Issue(t, here)
	change(func(dir string) {
		certtest.Put(t, filepath.Join(dir, "tls.key"), key)
		certtest.Put(t, filepath.Join(dir, "tls.crt"), certPEM)
	})
	for i := range g.l {
		g.l[i].kill()
		g.start(t, i).waitReady(t)
		load.pushed(t, 50)
	}
	change(func(dir string) { certtest.Put(t, filepath.Join(dir, "ca.pem"), next.PEM) })
	g.l[1].kill()
	_, late := peerTLS(t, old, here)
	stranger := g.start(t, 1, late...)
	g.l[0].event(t, "nats_route_refused")
	eventually(t, "it says that it is alone", func() bool { return strings.HasPrefix(stranger.ready(t), "503") })
	stranger.kill()
	g.start(t, 1).waitReady(t)
	load.pushed(t, 100)
	load.arrived(t)
	if strings.Contains(g.l[0].text(), "DO NOT USE IN PRODUCTION") {
		t.Error("it says that routes are not verified")
	}
}

// What mutual TLS costs: processor time of locator and nodes for each push, one at a time and
// in lists, beside that of the same cluster without.
func TestMeasurePeerTLS(t *testing.T) {
	measures(t)
	const calls, list = 4_000, 20
	_, env := peerTLS(t, certtest.New(t, "cluster"), here)
	type side struct {
		l *locatorProc
		n []*nodeProc
	}
	var sides [2]side
	for i, e := range [][]string{nil, env} {
		l := startLocator(t, append(slices.Clone(e), "DIALRING_DATA_SYNC=interval")...)
		sides[i] = side{l, nodesOf(t, l, l.nats, e...)}
	}
	spent := func(s side) time.Duration {
		sum := s.l.cpu(t)
		for _, n := range s.n {
			sum += n.cpu(t)
		}
		return sum
	}
	for what, body := range map[string]func(i int) (path, body string){
		"ephemeral, one by one": func(i int) (string, string) { return fmt.Sprintf("/v1/push/u%d?durable=false", i), `"x"` },
		"stored, one by one":    func(i int) (string, string) { return fmt.Sprintf("/v1/push/u%d", i), `"x"` },
		"ephemeral, 1 KiB, lists of 20": func(i int) (string, string) {
			var users []string
			for u := range list {
				users = append(users, fmt.Sprintf(`"u%d"`, i*list+u))
			}
			return "/v1/push?durable=false", `{"users":[` + strings.Join(users, ",") + `],"data":"` + strings.Repeat("x", 1024) + `"}`
		},
	} {
		var took [2]time.Duration
		for range 3 { // by turns: the machine is not ours alone
			for i, s := range sides {
				before := spent(s)
				for k := range calls / 3 {
					path, b := body(k)
					if p := s.l.post(path, "application/json", b, ""); p.status != 200 {
						t.Fatalf("%d %.200s", p.status, p.body)
					}
				}
				took[i] += spent(s) - before
			}
		}
		t.Logf("%s: %.1f us for each call without TLS, %.1f us with, %.2f times", what, float64(took[0].Microseconds())/calls, float64(took[1].Microseconds())/calls, float64(took[1])/float64(took[0]))
	}
}
