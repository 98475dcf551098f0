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
	o := d.object(body, "", "name", "default", "authority", "keys", "subject", "san", "ad_sid", "usage", "validity", "must_staple",
		"renewal", "approval", "limits", "compliance", "scep", "est")
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
	p.UniqueKey, _ = o.object("keys").bool("unique")
	l.checkMustStaple(o, p)
	p.SCEP = l.readSCEP(o, p.Name)
	p.Approval = readApproval(o)
	l.readRenewal(o, &p)
	readLimits(o.object("limits", "per_source", "per_profile", "max_active"), &p)
	p.Compliance = l.readCompliance(o.object("compliance", "url", "roots", "timeout"))
	p.EST = l.readEST(o, p)
	checkHeld(o, p)
	l.site.Profiles = append(l.site.Profiles, p)
}

func (l *loader) checkProfileName(o *object, name string) {
	if name == "" {
		return
	}
	checkLabel(o, "name", name)
	// Path segments with a meaning of their own, where a profile's name stands too.
	switch name {
	case "cgi-bin", "certsrv": // SCEP clients append them to any URL
		o.failf("name", "choose another name", "%s is a path old SCEP clients ask for", name)
	case "cacerts", "simpleenroll", "simplereenroll", "csrattrs", "serverkeygen", "fullcmc": // RFC 7030 §3.2.2
		o.failf("name", "choose another name", "%s is an operation of EST", name)
	case "pki", "ocsp":
		o.failf("name", "choose another name", "/%s is where the box publishes", name)
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
	keys := o.object("keys", "rsa", "ecdsa", "unique")
	if rsa := keys.object("rsa", "min_bits"); rsa != nil {
		rsa.require("min_bits", "write min_bits: 2048")
		bits, _ := rsa.number("min_bits", 2048, 4096)
		c.Keys.RSA = &pki.RSAConfig{MinBits: int(bits)}
	}
	c.Keys.ECDSA = keys.texts("ecdsa")
	subject := o.object("subject", "allow", "match", "template")
	subject.require("allow", "write allow: [CN, O, OU], or allow: [] for certificates with an empty subject")
	c.Subject.Allow = subject.texts("allow")
	c.Subject.Match = readMatch(subject)
	if text, ok := subject.text("template"); ok {
		if strings.TrimSpace(text) == "" {
			subject.failf("template", `write a subject such as "CN={CN},O=Factory 7", or remove template`, "empty")
		}
		c.Subject.Template = text
	}
	san := o.object("san", "dns", "email", "ip", "uri", "upn")
	c.SAN = pki.SANConfig{DNS: san.texts("dns"), Email: san.texts("email"), IP: san.texts("ip"), URI: san.texts("uri"), UPN: san.texts("upn")}
	usage := o.object("usage", "key", "extended")
	c.Usage = pki.UsageConfig{Key: usage.texts("key"), Extended: usage.texts("extended")}
	c.Validity, _ = o.duration("validity")
	c.MustStaple, _ = o.bool("must_staple")
	c.ADSID, _ = o.bool("ad_sid")
	return c
}

// readMatch reads the patterns for the values of subject attributes, by attribute.
func readMatch(subject *object) map[string][]string {
	match := subject.object("match")
	if match == nil {
		return nil
	}
	patterns := map[string][]string{}
	for _, attribute := range match.names {
		patterns[attribute] = match.texts(attribute)
	}
	if len(patterns) == 0 {
		subject.failf("match", `write patterns by attribute, such as {CN: ["*.example.com"]}, or remove match`, "no attribute in it")
	}
	return patterns
}

// checkMustStaple refuses certificates that promise what their owner could not get: a server that has
// to staple an OCSP response asks the profile's authority for one.
func (l *loader) checkMustStaple(o *object, p Profile) {
	if !p.config.MustStaple {
		return
	}
	for _, a := range l.site.Authorities {
		if a.Name == p.Authority && !a.OCSP {
			o.failf("must_staple", "turn on listener plain and ocsp of the authority in site.yaml, or write must_staple: false", "authority %s has no OCSP to staple", a.Name)
		}
	}
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
