package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Extension types written into certificates (RFC 5280 §4.2.1, RFC 7633 §4).
var (
	oidSubjectKeyID   = asn1.ObjectIdentifier{2, 5, 29, 14}
	oidKeyUsage       = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidAuthorityKeyID = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidExtKeyUsage    = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidTLSFeature     = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}
)

// backdate is how far before now a certificate begins, for devices whose clock is slow.
const backdate = 10 * time.Minute

// certificate is everything a TBSCertificate says (RFC 5280 §4.1.2).
type certificate struct {
	serial              []byte // big-endian, 19 octets, first bit clear
	algorithm           signing
	issuer, subject     []byte // DER Name
	notBefore, notAfter time.Time
	spki                []byte // DER SubjectPublicKeyInfo
	ca                  bool
	usages              []usageBit
	extended            []asn1.ObjectIdentifier
	san                 []byte // DER GeneralNames, nil for none
	subjectKeyID        []byte
	authorityKeyID      []byte // nil for none
	maxPath             *int   // pathLenConstraint of a CA, nil for none
	published           Locations
	extra               []pkix.Extension // written last, in this order
}

// signing is the algorithm an issuer's key signs with.
type signing struct {
	hash crypto.Hash
	oid  asn1.ObjectIdentifier
	null bool // parameters are NULL (RSA) instead of absent (ECDSA)
}

// signingFor chooses the algorithm for an issuer's key: SHA-384 for P-384, SHA-256 for the others.
func signingFor(key crypto.PublicKey) (signing, error) {
	switch k := key.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 {
			return signing{}, fmt.Errorf("issuer key: RSA of %d bits, 2048 is the least", k.N.BitLen())
		}
		return signing{crypto.SHA256, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, true}, nil
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return signing{crypto.SHA256, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}, false}, nil
		case elliptic.P384():
			return signing{crypto.SHA384, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}, false}, nil
		}
	}
	return signing{}, errors.New("issuer key: it is neither RSA nor ECDSA on P-256 or P-384")
}

// x509 is the algorithm's name in crypto/x509.
func (s signing) x509() x509.SignatureAlgorithm {
	switch {
	case s.null:
		return x509.SHA256WithRSA
	case s.hash == crypto.SHA384:
		return x509.ECDSAWithSHA384
	}
	return x509.ECDSAWithSHA256
}

func (s signing) identifier(b *cryptobyte.Builder) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(s.oid)
		if s.null {
			b.AddASN1NULL()
		}
	})
}

// newSerial draws 19 random octets: about 150 random bits, positive, at most 20 octets in DER (RFC
// 5280 §4.1.2.2). The first octet is at least 0x10, so that every way of writing the number in hex
// gives the same digits.
func newSerial() []byte {
	serial := make([]byte, 19)
	for {
		rand.Read(serial) // never fails (crypto/rand)
		serial[0] &= 0x7f
		if serial[0] >= 0x10 {
			return serial
		}
	}
}

// subjectKeyID is the leftmost 160 bits of the SHA-256 of the public key's bits (RFC 7093 §2 (1)).
func subjectKeyID(spki []byte) ([]byte, error) {
	input := cryptobyte.String(spki)
	var outer, algorithm cryptobyte.String
	var bits asn1.BitString
	if !input.ReadASN1(&outer, cbasn1.SEQUENCE) || !outer.ReadASN1(&algorithm, cbasn1.SEQUENCE) ||
		!outer.ReadASN1BitString(&bits) {
		return nil, errors.New("public key is not a SubjectPublicKeyInfo")
	}
	sum := sha256.Sum256(bits.Bytes)
	return sum[:20], nil
}

// tbs encodes the TBSCertificate.
func (c *certificate) tbs() ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1Int64(2) // version 3
		})
		b.AddASN1BigInt(new(big.Int).SetBytes(c.serial))
		c.algorithm.identifier(b)
		b.AddBytes(c.issuer)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			addTime(b, c.notBefore)
			addTime(b, c.notAfter)
		})
		b.AddBytes(c.subject)
		b.AddBytes(c.spki)
		b.AddASN1(cbasn1.Tag(3).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, c.extensions)
		})
	})
	return b.Bytes()
}

// addTime writes UTCTime to 2049 and GeneralizedTime after (RFC 5280 §4.1.2.5).
func addTime(b *cryptobyte.Builder, t time.Time) {
	if t = t.UTC(); t.Year() < 2050 {
		b.AddASN1UTCTime(t)
	} else {
		b.AddASN1GeneralizedTime(t)
	}
}

const (
	critical    = true
	notCritical = false
)

