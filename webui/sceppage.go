package webui

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/challenge"
)

// scepRoutes are the page SCEP Administration and its one order.
func scepRoutes() []route {
	get, post := http.MethodGet, http.MethodPost
	return []route{
		{get, "/scep", auditor, nil, (*console).scepPage},
		{get, "/scep/intune", auditor, nil, (*console).scepPage},
		{post, "/scep/reload-trust", administrator, nil, (*console).scepReload},
	}
}

// Tabs of the pages about a protocol, as in their addresses.
const (
	tabProfiles = "profiles"
	tabIntune   = "intune"
	tabActivity = "activity"
	tabTrust    = "trust"
)

// scepView is the page SCEP Administration. All but Gated and Tab is empty for who is no administrator.
type scepView struct {
	frame
	Gated    bool
	Tab      string // a tab constant
	Now      time.Time
	Profiles []scepCard
	Waiting  []string // profiles whose authority has no certificate yet
	Failures []entry  // of Intune's challenges, newest first
	Log      *enrollmentLog
	Reload   *scepCard // the profile that the dialog is about
}

// scepCard is a profile on the page.
type scepCard struct {
	SCEPProfileRow
	Since        Enrolled
	OneTime      bool
	AsksIntune   bool
	Off          bool // an administrator switched it off
	NotBaked     bool
	TrustChanged bool // the certificates that signed challenges are verified with are not the baked ones
	Statuses     []challengeStatus
	Audience     string
	Validity     string
	Skew         string
	PerDevice    int // certificates for one device within 24 hours; 0: no limit
}

// challengeStatus is one outcome of checking signed challenges.
type challengeStatus struct {
	Label  string // as in the metrics
	Words  string
	Tone   string
	Number int
}

// statusWords say the outcomes of signed challenges, by their label.
var statusWords = map[challenge.Label]string{
	challenge.Success:          "Accepted",
	challenge.SignatureInvalid: "Signed by somebody else",
	challenge.Expired:          "Expired",
	challenge.NotYetValid:      "Not valid yet",
	challenge.WrongAudience:    "Meant for another server",
	challenge.Replay:           "Used before",
	challenge.RateLimited:      "Too many for one device",
	challenge.ClaimMismatch:    "Made for another device",
	challenge.UnknownVersion:   "Version not known",
	challenge.Malformed:        "Not readable",
	challenge.ComplianceFailed: "Device not compliant",
}

func (c *console) scepPage(w http.ResponseWriter, r *http.Request, who principal) error {
	view, err := c.scepView(r, who)
	if err != nil {
		return err
	}
	return c.page(w, "scep", view)
}

// scepView collects what the chosen tab shows.
func (c *console) scepView(r *http.Request, who principal) (*scepView, error) {
	v := &scepView{frame: c.frame(r, who, "/scep", "SCEP Administration"), Gated: who.role < administrator, Now: c.cfg.Now().UTC()}
	v.Tab = chosenTab(r, tabProfiles, tabIntune, tabActivity)
	if r.URL.Path == "/scep/intune" && r.URL.Query().Get("tab") == "" || r.Method == http.MethodPost {
		v.Tab = tabIntune
	}
	if v.Gated {
		return v, nil
	}
	if v.Tab == tabActivity {
		var err error
		v.Log, err = c.enrollmentLog(r, "/scep", audit.SCEPRefused, scepChips())
		return v, err
	}
	served := map[string]bool{}
	for _, p := range c.cfg.SCEP() {
		card, err := c.scepCard(p, v.Now)
		if err != nil {
			return nil, err
		}
		v.Profiles, served[p.Name] = append(v.Profiles, card), true
	}
	for _, p := range c.cfg.Site().Profiles {
		if len(p.SCEP) > 0 && !served[p.Name] {
			v.Waiting = append(v.Waiting, p.Name)
		}
	}
	if v.Tab != tabIntune {
		return v, nil
	}
	name := fieldOf(r, "profile")
	for i := range v.Profiles {
		if p := &v.Profiles[i]; p.Intune != nil && p.PathID == name {
			v.Reload = p
		}
	}
	var err error
	v.Failures, _, err = c.scanLog(0, 10, isIntuneFailure)
	return v, err
}

// chosenTab is the tab that the address asks for, the first of tabs where it asks for none of them.
func chosenTab(r *http.Request, tabs ...string) string {
	for _, t := range tabs {
		if r.URL.Query().Get("tab") == t {
			return t
		}
	}
	return tabs[0]
}

