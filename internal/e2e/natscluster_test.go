package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/dialring/dialring/internal/wire"
)

// trio are three locators whose embedded NATS servers are one cluster, and nobody
// else's.
type trio struct {
	natsURL string
	dirs    [3]string // of their stores
	routes  [3]string
	env     [3][]string
	l       [3]*locatorProc
}

const trioSecret = "a secret of the routes"

// newTrio starts nothing yet; the stores are below dir.
func newTrio(t *testing.T, env ...string) *trio {
	t.Helper()
	g := &trio{}
	var urls []string
	for i := range g.routes {
		g.dirs[i] = t.TempDir()
		g.routes[i] = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	}
	for i := range g.env {
		nats := fmt.Sprintf("127.0.0.1:%d", freePort(t))
		urls = append(urls, "nats://"+nats)
		g.env[i] = append([]string{"DIALRING_NATS_LISTEN=" + nats, fmt.Sprintf("DIALRING_LISTEN=127.0.0.1:%d", freePort(t)),
			"DIALRING_NATS_ROUTES=" + strings.Join(g.routes[:], ","), "DIALRING_NATS_ROUTE_LISTEN=" + g.routes[i], "DIALRING_NATS_ROUTE_SECRET=" + trioSecret,
			fmt.Sprintf("DIALRING_NATS_NAME=n%d", i)}, env...)
	}
	g.natsURL = strings.Join(urls, ",")
	return g
}

// start starts a locator, again on its addresses and store.
func (g *trio) start(t *testing.T, i int, env ...string) *locatorProc {
	t.Helper()
	g.l[i] = startLocator(t, append(append(g.env[i], "DIALRING_DATA_DIR="+g.dirs[i]), env...)...)
	return g.l[i]
}

func (l *locatorProc) ready(t *testing.T) string {
	t.Helper()
	status, b := call(t, "GET", "http://"+l.addr+"/readyz", "")
	return fmt.Sprint(status, " ", string(b))
}

func (l *locatorProc) waitReady(t *testing.T) {
	t.Helper()
	t.Log(l.name, "is ready after", eventually(t, "it is ready", func() bool { return strings.HasPrefix(l.ready(t), "200") }))
}

// replicas are, while nothing is pushed, for each stream, on how many servers it is now, and whether all have
// all of it.
func (g *trio) replicas(t *testing.T) map[string]int {
	t.Helper()
	nc, err := nats.Connect(g.natsURL)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience/4)
	defer cancel()
	out := map[string]int{}
	list := js.StreamNames(ctx)
	var names []string
	for name := range list.Name() {
		names = append(names, name)
	}
	err = list.Err()
	for _, name := range names {
		s, e := js.Stream(ctx, name) // its leader answers
		if err = errors.Join(err, e); err != nil {
			break
		}
		out[name] = 1
		for _, r := range s.CachedInfo().Cluster.Replicas {
			if r.Current && !r.Offline {
				out[name]++
			}
		}
	}
	if err != nil {
		t.Log(err)
		return nil
	}
	return out
}

func (g *trio) waitReplicas(t *testing.T, n int) {
	t.Helper()
	var have map[string]int
	defer func() {
		if t.Failed() {
			t.Logf("they are on %v", have)
		}
	}()
	took := eventually(t, fmt.Sprintf("everything is on %d servers", n), func() bool {
		have = g.replicas(t)
		for _, r := range have {
			if r != n {
				return false
			}
		}
		return len(have) > 0
	})
	t.Logf("%d streams are on %d servers after %s", len(have), n, took)
}

// stores pushes a message until it is stored: with one key, so it is one message.
func (l *locatorProc) stores(t *testing.T, user, body string) {
	t.Helper()
	eventually(t, "a push is stored", func() bool { status, r, _ := l.store(t, user, body, "", body); return status == 200 && r.Stored })
}

