// Package locator answers clients which node owns their user, carries pushes
// of services to that node, and keeps the ring. cmd/locator is the program.
//
//	l, err := locator.New(locator.Config{Dev: "true"})
//	if err != nil { ... }
//	err = l.Run(ctx)
package locator

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"
	"golang.org/x/sync/errgroup"

	"github.com/dialring/dialring/internal/certs"
	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/httpd"
	"github.com/dialring/dialring/internal/natsd"
	"github.com/dialring/dialring/internal/relay"
	"github.com/dialring/dialring/internal/ticket"
	"github.com/dialring/dialring/internal/tracing"
	"github.com/dialring/dialring/internal/wire"
)

// Locator is one locator of a cluster. Make it with New; Run runs it, once.
type Locator struct {
	cfg      Config
	log      *slog.Logger
	id       string
	signer   *ticket.Signer
	keys     *apiKeys
	refusals httpd.Refusals // of credentials, in the log
	ids      wire.IDs
	limiter  httpd.AddressLimiter
	perUser  *httpd.Limiter[string] // locates
	locates  *httpd.Overload
	waiting  *httpd.Waiting                     // connections of clients and services
	calls    *httpd.InFlight[[sha256.Size]byte] // of services, by API key
	origins  httpd.Origins

	// Set by Run, before anything is served.
	ctx      context.Context
	front    context.Context // ends when no more requests are taken
	peerTLS  *certs.Files    // nil: peer calls without
	tokens   *userTokens     // nil: development mode without
	nats     *cluster.Conn
	embedded *natsd.Server // nil: NATS is elsewhere
	rings    *cluster.Rings
	book     *cluster.Keys
	keeper   *cluster.Keeper
	revoked  *cluster.Revocations
	router   *router
	storm    storm
	edge     edge
	metrics  *metrics
	tracer   *tracing.Tracer // nil: nothing is traced
	viewers  *viewers        // of the dashboard

	listening chan struct{}
	addrs     Addrs
}

// Addrs are the addresses on which a running locator listens. NATS is the URL
// of the embedded server, or empty.
type Addrs struct{ Listen, Admin, NATS string }

// New checks the settings and returns a locator that does nothing yet. The
// error says which setting to change, and how.
func New(cfg Config) (*Locator, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	boot := wire.RandomID(5)
	l := &Locator{cfg: cfg, log: cfg.Log, id: hostID(boot), signer: ticket.NewSigner(),
		listening: make(chan struct{})}
	l.log = cfg.Log.With("locator", l.id)
	l.keys = newAPIKeys(&cfg, l.log)
	l.ids.Prefix = boot + "-"
	l.origins = httpd.Origins{Allowed: cfg.AllowedOrigins, Dev: cfg.dev}
	perAddress, perUser, perKey := cfg.RatePerAddress, cfg.RatePerUser, cfg.CallsPerKey
	if cfg.dev { // where all share one address and one key
		perAddress, perUser, perKey = 0, 0, 0
	}
	l.limiter = httpd.NewAddressLimiter(perAddress)
	l.perUser = httpd.NewLimiter[string](perUser, 0)
	l.locates = httpd.NewOverload(maxLocates)
	l.calls = httpd.NewInFlight[[sha256.Size]byte](perKey, int64(cfg.CallBytes)/2, int64(cfg.CallBytes), fewBytes, int64(cfg.CallBytes)/4)
	most, pairs := connections(cfg.MaxConnections, cfg.Edge, httpd.ConnectionLimit(cfg.ReservedFiles))
	l.waiting = httpd.NewWaiting(most, 4*max(0, perAddress), func(byAddress bool) {
		if byAddress {
			l.limited(limitAddressConnections)
		} else {
			l.limited(limitConnections)
		}
	})
	l.waiting.Exempt = cfg.proxies.Has
	l.edge = edge{l: l, most: pairs, pairs: map[*relay.Pair]struct{}{}}
	return l, nil
}

// Addrs waits until the locator listens and returns where.
func (l *Locator) Addrs(ctx context.Context) (Addrs, error) {
	select {
	case <-l.listening:
		return l.addrs, nil
	case <-ctx.Done():
		return Addrs{}, ctx.Err()
	}
}

