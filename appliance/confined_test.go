package appliance_test

// The whole service as on a box: started with inherited descriptors, confined, and without a TPM of its
// own. A green run does not prove the lists on a box's kernel, which is older than most hosts'.

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"signet.internal/appliance"
	"signet.internal/appliance/confine/confinetest"
	"signet.internal/appliance/handover"
	"signet.internal/appliance/keys"
	"signet.internal/appliance/needtest"
	"signet.internal/provision"
	"signet.internal/tpm"
	"signet.internal/tpm/tpmtest"
)

// TestMain lets the test binary be a signetd: a confined one, with the state directory as argument, or one
// of a development host, with that, the TPM, the first port and the ready file.
func TestMain(m *testing.M) {
	o := appliance.Options{ConfigDir: demoSite, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	switch {
	case len(os.Args) == 3 && os.Args[1] == "confined":
		o.StateDir, o.Confined = os.Args[2], true
	case len(os.Args) == 6 && os.Args[1] == "host":
		o.StateDir, o.TPM, o.ListenBase, o.ReadyFile = os.Args[2], os.Args[3], os.Args[4], os.Args[5]
	default:
		os.Exit(m.Run())
	}
	if err := serve(o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(o appliance.Options) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if o.Confined {
		if err := os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid())); err != nil {
			return err
		}
	}
	return appliance.Run(ctx, o)
}

// holderOn makes the demo site's keys in a software TPM and returns what answers for them.
func holderOn(t *testing.T) *keys.Holder {
	t.Helper()
	site, err := provision.Load(os.DirFS(demoSite))
	if err != nil {
		t.Fatal(err)
	}
	var specs []keys.Spec
	for _, k := range site.Keys() {
		specs = append(specs, keys.Spec(k))
	}
	device, err := tpm.Open(tpmtest.Start(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { device.Close() })
	storage, err := os.Create(filepath.Join(t.TempDir(), "keys"))
	if err != nil {
		t.Fatal(err)
	}
	defer storage.Close()
	vault, err := keys.Provision(device, storage, site.Name, specs, keys.Binding{Kind: keys.KindHost})
	if err != nil {
		t.Fatal(err)
	}
	defer vault.Close()
	secrets, err := vault.Handover()
	if err != nil {
		t.Fatal(err)
	}
	holder, err := keys.NewHolder(device, secrets, nil)
	if err != nil {
		t.Fatal(err)
	}
	return holder
}

// startConfined starts a confined service and returns it once its console answers; log is what it says.
func startConfined(t *testing.T, holder *keys.Holder, state string, first bool) (s *service, log *bytes.Buffer) {
	t.Helper()
	ours, theirs := socketPair(t)
	go holder.Serve(ours)
	boot, err := json.Marshal(handover.Boot{Kind: handover.KindHost, Provisioning: first, ClaimCode: "KT2H-Z8RM", TimeSource: "host"})
	if err != nil {
		t.Fatal(err)
	}
	report := filepath.Join(t.TempDir(), "boot")
	if err := os.WriteFile(report, boot, 0o600); err != nil {
		t.Fatal(err)
	}
	bootFile, err := os.Open(report)
	if err != nil {
		t.Fatal(err)
	}
	files := []*os.File{theirs, bootFile}
	names := []string{handover.FDKeys, handover.FDBoot}
	var urls []string
	for _, name := range []string{"scep", "console", "plain", "est", "legacy", "legacy_scep"} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		file, err := listener.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		files, names = append(files, file), append(names, name)
		urls = append(urls, listener.Addr().String())
		listener.Close()
	}
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(tpmtest.SocketDir(t), "n"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}

	log = &bytes.Buffer{}
	cmd := exec.Command("/proc/self/exe", "confined", state)
	cmd.ExtraFiles = files
	cmd.Env = []string{
		"LISTEN_FDS=" + strconv.Itoa(len(files)), "LISTEN_FDNAMES=" + strings.Join(names, ":"),
		"NOTIFY_SOCKET=" + notify.LocalAddr().String(), "WATCHDOG_USEC=900000",
	}
	cmd.Stderr = io.MultiWriter(log, t.Output())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		f.Close()
	}
	done := make(chan error, 1)
	go func() {
		done <- cmd.Wait()
		notify.Close()
	}()
	plain := "http://" + urls[2]
	s = &service{state: state, ready: appliance.Ready{ClaimCode: "KT2H-Z8RM", CABundle: filepath.Join(t.TempDir(), "bundle.pem"),
		SCEP: "https://" + urls[0], Console: "https://" + urls[1], SCEPPlain: plain, PKI: plain, OCSP: plain,
		EST: "https://" + urls[3], Legacy: "https://" + urls[4], LegacySCEP: "https://" + urls[5]}}
	stopped := false
	s.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		return errors.Join(cmd.Process.Signal(syscall.SIGTERM), <-done)
	}
	t.Cleanup(func() { s.stop() })
	// The second word is the watchdog's, from the service's upkeep.
	words := make([]byte, 4096)
	for _, want := range []string{"READY=1", "WATCHDOG=1"} {
		n, err := notify.Read(words)
		if err != nil || !bytes.Contains(words[:n], []byte(want)) {
			t.Fatalf("the service said %q, not %s: %v", words[:n], want, err)
		}
	}
	go io.Copy(io.Discard, notify) // until the service ends
	s.client = &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	response, err := s.client.Get(s.ready.Console + "/api/v1/ca-bundle")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	bundle, err := io.ReadAll(response.Body)
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(bundle) {
		t.Fatalf("CA bundle: %v", err)
	}
	if err := os.WriteFile(s.ready.CABundle, bundle, 0o600); err != nil {
		t.Fatal(err)
	}
	s.client.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	return s, log
}

