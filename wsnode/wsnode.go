// Package wsnode is a node: it holds the WebSocket sessions of the users that
// the ring gives it and writes the pushes for them. cmd/wsnode is the program.
//
//	n, err := wsnode.New(wsnode.Config{Dev: "true"})
//	if err != nil { ... }
//	err = n.Run(ctx)
package wsnode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/lxzan/gws"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/dialring/dialring/internal/certs"
	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/httpd"
	"github.com/dialring/dialring/internal/inbox"
	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/route"
	"github.com/dialring/dialring/internal/ticket"
	"github.com/dialring/dialring/internal/tracing"
	"github.com/dialring/dialring/internal/wire"
)

// Node is one node of a cluster. Make it with New; Run runs it, once.
type Node struct {
	cfg    Config
	log    *slog.Logger
	boot   string
	ids    wire.IDs // of messages that clients here send
	signer *ticket.Signer
	start  time.Time

	hub              *hub
	presenceOf       *presence
	limiter          httpd.AddressLimiter
	perUser          *httpd.Limiter[string] // dials
	frameRate        inflowRate             // of a session
	byteRate         inflowRate
	origins          httpd.Origins
	upgrader         *gws.Upgrader
	maxSessions      int64
	maxHandshakes    int
	waiting, relayed *httpd.Waiting // at the listener for clients, and at the other
	ringWaits        *shares        // calls that wait for a ring
	sending          *shares        // bytes of sends that wait for an answer
	queues           queues
	memory           memory
	connections      atomic.Int64 // sessions from their admission until their connection has ended
	pingEvery        int64        // seconds of the sweep's clock

	// Set by Run, before anything is served.
	ctx      context.Context
	nats     *cluster.Conn
	rings    *cluster.Rings
	keys     *cluster.Keys
	verifier *ticket.Verifier
	links    *peer.Server
	stored   *stored   // the inbox
	peers    peer.Pool // links to other nodes: former owners of users that moved here, and owners of users that clients here send to
	router   route.Router
	app      application // nil: there is none
	metrics  *metrics
	tracer   *tracing.Tracer // nil: nothing is traced

	draining atomic.Bool  // leaving the ring
	ending   atomic.Bool  // about to end without leaving it
	sweptAt  atomic.Int64 // since start
	admitted atomic.Int64 // sessions, ever
	pushed   atomic.Int64 // pushes to users of this node, ever
	pushRate meter        // of these
	history  history
	joined   atomic.Bool // was in the ring with this boot id
	// admission guards closed, and adding to readers: sessions from their
	// admission until their connection has ended.
	admission sync.Mutex
	closed    bool
	readers   sync.WaitGroup
	tasks     sync.WaitGroup
	forwards  sync.WaitGroup // stored pushes on their way to former owners
	beatNow   chan struct{}

	// Handoffs; see move.go.
	settled    atomic.Uint64 // newest epoch by which no session here is misplaced, nor anybody missing if it drains
	misplaced  atomic.Int64
	someLeft   chan struct{} // a session that was to move has gone
	kicked     kickedSessions
	recent     recent // broadcasts
	planning   sync.Mutex
	drainOnce  sync.Once
	drainAsked chan struct{}
	locatorAt  atomic.Int64 // when a locator was last heard, since start
	refused    rate.Sometimes
	refusals   httpd.Refusals // of tickets and calls, and by the store, in the log

	listening chan struct{}
	addrs     Addrs
}

// Addrs are the addresses on which a running node listens.
type Addrs struct{ Listen, Peer, Admin string }

