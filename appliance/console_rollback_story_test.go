package appliance_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"signet.internal/appliance/audit"
	"signet.internal/tpm/tpmtest"
)

// TestConsoleOnOlderDisk: somebody puts an older copy of the disk back. The console tells who compares a kept
// checkpoint, changes no key, and goes on with that disk for an administrator who says so once.
func TestConsoleOnOlderDisk(t *testing.T) {
	spec, state := tpmtest.Start(t), t.TempDir()
	s, _ := startParts(t, spec, state)
	token := s.claim(t)
	records := func(n int) {
		t.Helper()
		for i := range n {
			if code := s.api(t, "POST", "/api/v1/tokens", token, map[string]string{"name": fmt.Sprint("token ", i)}, nil); code >= 300 {
				t.Fatalf("a token: HTTP %d", code)
			}
		}
	}
	const password = "correct horse battery staple"
	if code := s.api(t, "POST", "/api/v1/users", token, map[string]string{"name": "olga", "role": "administrator", "password": password}, nil); code >= 300 {
		t.Fatalf("a user: HTTP %d", code)
	}
	stop := func() {
		t.Helper()
		if err := s.stop(); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	older := filepath.Join(t.TempDir(), "disk")
	if err := os.CopyFS(older, os.DirFS(state)); err != nil {
		t.Fatal(err)
	}
	s, _ = startParts(t, spec, state)
	records(20)
	var kept string
	for kept == "" { // the key signs once a second at most
		text := s.get(t, "/api/v1/audit/checkpoint", token)
		if over, err := audit.PeekCheckpoint([]byte(text)); err != nil {
			t.Fatal(err)
		} else if over.Size > 20 {
			kept = text
		}
	}
	stop()
	for _, do := range []func() error{func() error { return os.RemoveAll(state) }, func() error { return os.CopyFS(state, os.DirFS(older)) }} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
	s, _ = startParts(t, spec, state)
	c := &consoleStory{visitor: visit(t, s), passwords: map[string]string{"olga": password}}
	c.be("olga")
	c.compares(kept, ".verdict.bad", "records are gone", "an older disk was put back")
	c.Look("audit-shrunk")
	c.Open("/authorities?do=rotate", "dialog:modal .danger")
	c.Press("dialog .danger", "#rotate-problem")
	c.Look("rotate-refused")
	c.See("acknowledge", "/box?do=acknowledge", "dialog:modal .danger")
	c.closes("/box?do=acknowledge")
	c.twice("/box?do=acknowledge", ".danger", ".done", "#acknowledge-problem")
	if c.Open("/box", "#tpm"); c.Has("#rollback") > 0 {
		t.Error("the box still asks to go on with this disk")
	}
	records(40)
	c.compares(kept, ".verdict.bad", "this log is not the continuation of that checkpoint")
	c.Look("audit-forked")
}
