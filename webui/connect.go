package webui

import (
	"bytes"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"rsc.io/qr"
)

// connectRoutes are the pages that say how to enroll a device, and the orders on them.
func connectRoutes() []route {
	get, post := http.MethodGet, http.MethodPost
	return []route{
		{get, "/connect", auditor, nil, (*console).connectPage},
		{get, "/connect/{profile}", auditor, nil, (*console).connectProfilePage},
		{post, "/connect/{profile}", operator, nil, (*console).connectCarried},
		{post, "/connect/{profile}/challenge", operator, nil, (*console).connectMint},
		{get, "/connect/{profile}/mobileconfig", auditor, nil, (*console).mobileconfigPlain},
		{post, "/connect/{profile}/mobileconfig", operator, nil, (*console).mobileconfigMint},
	}
}

// connectView lists the profiles that devices enroll at.
type connectView struct {
	frame
	Profiles []connectCard
}

// connectCard is a profile on that list.
type connectCard struct {
	Profile
	Off     bool
	Waiting bool // its authority has no certificate yet
	Proofs  []evidence
}

// evidence is one thing that a device shows to get its certificate.
type evidence struct {
	Title string
	Text  string
	Mint  bool // an operator makes it on the page
}

func (c *console) connectPage(w http.ResponseWriter, r *http.Request, who principal) error {
	view := &connectView{frame: c.frame(r, who, "/connect", "Connect a device")}
	for _, p := range c.cfg.Site().Profiles {
		x, err := c.recipe(r, p.Name)
		if err != nil {
			return err
		}
		view.Profiles = append(view.Profiles, connectCard{Profile: p, Off: x.off, Waiting: len(x.chain) == 0, Proofs: x.proofs()})
	}
	return c.page(w, "connect", view)
}

// connectProfileView says how to enroll one device at one profile.
type connectProfileView struct {
	frame
	Profile   Profile
	Off       bool
	Waiting   bool   // its authority has no certificate yet
	Name      string // common name of the device, from the address or made up
	Named     bool   // it is from the address
	For       string // key of the guide in the address; "" for none
	Guides    []guide
	Guide     *guide // nil where none is chosen
	Proofs    []evidence
	Addresses []guideField
	CanMint   bool
	Made      *madeSecret   // shown this once; nil where none was made
	CA        *fingerprints // nil while Waiting
	Page      code          // leads a phone here
	Bundle    code          // leads it to the certificates
}

// fingerprints are those of a CA certificate, lower-case hex.
type fingerprints struct {
	*Certificate
	SHA1 string
	MD5  string
}

// code is a text and its picture for cameras.
type code struct {
	Text string
	Side int    // of the picture, in modules with the margin
	Path string // of an SVG path: the dark modules
}

// recipe is what guides are written from: a profile as devices see it, and the device.
type recipe struct {
	profile Profile
	scep    *SCEPProfile        // nil where nothing can be enrolled over SCEP
	est     *ESTProfile         // nil where it is off
	chain   []*x509.Certificate // of the profile's authority, its own first, root last; empty while it waits
	tls     []*x509.Certificate // roots that verify the box's listeners
	off     bool
	site    string
	console string      // origin of the console as the browser knows it
	name    string      // of the device; fits deviceName
	made    *madeSecret // nil where none was made
	known   string      // the challenge that all devices share, where it is public
	others  []string
}

// madeSecret is a secret that the box made: the page that answers shows it this once, and hands it on to the guides
// in the body of a form. It is in no address, and the box forgets it.
type madeSecret struct {
	Kind    string
	Secret  string
	User    string    // of a password
	CN      string    // of the one device it is for; "" for any
	Expires time.Time // zero where it does not, and where it was handed on
}

// Kinds of secrets that devices prove themselves with.
const (
	kindOneTime  = "one-time"
	kindShared   = "challenge"
	kindPassword = "password"
)

// secretText is what the box makes: in commands and settings it stands for itself.
var secretText = regexp.MustCompile(`^[A-Za-z0-9_-]{1,128}$`)

