package provision

import (
	"errors"
	"strings"

	"signet.internal/appliance/pki"
)

// readProfile reads one file of profiles/.
func (l *loader) readProfile(file string, content []byte) {
	d, body := parseDocument(file, content)
	defer func() { l.problems = append(l.problems, d.problems...) }()
	o := d.object(body, "", "name", "default", "authority", "keys", "subject", "san", "usage", "validity", "renewal", "approval", "limits", "scep")
	if o == nil {
		return
	}
	o.require("name", "write a short name such as corp")
	o.require("authority", "write the name of one of the authorities in site.yaml")
	o.require("keys", "write keys: {rsa: {min_bits: 2048}, ecdsa: [p256, p384]}")
	o.require("subject", "write subject: {allow: [CN, O, OU]}")
	o.require("usage", "write usage: {key: [digitalSignature, keyEncipherment], extended: [clientAuth]}")
	o.require("validity", "write validity: 90d")

	var p Profile
	p.Name, _ = o.text("name")
	l.checkProfileName(o, p.Name)
	if p.Default, _ = o.bool("default"); p.Default {
		l.checkDefault(o, p.Name)
	}
	p.Authority, _ = o.text("authority")
	l.checkAuthority(o, p.Authority)
	before := len(d.problems)
	p.config = readPolicy(o)
	if len(d.problems) == before {
		p.Policy = compilePolicy(d, o, p.config)
	}
	p.SCEP = l.readSCEP(o, p.Name)
	p.Approval = readApproval(o)
	p.Renewal = readRenewal(o, p)
	p.Limits = readLimits(o.object("limits", "per_source", "per_profile"))
	l.site.Profiles = append(l.site.Profiles, p)
}

func (l *loader) checkProfileName(o *object, name string) {
	if name == "" {
		return
	}
	checkLabel(o, "name", name)
	// First path segments with a meaning of their own (SCEP clients append them to any URL).
	if name == "cgi-bin" || name == "certsrv" {
		o.failf("name", "choose another name", "%s is a path old SCEP clients ask for", name)
	}
	for _, other := range l.site.Profiles {
		if other.Name == name {
			o.failf("name", "give each profile a name of its own", "profile %s is there twice", name)
		}
	}
}

func (l *loader) checkDefault(o *object, name string) {
	for _, other := range l.site.Profiles {
		if other.Default {
			o.failf("default", "keep default: true in one of them", "both %s and %s are the default", other.Name, name)
			return
		}
	}
}

func (l *loader) checkAuthority(o *object, name string) {
	if name == "" {
		return
	}
	var known []string
	for _, a := range l.site.Authorities {
		if a.Name == name {
			return
		}
		if a.Name != "" {
			known = append(known, a.Name)
		}
	}
	if len(known) == 0 { // site.yaml names none: reported there
		return
	}
	mend := "write one of " + strings.Join(known, ", ")
	if near := nearest(name, known); near != "" {
		mend = "did you mean " + near + "? Or add it to authorities in site.yaml"
	}
	o.failf("authority", mend, "there is no authority %q", name)
}

func readPolicy(o *object) pki.ProfileConfig {
	var c pki.ProfileConfig
	keys := o.object("keys", "rsa", "ecdsa")
	if rsa := keys.object("rsa", "min_bits"); rsa != nil {
		rsa.require("min_bits", "write min_bits: 2048")
		bits, _ := rsa.number("min_bits", 2048, 4096)
		c.Keys.RSA = &pki.RSAConfig{MinBits: int(bits)}
	}
	c.Keys.ECDSA = keys.texts("ecdsa")
	subject := o.object("subject", "allow")
	subject.require("allow", "write allow: [CN, O, OU], or allow: [] for certificates with an empty subject")
	c.Subject.Allow = subject.texts("allow")
	san := o.object("san", "dns", "email", "ip", "uri", "upn")
	c.SAN = pki.SANConfig{DNS: san.texts("dns"), Email: san.texts("email"), IP: san.texts("ip"), URI: san.texts("uri"), UPN: san.texts("upn")}
	usage := o.object("usage", "key", "extended")
	c.Usage = pki.UsageConfig{Key: usage.texts("key"), Extended: usage.texts("extended")}
	c.Validity, _ = o.duration("validity")
	return c
}

// compilePolicy turns what pki refuses into problems at the fields' lines. Fields that are missing
// as a whole were reported before.
func compilePolicy(d *document, o *object, c pki.ProfileConfig) *pki.Profile {
	policy, err := pki.NewProfile(c)
	var refused pki.ConfigErrors
	if errors.As(err, &refused) {
		for _, e := range refused {
			if top, _, _ := strings.Cut(e.Field, "."); o.has(top) {
				d.failf(d.lineOf(e.Field), e.Mend, "%s: %s", e.Field, e.What)
			}
		}
	}
	return policy
}

func (l *loader) readSCEP(o *object, profile string) SCEP {
	s := SCEP{GetCACert: "ra+chain"}
	scep := o.object("scep", "plain_http", "raw_csr", "mtls", "legacy", "reply", "challenges")
	s.PlainHTTP, _ = scep.bool("plain_http")
	s.RawCSR, _ = scep.bool("raw_csr")
	s.MTLS = l.readMTLS(scep.object("mtls", "mode", "bundle"))
	legacy := scep.object("legacy", "sha1", "des3", "des_decrypt", "md5")
	s.Legacy.SHA1, _ = legacy.bool("sha1")
	s.Legacy.DES3, _ = legacy.bool("des3")
	s.Legacy.DESDecrypt, _ = legacy.bool("des_decrypt")
	s.Legacy.MD5, _ = legacy.bool("md5")
	reply := scep.object("reply", "chain", "getcacert")
	s.Chain, _ = reply.bool("chain")
	if reply.has("getcacert") {
		s.GetCACert = reply.choice("getcacert", "ra+chain", "ra+ca", "ra")
	}
	if s.PlainHTTP && !l.site.Listeners.Plain {
		scep.failf("plain_http", "turn on listener plain in site.yaml, or write plain_http: false", "listener plain is off")
	}
	if scep != nil && !s.PlainHTTP && !l.site.Listeners.SCEP {
		o.failf("scep", "turn on listener scep in site.yaml, or write plain_http: true", "no listener serves it")
	}
	if s.MTLS != nil && !l.site.Listeners.EST {
		scep.failf("mtls", "turn on listener est in site.yaml, or write mtls: {mode: \"off\"}", "listener est is off: it alone asks for client certificates")
	}
	if s.MTLS != nil && s.MTLS.Required && s.PlainHTTP {
		scep.failf("plain_http", "write plain_http: false, or mtls: {mode: optional, …}", "no request without a client certificate is answered")
	}
	if s.Legacy.SHA1 && l.site.RA.Protection == resident {
		legacy.failf("sha1", "write ra: {protection: sealed} in site.yaml, or sha1: false", "a resident RA key does not sign SHA-1, which such clients are answered with")
	}
	if s.RawCSR && !l.site.Listeners.SCEP {
		scep.failf("raw_csr", "turn on listener scep in site.yaml, or write raw_csr: false", "such requests are taken over TLS only, and listener scep is off")
	}
	s.Challenges = l.readChallenges(o, scep, profile)
	return s
}
