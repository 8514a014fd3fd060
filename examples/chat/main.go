// Command chat is a small chat: everyone is in one room, and may write to others
// alone.
//
//	go run ./examples/chat
//
// Open the page that it names in two windows. A private message goes from one user
// to the other through the cluster (a send that names the user, which the token
// allows). A message to the room goes to the application, which is backend.go: it
// gets a webhook, and pushes to the group of those who are in the room. The page uses
// the JavaScript SDK (client/js): it backs off, resumes, acknowledges, and moves to
// another node without a gap; the button that drains its node shows that.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/dialring/dialring/examples/internal/demo"
	"github.com/dialring/dialring/locator"
	"github.com/dialring/dialring/wsnode"
)

// Yours come from where you keep secrets. (In development mode, as here, anybody on
// this machine may be any user all the same.)
const (
	// #nosec G101 -- an example, and it says so
	userSecret = "user tokens: an example that anybody can read" // DIALRING_USER_JWT_SECRET
	// #nosec G101 -- an example, and it says so
	appSecret = "webhooks: an example that anybody can read" // DIALRING_APP_SECRET
)

func main() {
	listen := flag.String("page", "127.0.0.1:8000", "where the page is served")
	again := flag.Duration("again", 10*time.Second, "how long after a drain a node starts again")
	verbose := flag.Bool("v", false, "log what the servers do")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, *listen, *again, *verbose); err != nil {
		fmt.Fprintln(os.Stderr, "chat:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, listen string, again time.Duration, verbose bool) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("%w (choose another -page)", err)
	}
	defer l.Close()
	page := "http://" + l.Addr().String()
	cfg := demo.Config{
		Locator: locator.Config{UserJWTSecret: userSecret, AllowedOrigins: []string{page}},
		Node:    wsnode.Config{App: page + "/dialring", AppSecret: appSecret, AllowedOrigins: []string{page}},
		Again:   again,
		Verbose: verbose,
	}
	err = demo.Run(ctx, cfg, func(ctx context.Context, locator string) error {
		fmt.Fprintf(out, `A chat on three nodes, all in this process.

  Open   %s/?name=alice
  and    %s/?name=bob      in another window

Ctrl-C ends it.
`, page, page)
		b, err := newBackend(locator)
		if err != nil {
			return err
		}
		return demo.Serve(ctx, l, b.handler())
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "\nbye")
	return nil
}
