package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/dialring/dialring/internal/browser"
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
	locator, admin, page := freeAddr(t), freeAddr(t), freeAddr(t)
	out := &output{up: make(chan struct{})}
	done := make(chan error, 1)
	go func() { done <- run(ctx, out, locator, admin, page, 3, false) }()
	select {
	case <-out.up:
	case err := <-done:
		t.Fatalf("ended early: %v", err)
	case <-time.After(patience):
		t.Fatal("it never said what to do")
	}
	for _, want := range []string{"http://" + page, "http://" + locator + "/v1/push/alice", "http://" + admin} {
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
	if err != nil || !strings.Contains(string(b), `const locators = "http://`+strings.ReplaceAll(locator, "/", `\/`)) {
		t.Errorf("the page does not know the locator: %v\n%s", err, b)
	}
	resp, err = http.Get("http://" + admin + "/")
	if err != nil {
		t.Fatal(err)
	}
	b, err = io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != 200 || !strings.Contains(string(b), "<title>") {
		t.Errorf("the dashboard: %d %v %s", resp.StatusCode, err, b)
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

// inBrowser opens the page in a real browser, as alice, and pushes: the browser's
// document holds the message.
func inBrowser(t *testing.T, locator, page string) {
	p := browser.Start(t).Open("http://" + page + "/?user=alice")
	p.Await(`document.body.innerText.includes("connected as alice, owned by ws-")`)
	req, err := http.NewRequest("POST", "http://"+locator+"/v1/push/alice?durable=false", strings.NewReader(`{"marker":"seen-in-browser"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer dev")
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var r struct{ Delivered int }
	if err := json.NewDecoder(resp.Body).Decode(&r); err != nil || r.Delivered != 1 {
		t.Errorf("the push was answered %d %+v %v", resp.StatusCode, r, err)
	}
	p.Await(`document.body.innerText.includes("seen-in-browser")`)
}
