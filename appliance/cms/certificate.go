package cms

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/asn1"
	"fmt"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Bounds on RSA keys, in bits, for verifying and for encrypting.
const (
	minRSABits = 1024
	maxRSABits = 8192
)

var (
	oidSubjectKeyID = asn1.ObjectIdentifier{2, 5, 29, 14}
	oidCurveP256    = asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}
	oidCurveP384    = asn1.ObjectIdentifier{1, 3, 132, 0, 34}
	oidCurveP521    = asn1.ObjectIdentifier{1, 3, 132, 0, 35}
)

// Certificate is what a signer or recipient is known by. SCEP clients make throw-away certificates that break RFC 5280 in
// many ways (version 1, serials of 32 octets, critical authority key identifiers, odd validity), so only these parts are
// read and nothing about trust, validity or usage is checked here.
type Certificate struct {
	Raw          []byte // DER as received; so are the next three
	RawIssuer    []byte
	RawSubject   []byte
	RawSPKI      []byte
	SerialNumber *big.Int // of any length and sign
	SubjectKeyID []byte   // nil if absent
	// PublicKey is *rsa.PublicKey (1024 to 8192 bits) or *ecdsa.PublicKey (P-256, P-384, P-521), nil for any other key.
	PublicKey crypto.PublicKey
}

// ParseCertificate reads one DER certificate leniently; see Certificate. Errors wrap ErrMalformed.
func ParseCertificate(der []byte) (*Certificate, error) {
	if len(der) > MaxMessage {
		return nil, malformed("certificate longer than %d bytes", MaxMessage)
	}
	in := cryptobyte.String(der)
	var body, tbs, serial, issuer, subject, spki cryptobyte.String
	if !in.ReadASN1(&body, casn1.SEQUENCE) || !in.Empty() || !body.ReadASN1(&tbs, casn1.SEQUENCE) {
		return nil, malformed("certificate is not one DER sequence")
	}
	if !tbs.SkipOptionalASN1(casn1.Tag(0).ContextSpecific().Constructed()) || // version
		!tbs.ReadASN1(&serial, casn1.INTEGER) ||
		!tbs.SkipASN1(casn1.SEQUENCE) || // signature algorithm
		!tbs.ReadASN1Element(&issuer, casn1.SEQUENCE) ||
		!tbs.SkipASN1(casn1.SEQUENCE) || // validity
		!tbs.ReadASN1Element(&subject, casn1.SEQUENCE) ||
		!tbs.ReadASN1Element(&spki, casn1.SEQUENCE) {
		return nil, malformed("certificate has no issuer, serial, subject or public key")
	}
	number, ok := integer(serial)
	if !ok {
		return nil, malformed("certificate serial is empty")
	}
	c := &Certificate{
		Raw: der, RawIssuer: issuer, RawSubject: subject, RawSPKI: spki,
		SerialNumber: number,
		SubjectKeyID: findSubjectKeyID(tbs),
	}
	key, err := parsePublicKey(spki)
	if err == nil {
		c.PublicKey = key
	}
	return c, nil
}

// integer reads the content octets of an INTEGER, also with superfluous leading octets.
func integer(content []byte) (*big.Int, bool) {
	if len(content) == 0 {
		return nil, false
	}
	n := new(big.Int).SetBytes(content)
	if content[0]&0x80 != 0 {
		n.Sub(n, new(big.Int).Lsh(big.NewInt(1), uint(8*len(content))))
	}
	return n, true
}

