package webui

import (
	"fmt"
	"net/http"
	"time"

	"signet.internal/appliance/handover"
)

// Machine is how the box is doing apart from certificates, as the console shows it.
type Machine struct {
	Keys      KeyUse
	Storage   Storage
	Listeners []Listener // in the order of their ports
	Watchdog  Watchdog
	Stream    *Stream // of the audit log to a receiver; nil where the site has none
}

// Stream is how far the audit log is sent to its receiver.
type Stream struct {
	Address   string    `json:"address" doc:"HOST:PORT of the receiver"`
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since" doc:"when that began"`
	Delivered uint64    `json:"delivered" doc:"records below this index are with the receiver"`
	Lag       uint64    `json:"lag" doc:"records that are not"`
}

// KeyUse is the TPM's work: signatures and decryptions with keys that cannot leave it, since the service
// started.
type KeyUse struct {
	Waiting int           // asked for and not answered yet
	Done    uint64        // answered
	Refused uint64        // because too many waited
	Mean    time.Duration // from the question to the answer
	Newest  time.Duration // of the last one
}

// Storage is the disk that keeps the state.
type Storage struct {
	Total   uint64 // bytes
	Free    uint64 // bytes
	Reserve uint64 // bytes: where less is free nothing new is issued
	Known   bool   // false: the file system does not say
}

// Used is how full the disk is, in percent.
func (s Storage) Used() int {
	if s.Total == 0 {
		return 0
	}
	return int((s.Total - min(s.Free, s.Total)) * 100 / s.Total)
}

// FreeText is what is free, for people.
func (s Storage) FreeText() string { return bytesText(s.Free) }

// TotalText is how large the disk is, for people.
func (s Storage) TotalText() string { return bytesText(s.Total) }

// ReserveText is what has to stay free, for people.
func (s Storage) ReserveText() string { return bytesText(s.Reserve) }

// MeanText is how long an answer takes, for people.
func (k KeyUse) MeanText() string { return tookText(k.Mean) }

// NewestText is how long the last answer took, for people.
func (k KeyUse) NewestText() string { return tookText(k.Newest) }

// IsBusy tells that more is asked of the TPM than it can do at once.
func (k KeyUse) IsBusy() bool { return k.Waiting > busyWaiting }

// busyWaiting is how many waiting signatures are more than a moment's work of a hardware TPM.
const busyWaiting = 8

// IsLow tells that the disk comes near the reserve: a person has time to act.
func (s Storage) IsLow() bool { return s.Known && s.Free < max(4*s.Reserve, s.Total/20) }

// Listener is where the box answers.
type Listener struct {
	Name    string `json:"name" doc:"of the site's listener table"`
	Address string `json:"address" doc:"ADDRESS:PORT on the box"`
	TLS     string `json:"tls" doc:"the oldest version of TLS it takes; empty for HTTP without TLS"`
}

// Watchdog is the look at the key holder that the box's watchdog hangs on.
type Watchdog struct {
	Armed    bool      // a supervisor starts the service again where it stops answering
	Answered time.Time // when the key holder answered last; zero: it has not been asked yet
	Missed   uint64    // times it did not
}

// Health is the body of GET /api/v1/health; strangers are told no more than its first two members.
type Health struct {
	Status  string         `json:"status" doc:"\"ok\", or \"degraded\" when something needs a person"`
	Ready   bool           `json:"ready" doc:"every authority can issue"`
	Details *HealthDetails `json:"details,omitempty" doc:"for people signed in"`
}

// HealthDetails is how the parts of the box are doing.
type HealthDetails struct {
	Conditions []handover.Condition `json:"conditions" doc:"what needs a person"`
	Pending    int                  `json:"pending" doc:"requests that wait for a person"`
	Clock      Clock                `json:"clock"`
	Keys       KeysDetails          `json:"keys"`
	Storage    *StorageDetails      `json:"storage,omitempty" doc:"absent where the file system does not say"`
	Listeners  []Listener           `json:"listeners"`
	Watchdog   WatchdogDetails      `json:"watchdog"`
	Audit      AuditDetails         `json:"audit"`
	Stream     *Stream              `json:"stream,omitempty" doc:"of the audit log; absent where the site sends it nowhere"`
}

// KeysDetails is the TPM's work since the service started.
type KeysDetails struct {
	Waiting      int    `json:"waiting" doc:"signatures and decryptions asked of the TPM and not answered yet"`
	Done         uint64 `json:"done"`
	Refused      uint64 `json:"refused" doc:"because too many waited"`
	MeanMillis   int64  `json:"mean_ms" doc:"from the question to the answer"`
	NewestMillis int64  `json:"newest_ms" doc:"of the last one"`
}

// StorageDetails is the disk that keeps the state.
type StorageDetails struct {
	Total   uint64 `json:"total" doc:"bytes"`
	Free    uint64 `json:"free" doc:"bytes"`
	Reserve uint64 `json:"reserve" doc:"bytes; where less is free nothing new is issued"`
}

// WatchdogDetails is the look at the key holder that the box's watchdog hangs on.
type WatchdogDetails struct {
	Armed    bool       `json:"armed" doc:"a supervisor starts the service again where it stops answering"`
	Answered *time.Time `json:"answered,omitempty" doc:"when the key holder answered last; absent until it was asked"`
	Missed   uint64     `json:"missed" doc:"times it did not answer"`
}

