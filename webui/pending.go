package webui

import (
	"cmp"
	"crypto/x509"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"signet.internal/appliance/challenge"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

// pendingRoutes are the pages of requests that wait for a person.
func pendingRoutes() []route {
	get := http.MethodGet
	return []route{
		{get, "/pending", auditor, nil, (*console).pendingPage},
		{get, "/pending/{id}", auditor, nil, (*console).requestPage},
	}
}

// pendingView is the list of requests that wait.
type pendingView struct {
	frame
	Requests []PendingRequest
	Now      time.Time
}

// Waited is how long a request waits, in words.
func (v *pendingView) Waited(r PendingRequest) string { return waited(v.Now.Sub(r.Since)) }

func waited(d time.Duration) string {
	if d < time.Minute {
		return "less than a minute"
	}
	return span(d)
}

func (c *console) pendingPage(w http.ResponseWriter, r *http.Request, who principal) error {
	list, err := c.pending()
	if err != nil {
		return err
	}
	v := &pendingView{frame: c.frame(r, who, "/pending", "Approvals"), Requests: list, Now: c.cfg.Now()}
	if v.Done != "" {
		if err := c.sayDecided(&v.frame, r.URL.Query().Get("about")); err != nil {
			return err
		}
	}
	return c.page(w, "approvals", v)
}

// sayDecided completes the notice of a decision: where it leads to, and what is still awaited. It says what the
// store has of the request, whatever the address says.
func (c *console) sayDecided(f *frame, id string) error {
	h, err := c.cfg.Store.Held(id)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	name := visible(cmp.Or(h.Identity, "a device without a name"))
	f.DoneTo = &navItem{Path: "/pending/" + id, Label: "Request of " + name}
	if h.Serial == "" || f.Done != notices["approved"] {
		return nil
	}
	t, err := c.cfg.Store.Transaction(h.Serial)
	if err != nil {
		return err
	}
	switch {
	case t.Withheld:
		f.Done += " The certificate is issued, and handed out once Intune was told: the device’s next try does that."
	case t.State == store.Issued:
		f.Done += " The certificate is issued, and the device gets it when it asks again."
	default:
		return nil // the request's page says how it stands
	}
	f.DoneTo = &navItem{Path: "/certificates/" + h.Serial, Label: "Certificate of " + name}
	return nil
}

// requestView explains one request that waits, or waited.
type requestView struct {
	frame
	enroll.Explanation
	Now        time.Time
	Subject    []named
	Alternates []named
	Key        string
	Asked      []askedExtension
	Would      *issueView
	Refused    *Problem // why approving would be refused now
	Old        *Certificate
	Others     []CertificateRow // active certificates of the same identity
	MoreOthers bool
}

// issueView is the certificate that approving would issue.
type issueView struct {
	Subject  []named
	Names    []named
	Contents []named
	NotAfter time.Time
	Lasts    string
	Changed  bool // its subject is not the one that was asked for
}

// askedExtension is an extension the device asked for.
type askedExtension struct {
	Name    string
	Granted bool // the certificate has one of that kind
}

// IsWaiting: nobody has decided on it.
func (v *requestView) IsWaiting() bool { return v.Decision == "" }

// Waited is how long it waits, Left how long it still does before it counts as denied.
func (v *requestView) Waited() string { return waited(v.Now.Sub(v.Since)) }
func (v *requestView) Left() string   { return span(v.Until.Sub(v.Now)) }

// Kind is what the device asks for.
func (v *requestView) Kind() string {
	if v.Renewed != nil {
		return "renewal"
	}
	return "first certificate"
}

// ProofWords says how the device proved who it is.
func (v *requestView) ProofWords() string {
	switch {
	case v.Renewed != nil && v.Proof == "":
		return "It holds the key of the certificate that it renews."
	case v.Proof == string(challenge.KindStatic):
		return "It knows the challenge that all devices of the profile share. Anybody who knows that could have sent this."
	case v.Proof == string(challenge.KindOneTime):
		return "It sent a one-time challenge that was made for this name."
	case v.Proof == string(challenge.KindSigned), v.Proof == string(challenge.KindIntune):
		return "Its device manager vouches for it with a signed challenge."
	case v.Protocol == enroll.ProtocolEST:
		return "It signed in by password or client certificate."
	}
	return "The profile asks for no challenge."
}

func (c *console) requestPage(w http.ResponseWriter, r *http.Request, who principal) error {
	v, err := c.requestView(r, who)
	if err != nil {
		return err
	}
	return c.page(w, "request", v)
}

func (c *console) requestView(r *http.Request, who principal) (*requestView, error) {
	x, err := c.cfg.Enroll.Explain(r.Context(), r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	title := x.Identity
	if title == "" {
		title = "Request without a name"
	}
	v := &requestView{frame: c.frame(r, who, "/pending", visible(title)), Explanation: x, Now: c.cfg.Now(),
		Subject: subjectWords(x.CSR.RawSubject), Alternates: sanWords(x.CSR.SAN), Key: keyText(x.CSR.PublicKey)}
	if x.CSR.SID != "" {
		v.Alternates = append(v.Alternates, named{Name: "Windows account (SID)", Says: []string{x.CSR.SID}, Plain: true})
	}
	if x.Renewed != nil {
		if v.Old, err = describe(x.Renewed); err != nil {
			return nil, err
		}
	}
	if x.Would != nil {
		v.Would = &issueView{Subject: subjectWords(x.Would.RawSubject), Names: namesOfCertificate(x.Would), Contents: contentsWords(x.Would),
			NotAfter: x.Would.NotAfter.UTC(), Lasts: lasting(x.Would), Changed: !slices.Equal(x.Would.RawSubject, x.CSR.RawSubject)}
	}
	if x.Refused != nil {
		p, known := problemOf(x.Refused)
		if !known {
			p.Title, p.Mend = x.Refused.Error(), "deny it, or mend what is said there and look again"
		}
		v.Refused = &p
	}
	v.Asked = askedOf(x.CSR, x.Would)
	return v, c.addOthers(v)
}

// askedOf are the extensions of a request beside its names, and whether the certificate would have them.
func askedOf(csr *pki.Request, would *x509.Certificate) (asked []askedExtension) {
	for _, e := range csr.Extensions {
		if e.Id.String() == "2.5.29.17" {
			continue // among the names
		}
		a := askedExtension{Name: extensionName(e.Id)}
		if would != nil {
			for _, has := range would.Extensions {
				a.Granted = a.Granted || has.Id.Equal(e.Id)
			}
		}
		asked = append(asked, a)
	}
	return asked
}

// maxOthers is how many other certificates of the same identity a request's page shows.
const maxOthers = 5

// addOthers finds active certificates of the identity that a request names.
func (c *console) addOthers(v *requestView) error {
	if v.Identity == "" {
		return nil
	}
	found, next, err := c.cfg.Enroll.Certificates(enroll.Query{Identity: v.Identity, State: "active", Limit: 20})
	if err != nil {
		return err
	}
	for _, info := range found {
		if !strings.EqualFold(info.Identity, v.Identity) || info.RenewedBy != "" {
			continue
		}
		if len(v.Others) == maxOthers {
			v.MoreOthers = true
			return nil
		}
		v.Others = append(v.Others, rowOf(info, v.Now))
	}
	v.MoreOthers = next != "" && len(v.Others) > 0
	return nil
}

// refusedDecision shows a request again with the decision that was refused.
func (c *console) refusedDecision(w http.ResponseWriter, r *http.Request, who principal, form string, refusal error) error {
	a, ok := attempted(r, form, refusal)
	if !ok || errors.Is(refusal, enroll.ErrNoRequest) {
		return refusal
	}
	v, err := c.requestView(r, who)
	if err != nil {
		return err
	}
	v.Attempt, v.Do = a, form
	return c.page(w, "request", v)
}

func (c *console) approveForm(w http.ResponseWriter, r *http.Request, who principal) error {
	if err := readForm(w, r); err != nil {
		return err
	}
	if err := c.approve(r, r.PathValue("id"), who); err != nil {
		return c.refusedDecision(w, r, who, "approve", err)
	}
	return c.done(w, r, "/pending?about="+url.QueryEscape(r.PathValue("id")), "approved")
}

func (c *console) denyForm(w http.ResponseWriter, r *http.Request, who principal) error {
	if err := readForm(w, r); err != nil {
		return err
	}
	if err := c.deny(r, r.PathValue("id"), r.PostForm.Get("reason"), who); err != nil {
		return c.refusedDecision(w, r, who, "deny", err)
	}
	return c.done(w, r, "/pending?about="+url.QueryEscape(r.PathValue("id")), "denied")
}
