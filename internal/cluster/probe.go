package cluster

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"

	"github.com/dialring/dialring/internal/certs"
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
// connection: a kept one says nothing about the listener. No proxy, no redirect, and
// outside development mode no address of this machine only, whatever name led there.
var prober, devProber = newProber(nil, false), newProber(nil, true)

// newProber makes one; with files it speaks TLS as one program of the cluster to another.
func newProber(files *certs.Files, dev bool) *http.Client {
	dialer := &net.Dialer{Timeout: probeTimeout, Control: GuardOf(dev)}
	t := &http.Transport{DisableKeepAlives: true, DialContext: dialer.DialContext}
	if files != nil {
		t.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			host, _, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			return (&tls.Dialer{NetDialer: dialer, Config: files.Client(host)}).DialContext(ctx, network, addr)
		}
	}
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// proberOf is the prober for addresses of one program of the cluster (files), or of the public.
func proberOf(files *certs.Files, dev bool) *http.Client {
	switch {
	case files != nil:
		return newProber(files, dev)
	case dev:
		return devProber
	}
	return prober
}

// GuardOf is for who connects to an address of a node, when a name may have come to lead
// elsewhere since it was probed; nil in development mode.
func GuardOf(dev bool) func(network, address string, c syscall.RawConn) error {
	if dev {
		return nil
	}
	return notLocal
}

// notLocal refuses what a name was resolved to, as CheckAddress refuses it in an address.
func notLocal(_, address string, _ syscall.RawConn) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if isLocal(host) {
		return fmt.Errorf("its name leads to %s, which is of this machine only (or link-local)", host)
	}
	return nil
}

// run does the probe and fills in its result.
func (p *probe) run(ctx context.Context, files *certs.Files, dev bool) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var err error
	if p.public {
		err = p.askPublic(ctx, dev)
	} else {
		p.health, err = askPeer(ctx, p.url, files, dev)
	}
	p.ok, p.err = err == nil, err
	p.refused = errors.Is(err, syscall.ECONNREFUSED)
}

// askPublic asks a node's public URL without upgrading; whatever the status,
// the answer names the node.
func (p *probe) askPublic(ctx context.Context, dev bool) error {
	url := "http" + strings.TrimPrefix(p.url, "ws") // ws to http, wss to https
	resp, err := get(ctx, proberOf(nil, dev), url)
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
func askPeer(ctx context.Context, base string, files *certs.Files, dev bool) (h Health, err error) {
	u, err := url.Parse(base)
	if err != nil {
		return h, err
	}
	if err := files.Encrypted(u); err != nil {
		return h, err
	}
	resp, err := get(ctx, proberOf(files, dev), strings.TrimSuffix(base, "/")+"/healthz")
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

func get(ctx context.Context, client *http.Client, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	return client.Do(req)
}
