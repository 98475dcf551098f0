package provision

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"

	"signet.internal/appliance/challenge/phc"
)

// What a profile means where it does not say: generous for a factory's first day behind one router,
// and an end to what a stolen challenge is good for.
const (
	limitPerSource  = 100 // an hour
	limitPerProfile = 500 // an hour
	maxLimit        = 500 // as many as the store remembers of one limit

	signedValidity = time.Hour
	signedSkew     = time.Minute
	signedPerDay   = 3
	maxSkew        = 15 * time.Minute
	maxSigners     = 32
)

// renewalShare is the last part of a certificate's validity it can be renewed in where a profile
// says nothing: a third.
const renewalShare = 3

func readApproval(o *object) Approval {
	var a Approval
	approval := o.object("approval", "default", "manual_if")
	approval.require("default", "write default: auto or default: manual")
	a.Manual = approval.choice("default", "auto", "manual") == "manual"
	if a.Manual && approval.has("manual_if") {
		approval.failf("manual_if", "remove it, or write default: auto", "means nothing while every request waits for approval")
		return a
	}
	manualIf := approval.object("manual_if", "cn_suffix")
	manualIf.require("cn_suffix", "write cn_suffix: [.approve.example.com]")
	a.CNSuffix = manualIf.texts("cn_suffix")
	if manualIf.value("cn_suffix") != nil && len(a.CNSuffix) == 0 {
		manualIf.failf("cn_suffix", "write the ends of common names that wait for approval, or remove manual_if", "no suffix in it")
	}
	for i, suffix := range a.CNSuffix {
		if strings.TrimSpace(suffix) == "" {
			manualIf.failf(fmt.Sprintf("cn_suffix[%d]", i), "write the end of a common name such as .approve.example.com, or default: manual for all", "empty")
		}
	}
	return a
}

// readRenewal reads how p's certificates are renewed. Devices that enroll with signed challenges can
// get one again, so they have to.
func readRenewal(o *object, p Profile) Renewal {
	validity := p.config.Validity
	r := Renewal{Challenge: p.SCEP.Challenges.Signed != nil, Window: validity / renewalShare}
	renewal := o.object("renewal", "proof", "window", "grace")
	if renewal.has("proof") {
		r.Challenge = renewal.choice("proof", "certificate", "certificate+challenge") == "certificate+challenge"
	}
	if d, ok := renewal.duration("window"); ok {
		if d <= 0 || validity > 0 && d > validity {
			renewal.failf("window", "write how long before its end a certificate can be renewed, at most its validity", "%s is not between nothing and validity", renewal.written("window"))
		}
		r.Window = d
	}
	if d, ok := renewal.duration("grace"); ok {
		if validity > 0 && d > validity {
			renewal.failf("grace", "write how long after its end a certificate can still be renewed, at most its validity", "%s is longer than validity", renewal.written("grace"))
		}
		r.Grace = d
	}
	return r
}

// written is a text field as it stands in the file.
func (o *object) written(name string) string {
	s, _ := o.text(name)
	return s
}

func readLimits(o *object) Limits {
	limits := Limits{PerSource: limitPerSource, PerProfile: limitPerProfile}
	if n, ok := o.number("per_source", 0, maxLimit); ok {
		limits.PerSource = int(n)
	}
	if n, ok := o.number("per_profile", 0, maxLimit); ok {
		limits.PerProfile = int(n)
	}
	return limits
}

// readChallenges reads the kinds of challenge a profile takes; none is a problem.
func (l *loader) readChallenges(o, scep *object, profile string) Challenges {
	var c Challenges
	before := len(o.d.problems)
	challenges := scep.object("challenges", "static", "one_time", "signed")
	c.StaticHash = readStatic(challenges.object("static", "hash"))
	if oneTime := challenges.object("one_time", "ttl"); oneTime != nil {
		c.OneTime = readOneTime(oneTime)
	}
	if signed := challenges.object("signed", "certificates", "issuer", "audience", "validity", "skew", "per_device_24h"); signed != nil {
		c.Signed = l.readSigned(signed)
	}
	if len(o.d.problems) == before && c.StaticHash == "" && c.OneTime == nil && c.Signed == nil {
		o.d.failf(o.d.lineOf("scep.challenges.static"), "run `signet hash` and write scep: {challenges: {static: {hash: \"…\"}}}",
			"profile %s has no challenge: nothing would tell its devices from strangers", profile)
	}
	return c
}

// readMTLS reads whose devices the sibling route lets in; nil is off.
func (l *loader) readMTLS(o *object) *MTLS {
	o.require("mode", "write mode: \"off\", optional or required")
	mode := o.choice("mode", "off", "optional", "required")
	if mode == "off" && o.has("bundle") {
		o.failf("bundle", "remove it, or write mode: optional", "means nothing while mode is off")
	}
	if mode == "" || mode == "off" {
		return nil
	}
	m := &MTLS{Required: mode == "required"}
	o.require("bundle", "write bundle: trust/devices.pem, a file with the CA certificates of the devices' certificates")
	if file, ok := o.text("bundle"); ok {
		m.File, m.Certificates = file, l.bundle(o, "bundle", file, "put the CA certificates of the devices' certificates there")
	}
	return m
}

