package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/wire"
)

// The main job, with everything in a process of its own: one locator with its
// embedded NATS, three nodes, a client of the SDK and one written by hand.
func TestMainJob(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	for i := 1; i <= 3; i++ {
		startNode(t, fmt.Sprintf("ws-%d", i), l.nats)
	}
	l.waitMembers(t, "ws-1", "ws-2", "ws-3")
	alice := listen(t, "alice", l)
	hand := dialBare(t, l, "alice")

	r := l.push(t, "alice", `{"n":1.0}`)
	if r.Delivered != 2 || r.Node != hand.Node || r.Stored || r.ID == "" {
		t.Errorf("push: %+v, want 2 sessions of %s", r, hand.Node)
	}
	alice.expect(t, `{"n":1.0}`)
	if got := data(hand.text(t)); got != `{"n":1.0}` {
		t.Errorf("by hand: %s", got)
	}
	if r := l.push(t, "nobody", `1`); r.Delivered != 0 {
		t.Errorf("a push to nobody was delivered: %+v", r)
	}

	users := map[string]*listener{}
	var list []string
	for i := range 12 {
		u := fmt.Sprintf("u%d", i)
		users[u], list = listen(t, u, l), append(list, u)
	}
	body, _ := json.Marshal(map[string]any{"users": append(list, "\n"), "data": "all"})
	status, b := call(t, "POST", "http://"+l.addr+"/v1/push?durable=false", string(body))
	var many struct {
		Results []struct {
			wire.PushResult
			Error *wire.PushError
		}
	}
	if err := json.Unmarshal(b, &many); status != 200 || err != nil || len(many.Results) != 13 {
		t.Fatalf("push to many: %d %s", status, b)
	}
	for i, u := range list {
		if r := many.Results[i]; r.User != u || r.Delivered != 1 || r.Error != nil {
			t.Errorf("result %d: %+v", i, r)
		}
		users[u].expect(t, `"all"`)
	}
	if e := many.Results[12].Error; e == nil || e.Code != wire.CodeInvalidRequest {
		t.Errorf("a bad id among good ones: %+v", many.Results[12])
	}

	status, b = call(t, "POST", "http://"+l.addr+"/v1/broadcast", `{"data":{"to":"everyone"}}`)
	var bc wire.BroadcastResult
	if err := json.Unmarshal(b, &bc); status != 200 || err != nil || bc.Nodes != 3 || bc.Delivered != 14 || len(bc.Failed) != 0 {
		t.Errorf("broadcast: %d %s", status, b)
	}
	for _, u := range list {
		users[u].expect(t, `{"to":"everyone"}`)
	}
}

// A node is killed: whoever notices has it out of the ring, its clients find
// their new owners, and pushes in between reach them there.
func TestNodeKilled(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	nodes := map[string]*nodeProc{}
	for _, id := range []string{"ws-1", "ws-2", "ws-3"} {
		nodes[id] = startNode(t, id, l.nats)
	}
	l.waitMembers(t, "ws-1", "ws-2", "ws-3")
	u := userOf(t, l, "ws-2")
	victim := listen(t, u, l)
	other := listen(t, userOf(t, l, "ws-1"), l)

	nodes["ws-2"].kill()
	began := time.Now()
	// This push is refused at once, has the node probed, and follows the user.
	if r := l.push(t, u, `"after"`); r.Node == "ws-2" {
		t.Errorf("answered by the dead node: %+v", r)
	}
	l.waitMembers(t, "ws-1", "ws-3")
	t.Logf("out of the ring %v after the kill", time.Since(began))
	if n := victim.connected(t); n == "ws-2" {
		t.Errorf("connected at the dead node")
	}
	t.Logf("its client is back %v after the kill", time.Since(began))
	if r := l.push(t, u, `"again"`); r.Delivered != 1 {
		t.Errorf("push to the moved user: %+v", r)
	}
	for await(t, "the moved user gets pushes", victim.got) != `"again"` {
	}
	if r := l.push(t, other.user, `"still"`); r.Delivered != 1 {
		t.Errorf("another node's user: %+v", r)
	}
	other.expect(t, `"still"`)
	select {
	case n := <-other.conn:
		t.Errorf("another node's client had to connect again, at %s", n)
	default:
	}
}

