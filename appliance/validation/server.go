// Package validation serves what tells others whether a certificate of this box is still good: revocation
// lists (RFC 5280), OCSP (RFC 6960) and the certificates of its authorities, over plain HTTP.
//
// It decides nothing: what is revoked, and each list, is the engine's. Everything it answers is public and
// signed, or a certificate, so it needs no TLS; a verifier could not check a TLS certificate before it has
// this answer (RFC 5280 §8).
package validation

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"

	"signet.internal/appliance/enroll"
	"signet.internal/appliance/exchange"
	"signet.internal/appliance/pki"
)

// Authority is one CA of the box.
type Authority struct {
	Name        string // as in the site; the name in the paths
	Generations []Generation
}

// Generation is one key of an authority. Each has a revocation list and a certificate of its own, at
// /pki/<authority>.crl and .cer for number 1 and /pki/<authority>.<number>.crl and .cer from 2 on; OCSP has
// one path for all of them, because a request says which issuer it means.
type Generation struct {
	Number    int // from 1
	Issuer    *pki.Issuer
	Responder *pki.Responder // nil: no OCSP

	// Own are certificates that the issuer made for the box itself (RA, responder), which the engine
	// knows nothing of: good until they end.
	Own []*x509.Certificate
}

// Status is where answers come from; it is [*enroll.Engine], or what a test or benchmark puts in its place.
type Status interface {
	// CertificateStatus tells what the store knows of a serial, in lower-case hex, of the issuer that
	// pki.Issuer.ID names. enroll.ErrClock, enroll.ErrBusy and enroll.ErrUnavailable mean: later.
	CertificateStatus(issuer [sha256.Size]byte, serial string) (enroll.CertStatus, error)
	// IssuerCRL returns the issuer's current revocation list. The same errors mean: later.
	IssuerCRL(ctx context.Context, issuer *pki.Issuer) (enroll.CRL, error)
	// Condition is what keeps the box from signing anything, as a clock that is not trusted; nil: nothing.
	Condition() *enroll.Condition
}

// Config is what a Server is made of. Engine, Authorities and Log are required.
type Config struct {
	exchange.Config
	Engine Status

	// Authorities are those that have a certificate now. It is called for each request and its result is
	// only read.
	Authorities func() []Authority

	// LivePerSecond bounds the responses signed for one request alone: those with a nonce, for several
	// certificates, or for one that was never issued. Twice as many may come at once; one more is
	// answered tryLater, or without its nonce where that is all it asks for. 0: 50.
	LivePerSecond int
}

const (
	defaultLivePerSecond = 50

	// maxSigning is how many responses are being signed at a time; the key holder has others to serve.
	maxSigning = 4

	// maxCached bounds the signed responses kept, of about 1 KiB each.
	maxCached = 4096
)

// Server answers. It is safe for concurrent use.
type Server struct {
	engine      Status
	authorities func() []Authority
	config      exchange.Config
	live        *bucket
	signing     chan struct{} // one element per response being signed
	cache       *cache
}

// New checks the configuration and returns a server that is ready to answer.
func New(c Config) (*Server, error) {
	if c.Engine == nil || c.Authorities == nil || c.Log == nil {
		return nil, errors.New("validation: configuring the server: engine, authorities and log are required")
	}
	if c.LivePerSecond == 0 {
		c.LivePerSecond = defaultLivePerSecond
	}
	if c.LivePerSecond < 0 {
		return nil, fmt.Errorf("validation: configuring the server: %d live responses a second", c.LivePerSecond)
	}
	return &Server{
		engine: c.Engine, authorities: c.Authorities, config: c.WithDefaults(),
		live:    newBucket(c.LivePerSecond),
		signing: make(chan struct{}, maxSigning),
		cache:   newCache(maxCached),
	}, nil
}

// Handler answers below /pki/ and /ocsp/ and 404 elsewhere. It must be given the request as it came:
// http.ServeMux would redirect the double slashes that are part of an OCSP request by GET.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.serve) }
