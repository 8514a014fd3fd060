package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/dialring/dialring/internal/browser"
	"github.com/dialring/dialring/internal/machine"
)

const interopDir = "testdata/interop"

// interopProgram is a client in testdata/interop.
type interopProgram struct {
	name    string
	missing string   // why it cannot run here; empty: it can
	command []string // empty: a page
	headers bool     // it can set headers, and sends the protocol's pings
	page    bool

	site    string // of the page
	browser *browser.Browser
}

// interopRun is a program, or a page, that runs.
type interopRun struct {
	lines chan interopFrame
	send  func(frame string)
	leave func()
}

// interopPrograms looks which can run here. With DIALRING_FULL=1 all must.
func interopPrograms(t *testing.T) []interopProgram {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(interopDir)); err != nil {
		t.Fatal(err)
	}
	const python, websocket = "/usr/bin/python3", "--experimental-websocket"
	list := []interopProgram{
		{name: "Python websockets", headers: true, command: []string{python, filepath.Join(dir, "python_websockets.py")}},
		{name: "Python aiohttp", headers: true, command: []string{python, filepath.Join(dir, "python_aiohttp.py")}},
		{name: "npm ws", headers: true, command: []string{"node", filepath.Join(dir, "npm_ws.js")}},
		{name: "Node WebSocket", command: []string{"node", websocket, "--no-warnings", filepath.Join(dir, "standard.js")}},
		{name: "Chromium", page: true},
	}
	for i, check := range [][]string{
		{python, "-c", "import websockets"}, {python, "-c", "import aiohttp"},
		// The lock file has its hash. Without a registry it may be in npm's cache.
		{"npm", "ci", "--prefix", dir, "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=0"},
		{"node", websocket, "-e", "WebSocket"}, {"chromium", "--version"},
	} {
		if out, err := exec.Command(check[0], check[1:]...).CombinedOutput(); err != nil {
			list[i].missing = fmt.Sprintf("%s cannot run here (python3-websockets, python3-aiohttp, nodejs from 20.10 on, npm, chromium): %v: %v\n%s", list[i].name, check, err, out)
			if machine.Full() {
				t.Fatal(list[i].missing)
			}
		}
	}
	if c := &list[len(list)-1]; c.missing == "" {
		c.browser = browser.Start(t)
	}
	return list
}

// interopPages serves the page of the browser.
func interopPages(mux *http.ServeMux) {
	mux.HandleFunc("GET /standard.js", func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, filepath.Join(interopDir, "standard.js"))
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(w, `<!doctype html><link rel="icon" href="data:,"><script type="module">
			import { connect } from "/standard.js";
			const lines = [];
			let wake = () => {};
			const took = f => { lines.push(f); wake(); };
			window.more = async () => { if (!lines.length) await new Promise(ok => { wake = ok; setTimeout(ok, 5000); }); return lines.splice(0); };
			window.begin = (locator, token) => {
				window.client = connect(locator, token, "interop", took);
				client.ended.then(code => took({ type: "ended", code: code === 1000 ? 0 : 1 }), e => took({ type: "ended", code: String(e) }));
			};
		</script>`)
	})
}

// start runs the program until the test ends.
func (p *interopProgram) start(t *testing.T, locator, token string, subprotocol bool) interopRun {
	t.Helper()
	if p.page {
		return p.open(t, locator, token)
	}
	args := append(p.command[1:len(p.command):len(p.command)], locator, token, "interop")
	if subprotocol && p.headers {
		args = append(args, "subprotocol")
	}
	cmd := exec.Command(p.command[0], args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := interopRun{lines: make(chan interopFrame, 1<<16), send: func(f string) { fmt.Fprintln(in, f) }, leave: func() { in.Close() }}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s := bufio.NewScanner(out)
		s.Buffer(nil, 1<<22)
		for s.Scan() {
			r.lines <- interopLine(s.Bytes())
		}
		_ = cmd.Wait()
		r.lines <- interopFrame{Type: "ended", Code: float64(cmd.ProcessState.ExitCode())}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
	})
	return r
}

// open runs the page, and asks it for its lines until it has ended or the test has.
func (p *interopProgram) open(t *testing.T, locator, token string) interopRun {
	t.Helper()
	page := p.browser.Open(p.site + "/")
	quote := func(s string) string { b, _ := json.Marshal(s); return string(b) }
	page.Do(`begin(` + quote(locator) + `,` + quote(token) + `)`)
	r := interopRun{lines: make(chan interopFrame, 1<<16),
		send:  func(f string) { page.Do(`client.send(` + quote(f) + `)`) },
		leave: func() { page.Do(`client.leave()`) }}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for t.Context().Err() == nil {
			b, err := page.Run(`more()`)
			var lines []json.RawMessage
			if err == nil {
				err = json.Unmarshal([]byte(b), &lines)
			}
			if err != nil {
				r.lines <- interopFrame{Type: "ended", Code: err.Error()}
				return
			}
			for _, l := range lines {
				f := interopLine(l)
				if r.lines <- f; f.Type == "ended" {
					return
				}
			}
		}
	}()
	t.Cleanup(func() { <-done })
	return r
}

// interopLine reads a line; one that is none ends the client for the test.
func interopLine(b []byte) interopFrame {
	var f interopFrame
	if err := json.Unmarshal(b, &f); err != nil {
		return interopFrame{Type: "ended", Code: fmt.Sprintf("%v in %.200s", err, b)}
	}
	return f
}
