package provision

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"signet.internal/appliance/pki"
)

// TestEnrollmentFields: what a profile says about approval, renewal, limits and challenges, and what
// it means where it does not say.
func TestEnrollmentFields(t *testing.T) {
	f := good()
	f["trust/connector.pem"] = certificatePEM(t, time.Now().Add(time.Hour)) + certificatePEM(t, time.Now().Add(2*time.Hour))
	f["profiles/corp.yaml"] = strings.NewReplacer(
		"validity: 90d\n", "validity: 90d\nrenewal: {proof: certificate, window: 45d, grace: 7d}\nlimits: {per_source: 5, per_profile: 0}\n"+
			"approval: {default: auto, manual_if: {cn_suffix: [.approve.test]}}\n",
		"  reply:", "  raw_csr: true\n  legacy: {sha1: true, des_decrypt: true}\n  reply:",
		"static:", "one_time: {ttl: 12h}\n    signed: {certificates: trust/connector.pem, issuer: me, audience: you, per_device_24h: 0}\n    static:").Replace(goodProfile)
	f["profiles/manual.yaml"] = strings.NewReplacer("name: corp\ndefault: true", "name: manual\napproval: {default: manual}",
		`static: {hash: "`+testHash+`"}`, "signed: {certificates: trust/connector.pem, issuer: me, audience: you, validity: 30m, skew: 5s}").Replace(goodProfile)
	site, err := Load(f.fs())
	if err != nil {
		t.Fatal(err)
	}
	day := 24 * time.Hour
	for i := range site.Profiles {
		s := site.Profiles[i].SCEP.Challenges.Signed
		if s == nil || len(s.Certificates) != 2 {
			t.Fatalf("signers of %s: %+v", site.Profiles[i].Name, s)
		}
		s.Certificates = nil
	}
	corp, manual := site.Profiles[0], site.Profiles[1]
	check := func(what string, got, want any) {
		t.Helper()
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	check("approval", corp.Approval, Approval{CNSuffix: []string{".approve.test"}})
	check("renewal", corp.Renewal, Renewal{Window: 45 * day, Grace: 7 * day})
	check("limits", corp.Limits, Limits{PerSource: 5})
	check("SCEP", corp.SCEP, SCEP{On: true, PlainHTTP: true, RawCSR: true, Chain: true, GetCACert: "ra+ca", Legacy: Legacy{SHA1: true, DESDecrypt: true},
		Challenges: Challenges{StaticHash: testHash, OneTime: &OneTime{TTL: 12 * time.Hour},
			Signed: &Signed{File: "trust/connector.pem", Issuer: "me", Audience: "you", Validity: time.Hour, Skew: time.Minute}}})
	check("approval of manual", manual.Approval, Approval{Manual: true})
	check("renewal of manual", manual.Renewal, Renewal{Challenge: true, Window: 30 * day})
	check("signed challenges of manual", manual.SCEP.Challenges, Challenges{
		Signed: &Signed{File: "trust/connector.pem", Issuer: "me", Audience: "you", Validity: 30 * time.Minute, Skew: 5 * time.Second, PerDevice24h: 3}})
	weak := strings.Join(site.Weaknesses(), "\n")
	for _, want := range []string{"corp: legacy.sha1", "corp: legacy.des_decrypt", "corp: raw_csr"} {
		if !strings.Contains(weak, want) {
			t.Errorf("nothing about %q in\n%s", want, weak)
		}
	}
	for _, silent := range []string{"manual: legacy", "legacy.md5", "limits are off"} {
		if strings.Contains(weak, silent) {
			t.Errorf("%q in\n%s", silent, weak)
		}
	}
}

// TestPinned: a kind of name of which the profile allows one value alone is not the device's to choose.
func TestPinned(t *testing.T) {
	for _, c := range []struct {
		san  string
		want []pki.Kind
	}{
		{`{dns: ["*.example.com"], ip: ["10.0.0.0/8"], uri: ["urn:*"]}`, nil},
		{`{dns: [vpn.example.com], ip: ["10.0.0.7/32"], uri: ["urn:plant:7"]}`, []pki.Kind{pki.DNS, pki.URI, pki.IP}},
		{`{dns: ["regex:pump-[0-9]"], ip: ["10.0.0.7/32"]}`, []pki.Kind{pki.IP}},
		{`{dns: [a.example.com, b.example.com], ip: ["10.0.0.7/32", "10.0.0.8/32"]}`, nil},
	} {
		f := good()
		f["profiles/corp.yaml"] = strings.Replace(goodProfile, `{dns: ["*.example.com"], ip: ["10.0.0.0/8"]}`, c.san, 1)
		site, err := Load(f.fs())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.want, site.Profiles[0].Pinned()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.san, diff)
		}
	}
}
