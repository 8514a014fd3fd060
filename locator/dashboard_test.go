package locator

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/chrome"
	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/wire"
)

// largeBoard is a board of n nodes whose ring is a real one.
func largeBoard(n int) board {
	b := aBoard(n)
	members := map[string]int{}
	for _, x := range b.Nodes {
		members[x.ID] = 1
	}
	r := ring.Of(members)
	b.Ring = (&boardSource{}).ringOf(r)
	for _, x := range b.Nodes {
		x.nodeFacts.Share = r.Share(x.ID)
	}
	return b
}

// With 200 nodes, all of whose figures change twice a second, the page does little work and
// stays smooth: an update touches the figures that it shows and nothing else.
func TestDashboardManyNodes(t *testing.T) {
	const nodes, updates = 200, 20
	source := &fakeSource{b: largeBoard(nodes)}
	v, url := serveBoard(t, source, "")
	p := chrome.Open(t, url, 1440, 1000)
	p.Await(fmt.Sprintf(`document.querySelectorAll("#nodes-body tr").length === %d && document.querySelectorAll("#ring .arcs path").length === %d`, nodes, nodes))
	p.Await(`document.getElementById("live").textContent === "live"`)
	p.Shot("nodes-200")

	// What the browser sees change, how long it took for each frame, and what it calls long.
	chrome.Eval[any](p, `(() => {
		window.seen = { records: 0, elements: 0, frames: [], long: [] };
		new MutationObserver((list) => {
			for (const m of list) {
				seen.records++;
				for (const n of [...m.addedNodes, ...m.removedNodes]) if (n.nodeType === Node.ELEMENT_NODE) seen.elements++;
			}
		}).observe(document.getElementById("page"), { subtree: true, childList: true, attributes: true, characterData: true });
		new PerformanceObserver((list) => { for (const e of list.getEntries()) seen.long.push(e.duration); }).observe({ type: "longtask" });
		let last = 0;
		const frame = (now) => {
			if (last > 0) seen.frames.push(now - last);
			last = now;
			requestAnimationFrame(frame);
		};
		requestAnimationFrame(frame);
	})()`)
	type seen struct {
		Records, Elements int
		Frames, Long      []float64
	}
	part := func(l []float64, of float64) float64 {
		if len(l) == 0 {
			return 0
		}
		return l[int(of*float64(len(l)-1))]
	}
	// watched takes what was seen since it was called last.
	watched := func() seen {
		got := chrome.Eval[seen](p, `(() => { const got = seen; window.seen = { records: 0, elements: 0, frames: [], long: [] }; return got; })()`)
		slices.Sort(got.Frames)
		slices.Sort(got.Long)
		return got
	}
	// How this machine does while nothing is asked of the page.
	p.Await("seen.frames.length >= 120")
	idle := watched()
	// smooth fails if the page stood still while something went on. The bounds are wide: what
	// they find is work that grows with the square of the nodes.
	smooth := func(what string, got seen) {
		t.Helper()
		const longest, late = 400, 100 // ms
		t.Logf("%s: %d frames, median %.1f ms, 99 %% %.1f ms, longest %.1f ms; %d long tasks, longest %.0f ms; idle, 99 %% %.1f ms", what,
			len(got.Frames), part(got.Frames, .5), part(got.Frames, .99), part(got.Frames, 1), len(got.Long), part(got.Long, 1), part(idle.Frames, .99))
		switch {
		case len(got.Frames) < 20:
			t.Errorf("%s: only %d frames were seen", what, len(got.Frames))
		case part(idle.Frames, .99) > late || part(idle.Long, 1) > longest:
			t.Logf("%s: not judged, this machine is as slow when the page does nothing", what)
		case os.Getenv("DIALRING_MEASURE") != "1": // a busy machine proves nothing
		case part(got.Long, 1) > longest || part(got.Frames, .99) > late:
			t.Errorf("%s: the page is not smooth", what)
		}
	}
	allBefore, scriptsBefore := p.Seconds()
	began := time.Now()
	random := rand.New(rand.NewPCG(1, 2))
	tick := time.NewTicker(boardEvery)
	defer tick.Stop()
	for i := range updates {
		<-tick.C // as often as it is looked at in earnest
		source.figures(func(_ int, n *nodeFigures) bool {
			n.Sessions, n.Pushes = 1000+random.IntN(9000)*updates+i, float64(100+random.IntN(900))
			return true
		})
		v.tick()
	}
	want := 0
	for _, n := range source.look().Nodes {
		want += n.Sessions
	}
	p.Await(fmt.Sprintf(`document.getElementById("sum-sessions").textContent.replaceAll(",", "") === "%d"`, want))
	took := time.Since(began).Seconds()
	allAfter, scriptsAfter := p.Seconds()
	got := watched()
	t.Logf("%d nodes, %d updates in %.1f s: %.1f ms of the main thread for each, %.1f ms of them script",
		nodes, updates, took, 1000*(allAfter-allBefore)/updates, 1000*(scriptsAfter-scriptsBefore)/updates)
	smooth("figures change", got)

	// Two figures of each node, and what the page shows of all of them together.
	if most := updates * (2*nodes + 20); got.Records > most || got.Records < updates*nodes {
		t.Errorf("%d changes of the document in %d updates, want at most %d", got.Records, updates, most)
	}
	if got.Elements > 0 {
		t.Errorf("%d elements came or went, though only figures changed", got.Elements)
	}
	if busy := (allAfter - allBefore) / took; busy > .5 && os.Getenv("DIALRING_MEASURE") == "1" { // it is a few percent
		t.Errorf("the main thread was busy for %.0f %% of the time", 100*busy)
	}

	// One node has other figures: no more than that is touched.
	chrome.Eval[any](p, "seen.records = 0")
	source.figures(func(i int, n *nodeFigures) bool { n.Sessions = 4711; return i == 99 })
	v.tick()
	p.Await(`document.querySelector("#nodes-body tr[data-node='ws-099'] .sessions").textContent === "4,711"`)
	if n := chrome.Eval[int](p, "seen.records"); n > 20 {
		t.Errorf("%d changes of the document for one figure of one node", n)
	}
	// A row stays where it is, with its focus, while the nodes change.
	chrome.Eval[any](p, `document.querySelector("#nodes-body tr[data-node='ws-100']").focus()`)
	watched()
	source.mu.Lock()
	source.b.Nodes = slices.Delete(slices.Clone(source.b.Nodes), 0, 10)
	facts := *source.b.Nodes[0].nodeFacts
	facts.State = wire.StateSuspect
	source.b.Nodes[0].nodeFacts = &facts
	source.b.Ring = &boardRing{Epoch: 2, Owners: []string{}, Segments: []int{}, Flows: manyFlows(source.b.Nodes)}
	source.b.Handoffs = &[]boardHandoff{{FromEpoch: 1, Reason: "join", Nodes: []string{"ws-150"}, Began: 1000, Left: 400, Pending: []wire.HandoffNode{{Node: "ws-020", Sessions: 400}}}}
	source.mu.Unlock()
	v.tick()
	p.Await(`document.querySelectorAll("#nodes-body tr").length === 190 && document.querySelectorAll("#ring .flow").length === 189`)
	p.Await(`document.querySelector("#nodes-body tr").dataset.node === "ws-010" && document.activeElement.dataset.node === "ws-100"`)
	// And while the handoff goes on, with an arrow from every node.
	for left := 390; left >= 0; left -= 39 {
		<-tick.C
		source.mu.Lock()
		source.b.Handoffs = &[]boardHandoff{{FromEpoch: 1, Reason: "join", Nodes: []string{"ws-150"}, Began: 1000, Left: left, Pending: []wire.HandoffNode{{Node: "ws-020", Sessions: left}}}}
		source.mu.Unlock()
		source.figures(func(i int, n *nodeFigures) bool { n.Sessions = left + i; return true })
		v.tick()
	}
	p.Await(`document.getElementById("handoffs").textContent.includes("0 of 1,000 sessions still to go") && seen.frames.length >= 20`)
	smooth("a handoff", watched())
	p.Shot("nodes-200-handoff")
	for _, c := range p.Complaints() {
		t.Errorf("the browser complains: %s", c)
	}
}

