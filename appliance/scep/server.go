// Package scep speaks the Simple Certificate Enrolment Protocol (RFC 8894) over HTTP: it turns what a device sends into an
// enroll.Request, and the enroll.Result or the refusal into what the device understands.
//
// It decides nothing about certificates. What it does decide is the order of checks on bytes from anyone: size, load,
// signature, message type, algorithms, and only then the RA key.
package scep

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"signet.internal/appliance/cms"
	"signet.internal/appliance/enroll"
)

// Config is what a Server is made of. Every field is required unless it says otherwise.
type Config struct {
	Engine   *enroll.Engine
	Profiles []Profile // at least one, names unique, at most one Default
	Log      *slog.Logger

	// Source tells whom a request comes from, for limits and the audit log. Nil: the connection's remote address.
	Source func(*http.Request) netip.Addr

	// InFlight bounds the PKIOperations being worked on at a time, on all listeners together; one more is answered
	// 503 before a byte of it is parsed. 0: 32, which a hardware TPM works off within a client's patience.
	InFlight int

	// Now tells the time to judge client certificates by. Nil: time.Now.
	Now func() time.Time

	// IsBusy reports whether an error of an RA key says that its holder has too much to do, so that the same request may
	// succeed later. Nil: only errors that wrap enroll.ErrBusy say so.
	IsBusy func(error) bool
}

// Profile is one enrollment profile as SCEP sees it.
type Profile struct {
	Name      string
	Default   bool   // also serves the addresses other servers had, as /pkiclient.exe
	PlainHTTP bool   // also served on the plain listener
	Chain     bool   // the reply carries the CA certificate behind the issued one
	GetCACert string // "ra+chain", "ra+ca" (the same while every CA is a root) or "ra"

	Renewal bool   // GetCACaps says that certificates are renewed here
	Legacy  Legacy // what only old devices need
	RawCSR  bool   // clients that send their request without an envelope are served, over TLS only
	MTLS    MTLS   // whether devices show a certificate in TLS as well

	CA, RA      *x509.Certificate // RA is issued by CA and has an RSA key
	RASigner    crypto.Signer     // the key in RA, to sign
	RADecrypter crypto.Decrypter  // and to decrypt; see cms.EnvelopedData.Decrypt for what it is asked
}

// MTLS says what the sibling route /scep-mtls/<profile> asks for besides everything that SCEP asks for itself. The zero value is off.
type MTLS struct {
	Mode string         // "" or "off": the route is not there; "optional"; "required": and /scep/<profile> issues nothing
	Pool *x509.CertPool // the bundle that client certificates must chain to; nil only if the mode is off
}

const (
	mtlsOff      = "off"
	mtlsOptional = "optional"
	mtlsRequired = "required"
)

// Server answers SCEP requests for a set of profiles. It is safe for concurrent use.
type Server struct {
	engine   *enroll.Engine
	log      *slog.Logger
	source   func(*http.Request) netip.Addr
	now      func() time.Time
	isBusy   func(error) bool
	profiles map[string]*profile // by name
	fallback *profile            // the default one; nil if there is none
	slots    chan struct{}       // one element per PKIOperation in flight
	large    chan struct{}       // one element per large body coming in
}

// profile is a Profile that passed the checks, with its GetCACaps and GetCACert answers ready.
type profile struct {
	Profile
	policy     cms.Policy // what requests may use
	caps       []byte
	caCert     []byte
	caCertType string
}

const defaultInFlight = 32

