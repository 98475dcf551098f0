package webui

import (
	"crypto/x509"
	"errors"
	"net/http"
	"net/url"
	"time"

	"signet.internal/appliance/audit"
)

// ESTProfile is what a console is told about a profile's EST side.
type ESTProfile struct {
	Name           string
	Authority      string
	LegacyTLS      bool      // served to devices without TLS 1.3
	Users          []string  // that enroll by name and password
	OneTime        bool      // takes a one-time challenge as password
	Issued         bool      // certificates of its authority get their successors
	Trust          *ESTTrust // nil: nobody else's certificates let a device in
	ChannelBinding string    // "", "optional" or "required"
	ServerKey      string    // algorithm of keys made for devices; "" where none are
	Counters       map[string]int
	Since          Enrolled
}

// ESTTrust is whose certificates let a device in for its first one, now.
type ESTTrust struct {
	File         string
	Certificates []*x509.Certificate
	Replaced     *Change // nil: baked
}

// ErrNoESTTrust: no bundle of certificates lets devices in over EST at the profile.
var ErrNoESTTrust = errors.New("no bundle of certificates lets devices in over EST")

// ESTProfiles is the body of GET /api/v1/admin/est/profiles.
type ESTProfiles struct {
	Profiles     []ESTProfileRow `json:"profiles"`
	ProfileCount int             `json:"profile_count"`
	GeneratedAt  time.Time       `json:"generated_at"`
}

// ESTProfileRow is one profile that is served over EST.
type ESTProfileRow struct {
	PathID            string        `json:"path_id" doc:"name of the profile"`
	IssuerID          string        `json:"issuer_id" doc:"name of its authority"`
	BasicConfigured   bool          `json:"basic_auth_configured"`
	OneTimeChallenge  bool          `json:"one_time_challenge" doc:"a one-time challenge is taken as password"`
	IssuedCertificate bool          `json:"issued_certificate" doc:"a certificate of the authority gets its successor"`
	MTLSEnabled       bool          `json:"mtls_enabled" doc:"certificates of a bundle let a device in for its first one"`
	MTLSFile          string        `json:"mtls_trust_bundle_path"`
	TrustAnchors      []TrustAnchor `json:"trust_anchors"`
	ChannelBinding    string        `json:"channel_binding" doc:"\"\" for off, optional or required"`
	ServerKeyGen      string        `json:"server_keygen" doc:"algorithm of keys made for devices; empty where it is off"`
	LegacyTLS         bool          `json:"legacy_tls" doc:"served to devices without TLS 1.3 too"`
	GeneratedAt       time.Time     `json:"generated_at"`

	Counters map[string]int `json:"counters" doc:"requests for a certificate by what they came to, since the service started"`
}

// estRoutes are the page about EST, its one order, and both for programs.
func estRoutes() []route {
	get, post := http.MethodGet, http.MethodPost
	return []route{
		{get, "/est", auditor, nil, (*console).estPage},
		{post, "/est/reload-trust", administrator, nil, (*console).estReload},
		{get, apiPrefix + "admin/est/profiles", administrator, &operation{
			id: "listESTProfiles", summary: "EST side of every profile: how devices are let in, trust",
			responses: []response{{http.StatusOK, "profiles", mediaJSON, ESTProfiles{}}},
		}, (*console).apiESTProfiles},
		{post, apiPrefix + "admin/est/reload-trust", administrator, &operation{
			id: "reloadESTTrust", summary: "Read the certificates again that let devices in over EST; a bad file changes nothing",
			request:   ReloadRequest{},
			responses: []response{{http.StatusOK, "read again, and in use unless an administrator replaced the certificates", mediaJSON, ReloadResponse{}}},
			refusals:  []int{http.StatusNotFound, http.StatusConflict},
		}, (*console).apiReloadESTTrust},
	}
}

func (c *console) apiESTProfiles(w http.ResponseWriter, r *http.Request, _ principal) error {
	now := c.cfg.Now().UTC()
	all, err := rowsOf(c.cfg.EST(), now, estRow)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, ESTProfiles{all, len(all), now})
	return nil
}

