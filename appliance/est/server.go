// Package est speaks Enrollment over Secure Transport (RFC 7030, with RFC 8951 and RFC 9908) over HTTP: it turns what a device sends
// into an enroll.Request, and the enroll.Result or the refusal into what the device understands.
//
// It decides nothing about certificates, and nothing about who may have one: what a device offers to prove itself is handed on. What
// it does decide is the order of checks on bytes from anyone: size, load, form, and whether the request belongs to the connection it
// came by.
package est

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"time"

	"signet.internal/appliance/enroll"
	"signet.internal/appliance/exchange"
)

// Config is what a Server is made of. Every field is required.
type Config struct {
	exchange.Config
	Engine   *enroll.Engine
	Profiles []Profile // at least one, names unique, at most one Default

	// Slots bounds the requests with a body being worked on at a time, on all listeners together; one more is answered 503 before a byte
	// of it is parsed.
	Slots *exchange.Slots
}

// Profile is one enrollment profile as EST sees it.
type Profile struct {
	Name      string
	Default   bool // also served without a label (RFC 7030 §3.2.2)
	LegacyTLS bool // also served on the legacy listener
	Basic     bool // a name and a password can be given: a 401 asks for them

	ChannelBinding string // "" or "off", "optional", "required": see checkBinding
	ServerKeyGen   string // the kind of key serverkeygen makes: "rsa-2048", "rsa-3072", "rsa-4096", "ecdsa-p256", "ecdsa-p384"; "": not offered

	// KeySigner signs the keys that serverkeygen encrypts to a device (RFC 7030 §4.4.2): the box's RA, its certificate and its RSA or
	// ECDSA key. Nil: a device that wants its key encrypted is refused.
	KeySigner func() (*x509.Certificate, crypto.Signer)

	CSRAttrs []byte          // what csrattrs answers (RFC 9908), DER; nil: nothing to say
	CACerts  func() [][]byte // what cacerts answers, DER, in this order; none: the authority is not active yet

	RetryAfter time.Duration // what a device whose request waits for a person is told, in whole seconds; 0: one minute
}

// Values of Profile.ChannelBinding.
const (
	bindingOff      = "off"
	bindingOptional = "optional"
	bindingRequired = "required"
)

// Server answers EST requests for a set of profiles. It is safe for concurrent use.
type Server struct {
	engine   *enroll.Engine
	config   exchange.Config
	profiles map[string]*profile // by name
	fallback *profile            // the default one; nil if there is none
	slots    *exchange.Slots
}

// profile is a Profile that passed the checks.
type profile struct {
	Profile
	attributes []byte    // what csrattrs answers
	bare       []byte    // what it answers to libest
	keys       *keyMaker // nil where serverkeygen is not offered
	counters   counters
}

const defaultRetryAfter = time.Minute

// New checks the configuration and returns a server that is ready to answer.
func New(c Config) (*Server, error) {
	if c.Engine == nil || c.Log == nil || c.Slots == nil {
		return nil, errors.New("est: configuring the server: engine, log and slots are required")
	}
	s := &Server{engine: c.Engine, config: c.WithDefaults(), profiles: make(map[string]*profile), slots: c.Slots}
	for _, p := range c.Profiles {
		checked, err := newProfile(p)
		if err != nil {
			return nil, fmt.Errorf("est: profile %q: %w", p.Name, err)
		}
		if s.profiles[p.Name] != nil {
			return nil, fmt.Errorf("est: profile %q is there twice", p.Name)
		}
		if p.Default && s.fallback != nil {
			return nil, fmt.Errorf("est: profiles %q and %q are both the default", s.fallback.Name, p.Name)
		}
		s.profiles[p.Name] = checked
		if p.Default {
			s.fallback = checked
		}
	}
	if len(s.profiles) == 0 {
		return nil, errors.New("est: configuring the server: no profiles")
	}
	return s, nil
}

func newProfile(p Profile) (*profile, error) {
	switch {
	case p.Name == "":
		return nil, errors.New("no name")
	case isOperation(p.Name):
		return nil, errors.New("the name is that of an EST operation, and such a path selects the default profile: choose another")
	case p.CACerts == nil:
		return nil, errors.New("nothing to answer cacerts with")
	case p.RetryAfter < 0 || p.RetryAfter%time.Second != 0:
		return nil, fmt.Errorf("a device cannot be told to come back after %v: give whole seconds", p.RetryAfter)
	}
	if p.RetryAfter == 0 {
		p.RetryAfter = defaultRetryAfter
	}
	checked := &profile{Profile: p, attributes: p.CSRAttrs, counters: newCounters()}
	switch p.ChannelBinding {
	case "", bindingOff, bindingOptional:
	case bindingRequired:
		attributes, err := withChallengePassword(p.CSRAttrs)
		if err != nil {
			return nil, err
		}
		checked.attributes = attributes
	default:
		return nil, fmt.Errorf("the channel binding is %q: want off, optional or required", p.ChannelBinding)
	}
	bare, err := bareTypes(checked.attributes)
	if err != nil {
		return nil, err
	}
	checked.bare = bare
	if p.ServerKeyGen != "" {
		keys, err := newKeyMaker(p.ServerKeyGen)
		if err != nil {
			return nil, err
		}
		checked.keys = keys
	}
	return checked, nil
}

// Handler answers on one listener; legacy tells whether that is the one for devices without TLS 1.3, where only profiles with
// LegacyTLS are served. It must be given the request as it came: http.ServeMux would redirect paths that are not clean, which no EST
// client follows.
//
// Its listener needs tls.Config.ClientAuth to be tls.RequestClientCert (crypto/tls must not verify what each profile has its own
// authorities for), and DynamicRecordSizingDisabled: strongSwan up to 5.9.8 cannot read an answer that comes in several small records.
func (s *Server) Handler(legacy bool) http.Handler {
	l := modern
	if legacy {
		l = old
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, l) })
}
