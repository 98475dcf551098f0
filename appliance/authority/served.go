package authority

import (
	"crypto/tls"
	"crypto/x509"
)

// Served is a certificate that the box's listeners show.
type Served struct {
	Certificate *x509.Certificate
	Uploaded    bool // somebody else's authority signed it
}

// Served are the certificates of the box's listeners, the ECDSA one first; the one over the RSA key is for
// old clients on the legacy listeners alone. It does not wait for orders under way.
func (s *Set) Served() []Served {
	state := s.tls.Load()
	var all []Served
	for _, shown := range []*tls.Certificate{state.ecdsa, state.rsa} {
		if shown != nil {
			all = append(all, Served{shown.Leaf, shown.Leaf.CheckSignatureFrom(state.root.Certificate()) != nil})
		}
	}
	return all
}
