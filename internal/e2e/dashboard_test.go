package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/dialring/dialring/client"
	"github.com/dialring/dialring/internal/chrome"
	"github.com/dialring/dialring/internal/machine"
	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/wire"
)

// literal writes a text as a literal of JavaScript.
func literal(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string always has an encoding
	}
	return string(b)
}

// text is what an element of the page says.
func text(p *chrome.Page, selector string) string {
	return chrome.Eval[string](p, "document.querySelector("+literal(selector)+").textContent")
}

// clean fails if the browser found something wrong.
func clean(t *testing.T, p *chrome.Page) {
	t.Helper()
	for _, c := range p.Complaints() {
		t.Errorf("the browser complains: %s", c)
	}
	if names := p.Nameless(); len(names) > 0 {
		t.Errorf("controls without a name: %q", names)
	}
	for _, scheme := range []string{"dark", "light"} {
		p.Prefer("prefers-color-scheme", scheme)
		if pale := p.Pale(); len(pale) > 0 {
			t.Errorf("too pale in %s: %q", scheme, pale)
		}
	}
}

// lookUp looks a user up on the page.
func lookUp(p *chrome.Page, user string) {
	p.Type("#user-id", user)
	p.Click("#user button")
	p.Await(`!document.getElementById("user-found").hidden && document.getElementById("user-name").dataset.user === ` + literal(user))
}

