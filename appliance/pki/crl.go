package pki

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/big"
	"time"
)

// CRL is what a revocation list says (RFC 5280 §5).
type CRL struct {
	Number     uint64 // higher than that of every list before
	ThisUpdate time.Time
	NextUpdate time.Time
	Revoked    []RevokedSerial
}

// RevokedSerial is one entry of a CRL.
type RevokedSerial struct {
	Serial string // lower-case hex
	At     time.Time
	Reason int // CRLReason; 0, unspecified, is left out (RFC 5280 §5.3.1)
}

// SignCRL has a revocation list signed and checks the signature that came back. It is version 2, of
// everything the issuer's key signed, with authorityKeyIdentifier and cRLNumber.
func (i *Issuer) SignCRL(c CRL) ([]byte, error) {
	if i.cert.KeyUsage&x509.KeyUsageCRLSign == 0 {
		return nil, fmt.Errorf("authority %q: its certificate does not let it sign revocation lists", FormatDN(i.cert.RawSubject))
	}
	list := &x509.RevocationList{
		SignatureAlgorithm: i.algorithm.x509(),
		Number:             new(big.Int).SetUint64(c.Number),
		ThisUpdate:         c.ThisUpdate.UTC(),
		NextUpdate:         c.NextUpdate.UTC(),
	}
	for _, r := range c.Revoked {
		serial, err := hex.DecodeString(r.Serial)
		if err != nil {
			return nil, fmt.Errorf("revocation list: serial %.40q is not hex", r.Serial)
		}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: new(big.Int).SetBytes(serial), RevocationTime: r.At.UTC(), ReasonCode: r.Reason,
		})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, i.cert, i.signer)
	if err != nil {
		return nil, fmt.Errorf("signing revocation list: %w", err)
	}
	signed, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, fmt.Errorf("reading back revocation list: %w", err)
	}
	if err := signed.CheckSignatureFrom(i.cert); err != nil {
		return nil, fmt.Errorf("the signature that came back is wrong: %w", err)
	}
	return der, nil
}

// Reasons are the names of the reasons a certificate can be revoked for, with their CRLReason codes
// (RFC 5280 §5.3.1). removeFromCRL is none: it takes one off hold.
func Reasons() map[string]int {
	return map[string]int{
		"unspecified":          0,
		"keyCompromise":        1,
		"cACompromise":         2,
		"affiliationChanged":   3,
		"superseded":           4,
		"cessationOfOperation": 5,
		"certificateHold":      6,
		"privilegeWithdrawn":   9,
		"aACompromise":         10,
	}
}
