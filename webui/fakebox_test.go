package webui

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// fakeBox remembers what was ordered and changes as a box would. Its profile corp has one of everything
// that can be replaced.
type fakeBox struct {
	now func() time.Time

	mu          sync.Mutex
	authorities []AuthorityInfo
	settings    map[string]*ProfileSettings
	tls         []TLSInfo
	rollback    *Rollback
	orders      []string // what was ordered, with the actor
	fail        error    // of the next order
}

func newFakeBox(authorities []AuthorityInfo, now func() time.Time) *fakeBox {
	b := &fakeBox{now: now, authorities: authorities, settings: map[string]*ProfileSettings{}}
	ca := authorities[0].Generations[0].Certificate
	for i, name := range []string{"Demo Devices CA", "Demo Modern CA", "Plant 7 CA"} {
		authorities[i].Subject, authorities[i].Algorithm = "CN="+name+",O=Signet Demo", "ecdsa-p256"
	}
	b.tls = []TLSInfo{{Certificate: authorities[1].RAs[0].Certificate}}
	b.settings["corp"] = &ProfileSettings{Profile: "corp", Authority: "devices", Intune: true,
		Bundles:   []BundleSetting{{Bundle: BundleEST, File: "trust/bootstrap.pem", Certificates: []*x509.Certificate{ca}}},
		Challenge: &ChallengeSetting{Public: "corp-demo-challenge"}, Passwords: []PasswordSetting{{User: "device", For: []string{"*.example.com"}}},
		Secrets: []SecretSetting{{Kind: SecretCompliance}}}
	b.settings["modern"] = &ProfileSettings{Profile: "modern", Authority: "modern"}
	for _, name := range []string{"intune", "iot"} {
		b.settings[name] = &ProfileSettings{Profile: name, Authority: "devices"}
	}
	return b
}

// allIssue leaves out the authority that waits for its chain, so that the box is ready.
func allIssue(c *Config) {
	b := c.Box.(*fakeBox)
	b.authorities = b.authorities[:2]
}

// Rollback implements Box.
func (b *fakeBox) Rollback() *Rollback {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rollback
}

// AcknowledgeRollback implements Box.
func (b *fakeBox) AcknowledgeRollback(actor string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rollback == nil {
		return &ConflictError{"the box does not wait for that", "go on"}
	}
	if err := b.order(actor, "acknowledge rollback"); err != nil {
		return err
	}
	b.rollback = nil
	return nil
}

// order writes down what was ordered, unless the next order has to fail.
func (b *fakeBox) order(actor, format string, args ...any) error {
	if err := b.fail; err != nil {
		b.fail = nil
		return err
	}
	b.orders = append(b.orders, actor+": "+fmt.Sprintf(format, args...))
	return nil
}

func (b *fakeBox) last() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.orders) == 0 {
		return ""
	}
	return b.orders[len(b.orders)-1]
}

func (b *fakeBox) failNext(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail = err
}

func (b *fakeBox) Authorities() []AuthorityInfo {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.authorities)
}

// change does f to an authority's copy, so that what was returned before stays as it was.
func (b *fakeBox) change(name, actor, what string, f func(*AuthorityInfo)) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.authorities {
		if b.authorities[i].Name != name {
			continue
		}
		if err := b.order(actor, "%s %s", what, name); err != nil {
			return err
		}
		b.authorities[i].Generations = slices.Clone(b.authorities[i].Generations)
		f(&b.authorities[i])
		return nil
	}
	return ErrNoAuthority
}

func (b *fakeBox) AuthorityRequest(name string) (AuthorityRequest, error) {
	switch name {
	case "plant":
		return AuthorityRequest{Generation: 1, PEM: []byte("-----BEGIN CERTIFICATE REQUEST-----\n"),
			Certification: &Certification{Attest: []byte{1}, Signature: []byte{2}, Public: []byte{3}, AttestationKey: []byte{4}}}, nil
	case "devices", "modern":
		return AuthorityRequest{}, &ConflictError{"this authority is its own root", "ask for a subordinate's request"}
	}
	return AuthorityRequest{}, ErrNoAuthority
}

func (b *fakeBox) InstallChain(name string, pem []byte, actor string) error {
	return b.change(name, actor, "install", func(a *AuthorityInfo) {
		a.Generations[0].State, a.Generations[0].Certificate = GenerationActive, b.authorities[0].Generations[0].Certificate
		a.Generations[0].Chain = []*x509.Certificate{b.authorities[1].Generations[0].Certificate}
	})
}

func (b *fakeBox) PrepareNext(name, actor string) error {
	return b.change(name, actor, "prepare", func(a *AuthorityInfo) {
		a.Generations = append(a.Generations, GenerationInfo{Number: 2, State: GenerationNext, Certificate: b.authorities[1].Generations[0].Certificate})
	})
}

