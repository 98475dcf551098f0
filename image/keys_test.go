package image

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWriteSigningKeys(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "site", "secrets")
	if _, err := LoadSigningKeys(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("loading keys that do not exist: %v", err)
	}
	if err := WriteSigningKeys(dir, "test"); err != nil {
		t.Fatal(err)
	}
	before := contents(t, dir)
	modes := map[string]fs.FileMode{}
	for name := range before {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		modes[name] = info.Mode()
	}
	want := map[string]fs.FileMode{"db.key": 0o600, "db.crt": 0o600, "policy.key": 0o600, "update.key": 0o600, ".gitignore": 0o600}
	if diff := cmp.Diff(want, modes); diff != "" {
		t.Errorf("files and modes (-want +got):\n%s", diff)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("secrets directory: %v %v", info.Mode(), err)
	}
	if err := WriteSigningKeys(dir, "test"); !errors.Is(err, ErrKeysExist) {
		t.Errorf("writing over existing keys: %v", err)
	}
	if diff := cmp.Diff(before, contents(t, dir)); diff != "" {
		t.Errorf("a second call changed the keys:\n%s", diff)
	}
	// One file is enough: the rest may be on its way from a backup.
	lone := filepath.Join(t.TempDir(), "secrets")
	if err := os.MkdirAll(lone, 0o700); err != nil {
		t.Fatal(err)
	}
	writeTestFile(t, filepath.Join(lone, "policy.key"), []byte("restored"))
	if err := WriteSigningKeys(lone, "test"); !errors.Is(err, ErrKeysExist) {
		t.Errorf("writing beside an existing key: %v", err)
	}
	entries, err := os.ReadDir(filepath.Dir(lone))
	if err != nil || len(entries) != 1 {
		t.Errorf("a refusal left %v (%v)", entries, err)
	}
}

func TestLoadSigningKeysMismatch(t *testing.T) {
	a, b := filepath.Join(t.TempDir(), "secrets"), filepath.Join(t.TempDir(), "secrets")
	for _, dir := range []string{a, b} {
		if err := WriteSigningKeys(dir, "test"); err != nil {
			t.Fatal(err)
		}
	}
	writeTestFile(t, filepath.Join(a, DBCertFile), readFile(t, filepath.Join(b, DBCertFile)))
	if _, err := LoadSigningKeys(a); err == nil {
		t.Error("a certificate of another key was accepted")
	}
	writeTestFile(t, filepath.Join(b, PolicyKeyFile), readFile(t, filepath.Join(b, UpdateKeyFile)))
	if _, err := LoadSigningKeys(b); err == nil {
		t.Error("an Ed25519 key was accepted as policy key")
	}
}

func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, e := range entries {
		files[e.Name()] = string(readFile(t, filepath.Join(dir, e.Name())))
	}
	return files
}