// manyFlows are users on their way from all nodes to one that joined.
func manyFlows(nodes []boardNode) (out []boardFlow) {
	for _, n := range nodes {
		if n.ID != "ws-150" {
			out = append(out, boardFlow{1, n.ID, "ws-150", .5 / float64(len(nodes)*len(nodes))})
		}
	}
	return out
}

// What a page shows that has to ask for the key, that loses its server, and that has a
// login that ends.
func TestDashboardLogin(t *testing.T) {
	_, url := serveBoard(t, &fakeSource{b: aBoard(2)}, testAdminKey)
	p := chrome.Open(t, url, 1000, 800)
	p.Await(`!document.getElementById("login").hidden && document.getElementById("page").hidden && document.activeElement.id === "login-key"`)
	p.Shot("login")
	p.Type("#login-key", "a wrong key")
	p.Click("#login button")
	p.Await(`document.getElementById("login-wrong").textContent.includes("not the admin key")`)
	if names := p.Nameless(); len(names) > 0 {
		t.Errorf("controls without a name: %q", names)
	}
	p.Type("#login-key", testAdminKey)
	p.Click("#login button")
	p.Await(`document.getElementById("live").textContent === "live" && document.querySelectorAll("#nodes-body tr").length === 2`)
	if c := chrome.Eval[string](p, "document.cookie"); c != "" {
		t.Errorf("a script can read the session: %s", c)
	}
	p.Reload()
	p.Await(`document.getElementById("live").textContent === "live" && !document.getElementById("logout").hidden`)
	p.Click("#logout")
	p.Await(`!document.getElementById("login").hidden && document.getElementById("page").hidden`)
}

