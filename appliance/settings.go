package appliance

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/challenge"
	"signet.internal/appliance/challenge/phc"
	"signet.internal/appliance/handover"
	"signet.internal/appliance/store"
	"signet.internal/provision"
	"signet.internal/webui"
)

// settings is one profile as it is now: what the site says, and what an administrator put in place of
// it while the box runs. nil fields are what the profile does not take.
//
// Every order is checked, then recorded, then taken into use: what is refused changes nothing, and what
// is in use survives a restart.
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

	switching sync.Mutex                     // taken by orders to switch the profile
	off       atomic.Pointer[store.Override] // an administrator switched it off; nil: it is on
	hashes    hashes
}

// hashes are the hashes of a profile's shared challenge and passwords. Orders and reloads take mu.
type hashes struct {
	mu     sync.Mutex
	base   provision.Hashes          // of the site
	put    map[string]store.Override // in their place: by user, the challenge under ""
	static string                    // the one in use
	broken atomic.Pointer[string]    // says which of put cannot be used any more; nil: none
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
	s.newBundles(a.config.Site, overrides)
	if err := s.newChallenges(a.store, gate); err != nil {
		return nil, err
	}
	if c := p.Compliance; c != nil {
		s.hook = newComplianceHook(a.config.Keys, p.Name, c, s.bundle(webui.BundleCompliance).now().pool)
	}
	kinds := challenge.Config{Static: s.static, OneTime: s.oneTime, Signed: s.signed}
	if i := p.SCEP.Challenges.Intune; i != nil {
		s.intune = a.newIntune(p.Name, i, s.bundle(webui.BundleIntune).now().pool, overrides)
		kinds.Intune = s.intune.Validate
	}
	s.set = challenge.NewSet(kinds)
	return s, s.restore(overrides)
}

// newChallenges makes what verifies the profile's challenges and passwords.
func (s *settings) newChallenges(st *store.Store, gate *challenge.Gate) (err error) {
	c := s.profile.SCEP.Challenges
	if c.StaticHash != "" {
		if s.static, err = gate.NewStatic(c.StaticHash); err != nil {
			return err
		}
		s.hashes.static = c.StaticHash
	}
	if c.OneTime != nil {
		s.oneTime, err = challenge.NewOneTime(challenge.OneTimeConfig{Store: st, Profile: s.profile.Name, TTL: c.OneTime.TTL})
		if err != nil {
			return err
		}
	}
	if c.Signed != nil {
		certificates := s.bundle(webui.BundleSigned).now().certificates
		if len(certificates) == 0 { // those in their place cannot be used, and the profile is off
			certificates = c.Signed.Certificates
		}
		if s.signed, err = newSigned(&s.profile, st, certificates); err != nil {
			return err
		}
	}
	if e := s.profile.EST; e != nil && len(e.Basic) > 0 {
		var users []challenge.User
		for _, u := range e.Basic {
			users = append(users, challenge.User{Name: u.User, Hash: u.Hash, For: u.For})
		}
		s.passwords, err = gate.NewPasswords(users)
	}
	return err
}

func newSigned(p *provision.Profile, st *store.Store, certificates []*x509.Certificate) (*challenge.Signed, error) {
	s := p.SCEP.Challenges.Signed
	signers, err := challenge.NewSigners(certificates)
	if err != nil {
		return nil, err
	}
	return challenge.NewSigned(challenge.SignedConfig{
		Store: st, Signers: signers,
		Issuer: s.Issuer, Audience: s.Audience, Validity: s.Validity, Skew: s.Skew, PerDevice: s.PerDevice24h,
		Pinned: p.Pinned(),
	})
}

// restore puts back in force what administrators switched off and which hashes they replaced in earlier
// runs. What is about something the site does not have any more stays in the store and means nothing.
func (s *settings) restore(overrides map[string]store.Override) error {
	if o, ok := overrides[overrideOff(s.profile.Name)]; ok {
		s.off.Store(&o)
	}
	if o, ok := overrides[overrideChallenge(s.profile.Name)]; ok {
		s.hashes.put[""] = o
	}
	for name, o := range overrides {
		if user, ok := strings.CutPrefix(name, overridePassword(s.profile.Name, "")); ok && user != "" {
			s.hashes.put[user] = o
		}
	}
	s.hashes.mu.Lock()
	defer s.hashes.mu.Unlock()
	return s.useHashes()
}

// useHashes has the hashes verified against that are in force. The caller holds hashes.mu.
//
// A replaced hash that cannot be used any more, because its bounds changed with the program, is no reason
// to take the one it replaced again: the profile is off then.
func (s *settings) useHashes() error {
	h := &s.hashes
	var broken []string
	hashOf := func(base, name, what string) string {
		o, ok := h.put[name]
		if !ok {
			return base
		}
		if err := checkHash(string(o.Value)); err != nil {
			broken = append(broken, fmt.Sprintf("the replaced %s cannot be used (%v)", what, err))
			return base
		}
		return string(o.Value)
	}
	static := hashOf(h.base.Static, "", "challenge")
	if s.static == nil {
		static, broken = "", nil
	}
	var users []challenge.User
	for _, u := range h.base.Basic {
		users = append(users, challenge.User{Name: u.User, Hash: hashOf(u.Hash, u.User, fmt.Sprintf("password of %q", u.User)), For: u.For})
	}
	if s.passwords != nil {
		if err := s.passwords.Replace(users); err != nil {
			return err
		}
	}
	if s.static != nil && static != h.static { // else it would forget whom it knows
		if err := s.static.Replace(static); err != nil {
			return err
		}
		h.static = static
	}
	h.broken.Store(nil)
	if len(broken) > 0 {
		text := strings.Join(broken, ", ")
		h.broken.Store(&text)
	}
	return nil
}

