// Package scep speaks the Simple Certificate Enrolment Protocol (RFC 8894) over HTTP: it turns what a device sends into an
// enroll.Request, and the enroll.Result or the refusal into what the device understands.
//
// It decides nothing about certificates. What it does decide is the order of checks on bytes from anyone: size, load,
// signature, message type, algorithms, and only then the RA key.
package scep

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"

	"signet.internal/appliance/cms"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/exchange"
)

// Config is what a Server is made of. Every field is required.
type Config struct {
	exchange.Config
	Engine   *enroll.Engine
	Profiles []Profile // at least one, names unique, at most one Default

	// Slots bounds the PKIOperations being worked on at a time, on all listeners together; one more is answered 503 before a byte of it
	// is parsed.
	Slots *exchange.Slots
}

// Profile is one enrollment profile as SCEP sees it.
type Profile struct {
	Name      string
	Default   bool   // also serves the addresses other servers had, as /pkiclient.exe
	PlainHTTP bool   // also served on the plain listener
	LegacyTLS bool   // also served on listeners for devices without TLS 1.3
	Chain     bool   // the reply carries the CA certificate and those above it behind the issued one
	GetCACert string // "ra+chain" (RA, CA and what is above it up to the root), "ra+ca" or "ra"

	// PreviousRA lists the earlier RAs in GetCACert as well, behind the newest, for clients that check an answer's signer
	// against that list. Requests to them are opened either way.
	PreviousRA bool

	Renewal bool   // GetCACaps says that certificates are renewed here
	Legacy  Legacy // what only old devices need
	RawCSR  bool   // clients that send their request without an envelope are served, over TLS only
	MTLS    MTLS   // whether devices show a certificate in TLS as well

	// Authority returns the profile's authority; nil is as good as one without CA. It is asked once for each request and returns the
	// same pointer while nothing has changed.
	Authority func() *Authority

	// Off reports whether an administrator switched the profile off; nil: never. GetCACaps, GetCACert and GetNextCACert are then
	// answered 404; whether requests are is the engine's to say. GetCert and GetCRL are answered still.
	Off func() bool
}

// MTLS says what the sibling route /scep-mtls/<profile> asks for besides everything that SCEP asks for itself. The zero value is off.
type MTLS struct {
	Mode string // "" or "off": the route is not there; "optional"; "required": and /scep/<profile> issues nothing

	// Pool returns the bundle that client certificates must chain to, for each request anew; nil only if the mode is off. A bundle
	// that is nil lets nobody in.
	Pool func() *x509.CertPool
}

const (
	mtlsOff      = "off"
	mtlsOptional = "optional"
	mtlsRequired = "required"
)

// Values of Profile.GetCACert.
const (
	getCACertChain = "ra+chain"
	getCACertCA    = "ra+ca"
	getCACertRA    = "ra"
)

// Server answers SCEP requests for a set of profiles. It is safe for concurrent use.
type Server struct {
	engine   *enroll.Engine
	config   exchange.Config
	profiles map[string]*profile // by name
	fallback *profile            // the default one; nil if there is none
	slots    *exchange.Slots
	large    chan struct{} // one element per large body in memory
}

// profile is a Profile that passed the checks.
type profile struct {
	Profile
	policy  cms.Policy            // what requests may use
	offered atomic.Pointer[offer] // of the Authority that was seen last
}

// New checks the configuration and returns a server that is ready to answer.
func New(c Config) (*Server, error) {
	if c.Engine == nil || c.Log == nil || c.Slots == nil {
		return nil, errors.New("scep: configuring the server: engine, log and slots are required")
	}
	s := &Server{
		engine: c.Engine, config: c.WithDefaults(), profiles: make(map[string]*profile), slots: c.Slots,
		large: make(chan struct{}, maxLarge),
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

// newProfile checks a profile, and its Authority where there is one already.
func newProfile(p Profile) (*profile, error) {
	switch {
	case p.Name == "":
		return nil, errors.New("no name")
	case p.Authority == nil:
		return nil, errors.New("no authority")
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
	switch p.GetCACert {
	case getCACertChain, getCACertCA, getCACertRA:
	default:
		return nil, fmt.Errorf("GetCACert is %q: want ra+chain, ra+ca or ra", p.GetCACert)
	}
	checked := &profile{Profile: p, policy: p.Legacy.policy()}
	if _, err := checked.offer(); err != nil && !errors.Is(err, enroll.ErrNoAuthority) {
		return nil, err
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

// HandlerLegacy answers on a listener for devices without TLS 1.3, where only profiles with LegacyTLS are served: as HandlerMTLS on
// one that asks for client certificates, else as Handler.
func (s *Server) HandlerLegacy(isMutual bool) http.Handler {
	kind := legacy
	if isMutual {
		kind = legacyMutual
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, kind) })
}
