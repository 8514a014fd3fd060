// Package natsd runs a NATS server with JetStream inside a locator, which is
// the default: no second program to install. Those of several locators can be one
// cluster.
package natsd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"golang.org/x/time/rate"

	"github.com/dialring/dialring/internal/certs"
)

// Options of an embedded server.
type Options struct {
	Name    string
	NameSet bool   // by the operator: it is not to be another one than the store's
	Listen  string // host:port; port 0 takes a free one
	Dir     string // where JetStream stores
	// Token that clients must present; empty lets everyone in, which the
	// caller allows on loopback in development mode only.
	Token string
	// SyncEvery is how often the disk is synced. What was acknowledged survives a
	// killed process in any case; a power cut takes what was not synced, unless Sync
	// was waited for. 0: NATS's own default, two minutes.
	SyncEvery time.Duration
	// SyncAlways has all that is acknowledged on the disk before; with Routes, on those
	// of a majority.
	SyncAlways bool
	Routes     *Routes // nil: it is alone
	// MaxPending is how many bytes may wait for a connection that does not take them; then the
	// server closes it, and it connects again. 0: 64 MiB.
	MaxPending int64
	// TLS, if not nil, is asked of all who connect, with a certificate of its CA, also between
	// servers.
	TLS *certs.Files
	Log *slog.Logger
}

// startTimeout is generous: a store of a million messages is read in a quarter
// of a second.
const startTimeout = 20 * time.Second

// Server is a running embedded NATS server.
//
// A write that fails, since the disk is full for one, leaves a stream in an error
// from which JetStream does not recover by itself: when the disk takes data again
// the server is started anew, on the same address and store.
type Server struct {
	o      Options
	log    *logger
	ctx    context.Context
	end    context.CancelFunc
	done   chan struct{}
	failed chan error

	mu sync.Mutex
	s  *server.Server

	syncer syncer
	door   door // with Routes
}

// maxPayload holds the largest message that users can be pushed, with what is around it.
const maxPayload = 2 << 20

const defaultPending = 64 << 20

// Start starts a server and waits until it listens. With Routes it is of use when a
// majority of the servers is there; see door.
func Start(ctx context.Context, o Options) (*Server, error) {
	s := &Server{o: o, log: &logger{log: o.Log, lines: o.Log.With("event", "nats_server"), fatal: make(chan string, 1), missing: rate.Sometimes{Interval: sayAgain}, strange: rate.Sometimes{Interval: sayAgain}}, failed: make(chan error, 1), done: make(chan struct{})}
	s.syncer.dir = filepath.Clean(o.Dir)
	s.door.log = o.Log
	if o.Routes != nil {
		s.door.why.Store(&errWaits)
	}
	var err error
	if s.o.Name, err = checkStore(o); err != nil {
		return nil, err
	}
	if s.s, err = s.start(ctx); err != nil {
		return nil, err
	}
	s.o.Listen = s.s.Addr().String()
	s.ctx, s.end = context.WithCancel(context.WithoutCancel(ctx))
	go s.tend()
	return s, nil
}

// tend keeps the door of a server with Routes, and mends one whose disk was full.
func (s *Server) tend() {
	defer close(s.done)
	look, mend := time.NewTicker(doorLook), time.NewTicker(mendLook)
	defer look.Stop()
	defer mend.Stop()
	for last := time.Now(); ; {
		select {
		case <-s.ctx.Done():
			return
		case msg := <-s.log.fatal:
			if s.Waits() != nil { // else it goes on with what it has; that is logged
				s.fail(errors.New(msg))
			}
		case now := <-look.C:
			if s.o.Routes != nil {
				s.door.look(s.running(), now)
			}
		case <-mend.C:
			if s.log.sick.Load() && time.Since(last) >= mendAfter && s.tryDisk() == nil {
				last = time.Now()
				s.mend()
			}
		}
	}
}

func (s *Server) fail(err error) {
	select {
	case s.failed <- err:
	default: // one is enough
	}
}

// Waits says why the server was of no use yet since Start: it has no majority, or has
// not all yet that the others have.
func (s *Server) Waits() error {
	if err := s.door.why.Load(); err != nil {
		return *err
	}
	return nil
}

// Failed tells why a server that was started cannot go on.
func (s *Server) Failed() <-chan error { return s.failed }

func (s *Server) running() *server.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.s
}

