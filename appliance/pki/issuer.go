package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

// What an Issuer refuses.
var (
	ErrIssuerExpired = errors.New("the authority's certificate is not valid at this time")
	ErrPrepared      = errors.New("this prepared certificate is not to be signed: it was used, or prepared by another issuer")
)

// Issuer is one authority: its certificate and the key that signs for it. It is safe for concurrent
// use where its signer is.
type Issuer struct {
	cert        *x509.Certificate
	signer      crypto.Signer
	algorithm   signing
	published   Locations
	constraints []*constraintSet // of its certificate, and of those above that Under was told of
	ownNames    []string         // see isOwnName; as comparedDN writes them
}

// NewIssuer binds a CA certificate to its key. The signer's public key has to be the certificate's.
func NewIssuer(cert *x509.Certificate, signer crypto.Signer) (*Issuer, error) {
	algorithm, err := signingFor(signer.Public())
	if err != nil {
		return nil, err
	}
	public, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(signer.Public()) {
		return nil, fmt.Errorf("authority %q: the key is not the certificate's", FormatDN(cert.RawSubject))
	}
	if !cert.BasicConstraintsValid || !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return nil, fmt.Errorf("authority %q: its certificate is not a CA's", FormatDN(cert.RawSubject))
	}
	ownNames := []string{comparedDN(cert.RawSubject)}
	for _, own := range []func([]byte) ([]byte, error){raSubject, responderSubject} {
		if name, err := own(cert.RawSubject); err == nil {
			ownNames = append(ownNames, comparedDN(name))
		}
	}
	return (&Issuer{cert: cert, signer: signer, algorithm: algorithm, ownNames: ownNames}).Under([]*x509.Certificate{cert})
}

// ID names the issuer: the SHA-256 of its name and key, DER. It stays the same where the authority gets
// another certificate for them, and with it the revocation list that its certificates are on.
func (i *Issuer) ID() [sha256.Size]byte {
	return sha256.Sum256(slices.Concat(i.cert.RawSubject, i.cert.RawSubjectPublicKeyInfo))
}

// Certificate returns the authority's own certificate; it must not be changed.
func (i *Issuer) Certificate() *x509.Certificate { return i.cert }

// Publishing returns the same authority with l written into every certificate that [Issuer.Prepare]
// and [Issuer.IssueRA] make from now on.
func (i *Issuer) Publishing(l Locations) *Issuer {
	c := *i
	c.published = l
	return &c
}

// Prepared is a certificate decided on but not yet signed. It is signed at most once, by the issuer
// that prepared it, so that what the store recorded as intent is what gets signed.
type Prepared struct {
	issuer   *Issuer
	serial   []byte
	tbs      []byte
	notAfter time.Time
	used     atomic.Bool
}

// Serial is the serial number in lower-case hex, two digits an octet.
func (p *Prepared) Serial() string { return hex.EncodeToString(p.serial) }

// Template is the DER TBSCertificate: exactly the bytes that [Issuer.Issue] has signed.
func (p *Prepared) Template() []byte { return slices.Clone(p.tbs) }

// Prepare holds a request against a profile and decides the certificate: a fresh random serial; the
// subject, unless the profile has a template for it, and subjectAltName byte for byte as requested; the
// profile's usages; where the authority publishes (see [Issuer.Publishing]); names within its name constraints (see [Issuer.Under]); valid from ten minutes
// before now for the profile's validity, within the authority's own. Nothing is signed. Errors are a
// [*PolicyError] or [ErrIssuerExpired].
func (i *Issuer) Prepare(p *Profile, r *Request, now time.Time) (*Prepared, error) {
	subject, err := p.check(r)
	if err != nil {
		return nil, err
	}
	if i.isOwnName(subject) {
		return nil, &PolicyError{"subject.allow", printable(FormatDN(subject)) + " (the authority's own name)"}
	}
	if err := i.checkConstraints(subject, r.SAN); err != nil {
		return nil, err
	}
	usages := usagesFor(r.PublicKey, p.usages)
	if len(usages) == 0 {
		return nil, &PolicyError{"usage.key", keyKind(r.PublicKey) + " (none of its usages fits them)"}
	}
	extra, err := p.extraExtensions(r)
	if err != nil {
		return nil, err
	}
	prepared, err := i.prepare(certificate{
		subject:   subject,
		spki:      r.RawSPKI,
		usages:    usages,
		extended:  p.extended,
		san:       r.RawSAN,
		published: i.published,
		extra:     extra,
	}, now, p.validity)
	if errors.Is(err, errUnreadable) {
		return nil, &PolicyError{"subject and san", "an encoding that other software could not read"}
	}
	return prepared, err
}