// A page that is one too many says so, and looks when another one has left.
func TestDashboardFull(t *testing.T) {
	v, url := serveBoard(t, &fakeSource{b: aBoard(2)}, "")
	var last *http.Response
	for range maxViewers {
		last, _ = stream(t, url)
	}
	awaitViewers(t, v, maxViewers)
	p := chrome.Open(t, url, 1000, 800)
	p.Await(`document.getElementById("live").textContent.includes("too many pages")`)
	last.Body.Close()
	p.Await(`document.getElementById("live").textContent === "live"`)
}

// Each of more tabs than a browser has connections to one server works while it is seen,
// and has no stream while it is not.
func TestDashboardTabs(t *testing.T) {
	l := runLocator(t)
	url := "http://" + l.addrs.Admin + "/"
	tabs := []*chrome.Page{chrome.Open(t, url, 1000, 800)}
	for len(tabs) < 7 {
		tabs = append(tabs, tabs[0].Tab(url, 1000, 800))
	}
	for _, p := range []*chrome.Page{tabs[6], tabs[0]} {
		p.Front()
		p.Await(`document.getElementById("live").textContent === "live"`)
		awaitViewers(t, l.viewers, 1)
		// What is asked for gets an answer while the others are open: here that the id is too long.
		p.Type("#user-id", strings.Repeat("x", wire.MaxUserID+1))
		p.Click("#user button")
		p.Await(`document.getElementById("user-wrong").textContent.includes("at most 128 bytes")`)
	}
	for i, p := range tabs[1:] {
		if text := chrome.Eval[string](p, `document.getElementById("live").textContent`); text != "paused while the page is hidden" {
			t.Errorf("hidden tab %d says %q", i+1, text)
		}
	}
}

// On a phone, and on a desk, nothing is wider than what it is in, whatever the state of nodes.
func TestDashboardWidth(t *testing.T) {
	source := &fakeSource{b: largeBoard(4)}
	for i, state := range []string{wire.StateActive, wire.StateSuspect, wire.StateDraining, wire.StateJoining} {
		source.b.Nodes[i].nodeFacts.State = state
		if i > 0 {
			source.b.Nodes[i].nodeFigures.SilentMS = 3_599_000
			source.b.Nodes[i].nodeFigures.Sessions = 123_456
		}
	}
	_, url := serveBoard(t, source, "")
	p := chrome.Open(t, url, 360, 740)
	p.Await(`document.querySelectorAll("#nodes-body tr").length === 4 && document.getElementById("nodes-body").innerText.includes("silent for 59 min 59 s")`)
	p.Shot("phone-states")
	for _, width := range []int64{360, 1440} {
		p.Resize(width, 740)
		p.Await(fmt.Sprintf("innerWidth === %d", width))
		wide := chrome.Eval[[]string](p, `[document.documentElement, ...document.querySelectorAll("body *:not(svg, svg *, .hidden)")]
			.filter((e) => e.checkVisibility() && e.clientWidth > 0 && e.scrollWidth > e.clientWidth + 1).map((e) => e.tagName + " " + e.id + "." + e.className + ": " + e.scrollWidth + " in " + e.clientWidth)`)
		if len(wide) > 0 {
			t.Errorf("at %d px something is cut off: %q", width, wide)
		}
	}
}

