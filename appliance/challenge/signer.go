package challenge

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Bounds on the certificates that may sign challenges: each is tried for every token.
const (
	maxSigners    = 32
	minSignerBits = 2048
	maxSignerBits = 8192
)

// Signers are the certificates whose keys sign challenges. The certificates are trusted as they are,
// whoever issued them.
type Signers struct{ certificates []signerCertificate }

type signerCertificate struct {
	*x509.Certificate
	algorithm jose.SignatureAlgorithm
}

// NewSigners takes the certificates of one or more connectors: RSA of 2048 to 8192 bits (they sign
// RS256) or ECDSA on P-256 (ES256). Expired ones are accepted and verify nothing, see
// [Signers.CheckValid].
func NewSigners(certificates []*x509.Certificate) (*Signers, error) {
	if len(certificates) == 0 || len(certificates) > maxSigners {
		return nil, fmt.Errorf("%d challenge-signing certificates, give 1 to %d", len(certificates), maxSigners)
	}
	s := &Signers{}
	for _, c := range certificates {
		algorithm, err := signerAlgorithm(c)
		if err != nil {
			return nil, fmt.Errorf("challenge-signing certificate %q: %w", c.Subject, err)
		}
		s.certificates = append(s.certificates, signerCertificate{c, algorithm})
	}
	return s, nil
}

func signerAlgorithm(c *x509.Certificate) (jose.SignatureAlgorithm, error) {
	if c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return "", errors.New("its key usage does not have digitalSignature, issue one that has")
	}
	switch k := c.PublicKey.(type) {
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < minSignerBits || bits > maxSignerBits {
			return "", fmt.Errorf("RSA key of %d bits, use %d to %d", bits, minSignerBits, maxSignerBits)
		}
		return jose.RS256, nil
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return "", fmt.Errorf("ECDSA key on %s, use P-256", k.Curve.Params().Name)
		}
		return jose.ES256, nil
	}
	return "", fmt.Errorf("key of type %T, use RSA or ECDSA on P-256", c.PublicKey)
}

// Certificates returns the certificates in their order.
func (s *Signers) Certificates() []*x509.Certificate {
	var certificates []*x509.Certificate
	for _, c := range s.certificates {
		certificates = append(certificates, c.Certificate)
	}
	return certificates
}

// CheckValid refuses where a certificate is not valid at a time.
func (s *Signers) CheckValid(now time.Time) error {
	for _, c := range s.certificates {
		if !c.isValid(now) {
			return fmt.Errorf("challenge-signing certificate %q is valid from %s to %s, remove or renew it",
				c.Subject, c.NotBefore.UTC().Format(time.RFC3339), c.NotAfter.UTC().Format(time.RFC3339))
		}
	}
	return nil
}

func (c signerCertificate) isValid(now time.Time) bool {
	return !now.Before(c.NotBefore) && !now.After(c.NotAfter)
}

// verify returns the payload of a token that one of the valid certificates signed. The token's
// header chooses the algorithm, among those of the certificates, and nothing else: key ids,
// certificates and keys in it are ignored.
func (s *Signers) verify(token *jose.JSONWebSignature, now time.Time) ([]byte, *Refused) {
	isExpired := false
	for _, c := range s.certificates {
		if token.Signatures[0].Header.Algorithm != string(c.algorithm) {
			continue
		}
		payload, err := token.Verify(c.PublicKey)
		if err != nil {
			continue
		}
		if c.isValid(now) {
			return payload, nil
		}
		isExpired = true
	}
	if isExpired {
		return nil, &Refused{KindSigned, SignatureInvalid, "the certificate of its signer is not valid now, renew it"}
	}
	return nil, &Refused{KindSigned, SignatureInvalid, "none of the profile's certificates verifies it"}
}