// extraExtensions are what the profile adds to, or keeps of, a request beside names and usages.
func (p *Profile) extraExtensions(r *Request) ([]pkix.Extension, error) {
	var extra []pkix.Extension
	if p.mustStaple {
		extra = append(extra, mustStaple())
	}
	if p.adSID && r.SID != "" {
		value, err := encodeSID(r.SID)
		if err != nil {
			return nil, fmt.Errorf("encoding SID: %w", err)
		}
		extra = append(extra, pkix.Extension{Id: oidNTDSSecurity, Value: value})
	}
	return extra, nil
}

// mustStaple is the TLS feature status_request (RFC 7633 §4; RFC 6066 §8 numbers it 5).
func mustStaple() pkix.Extension {
	return pkix.Extension{Id: oidTLSFeature, Value: []byte{0x30, 0x03, 0x02, 0x01, 0x05}}
}

// isOwnName reports whether a subject reads like the authority's, its registration authority's or its responder's,
// in whatever string types, letter case and spaces, none of which software compares. A device of that name could pass for them: clients take the subject of a
// certificate from GetCACert for granted, and a subject equal to the issuer for self-issued.
func (i *Issuer) isOwnName(subject []byte) bool {
	name := comparedDN(subject)
	return slices.ContainsFunc(i.ownNames, func(own string) bool { return strings.EqualFold(name, own) })
}

// SameDN reports whether two DER Names are the same to software that compares names (RFC 5280 §7.1): string
// types, letter case and repeated spaces aside.
func SameDN(a, b []byte) bool { return strings.EqualFold(comparedDN(a), comparedDN(b)) }

// comparedDN is FormatDN without the spaces that do not count when names are compared (RFC 4518 §2.6.1).
func comparedDN(raw []byte) string {
	n, err := parseName(raw)
	if err != nil {
		return ""
	}
	for _, rdn := range n {
		for i := range rdn {
			rdn[i].value = strings.Join(strings.Fields(rdn[i].value), " ")
		}
	}
	return n.String()
}

// usagesFor leaves out the key usages that make no sense for a type of key.
func usagesFor(key crypto.PublicKey, usages []usageBit) []usageBit {
	var fit []usageBit
	for _, u := range usages {
		switch key.(type) {
		case *rsa.PublicKey:
			if u == usageKeyAgreement { // RFC 3279 §2.3.1
				continue
			}
		case *ecdsa.PublicKey:
			if u == usageKeyEncipherment || u == usageDataEncipherment { // RFC 5480 §3
				continue
			}
		}
		fit = append(fit, u)
	}
	return fit
}

var errUnreadable = errors.New("certificate would be unreadable")

// prepare fills in what the issuer decides. c brings subject, key, usages and names.
func (i *Issuer) prepare(c certificate, now time.Time, validity time.Duration) (*Prepared, error) {
	if now.Before(i.cert.NotBefore) || !now.Before(i.cert.NotAfter) {
		return nil, fmt.Errorf("%w: %q is valid from %s to %s", ErrIssuerExpired, FormatDN(i.cert.RawSubject),
			i.cert.NotBefore.UTC().Format(time.RFC3339), i.cert.NotAfter.UTC().Format(time.RFC3339))
	}
	if err := c.published.check(); err != nil {
		return nil, err
	}
	c.serial = newSerial()
	c.algorithm = i.algorithm
	c.issuer = i.cert.RawSubject
	c.notBefore = latest(now.Add(-backdate), i.cert.NotBefore)
	c.notAfter = earliest(now.Add(validity), i.cert.NotAfter)
	c.authorityKeyID = i.cert.SubjectKeyId
	var err error
	if c.subjectKeyID, err = subjectKeyID(c.spki); err != nil {
		return nil, err
	}
	tbs, err := c.tbs()
	if err != nil {
		return nil, fmt.Errorf("encoding certificate: %w", err)
	}
	if err := c.algorithm.checkReadable(tbs); err != nil {
		return nil, fmt.Errorf("%w: %v", errUnreadable, err)
	}
	return &Prepared{issuer: i, serial: c.serial, tbs: tbs, notAfter: c.notAfter.UTC().Truncate(time.Second)}, nil
}

// Issue has a prepared certificate signed, checks the signature that came back (the signer may be
// hardware) and returns the certificate's DER. After an error the prepared certificate is spent too:
// a signature may exist, so its serial counts as lost.
func (i *Issuer) Issue(p *Prepared) ([]byte, error) {
	if p.issuer != i || !p.used.CompareAndSwap(false, true) {
		return nil, ErrPrepared
	}
	der, err := i.algorithm.sign(i.signer, p.tbs)
	if err != nil {
		return nil, err
	}
	if err := verify(der, i.cert); err != nil {
		return nil, err
	}
	return der, nil
}