// New checks the configuration and returns a server that is ready to answer.
func New(c Config) (*Server, error) {
	if c.Engine == nil || c.Log == nil {
		return nil, errors.New("scep: configuring the server: no engine or no logger")
	}
	if c.InFlight == 0 {
		c.InFlight = defaultInFlight
	}
	if c.InFlight < 0 {
		return nil, fmt.Errorf("scep: configuring the server: %d requests in flight", c.InFlight)
	}
	if c.Source == nil {
		c.Source = remoteAddr
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.IsBusy == nil {
		c.IsBusy = func(error) bool { return false }
	}
	s := &Server{
		engine:   c.Engine,
		log:      c.Log,
		source:   c.Source,
		now:      c.Now,
		isBusy:   c.IsBusy,
		profiles: make(map[string]*profile),
		slots:    make(chan struct{}, c.InFlight),
		large:    make(chan struct{}, maxLarge),
	}
	for _, p := range c.Profiles {
		checked, err := newProfile(p)
		if err != nil {
			return nil, fmt.Errorf("scep: profile %q: %w", p.Name, err)
		}
		if s.profiles[p.Name] != nil {
			return nil, fmt.Errorf("scep: profile %q is there twice", p.Name)
		}
		if p.Default && s.fallback != nil {
			return nil, fmt.Errorf("scep: profiles %q and %q are both the default", s.fallback.Name, p.Name)
		}
		s.profiles[p.Name] = checked
		if p.Default {
			s.fallback = checked
		}
	}
	if len(s.profiles) == 0 {
		return nil, errors.New("scep: configuring the server: no profiles")
	}
	return s, nil
}

// newProfile checks a profile and builds its GetCACert answer (RFC 8894 §4.2.1): the RA certificate first, because
// clients that do not look at key usage encrypt to the first; a single certificate is sent as it is, several as a
// degenerate SignedData.
func newProfile(p Profile) (*profile, error) {
	switch {
	case p.Name == "":
		return nil, errors.New("no name")
	case p.CA == nil || p.RA == nil || p.RASigner == nil || p.RADecrypter == nil:
		return nil, errors.New("the CA certificate, the RA certificate or the RA key is missing")
	}
	key, ok := p.RA.PublicKey.(*rsa.PublicKey)
	if !ok {
		return nil, errors.New("the RA certificate has no RSA key, and no SCEP client can encrypt to another")
	}
	if !key.Equal(p.RASigner.Public()) || !key.Equal(p.RADecrypter.Public()) {
		return nil, errors.New("the RA key is not the one in the RA certificate")
	}
	if !bytes.Equal(p.RA.RawIssuer, p.CA.RawSubject) {
		return nil, errors.New("the RA certificate was not issued by the CA")
	}
	switch p.MTLS.Mode {
	case "", mtlsOff:
	case mtlsOptional, mtlsRequired:
		if p.MTLS.Pool == nil {
			return nil, errors.New("client certificates are asked for, and there is no bundle to verify them against")
		}
	default:
		return nil, fmt.Errorf("the mode of mTLS is %q: want off, optional or required", p.MTLS.Mode)
	}
	checked := &profile{Profile: p, policy: p.Legacy.policy(), caps: capabilities(p)}
	switch p.GetCACert {
	case "ra":
		checked.caCert, checked.caCertType = p.RA.Raw, "application/x-x509-ca-cert"
	case "ra+chain", "ra+ca":
		b, err := cms.CertsOnly([][]byte{p.RA.Raw, p.CA.Raw})
		if err != nil {
			return nil, fmt.Errorf("building the GetCACert answer: %w", err)
		}
		checked.caCert, checked.caCertType = b, "application/x-x509-ca-ra-cert"
	default:
		return nil, fmt.Errorf("GetCACert is %q: want ra+chain, ra+ca or ra", p.GetCACert)
	}
	return checked, nil
}

// Handler answers on one listener that asks for no client certificate: withoutTLS tells whether that is the one without TLS, where
// only profiles with PlainHTTP are served. It must be given the request as it came: http.ServeMux would redirect paths that are not
// clean, which no SCEP client follows.
func (s *Server) Handler(withoutTLS bool) http.Handler {
	kind := secure
	if withoutTLS {
		kind = plain
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, kind) })
}

// HandlerMTLS answers /scep-mtls/<profile> on the listener that asks for client certificates (tls.RequestClientCert: crypto/tls must
// not verify them, each profile has its own bundle). See Handler for the paths.
func (s *Server) HandlerMTLS() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, mutual) })
}

// remoteAddr is the address at the other end of the connection, invalid if that is not an IP connection.
func remoteAddr(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}
