// Package locator answers clients which node owns their user, carries pushes
// of services to that node, and keeps the ring. cmd/locator is the program.
//
//	l, err := locator.New(locator.Config{Dev: "true"})
//	if err != nil { ... }
//	err = l.Run(ctx)
package locator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"
	"golang.org/x/sync/errgroup"

	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/httpd"
	"github.com/dialring/dialring/internal/natsd"
	"github.com/dialring/dialring/internal/ticket"
	"github.com/dialring/dialring/internal/wire"
)

// Locator is one locator of a cluster. Make it with New; Run runs it, once.
type Locator struct {
	cfg     Config
	log     *slog.Logger
	id      string
	signer  *ticket.Signer
	keys    apiKeys
	ids     wire.IDs
	limiter *httpd.Limiter
	origins httpd.Origins

	// Set by Run, before anything is served.
	ctx     context.Context
	front   context.Context // ends when no more requests are taken
	tokens  *userTokens     // nil: development mode without
	nats    *cluster.Conn
	rings   *cluster.Rings
	book    *cluster.Keys
	keeper  *cluster.Keeper
	revoked *cluster.Revocations
	router  *router
	storm   storm
	metrics *metrics

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
	l := &Locator{cfg: cfg, log: cfg.Log, id: hostID(boot), signer: ticket.NewSigner(), keys: newAPIKeys(cfg.APIKeys),
		listening: make(chan struct{})}
	l.log = cfg.Log.With("locator", l.id)
	l.ids.Prefix = boot + "-"
	l.origins = httpd.Origins{Allowed: cfg.AllowedOrigins, Dev: cfg.dev}
	rate := cfg.RatePerAddress
	if cfg.dev {
		rate = 0
	}
	l.limiter = httpd.NewLimiter(rate)
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
	options := cluster.Options{URL: l.cfg.NATSURL, Token: string(l.cfg.NATSToken), CredsFile: l.cfg.NATSCreds,
		Cluster: l.cfg.Cluster, Name: "dialring locator " + l.id, Log: l.log}
	var syncer cluster.Syncer
	if l.cfg.embedsNATS() {
		o := natsd.Options{Name: l.id, Listen: l.cfg.NATSListen, Dir: l.cfg.DataDir, Token: string(l.cfg.NATSToken), Log: l.log}
		always := l.cfg.DataSync == "always"
		if always {
			o.Name, o.SyncEvery = cluster.SyncedName+l.id, time.Second
		}
		s, err := natsd.Start(ctx, o)
		if err != nil {
			return err
		}
		defer s.Stop()
		if always {
			syncer = s
		}
		options.InProcess = s
		l.addrs.NATS = "nats://" + s.Addr()
	}
	if l.nats, err = cluster.Connect(options); err != nil {
		return err
	}
	defer l.nats.Close()
	l.rings = cluster.NewRings(l.nats, l.log)
	l.book = cluster.NewKeys(l.nats, l.rings, l.log, l.signer, "locator:"+l.id)
	l.keeper = cluster.NewKeeper(l.nats, l.rings, l.log, l.id, l.cfg.dev)
	l.router = newRouter(l.rings, l.keeper, l.signer, "locator:"+l.id, l.log)
	l.keeper.Behind = l.router.sendRing
	l.revoked = cluster.NewRevocations(l.nats, l.log)
	l.metrics = l.newMetrics()

	g.Go(func() error { return l.rings.Run(background) })
	g.Go(func() error { return l.book.Run(background) })
	if syncer != nil {
		g.Go(func() error { return cluster.ServeSync(background, l.nats, syncer) })
	}
	g.Go(func() error { return l.keeper.Run(background) })
	g.Go(func() error { return l.revoked.Run(background) })
	g.Go(func() error { l.router.run(background, l.book.Published()); return nil })
	g.Go(func() error { l.beat(background); return nil })
	g.Go(func() error { l.storm.follow(background, l.rings); return nil })
	g.Go(func() error { l.signer.Fill(background); return nil })
	front, endFront := context.WithCancel(ctx)
	l.front = front
	defer endFront()
	context.AfterFunc(background, endFront) // when a part fails
	var fronts errgroup.Group
	fronts.Go(func() error { return httpd.Serve(front, public, l.handler(), l.log) })
	fronts.Go(func() error { return httpd.Serve(front, admin, httpd.Admin(admin, l.ready, l.metrics.registry), l.log) })
	l.log.Info("listening", "event", "listening", "listen", l.addrs.Listen, "admin", l.addrs.Admin, "nats", l.addrs.NATS)
	close(l.listening)

	err = fronts.Wait()
	stop()
	return errors.Join(err, g.Wait())
}

// handler has the routes of the contract.
func (l *Locator) handler() http.Handler {
	e := httpd.New(l.log)
	e.POST("/v1/locate", l.asUser(l.locate), l.started)
	e.GET("/v1/locate", l.asUser(l.locate), l.started)
	e.OPTIONS("/v1/locate", l.preflight)
	e.POST("/v1/push/*", l.pushOne, l.keys.require, l.started)
	e.POST("/v1/push", l.pushMany, l.keys.require, l.started)
	e.POST("/v1/broadcast", l.broadcast, l.keys.require, l.started)
	e.GET("/v1/users/*", l.getUser, l.keys.require, l.started)
	e.DELETE("/v1/users/*", l.kick, l.keys.require, l.started)
	e.POST("/v1/presence", l.presence, l.keys.require, l.started)
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete} {
		e.Add(method, "/v1/groups/*", l.groups, l.keys.require, l.started)
	}
	e.GET("/v1/ring", l.getRing, l.keys.require)
	e.POST("/v1/ring/plan", l.plan, l.keys.require, l.started)
	e.POST("/v1/nodes/:node/drain", l.drain, l.keys.require, l.started)
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
// is no reason: the ring is in memory.
func (l *Locator) ready() error {
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
	if len(l.rings.Current().Nodes) == 0 {
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
