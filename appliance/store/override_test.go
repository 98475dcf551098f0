package store

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"signet.internal/appliance/audit"
)

func override(s *Store, name, value string) error {
	return s.SetOverride(name, Override{Value: []byte(value), By: "ada", At: epoch}, record(audit.TrustReplaced, audit.OutcomeSuccess, ""))
}

// TestOverrides: what replaces a setting is there after a restart, until it is removed; each change has its
// record, and what is refused has none. The crash matrix cuts the power at every write of them.
func TestOverrides(t *testing.T) {
	fsys := vfs.NewMem()
	s := open(t, fsys)
	user := "password/corp/" + strings.Repeat("u", 255)
	must(t, override(s, user, "$argon2id$1"))
	must(t, override(s, "off/corp", "stolen"))
	must(t, override(s, "off/corp", "found again"))
	must(t, override(s, "bundle/corp/est", strings.Repeat("x", maxOverride)))
	want := map[string]Override{
		user:              {Value: []byte("$argon2id$1"), By: "ada", At: epoch},
		"off/corp":        {Value: []byte("found again"), By: "ada", At: epoch},
		"bundle/corp/est": {Value: bytes.Repeat([]byte("x"), maxOverride), By: "ada", At: epoch},
	}
	check := func() {
		t.Helper()
		got, err := s.Overrides()
		must(t, err)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("overrides (-want +got):\n%s", d)
		}
	}
	check()
	written := s.head.next
	for name, err := range map[string]error{
		"no name":       override(s, "", "x"),
		"a long name":   override(s, strings.Repeat("n", maxOverrideName+1), "x"),
		"a long value":  override(s, "bundle/corp/est", strings.Repeat("x", maxOverride+1)),
		"none to go to": s.RemoveOverride("off/iot", record(audit.ProfileSwitched, audit.OutcomeSuccess, "")),
	} {
		if err == nil || (name == "none to go to") != errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	check()
	if now := s.head.next; now != written || written != 4 {
		t.Errorf("%d records for 4 changes, %d after refusals", written, now)
	}
	must(t, s.RemoveOverride("off/corp", record(audit.ProfileSwitched, audit.OutcomeSuccess, "")))
	delete(want, "off/corp")
	must(t, s.Close())
	s = open(t, fsys)
	check()
	must(t, s.Close())
}
