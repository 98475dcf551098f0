package pki

import (
	"crypto/elliptic"
	"encoding/asn1"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// ProfileConfig is what a site says about the certificates of one profile. Its fields are named as
// in the site's profile file, and so are the fields of the [ConfigError]s [NewProfile] returns.
type ProfileConfig struct {
	Keys     KeyConfig
	Subject  SubjectConfig
	SAN      SANConfig
	Usage    UsageConfig
	Validity time.Duration // of a certificate; the issuer's own end caps it. 10 minutes to 20 years

	// MustStaple writes the TLS feature extension (RFC 7633): a server that has such a certificate is
	// refused by its clients unless it staples an OCSP response.
	MustStaple bool

	// ADSID keeps the extension by which a domain controller knows the account a certificate logs in
	// ([Request.SID]). Without it the extension is left out of the certificate.
	ADSID bool
}

// KeyConfig says which device keys are accepted; at least one kind has to be.
type KeyConfig struct {
	RSA   *RSAConfig // nil: no RSA keys
	ECDSA []string   // curves: "p256", "p384"; empty: no ECDSA keys
}

// RSAConfig bounds RSA keys.
type RSAConfig struct {
	MinBits int // 2048 to 4096; keys up to 8192 bits are read
}

// SubjectConfig says which attributes a request's subject may hold, and what is made of them.
type SubjectConfig struct {
	Allow []string // short names ("CN", "serialNumber") or dotted OIDs

	// Match holds patterns (see [SANConfig]) by attribute, named as in Allow: every value a request has
	// for that attribute must match one of them.
	Match map[string][]string

	// Template is the subject of the certificates, "" for that of the request. It is written as for
	// [ParseDN], and a value that is {ATTR} stands for the one value the request has for that attribute:
	// "CN={CN},O=Factory 7,C=CH". A request without it, or with several, is refused. A common name is
	// {CN} or a text: nobody would have looked at any other attribute as a name.
	Template string
}

// SANConfig says which subjectAltNames are accepted, by kind; a kind without patterns is refused.
//
// In a pattern '*' stands for any run of characters, and letters match in either case. For DNS a
// leading "*." therefore means every name below, at any depth; "*" alone means every name. A
// requested DNS name that itself holds '*' is always refused, as a common name or a subjectAltName.
//
// A pattern that begins with "regex:" is a regular expression (RE2) of at most 512 characters that has
// to match the whole name, for every kind but IP: "regex:plc-[0-9]{4}\.example\.com". Letters match in
// either case unless it begins with "(?-i)".
type SANConfig struct {
	DNS   []string // "*", "*.example.com", "printer-*.example.com", "host.example.com"
	Email []string // "*", "*@example.com"
	IP    []string // CIDR: "10.0.0.0/8", "::/0"
	URI   []string // "urn:*"; a Windows SID is allowed by "tag:microsoft.com,2022-09-14:sid:…" alone
	UPN   []string // "*@corp.example.com"
}

// UsageConfig is what every certificate of the profile says, whatever the request asked for. Bits
// that make no sense for the device's key type are left out: keyEncipherment and dataEncipherment
// for ECDSA (RFC 5480 §3), keyAgreement for RSA (RFC 3279 §2.3.1).
type UsageConfig struct {
	Key      []string // digitalSignature, nonRepudiation, keyEncipherment, dataEncipherment, keyAgreement
	Extended []string // clientAuth, serverAuth, emailProtection, codeSigning, timeStamping, ipsecIKE, smartcardLogon or a dotted OID
}

// ConfigError is one thing wrong with a [ProfileConfig].
type ConfigError struct {
	Field string // path in the profile, e.g. "keys.rsa.min_bits" or "san.dns[0]"
	What  string // what is wrong with it
	Mend  string // what to write instead
}

func (e *ConfigError) Error() string { return e.Field + ": " + e.What + "; " + e.Mend }

// ConfigErrors is every [ConfigError] found.
type ConfigErrors []*ConfigError

func (es ConfigErrors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Profile is policy that passed the checks of [NewProfile]. It is immutable.
type Profile struct {
	minRSABits int // 0: no RSA keys
	curves     []elliptic.Curve
	subject    []asn1.ObjectIdentifier
	match      []subjectMatch
	template   subjectTemplate
	patterns   map[Kind][]pattern // all but IP
	networks   []netip.Prefix
	usages     []usageBit
	extended   []asn1.ObjectIdentifier
	validity   time.Duration
	mustStaple bool
	adSID      bool
	csrAttrs   []byte // nil: nothing to say
}

// MustStaple reports whether the profile's certificates ask for a stapled OCSP response.
func (p *Profile) MustStaple() bool { return p.mustStaple }

const (
	minValidity = 10 * time.Minute
	maxValidity = 20 * 365 * 24 * time.Hour
)

// NewProfile checks c and compiles it. The error is a [ConfigErrors] with everything found.
func NewProfile(c ProfileConfig) (*Profile, error) {
	b := &profileBuilder{}
	b.keys(c.Keys)
	b.subject(c.Subject)
	b.san(c.SAN)
	b.usage(c.Usage)
	if c.Validity < minValidity || c.Validity > maxValidity {
		b.failf("validity", "write a duration from 10m to 7300d, such as 90d", "%s is not a usable validity", c.Validity)
	}
	b.profile.validity = c.Validity
	b.profile.mustStaple = c.MustStaple
	b.profile.adSID = c.ADSID
	if len(b.errs) > 0 {
		return nil, b.errs
	}
	var err error
	if b.profile.csrAttrs, err = b.profile.csrAttributes(); err != nil {
		return nil, fmt.Errorf("encoding CSR attributes: %w", err)
	}
	return &b.profile, nil
}

type profileBuilder struct {
	profile Profile
	errs    ConfigErrors
}

func (b *profileBuilder) failf(field, mend, format string, args ...any) {
	b.errs = append(b.errs, &ConfigError{Field: field, What: fmt.Sprintf(format, args...), Mend: mend})
}

func (b *profileBuilder) keys(c KeyConfig) {
	if c.RSA == nil && len(c.ECDSA) == 0 {
		b.failf("keys", "allow rsa: {min_bits: 2048}, or ecdsa: [p256, p384], or both", "no kind of key is allowed")
	}
	if c.RSA != nil {
		if c.RSA.MinBits < 2048 || c.RSA.MinBits > 4096 {
			b.failf("keys.rsa.min_bits", "write a number from 2048 to 4096", "%d bits cannot be the minimum", c.RSA.MinBits)
		}
		b.profile.minRSABits = c.RSA.MinBits
	}
	for i, name := range c.ECDSA {
		field := fmt.Sprintf("keys.ecdsa[%d]", i)
		var curve elliptic.Curve
		switch name {
		case "p256":
			curve = elliptic.P256()
		case "p384":
			curve = elliptic.P384()
		default:
			b.failf(field, "write p256 or p384", "curve %q is not supported", name)
			continue
		}
		for _, other := range b.profile.curves {
			if other == curve {
				b.failf(field, "write each curve once", "curve %s twice", name)
			}
		}
		b.profile.curves = append(b.profile.curves, curve)
	}
}

func (b *profileBuilder) subject(c SubjectConfig) {
	for i, name := range c.Allow {
		field := fmt.Sprintf("subject.allow[%d]", i)
		oid, err := ParseSubjectAttribute(name)
		if err != nil {
			b.failf(field, "write a short name such as CN, O, OU or serialNumber, or a dotted OID", "subject attribute %q is unknown", name)
			continue
		}
		for _, other := range b.profile.subject {
			if other.Equal(oid) {
				b.failf(field, "write each attribute once", "subject attribute %s twice", name)
			}
		}
		b.profile.subject = append(b.profile.subject, oid)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Match)) {
		b.subjectMatch(name, c.Match[name])
	}
	if c.Template == "" {
		return
	}
	template, err := parseTemplate(c.Template)
	if err == nil {
		err = checkTemplate(template, b.profile.subject)
	}
	if err != nil {
		b.failf("subject.template", "write for example CN={CN},O=Factory 7,C=CH, where {CN} is the request's", "%v", err)
	}
	b.profile.template = template
}

func (b *profileBuilder) subjectMatch(name string, texts []string) {
	field := "subject.match." + name
	oid, err := ParseSubjectAttribute(name)
	if err != nil || !slices.ContainsFunc(b.profile.subject, oid.Equal) {
		b.failf(field, "write an attribute that is in subject.allow", "%q is not an attribute a request may hold", name)
		return
	}
	if len(texts) == 0 {
		b.failf(field, `write patterns such as "device-*", or leave the attribute out`, "no pattern, so that no value would match")
	}
	m := subjectMatch{oid: oid}
	for i, text := range texts {
		compiled, err := newPattern(text)
		if err == nil && (text == "" || strings.TrimSpace(text) != text) {
			err = errors.New("no value begins or ends with a space")
		}
		if err != nil {
			b.failf(fmt.Sprintf("%s[%d]", field, i), `write a pattern such as "device-*" or "regex:[A-Z]{2}[0-9]+"`, "%q: %v", text, err)
			continue
		}
		m.patterns = append(m.patterns, compiled)
	}
	b.profile.match = append(b.profile.match, m)
}

func (b *profileBuilder) san(c SANConfig) {
	b.profile.patterns = map[Kind][]pattern{}
	for kind, texts := range map[Kind][]string{DNS: c.DNS, Email: c.Email, URI: c.URI, UPN: c.UPN} {
		for i, text := range texts {
			field := fmt.Sprintf("san.%s[%d]", kind, i)
			if what, mend := patternProblem(kind, text); what != "" {
				b.failf(field, mend, "%s", what)
			}
			compiled, err := newPattern(text)
			if err != nil {
				b.failf(field, `write a regular expression such as "regex:plc-[0-9]{4}\\.example\\.com"`, "%q: %v", text, err)
			}
			b.profile.patterns[kind] = append(b.profile.patterns[kind], compiled)
		}
	}
	for i, text := range c.IP {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			b.failf(fmt.Sprintf("san.ip[%d]", i), "write a network such as 10.0.0.0/8 or ::/0", "%q is not a network", text)
			continue
		}
		if prefix != prefix.Masked() {
			b.failf(fmt.Sprintf("san.ip[%d]", i), fmt.Sprintf("write %s, or /%d for the one address", prefix.Masked(), prefix.Addr().BitLen()),
				"%s has address bits outside its mask", text)
		}
		b.profile.networks = append(b.profile.networks, prefix)
	}
}