// carry takes a secret that a form handed on.
func (x *recipe) carry(r *http.Request) error {
	m := &madeSecret{Kind: r.PostForm.Get("kind"), Secret: r.PostForm.Get("secret"), User: r.PostForm.Get("user")}
	if m.Secret == "" {
		return nil
	}
	if m.Kind == kindOneTime {
		m.CN = r.PostForm.Get("cn")
	}
	isUser := x.est != nil && slices.Contains(x.est.Users, m.User)
	if !secretText.MatchString(m.Secret) || m.Kind != kindOneTime && m.Kind != kindShared && (m.Kind != kindPassword || !isUser) || m.Kind == kindOneTime && !deviceName.MatchString(m.CN) {
		return &inputError{"secret", "what was handed on to this page is no secret that the box makes", "go back to the page that made it, or make another"}
	}
	x.made = m
	return nil
}

// secretOf is the secret that was made, if it is of one of these kinds; else "".
func (x *recipe) secretOf(kinds ...string) string {
	if x.made == nil || !slices.Contains(kinds, x.made.Kind) {
		return ""
	}
	return x.made.Secret
}

// guidesFor are the guides that take what was made for a device of a profile.
func (c *console) guidesFor(r *http.Request, profile string, made *madeSecret) ([]guide, error) {
	x, err := c.recipe(r, profile)
	if err != nil || !x.isReady() || made.CN != "" && !deviceName.MatchString(made.CN) {
		return nil, err
	}
	x.made = made
	return slices.DeleteFunc(x.guides(), func(g guide) bool {
		isIn := g.Apple && made.Kind != kindPassword || slices.ContainsFunc(g.Steps, func(s guideStep) bool { return strings.Contains(s.Code, made.Secret) })
		return !isIn
	}), nil
}

