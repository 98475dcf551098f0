package webui

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha1"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

// certificatePageRoutes are the pages of issued certificates and the orders given there.
func certificatePageRoutes() []route {
	get, post := http.MethodGet, http.MethodPost
	const one = "/certificates/{serial}"
	return []route{
		{get, "/certificates", auditor, nil, (*console).certificatesPage},
		{get, one, auditor, nil, (*console).certificatePage},
		{get, one + "/certificate.pem", auditor, nil, (*console).certificateFile},
		{get, one + "/certificate.der", auditor, nil, (*console).certificateFile},
		{get, one + "/chain.pem", auditor, nil, (*console).certificateFile},
		{post, one + "/revoke", operator, nil, (*console).revokeForm},
		{post, one + "/hold", operator, nil, (*console).holdForm},
		{post, one + "/release", operator, nil, (*console).releaseForm},
	}
}

// certificatesView is the list of issued certificates.
type certificatesView struct {
	frame
	Text     string
	Profile  string
	State    string
	Now      time.Time
	Profiles []string
	States   []certificateState
	Rows     []certificateLine
	After    string // next page; "" on the last
	Later    bool   // this is not the first page
	Wrong    *Problem
}

// certificateLine is a certificate in the list, and what is left of it.
type certificateLine struct {
	CertificateRow
	Left expiry
}

// lifeOf says what is left of a certificate, by its own life: a device that renews in time is well.
func lifeOf(info enroll.CertInfo, due, now time.Time) expiry {
	left := info.NotAfter.Sub(now)
	switch {
	case left <= 0:
		return expiry{"plain", "ended " + span(-left) + " ago"}
	case now.Before(due):
		return expiry{"good", span(left) + " left"}
	case left < info.NotAfter.Sub(info.Issued)/10:
		return expiry{"bad", span(left) + " left"}
	}
	return expiry{"warn", span(left) + " left"}
}

// certificateState is a filter of the list.
type certificateState struct{ Key, Label string }

func certificateStates() []certificateState {
	return []certificateState{{"all", "All"}, {"active", "Active"}, {"due", "Due, not renewed"}, {"revoked", "Revoked"}, {"hold", "On hold"}, {"expired", "Expired"}}
}

// Address is that of the list in another state, the search and profile the same.
func (v *certificatesView) Address(state string) string { return v.address(state, "") }

// Next is the address of the next page.
func (v *certificatesView) Next() string { return v.address(v.State, v.After) }

func (v *certificatesView) address(state, after string) string {
	q := url.Values{}
	for key, value := range map[string]string{"q": v.Text, "profile": v.Profile, "state": state, "after": after} {
		if value != "" && value != "all" {
			q.Set(key, value)
		}
	}
	if len(q) == 0 {
		return "/certificates"
	}
	return "/certificates?" + q.Encode()
}

// IsSearch: the list leaves certificates out.
func (v *certificatesView) IsSearch() bool {
	return v.Text != "" || v.Profile != "" || v.State != "all"
}

func (c *console) certificatesPage(w http.ResponseWriter, r *http.Request, who principal) error {
	asked := r.URL.Query()
	v := &certificatesView{frame: c.frame(r, who, "/certificates", "Certificates"), Text: strings.TrimSpace(asked.Get("q")), Profile: asked.Get("profile"),
		State: cmp.Or(asked.Get("state"), "all"), Now: c.cfg.Now(), States: certificateStates(), Later: asked.Get("after") != ""}
	for _, p := range c.cfg.Site().Profiles {
		v.Profiles = append(v.Profiles, p.Name)
	}
	found, next, err := c.search(v.Text, enroll.Query{Profile: v.Profile, State: v.State, After: asked.Get("after"), Limit: certificatePage})
	if errors.Is(err, enroll.ErrQuery) {
		p, _ := problemOf(err)
		v.Wrong = &p
		return c.render(w, p.Status, "certificates", v)
	}
	if err != nil {
		return err
	}
	v.After = next
	for _, info := range found {
		v.Rows = append(v.Rows, certificateLine{rowOf(info, v.Now), lifeOf(info, c.cfg.Enroll.DueFrom(info), v.Now)})
	}
	return c.page(w, "certificates", v)
}

// named is something about a certificate, in words, with what it says.
type named struct {
	Name  string
	Says  []string
	Note  string // more about it
	Plain bool   // Says is text that somebody outside wrote
}

// certificateView is one issued certificate, or what became of a serial that has none.
type certificateView struct {
	frame
	Row       CertificateRow
	Now       time.Time
	DueFrom   time.Time
	Left      expiry
	Details   *Certificate // nil: there is none
	SHA1      string
	Subject   []named
	Names     []named
	Contents  []named
	Authority string
	Chain     []*Certificate // above it, root last
	Begun     time.Time
	State     store.State
	Withheld  bool
	Request   string // id of the held request it was approved from; "" for none
	History   []entry
	Reasons   []reasonChoice
}

