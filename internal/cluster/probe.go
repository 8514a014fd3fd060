package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
)

// NodeHeader names the node that answers at a public URL.
const NodeHeader = "Dialring-Node"

// Health is what a node's peer address answers at /healthz.
type Health struct {
	Node string `json:"node"`
	Boot string `json:"boot"`
	// As in its heartbeats, which may not come: the node may be cut off from NATS.
	Epoch     uint64 `json:"epoch"`
	Settled   uint64 `json:"settled"`
	Misplaced int    `json:"misplaced"`
}

// prober asks addresses whether their node is there. Each probe is a new
// connection: a kept one says nothing about the listener. No proxy, no redirect.
var prober = &http.Client{
	Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       (&net.Dialer{Timeout: probeTimeout}).DialContext,
	},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// run does the probe and fills in its result.
func (p *probe) run(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var err error
	if p.public {
		err = p.askPublic(ctx)
	} else {
		p.health, err = askPeer(ctx, p.url)
	}
	p.ok = err == nil
	p.refused = errors.Is(err, syscall.ECONNREFUSED)
}

// askPublic asks a node's public URL without upgrading; whatever the status,
// the answer names the node.
func (p *probe) askPublic(ctx context.Context) error {
	url := "http" + strings.TrimPrefix(p.url, "ws") // ws to http, wss to https
	resp, err := get(ctx, url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if got := resp.Header.Get(NodeHeader); got != p.node {
		return fmt.Errorf("%s answers as node %q, not %q", p.url, got, p.node)
	}
	return nil
}

// askPeer asks a peer address for its node.
func askPeer(ctx context.Context, base string) (h Health, err error) {
	resp, err := get(ctx, strings.TrimSuffix(base, "/")+"/healthz")
	if err != nil {
		return h, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return h, fmt.Errorf("%s answers %s", base, resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 4096)).Decode(&h); err != nil {
		return h, fmt.Errorf("%s is no node: %w", base, err)
	}
	return h, nil
}

func get(ctx context.Context, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	return prober.Do(req)
}
