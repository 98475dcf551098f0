package webui

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"io"
	"mime"
	"net/http"
	"time"
)

// AuthorityList is the body of GET /api/v1/authorities.
type AuthorityList struct {
	Authorities []AuthorityDetails `json:"authorities" doc:"in the site's order"`
}

// AuthorityDetails is an authority with every key it has had that is still of use.
type AuthorityDetails struct {
	Name        string              `json:"name"`
	Mode        string              `json:"mode" doc:"\"root\", or \"subordinate\" to an authority outside of the box"`
	Protection  string              `json:"protection" doc:"of the CA keys: \"resident\" in the TPM, or \"sealed\" by it"`
	Generations []GenerationDetails `json:"generations" doc:"by number, the oldest first"`
	RAs         []RADetails         `json:"ras" doc:"RA certificates, the newest first"`
}

// GenerationDetails is one key of an authority.
type GenerationDetails struct {
	Number      int          `json:"number" doc:"from 1"`
	State       string       `json:"state" doc:"\"active\": it issues; \"next\": devices can fetch it, it issues nothing yet; \"waiting\" for its chain; \"earlier\": it issues no more"`
	Certificate *Certificate `json:"certificate,omitempty" doc:"absent while it waits"`
	Responder   *Certificate `json:"responder,omitempty" doc:"of OCSP; absent where that is off"`
	Superseded  *time.Time   `json:"superseded,omitempty" doc:"since when it is an earlier one"`
	Published   *Published   `json:"published,omitempty" doc:"where who relies on its certificates asks about them; absent without listener plain"`
	CRL         *CRLDetails  `json:"crl,omitempty" doc:"the CRL that was signed last; absent: none was yet"`
	PEM         string       `json:"pem,omitempty" doc:"the certificate and those above it, root last"`
}

// Published is where a generation's CRL, certificate and OCSP are, as its certificates say.
type Published struct {
	CRL         string `json:"crl"`
	Certificate string `json:"certificate"`
	OCSP        string `json:"ocsp,omitempty" doc:"absent where that is off"`
}

// CRLDetails is what a CRL says of itself (RFC 5280 §5.1.2, §5.2.3).
type CRLDetails struct {
	Number     uint64    `json:"number"`
	ThisUpdate time.Time `json:"this_update"`
	NextUpdate time.Time `json:"next_update" doc:"a newer one is signed when half of the time until then is over and somebody asks for it, or after a revocation"`
}

// RADetails is an RA certificate.
type RADetails struct {
	Certificate *Certificate `json:"certificate"`
	Replaced    *time.Time   `json:"replaced,omitempty" doc:"since when it only decrypts what devices still encrypt to it; absent for the current one"`
}

// AuthorityCSR is the body of GET /api/v1/authorities/{name}/request.
type AuthorityCSR struct {
	Generation    int            `json:"generation" doc:"whose key it is over"`
	CSR           string         `json:"csr" doc:"PKCS#10, PEM"`
	Certification *Certification `json:"certification,omitempty" doc:"the TPM's statement that the key cannot leave it; absent where the site keeps it elsewhere"`
}

