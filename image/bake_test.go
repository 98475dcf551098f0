package image

// These tests need Debian's systemd-boot-efi. What they do not prove: that firmware boots the image
// and that the stub measures what is predicted; the machine test does.

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"debug/pe"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/diskfs/go-diskfs"
	"github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/google/go-cmp/cmp"
	"github.com/u-root/u-root/pkg/cpio"

	"signet.internal/appliance/needtest"
	"signet.internal/image/format"
	"signet.internal/provision"
	"signet.internal/tpm"
)

const testSite = `name: test
version: 1.2.3
epoch: 4
public_host: localhost
secure_boot: none
network: {dhcp: true}
listeners:
  scep: {on: true}
  console: {on: true}
  plain: {on: true}
authorities:
  - {name: devices, mode: root, subject: "CN=Test CA", key: {algorithm: rsa-2048, protection: resident}}
ra: {algorithm: rsa-2048, protection: sealed, validity: 365d}
`

const testProfile = `name: corp
default: true
authority: devices
keys: {rsa: {min_bits: 2048}, ecdsa: [p256]}
subject: {allow: [CN, O]}
san: {dns: ["*"]}
usage: {key: [digitalSignature], extended: [clientAuth]}
validity: 90d
scep:
  plain_http: true
  reply: {chain: false, getcacert: ra+chain}
  challenges:
    static: {hash: "$HASH"}
`

// testFiles is a small site, with things beside it that must never get into an image.
func testFiles(t *testing.T) fstest.MapFS {
	t.Helper()
	hash, err := provision.HashSecret([]byte("test-challenge"))
	if err != nil {
		t.Fatal(err)
	}
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s), Mode: 0o644} }
	return fstest.MapFS{
		"site.yaml":            file(testSite),
		"profiles/corp.yaml":   file(strings.ReplaceAll(testProfile, "$HASH", hash)),
		"secrets/db.key":       file("secret"),
		"demo-keys/device.key": file("secret"),
		"README.md":            file("notes"),
	}
}

// part is a file of Debian's systemd-boot-efi.
func part(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("/usr/lib/systemd/boot/efi", name))
	if err != nil {
		needtest.Missing(t, "systemd-boot-efi is not installed: "+err.Error())
	}
	return data
}

// testBase writes a base with the real stub and loader and stand-ins for kernel and initramfs.
func testBase(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	b := Base{
		Kernel: "6.1.0-test", BuildTime: time.Date(2026, 3, 1, 12, 30, 10, 0, time.UTC), SHA256: map[string]string{},
		SBOM: []Component{{Kind: ComponentDebian, Name: "linux", Version: "6.1"}},
	}
	for name, data := range map[string][]byte{
		BaseStub: part(t, "linuxx64.efi.stub"), BaseLoader: part(t, "systemd-bootx64.efi"),
		BaseKernel: bytes.Repeat([]byte("kernel "), 1000), BaseInitramfs: []byte("initramfs of odd length"),
	} {
		writeTestFile(t, filepath.Join(dir, name), data)
		sum := sha256.Sum256(data)
		b.SHA256[name] = hex.EncodeToString(sum[:])
	}
	text, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	writeTestFile(t, filepath.Join(dir, BaseFile), text)
	return dir
}