// patternProblem returns what is wrong with a name pattern and how to mend it, or two empty strings.
func patternProblem(kind Kind, pattern string) (what, mend string) {
	if pattern == "" || strings.TrimSpace(pattern) != pattern || !isASCII(pattern) && kind != UPN {
		return fmt.Sprintf("%q is not a name pattern", pattern), `write a pattern such as "*" or "*.example.com"`
	}
	if strings.HasPrefix(pattern, regexPrefix) {
		return "", ""
	}
	literal := strings.ReplaceAll(pattern, "*", "x")
	switch kind {
	case DNS:
		if strings.HasPrefix(pattern, "*") && pattern != "*" && !strings.HasPrefix(pattern, "*.") {
			bare := strings.TrimLeft(pattern, "*")
			return fmt.Sprintf("%q also matches names that only end alike", pattern), fmt.Sprintf("write %q and, for the name itself, %q", "*."+bare, bare)
		}
		if err := CheckDNSName(literal); err != nil {
			return fmt.Sprintf("%q cannot match a DNS name: %v", pattern, err), `write a pattern such as "*" or "*.example.com"`
		}
	case Email, UPN:
		if pattern != "*" && strings.Count(pattern, "@") != 1 {
			return fmt.Sprintf("%q does not say which domain it means", pattern), `write a pattern such as "*" or "*@example.com"`
		}
	}
	return "", ""
}

