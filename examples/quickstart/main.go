// Command quickstart runs a whole dialring cluster in one process: an embedded
// NATS, one locator, three nodes, and a page to try it with.
//
//	go run ./examples/quickstart
//
// It uses nothing that your own program could not: locator.New(...).Run(ctx)
// and wsnode.New(...).Run(ctx) for the servers (in examples/internal/demo, which
// all examples share), client.Pusher for the page's push button, and in the page the
// JavaScript SDK (client/js).
package main

import (
	"context"
	_ "embed"
	"flag"
	"fmt"
	"html/template"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"github.com/dialring/dialring/client"
	"github.com/dialring/dialring/client/js"
	"github.com/dialring/dialring/examples/internal/demo"
	"github.com/dialring/dialring/locator"
)

//go:embed page.html
var page string

func main() {
	listen := flag.String("listen", "127.0.0.1:8080", "where the locator listens")
	admin := flag.String("admin", "127.0.0.1:8081", "where the dashboard is served")
	pageListen := flag.String("page", "127.0.0.1:8000", "where the page is served")
	nodes := flag.Int("nodes", 3, "how many nodes to run")
	verbose := flag.Bool("v", false, "log what the servers do")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, *listen, *admin, *pageListen, *nodes, *verbose); err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, listen, admin, pageListen string, nodes int, verbose bool) error {
	l, err := net.Listen("tcp", pageListen)
	if err != nil {
		return fmt.Errorf("%w (choose another -page)", err)
	}
	defer l.Close()
	cfg := demo.Config{Locator: locator.Config{Listen: listen, AdminListen: admin}, Nodes: nodes, Verbose: verbose}
	err = demo.Run(ctx, cfg, func(ctx context.Context, locator string) error {
		push, err := client.NewPusher(client.PusherConfig{Locators: []string{locator}, APIKey: demo.APIKey})
		if err != nil {
			return err
		}
		fmt.Fprintf(out, `dialring is running: one locator, %d nodes, NATS, all in this process.

  1. Open      http://%s   and connect as alice
  2. Push      curl -d '{"hello":"alice"}' -H 'Content-Type: application/json' -H 'Authorization: Bearer dev' \
                 '%s/v1/push/alice'
  3. The ring  http://%s   is the dashboard

Ctrl-C ends it.
`, nodes, l.Addr(), locator, admin)
		return demo.Serve(ctx, l, site(locator, push))
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "\nbye")
	return nil
}

// site serves the page, and takes what its push button sends.
func site(locator string, push *client.Pusher) http.Handler {
	t := template.Must(template.New("page").Parse(page))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_ = t.Execute(w, map[string]string{"Locator": locator})
	})
	mux.Handle("GET /dialring.js", js.Handler())
	mux.HandleFunc("POST /push", func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 1<<20)
		receipt, err := push.Push(r.Context(), r.FormValue("user"), map[string]string{"text": r.FormValue("text")}, client.Ephemeral())
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintf(w, "%s wrote it to %d session(s) of %s\n", receipt.Node, receipt.Delivered, r.FormValue("user")) // #nosec G705 -- plain text
	})
	// Other pages that are open in this browser must not push.
	return http.NewCrossOriginProtection().Handler(mux)
}