// IsOnHold, IsRevoked and IsExpired say which orders make sense.
func (v *certificateView) IsOnHold() bool {
	return v.Row.State == "revoked" && v.Row.Reason == "certificateHold"
}
func (v *certificateView) IsRevoked() bool { return v.Row.State == "revoked" && !v.IsOnHold() }
func (v *certificateView) IsExpired() bool { return v.Row.State == "expired" }

// IsDue: its device should have renewed it.
func (v *certificateView) IsDue() bool {
	return v.Row.State == "active" && v.Row.RenewedBy == "" && !v.Now.Before(v.DueFrom)
}

// Dialog is the one that is open: of an order that can be given as things are (RFC 5280 §5.3.1: of reasons only
// certificateHold is taken back), or "stands", which says why the order of the address cannot be.
func (v *certificateView) Dialog() string {
	can, isOrder := map[string]bool{"revoke": !v.IsRevoked() && !v.IsExpired(), "hold": v.Row.State == "active", "release": v.IsOnHold()}[v.Do]
	switch {
	case !v.IsOperator() || v.Details == nil || !isOrder:
		return ""
	case can:
		return v.Do
	}
	return "stands"
}

// reasonChoice is a reason to revoke, for people.
type reasonChoice struct{ Name, Label, Meaning string }

// reasonChoices are the reasons of RFC 5280 §5.3.1 that an operator gives for good.
func reasonChoices() []reasonChoice {
	return []reasonChoice{
		{"keyCompromise", "The key is known to others", "Lost or stolen device, copied key. The key is never certified again."},
		{"cessationOfOperation", "The device is out of service", "Retired or scrapped; nobody has its key."},
		{"superseded", "Another certificate replaced it", "The device has a newer one."},
		{"affiliationChanged", "The name is not right any more", "Device or person was renamed or moved."},
		{"privilegeWithdrawn", "It should not have one", "The right to a certificate was taken away."},
		{"unspecified", "Another reason", ""},
	}
}

func (c *console) certificatePage(w http.ResponseWriter, r *http.Request, who principal) error {
	v, err := c.certificateView(r, who)
	if err != nil {
		return err
	}
	return c.page(w, "certificate-page", v)
}

func (c *console) certificateView(r *http.Request, who principal) (*certificateView, error) {
	t, err := c.transaction(r)
	if err != nil {
		return nil, err
	}
	info := enroll.CertInfo{
		Serial: t.Serial, Identity: t.Identity, Profile: t.Profile, Protocol: t.Protocol, Issued: t.Decided, NotAfter: t.NotAfter, RevokedAt: t.RevokedAt,
		Reason: t.Reason, Renews: t.Supersedes, RenewedBy: t.SupersededBy, Withheld: t.Withheld,
	}
	v := &certificateView{frame: c.frame(r, who, "/certificates", "Certificate "+t.Serial), Now: c.cfg.Now(), Begun: t.Begun, State: t.State,
		Withheld: t.Withheld, Request: t.Held, Reasons: reasonChoices(), DueFrom: c.cfg.Enroll.DueFrom(info)}
	v.Row, v.Left = rowOf(info, v.Now), lifeOf(info, v.DueFrom, v.Now)
	if len(t.Certificate) > 0 {
		cert, err := x509.ParseCertificate(t.Certificate)
		if err != nil {
			return nil, err
		}
		if v.Details, err = describe(cert); err != nil {
			return nil, err
		}
		sum := sha1.Sum(cert.Raw)
		v.SHA1 = hex.EncodeToString(sum[:])
		v.Subject, v.Names, v.Contents = subjectWords(cert.RawSubject), namesOfCertificate(cert), contentsWords(cert)
		name, above := c.chainAbove(cert)
		v.Authority = name
		for _, a := range above {
			d, err := describe(a)
			if err != nil {
				return nil, err
			}
			v.Chain = append(v.Chain, d)
		}
	}
	v.History, err = c.historyOf(t)
	return v, err
}

// transaction is that of the serial in a path: issued, or begun and come to nothing.
func (c *console) transaction(r *http.Request) (store.Transaction, error) {
	serial, err := serialOf(r)
	if err != nil {
		return store.Transaction{}, err
	}
	t, err := c.cfg.Store.Transaction(serial)
	if errors.Is(err, store.ErrNotFound) {
		return store.Transaction{}, enroll.ErrNoCertificate
	}
	return t, err
}

