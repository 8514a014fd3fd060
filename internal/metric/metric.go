// Package metric is what the metrics of both programs have in common: the
// registry, what both say of the ring and of NATS, and how latencies are counted.
package metric

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Ring is the ring that a process goes by.
type Ring struct {
	Epoch uint64
	Hash  string // hexadecimal, 32 bits
	Nodes int
	// Refused counts rings that were refused.
	Refused uint64
}

// New makes a registry with what every process has: the Go runtime, the process,
// the build, the ring that it goes by, whether NATS is connected and when its certificates
// expire (the zero time: it has none): that for clients, and that of the cluster.
func New(ring func() Ring, natsUp func() bool, expires, peerExpires func() time.Time) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewBuildInfoCollector(),
		Gauge("dialring_ring_epoch", "Epoch of the ring that this process goes by.", func() float64 { return float64(ring().Epoch) }),
		Gauge("dialring_ring_hash", "Hash of that ring as a number: two processes with one epoch must have one hash.", func() float64 {
			h, err := strconv.ParseUint(ring().Hash, 16, 32)
			if err != nil { // an empty ring has none
				return 0
			}
			return float64(h)
		}),
		Gauge("dialring_ring_nodes", "Nodes in that ring.", func() float64 { return float64(ring().Nodes) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "dialring_rings_refused_total", Help: "Published rings that this process refused: they break the rules, or no cluster key signed them."},
			func() float64 { return float64(ring().Refused) }),
		Gauge("dialring_nats_up", "1 while NATS is connected.", func() float64 { return Bool(natsUp()) }),
		Gauge("dialring_certificate_expires_timestamp_seconds", "When the certificate of the listener for clients expires, as Unix time; 0 without TLS.", func() float64 { return float64(max(0, expires().Unix())) }),
		Gauge("dialring_peer_certificate_expires_timestamp_seconds", "When the certificate that is shown within the cluster (PEER_TLS_CERT_FILE) expires, as Unix time; 0 without one.", func() float64 { return float64(max(0, peerExpires().Unix())) }))
	return r
}

// Gauge is a gauge whose value f returns when it is asked for.
func Gauge(name, help string, f func() float64) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
}

// Bool is 1 for true.
func Bool(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Counter makes a counter.
func Counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

// Counters makes counters by labels.
func Counters(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

// latencies are the buckets of every duration, in seconds: from what a write to a socket
// takes to the longest wait that there is.
var latencies = []float64{.00002, .00005, .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// Latencies makes a histogram of durations in seconds, by labels.
func Latencies(name, help string, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: latencies}, labels)
}

// Sizes makes a histogram of counts from 1 to 1,024.
func Sizes(name, help string) prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(1, 2, 11)})
}

// Spans are the spans that a process made, by what became of them.
func Spans(counts func() (sent, failed, dropped int64)) prometheus.Collector { return &spans{counts} }

type spans struct {
	counts func() (sent, failed, dropped int64)
}

var descSpans = prometheus.NewDesc("dialring_spans_total", "Spans by result: ok, failed (the collector did not take them), dropped (too many waited; known a while later).", []string{"result"}, nil)

func (s *spans) Describe(ch chan<- *prometheus.Desc) { ch <- descSpans }

func (s *spans) Collect(ch chan<- prometheus.Metric) {
	sent, failed, dropped := s.counts()
	for result, n := range map[string]int64{"ok": sent, "failed": failed, "dropped": dropped} {
		ch <- prometheus.MustNewConstMetric(descSpans, prometheus.CounterValue, float64(n), result)
	}
}

// Kinds of a push, as metrics name them; Kind is the place of one.
var Kinds = [2]string{"ephemeral", "stored"}

// Kind is 1 for what is stored.
func Kind(durable bool) int {
	if durable {
		return 1
	}
	return 0
}
