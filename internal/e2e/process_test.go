package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/dialring/dialring/client"
	"github.com/dialring/dialring/internal/wire"
)

// process is a program under test.
type process struct {
	name string
	cmd  *exec.Cmd
	env  []string
	done chan struct{}

	tap func(line []byte) // of each line that it logs; may be nil

	mu    sync.Mutex
	log   bytes.Buffer
	lines chan map[string]any // parsed log lines with an event
}

// start runs a program with these settings and nothing of ours; it is killed
// when the test ends.
func start(t *testing.T, name, path string, env []string, args ...string) *process {
	t.Helper()
	return startTapped(t, nil, name, path, env, args...)
}

// startTapped does that, and hands each line of its output on, too.
func startTapped(t *testing.T, tap func([]byte), name, path string, env []string, args ...string) *process {
	t.Helper()
	p := &process{name: name, cmd: exec.Command(path, args...), env: env, done: make(chan struct{}), lines: make(chan map[string]any, 1024), tap: tap}
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "DIALRING_") {
			p.cmd.Env = append(p.cmd.Env, e)
		}
	}
	p.cmd.Env = append(p.cmd.Env, env...)
	p.cmd.Dir = t.TempDir()
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, w := io.Pipe()
	p.cmd.Stdout, p.cmd.Stderr = w, w
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var reading sync.WaitGroup
	reading.Go(func() { p.read(out) })
	go func() {
		_ = p.cmd.Wait()
		w.Close()
		reading.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("log of %s:\n%s", name, p.text())
		}
		if s := p.text(); strings.Contains(s, "DATA RACE") || strings.Contains(s, "panic:") {
			t.Errorf("%s: a race or a panic:\n%s", name, s)
		}
	})
	return p
}

func (p *process) read(r io.Reader) {
	for s := bufio.NewScanner(r); s.Scan(); {
		p.mu.Lock()
		p.log.Write(append(s.Bytes(), '\n'))
		p.mu.Unlock()
		if p.tap != nil {
			p.tap(s.Bytes())
		}
		var m map[string]any
		if json.Unmarshal(s.Bytes(), &m) == nil && m["event"] != nil {
			select {
			case p.lines <- m:
			default:
			}
		}
	}
}

func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// loggedAt is when the first line was logged that has this in it; zero if none was.
func (p *process) loggedAt(t *testing.T, part string) time.Time {
	t.Helper()
	for line := range strings.Lines(p.text()) {
		if strings.Contains(line, part) {
			var at struct{ Time time.Time }
			if err := json.Unmarshal([]byte(line), &at); err != nil {
				t.Fatal(err)
			}
			return at.Time
		}
	}
	return time.Time{}
}

// event waits for a log line with this event.
func (p *process) event(t *testing.T, name string) map[string]any {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case m := <-p.lines:
			if m["event"] == name {
				return m
			}
		case <-p.done:
			t.Fatalf("%s ended before it logged %s:\n%s", p.name, name, p.text())
		case <-deadline:
			t.Fatalf("%s never logged %s", p.name, name)
		}
	}
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// term sends SIGTERM and returns the exit status.
func (p *process) term(t *testing.T) int {
	t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Fatalf("%s did not end after SIGTERM", p.name)
	}
	return p.cmd.ProcessState.ExitCode()
}

// locatorProc is a running locator.
type locatorProc struct {
	*process
	addr, nats, admin string

	secret string // of its users' tokens; "": it is in development mode, and they need none
}

