// Command dialring is the command line of a dialring cluster: it listens as a user,
// pushes as a service, shows and drains nodes as an operator, and makes load.
//
// It is a program of the SDK's: it knows a cluster by its public API, as any client does.
package main

import (
	"context"
	"io"
	"log"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// net/http logs what a server says unasked, such as the greeting of NATS, next to the
	// error that tells the same.
	log.SetOutput(io.Discard)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second one ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr))
}
