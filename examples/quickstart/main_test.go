package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lxzan/gws"
	"go.uber.org/goleak"
)

const patience = time.Minute // a bound on hangs

// output lets the test wait for what the quickstart prints.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
	up chan struct{} // closed when the instructions were printed
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, err := o.b.Write(p)
	if strings.Contains(string(p), "Ctrl-C") {
		close(o.up)
	}
	return n, err
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// The quickstart runs, a page connects, a push arrives there, and it ends clean.
func TestQuickstart(t *testing.T) {
	defer goleak.VerifyNone(t)
	defer http.DefaultClient.CloseIdleConnections()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	locator, page := freeAddr(t), freeAddr(t)
	out := &output{up: make(chan struct{})}
	done := make(chan error, 1)
	go func() { done <- run(ctx, out, locator, page, 3, false) }()
	select {
	case <-out.up:
	case err := <-done:
		t.Fatalf("ended early: %v", err)
	case <-time.After(patience):
		t.Fatal("it never said what to do")
	}
	for _, want := range []string{"http://" + page, "http://" + locator + "/v1/push/alice"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not print %s:\n%s", want, out.String())
		}
	}
	resp, err := http.Get("http://" + page)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || !strings.Contains(string(b), `const locator = "http://`+strings.ReplaceAll(locator, "/", `\/`)) {
		t.Errorf("the page does not know the locator: %v\n%s", err, b)
	}
	resp, err = http.PostForm("http://"+page+"/push", url.Values{"user": {"nobody"}, "text": {"x"}})
	if err != nil {
		t.Fatal(err)
	}
	b, _ = io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 200 || !strings.Contains(string(b), "0 session(s)") {
		t.Errorf("push button: %d %s", resp.StatusCode, b)
	}
	t.Run("browser", func(t *testing.T) { inBrowser(t, locator, page) })
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("Ctrl-C ends it with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("Ctrl-C does not end it")
	}
}

// inBrowser opens the page in a real browser, as alice, and pushes until the
// browser's document holds the message.
func inBrowser(t *testing.T, locator, page string) {
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("DIALRING_FULL") == "1" {
			t.Fatal("chromium is missing: apt-get install chromium")
		}
		t.Skip("chromium is missing: apt-get install chromium")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	pushed := make(chan struct{})
	go func() { // pushes until one is delivered: then the page is connected
		defer close(pushed)
		for ctx.Err() == nil {
			req, _ := http.NewRequestWithContext(ctx, "POST", "http://"+locator+"/v1/push/alice?durable=false", strings.NewReader(`{"marker":"seen-in-browser"}`))
			req.Header.Set("Authorization", "Bearer dev")
			req.Header.Set("Content-Type", "application/json")
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return
			}
			var r struct{ Delivered int }
			_ = json.NewDecoder(resp.Body).Decode(&r)
			resp.Body.Close()
			if r.Delivered > 0 {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	profile, err := os.MkdirTemp("", "dialring-browser")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--user-data-dir="+profile,
		"--remote-debugging-port=0", "http://"+page+"/?user=alice")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // it has children
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	context.AfterFunc(ctx, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	defer func() {
		cancel()
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		<-pushed
		for os.RemoveAll(profile) != nil { // until the last child has ended
			time.Sleep(10 * time.Millisecond)
		}
	}()
	devtools := ""
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		if _, u, ok := strings.Cut(lines.Text(), "DevTools listening on ws://"); ok {
			devtools, _, _ = strings.Cut(u, "/")
			break
		}
	}
	go func() { _, _ = io.Copy(io.Discard, stderr) }()
	for want := []string{"seen-in-browser", "connected as alice, owned by ws-"}; ; {
		text := pageText(ctx, devtools)
		if strings.Contains(text, want[0]) && strings.Contains(text, want[1]) {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the page does not show %q:\n%s", want, text)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// pageText asks the browser's DevTools for the text of its page.
func pageText(ctx context.Context, devtools string) string {
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+devtools+"/json/list", nil)
	if err != nil {
		return err.Error()
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	var pages []struct {
		Type string
		URL  string `json:"webSocketDebuggerUrl"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&pages); err != nil {
		return err.Error()
	}
	for _, p := range pages {
		if p.Type != "page" {
			continue
		}
		answer := make(devtoolsAnswer, 1)
		ws, _, err := gws.NewClient(answer, &gws.ClientOption{Addr: p.URL})
		if err != nil {
			return err.Error()
		}
		ended := make(chan struct{})
		go func() { defer close(ended); ws.ReadLoop() }()
		defer func() { _ = ws.NetConn().Close(); <-ended }()
		if err := ws.WriteString(`{"id":1,"method":"Runtime.evaluate","params":{"expression":"document.body.innerText"}}`); err != nil {
			return err.Error()
		}
		select {
		case text := <-answer:
			return text
		case <-ctx.Done():
		}
	}
	return "no page"
}

// devtoolsAnswer takes the first message.
type devtoolsAnswer chan string

func (devtoolsAnswer) OnOpen(*gws.Conn)         {}
func (devtoolsAnswer) OnClose(*gws.Conn, error) {}
func (devtoolsAnswer) OnPing(*gws.Conn, []byte) {}
func (devtoolsAnswer) OnPong(*gws.Conn, []byte) {}
func (a devtoolsAnswer) OnMessage(_ *gws.Conn, m *gws.Message) {
	select {
	case a <- strings.ReplaceAll(string(m.Bytes()), `\"`, `"`):
	default:
	}
	_ = m.Close()
}
