package locator

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/relay"
	"github.com/dialring/dialring/internal/wire"
)

// edge is the way through a locator to nodes that clients cannot reach one by one
// (DIALRING_EDGE): GET /n/{node}/v1/ws, under one name and one certificate.
//
//	client            locator                         node, its peer address
//	  | GET /n/ws-3/v1/ws |                                 |
//	  |------------------>| the ring has ws-3 ?             |
//	  |                   | GET /v1/ws                      |
//	  |                   | Dialring-Edge: <token>          |
//	  |                   | Dialring-Client: <address>      |
//	  |                   |-------------------------------->|
//	  |                   |<-- 101 -------------------------|
//	  |<----------------- bytes, both ways ---------------->|
//
// Any other answer than 101 is handed on as the locator's own, and the connection to
// the node ends: nothing of a client's gets there but one checked request, and the bytes
// of a WebSocket that the node has accepted.
//
// It goes to nodes of the ring and nowhere else; the addresses are the ring's own, never the
// request's. A node that wants to join is reached without an upgrade, since its public
// URL, which leads here, has to answer before it may.
type edge struct {
	l    *Locator
	most int // sessions

	mu    sync.Mutex
	taken int // places: pairs, and dials that may become one
	pairs map[*relay.Pair]struct{}
	over  bool
	wg    sync.WaitGroup // pairs
}

const (
	edgePrefix = "/n/"
	// edgeDial bounds reaching a node, and writing the request to it.
	edgeDial = 2 * time.Second
	// edgeAnswer bounds the node's answer: it may wait for a newer ring and for the store.
	edgeAnswer = 6 * time.Second
	// edgeCatchUp is how long it waits for the ring that a node it does not know is in.
	edgeCatchUp = time.Second
	// maxEdgeAnswer bounds what it answers instead of 101.
	maxEdgeAnswer = 16 << 10
)

// edgePaths are what a node's listener for clients has.
var edgePaths = map[string]bool{pathWS: true, "/healthz": true, "/readyz": true}

const pathWS = "/v1/ws"

// Results of a relayed dial, as a metric names them.
const (
	edgeRelayed     = "relayed" // to the node, whose answer the client got
	edgeRefused     = "refused"
	edgeUnreachable = "unreachable"
)

// handle: GET /n/{node}/…
func (e *edge) handle(c echo.Context) error {
	result := edgeRefused
	defer func() { e.l.metrics.edgeDials.WithLabelValues(result).Inc() }()
	r := c.Request()
	if p := e.l.limiter.Check(r); p != nil {
		e.l.limited(limitAddress)
		return p
	}
	// Undecoded: what is escaped there is no path of a node.
	id, path, _ := strings.Cut(strings.TrimPrefix(r.URL.EscapedPath(), edgePrefix), "/")
	path = "/" + path
	upgrade := len(r.Header.Values("Upgrade")) > 0
	switch {
	case !edgePaths[path] || wire.CheckNode(id) != nil || upgrade && path != pathWS:
		return wire.NewProblem(http.StatusNotFound, wire.CodeNotFound, "there is nothing at this path; nodes are at /n/{node}/v1/ws")
	case r.ProtoMajor != 1 || !r.ProtoAtLeast(1, 1):
		return badRequest("not a WebSocket handshake: it must be HTTP/1.1")
	case r.ContentLength != 0 || len(r.TransferEncoding) > 0:
		return badRequest("not a WebSocket handshake: it must not have a body")
	}
	target, ok := e.target(id, upgrade)
	if !ok && upgrade && offersTicket(r) && e.l.keeper.Hears(id) {
		// The locator that gave the ticket may have seen a newer ring.
		ctx, cancel := context.WithTimeout(r.Context(), edgeCatchUp)
		e.l.rings.WaitEpoch(ctx, e.l.rings.Current().Epoch+1)
		cancel()
		target, ok = e.target(id, upgrade)
	}
	if !ok {
		return wire.NewProblem(http.StatusNotFound, wire.CodeNotFound, "no node %q is in the ring; locate again", id)
	}
	if upgrade && !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		return badRequest("not a WebSocket handshake: the header Upgrade must be websocket")
	}
	if !e.take() {
		e.l.limited(limitEdge)
		return wire.NewProblem(http.StatusServiceUnavailable, wire.CodeRateLimited, "this locator relays as many connections as it can hold")
	}
	joined := false
	defer func() {
		if !joined {
			e.give()
		}
	}()
	conn, br, resp, err := e.ask(r, target, id, path)
	if err != nil {
		if r.Context().Err() != nil { // it was the client that left
			return nil
		}
		result = edgeUnreachable
		e.l.keeper.Failed(id)
		return wire.NewProblem(http.StatusServiceUnavailable, wire.CodeOwnerUnreachable, "node %s does not answer; locate again", id)
	}
	result = edgeRelayed
	if resp.StatusCode != http.StatusSwitchingProtocols || !upgrade {
		defer conn.Close()
		return answerFor(c, resp)
	}
	if joined, err = e.open(c, conn, br, resp); !joined {
		_ = conn.Close()
	}
	return err
}

