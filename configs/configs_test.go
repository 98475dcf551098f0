package configs_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/challenge"
	"signet.internal/appliance/challenge/phc"
	"signet.internal/configs"
	"signet.internal/provision"
)

// TestEverySiteLoads loads each directory that holds a site.yaml, so that no example goes stale.
func TestEverySiteLoads(t *testing.T) {
	files, err := filepath.Glob("*/site.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no site found: %v", err)
	}
	for _, file := range files {
		dir := filepath.Dir(file)
		if _, err := provision.Load(os.DirFS(dir)); err != nil {
			t.Errorf("%s:\n%v", dir, err)
		}
	}
}

func TestDemoChallenges(t *testing.T) {
	demo, err := fs.Sub(configs.Sites, "demo")
	if err != nil {
		t.Fatal(err)
	}
	site, err := provision.Load(demo)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"corp": "corp-demo-challenge", "modern": "modern-demo-challenge", "legacy": "legacy-demo-challenge",
		"intune": "intune-demo-challenge", "iot": ""}
	if len(site.Profiles) != len(want) {
		t.Errorf("the demo has %d profiles, want %d", len(site.Profiles), len(want))
	}
	for _, p := range site.Profiles {
		secret, known := want[p.Name]
		if c := p.SCEP.Challenges; !known || (secret == "") != (c.StaticHash == "") || (c.OneTime != nil) != (p.Name == "iot") || (c.Signed != nil) != (p.Name == "intune") {
			t.Errorf("profile %s has challenges %+v", p.Name, c)
		}
		if got := provision.PublicChallenge(p.SCEP.Challenges.StaticHash); got != secret {
			t.Errorf("profile %s: the public challenge is %q, want %q", p.Name, got, secret)
		}
		if secret == "" {
			continue
		}
		static, err := challenge.NewGate(1).NewStatic(p.SCEP.Challenges.StaticHash)
		if err != nil {
			t.Fatal(err)
		}
		if err := static.Verify(context.Background(), netip.MustParseAddr("192.0.2.1"), secret); err != nil {
			t.Errorf("profile %s does not take %q: %v", p.Name, secret, err)
		}
	}
}

// TestDemoEST: who is let in over EST, and with which password.
func TestDemoEST(t *testing.T) {
	site, err := provision.Load(os.DirFS("demo"))
	if err != nil {
		t.Fatal(err)
	}
	if l := site.Listeners; !l.EST || !l.Legacy || !l.LegacySCEP {
		t.Errorf("listeners %+v", l)
	}
	modes := map[string]string{"corp": "basic issued", "modern": "basic issued", "legacy": "basic issued", "iot": "issued bundle"}
	for _, p := range site.Profiles {
		if p.EST == nil {
			if modes[p.Name] != "" {
				t.Errorf("profile %s is not served over EST", p.Name)
			}
			continue
		}
		if got := strings.Join(p.EST.Modes(), " "); got != modes[p.Name] || !p.EST.LegacyTLS || !p.SCEP.LegacyTLS || p.Policy.MustStaple() {
			t.Errorf("profile %s lets %q in, want %q (%+v)", p.Name, got, modes[p.Name], p.EST)
		}
		for _, user := range p.EST.Basic {
			hash, err := phc.Parse(user.Hash)
			if err != nil || user.User != "device" || len(user.For) != 0 || !hash.Matches([]byte(p.Name+"-demo-password")) {
				t.Errorf("profile %s: user %s does not have the published password (%v)", p.Name, user.User, err)
			}
		}
	}
}

// TestDemoKeys: the keys of the demo's outsiders belong to what the demo trusts, last, and no box
// gets them.
func TestDemoKeys(t *testing.T) {
	for _, name := range []string{"connector", "bootstrap-ca"} {
		pair, err := tls.LoadX509KeyPair("demo/demo-keys/"+name+".crt", "demo/demo-keys/"+name+".key")
		if err != nil {
			t.Fatal(err)
		}
		if life := pair.Leaf.NotAfter.Sub(pair.Leaf.NotBefore); life < 30*365*24*time.Hour || !strings.Contains(pair.Leaf.Subject.CommonName, "DEMO ONLY") {
			t.Errorf("%s: %s, valid for %s", name, pair.Leaf.Subject, life)
		}
		trusted, err := os.ReadFile("demo/trust/" + strings.TrimSuffix(name, "-ca") + ".pem")
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(trusted)
		if block == nil || !bytes.Equal(block.Bytes, pair.Leaf.Raw) {
			t.Errorf("the demo does not trust %s.crt", name)
		}
	}
	site, err := provision.Load(os.DirFS("demo"))
	if err != nil {
		t.Fatal(err)
	}
	for _, baked := range site.Files { // what image takes into the overlay
		content, err := os.ReadFile(filepath.Join("demo", baked))
		if err != nil || strings.Contains(baked, "demo-keys") || bytes.Contains(content, []byte("PRIVATE KEY")) {
			t.Errorf("%s does not belong in an image (%v)", baked, err)
		}
	}
}

// TestEmbedHoldsNoKeys looks for anything secret in what goes into a program.
func TestEmbedHoldsNoKeys(t *testing.T) {
	for _, fsys := range []fs.FS{configs.Sites, configs.Template} {
		err := fs.WalkDir(fsys, ".", func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			content, err := fs.ReadFile(fsys, path)
			if err != nil {
				return err
			}
			if strings.Contains(path, "secrets") || strings.Contains(path, "demo-keys") || strings.Contains(string(content), "PRIVATE KEY") {
				t.Errorf("%s does not belong in a program", path)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}
