// Package provision reads a site: the directory an operator keeps in version control and bakes into
// an image.
//
// Loading is strict and finds everything wrong in one pass, each with file, line and mend. A field
// that is accepted does something; every other field is a problem.
//
// Whoever can change a site's files before it is baked decides who gets certificates. No secret is
// in them but secrets/, which nothing here reads: challenges and passwords are argon2id hashes.
package provision

import (
	"crypto/x509"
	"net/netip"
	"strings"
	"time"

	"signet.internal/appliance/challenge/phc"
	"signet.internal/appliance/pki"
)

// Site is a site whose every check passed.
type Site struct {
	Name       string // lower-case letters, digits, hyphens; at most 32
	Version    string // MAJOR.MINOR.PATCH
	Epoch      uint32 // at least 1
	PublicHost string // DNS name or address devices reach the box by; "" only where listener plain is off
	SecureBoot string // "none"
	Network    Network
	Listeners  Listeners
	// TrustedProxies are the proxies in front of the box; nil: whatever they add to a request is ignored.
	TrustedProxies *TrustedProxies
	Authorities    []Authority // at least one, as written
	RA             RA
	Audit          Audit
	Profiles       []Profile // at least one, in order of file name; exactly one is the default
	Files          []string  // every file of the site that was read, sorted: what belongs in the image
}

// Network is how the box gets its address: DHCP, or Address and Gateway.
type Network struct {
	DHCP    bool
	Address netip.Prefix // the box's own address with the length of its network
	Gateway netip.Addr
	DNS     []netip.Addr
}

// Listeners says which listeners are on.
type Listeners struct {
	EST        bool // :443, TLS 1.3, asks for client certificates
	SCEP       bool // :8443, TLS 1.3
	Console    bool // :9443, TLS 1.3
	Plain      bool // :80
	Legacy     bool // :7443, TLS 1.2 too, asks for client certificates; off unless the site says otherwise
	LegacySCEP bool // :7444, TLS 1.2 too; off unless the site says otherwise
}

// TrustedProxies are believed about where a request came from (X-Forwarded-For).
type TrustedProxies struct {
	Networks []netip.Prefix // at least one; the addresses proxies connect from
	// Certificates, of File in trust/, are whom the client certificate a proxy itself presents must chain
	// to for its X-SSL-Client-Cert to be looked at. nil: that header is never believed.
	File         string
	Certificates []*x509.Certificate
}

// What an authority's certificate is.
const (
	ModeRoot        = "root"        // made by the box, signed by itself
	ModeSubordinate = "subordinate" // signed by somebody else, from the box's request
)

// Authority is one CA.
type Authority struct {
	Name        string
	Mode        string // ModeRoot or ModeSubordinate
	Subject     []byte // DER Name
	SubjectText string // as written
	Algorithm   string // as in KeySpec
	Protection  string // as in KeySpec
	// Validity of a root's certificate; 0 for a subordinate, whose issuer decides.
	Validity time.Duration
	// PathLen is how many authorities there may be below this one (pathLenConstraint, RFC 5280 §4.2.1.9): at
	// most where it signs itself, at least where others sign it. Nil: not said.
	PathLen     *int
	CRLValidity time.Duration // from a CRL's thisUpdate to its nextUpdate
	OCSP        bool          // answered at /ocsp/NAME; only where listener plain is on
}

// RA is the key SCEP clients encrypt to; each authority certifies it.
type RA struct {
	Algorithm  string        // "rsa-2048", "rsa-3072" or "rsa-4096"
	Protection string        // as in KeySpec
	Validity   time.Duration // of the RA certificates
	Overlap    time.Duration // how long a key decrypts on after its successor took over
}

// Profile is one kind of enrollment.
type Profile struct {
	Name      string
	Default   bool
	Authority string // name of one of the site's authorities
	Policy    *pki.Profile
	Approval  Approval
	Renewal   Renewal
	Limits    Limits
	MaxActive int  // certificates of one identity that are good at a time; 0 is no limit
	UniqueKey bool // a key that has a certificate gets none for another identity
	// RevokeOnReplace revokes a certificate once its renewal was issued.
	RevokeOnReplace bool
	Compliance      *Compliance // nil: nobody else is asked
	SCEP            SCEP
	EST             *EST // nil: not served over EST

	config pki.ProfileConfig
}