// New checks the settings and returns a node that does nothing yet. The error
// says which setting to change, and how.
func New(cfg Config) (*Node, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, signer: ticket.NewSigner(), boot: wire.RandomID(10), start: time.Now(), presenceOf: newPresence(cfg.PresenceGrace), beatNow: make(chan struct{}, 1), someLeft: make(chan struct{}, 1),
		drainAsked: make(chan struct{}), listening: make(chan struct{}), queues: queues{over: make(chan struct{}, 1)}, refused: rate.Sometimes{Interval: time.Second}}
	n.hub = newHub(n.presenceOf)
	n.log = cfg.Log.With("node", cfg.NodeID)
	n.ids.Prefix = n.boot + "-"
	n.origins = httpd.Origins{Allowed: cfg.AllowedOrigins, Dev: cfg.dev}
	perAddress, perUser := cfg.RatePerAddress, cfg.RatePerUser
	if cfg.dev {
		perAddress, perUser = 0, 0
	}
	n.limiter = httpd.NewAddressLimiter(perAddress)
	n.perUser = httpd.NewLimiter[string](perUser, 2*cfg.MaxSessionsPerUser)
	n.frameRate = newInflowRate(cfg.FrameRate, 0)
	n.byteRate = newInflowRate(cfg.ByteRate, cfg.MaxMessageBytes+envelope)
	n.ringWaits = newShares(maxRingWaits, 1)
	n.sending = newShares(int64(cfg.SendQueueBytes), int64(cfg.MaxMessageBytes+envelope))
	// Descriptors are for sessions, but for those of webhooks and of handshakes at both listeners.
	reserved := cfg.ReservedFiles
	if cfg.webhooks() {
		reserved += cfg.AppConcurrency
	}
	n.maxSessions = httpd.ConnectionLimit(reserved)
	n.maxHandshakes = max(1, int(min(int64(cfg.MaxHandshakes), n.maxSessions/8)))
	n.maxSessions = max(1, n.maxSessions-2*int64(n.maxHandshakes))
	n.waiting, n.relayed = n.handshakes(4*max(0, perAddress)), n.handshakes(0)
	n.waiting.Exempt = cfg.proxies.Has
	if n.maxSessions < fewSessions {
		n.log.Warn("the limit of open files leaves room for few sessions: raise it (ulimit -n, LimitNOFILE), or lower DIALRING_RESERVED_FILES, DIALRING_MAX_HANDSHAKES or DIALRING_APP_CONCURRENCY", "event", "few_files", "sessions", n.maxSessions)
	}
	if cfg.MaxSessions > 0 {
		n.maxSessions = min(n.maxSessions, int64(cfg.MaxSessions))
	}
	n.pingEvery = max(1, int64(cfg.PingInterval/sweepInterval))
	n.upgrader = gws.NewUpgrader(events{}, &gws.ServerOption{
		NewSession:         func() gws.SessionStorage { return &holder{} },
		SubProtocols:       []string{wire.Subprotocol},
		CheckUtf8Enabled:   false, // OnMessage does
		ReadMaxPayloadSize: cfg.MaxMessageBytes + envelope,
		// JSON text in base64 is the largest frame that goes out.
		WriteMaxPayloadSize: 2*cfg.MaxMessageBytes + envelope,
		ReadBufferSize:      readBuffer,
		HandshakeTimeout:    writeTimeout,
		Recovery:            func(gws.Logger) {}, // session.read recovers
		Logger:              quiet{},
	})
	return n, nil
}

// fewSessions are as many as make no sense for a node.
const fewSessions = 100

// quiet takes gws's own log: what it tells, the session's end tells too.
type quiet struct{}

func (quiet) Error(...any) {}

// Addrs waits until the node listens and returns where.
func (n *Node) Addrs(ctx context.Context) (Addrs, error) {
	select {
	case <-n.listening:
		return n.addrs, nil
	case <-ctx.Done():
		return Addrs{}, ctx.Err()
	}
}

