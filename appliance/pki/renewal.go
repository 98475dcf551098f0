package pki

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
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
// byte for byte, and one without a SID for that of old. Where it asks for the subject of old, a subject
// template does not make another one of it. r itself is not changed.
func (r *Request) Inherit(old *x509.Certificate) (*Request, error) {
	c := *r
	c.issued = bytes.Equal(r.RawSubject, old.RawSubject)
	if r.RawSAN == nil {
		var err error
		if c.SAN, c.RawSAN, err = certificateNames(old); err != nil {
			return nil, err
		}
	}
	asked := slices.ContainsFunc(r.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidNTDSSecurity) })
	if !asked {
		c.SID = certificateSID(old)
	}
	return &c, nil
}

// CheckIdentity compares who the prepared certificate is for with an older one: the subject byte for
// byte, the subjectAltNames as a set, and the SID, which a renewal may lose (the profile may have stopped
// to keep it) but neither change nor gain. The error is [ErrIdentity] where they differ.
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
	if sid := certificateSID(next); sid != "" && sid != certificateSID(old) {
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

// Versions of a kept request. The second says that its subject is that of the certificate it renews.
const (
	keptRequest = 0
	keptRenewal = 1
)

// Keep returns the request in the form in which it may be kept until somebody decides on it: a DER
// CertificationRequestInfo of its subject, key, subjectAltNames and SID, which is all that
// [Issuer.Prepare] takes from a request it accepts. It has neither the challenge password nor the
// signature, which was checked when it came.
func (r *Request) Keep() ([]byte, error) {
	version := int64(keptRequest)
	if r.issued {
		version = keptRenewal
	}
	extensions, err := r.keptExtensions()
	if err != nil {
		return nil, fmt.Errorf("encoding request: %w", err)
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(version)
		b.AddBytes(r.RawSubject)
		b.AddBytes(r.RawSPKI)
		b.AddASN1(cbasn1.Tag(0).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) {
			if len(extensions) > 0 {
				addAttribute(b, oidExtensionRequest, func(b *cryptobyte.Builder) { addExtensions(b, extensions) })
			}
		})
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encoding request: %w", err)
	}
	return der, nil
}

// keptExtensions are the requested extensions that are kept.
func (r *Request) keptExtensions() ([]pkix.Extension, error) {
	var kept []pkix.Extension
	if r.RawSAN != nil {
		kept = append(kept, pkix.Extension{Id: oidSubjectAltName, Value: r.RawSAN})
	}
	if r.SID != "" {
		value, err := encodeSID(r.SID)
		if err != nil {
			return nil, err
		}
		kept = append(kept, pkix.Extension{Id: oidNTDSSecurity, Value: value})
	}
	return kept, nil
}

// addAttribute writes an Attribute with one value (RFC 2986 §4.1).
func addAttribute(b *cryptobyte.Builder, oid asn1.ObjectIdentifier, value func(*cryptobyte.Builder)) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		b.AddASN1(cbasn1.SET, value)
	})
}

// addExtensions writes Extensions (RFC 5280 §4.1).
func addExtensions(b *cryptobyte.Builder, extensions []pkix.Extension) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, e := range extensions {
			addExtension(b, e.Id, e.Critical, func(b *cryptobyte.Builder) { b.AddBytes(e.Value) })
		}
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
	var info cryptobyte.String
	var version int64
	if !element.ReadASN1(&info, cbasn1.SEQUENCE) || !info.ReadASN1Integer(&version) || version != keptRequest && version != keptRenewal {
		return nil, fmt.Errorf("%w: of a version that is not kept here", ErrRequest)
	}
	r.issued = version == keptRenewal
	return r, nil
}