// offersTicket tells whether a handshake has a ticket of some kind: the node checks it.
func offersTicket(r *http.Request) bool {
	return strings.Contains(strings.Join(r.Header["Sec-Websocket-Protocol"], ","), wire.TicketSubprotocol) || r.Header.Get("Authorization") != ""
}

// target is where a node is reached: by the ring, or, without an upgrade, by the
// heartbeats of one that wants to join.
func (e *edge) target(id string, upgrade bool) (*url.URL, bool) {
	cur := e.l.rings.Current()
	address := ""
	if n, ok := cur.Process(id); ok {
		address = n.PeerURL
	} else if !upgrade {
		address = e.l.keeper.Candidate(id)
	}
	u, err := url.Parse(address)
	return u, err == nil && address != ""
}

// ask hands the request to the node, in the locator's own name, and reads the head of its
// answer.
func (e *edge) ask(r *http.Request, target *url.URL, id, path string) (net.Conn, *bufio.Reader, *http.Response, error) {
	ctx, cancel := context.WithTimeout(r.Context(), edgeDial)
	defer cancel()
	conn, err := peer.Connect(ctx, target, e.l.peerTLS, e.l.router.links.Guard)
	if err != nil {
		return nil, nil, nil, err
	}
	// The client may leave at any time.
	stop := context.AfterFunc(r.Context(), func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	out := r.Clone(ctx)
	out.URL = &url.URL{Path: strings.TrimSuffix(target.Path, "/") + path, RawQuery: r.URL.RawQuery}
	out.Host, out.RequestURI = target.Host, ""
	out.Header.Set(peer.HeaderEdge, e.l.signer.Edge("locator:"+e.l.id, id, time.Now()))
	out.Header.Set(peer.HeaderClient, r.RemoteAddr)
	out.Close = r.Header.Get("Upgrade") == "" // one answer, and its end
	_ = conn.SetDeadline(time.Now().Add(edgeDial + edgeAnswer))
	err = out.Write(conn)
	var resp *http.Response
	var br *bufio.Reader
	if err == nil {
		br, resp, err = peer.ReadAnswer(conn, out, 4<<10)
	}
	if err == nil && !stop() {
		err = r.Context().Err()
	}
	if err != nil {
		_ = conn.Close()
		return nil, nil, nil, err
	}
	return conn, br, resp, nil
}

// hopHeaders are of one connection, or made anew.
var hopHeaders = map[string]bool{"Connection": true, "Keep-Alive": true, "Transfer-Encoding": true, "Upgrade": true, "Trailer": true, "Content-Length": true, "Date": true}

// answerFor hands on what a node answered instead of 101.
func answerFor(c echo.Context, resp *http.Response) error {
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxEdgeAnswer))
	if err != nil || resp.StatusCode < http.StatusOK {
		return wire.NewProblem(http.StatusServiceUnavailable, wire.CodeOwnerUnreachable, "the node gives an answer that cannot be read; locate again")
	}
	h := c.Response().Header()
	for name, v := range resp.Header {
		if !hopHeaders[name] {
			h[name] = v
		}
	}
	// Whoever was refused starts anew.
	h.Set("Connection", "close")
	if up := resp.Header.Get("Upgrade"); up != "" { // of a 426: it says to what
		h.Set("Connection", "close, Upgrade")
		h.Set("Upgrade", up)
	}
	return c.Blob(resp.StatusCode, resp.Header.Get("Content-Type"), b)
}

