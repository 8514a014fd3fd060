package wsnode

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dialring/dialring/internal/certs"
	"github.com/dialring/dialring/internal/inbox"
	"github.com/dialring/dialring/internal/metric"
	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/tracing"
	"github.com/dialring/dialring/internal/wire"
)

// metrics are what the node counts. Those of a push are looked up once: it is the
// way that has to be short.
type metrics struct {
	registry   *prometheus.Registry
	handshakes *prometheus.CounterVec
	tickets    *prometheus.CounterVec
	opening    prometheus.Observer
	opened     *prometheus.CounterVec
	closes     *prometheus.CounterVec
	limited    *prometheus.CounterVec
	slowWrites prometheus.Counter
	pushes     *prometheus.CounterVec
	pushed     [2]prometheus.Counter // of pushes, the result ok: ephemeral, stored
	delivering [2]prometheus.Observer
	batches    prometheus.Histogram
	moves      *prometheus.CounterVec
	forwarded  prometheus.Counter

	appends   *prometheus.CounterVec
	appended  prometheus.Counter // of appends, the result ok
	appending prometheus.Observer
	catchUps  prometheus.Counter
	replayed  prometheus.Counter
	gaps      prometheus.Counter
	skips     *prometheus.CounterVec
	unopened  *prometheus.CounterVec
	acks      prometheus.Counter
	sends     *prometheus.CounterVec
	asking    prometheus.Observer
	presence  *prometheus.CounterVec
}

// Results of an append and of a push, as metrics name them.
const (
	resultOK        = "ok"
	resultDuplicate = "duplicate"
	resultConflict  = "conflict"
	resultFailed    = "failed"
)

// statusNames are the results of a push at its owner.
var statusNames = map[peer.Status]string{peer.StatusDuplicate: resultDuplicate, peer.StatusMisdirected: string(wire.CodeMisdirected),
	peer.StatusUnreached: string(wire.CodeOwnerUnreachable), peer.StatusUnsure: string(wire.CodeOwnerUnreachable), peer.StatusKeyReused: string(wire.CodeKeyReused),
	peer.StatusStore: string(wire.CodeStoreUnavailable)}