func socketPair(t *testing.T) (net.Conn, *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours := os.NewFile(uintptr(fds[0]), "ours")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	return conn, os.NewFile(uintptr(fds[1]), "theirs")
}

func TestConfinedServiceEnrollsRealClients(t *testing.T) {
	confinetest.Need(t)
	needtest.Program(t, "pki", "strongswan-pki")
	holder, state := holderOn(t), t.TempDir()
	token := ""
	for _, first := range []bool{true, false} { // a first boot, and the next
		s, log := startConfined(t, holder, state, first)
		if first {
			token = s.claim(t)
		}
		cn := fmt.Sprintf("device-%t.example.com", first)
		if out, err := enrollStrongSwan(t, t.TempDir(), s.ready.SCEPPlain+"/scep/corp", cn, "corp-demo-challenge"); err != nil {
			t.Fatalf("pki --scep: %v\n%s", err, out)
		}
		if out, err := enrollStrongSwan(t, t.TempDir(), s.ready.SCEPPlain+"/scep/corp", cn, "guess"); err == nil {
			t.Errorf("a wrong challenge got %s", out)
		}
		if !first {
			s.publishes(t, token)
		}
		var page auditPage
		if code := s.api(t, "GET", "/api/v1/audit", token, nil, &page); code != http.StatusOK || len(page.Records) == 0 {
			t.Errorf("audit: HTTP %d, %d records", code, len(page.Records))
		}
		if err := s.stop(); err != nil {
			t.Errorf("stopping the service: %v", err)
		}
		for _, bad := range []string{"not permitted", "permission denied", "level=ERROR", "level=WARN"} {
			if strings.Contains(log.String(), bad) {
				t.Errorf("the service said %q", bad)
			}
		}
	}
}

// publishes has devices enroll by EST over TLS 1.2 and 1.3, and asks for the state of a certificate.
func (s *service) publishes(t *testing.T, token string) {
	t.Helper()
	root := tlsRoot(t, s)
	s.strongSwanEST(t, s.ready.Legacy, root, "")
	x := newShell(t, s, root)
	x.run("request d d.example.com; openssl base64 -in d.der | post -u device:corp-demo-password $EST/simpleenroll | read_certs > d.crt; C $EST/cacerts | read_certs > ca.pem")
	const ask = "openssl ocsp -issuer ca.pem -cert d.crt -url $OCSP/devices -CAfile ca.pem 2>&1"
	x.says(ask, "Response verify OK", "d.crt: good")
	if code := s.api(t, "POST", "/api/v1/certificates/"+x.serial("d.crt")+"/revoke", token, map[string]string{"reason": "superseded"}, nil); code != http.StatusOK {
		t.Fatalf("revoking: HTTP %d", code)
	}
	x.says(ask, "Response verify OK", "d.crt: revoked")
	x.says("C $PKI/devices.crl -o list; openssl crl -inform DER -in list -noout -CAfile ca.pem 2>&1", "verify OK")
}