// Locators start in any order: the first waits and says so, with two all works, and
// the third makes each message be on all three. Then two die: the third goes on by what
// it has in memory, and nothing is stored until one is back.
func TestNATSClusterStarts(t *testing.T) {
	heavy(t)
	atATime(t)
	g := newTrio(t)
	first := g.start(t, 2)
	first.event(t, "nats_waits")
	if r := first.ready(t); !strings.HasPrefix(r, "503") || !strings.Contains(r, "waits for those of the others") {
		t.Errorf("the first is ready: %s", r)
	}
	g.start(t, 0)
	first.event(t, "nats_majority")
	nodesOf(t, first, g.natsURL)
	first.waitReady(t)
	first.stores(t, "alice", "1")
	g.waitReplicas(t, 2)
	g.start(t, 1).waitReady(t)
	g.waitReplicas(t, 3)
	if code := first.term(t); code != 0 {
		t.Errorf("the first ended with %d", code)
	}
	last := g.l[1]
	last.stores(t, "alice", "2")

	alice := listen(t, "alice", last)
	g.l[0].kill()
	last.event(t, "nats_minority")
	if r := last.push(t, "alice", "3"); r.Delivered != 1 {
		t.Errorf("an ephemeral push by the last of three: %+v", r)
	}
	alice.expect(t, "3")
	if status, r, p := last.store(t, "alice", "4", "", "4"); status != 503 || p.RetryAfter == 0 {
		t.Errorf("a stored push without a majority: %d %+v %+v", status, r, p)
	}
	if r := last.ready(t); !strings.HasPrefix(r, "200") {
		t.Errorf("the last of three is not ready: %s", r)
	}
	g.start(t, 0)
	last.stores(t, "alice", "4")
	alice.expect(t, "4")
}

// Each of three locators is killed, with the NATS in it, under load: nothing that was
// accepted is lost, and pushes go on. It comes back, in the end without its data, has
// all of it again, and another one dies.
func TestNATSClusterKilled(t *testing.T) {
	heavy(t)
	atATime(t)
	g := newTrio(t)
	for i := range g.l {
		g.start(t, i)
	}
	nodesOf(t, g.l[0], g.natsURL, "DIALRING_INBOX_PARTITIONS=3")
	for _, l := range g.l {
		l.waitReady(t)
	}
	load := durableLoad(t, g.l[:]...)
	load.pushed(t, 200)
	// A stream that has just been made has a leader, and perhaps no more than that, for some
	// seconds: when that one dies then, NATS may not find another one until it is back.
	g.waitReplicas(t, 3)
	for i := range g.l {
		g.l[i].kill()
		began := time.Now()
		g.l[(i+1)%3].stores(t, "probe", fmt.Sprint(i))
		t.Logf("a new push is stored %s after the kill of %d", time.Since(began), i)
		load.pushed(t, 200)
		if i == 2 {
			if err := os.RemoveAll(g.dirs[i]); err != nil {
				t.Fatal(err)
			}
		}
		g.start(t, i).waitReady(t)
		load.pushed(t, 100)
	}
	g.l[1].kill()
	load.pushed(t, 200)
	startNode(t, "ws-4", g.natsURL, "DIALRING_INBOX_PARTITIONS=3") // and the ring goes on as well
	g.l[0].waitMembers(t, "ws-1", "ws-2", "ws-3", "ws-4")
	load.pushed(t, 100)
	load.arrived(t)
	g.waitReplicas(t, 2) // the one that came without its data has all of it
	if d := load.disconnects(); len(d) > 0 {
		t.Errorf("applications saw a disconnect: %v", d)
	}
}