// Run runs the node until ctx ends, or a locator asks it to drain; then it leaves
// the ring, moves its clients to their new owners, within DrainTimeout, and
// returns nil. With a RestartGrace it ends at once and keeps its place. It returns an error if the node cannot
// start, or if another process has taken its place. No goroutine is left.
func (n *Node) Run(ctx context.Context) error {
	public, err := net.Listen("tcp", n.cfg.Listen)
	if err != nil {
		return fmt.Errorf("%w: choose another DIALRING_LISTEN", err)
	}
	defer public.Close()
	cert, err := certs.Load(n.cfg.certificate(), n.log)
	if err != nil {
		return err
	}
	keys, err := inbox.LoadKeys(n.cfg.InboxKeysFile, n.log)
	if err != nil {
		return err
	}
	peerTLS, err := certs.Load(n.cfg.peerTLS(), n.log)
	if err != nil {
		return err
	}
	natsTLS := peerTLS
	if own := n.cfg.natsTLS(); !own.None() {
		if natsTLS, err = certs.Load(own.Or(n.cfg.peerTLS()), n.log); err != nil {
			return err
		}
	}
	peers, err := net.Listen("tcp", n.cfg.PeerListen)
	if err != nil {
		return fmt.Errorf("%w: choose another DIALRING_PEER_LISTEN", err)
	}
	defer peers.Close()
	admin, err := net.Listen("tcp", n.cfg.AdminListen)
	if err != nil {
		return fmt.Errorf("%w: choose another DIALRING_ADMIN_LISTEN", err)
	}
	defer admin.Close()
	n.cfg.advertise(public.Addr(), peers.Addr())
	n.memory.limit = n.cfg.memoryLimit()
	n.queues.limit = n.cfg.queueLimit(n.memory.limit)
	n.addrs = Addrs{Listen: public.Addr().String(), Peer: peers.Addr().String(), Admin: admin.Addr().String()}

	n.nats, err = cluster.Connect(cluster.Options{URL: n.cfg.NATSURL, Token: string(n.cfg.NATSToken), CredsFile: n.cfg.NATSCreds, TLS: natsTLS,
		Cluster: n.cfg.Cluster, Identity: cluster.Identity{Node: n.cfg.nodeKey}, Role: "node", Name: "dialring node " + n.cfg.NodeID, PendingBytes: n.cfg.NATSPendingBytes, Log: n.log})
	if err != nil {
		return err
	}
	defer n.nats.Close()
	n.rings = cluster.NewRings(n.nats, n.log)
	n.keys = cluster.NewKeys(n.nats, n.rings, n.log, n.signer, ticket.FromNode+n.cfg.NodeID)
	n.verifier = ticket.NewVerifier(n.cfg.NodeID, n.keys, maxUsedTickets)
	n.links = &peer.Server{Handle: n.handle, Replied: n.replied, Ring: func() wire.RingRef {
		r := n.rings.Current()
		return wire.RingRef{Epoch: r.Epoch, Hash: r.Hash}
	}}
	n.peers.TLS, n.peers.Guard = peerTLS, cluster.GuardOf(n.cfg.dev)
	n.peers.Token = func(node string) string { return n.signer.Peer(ticket.FromNode+n.cfg.NodeID, node, time.Now()) }
	n.router.Rings, n.router.Links, n.router.Suspect = n.rings, &n.peers, func(string) {} // locators notice it themselves
	n.app = n.newApplication()
	store, err := inbox.NewJetStream(inbox.Options{Conn: n.nats.NATS(), Cluster: n.cfg.Cluster, Partitions: n.cfg.InboxPartitions, Replicas: n.cfg.InboxReplicas,
		Limits: inbox.Limits{Messages: n.cfg.InboxMaxMessages, Age: n.cfg.InboxMaxAge, Window: n.cfg.IdempotencyWindow},
		Synced: n.nats.Synced, Sync: n.nats.Sync, Create: n.nats.CreateStream, Keys: keys, Log: n.log})
	if err != nil {
		return err
	}
	n.stored = newStored(n, store, keys, n.cfg.InboxMaxAge, n.log)
	n.metrics = n.newMetrics(cert, peerTLS)
	if n.tracer, err = tracing.New(tracing.Options{Endpoint: n.cfg.OTLPEndpoint, Service: "wsnode", Instance: n.cfg.NodeID, Cluster: n.cfg.Cluster, Log: n.log}); err != nil {
		return err
	}
	defer n.tracer.Close()

	// The control plane outlives ctx, so that the node can leave in order.
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, run := errgroup.WithContext(run)
	n.ctx = run
	g.Go(func() error { return n.rings.Run(run) })
	g.Go(func() error { return n.keys.Run(run) })
	g.Go(func() error { return n.beat(run) })
	g.Go(func() error { return n.watchRing(run) })
	n.stored.groups.Store = store
	n.nats.OnUp(store.Reconnected)
	n.nats.OnUp(n.checkPayload)
	n.nats.OnUp(n.stored.groups.Forget) // the store may be a new one
	g.Go(func() error { return store.Run(run) })
	g.Go(func() error { keys.Run(run); return nil })
	g.Go(func() error { n.stored.health.run(run); return nil })
	g.Go(func() error { n.stored.positions.Run(run); return nil })
	g.Go(func() error { n.lookAgain(run); return nil })
	g.Go(func() error { n.sayPresence(run); return nil })
	n.sweptAt.Store(int64(time.Since(n.start)))
	g.Go(func() error { n.sweep(run); return nil })
	g.Go(func() error { n.relieve(run); return nil })
	g.Go(func() error { n.watchMemory(run); return nil })
	g.Go(func() error { cert.Run(run); return nil })
	g.Go(func() error {
		return httpd.Serve(run, cert.Listener(public), n.cfg.proxies.Client(n.publicHandler()), n.log, n.waiting.Tune)
	})
	g.Go(func() error { peerTLS.Run(run); return nil })
	if natsTLS != peerTLS {
		g.Go(func() error { natsTLS.Run(run); return nil })
	}
	g.Go(func() error {
		return httpd.Serve(run, peerTLS.PeerListener(peers), n.peerHandler(), httpd.Handshakes(n.log, func(remote string, why error) {
			n.sayRefused("a connection to the peer address is refused", remote, why)
		}), n.relayed.Tune)
	})
	adminAddr := admin.Addr()
	if !httpd.OnLoopback(adminAddr) {
		admin = cert.Listener(admin)
	}
	g.Go(func() error {
		return httpd.Serve(run, admin, httpd.Admin(httpd.AdminOptions{
			Addr: adminAddr, Key: string(n.cfg.AdminKey), Ready: n.ready, Metrics: n.metrics.registry, Log: n.log}), n.log, httpd.NewWaiting(maxAdmin, 0, func(bool) { n.limited(limitAdmin) }).Tune)
	})
	n.locatorAt.Store(int64(time.Since(n.start)))
	if err := cluster.OnLocatorBeat(run, n.nats, func(b cluster.LocatorBeat) {
		n.locatorAt.Store(int64(time.Since(n.start)))
		n.keys.Saw(b.KID, b.Time)
	}); err != nil {
		stop()
		return errors.Join(err, g.Wait())
	}
	n.log.Info("listening", "event", "listening", "listen", n.addrs.Listen, "peer", n.addrs.Peer, "admin", n.addrs.Admin,
		"url", n.cfg.NodeURL, "boot", n.boot)
	close(n.listening)

	select {
	case <-ctx.Done():
		if n.cfg.RestartGrace > 0 {
			n.log.Info("ending; its place in the ring is kept for the next process", "event", "restarting", "grace", n.cfg.RestartGrace)
			n.ending.Store(true)
		} else {
			n.drain(run)
		}
	case <-n.drainAsked:
		n.drain(run)
	case <-run.Done():
	}
	n.closeSessions(wire.CloseDraining)
	flush, flushed := context.WithTimeout(run, flushTimeout)
	n.stored.positions.Flush(flush)
	flushed()
	if n.draining.Load() {
		n.tellMissing(time.Now(), true)
		n.lookSoon() // the last report ends the handoff
		n.awaitRelease(run)
	}
	stop()
	err = g.Wait()
	n.links.Close()
	n.readers.Wait()
	n.tasks.Wait()
	n.stored.logs.Wait()
	store.Wait()
	n.forwards.Wait()
	n.peers.Close() // ends calls, whose jobs end then
	n.router.Wait()
	if n.app != nil {
		n.app.close()
	}
	return err
}

