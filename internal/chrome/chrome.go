// Package chrome opens pages of this project in a headless Chromium, for tests: it drives
// them, and collects what the browser finds wrong with them.
package chrome

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/performance"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/dialring/dialring/internal/browser"
)

const (
	patience = time.Minute // a bound on hangs
	look     = 20 * time.Millisecond
)

// Keys that are no characters.
const (
	Tab    = kb.Tab
	Escape = kb.Escape
	Down   = kb.ArrowDown
)

// Page is a tab of a browser of its own.
type Page struct {
	t testing.TB
	*tab
}

type tab struct {
	ctx  context.Context
	host string // of the address that was opened

	changes atomic.Int64 // how often something was dropped because the network changed

	mu         sync.Mutex
	complaints []string
}

// Open opens a page in a browser that ends with the test. Without Chromium the test is
// skipped, or fails if nothing may be left out.
func Open(t testing.TB, address string, width, height int64) *Page {
	t.Helper()
	chromium := browser.Chromium(t)
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(chromium), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.UserDataDir(t.TempDir()))
	allocated, endAll := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(endAll)
	ctx, end := chromedp.NewContext(allocated)
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx) // waits until the browser has ended
		end()
	})
	return open(t, ctx, u, width, height)
}

// Tab opens a page in another tab of the browser of p, in front of p.
func (p *Page) Tab(address string, width, height int64) *Page {
	p.t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, end := chromedp.NewContext(p.ctx, chromedp.WithNewWindow(false)) // by itself it takes a window, and none is hidden
	p.t.Cleanup(end)
	return open(p.t, ctx, u, width, height)
}

// open has the tab of a context show a page.
func open(t testing.TB, ctx context.Context, u *url.URL, width, height int64) *Page {
	t.Helper()
	p := &Page{t, &tab{ctx: ctx, host: u.Host}}
	if err := chromedp.Listen(ctx, p.heard); err != nil {
		t.Fatal(err)
	}
	p.Do(chromedp.EmulateViewport(width, height), call(log.Enable, cdp.Empty{}), call(network.Enable, network.EnableParams{}),
		call(runtime.Enable, cdp.Empty{}), call(performance.Enable, performance.EnableParams{}))
	p.load(chromedp.Navigate(u.String()))
	return p
}

// load has the tab load a page, and load it anew if the machine's network changed meanwhile.
func (p *Page) load(action chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	for end := time.Now().Add(patience); ; {
		before := p.changes.Load()
		err := chromedp.Do(p.ctx, action)
		again := p.changes.Load() != before || err != nil && strings.Contains(err.Error(), networkChanged)
		if again && time.Now().Before(end) {
			continue
		}
		if err != nil {
			p.t.Fatal(err)
		}
		return
	}
}

// networkChanged is how Chromium drops what it is loading when an interface or an address comes
// or goes, of any network, as in tests that run at the same time. No page is to blame.
const networkChanged = "ERR_NETWORK_CHANGED"

// Front brings the tab before the others of its browser.
func (p *Page) Front() {
	p.t.Helper()
	p.Do(call(page.BringToFront, cdp.Empty{}))
}

// With is the page for a subtest.
func (p *Page) With(t testing.TB) *Page { return &Page{t, p.tab} }

// call is a command of the protocol as an action.
func call[P, R any](c cdp.Command[P, R], params P) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, c, params)
		return err
	})
}

// heard notes what is wrong with the page.
func (p *tab) heard(ev any) {
	var what any
	switch e := ev.(type) {
	case *runtime.EventExceptionThrown:
		what = e.ExceptionDetails
	case *log.EventEntryAdded: // what the policy forbade, and what the server refused
		if strings.Contains(e.Entry.Text, networkChanged) {
			p.changes.Add(1)
			return
		}
		what = e.Entry
	case *runtime.EventConsoleAPICalled:
		if e.Type != runtime.ConsoleAPICalledTypeError && e.Type != runtime.ConsoleAPICalledTypeWarning {
			return
		}
		what = e.Args
	case *network.EventRequestWillBeSent:
		if u, err := url.Parse(e.Request.URL); err == nil && u.Host == p.host {
			return
		}
		what = "a request to " + e.Request.URL
	default:
		return
	}
	b, err := json.Marshal(what)
	if err != nil {
		b = fmt.Append(nil, what)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.complaints = append(p.complaints, string(b))
}

// Complaints returns what the browser found wrong until now, and forgets it: errors, what
// the policy of the page forbade, requests to other hosts.
func (p *tab) Complaints() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := p.complaints
	p.complaints = nil
	return out
}

// Do does something that must not fail.
func (p *Page) Do(actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	if err := chromedp.Do(p.ctx, actions...); err != nil {
		p.t.Fatal(err)
	}
}