// Run runs the locator until ctx ends and returns nil then. It returns an error
// if the locator cannot start. No goroutine is left.
func (l *Locator) Run(ctx context.Context) error {
	public, err := net.Listen("tcp", l.cfg.Listen)
	if err != nil {
		return fmt.Errorf("%w: choose another DIALRING_LISTEN", err)
	}
	defer public.Close()
	cert, err := certs.Load(l.cfg.certificate(), l.log)
	if err != nil {
		return err
	}
	if l.peerTLS, err = certs.Load(l.cfg.peerTLS(), l.log); err != nil {
		return err
	}
	natsTLS := l.peerTLS
	if own := l.cfg.natsTLS(); !own.None() {
		if natsTLS, err = certs.Load(own.Or(l.cfg.peerTLS()), l.log); err != nil {
			return err
		}
	}
	admin, err := net.Listen("tcp", l.cfg.AdminListen)
	if err != nil {
		return fmt.Errorf("%w: choose another DIALRING_ADMIN_LISTEN", err)
	}
	defer admin.Close()
	l.addrs = Addrs{Listen: public.Addr().String(), Admin: admin.Addr().String()}

	// The background work outlives ctx until the last request is answered.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, background := errgroup.WithContext(background)
	l.ctx = background
	if l.tokens, err = newUserTokens(background, &l.cfg); err != nil {
		return err
	}
	options := cluster.Options{URL: l.cfg.NATSURL, Token: string(l.cfg.NATSToken), CredsFile: l.cfg.NATSCreds, TLS: natsTLS,
		Cluster: l.cfg.Cluster, Identity: cluster.Identity{Locator: l.cfg.authority}, Role: "locator", Name: "dialring locator " + l.id, PendingBytes: l.cfg.NATSPendingBytes, Log: l.log}
	var syncer cluster.Syncer
	if l.cfg.embedsNATS() {
		if l.embedded, syncer, err = l.startNATS(ctx); err != nil {
			return err
		}
		defer l.embedded.Stop()
		options.InProcess = l.embedded
		l.addrs.NATS = "nats://" + l.embedded.Addr()
		if l.peerTLS != nil {
			l.addrs.NATS = "tls://" + l.embedded.Addr()
		}
	}
	if l.nats, err = cluster.Connect(options); err != nil {
		return err
	}
	defer l.nats.Close()
	l.rings = cluster.NewRings(l.nats, l.log)
	l.book = cluster.NewKeys(l.nats, l.rings, l.log, l.signer, ticket.FromLocator+l.id)
	l.keeper = cluster.NewKeeper(l.nats, l.rings, l.log, l.id, l.cfg.dev)
	l.router = newRouter(l.rings, l.keeper, l.signer, ticket.FromLocator+l.id, l.log)
	l.keeper.TLS, l.router.links.TLS = l.peerTLS, l.peerTLS
	l.router.links.Guard = cluster.GuardOf(l.cfg.dev)
	l.keeper.Behind = l.router.sendRing
	l.revoked = cluster.NewRevocations(l.nats, l.log)
	l.metrics = l.newMetrics(cert, l.peerTLS)
	l.keeper.Probed = l.metrics.probed
	if err := l.keys.start(l.metrics.byKey); err != nil {
		return err
	}
	l.warnShort()
	if l.tracer, err = tracing.New(tracing.Options{Endpoint: l.cfg.OTLPEndpoint, Ratio: l.cfg.TraceRatio, Service: "locator", Instance: l.id, Cluster: l.cfg.Cluster, Log: l.log}); err != nil {
		return err
	}
	defer l.tracer.Close()

	g.Go(func() error { l.peerTLS.Run(background); return nil })
	if natsTLS != l.peerTLS {
		g.Go(func() error { natsTLS.Run(background); return nil })
	}
	g.Go(func() error { return l.rings.Run(background) })
	g.Go(func() error { return l.book.Run(background) })
	if syncer != nil {
		g.Go(func() error { return cluster.ServeSync(background, l.nats, syncer) })
	}
	if l.embedded != nil {
		g.Go(func() error { return l.watchNATS(background) })
	}
	g.Go(func() error { return cluster.RaiseReplicas(background, l.nats) })
	g.Go(func() error { return l.keeper.Run(background) })
	g.Go(func() error { return l.revoked.Run(background) })
	g.Go(func() error { l.router.run(background, l.book.Published()); return nil })
	g.Go(func() error { l.beat(background); return nil })
	g.Go(func() error { l.storm.follow(background, l.rings); return nil })
	g.Go(func() error { l.countRings(background); return nil })
	g.Go(func() error { l.signer.Fill(background); return nil })
	front, endFront := context.WithCancel(ctx)
	l.front = front
	defer endFront()
	context.AfterFunc(background, endFront) // when a part fails
	changes := &timeline{rings: l.rings, published: l.nats.PublishedRings, log: l.log}
	l.viewers = &viewers{source: &boardSource{l: l, timeline: changes}, ended: front.Done()}
	g.Go(func() error { changes.run(background); return nil })
	g.Go(func() error { l.viewers.run(background); return nil })
	var fronts errgroup.Group
	fronts.Go(func() error { cert.Run(front); return nil })
	fronts.Go(func() error { l.keys.run(front); return nil })
	if !httpd.OnLoopback(admin.Addr()) {
		admin = cert.Listener(admin)
	}
	fronts.Go(func() error {
		return httpd.Serve(front, cert.Listener(httpd.Fresh(public, cert != nil)), l.cfg.proxies.Client(l.handler()), l.log, l.waiting.Tune)
	})
	fronts.Go(func() error {
		return httpd.Serve(front, admin, l.adminHandler(admin.Addr()), l.log, httpd.NewWaiting(maxAdmin, 0, func(bool) { l.limited(limitAdmin) }).Tune)
	})
	l.log.Info("listening", "event", "listening", "listen", l.addrs.Listen, "admin", l.addrs.Admin, "nats", l.addrs.NATS)
	close(l.listening)

	err = fronts.Wait()
	l.edge.close()
	stop()
	return errors.Join(err, g.Wait())
}

