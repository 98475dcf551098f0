package appliance

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/challenge"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/handover"
	"signet.internal/appliance/store"
	"signet.internal/provision"
	"signet.internal/webui"
)

// profileChallenges is how one profile's challenges are verified; nil fields are kinds it does not
// take.
type profileChallenges struct {
	profile provision.Profile
	set     *challenge.Set
	oneTime *challenge.OneTime
	signed  *challenge.Signed
}

// newChallenges makes the challenges of every profile, in the site's order. Verifications of static
// ones share one bound.
func newChallenges(site *provision.Site, st *store.Store) ([]*profileChallenges, error) {
	gate := challenge.NewGate(2) // each verification takes as much memory as its hash says, usually 64 MiB
	var all []*profileChallenges
	for _, p := range site.Profiles {
		c := &profileChallenges{profile: p}
		kinds := challenge.Config{}
		var err error
		if hash := p.SCEP.Challenges.StaticHash; hash != "" {
			if kinds.Static, err = gate.NewStatic(hash); err != nil {
				return nil, fmt.Errorf("profile %s: %w", p.Name, err)
			}
		}
		if o := p.SCEP.Challenges.OneTime; o != nil {
			if c.oneTime, err = challenge.NewOneTime(challenge.OneTimeConfig{Store: st, Profile: p.Name, TTL: o.TTL}); err != nil {
				return nil, fmt.Errorf("profile %s: %w", p.Name, err)
			}
		}
		if s := p.SCEP.Challenges.Signed; s != nil {
			if c.signed, err = newSigned(&p, st); err != nil {
				return nil, fmt.Errorf("profile %s: %w", p.Name, err)
			}
		}
		kinds.OneTime, kinds.Signed = c.oneTime, c.signed
		c.set = challenge.NewSet(kinds)
		all = append(all, c)
	}
	return all, nil
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

// expired is the first certificate of the profile's bundles in use that has ended by now, and the
// bundle's file; nil while all are good.
func (c *profileChallenges) expired(now time.Time) (cert *x509.Certificate, file string) {
	var trusted []*x509.Certificate
	if c.signed != nil {
		trusted, file = c.signed.Signers().Certificates(), c.profile.SCEP.Challenges.Signed.File
	}
	for _, cert := range trusted {
		if now.After(cert.NotAfter) {
			return cert, file
		}
	}
	if m := c.profile.SCEP.MTLS; m != nil {
		for _, cert := range m.Certificates {
			if now.After(cert.NotAfter) {
				return cert, m.File
			}
		}
	}
	return nil, ""
}

// check refuses every request of a profile while a certificate it trusts has ended: whoever signs
// with its successor would be refused anyway, and an operator has to notice. Other profiles go on.
func (a *Appliance) check(c *profileChallenges) func(context.Context, enroll.Request) error {
	if c.signed == nil && c.profile.SCEP.MTLS == nil {
		return nil
	}
	return func(context.Context, enroll.Request) error {
		if cert, file := c.expired(a.config.Now()); cert != nil {
			return fmt.Errorf("profile %s is off: certificate %s in %s has expired", c.profile.Name, cert.Subject, file)
		}
		return nil
	}
}

// conditions are what about the box's certificates and the profiles' trust needs a person.
func (a *Appliance) conditions() []handover.Condition {
	var all []handover.Condition
	now := a.config.Now()
	for _, c := range a.identity.Conditions(now) {
		all = append(all, handover.Condition(c))
	}
	for _, c := range a.challenges {
		if cert, file := c.expired(now); cert != nil {
			all = append(all, handover.Condition{
				What: fmt.Sprintf("Profile %s is off: certificate %s in %s expired on %s.", c.profile.Name, cert.Subject,
					file, cert.NotAfter.UTC().Format(time.DateOnly)),
				Mend: "Replace the certificate in the site and bake it again; on a host replace the file and reload.",
			})
		}
	}
	return all
}

// challengesOf finds a profile's; "" means the default profile.
func (a *Appliance) challengesOf(profile string) (*profileChallenges, error) {
	for _, c := range a.challenges {
		if c.profile.Name == profile || profile == "" && c.profile.Default {
			return c, nil
		}
	}
	return nil, webui.ErrNoProfile
}

// mint makes a one-time challenge, recorded with who ordered it before it is returned.
func (a *Appliance) mint(m webui.Mint) (secret string, expires time.Time, err error) {
	c, err := a.challengesOf(m.Profile)
	if err != nil || m.Profile == "" {
		return "", time.Time{}, webui.ErrNoProfile
	}
	if c.oneTime == nil {
		return "", time.Time{}, webui.ErrNoOneTime
	}
	record := a.record(audit.ChallengeMinted)
	record.Actor, record.Source, record.Profile, record.Identity = m.Actor, m.Source, m.Profile, m.CN
	var failed error
	secret, expires, err = c.oneTime.Mint(m.CN, m.SANs, m.TTL, a.config.Now(), func(g store.Guard) error {
		record.Reason = mintedFor(m, g.Until)
		failed = a.store.Mint(g, record)
		return failed
	})
	if err != nil && failed == nil { // the order itself is wrong
		err = &webui.OrderError{Err: err}
	}
	return secret, expires, err
}

// mintedFor says in the log what a challenge is good for besides its common name.
func mintedFor(m webui.Mint, until time.Time) string {
	text := "good until " + until.Format(time.RFC3339)
	if len(m.SANs) > 0 {
		text += fmt.Sprintf(", for %d names: %s", len(m.SANs), strings.Join(m.SANs, ", "))
	}
	return text
}

// trustedNow says in the log whom a file makes the box believe: each certificate by the beginning of its
// SHA-256, which is short enough for all of them.
func trustedNow(certificates []*x509.Certificate, file string) string {
	text := fmt.Sprintf("%d certificates of %s are in use, SHA-256", len(certificates), file)
	for _, c := range certificates {
		sum := sha256.Sum256(c.Raw)
		text += fmt.Sprintf(" %x", sum[:5])
	}
	return text
}

// reloadTrust reads the signers of a profile again. A file that is not good in every part changes
// nothing; both ends are recorded.
func (a *Appliance) reloadTrust(profile, actor string) (name string, err error) {
	c, err := a.challengesOf(profile)
	if err != nil {
		return "", err
	}
	if c.signed == nil {
		return "", webui.ErrNoSigned
	}
	name = c.profile.Name
	record := a.record(audit.TrustReplaced)
	record.Actor, record.Profile = actor, name
	file := c.profile.SCEP.Challenges.Signed.File
	if err := c.reload(a.config.Files, a.config.Now()); err != nil {
		a.config.Log.Error("reading trust again; the certificates before stay in use", "profile", name, "file", file, "err", err)
		record.Outcome, record.Reason = audit.OutcomeRefused, "the certificates before stay in use: "+err.Error()
		return "", errors.Join(&webui.TrustError{Err: err}, a.store.Append(record))
	}
	signers := c.signed.Signers().Certificates()
	a.config.Log.Info("trust read again", "profile", name, "file", file, "certificates", len(signers))
	record.Reason = trustedNow(signers, file)
	return name, a.store.Append(record)
}

func (c *profileChallenges) reload(site fs.FS, now time.Time) error {
	certificates, err := provision.ReadSigners(site, c.profile.SCEP.Challenges.Signed.File, now)
	if err != nil {
		return err
	}
	signers, err := challenge.NewSigners(certificates)
	if err != nil {
		return err
	}
	return c.signed.Replace(signers, now)
}

// reloads answers every reload signal until ctx ends.
func (a *Appliance) reloads(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.config.Reload:
			a.reloadAll()
		}
	}
}

