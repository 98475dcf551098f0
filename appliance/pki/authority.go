package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// NewAuthorityCSR makes the PKCS#10 request, DER, by which another authority certifies the signer's
// key as a CA under subject, a DER Name (see [ParseDN]). It asks for basicConstraints with cA,
// pathLenConstraint where pathLen is not nil, keyCertSign and cRLSign, and the key identifier that this
// package would give the key.
func NewAuthorityCSR(subject []byte, signer crypto.Signer, pathLen *int) ([]byte, error) {
	if _, err := parseName(subject); err != nil || isEmptyName(subject) {
		return nil, errors.New("request for an authority: subject is empty or not a Name")
	}
	algorithm, err := signingFor(signer.Public())
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		return nil, fmt.Errorf("request for an authority: %w", err)
	}
	keyID, err := subjectKeyID(spki)
	if err != nil {
		return nil, err
	}
	identifier, err := asn1.Marshal(keyID)
	if err != nil {
		return nil, fmt.Errorf("request for an authority: %w", err)
	}
	var basic cryptobyte.Builder
	addBasicConstraints(&basic, true, pathLen)
	constraints, err := basic.Bytes()
	if err != nil {
		return nil, fmt.Errorf("request for an authority: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		RawSubject:         subject,
		SignatureAlgorithm: algorithm.x509(),
		ExtraExtensions: []pkix.Extension{
			{Id: oidBasicConstraints, Critical: true, Value: constraints},
			{Id: oidKeyUsage, Critical: true, Value: []byte{0x03, 0x02, 0x01, 0x06}}, // bits 5 and 6
			{Id: oidSubjectKeyID, Critical: false, Value: identifier},
		},
	}, signer)
	if err != nil {
		return nil, fmt.Errorf("signing the request for an authority: %w", err)
	}
	request, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("reading back the request for an authority: %w", err)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the signature that came back is wrong: %w", err)
	}
	return der, nil
}

// IssueResponder makes the certificate of the authority's OCSP responder: digitalSignature, OCSPSigning
// and ocsp-nocheck, so short-lived instead of revocable, and without a location to ask about it (RFC 6960
// §4.2.2.2.1). Its subject is the authority's with another common name, "OCSP".
func (i *Issuer) IssueResponder(public crypto.PublicKey, now time.Time, validity time.Duration) ([]byte, error) {
	subject, err := responderSubject(i.cert.RawSubject)
	if err != nil {
		return nil, fmt.Errorf("OCSP responder certificate: %w", err)
	}
	return i.issueOwn(certificate{
		subject:  subject,
		usages:   []usageBit{usageDigitalSignature},
		extended: []asn1.ObjectIdentifier{oidOCSPSigning},
		extra:    []pkix.Extension{{Id: oidOCSPNoCheck, Value: []byte{0x05, 0x00}}},
	}, public, now, validity)
}

// responderSubject is a DER Name with the common name "OCSP" put behind it.
func responderSubject(raw []byte) ([]byte, error) {
	input := cryptobyte.String(raw)
	var parts cryptobyte.String
	if !input.ReadASN1(&parts, cbasn1.SEQUENCE) || !input.Empty() {
		return nil, errors.New("subject is not a Name")
	}
	last, err := encodeRDN("CN=OCSP")
	if err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(parts)
		b.AddBytes(last)
	})
	return b.Bytes()
}

// IssueLink certifies another CA certificate of the same authority, so that who trusts one generation
// can follow to the other: other's subject, key and extensions, signed by this one's key. The newer
// generation links the older (OldWithNew) and the older the newer (NewWithOld), RFC 4210 §4.4. It ends
// when the first of the two does; two that are not valid at the same time are an error.
func (i *Issuer) IssueLink(other *x509.Certificate, now time.Time) ([]byte, error) {
	if !other.BasicConstraintsValid || !other.IsCA {
		return nil, fmt.Errorf("link to %q: its certificate is not a CA's", FormatDN(other.RawSubject))
	}
	template := &x509.Certificate{
		SerialNumber:       new(big.Int).SetBytes(newSerial()),
		SignatureAlgorithm: i.algorithm.x509(),
		RawSubject:         other.RawSubject,
		NotBefore:          latest(now.Add(-backdate), latest(i.cert.NotBefore, other.NotBefore)).UTC(),
		NotAfter:           earliest(i.cert.NotAfter, other.NotAfter).UTC(),
		AuthorityKeyId:     i.cert.SubjectKeyId, // crypto/x509 leaves it out where subject and issuer are equal
	}
	if !template.NotBefore.Before(template.NotAfter) || !now.Before(template.NotAfter) {
		return nil, fmt.Errorf("%w: %q has ended, or the two generations have no time in common", ErrIssuerExpired, FormatDN(i.cert.RawSubject))
	}
	// What is said about the issuer is not other's to say here.
	aboutIssuer := []asn1.ObjectIdentifier{oidAuthorityKeyID, oidCRLDistributionPoints, oidAuthorityInfoAccess}
	for _, e := range other.Extensions {
		if !slices.ContainsFunc(aboutIssuer, e.Id.Equal) {
			template.ExtraExtensions = append(template.ExtraExtensions, e)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, i.cert, other.PublicKey, i.signer)
	if err != nil {
		return nil, fmt.Errorf("signing link certificate: %w", err)
	}
	return der, verify(der, i.cert)
}
