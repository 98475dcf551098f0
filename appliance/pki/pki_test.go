package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/needtest"
)

// now is the moment all certificates of these tests are issued at.
var now = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)

func newKey(t testing.TB, algorithm string) crypto.Signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch algorithm {
	case "rsa-2048":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "ecdsa-p256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ecdsa-p384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	default:
		t.Fatalf("no such algorithm %s", algorithm)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func parse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func newAuthority(t testing.TB, key crypto.Signer) *Issuer {
	t.Helper()
	subject, err := ParseDN("CN=Test CA,O=Signet")
	if err != nil {
		t.Fatal(err)
	}
	der, err := NewRoot(subject, key, now.Add(-24*time.Hour), 3650*24*time.Hour, nil)
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := NewIssuer(parse(t, der), key)
	if err != nil {
		t.Fatal(err)
	}
	return issuer
}

// permissive allows everything the tests ask for that a profile can allow.
func permissive() ProfileConfig {
	return ProfileConfig{
		Keys:     KeyConfig{RSA: &RSAConfig{MinBits: 2048}, ECDSA: []string{"p256", "p384"}},
		Subject:  SubjectConfig{Allow: []string{"CN", "O", "OU", "C", "L", "ST", "serialNumber", "unstructuredName"}},
		SAN:      SANConfig{DNS: []string{"*"}, Email: []string{"*"}, IP: []string{"0.0.0.0/0", "::/0"}, URI: []string{"*"}, UPN: []string{"*"}},
		Usage:    UsageConfig{Key: []string{"digitalSignature", "keyEncipherment"}, Extended: []string{"clientAuth", "serverAuth"}},
		Validity: 90 * 24 * time.Hour,
	}
}

func newProfile(t testing.TB, c ProfileConfig) *Profile {
	t.Helper()
	p, err := NewProfile(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// openssl runs the oracle these tests hold the package against.
func openssl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(needtest.Program(t, "openssl", "openssl"), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// opensslRequest has openssl make a request from a configuration's [req] extras and further
// sections; the private key stays in the test's directory.
func opensslRequest(t testing.TB, config string, args ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "req.cnf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "req.der")
	args = append([]string{"req", "-new", "-nodes", "-config", file, "-keyout", filepath.Join(dir, "key.pem"), "-outform", "DER", "-out", out}, args...)
	if !contains(args, "-newkey") {
		args = append(args, "-newkey", "rsa:2048")
	}
	openssl(t, args...)
	der, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

const deviceConfig = `
[req]
prompt = no
distinguished_name = dn
attributes = attrs
req_extensions = ext
string_mask = %s
[dn]
C = CH
O = Example
OU = Printers
CN = printer-7.example.com
serialNumber = X-42
[attrs]
challengePassword = %s
[ext]
subjectAltName = DNS:printer-7.example.com, IP:192.0.2.7, IP:2001:db8::7, email:p7@example.com, URI:urn:example:7, otherName:1.3.6.1.4.1.311.20.2.3;UTF8:p7@corp.example.com
keyUsage = nonRepudiation
extendedKeyUsage = codeSigning
`

// TestIssueAgainstOpenSSL takes openssl's request through every issuer algorithm and lets openssl
// verify the chain and read the certificate back.
func TestIssueAgainstOpenSSL(t *testing.T) {
	request, err := ParseRequest(opensslRequest(t, fmt.Sprintf(deviceConfig, "utf8only", "sesame")))
	if err != nil {
		t.Fatal(err)
	}
	if request.Challenge != "sesame" {
		t.Errorf("challenge not read")
	}
	if got := request.Identity(); got != "printer-7.example.com" {
		t.Errorf("identity %q", got)
	}
	wantNames := []Name{
		{DNS, "printer-7.example.com"}, {IP, "192.0.2.7"}, {IP, "2001:db8::7"}, {Email, "p7@example.com"},
		{URI, "urn:example:7"}, {UPN, "p7@corp.example.com"},
	}
	if fmt.Sprint(request.SAN) != fmt.Sprint(wantNames) {
		t.Errorf("names %v, want %v", request.SAN, wantNames)
	}
	profile := newProfile(t, permissive())
	for algorithm, wantSignature := range map[string]string{
		"rsa-2048": "sha256WithRSAEncryption", "ecdsa-p256": "ecdsa-with-SHA256", "ecdsa-p384": "ecdsa-with-SHA384",
	} {
		t.Run(algorithm, func(t *testing.T) {
			issuer := newAuthority(t, newKey(t, algorithm))
			prepared, err := issuer.Prepare(profile, request, now)
			if err != nil {
				t.Fatal(err)
			}
			der, err := issuer.Issue(prepared)
			if err != nil {
				t.Fatal(err)
			}
			cert := parse(t, der)
			if !bytes.Equal(cert.RawTBSCertificate, prepared.Template()) {
				t.Error("what was signed is not the template that was recorded")
			}
			if !bytes.Equal(cert.RawSubject, request.RawSubject) {
				t.Error("subject changed")
			}
			if fmt.Sprintf("%x", cert.SerialNumber) != prepared.Serial() {
				t.Errorf("serial %x, prepared %s", cert.SerialNumber, prepared.Serial())
			}
			if !cert.NotBefore.Equal(now.Add(-10*time.Minute)) || !cert.NotAfter.Equal(now.Add(90*24*time.Hour)) {
				t.Errorf("valid from %s to %s", cert.NotBefore, cert.NotAfter)
			}
			if !bytes.Contains(der, request.RawSAN) {
				t.Error("subjectAltName changed")
			}
			checkWithOpenSSL(t, issuer, der, wantSignature)
		})
	}
}

func checkWithOpenSSL(t *testing.T, issuer *Issuer, der []byte, wantSignature string) {
	t.Helper()
	dir := t.TempDir()
	leaf, ca := filepath.Join(dir, "leaf.pem"), filepath.Join(dir, "ca.pem")
	writePEM(t, leaf, der)
	writePEM(t, ca, issuer.Certificate().Raw)
	openssl(t, "verify", "-x509_strict", "-purpose", "sslclient", "-attime", fmt.Sprint(now.Unix()), "-CAfile", ca, leaf)
	text := openssl(t, "x509", "-in", leaf, "-noout", "-text")
	for _, want := range []string{
		"Signature Algorithm: " + wantSignature,
		"X509v3 Basic Constraints: critical\n                CA:FALSE",
		"X509v3 Key Usage: critical\n                Digital Signature, Key Encipherment\n",
		"TLS Web Client Authentication, TLS Web Server Authentication\n",
		"X509v3 Subject Key Identifier", "X509v3 Authority Key Identifier",
		"C = CH, O = Example, OU = Printers, CN = printer-7.example.com, serialNumber = X-42",
		"othername: UPN::p7@corp.example.com", "IP Address:2001:DB8:0:0:0:0:0:7", "URI:urn:example:7",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("openssl does not show %q in:\n%s", want, text)
		}
	}
}

func writePEM(t *testing.T, file string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestOwnCertificates(t *testing.T) {
	issuer := newAuthority(t, newKey(t, "ecdsa-p256"))
	root := issuer.Certificate()
	if root.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
		t.Errorf("root's key usage %b: clients pick whom to encrypt to by it", root.KeyUsage)
	}

	ra, err := issuer.IssueRA(newKey(t, "rsa-2048").Public(), now, 365*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if cert := parse(t, ra); cert.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment ||
		FormatDN(cert.RawSubject) != "CN=Test CA RA,O=Signet" || cert.IsCA {
		t.Errorf("RA %s, usage %b, CA %t", FormatDN(cert.RawSubject), cert.KeyUsage, cert.IsCA)
	}
	if _, err := issuer.IssueRA(newKey(t, "ecdsa-p256").Public(), now, time.Hour); err == nil {
		t.Error("RA certificate over a key no SCEP client can encrypt to")
	}

	names, ips := []string{"localhost", "box.example.com"}, []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	server, err := issuer.IssueServer(newKey(t, "ecdsa-p256").Public(), names, ips, now, 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	for _, host := range []string{"localhost", "box.example.com", "127.0.0.1", "::1"} {
		if _, err := parse(t, server).Verify(x509.VerifyOptions{DNSName: host, Roots: pool, CurrentTime: now}); err != nil {
			t.Errorf("as %s: %v", host, err)
		}
	}
	if _, err := issuer.IssueServer(newKey(t, "ecdsa-p256").Public(), nil, nil, now, time.Hour); err == nil {
		t.Error("server certificate without a name")
	}
}

func TestPreparedIsSingleUseAndBound(t *testing.T) {
	key := newKey(t, "ecdsa-p256")
	issuer, other := newAuthority(t, key), newAuthority(t, key)
	profile, request := newProfile(t, permissive()), goRequest(t, newKey(t, "ecdsa-p256"), x509.CertificateRequest{DNSNames: []string{"a.example.com"}})
	prepared, err := issuer.Prepare(profile, request, now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Issue(prepared); !errors.Is(err, ErrPrepared) {
		t.Errorf("another issuer: %v", err)
	}
	if _, err := issuer.Issue(prepared); err != nil {
		t.Error(err)
	}
	if _, err := issuer.Issue(prepared); !errors.Is(err, ErrPrepared) {
		t.Errorf("second use: %v", err)
	}
}

// goRequest makes a request with crypto/x509 and parses it here.
func goRequest(t testing.TB, key crypto.Signer, template x509.CertificateRequest) *Request {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
	if err != nil {
		t.Fatal(err)
	}
	request, err := ParseRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	return request
}

// badSigner answers with a fixed signature or error, as broken hardware might.
type badSigner struct {
	crypto.Signer
	signature []byte
	err       error
}

func (b badSigner) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return b.signature, b.err
}

func TestSignatureThatComesBackIsChecked(t *testing.T) {
	good := newAuthority(t, newKey(t, "ecdsa-p256"))
	profile, request := newProfile(t, permissive()), goRequest(t, newKey(t, "ecdsa-p256"), x509.CertificateRequest{DNSNames: []string{"a.example.com"}})
	broken := errors.New("TPM gone")
	for _, signer := range []badSigner{{good.signer, []byte("nonsense"), nil}, {good.signer, nil, nil}, {good.signer, nil, broken}} {
		issuer, err := NewIssuer(good.Certificate(), signer)
		if err != nil {
			t.Fatal(err)
		}
		prepared, err := issuer.Prepare(profile, request, now)
		if err != nil {
			t.Fatal(err)
		}
		der, err := issuer.Issue(prepared)
		if err == nil || der != nil || signer.err != nil && !errors.Is(err, broken) {
			t.Errorf("signer %q %v: certificate of %d bytes, error %v", signer.signature, signer.err, len(der), err)
		}
		if _, err := issuer.Issue(prepared); !errors.Is(err, ErrPrepared) {
			t.Errorf("after a failure: %v", err)
		}
	}
}

func TestNewIssuerRefuses(t *testing.T) {
	key := newKey(t, "ecdsa-p256")
	issuer := newAuthority(t, key)
	if _, err := NewIssuer(issuer.Certificate(), newKey(t, "ecdsa-p256")); err == nil {
		t.Error("a key that is not the certificate's")
	}
	leaf, err := issuer.IssueServer(key.Public(), []string{"a.example.com"}, nil, now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewIssuer(parse(t, leaf), key); err == nil {
		t.Error("a certificate that is not a CA's")
	}
}

func TestValidityIsCapped(t *testing.T) {
	issuer := newAuthority(t, newKey(t, "ecdsa-p256"))
	end := issuer.Certificate().NotAfter
	profile, request := newProfile(t, permissive()), goRequest(t, newKey(t, "ecdsa-p256"), x509.CertificateRequest{DNSNames: []string{"a.example.com"}})
	prepared, err := issuer.Prepare(profile, request, end.Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	der, err := issuer.Issue(prepared)
	if err != nil {
		t.Fatal(err)
	}
	if cert := parse(t, der); !cert.NotAfter.Equal(end) {
		t.Errorf("ends %s, its issuer %s", cert.NotAfter, end)
	}
	for _, when := range []time.Time{end, issuer.Certificate().NotBefore.Add(-time.Second)} {
		if _, err := issuer.Prepare(profile, request, when); !errors.Is(err, ErrIssuerExpired) {
			t.Errorf("at %s: %v", when, err)
		}
	}
}

// TestDatesBeyond2049 checks that a root that outlives UTCTime is still read right.
func TestDatesBeyond2049(t *testing.T) {
	const validity = 30 * 365 * 24 * time.Hour
	der, err := NewRoot(mustDN(t, "CN=Long"), newKey(t, "ecdsa-p384"), now, validity, nil)
	if err != nil {
		t.Fatal(err)
	}
	if cert := parse(t, der); !cert.NotAfter.Equal(now.Add(validity)) || !cert.IsCA {
		t.Errorf("ends %s", cert.NotAfter)
	}
}

func TestSerials(t *testing.T) {
	seen := map[string]bool{}
	for range 2000 {
		serial := newSerial()
		n := new(big.Int).SetBytes(serial)
		if len(n.Bytes()) < 16 || len(n.Bytes()) > 19 || serial[0]&0x80 != 0 || fmt.Sprintf("%x", n) != fmt.Sprintf("%x", serial) || seen[string(serial)] {
			t.Fatalf("serial %x", serial)
		}
		seen[string(serial)] = true
	}
}