// open hands on the node's 101 and joins the connections; false if it could not.
func (e *edge) open(c echo.Context, node net.Conn, br *bufio.Reader, resp *http.Response) (bool, error) {
	client, rw, err := http.NewResponseController(c.Response()).Hijack()
	if err != nil {
		return false, err
	}
	head := bytes.NewBufferString("HTTP/1.1 101 Switching Protocols\r\n")
	_ = resp.Header.Write(head) // to memory
	head.WriteString("\r\n")
	fromNode, _ := br.Peek(br.Buffered()) // the welcome may have come with it
	head.Write(fromNode)
	fromClient, _ := rw.Reader.Peek(rw.Reader.Buffered()) // a client that did not wait for the answer
	_ = client.SetDeadline(time.Now().Add(edgeDial))
	_ = node.SetDeadline(time.Now().Add(edgeDial))
	if _, err := client.Write(head.Bytes()); err == nil {
		_, err = node.Write(fromClient)
		if err == nil {
			_ = client.SetDeadline(time.Time{})
			_ = node.SetDeadline(time.Time{})
			return e.join(client, node), nil
		}
	}
	_ = client.Close()
	return false, nil // there is nobody to answer
}

// take reserves a place for a pair; give lets go of it.
func (e *edge) take() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.over || e.taken >= e.most {
		return false
	}
	e.taken++
	return true
}

func (e *edge) give() {
	e.mu.Lock()
	e.taken--
	e.mu.Unlock()
}

// sessions is how many pairs there are.
func (e *edge) sessions() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.pairs)
}

// join joins the connections of a place that was taken; false: no more may be.
func (e *edge) join(client, node net.Conn) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.over {
		_ = client.Close()
		return false
	}
	e.wg.Add(1)
	var p *relay.Pair
	p = relay.Join(client, node, func() {
		e.mu.Lock() // not before p is there
		delete(e.pairs, p)
		e.taken--
		e.mu.Unlock()
		e.wg.Done()
	})
	e.pairs[p] = struct{}{}
	return true
}

const (
	// edgeLeave is how long a locator that ends takes to end its pairs: their clients
	// locate again, and come back through other locators, which must not get all at once.
	edgeLeave = 20 * time.Second
	// edgePace is how many it ends a second, if that fits.
	edgePace = 500
	edgeTick = 50 * time.Millisecond
)

// close takes no more pairs, ends those that there are, and waits for them.
func (e *edge) close() {
	e.mu.Lock()
	e.over = true
	all := slices.Collect(maps.Keys(e.pairs))
	e.mu.Unlock()
	if len(all) > 0 {
		e.l.log.Info("the connections that go through this locator end", "event", "edge_leaves", "sessions", len(all))
	}
	each := max(int(edgePace*edgeTick/time.Second), (len(all)+int(edgeLeave/edgeTick)-1)/int(edgeLeave/edgeTick))
	t := time.NewTicker(edgeTick)
	defer t.Stop()
	for len(all) > 0 {
		n := min(each, len(all))
		for _, p := range all[:n] {
			p.Close()
		}
		if all = all[n:]; len(all) > 0 {
			<-t.C
		}
	}
	e.wg.Wait()
}
