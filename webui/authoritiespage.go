package webui

import (
	"archive/zip"
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// authorityPageRoutes are the pages of authorities and the orders given there.
func authorityPageRoutes() []route {
	get, post := http.MethodGet, http.MethodPost
	const one = "/authorities/{name}"
	return []route{
		{get, "/authorities", auditor, nil, (*console).authoritiesPage},
		{post, "/ra/rotate", administrator, nil, (*console).rotateForm},
		{get, one, auditor, nil, (*console).authorityPage},
		{get, one + "/request.pem", auditor, nil, (*console).requestFile},
		{get, one + "/ceremony.zip", auditor, nil, (*console).ceremonyFile},
		{get, one + "/chain.pem", auditor, nil, (*console).chainFile},
		{post, one + "/chain", administrator, nil, (*console).chainForm},
		{post, one + "/next", administrator, nil, (*console).prepareForm},
		{post, one + "/next/activate", administrator, nil, (*console).activateForm},
		{post, one + "/next/cancel", administrator, nil, (*console).cancelForm},
	}
}

// authoritiesView is the page of all authorities.
type authoritiesView struct {
	frame
	Now         time.Time
	Authorities []authorityView
}

// RA is the RA certificate of the first authority that has one: their keys are the same.
func (v *authoritiesView) RA() *Certificate {
	for _, a := range v.Authorities {
		if len(a.RAs) > 0 {
			return a.RAs[0].Certificate
		}
	}
	return nil
}

// authorityView is what pages show of an authority.
type authorityView struct {
	AuthorityDetails
	Subject   string
	Algorithm string   // of its keys
	Room      int      // for authorities below it
	Profiles  []string // that issue from it
	Shown     []generationView
}

// generationView is a generation with what people compare of its certificate.
type generationView struct {
	GenerationDetails
	SHA1  string         // of the certificate, lower-case hex; "" while it waits
	Above []*Certificate // the certificates above, root last
}

// IsRoot: it signs itself.
func (a authorityView) IsRoot() bool { return a.Mode == "root" }

// In is the generation in that state, nil for none.
func (a authorityView) In(state string) *generationView {
	for i := range a.Shown {
		if a.Shown[i].State == state {
			return &a.Shown[i]
		}
	}
	return nil
}

// Certified are the generations that have a certificate, the newest first.
func (a authorityView) Certified() []generationView {
	var all []generationView
	for _, g := range slices.Backward(a.Shown) {
		if g.Certificate != nil {
			all = append(all, g)
		}
	}
	return all
}

// Active, Next and Waiting are the generations in these states, nil for none.
func (a authorityView) Active() *generationView  { return a.In(GenerationActive) }
func (a authorityView) Next() *generationView    { return a.In(GenerationNext) }
func (a authorityView) Waiting() *generationView { return a.In(GenerationWaiting) }

// File is the name that files about the authority have.
func (a authorityView) File() string { return a.Name }

// Sign is what to run where the authority above is kept, beside the request and the extensions.
func (a authorityView) Sign() string {
	return fmt.Sprintf(`openssl req -verify -noout -subject -in %[1]s.csr.pem
openssl x509 -req -in %[1]s.csr.pem -CA root.pem -CAkey root.key -CAcreateserial -days 1825 -sha256 -extfile ca.ext -out %[1]s.pem
cat %[1]s.pem root.pem > %[1]s-chain.pem`, a.File())
}

// Extensions is the file that Sign names ca.ext: what the certificate of a subordinate has to say.
func (a authorityView) Extensions() string {
	return fmt.Sprintf(`basicConstraints=critical,CA:TRUE,pathlen:%d
keyUsage=critical,keyCertSign,cRLSign
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid`, a.Room)
}

func (c *console) authorityViews() ([]authorityView, error) {
	var all []authorityView
	profiles := c.cfg.Site().Profiles
	for _, info := range c.cfg.Box.Authorities() {
		d, err := detailsOf(info)
		if err != nil {
			return nil, fmt.Errorf("authority %s: %w", info.Name, err)
		}
		a := authorityView{AuthorityDetails: d, Subject: info.Subject, Algorithm: keyWords(info.Algorithm), Room: info.PathLen}
		for _, p := range profiles {
			if p.Authority == info.Name {
				a.Profiles = append(a.Profiles, p.Name)
			}
		}
		for i, g := range info.Generations {
			one := generationView{GenerationDetails: d.Generations[i]}
			if g.Certificate != nil {
				sum := sha1.Sum(g.Certificate.Raw)
				one.SHA1 = hex.EncodeToString(sum[:])
			}
			for _, cert := range g.Chain {
				above, err := describe(cert)
				if err != nil {
					return nil, fmt.Errorf("authority %s: %w", info.Name, err)
				}
				one.Above = append(one.Above, above)
			}
			a.Shown = append(a.Shown, one)
		}
		all = append(all, a)
	}
	return all, nil
}

// keyWords writes the name of a kind of key for people.
func keyWords(algorithm string) string {
	return strings.NewReplacer("rsa-", "RSA ", "ecdsa-p", "ECDSA P-").Replace(algorithm)
}

func (c *console) authoritiesPage(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.showAuthorities(w, r, who, nil)
}

func (c *console) showAuthorities(w http.ResponseWriter, r *http.Request, who principal, a *attempt) error {
	view := authoritiesView{frame: c.frame(r, who, "/authorities", "Authorities"), Now: c.cfg.Now()}
	if view.Attempt = a; a != nil {
		view.Do = a.Form
	}
	var err error
	if view.Authorities, err = c.authorityViews(); err != nil {
		return err
	}
	return c.page(w, "authorities", &view)
}

func (c *console) rotateForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.take(w, r, order{form: "rotate", done: "ra-rotated", path: "/authorities",
		do:    func() error { return c.rotateRA(who) },
		again: func(a *attempt) error { return c.showAuthorities(w, r, who, a) },
	})
}

