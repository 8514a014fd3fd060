// Package demo runs a whole dialring cluster in this process, for the examples:
// a locator with an embedded NATS, whose store is a temporary directory, and
// nodes. All of it listens on loopback, in development mode.
package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/dialring/dialring/locator"
	"github.com/dialring/dialring/wsnode"
)

// APIKey is what development mode takes from services.
const APIKey = "dev"

// Config says what to run. Addresses that are not set are free ones.
type Config struct {
	Locator locator.Config
	Node    wsnode.Config // of each node
	Nodes   int           // default 3; they are ws-1, ws-2, …
	// Again, if set, is after which time a node that was drained starts again.
	Again   time.Duration
	Verbose bool // log what the servers do
}

// Run starts the cluster and calls use with the locator's URL when all nodes are
// in the ring. When use returns, or ctx ends, the nodes leave, and all of it ends.
func Run(ctx context.Context, cfg Config, use func(ctx context.Context, locator string) error) error {
	level := slog.LevelWarn
	if cfg.Verbose {
		level = slog.LevelInfo
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	dir, err := os.MkdirTemp("", "dialring-example")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	cfg.Locator.Dev, cfg.Locator.DataDir, cfg.Locator.Log = "true", dir, log
	loopback(&cfg.Locator.Listen, &cfg.Locator.AdminListen, &cfg.Locator.NATSListen)
	loc, err := locator.New(cfg.Locator)
	if err != nil {
		return err
	}
	// The servers end in order: the nodes leave the ring while there is one.
	outer, endLocator := context.WithCancel(context.WithoutCancel(ctx))
	defer endLocator()
	inner, endNodes := context.WithCancel(ctx)
	defer endNodes()
	ended := make(chan error, 1)
	go func() {
		defer endNodes()
		ended <- loc.Run(outer)
	}()
	err = runNodes(inner, endNodes, &cfg, loc, log, use)
	endLocator()
	return errors.Join(err, <-ended)
}

// runNodes runs the nodes, and use beside them.
func runNodes(ctx context.Context, endNodes func(), cfg *Config, loc *locator.Locator, log *slog.Logger, use func(context.Context, string) error) error {
	at, err := loc.Addrs(ctx)
	if err != nil {
		return nil // ctx ended, or the locator, which says why itself
	}
	if cfg.Nodes == 0 {
		cfg.Nodes = 3
	}
	g, ctx := errgroup.WithContext(ctx)
	for i := range cfg.Nodes {
		c := cfg.Node
		c.Dev, c.NATSURL, c.NodeID, c.Log = "true", at.NATS, fmt.Sprintf("ws-%d", i+1), log
		loopback(&c.Listen, &c.PeerListen, &c.AdminListen)
		g.Go(func() error { return runNode(ctx, c, cfg.Again) })
	}
	g.Go(func() error {
		url := "http://" + at.Listen
		if !waitForNodes(ctx, url, cfg.Nodes) {
			return nil
		}
		defer endNodes()
		return use(ctx, url)
	})
	return g.Wait()
}

// runNode runs a node until ctx ends; one that was drained again, after a while.
func runNode(ctx context.Context, cfg wsnode.Config, again time.Duration) error {
	for {
		node, err := wsnode.New(cfg)
		if err != nil {
			return err
		}
		if err := node.Run(ctx); err != nil || again == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(again):
		}
	}
}

// waitForNodes waits until so many nodes are in the ring; false: ctx ended.
func waitForNodes(ctx context.Context, locator string, n int) bool {
	for {
		if active, err := activeNodes(ctx, locator); err == nil && active >= n {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func activeNodes(ctx context.Context, locator string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, locator+"/v1/ring", nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+APIKey)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var ring struct{ Nodes []struct{ State string } }
	if err := json.NewDecoder(resp.Body).Decode(&ring); err != nil {
		return 0, err
	}
	active := 0
	for _, n := range ring.Nodes {
		if n.State == "active" {
			active++
		}
	}
	return active, nil
}

// Serve serves h on l until ctx ends.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// loopback gives addresses that are not set a free port on this machine.
func loopback(addrs ...*string) {
	for _, a := range addrs {
		if *a == "" {
			*a = "127.0.0.1:0"
		}
	}
}
