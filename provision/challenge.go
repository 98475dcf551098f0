package provision

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"regexp"
	"strings"
	"time"

	"signet.internal/appliance/challenge/phc"
	"signet.internal/appliance/pki"
)

// readChallenges reads the kinds of challenge a profile takes; none is a problem.
func (l *loader) readChallenges(o, scep *object, profile string) Challenges {
	var c Challenges
	before := len(o.d.problems)
	challenges := scep.object("challenges", "static", "one_time", "signed", "intune")
	c.StaticHash = readStatic(challenges.object("static", "hash"))
	if oneTime := challenges.object("one_time", "ttl"); oneTime != nil {
		c.OneTime = readOneTime(oneTime)
	}
	if signed := challenges.object("signed", "certificates", "issuer", "audience", "validity", "skew", "per_device_24h"); signed != nil {
		c.Signed = l.readSigned(signed)
	}
	if intune := challenges.object("intune", "tenant", "client_id", "roots", "algorithm"); intune != nil {
		c.Intune = l.readIntune(intune)
	}
	if len(o.d.problems) == before && len(c.Kinds()) == 0 {
		o.d.failf(o.d.lineOf("scep.challenges.static"), "run `signet hash` and write scep: {challenges: {static: {hash: \"…\"}}}",
			"profile %s has no challenge: nothing would tell its devices from strangers", profile)
	}
	return c
}

func readStatic(o *object) string {
	o.require("hash", "run `signet hash` and write hash: \"…\"")
	return readHash(o)
}

// readHash reads the hash of a challenge or a password; "" is a problem that was reported.
func readHash(o *object) string {
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

// readIntune reads how Microsoft's validation service is asked.
func (l *loader) readIntune(o *object) *Intune {
	c := &Intune{Algorithm: "RS256"} // which every TPM can do
	o.require("tenant", "write the tenant of Entra: its GUID, or a domain such as example.onmicrosoft.com")
	o.require("client_id", "write the application (client) id that Entra shows for the registered application")
	o.require("roots", "write roots: trust/microsoft.pem, a file with the CA certificates Microsoft's servers chain to: the box has none of its own")
	guid := regexp.MustCompile(`^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`)
	if s, ok := o.text("tenant"); ok {
		if !guid.MatchString(s) && (!strings.Contains(s, ".") || pki.CheckDNSName(s) != nil) {
			o.failf("tenant", "write the tenant's GUID, or a domain of it such as example.onmicrosoft.com", "%q is neither", s)
		}
		c.Tenant = s
	}
	if s, ok := o.text("client_id"); ok {
		if !guid.MatchString(s) {
			o.failf("client_id", "write the GUID that Entra shows as application (client) id", "%q is not a GUID", s)
		}
		c.ClientID = s
	}
	if file, ok := o.text("roots"); ok {
		c.File, c.Roots = file, l.bundle(o, "roots", file, "put the CA certificates Microsoft's servers chain to there")
	}
	if o.has("algorithm") {
		c.Algorithm = o.choice("algorithm", "RS256", "PS256")
	}
	l.needDNS(o, "tenant")
	return c
}

// needDNS reports that a field makes the box look names up where it has nobody to ask.
func (l *loader) needDNS(o *object, field string) {
	if n := l.site.Network; n.Address.IsValid() && len(n.DNS) == 0 {
		o.failf(field, "write dns in network of site.yaml", "the box has no DNS server to find it with")
	}
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
