package main

// The story of one box, from the baked image to a restored disk, under QEMU with OVMF and swtpm.
// A green run proves the order of the boot, the measured-boot policy and the refusals with real
// firmware and the TPM's real protocol. It does not prove a hardware TPM's timing or Secure Boot,
// which the demo site has off.

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/needtest"
	"signet.internal/image/vm"
	"signet.internal/webui"
)

// story is the box under test: its site, the folder baked from it, and what later chapters compare.
type story struct {
	site      string
	out       string
	dir       string // where the clients keep their files
	token     string
	ready     endpoints
	ca        []byte // the CA bundle, as it is to be in the next boot
	leaf      string // SHA-256 of the TLS certificate of the first boot
	hook      *webhook
	challenge string // of profile modern, in place of the baked one
	older     string // a copy of the disk from between two boots
}

func TestBoxStory(t *testing.T) {
	if testing.Short() {
		t.Skip("boots machines; not with -short")
	}
	for program, pkg := range map[string]string{
		"qemu-system-x86_64": "qemu-system-x86", "swtpm": "swtpm", "swtpm_setup": "swtpm-tools", "pki": "strongswan-pki",
		"openssl": "openssl", "curl": "curl", "mcopy": "mtools", "sbverify": "sbsigntool",
	} {
		needtest.Program(t, program, pkg)
	}
	base := filepath.Join("..", "..", "build", "base")
	if _, err := os.Stat(base); err != nil {
		needtest.Missing(t, "the image's base is missing: run `make build`")
	}
	s := &story{site: filepath.Join(t.TempDir(), "site"), out: filepath.Join(t.TempDir(), "out"), dir: t.TempDir()}
	copyTree(t, filepath.Join("..", "..", "configs", "demo"), s.site)
	s.startWebhook(t)
	mustSignet(t, "init", "--keys-only", s.site)
	mustSignet(t, "bake", s.site, "-o", s.out, "--base", base)
	t.Cleanup(func() { run(quiet(t), []string{"stop", s.out}) })

	for _, chapter := range []struct {
		name string
		tell func(*testing.T, *story)
	}{
		{"the first boot makes keys and enrolls a real client", firstBoot},
		{"devices that come at once all enroll", enrollAtOnce},
		{"devices enroll by EST, and a person decides", enrollByEST},
		{"a webhook is asked", askOthers},
		{"what is revoked is published", revokeAndPublish},
		{"keys are made while the box runs", makeKeys},
		{"a power cut and a rebuilt image find the same box", powerCutAndRebuild},
		{"another TPM opens nothing and changes nothing", otherTPM},
		{"a changed overlay opens no keys", changedOverlay},
		{"a changed command line opens no keys", changedCommandLine},
		{"without a TPM the screen says so", noTPM},
		{"put back together it serves again", backTogether},
		{"an older disk issues nothing until a person takes it", olderDisk},
	} {
		if !t.Run(chapter.name, func(t *testing.T) { chapter.tell(t, s) }) {
			break // each chapter stands on the one before
		}
	}
}