func writeTestFile(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func testKeys(t *testing.T) *SigningKeys {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "secrets")
	if err := WriteSigningKeys(dir, "test"); err != nil {
		t.Fatal(err)
	}
	keys, err := LoadSigningKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func TestBake(t *testing.T) {
	o := Options{Site: testFiles(t), Keys: testKeys(t), Base: testBase(t), Out: filepath.Join(t.TempDir(), "out")}
	m, err := Bake(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	checkOutputs(t, o, m)
	uki := readFile(t, filepath.Join(o.Out, UKIFile))
	checkUKI(t, o, m, uki)
	checkDisk(t, o, uki)

	t.Run("again", func(t *testing.T) {
		first := map[string]string{}
		for _, name := range []string{DiskFile, UKIFile, ManifestFile} {
			first[name] = fileSum(t, filepath.Join(o.Out, name))
		}
		again := o
		again.Out = filepath.Join(t.TempDir(), "other")
		time.Sleep(2100 * time.Millisecond) // FAT's clock ticks every two seconds
		if _, err := Bake(context.Background(), again); err != nil {
			t.Fatal(err)
		}
		for name, sum := range first {
			if fileSum(t, filepath.Join(again.Out, name)) != sum {
				t.Errorf("%s differs between two bakes of the same inputs", name)
			}
		}
	})
	t.Run("over an older one", func(t *testing.T) {
		if err := os.MkdirAll(filepath.Join(o.Out, "vm"), 0o755); err != nil {
			t.Fatal(err)
		}
		writeTestFile(t, filepath.Join(o.Out, "vm", "disk.img"), []byte("machine"))
		if _, err := Bake(context.Background(), o); err != nil {
			t.Fatal(err)
		}
		if got := readFile(t, filepath.Join(o.Out, "vm", "disk.img")); string(got) != "machine" {
			t.Errorf("the machine's state was changed to %q", got)
		}
	})
}

// checkOutputs compares the manifest with what is on disk.
func checkOutputs(t *testing.T, o Options, m *Manifest) {
	t.Helper()
	entries, err := os.ReadDir(o.Out)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if diff := cmp.Diff([]string{ManifestFile, UKIFile, DiskFile}, names); diff != "" {
		t.Errorf("files of a bake (-want +got):\n%s", diff)
	}
	read, err := ReadManifest(o.Out)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(m, read); diff != "" {
		t.Errorf("manifest as returned and as written (-returned +written):\n%s", diff)
	}
	for _, name := range []string{UKIFile, DiskFile} {
		if got := fileSum(t, filepath.Join(o.Out, name)); got != m.Files[name].SHA256 {
			t.Errorf("%s has hash %s, manifest says %s", name, got, m.Files[name].SHA256)
		}
	}
	if m.Name != "test" || m.Version != "1.2.3" || m.Epoch != 4 || m.Kernel != "6.1.0-test" {
		t.Errorf("manifest describes another image: %+v", m)
	}
	if diff := cmp.Diff([]string{"est", "scep", "console", "plain"}, m.Listeners); diff != "" {
		t.Errorf("listeners (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]Profile{{Name: "corp", Default: true, SCEP: true, PlainSCEP: true}}, m.Profiles); diff != "" {
		t.Errorf("profiles (-want +got):\n%s", diff)
	}
}

// checkUKI takes the image apart with other code than built it: Debian's sbverify, debug/pe, and PCR
// values chained by hand.
func checkUKI(t *testing.T, o Options, m *Manifest, uki []byte) {
	t.Helper()
	checkSignature(t, uki, o.Keys.DBCert)
	f, err := pe.NewFile(bytes.NewReader(uki))
	if err != nil {
		t.Fatal(err)
	}
	content := map[string][]byte{}
	var previousEnd uint32
	for _, s := range f.Sections {
		data, err := s.Data()
		if err != nil {
			t.Fatal(err)
		}
		content[s.Name] = data[:min(len(data), int(s.VirtualSize))]
		if s.VirtualAddress < previousEnd {
			t.Errorf("section %s overlaps the one before", s.Name)
		}
		previousEnd = s.VirtualAddress + s.VirtualSize
	}
	if got := string(content[".cmdline"]); got != Cmdline {
		t.Errorf("command line is %q", got)
	}
	// systemd-stub 252, src/boot/efi/stub.c: name with zero, then content, in this order.
	pcr := make([]byte, 32)
	chain := func(data []byte) {
		event := sha256.Sum256(data)
		next := sha256.Sum256(append(bytes.Clone(pcr), event[:]...))
		pcr = next[:]
	}
	for _, name := range []string{".linux", ".osrel", ".cmdline", ".initrd", ".pcrpkey"} {
		if len(content[name]) == 0 {
			t.Fatalf("section %s is missing", name)
		}
		chain([]byte(name + "\x00"))
		chain(content[name])
	}
	want := map[string]string{}
	chain([]byte("enter-initrd"))
	want["enter-initrd"] = hex.EncodeToString(pcr)
	enter := pcr
	chain([]byte("leave-initrd"))
	want["leave-initrd"] = hex.EncodeToString(pcr)
	if diff := cmp.Diff(want, m.PCR11); diff != "" {
		t.Errorf("predicted PCR 11 (-want +got):\n%s", diff)
	}
	checkPolicies(t, o.Keys, content[".pcrpkey"], content[".pcrsig"], map[string][]byte{"epoch:4": enter, "use": pcr})
	checkInitrd(t, o, content[".initrd"])
}

// checkSignature asks sbverify, an implementation of its own, about an Authenticode signature.
func checkSignature(t *testing.T, signed []byte, cert *x509.Certificate) {
	t.Helper()
	sbverify := needtest.Program(t, "sbverify", "sbsigntool")
	dir := t.TempDir()
	certFile, file := filepath.Join(dir, "db.pem"), filepath.Join(dir, "signed.efi")
	writeTestFile(t, certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
	writeTestFile(t, file, signed)
	if out, err := exec.Command(sbverify, "--cert", certFile, file).CombinedOutput(); err != nil {
		t.Errorf("sbverify refuses the signature: %v\n%s", err, out)
	}
	signed = bytes.Clone(signed)
	signed[len(signed)/2] ^= 1
	writeTestFile(t, file, signed)
	if exec.Command(sbverify, "--cert", certFile, file).Run() == nil {
		t.Error("sbverify accepts a changed image")
	}
}

func checkPolicies(t *testing.T, keys *SigningKeys, keyPEM, signatures []byte, want map[string][]byte) {
	t.Helper()
	block, _ := pem.Decode(keyPEM)
	if block == nil {
		t.Fatal(".pcrpkey is not PEM")
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil || !keys.Policy.PublicKey.Equal(public) {
		t.Fatalf(".pcrpkey is not the site's policy key: %v", err)
	}
	var doc format.PCRSignatures
	if err := json.Unmarshal(signatures, &doc); err != nil {
		t.Fatal(err)
	}
	got := map[string][]byte{}
	for _, s := range doc.SHA256 {
		policy, err := hex.DecodeString(s.Policy)
		if err != nil {
			t.Fatal(err)
		}
		digest := sha256.Sum256(append(bytes.Clone(policy), s.PolicyRef...))
		if err := rsa.VerifyPKCS1v15(&keys.Policy.PublicKey, crypto.SHA256, digest[:], s.Signature); err != nil {
			t.Errorf("policy signature for %s: %v", s.PolicyRef, err)
		}
		if !bytes.Equal(policy, tpm.PCRPolicyDigest(11, want[s.PolicyRef])) {
			t.Errorf("policy for %s is not over the predicted value", s.PolicyRef)
		}
		got[s.PolicyRef] = want[s.PolicyRef]
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("policies signed (-want +got):\n%s", diff)
	}
}

// checkInitrd reads the overlay the way the kernel does: after the base, on a multiple of 4.
func checkInitrd(t *testing.T, o Options, initrd []byte) {
	t.Helper()
	base := readFile(t, filepath.Join(o.Base, BaseInitramfs))
	if !bytes.HasPrefix(initrd, base) {
		t.Fatal("the initramfs does not begin with the base's")
	}
	segment := initrd[(len(base)+3)&^3:]
	files := map[string]string{}
	made := map[string]bool{".": true}
	err := cpio.ForEachRecord(cpio.EOFReader{RecordReader: cpio.Newc.Reader(bytes.NewReader(segment))}, func(r cpio.Record) error {
		if !made[filepath.Dir(r.Name)] {
			t.Errorf("%s comes before its directory", r.Name)
		}
		if r.Mode&cpio.S_IFMT == cpio.S_IFDIR {
			made[r.Name] = true
			return nil
		}
		data := make([]byte, r.FileSize)
		_, err := r.ReadAt(data, 0)
		files["/"+r.Name] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	profile, err := fs.ReadFile(o.Site, "profiles/corp.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"/etc/signet/cmdline":                 Cmdline,
		"/etc/signet/release.json":            `{"name":"test","version":"1.2.3","epoch":4,"build_time":"2026-03-01T12:30:10Z","debug":false,"kernel":"6.1.0-test"}`,
		"/etc/signet/site/site.yaml":          testSite,
		"/etc/signet/site/profiles/corp.yaml": string(profile),
	}
	if diff := cmp.Diff(want, files); diff != "" {
		t.Errorf("files of the overlay (-want +got):\n%s", diff)
	}
}

// checkDisk reads the disk with go-diskfs and has fsck.vfat and mtools look at the ESP.
func checkDisk(t *testing.T, o Options, uki []byte) {
	t.Helper()
	path := filepath.Join(o.Out, DiskFile)
	d, err := diskfs.Open(path, diskfs.WithOpenMode(diskfs.ReadOnly))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	raw, err := d.GetPartitionTable()
	if err != nil {
		t.Fatal(err)
	}
	table := raw.(*gpt.Table)
	if err := table.Verify(d.Backend, uint64(d.Size)); err != nil {
		t.Errorf("partition table: %v", err)
	}
	type partition struct {
		Name, Type  string
		Start, Size int64
	}
	var got []partition
	for _, p := range table.Partitions {
		if p.Type != gpt.Unused {
			got = append(got, partition{p.Name, string(p.Type), p.GetStart(), p.GetSize()})
		}
	}
	want := []partition{
		{"ESP", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", 1 << 20, 512 << 20},
		{"KEYS", format.KEYSType, 513 << 20, 2 << 20},
		{"STATE", format.STATEType, 515 << 20, 16 << 20},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("partitions (-want +got):\n%s", diff)
	}
	esp := filepath.Join(t.TempDir(), "esp")
	image := readFile(t, path)
	writeTestFile(t, esp, image[1<<20:513<<20])
	if out, err := exec.Command(needtest.Program(t, "fsck.vfat", "dosfstools"), "-n", "-v", esp).CombinedOutput(); err != nil {
		t.Errorf("fsck.vfat objects: %v\n%s", err, out)
	}
	mtype := needtest.Program(t, "mtype", "mtools")
	for name, check := range map[string]func(data []byte){
		"EFI/Linux/signet_1.2.3.efi": func(data []byte) {
			if !bytes.Equal(data, uki) {
				t.Error("the ESP's kernel image is another")
			}
		},
		"EFI/BOOT/BOOTX64.EFI": func(data []byte) { checkSignature(t, data, o.Keys.DBCert) },
		"loader/loader.conf": func(data []byte) {
			if string(data) != "timeout 0\neditor no\n" {
				t.Errorf("loader.conf is %q", data)
			}
		},
	} {
		data, err := exec.Command(mtype, "-i", esp, "::"+name).Output()
		if err != nil {
			t.Fatalf("reading %s from the ESP: %v", name, err)
		}
		check(data)
	}
}

func TestBakeRefusals(t *testing.T) {
	keys, base := testKeys(t), testBase(t)
	with := func(change func(fstest.MapFS)) fstest.MapFS {
		files := testFiles(t)
		change(files)
		return files
	}
	var problems provision.Problems
	for name, tc := range map[string]struct {
		site  fs.FS
		base  func(t *testing.T) string
		check func(error) bool
	}{
		"unknown field": {
			site: with(func(f fstest.MapFS) {
				f["site.yaml"] = &fstest.MapFile{Data: []byte(testSite + "surprise: 1\n")}
			}),
			check: func(err error) bool { return errors.As(err, &problems) && strings.Contains(err.Error(), "surprise") },
		},
		"private key in a site file": {
			site: with(func(f fstest.MapFS) {
				f["profiles/corp.yaml"] = &fstest.MapFile{Data: append(bytes.Clone(f["profiles/corp.yaml"].Data), "# -----BEGIN PRIVATE KEY-----\n"...)}
			}),
			check: func(err error) bool { return strings.Contains(err.Error(), "private key") },
		},
		"no base": {
			base:  func(t *testing.T) string { return t.TempDir() },
			check: func(err error) bool { return errors.Is(err, ErrNoBase) },
		},
		"changed base": {
			base: func(t *testing.T) string {
				dir := testBase(t)
				writeTestFile(t, filepath.Join(dir, BaseKernel), []byte("another kernel"))
				return dir
			},
			check: func(err error) bool { return strings.Contains(err.Error(), BaseKernel) },
		},
		"stub nobody measured": {
			base: func(t *testing.T) string {
				stub := bytes.ReplaceAll(part(t, "linuxx64.efi.stub"), []byte("systemd-stub 252"), []byte("systemd-stub 999"))
				dir := testBase(t)
				writeTestFile(t, filepath.Join(dir, BaseStub), stub)
				b, err := ReadBase(dir)
				if err != nil {
					t.Fatal(err)
				}
				b.SHA256[BaseStub] = fileSum(t, filepath.Join(dir, BaseStub))
				text, err := json.Marshal(b)
				if err != nil {
					t.Fatal(err)
				}
				writeTestFile(t, filepath.Join(dir, BaseFile), text)
				return dir
			},
			check: func(err error) bool { return strings.Contains(err.Error(), "systemd-stub 999") },
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := Options{Site: tc.site, Keys: keys, Base: base, Out: t.TempDir()}
			if o.Site == nil {
				o.Site = testFiles(t)
			}
			if tc.base != nil {
				o.Base = tc.base(t)
			}
			_, err := Bake(context.Background(), o)
			if err == nil || !tc.check(err) {
				t.Errorf("got error %v", err)
			}
			left, readErr := os.ReadDir(o.Out)
			if readErr != nil || len(left) != 0 {
				t.Errorf("a refused bake left %v (%v)", left, readErr)
			}
		})
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func fileSum(t *testing.T, path string) string {
	t.Helper()
	f, err := describe(path)
	if err != nil {
		t.Fatal(err)
	}
	return f.SHA256
}
