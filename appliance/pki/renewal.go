package pki

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// ErrIdentity means that a renewal would be for another subject or other names than the certificate
// it renews.
var ErrIdentity = errors.New("the certificate would have another subject or other names than the one it renews")

// Inherit returns the request as a renewal of old: one without subjectAltNames asks for those of old,
// byte for byte. r itself is not changed.
func (r *Request) Inherit(old *x509.Certificate) (*Request, error) {
	if r.RawSAN != nil {
		return r, nil
	}
	names, raw, err := certificateNames(old)
	if err != nil {
		return nil, err
	}
	c := *r
	c.SAN, c.RawSAN = names, raw
	return &c, nil
}

// CheckIdentity compares who the prepared certificate is for with an older one: the subject byte for
// byte, the subjectAltNames as a set. The error is [ErrIdentity] where they differ.
func (p *Prepared) CheckIdentity(old *x509.Certificate) error {
	unsigned, err := p.issuer.algorithm.assemble(p.tbs, []byte{0})
	if err != nil {
		return err
	}
	next, err := x509.ParseCertificate(unsigned)
	if err != nil {
		return fmt.Errorf("reading prepared certificate: %w", err)
	}
	if !bytes.Equal(next.RawSubject, old.RawSubject) {
		return ErrIdentity
	}
	a, _, err := certificateNames(next)
	if err != nil {
		return err
	}
	b, _, err := certificateNames(old)
	if err != nil {
		return err
	}
	if !slices.Equal(nameSet(a), nameSet(b)) {
		return ErrIdentity
	}
	return nil
}

// NotAfter is the end of the prepared certificate.
func (p *Prepared) NotAfter() time.Time { return p.notAfter }

// nameSet sorts names and drops doubles.
func nameSet(names []Name) []string {
	set := make([]string, len(names))
	for i, n := range names {
		set[i] = string(n.Kind) + "\x00" + n.Value
	}
	slices.Sort(set)
	return slices.Compact(set)
}

// certificateNames reads a certificate's subjectAltNames and their DER, nil where it has none.
func certificateNames(cert *x509.Certificate) ([]Name, []byte, error) {
	for _, ext := range cert.Extensions {
		if ext.Id.Equal(oidSubjectAltName) {
			names, err := parseNames(ext.Value)
			if err != nil {
				return nil, nil, fmt.Errorf("reading certificate's subjectAltName: %w", err)
			}
			return names, ext.Value, nil
		}
	}
	return nil, nil, nil
}

// Keep returns the request in the form in which it may be kept until somebody decides on it: a DER
// CertificationRequestInfo of its subject, key and subjectAltNames, which is all that [Issuer.Prepare]
// takes from a request it accepts. It has neither the challenge password nor the signature, which was
// checked when it came.
func (r *Request) Keep() ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		b.AddBytes(r.RawSubject)
		b.AddBytes(r.RawSPKI)
		b.AddASN1(cbasn1.Tag(0).Constructed().ContextSpecific(), r.keepNames)
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encoding request: %w", err)
	}
	return der, nil
}

// keepNames writes the extensionRequest attribute for subjectAltName.
func (r *Request) keepNames(b *cryptobyte.Builder) {
	if r.RawSAN == nil {
		return
	}
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidExtensionRequest)
		b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				addExtension(b, oidSubjectAltName, notCritical, func(b *cryptobyte.Builder) { b.AddBytes(r.RawSAN) })
			})
		})
	})
}

// ParseKept reads what [Request.Keep] wrote. Nothing in it is signed: the caller has to trust the
// place it was kept in. Raw is nil and RawInfo what was kept.
func ParseKept(der []byte) (*Request, error) {
	if len(der) > maxRequest {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are read", ErrRequest, len(der), maxRequest)
	}
	input := cryptobyte.String(append([]byte(nil), der...))
	r := &Request{RawInfo: input}
	var element cryptobyte.String
	if !input.ReadASN1Element(&element, cbasn1.SEQUENCE) || !input.Empty() {
		return nil, fmt.Errorf("%w: not one DER SEQUENCE", ErrRequest)
	}
	if err := r.parseInfo(element); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	return r, nil
}