// Nobody asks for the dead node: missed heartbeats and a failed probe do it.
func TestNodeKilledSilently(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	a := startNode(t, "a", l.nats)
	startNode(t, "b", l.nats)
	l.waitMembers(t, "a", "b")
	a.kill()
	t.Logf("out of the ring after %v", l.waitMembers(t, "b"))
	if r := l.ring(t); r.Epoch < 2 {
		t.Errorf("ring %+v", r)
	}
}

// A client that cannot reach its node says so to the locator: evidence.
func TestFailedHint(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	a := startNode(t, "a", l.nats)
	startNode(t, "b", l.nats)
	l.waitMembers(t, "a", "b")
	u := userOf(t, l, "a")
	l.locate(t, u, `{"failed":["a"]}`) // a lie: the probe answers, it stays
	a.kill()
	l.locate(t, u, `{"failed":["a"]}`)
	t.Logf("out of the ring after %v", l.waitMembers(t, "b"))
	if n := l.locate(t, u, "").Node; n != "b" {
		t.Errorf("%s is owned by %s", u, n)
	}
}

// A process that comes back on its address before it was missed keeps its users.
func TestRestartInPlace(t *testing.T) {
	port := freePort(t)
	startNATS(t, port, t.TempDir())
	url := fmt.Sprintf("nats://127.0.0.1:%d", port)
	l := startLocator(t, "DIALRING_NATS_URL="+url)
	a := startNode(t, "a", url)
	startNode(t, "b", url)
	l.waitMembers(t, "a", "b")
	before := l.ring(t)
	owner := map[string]string{}
	for i := range 200 {
		u := fmt.Sprintf("u%d", i)
		owner[u] = l.locate(t, u, "").Node
	}
	// Who would miss it within 100 ms is stopped until the new process listens.
	if err := l.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	a.kill()
	startNodeAt(t, "a", url, a.addr, a.peer)
	if err := l.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the ring has the new process", func() bool { return l.ring(t).Epoch > before.Epoch })
	u := userOf(t, l, "a")
	listen(t, u, l) // its ticket is for the new process: it is connected
	for u, n := range owner {
		if now := l.locate(t, u, "").Node; now != n {
			t.Errorf("%s moved from %s to %s", u, n, now)
		}
	}
	if r := l.ring(t); len(r.Nodes) != 2 || r.Epoch != before.Epoch+1 {
		t.Errorf("ring after the restart: %+v, before: epoch %d", r, before.Epoch)
	}
}

// A node whose heartbeats stop while it answers probes stays, and serves.
func TestHeartbeatsStop(t *testing.T) {
	l := startLocator(t)
	cut := newCable(t, strings.TrimPrefix(l.nats, "nats://"))
	startNode(t, "a", "nats://"+cut.addr)
	startNode(t, "b", l.nats)
	l.waitMembers(t, "a", "b")
	epoch := l.ring(t).Epoch
	u := userOf(t, l, "a")
	alice := listen(t, u, l)
	cut.cut()
	eventually(t, "the node is suspect", func() bool { return l.members(t)["a"].State == wire.StateSuspect })
	eventually(t, "its heartbeats are missing for six seconds", func() bool { return l.members(t)["a"].LastSeenMS > 6000 })
	if r := l.ring(t); r.Epoch != epoch {
		t.Fatalf("the ring changed: %+v", r)
	}
	if r := l.push(t, u, `"hi"`); r.Delivered != 1 {
		t.Errorf("push: %+v", r)
	}
	alice.expect(t, `"hi"`)
	hand := dialBare(t, l, u) // it takes new sessions, too
	if hand.Node != "a" {
		t.Errorf("connected at %s", hand.Node)
	}
}

