package scep

import (
	"crypto/x509"
	"fmt"
	"net/http"
)

// maxChain is how many certificates a client may show, its own and those above it. Whoever shows more, with names and keys to try in
// every order, makes each of its requests cost a hundred verifications.
const maxChain = 8

// admit verifies the client certificate of a request to /scep-mtls against the bundle of this profile alone, and answers 401 where
// there is none or it does not verify. What SCEP itself asks for, the challenge above all, is asked for all the same.
func (s *Server) admit(x *call) bool {
	if x.profile.MTLS.Mode == "" || x.profile.MTLS.Mode == mtlsOff {
		x.Refuse(http.StatusNotFound, "this profile takes no client certificates: use /scep/<profile>")
		return false
	}
	shown := s.config.ClientCertificates(x.R)
	if len(shown) == 0 {
		x.Refuse(http.StatusUnauthorized, "no client certificate: connect with one that this profile trusts")
		s.count(x, x.Reason)
		return false
	}
	if len(shown) > maxChain {
		x.Refuse(http.StatusUnauthorized, "too many client certificates: send the client's own and those between it and the bundle")
		s.count(x, x.Reason)
		return false
	}
	client := shown[0]
	intermediates := x509.NewCertPool()
	for _, c := range shown[1:] {
		intermediates.AddCert(c)
	}
	roots := x.profile.MTLS.Pool()
	if roots == nil { // which crypto/x509 would take for the roots of the system
		roots = x509.NewCertPool()
	}
	_, err := client.Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: intermediates,
		CurrentTime:   s.config.Now(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		x.Err = fmt.Errorf("verifying the client certificate: %w", err)
		x.Refuse(http.StatusUnauthorized, "this profile does not trust the client certificate: connect with one of its bundle that is valid and for client authentication")
		s.count(x, x.Reason)
		return false
	}
	revoked, err := s.engine.IsRevoked(client)
	if err != nil {
		x.Err = fmt.Errorf("looking up the client certificate: %w", err)
		x.RetryLater("the box could not finish the request: try again later")
		x.Outcome = "error"
		return false
	}
	if revoked {
		x.Refuse(http.StatusUnauthorized, "the client certificate is revoked: connect with another one")
		s.count(x, x.Reason)
		return false
	}
	x.client = client
	return true
}

// checkMTLS refuses to decide on a request that came without the client certificate this profile requires.
func (x *call) checkMTLS() error {
	if x.profile.MTLS.Mode == mtlsRequired && x.client == nil {
		return refuse(badRequest, "this profile requires a client certificate: use /scep-mtls/<profile>")
	}
	return nil
}
