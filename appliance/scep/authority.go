package scep

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"sync"

	"signet.internal/appliance/cms"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/pki"
)

// Authority is what a profile's authority is at one moment. It is never written to: where something of it changes,
// Profile.Authority returns another one.
type Authority struct {
	CA    *x509.Certificate   // nil: not there yet, and everybody is told to come again
	Chain []*x509.Certificate // above CA, the root last; empty where CA is a root
	RAs   []RA                // the newest first, at least one where CA is set
	Next  *Next               // the CA that follows this one; nil while none is published

	// Earlier are the generations before CA. GetCRL answers with the list of the one that issued the certificate it is asked about.
	Earlier []*pki.Issuer
}

// RA is a registration authority: what devices encrypt to and what signs the answers. Requests to any of an Authority's are opened,
// and answered by the same one; the newest is the one that CA has issued and that GetCACert offers.
type RA struct {
	Certificate *x509.Certificate // with an RSA key
	Signer      crypto.Signer     // the key in it, to sign
	Decrypter   crypto.Decrypter  // and to decrypt; see cms.EnvelopedData.Decrypt for what it is asked
}

// Next is a CA that is published before it issues (RFC 8894 §4.7).
type Next struct {
	CA    *x509.Certificate
	Chain []*x509.Certificate // above it, the root last
}

// offer is an Authority as one profile offers it: checked, with the answers that depend on nothing else. It is built once for each
// Authority.
type offer struct {
	*Authority
	err        error // why there is nothing to offer; the rest is then empty
	caps       []byte
	caCert     []byte
	caCertType string
	above      [][]byte // certificates behind an issued one

	signing sync.Mutex
	next    []byte // the GetNextCACert answer, nil until it was asked for; guarded by signing
}

// offer returns what the profile offers now. The error is enroll.ErrNoAuthority, or says what is wrong with the Authority.
func (p *profile) offer() (*offer, error) {
	a := p.Authority()
	if a == nil || a.CA == nil {
		return nil, enroll.ErrNoAuthority
	}
	o := p.offered.Load()
	if o == nil || o.Authority != a {
		o = newOffer(p.Profile, a)
		p.offered.Store(o)
	}
	return o, o.err
}

func newOffer(p Profile, a *Authority) *offer {
	if err := a.check(); err != nil {
		return &offer{Authority: a, err: err}
	}
	o := &offer{Authority: a, caps: capabilities(p, a.Next != nil)}
	if p.Chain {
		o.above = rawCertificates(append([]*x509.Certificate{a.CA}, a.Chain...))
	}
	certificates := []*x509.Certificate{a.RAs[0].Certificate}
	if p.PreviousRA {
		for _, ra := range a.RAs[1:] {
			certificates = append(certificates, ra.Certificate)
		}
	}
	switch p.GetCACert {
	case getCACertChain:
		certificates = append(append(certificates, a.CA), a.Chain...)
	case getCACertCA:
		certificates = append(certificates, a.CA)
	}
	if len(certificates) == 1 {
		o.caCert, o.caCertType = certificates[0].Raw, "application/x-x509-ca-cert"
		return o
	}
	b, err := cms.CertsOnly(rawCertificates(certificates))
	if err != nil {
		return &offer{Authority: a, err: fmt.Errorf("building the GetCACert answer: %w", err)}
	}
	o.caCert, o.caCertType = b, "application/x-x509-ca-ra-cert"
	return o
}

// check holds an Authority to what the protocol needs of it. Earlier RAs may be of an earlier CA.
func (a *Authority) check() error {
	if len(a.RAs) == 0 {
		return errors.New("the authority has no RA: give it one, with its key")
	}
	for _, ra := range a.RAs {
		if ra.Certificate == nil || ra.Signer == nil || ra.Decrypter == nil {
			return errors.New("the RA certificate or the RA key is missing")
		}
		key, ok := ra.Certificate.PublicKey.(*rsa.PublicKey)
		if !ok {
			return errors.New("the RA certificate has no RSA key, and no SCEP client can encrypt to another")
		}
		if !key.Equal(ra.Signer.Public()) || !key.Equal(ra.Decrypter.Public()) {
			return errors.New("the RA key is not the one in the RA certificate")
		}
	}
	if !bytes.Equal(a.RAs[0].Certificate.RawIssuer, a.CA.RawSubject) {
		return errors.New("the RA certificate was not issued by the CA")
	}
	if a.Next != nil && a.Next.CA == nil {
		return errors.New("the next CA has no certificate")
	}
	return nil
}

// addressed returns the RA that an envelope is for, the newest one where it is for none of them or cannot be read: somebody has to
// sign the refusal.
func (o *offer) addressed(e *cms.EnvelopedData) RA {
	if e != nil {
		for _, ra := range o.RAs {
			if e.IsFor(ra.Certificate) {
				return ra
			}
		}
	}
	return o.RAs[0]
}

// issuer returns the name of the CA for that of an RA, which issues nothing: sscep takes the RA it was given for the CA. Any other name
// stays.
func (o *offer) issuer(name []byte) []byte {
	for _, ra := range o.RAs {
		if bytes.Equal(ra.Certificate.RawSubject, name) {
			return ra.Certificate.RawIssuer
		}
	}
	return name
}

// own returns the certificate of CA, RA or the chain that issuer and serial number name, nil if it is none of them.
func (o *offer) own(issuer []byte, serial *big.Int) *x509.Certificate {
	is := func(c *x509.Certificate) bool {
		return bytes.Equal(c.RawIssuer, issuer) && c.SerialNumber.Cmp(serial) == 0
	}
	for _, ra := range o.RAs {
		if is(ra.Certificate) {
			return ra.Certificate
		}
	}
	for _, c := range append([]*x509.Certificate{o.CA}, o.Chain...) {
		if is(c) {
			return c
		}
	}
	return nil
}

// nextCACert is the GetNextCACert answer (RFC 8894 §4.7.1): the certificates of the next CA as a degenerate SignedData, which is the
// content of a SignedData that the newest RA signs. RFC 8894 lets the CA or an RA sign; the CA's key signs certificates and lists
// alone, and clients reject another signature by a certificate whose key usage says so. The next CA is beside the signature once
// more: jscep verifies that, and then returns what is beside it instead of the content.
//
// The error is the RA key's; nothing is kept of it.
func (o *offer) nextCACert() ([]byte, error) {
	o.signing.Lock()
	defer o.signing.Unlock()
	if o.next != nil {
		return o.next, nil
	}
	next := append([]*x509.Certificate{o.Next.CA}, o.Next.Chain...)
	content, err := cms.CertsOnly(rawCertificates(next))
	if err != nil {
		return nil, fmt.Errorf("building the GetNextCACert answer: %w", err)
	}
	ra := o.RAs[0]
	b, err := cms.Sign(cms.SignOptions{
		Content:           content,
		SignerCertificate: ra.Certificate,
		Signer:            ra.Signer,
		Certificates:      rawCertificates(slices.Concat([]*x509.Certificate{ra.Certificate, o.CA}, o.Chain, next)),
		Digest:            cms.SHA256,
	})
	if err != nil {
		return nil, fmt.Errorf("signing the GetNextCACert answer: %w", err)
	}
	o.next = b
	return b, nil
}

func rawCertificates(certificates []*x509.Certificate) [][]byte {
	der := make([][]byte, len(certificates))
	for i, c := range certificates {
		der[i] = c.Raw
	}
	return der
}
