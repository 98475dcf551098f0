package appliance_test

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance"
	"signet.internal/appliance/audit"
	"signet.internal/appliance/handover"
	"signet.internal/tpm/tpmtest"
)

// startParts is start with the parts in the test's hands: the service and a TPM whose holder lives as long.
func startParts(t *testing.T, spec, state string) (*service, *appliance.Appliance) {
	t.Helper()
	site, file, host := openHost(t, demoSite, spec, state)
	listeners := loopback(t, "plain", "console")
	c := appliance.Config{
		Site: site, Files: os.DirFS(demoSite), StateDir: state, Keys: host.Client, Now: time.Now, Listeners: listeners,
		Boot:        handover.Boot{Kind: handover.KindHost, Provisioning: !host.Vault.Initialised(), TimeSource: "host", ClaimCode: "ABCD-EFGH"},
		Initialised: host.Vault.MarkInitialised,
		ReadyFile:   filepath.Join(t.TempDir(), "ready.json"),
		Log:         slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	a, err := appliance.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Serve(ctx) }()
	s := &service{state: state}
	isOn := true
	s.stop = func() error {
		if !isOn {
			return nil
		}
		isOn = false
		cancel()
		err := <-done
		host.Close()
		file.Close()
		return err
	}
	t.Cleanup(func() { s.stop() })
	s.awaitReady(t, c.ReadyFile, done)
	return s, a
}

// An older copy of the whole disk is put back while the box is off. It starts, its console is there, and it
// issues nothing and signs no list that would lack what was revoked since, until an administrator says so; the
// log tells it all and verifies, and no list has a lower number than one before.
func TestOlderDiskIsPutBack(t *testing.T) {
	spec, state := tpmtest.Start(t), t.TempDir()
	s, a := startParts(t, spec, state)
	token := s.claim(t)
	key, err := audit.NewVerifier(strings.TrimSpace(s.get(t, "/api/v1/audit/key", token)))
	if err != nil {
		t.Fatal(err)
	}
	exported := func() audit.Report {
		t.Helper()
		time.Sleep(1100 * time.Millisecond) // the key signs once a second at most
		report, err := audit.Verify(strings.NewReader(s.get(t, "/api/v1/audit/export", token)), key)
		if err != nil {
			t.Fatal(err)
		}
		return report
	}
	enroll := func(cn string) error {
		t.Helper()
		d := newDevice(t, s.ready.SCEPPlain+"/scep/corp")
		return d.request(cn, d.newKey("k.key"), "k.crt", "--password", "corp-demo-challenge")
	}
	number := big.NewInt(0)
	crl := func() (status int, serials []string) {
		t.Helper()
		resp, err := http.Get(s.ready.PKI + "/pki/devices.crl")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		der, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			return resp.StatusCode, nil
		}
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			t.Fatal(err)
		}
		if list.Number.Cmp(number) <= 0 {
			t.Errorf("list %v comes after list %v", list.Number, number)
		}
		number = list.Number
		for _, e := range list.RevokedCertificateEntries {
			serials = append(serials, hex.EncodeToString(e.SerialNumber.Bytes()))
		}
		return resp.StatusCode, serials
	}
	stop := func() {
		t.Helper()
		if err := s.stop(); err != nil {
			t.Fatal(err)
		}
	}
	copied := func() string {
		t.Helper()
		stop()
		to := filepath.Join(t.TempDir(), "disk")
		if err := os.CopyFS(to, os.DirFS(state)); err != nil {
			t.Fatal(err)
		}
		return to
	}
	insert := func(disk string) {
		t.Helper()
		stop()
		for _, do := range []func() error{func() error { return os.RemoveAll(state) }, func() error { return os.CopyFS(state, os.DirFS(disk)) }} {
			if err := do(); err != nil {
				t.Fatal(err)
			}
		}
		s, a = startParts(t, spec, state)
	}

	d := newDevice(t, s.ready.SCEPPlain+"/scep/corp")
	if err := d.request("first.example.com", d.newKey("k.key"), "k.crt", "--password", "corp-demo-challenge"); err != nil {
		t.Fatal(err)
	}
	revoked := d.serial("k.crt")
	if code := s.api(t, "POST", "/api/v1/certificates/"+revoked+"/revoke", token, map[string]string{"reason": "keyCompromise"}, nil); code != 200 {
		t.Fatalf("revoking: HTTP %d", code)
	}
	crl()
	first := exported()
	if first.Anchor == 0 {
		t.Errorf("the log does not say where the counter is: %+v", first)
	}
	older := copied()
	s, a = startParts(t, spec, state)
	d = newDevice(t, s.ready.SCEPPlain+"/scep/corp")
	if err := d.request("second.example.com", d.newKey("k.key"), "k.crt", "--password", "corp-demo-challenge"); err != nil {
		t.Fatal(err)
	}
	if code := s.api(t, "POST", "/api/v1/certificates/"+d.serial("k.crt")+"/revoke", token, map[string]string{"reason": "keyCompromise"}, nil); code != 200 {
		t.Fatalf("revoking: HTTP %d", code)
	}
	crl()
	second := exported()
	if second.Anchor != first.Anchor+1 {
		t.Errorf("the counter went from %d to %d at a start", first.Anchor, second.Anchor)
	}
	newer := copied()

	insert(older)
	if err := enroll("third.example.com"); err == nil {
		t.Error("issued on an older disk")
	}
	if status, _ := crl(); status != http.StatusServiceUnavailable {
		t.Errorf("a list that lacks what was revoked since: HTTP %d", status)
	}
	if !s.has(t, token, "box_rollback_found", "refused", "") {
		t.Error("the log does not say what was found")
	}
	if third := exported(); third.Anchor != first.Anchor {
		t.Errorf("a checkpoint on an older disk says %d, the disk knows %d", third.Anchor, first.Anchor)
	}
	if err := a.AcknowledgeRollback("ada"); err != nil {
		t.Fatal(err)
	}
	if err := enroll("third.example.com"); err != nil {
		t.Errorf("acknowledged: %v", err)
	}
	if status, got := crl(); status != http.StatusOK || !slices.Contains(got, revoked) {
		t.Errorf("%s was revoked before the copy was made, and is not on the list %s (HTTP %d)", revoked, got, status)
	}
	if !s.has(t, token, "box_rollback_acknowledged", "success", "") {
		t.Error("the log does not say who acknowledged")
	}
	if fourth := exported(); fourth.Anchor <= second.Anchor {
		t.Errorf("after acknowledging the counter is at %d, it was at %d on the newer disk", fourth.Anchor, second.Anchor)
	}
	acknowledged := copied()
	insert(newer)
	if err := enroll("fourth.example.com"); err == nil {
		t.Error("issued on a disk that was given up")
	}
	insert(acknowledged)
	if err := enroll("fourth.example.com"); err != nil {
		t.Errorf("on the newest disk: %v", err)
	}
}
