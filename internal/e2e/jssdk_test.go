package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/dialring/dialring/client/js"
	"github.com/dialring/dialring/internal/browser"
	"github.com/dialring/dialring/internal/machine"
)

// jsPage runs the JavaScript SDK, in the page itself or in a worker. What comes, and
// what it says of its states, it keeps until it is asked.
var jsPage = template.Must(template.New("").Parse(`<!doctype html><link rel="icon" href="data:,"><script type="module">
const user = {{.User}}, worked = {{.Worker}}, locators = location.hash.slice(1);
window.got = []; window.states = []; window.node = "";
const took = e => {
  if (e.got !== undefined) got.push(e.got);
  else { states.push(e.state); if (e.state === "connected") window.node = e.node; }
};
if (worked) {
  window.worker = new Worker("/worker.js", { type: "module" });
  worker.onmessage = e => took(e.data);
  worker.postMessage({ user, locators });
} else {
  const { start } = await import("/start.js");
  start(user, locators, took);
}
</script>`))

// jsStart is what pages, workers and Node have in common.
const jsStart = `
import { Client } from "./dialring.js";
export function start(user, locators, took) {
  const client = new Client({
    locators, user, device: "d",
    async onMessage(m) { await null; took({ got: m.data }); },
    onEvent: e => took({ state: e.state, node: e.node, error: String(e.error) }),
  });
  client.run().catch(e => took({ state: String(e) })); // which no test expects
}
`

const jsWorker = `
import { start } from "./start.js";
onmessage = e => start(e.data.user, e.data.locators, m => postMessage(m));
`

const jsNode = `
import { start } from "./start.js";
start(process.argv[2], process.argv[3], m => console.log(JSON.stringify(m)));
`

// jsSite serves the pages.
func jsSite(t *testing.T) string {
	mux := http.NewServeMux()
	mux.Handle("GET /dialring.js", js.Handler())
	for name, source := range map[string]string{"/start.js": jsStart, "/worker.js": jsWorker} {
		mux.HandleFunc("GET "+name, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/javascript")
			_, _ = w.Write([]byte(source))
		})
	}
	mux.HandleFunc("GET /page", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_ = jsPage.Execute(w, map[string]any{"User": r.FormValue("user"), "Worker": r.FormValue("worker") != ""})
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s.URL
}

// jsClient is a user of the JavaScript SDK.
type jsClient struct {
	user   string
	load   *load
	page   *browser.Page // nil: it is Node
	worker bool          // of that page

	mu     sync.Mutex
	states []string
	node   string
}

// took notes what a client tells: a message that came, or a state.
func (c *jsClient) took(got *uint64, state, node string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if got != nil {
		c.load.deliver(c.user, "d", c.node, *got)
		return
	}
	c.states = append(c.states, state)
	if state == "connected" {
		c.node = node
	}
}

// poll takes what a page has kept, until ctx ends.
func (c *jsClient) poll(ctx context.Context) error {
	for ctx.Err() == nil {
		b, err := c.page.Run(`({ got: got.splice(0), states: states.splice(0), node })`)
		var r struct {
			Got    []uint64
			States []string
			Node   string
		}
		if err == nil {
			err = json.Unmarshal([]byte(b), &r)
		}
		if err != nil {
			return fmt.Errorf("%s: %w: %s", c.user, err, b)
		}
		for _, s := range r.States {
			c.took(nil, s, r.Node)
		}
		for _, n := range r.Got {
			c.took(&n, "", "")
		}
		time.Sleep(20 * time.Millisecond) // nothing tells of it
	}
	return nil
}

// since returns the states that were told after the first n.
func (c *jsClient) since(n int) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.states[n:])
}

// on is the node that a client is connected to; empty if it is to none.
func (c *jsClient) on() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.states) == 0 || c.states[len(c.states)-1] != "connected" {
		return ""
	}
	return c.node
}

// nodeWebSocket has Node 20 have a WebSocket.
const nodeWebSocket = "--experimental-websocket"

// hasNode tells whether Node is here, and logs what is left out where it is not.
func hasNode(t *testing.T) bool {
	t.Helper()
	err := exec.Command("node", nodeWebSocket, "-e", "0").Run()
	switch {
	case err != nil && machine.Full():
		t.Fatalf("node from 20.10 on is missing: %v", err)
	case err != nil:
		t.Logf("left out: node from 20.10 on is missing: %v", err)
	}
	return err == nil
}

