package appliance

import (
	"signet.internal/appliance/audit"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/est"
	"signet.internal/provision"
	"signet.internal/webui"
)

// profilesForConsole is what the console shows of every profile, in the site's order.
func (a *Appliance) profilesForConsole() []webui.Profile {
	var all []webui.Profile
	for _, p := range a.config.Site.Profiles {
		scep, est := a.urls(p)
		rules := p.Rules()
		out := webui.Profile{
			Name: p.Name, Default: p.Default, Authority: p.Authority, SCEP: scep, EST: est,
			Keys: webui.DeviceKeys{Curves: rules.Keys.ECDSA}, DNSNames: len(rules.SAN.DNS) > 0,
			Usages: rules.Usage.Extended, Validity: rules.Validity, RenewsWithin: p.Renewal.Window,
			Holds: p.Approval.Manual || len(p.Approval.CNSuffix) > 0,
		}
		if rules.Keys.RSA != nil {
			out.Keys.RSABits = rules.Keys.RSA.MinBits
		}
		all = append(all, out)
	}
	return all
}

// urls are the addresses devices reach a profile at by each protocol, TLS first.
func (a *Appliance) urls(p provision.Profile) (scep, est []string) {
	add := func(to *[]string, listener, scheme, path string, usual int) {
		if l := a.config.Listeners[listener]; l != nil {
			*to = append(*to, scheme+"://"+hostPort(a.config.Site.PublicHost, l, usual)+path+"/"+p.Name)
		}
	}
	if p.SCEP.On {
		isOpen, mtls := p.SCEP.MTLS == nil || !p.SCEP.MTLS.Required, p.SCEP.MTLS != nil
		for _, u := range []struct {
			on                     bool
			listener, scheme, path string
			usual                  int
		}{
			{isOpen, "scep", "https", "/scep", 443},
			{isOpen && p.SCEP.LegacyTLS, "legacy_scep", "https", "/scep", 443},
			{isOpen && p.SCEP.PlainHTTP, "plain", "http", "/scep", 80},
			{mtls, "est", "https", "/scep-mtls", 443},
			{mtls && p.SCEP.LegacyTLS, "legacy", "https", "/scep-mtls", 443},
		} {
			if u.on {
				add(&scep, u.listener, u.scheme, u.path, u.usual)
			}
		}
	}
	if p.EST != nil {
		add(&est, "est", "https", "/.well-known/est", 443)
		if p.EST.LegacyTLS {
			add(&est, "legacy", "https", "/.well-known/est", 443)
		}
	}
	return scep, est
}

// scepForConsole is what the console shows of every profile's SCEP side.
func (a *Appliance) scepForConsole() []webui.SCEPProfile {
	var all []webui.SCEPProfile
	since := a.enrolledBy(enroll.ProtocolSCEP)
	for _, s := range a.settings {
		ras := a.identity.Snapshot(s.profile.Authority).RAs
		if len(ras) == 0 || !s.profile.SCEP.On {
			continue // there is nothing to enroll at, or its authority waits for a certificate
		}
		p := webui.SCEPProfile{
			Name: s.profile.Name, Authority: s.profile.Authority,
			Static: s.static != nil, OneTime: s.oneTime != nil, AsksIntune: s.intune != nil,
			RA: ras[0].Certificate, Since: since[s.profile.Name],
		}
		if m := s.profile.SCEP.MTLS; m != nil {
			p.MTLSFile = m.File
		}
		if c := s.profile.SCEP.Challenges.Signed; c != nil {
			counters := map[string]int{}
			for label, n := range s.set.Snapshot() {
				counters[string(label)] = int(n)
			}
			p.Signed = &webui.SignedChallenges{
				File: c.File, Certificates: s.signed.Signers().Certificates(), Audience: c.Audience,
				Validity: c.Validity, Skew: c.Skew, PerDevice24h: c.PerDevice24h, Counters: counters,
			}
		}
		all = append(all, p)
	}
	return all
}

// enrolledBy is what became of every profile's enrollments by a protocol since the service started.
func (a *Appliance) enrolledBy(protocol string) map[string]webui.Enrolled {
	if err := a.health.tally.Read(); err != nil {
		a.config.Log.Error("counting enrollments", "err", err) // what was counted until now is shown
	}
	all := map[string]webui.Enrolled{}
	for series, n := range a.health.tally.Totals() {
		if series.Protocol != protocol {
			continue
		}
		sum := all[series.Profile]
		switch series.Outcome {
		case audit.OutcomeSuccess:
			sum.Issued += n
		case audit.OutcomeRefused:
			sum.Refused += n
		default:
			sum.Failed += n
		}
		all[series.Profile] = sum
	}
	return all
}

// estForConsole is what the console shows of every profile's EST side, as server serves it; nil: none is served.
func (a *Appliance) estForConsole(server *est.Server) []webui.ESTProfile {
	var all []webui.ESTProfile
	since := a.enrolledBy(enroll.ProtocolEST)
	for _, s := range a.settings {
		e := s.profile.EST
		if e == nil {
			continue
		}
		p := webui.ESTProfile{
			Name: s.profile.Name, Authority: s.profile.Authority, LegacyTLS: e.LegacyTLS, OneTime: e.Challenge, Issued: e.Issued,
			ChannelBinding: e.ChannelBinding, ServerKey: e.ServerKeyGen,
			Since: since[s.profile.Name], Counters: map[string]int{},
		}
		for name, n := range server.Counters(s.profile.Name) {
			p.Counters[string(name)] = int(n)
		}
		for _, u := range e.Basic {
			p.Users = append(p.Users, u.User)
		}
		if b := s.bundle(webui.BundleEST); b != nil {
			now := b.now()
			p.Trust = &webui.ESTTrust{File: b.file, Certificates: now.certificates, Replaced: now.replaced}
		}
		all = append(all, p)
	}
	return all
}

// reloadTrust reads the signers of a profile again, for whoever orders it.
func (a *Appliance) reloadTrust(profile, actor string) (name string, err error) {
	return a.reloadBundle(profile, webui.BundleSigned, webui.ErrNoSigned, actor)
}

// reloadESTTrust reads the bundle again whose certificates enroll over EST at a profile.
func (a *Appliance) reloadESTTrust(profile, actor string) (name string, err error) {
	return a.reloadBundle(profile, webui.BundleEST, webui.ErrNoESTTrust, actor)
}

// reloadBundle reads a bundle of a profile, the default profile's for "", from the site again. none is the
// refusal where the profile has no such bundle.
func (a *Appliance) reloadBundle(profile, bundle string, none error, actor string) (name string, err error) {
	s, err := a.settingsOf(profile)
	if err != nil {
		return "", err
	}
	b := s.bundle(bundle)
	if b == nil {
		return "", none
	}
	if b.put.Load() != nil {
		return "", &webui.ConflictError{What: "an administrator replaced these certificates, and the file is not in use", Mend: "go back to the baked bundle first"}
	}
	return s.profile.Name, a.reload(s.profile.Name, b, actor)
}
