package webui

import (
	"crypto/x509"
	"errors"
	"math"
	"net/http"
	"time"
)

// SCEPProfile is what a console is told about a profile's SCEP side.
type SCEPProfile struct {
	Name      string
	Authority string
	Static    bool // takes a challenge all devices share
	OneTime   bool // takes challenges that are good once

	AsksIntune bool              // takes challenges that only Microsoft's service can open
	RA         *x509.Certificate // requests are encrypted to it
	MTLSFile   string            // bundle of the sibling route; "" where that is off
	Signed     *SignedChallenges // nil: takes none
	Since      Enrolled
}

// Enrolled is what became of a profile's enrollments by one protocol since the service started, as the audit log
// has them: refusals of one kind from one source are one a minute.
type Enrolled struct {
	Issued  uint64
	Refused uint64
	Failed  uint64 // the box could not do it
}

// SignedChallenges is how a profile takes signed challenges, now.
type SignedChallenges struct {
	File         string
	Certificates []*x509.Certificate
	Audience     string
	Validity     time.Duration
	Skew         time.Duration
	PerDevice24h int            // 0: no limit
	Counters     map[string]int // by outcome
}

// used is how many challenges got a certificate since the service started.
func (s *SignedChallenges) used() int { return s.Counters["success"] }

// SCEPProfiles is the body of GET /api/v1/admin/scep/profiles.
type SCEPProfiles struct {
	Profiles     []SCEPProfileRow `json:"profiles"`
	ProfileCount int              `json:"profile_count"`
	GeneratedAt  time.Time        `json:"generated_at"`
}

// SCEPProfileRow is one profile.
type SCEPProfileRow struct {
	PathID               string         `json:"path_id" doc:"name of the profile"`
	IssuerID             string         `json:"issuer_id" doc:"name of its authority"`
	ChallengePasswordSet bool           `json:"challenge_password_set"`
	RASubject            string         `json:"ra_cert_subject"`
	RANotBefore          time.Time      `json:"ra_cert_not_before"`
	RANotAfter           time.Time      `json:"ra_cert_not_after"`
	RADaysToExpiry       int            `json:"ra_cert_days_to_expiry"`
	RAExpired            bool           `json:"ra_cert_expired"`
	MTLSEnabled          bool           `json:"mtls_enabled"`
	MTLSFile             string         `json:"mtls_trust_bundle_path"`
	GeneratedAt          time.Time      `json:"generated_at"`
	Intune               *IntuneSection `json:"intune,omitempty" doc:"where signed challenges are on"`
}

// IntuneSection is how signed challenges fare.
type IntuneSection struct {
	TrustAnchorPath   string         `json:"trust_anchor_path"`
	TrustAnchors      []TrustAnchor  `json:"trust_anchors"`
	Audience          string         `json:"audience"`
	ValidityNS        int64          `json:"challenge_validity_ns"`
	SkewNS            int64          `json:"clock_skew_tolerance_ns"`
	RateLimitDisabled bool           `json:"rate_limit_disabled"`
	ReplayCacheSize   int            `json:"replay_cache_size" doc:"challenges used since the service started; the box remembers those before as well"`
	Counters          map[string]int `json:"counters" doc:"challenges by outcome since the service started"`
}

// TrustAnchor is a certificate whose key signs challenges.
type TrustAnchor struct {
	Subject      string    `json:"subject"`
	NotBefore    time.Time `json:"not_before"`
	NotAfter     time.Time `json:"not_after"`
	DaysToExpiry int       `json:"days_to_expiry"`
	Expired      bool      `json:"expired"`
}

// IntuneStats is the body of GET /api/v1/admin/scep/intune/stats.
type IntuneStats struct {
	Profiles     []IntuneStatsRow `json:"profiles"`
	ProfileCount int              `json:"profile_count"`
	GeneratedAt  time.Time        `json:"generated_at"`
}

// IntuneStatsRow is one profile, whether or not signed challenges are on.
type IntuneStatsRow struct {
	PathID            string         `json:"path_id"`
	IssuerID          string         `json:"issuer_id"`
	Enabled           bool           `json:"enabled"`
	TrustAnchorPath   string         `json:"trust_anchor_path,omitempty"`
	TrustAnchors      []TrustAnchor  `json:"trust_anchors,omitempty"`
	Audience          string         `json:"audience,omitempty"`
	ValidityNS        int64          `json:"challenge_validity_ns,omitempty"`
	SkewNS            int64          `json:"clock_skew_tolerance_ns,omitempty"`
	RateLimitDisabled bool           `json:"rate_limit_disabled"`
	ReplayCacheSize   int            `json:"replay_cache_size"`
	Counters          map[string]int `json:"counters"`
	GeneratedAt       time.Time      `json:"generated_at"`
}

