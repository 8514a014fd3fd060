package wsnode

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// metrics are what the node counts.
type metrics struct {
	registry    *prometheus.Registry
	handshakes  *prometheus.CounterVec
	closes      *prometheus.CounterVec
	slowCloses  prometheus.Counter
	pushes      prometheus.Counter
	misdirected prometheus.Counter
	batches     prometheus.Counter
	moves       *prometheus.CounterVec
	forwarded   prometheus.Counter

	storedPushes prometheus.Counter
	unstored     prometheus.Counter
	catchUps     prometheus.Counter
	sends        *prometheus.CounterVec
	presence     *prometheus.CounterVec
}

func (n *Node) newMetrics() *metrics {
	m := &metrics{
		registry:    prometheus.NewRegistry(),
		handshakes:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "dialring_handshakes_total", Help: "Dials by result: the HTTP status, or failed."}, []string{"result"}),
		closes:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "dialring_session_closes_total", Help: "Sessions that the node closed, by reason."}, []string{"reason"}),
		slowCloses:  prometheus.NewCounter(prometheus.CounterOpts{Name: "dialring_slow_writes_total", Help: "Connections ended because a write to them took too long."}),
		pushes:      prometheus.NewCounter(prometheus.CounterOpts{Name: "dialring_pushes_total", Help: "Pushes to users of this node."}),
		batches:     prometheus.NewCounter(prometheus.CounterOpts{Name: "dialring_peer_batches_total", Help: "Batches of calls from locators; pushes over batches is their mean size."}),
		moves:       prometheus.NewCounterVec(prometheus.CounterOpts{Name: "dialring_moves_total", Help: "Sessions that were told to move, by reason."}, []string{"reason"}),
		forwarded:   prometheus.NewCounter(prometheus.CounterOpts{Name: "dialring_forwarded_pushes_total", Help: "Pushes that were handed to a former owner of their user as well."}),
		misdirected: prometheus.NewCounter(prometheus.CounterOpts{Name: "dialring_misdirected_total", Help: "Pushes for users that this node does not own."}),

		storedPushes: prometheus.NewCounter(prometheus.CounterOpts{Name: "dialring_stored_pushes_total", Help: "Pushes that were stored."}),
		unstored:     prometheus.NewCounter(prometheus.CounterOpts{Name: "dialring_unstored_pushes_total", Help: "Pushes that the store did not take in time."}),
		sends:        prometheus.NewCounterVec(prometheus.CounterOpts{Name: "dialring_sends_total", Help: "What clients sent, by target (user or application) and result: ok or the code of the error."}, []string{"target", "result"}),
		presence:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "dialring_presence_events_total", Help: "Presence events that were published, by event; lost: NATS was away."}, []string{"event"}),
		catchUps:     prometheus.NewCounter(prometheus.CounterOpts{Name: "dialring_catch_ups_total", Help: "Times that a session read stored messages from the store."}),
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
	}
	m.registry.MustRegister(m.handshakes, m.closes, m.slowCloses, m.pushes, m.misdirected, m.batches, m.moves, m.forwarded,
		m.storedPushes, m.unstored, m.catchUps, m.sends, m.presence,
		gauge("dialring_store_up", "1 while the store takes messages.", func() float64 {
			if n.stored.health.down.Load() {
				return 0
			}
			return 1
		}),
		gauge("dialring_storing_bytes", "Bytes of pushes that wait for the store.", func() float64 { return float64(n.stored.storing.Load()) }),
		gauge("dialring_sessions", "Open sessions.", func() float64 { return float64(n.hub.sessions.Load()) }),
		gauge("dialring_misplaced_sessions", "Sessions of users that another node owns, which are to move.", func() float64 { return float64(n.misplaced.Load()) }),
		gauge("dialring_ring_epoch", "Epoch of the ring that this process goes by.", func() float64 { return float64(n.rings.Current().Epoch) }),
		gauge("dialring_nats_up", "1 while NATS is connected.", func() float64 {
			if n.nats.Up() {
				return 1
			}
			return 0
		}),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}