// authorityPageView is the page of one authority.
type authorityPageView struct {
	frame
	authorityView
	Now time.Time
}

func (c *console) authorityPage(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.showAuthorityPage(w, r, who, nil)
}

func (c *console) showAuthorityPage(w http.ResponseWriter, r *http.Request, who principal, a *attempt) error {
	all, err := c.authorityViews()
	if err != nil {
		return err
	}
	for _, one := range all {
		if one.Name != r.PathValue("name") {
			continue
		}
		view := authorityPageView{c.frame(r, who, "/authorities", "Authority "+one.Name), one, c.cfg.Now()}
		if view.Attempt = a; a != nil {
			view.Do = a.Form
		}
		return c.page(w, "authority", &view)
	}
	return ErrNoAuthority
}

// authorityOrder takes an order that a form on an authority's page gives.
func (c *console) authorityOrder(w http.ResponseWriter, r *http.Request, who principal, form, done string, do func(authority string, who principal) error) error {
	name := r.PathValue("name")
	return c.take(w, r, order{form: form, done: done, path: "/authorities/" + name,
		do:    func() error { return do(name, who) },
		again: func(a *attempt) error { return c.showAuthorityPage(w, r, who, a) },
	})
}

func (c *console) chainForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.authorityOrder(w, r, who, "chain", "chain-installed", func(name string, who principal) error {
		chain, err := uploaded(r)
		if err != nil {
			return err
		}
		return c.installChain(name, chain, who)
	})
}

func (c *console) prepareForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.authorityOrder(w, r, who, "prepare", "next-prepared", c.prepareNext)
}

func (c *console) activateForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.authorityOrder(w, r, who, "activate", "next-activated", c.activateNext)
}

func (c *console) cancelForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.authorityOrder(w, r, who, "cancel", "next-cancelled", c.cancelNext)
}

// attach sends body as a file to keep.
func attach(w http.ResponseWriter, name, mediaType string, body []byte) {
	w.Header().Set("Content-Disposition", `attachment; filename="`+name+`"`)
	write(w, http.StatusOK, mediaType, body)
}

// requestFile is a subordinate's request as a file to carry to the authority above.
func (c *console) requestFile(w http.ResponseWriter, r *http.Request, _ principal) error {
	name := r.PathValue("name")
	request, err := c.cfg.Box.AuthorityRequest(name)
	if err != nil {
		return err
	}
	attach(w, name+".csr.pem", mediaPEM, request.PEM)
	return nil
}

// chainFile is the certificate of a generation, the active one where the query names none, and those above it.
func (c *console) chainFile(w http.ResponseWriter, r *http.Request, _ principal) error {
	number, err := queryUint(r, "generation", 0, 0, 1<<31)
	if err != nil {
		return err
	}
	name := r.PathValue("name")
	for _, a := range c.cfg.Box.Authorities() {
		if a.Name != name {
			continue
		}
		for _, g := range a.Generations {
			if g.Certificate != nil && (g.Number == int(number) || number == 0 && g.State == GenerationActive) {
				attach(w, fmt.Sprintf("%s-%d.pem", name, g.Number), mediaChain, []byte(chainPEM(g)))
				return nil
			}
		}
		return &ConflictError{"the authority has no certificate of that generation", "choose one that its page shows"}
	}
	return ErrNoAuthority
}