// NATS is killed: locating and ephemeral pushes go on. It comes back: all
// resynchronise, and a node that waited joins.
func TestNATSAway(t *testing.T) {
	t.Parallel()
	port, dir := freePort(t), t.TempDir()
	nats := startNATS(t, port, dir)
	url := fmt.Sprintf("nats://127.0.0.1:%d", port)
	l1, l2 := startLocator(t, "DIALRING_NATS_URL="+url), startLocator(t, "DIALRING_NATS_URL="+url)
	for _, id := range []string{"a", "b", "c"} {
		startNode(t, id, url)
	}
	l1.waitMembers(t, "a", "b", "c")
	l2.waitMembers(t, "a", "b", "c")
	sameRing(t, l1, l2)
	alice := listen(t, "alice", l1, l2)
	nats.kill()
	for _, l := range []*locatorProc{l1, l2} {
		l.event(t, "nats_down")
	}
	late := startNode(t, "late", url) // it waits for NATS
	for i := range 20 {
		l := []*locatorProc{l1, l2}[i%2]
		m := fmt.Sprintf(`"without NATS %d"`, i)
		if r := l.push(t, "alice", m); r.Delivered != 1 {
			t.Errorf("%+v", r)
		}
		alice.expect(t, m)
		dialBare(t, l, fmt.Sprintf("new-%d", i)).Close()
	}
	startNATS(t, port, dir)
	for _, l := range []*locatorProc{l1, l2} {
		l.event(t, "nats_up")
	}
	began := time.Now()
	late.event(t, "nats_up")
	l1.waitMembers(t, "a", "b", "c", "late")
	l2.waitMembers(t, "a", "b", "c", "late")
	t.Logf("the waiting node is in every ring %v after NATS is back", time.Since(began))
	l2.push(t, "alice", `"back"`)
}

// Three NATS servers, several locators: one NATS server and one locator die.
func TestNATSClusterAndLocators(t *testing.T) {
	heavy(t)
	t.Parallel()
	url, nats, _ := natsCluster(t)
	l1, l2, l3 := startLocator(t, "DIALRING_NATS_URL="+url), startLocator(t, "DIALRING_NATS_URL="+url), startLocator(t, "DIALRING_NATS_URL="+url)
	for _, id := range []string{"a", "b", "c"} {
		startNode(t, id, url)
	}
	for _, l := range []*locatorProc{l1, l2, l3} {
		l.waitMembers(t, "a", "b", "c")
	}
	alice := listen(t, "alice", l1, l2, l3)
	nats[0].kill()
	l3.kill()
	startNode(t, "d", url)
	l1.waitMembers(t, "a", "b", "c", "d")
	l2.waitMembers(t, "a", "b", "c", "d")
	sameRing(t, l1, l2)
	n := 0 // each message once
	eventually(t, "alice gets a push through the other locators", func() bool {
		for _, l := range []*locatorProc{l1, l2} { // nodes may not have their keys yet: NATS elects a leader
			n++
			status, b := call(t, "POST", "http://"+l.addr+"/v1/push/alice?durable=false", fmt.Sprint(n))
			if status != 200 || !strings.Contains(string(b), `"delivered":1`) {
				return false
			}
		}
		return true
	})
	_ = await(t, "alice gets it", alice.got)
}