// Who does not know the secret of the routes does not get in: neither a locator with
// another one, whose log and theirs say so, nor a stranger.
func TestNATSClusterStrangers(t *testing.T) {
	heavy(t)
	atATime(t)
	g := newTrio(t)
	one, two := g.start(t, 0), g.start(t, 1)
	one.event(t, "nats_current")
	two.event(t, "nats_current")
	other := g.start(t, 2, "DIALRING_NATS_ROUTE_SECRET=another secret of the routes")
	one.event(t, "nats_route_refused")
	other.event(t, "nats_route_refused")
	eventually(t, "it says that it is alone", func() bool { r := other.ready(t); return strings.HasPrefix(r, "503") && strings.Contains(r, "1 of 2") })
	other.kill()

	for name, connect := range map[string]string{
		"without anything": `{"verbose":false,"name":"stranger"}`,
		"with the secret":  `{"verbose":false,"name":"stranger","user":"dialring","pass":"` + trioSecret + `"}`, // it is not what is sent
		"silent":           "",
	} {
		c, err := net.Dial("tcp", g.routes[0])
		if err != nil {
			t.Fatal(err)
		}
		if connect != "" {
			fmt.Fprintf(c, "CONNECT %s\r\nPING\r\n", connect)
		}
		_ = c.SetReadDeadline(time.Now().Add(patience))
		b, err := io.ReadAll(c)
		c.Close()
		if err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a stranger %s is not thrown out: %v", name, err)
		}
		if s := string(b); strings.Contains(s, "PONG") || strings.Contains(s, "RS+") || strings.Contains(s, trioSecret) || !strings.HasPrefix(s, "INFO ") {
			t.Errorf("a stranger %s is told %q", name, s)
		}
	}
	if strings.Contains(one.text()+two.text()+other.text(), "secret of the routes") {
		t.Error("a log shows the secret")
	}
}

// A store is one of a cluster's or of a server that is alone, and has a name.
func TestNATSClusterStores(t *testing.T) {
	heavy(t)
	atATime(t)
	g := newTrio(t)
	g.start(t, 0)
	g.start(t, 1).event(t, "nats_current")
	g.l[0].event(t, "nats_current") // before that it is it that may end
	same := g.refused(t, 2, g.dirs[2], "DIALRING_NATS_NAME=n0")
	if !strings.Contains(same, "DIALRING_NATS_NAME") {
		t.Errorf("a second server of one name: %s", same)
	}
	g.l[0].kill()
	renamed := g.refused(t, 0, g.dirs[0], "DIALRING_NATS_NAME=n2")
	if !strings.Contains(renamed, "DIALRING_NATS_NAME") || !strings.Contains(renamed, "n0") {
		t.Errorf("another name for a store: %s", renamed)
	}
	alone := g.refused(t, 0, g.dirs[0], "DIALRING_NATS_ROUTES=", "DIALRING_NATS_ROUTE_LISTEN=", "DIALRING_NATS_ROUTE_SECRET=", "DIALRING_NATS_NAME=")
	if !strings.Contains(alone, "DIALRING_NATS_ROUTES") {
		t.Errorf("a cluster's store for a server alone: %s", alone)
	}
	g.start(t, 0, "DIALRING_NATS_NAME=").event(t, "nats_current") // it knows it

	dir := t.TempDir()
	again := restartable(t, dir)
	l := again()
	nodesOf(t, l, l.nats)
	l.keep(t, "alice", "1")
	l.kill()
	if r := g.refused(t, 2, dir); !strings.Contains(r, "DIALRING_DATA_DIR") || !strings.Contains(r, "alone") {
		t.Errorf("the store of a server that was alone: %s", r)
	}
	l = again()
	eventually(t, "the store of a server that was alone is as it was", func() bool {
		var u wire.UserResponse
		status, b := call(t, "GET", "http://"+l.addr+"/v1/users/alice", "")
		return status == 200 && json.Unmarshal(b, &u) == nil && u.Head == 1
	})
}

// refused starts a locator that must not start, and returns what it says.
func (g *trio) refused(t *testing.T, i int, dir string, env ...string) string {
	t.Helper()
	p := start(t, "refused", filepath.Join(bin, "locator"), append(append([]string{"DIALRING_DEV=true", "DIALRING_LOG_FORMAT=json", "DIALRING_ADMIN_LISTEN=127.0.0.1:0"}, g.env[i]...),
		append([]string{"DIALRING_DATA_DIR=" + dir}, env...)...))
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Fatalf("it starts:\n%s", p.text())
	}
	if p.cmd.ProcessState.ExitCode() == 0 {
		t.Error("it ended well")
	}
	return p.text()
}