// checkHash refuses what no challenge or password can be verified against within the box's bounds.
func checkHash(hash string) error {
	_, err := phc.Parse(hash)
	return err
}

// isOff says whether the profile issues nothing now: an administrator switched it off, or it has to be
// stopped. Other profiles go on.
func (s *settings) isOff(now time.Time) bool { return s.off.Load() != nil || s.stopped(now) != nil }

// stopped says why the profile cannot issue: a certificate it trusts has ended (whoever signs with that
// one's successor would be refused anyway, and an operator has to notice), or what replaces a value of
// the site cannot be used any more. nil while it can.
func (s *settings) stopped(now time.Time) *handover.Condition {
	is := func(what, mend string) *handover.Condition {
		return &handover.Condition{What: "Profile " + s.profile.Name + " is off: " + what + ".", Mend: mend}
	}
	for _, b := range s.bundles {
		t := b.now()
		if t.broken != nil {
			return is(fmt.Sprintf("what replaces %s cannot be used (%v)", b.file, t.broken), "Upload the bundle again on the console, or go back to the baked one.")
		}
		cert := firstExpired(t.certificates, now)
		switch {
		case cert == nil:
		case t.replaced != nil:
			return is(expiredText(cert, "what replaces "+b.file), "Upload its successor on the console, or go back to the baked bundle.")
		default:
			return is(expiredText(cert, b.file), "Replace the certificate in the site and bake it again, or put another in its place on the profile's page (or PUT /api/v1/profiles/"+s.profile.Name+"/bundles/"+b.name+"); on a host replace the file and reload.")
		}
	}
	if broken := s.hashes.broken.Load(); broken != nil {
		return is(*broken, "Replace it again on the console, or go back to the baked one.")
	}
	return nil
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
func (s *settings) describe() webui.ProfileSettings {
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
		out.Challenge = &webui.ChallengeSetting{Public: provision.PublicChallenge(s.hashes.static), Replaced: replaced("")}
	}
	for _, u := range s.hashes.base.Basic {
		out.Passwords = append(out.Passwords, webui.PasswordSetting{User: u.User, For: u.For, Replaced: replaced(u.User)})
	}
	if s.hook != nil {
		out.Secrets = append(out.Secrets, webui.SecretSetting{Kind: webui.SecretCompliance, Set: s.hook.hasKey()})
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
			return nil, &webui.ConflictError{What: "what was baked is in use already", Mend: "nothing has to be done"}
		}
		return nil, err
	}
	o := store.Override{Value: value, By: record.Actor, At: record.Time}
	return &o, a.store.SetOverride(name, o, record)
}

// switchProfile has a profile issue nothing from now on, or issue again.
func (a *Appliance) switchProfile(s *settings, off bool, reason, actor string) error {
	s.switching.Lock()
	defer s.switching.Unlock()
	var value []byte
	what := "on"
	if off {
		value, what = append([]byte{}, reason...), "off: "+reason
	} else if s.off.Load() == nil {
		return &webui.ConflictError{What: "the profile is on already", Mend: "nothing has to be done; what else keeps it from issuing stands on the status page"}
	}
	o, err := a.put(overrideOff(s.profile.Name), value, a.settingRecord(audit.ProfileSwitched, s, actor, what))
	if err != nil {
		return err
	}
	s.off.Store(o)
	return nil
}

// replaceChallenge replaces the hash of the shared challenge; "" goes back to the baked one.
func (a *Appliance) replaceChallenge(s *settings, hash, actor string) error {
	if s.static == nil {
		return &webui.ConflictError{What: "the profile takes no challenge that all devices share", Mend: "add challenges: {static: …} to the profile and bake the site again"}
	}
	s.hashes.mu.Lock()
	defer s.hashes.mu.Unlock()
	return a.replaceHash(s, "", overrideChallenge(s.profile.Name), hash, a.settingRecord(audit.TrustReplaced, s, actor, "challenge"))
}

// replacePassword replaces the hash of a user's password; "" goes back to the baked one.
func (a *Appliance) replacePassword(s *settings, user, hash, actor string) error {
	s.hashes.mu.Lock()
	defer s.hashes.mu.Unlock()
	if !slices.ContainsFunc(s.hashes.base.Basic, func(u provision.BasicUser) bool { return u.User == user }) {
		return &webui.ConflictError{What: "the profile has no such user", Mend: "add the user under est: in the profile and bake the site again"}
	}
	return a.replaceHash(s, user, overridePassword(s.profile.Name, user), hash, a.settingRecord(audit.TrustReplaced, s, actor, "password of "+user))
}

// replaceHash replaces the hash under a name of hashes.put. The caller holds hashes.mu.
func (a *Appliance) replaceHash(s *settings, name, override, hash string, record audit.Record) error {
	var value []byte
	if hash == "" {
		record.Reason += ": the baked one again"
	} else if err := checkHash(hash); err != nil {
		return &webui.OrderError{Err: err}
	} else {
		value = []byte(hash)
	}
	o, err := a.put(override, value, record)
	if err != nil {
		return err
	}
	delete(s.hashes.put, name)
	if o != nil {
		s.hashes.put[name] = *o
	}
	return s.useHashes()
}
