package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dialring/dialring/client"
	"github.com/dialring/dialring/internal/wire"
)

// arrived fails unless every push was accepted (a stored one in the end, after
// repeats) and came to every device, once, and stored ones in order, whatever
// happened meanwhile.
func (l *load) arrived(t *testing.T) {
	t.Helper()
	r := l.stop(t)
	t.Log(r)
	if r.bad() || r.accepted != r.pushes || r.pushes == 0 {
		t.Errorf("not everything was accepted, and came once and in order:\n%v", r)
	}
	for _, w := range l.wires {
		if f := w.report(); f != "" {
			t.Errorf("on the wire:\n%s", f)
		}
	}
}

func durableLoad(t *testing.T, locators ...*locatorProc) *load {
	t.Helper()
	return startLoad(t, loadConfig{Locators: locators, Users: 60, Devices: 2, Rate: 200, Durable: true})
}

// Nodes join, drain, and are killed, one while users move to it.
func TestInboxMoves(t *testing.T) {
	l := startLocator(t)
	nodes := nodesOf(t, l, l.nats, "DIALRING_ACCEPT_RATE=30") // so that a handoff lasts
	load := durableLoad(t, l)
	load.pushed(t, 200)
	four := startNode(t, "ws-4", l.nats, "DIALRING_ACCEPT_RATE=30")
	l.waitMembers(t, "ws-1", "ws-2", "ws-3", "ws-4")
	load.pushed(t, 50)
	nodes[0].kill() // a former owner, in the middle of its handoff
	l.waitMembers(t, "ws-2", "ws-3", "ws-4")
	load.pushed(t, 200)
	if code := nodes[1].term(t); code != 0 {
		t.Errorf("ws-2 ended with %d", code)
	}
	startNode(t, "ws-1", l.nats)
	l.waitMembers(t, "ws-1", "ws-3", "ws-4")
	load.pushed(t, 50)
	four.kill() // an owner, with appends under way
	l.waitMembers(t, "ws-1", "ws-3")
	load.pushed(t, 300)
	load.arrived(t)
}

// A locator is killed in the middle of pushes; its services go to the other one.
func TestInboxLocatorKilled(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	startNATS(t, port, t.TempDir())
	natsURL := fmt.Sprintf("nats://127.0.0.1:%d", port)
	one, two := startLocator(t, "DIALRING_NATS_URL="+natsURL), startLocator(t, "DIALRING_NATS_URL="+natsURL)
	nodesOf(t, one, natsURL)
	two.waitMembers(t, "ws-1", "ws-2", "ws-3")
	load := durableLoad(t, one, two)
	load.pushed(t, 200)
	two.kill()
	load.pushed(t, 300)
	load.arrived(t)
}

// The embedded NATS is killed with its locator, and comes back: nothing that was
// accepted is lost, and sessions stay.
func TestInboxEmbeddedNATSKilled(t *testing.T) {
	t.Parallel()
	again := restartable(t, t.TempDir())
	l := again()
	nodesOf(t, l, l.nats)
	load := durableLoad(t, l)
	for range 2 {
		load.pushed(t, 200)
		l.kill()
		l = again()
		l.waitMembers(t, "ws-1", "ws-2", "ws-3")
	}
	load.pushed(t, 200)
	load.arrived(t)
	if d := load.disconnects(); len(d) > 0 {
		t.Errorf("applications saw a disconnect: %v", d)
	}
}

