package pki

import (
	"crypto"
	"crypto/x509"
	"fmt"
)

// Template is a PKCS#10 request for a key that is not the sender's but made here. Its own key and
// signature were not looked at, as RFC 7030 §4.4.1 wants of serverkeygen: clients put there whatever
// their libraries make them put there. So nothing in it is proven, and it is no [Request]: it becomes
// one by [Template.ForKey] alone, over the key made for it.
type Template struct {
	request Request // without key
}

// ParseTemplate parses one DER PKCS#10 request as [ParseRequest] does, but for its key, its algorithm
// and its signature, which only have to be there. Errors wrap ErrRequest.
func ParseTemplate(der []byte) (*Template, error) {
	r, _, _, err := readRequest(der)
	if err != nil {
		return nil, err
	}
	r.RawSPKI = nil // nobody showed to have it
	return &Template{*r}, nil
}

// ForKey returns the request for a key: the subject, names and extensions of the template. Raw and
// RawInfo stay what the client sent, its key among it.
func (t *Template) ForKey(public crypto.PublicKey) (*Request, error) {
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("encoding public key: %w", err)
	}
	key, err := parseKey(spki)
	if err != nil {
		return nil, err
	}
	r := t.request
	r.PublicKey, r.RawSPKI = key, spki
	return &r, nil
}

// Identity is as [Request.Identity].
func (t *Template) Identity() string { return t.request.Identity() }

// Challenge is the challengePassword attribute, as in [Request]; it is a secret.
func (t *Template) Challenge() string { return t.request.Challenge }

// RawInfo is the CertificationRequestInfo as the sender wrote it; nobody may change it.
func (t *Template) RawInfo() []byte { return t.request.RawInfo }