// handler has the routes of the contract.
func (l *Locator) handler() http.Handler {
	e := httpd.New(l.log)
	e.POST("/v1/locate", l.asUser(l.locate), l.measured, l.admitted, l.started)
	e.GET("/v1/locate", l.asUser(l.locate), l.measured, l.admitted, l.started)
	e.OPTIONS("/v1/locate", l.preflight)
	push, read, admin := l.service(wire.ScopePush), l.service(wire.ScopeRead), l.needs(wire.ScopeAdmin)
	e.POST("/v1/push/*", l.pushOne, push, l.started)
	e.POST("/v1/push", l.pushMany, push, l.started)
	e.POST("/v1/broadcast", l.broadcast, push, l.everybody, l.started)
	e.GET("/v1/users/*", l.getUser, read, l.started)
	e.DELETE("/v1/users/*", l.kick, l.known, l.audited(actKick, kickTarget), admin, l.started)
	e.POST("/v1/presence", l.presence, read, l.started)
	e.GET("/v1/groups/*", l.groups, read, l.started)
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete} {
		e.Add(method, "/v1/groups/*", l.groups, l.known, l.audited(actGroup, groupTarget), admin, l.started)
	}
	e.GET("/v1/ring", l.getRing, read, l.everybody)
	e.POST("/v1/ring/plan", l.plan, read, l.everybody, l.started)
	e.POST("/v1/nodes/:node/drain", l.drain, l.known, l.audited(actDrain, drainTarget), admin, l.everybody, l.started)
	if l.cfg.Edge {
		e.GET(edgePrefix+"*", l.edge.handle, l.started)
	}
	e.GET("/v1/openapi.json", l.openAPI)
	e.GET("/healthz", echo.WrapHandler(http.HandlerFunc(httpd.Healthz)))
	e.GET("/readyz", echo.WrapHandler(httpd.Readyz(l.ready)))
	return e
}

// started holds calls off until nodes can check what this locator signs.
func (l *Locator) started(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		select {
		case <-l.book.Published():
		default:
			return wire.NewProblem(http.StatusServiceUnavailable, wire.CodeNoNodes, "this locator is starting: NATS has not taken its key yet")
		}
		select {
		case <-l.revoked.Known():
			return next(c)
		default:
			return wire.NewProblem(http.StatusServiceUnavailable, wire.CodeNoNodes, "this locator is starting: it has not read which tokens are revoked yet")
		}
	}
}

// ready says why clients and services should not be sent here. NATS being away
// is no reason: the ring is in memory. That its own NATS has not caught up yet is one,
// once: who restarts locators one after the other waits for that.
func (l *Locator) ready() error {
	if l.embedded != nil {
		if err := l.embedded.Waits(); err != nil {
			return err
		}
	}
	select {
	case <-l.book.Published():
	default:
		return errors.New("this locator's key is not published yet: is NATS there?")
	}
	select {
	case <-l.revoked.Known():
	default:
		return errors.New("it is not read yet which tokens are revoked: is NATS there?")
	}
	// A node joins through a locator that relays: that one has to be ready before.
	if len(l.rings.Current().Nodes) == 0 && !l.cfg.Edge {
		return errors.New("no node is in the ring")
	}
	return nil
}

// beat publishes heartbeats until ctx ends.
func (l *Locator) beat(ctx context.Context) {
	now := make(chan struct{}, 1)
	l.nats.OnUp(func() {
		select {
		case now <- struct{}{}:
		default:
		}
	})
	t := time.NewTicker(cluster.BeatInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-now:
		}
		select {
		case <-l.book.Published():
			cluster.BeatLocator(l.nats, cluster.LocatorBeat{ID: l.id, Epoch: l.rings.Current().Epoch, KID: l.signer.KID, Time: time.Now(),
				Suspects: l.keeper.Suspects()})
		default:
		}
	}
}