// authorityRoutes are what administrators order of authorities, RA keys and TLS certificates.
func authorityRoutes() []route {
	get, put, post, del := http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete
	const one = apiPrefix + "authorities/{name}"
	shown := []response{{http.StatusOK, "the authority as it is now", mediaJSON, AuthorityDetails{}}}
	decided := []response{{http.StatusOK, "done and recorded", mediaJSON, Decision{}}}
	refusals := []int{http.StatusNotFound, http.StatusConflict, http.StatusUnprocessableEntity, http.StatusServiceUnavailable}
	return []route{
		{get, apiPrefix + "authorities", auditor, &operation{
			id: "authorities", summary: "Every authority with its keys and certificates",
			responses: []response{{http.StatusOK, "authorities", mediaJSON, AuthorityList{}}},
		}, (*console).apiAuthorities},
		{get, one, auditor, &operation{
			id: "authority", summary: "One authority with its keys and certificates",
			responses: shown, refusals: []int{http.StatusNotFound},
		}, (*console).apiAuthority},
		{get, one + "/request", auditor, &operation{
			id: "authorityRequest", summary: "The request to have a subordinate's certificate signed, with the TPM's word for its key",
			responses: []response{{http.StatusOK, "made anew, and the same key each time", mediaJSON, AuthorityCSR{}}},
			refusals:  refusals,
		}, (*console).apiAuthorityRequest},
		{put, one + "/chain", administrator, &operation{
			id: "installChain", summary: "Give a subordinate its certificate and those above it up to the root, in any order",
			pem: true, responses: shown, refusals: refusals,
		}, (*console).apiInstallChain},
		{post, one + "/next", administrator, &operation{
			id: "prepareNext", summary: "Make the next key of an authority and publish it; it issues nothing yet",
			responses: shown, refusals: refusals,
		}, (*console).apiPrepareNext},
		{post, one + "/next/activate", administrator, &operation{
			id: "activateNext", summary: "Have the next key issue from now on; this cannot be taken back",
			responses: shown, refusals: refusals,
		}, (*console).apiActivateNext},
		{del, one + "/next", administrator, &operation{
			id: "cancelNext", summary: "Take the next key back before it is active",
			responses: shown, refusals: refusals,
		}, (*console).apiCancelNext},
		{post, apiPrefix + "ra/rotate", administrator, &operation{
			id: "rotateRA", summary: "Make a new RA key; the one before decrypts for a while yet",
			responses: []response{{http.StatusOK, "authorities as they are now", mediaJSON, AuthorityList{}}},
			refusals:  []int{http.StatusConflict, http.StatusServiceUnavailable},
		}, (*console).apiRotateRA},
		{get, apiPrefix + "tls/request", auditor, &operation{
			id: "tlsRequest", summary: "Requests to have the box's TLS certificates signed by another authority: one for each key",
			responses: []response{{http.StatusOK, "PKCS#10 requests, PEM", mediaPEM, nil}},
			refusals:  []int{http.StatusConflict, http.StatusServiceUnavailable},
		}, (*console).apiTLSRequest},
		{put, apiPrefix + "tls/chain", administrator, &operation{
			id: "installTLS", summary: "Show a TLS certificate of another authority from the next connection on",
			pem: true, responses: decided, refusals: []int{http.StatusConflict, http.StatusServiceUnavailable},
		}, (*console).apiInstallTLS},
		{del, apiPrefix + "tls/chain", administrator, &operation{
			id: "dropTLS", summary: "Go back to the TLS certificates the box makes itself",
			responses: decided, refusals: []int{http.StatusConflict, http.StatusServiceUnavailable},
		}, (*console).apiDropTLS},
	}
}

func (c *console) authorities() (AuthorityList, error) {
	out := AuthorityList{Authorities: []AuthorityDetails{}}
	for _, a := range c.cfg.Box.Authorities() {
		d, err := detailsOf(a)
		if err != nil {
			return AuthorityList{}, err
		}
		out.Authorities = append(out.Authorities, d)
	}
	return out, nil
}

func detailsOf(a AuthorityInfo) (AuthorityDetails, error) {
	d := AuthorityDetails{Name: a.Name, Mode: a.Mode, Protection: a.Protection, Generations: []GenerationDetails{}, RAs: []RADetails{}}
	for _, g := range a.Generations {
		one := GenerationDetails{Number: g.Number, State: g.State, Superseded: timeOf(g.Superseded), PEM: chainPEM(g)}
		if at := g.Published; at.CRL != "" {
			one.Published = &Published{CRL: at.CRL, Certificate: at.CAIssuers, OCSP: at.OCSP}
		}
		if g.CRL.Number != 0 {
			one.CRL = &CRLDetails{Number: g.CRL.Number, ThisUpdate: g.CRL.ThisUpdate.UTC(), NextUpdate: g.CRL.NextUpdate.UTC()}
		}
		var err error
		if one.Certificate, err = describeIf(g.Certificate); err != nil {
			return AuthorityDetails{}, err
		}
		if one.Responder, err = describeIf(g.Responder); err != nil {
			return AuthorityDetails{}, err
		}
		d.Generations = append(d.Generations, one)
	}
	for _, ra := range a.RAs {
		cert, err := describe(ra.Certificate)
		if err != nil {
			return AuthorityDetails{}, err
		}
		d.RAs = append(d.RAs, RADetails{Certificate: cert, Replaced: timeOf(ra.Replaced)})
	}
	return d, nil
}

