package natsd

import (
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// logger hands the server's log to ours; its notices are our debug lines. Some things
// NATS tells in its log only.
type logger struct {
	log       *slog.Logger
	lines     *slog.Logger // for the server's own
	fatal     chan string
	sick      atomic.Bool    // a write failed for good
	refused   atomic.Int64   // when a route was refused last
	untrusted atomic.Int64   // when one's certificate was
	missing   rate.Sometimes // a member that is not there
	strange   rate.Sometimes // a client without a good certificate
}

func (l *logger) Noticef(f string, v ...any) { l.lines.Debug(fmt.Sprintf(f, v...)) }
func (l *logger) Debugf(f string, v ...any)  {}
func (l *logger) Tracef(f string, v ...any)  {}

func (l *logger) Warnf(f string, v ...any) {
	if strings.HasPrefix(f, "TLS certificate chain and hostname of solicited routes will not be verified") {
		return // they are, by certs.Files.Both
	}
	l.lines.Warn(fmt.Sprintf(f, v...))
}

func (l *logger) Errorf(f string, v ...any) {
	msg := fmt.Sprintf(f, v...)
	has := func(part string) bool { return strings.Contains(strings.ToLower(msg), part) }
	switch {
	case has("critical write error"), has("will be disabled"):
		l.sick.Store(true)
	case has("rid:") && (has("authentication error") || has("authorization violation")):
		if l.seldom(&l.refused, msg) {
			l.log.Error("NATS servers of two locators refuse each other: DIALRING_NATS_ROUTE_SECRET and DIALRING_CLUSTER must be the same at all", "event", "nats_route_refused", "error", msg)
		}
		return
	case has("tls route handshake error"):
		if l.seldom(&l.untrusted, msg) {
			l.log.Error("the TLS between the NATS servers of two locators fails: each certificate (DIALRING_PEER_TLS_CERT_FILE) must be of a CA that the other has, and have the name or address that DIALRING_NATS_ROUTES has for it", "event", "nats_route_refused", "error", msg)
		}
		return
	case has("duplicate name"):
		l.fail("two of the locators' NATS servers have one name: give each a DIALRING_NATS_NAME of its own (" + msg + ")")
		return
	}
	if has("tls handshake error") { // anyone may cause it
		l.lines.Debug(msg)
		l.strange.Do(func() { l.lines.Warn(msg) })
		return
	}
	if has("trying to connect to route") { // several times a second, for as long as it is away
		l.lines.Debug(msg)
		l.missing.Do(func() { l.lines.Warn(msg) })
		return
	}
	l.lines.Error(msg)
}

// seldom tells whether msg, which comes again and again, is to be said; else it is a debug
// line.
func (l *logger) seldom(last *atomic.Int64, msg string) bool {
	now := time.Now().UnixNano()
	if now-last.Load() < int64(sayAgain) {
		l.lines.Debug(msg)
		return false
	}
	last.Store(now)
	return true
}

// Fatalf must not end the process: it is a library's call.
func (l *logger) Fatalf(f string, v ...any) { l.fail(fmt.Sprintf(f, v...)) }

func (l *logger) fail(msg string) {
	l.lines.Error(msg)
	select {
	case l.fatal <- msg:
	default:
	}
}