func firstBoot(t *testing.T, s *story) {
	s.boot(t)
	if s.ready.ClaimCode == "" {
		t.Fatal("a new box shows no claim code")
	}
	var err error
	if s.ca, err = os.ReadFile(s.ready.CABundle); err != nil {
		t.Fatal(err)
	}
	s.leaf = s.ready.TLSSHA256
	var claimed struct{ Token string }
	decode(t, mustSignet(t, "--json", "claim", s.ready.Console, "--ca-bundle", s.ready.CABundle, "--code", s.ready.ClaimCode, "--user", "ada"), &claimed)
	s.token = claimed.Token

	for name, url := range map[string]string{"est": s.ready.EST, "scep": s.ready.SCEP, "scep_plain": s.ready.SCEPPlain, "pki": s.ready.PKI,
		"ocsp": s.ready.OCSP, "legacy": s.ready.Legacy, "legacy_scep": s.ready.LegacySCEP} {
		if url == "" {
			t.Errorf("%s is on, and nowhere", name)
		}
	}

	mustRun(t, s.dir, "sh", "-c", "pki --gen --type rsa --size 2048 --outform pem > device.key")
	s.getCA(t, "corp", "ca.crt", "ra.crt")
	s.mustSCEP(t, "corp", "ca.crt", "ra.crt", "device.example.com", "device.crt", "--password", "corp-demo-challenge")
	serial := s.serial(t, "device.crt")
	page := s.get(t, "/certificates")
	if !strings.Contains(page, "device.example.com") || !strings.Contains(page, strings.TrimLeft(serial, "0")) {
		t.Errorf("the console does not list the enrollment of serial %s:\n%s", serial, page)
	}

	if err := s.scep("corp", "ca.crt", "ra.crt", "device.example.com", "guessed.crt", "--password", "guess"); err == nil {
		t.Error("a wrong challenge got a certificate")
	} else if !strings.Contains(strings.ToLower(err.Error()), "fail") {
		t.Errorf("a wrong challenge is not a clean failure: %s", err)
	}
	if records := s.get(t, "/api/v1/audit?limit=500"); !strings.Contains(records, "challenge") {
		t.Errorf("no audit record of the wrong challenge: %s", records)
	}

	var manifest struct {
		PCR11 map[string]string `json:"pcr11"`
	}
	decode(t, readFile(t, filepath.Join(s.out, "manifest.json")), &manifest)
	var status webui.Status
	decode(t, []byte(s.get(t, "/api/v1/status")), &status)
	if status.PCR11 == "" || status.PCR11 != manifest.PCR11["leave-initrd"] {
		t.Errorf("PCR 11 in the guest is %q, the manifest predicts %q", status.PCR11, manifest.PCR11["leave-initrd"])
	}
}

func powerCutAndRebuild(t *testing.T, s *story) {
	before := s.get(t, "/api/v1/audit?limit=500")
	s.powerCut(t)

	siteFile := filepath.Join(s.site, "site.yaml")
	replaceInFile(t, siteFile, "version: 0.1.0", "version: 0.1.1")
	mustSignet(t, "bake", s.site, "-o", s.out, "--base", filepath.Join("..", "..", "build", "base"))
	s.boot(t)
	s.checkSameBox(t)
	if after := s.get(t, "/api/v1/audit?limit=500"); !strings.Contains(before, "device.example.com") || !strings.Contains(after, "device.example.com") {
		t.Errorf("the enrollment's record is gone after a power cut:\n%s", after)
	}
	var status webui.Status
	decode(t, []byte(s.get(t, "/api/v1/status")), &status)
	if status.Version != "0.1.1" {
		t.Errorf("the box runs version %q after a rebuild to 0.1.1", status.Version)
	}
	if status.TPM.LockoutCounter != 0 {
		t.Errorf("the TPM's lockout counter is %d after a power cut", status.TPM.LockoutCounter)
	}
	useKeys(t, s)
	s.shutDown(t)
	s.older = filepath.Join(s.dir, "older.img")
	mustRun(t, ".", "cp", "--sparse=always", s.disk(), s.older)
}

func otherTPM(t *testing.T, s *story) {
	before := s.dataPartitions(t)
	message := s.bootRefused(t, vm.Options{TPM: "other"})
	if !strings.Contains(message, "TPM") {
		t.Errorf("the screen does not name the TPM: %s", message)
	}
	if !bytes.Equal(before, s.dataPartitions(t)) {
		t.Error("KEYS or STATE changed while another TPM was in the machine")
	}
}

func changedOverlay(t *testing.T, s *story) {
	uki := s.readESP(t, "EFI/Linux/signet_0.1.1.efi")
	i := bytes.LastIndex(uki, []byte("corp-demo-challenge")) // a comment of the demo profile in the overlay
	if i < 0 {
		i = bytes.LastIndex(uki, []byte("name: demo"))
	}
	if i < 0 {
		t.Fatal("the overlay is not found in the UKI")
	}
	changed := bytes.Clone(uki)
	changed[i] ^= 0x20
	s.writeESP(t, "EFI/Linux/signet_0.1.1.efi", changed)
	message := s.bootRefused(t, vm.Options{})
	if !strings.Contains(message, "not approved") {
		t.Errorf("the screen does not say that what booted is not approved: %s", message)
	}
	s.writeESP(t, "EFI/Linux/signet_0.1.1.efi", uki)
}

