package appliance_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/needtest"
	"signet.internal/tpm/tpmtest"
)

// smallDisk is a file system of its own with little space, in memory.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700,size="+size); err != nil {
		needtest.Missing(t, fmt.Sprintf("mounting a small disk, which takes root: %v", err))
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmounting the small disk: %v", err)
		}
	})
	return dir
}

// fillTo leaves so many bytes of a disk.
func fillTo(t *testing.T, dir string, left uint64) {
	t.Helper()
	ballast := filepath.Join(dir, "ballast")
	if err := os.Remove(ballast); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if free := s.Bavail * uint64(s.Bsize); free > left {
		if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(free-left)); err != nil {
			t.Fatalf("filling the disk: %v", err)
		}
	}
}

// The state disk of the running service fills up: nothing is issued any more, the console says so, people
// still revoke and devices still fetch the list that says it, also after a restart; with room again all goes
// on, and nothing in the log is missing.
func TestFullDisk(t *testing.T) {
	needtest.Program(t, "pki", "strongswan-pki")
	const mib = 1 << 20
	state := smallDisk(t, "400m")
	spec := tpmtest.Start(t)
	s := start(t, spec, state)
	token := s.claim(t)
	enroll := func(cn string) error {
		t.Helper()
		out, err := enrollStrongSwan(t, t.TempDir(), s.ready.SCEPPlain+"/scep/corp", cn+".example.com", "corp-demo-challenge")
		t.Logf("%s: %v\n%s", cn, err, out)
		return err
	}
	conditions := func() string {
		t.Helper()
		return s.get(t, "/api/v1/status", token)
	}
	if err := enroll("before"); err != nil {
		t.Fatal(err)
	}
	if c := conditions(); strings.Contains(c, "state disk") {
		t.Errorf("with room the status says %s", c)
	}
	fillTo(t, state, 150*mib)
	if c := conditions(); !strings.Contains(c, "The state disk fills up: ") {
		t.Errorf("before it is full the status says %s", c)
	}
	if err := enroll("still"); err != nil {
		t.Errorf("with 150 MiB left: %v", err)
	}

	fillTo(t, state, 80*mib)
	refused := func() {
		t.Helper()
		if err := enroll("full"); err == nil {
			t.Error("a full disk has a certificate issued")
		}
		if c := conditions(); !strings.Contains(c, "The state disk is nearly full, so nothing is issued: ") {
			t.Errorf("the status says %s", c)
		}
		if s.has(t, token, "issuance_begun", "begun", "full.example.com") {
			t.Error("an issuance was begun")
		}
	}
	refused()
	var list struct {
		Certificates []struct{ Serial, Identity string }
	}
	if code := s.api(t, "GET", "/api/v1/certificates", token, nil, &list); code != 200 || len(list.Certificates) != 2 {
		t.Fatalf("certificates: %d, %+v", code, list)
	}
	serial := list.Certificates[0].Serial
	if code := s.api(t, "POST", "/api/v1/certificates/"+serial+"/revoke", token, map[string]string{"reason": "keyCompromise"}, nil); code != 200 {
		t.Errorf("revoking on a full disk: %d", code)
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	s = start(t, spec, state) // a restart finds the disk as full
	refused()

	fillTo(t, state, 20*mib)
	if c := conditions(); !strings.Contains(c, "The state disk is full, so nothing is issued and nothing can be changed: ") {
		t.Errorf("the status says %s", c)
	}
	if code := s.api(t, "POST", "/api/v1/certificates/"+list.Certificates[1].Serial+"/revoke", token, map[string]string{"reason": "keyCompromise"}, nil); code != 507 {
		t.Errorf("revoking without any room: %d, want 507", code)
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	s = start(t, spec, state)

	fillTo(t, state, 300*mib)
	if err := enroll("after"); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if c := conditions(); strings.Contains(c, "state disk") {
		t.Errorf("with room again the status says %s", c)
	}
	key, err := audit.NewVerifier(strings.TrimSpace(s.get(t, "/api/v1/audit/key", token)))
	if err != nil {
		t.Fatal(err)
	}
	if report, err := audit.Verify(strings.NewReader(s.get(t, "/api/v1/audit/export", token)), key); err != nil {
		t.Errorf("export: %+v, %v", report, err)
	}
	if !s.has(t, token, "certificate_revoked", "success", list.Certificates[0].Identity) {
		t.Error("the revocation is not in the log")
	}
}