// ceremonyFile is everything to carry to where the authority above is kept, in one file.
func (c *console) ceremonyFile(w http.ResponseWriter, r *http.Request, _ principal) error {
	name := r.PathValue("name")
	request, err := c.cfg.Box.AuthorityRequest(name)
	if err != nil {
		return err
	}
	all, err := c.authorityViews()
	if err != nil {
		return err
	}
	for _, a := range all {
		if a.Name != name {
			continue
		}
		body, err := packCeremony(a, request, c.cfg.Now())
		if err != nil {
			return fmt.Errorf("packing the ceremony of authority %s: %w", name, err)
		}
		attach(w, name+"-ceremony.zip", "application/zip", body)
		return nil
	}
	return ErrNoAuthority
}

// packCeremony packs a request with what its signer needs: what to run, and the TPM's word for the key.
func packCeremony(a authorityView, request AuthorityRequest, now time.Time) ([]byte, error) {
	var out bytes.Buffer
	pack := zip.NewWriter(&out)
	add := func(name string, content []byte) error {
		f, err := pack.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Deflate, Modified: now.UTC()})
		if err != nil {
			return err
		}
		_, err = f.Write(content)
		return err
	}
	files := []struct {
		name    string
		content []byte
	}{
		{"README.txt", []byte(ceremonyText(a, request))},
		{a.File() + ".csr.pem", request.PEM},
		{"ca.ext", []byte(a.Extensions() + "\n")},
	}
	if c := request.Certification; c != nil {
		files = append(files, []struct {
			name    string
			content []byte
		}{
			{"attest.bin", c.Attest}, {"attest.sig", c.Signature}, {"key.public.bin", c.Public},
			{"attestation-key.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: c.AttestationKey})},
		}...)
	}
	for _, f := range files {
		if err := add(f.name, f.content); err != nil {
			return nil, err
		}
	}
	if err := pack.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// ceremonyText says at the offline machine what to do.
func ceremonyText(a authorityView, request AuthorityRequest) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Certificate of authority %s, generation %d\n%s\n\n", a.Name, request.Generation, a.Subject)
	fmt.Fprintf(&b, "1. Check that the request arrived whole. The SHA-256 of its DER is\n   %[2]s\n\n   openssl req -in %[1]s.csr.pem -outform DER | openssl dgst -sha256\n\n", a.File(), requestHash(request.PEM))
	if request.Certification != nil {
		fmt.Fprintf(&b, "2. The key was made in the box's TPM and cannot leave it. The TPM says so in attest.bin, signed by its\n   attestation key; the SHA-256 of the request is inside it: the last command prints 1.\n\n"+
			"   openssl dgst -sha256 -verify attestation-key.pem -signature attest.sig attest.bin\n"+
			"   od -An -v -tx1 attest.bin | tr -d ' \\n' | grep -c %s\n\n"+
			"   key.public.bin is the key as the TPM describes it (TPMT_PUBLIC), and attest.bin names it (TPMS_ATTEST).\n\n", requestHash(request.PEM))
	} else {
		b.WriteString("2. The site keeps this key sealed by the TPM and not inside it, so there is no statement of the TPM.\n\n")
	}
	fmt.Fprintf(&b, "3. Sign it. root.pem and root.key are the authority's above; its own validity has to last longer than the\n   days you write.\n\n   %s\n\n", strings.ReplaceAll(a.Sign(), "\n", "\n   "))
	fmt.Fprintf(&b, "4. Carry %s-chain.pem back and upload it on the console, at Authorities, %s.\n", a.File(), a.Name)
	return b.String()
}

// requestHash is the SHA-256 of a request's DER, lower-case hex; "" where it is not PEM.
func requestHash(request []byte) string {
	block, _ := pem.Decode(request)
	if block == nil {
		return ""
	}
	if _, err := x509.ParseCertificateRequest(block.Bytes); err != nil {
		return ""
	}
	sum := sha256.Sum256(block.Bytes)
	return hex.EncodeToString(sum[:])
}

// shownGeneration is a generation on the page of its authority.
type shownGeneration struct {
	Name string // of the authority
	G    generationView
	Now  time.Time
}

// Of is one of the authority's generations, for its part of the page.
func (v *authorityPageView) Of(g generationView) shownGeneration {
	return shownGeneration{v.Name, g, v.Now}
}
