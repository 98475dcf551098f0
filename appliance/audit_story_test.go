package appliance_test

import (
	"bytes"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"signet.internal/appliance"
	"signet.internal/appliance/audit"
	"signet.internal/tpm/tpmtest"
)

// The audit key of a real TPM (swtpm) signs the log of the running service at each start; an export
// verifies offline, the second one with what the first start signed in it. Then somebody edits a record
// on the disk. Of an older disk as a whole tells TestOlderDiskIsPutBack.
func TestAuditLogIsSigned(t *testing.T) {
	spec, state := tpmtest.Start(t), t.TempDir()
	s := start(t, spec, state)
	token := s.claim(t)
	text := strings.TrimSpace(s.get(t, "/api/v1/audit/key", token))
	key, err := audit.NewVerifier(text)
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	export := func() (audit.Report, error) {
		t.Helper()
		return audit.Verify(strings.NewReader(s.get(t, "/api/v1/audit/export", token)), key)
	}
	first, err := export()
	if err != nil || first.Records == 0 || !strings.HasPrefix(first.Origin, "signet.internal/") {
		t.Fatalf("first export: %+v, %v", first, err)
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}

	time.Sleep(11 * time.Second) // the key signs every ten seconds at most
	s = start(t, spec, state)
	if again := strings.TrimSpace(s.get(t, "/api/v1/audit/key", token)); again != text {
		t.Errorf("the key was %s and is %s", text, again)
	}
	second, err := export()
	if err != nil || second.Records <= first.Records {
		t.Errorf("second export: %+v, %v", second, err)
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}

	edit(t, filepath.Join(state, "store"))
	err = appliance.Run(t.Context(), appliance.Options{
		ConfigDir: demoSite, StateDir: state, TPM: spec, ListenBase: "127.0.0.1:0", Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err == nil || !strings.Contains(err.Error(), "audit record") {
		t.Errorf("started on an edited audit log: %v", err)
	}
}

// edit changes the outcome of the log's first record, as somebody with the disk would: key "a" and its
// index, a version byte, the leaf's hash and the leaf.
func edit(t *testing.T, dir string) {
	t.Helper()
	db, err := pebble.Open(dir, &pebble.Options{FormatMajorVersion: pebble.FormatTableFormatV6})
	if err != nil {
		t.Fatal(err)
	}
	key := append([]byte("a"), make([]byte, 8)...)
	old, closer, err := db.Get(key)
	if err != nil {
		t.Fatal(err)
	}
	leaf := bytes.Replace(old[33:], []byte(`"success"`), []byte(`"refused"`), 1)
	hash := audit.LeafHash(leaf)
	changed := slices.Concat(old[:1], hash[:], leaf)
	if bytes.Equal(changed, old) {
		t.Fatalf("record %s has another outcome", leaf)
	}
	if err := errors.Join(closer.Close(), db.Set(key, changed, pebble.Sync), db.Close()); err != nil {
		t.Fatal(err)
	}
}