// Pinned are the kinds of subjectAltNames the profile allows a single value of, which whoever asks
// therefore does not choose.
func (p *Profile) Pinned() []pki.Kind {
	var pinned []pki.Kind
	for _, kind := range []struct {
		kind     pki.Kind
		patterns []string
	}{{pki.DNS, p.config.SAN.DNS}, {pki.Email, p.config.SAN.Email}, {pki.URI, p.config.SAN.URI}, {pki.UPN, p.config.SAN.UPN}} {
		if len(kind.patterns) == 1 && !strings.Contains(kind.patterns[0], "*") && !strings.HasPrefix(kind.patterns[0], "regex:") {
			pinned = append(pinned, kind.kind)
		}
	}
	if len(p.config.SAN.IP) == 1 {
		if network, err := netip.ParsePrefix(p.config.SAN.IP[0]); err == nil && network.IsSingleIP() {
			pinned = append(pinned, pki.IP)
		}
	}
	return pinned
}

// Kinds are the kinds of challenge that are on, as a profile names them.
func (c Challenges) Kinds() []string {
	var kinds []string
	for _, k := range []struct {
		name string
		on   bool
	}{{"static", c.StaticHash != ""}, {"one_time", c.OneTime != nil}, {"signed", c.Signed != nil}, {"intune", c.Intune != nil}} {
		if k.on {
			kinds = append(kinds, k.name)
		}
	}
	return kinds
}

// Approval says which requests wait for an operator.
type Approval struct {
	Manual   bool     // all of them
	CNSuffix []string // where Manual is false: those whose common name ends in one of these, any case
}

// Renewal says when and how a device gets the successor of its certificate.
type Renewal struct {
	Challenge bool          // a valid challenge is needed besides the old certificate
	Window    time.Duration // how long before its end a certificate can be renewed
	Grace     time.Duration // how long after its end it still can
	From      *Bundle       // whose certificates can be renewed here too; nil: only the authority's own
}

// Bundle is a file of certificates in trust/.
type Bundle struct {
	File         string
	Certificates []*x509.Certificate // at least one
}

// Compliance is a webhook that is asked about each request before a certificate is issued.
type Compliance struct {
	URL     string              // https
	File    string              // of the site, in trust/
	Roots   []*x509.Certificate // of File, at least one: whom its server's certificate chains to
	Timeout time.Duration
}

// Limits bound the certificates a profile issues within an hour; 0 is no limit.
type Limits struct {
	PerSource  int // to one source address
	PerProfile int // altogether
}

// SCEP is what a profile says about SCEP.
type SCEP struct {
	On         bool   // the profile is served over SCEP; the other fields mean nothing where it is not
	PlainHTTP  bool   // served on the plain listener too
	LegacyTLS  bool   // served on the legacy listeners too
	RawCSR     bool   // a SignedData around a bare CSR is answered too, over TLS
	Chain      bool   // the CA certificate comes with an issued one
	GetCACert  string // "ra+chain", "ra+ca" or "ra"
	PreviousRA bool   // GetCACert lists RA certificates that were replaced, as long as their keys decrypt
	Legacy     Legacy
	MTLS       *MTLS // nil: devices show no certificate in TLS
	Challenges Challenges
}

// Legacy is the weak cryptography a profile takes from old clients, each switch its own.
type Legacy struct {
	SHA1       bool // digests and signatures
	DES3       bool // triple DES, both ways
	DESDecrypt bool // single DES in requests; no answer is ever in it
	MD5        bool // digests of requests
}

// MTLS is the sibling route of devices that have a certificate of somebody else already. It takes the
// place of nothing: the challenge is needed all the same.
type MTLS struct {
	Required     bool                // the route without is closed
	File         string              // of the site, in trust/
	Certificates []*x509.Certificate // of File, at least one: whose devices are let in
}

// Challenges are the kinds of challenge a profile takes; at least one is on.
type Challenges struct {
	StaticHash string   // argon2id hash of the challenge all devices share; "" is off
	OneTime    *OneTime // nil is off
	Signed     *Signed  // nil is off
	Intune     *Intune  // nil is off
}

// Intune asks Microsoft's validation service about challenges.
type Intune struct {
	Tenant    string              // of Entra: a GUID or a domain
	ClientID  string              // of the application registered there: a GUID
	File      string              // of the site, in trust/
	Roots     []*x509.Certificate // of File, at least one: whom Microsoft's servers chain to
	Algorithm string              // that the credential signs with: "RS256" or "PS256"
}

// OneTime is how long a minted challenge can be used, at most.
type OneTime struct{ TTL time.Duration }

// Signed is whose signed challenges (compact JWS) a profile takes.
type Signed struct {
	File         string              // of the site, in trust/
	Certificates []*x509.Certificate // of File, at least one
	Issuer       string
	Audience     string
	Validity     time.Duration // of a challenge, at most
	Skew         time.Duration // between the signer's clock and the box's
	PerDevice24h int           // certificates for one device within 24 hours; 0 is no limit
}