func changedCommandLine(t *testing.T, s *story) {
	s.writeESP(t, "loader/entries/evil.conf", []byte("title evil\nefi /EFI/Linux/signet_0.1.1.efi\noptions console=ttyS0,115200 panic=10 lockdown=none\n"))
	loader := s.readESP(t, "loader/loader.conf")
	s.writeESP(t, "loader/loader.conf", append(bytes.Clone(loader), []byte("default evil.conf\n")...))
	message := s.bootRefused(t, vm.Options{})
	if !strings.Contains(message, "command line") {
		t.Errorf("the screen does not name the command line: %s", message)
	}
	s.writeESP(t, "loader/loader.conf", loader)
	mustRun(t, ".", "mdel", "-i", s.espImage(), "::loader/entries/evil.conf")
}

func noTPM(t *testing.T, s *story) {
	if message := s.bootRefused(t, vm.Options{NoTPM: true}); !strings.Contains(message, "TPM") {
		t.Errorf("the screen does not name the TPM: %s", message)
	}
}

func backTogether(t *testing.T, s *story) {
	s.boot(t)
	s.checkSameBox(t)
	if records := s.get(t, "/api/v1/audit?limit=500"); !strings.Contains(records, "device.example.com") {
		t.Errorf("the first enrollment's record is gone: %s", records)
	}
	useKeysAgain(t, s)
	s.shutDown(t)
}

// olderDisk: somebody puts a copy of the disk back that was made before the last boot.
func olderDisk(t *testing.T, s *story) {
	mustRun(t, ".", "cp", "--sparse=always", s.older, s.disk())
	s.boot(t)
	s.checkSameBox(t)
	if status := s.get(t, "/api/v1/status"); !strings.Contains(status, "older copy") {
		t.Errorf("the status does not say that the disk is an older copy: %s", status)
	}
	s.request(t, "late", "late.example.com")
	if status := s.est(t, s.ready.EST, "simpleenroll", "late", "-u", "device:corp-demo-password"); status != "503" {
		t.Errorf("EST on an older disk: HTTP %s", status)
	}
	if err := s.scep("corp", "ca2.crt", "ra2.crt", "late.example.com", "late.crt", "--password", "corp-demo-challenge"); err == nil {
		t.Error("SCEP issued on an older disk")
	}
	if status := mustRun(t, s.dir, "curl", "-sS", "--max-time", "60", "-o", "list.crl", "-w", "%{http_code}", s.ready.PKI+"/pki/devices.crl"); status != "503" {
		t.Errorf("the revocation list on an older disk: HTTP %s", status)
	}

	var done webui.Acknowledged
	s.send(t, "POST", "/api/v1/rollback/acknowledge", struct{}{}, &done)
	s.mustEST(t, "ca2.crt", "late.crt", s.ready.EST, "simpleenroll", "late", "-u", "device:corp-demo-password")
	mustRun(t, s.dir, "curl", "-sS", "--fail", "--max-time", "60", "-o", "list.crl", s.ready.PKI+"/pki/devices.crl")
	if records := s.get(t, "/api/v1/audit?limit=500"); !strings.Contains(records, "box_rollback_found") || !strings.Contains(records, "box_rollback_acknowledged") {
		t.Errorf("the audit log does not tell of the older disk: %s", records)
	}
	s.shutDown(t)
}

// boot starts the box detached and waits until it is ready.
func (s *story) boot(t *testing.T) {
	t.Helper()
	s.ready = endpoints{}
	decode(t, mustSignet(t, "--json", "run", s.out, "--detach"), &s.ready)
}

// bootRefused starts the box, which must end at a screen instead of a service, and returns what the
// screen says.
func (s *story) bootRefused(t *testing.T, o vm.Options) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	o.Out = s.out
	m, err := vm.Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Kill()
	_, err = m.WaitReady(ctx, nil)
	var halted *vm.HaltedError
	if !errors.As(err, &halted) {
		t.Fatalf("the box did not halt with a screen: %v", err)
	}
	if halted.Mend == "" {
		t.Errorf("the screen does not say what to do: %q", halted.What)
	}
	t.Logf("the box says: %s — %s", halted.What, halted.Mend)
	return halted.What
}