// Three NATS servers: the leader of streams is killed, then stopped for a while,
// then two are gone and come back. While there is no quorum a push is refused
// within its bound, and never answered as stored.
func TestInboxNATSCluster(t *testing.T) {
	heavy(t)
	natsURL, servers, again := natsCluster(t)
	l := startLocator(t, "DIALRING_NATS_URL="+natsURL)
	nodesOf(t, l, natsURL, "DIALRING_INBOX_PARTITIONS=3")
	eventually(t, "pushes are stored", func() bool { status, _, _ := l.store(t, "probe", "1", "", ""); return status == 200 })
	load := durableLoad(t, l)
	load.pushed(t, 200)
	lead := streamLeader(t, natsURL, "dialring_inbox_0")
	servers[lead].kill()
	load.pushed(t, 100)
	servers[lead] = again(lead)
	load.pushed(t, 200)
	if err := servers[1].cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	load.pushed(t, 100)
	if err := servers[1].cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	load.pushed(t, 200)
	servers[1].kill()
	servers[2].kill()
	gone := time.Now()
	for i := 0; time.Since(gone) < 20*time.Second; i++ { // that long it is away
		begin := time.Now()
		status, r, p := l.store(t, "probe", `"lost-quorum"`, "", fmt.Sprint("key-", i))
		if took := time.Since(begin); status != 503 || p.RetryAfter == 0 || took > 10*time.Second {
			t.Errorf("without a quorum: %d %+v %+v after %s", status, r, p, took)
		}
	}
	if status, b := call(t, "POST", "http://"+l.addr+"/v1/push/probe?durable=false", "0"); status != 200 {
		t.Errorf("an ephemeral push without the store: %d %s", status, b)
	}
	again(1)
	again(2)
	load.pushed(t, 200)
	load.arrived(t)
}