func readStatic(o *object) string {
	hash, ok := o.text("hash")
	if !ok {
		return ""
	}
	if _, err := phc.Parse(hash); err != nil {
		o.failf("hash", "run `signet hash` and paste what it prints, in quotes", "%v", err)
	}
	return hash
}

func readOneTime(o *object) *OneTime {
	c := &OneTime{}
	o.require("ttl", "write ttl: 24h")
	if d, ok := o.duration("ttl"); ok {
		if d < time.Minute || d > 90*24*time.Hour {
			o.failf("ttl", "write a duration from 1m to 90d, such as 24h", "%s is not a usable time", o.written("ttl"))
		}
		c.TTL = d
	}
	return c
}

func (l *loader) readSigned(o *object) *Signed {
	c := &Signed{Validity: signedValidity, Skew: signedSkew, PerDevice24h: signedPerDay}
	o.require("certificates", "write certificates: trust/connector.pem, a file with the certificates of those who sign")
	o.require("issuer", "write the iss the challenges carry")
	o.require("audience", "write the aud the challenges carry: it keeps those made for another box out")
	if file, ok := o.text("certificates"); ok {
		c.File, c.Certificates = file, l.signers(o, file)
	}
	for field, text := range map[string]*string{"issuer": &c.Issuer, "audience": &c.Audience} {
		if s, ok := o.text(field); ok {
			if s == "" {
				o.failf(field, "write what the challenges carry", "empty")
			}
			*text = s
		}
	}
	if d, ok := o.duration("validity"); ok {
		if d < time.Minute || d > 30*24*time.Hour {
			o.failf("validity", "write a duration from 1m to 30d, such as 60m", "%s is not a usable validity", o.written("validity"))
		}
		c.Validity = d
	}
	if d, ok := o.duration("skew"); ok {
		if d > maxSkew || d >= c.Validity {
			o.failf("skew", "write a few seconds, such as 60s", "%s is more than 15m, or not less than validity", o.written("skew"))
		}
		c.Skew = d
	}
	if n, ok := o.number("per_device_24h", 0, maxLimit); ok {
		c.PerDevice24h = int(n)
	}
	return c
}

// bundle reads the certificates of a file in trust/ that a field names. What is wrong inside the file
// is reported where trust/ is read.
func (l *loader) bundle(o *object, field, file, mend string) []*x509.Certificate {
	if path.Dir(file) != trustDir || path.Ext(file) != ".pem" {
		o.failf(field, "put the file in "+trustDir+"/ and write "+trustDir+"/NAME.pem", "%q is not a file in %s/", file, trustDir)
		return nil
	}
	content, err := fs.ReadFile(l.fsys, file)
	if err != nil {
		o.failf(field, mend, "%s: %v", file, pathCause(err))
		return nil
	}
	certificates, _ := parseBundle(file, content, l.now)
	return certificates
}

// signers reads the certificates whose keys sign challenges.
func (l *loader) signers(o *object, file string) []*x509.Certificate {
	certificates := l.bundle(o, "certificates", file, "put the certificates of those who sign challenges there")
	for _, what := range unusableSigners(certificates) {
		o.failf("certificates", signerMend, "%s: %s", file, what)
	}
	return certificates
}

const signerMend = "use a certificate for signing with an RSA key of 2048 bits or more (RS256) or an ECDSA P-256 key (ES256)"

// ReadSigners reads a profile's file of challenge-signing certificates again, as of now. The error is
// [Problems]; then the certificates in use are to be kept.
func ReadSigners(site fs.FS, file string, now time.Time) ([]*x509.Certificate, error) {
	content, err := fs.ReadFile(site, file)
	if err != nil {
		return nil, Problems{{File: file, What: fmt.Sprintf("cannot be read: %v", pathCause(err)), Mend: "make the file readable"}}
	}
	certificates, problems := parseBundle(file, content, now)
	for _, what := range unusableSigners(certificates) {
		problems = append(problems, Problem{File: file, What: what, Mend: signerMend})
	}
	if len(problems) > 0 {
		return nil, problems
	}
	return certificates, nil
}

// unusableSigners says which of the certificates can verify no challenge, and why.
func unusableSigners(certificates []*x509.Certificate) []string {
	var what []string
	if len(certificates) > maxSigners {
		what = append(what, fmt.Sprintf("%d certificates, at most %d can sign challenges", len(certificates), maxSigners))
	}
	for _, cert := range certificates {
		if w := unusableSigner(cert); w != "" {
			what = append(what, w)
		}
	}
	return what
}

// unusableSigner says why no challenge can be verified with a certificate, "" where one can.
func unusableSigner(cert *x509.Certificate) string {
	if cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return "a certificate without key usage digitalSignature signs no challenge"
	}
	switch key := cert.PublicKey.(type) {
	case *rsa.PublicKey:
		if key.N.BitLen() < 2048 || key.N.BitLen() > 8192 {
			return fmt.Sprintf("an RSA key of %d bits signs no challenge", key.N.BitLen())
		}
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() {
			return "an ECDSA key on " + key.Curve.Params().Name + " signs no challenge"
		}
	default:
		return "a key of its kind signs no challenge"
	}
	return ""
}
