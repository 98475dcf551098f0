package appliance

import (
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/challenge"
	"signet.internal/appliance/keys"
	"signet.internal/appliance/store"
	"signet.internal/provision"
	"signet.internal/webui"
)

// settings is one profile as it is now: what the site says, and what an administrator put in place of
// it while the box runs. nil fields are what the profile does not take.
type settings struct {
	profile   provision.Profile
	set       *challenge.Set
	static    *challenge.Static
	oneTime   *challenge.OneTime
	signed    *challenge.Signed
	passwords *challenge.Passwords
	hook      *complianceHook
	intune    *intuneService
	bundles   []*bundle // in the site's order

	off    atomic.Pointer[store.Override] // an administrator switched it off; nil: it is on
	hashes hashes
}

// hashes are the hashes of a profile's shared challenge and passwords. Orders change them one at a time.
type hashes struct {
	mu   sync.Mutex
	base provision.Hashes          // of the site
	put  map[string]store.Override // in their place: by user, the challenge under ""
}

// Names of overrides: a kind and a profile, and what of it.
func overrideOff(profile string) string            { return "off/" + profile }
func overrideBundle(profile, bundle string) string { return "bundle/" + profile + "/" + bundle }
func overrideChallenge(profile string) string      { return "challenge/" + profile }
func overridePassword(profile, user string) string { return "password/" + profile + "/" + user }

// newSettings makes the settings of every profile, in the site's order. Verifications of secrets share
// one bound.
func (a *Appliance) newSettings() ([]*settings, error) {
	overrides, err := a.store.Overrides()
	if err != nil {
		return nil, err
	}
	gate := challenge.NewGate(2) // each verification takes as much memory as its hash says, usually 64 MiB
	var all []*settings
	for _, p := range a.config.Site.Profiles {
		s, err := a.newProfile(p, gate, overrides)
		if err != nil {
			return nil, fmt.Errorf("profile %s: %w", p.Name, err)
		}
		all = append(all, s)
	}
	return all, nil
}

func (a *Appliance) newProfile(p provision.Profile, gate *challenge.Gate, overrides map[string]store.Override) (*settings, error) {
	s := &settings{profile: p, hashes: hashes{base: p.Hashes(), put: map[string]store.Override{}}}
	if err := s.newChallenges(a.store, gate); err != nil {
		return nil, err
	}
	if c := p.Compliance; c != nil {
		s.hook = newComplianceHook(a.config.Keys, p.Name, c)
	}
	kinds := challenge.Config{Static: s.static, OneTime: s.oneTime, Signed: s.signed}
	if i := p.SCEP.Challenges.Intune; i != nil {
		s.intune = a.newIntune(p.Name, i)
		kinds.Intune = s.intune.Validate
	}
	s.set = challenge.NewSet(kinds)
	if err := s.newBundles(a.config.Site, a.config.Now); err != nil {
		return nil, err
	}
	return s, s.restore(overrides)
}

// newChallenges makes what verifies the profile's challenges and passwords.
func (s *settings) newChallenges(st *store.Store, gate *challenge.Gate) (err error) {
	c := s.profile.SCEP.Challenges
	if c.StaticHash != "" {
		if s.static, err = gate.NewStatic(c.StaticHash); err != nil {
			return err
		}
	}
	if c.OneTime != nil {
		s.oneTime, err = challenge.NewOneTime(challenge.OneTimeConfig{Store: st, Profile: s.profile.Name, TTL: c.OneTime.TTL})
		if err != nil {
			return err
		}
	}
	if c.Signed != nil {
		if s.signed, err = newSigned(&s.profile, st); err != nil {
			return err
		}
	}
	if e := s.profile.EST; e != nil && len(e.Basic) > 0 {
		s.passwords, err = gate.NewPasswords(s.hashes.users())
	}
	return err
}

