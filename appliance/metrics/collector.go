package metrics

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"signet.internal/appliance/keys"
)

// Sources are what the metrics are asked of, each for every scrape; all are required. What they return is
// bounded by the site: no label is a device's choice.
type Sources struct {
	Box          Box
	Tally        *Tally
	Published    *Published
	Challenges   func() map[string]map[string]uint64 // signed challenges by profile and outcome
	Pending      func() (int, error)
	Keys         func() keys.Usage
	Storage      func() Storage
	AuditRecords func() (uint64, error)
	Certificates func() []Certificate
	Clock        func() Clock
	Watchdog     func() Watchdog
	Conditions   func() (n int, stopped bool)
	Stream       func() (s Stream, ok bool) // ok is false where the audit log is sent nowhere
}

// Stream is the audit log on its way to its receiver.
type Stream struct {
	Connected bool
	Lag       uint64 // records that are not there yet
}

// Box names the box in its metrics.
type Box struct {
	Site    string
	Version string
	Kind    string
	Epoch   uint32
}

// Storage is the state disk, in bytes.
type Storage struct {
	Total   uint64 // 0: the file system cannot tell
	Free    uint64
	Reserve uint64 // with less than this free nothing is issued
}

// Certificate is one that has to be renewed in time.
type Certificate struct {
	Authority  string // "" for those of the box's listeners
	Kind       string // "ca", "ra", "ocsp" or "tls"
	Generation int    // of a CA, else 0
	NotAfter   time.Time
}

// Clock is the box's time.
type Clock struct {
	Now     time.Time
	Floor   time.Time // nothing is signed while the clock is before this
	Source  string
	Trusted bool
}

// Watchdog is the look at the key holder that the box's watchdog hangs on.
type Watchdog struct {
	Answered time.Time // when it answered last; zero: it has not been asked
	Missed   uint64    // times it did not
}

// collector asks the sources when somebody scrapes.
type collector struct {
	Sources
	d descriptions
}

type descriptions struct {
	info, enrollments, challenges, pending                            *prometheus.Desc
	keyWaiting, keyTook, keyBusy                                      *prometheus.Desc
	published, storage, records, expiry                               *prometheus.Desc
	clock, floor, clockTrusted, answered, missed, conditions, issuing *prometheus.Desc
	streamLag, streamConnected                                        *prometheus.Desc
}

// NewHandler answers in Prometheus' text format.
func NewHandler(s Sources) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), newCollector(s))
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
}

func newCollector(s Sources) *collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("signet_"+name, help, labels, nil)
	}
	return &collector{Sources: s, d: descriptions{
		info:         desc("info", "Always 1; the labels say what runs.", "site", "version", "kind", "epoch"),
		enrollments:  desc("enrollments_total", "Enrollments by how they ended, since the service started; a minute's refusals of one kind from one source are one.", "profile", "protocol", "outcome"),
		challenges:   desc("signed_challenges_total", "Signed challenges by how their check came out, since the service started.", "profile", "outcome"),
		pending:      desc("pending_requests", "Requests that wait for a person."),
		keyWaiting:   desc("key_requests_waiting", "Signatures and decryptions asked for and not answered yet; with resident keys, the TPM's queue.", "protection"),
		keyTook:      desc("key_request_seconds", "How long signatures and decryptions took, waiting included.", "operation", "protection"),
		keyBusy:      desc("key_requests_refused_total", "Signatures and decryptions refused because too many waited."),
		published:    desc("published_requests_total", "Requests for revocation lists, CA certificates and OCSP by the status of the answer.", "authority", "document", "status"),
		storage:      desc("storage_bytes", "The state disk: its size, what is free, and what has to be free for certificates to be issued.", "kind"),
		records:      desc("audit_records", "Records of the audit log."),
		expiry:       desc("certificate_expiry_timestamp_seconds", "When a certificate of the box ends.", "authority", "certificate", "generation"),
		clock:        desc("clock_timestamp_seconds", "The box's time.", "source"),
		floor:        desc("clock_floor_timestamp_seconds", "Nothing is signed while the clock is before this."),
		clockTrusted: desc("clock_trusted", "1 while the clock is believed."),
		answered:     desc("watchdog_answered_timestamp_seconds", "When the key holder answered the watchdog last."),
		missed:       desc("watchdog_missed_total", "Times the key holder did not answer the watchdog."),
		conditions:   desc("conditions", "Things that need a person."),
		issuing:      desc("issuing", "0 while nothing is issued."),
		streamLag:    desc("audit_stream_lag_records", "Records of the audit log that its receiver does not have."),

		streamConnected: desc("audit_stream_connected", "1 while the audit log's receiver is connected."),
	}}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	d := c.d
	for _, one := range []*prometheus.Desc{d.info, d.enrollments, d.challenges, d.pending, d.keyWaiting, d.keyTook, d.keyBusy, d.published, d.storage,
		d.records, d.expiry, d.clock, d.floor, d.clockTrusted, d.answered, d.missed, d.conditions, d.issuing, d.streamLag, d.streamConnected} {
		to <- one
	}
}