// NewRoot makes a self-signed CA certificate over the signer's key. subject is a DER Name (see
// [ParseDN]). It begins an hour before now and ends now plus validity, and allows pathLen authorities
// below it, nil for any number; usages are keyCertSign and cRLSign only, because clients choose whom to
// encrypt to by key usage (RFC 8894 §2.1.2).
func NewRoot(subject []byte, signer crypto.Signer, now time.Time, validity time.Duration, pathLen *int) ([]byte, error) {
	if _, err := parseName(subject); err != nil || isEmptyName(subject) {
		return nil, errors.New("root certificate: subject is empty or not a Name")
	}
	algorithm, err := signingFor(signer.Public())
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		return nil, fmt.Errorf("root certificate: %w", err)
	}
	keyID, err := subjectKeyID(spki)
	if err != nil {
		return nil, err
	}
	c := certificate{
		serial:       newSerial(),
		algorithm:    algorithm,
		issuer:       subject,
		subject:      subject,
		notBefore:    now.Add(-time.Hour),
		notAfter:     now.Add(validity),
		spki:         spki,
		ca:           true,
		maxPath:      pathLen,
		usages:       []usageBit{usageKeyCertSign, usageCRLSign},
		subjectKeyID: keyID,
	}
	tbs, err := c.tbs()
	if err != nil {
		return nil, fmt.Errorf("root certificate: %w", err)
	}
	if err := algorithm.checkReadable(tbs); err != nil {
		return nil, fmt.Errorf("root certificate: %w", err)
	}
	der, err := algorithm.sign(signer, tbs)
	if err != nil {
		return nil, err
	}
	return der, verify(der, nil)
}

// IssueRA makes the authority's RA certificate over an RSA key: digitalSignature and
// keyEncipherment, no extended usage. Its subject is the authority's with " RA" after the common
// name, which it gets where the authority has none.
func (i *Issuer) IssueRA(public crypto.PublicKey, now time.Time, validity time.Duration) ([]byte, error) {
	if _, ok := public.(*rsa.PublicKey); !ok {
		return nil, fmt.Errorf("RA certificate: SCEP clients encrypt to RSA keys only, not to %s", keyKind(public))
	}
	subject, err := raSubject(i.cert.RawSubject)
	if err != nil {
		return nil, fmt.Errorf("RA certificate: %w", err)
	}
	return i.issueOwn(certificate{
		subject:   subject,
		usages:    []usageBit{usageDigitalSignature, usageKeyEncipherment},
		published: i.published,
	}, public, now, validity)
}

// raSubject appends " RA" to the last common name of a DER Name, within its 64 characters.
func raSubject(raw []byte) ([]byte, error) {
	n, err := parseName(raw)
	if err != nil {
		return nil, err
	}
	done := false
	for r := len(n) - 1; r >= 0 && !done; r-- {
		for a := range n[r] {
			if n[r][a].oid.Equal(oidCommonName) && !done {
				value := n[r][a].value
				for utf8.RuneCountInString(value) > 61 {
					_, size := utf8.DecodeLastRuneInString(value)
					value = value[:len(value)-size]
				}
				n[r][a].value = value + " RA"
				done = true
			}
		}
	}
	if !done {
		n = append(n, []attribute{{oid: oidCommonName, value: "RA"}})
	}
	return ParseDN(n.String())
}

// IssueServer makes a TLS server certificate for the box's own listeners. Its common name is the
// first DNS name where that fits, else it has none.
func (i *Issuer) IssueServer(public crypto.PublicKey, names []string, ips []net.IP, now time.Time, validity time.Duration) ([]byte, error) {
	san, err := serverNames(names, ips)
	if err != nil {
		return nil, err
	}
	subject := []byte{0x30, 0x00}
	if len(names) > 0 && len(names[0]) <= 64 {
		if subject, err = ParseDN("CN=" + names[0]); err != nil {
			return nil, err
		}
	}
	serverAuth, err := parseOID(extKeyUsages()["serverAuth"])
	if err != nil {
		return nil, err
	}
	return i.issueOwn(certificate{
		subject:  subject,
		usages:   []usageBit{usageDigitalSignature},
		extended: []asn1.ObjectIdentifier{serverAuth},
		san:      san,
	}, public, now, validity)
}

// issueOwn signs a certificate for one of the box's own keys.
func (i *Issuer) issueOwn(c certificate, public crypto.PublicKey, now time.Time, validity time.Duration) ([]byte, error) {
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("encoding public key: %w", err)
	}
	c.spki = spki
	prepared, err := i.prepare(c, now, validity)
	if err != nil {
		return nil, err
	}
	return i.Issue(prepared)
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