func (b *profileBuilder) usage(c UsageConfig) {
	if len(c.Key) == 0 {
		b.failf("usage.key", "write for example [digitalSignature, keyEncipherment]", "no key usage")
	}
	for i, name := range c.Key {
		bit, ok := keyUsageBits()[name]
		if !ok {
			b.failf(fmt.Sprintf("usage.key[%d]", i), "write digitalSignature, nonRepudiation, keyEncipherment, dataEncipherment or keyAgreement",
				"key usage %q is not one a device may have", name)
			continue
		}
		b.profile.usages = append(b.profile.usages, bit)
	}
	if len(c.Extended) == 0 {
		b.failf("usage.extended", "write for example [clientAuth]; without one the certificate would be good for anything", "no extended key usage")
	}
	for i, name := range c.Extended {
		field := fmt.Sprintf("usage.extended[%d]", i)
		text, known := extKeyUsages()[name]
		if !known {
			text = name
		}
		oid, err := parseOID(text)
		if err != nil {
			b.failf(field, "write clientAuth, serverAuth, emailProtection, codeSigning, timeStamping, ipsecIKE, smartcardLogon or a dotted OID",
				"extended key usage %q is unknown", name)
			continue
		}
		if text == "2.5.29.37.0" || text == "1.3.6.1.5.5.7.3.9" {
			b.failf(field, "name the purposes the devices need", "%s is not for devices: it makes the certificate good for anything, or for answering as the authority", name)
		}
		b.profile.extended = append(b.profile.extended, oid)
	}
}

// usageBit is a bit number of KeyUsage (RFC 5280 §4.2.1.3).
type usageBit uint8

const (
	usageDigitalSignature usageBit = 0
	usageNonRepudiation   usageBit = 1
	usageKeyEncipherment  usageBit = 2
	usageDataEncipherment usageBit = 3
	usageKeyAgreement     usageBit = 4
	usageKeyCertSign      usageBit = 5
	usageCRLSign          usageBit = 6
)

func keyUsageBits() map[string]usageBit {
	return map[string]usageBit{
		"digitalSignature": usageDigitalSignature,
		"nonRepudiation":   usageNonRepudiation,
		"keyEncipherment":  usageKeyEncipherment,
		"dataEncipherment": usageDataEncipherment,
		"keyAgreement":     usageKeyAgreement,
	}
}

func extKeyUsages() map[string]string {
	return map[string]string{
		"serverAuth":      "1.3.6.1.5.5.7.3.1", // RFC 5280 §4.2.1.12
		"clientAuth":      "1.3.6.1.5.5.7.3.2",
		"codeSigning":     "1.3.6.1.5.5.7.3.3",
		"emailProtection": "1.3.6.1.5.5.7.3.4",
		"timeStamping":    "1.3.6.1.5.5.7.3.8",
		"ipsecIKE":        "1.3.6.1.5.5.7.3.17", // RFC 4945 §5.1.3.12
		"smartcardLogon":  "1.3.6.1.4.1.311.20.2.2",
	}
}