// How often it is looked whether the disk takes data again, how much, and how long
// a server runs at least before it is started anew.
const (
	mendLook  = time.Second
	mendBytes = 1 << 20
	mendAfter = 5 * time.Second
)

// mend starts the server anew: it has lost a write, and the disk is well.
func (s *Server) mend() {
	s.o.Log.Warn("the embedded NATS has lost a write, and the disk takes data again: it is started anew", "event", "nats_mended")
	s.log.sick.Store(false)
	old := s.running()
	old.Shutdown()
	old.WaitForShutdown()
	again, err := s.start(s.ctx)
	if err != nil {
		s.o.Log.Error("the embedded NATS does not start again; trying on", "event", "nats_unmended", "error", err)
		s.log.sick.Store(true)
		return
	}
	s.mu.Lock()
	s.s = again
	s.mu.Unlock()
}

// tryDisk writes something into the store's directory, and takes it away again.
func (s *Server) tryDisk() error {
	f, err := os.CreateTemp(s.o.Dir, "try-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(make([]byte, mendBytes)); err != nil {
		return err
	}
	return f.Sync()
}

// start starts a run of the server.
func (s *Server) start(ctx context.Context) (*server.Server, error) {
	o := s.o
	host, port, err := hostPort(o.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen address of the embedded NATS: %w", err)
	}
	// NATS tells of a taken port in its log only, and then waits for ever.
	if err := free(o.Listen); err != nil {
		return nil, fmt.Errorf("embedded NATS: %w (is another NATS there? then set DIALRING_NATS_URL to it, or choose another DIALRING_NATS_LISTEN)", err)
	}
	options := &server.Options{
		ServerName:    o.Name,
		Host:          host,
		Port:          port,
		Authorization: o.Token,
		JetStream:     true,
		StoreDir:      o.Dir,
		SyncInterval:  o.SyncEvery,
		SyncAlways:    o.SyncAlways,
		MaxPayload:    maxPayload,
		MaxPending:    cmp.Or(o.MaxPending, defaultPending),
		NoSigs:        true, // signals are the program's own business
		// No monitoring, profiling, leaf, MQTT or WebSocket port.
	}
	if o.TLS != nil {
		options.TLSConfig = o.TLS.Server()
	}
	if r := o.Routes; r != nil {
		if err := free(r.Listen); err != nil {
			return nil, fmt.Errorf("embedded NATS: %w: choose another DIALRING_NATS_ROUTE_LISTEN", err)
		}
		if err := r.join(ctx, options, o.TLS); err != nil {
			return nil, err
		}
	}
	n, err := server.NewServer(options)
	if err != nil {
		return nil, fmt.Errorf("embedded NATS: %w", err)
	}
	s.door.started(len(options.Routes) + 1)
	if err := run(ctx, n, s.log); err != nil {
		n.Shutdown()
		return nil, err
	}
	return n, nil
}

// free tells whether an address can be listened on.
func free(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	return l.Close()
}

// run runs a server and waits until it listens.
func run(ctx context.Context, s *server.Server, log *logger) error {
	s.SetLoggerV2(log, false, false, false)
	go s.Start()
	deadline := time.Now().Add(startTimeout)
	for !s.ReadyForConnections(50 * time.Millisecond) {
		select {
		case msg := <-log.fatal:
			return fmt.Errorf("embedded NATS: %s", msg)
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("embedded NATS was not ready within %s", startTimeout)
		}
	}
	if !s.JetStreamEnabled() {
		return errors.New("embedded NATS: JetStream did not start, see the log")
	}
	return nil
}

// SlowConsumers is how many connections were ended since it started because they did not
// take what they asked for.
func (s *Server) SlowConsumers() int64 { return s.running().NumSlowConsumers() }

// Addr is the address on which it listens.
func (s *Server) Addr() string { return s.o.Listen }

// ID names this run of the server: it is another one when it was started anew.
func (s *Server) ID() string { return s.running().ID() }

// InProcessConn connects without a socket; it makes Server an
// nats.InProcessConnProvider.
func (s *Server) InProcessConn() (net.Conn, error) {
	n := s.running()
	if s.o.Routes != nil && s.door.open.Load() != n {
		return nil, errWaits
	}
	return n.InProcessConn()
}

// Stop ends the server and waits until its store is closed.
func (s *Server) Stop() {
	s.end()
	<-s.done
	s.s.Shutdown()
	s.s.WaitForShutdown()
}
