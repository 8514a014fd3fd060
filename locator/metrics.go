package locator

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dialring/dialring/internal/certs"
	"github.com/dialring/dialring/internal/cluster"
	"github.com/dialring/dialring/internal/metric"
	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/wire"
)

// metrics are what the locator counts. Those of a push are looked up once: it is
// the way that has to be short.
type metrics struct {
	registry *prometheus.Registry
	locates  *prometheus.CounterVec
	located  prometheus.Counter // of locates, the result ok
	locating prometheus.Observer
	delayed  prometheus.Counter
	calls    *prometheus.CounterVec
	callOne  prometheus.Counter // of calls, the form one
	pushes   *prometheus.CounterVec
	pushed   [2]prometheus.Counter  // of pushes, the result ok, by metric.Kind
	pushing  [2]prometheus.Observer // the same
	refused  *prometheus.CounterVec
	byKey    *prometheus.CounterVec
	limited  *prometheus.CounterVec
	probes   *prometheus.CounterVec
	changes  *prometheus.CounterVec

	edgeDials *prometheus.CounterVec
}

// resultOK is what a metric says of what went well; else it has the code of the problem.
const resultOK = "ok"

// resultFailed is what a metric says where the codes of problems would be too many series.
const resultFailed = "failed"

// resultDuplicate: the message was stored before, by the same key.
const resultDuplicate = "duplicate"

func (l *Locator) newMetrics(cert, peerTLS *certs.Files) *metrics {
	locating := metric.Latencies("dialring_locate_duration_seconds", "Time that a locate took, with those that waited for a doubted node.")
	pushing := metric.Latencies("dialring_push_duration_seconds", "Time from a service's call until the owner's answer to one of its pushes, by kind (ephemeral, stored).", "kind")
	m := &metrics{
		locates:  metric.Counters("dialring_locates_total", "Locates by result: ok, or the code of the problem.", "result"),
		locating: locating.WithLabelValues(),
		delayed:  metric.Counter("dialring_delayed_dials_total", "Locates whose client was told to wait before it dials, since many come at once."),
		calls:    metric.Counters("dialring_push_calls_total", "Calls that push, by form: one, many, stream, group, broadcast.", "form"),
		pushes:   metric.Counters("dialring_pushes_total", "Pushes to single users by kind (ephemeral, stored) and result: ok, duplicate, or the code of the problem. Those to a group are counted by the nodes.", "kind", "result"),
		refused:  metric.Counters("dialring_unauthorized_total", "Requests refused for their credential (api_key, user_token), by reason.", "credential", "reason"),
		byKey:    metric.Counters("dialring_api_key_pushes_total", "Pushes by the name of the API key and result: ok, failed. Members of groups count one each, a broadcast is one.", "key", "result"),
		limited:  metric.Counters("dialring_limited_total", "What was refused, or ended, for a limit, by limit; deploy/README.md lists them.", "limit"),
		probes:   metric.Counters("dialring_probes_total", "Probes of nodes by address (peer, public) and result: ok, refused, or failed.", "address", "result"),
		changes:  metric.Counters("dialring_ring_changes_total", "New rings that this locator saw, by reason; one that has several counts for each.", "reason"),
	}
	m.edgeDials = metric.Counters("dialring_edge_dials_total", "Dials of clients to nodes through this locator (DIALRING_EDGE), by result: relayed (the node answered itself), refused, unreachable.", "result")
	for _, result := range []string{edgeRelayed, edgeRefused, edgeUnreachable} {
		m.edgeDials.WithLabelValues(result)
	}
	for k, kind := range metric.Kinds {
		m.pushed[k] = m.pushes.WithLabelValues(kind, resultOK)
		m.pushing[k] = pushing.WithLabelValues(kind)
	}
	m.callOne = m.calls.WithLabelValues("one")
	m.located = m.locates.WithLabelValues(resultOK)
	for _, form := range []string{"one", "many", "stream", "group", "broadcast"} {
		m.calls.WithLabelValues(form)
	}
	for credential, reasons := range map[string][]string{credentialKey: keyReasons, credentialToken: tokenReasons} {
		for _, r := range reasons {
			m.refused.WithLabelValues(credential, r)
		}
	}
	for _, limit := range allLimits {
		m.limited.WithLabelValues(limit)
	}
	for _, address := range []string{"peer", "public"} {
		for _, result := range []string{resultOK, "refused", "failed"} {
			m.probes.WithLabelValues(address, result)
		}
	}
	for _, reason := range ring.Reasons {
		m.changes.WithLabelValues(reason)
	}
	m.registry = metric.New(func() metric.Ring {
		cur := l.rings.Current()
		return metric.Ring{Epoch: cur.Epoch, Hash: cur.Hash, Nodes: len(cur.Nodes), Refused: l.rings.Refusals.Load()}
	}, l.nats.Up, cert.Expires, peerTLS.Expires)
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "dialring_nats_slow_total", Help: "Times that this process was too slow for what NATS sent it, and messages were dropped (heartbeats, announcements; what is stored is not lost by it)."}, func() float64 { return float64(l.nats.Slow()) }))
	if l.embedded != nil {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "dialring_nats_slow_consumers_total", Help: "Connections that the embedded NATS ended because DIALRING_NATS_PENDING_BYTES waited for them."}, func() float64 { return float64(l.embedded.SlowConsumers()) }))
	}
	m.registry.MustRegister(m.locates, locating, m.delayed, m.calls, m.pushes, pushing, m.refused, m.limited, m.byKey, m.probes, m.changes, m.edgeDials, metric.Spans(func() (int64, int64, int64) { return l.tracer.Counts() }),
		metric.Gauge("dialring_api_keys", "API keys that are good now.", func() float64 { return float64(len(l.keys.current())) }),
		metric.Gauge("dialring_api_keys_file_ok", "0 while the file of API keys cannot be used and those of before go on, else 1.", func() float64 { return metric.Bool(l.keys.ok.Load()) }),
		metric.Gauge("dialring_edge_sessions", "Connections of clients to nodes that go through this locator.", func() float64 { return float64(l.edge.sessions()) }),
		metric.Gauge("dialring_locates_running", "Locates under way.", func() float64 { return float64(l.locates.Running()) }),
		metric.Gauge("dialring_locates_admitted_share", "Part of the locates that are let in though they had to wait; below 1 more come than can be answered in time.", func() float64 { return l.locates.Share() }),
		metric.Gauge("dialring_connections", "Connections of clients and services to this locator, but for relayed sessions.", func() float64 { return float64(l.waiting.Len()) }),
		metric.Gauge("dialring_calls_running", "Calls of services under way.", func() float64 { n, _ := l.calls.Load(); return float64(n) }),
		metric.Gauge("dialring_calls_bytes", "Bytes of the bodies of calls of services that are under way.", func() float64 { _, b := l.calls.Load(); return float64(b) }),
		metric.Gauge("dialring_locators", "Locators that this one hears, itself included.", func() float64 { return float64(l.keeper.Locators()) }),
		&viewCollector{l})
	return m
}

