package box

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"signet.internal/appliance/confine/confinetest"
	"signet.internal/appliance/keys"
	"signet.internal/tpm"
	"signet.internal/tpm/tpmtest"
)

// The holder's process is started as on the box, with a connection to a software TPM in place of
// /dev/tpmrm0. A green run does not prove that a real device passes from boxinit to the holder, nor
// the policy of a box's keys.

// vaultOn provisions a TPM and returns what its vault hands over.
func vaultOn(t *testing.T, spec string) []byte {
	t.Helper()
	device, err := tpm.Open(spec)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	storage, err := os.Create(filepath.Join(t.TempDir(), "keys"))
	if err != nil {
		t.Fatal(err)
	}
	defer storage.Close()
	specs := []keys.Spec{{Name: keys.NameAudit, Algorithm: "ecdsa-p256", Protection: keys.Resident}, {Name: keys.NameTLS, Algorithm: "ecdsa-p256", Protection: keys.Sealed}}
	vault, err := keys.Provision(device, storage, "test", specs, keys.Binding{Kind: keys.KindHost})
	if err != nil {
		t.Fatal(err)
	}
	defer vault.Close()
	secrets, err := vault.Handover()
	if err != nil {
		t.Fatal(err)
	}
	return secrets
}

// tpmFile is the software TPM as a descriptor that can be inherited.
func tpmFile(t *testing.T, spec string) *os.File {
	t.Helper()
	conn, err := net.Dial("unix", strings.TrimPrefix(spec, "swtpm:"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	f, err := conn.(*net.UnixConn).File()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestHolderServesEachStartOfTheService(t *testing.T) {
	confinetest.Need(t)
	spec := tpmtest.New(t).Spec()
	secrets := vaultOn(t, spec)
	device := tpmFile(t, spec)
	defer device.Close()
	box := sandbox{lockPages: mayLockPages(t)}
	if os.Getuid() == 0 {
		box.uid = uidHolder
	}
	var log lockedBuffer
	dir := t.TempDir()
	h, err := startHolder(box, filepath.Join(dir, "socket"), device, &log, secrets)
	if err != nil {
		t.Fatalf("%v; log:\n%s", err, log.String())
	}
	defer h.stop(10 * time.Second)
	if !bytes.Equal(secrets, make([]byte, len(secrets))) {
		t.Error("the secrets are still in this process")
	}
	for range 2 { // a service, and the one started after it
		file, err := h.dial()
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.FileConn(file)
		if err != nil {
			t.Fatal(err)
		}
		file.Close()
		client := keys.NewClient(conn)
		for _, name := range []string{keys.NameAudit, keys.NameTLS} {
			checkSigns(t, client, name)
		}
		client.Close()
	}
	if os.Getuid() == 0 {
		checkUnreadable(t, h.cmd.Process.Pid, box.lockPages)
	}
	select {
	case <-h.ended:
		t.Errorf("the holder ended: %v", h.err)
	default:
	}
}

func checkSigns(t *testing.T, client *keys.Client, name string) {
	t.Helper()
	key, err := client.Key(name)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("x"))
	signature, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	certificate := x509.Certificate{PublicKey: key.Public(), PublicKeyAlgorithm: x509.ECDSA}
	if err := certificate.CheckSignature(x509.ECDSAWithSHA256, []byte("x"), signature); err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

// mayLockPages says whether this process may lift the limit on locked memory, as root on a box can and
// root in many containers cannot.
func mayLockPages(t *testing.T) bool {
	t.Helper()
	const sysResource = 1 << unix.CAP_SYS_RESOURCE
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	return data[0].Effective&sysResource != 0
}

// checkUnreadable holds that the holder runs as its own user, with locked memory, undumpable: what is
// undumpable has root's files in /proc.
func checkUnreadable(t *testing.T, pid int, locked bool) {
	t.Helper()
	dir := filepath.Join("/proc", itoa(pid))
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Uid:\t901\t901\t901\t901\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n", "CapEff:\t0000000000000000\n"} {
		if !bytes.Contains(status, []byte(want)) {
			t.Errorf("status lacks %q:\n%s", want, status)
		}
	}
	if locked && bytes.Contains(status, []byte("VmLck:\t       0 kB")) {
		t.Error("no memory is locked")
	}
	info, err := os.Stat(filepath.Join(dir, "mem"))
	if err != nil {
		t.Fatal(err)
	}
	if owner := ownerOf(info); owner != 0 {
		t.Errorf("memory belongs to user %d: it can be read and dumped", owner)
	}
}

func TestHolderSaysWhyItDoesNotStart(t *testing.T) {
	confinetest.Need(t)
	device, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	_, err = startHolder(sandbox{}, filepath.Join(t.TempDir(), "socket"), device, io.Discard, []byte("nonsense"))
	if err == nil || !strings.Contains(err.Error(), "handover") {
		t.Errorf("got %v", err)
	}
}
