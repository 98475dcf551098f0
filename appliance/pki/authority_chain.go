package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"
)

// maxChain bounds the certificates of a chain, ours and the root included.
const maxChain = 8

// ErrChain is wrapped by every error of OrderChain and CheckChain.
var ErrChain = errors.New("the chain cannot be used")

// OrderChain puts the certificates somebody pasted in order: the one of our key first, each followed by
// the one that signed it, the root last. Copies are dropped. One that is missing, that does not belong to
// the chain, or of which there are two to choose from is an error that names it. What the certificates
// say is for [CheckChain].
func OrderChain(pasted []*x509.Certificate, public crypto.PublicKey) ([]*x509.Certificate, error) {
	var rest []*x509.Certificate
	for _, c := range pasted {
		if !slices.ContainsFunc(rest, c.Equal) {
			rest = append(rest, c)
		}
	}
	if len(rest) > maxChain {
		return nil, fmt.Errorf("%w: %d certificates are more than the %d it can have; leave out those that are not in it", ErrChain, len(rest), maxChain)
	}
	var chain []*x509.Certificate
	next := func(what string, belongs func(*x509.Certificate) bool) error {
		var found []*x509.Certificate
		for _, c := range rest {
			if belongs(c) {
				found = append(found, c)
			}
		}
		switch len(found) {
		case 0:
			return fmt.Errorf("%w: %s is missing; add it", ErrChain, what)
		case 1:
			chain = append(chain, found[0])
			rest = slices.DeleteFunc(rest, found[0].Equal)
			return nil
		}
		return fmt.Errorf("%w: %s is there %d times, with serials %x and %x among them; leave in the newest only",
			ErrChain, what, len(found), found[0].SerialNumber, found[1].SerialNumber)
	}
	ours := "the certificate of this authority's own key, made from its newest request,"
	if err := next(ours, func(c *x509.Certificate) bool { return isKeyOf(c, public) }); err != nil {
		return nil, err
	}
	for {
		last := chain[len(chain)-1]
		if isSelfIssued(last) {
			break
		}
		signer := fmt.Sprintf("the certificate of %q, which signed that of %q,", FormatDN(last.RawIssuer), FormatDN(last.RawSubject))
		if err := next(signer, func(c *x509.Certificate) bool { return isIssuedBy(last, c) }); err != nil {
			return nil, err
		}
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%w: the certificate of %q does not belong to it; leave it out", ErrChain, FormatDN(rest[0].RawSubject))
	}
	return chain, nil
}

func isKeyOf(c *x509.Certificate, public crypto.PublicKey) bool {
	k, ok := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(public)
}

// isSelfIssued reports whether subject and issuer are the same name (RFC 5280 §6.1).
func isSelfIssued(c *x509.Certificate) bool { return bytes.Equal(c.RawSubject, c.RawIssuer) }

// isIssuedBy compares names and key identifiers, as path building does; the signature is CheckChain's.
func isIssuedBy(c, issuer *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, issuer.RawSubject) &&
		(len(c.AuthorityKeyId) == 0 || len(issuer.SubjectKeyId) == 0 || bytes.Equal(c.AuthorityKeyId, issuer.SubjectKeyId))
}

