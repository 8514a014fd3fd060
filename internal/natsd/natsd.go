// Package natsd runs a NATS server with JetStream inside a locator, which is
// the default on one machine: no second program to install.
package natsd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Options of an embedded server.
type Options struct {
	Name   string
	Listen string // host:port; port 0 takes a free one
	Dir    string // where JetStream stores
	// Token that clients must present; empty lets everyone in, which the
	// caller allows on loopback in development mode only.
	Token string
	// SyncEvery is how often the disk is synced. What was acknowledged survives a
	// killed process in any case; a power cut takes what was not synced, unless Sync
	// was waited for. 0: NATS's own default, two minutes.
	SyncEvery time.Duration
	Log       *slog.Logger
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
	o    Options
	log  *logger
	ctx  context.Context
	end  context.CancelFunc
	done chan struct{}

	mu sync.Mutex
	s  *server.Server

	syncer syncer
}

// maxPayload holds the largest message that users can be pushed, with what is around it.
const maxPayload = 2 << 20

// Start starts a server and waits until it takes connections.
func Start(ctx context.Context, o Options) (*Server, error) {
	s := &Server{o: o, log: &logger{log: o.Log.With("component", "nats-server"), fatal: make(chan string, 1)}, done: make(chan struct{})}
	s.syncer.dir = filepath.Clean(o.Dir)
	var err error
	if s.s, err = start(ctx, o, s.log); err != nil {
		return nil, err
	}
	s.o.Listen = s.s.Addr().String()
	s.ctx, s.end = context.WithCancel(context.WithoutCancel(ctx))
	go s.mend()
	return s, nil
}

// How often it is looked whether the disk takes data again, how much, and how long
// a server runs at least before it is started anew.
const (
	mendLook  = time.Second
	mendBytes = 1 << 20
	mendAfter = 5 * time.Second
)

// mend starts the server anew when it has lost a write and the disk is well.
func (s *Server) mend() {
	defer close(s.done)
	t := time.NewTicker(mendLook)
	defer t.Stop()
	for last := time.Now(); ; {
		select {
		case <-s.ctx.Done():
			return
		case <-t.C:
		}
		if !s.log.sick.Load() || time.Since(last) < mendAfter || s.tryDisk() != nil {
			continue
		}
		last = time.Now()
		s.o.Log.Warn("the embedded NATS has lost a write, and the disk takes data again: it is started anew", "event", "nats_mended")
		s.log.sick.Store(false)
		s.mu.Lock()
		old := s.s
		s.mu.Unlock()
		old.Shutdown()
		old.WaitForShutdown()
		again, err := start(s.ctx, s.o, s.log)
		if err != nil {
			s.o.Log.Error("the embedded NATS does not start again; trying on", "event", "nats_unmended", "error", err)
			s.log.sick.Store(true)
			continue
		}
		s.mu.Lock()
		s.s = again
		s.mu.Unlock()
	}
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

func start(ctx context.Context, o Options, log *logger) (*server.Server, error) {
	host, port, err := net.SplitHostPort(o.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen address of the embedded NATS: %w", err)
	}
	p, err := strconv.Atoi(port)
	if err != nil {
		return nil, fmt.Errorf("port of the embedded NATS: %w", err)
	}
	if p == 0 {
		p = server.RANDOM_PORT
	}
	// NATS tells of a taken port in its log only, and then waits for ever.
	if l, err := net.Listen("tcp", o.Listen); err != nil {
		return nil, fmt.Errorf("embedded NATS: %w (is another NATS there? then set DIALRING_NATS_URL to it, or choose another DIALRING_NATS_LISTEN)", err)
	} else if err := l.Close(); err != nil {
		return nil, err
	}
	s, err := server.NewServer(&server.Options{
		ServerName:    o.Name,
		Host:          host,
		Port:          p,
		Authorization: o.Token,
		JetStream:     true,
		StoreDir:      o.Dir,
		SyncInterval:  o.SyncEvery,
		MaxPayload:    maxPayload,
		NoSigs:        true, // signals are the program's own business
		// No monitoring, profiling, cluster, leaf, MQTT or WebSocket port.
	})
	if err != nil {
		return nil, fmt.Errorf("embedded NATS: %w", err)
	}
	s.SetLoggerV2(log, false, false, false)
	go s.Start()
	deadline := time.Now().Add(startTimeout)
	for !s.ReadyForConnections(50 * time.Millisecond) {
		select {
		case msg := <-log.fatal:
			s.Shutdown()
			return nil, fmt.Errorf("embedded NATS: %s", msg)
		case <-ctx.Done():
			s.Shutdown()
			return nil, ctx.Err()
		default:
		}
		if time.Now().After(deadline) {
			s.Shutdown()
			return nil, fmt.Errorf("embedded NATS was not ready within %s", startTimeout)
		}
	}
	if !s.JetStreamEnabled() {
		s.Shutdown()
		return nil, errors.New("embedded NATS: JetStream did not start, see the log")
	}
	return s, nil
}

// Addr is the address on which it listens.
func (s *Server) Addr() string { return s.o.Listen }

// ID names this run of the server: it is another one when it was started anew.
func (s *Server) ID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.s.ID()
}

// InProcessConn connects without a socket; it makes Server an
// nats.InProcessConnProvider.
func (s *Server) InProcessConn() (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.s.InProcessConn()
}

// Stop ends the server and waits until its store is closed.
func (s *Server) Stop() {
	s.end()
	<-s.done
	s.s.Shutdown()
	s.s.WaitForShutdown()
}

// logger hands the server's log to ours; its notices are our debug lines.
type logger struct {
	log   *slog.Logger
	fatal chan string
	sick  atomic.Bool // a write failed for good
}

func (l *logger) Noticef(f string, v ...any) { l.log.Debug(fmt.Sprintf(f, v...)) }
func (l *logger) Warnf(f string, v ...any)   { l.log.Warn(fmt.Sprintf(f, v...)) }
func (l *logger) Errorf(f string, v ...any) {
	msg := fmt.Sprintf(f, v...)
	if strings.Contains(strings.ToLower(msg), "critical write error") { // nothing else tells
		l.sick.Store(true)
	}
	l.log.Error(msg)
}
func (l *logger) Debugf(f string, v ...any) {}
func (l *logger) Tracef(f string, v ...any) {}

// Fatalf must not end the process: it is a library's call.
func (l *logger) Fatalf(f string, v ...any) {
	msg := fmt.Sprintf(f, v...)
	l.log.Error(msg)
	select {
	case l.fatal <- msg:
	default:
	}
}