// shutDown stops the box, which must switch itself off rather than be switched off.
func (s *story) shutDown(t *testing.T) {
	t.Helper()
	mustSignet(t, "stop", s.out)
	if log := readFile(t, filepath.Join(s.out, "vm", "serial.log")); !bytes.Contains(log, []byte("reboot: Power down")) {
		t.Errorf("the box did not switch itself off:\n%s", log)
	}
}

// powerCut ends QEMU and swtpm at once.
func (s *story) powerCut(t *testing.T) {
	t.Helper()
	m, err := vm.Load(s.out)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
}

func (s *story) checkSameBox(t *testing.T) {
	t.Helper()
	if s.ready.ClaimCode != "" {
		t.Error("a claimed box shows a claim code")
	}
	if s.ready.TLSSHA256 != s.leaf {
		t.Errorf("the TLS certificate is %s, it was %s", s.ready.TLSSHA256, s.leaf)
	}
	if ca := readFile(t, s.ready.CABundle); !bytes.Equal(ca, s.ca) {
		t.Errorf("the box has other authorities than before:\n%s", ca)
	}
}

// get fetches path from the console with the administrator's token.
func (s *story) get(t *testing.T, path string) string {
	t.Helper()
	return mustRun(t, ".", "curl", "-sS", "--fail", "--max-time", "60", "--cacert", s.ready.CABundle, "-H", "Authorization: Bearer "+s.token, s.ready.Console+path)
}

func (s *story) disk() string { return filepath.Join(s.out, "vm", "disk.img") }

// espImage names the ESP inside the disk as mtools want it; it is the first partition, at 1 MiB.
func (s *story) espImage() string { return s.disk() + "@@1M" }

func (s *story) readESP(t *testing.T, name string) []byte {
	t.Helper()
	local := filepath.Join(t.TempDir(), "file")
	mustRun(t, ".", "mcopy", "-n", "-i", s.espImage(), "::"+name, local)
	return readFile(t, local)
}

func (s *story) writeESP(t *testing.T, name string, data []byte) {
	t.Helper()
	local := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(local, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if dir := filepath.Dir(name); dir == "loader/entries" {
		exec.Command("mmd", "-D", "s", "-i", s.espImage(), "::"+dir).Run() // it may be there already
	}
	mustRun(t, ".", "mcopy", "-o", "-i", s.espImage(), local, "::"+name)
}

// dataPartitions is the SHA-256 of everything behind the ESP: KEYS, STATE and the backup GPT.
func (s *story) dataPartitions(t *testing.T) []byte {
	t.Helper()
	f, err := os.Open(s.disk())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Seek(513<<20, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return h.Sum(nil)
}

// mustSignet runs the real command and returns what it printed; it must succeed.
func mustSignet(t *testing.T, argv ...string) []byte {
	t.Helper()
	var out, messages bytes.Buffer
	began := time.Now()
	code := run(&terminal{stdin: strings.NewReader(""), stdout: &out, stderr: &messages}, argv)
	t.Logf("signet %s: exit %d after %.1fs", strings.Join(argv, " "), code, time.Since(began).Seconds())
	if code != exitOK {
		t.Fatalf("signet %s: exit %d\n%s%s", strings.Join(argv, " "), code, messages.Bytes(), out.Bytes())
	}
	return out.Bytes()
}

func quiet(t *testing.T) *terminal {
	return &terminal{stdin: strings.NewReader(""), stdout: io.Discard, stderr: t.Output()}
}

func mustRun(t *testing.T, dir, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", program, strings.Join(args, " "), err, out, stderr.Bytes())
	}
	return string(out)
}

func decode(t *testing.T, data []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatalf("%v in %s", err, data)
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func replaceInFile(t *testing.T, path, old, with string) {
	t.Helper()
	b := readFile(t, path)
	if !bytes.Contains(b, []byte(old)) {
		t.Fatalf("%s does not contain %q", path, old)
	}
	if err := os.WriteFile(path, bytes.ReplaceAll(b, []byte(old), []byte(with)), 0o644); err != nil {
		t.Fatal(err)
	}
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	os.RemoveAll(filepath.Join(to, "secrets"))
	os.RemoveAll(filepath.Join(to, "demo-keys"))
}