// viewCollector says what this locator sees of the nodes, in one look.
type viewCollector struct{ l *Locator }

var (
	descNodes    = prometheus.NewDesc("dialring_nodes", "Nodes by state: joining, active, suspect, draining.", []string{"state"}, nil)
	descHandoffs = prometheus.NewDesc("dialring_handoffs", "Changes of the ring whose users have not all moved yet.", nil, nil)
	descMoving   = prometheus.NewDesc("dialring_handoff_sessions", "Sessions that have to move yet, by the nodes' last reports.", nil, nil)
	descOldest   = prometheus.NewDesc("dialring_oldest_heartbeat_seconds", "Time since the last heartbeat of that node of the ring which was silent for longest; since the ring came for one that was never heard.", nil, nil)
)

func (v *viewCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descNodes, descHandoffs, descMoving, descOldest} {
		ch <- d
	}
}

func (v *viewCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	nodes, handoffs := v.l.keeper.View(v.l.rings.Current())
	count := map[string]int{}
	for _, n := range nodes {
		count[n.State]++
	}
	for _, s := range []string{wire.StateJoining, wire.StateActive, wire.StateSuspect, wire.StateDraining} {
		gauge(descNodes, float64(count[s]), s)
	}
	moving := 0
	for _, h := range handoffs {
		for _, p := range h.Pending {
			moving += p.Sessions
		}
	}
	gauge(descHandoffs, float64(len(handoffs)))
	gauge(descMoving, float64(moving))
	gauge(descOldest, v.l.keeper.OldestHeartbeat(time.Now()).Seconds())
}

// probed counts a probe of the keeper's.
func (m *metrics) probed(p cluster.Probed) {
	address, result := "peer", "failed"
	if p.Public {
		address = "public"
	}
	switch {
	case p.OK:
		result = resultOK
	case p.Refused:
		result = "refused"
	}
	m.probes.WithLabelValues(address, result).Inc()
}

// countRings counts the rings that come, until ctx ends.
func (l *Locator) countRings(ctx context.Context) {
	epoch := l.rings.Current().Epoch
	for {
		changed := l.rings.Changed()
		if cur := l.rings.Current(); cur.Epoch != epoch {
			epoch = cur.Epoch
			for _, reason := range ring.Reasons {
				if cur.Change.Has(reason) {
					l.metrics.changes.WithLabelValues(reason).Inc()
				}
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