// What is no plan is not asked for.
func TestDashboardPlanNonsense(t *testing.T) {
	_, url := serveBoard(t, &fakeSource{b: aBoard(2)}, "")
	p := chrome.Open(t, url, 1000, 800)
	p.Await(`document.getElementById("live").textContent === "live"`)
	chrome.Eval[any](p, `(() => { window.asked = 0; const was = fetch; window.fetch = (...a) => { asked++; return was(...a); }; })()`)
	for _, node := range []string{"ws-1:", "ws-1:abc", "ws-1:0", "ws-1:-1", "ws-1:1:2", "ws-1:1.5", "ws-1:1e1"} {
		p.Type("#plan-add", "ws-7:2, "+node)
		p.Click("#plan button.main")
		p.Await(fmt.Sprintf(`document.querySelector("#plan-result .wrong")?.textContent.startsWith("%s: the weight ") && document.querySelector("#plan-result .wrong").textContent.endsWith("is no number from 1")`, node))
	}
	if n := chrome.Eval[int](p, "asked"); n != 0 {
		t.Errorf("the locator was asked %d times", n)
	}
	p.Type("#plan-add", "ws-7:2")
	p.Click("#plan button.main")
	p.Await("asked === 1")
}

// The focus stays in the table when the dialog of a drain is closed while the node drains,
// whether the page knows yet that it does or not, and when the node is gone.
func TestDashboardDrainFocus(t *testing.T) {
	source := &fakeSource{b: aBoard(3)}
	v, url := serveBoard(t, source, "")
	p := chrome.Open(t, url, 1000, 800)
	p.Await(`document.getElementById("live").textContent === "live"`)
	// The nodes' part is not what is tested.
	chrome.Eval[any](p, `(() => { window.fetch = async () => new Response('{"share":0.5,"sessions":1,"moves":[]}'); })()`)
	state := func(i int, state string) {
		source.mu.Lock()
		source.b.Nodes = slices.Clone(source.b.Nodes)
		facts := *source.b.Nodes[i].nodeFacts
		facts.State = state
		source.b.Nodes[i].nodeFacts = &facts
		source.mu.Unlock()
		v.tick()
	}
	for i, known := range []bool{true, false} {
		id := source.look().Nodes[i].ID
		disabled := fmt.Sprintf(`document.querySelector('button[aria-label="Drain %s"]').disabled`, id)
		p.Click(fmt.Sprintf(`button[aria-label="Drain %s"]`, id))
		p.Await(`!document.getElementById("drain-yes").disabled`)
		p.Click("#drain-yes")
		p.Await(`document.getElementById("drain-close").textContent === "Close, it goes on"`)
		if known {
			state(i, wire.StateDraining)
			p.Await(disabled)
		}
		p.Click("#drain-close")
		p.Await(`!document.getElementById("drain").open`)
		if !known {
			state(i, wire.StateDraining)
			p.Await(disabled)
		}
		p.Await(fmt.Sprintf(`document.activeElement.dataset.node === "%s"`, id))
	}
	source.mu.Lock()
	source.b.Nodes = slices.Delete(slices.Clone(source.b.Nodes), 1, 2)
	source.mu.Unlock()
	v.tick()
	p.Await(`document.querySelectorAll("#nodes-body tr").length === 2 && document.activeElement.id === "nodes-title"`)
}

// Where nodes have forgotten events, the page says so, and not that there were none.
func TestDashboardForgotten(t *testing.T) {
	_, url := serveBoard(t, &fakeSource{b: aBoard(2)}, "")
	p := chrome.Open(t, url, 1000, 800)
	p.Await(`document.getElementById("live").textContent === "live"`)
	for _, c := range []struct {
		forgotten bool
		events    string
		want      string // "": nothing is said
	}{
		{false, "[]", "There were none since the nodes started."},
		{true, "[]", "Older ones are not kept."},
		{false, `[{"kind":"connected","node":"ws-1","device":"web"}]`, ""},
		{true, `[{"kind":"connected","node":"ws-1","device":"web"}]`, "Older ones are not kept."},
	} {
		answer := fmt.Sprintf(`{"user":"alice","node":"ws-1","sessions":[],"silent":[],"now":"2026-01-01T00:00:00Z","events":%s,"events_forgotten":%t}`, c.events, c.forgotten)
		chrome.Eval[any](p, fmt.Sprintf(`(() => { document.getElementById("user-found").hidden = true; window.fetch = async () => new Response(%q); })()`, answer))
		p.Type("#user-id", "alice")
		p.Click("#user button")
		p.Await(fmt.Sprintf(`!document.getElementById("user-found").hidden && (document.getElementById("no-events").hidden ? "" : document.getElementById("no-events").textContent) === %q`, c.want))
	}
}
