package appliance_test

// micromdm's scepclient as it is today, beside the older one of Debian in stories_test.go.

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"signet.internal/appliance/needtest"
	"signet.internal/tpm/tpmtest"
)

const newestScepclient = "github.com/micromdm/scep/v2/cmd/scepclient@v2.3.0"

// goProgram builds a program of the module proxy in a module of its own, so that nothing of it gets into this one's, and returns its
// path. Without it the test fails under CI and is skipped elsewhere.
func goProgram(t *testing.T, program string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module client\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	name, _, _ := strings.Cut(program, "@")
	for _, args := range [][]string{{"get", program}, {"build", "-mod=mod", "-o", "client", name}} {
		cmd := exec.Command(needtest.Program(t, "go", "golang"), args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off", "CGO_ENABLED=1") // globalsign's reads smart cards in C
		if out, err := cmd.CombinedOutput(); err != nil {
			needtest.Missing(t, fmt.Sprintf("%s cannot be had: %v\n%s", program, err, out))
		}
	}
	return filepath.Join(dir, "client")
}

// It signs with SHA-1 and encrypts with single DES, so only a profile with these switches takes it; the demo's modern has its own. With
// an ECDSA authority in GetCACert it has to be told to encrypt to the RA alone.
func TestNewestScepclient(t *testing.T) {
	scepclient := goProgram(t, newestScepclient)
	s := startSite(t, variant(t, map[string]string{
		"profiles/modern.yaml": demo(t, "profiles/modern.yaml", "sha1: false, des3: false, des_decrypt: false", "sha1: true, des3: false, des_decrypt: true"),
	}), tpmtest.Start(t), t.TempDir(), nil)
	token := s.claim(t)
	for _, profile := range []struct {
		name string
		more []string
	}{
		{"legacy", nil},
		{"modern", []string{"-key-encipherment-selector"}},
	} {
		t.Run(profile.name, func(t *testing.T) {
			dir := t.TempDir()
			cn := "printer." + profile.name + ".example"
			enroll := func(challenge string) *x509.Certificate {
				args := append([]string{"-server-url", s.ready.SCEPPlain + "/scep/" + profile.name, "-private-key", "k.key", "-certificate", "out.crt",
					"-cn", cn, "-dnsname", cn, "-challenge", challenge}, profile.more...)
				out, err := run(t, dir, scepclient, args...)
				text, _ := os.ReadFile(filepath.Join(dir, "out.crt"))
				block, _ := pem.Decode(text)
				if err != nil || block == nil {
					t.Log(out)
					return nil
				}
				verified := mustRun(t, dir, needtest.Program(t, "openssl", "openssl"), "verify", "-x509_strict", "-CAfile", s.ready.CABundle, "out.crt")
				if !strings.Contains(verified, ": OK") {
					t.Errorf("openssl verify: %s", verified)
				}
				c, err := x509.ParseCertificate(block.Bytes)
				if err != nil {
					t.Fatal(err)
				}
				return c
			}
			if enroll("guess") != nil {
				t.Error("enrolled with a wrong challenge")
			}
			os.Remove(filepath.Join(dir, "csr.pem")) // or it goes on with the wrong challenge in it
			first := enroll(profile.name + "-demo-challenge")
			if first == nil {
				t.Fatal("not enrolled")
			}
			second := enroll("") // with a certificate there it renews that
			if second == nil || second.SerialNumber.Cmp(first.SerialNumber) == 0 || second.Subject.String() != first.Subject.String() {
				t.Fatalf("%v is renewed by %v", first.Subject, second)
			}
			if !s.has(t, token, "scep_pkcsreq", "success", cn) || !s.has(t, token, "scep_renewalreq", "success", cn) {
				t.Error("enrollment or renewal is not in the log")
			}
		})
	}
	if out, err := run(t, t.TempDir(), scepclient, "-server-url", s.ready.SCEPPlain+"/scep/corp", "-private-key", "k.key", "-challenge", "corp-demo-challenge"); err == nil ||
		!strings.Contains(out, "badAlg") {
		t.Errorf("a profile without legacy switches: %v\n%s", err, out)
	}
}
