package configs_test

import (
	"context"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"signet.internal/appliance/challenge"
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
	want := map[string]string{"corp": "corp-demo-challenge", "modern": "modern-demo-challenge"}
	if len(site.Profiles) != len(want) {
		t.Errorf("the demo has %d profiles, want %d", len(site.Profiles), len(want))
	}
	for _, p := range site.Profiles {
		static, err := challenge.NewStatic(p.SCEP.StaticHash)
		if err != nil {
			t.Fatal(err)
		}
		if err := static.Verify(context.Background(), netip.MustParseAddr("192.0.2.1"), want[p.Name]); err != nil {
			t.Errorf("profile %s does not take %q: %v", p.Name, want[p.Name], err)
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