func (n *Node) newMetrics(cert, peerTLS *certs.Files) *metrics {
	opening := metric.Latencies("dialring_handshake_duration_seconds", "Time from a dial that was accepted until its welcome was written, with the look into the store.")
	delivering := metric.Latencies("dialring_deliver_duration_seconds", "Time from a push's arrival at its owner (ephemeral), or from its being stored (stored), until all of the user's sessions had it or were given up, by kind.", "kind")
	appending := metric.Latencies("dialring_append_duration_seconds", "Time from a stored push's arrival at its owner until the store had it.")
	asking := metric.Latencies("dialring_application_duration_seconds", "Time that the application took for a send, repeats included.")
	m := &metrics{
		tickets:    metric.Counters("dialring_tickets_refused_total", "Tickets that were refused, by reason.", "reason"),
		handshakes: metric.Counters("dialring_handshakes_total", "Dials by result: the HTTP status (101: accepted), or failed.", "result"),
		opening:    opening.WithLabelValues(),
		opened:     metric.Counters("dialring_sessions_opened_total", "Sessions that opened: login, or move for one that came from another connection.", "how"),
		closes:     metric.Counters("dialring_session_closes_total", "Sessions that the node closed, by reason, as the close codes are called; too slow: the session's queue was full.", "reason"),
		limited:    metric.Counters("dialring_limited_total", "What was refused, or ended, for a limit, by limit; deploy/README.md lists them.", "limit"),
		slowWrites: metric.Counter("dialring_slow_writes_total", "Connections ended because one write to them took 10 s."),
		pushes:     metric.Counters("dialring_node_pushes_total", "Pushes that came to this node as the owner, by kind (ephemeral, stored) and result: ok, duplicate, or the code of the problem.", "kind", "result"),
		batches:    metric.Sizes("dialring_peer_batch_calls", "Calls in a batch of another process."),
		moves:      metric.Counters("dialring_moves_total", "Sessions that were told to move, by reason.", "reason"),
		forwarded:  metric.Counter("dialring_forwarded_pushes_total", "Pushes that were handed to a former owner of their user as well."),

		appends:   metric.Counters("dialring_inbox_appends_total", "Appends to users' logs by result: ok, duplicate, conflict (another node wrote; it is tried again), failed (the store did not take it in time).", "result"),
		appending: appending.WithLabelValues(),
		catchUps:  metric.Counter("dialring_replays_total", "Times that a session read stored messages from the store."),
		replayed:  metric.Counter("dialring_replayed_messages_total", "Messages that sessions got from the store."),
		gaps:      metric.Counter("dialring_gaps_total", "Sessions that were told that messages after their cursor are gone, or that the cursor is of another log."),
		skips:     metric.Counters("dialring_skips_total", "Times that a session was told that messages will not come, by reason (expired, limit).", "reason"),
		unopened:  metric.Counters("dialring_unopened_messages_total", "Stored messages that a session came to and that could not be opened, by reason: unknown_key and unsealed (it waits, and counts again when it looks again), forged and lost_key (passed over).", "reason"),
		acks:      metric.Counter("dialring_acks_total", "Acknowledgements of clients that went further than those before."),
		sends:     metric.Counters("dialring_sends_total", "What clients sent, by target (user, application) and result: ok, or the code of the error.", "target", "result"),
		asking:    asking.WithLabelValues(),
		presence:  metric.Counters("dialring_presence_events_total", "Presence events that were published, by event; lost: NATS was away.", "event"),
	}
	for k, kind := range metric.Kinds {
		m.pushed[k] = m.pushes.WithLabelValues(kind, resultOK)
		m.delivering[k] = delivering.WithLabelValues(kind)
	}
	m.appended = m.appends.WithLabelValues(resultOK)
	preset(m.appends, resultDuplicate, resultConflict, resultFailed)
	preset(m.tickets, ticketReasons...)
	preset(m.handshakes, "101", resultFailed)
	preset(m.opened, openedLogin, openedMove)
	preset(m.closes, wire.CloseText(wire.CloseTooSlow))
	preset(m.limited, allLimits...)
	preset(m.moves, "lifetime")
	preset(m.skips, wire.SkipExpired, wire.SkipLimit)
	preset(m.unopened, unopenedReasons[:]...)
	preset(m.presence, "lost")
	for _, target := range []string{"user", "application"} {
		m.sends.WithLabelValues(target, resultOK)
	}
	m.registry = metric.New(func() metric.Ring {
		cur := n.rings.Current()
		return metric.Ring{Epoch: cur.Epoch, Hash: cur.Hash, Nodes: len(cur.Nodes), Refused: n.rings.Refusals.Load()}
	}, n.nats.Up, cert.Expires, peerTLS.Expires)
	m.registry.MustRegister(m.handshakes, m.tickets, opening, m.opened, m.closes, m.limited, m.slowWrites, m.pushes, delivering, m.batches, m.moves, m.forwarded,
		m.appends, appending, m.catchUps, m.replayed, m.gaps, m.skips, m.unopened, m.acks, m.sends, asking, m.presence, metric.Spans(func() (int64, int64, int64) { return n.tracer.Counts() }),
		metric.Gauge("dialring_store_up", "1 while the store takes messages.", func() float64 { return metric.Bool(!n.stored.health.down.Load()) }),
		&inboxKeys{n.stored.keys},
		metric.Gauge("dialring_storing_bytes", "Bytes of pushes that wait for the store.", func() float64 { return float64(n.stored.storing.Load()) }),
		metric.Gauge("dialring_sessions", "Open sessions.", func() float64 { return float64(n.hub.sessions.Load()) }),
		metric.Gauge("dialring_sessions_limit", "Sessions that this process can hold, by MAX_SESSIONS and its limit of open files.", func() float64 { return float64(n.maxSessions) }),
		metric.Gauge("dialring_handshakes_pending", "Connections that are no sessions, or not yet, at the listeners for clients and for other processes.", func() float64 { return float64(n.waiting.Len() + n.relayed.Len()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "dialring_nats_slow_total", Help: "Times that this process was too slow for what NATS sent it, and messages were dropped (heartbeats, announcements; what is stored is not lost by it)."}, func() float64 { return float64(n.nats.Slow()) }),
		metric.Gauge("dialring_sending_bytes", "Bytes of sends of clients here that wait for their answer.", func() float64 { return float64(n.sending.taken()) }),
		metric.Gauge("dialring_queue_bytes", "Bytes that wait in the queues of all sessions.", func() float64 { return float64(n.queues.total.Load()) }),
		metric.Gauge("dialring_queue_limit_bytes", "Bytes that may wait there, by NODE_QUEUE_BYTES.", func() float64 { return float64(n.queues.limit) }),
		metric.Gauge("dialring_memory_bytes", "Memory that the process holds, as MEMORY_LIMIT counts it: what Go has from the system.", func() float64 { return float64(n.memory.held.Load()) }),
		metric.Gauge("dialring_memory_limit_bytes", "Memory above which the node takes no more sessions, by MEMORY_LIMIT; 9.2e18: no limit.", func() float64 { return float64(n.memory.limit) }),
		metric.Gauge("dialring_misplaced_sessions", "Sessions of users that another node owns, which are to move.", func() float64 { return float64(n.misplaced.Load()) }),
		metric.Gauge("dialring_draining", "1 while the node leaves the ring.", func() float64 { return metric.Bool(n.draining.Load()) }),
		metric.Gauge("dialring_locator_heartbeat_age_seconds", "Time since a locator was heard over NATS, or since the start.", func() float64 { return n.sinceLocator().Seconds() }))
	return m
}

// inboxKeys shows which keys for stored payloads the node has, so that it can be seen
// whether all nodes have the same ones.
type inboxKeys struct{ keys *inbox.Keys }

var inboxKeysDesc = prometheus.NewDesc("dialring_inbox_keys", "Keys for stored payloads that the node has, each as id~check: 1 for the one that seals, 0 for those that only open. Without any, none is 0.", []string{"key"}, nil)

// Describe implements prometheus.Collector.
func (k *inboxKeys) Describe(c chan<- *prometheus.Desc) { c <- inboxKeysDesc }

// Collect implements prometheus.Collector.
func (k *inboxKeys) Collect(c chan<- prometheus.Metric) {
	seals, opens := k.keys.Refs()
	if len(opens) == 0 {
		opens = []string{"none"}
	}
	for _, ref := range opens {
		c <- prometheus.MustNewConstMetric(inboxKeysDesc, prometheus.GaugeValue, metric.Bool(ref == seals), ref)
	}
}

// preset has a metric show values that have not come yet: what is not there cannot
// be told from what never happens.
func preset(v *prometheus.CounterVec, values ...string) {
	for _, l := range values {
		v.WithLabelValues(l)
	}
}

// How a session opened, as a metric names it.
const (
	openedLogin = "login"
	openedMove  = "move"
)

// replied counts a push that this node answers as its user's owner.
func (n *Node) replied(in *peer.In, r peer.Reply) {
	if in.Op != peer.OpPush || in.Forwarded {
		return
	}
	kind := metric.Kind(in.Durable)
	failed := ""
	if r.Status == peer.StatusOK {
		n.metrics.pushed[kind].Inc()
		if !in.Durable { // a stored one's delivery is observed where it begins
			n.metrics.delivering[kind].Observe(time.Since(in.At()).Seconds())
		}
	} else {
		result := statusNames[r.Status]
		if result == "" {
			result = string(wire.CodeInternal)
		}
		if r.Status != peer.StatusDuplicate {
			failed = result
		}
		n.metrics.pushes.WithLabelValues(metric.Kinds[kind], result).Inc()
	}
	if span, ok := in.Context.(*tracing.Span); ok {
		if !in.Durable {
			span.Child("deliver", in.At()).End(failed)
		}
		span.SetInt("dialring.delivered", r.Delivered)
		span.End(failed)
	}
}
