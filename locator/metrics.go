package locator

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// metrics are what the locator counts.
type metrics struct {
	registry *prometheus.Registry
	locates  prometheus.Counter
	pushes   *prometheus.CounterVec
	pushed   prometheus.Counter // of pushes, the result ok: looked up once
}

func (l *Locator) newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		locates:  prometheus.NewCounter(prometheus.CounterOpts{Name: "dialring_locates_total", Help: "Locates that were answered with a node."}),
		pushes:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "dialring_pushes_total", Help: "Pushes by result: ok, or the code of the problem."}, []string{"result"}),
	}
	m.pushed = m.pushes.WithLabelValues("ok")
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
	}
	m.registry.MustRegister(m.locates, m.pushes,
		gauge("dialring_ring_epoch", "Epoch of the ring that this process goes by.", func() float64 { return float64(l.rings.Current().Epoch) }),
		gauge("dialring_ring_nodes", "Nodes in that ring.", func() float64 { return float64(len(l.rings.Current().Nodes)) }),
		gauge("dialring_nats_up", "1 while NATS is connected.", func() float64 {
			if l.nats.Up() {
				return 1
			}
			return 0
		}),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}
