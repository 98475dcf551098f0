package provision

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestESTFields: what a profile says about EST, and what it means where it does not say.
func TestESTFields(t *testing.T) {
	const user = "{user: device, hash: \"" + testHash + "\"}"
	for _, c := range []struct {
		name, est string
		want      EST
		modes     string
	}{
		{"little", "est: {auth: {certificate: [issued]}}", EST{Issued: true, RetryAfter: time.Minute}, "issued"},
		{"much", "est: {legacy_tls: true, auth: {basic: [" + user + ", {user: x, hash: \"" + testHash + "\", for: [a, b]}], certificate: [{bundle: trust/ca.pem}, issued], challenge: true}, channel_binding: required, server_key: rsa-3072, retry_after: 1m30s}",
			EST{LegacyTLS: true, Basic: []BasicUser{{User: "device", Hash: testHash}, {User: "x", Hash: testHash, For: []string{"a", "b"}}}, Challenge: true, Issued: true,
				File: "trust/ca.pem", ChannelBinding: "required", ServerKeyGen: "rsa-3072", RetryAfter: 90 * time.Second}, "basic challenge issued bundle"},
		{"off in quotes", "est: {auth: {challenge: true}, channel_binding: \"off\"}", EST{Challenge: true, RetryAfter: time.Minute}, "challenge"},
		{"off", "est: {auth: {challenge: true}, channel_binding: off}", EST{Challenge: true, RetryAfter: time.Minute}, "challenge"},
		{"lines", "est:\n  auth:\n    certificate:\n      - issued\n      - bundle: trust/ca.pem\n", EST{Issued: true, File: "trust/ca.pem", RetryAfter: time.Minute}, "issued bundle"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := good()
			f["trust/ca.pem"] = certificatePEM(t, time.Now().Add(time.Hour))
			f["site.yaml"] = strings.Replace(goodSite, "  scep:", "  legacy: {on: true}\n  scep:", 1)
			f["profiles/corp.yaml"] = strings.Replace(goodProfile, "    static:", "    one_time: {ttl: 24h}\n    static:", 1) + c.est + "\n"
			site, err := Load(f.fs())
			if err != nil {
				t.Fatal(err)
			}
			got := site.Profiles[0].EST
			if (got.Bundle != nil) != (got.File != "") {
				t.Errorf("bundle %s has %d certificates", got.File, len(got.Bundle))
			}
			if modes := strings.Join(got.Modes(), " "); modes != c.modes {
				t.Errorf("modes %q, want %q", modes, c.modes)
			}
			got.Bundle = nil
			if diff := cmp.Diff(&c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestESTAlone: a profile can be for EST only, and then has no SCEP challenge.
func TestESTAlone(t *testing.T) {
	f := good()
	f["site.yaml"] = strings.Replace(goodSite, "  scep: {on: true}\n  plain: {on: true}", "  {scep: {on: false}, plain: {on: false}}", 1)
	f["site.yaml"] = strings.Replace(f["site.yaml"], "public_host: pki.example.com\n", "", 1)
	f["profiles/corp.yaml"] = goodProfile[:strings.Index(goodProfile, "scep:")] + "est: {auth: {certificate: [issued]}}\n"
	site, err := Load(f.fs())
	if err != nil {
		t.Fatal(err)
	}
	if p := site.Profiles[0]; p.SCEP.On || len(p.SCEP.Challenges.Kinds()) != 0 || p.EST == nil || site.PublicHost != "" || site.Authorities[0].OCSP {
		t.Errorf("SCEP %+v, EST %+v, host %q, OCSP %v", p.SCEP, p.EST, site.PublicHost, site.Authorities[0].OCSP)
	}
}

// TestLifeFields: what a site says about authorities, proxies and the life of certificates.
func TestLifeFields(t *testing.T) {
	f := good()
	f["trust/ca.pem"] = certificatePEM(t, time.Now().Add(time.Hour))
	f["site.yaml"] = strings.NewReplacer(
		"  scep: {on: true}", "  scep: {on: true}\n  legacy_scep: {on: true}",
		"authorities:", "trusted_proxies: {enabled: true, networks: [192.0.2.0/28, '2001:db8::/64']}\nauthorities:",
		"{name: devices, mode: root,", "{name: devices, mode: root, validity: 7300d, path_len: 0, crl_validity: 12h, ocsp: false,",
		"    mode: root", "    mode: subordinate\n    path_len: 2", "validity: 1d12h", "validity: 1d12h, overlap: 0s").Replace(goodSite)
	f["profiles/corp.yaml"] = strings.NewReplacer(
		"authority: devices", "authority: modern",
		"ecdsa: [p256]", "ecdsa: [p256], unique: true",
		"allow: [CN, O]", "allow: [CN, O], match: {CN: [\"regex:pump-[0-9]+\"]}, template: \"CN={CN},O=Plant 7\"",
		"validity: 90d\n", "validity: 90d\nmust_staple: true\nad_sid: true\nrenewal: {from: trust/ca.pem, revoke_replaced: true}\nlimits: {max_active: 2}\n"+
			"compliance: {url: \"https://hook.example.com/ask\", roots: trust/ca.pem, timeout: 3s}\n",
		"  reply: {", "  legacy_tls: true\n  reply: {previous_ra: true, ",
		"    static:", "    "+testIntune+"\n    static:").Replace(goodProfile)
	site, err := Load(f.fs())
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, got, want any) {
		t.Helper()
		compare := cmp.Options{cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}
		if diff := cmp.Diff(want, got, compare); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	const day = 24 * time.Hour
	p := site.Profiles[0]
	for what, certificates := range map[string]int{"renewal.from": len(p.Renewal.From.Certificates), "compliance": len(p.Compliance.Roots), "intune": len(p.SCEP.Challenges.Intune.Roots)} {
		if certificates != 1 {
			t.Errorf("%s has %d certificates", what, certificates)
		}
	}
	p.Renewal.From.Certificates, p.Compliance.Roots, p.SCEP.Challenges.Intune.Roots = nil, nil, nil
	site.Authorities[0].Subject, site.Authorities[1].Subject = nil, nil
	check("listeners", site.Listeners, Listeners{EST: true, SCEP: true, Console: true, Plain: true, LegacySCEP: true})
	check("proxies", site.TrustedProxies, &TrustedProxies{Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/28"), netip.MustParsePrefix("2001:db8::/64")}})
	two := 2
	check("authorities", site.Authorities, []Authority{
		{Name: "devices", Mode: ModeRoot, SubjectText: "CN=Devices,O=Plant 7", Algorithm: "rsa-2048", Protection: "resident", Validity: 7300 * day, PathLen: new(int), CRLValidity: 12 * time.Hour},
		{Name: "modern", Mode: ModeSubordinate, SubjectText: "CN=Modern", Algorithm: "ecdsa-p384", Protection: "sealed", PathLen: &two, CRLValidity: 7 * day, OCSP: true},
	})
	check("overlap", site.RA.Overlap, time.Duration(0))
	check("SCEP", p.SCEP, SCEP{On: true, PlainHTTP: true, LegacyTLS: true, Chain: true, GetCACert: "ra+ca", PreviousRA: true, Challenges: Challenges{StaticHash: testHash,
		Intune: &Intune{Tenant: "example.onmicrosoft.com", ClientID: "01234567-89ab-cdef-0123-456789abcdef", File: "trust/ca.pem", Algorithm: "RS256"}}})
	check("renewal", p.Renewal, Renewal{Challenge: true, Window: 30 * day, From: &Bundle{File: "trust/ca.pem"}})
	check("compliance", p.Compliance, &Compliance{URL: "https://hook.example.com/ask", File: "trust/ca.pem", Timeout: 3 * time.Second})
	if !p.UniqueKey || !p.RevokeOnReplace || p.MaxActive != 2 || !p.Policy.MustStaple() || !p.config.ADSID {
		t.Errorf("unique %v, revoke %v, active %d, must-staple %v, SID %v", p.UniqueKey, p.RevokeOnReplace, p.MaxActive, p.Policy.MustStaple(), p.config.ADSID)
	}
	check("subject", p.config.Subject.Match, map[string][]string{"CN": {"regex:pump-[0-9]+"}})
	check("template", p.config.Subject.Template, "CN={CN},O=Plant 7")
}
