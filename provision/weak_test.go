package provision

import (
	"strings"
	"testing"
)

func TestWeaknesses(t *testing.T) {
	f := good()
	f["site.yaml"] = strings.Replace(goodSite, "name: plant-7", "name: demo", 1)
	f["profiles/corp.yaml"] = strings.Replace(goodProfile, "*.example.com", "*", 1)
	site, err := Load(f.fs())
	if err != nil {
		t.Fatal(err)
	}
	weak := strings.Join(site.Weaknesses(), "\n")
	for _, want := range []string{"demo site", "secure_boot", "authority modern: its key is sealed", "plain_http", "any DNS name"} {
		if !strings.Contains(weak, want) {
			t.Errorf("nothing about %q in\n%s", want, weak)
		}
	}
	// Any DNS name in other words, and any account to log in as.
	f["profiles/corp.yaml"] = strings.NewReplacer("\"*.example.com\"", "'regex:.+'", "clientAuth", "clientAuth, smartcardLogon", "san: {", `san: {upn: ["*"], `).Replace(goodProfile)
	if site, err = Load(f.fs()); err != nil {
		t.Fatal(err)
	}
	weak = strings.Join(site.Weaknesses(), "\n")
	for _, want := range []string{"any DNS name", "can log in as any user"} {
		if !strings.Contains(weak, want) {
			t.Errorf("nothing about %q in\n%s", want, weak)
		}
	}
	f["profiles/corp.yaml"] = strings.NewReplacer("\"*.example.com\"", "'regex:.+\\.example\\.com'", "clientAuth", "smartcardLogon", "san: {", `san: {upn: ["*@example.com"], `).Replace(goodProfile)
	if site, err = Load(f.fs()); err != nil {
		t.Fatal(err)
	}
	if weak = strings.Join(site.Weaknesses(), "\n"); strings.Contains(weak, "any DNS name") || strings.Contains(weak, "any user") {
		t.Errorf("names of one domain are called weak:\n%s", weak)
	}
	if !site.Demo() {
		t.Error("not taken for the demo site")
	}
}

// TestWeaknessesOfAccess: what lets somebody in, or something out, is said for the profile that does it.
func TestWeaknessesOfAccess(t *testing.T) {
	f := everywhere(t)
	f["site.yaml"] = strings.NewReplacer("  scep: {on: true}", "  scep: {on: true}\n  legacy: {on: true}", "    mode: root", "    mode: root\n    crl_validity: 60d").Replace(f["site.yaml"])
	f["profiles/corp.yaml"] = strings.NewReplacer("*.example.com", "*", "validity: 90d", "validity: 90d\nad_sid: true", "for: [pump-7]", "for: [pump-7]}, {user: anybody, hash: \""+testHash+"\"",
		"est: {", "est: {server_key: ecdsa-p256, channel_binding: optional, ").Replace(f["profiles/corp.yaml"])
	f["profiles/other.yaml"] = strings.Replace(goodProfile, "name: corp\ndefault: true", "name: other", 1)
	site, err := Load(f.fs())
	if err != nil {
		t.Fatal(err)
	}
	weak := strings.Join(site.Weaknesses(), "\n")
	for _, want := range []string{"legacy listeners take TLS 1.2", "trusted_proxies: whoever sends", "authority modern: an old CRL passes for 60 days", "profile corp: whoever knows a password",
		"profile corp: whoever has a certificate of trust/est.pem", "profile corp: ad_sid", "profile corp: challenges.intune is experimental", "profile corp: server_key", "profile corp: channel_binding"} {
		if !strings.Contains(weak, want) {
			t.Errorf("nothing about %q in\n%s", want, weak)
		}
	}
	for _, silent := range []string{"authority devices", "profile other: whoever", "profile other: ad_sid", "listener plain is off"} {
		if strings.Contains(weak, silent) {
			t.Errorf("%q in\n%s", silent, weak)
		}
	}

	// A user for certain names, no proxy, no legacy listener: none of it is weak any longer.
	f["site.yaml"] = strings.Replace(everywhere(t)["site.yaml"], "trusted_proxies: {enabled: true, networks: [192.0.2.0/28], bundle: trust/proxies.pem}\n", "", 1)
	f["profiles/corp.yaml"] = strings.Replace(f["profiles/corp.yaml"], "{user: anybody,", "{user: somebody, for: [pump-8],", 1)
	if site, err = Load(f.fs()); err != nil {
		t.Fatal(err)
	}
	weak = strings.Join(site.Weaknesses(), "\n")
	for _, silent := range []string{"legacy listeners", "trusted_proxies", "old CRL", "knows a password", "channel_binding"} {
		if strings.Contains(weak, silent) {
			t.Errorf("%q in\n%s", silent, weak)
		}
	}
}