func chainPEM(g GenerationInfo) string {
	if g.Certificate == nil {
		return ""
	}
	var out bytes.Buffer
	for _, cert := range append([]*x509.Certificate{g.Certificate}, g.Chain...) {
		pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}) // a buffer takes everything
	}
	return out.String()
}

// timeOf is nil for the zero time, which JSON cannot leave out.
func timeOf(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// describeIf is nil for no certificate.
func describeIf(cert *x509.Certificate) (*Certificate, error) {
	if cert == nil {
		return nil, nil
	}
	return describe(cert)
}

func (c *console) apiAuthorities(w http.ResponseWriter, r *http.Request, _ principal) error {
	list, err := c.authorities()
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, list)
	return nil
}

func (c *console) apiAuthority(w http.ResponseWriter, r *http.Request, _ principal) error {
	return c.showAuthority(w, r.PathValue("name"))
}

// showAuthority answers with an authority as it is now: what an order made of it.
func (c *console) showAuthority(w http.ResponseWriter, name string) error {
	for _, a := range c.cfg.Box.Authorities() {
		if a.Name != name {
			continue
		}
		d, err := detailsOf(a)
		if err != nil {
			return err
		}
		writeJSON(w, http.StatusOK, mediaJSON, d)
		return nil
	}
	return ErrNoAuthority
}

func (c *console) apiAuthorityRequest(w http.ResponseWriter, r *http.Request, _ principal) error {
	request, err := c.cfg.Box.AuthorityRequest(r.PathValue("name"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, AuthorityCSR{Generation: request.Generation, CSR: string(request.PEM), Certification: request.Certification})
	return nil
}

func (c *console) apiInstallChain(w http.ResponseWriter, r *http.Request, who principal) error {
	name := r.PathValue("name")
	chain, err := readPEM(w, r)
	if err != nil {
		return err
	}
	if err := c.installChain(name, chain, who); err != nil {
		return err
	}
	return c.showAuthority(w, name)
}

func (c *console) apiPrepareNext(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.orderOf(w, r, who, c.prepareNext)
}

func (c *console) apiActivateNext(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.orderOf(w, r, who, c.activateNext)
}

func (c *console) apiCancelNext(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.orderOf(w, r, who, c.cancelNext)
}

// cancelNext takes something back, which whoever is signed in may at any time.
func (c *console) cancelNext(authority string, who principal) error {
	return c.cfg.Box.CancelNext(authority, who.user)
}

// orderOf orders something of the authority in the path.
func (c *console) orderOf(w http.ResponseWriter, r *http.Request, who principal, order func(authority string, who principal) error) error {
	name := r.PathValue("name")
	if err := order(name, who); err != nil {
		return err
	}
	return c.showAuthority(w, name)
}

func (c *console) apiRotateRA(w http.ResponseWriter, r *http.Request, who principal) error {
	if err := c.rotateRA(who); err != nil {
		return err
	}
	return c.apiAuthorities(w, r, who)
}

func (c *console) apiTLSRequest(w http.ResponseWriter, r *http.Request, _ principal) error {
	requests, err := c.cfg.Box.TLSRequest()
	if err != nil {
		return err
	}
	w.Header().Set("Content-Disposition", `attachment; filename="signet-tls.csr.pem"`)
	write(w, http.StatusOK, mediaPEM, requests)
	return nil
}

func (c *console) apiInstallTLS(w http.ResponseWriter, r *http.Request, who principal) error {
	chain, err := readPEM(w, r)
	if err != nil {
		return err
	}
	if err := c.installTLS(chain, who); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, Decision{Outcome: "installed"})
	return nil
}

func (c *console) apiDropTLS(w http.ResponseWriter, r *http.Request, who principal) error {
	if err := c.dropTLS(who); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, Decision{Outcome: "dropped"})
	return nil
}

// readPEM reads certificates, at most 64 KiB of them; what they are worth is for others to say. It never
// returns nothing.
func readPEM(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || mediaType != mediaPEM && mediaType != mediaChain {
		return nil, errMediaTypePEM
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return nil, unreadable(err)
	}
	if block, _ := pem.Decode(body); block == nil || block.Type != "CERTIFICATE" {
		return nil, &inputError{"body", "the body does not begin with a PEM certificate", "send certificates in PEM, each from BEGIN to END; of a chain the signed one and those above it up to the root"}
	}
	return body, nil
}