// Eval returns what an expression, or its promise, is.
func Eval[T any](p *Page, expression string) T {
	p.t.Helper()
	v, err := chromedp.Run(p.ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		p.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// Await waits until an expression is true. One that throws is not: the page may just be
// loading.
func (p *Page) Await(condition string) {
	p.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(look) {
		ok, err := chromedp.Run(p.ctx, chromedp.Evaluate[bool]("Boolean("+condition+")", chromedp.EvalAwaitPromise))
		if ok && err == nil {
			return
		}
		if time.Now().After(end) {
			p.t.Fatalf("never true: %s (%v)\nthe page is %s\nand the browser complains %q", condition, err, Eval[string](p, "document.body.innerText"), p.Complaints())
		}
	}
}

// Click clicks in the middle of an element, which must be what is seen there.
func (p *Page) Click(selector string) {
	p.t.Helper()
	at := Eval[[]float64](p, fmt.Sprintf(`(() => {
		const e = document.querySelector(%q);
		e.scrollIntoView({ block: "center" });
		const r = e.getBoundingClientRect(), x = r.left + r.width / 2, y = r.top + r.height / 2;
		const seen = document.elementFromPoint(x, y);
		if (!e.contains(seen)) throw new Error("covered by " + seen?.outerHTML);
		return [x, y];
	})()`, selector))
	p.Do(chromedp.MouseClickXY(at[0], at[1]))
}

// Type clicks a field, empties it, and types.
func (p *Page) Type(selector, text string) {
	p.t.Helper()
	p.Click(selector)
	Eval[any](p, fmt.Sprintf("document.querySelector(%q).select()", selector))
	p.Do(call(input.InsertText, input.InsertTextParams{Text: text}))
}

// Keys presses keys.
func (p *Page) Keys(keys string) {
	p.t.Helper()
	p.Do(chromedp.KeyEvent(keys))
}

// Resize makes the window another one.
func (p *Page) Resize(width, height int64) {
	p.t.Helper()
	p.Do(chromedp.EmulateViewport(width, height))
}

// Prefer sets what the user prefers, such as prefers-color-scheme and dark.
func (p *Page) Prefer(feature, value string) {
	p.t.Helper()
	p.Do(call(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: feature, Value: value}}}))
}

// Reload loads the page anew.
func (p *Page) Reload() {
	p.t.Helper()
	p.load(chromedp.Reload())
}

// Nameless lists the controls that have no name for those who do not see them.
func (p *Page) Nameless() []string {
	p.t.Helper()
	tree, err := chromedp.Run(p.ctx, func(ctx context.Context, t *chromedp.Target) (accessibility.GetFullAXTreeResult, error) {
		return cdp.Call(ctx, t, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})
	})
	if err != nil {
		p.t.Fatal(err)
	}
	text := func(v *accessibility.Value) string {
		if v == nil {
			return ""
		}
		var s string
		_ = json.Unmarshal([]byte(v.Value), &s) // a role or a name is a text
		return strings.TrimSpace(s)
	}
	var out []string
	controls := 0
	for _, n := range tree.Nodes {
		switch role := text(n.Role); role {
		case "button", "textbox", "radio", "checkbox", "combobox", "link", "dialog", "progressbar", "img", "image", "region", "form":
			if n.Ignored {
				continue
			}
			controls++
			if text(n.Name) == "" {
				out = append(out, fmt.Sprintf("%s %d", role, n.BackendDOMNodeID))
			}
		}
	}
	if controls == 0 {
		p.t.Fatal("the browser knows of no control at all")
	}
	return out
}

// Pale lists the texts that are seen with less contrast than WCAG's level AA asks for.
func (p *Page) Pale() []string {
	p.t.Helper()
	return Eval[[]string](p, `(() => {
		const channels = (c) => c.match(/[\d.]+/g).map(Number);
		const light = ([r, g, b]) => {
			const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
			return 0.2126 * x + 0.7152 * y + 0.0722 * z;
		};
		const ground = (e) => {
			for (; e; e = e.parentElement) {
				const c = channels(getComputedStyle(e).backgroundColor);
				if (c.length < 4 || c[3] === 1) return c;
			}
			return [255, 255, 255];
		};
		const out = [];
		let texts = 0;
		for (const e of document.querySelectorAll("body *:not(svg, svg *)")) {
			const own = [...e.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.data.trim() !== "");
			if (!own && !e.matches("input, textarea") || !e.checkVisibility() || e.disabled) continue;
			texts++;
			const s = getComputedStyle(e), a = light(channels(s.color)), b = light(ground(e));
			const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
			const large = parseFloat(s.fontSize) >= 24 || parseFloat(s.fontSize) >= 18.66 && s.fontWeight >= 700;
			if (contrast < (large ? 3 : 4.5)) out.push(e.textContent.trim().slice(0, 40) + " has " + contrast.toFixed(2));
		}
		if (texts === 0) throw new Error("no text is seen");
		return out;
	})()`)
}

// Seconds are how long the page's main thread has worked: in all, and in scripts.
func (p *Page) Seconds() (all, scripts float64) {
	p.t.Helper()
	m, err := chromedp.Run(p.ctx, func(ctx context.Context, t *chromedp.Target) (performance.GetMetricsResult, error) {
		return cdp.Call(ctx, t, performance.GetMetrics, cdp.Empty{})
	})
	if err != nil {
		p.t.Fatal(err)
	}
	for _, v := range m.Metrics {
		switch v.Name {
		case "TaskDuration":
			all = v.Value
		case "ScriptDuration":
			scripts = v.Value
		}
	}
	return all, scripts
}

// Shot takes a picture of the page into the folder that DIALRING_SHOTS names, if it does.
func (p *Page) Shot(name string) {
	p.t.Helper()
	dir := os.Getenv("DIALRING_SHOTS")
	if dir == "" {
		return
	}
	b, err := chromedp.Run(p.ctx, chromedp.FullScreenshot(100))
	if err != nil {
		p.t.Fatal(err)
	}
	// #nosec G306 G703 -- tests only; a picture that a test leaves for people
	if err := os.WriteFile(filepath.Join(dir, name+".png"), b, 0o644); err != nil {
		p.t.Fatal(err)
	}
}