// EST is what a profile says about EST. At least one of Basic, Challenge, Issued and Bundle is on.
type EST struct {
	LegacyTLS bool        // served on listener legacy too
	Basic     []BasicUser // HTTP Basic; none: off
	Challenge bool        // a one-time challenge as HTTP Basic password
	Issued    bool        // certificates of the profile's authority, for their successors
	// Bundle, of File in trust/, is whose certificates let a device in for its first one; nil: nobody's.
	File           string
	Bundle         []*x509.Certificate
	ChannelBinding string        // "" is off, "optional" or "required" (RFC 7030 §3.5)
	ServerKeyGen   string        // algorithm of keys made for devices, as in KeySpec; "" is off
	RetryAfter     time.Duration // when a device asks again that has to wait; whole seconds
}

// Modes are the ways of authentication that are on, as a profile names them.
func (e *EST) Modes() []string {
	var modes []string
	for _, m := range []struct {
		name string
		on   bool
	}{{"basic", len(e.Basic) > 0}, {"challenge", e.Challenge}, {"issued", e.Issued}, {"bundle", e.Bundle != nil}} {
		if m.on {
			modes = append(modes, m.name)
		}
	}
	return modes
}

// BasicUser is who may authenticate with a password.
type BasicUser struct {
	User string
	Hash string   // argon2id, of the password
	For  []string // names the user may ask certificates for; empty: any the profile allows
}

// KeySpec is one key the box holds.
type KeySpec struct {
	Name       string
	Algorithm  string // "rsa-2048", "rsa-3072", "rsa-4096", "ecdsa-p256" or "ecdsa-p384"
	Protection string // "resident" in the TPM, or "sealed" under its root secret
}

// Key names besides "authority/<name>".
const (
	KeyAuthorityPrefix = "authority/"
	KeyAudit           = "audit"
	KeyAttestation     = "attestation"
	KeyTLSCA           = "tls-ca"
	KeyRA              = "ra"
	KeyTLS             = "tls"
	KeyTLSRSA          = "tls-rsa" // of the certificate old clients are shown on the legacy listeners
	KeyOCSP            = "ocsp"
)

const (
	resident = "resident"
	sealed   = "sealed"
)

// Keys lists every key the box holds for this site, in a fixed order.
func (s *Site) Keys() []KeySpec {
	var keys []KeySpec
	for _, a := range s.Authorities {
		keys = append(keys, KeySpec{KeyAuthorityPrefix + a.Name, a.Algorithm, a.Protection})
	}
	return append(keys,
		KeySpec{KeyAudit, "ecdsa-p256", resident},
		KeySpec{KeyAttestation, "ecdsa-p256", resident},
		KeySpec{KeyTLSCA, "ecdsa-p256", resident},
		KeySpec{KeyRA, s.RA.Algorithm, s.RA.Protection},
		KeySpec{KeyTLS, "ecdsa-p256", sealed},
		KeySpec{KeyTLSRSA, "rsa-2048", sealed},
		KeySpec{KeyOCSP, "ecdsa-p256", sealed},
	)
}

// DemoName is the name of the demo site. Its challenges are published, so a box of that name says on
// every screen that it is not for production.
const DemoName = "demo"

// Demo reports whether this is the demo site.
func (s *Site) Demo() bool { return s.Name == DemoName }

// PublicChallenge is the challenge that a profile's hash is of, where that is published: one of the demo's. It
// is "" for every other hash, also of a profile of the same name.
func PublicChallenge(hash string) string { return published[hash] }

// published are the demo's challenges, by the hashes in its profiles.
var published = map[string]string{
	"$argon2id$v=19$m=65536,t=3,p=1$Zq6FVRCIczoWwwe626BLIA$YtCMCv/Wq1+tyeyIr1An6riI9uL58n7YveG0GBy3jls": "corp-demo-challenge",
	"$argon2id$v=19$m=65536,t=3,p=1$OZcFlWSRrB+9KDEniyNiLA$YbbxlEmAqduQvJ79nF2hbs5Bmjz2uK3gAiu54JgP8HE": "intune-demo-challenge",
	"$argon2id$v=19$m=65536,t=3,p=1$s5lboU7MKn5TWnB5HtQ16A$lyAbx3/kdgv0ALRyeTiqiNLnZ4iPMfgo2xDVha43ShM": "legacy-demo-challenge",
	"$argon2id$v=19$m=65536,t=3,p=1$675f7NcH/SvmwxsmpEw1rw$LdTusWZ5GC29VSAZ0PmxBfaTILFlWsis6hid6hebS2o": "modern-demo-challenge",
}

// HashSecret hashes a challenge or password as profiles hold it:
// "$argon2id$v=19$m=65536,t=3,p=1$salt$hash". The error is always nil.
func HashSecret(secret []byte) (string, error) { return phc.Make(secret), nil }