// SIGTERM: a node leaves the ring, tells its clients, and ends with 0. Then the
// locator does.
func TestTerminate(t *testing.T) {
	t.Parallel()
	l := startLocator(t)
	a := startNode(t, "a", l.nats, "DIALRING_MOVE_DEADLINE=1s")
	startNode(t, "b", l.nats)
	l.waitMembers(t, "a", "b")
	u := userOf(t, l, "a")
	hand := dialBare(t, l, u)
	alice := listen(t, u, l)
	if code := a.term(t); code != 0 {
		t.Errorf("the node ended with %d", code)
	}
	if code := hand.closeCode(t); code != wire.CloseMoved { // it did not follow the move
		t.Errorf("close code %d", code)
	}
	l.waitMembers(t, "b")
	if n := alice.connected(t); n != "b" {
		t.Errorf("connected at %s", n)
	}
	if code := l.term(t); code != 0 {
		t.Errorf("the locator ended with %d", code)
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		program string
		args    []string
		env     []string
		code    int
		want    []string
	}{
		{"locator", []string{"-h"}, nil, 0, []string{"DIALRING_NATS_URL", "DIALRING_DATA_SYNC", "always", "DIALRING_API_KEYS"}},
		{"wsnode", []string{"-h"}, nil, 0, []string{"DIALRING_NODE_URL", "DIALRING_ACCEPT_RATE", "500", "DIALRING_SESSION_QUEUE_BYTES"}},
		{"locator", []string{"serve"}, nil, 78, []string{`unknown argument "serve"`}},
		{"locator", nil, []string{"DIALRING_LISTNE=:1", "DIALRING_RATE_PER_ADDRESS=many"}, 78, []string{"did you mean DIALRING_LISTEN", "DIALRING_RATE_PER_ADDRESS"}},
		{"locator", nil, nil, 78, []string{"DIALRING_NATS_TOKEN is required"}},
		{"locator", nil, []string{"DIALRING_DEV=true", "DIALRING_LISTEN=:0"}, 78, []string{"DIALRING_DEV=insecure"}},
		{"wsnode", nil, nil, 78, []string{"DIALRING_NODE_URL is required"}},
		{"wsnode", nil, []string{"DIALRING_NODE_URL=ws://127.0.0.1:1", "DIALRING_PEER_URL=http://10.0.0.1:1"}, 78, []string{"this machine only"}},
	} {
		cmd := exec.Command(filepath.Join(bin, c.program), c.args...)
		cmd.Env = append([]string{"HOME=" + os.Getenv("HOME")}, c.env...)
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != c.code {
			t.Errorf("%s %v %v ended with %d:\n%s", c.program, c.args, c.env, code, out)
		}
		for _, w := range c.want {
			if !strings.Contains(string(out), w) {
				t.Errorf("%s %v %v does not say %q:\n%s", c.program, c.args, c.env, w, out)
			}
		}
	}
}

// cable is a TCP connection that can be cut.
type cable struct {
	addr string
	mu   sync.Mutex
	cuts []io.Closer
	gone bool
}

func newCable(t *testing.T, to string) *cable {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cable{addr: l.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			c.mu.Lock()
			if err != nil || c.gone {
				c.mu.Unlock()
				in.Close()
				continue
			}
			c.cuts = append(c.cuts, in, out)
			c.mu.Unlock()
			wg.Go(func() { _, _ = io.Copy(in, out); in.Close() })
			wg.Go(func() { _, _ = io.Copy(out, in); out.Close() })
		}
	})
	t.Cleanup(func() { l.Close(); c.cut(); wg.Wait() })
	return c
}

// cut ends what is connected and lets nothing through any more.
func (c *cable) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = true
	for _, x := range c.cuts {
		x.Close()
	}
}

// A node is stopped under a push and goes on later: what waited in its socket
// was answered as not done, and is not done then.
func TestStoppedNode(t *testing.T) {
	l := startLocator(t)
	a := startNode(t, "a", l.nats)
	l.waitMembers(t, "a")
	alice := listen(t, "alice", l)
	l.push(t, "alice", `"before"`) // the link is up
	alice.expect(t, `"before"`)
	if err := a.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	status, b := call(t, "POST", "http://"+l.addr+"/v1/push/alice?durable=false", `"stale"`)
	if status != 503 && status != 504 {
		t.Errorf("a push to a stopped node: %d %s", status, b)
	}
	if err := a.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	// A push that meets the node in the moment it wakes may still be refused, or
	// be lost with the link (504): each has its own payload, so that it is told apart.
	n, took := 0, ""
	eventually(t, "the node takes pushes again", func() bool {
		n++
		took = fmt.Sprintf(`"after %d"`, n)
		status, b := call(t, "POST", "http://"+l.addr+"/v1/push/alice?durable=false", took)
		if status == 200 {
			return strings.Contains(string(b), `"delivered":1,`)
		}
		if status != 503 && status != 504 {
			t.Fatalf("a push to a node that woke: %d %s", status, b)
		}
		return false
	})
	for got := ""; got != took; {
		if got = await(t, "alice gets "+took, alice.got); got == `"stale"` {
			t.Fatal("a push that was answered as not done was carried out when the node went on")
		}
	}
}
