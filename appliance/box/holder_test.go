package box

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
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
	"signet.internal/appliance/logtest"
	"signet.internal/tpm"
	"signet.internal/tpm/tpmtest"
)

// The holder's process is started as on the box, with a connection to a software TPM in place of
// /dev/tpmrm0. A green run does not prove that a real device passes from boxinit to the holder, nor
// the policy of a box's keys.

var holderKeys = []keys.Spec{
	{Name: keys.NameAttestation, Algorithm: "ecdsa-p256", Protection: keys.Resident},
	{Name: keys.NameAudit, Algorithm: "ecdsa-p256", Protection: keys.Resident},
	{Name: keys.NameTLS, Algorithm: "ecdsa-p256", Protection: keys.Sealed},
}

// vaultOn opens the keys of a TPM and a file for KEYS, or makes them, and closes the TPM, as boxinit does
// after leave-initrd.
func vaultOn(t *testing.T, spec, path string) *keys.Vault {
	t.Helper()
	device, err := tpm.Open(spec)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	storage, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { storage.Close() })
	binding := keys.Binding{Kind: keys.KindHost}
	vault, err := keys.Open(device, storage, "test", holderKeys, binding)
	if errors.Is(err, keys.ErrNotProvisioned) {
		vault, err = keys.Provision(device, storage, "test", holderKeys, binding)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(vault.Close)
	return vault
}

// startHolderOn starts the holder of a vault as boxinit does.
func startHolderOn(t *testing.T, spec string, vault *keys.Vault, record func(net.Conn) error) *holder {
	t.Helper()
	secrets, err := vault.Handover()
	if err != nil {
		t.Fatal(err)
	}
	vault.Forget()
	device := tpmFile(t, spec)
	defer device.Close()
	box := sandbox{lockPages: mayLockPages(t)}
	if os.Getuid() == 0 {
		box.uid = uidHolder
	}
	var log logtest.Buffer
	h, err := startHolder(holderConfig{
		box: box, socket: filepath.Join(tpmtest.SocketDir(t), "socket"), device: device, log: &log, secrets: secrets, record: record,
	})
	if err != nil {
		t.Fatalf("%v; log:\n%s", err, log.String())
	}
	t.Cleanup(func() { h.stop(10 * time.Second) })
	if !bytes.Equal(secrets, make([]byte, len(secrets))) {
		t.Error("the secrets are still in this process")
	}
	return h
}

// connect is a start of the service.
func connect(t *testing.T, h *holder) *keys.Client {
	t.Helper()
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
	t.Cleanup(func() { client.Close() })
	return client
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
	vault := vaultOn(t, spec, filepath.Join(t.TempDir(), "keys"))
	h := startHolderOn(t, spec, vault, vault.ServeRecords)
	for range 2 { // a service, and the one started after it
		client := connect(t, h)
		for _, name := range []string{keys.NameAudit, keys.NameTLS} {
			checkSigns(t, client, name)
		}
		client.Close()
	}
	if os.Getuid() == 0 {
		checkUnreadable(t, h.cmd.Process.Pid, mayLockPages(t))
	}
	select {
	case <-h.ended:
		t.Errorf("the holder ended: %v", h.err)
	default:
	}
}

// A confined holder makes keys of both kinds and takes a secret, and the next boot has them.
func TestHolderMakesKeysThatTheNextBootHas(t *testing.T) {
	confinetest.Need(t)
	m, path := tpmtest.New(t), filepath.Join(t.TempDir(), "keys")
	vault := vaultOn(t, m.Spec(), path)
	h := startHolderOn(t, m.Spec(), vault, vault.ServeRecords)
	client := connect(t, h)
	made := []keys.Spec{
		{Name: "authority/devices.2", Algorithm: "ecdsa-p256", Protection: keys.Resident},
		{Name: "ra.2", Algorithm: "rsa-2048", Protection: keys.Sealed},
	}
	for _, s := range made {
		if _, err := client.Create(s); err != nil {
			t.Fatal(err)
		}
		checkSigns(t, client, s.Name)
	}
	if c, err := client.Certify(made[0].Name, []byte("nonce")); err != nil || len(c.Attest) == 0 {
		t.Errorf("certifying: %x, %v", c.Attest, err)
	}
	if err := client.PutSecret("secret/webhook", []byte("value")); err != nil {
		t.Fatal(err)
	}
	h.stop(10 * time.Second)
	vault.Close()

	m.Reboot()
	vault = vaultOn(t, m.Spec(), path)
	client = connect(t, startHolderOn(t, m.Spec(), vault, vault.ServeRecords))
	for _, s := range made {
		checkSigns(t, client, s.Name)
	}
	if value, err := client.Secret("secret/webhook"); err != nil || string(value) != "value" {
		t.Errorf("%q, %v", value, err)
	}
	if err := client.Delete("ra.2"); err != nil {
		t.Error(err)
	}
}

// Where boxinit no longer writes KEYS, the holder says so, makes nothing, and goes on with what it has.
func TestHolderWithoutAnybodyToWriteKEYS(t *testing.T) {
	confinetest.Need(t)
	for name, record := range map[string]func(net.Conn) error{
		"gone":      func(net.Conn) error { return errors.New("gone") },
		"panics":    func(net.Conn) error { panic("x") },
		"nonsense":  func(conn net.Conn) error { _, err := conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n")); return err },
		"goes away": func(conn net.Conn) error { _, err := conn.Read(make([]byte, 1)); return err },
	} {
		t.Run(name, func(t *testing.T) {
			spec := tpmtest.New(t).Spec()
			vault := vaultOn(t, spec, filepath.Join(t.TempDir(), "keys"))
			client := connect(t, startHolderOn(t, spec, vault, record))
			for range 2 {
				if _, err := client.Create(keys.Spec{Name: "ra.2", Algorithm: "rsa-2048", Protection: keys.Sealed}); !errors.Is(err, keys.ErrNotRecorded) {
					t.Errorf("%v", err)
				}
			}
			if _, err := client.Key("ra.2"); !errors.Is(err, keys.ErrNoKey) {
				t.Errorf("a key that nobody recorded: %v", err)
			}
			checkSigns(t, client, keys.NameAudit)
		})
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
	algorithm := x509.ECDSAWithSHA256
	if _, ok := key.Public().(*rsa.PublicKey); ok {
		algorithm = x509.SHA256WithRSA
	}
	certificate := x509.Certificate{PublicKey: key.Public()}
	if err := certificate.CheckSignature(algorithm, []byte("x"), signature); err != nil {
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
	_, err = startHolder(holderConfig{
		socket: filepath.Join(tpmtest.SocketDir(t), "socket"), device: device, log: io.Discard, secrets: []byte("nonsense"),
		record: func(net.Conn) error { return nil },
	})
	if err == nil || !strings.Contains(err.Error(), "handover") {
		t.Errorf("got %v", err)
	}
}
