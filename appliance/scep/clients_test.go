package scep

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/smallstep/pkcs7"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/needtest"
)

// The tests in this file run clients of others against the service over loopback HTTP. A green run proves that these clients, in the
// versions installed, enroll or are refused in words they print. It proves nothing about TLS, the TPM or other clients.

// run runs a client and returns what it wrote to stdout and stderr, and whether it exited with 0.
func run(t *testing.T, dir, name string, args ...string) (stdout, stderr string, ok bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if _, exited := err.(*exec.ExitError); err != nil && !exited {
		t.Fatal(err)
	}
	t.Logf("%s %s\nexit: %v\n%s\n%s", filepath.Base(name), strings.Join(args, " "), err, out.String(), errs.String())
	return out.String(), errs.String(), err == nil
}

// swan is a device that enrolls with strongSwan.
type swan struct {
	t        *testing.T
	pki, dir string
	url      string
	cas      []string // the certificates of GetCACert that are no RA
}

// newSwan makes a device with an RSA key and fetches the CA certificates.
func newSwan(t *testing.T, url string) *swan {
	t.Helper()
	d := &swan{t: t, pki: needtest.Program(t, "pki", "strongswan-pki"), dir: t.TempDir(), url: url}
	key, _, ok := run(t, d.dir, d.pki, "--gen", "--type", "rsa", "--size", "2048", "--outform", "pem")
	if !ok {
		t.Fatal("pki --gen")
	}
	if err := os.WriteFile(d.file("key.pem"), []byte(key), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, ok := run(t, d.dir, d.pki, "--scepca", "--url", url, "--caout", "ca.crt", "--raout", "ra.crt", "--outform", "pem", "--force"); !ok {
		t.Fatal("pki --scepca")
	}
	if d.cas, _ = filepath.Glob(d.file("ca*.crt")); len(d.cas) == 0 {
		t.Fatal("pki --scepca wrote no CA certificate")
	}
	return d
}

func (d *swan) file(name string) string { return filepath.Join(d.dir, name) }

// enroll runs pki --scep and returns the certificate it wrote, nil if none.
func (d *swan) enroll(challenge string, more ...string) (cert *x509.Certificate, stderr string) {
	d.t.Helper()
	args := []string{"--scep", "--url", d.url, "--in", "key.pem", "--dn", "C=CH, O=Signet, CN=dev.example.com", "--san", "dev.example.com",
		"--password", challenge, "--cacert-enc", "ra.crt", "--cacert-sig", "ra.crt", "--outform", "pem"}
	for _, ca := range d.cas {
		args = append(args, "--cacert", ca)
	}
	out, stderr, ok := run(d.t, d.dir, d.pki, append(args, more...)...)
	block, _ := pem.Decode([]byte(out))
	if ok != (block != nil) {
		d.t.Fatalf("pki --scep: exit 0 is %v, with output %q", ok, out)
	}
	if block == nil {
		return nil, stderr
	}
	writePEM(d.t, d.file("dev.crt"), "CERTIFICATE", block.Bytes)
	return parse(d.t, block.Bytes), stderr
}

func TestStrongSwanEnrolls(t *testing.T) {
	for _, profile := range []string{"corp", "modern"} {
		t.Run(profile, func(t *testing.T) {
			s := newService(t, nil)
			d := newSwan(t, s.url+"/scep/"+profile)
			cert, _ := d.enroll(secret)
			if cert == nil {
				t.Fatalf("not enrolled; log:\n%s", s.log)
			}
			if got := cert.Subject.String(); got != "CN=dev.example.com,O=Signet,C=CH" || !slices.Equal(cert.DNSNames, []string{"dev.example.com"}) {
				t.Errorf("certificate for %s, %v", got, cert.DNSNames)
			}
			checkOpenSSL(t, d.dir, "ca.crt", "dev.crt")

			posted := s.last()
			if posted.method != http.MethodPost {
				t.Errorf("the client used %s although POSTPKIOperation is offered", posted.method)
			}
			s.checkReplayed(posted, profile, cert)
			s.checkLog()
			rec := s.checkRecord(audit.OutcomeSuccess, profile)
			if rec.Identity != "dev.example.com" || rec.Source != "127.0.0.1" || rec.Serial != hex.EncodeToString(cert.SerialNumber.Bytes()) {
				t.Errorf("audit record %+v", rec)
			}
		})
	}
}

func TestStrongSwanDigests(t *testing.T) {
	s := newService(t, nil)
	d := newSwan(t, s.url+"/scep")
	for _, digest := range []string{"sha384", "sha512"} {
		if cert, _ := d.enroll(secret, "--digest", digest); cert == nil {
			t.Errorf("--digest %s: not enrolled; log:\n%s", digest, s.log)
		}
	}
}

func TestStrongSwanRefused(t *testing.T) {
	s := newService(t, nil)
	d := newSwan(t, s.url+"/scep/corp")
	for name, c := range map[string]struct {
		challenge string
		args      []string
		fail      failInfo
		text      string // in failInfoText
		prints    string // what the client says
	}{
		"wrong challenge": {challenge: "wrong-challenge", fail: badRequest, text: "challenge password", prints: "transaction not permitted or supported"},
		"no challenge":    {challenge: "", fail: badRequest, text: "challenge password", prints: "transaction not permitted or supported"},
		"3DES":            {challenge: secret, args: []string{"--cipher", "des3"}, fail: badAlg, text: "3DES-CBC", prints: "unrecognized or unsupported algorithm identifier"},
		"a subject the profile does not allow": {challenge: secret, args: []string{"--dn", "CN=dev, E=root@example.com"}, fail: badRequest, text: "subject.allow",
			prints: "transaction not permitted or supported"},
	} {
		t.Run(name, func(t *testing.T) {
			cert, stderr := d.enroll(c.challenge, c.args...)
			if cert != nil {
				t.Fatal("enrolled")
			}
			if !strings.Contains(stderr, c.prints) {
				t.Errorf("the client does not say %q", c.prints)
			}
			r := s.openReply(s.last())
			if r.status != "2" || r.fail != c.fail || !strings.Contains(r.text, c.text) {
				t.Errorf("pkiStatus %s, failInfo %s, failInfoText %q; want 2, %s and %q", r.status, r.fail, r.text, c.fail, c.text)
			}
		})
	}
	s.checkLog()
}

// Debian's scepclient signs with SHA-1 and encrypts with single DES, and cannot be told otherwise.
func TestScepclientRefused(t *testing.T) {
	client := needtest.Program(t, "scepclient", "scep")
	s := newService(t, nil)
	dir := t.TempDir()
	stdout, _, ok := run(t, dir, client, "-server-url", s.url+"/scep", "-challenge", secret, "-private-key", "k.key",
		"-certificate", "out.crt", "-cn", "dev.example.com", "-keySize", "2048", "-debug")
	if ok {
		t.Fatal("enrolled")
	}
	r := s.openReply(s.last())
	if r.status != "2" || r.fail != badAlg || !strings.Contains(r.text, "SHA-1") || !strings.Contains(r.text, "SHA-256") {
		t.Errorf("pkiStatus %s, failInfo %s, failInfoText %q", r.status, r.fail, r.text)
	}
	if !strings.Contains(stdout, "PKCSReq (19) request failed, failInfo: badAlg (0)") {
		t.Errorf("the client says %q", stdout)
	}
	s.checkLog()
}

func TestCertmongerHelper(t *testing.T) {
	helper := needtest.Program(t, "/usr/lib/certmonger/scep-submit", "certmonger")
	s := newService(t, nil)
	dir := t.TempDir()
	out, _, ok := run(t, dir, helper, "-u", s.url+"/scep", "-c")
	if !ok || strings.TrimSpace(out) != baseCapabilities+"\nRenewal" {
		t.Errorf("GetCACaps: %q", out)
	}
	for _, profile := range []string{"corp", "modern"} {
		out, _, ok = run(t, dir, helper, "-u", s.url+"/scep/"+profile, "-C")
		if !ok {
			t.Errorf("GetCACert of %s failed", profile)
		}
		for name, cert := range map[string]*x509.Certificate{"RA": s.ra[profile], "CA": s.ca[profile]} {
			if !holdsPEM(out, cert.Raw) {
				t.Errorf("GetCACert of %s: no %s certificate in\n%s", profile, name, out)
			}
		}
	}
}

// Debian's scepclient on the profile that takes what it sends. It encrypts to every certificate of GetCACert.
func TestScepclientEnrolls(t *testing.T) {
	client := needtest.Program(t, "scepclient", "scep")
	s := newService(t, nil)
	dir := t.TempDir()
	if _, _, ok := run(t, dir, client, "-server-url", s.url+"/scep/legacy", "-challenge", secret, "-private-key", "k.key",
		"-certificate", "out.crt", "-cn", "dev.example.com", "-keySize", "2048", "-debug"); !ok {
		t.Fatalf("not enrolled; log:\n%s", s.log)
	}
	writePEM(t, filepath.Join(dir, "ca.crt"), "CERTIFICATE", s.ca["legacy"].Raw)
	checkOpenSSL(t, dir, "ca.crt", "out.crt")
	text, err := os.ReadFile(filepath.Join(dir, "out.crt"))
	if err != nil {
		t.Fatal(err)
	}
	s.checkReplayed(s.last(), "legacy", parsePEM(t, text))
	r := s.openReply(s.last())
	if got := r.p7.Signers[0].DigestAlgorithm.Algorithm; !got.Equal(pkcs7.OIDDigestAlgorithmSHA1) {
		t.Errorf("a request signed with SHA-1 is answered with digest %v", got)
	}
	if !bytes.Contains(r.content, mustMarshal(t, pkcs7.OIDEncryptionAlgorithmDESEDE3CBC)) {
		t.Error("a request encrypted with DES is not answered with 3DES")
	}
	s.checkLog()
}

// strongSwan is offered DES3 and SHA-1 by the capabilities and uses what it is told to.
func TestStrongSwanLegacy(t *testing.T) {
	s := newService(t, nil)
	d := newSwan(t, s.url+"/scep/legacy")
	for _, args := range [][]string{nil, {"--cipher", "des3"}, {"--cipher", "des3", "--digest", "sha1"}} {
		if cert, _ := d.enroll(secret, args...); cert == nil {
			t.Errorf("%q: not enrolled; log:\n%s", args, s.log)
		}
	}
}

// certmongerScript runs a private certmonger on a private bus: it enrolls one certificate, waits for the verdict and prints it, and
// renews it by the commands in $MORE. The
// daemon must own its name before getcert runs, or the bus starts another with the user's own configuration.
const certmongerScript = `
set -e
export HOME=$PWD CERTMONGER_REQUESTS_DIR=$PWD/requests CERTMONGER_CAS_DIR=$PWD/cas CERTMONGER_LOCAL_CA_DIR=$PWD/local CERTMONGER_CONFIG_DIR=$PWD/config CERTMONGER_TMPDIR=$PWD/tmp
mkdir requests cas local config tmp
/usr/lib/certmonger/certmonger-session -n -d 1 2>daemon.log &
daemon=$!
trap 'kill $daemon; wait $daemon' EXIT
until dbus-send --session --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.NameHasOwner string:org.fedorahosted.certmonger | grep -q true; do
	kill -0 $daemon
	sleep 0.1
done
getcert add-scep-ca -s -c box -u "$URL" -N $PWD/ca.crt -r $PWD/ra.crt -I $PWD/chain.crt
getcert request -s -c box -I id -f $PWD/dev.crt -k $PWD/dev.key -N CN=dev.example.com -D dev.example.com -L "$CHALLENGE" -g 2048 -w || true
getcert list -s -i id
for verb in $MORE; do
	cp dev.crt before-$verb.crt
	getcert $verb -s -i id -w || true
	getcert list -s -i id
done
`

// certmonger enrolls in dir and returns what getcert says in the end.
func certmonger(t *testing.T, s *service, dir, url, challenge string, more ...string) string {
	t.Helper()
	needtest.Program(t, "/usr/lib/certmonger/certmonger-session", "certmonger")
	bus := needtest.Program(t, "dbus-run-session", "dbus")
	writePEM(t, filepath.Join(dir, "ca.crt"), "CERTIFICATE", s.ca["corp"].Raw)
	writePEM(t, filepath.Join(dir, "ra.crt"), "CERTIFICATE", s.ra["corp"].Raw)
	writePEM(t, filepath.Join(dir, "chain.crt"), "CERTIFICATE", s.ra["corp"].Raw, s.ca["corp"].Raw)
	t.Setenv("URL", url)
	t.Setenv("CHALLENGE", challenge)
	t.Setenv("MORE", strings.Join(more, " "))
	out, _, _ := run(t, dir, bus, "--", "bash", "-c", certmongerScript)
	return out
}

// certmonger sends its message in the query although POSTPKIOperation is offered.
func TestCertmongerEnrolls(t *testing.T) {
	s := newService(t, nil)
	dir := t.TempDir()
	out := certmonger(t, s, dir, s.url+"/cgi-bin/pkiclient.exe", secret)
	if !strings.Contains(out, "status: MONITORING") {
		t.Fatalf("not enrolled:\n%s\nlog:\n%s", out, s.log)
	}
	checkOpenSSL(t, dir, "ca.crt", "dev.crt")
	text, err := os.ReadFile(filepath.Join(dir, "dev.crt"))
	if err != nil {
		t.Fatal(err)
	}
	sent := s.last()
	if sent.method != http.MethodGet {
		t.Errorf("the client used %s", sent.method)
	}
	s.checkReplayed(sent, "corp", parsePEM(t, text))
	s.checkLog()
}

// certmonger renews with a PKCSReq (19) signed by the old certificate, to the same key and to a new one.
func TestCertmongerRenews(t *testing.T) {
	s := newService(t, nil)
	dir := t.TempDir()
	out := certmonger(t, s, dir, s.url+"/scep/corp", secret, "resubmit", "rekey")
	if n := strings.Count(out, "status: MONITORING"); n != 3 {
		t.Fatalf("%d of 3 certificates:\n%s\nlog:\n%s", n, out, s.log)
	}
	var certs []*x509.Certificate
	for _, name := range []string{"before-resubmit.crt", "before-rekey.crt", "dev.crt"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		certs = append(certs, parsePEM(t, text))
		checkOpenSSL(t, dir, "ca.crt", name)
	}
	for i, c := range certs[1:] {
		sameKey := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(certs[i].PublicKey)
		if c.SerialNumber.Cmp(certs[i].SerialNumber) == 0 || !bytes.Equal(c.RawSubject, certs[i].RawSubject) || sameKey != (i == 0) {
			t.Errorf("certificate %d: serial %x after %x, the same key: %v", i+1, c.SerialNumber, certs[i].SerialNumber, sameKey)
		}
	}
	var renewals int
	for _, rec := range s.records() {
		if rec.Action == audit.SCEPRenewalReq && rec.Outcome == audit.OutcomeSuccess {
			renewals++
		}
	}
	if renewals != 2 {
		t.Errorf("%d renewals in the audit log", renewals)
	}
	s.checkLog()
}

func TestCertmongerRefused(t *testing.T) {
	s := newService(t, nil)
	out := certmonger(t, s, t.TempDir(), s.url+"/scep/corp", "wrong-challenge")
	if !strings.Contains(out, "status: CA_REJECTED") {
		t.Errorf("certmonger says:\n%s", out)
	}
	s.checkLog()
}

func parsePEM(t *testing.T, text []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("no PEM in %q", text)
	}
	return parse(t, block.Bytes)
}

func holdsPEM(text string, der []byte) bool {
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return false
		}
		if bytes.Equal(block.Bytes, der) {
			return true
		}
	}
}

// checkOpenSSL has openssl verify a certificate.
func checkOpenSSL(t *testing.T, dir, ca, cert string) {
	t.Helper()
	out, _, ok := run(t, dir, needtest.Program(t, "openssl", "openssl"), "verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", ca, cert)
	if !ok || !strings.Contains(out, "OK") {
		t.Errorf("openssl verify: %s", out)
	}
}
