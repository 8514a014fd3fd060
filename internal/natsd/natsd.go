// Package natsd runs a NATS server with JetStream inside a locator, which is
// the default on one machine: no second program to install.
package natsd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
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
	// SyncAlways syncs the disk before a write is acknowledged: that survives a
	// power cut. Without it an acknowledged write survives a killed process, and
	// a power cut takes up to two minutes of them.
	SyncAlways bool
	Log        *slog.Logger
}

// startTimeout is generous: a store of a million messages is read in a quarter
// of a second.
const startTimeout = 20 * time.Second

// Server is a running embedded NATS server.
type Server struct{ s *server.Server }

// Start starts a server and waits until it takes connections.
func Start(ctx context.Context, o Options) (*Server, error) {
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
		SyncAlways:    o.SyncAlways,
		NoSigs:        true, // signals are the program's own business
		// No monitoring, profiling, cluster, leaf, MQTT or WebSocket port.
	})
	if err != nil {
		return nil, fmt.Errorf("embedded NATS: %w", err)
	}
	log := &logger{log: o.Log.With("component", "nats-server"), fatal: make(chan string, 1)}
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
	return &Server{s}, nil
}

// Addr is the address on which it listens.
func (s *Server) Addr() string { return s.s.Addr().String() }

// InProcessConn connects without a socket; it makes Server an
// nats.InProcessConnProvider.
func (s *Server) InProcessConn() (net.Conn, error) { return s.s.InProcessConn() }

// Stop ends the server and waits until its store is closed.
func (s *Server) Stop() {
	s.s.Shutdown()
	s.s.WaitForShutdown()
}

// logger hands the server's log to ours; its notices are our debug lines.
type logger struct {
	log   *slog.Logger
	fatal chan string
}

func (l *logger) Noticef(f string, v ...any) { l.log.Debug(fmt.Sprintf(f, v...)) }
func (l *logger) Warnf(f string, v ...any)   { l.log.Warn(fmt.Sprintf(f, v...)) }
func (l *logger) Errorf(f string, v ...any)  { l.log.Error(fmt.Sprintf(f, v...)) }
func (l *logger) Debugf(f string, v ...any)  {}
func (l *logger) Tracef(f string, v ...any)  {}

// Fatalf must not end the process: it is a library's call.
func (l *logger) Fatalf(f string, v ...any) {
	msg := fmt.Sprintf(f, v...)
	l.log.Error(msg)
	select {
	case l.fatal <- msg:
	default:
	}
}