// chainAbove finds the authority that issued a certificate, and the certificates above it, root last.
func (c *console) chainAbove(cert *x509.Certificate) (authority string, above []*x509.Certificate) {
	for _, a := range c.cfg.Box.Authorities() {
		for _, g := range a.Generations {
			if g.Certificate != nil && bytes.Equal(g.Certificate.RawSubject, cert.RawIssuer) && cert.CheckSignatureFrom(g.Certificate) == nil {
				return a.Name, append([]*x509.Certificate{g.Certificate}, g.Chain...)
			}
		}
	}
	return "", nil
}

// historyWindow is how far from a moment that the box remembers its records may be.
const historyWindow = 10 * time.Second

// historyOf finds the records about a certificate, newest first: near what the box remembers of it, and
// among the newest. It looks at a bounded part of the log; the explorer searches all of it.
func (c *console) historyOf(t store.Transaction) ([]entry, error) {
	type place struct {
		at   time.Time
		text string
	}
	places := []place{{t.Begun, t.Serial}, {t.Decided, t.Serial}, {t.RevokedAt, t.Serial}}
	if t.Held != "" {
		h, err := c.cfg.Store.Held(t.Held)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
		places = append(places, place{h.Since, hex.EncodeToString(h.CSR)}, place{h.Decided, hex.EncodeToString(h.CSR)})
	}
	queries := []store.RecordQuery{{Text: t.Serial, Since: t.Begun.Add(-historyWindow), Limit: 30, Search: 20_000}}
	for _, p := range places {
		if !p.at.IsZero() {
			queries = append(queries, store.RecordQuery{Text: p.text, Since: p.at.Add(-historyWindow), Until: p.at.Add(historyWindow), Limit: 30, Search: 5000})
		}
	}
	var all []audit.Record
	for _, q := range queries {
		page, err := c.cfg.Store.FindRecords(q)
		if err != nil {
			return nil, err
		}
		all = append(all, page.Records...)
	}
	slices.SortFunc(all, func(a, b audit.Record) int { return cmp.Compare(b.Index, a.Index) })
	return entriesOf(slices.CompactFunc(all, func(a, b audit.Record) bool { return a.Index == b.Index })), nil
}

// certificateFile sends a certificate as the address is called: PEM, DER, or PEM with those above it.
func (c *console) certificateFile(w http.ResponseWriter, r *http.Request, _ principal) error {
	t, err := c.transaction(r)
	if err != nil {
		return err
	}
	if len(t.Certificate) == 0 || t.Withheld {
		return enroll.ErrNoCertificate
	}
	_, name, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/certificates/"), "/")
	file := "signet-" + t.Serial
	body, media := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: t.Certificate}), mediaPEM
	switch name {
	case "certificate.der":
		body, media, file = t.Certificate, "application/pkix-cert", file+".cer"
	case "chain.pem":
		cert, err := x509.ParseCertificate(t.Certificate)
		if err != nil {
			return err
		}
		_, above := c.chainAbove(cert)
		for _, a := range above {
			body = append(body, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Raw})...)
		}
		media, file = mediaChain, file+"-chain.pem"
	default:
		file += ".pem"
	}
	w.Header().Set("Content-Disposition", `attachment; filename="`+file+`"`)
	write(w, http.StatusOK, media, body)
	return nil
}

func (c *console) revokeForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.orderRevocation(w, r, who, "revoke", "revoked", func() (string, error) {
		reason := r.PostForm.Get("reason")
		if _, ok := pki.Reasons()[reason]; !ok || reason == "certificateHold" {
			return "", &inputError{"reason", "no reason is chosen", "choose why: it is written down, and the revocation list says it"}
		}
		return reason, nil
	})
}

func (c *console) holdForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.orderRevocation(w, r, who, "hold", "held", func() (string, error) { return "certificateHold", nil })
}

func (c *console) releaseForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.orderRevocation(w, r, who, "release", "released", func() (string, error) { return releasing, nil })
}

// orderRevocation has a certificate revoked for what reason says, and shows the dialog again where that is
// refused.
func (c *console) orderRevocation(w http.ResponseWriter, r *http.Request, who principal, form, notice string, reason func() (string, error)) error {
	if err := readForm(w, r); err != nil {
		return err
	}
	serial, err := serialOf(r)
	if err != nil {
		return err
	}
	why, err := reason()
	if err == nil {
		err = c.cfg.Enroll.Revoke(context.WithoutCancel(r.Context()), serial, why, who.user)
	}
	if err == nil {
		return c.done(w, r, "/certificates/"+serial, notice)
	}
	a, ok := attempted(r, form, err)
	if !ok || errors.Is(err, enroll.ErrNoCertificate) {
		return err
	}
	v, err := c.certificateView(r, who)
	if err != nil {
		return err
	}
	v.Attempt, v.Do = a, form
	return c.page(w, "certificate-page", v)
}