// deviceName is what a device can be called on the page: it goes into commands and subjects as it is.
// The API takes any name.
var deviceName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$`)

const exampleName = "device-1.example.com"

// recipe collects what is known of a profile. ErrNoProfile is its refusal.
func (c *console) recipe(r *http.Request, profile string) (*recipe, error) {
	site := c.cfg.Site()
	i := slices.IndexFunc(site.Profiles, func(p Profile) bool { return p.Name == profile })
	if i < 0 {
		return nil, ErrNoProfile
	}
	x := &recipe{profile: site.Profiles[i], site: site.Name, console: "https://" + r.Host, name: exampleName}
	for _, p := range c.cfg.SCEP() {
		if p.Name == profile && len(x.profile.SCEP) > 0 {
			x.scep = &p
		}
		if p.Name != profile && (p.Signed != nil || p.AsksIntune) {
			x.others = append(x.others, p.Name)
		}
	}
	for _, p := range c.cfg.EST() {
		if p.Name == profile && len(x.profile.EST) > 0 {
			x.est = &p
		}
	}
	for _, a := range c.cfg.Box.Authorities() {
		for _, g := range a.Generations {
			if a.Name == x.profile.Authority && g.State == GenerationActive {
				x.chain = append([]*x509.Certificate{g.Certificate}, g.Chain...)
			}
		}
	}
	settings, err := c.cfg.Box.Settings(profile)
	if err != nil && !errors.Is(err, ErrNoProfile) {
		return nil, err
	}
	x.off = settings.Off != nil
	if settings.Challenge != nil {
		x.known = settings.Challenge.Public
	}
	x.tls, err = c.tlsRoots()
	return x, err
}

// tlsRoots are the certificates that verify what the box's listeners show: the one above it where that is
// in the CA bundle, else the whole bundle.
func (c *console) tlsRoots() ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for rest := c.cfg.CABundle(); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("reading the CA bundle: %w", err)
		}
		all = append(all, cert)
	}
	shown := c.cfg.Box.TLS()
	for _, root := range all {
		if len(shown) > 0 && shown[0].Certificate.CheckSignatureFrom(root) == nil {
			return []*x509.Certificate{root}, nil
		}
	}
	return all, nil
}

func (c *console) connectProfilePage(w http.ResponseWriter, r *http.Request, who principal) error {
	x, err := c.recipe(r, r.PathValue("profile"))
	if err != nil {
		return err
	}
	view, err := c.connectProfileView(r, who, x, r.URL.Query())
	if err != nil {
		return err
	}
	return c.page(w, "connect-profile", view)
}

// connectProfileView fills the page. values are of the address, or of a form that was sent: cn is the
// device's name, for the guide.
func (c *console) connectProfileView(r *http.Request, who principal, x *recipe, values url.Values) (*connectProfileView, error) {
	v := &connectProfileView{frame: c.frame(r, who, "/connect", "Connect a device to "+x.profile.Name), Profile: x.profile, Off: x.off, Waiting: len(x.chain) == 0}
	if cn := values.Get("cn"); cn != "" {
		if deviceName.MatchString(cn) {
			x.name, v.Named = cn, true
		} else {
			v.Attempt, _ = attempted(r, "device", badName())
			v.Attempt.Values = values
		}
	}
	v.Name, v.For, v.Proofs, v.Made = x.name, values.Get("for"), x.proofs(), x.made
	if v.Waiting {
		return v, nil
	}
	v.Addresses = x.addresses()
	v.CanMint = slices.ContainsFunc(v.Proofs, func(p evidence) bool { return p.Mint })
	v.Guides = x.guides()
	for i := range v.Guides {
		if v.Guides[i].Key == v.For {
			v.Guide = &v.Guides[i]
		}
	}
	ca, err := describe(x.chain[0])
	if err != nil {
		return nil, err
	}
	v.CA = &fingerprints{Certificate: ca, SHA1: hexOf(sha1Of(x.chain[0])), MD5: hexOf(md5Of(x.chain[0]))}
	address := url.URL{Path: "/connect/" + x.profile.Name}
	if v.Named {
		address.RawQuery = url.Values{"cn": {x.name}}.Encode()
	}
	if v.Page, err = newCode(x.console + address.String()); err != nil {
		return nil, err
	}
	v.Bundle, err = newCode(x.console + "/api/v1/ca-bundle")
	return v, err
}

func badName() error {
	return &inputError{"cn", "this name cannot be written into a device’s settings as it is",
		"use at most 64 letters, digits, dots, hyphens and underscores; signet challenge makes challenges for any name"}
}

func hexOf(sum []byte) string { return hex.EncodeToString(sum) }

func sha256Of(c *x509.Certificate) []byte { sum := sha256.Sum256(c.Raw); return sum[:] }

// sha1Of and md5Of are what older devices show of a CA certificate for people to compare.
func sha1Of(c *x509.Certificate) []byte { sum := sha1.Sum(c.Raw); return sum[:] }
func md5Of(c *x509.Certificate) []byte  { sum := md5.Sum(c.Raw); return sum[:] }

// proofs say what devices show to get their first certificate, the simplest for people first.
func (x *recipe) proofs() []evidence {
	var all []evidence
	add := func(title, format string, args ...any) {
		all = append(all, evidence{Title: title, Text: fmt.Sprintf(format, args...)})
	}
	oneTime := x.scep != nil && x.scep.OneTime || x.est != nil && x.est.OneTime
	if oneTime {
		add("A challenge of its own", "Good once, for one named device. An operator makes it here.")
		all[0].Mint = true
	}
	if s := x.scep; s != nil {
		if s.Static && x.known != "" {
			add("The challenge that all devices share", "It is the demo’s, which everybody knows: %s", x.known)
		} else if s.Static {
			add("The challenge that all devices share", "The box keeps only its hash. Ask whoever made the site for it; an administrator can replace it at the profile.")
		}
		if s.Signed != nil || s.AsksIntune {
			add("A challenge of Intune’s", "Intune gives it to each device. There is nothing to type.")
		}
		if s.MTLSFile != "" {
			add("A certificate it was made with, besides the challenge", "From an authority in %s, at the address with scep-mtls.", s.MTLSFile)
		}
	}
	if e := x.est; e != nil {
		for _, user := range e.Users {
			add("User name and password, over EST", "The user is %s. The box keeps only the password’s hash.", user)
		}
		if e.Trust != nil {
			add("A certificate it was made with, over EST", "From an authority in %s. Nothing has to be typed.", e.Trust.File)
		}
	}
	return all
}

// addresses are all of the profile's, with what tells those of one protocol apart: the second over TLS is
// the one of a legacy listener.
func (x *recipe) addresses() []guideField {
	var all []guideField
	seen := map[string]bool{}
	add := func(label, address string) {
		switch {
		case !strings.HasPrefix(address, "https://"):
			label += ", without TLS"
		case seen[label]:
			label += ", for TLS 1.2 too"
		default:
			seen[label] = true
		}
		all = append(all, guideField{label, address, true})
	}
	for _, u := range x.profile.SCEP {
		if isMTLS(u) {
			add("SCEP with a certificate", u)
		} else {
			add("SCEP", u)
		}
	}
	for _, u := range x.profile.EST {
		add("EST", u)
	}
	return all
}

// connectCarried is the page with a secret that a page before it made.
func (c *console) connectCarried(w http.ResponseWriter, r *http.Request, who principal) error {
	if err := readForm(w, r); err != nil {
		return err
	}
	x, err := c.recipe(r, r.PathValue("profile"))
	if err != nil {
		return err
	}
	if err := x.carry(r); err != nil {
		return err
	}
	view, err := c.connectProfileView(r, who, x, r.PostForm)
	if err != nil {
		return err
	}
	return c.page(w, "connect-profile", view)
}

// connectMint makes a one-time challenge for the device and shows it, this once, in the guide.
func (c *console) connectMint(w http.ResponseWriter, r *http.Request, who principal) error {
	x, view, err := c.mintFor(w, r, who, "mint")
	if err != nil {
		return err
	}
	if view == nil {
		if view, err = c.connectProfileView(r, who, x, r.PostForm); err != nil {
			return err
		}
	}
	return c.page(w, "connect-profile", view)
}

// mintFor makes the challenge that a form of the page asks for. Where it is refused, view is the page
// that says so at the form.
func (c *console) mintFor(w http.ResponseWriter, r *http.Request, who principal, form string) (x *recipe, view *connectProfileView, err error) {
	if err := readForm(w, r); err != nil {
		return nil, nil, err
	}
	if x, err = c.recipe(r, r.PathValue("profile")); err != nil {
		return nil, nil, err
	}
	refusal := badName()
	if cn := r.PostForm.Get("cn"); deviceName.MatchString(cn) {
		x.name = cn
		made := &madeSecret{Kind: kindOneTime, CN: cn}
		refusal = c.once(r, who, func() (err error) {
			made.Secret, made.Expires, err = c.mint(who, Mint{Profile: x.profile.Name, CN: cn, Actor: who.user, Source: c.cfg.Source(r).String()})
			return err
		})
		x.made = made
	}
	if refusal == nil {
		return x, nil, nil
	}
	x.made = nil
	a, known := attempted(r, form, refusal)
	if !known {
		return nil, nil, refusal
	}
	if form == "apple" { // the one form that is in a guide, which has to be there for it to say what is wrong
		r.PostForm.Set("for", form)
	}
	if view, err = c.connectProfileView(r, who, x, r.PostForm); err != nil {
		return nil, nil, err
	}
	view.Attempt = a
	return x, view, nil
}

// newCode makes the QR code of a text.
func newCode(text string) (code, error) {
	picture, err := qr.Encode(text, qr.M)
	if err != nil {
		return code{}, fmt.Errorf("making a QR code: %w", err)
	}
	const margin = 4 // modules, as ISO/IEC 18004 §6.3.8 wants
	var path bytes.Buffer
	for y := range picture.Size {
		for x := 0; x < picture.Size; x++ {
			run := 0
			for x+run < picture.Size && picture.Black(x+run, y) {
				run++
			}
			if run > 0 {
				fmt.Fprintf(&path, "M%d %dh%dv1h-%dz", x+margin, y+margin, run, run)
				x += run
			}
		}
	}
	return code{Text: text, Side: picture.Size + 2*margin, Path: path.String()}, nil
}