func (c *certificate) extensions(b *cryptobyte.Builder) {
	if c.authorityKeyID != nil {
		addExtension(b, oidAuthorityKeyID, notCritical, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.Tag(0).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(c.authorityKeyID) })
			})
		})
	}
	addExtension(b, oidSubjectKeyID, notCritical, func(b *cryptobyte.Builder) {
		b.AddASN1OctetString(c.subjectKeyID)
	})
	addExtension(b, oidKeyUsage, critical, func(b *cryptobyte.Builder) { addKeyUsage(b, c.usages) })
	addExtension(b, oidBasicConstraints, critical, func(b *cryptobyte.Builder) { addBasicConstraints(b, c.ca, c.maxPath) })
	if len(c.extended) > 0 {
		addExtension(b, oidExtKeyUsage, notCritical, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				for _, oid := range c.extended {
					b.AddASN1ObjectIdentifier(oid)
				}
			})
		})
	}
	if c.san != nil {
		// Critical where the subject is empty (RFC 5280 §4.2.1.6).
		addExtension(b, oidSubjectAltName, isEmptyName(c.subject), func(b *cryptobyte.Builder) { b.AddBytes(c.san) })
	}
	c.published.extensions(b)
	for _, e := range c.extra {
		addExtension(b, e.Id, e.Critical, func(b *cryptobyte.Builder) { b.AddBytes(e.Value) })
	}
}

// addBasicConstraints writes BasicConstraints (RFC 5280 §4.2.1.9), maxPath nil for no limit.
func addBasicConstraints(b *cryptobyte.Builder, isCA bool, maxPath *int) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		if isCA {
			b.AddASN1Boolean(true)
		}
		if maxPath != nil {
			b.AddASN1Int64(int64(*maxPath))
		}
	})
}

func addExtension(b *cryptobyte.Builder, oid asn1.ObjectIdentifier, isCritical bool, value func(*cryptobyte.Builder)) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		if isCritical {
			b.AddASN1Boolean(true)
		}
		b.AddASN1(cbasn1.OCTET_STRING, value)
	})
}

// addKeyUsage writes the named bits as DER wants them: no trailing zero bit (X.690 §11.2.2).
func addKeyUsage(b *cryptobyte.Builder, usages []usageBit) {
	var bits byte
	highest := usageBit(0)
	for _, u := range usages {
		bits |= 0x80 >> u
		highest = max(highest, u)
	}
	b.AddASN1(cbasn1.BIT_STRING, func(b *cryptobyte.Builder) {
		b.AddUint8(7 - uint8(highest))
		b.AddUint8(bits)
	})
}

func isEmptyName(raw []byte) bool { return len(raw) == 2 }

// sign has the TBSCertificate signed and assembles the certificate.
func (s signing) sign(signer crypto.Signer, tbs []byte) ([]byte, error) {
	hash := s.hash.New()
	hash.Write(tbs)
	signature, err := signer.Sign(rand.Reader, hash.Sum(nil), s.hash)
	if err != nil {
		return nil, fmt.Errorf("signing certificate: %w", err)
	}
	return s.assemble(tbs, signature)
}

func (s signing) assemble(tbs, signature []byte) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(tbs)
		s.identifier(b)
		b.AddASN1BitString(signature)
	})
	return b.Bytes()
}

// checkReadable refuses a TBSCertificate that crypto/x509 could not read once it is signed, so that
// nothing unreadable is ever signed.
func (s signing) checkReadable(tbs []byte) error {
	unsigned, err := s.assemble(tbs, []byte{0})
	if err != nil {
		return err
	}
	_, err = x509.ParseCertificate(unsigned)
	return err
}

// verify reads a certificate back and checks its signature under the issuer's key.
func verify(der []byte, issuer *x509.Certificate) error {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("reading back certificate: %w", err)
	}
	if issuer == nil { // self-signed
		issuer = cert
	}
	if err := issuer.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature); err != nil {
		return fmt.Errorf("the signature that came back is wrong: %w", err)
	}
	return nil
}

// serverNames encodes DNS names and addresses as GeneralNames.
func serverNames(names []string, ips []net.IP) ([]byte, error) {
	if len(names)+len(ips) == 0 {
		return nil, errors.New("server certificate without a name")
	}
	for _, n := range names {
		if err := CheckDNSName(n); err != nil {
			return nil, fmt.Errorf("server name %q: %w", n, err)
		}
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, n := range names {
			b.AddASN1(cbasn1.Tag(2).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes([]byte(n)) })
		}
		for _, ip := range ips {
			if v4 := ip.To4(); v4 != nil {
				ip = v4
			}
			b.AddASN1(cbasn1.Tag(7).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(ip) })
		}
	})
	return b.Bytes()
}