func newSigned(p *provision.Profile, st *store.Store) (*challenge.Signed, error) {
	s := p.SCEP.Challenges.Signed
	signers, err := challenge.NewSigners(s.Certificates)
	if err != nil {
		return nil, err
	}
	return challenge.NewSigned(challenge.SignedConfig{
		Store: st, Signers: signers,
		Issuer: s.Issuer, Audience: s.Audience, Validity: s.Validity, Skew: s.Skew, PerDevice: s.PerDevice24h,
		Pinned: p.Pinned(),
	})
}

// restore puts back in force what administrators replaced in earlier runs. What is about something the
// site does not have any more stays in the store and means nothing.
func (s *settings) restore(overrides map[string]store.Override) error {
	if o, ok := overrides[overrideOff(s.profile.Name)]; ok {
		s.off.Store(&o)
	}
	for _, b := range s.bundles {
		if o, ok := overrides[overrideBundle(s.profile.Name, b.name)]; ok {
			certificates, err := parseCertificates(o.Value)
			if err != nil {
				return fmt.Errorf("replaced bundle %s: %w", b.name, err)
			}
			if err := b.replace(certificates, &webui.Change{By: o.By, At: o.At}); err != nil {
				return fmt.Errorf("replaced bundle %s: %w", b.name, err)
			}
		}
	}
	if o, ok := overrides[overrideChallenge(s.profile.Name)]; ok && s.static != nil {
		s.hashes.put[""] = o
	}
	for _, u := range s.hashes.base.Basic {
		if o, ok := overrides[overridePassword(s.profile.Name, u.User)]; ok {
			s.hashes.put[u.User] = o
		}
	}
	return s.useHashes()
}

// useHashes has the hashes verified against that are in force. The caller holds hashes.mu, or is alone.
func (s *settings) useHashes() error {
	if s.static != nil {
		hash := s.hashes.base.Static
		if o, ok := s.hashes.put[""]; ok {
			hash = string(o.Value)
		}
		if err := s.static.Replace(hash); err != nil {
			return err
		}
	}
	if s.passwords != nil {
		return s.passwords.Replace(s.hashes.users())
	}
	return nil
}

func (h *hashes) users() []challenge.User {
	var users []challenge.User
	for _, u := range h.base.Basic {
		user := challenge.User{Name: u.User, Hash: u.Hash, For: u.For}
		if o, ok := h.put[u.User]; ok {
			user.Hash = string(o.Value)
		}
		users = append(users, user)
	}
	return users
}

// isOff says whether the profile issues nothing now: an administrator switched it off, or a certificate
// it trusts has ended. Whoever signs with that one's successor would be refused anyway, and an operator
// has to notice. Other profiles go on.
func (s *settings) isOff(now time.Time) bool {
	if s.off.Load() != nil {
		return true
	}
	cert, _ := s.expired(now)
	return cert != nil
}

// expired is the first certificate of the profile's bundles that has ended, and the bundle; nil while all
// are good.
func (s *settings) expired(now time.Time) (*x509.Certificate, *bundle) {
	for _, b := range s.bundles {
		for _, cert := range b.now().certificates {
			if now.After(cert.NotAfter) {
				return cert, b
			}
		}
	}
	return nil, nil
}

// settingsOf finds a profile's; "" means the default profile.
func (a *Appliance) settingsOf(profile string) (*settings, error) {
	for _, s := range a.settings {
		if s.profile.Name == profile || profile == "" && s.profile.Default {
			return s, nil
		}
	}
	return nil, webui.ErrNoProfile
}

// describe is what an administrator is shown.
func (s *settings) describe(holder *keys.Client) webui.ProfileSettings {
	out := webui.ProfileSettings{Profile: s.profile.Name, Authority: s.profile.Authority, Intune: s.intune != nil}
	if o := s.off.Load(); o != nil {
		out.Off = &webui.Switch{Reason: string(o.Value), Change: webui.Change{By: o.By, At: o.At}}
	}
	for _, b := range s.bundles {
		now := b.now()
		out.Bundles = append(out.Bundles, webui.BundleSetting{Bundle: b.name, File: b.file, Certificates: now.certificates, Replaced: now.replaced})
	}
	s.hashes.mu.Lock()
	defer s.hashes.mu.Unlock()
	replaced := func(name string) *webui.Change {
		if o, ok := s.hashes.put[name]; ok {
			return &webui.Change{By: o.By, At: o.At}
		}
		return nil
	}
	if s.static != nil {
		out.Challenge = &webui.ChallengeSetting{Replaced: replaced("")}
	}
	for _, u := range s.hashes.base.Basic {
		out.Passwords = append(out.Passwords, webui.PasswordSetting{User: u.User, For: u.For, Replaced: replaced(u.User)})
	}
	if s.hook != nil {
		_, err := s.hook.key()
		out.Secrets = append(out.Secrets, webui.SecretSetting{Kind: webui.SecretCompliance, Set: err == nil})
	}
	return out
}