func (c *console) scepCard(p SCEPProfile, now time.Time) (scepCard, error) {
	row, err := scepRow(p, now)
	if err != nil {
		return scepCard{}, err
	}
	card := scepCard{SCEPProfileRow: row, Since: p.Since, OneTime: p.OneTime, AsksIntune: p.AsksIntune}
	settings, err := c.cfg.Box.Settings(p.Name)
	if err != nil && !errors.Is(err, ErrNoProfile) {
		return scepCard{}, err
	}
	card.Off, card.NotBaked = settings.Off != nil, settings.NotBaked()
	for _, b := range settings.Bundles {
		card.TrustChanged = card.TrustChanged || b.Bundle == BundleSigned && b.Replaced != nil
	}
	if s := p.Signed; s != nil {
		card.Audience, card.Validity, card.Skew, card.PerDevice = s.Audience, span(s.Validity), shortSpan(s.Skew), s.PerDevice24h
		for _, label := range challenge.Labels() {
			status := challengeStatus{Label: string(label), Words: statusWords[label], Tone: "plain", Number: s.Counters[string(label)]}
			switch {
			case status.Number == 0:
			case label == challenge.Success:
				status.Tone = "good"
			default:
				status.Tone = "warn"
			}
			card.Statuses = append(card.Statuses, status)
		}
	}
	return card, nil
}

// shortSpan writes durations below two minutes in seconds.
func shortSpan(d time.Duration) string {
	if d < 2*time.Minute {
		return fmt.Sprintf("%d seconds", int(d/time.Second))
	}
	return span(d)
}

// RA is the countdown to the end of the RA certificate.
func (c scepCard) RA() expiry { return countdown(c.RANotAfter, c.GeneratedAt) }

// countdown is what is left of a certificate; one that is over says so in capitals.
func countdown(notAfter, now time.Time) expiry {
	e := expiryOf(notAfter, now)
	if !notAfter.After(now) {
		e.Text = "EXPIRED"
	}
	return e
}

// Left is the countdown to the end of a trust anchor.
func (a TrustAnchor) Left(now time.Time) expiry { return countdown(a.NotAfter, now) }

func scepChips() []chip {
	return []chip{
		{Key: "all", Label: "All", actions: []audit.Action{audit.SCEPPKCSReq, audit.SCEPRenewalReq, audit.SCEPPKCSReqIntune, audit.SCEPRenewalReqIntune}},
		{Key: "initial", Label: "Initial", actions: []audit.Action{audit.SCEPPKCSReq, audit.SCEPPKCSReqIntune}},
		{Key: "renewal", Label: "Renewal", actions: []audit.Action{audit.SCEPRenewalReq, audit.SCEPRenewalReqIntune}},
		{Key: "intune", Label: "Intune", actions: []audit.Action{audit.SCEPPKCSReqIntune, audit.SCEPRenewalReqIntune}},
		{Key: "static", Label: "Static", actions: []audit.Action{audit.SCEPPKCSReq, audit.SCEPRenewalReq}},
	}
}

// isIntuneFailure is true of a request with a challenge of Intune's kind that got no certificate.
func isIntuneFailure(r audit.Record) bool {
	switch r.Action {
	case audit.SCEPPKCSReqIntune, audit.SCEPRenewalReqIntune:
		return r.Outcome != audit.OutcomeSuccess
	case audit.SCEPRefused:
		return strings.HasPrefix(r.Reason, string(challenge.KindSigned)+" challenge") || strings.HasPrefix(r.Reason, string(challenge.KindIntune)+" challenge")
	}
	return false
}

// scepReload reads the signers of a profile's challenges again. What is refused leaves the dialog open.
func (c *console) scepReload(w http.ResponseWriter, r *http.Request, who principal) error {
	if err := readForm(w, r); err != nil {
		return err
	}
	name := r.PostForm.Get("profile")
	_, refusal := c.cfg.ReloadTrust(name, who.user)
	if refusal == nil {
		return c.done(w, r, "/scep?tab="+tabIntune+"#intune-"+url.PathEscape(name), "trust-reloaded")
	}
	a, known := attempted(r, "reload", refusal)
	if !known {
		return refusal
	}
	view, err := c.scepView(r, who)
	if err != nil {
		return err
	}
	view.Do, view.Attempt = "reload", a
	if view.Reload == nil {
		return refusal // there is no dialog for a profile without such trust
	}
	return c.page(w, "scep", view)
}