// What an operator does at three in the morning, in a real browser, on a cluster of
// processes under load: look at the ring, look a user up, push a message, kick, plan, and
// drain a node and watch it empty.
func TestDashboard(t *testing.T) {
	run := restartable(t, t.TempDir(), fmt.Sprintf("DIALRING_ADMIN_LISTEN=127.0.0.1:%d", freePort(t)))
	l := run()
	nodes := map[string]*nodeProc{}
	for i := 1; i <= 3; i++ {
		id := fmt.Sprintf("ws-%d", i)
		nodes[id] = startNode(t, id, l.nats, "DIALRING_ACCEPT_RATE=5") // a drain takes some seconds, to be watched
	}
	l.waitMembers(t, "ws-1", "ws-2", "ws-3")
	const users = 60
	load := startLoad(t, loadConfig{Locators: []*locatorProc{l}, Users: users, Devices: 2, Rate: 60})
	rate := load.cfg.Rate

	p := chrome.Open(t, "http://"+l.admin+"/", 1440, 1000)
	p.Await(`document.getElementById("live").textContent === "live"`)
	p.Await(`document.querySelectorAll("#nodes-body tr").length === 3 && document.querySelectorAll("#ring .arcs path").length === 3`)
	p.Await(fmt.Sprintf(`document.getElementById("sum-sessions").textContent === "%d"`, 2*users))
	p.Await(fmt.Sprintf(`Math.abs(Number(document.getElementById("sum-pushes").textContent) - %d) < %d`, rate, rate/2))
	sum := 0.0
	for _, n := range l.ring(t).Nodes {
		sum += n.PushRate
	}
	if want := float64(rate); sum < want/2 || sum > want*3/2 {
		t.Errorf("GET /v1/ring says %.1f pushes a second, sent are %d", sum, rate)
	}
	for id := range nodes {
		row := text(p, `#nodes-body tr[data-node="`+id+`"]`)
		if !strings.Contains(row, "active") || strings.Contains(row, "NaN") || strings.Contains(row, "undefined") {
			t.Errorf("the row of %s: %s", id, row)
		}
	}
	clean(t, p)
	p.Shot("light")
	p.Prefer("prefers-color-scheme", "dark")
	p.Shot("dark")
	p.Prefer("prefers-color-scheme", "light")

	t.Run("a user whose id is markup", func(t *testing.T) {
		p := p.With(t)
		user := `<img src=x onerror=alert(1)>&amp;"'/%2F?#` + "\u202e" + strings.Repeat("é", 40)
		user += strings.Repeat("x", wire.MaxUserID-len(user))
		web, phone := pickUp(t, user, "web", l), pickUp(t, user, "phone", l)
		for _, h := range []*handset{web, phone} {
			eventually(t, h.Device()+" is connected", h.connected)
		}
		lookUp(p, user)
		owner := l.locate(t, user, "").Node
		facts := text(p, "#user-facts")
		if !strings.Contains(facts, "Owner"+owner) || !strings.Contains(facts, "2 sessions") {
			t.Errorf("the facts of the user: %s", facts)
		}
		left := slices.DeleteFunc([]string{"ws-1", "ws-2", "ws-3"}, func(id string) bool { return id == owner })
		next, _ := ring.Of(equal(left...)).Owner(user)
		if !strings.Contains(facts, "Next owner"+next.ID) {
			t.Errorf("next owner is %s, shown: %s", next.ID, facts)
		}
		if n := chrome.Eval[int](p, `document.querySelectorAll("#sessions-body tr").length`); n != 2 {
			t.Errorf("%d sessions are shown", n)
		}
		if events := text(p, "#user-events"); !strings.Contains(events, "web connected") || !strings.Contains(events, "phone connected") || !strings.Contains(events, owner) {
			t.Errorf("the events: %s", events)
		}
		if name := text(p, "#user-name"); strings.Contains(name, "\u202e") || !strings.Contains(name, `\u{202e}`) {
			t.Errorf("what turns a text around is not spelled out: %q", name)
		}
		p.Shot("user")

		p.Type("#push-data", `{"hello": [1.50, "<b>"]}`)
		p.Click("#push button")
		p.Await(`document.getElementById("push-result").textContent.includes("wrote it to 2 sessions")`)
		for _, h := range []*handset{web, phone} {
			if got := await(t, h.Device()+" gets the test message", h.got); got != `{"hello": [1.50, "<b>"]}` {
				t.Errorf("%s got %s", h.Device(), got)
			}
		}
		p.Click("#push-stored")
		p.Type("#push-data", `"kept"`)
		p.Click("#push button")
		p.Await(`document.getElementById("push-result").textContent.includes("stored it as seq 1 and wrote it to 2 sessions")`)
		p.Type("#push-data", `{nonsense`)
		p.Click("#push button")
		p.Await(`document.getElementById("push-wrong").textContent.startsWith("not JSON")`)

		p.Click(`#sessions-body button[aria-label="Kick web"]`)
		p.Await(`document.getElementById("confirm").open`)
		p.Keys(chrome.Escape) // no
		p.Await(`!document.getElementById("confirm").open && document.activeElement.getAttribute("aria-label") === "Kick web"`)
		p.Click(`#sessions-body button[aria-label="Kick web"]`)
		p.Click("#confirm-yes")
		web.stopped(t, wire.CloseKicked)
		p.Await(`document.querySelectorAll("#sessions-body tr").length === 1 && document.getElementById("user-events").textContent.includes("web kicked, code 4002")`)
		if !phone.connected() {
			t.Error("the other device was kicked, too")
		}
		p.Click("#kick-all")
		p.Click("#confirm-yes")
		phone.stopped(t, wire.CloseKicked)
		p.Await(`document.getElementById("sessions").hidden && document.getElementById("user-facts").textContent.includes("Onlineno")`)
		for _, act := range []string{`"act":"push"`, `"act":"kick"`} {
			if l.loggedAt(t, act).IsZero() {
				t.Errorf("the log of the locator has no %s", act)
			}
		}
		clean(t, p)

		for _, other := range []string{".", "..", "a/b", "a%2Fb", " "} { // ids that mean something in a path
			lookUp(p, other)
			if facts := text(p, "#user-facts"); !strings.Contains(facts, "Owner"+l.locate(t, other, "").Node) {
				t.Errorf("the facts of %q: %s", other, facts)
			}
		}
		p.Type("#user-id", strings.Repeat("x", wire.MaxUserID+1))
		p.Click("#user button")
		p.Await(`document.getElementById("user-wrong").textContent.includes("at most 128 bytes")`)
		if c := p.Complaints(); len(c) != 1 || !strings.Contains(c[0], "400") { // the browser reports the answer
			t.Errorf("the browser complains %q", c)
		}
	})

	t.Run("keyboard", func(t *testing.T) {
		p := p.With(t)
		// From the beginning of the page on, Tab reaches every control that can be seen, one
		// row of the table, and ends where it began.
		want := chrome.Eval[[]string](p, `[...document.querySelectorAll("button, input, textarea, select, [tabindex='0']")]
			.filter(e => e.checkVisibility() && !e.disabled && e.tabIndex >= 0 && !(e.type === "radio" && !e.checked)).map(e => e.id || e.getAttribute("aria-label") || e.dataset.node || e.className)`)
		chrome.Eval[any](p, `(() => { document.activeElement?.blur(); window.scrollTo(0, 0); getSelection().removeAllRanges(); })()`)
		var got []string
		for range len(want) + 20 {
			p.Keys(chrome.Tab)
			at := chrome.Eval[string](p, `(e => e === document.body ? "" : e.id || e.getAttribute("aria-label") || e.dataset.node || e.className)(document.activeElement)`)
			if at != "" && !slices.Contains(got, at) {
				got = append(got, at)
			}
		}
		for _, w := range want {
			if !slices.Contains(got, w) {
				t.Errorf("Tab never comes to %q; it comes to %q", w, got)
			}
		}
		if len(want) < 15 {
			t.Errorf("only %q can be reached", want)
		}
		chrome.Eval[any](p, `document.querySelector("#nodes-body tr").focus()`)
		p.Keys(chrome.Down)
		p.Await(`document.activeElement === document.querySelectorAll("#nodes-body tr")[1] && document.querySelectorAll("#nodes-body tr[tabindex='0']").length === 1`)
		p.Await(`document.querySelector("#ring .arcs .hot").dataset.node === document.activeElement.dataset.node`)
	})

	t.Run("plan", func(t *testing.T) {
		p := p.With(t)
		p.Type("#plan-add", "ws-9:2")
		p.Click("#plan button.main")
		p.Await(`document.querySelector("#plan-result .sum")?.textContent.includes("of all users would move")`)
		status, b := call(t, "POST", "http://"+l.addr+"/v1/ring/plan", `{"add":[{"id":"ws-9","weight":2}]}`)
		var plan wire.PlanResponse
		if err := json.Unmarshal(b, &plan); status != 200 || err != nil {
			t.Fatalf("%d %s", status, b)
		}
		if sum := text(p, "#plan-result .sum"); !strings.Contains(sum, fmt.Sprintf("%.1f %%", 100*plan.Share)) {
			t.Errorf("the page says %q, the API %.4f", sum, plan.Share)
		}
		if n := chrome.Eval[int](p, `document.querySelectorAll("#ring .flow.planned").length`); n != len(plan.Moves) {
			t.Errorf("%d moves are drawn, want %d", n, len(plan.Moves))
		}
		p.Shot("plan")
		p.Click("#plan-clear")
		p.Await(`document.querySelectorAll("#ring .flow").length === 0 && document.getElementById("plan-result").textContent === ""`)
		clean(t, p)
	})

	t.Run("drain", func(t *testing.T) {
		p := p.With(t)
		moved := userOf(t, l, "ws-2")
		alice := pickUp(t, moved, "web", l)
		eventually(t, "alice is connected", alice.connected)
		epoch := l.ring(t).Epoch
		p.Click(`button[aria-label="Drain ws-2"]`)
		p.Await(`document.getElementById("drain").open && !document.getElementById("drain-yes").disabled`)
		if plan := text(p, "#drain-plan"); !strings.Contains(plan, "of all users would move") {
			t.Errorf("the dialog says %q", plan)
		}
		p.Shot("drain-asked")
		if e := l.ring(t).Epoch; e != epoch {
			t.Fatalf("the ring changed before anything was confirmed: epoch %d", e)
		}
		clean(t, p)
		p.Click("#drain-yes")
		p.Await(`/ of \d+ sessions left/.test(document.getElementById("drain-left").textContent)`)
		p.Await(`document.querySelectorAll("#ring .flow").length > 0 && /still to go/.test(document.getElementById("handoffs").textContent)`)
		p.Await(`(bar => bar.value > 0 && bar.value < 1)(document.getElementById("drain-bar"))`)
		p.Await(`(bar => bar.value > 0 && bar.value < 1)(document.querySelector("#handoffs progress"))`)
		p.Shot("draining")
		p.Await(`document.getElementById("drain-title").textContent === "ws-2 is drained"`)
		p.Click("#drain-close")
		p.Await(`!document.getElementById("drain").open && document.activeElement.id === "nodes-title"`)
		l.waitMembers(t, "ws-1", "ws-3")
		await(t, "the process ends", nodes["ws-2"].done)
		if code := nodes["ws-2"].cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("ws-2 ended with %d", code)
		}
		p.Await(`document.querySelectorAll("#nodes-body tr").length === 2 && document.querySelectorAll("#ring .flow").length === 0`)
		p.Await(`document.getElementById("timeline").textContent.includes("ws-2 left, to be drained") && document.getElementById("timeline").textContent.includes("handed over (ws-2)")`)
		p.Await(fmt.Sprintf(`document.getElementById("sum-sessions").textContent === "%d"`, 2*users+1))
		if l.loggedAt(t, `"act":"drain"`).IsZero() {
			t.Error("the log of the locator has no drain")
		}
		// What happened to the user who moved is told by both nodes that know of it, as long as
		// they are there: the new owner knows of the arrival.
		lookUp(p, moved)
		p.Await(`document.getElementById("user-events").textContent.includes("web arrived by a move")`)
		if s := alice.State(); s.State != client.Connected {
			t.Errorf("the client that was moved is %v", s.State)
		}
		clean(t, p)
	})

	startNode(t, "ws-4", l.nats)
	t.Run("a node dies while it is drained", func(t *testing.T) {
		p := p.With(t)
		l.waitMembers(t, "ws-1", "ws-3", "ws-4")
		eventually(t, "its users have come", func() bool { return len(l.ring(t).Handoffs) == 0 })
		dialBare(t, l, userOf(t, l, "ws-3")) // it does not follow a move, so that the drain lasts
		p.Await(`document.querySelector("#nodes-body tr[data-node='ws-4']")`)
		p.Click(`button[aria-label="Drain ws-3"]`)
		p.Await(`!document.getElementById("drain-yes").disabled`)
		p.Click("#drain-yes")
		p.Await(`/ of \d+ sessions left/.test(document.getElementById("drain-left").textContent)`)
		eventually(t, "it is out of the ring", func() bool { return l.members(t)["ws-3"].Share == 0 })
		nodes["ws-3"].kill()
		p.Await(`document.getElementById("drain-title").textContent === "ws-3 is dead"`)
		p.Await(`document.getElementById("timeline").textContent.includes("ws-3 taken out: dead")`)
		p.Keys(chrome.Escape)
		p.Await(`!document.getElementById("drain").open`)
		clean(t, p)
	})

	t.Run("phone", func(t *testing.T) {
		p := p.With(t)
		p.Resize(360, 740)
		p.Await(`document.documentElement.scrollWidth <= 360`)
		p.Shot("phone")
		p.Prefer("prefers-color-scheme", "dark")
		p.Shot("phone-dark")
		p.Prefer("prefers-color-scheme", "light")
		p.Resize(1440, 1000)
	})

	t.Run("the locator restarts", func(t *testing.T) {
		p := p.With(t)
		p.Complaints()
		// The stream ends and the page says so, and comes back by itself.
		l.kill()
		p.Await(`document.getElementById("live").textContent.startsWith("not live since")`)
		p.Complaints() // connections that are refused
		again := run()
		p.Await(`document.getElementById("live").textContent === "live" && document.querySelectorAll("#nodes-body tr").length === 2`)
		// The changes of before its start come from the store.
		p.Await(`document.getElementById("timeline").textContent.includes("ws-2 left, to be drained")`)
		p.Await(`document.getElementById("timeline-begin").textContent === ""`) // since the first epoch
		t.Run("and hangs", func(t *testing.T) {
			if !machine.Full() {
				t.Skip("takes long: DIALRING_FULL=1, or task full, runs it")
			}
			p := p.With(t)
			if err := again.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			p.Await(`document.getElementById("live").textContent.startsWith("not live since")`)
			if err := again.cmd.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			p.Await(`document.getElementById("live").textContent === "live"`)
		})
	})
	load.close(t)
}