// findSubjectKeyID returns the subjectKeyIdentifier (RFC 5280 §4.2.1.2) from what follows the public key in a certificate, nil
// if there is none or the extensions cannot be read.
func findSubjectKeyID(rest cryptobyte.String) []byte {
	var explicit, extensions cryptobyte.String
	if !rest.SkipOptionalASN1(casn1.Tag(1).ContextSpecific()) ||
		!rest.SkipOptionalASN1(casn1.Tag(2).ContextSpecific()) ||
		!rest.ReadASN1(&explicit, casn1.Tag(3).ContextSpecific().Constructed()) ||
		!explicit.ReadASN1(&extensions, casn1.SEQUENCE) {
		return nil
	}
	for !extensions.Empty() {
		var extension, value, id cryptobyte.String
		var oid asn1.ObjectIdentifier
		if !extensions.ReadASN1(&extension, casn1.SEQUENCE) {
			return nil
		}
		if !readOID(&extension, &oid) || !oid.Equal(oidSubjectKeyID) {
			continue
		}
		if !extension.SkipOptionalASN1(casn1.BOOLEAN) || !extension.ReadASN1(&value, casn1.OCTET_STRING) ||
			!value.ReadASN1(&id, casn1.OCTET_STRING) {
			return nil
		}
		return id
	}
	return nil
}

// parsePublicKey reads a SubjectPublicKeyInfo with one of the keys Certificate.PublicKey names.
func parsePublicKey(spki cryptobyte.String) (crypto.PublicKey, error) {
	var body cryptobyte.String
	var key asn1.BitString
	if !spki.ReadASN1(&body, casn1.SEQUENCE) {
		return nil, malformed("public key is not a sequence")
	}
	alg, ok := readAlgorithm(&body, casn1.SEQUENCE)
	if !ok || !body.ReadASN1BitString(&key) || key.BitLength%8 != 0 {
		return nil, malformed("public key has no algorithm or bits")
	}
	switch {
	case alg.oid.Equal(oidRSAEncryption):
		return parseRSAKey(key.Bytes)
	case alg.oid.Equal(oidECPublicKey):
		var curve asn1.ObjectIdentifier
		if !readOID(&alg.parameters, &curve) {
			return nil, fmt.Errorf("%w: elliptic curve without a name", ErrAlgorithm)
		}
		return parseECKey(curve, key.Bytes)
	}
	return nil, fmt.Errorf("%w: public key %v", ErrAlgorithm, alg.oid)
}

// parseRSAKey reads an RSAPublicKey (RFC 8017 A.1.1). The size is checked before the number is made.
func parseRSAKey(der cryptobyte.String) (*rsa.PublicKey, error) {
	var body, modulus cryptobyte.String
	var exponent int
	if !der.ReadASN1(&body, casn1.SEQUENCE) || !body.ReadASN1(&modulus, casn1.INTEGER) || !body.ReadASN1Integer(&exponent) {
		return nil, malformed("RSA public key")
	}
	if len(modulus) > maxRSABits/8+1 {
		return nil, fmt.Errorf("%w: RSA key longer than %d bits", ErrAlgorithm, maxRSABits)
	}
	n, ok := integer(modulus)
	if !ok || n.Sign() <= 0 || n.Bit(0) == 0 || n.BitLen() < minRSABits || n.BitLen() > maxRSABits {
		return nil, fmt.Errorf("%w: RSA modulus", ErrAlgorithm)
	}
	if exponent < 3 || exponent > 1<<31-1 || exponent%2 == 0 {
		return nil, fmt.Errorf("%w: RSA exponent", ErrAlgorithm)
	}
	return &rsa.PublicKey{N: n, E: exponent}, nil
}

func parseECKey(curve asn1.ObjectIdentifier, point []byte) (*ecdsa.PublicKey, error) {
	var c elliptic.Curve
	switch {
	case curve.Equal(oidCurveP256):
		c = elliptic.P256()
	case curve.Equal(oidCurveP384):
		c = elliptic.P384()
	case curve.Equal(oidCurveP521):
		c = elliptic.P521()
	default:
		return nil, fmt.Errorf("%w: curve %v", ErrAlgorithm, curve)
	}
	key, err := ecdsa.ParseUncompressedPublicKey(c, point)
	if err != nil {
		return nil, malformed("point is not on the curve")
	}
	return key, nil
}
