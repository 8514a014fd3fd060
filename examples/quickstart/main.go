// Command quickstart runs a whole dialring cluster in one process: an embedded
// NATS, one locator, three nodes, and a page to try it with.
//
//	go run ./examples/quickstart
//
// It uses nothing that your own program could not: locator.New(...).Run(ctx)
// and wsnode.New(...).Run(ctx) for the servers, client.Pusher for the page's
// push button.
package main

import (
	"context"
	_ "embed"
	"flag"
	"fmt"
	"html/template"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/dialring/dialring/client"
	"github.com/dialring/dialring/locator"
	"github.com/dialring/dialring/wsnode"
)

//go:embed page.html
var page string

func main() {
	listen := flag.String("listen", "127.0.0.1:8080", "where the locator listens")
	pageListen := flag.String("page", "127.0.0.1:8000", "where the page is served")
	nodes := flag.Int("nodes", 3, "how many nodes to run")
	verbose := flag.Bool("v", false, "log what the servers do")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, *listen, *pageListen, *nodes, *verbose); err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, listen, pageListen string, nodes int, verbose bool) error {
	level := slog.LevelWarn
	if verbose {
		level = slog.LevelInfo
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	dir, err := os.MkdirTemp("", "dialring-quickstart")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	// The servers end in order: the nodes leave the ring while there is one.
	outer, endAll := context.WithCancel(context.WithoutCancel(ctx))
	defer endAll()
	var servers errgroup.Group
	loc, err := locator.New(locator.Config{Dev: "true", Listen: listen, AdminListen: "127.0.0.1:0", NATSListen: "127.0.0.1:0",
		DataDir: dir, Log: log})
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	servers.Go(func() error {
		err := loc.Run(outer)
		if err != nil {
			g.Go(func() error { return err }) // ends the nodes, too
		}
		return nil
	})
	if err := start(ctx, g, out, log, loc, pageListen, nodes); err != nil {
		g.Go(func() error { return err })
	}
	<-ctx.Done()
	err = g.Wait()
	endAll()
	_ = servers.Wait()
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "\nbye")
	return nil
}

func start(ctx context.Context, g *errgroup.Group, out io.Writer, log *slog.Logger, loc *locator.Locator, pageListen string, nodes int) error {
	at, err := loc.Addrs(ctx)
	if err != nil {
		return nil // ctx ended: Run says why
	}
	for i := range nodes {
		node, err := wsnode.New(wsnode.Config{Dev: "true", NodeID: fmt.Sprintf("ws-%d", i+1), NATSURL: at.NATS,
			Listen: "127.0.0.1:0", PeerListen: "127.0.0.1:0", AdminListen: "127.0.0.1:0", Log: log})
		if err != nil {
			return err
		}
		g.Go(func() error { return node.Run(ctx) })
	}
	push, err := client.NewPusher(client.PusherConfig{Locators: []string{"http://" + at.Listen}, APIKey: "dev"})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", pageListen)
	if err != nil {
		return fmt.Errorf("%w (choose another -page)", err)
	}
	s := &http.Server{Handler: site(at.Listen, push), ReadHeaderTimeout: 5 * time.Second}
	g.Go(func() error {
		if err := s.Serve(l); err != http.ErrServerClosed {
			return err
		}
		return nil
	})
	context.AfterFunc(ctx, func() { _ = s.Close() })
	if !waitReady(ctx, at.Listen) {
		return nil
	}
	fmt.Fprintf(out, `dialring is running: one locator, %d nodes, NATS, all in this process.

  1. Open      http://%s   and connect as alice
  2. Push      curl -d '{"hello":"alice"}' -H 'Content-Type: application/json' -H 'Authorization: Bearer dev' \
                 'http://%s/v1/push/alice'
  3. The ring  curl -H 'Authorization: Bearer dev' http://%s/v1/ring

Ctrl-C ends it.
`, nodes, l.Addr(), at.Listen, at.Listen)
	return nil
}

// waitReady waits until a node is in the ring.
func waitReady(ctx context.Context, locator string) bool {
	for {
		resp, err := http.Get("http://" + locator + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return true
			}
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// site serves the page, and takes what its push button sends.
func site(locator string, push *client.Pusher) http.Handler {
	t := template.Must(template.New("page").Parse(page))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_ = t.Execute(w, map[string]string{"Locator": "http://" + locator})
	})
	mux.HandleFunc("POST /push", func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 1<<20)
		receipt, err := push.Push(r.Context(), r.FormValue("user"), map[string]string{"text": r.FormValue("text")}, client.Ephemeral())
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		fmt.Fprintf(w, "%s wrote it to %d session(s) of %s\n", receipt.Node, receipt.Delivered, r.FormValue("user"))
	})
	// Other pages that are open in this browser must not push.
	return http.NewCrossOriginProtection().Handler(mux)
}