// reloadAll reads the signers of every profile again, as SIGHUP asks for. What cannot be read was
// logged and recorded, and changes nothing.
func (a *Appliance) reloadAll() {
	for _, c := range a.challenges {
		if c.signed == nil {
			continue
		}
		var trust *webui.TrustError
		if _, err := a.reloadTrust(c.profile.Name, audit.ActorBox); err != nil && !errors.As(err, &trust) {
			a.config.Log.Error("recording that trust was read again", "profile", c.profile.Name, "err", err)
		}
	}
}

// scepForConsole is what the console shows of every profile's SCEP side.
func (a *Appliance) scepForConsole() []webui.SCEPProfile {
	var all []webui.SCEPProfile
	for _, c := range a.challenges {
		ras := a.identity.Snapshot(c.profile.Authority).RAs
		if len(ras) == 0 {
			continue // its authority waits for a certificate: there is nothing to enroll at yet
		}
		p := webui.SCEPProfile{
			Name: c.profile.Name, Authority: c.profile.Authority,
			Static: c.profile.SCEP.Challenges.StaticHash != "", OneTime: c.oneTime != nil,
			RA: ras[0].Certificate,
		}
		if m := c.profile.SCEP.MTLS; m != nil {
			p.MTLSFile = m.File
		}
		if s := c.profile.SCEP.Challenges.Signed; s != nil {
			counters := map[string]int{}
			for label, n := range c.set.Snapshot() {
				counters[string(label)] = int(n)
			}
			p.Signed = &webui.SignedChallenges{
				File: s.File, Certificates: c.signed.Signers().Certificates(), Audience: s.Audience,
				Validity: s.Validity, Skew: s.Skew, PerDevice24h: s.PerDevice24h, Counters: counters,
			}
		}
		all = append(all, p)
	}
	return all
}