// inNode runs the SDK in Node; false if there is none.
func (c *jsClient) inNode(t *testing.T, locator string) bool {
	t.Helper()
	if !hasNode(t) {
		return false
	}
	dir := t.TempDir()
	for name, source := range map[string]string{"dialring.js": js.Source, "start.js": jsStart, "node.js": jsNode, "package.json": `{"type":"module"}`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("node", nodeWebSocket, "--no-warnings", filepath.Join(dir, "node.js"), c.user, locator)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := bufio.NewScanner(out); s.Scan(); {
			var m struct {
				Got         *uint64
				State, Node string
			}
			if json.Unmarshal(s.Bytes(), &m) == nil {
				c.took(m.Got, m.State, m.Node)
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		_ = cmd.Wait()
	})
	c.load.expect(c.user, "d")
	c.load.users = append(c.load.users, c.user)
	return true
}

// Pages, a worker and a Node program get each stored message once and in order, while
// a node drains, another one is killed, and a page is offline.
func TestJSSDK(t *testing.T) {
	b := browser.Start(t)
	l := startLocator(t)
	nodes, gates := map[string]*nodeProc{}, map[string]*gate{}
	for i := range 4 {
		id := fmt.Sprintf("ws-%d", i+1)
		gates[id] = newGate(t)
		nodes[id] = startNode(t, id, l.nats, "DIALRING_NODE_URL=ws://"+gates[id].l.Addr().String())
		gates[id].leadsTo(nodes[id].addr)
	}
	l.waitMembers(t, "ws-1", "ws-2", "ws-3", "ws-4")
	l.settled(t)
	site := jsSite(t)

	load := newLoad(loadConfig{Locators: []*locatorProc{l}, Rate: 60, Durable: true})
	t.Cleanup(func() { load.close(t) })
	var clients []*jsClient
	ctx, endPolls := context.WithCancel(context.Background())
	var polls sync.WaitGroup
	t.Cleanup(polls.Wait)
	t.Cleanup(endPolls)
	// Those in front are on the node that drains, and then on the one that is killed.
	all, left := equal("ws-1", "ws-2", "ws-3", "ws-4"), equal("ws-2", "ws-3", "ws-4")
	users := append(movers(all, left, "ws-1", "ws-2", 4), movers(all, left, "ws-3", "ws-3", 2)...)
	for i, u := range users[1:] {
		c := &jsClient{user: u, load: load, worker: i == 0}
		query := url.Values{"user": {u}}
		if c.worker {
			query.Set("worker", "1")
		}
		c.page = b.Open(site + "/page?" + query.Encode() + "#http://" + l.addr)
		load.expect(u, "d")
		load.users = append(load.users, u)
		clients = append(clients, c)
		polls.Go(func() {
			if err := c.poll(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	if program := (&jsClient{user: users[0], load: load}); program.inNode(t, "http://"+l.addr) {
		clients = append(clients, program)
	}
	front := slices.DeleteFunc(slices.Clone(clients), func(c *jsClient) bool { return !slices.Contains(users[:4], c.user) })
	connected := func() {
		t.Helper()
		for _, c := range clients {
			eventually(t, c.user+" is connected", func() bool { return c.on() != "" })
		}
	}
	connected()
	pushing, stop := context.WithCancel(context.Background())
	load.stopPushing = stop
	load.pushing.Go(func() { load.generate(pushing) })
	load.pushed(t, 100)

	// A drain: nobody is without a connection.
	seen := map[*jsClient]int{}
	for _, c := range clients {
		seen[c] = len(c.since(0))
	}
	l.drainByAPI(t, "ws-1")
	nodes["ws-1"].ends(t)
	for _, c := range front {
		eventually(t, c.user+" has moved", func() bool { return c.on() == "ws-2" })
	}
	load.pushed(t, 100)
	for _, c := range clients {
		var want []string
		if slices.Contains(front, c) {
			want = []string{"moving", "connected"}
		}
		if states := c.since(seen[c]); !slices.Equal(states, want) {
			t.Errorf("while a node drained %s was %v, want %v", c.user, states, want)
		}
	}

	// A kill: its clients come back elsewhere.
	nodes["ws-2"].kill()
	for _, c := range front {
		eventually(t, c.user+" is connected elsewhere", func() bool { n := c.on(); return n != "" && n != "ws-2" })
	}
	load.pushed(t, 100)

	// The network is away: the pages are told so, and find the node silent. Then it is
	// back.
	pages := slices.DeleteFunc(slices.Clone(clients), func(c *jsClient) bool { return c.page == nil || c.worker })
	for _, g := range gates {
		g.set(false)
	}
	for _, c := range pages {
		seen[c] = len(c.since(0))
		c.page.Offline(true)
	}
	for _, c := range pages {
		eventually(t, c.user+" notices", func() bool { return slices.Contains(c.since(seen[c]), "waiting") })
	}
	for _, g := range gates {
		g.set(true)
	}
	load.pushed(t, 100)
	for _, c := range pages {
		if c.on() != "" {
			t.Errorf("%s is connected without a network", c.user)
		}
		c.page.Offline(false)
	}
	connected()
	load.pushed(t, 100)

	stop()
	load.pushing.Wait()
	eventually(t, "all has come", func() bool { return load.outstanding() == 0 && load.quiet() >= settled })
	endPolls()
	polls.Wait()
	r := load.report()
	if r.bad() || r.accepted < 300 {
		t.Errorf("%s", r)
	}
	for _, c := range clients {
		t.Logf("%s: %v", c.user, c.since(0))
	}
	t.Logf("%d clients: %s", len(clients), r)
}