// CheckChain reports why an authority whose key is public and whose name is subject (a DER Name) cannot
// issue under a chain: ours first, each followed by the one that signed it, a self-signed root last (see
// [OrderChain]). It holds the chain against RFC 5280 §6.1 as strict clients do, and our certificate
// besides against what it will sign: certificates, their responder's and revocation lists. now is the
// box's clock, which may be wrong. Every error wraps [ErrChain], names the certificate and says what
// mends it.
func CheckChain(chain []*x509.Certificate, public crypto.PublicKey, subject []byte, now time.Time) error {
	if len(chain) == 0 || len(chain) > maxChain {
		return fmt.Errorf("%w: it has %d certificates; give this authority's, those above it and the root, %d at most", ErrChain, len(chain), maxChain)
	}
	if err := checkOwn(chain[0], public, subject); err != nil {
		return fmt.Errorf("%w: the certificate of %q %w", ErrChain, FormatDN(chain[0].RawSubject), err)
	}
	for i, c := range chain {
		issuer := c
		if i+1 < len(chain) {
			issuer = chain[i+1]
		}
		err := checkCA(c, now)
		if err == nil {
			err = checkSigned(c, issuer)
		}
		if err == nil {
			err = checkPathLength(c, chain[:i], 0)
		}
		if err == nil {
			err = checkNames(c, chain[:i])
		}
		if err != nil {
			return fmt.Errorf("%w: the certificate of %q %w", ErrChain, FormatDN(c.RawSubject), err)
		}
		if i > 0 && chain[0].NotAfter.After(c.NotAfter) {
			return fmt.Errorf("%w: the certificate of %q ends on %s, and this authority's only on %s; have the request signed for a shorter time", ErrChain,
				FormatDN(c.RawSubject), day(c.NotAfter), day(chain[0].NotAfter))
		}
	}
	return nil
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// checkOwn holds the authority's certificate against its key, its name and what it is for.
func checkOwn(c *x509.Certificate, public crypto.PublicKey, subject []byte) error {
	switch {
	case !isKeyOf(c, public):
		return errors.New("is of another key; have this authority's newest request signed and put that certificate first")
	case comparedDN(c.RawSubject) != comparedDN(subject):
		return fmt.Errorf("is not of the name in the request, %q; have the request signed without changing the name", FormatDN(subject))
	case c.KeyUsage&x509.KeyUsageCRLSign == 0:
		return errors.New("does not allow cRLSign; have the request signed with keyUsage keyCertSign and cRLSign")
	case len(c.SubjectKeyId) == 0:
		return errors.New("has no subjectKeyIdentifier; have the request signed with the one in it")
	case len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 0:
		return errors.New("is limited to some extended key usages, and clients would refuse others below it; have the request signed without extKeyUsage")
	}
	return nil
}

// checkCA holds one certificate of the chain against what a CA's has to be.
func checkCA(c *x509.Certificate, now time.Time) error {
	switch {
	case !c.BasicConstraintsValid || !c.IsCA:
		return errors.New("is not a CA's (basicConstraints); have it signed as a CA, with cA TRUE")
	case hasExtension(c, oidKeyUsage) && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("does not allow keyCertSign; have it signed with keyUsage keyCertSign and cRLSign")
	case now.Before(c.NotBefore):
		return fmt.Errorf("is valid only from %s and the box's clock shows %s; wait, or set the clock if it is wrong", stampTime(c.NotBefore), stampTime(now))
	case !now.Before(c.NotAfter):
		return fmt.Errorf("has ended on %s and the box's clock shows %s; renew it, or set the clock if it is wrong", stampTime(c.NotAfter), stampTime(now))
	}
	switch k := c.PublicKey.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 {
			return fmt.Errorf("has an RSA key of %d bits, which clients refuse; use an authority with 2048 at least", k.N.BitLen())
		}
	case *ecdsa.PublicKey:
		if k.Curve.Params().BitSize < 256 {
			return fmt.Errorf("has a key on %s, which clients refuse; use an authority with P-256 at least", k.Curve.Params().Name)
		}
	}
	for _, oid := range c.UnhandledCriticalExtensions {
		if !oid.Equal(oidNameConstraints) {
			return fmt.Errorf("has the critical extension %s, which many clients do not know; have it signed without", oid)
		}
	}
	return nil
}

func stampTime(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func hasExtension(c *x509.Certificate, oid asn1.ObjectIdentifier) bool {
	_, ok := extensionOf(c, oid)
	return ok
}

func extensionOf(c *x509.Certificate, oid asn1.ObjectIdentifier) ([]byte, bool) {
	for _, e := range c.Extensions {
		if e.Id.Equal(oid) {
			return e.Value, true
		}
	}
	return nil, false
}

// checkSigned verifies c's signature by issuer, which is c itself at the end of the chain.
func checkSigned(c, issuer *x509.Certificate) error {
	switch {
	case c == issuer && !isSelfIssued(c):
		return fmt.Errorf("is the last and not a root: %q signed it; add the certificates above it, up to the root", FormatDN(c.RawIssuer))
	case !isIssuedBy(c, issuer):
		return fmt.Errorf("is signed by %q, and the next in the chain is %q or has another key identifier; put the certificate that signed it next", FormatDN(c.RawIssuer), FormatDN(issuer.RawSubject))
	}
	switch c.SignatureAlgorithm {
	case x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1:
		return fmt.Errorf("is signed with %s, which clients refuse; have it signed with SHA-256", c.SignatureAlgorithm)
	}
	if err := issuer.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature); err != nil {
		return fmt.Errorf("has a signature that is not by %q (%v); paste the certificates as they were issued", FormatDN(issuer.RawSubject), err)
	}
	return nil
}

// CheckRoom reports which certificate of a chain, one that [CheckChain] accepts, does not allow n more
// authorities below the first (pathLenConstraint). Errors wrap [ErrChain].
func CheckRoom(chain []*x509.Certificate, n int) error {
	for i, c := range chain {
		if i == 0 && (c.MaxPathLen > 0 || c.MaxPathLenZero) && n > c.MaxPathLen {
			return fmt.Errorf("%w: the certificate of %q allows %d authorities below it (pathLenConstraint), and path_len in the site asks for %d; have the request signed with the pathLenConstraint it asks for",
				ErrChain, FormatDN(c.RawSubject), c.MaxPathLen, n)
		}
		if err := checkPathLength(c, chain[:i], n); err != nil {
			return fmt.Errorf("%w: the certificate of %q %w", ErrChain, FormatDN(c.RawSubject), err)
		}
	}
	return nil
}

// checkPathLength counts the CA certificates below c (RFC 5280 §4.2.1.9: self-issued ones do not count),
// and further ones that there may be below those. What the authority issues comes below them all.
func checkPathLength(c *x509.Certificate, below []*x509.Certificate, further int) error {
	count := further
	for _, b := range below {
		if !isSelfIssued(b) {
			count++
		}
	}
	if (c.MaxPathLen > 0 || c.MaxPathLenZero) && count > c.MaxPathLen {
		return fmt.Errorf("allows %d authorities below it (pathLenConstraint) and there would be %d; have the request signed by one that allows more", c.MaxPathLen, count)
	}
	return nil
}
