package enroll

import (
	"context"
	"crypto/x509"
	"math/big"
)

// Revoke revokes a certificate by its serial (lower-case hex) for a reason of RFC 5280 §5.3.1.
func (e *Engine) Revoke(ctx context.Context, serial, reason, actor string) error {
	return ErrNoCertificate
}

// Certificate returns a certificate the profile's authority issued, DER, or ErrNoCertificate.
func (e *Engine) Certificate(profile string, issuerDER []byte, serial *big.Int) ([]byte, error) {
	return nil, ErrNoCertificate
}

// IsRevoked reports whether this box issued the certificate and revoked it.
func (e *Engine) IsRevoked(cert *x509.Certificate) (bool, error) { return false, nil }

// CRL returns the current revocation list of the profile's authority, DER.
func (e *Engine) CRL(ctx context.Context, profile string) ([]byte, error) {
	return nil, ErrUnknownProfile
}