func estRow(p ESTProfile, now time.Time) (ESTProfileRow, error) {
	row := ESTProfileRow{
		PathID: p.Name, IssuerID: p.Authority, BasicConfigured: len(p.Users) > 0, OneTimeChallenge: p.OneTime, IssuedCertificate: p.Issued,
		TrustAnchors: []TrustAnchor{}, ChannelBinding: p.ChannelBinding, ServerKeyGen: p.ServerKey, LegacyTLS: p.LegacyTLS, GeneratedAt: now,
		Counters: p.Counters,
	}
	if p.Trust == nil {
		return row, nil
	}
	row.MTLSEnabled, row.MTLSFile = true, p.Trust.File
	var err error
	row.TrustAnchors, err = rowsOf(p.Trust.Certificates, now, anchorOf)
	return row, err
}

func (c *console) apiReloadESTTrust(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.apiReload(w, r, who, c.cfg.ReloadESTTrust)
}

// estView is the page about EST. All but Gated and Tab is empty for who is no administrator.
type estView struct {
	frame
	Gated    bool
	Tab      string // a tab constant
	Now      time.Time
	Profiles []estCard
	Log      *enrollmentLog
	Reload   *estCard // the profile that the dialog is about
}

// estCard is a profile on the page.
type estCard struct {
	ESTProfileRow
	Since        Enrolled
	Users        []string
	Off          bool // an administrator switched it off
	NotBaked     bool
	TrustChanged bool // the certificates of the bundle are not the baked ones
}

func (c *console) estPage(w http.ResponseWriter, r *http.Request, who principal) error {
	view, err := c.estView(r, who)
	if err != nil {
		return err
	}
	return c.page(w, "est", view)
}

func (c *console) estView(r *http.Request, who principal) (*estView, error) {
	v := &estView{frame: c.frame(r, who, "/est", "EST Administration"), Gated: who.role < administrator, Now: c.cfg.Now().UTC()}
	v.Tab = chosenTab(r, tabProfiles, tabActivity, tabTrust)
	if r.Method == http.MethodPost {
		v.Tab = tabTrust
	}
	if v.Gated {
		return v, nil
	}
	if v.Tab == tabActivity {
		var err error
		v.Log, err = c.enrollmentLog(r, "/est", audit.ESTRefused, estChips())
		return v, err
	}
	name := fieldOf(r, "profile")
	for _, p := range c.cfg.EST() {
		card := estCard{Since: p.Since, Users: p.Users, TrustChanged: p.Trust != nil && p.Trust.Replaced != nil}
		var err error
		if card.ESTProfileRow, err = estRow(p, v.Now); err != nil {
			return nil, err
		}
		settings, err := c.cfg.Box.Settings(p.Name)
		if err != nil && !errors.Is(err, ErrNoProfile) {
			return nil, err
		}
		card.Off, card.NotBaked = settings.Off != nil, settings.NotBaked()
		v.Profiles = append(v.Profiles, card)
		if card.MTLSEnabled && p.Name == name {
			v.Reload = &card
		}
	}
	return v, nil
}

func estChips() []chip {
	return []chip{
		{Key: "all", Label: "All", actions: []audit.Action{audit.ESTSimpleEnroll, audit.ESTSimpleReenroll, audit.ESTServerKeyGen}},
		{Key: "initial", Label: "Initial", actions: []audit.Action{audit.ESTSimpleEnroll}},
		{Key: "renewal", Label: "Renewal", actions: []audit.Action{audit.ESTSimpleReenroll}},
		{Key: "key", Label: "Key made here", actions: []audit.Action{audit.ESTServerKeyGen}},
	}
}

// estReload reads the bundle of a profile again. What is refused leaves the dialog open.
func (c *console) estReload(w http.ResponseWriter, r *http.Request, who principal) error {
	if err := readForm(w, r); err != nil {
		return err
	}
	name := r.PostForm.Get("profile")
	_, refusal := c.cfg.ReloadESTTrust(name, who.user)
	if refusal == nil {
		return c.done(w, r, "/est?tab="+tabTrust+"#trust-"+url.PathEscape(name), "trust-reloaded")
	}
	a, known := attempted(r, "reload", refusal)
	if !known {
		return refusal
	}
	view, err := c.estView(r, who)
	if err != nil {
		return err
	}
	view.Do, view.Attempt = "reload", a
	if view.Reload == nil {
		return refusal // there is no dialog for a profile without such trust
	}
	return c.page(w, "est", view)
}