// ReloadRequest is the body of POST /api/v1/admin/scep/intune/reload-trust.
type ReloadRequest struct {
	PathID string `json:"path_id" doc:"name of the profile; empty means the default profile"`
}

// ReloadResponse says that the certificates were read again.
type ReloadResponse struct {
	Reloaded   bool      `json:"reloaded"`
	PathID     string    `json:"path_id"`
	ReloadedAt time.Time `json:"reloaded_at"`
}

// TrustError refuses a trust bundle; the one in use stays.
type TrustError struct{ Err error }

func (e *TrustError) Error() string { return e.Err.Error() }
func (e *TrustError) Unwrap() error { return e.Err }

func (c *console) apiSCEPProfiles(w http.ResponseWriter, r *http.Request, _ principal) error {
	now := c.cfg.Now().UTC()
	all, err := rowsOf(c.cfg.SCEP(), now, scepRow)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, SCEPProfiles{all, len(all), now})
	return nil
}

// rowsOf is what the API says of each of a list, at a time.
func rowsOf[T, R any](list []T, now time.Time, rowOf func(T, time.Time) (R, error)) ([]R, error) {
	rows := []R{}
	for _, one := range list {
		row, err := rowOf(one, now)
		if err != nil {
			return nil, err
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// scepRow is what the API says of a profile's SCEP side.
func scepRow(p SCEPProfile, now time.Time) (SCEPProfileRow, error) {
	ra, err := anchorOf(p.RA, now)
	if err != nil {
		return SCEPProfileRow{}, err
	}
	row := SCEPProfileRow{
		PathID: p.Name, IssuerID: p.Authority, ChallengePasswordSet: p.Static,
		RASubject: ra.Subject, RANotBefore: ra.NotBefore, RANotAfter: ra.NotAfter, RADaysToExpiry: ra.DaysToExpiry, RAExpired: ra.Expired,
		MTLSEnabled: p.MTLSFile != "", MTLSFile: p.MTLSFile, GeneratedAt: now,
	}
	if s := p.Signed; s != nil {
		anchors, err := rowsOf(s.Certificates, now, anchorOf)
		if err != nil {
			return SCEPProfileRow{}, err
		}
		row.Intune = &IntuneSection{
			TrustAnchorPath: s.File, TrustAnchors: anchors, Audience: s.Audience, ValidityNS: s.Validity.Nanoseconds(), SkewNS: s.Skew.Nanoseconds(),
			RateLimitDisabled: s.PerDevice24h == 0, ReplayCacheSize: s.used(), Counters: s.Counters,
		}
	}
	return row, nil
}

func (c *console) apiIntuneStats(w http.ResponseWriter, r *http.Request, _ principal) error {
	now := c.cfg.Now().UTC()
	all, err := rowsOf(c.cfg.SCEP(), now, intuneRow)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, IntuneStats{all, len(all), now})
	return nil
}

func intuneRow(p SCEPProfile, now time.Time) (row IntuneStatsRow, err error) {
	row = IntuneStatsRow{PathID: p.Name, IssuerID: p.Authority, Counters: map[string]int{}, GeneratedAt: now}
	if s := p.Signed; s != nil {
		row.TrustAnchors, err = rowsOf(s.Certificates, now, anchorOf)
		row.Enabled, row.TrustAnchorPath, row.Audience = true, s.File, s.Audience
		row.ValidityNS, row.SkewNS = s.Validity.Nanoseconds(), s.Skew.Nanoseconds()
		row.RateLimitDisabled, row.ReplayCacheSize, row.Counters = s.PerDevice24h == 0, s.used(), s.Counters
	}
	return row, err
}

func (c *console) apiReloadTrust(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.apiReload(w, r, who, c.cfg.ReloadTrust)
}

// apiReload has a profile's bundle read again by reload, which returns the profile's name.
func (c *console) apiReload(w http.ResponseWriter, r *http.Request, who principal, reload func(profile, actor string) (string, error)) error {
	var in ReloadRequest
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	name, err := reload(in.PathID, who.user)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, ReloadResponse{Reloaded: true, PathID: name, ReloadedAt: c.cfg.Now().UTC()})
	return nil
}

func anchorOf(cert *x509.Certificate, now time.Time) (TrustAnchor, error) {
	if cert == nil {
		return TrustAnchor{}, errors.New("a certificate is missing")
	}
	subject, err := nameText(cert.RawSubject)
	if err != nil {
		return TrustAnchor{}, err
	}
	left := cert.NotAfter.Sub(now)
	return TrustAnchor{
		Subject: subject, NotBefore: cert.NotBefore.UTC(), NotAfter: cert.NotAfter.UTC(),
		DaysToExpiry: int(math.Floor(left.Hours() / 24)), Expired: left <= 0,
	}, nil
}