// checkPayload tells the operator if NATS does not take the largest messages.
func (n *Node) checkPayload() {
	n.tasks.Go(func() { // OnUp must not block, and nats.go's answer may wait for a lock
		if most := n.nats.MaxPayload(); most < int64(n.cfg.MaxMessageBytes+envelope) {
			n.log.Error("NATS takes smaller messages than DIALRING_MAX_MESSAGE_BYTES allows: larger ones cannot be stored; raise max_payload of the NATS servers",
				"event", "nats_payload", "max_payload", most, "needed", n.cfg.MaxMessageBytes+envelope)
		}
	})
}

// flushTimeout bounds the last writes of positions.
const flushTimeout = 2 * time.Second

// maxUsedTickets bounds the memory for used tickets, to about 100 MiB; reached
// at some 14,000 handshakes a second for over a minute.
const maxUsedTickets = 1 << 20

// publicHandler is what clients reach.
func (n *Node) publicHandler() http.Handler {
	e := httpd.New(n.log)
	e.GET(pathWS, n.dialWS)
	n.health(e)
	return e
}

// peerHandler is what locators and nodes reach.
func (n *Node) peerHandler() http.Handler {
	e := httpd.New(n.log)
	e.GET(peer.Path, n.link)
	e.GET(pathWS, n.dialRelayed)
	e.GET("/healthz", func(c echo.Context) error {
		c.Response().Header().Set("Cache-Control", "no-store")
		return c.JSON(http.StatusOK, n.healthNow())
	})
	e.GET("/readyz", echo.WrapHandler(httpd.Readyz(n.ready)))
	return e
}

