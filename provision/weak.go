package provision

import (
	"fmt"
	"slices"
	"time"

	"signet.internal/appliance/pki"
)

// Weaknesses says, in one sentence each, what a site allows that a careful one would not. None of
// them stops a bake.
func (s *Site) Weaknesses() []string {
	var weak []string
	for _, w := range []weakness{
		{s.Demo(), "this is the demo site: its challenges and passwords are published, never use it in production"},
		{s.SecureBoot == "none", "secure_boot is none: keys are not protected against a changed disk"},
		{s.Listeners.Legacy || s.Listeners.LegacySCEP, "legacy listeners take TLS 1.2, where everybody on the path reads the certificates that devices show"},
		{!s.Listeners.Plain, "listener plain is off: nobody can learn there that a certificate was revoked"},
		{s.TrustedProxies != nil, "trusted_proxies: whoever sends from their networks says which address a request came from"},
	} {
		weak = w.addTo(weak, "")
	}
	for _, a := range s.Authorities {
		prefix := "authority " + a.Name + ": "
		weak = weakness{a.Protection == sealed, "its key is sealed, not resident: while the box runs it is in memory"}.addTo(weak, prefix)
		weak = weakness{a.CRLValidity > longCRL, fmt.Sprintf("an old CRL passes for %d days, whatever was revoked since (crl_validity)", int(a.CRLValidity.Hours()/24))}.addTo(weak, prefix)
	}
	for i := range s.Profiles {
		weak = append(weak, s.Profiles[i].weaknesses(s.TrustedProxies != nil)...)
	}
	return weak
}

// longCRL is how long a CRL may be good for before it is called weak.
const longCRL = 30 * 24 * time.Hour

// weakness is a sentence about what is weak where on.
type weakness struct {
	on   bool
	what string
}

func (w weakness) addTo(weak []string, prefix string) []string {
	if w.on {
		return append(weak, prefix+w.what)
	}
	return weak
}

// weaknesses says what the profile allows of old clients and of anybody who has its challenge; proxied
// is whether proxies are trusted.
func (p *Profile) weaknesses(proxied bool) []string {
	est := p.EST
	if est == nil {
		est = &EST{}
	}
	// However the patterns are written: two names with nothing in common.
	allowsAny := func(kind pki.Kind, names ...string) bool {
		return !slices.ContainsFunc(names, func(n string) bool { return !p.Policy.Allows(pki.Name{Kind: kind, Value: n}) })
	}
	anyDNS := allowsAny(pki.DNS, "qzx-71.example", "w4.j.test")
	anyAccount := slices.Contains(p.config.Usage.Extended, "smartcardLogon") && allowsAny(pki.UPN, "qzx@corp.example", "w4j@a.test")
	// A user without names of its own is as good as a challenge all devices share.
	anyUser := slices.ContainsFunc(est.Basic, func(u BasicUser) bool { return len(u.For) == 0 })
	var weak []string
	for _, w := range []weakness{
		{p.SCEP.PlainHTTP, "plain_http lets somebody on the path swap the CA certificates a device fetches"},
		// Other kinds of challenge are made for certain names.
		{anyDNS && p.SCEP.Challenges.StaticHash != "", "whoever knows its challenge gets any DNS name (san: dns)"},
		{anyDNS && anyUser, "whoever knows a password of est.auth.basic gets any DNS name (san: dns)"},
		{anyDNS && est.Bundle != nil, "whoever has a certificate of " + est.File + " gets any DNS name (san: dns)"},
		{anyAccount, "whoever may enroll can log in as any user (smartcardLogon, and san: upn that allows every name)"},
		{p.config.ADSID, "ad_sid keeps the Windows account a request names: whoever has a shared challenge or password without for can log in as any, one-time and signed challenges name theirs"},
		{p.SCEP.Legacy.SHA1, "legacy.sha1 takes signatures that can be forged with effort"},
		{p.SCEP.Legacy.DES3, "legacy.des3 answers in triple DES"},
		{p.SCEP.Legacy.DESDecrypt, "legacy.des_decrypt takes challenges that whoever recorded them can read"},
		{p.SCEP.Legacy.MD5, "legacy.md5 takes signatures that anybody can forge"},
		{p.SCEP.RawCSR, "raw_csr takes challenges that only TLS keeps secret"},
		{p.SCEP.Challenges.Intune != nil, "challenges.intune is experimental: it has not run against a tenant of Microsoft's"},
		{est.ServerKeyGen != "", "server_key makes keys that were known to the box before the device had them"},
		{est.ChannelBinding != "" && proxied, "channel_binding cannot hold through trusted_proxies, where the device's TLS ends: such requests are refused or not bound"},
		{p.Limits.PerSource == 0 && p.Limits.PerProfile == 0, "limits are off: whoever knows its challenge gets certificates without end"},
	} {
		weak = w.addTo(weak, "profile "+p.Name+": ")
	}
	return weak
}
