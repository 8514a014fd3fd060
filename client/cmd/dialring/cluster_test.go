package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dialring/dialring/client"
	"github.com/dialring/dialring/locator"
	"github.com/dialring/dialring/wsnode"
)

// patience bounds every wait for what has to happen. It says nothing about how fast.
const patience = 60 * time.Second

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// cluster is a locator in development mode, with its nodes, in this process.
type cluster struct {
	url    string
	nats   string // address
	admin  string
	env    []string
	pusher *client.Pusher
}

func startCluster(t *testing.T, nodes int, lc locator.Config) *cluster {
	t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	lc.Dev, lc.Listen, lc.AdminListen, lc.NATSListen = "true", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	lc.DataDir, lc.DataSync, lc.Log = t.TempDir(), "interval", log
	l, err := locator.New(lc)
	if err != nil {
		t.Fatal(err)
	}
	background(t, "locator", l.Run)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	at, err := l.Addrs(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range nodes {
		n, err := wsnode.New(wsnode.Config{Dev: "true", NodeID: fmt.Sprintf("ws-%d", i+1), NATSURL: at.NATS, Log: log,
			Listen: "127.0.0.1:0", PeerListen: "127.0.0.1:0", AdminListen: "127.0.0.1:0"})
		if err != nil {
			t.Fatal(err)
		}
		background(t, fmt.Sprintf("ws-%d", i+1), n.Run)
	}
	c := &cluster{url: "http://" + at.Listen, nats: strings.TrimPrefix(at.NATS, "nats://"), admin: at.Admin}
	c.env = []string{"DIALRING_CLI_LOCATOR=" + c.url}
	a := &app{env: getenv(c.env), locators: []string{c.url}, transport: keepNothing()}
	if c.pusher, err = a.pusher(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all nodes are in the ring", func() bool {
		r, err := c.pusher.Ring(t.Context())
		for _, n := range r.Nodes {
			if n.State != client.NodeActive {
				return false
			}
		}
		return err == nil && len(r.Nodes) == nodes && len(r.Handoffs) == 0
	})
	eventually(t, "pushes are stored", func() bool {
		_, err := c.pusher.Push(t.Context(), "nobody", 1)
		return err == nil
	})
	return c
}

// background runs a server until the test ends.
func background(t *testing.T, name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", name, err)
		}
	})
}

// do runs the command on the cluster.
func (c *cluster) do(t *testing.T, args ...string) outcome {
	t.Helper()
	return command(t, "", c.env, args...)
}

// ok runs the command on the cluster, which must succeed.
func (c *cluster) ok(t *testing.T, args ...string) string {
	t.Helper()
	o := c.do(t, args...)
	o.want(t, exitDone, "")
	return o.out
}

// call is a command that runs in the background.
type call struct {
	t      *testing.T
	cancel context.CancelFunc
	code   chan int
	stdin  *io.PipeWriter

	mu        sync.Mutex
	out, errs strings.Builder
}

// begin runs the command in the background.
func (c *cluster) begin(t *testing.T, args ...string) *call {
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	b := &call{t: t, cancel: cancel, code: make(chan int, 1), stdin: w}
	go func() {
		b.code <- run(ctx, args, getenv(c.env), r, writer{b, &b.out}, writer{b, &b.errs})
		r.Close()
	}()
	t.Cleanup(func() {
		cancel()
		w.Close()
	})
	return b
}

type writer struct {
	b  *call
	to *strings.Builder
}

func (w writer) Write(p []byte) (int, error) {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	return w.to.Write(p)
}

func (b *call) text() (out, errs string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.String(), b.errs.String()
}

// says waits until stdout or stderr has a text.
func (b *call) says(text string) {
	b.t.Helper()
	eventually(b.t, text+" is told", func() bool {
		out, errs := b.text()
		return strings.Contains(out, text) || strings.Contains(errs, text)
	})
}

// ends waits for the end, and returns stdout.
func (b *call) ends(code int) string {
	b.t.Helper()
	select {
	case got := <-b.code:
		out, errs := b.text()
		if got != code {
			b.t.Errorf("ended with %d, want %d:\n%s%s", got, code, out, errs)
		}
		return out
	case <-time.After(patience):
		out, errs := b.text()
		b.t.Fatalf("it did not end:\n%s%s", out, errs)
		return ""
	}
}

// What differs from run to run.
var varying = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`), "<DATE AND TIME....>"},
	{regexp.MustCompile(`\d\d:\d\d:\d\d(\.\d{3})?`), "<TIME>"},
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "<ADDRESS>"},
	{regexp.MustCompile(`\d+\.\ds ago`), "<AGE>"},
	{regexp.MustCompile(`\([0-9a-f]{8}\)`), "(<HASH>)"},
	{regexp.MustCompile(`ring \d+`), "ring <N>"},
	{regexp.MustCompile(`\b[a-z2-7]{16}\b`), "<SESSION......>"},
}

// steady replaces what differs from run to run, and the space behind it, which aligns.
func steady(text string) string {
	for _, v := range varying {
		text = v.pattern.ReplaceAllString(text, v.with)
	}
	return regexp.MustCompile(`(?m)(>| {2}) +`).ReplaceAllString(text, "$1  ")
}
