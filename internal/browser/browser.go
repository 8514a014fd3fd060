// Package browser opens pages in a headless Chromium, for tests.
package browser

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dialring/dialring/internal/machine"
)

const patience = time.Minute // a bound on hangs

// Browser is a Chromium, spoken to over two pipes.
type Browser struct {
	t  testing.TB
	to io.Writer

	mu    sync.Mutex
	n     int
	calls map[int]chan answer
	pages map[string]*Page // by session
	ended bool
}

// Page is a tab.
type Page struct {
	b       *Browser
	session string
	loaded  chan struct{}

	complaints []string // with b locked
}

type answer struct {
	Result json.RawMessage `json:"result"`
	Error  struct{ Message string }
}

// Chromium is where the program is. Without it the test is skipped, or fails if nothing
// may be left out.
func Chromium(t testing.TB) string {
	t.Helper()
	return machine.Program(t, "chromium", "chromium")
}

// Start starts the browser that [Chromium] finds; it ends with the test.
func Start(t testing.TB) *Browser {
	t.Helper()
	chromium := Chromium(t)
	profile, err := os.MkdirTemp("", "dialring-browser")
	if err != nil {
		t.Fatal(err)
	}
	theirIn, ourOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ourIn, theirOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	// #nosec G204 -- tests only
	cmd := exec.Command(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--user-data-dir="+profile,
		"--remote-debugging-pipe")
	cmd.ExtraFiles = []*os.File{theirIn, theirOut} // 3 and 4
	ownGroup(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = theirIn.Close()
	_ = theirOut.Close()
	b := &Browser{t: t, to: ourOut, calls: map[int]chan answer{}, pages: map[string]*Page{}}
	read := make(chan struct{})
	go func() { defer close(read); b.read(ourIn) }()
	t.Cleanup(func() {
		killGroup(cmd)
		_ = cmd.Wait()
		_ = ourOut.Close()
		<-read
		_ = ourIn.Close()
		for os.RemoveAll(profile) != nil { // until the last of its children has ended
			time.Sleep(10 * time.Millisecond)
		}
	})
	return b
}

// read takes what comes until the browser has ended.
func (b *Browser) read(from io.Reader) {
	in := bufio.NewReader(from)
	for {
		line, err := in.ReadBytes(0)
		b.mu.Lock()
		if err != nil {
			b.ended = true
			for _, c := range b.calls {
				close(c)
			}
			b.mu.Unlock()
			return
		}
		b.took(line[:len(line)-1])
		b.mu.Unlock()
	}
}

// took handles an answer or an event. b is locked.
func (b *Browser) took(line []byte) {
	var m struct {
		ID      int    `json:"id"`
		Method  string `json:"method"`
		Session string `json:"sessionId"`
		Params  struct {
			ExceptionDetails json.RawMessage `json:"exceptionDetails"`
			Entry            json.RawMessage `json:"entry"`
		} `json:"params"`
		answer
	}
	if json.Unmarshal(line, &m) != nil {
		return
	}
	if c := b.calls[m.ID]; c != nil {
		delete(b.calls, m.ID)
		c <- m.answer
		return
	}
	p := b.pages[m.Session]
	if p == nil {
		return
	}
	switch m.Method {
	case "Page.loadEventFired":
		close(p.loaded)
	case "Runtime.exceptionThrown":
		p.complaints = append(p.complaints, string(m.Params.ExceptionDetails))
	case "Log.entryAdded":
		p.complaints = append(p.complaints, string(m.Params.Entry))
	}
}

// call asks the browser, or the page of a session.
func (b *Browser) call(session, method string, params, out any) error {
	c := make(chan answer, 1)
	b.mu.Lock()
	if b.ended {
		b.mu.Unlock()
		return errors.New("the browser has ended")
	}
	b.n++
	m := map[string]any{"id": b.n, "method": method, "params": params}
	if session != "" {
		m["sessionId"] = session
	}
	b.calls[b.n] = c
	line, err := json.Marshal(m)
	if err == nil {
		_, err = b.to.Write(append(line, 0))
	}
	b.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case a, ok := <-c:
		switch {
		case !ok:
			return errors.New("the browser has ended")
		case a.Error.Message != "":
			return errors.New(a.Error.Message)
		}
		return json.Unmarshal(a.Result, out)
	case <-time.After(patience):
		return errors.New("the browser does not answer")
	}
}

// Open opens a tab and waits until it is loaded.
func (b *Browser) Open(url string) *Page {
	b.t.Helper()
	must := func(err error) {
		b.t.Helper()
		if err != nil {
			b.t.Fatalf("opening %s: %v", url, err)
		}
	}
	var target struct{ TargetID string }
	must(b.call("", "Target.createTarget", map[string]any{"url": "about:blank"}, &target))
	var attached struct{ SessionID string }
	must(b.call("", "Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached))
	p := &Page{b: b, session: attached.SessionID, loaded: make(chan struct{})}
	b.mu.Lock()
	b.pages[p.session] = p
	b.mu.Unlock()
	for _, domain := range []string{"Page", "Runtime", "Log"} {
		must(b.call(p.session, domain+".enable", struct{}{}, &struct{}{}))
	}
	must(b.call(p.session, "Page.navigate", map[string]any{"url": url}, &struct{}{}))
	select {
	case <-p.loaded:
	case <-time.After(patience):
		b.t.Fatalf("%s does not load", url)
	}
	return p
}

// Run runs a script in the page, and returns what it promises, as JSON.
func (p *Page) Run(script string) (string, error) {
	var r struct {
		Result struct {
			Value json.RawMessage `json:"value"`
		} `json:"result"`
		ExceptionDetails json.RawMessage `json:"exceptionDetails"`
	}
	err := p.b.call(p.session, "Runtime.evaluate", map[string]any{"expression": script, "awaitPromise": true, "returnByValue": true}, &r)
	if err == nil && r.ExceptionDetails != nil {
		err = errors.New(string(r.ExceptionDetails))
	}
	return string(r.Result.Value), err
}

// Do runs a script in the page, which must not fail.
func (p *Page) Do(script string) {
	p.b.t.Helper()
	if _, err := p.Run(script); err != nil {
		p.b.t.Fatalf("%s: %v", script, err)
	}
}

// Await waits until an expression holds, which is looked at whenever the page changes.
func (p *Page) Await(cond string) {
	p.b.t.Helper()
	_, err := p.Run(`new Promise(ok => {
		const look = () => { if (` + cond + `) ok(true); };
		new MutationObserver(look).observe(document, { subtree: true, childList: true, characterData: true, attributes: true });
		look();
	})`)
	if err != nil {
		text, _ := p.Run("document.body.innerText")
		p.b.t.Fatalf("waiting for %s: %v\nthe page is %s\nand the browser complains %s", cond, err, text, p.Complaints())
	}
}

// Complaints is what the browser says of the page: errors, and what its policy
// forbade.
func (p *Page) Complaints() string {
	p.b.mu.Lock()
	defer p.b.mu.Unlock()
	return strings.Join(p.complaints, "\n")
}

// Offline takes the page's network away, or gives it back.
func (p *Page) Offline(off bool) {
	p.b.t.Helper()
	err := p.b.call(p.session, "Network.emulateNetworkConditions", map[string]any{"offline": off, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}, &struct{}{})
	if err != nil {
		p.b.t.Fatalf("offline %t: %v", off, err)
	}
}