// scrape is one answer on its way.
type scrape chan<- prometheus.Metric

func (s scrape) gauge(d *prometheus.Desc, v float64, labels ...string) {
	s <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (s scrape) counter(d *prometheus.Desc, n uint64, labels ...string) {
	s <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
}

// orInvalid sends v, or has the scrape fail by err: a value that is not known is never sent as zero.
func (s scrape) orInvalid(d *prometheus.Desc, v float64, err error, labels ...string) {
	if err != nil {
		s <- prometheus.NewInvalidMetric(d, err)
		return
	}
	s.gauge(d, v, labels...)
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	s := scrape(to)
	s.gauge(c.d.info, 1, c.Box.Site, c.Box.Version, c.Box.Kind, strconv.FormatUint(uint64(c.Box.Epoch), 10))
	c.enrollment(s)
	c.keys(s)
	c.machine(s)
	for _, one := range c.Certificates() {
		generation := ""
		if one.Generation > 0 {
			generation = strconv.Itoa(one.Generation)
		}
		s.gauge(c.d.expiry, float64(one.NotAfter.Unix()), one.Authority, one.Kind, generation)
	}
	for p, n := range c.Published.snapshot() {
		s.counter(c.d.published, n, p.authority, p.document, strconv.Itoa(p.status))
	}
}

func (c *collector) enrollment(s scrape) {
	if err := c.Tally.Read(); err != nil {
		s <- prometheus.NewInvalidMetric(c.d.enrollments, err)
	} else {
		for series, n := range c.Tally.Totals() {
			s.counter(c.d.enrollments, n, series.Profile, series.Protocol, string(series.Outcome))
		}
	}
	for profile, outcomes := range c.Challenges() {
		for outcome, n := range outcomes {
			s.counter(c.d.challenges, n, profile, outcome)
		}
	}
	waiting, err := c.Pending()
	s.orInvalid(c.d.pending, float64(waiting), err)
}

func (c *collector) keys(s scrape) {
	usage := c.Keys()
	for _, protection := range []string{keys.Resident, keys.Sealed} {
		s.gauge(c.d.keyWaiting, float64(usage.Waiting[protection]), protection)
	}
	s.counter(c.d.keyBusy, usage.Busy)
	for op, l := range usage.Operations {
		buckets := map[float64]uint64{}
		for i, bound := range keys.LatencyBounds() {
			buckets[bound.Seconds()] = l.Buckets[i]
		}
		s <- prometheus.MustNewConstHistogram(c.d.keyTook, l.Count, l.Sum.Seconds(), buckets, op.Name, op.Protection)
	}
}

func (c *collector) machine(s scrape) {
	if storage := c.Storage(); storage.Total > 0 {
		s.gauge(c.d.storage, float64(storage.Total), "total")
		s.gauge(c.d.storage, float64(storage.Free), "free")
		s.gauge(c.d.storage, float64(storage.Reserve), "reserve")
	}
	records, err := c.AuditRecords()
	s.orInvalid(c.d.records, float64(records), err)
	clock := c.Clock()
	s.gauge(c.d.clock, float64(clock.Now.UnixMilli())/1000, clock.Source)
	if !clock.Floor.IsZero() {
		s.gauge(c.d.floor, float64(clock.Floor.Unix()))
	}
	s.gauge(c.d.clockTrusted, number(clock.Trusted))
	watchdog := c.Watchdog()
	if !watchdog.Answered.IsZero() {
		s.gauge(c.d.answered, float64(watchdog.Answered.Unix()))
	}
	s.counter(c.d.missed, watchdog.Missed)
	conditions, stopped := c.Conditions()
	s.gauge(c.d.conditions, float64(conditions))
	s.gauge(c.d.issuing, number(!stopped))
	if stream, ok := c.Stream(); ok {
		s.gauge(c.d.streamConnected, number(stream.Connected))
		s.gauge(c.d.streamLag, float64(stream.Lag))
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
