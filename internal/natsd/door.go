package natsd

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// In a cluster a server without a majority can store nothing, and what is published
// on it reaches only those who are connected to it. NATS keeps clients all the same.
// So while it has no majority the server ends their connections, again and again: they
// go to another one, if there is another one. Its own locator, which has no other,
// knows by that that NATS is away.
//
//	          a leader is known, and a majority is connected
//	closed ---------------------------------------------------> open
//	  ^                                                           |
//	  +--- no majority for a second, or the server started anew --+
//
// A leader that dies closes no door: the others elect one within some seconds.
type door struct {
	log  *slog.Logger
	open atomic.Pointer[server.Server] // the run whose door is open
	why  atomic.Pointer[error]         // the server was of no use yet; nil: it was, once

	// Of the goroutine that looks.
	listed   int       // servers, as DIALRING_NATS_ROUTES has them
	needed   int       // servers that are a majority
	minority time.Time // since when there is none; zero: there is one
	healthy  time.Time // since when NATS says that this server has all that the others have
	said     time.Time // when the log last heard that it waits
	ended    time.Time // when connections were ended last
	strange  bool      // it was said that there are more servers than were set
}

const (
	doorLook   = 250 * time.Millisecond
	closeAfter = time.Second
	// It is said in the log that it waits after a moment, and then again and again.
	sayFirst = 2 * time.Second
	sayAgain = 10 * time.Second
	// currentFor is how long NATS must say so: a server that has just found the others
	// does not know yet what it lacks.
	currentFor = 2 * time.Second
	// endEvery is how often connections are ended behind a closed door. Who has come back
	// has perhaps nowhere else to go, so it is not at every look.
	endEvery = 5 * time.Second
)

var errWaits = errors.New("the NATS in this locator waits for those of the others")

// look opens or closes the door of s.
//
// It is called by one goroutine.
func (d *door) look(s *server.Server, now time.Time) {
	if !s.Running() {
		return
	}
	leader := ""
	if info, err := s.Jsz(nil); err == nil && info.Meta != nil {
		leader, d.needed = info.Meta.Leader, info.Meta.QuorumNeeded
		if info.Meta.Size > d.listed && !d.strange {
			d.strange = true
			d.log.Error("the NATS of the locators counts more servers than DIALRING_NATS_ROUTES lists: one came under another name than it had, and its old one counts as dead from now on; give each a DIALRING_NATS_NAME that stays",
				"event", "nats_members", "counted", info.Meta.Size, "listed", d.listed)
		}
	}
	there := s.NumRemotes() + 1
	if there >= d.needed {
		d.minority = time.Time{}
	} else if d.minority.IsZero() {
		d.minority = now
	}
	if d.said.IsZero() {
		d.said = now.Add(sayFirst - sayAgain)
	}
	isOpen := d.open.Load() == s
	switch {
	case !isOpen && leader != "" && d.minority.IsZero():
		d.log.Info("the NATS of this locator and of others are a majority: it serves clients", "event", "nats_majority", "leader", leader, "servers", there)
		d.open.Store(s)
	case isOpen && !d.minority.IsZero() && now.Sub(d.minority) >= closeAfter:
		d.log.Warn("the NATS in this locator has no majority any more: it ends the connections of clients until it has one again",
			"event", "nats_minority", "servers", there, "needed", d.needed)
		d.open.Store(nil)
		d.said, d.healthy, d.ended = now, time.Time{}, time.Time{}
	case !isOpen && now.Sub(d.said) >= sayAgain:
		d.said = now
		d.log.Warn(errWaits.Error()+": do they run, and is DIALRING_NATS_ROUTES right?", "event", "nats_waits", "servers", there, "needed", d.needed, "leader", leader)
	}
	if d.open.Load() != s && now.Sub(d.ended) >= endEvery {
		d.ended = now
		d.end(s)
	}
	if d.why.Load() != nil {
		d.why.Store(d.wait(s, now, there, leader))
	}
}

// wait says why a server that was of no use yet is of none now; nil: it is.
func (d *door) wait(s *server.Server, now time.Time, there int, leader string) *error {
	if d.open.Load() != s {
		err := fmt.Errorf("%w: %d of %d that are needed are connected; the leader is %q", errWaits, there, d.needed, leader)
		return &err
	}
	if h := s.Healthz(nil); h.StatusCode != http.StatusOK {
		d.healthy = time.Time{}
		err := fmt.Errorf("the NATS in this locator is catching up with the others: %s", h.Error)
		return &err
	}
	if d.healthy.IsZero() {
		d.healthy = now
	}
	if now.Sub(d.healthy) < currentFor {
		return d.why.Load()
	}
	d.log.Info("the NATS in this locator has all that the others have", "event", "nats_current")
	return nil
}

// end ends the connections of clients.
func (d *door) end(s *server.Server) {
	list, err := s.Connz(&server.ConnzOptions{Limit: server.DEFAULT_MAX_CONNECTIONS})
	if err != nil {
		d.log.Error("the connections of the embedded NATS are not known", "event", "nats_connections", "error", err)
		return
	}
	for _, c := range list.Conns {
		_ = s.DisconnectClientByID(c.Cid) // or it has gone by itself
	}
}

// started notes a new run, which begins with a closed door.
func (d *door) started(listed int) {
	d.open.Store(nil)
	d.listed, d.minority, d.healthy, d.said, d.ended = listed, time.Time{}, time.Time{}, time.Time{}, time.Time{}
}
