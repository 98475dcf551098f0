package metrics

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/keys"
	"signet.internal/appliance/store"
)

// sources answer with something of everything.
func sources(t *testing.T, s *store.Store) Sources {
	return Sources{
		Box:        Box{Site: "demo", Version: "0.1.0", Kind: "box", Epoch: 3},
		Tally:      newTally(t, s, func() time.Time { return now }),
		Published:  NewPublished([]string{"devices"}),
		Challenges: func() map[string]map[string]uint64 { return map[string]map[string]uint64{"corp": {"replay": 2}} },
		Pending:    func() (int, error) { return 4, nil },
		Keys: func() keys.Usage {
			return keys.Usage{Waiting: map[string]int{keys.Resident: 5}, Busy: 6, Operations: map[keys.Operation]keys.Latency{
				{Name: "sign", Protection: keys.Resident}: {Count: 3, Sum: 900 * time.Millisecond, Buckets: []uint64{0, 0, 0, 1, 2, 3, 3, 3, 3, 3}}}}
		},
		Storage:      func() Storage { return Storage{Total: 1000, Free: 250, Reserve: 100} },
		AuditRecords: func() (uint64, error) { return 17, nil },
		Certificates: func() []Certificate {
			return []Certificate{{Authority: "devices", Kind: "ca", Generation: 1, NotAfter: now}, {Kind: "tls", NotAfter: now}}
		},
		Clock:      func() Clock { return Clock{Now: now, Floor: now.Add(-time.Hour), Source: "rtc", Trusted: true} },
		Watchdog:   func() Watchdog { return Watchdog{Answered: now, Missed: 1} },
		Conditions: func() (int, bool) { return 2, true },
		Stream:     func() (Stream, bool) { return Stream{Lag: 9}, true },
	}
}

func scraped(t *testing.T, s Sources) (status int, text string) {
	t.Helper()
	w := httptest.NewRecorder()
	NewHandler(s).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return w.Code, w.Body.String()
}

// TestMetrics: every source has its line.
func TestMetrics(t *testing.T) {
	st := newStore(t)
	s := sources(t, st)
	write(t, st, record(now, audit.SCEPPKCSReq, "corp", audit.OutcomeSuccess), record(now, audit.SCEPRefused, "made-up", audit.OutcomeRefused))
	published := s.Published.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "nobody") {
			http.NotFound(w, r)
			return
		}
		io.WriteString(w, "x")
	}))
	for _, path := range []string{"/pki/devices.crl", "/pki/devices.2.crl", "/pki/devices.cer", "/ocsp/devices/AAAA", "/pki/nobody.crl", "/ocsp/nobody2"} {
		published.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, path, nil))
	}
	status, text := scraped(t, s)
	if status != http.StatusOK {
		t.Fatalf("status %d: %s", status, text)
	}
	for _, want := range []string{
		`signet_info{epoch="3",kind="box",site="demo",version="0.1.0"} 1`,
		`signet_enrollments_total{outcome="success",profile="corp",protocol="scep"} 1`,
		`signet_enrollments_total{outcome="refused",profile="other",protocol="scep"} 1`,
		`signet_signed_challenges_total{outcome="replay",profile="corp"} 2`,
		`signet_pending_requests 4`,
		`signet_key_requests_waiting{protection="resident"} 5`,
		`signet_key_requests_waiting{protection="sealed"} 0`,
		`signet_key_requests_refused_total 6`,
		`signet_key_request_seconds_bucket{operation="sign",protection="resident",le="0.25"} 2`,
		`signet_key_request_seconds_count{operation="sign",protection="resident"} 3`,
		`signet_published_requests_total{authority="devices",document="crl",status="200"} 2`,
		`signet_published_requests_total{authority="devices",document="certificate",status="200"} 1`,
		`signet_published_requests_total{authority="devices",document="ocsp",status="200"} 1`,
		`signet_published_requests_total{authority="",document="none",status="404"} 2`,
		`signet_storage_bytes{kind="free"} 250`,
		`signet_storage_bytes{kind="total"} 1000`,
		`signet_storage_bytes{kind="reserve"} 100`,
		`signet_audit_records 17`,
		`signet_certificate_expiry_timestamp_seconds{authority="devices",certificate="ca",generation="1"} 1.795275e+09`,
		`signet_certificate_expiry_timestamp_seconds{authority="",certificate="tls",generation=""} 1.795275e+09`,
		`signet_clock_trusted 1`,
		`signet_clock_floor_timestamp_seconds 1.7952714e+09`,
		`signet_watchdog_missed_total 1`,
		`signet_conditions 2`,
		`signet_issuing 0`,
		`signet_audit_stream_lag_records 9`,
		`signet_audit_stream_connected 0`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no line %s", want)
		}
	}
	if strings.Contains(text, "made-up") || strings.Contains(text, "nobody") {
		t.Error("a label is somebody's choice")
	}
	if t.Failed() {
		t.Log(text)
	}
}

// TestUnknownIsNotZero: what cannot be read fails the scrape.
func TestUnknownIsNotZero(t *testing.T) {
	lost := errors.New("the disk is gone")
	for name, change := range map[string]func(*Sources){
		"pending": func(s *Sources) { s.Pending = func() (int, error) { return 0, lost } },
		"records": func(s *Sources) { s.AuditRecords = func() (uint64, error) { return 0, lost } },
	} {
		s := sources(t, newStore(t))
		change(&s)
		if status, text := scraped(t, s); status != http.StatusInternalServerError || !strings.Contains(text, lost.Error()) {
			t.Errorf("%s: status %d: %.200s", name, status, text)
		}
	}
}