func (b *fakeBox) ActivateNext(name, actor string) error {
	for _, a := range b.Authorities() {
		if a.Name == name && len(a.Generations) < 2 {
			return &ConflictError{"no next generation was prepared", "prepare one first"}
		}
	}
	return b.change(name, actor, "activate", func(a *AuthorityInfo) {
		a.Generations[0].State, a.Generations[0].Superseded = GenerationEarlier, b.now()
		a.Generations[1].State = GenerationActive
	})
}

func (b *fakeBox) CancelNext(name, actor string) error {
	return b.change(name, actor, "cancel", func(a *AuthorityInfo) { a.Generations = a.Generations[:1] })
}

func (b *fakeBox) locked(actor, format string, args ...any) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.order(actor, format, args...)
}

func (b *fakeBox) RotateRA(actor string) error { return b.locked(actor, "rotate ra") }

func (b *fakeBox) TLSRequest() ([]byte, error) {
	return []byte("-----BEGIN CERTIFICATE REQUEST-----\n"), nil
}

func (b *fakeBox) InstallTLS(pem []byte, actor string) error {
	if strings.Count(string(pem), "BEGIN") < 2 {
		return &OrderError{errors.New("the chain ends below its root")}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.order(actor, "install tls"); err != nil {
		return err
	}
	b.tls = []TLSInfo{{Certificate: b.tls[0].Certificate, Uploaded: true}}
	return nil
}

func (b *fakeBox) DropTLS(actor string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.order(actor, "drop tls"); err != nil {
		return err
	}
	b.tls = []TLSInfo{{Certificate: b.tls[0].Certificate}}
	return nil
}

func (b *fakeBox) TLS() []TLSInfo {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.tls)
}

func (b *fakeBox) Policy(profile string) ([]Rule, error) {
	if _, err := b.Settings(profile); err != nil {
		return nil, err
	}
	return []Rule{
		{Group: "Who gets a certificate", About: "Approval", Says: []string{"Issued at once, unless the common name ends in .approve.test: then an operator decides"}},
		{Group: "What is in a certificate", About: "Keys", Says: []string{"RSA of at least 2048 bits", "ECDSA on P-256 or P-384"}},
		{Group: "What is in a certificate", About: "Validity", Says: []string{"90 days"}},
		{Group: "How devices reach it", About: "Old cryptography", Says: []string{"SHA-1 digests and signatures"}, Weak: true},
	}, nil
}

func (b *fakeBox) Settings(profile string) (ProfileSettings, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, ok := b.settings[profile]
	if !ok {
		return ProfileSettings{}, ErrNoProfile
	}
	out := *s
	out.Bundles, out.Passwords, out.Secrets = slices.Clone(s.Bundles), slices.Clone(s.Passwords), slices.Clone(s.Secrets)
	return out, nil
}

// set orders something of a profile and changes its settings.
func (b *fakeBox) set(profile, actor, what string, f func(*ProfileSettings, *Change)) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, ok := b.settings[profile]
	if !ok {
		return ErrNoProfile
	}
	if err := b.order(actor, "%s at %s", what, profile); err != nil {
		return err
	}
	f(s, &Change{By: actor, At: b.now()})
	return nil
}

func (b *fakeBox) SwitchProfile(profile string, off bool, reason, actor string) error {
	return b.set(profile, actor, fmt.Sprintf("switch off=%v %s", off, reason), func(s *ProfileSettings, by *Change) {
		s.Off = nil
		if off {
			s.Off = &Switch{Reason: reason, Change: *by}
		}
	})
}

func (b *fakeBox) ReplaceBundle(profile, bundle string, pem []byte, actor string) error {
	return b.set(profile, actor, fmt.Sprintf("bundle %s of %d bytes", bundle, len(pem)), func(s *ProfileSettings, by *Change) {
		if pem == nil {
			by = nil
		}
		s.Bundles = []BundleSetting{s.Bundles[0]}
		s.Bundles[0].Replaced = by
	})
}

func (b *fakeBox) ReplaceChallenge(profile, hash, actor string) error {
	return b.set(profile, actor, "challenge "+hash, func(s *ProfileSettings, by *Change) {
		if hash == "" {
			by = nil
		}
		s.Challenge = &ChallengeSetting{Replaced: by}
	})
}

func (b *fakeBox) ReplacePassword(profile, user, hash, actor string) error {
	return b.set(profile, actor, "password of "+user+" "+hash, func(s *ProfileSettings, by *Change) {
		if hash == "" {
			by = nil
		}
		s.Passwords = []PasswordSetting{{User: user, Replaced: by}}
	})
}

func (b *fakeBox) PutSecret(name string, value []byte, actor string) error {
	kind, profile, _ := strings.Cut(name, "/")
	return b.set(profile, actor, fmt.Sprintf("secret %s of %d bytes", kind, len(value)), func(s *ProfileSettings, _ *Change) {
		s.Secrets = []SecretSetting{{Kind: kind, Set: true}}
	})
}

func (b *fakeBox) IntuneRequest(profile, _ string) ([]byte, error) {
	return []byte("-----BEGIN CERTIFICATE-----\n"), nil
}
