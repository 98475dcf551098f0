package appliance

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"signet.internal/appliance/enroll"
)

// metrics collects what the service counts when somebody asks.
type metrics struct {
	settings []*settings
	engine   *enroll.Engine

	signed  *prometheus.Desc
	pending *prometheus.Desc
}

// newMetrics answers in Prometheus' text format.
func newMetrics(settings []*settings, engine *enroll.Engine) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), &metrics{
		settings: settings,
		engine:   engine,
		signed: prometheus.NewDesc("signet_signed_challenges_total", "Signed challenges by how their check came out, since the service started.",
			[]string{"profile", "outcome"}, nil),
		pending: prometheus.NewDesc("signet_pending_requests", "Requests that wait for a person.", nil, nil),
	})
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(to chan<- *prometheus.Desc) { to <- m.signed; to <- m.pending }

// Collect implements prometheus.Collector.
func (m *metrics) Collect(to chan<- prometheus.Metric) {
	for _, c := range m.settings {
		for label, n := range c.set.Snapshot() {
			to <- prometheus.MustNewConstMetric(m.signed, prometheus.CounterValue, float64(n), c.profile.Name, string(label))
		}
	}
	held, err := m.engine.PendingRequests()
	if err != nil {
		to <- prometheus.NewInvalidMetric(m.pending, err)
		return
	}
	to <- prometheus.MustNewConstMetric(m.pending, prometheus.GaugeValue, float64(len(held)))
}