// The store is made anew while clients are connected: they are told of the gap,
// and go on with the new log.
func TestInboxStoreMadeAnew(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	again := restartable(t, dir)
	l := again()
	nodesOf(t, l, l.nats)
	got, gaps := make(chan client.Message, 100), make(chan client.Event, 100)
	c, err := client.New(client.Config{Locators: []string{"http://" + l.addr}, User: "alice", Device: "sdk",
		OnMessage: func(_ context.Context, m client.Message) { got <- m },
		OnEvent: func(e client.Event) {
			if e.Gap {
				gaps <- e
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	eventually(t, "it is connected", func() bool { return c.State().State == client.Connected })
	var last client.Message
	for i := 1; i <= 3; i++ {
		l.keep(t, "alice", fmt.Sprint(i))
		last = await(t, "a message", got)
	}
	l.kill()
	if err := os.RemoveAll(filepath.Join(dir, "jetstream")); err != nil {
		t.Fatal(err)
	}
	l = again()
	l.waitMembers(t, "ws-1", "ws-2", "ws-3")
	eventually(t, "pushes are stored again", func() bool {
		status, r, _ := l.store(t, "alice", `"new"`, "", "new-1")
		return status == 200 && r.Seq == 1
	})
	if m := await(t, "the first of the new log", got); m.Seq != 1 || string(m.Data) != `"new"` {
		t.Errorf("%+v came", m)
	}
	await(t, "the gap", gaps)
	l.keep(t, "alice", `"more"`)
	if m := await(t, "the next", got); m.Seq != 2 {
		t.Errorf("%+v came", m)
	}
	// A client that was away comes with its old cursor.
	b := dialSince(t, l, "alice", "old", last.Cursor)
	b.welcomed(t, 2, 2, true)
	b.message(t, 1, `"new"`)
	b.message(t, 2, `"more"`)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A client that does not read costs its queue, is closed, and gets everything when
// it comes back.
func TestInboxSlowClient(t *testing.T) {
	t.Parallel()
	l, _ := threeNodes(t, "DIALRING_SESSION_QUEUE_BYTES=131072")
	stuck := dialSince(t, l, "alice", "stuck", "")
	good := listen(t, "alice", l)
	big := func(i uint64) string { return fmt.Sprintf(`"%d%s"`, i, strings.Repeat("x", 60_000)) }
	n := uint64(0)
	eventually(t, "the stuck session is closed", func() bool {
		n = l.keep(t, "alice", big(n+1)).Seq
		return len(l.getUser(t, "alice").Sessions) == 1
	})
	for i := uint64(1); i <= n; i++ {
		if m := await(t, "the good client's message", good.got); m != big(i) {
			t.Fatalf("the good client got %.50q…, want message %d", m, i)
		}
	}
	// What the kernel still had comes first, and the close frame if it got through.
	if code := stuck.closeCode(t); code != 0 && code != wire.CloseTooSlow {
		t.Errorf("closed with %d", code)
	}
	back := dialSince(t, l, "alice", "stuck", stuck.welcome.Since)
	back.welcomed(t, n, n, false)
	for i := uint64(1); i <= n; i++ {
		back.message(t, i, big(i))
	}
}

// A push of a service that never hears the answer is repeated with its key, by
// another service process too, and is one message in the end.
func TestInboxRepeatsAreOne(t *testing.T) {
	t.Parallel()
	l, nodes := threeNodes(t)
	var wg sync.WaitGroup
	for p := range 4 {
		wg.Go(func() {
			pusher, err := client.NewPusher(client.PusherConfig{Locators: []string{"http://" + l.addr}, APIKey: "dev", Attempts: 100})
			if err != nil {
				t.Error(err)
				return
			}
			for i := range 25 {
				for try := 0; ; try++ {
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					if try == 0 && p%2 == 0 {
						ctx, cancel = context.WithTimeout(t.Context(), time.Duration(i%5)*time.Millisecond)
					}
					_, err := pusher.Push(ctx, "alice", p*100+i, client.IdempotencyKey(fmt.Sprintf("%d-%d", p, i)))
					cancel()
					if err == nil {
						break
					} else if try > 0 {
						t.Errorf("push %d of %d: %v", i, p, err)
						return
					}
				}
				if i == 10 && p == 0 {
					owner := l.locate(t, "alice", "").Node
					for _, n := range nodes {
						if n.id == owner {
							n.kill()
						}
					}
				}
			}
		})
	}
	wg.Wait()
	back := dialSince(t, l, "alice", "e", "0")
	back.welcomed(t, 100, 100, false)
	seen := map[int]bool{}
	for i := uint64(1); i <= 100; i++ {
		var m wire.Message
		back.expectType(t, wire.TypeMessage, &m)
		v, err := strconv.Atoi(string(m.Data))
		if err != nil || m.Seq != i || seen[v] {
			t.Fatalf("message %d is %s, %v", m.Seq, m.Data, err)
		}
		seen[v] = true
	}
}

// The owner is killed when its append is under way and NATS has not taken it yet:
// NATS takes it then, nobody hears of it, and the push is repeated. It is one message.
func TestInboxOwnerKilledInAppend(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	natsURL := fmt.Sprintf("nats://127.0.0.1:%d", port)
	nats := startNATS(t, port, t.TempDir())
	l := startLocator(t, "DIALRING_NATS_URL="+natsURL)
	nodes := nodesOf(t, l, natsURL)
	l.keep(t, "alice", "1")
	owner := l.locate(t, "alice", "").Node
	var node *nodeProc
	for _, n := range nodes {
		if n.id == owner {
			node = n
		}
	}
	if err := nats.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	answered := make(chan wire.PushResult, 1)
	go func() {
		for {
			if p := l.post("/v1/push/alice", "application/json", "2", "once"); p.status == 200 {
				var r wire.PushResult
				_ = json.Unmarshal(p.body, &r)
				answered <- r
				return
			}
		}
	}()
	eventually(t, "the append is under way", func() bool { return node.metric(t, "dialring_storing_bytes") > 0 })
	node.kill()
	if err := nats.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if r := await(t, "the answer", answered); r.Seq != 2 || !r.Stored {
		t.Errorf("%+v", r)
	}
	b := dialSince(t, l, "alice", "d", "0")
	b.welcomed(t, 2, 2, false)
	b.message(t, 1, "1")
	b.message(t, 2, "2")
}

// A repeat whose first message the limit has taken meanwhile is still known to be one.
func TestInboxKeyOfTrimmed(t *testing.T) {
	t.Parallel()
	l, _ := threeNodes(t, "DIALRING_INBOX_MAX_MESSAGES=1")
	if status, r, _ := l.store(t, "alice", "1", "", "k"); status != 200 || r.Duplicate {
		t.Fatalf("%d %+v", status, r)
	}
	l.keep(t, "alice", "2")
	if status, r, _ := l.store(t, "alice", "1", "", "k"); status != 200 || !r.Duplicate || r.ID != "" || r.Seq != 0 {
		t.Errorf("%d %+v", status, r)
	}
	if u := l.getUser(t, "alice"); u.Head != 2 {
		t.Errorf("%+v", u)
	}
}