// AuditDetails is the audit log in numbers.
type AuditDetails struct {
	Records uint64 `json:"records"`
}

// Acknowledged is the body of POST /api/v1/rollback/acknowledge.
type Acknowledged struct {
	By string `json:"by"`
}

// healthRoutes are how the box is doing.
func healthRoutes() []route {
	get := http.MethodGet
	return []route{
		eventsRoute(),
		{get, "/box", auditor, nil, (*console).boxPage},
		{http.MethodPost, "/box/acknowledge", administrator, nil, (*console).acknowledgeForm},
		{http.MethodPost, apiPrefix + "rollback/acknowledge", administrator, &operation{
			id: "acknowledgeRollback", summary: "Take a disk that turned out to be an older copy for the newest, and issue again; what the newer one had is lost",
			responses: []response{{http.StatusOK, "acknowledged and recorded", mediaJSON, Acknowledged{}}},
			refusals:  []int{http.StatusConflict, http.StatusServiceUnavailable},
		}, (*console).apiAcknowledge},
		{get, apiPrefix + "clock", auditor, &operation{
			id: "clock", summary: "The box's time, where it comes from and whether it is believed",
			responses: []response{{http.StatusOK, "the clock", mediaJSON, Clock{}}},
		}, (*console).apiClock},
		{get, apiPrefix + "support-bundle", administrator, &operation{
			id: "supportBundle", summary: "What somebody needs who helps from afar: state, settings, metrics, newest log lines and audit records, without secrets; README.txt inside says what is in it",
			responses: []response{{http.StatusOK, "a ZIP archive", mediaZIP, nil}},
			refusals:  []int{http.StatusServiceUnavailable},
		}, (*console).apiSupportBundle},
	}
}

func (c *console) apiHealth(w http.ResponseWriter, r *http.Request, who principal) error {
	s, err := c.status()
	if err != nil {
		return err
	}
	h := Health{Status: "ok", Ready: s.Ready}
	if len(s.Conditions) > 0 {
		h.Status = "degraded"
	}
	status := http.StatusOK
	if !h.Ready {
		h.Status, status = "degraded", http.StatusServiceUnavailable
	}
	if who.role >= auditor {
		if h.Details, err = c.healthDetails(s); err != nil {
			return err
		}
	}
	writeJSON(w, status, mediaJSON, h)
	return nil
}

func (c *console) healthDetails(s Status) (*HealthDetails, error) {
	waiting, err := c.cfg.Enroll.PendingRequests()
	if err != nil {
		return nil, err
	}
	records, _, err := c.cfg.Store.LogHead()
	if err != nil {
		return nil, err
	}
	m := c.cfg.Machine()
	d := &HealthDetails{
		Conditions: []handover.Condition{}, Pending: len(waiting), Clock: s.Clock, Listeners: append([]Listener{}, m.Listeners...),
		Keys:     KeysDetails{m.Keys.Waiting, m.Keys.Done, m.Keys.Refused, m.Keys.Mean.Milliseconds(), m.Keys.Newest.Milliseconds()},
		Watchdog: WatchdogDetails{m.Watchdog.Armed, timeOf(m.Watchdog.Answered), m.Watchdog.Missed},
		Audit:    AuditDetails{records},
		Stream:   m.Stream,
	}
	d.Conditions = append(d.Conditions, s.Conditions...)
	if m.Storage.Known {
		d.Storage = &StorageDetails{m.Storage.Total, m.Storage.Free, m.Storage.Reserve}
	}
	return d, nil
}

func (c *console) apiClock(w http.ResponseWriter, _ *http.Request, _ principal) error {
	writeJSON(w, http.StatusOK, mediaJSON, c.clock())
	return nil
}

// clock is the box's time. The floor is the later of the image's and the newest trusted record's.
func (c *console) clock() Clock {
	floor := c.cfg.Boot.TimeFloor
	if last := c.cfg.Store.LastTime(); last.After(floor) {
		floor = last
	}
	return Clock{Now: c.cfg.Now().UTC(), Source: c.cfg.TimeSource, Floor: floor.UTC(), Started: c.started.UTC(), Trusted: c.cfg.Enroll.TrustsClock() == nil}
}

// bytesText writes a size for people.
func bytesText(n uint64) string {
	const unit = 1024
	switch {
	case n >= 10*unit*unit*unit:
		return fmt.Sprintf("%d GiB", n/(unit*unit*unit))
	case n >= unit*unit*unit:
		return fmt.Sprintf("%.1f GiB", float64(n)/(unit*unit*unit))
	default:
		return fmt.Sprintf("%d MiB", n/(unit*unit))
	}
}

// tookText writes how long something took, for people.
func tookText(d time.Duration) string {
	switch {
	case d <= 0:
		return "none yet"
	case d < time.Millisecond:
		return "under 1 ms"
	case d < 10*time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%d s", int(d.Seconds()))
}

// bySourceText says what a time source is worth, in plain words.
func bySourceText(source string) string {
	switch source {
	case "rtc":
		return "The machine’s own real-time clock. Nobody else confirms it, so a wrong setting in the firmware is believed as long as it is not before what the box already knows."
	case "host":
		return "The clock of the computer this service runs on."
	case "":
		return "The box did not say where its time comes from."
	}
	return "The source is called “" + source + "”."
}