func (n *Node) health(e *echo.Echo) {
	e.GET("/healthz", echo.WrapHandler(http.HandlerFunc(httpd.Healthz)))
	e.GET("/readyz", echo.WrapHandler(httpd.Readyz(n.ready)))
}

// link starts a peer link for a caller with a token for this node.
func (n *Node) link(c echo.Context) error {
	token, ok := httpd.Bearer(c.Request())
	if !ok {
		return wire.NewProblem(http.StatusUnauthorized, wire.CodeUnauthorized, "a peer token is missing")
	}
	from, err := n.verifier.Peer(token, time.Now())
	if err != nil {
		n.sayRefused("a peer call is refused", c.Request().RemoteAddr, err)
		return wire.NewProblem(http.StatusUnauthorized, wire.CodeUnauthorized, "the peer token is not valid")
	}
	n.log.Debug("peer link", "event", "peer_link", "from", from, "remote", c.Request().RemoteAddr)
	return n.links.Upgrade(c.Response(), c.Request(), from)
}

// sayRefused tells the log of a stranger at the peer address, once a second at most: who
// has no token must not fill the disk.
func (n *Node) sayRefused(what, remote string, err error) {
	n.refused.Do(func() { n.log.Warn(what, "event", "peer_refused", "remote", remote, "error", err) })
}

// dialRelayed answers a dial that a locator relays (DIALRING_EDGE there): the client's
// address is the one that it names.
func (n *Node) dialRelayed(c echo.Context) error {
	r := c.Request()
	c.Response().Header().Set(cluster.NodeHeader, n.cfg.NodeID)
	_, err := n.verifier.Edge(r.Header.Get(peer.HeaderEdge), time.Now())
	client, bad := netip.ParseAddrPort(r.Header.Get(peer.HeaderClient))
	if err = errors.Join(err, bad); err != nil {
		n.sayRefused("a relayed dial is refused", r.RemoteAddr, err)
		return wire.NewProblem(http.StatusUnauthorized, wire.CodeUnauthorized, "this address is for locators; clients dial the url that a locator gives them")
	}
	r.RemoteAddr = client.String()
	r.Header.Del(peer.HeaderEdge)
	r.Header.Del(peer.HeaderClient)
	return n.dialWS(c)
}

// ready says why clients should not be sent here.
func (n *Node) ready() error {
	switch {
	case n.draining.Load() || n.ending.Load():
		return errors.New("draining")
	case !n.inRing():
		return errors.New("not in the ring yet")
	case n.stored.health.down.Load():
		return errors.New("the store takes no messages: sessions and ephemeral pushes go on, stored ones are refused")
	}
	return nil
}

func (n *Node) inRing() bool {
	m, ok := n.rings.Current().Find(n.cfg.NodeID)
	return ok && m.Boot == n.boot
}