// token is a user's, as its login service makes it.
func (l *locatorProc) token(user string, sendTo ...string) string {
	claims := jwt.MapClaims{"sub": user, "exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix()}
	if len(sendTo) > 0 {
		claims["send_to"] = sendTo
	}
	s, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString([]byte(l.secret))
	if err != nil {
		panic(err)
	}
	return s
}

// as makes the settings of an SDK's client of that user.
func (l *locatorProc) as(user string, sendTo ...string) client.Config {
	if l.secret == "" {
		return client.Config{User: user, SendTo: sendTo}
	}
	return client.Config{Token: func(context.Context) (string, error) { return l.token(user, sendTo...), nil }}
}

func startLocator(t *testing.T, env ...string) *locatorProc {
	t.Helper()
	return startLocatorTapped(t, nil, env...)
}

func startLocatorTapped(t *testing.T, tap func([]byte), env ...string) *locatorProc {
	t.Helper()
	base := []string{"DIALRING_DEV=true", "DIALRING_LOG_FORMAT=json", "DIALRING_LISTEN=" + freeAddress(t, "127.0.0.1"), "DIALRING_ADMIN_LISTEN=127.0.0.1:0"}
	if !strings.Contains(strings.Join(env, " "), "DIALRING_NATS_URL") {
		base = append(base, "DIALRING_NATS_LISTEN="+freeAddress(t, "127.0.0.1"), "DIALRING_DATA_DIR="+t.TempDir())
	}
	l := &locatorProc{process: startTapped(t, tap, "locator", filepath.Join(bin, "locator"), append(base, env...))}
	m := l.event(t, "listening")
	l.addr, l.nats, l.admin = m["listen"].(string), m["nats"].(string), m["admin"].(string)
	return l
}

// nodeProc is a running node.
type nodeProc struct {
	*process
	id, addr, peer string
	admin          string
	settings       []string
}

func startNode(t *testing.T, id, nats string, env ...string) *nodeProc {
	t.Helper()
	return startNodeAt(t, id, nats, freeAddress(t, "127.0.0.1"), freeAddress(t, "127.0.0.1"), env...)
}

func startNodeAt(t *testing.T, id, nats, addr, peer string, env ...string) *nodeProc {
	t.Helper()
	return startNodeTapped(t, nil, id, nats, addr, peer, env...)
}

func startNodeTapped(t *testing.T, tap func([]byte), id, nats, addr, peer string, env ...string) *nodeProc {
	t.Helper()
	base := []string{"DIALRING_DEV=true", "DIALRING_LOG_FORMAT=json", "DIALRING_NODE_ID=" + id, "DIALRING_NATS_URL=" + nats,
		"DIALRING_LISTEN=" + addr, "DIALRING_PEER_LISTEN=" + peer, "DIALRING_ADMIN_LISTEN=127.0.0.1:0"}
	n := &nodeProc{process: startTapped(t, tap, id, filepath.Join(bin, "wsnode"), append(base, env...)), id: id, settings: env}
	m := n.event(t, "listening")
	n.addr, n.peer, n.admin = m["listen"].(string), m["peer"].(string), m["admin"].(string)
	return n
}

// nextPort is where freePortAt looks next: below those that the kernel gives to
// connections and to listeners that ask for any, which would take a port between its
// choice here and its use by a program, or while a program that has it ends and comes back.
var nextPort atomic.Int32

const firstPort, lastPort = 10000, 32000

// freePortAt is a port of ip that nobody listens at, and that nobody else is given.
func freePortAt(t *testing.T, ip string) int {
	t.Helper()
	nextPort.CompareAndSwap(0, int32(firstPort+rand.IntN(lastPort-firstPort))) // other packages' tests run beside these
	for range lastPort - firstPort {
		port := firstPort + int(nextPort.Add(1)-firstPort)%(lastPort-firstPort)
		if l, err := net.Listen("tcp", net.JoinHostPort(ip, strconv.Itoa(port))); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

func freePort(t *testing.T) int {
	t.Helper()
	return freePortAt(t, "127.0.0.1")
}

// freeAddress is ip with such a port.
func freeAddress(t *testing.T, ip string) string {
	t.Helper()
	return net.JoinHostPort(ip, strconv.Itoa(freePortAt(t, ip)))
}

func waitTCP(t *testing.T, addr string) {
	t.Helper()
	eventually(t, addr+" listens", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// eventually polls what has no event to wait for.
func eventually(t *testing.T, what string, ok func() bool) time.Duration {
	t.Helper()
	begin := time.Now()
	for !ok() {
		if time.Since(begin) > patience {
			t.Fatalf("not within %s: %s", patience, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(begin)
}

// call does a request to the API with the development key.
func call(t *testing.T, method, url, body string) (int, []byte) {
	t.Helper()
	return callAs(t, "dev", method, url, body)
}

// callAs does one with this key, or token.
func callAs(t *testing.T, key, method, url, body string) (int, []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", "application/json")
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, []byte(err.Error())
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, []byte(err.Error())
	}
	return resp.StatusCode, b
}

func (l *locatorProc) ring(t *testing.T) wire.RingResponse {
	t.Helper()
	var r wire.RingResponse
	status, b := call(t, "GET", "http://"+l.addr+"/v1/ring", "")
	if status != 200 || json.Unmarshal(b, &r) != nil {
		t.Fatalf("GET /v1/ring: %d %s", status, b)
	}
	return r
}

// members are the nodes that have a share, by id.
func (l *locatorProc) members(t *testing.T) map[string]wire.RingNode {
	t.Helper()
	m := map[string]wire.RingNode{}
	for _, n := range l.ring(t).Nodes {
		if n.Share > 0 {
			m[n.ID] = n
		}
	}
	return m
}

// waitMembers waits until exactly these nodes are in the ring.
func (l *locatorProc) waitMembers(t *testing.T, ids ...string) time.Duration {
	t.Helper()
	return eventually(t, fmt.Sprintf("the ring has %v", ids), func() bool {
		m := l.members(t)
		for _, id := range ids {
			if _, ok := m[id]; !ok {
				return false
			}
		}
		return len(m) == len(ids)
	})
}

func (l *locatorProc) push(t *testing.T, user, body string) wire.PushResult {
	t.Helper()
	var r wire.PushResult
	status, b := call(t, "POST", "http://"+l.addr+"/v1/push/"+user+"?durable=false", body)
	if status != 200 || json.Unmarshal(b, &r) != nil {
		t.Fatalf("push to %s: %d %s", user, status, b)
	}
	return r
}

func (l *locatorProc) locate(t *testing.T, user, body string) wire.LocateResponse {
	t.Helper()
	var r wire.LocateResponse
	query, key := "?user="+url.QueryEscape(user), "dev"
	if l.secret != "" {
		query, key = "", l.token(user)
	}
	status, b := callAs(t, key, "POST", "http://"+l.addr+"/v1/locate"+query, body)
	if status != 200 || json.Unmarshal(b, &r) != nil {
		t.Fatalf("locate %s: %d %s", user, status, b)
	}
	return r
}

// sameRing waits until two locators go by one ring: a handoff may just end.
func sameRing(t *testing.T, l1, l2 *locatorProc) {
	t.Helper()
	eventually(t, "two locators have one ring", func() bool {
		a, b := l1.ring(t), l2.ring(t)
		if a.Epoch == b.Epoch && a.Hash != b.Hash {
			t.Fatalf("two rings of epoch %d: %s and %s", a.Epoch, a.Hash, b.Hash)
		}
		return a.Epoch == b.Epoch && len(a.Handoffs) == 0
	})
}

// heavy is for tests that take tens of seconds, of clusters under load, cut networks, full
// disks. internal/e2e/heavy runs them, for CI without the race detector, which has a push cost
// several times as much. It finds a test by this call at its beginning.
func heavy(t *testing.T) {
	t.Helper()
	if !withHeavy() {
		t.Skip("takes long: internal/e2e/heavy, or task heavy, runs it")
	}
}

func withHeavy() bool { return os.Getenv("DIALRING_HEAVY") == "1" }