// settingRecord is a record about a setting that an administrator changed.
func (a *Appliance) settingRecord(action audit.Action, s *settings, actor, reason string) audit.Record {
	record := a.record(action)
	record.Actor, record.Profile, record.Reason = actor, s.profile.Name, reason
	return record
}

// put records an override, or its end where value is nil.
func (a *Appliance) put(name string, value []byte, record audit.Record) (*store.Override, error) {
	if value == nil {
		err := a.store.RemoveOverride(name, record)
		if errors.Is(err, store.ErrNotFound) {
			return nil, &webui.ConflictError{What: "what was baked is in use already", Mend: "Nothing has to be done."}
		}
		return nil, err
	}
	o := store.Override{Value: value, By: record.Actor, At: record.Time}
	return &o, a.store.SetOverride(name, o, record)
}

// switchProfile has a profile issue nothing from now on, or issue again.
func (a *Appliance) switchProfile(s *settings, off bool, reason, actor string) error {
	if !off {
		if _, err := a.put(overrideOff(s.profile.Name), nil, a.settingRecord(audit.ProfileSwitched, s, actor, "on")); err != nil {
			return err
		}
		s.off.Store(nil)
		return nil
	}
	o, err := a.put(overrideOff(s.profile.Name), []byte(reason), a.settingRecord(audit.ProfileSwitched, s, actor, "off: "+reason))
	if err == nil {
		s.off.Store(o)
	}
	return err
}

// replaceChallenge replaces the hash of the shared challenge; "" goes back to the baked one.
func (a *Appliance) replaceChallenge(s *settings, hash, actor string) error {
	if s.static == nil {
		return &webui.ConflictError{What: "the profile takes no challenge that all devices share", Mend: "Add challenges: {static: …} to the profile and bake the site again."}
	}
	return a.replaceHash(s, "", overrideChallenge(s.profile.Name), hash, a.settingRecord(audit.TrustReplaced, s, actor, "challenge"))
}

// replacePassword replaces the hash of a user's password; "" goes back to the baked one.
func (a *Appliance) replacePassword(s *settings, user, hash, actor string) error {
	for _, u := range s.hashes.base.Basic {
		if u.User == user {
			return a.replaceHash(s, user, overridePassword(s.profile.Name, user), hash, a.settingRecord(audit.TrustReplaced, s, actor, "password of "+user))
		}
	}
	return &webui.ConflictError{What: "the profile has no such user", Mend: "Add the user under est: in the profile and bake the site again."}
}

func (a *Appliance) replaceHash(s *settings, name, override, hash string, record audit.Record) error {
	s.hashes.mu.Lock()
	defer s.hashes.mu.Unlock()
	before, had := s.hashes.put[name]
	var value []byte
	if hash == "" {
		record.Reason += ": the baked one again"
		delete(s.hashes.put, name)
	} else {
		value = []byte(hash)
		s.hashes.put[name] = store.Override{Value: value, By: record.Actor, At: record.Time}
	}
	undo := func() {
		delete(s.hashes.put, name)
		if had {
			s.hashes.put[name] = before
		}
	}
	if err := s.useHashes(); err != nil { // a hash that is none
		undo()
		return errors.Join(&webui.OrderError{Err: err}, s.useHashes())
	}
	if _, err := a.put(override, value, record); err != nil {
		undo()
		return errors.Join(err, s.useHashes())
	}
	return nil
}
