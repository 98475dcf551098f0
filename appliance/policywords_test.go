package appliance

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"signet.internal/provision"
)

// TestPolicyInWords: what a site says of its profiles is said for people, all of it that is on and nothing
// that is off.
func TestPolicyInWords(t *testing.T) {
	site := demoWith(t, "profiles/corp.yaml", "limits: {per_source: 0, per_profile: 0}", "limits: {per_source: 10, per_profile: 1, max_active: 2}",
		`dns: ["*"]`, `dns: ["*.example.com", "plc.example.org"]`, "approval: {default: auto}", "approval: {default: manual}", "window: 90d}", "window: 30d, grace: 12h}")
	text := map[string]string{}
	for _, p := range site.Profiles {
		var b strings.Builder
		for _, r := range policyInWords(&p, site.Listeners) {
			b.WriteString(r.Group + " / " + r.About + ": " + strings.Join(r.Says, ". ") + "\n")
			if r.Weak != (r.About == "Old cryptography") {
				t.Errorf("%s: %s: weak is %v", p.Name, r.About, r.Weak)
			}
		}
		text[p.Name] = b.String()
	}
	for profile, want := range map[string][]string{
		"corp": {"Over SCEP a device shows: A challenge that all devices share", "Over EST a device shows: A user name and a password. For its next", "Approval: An operator approves or denies every request",
			"Limits: 10 certificates an hour to one network address. 1 certificate an hour altogether. 2 valid certificates at a time", "Keys: RSA of at least 2048 bits. ECDSA on P-256 or P-384",
			"DNS names: *.example.com or plc.example.org", "Addresses: any", "Validity: 90 days", "When: In the last 30 days, and for 12 hours after the end", "With: The certificate that ends is enough",
			"SCEP: Over TLS 1.3. Over TLS 1.2 on the legacy listener. Over plain HTTP", "EST: Over TLS 1.3. Over TLS 1.2"},
		"iot": {"made for this one device, good once, for 1 day at most", "unless the common name ends in .approve.test", "A certificate from an authority in trust/bootstrap.pem", "Limits: None",
			"A device can show a certificate from an authority in trust/bootstrap.pem in TLS"},
		"intune": {"demo-connector signed for signet-demo with a certificate in trust/connector.pem, 1 hour old at most; 3 certificates for one device", "Needs a challenge or password besides", "When: Any time", "EST: Off"},
		"legacy": {"Old cryptography: SHA-1 digests and signatures. Triple DES, both ways. Single DES in requests. MD5 digests in requests. Requests that are signed and not encrypted"},
	} {
		for _, words := range want {
			if !strings.Contains(text[profile], words) {
				t.Errorf("%s does not say %q:\n%s", profile, words, text[profile])
			}
		}
	}
	for _, off := range []string{"Old cryptography", "Compliance", "one-time", "Intune", "staple", "Extensions", "trust/"} {
		if strings.Contains(text["corp"], off) {
			t.Errorf("corp says %q:\n%s", off, text["corp"])
		}
	}
}

// demoWith is the demo site with texts of one of its files replaced: pairs of what is there and what is to be.
func demoWith(t *testing.T, file string, pairs ...string) *provision.Site {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../configs/demo")); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, file)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(pairs); i += 2 {
		if !bytes.Contains(content, []byte(pairs[i])) {
			t.Fatalf("%s of the demo does not say %q", file, pairs[i])
		}
	}
	if err := os.WriteFile(path, []byte(strings.NewReplacer(pairs...).Replace(string(content))), 0o600); err != nil {
		t.Fatal(err)
	}
	site, err := provision.Load(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	return site
}
