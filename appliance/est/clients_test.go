package est

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"signet.internal/appliance/needtest"
)

// The tests in this file run clients of others against the service over loopback TLS. A green run proves that these clients, in the
// versions installed, enroll or are refused in words they print. It proves nothing about the TPM or other clients.

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

// requestFile writes a request of openssl's for dev.example.com with a new key to dir/NAME.key and dir/NAME.der.
func requestFile(t *testing.T, dir, name, subject string) {
	t.Helper()
	openssl := needtest.Program(t, "openssl", "openssl")
	if _, _, ok := run(t, dir, openssl, "req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", name+".key", "-subj", subject,
		"-addext", "subjectAltName=DNS:dev.example.com", "-outform", "DER", "-out", name+".der"); !ok {
		t.Fatal("openssl req")
	}
	key, err := os.ReadFile(filepath.Join(dir, name+".key"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(key)
	writePEM(t, filepath.Join(dir, name+".pk1"), "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(must(x509.ParsePKCS8PrivateKey(block.Bytes)).(*rsa.PrivateKey)))
}

// checkOpenSSL has openssl verify a certificate against a profile's authority.
func (s *service) checkOpenSSL(dir, profile, cert string) {
	t := s.t.(*testing.T)
	t.Helper()
	writePEM(t, filepath.Join(dir, "issuer.crt"), "CERTIFICATE", s.issuer[profile].Certificate().Raw)
	out, _, ok := run(t, dir, needtest.Program(t, "openssl", "openssl"), "verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", "issuer.crt", cert)
	if !ok || !strings.Contains(out, "OK") {
		t.Errorf("openssl verify: %s", out)
	}
}

// The commands of a person with a shell, for every operation, piped into what openssl reads without further options.
func TestCurl(t *testing.T) {
	needtest.Program(t, "curl", "curl")
	s := newService(t, nil)
	dir := t.TempDir()
	requestFile(t, dir, "dev", "/O=Test/CN=dev")
	shell := func(script string) string {
		t.Helper()
		out, _, ok := run(t, dir, "bash", "-euo", "pipefail", "-c", "C() { curl -sS --fail-with-body --cacert "+filepath.Join(s.dir, "tls.crt")+` "$@"; }; U=`+s.url+"/.well-known/est; "+script)
		if !ok {
			t.Fatalf("%s: failed; log:\n%s", script, s.log)
		}
		return out
	}
	if out := shell("C $U/cacerts | openssl base64 -d | openssl pkcs7 -inform DER -print_certs"); !strings.Contains(out, "CN = corp CA") {
		t.Errorf("cacerts: %s", out)
	}
	if out := shell("C $U/csrattrs | openssl base64 -d | openssl asn1parse -inform DER"); !strings.Contains(out, ":ecdsa-with-SHA256") {
		t.Errorf("csrattrs: %s", out)
	}
	const read = "| openssl base64 -d | openssl pkcs7 -inform DER -print_certs"
	shell("openssl base64 -in dev.der | C -u " + user + ":" + secret + " -H 'Content-Type: application/pkcs10' --data-binary @- $U/simpleenroll" + read + " > dev.crt")
	s.checkOpenSSL(dir, "corp", "dev.crt")
	shell("openssl base64 -A -in dev.der | C --cert dev.crt --key dev.key -H 'Content-Type: application/pkcs10' --data-binary @- $U/corp/simplereenroll" + read + " > next.crt")
	s.checkOpenSSL(dir, "corp", "next.crt")
	if bytes.Equal(must(os.ReadFile(filepath.Join(dir, "dev.crt"))), must(os.ReadFile(filepath.Join(dir, "next.crt")))) {
		t.Error("not renewed")
	}
	// A PEM file as it is, and a refusal a person can read.
	shell("openssl req -inform DER -in dev.der -out dev.pem; C -u " + user + ":" + secret + " -H 'Content-Type: application/pkcs10' --data-binary @dev.pem $U/modern/simpleenroll" + read + " > modern.crt")
	s.checkOpenSSL(dir, "modern", "modern.crt")
	out, _, ok := run(t, dir, "curl", "-sS", "--fail-with-body", "--cacert", filepath.Join(s.dir, "tls.crt"), "--data-binary", "@dev.pem", s.url+"/.well-known/est/simpleenroll")
	if ok || !strings.Contains(out, "Content-Type") {
		t.Errorf("without Content-Type: %s", out)
	}
	// serverkeygen: the key part and the certificate part of the answer, by their lines.
	shell("C -u " + user + ":" + secret + " -H 'Content-Type: application/pkcs10' --data-binary @dev.pem $U/keys/serverkeygen | tr -d '\\r' > parts; " +
		"awk '/^$/{n++} n==1 && /^[A-Za-z0-9+\\/=]+$/' parts | openssl base64 -d | openssl pkey -inform DER -pubout > key.pub; " +
		"awk '/pkcs7-mime/{n=1} n && /^$/{m=1} m && /^[A-Za-z0-9+\\/=]+$/' parts | openssl base64 -d | openssl pkcs7 -inform DER -print_certs > made.crt; " +
		"openssl x509 -in made.crt -noout -pubkey | cmp - key.pub")
	s.checkOpenSSL(dir, "keys", "made.crt")
	s.checkLog()
}

// swan is strongSwan's pki in a directory, against one listener.
type swan struct {
	s    *service
	t    *testing.T
	pki  string
	dir  string
	base []string // how to reach the listener
}

// newSwan prepares strongSwan as it is installed, which speaks TLS 1.2, or told to speak TLS 1.3, in the one environment variable it
// reads.
func newSwan(t *testing.T, s *service, url string, tls13 bool) *swan {
	t.Helper()
	d := &swan{s: s, t: t, pki: needtest.Program(t, "pki", "strongswan-pki"), dir: t.TempDir()}
	if tls13 {
		conf := filepath.Join(d.dir, "strongswan.conf")
		write(t, conf, []byte("pki {\n tls {\n version_max = 1.3\n }\n}\ninclude /etc/strongswan.conf\n"))
		t.Setenv("STRONGSWAN_CONF", conf)
	}
	d.base = []string{"--url", url, "--cacert", filepath.Join(s.dir, "tls.crt")}
	requestFile(t, d.dir, "dev", "/C=CH/O=Test/CN=dev.example.com")
	return d
}

// enroll runs pki --est and returns the certificate it wrote, nil if none, and what it said.
func (d *swan) enroll(name string, more ...string) (*x509.Certificate, string) {
	d.t.Helper()
	args := append([]string{"--est", "--in", "dev.der", "--outform", "pem"}, d.base...)
	out, stderr, ok := run(d.t, d.dir, d.pki, append(args, more...)...)
	block, _ := pem.Decode([]byte(out))
	if ok != (block != nil) {
		d.t.Fatalf("pki --est: exit 0 is %v, with output %q", ok, out)
	}
	if block == nil {
		return nil, stderr
	}
	writePEM(d.t, filepath.Join(d.dir, name), "CERTIFICATE", block.Bytes)
	return parse(d.t, block.Bytes), stderr
}

// strongSwan with its default configuration on the legacy listener and with TLS 1.3 on the other: CA certificates, enrollment by
// password, renewal by certificate, refusals and approval.
func TestStrongSwan(t *testing.T) {
	for name, tls13 := range map[string]bool{"TLS 1.2": false, "TLS 1.3": true} {
		t.Run(name, func(t *testing.T) {
			s := newService(t, func(c *Config) {
				for i, p := range c.Profiles { // cacerts of several kilobytes
					if p.Name == "corp" {
						one := p.CACerts()[0]
						c.Profiles[i].CACerts = func() [][]byte { return [][]byte{one, rolledOver(one), rolledOver(one), rolledOver(one)} }
					}
				}
			})
			url := s.legacy
			if tls13 {
				url = s.url
			}
			d := newSwan(t, s, url, tls13)
			if _, _, ok := run(t, d.dir, d.pki, append([]string{"--estca", "--caout", "ca.crt", "--outform", "pem", "--force"}, d.base...)...); !ok {
				t.Fatalf("pki --estca; log:\n%s", s.log)
			}
			all, _ := filepath.Glob(filepath.Join(d.dir, "ca*.crt"))
			found := false
			for _, file := range all {
				block, _ := pem.Decode(must(os.ReadFile(file)))
				found = found || block != nil && bytes.Equal(block.Bytes, s.issuer["corp"].Certificate().Raw)
			}
			if !found {
				t.Errorf("pki --estca wrote %q without the CA certificate", all)
			}

			first, _ := d.enroll("dev.crt", "--userpass", user+":"+secret)
			if first == nil {
				t.Fatalf("not enrolled; log:\n%s", s.log)
			}
			s.checkOpenSSL(d.dir, "corp", "dev.crt")
			second, _ := d.enroll("next.crt", "--cert", "dev.crt", "--key", "dev.pk1")
			if second == nil || second.SerialNumber.Cmp(first.SerialNumber) == 0 || !bytes.Equal(second.RawSubject, first.RawSubject) {
				t.Fatalf("not renewed; log:\n%s", s.log)
			}
			s.checkOpenSSL(d.dir, "corp", "next.crt")

			if c, said := d.enroll("", "--userpass", user+":wrong-password"); c != nil || !strings.Contains(said, "401") {
				t.Errorf("with a wrong password: %q", said)
			}
			if c, said := d.enroll(""); c != nil || !strings.Contains(said, "401") {
				t.Errorf("without a password: %q", said)
			}
			s.checkLog()
		})
	}
}

// rolledOver is a certificate with another serial number: what a client reads, not what it trusts.
func rolledOver(der []byte) []byte {
	c := must(x509.ParseCertificate(der))
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: c.Subject, NotBefore: c.NotBefore, NotAfter: c.NotAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	return must(x509.CreateCertificate(rand.Reader, template, template, rsaKeys()[0].Public(), rsaKeys()[0]))
}

// strongSwan asks again by itself until somebody has approved.
func TestStrongSwanPolls(t *testing.T) {
	s := newService(t, nil)
	var once sync.Once
	handler := s.server.Handler(true)
	url := s.listen(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// This strongSwan cannot be told a label: it is served a profile that holds what it asks for.
		r.URL.Path = strings.Replace(r.URL.Path, "/est/", "/est/manual/", 1)
		handler.ServeHTTP(w, r)
		once.Do(func() { s.approve() })
	}), tls.VersionTLS12)
	d := newSwan(t, s, url, false)
	requestFile(t, d.dir, "dev", "/CN=dev.approve.test")
	c, said := d.enroll("dev.crt", "--userpass", user+":"+secret, "-t", "1")
	if c == nil {
		t.Fatalf("not enrolled: %s\nlog:\n%s", said, s.log)
	}
	s.checkOpenSSL(d.dir, "manual", "dev.crt")
	if got := strings.Count(s.log.String(), "status=202"); got != 1 {
		t.Errorf("%d answers of 202", got)
	}
}

// Bouncy Castle's ESTService, as an application in Java uses it: testdata/Enroll.java.
func TestBouncyCastle(t *testing.T) {
	java := needtest.Program(t, "java", "default-jdk-headless")
	needtest.Program(t, "javac", "default-jdk-headless")
	var jars []string
	for _, name := range []string{"bcpkix", "bcprov", "bcutil"} {
		jar := "/usr/share/java/" + name + ".jar"
		if _, err := os.Stat(jar); err != nil {
			needtest.Missing(t, jar+" is missing: apt-get install libbcpkix-java")
		}
		jars = append(jars, jar)
	}
	s := newService(t, nil)
	dir := t.TempDir()
	host := strings.TrimPrefix(s.url, "https://")
	approve := make(chan struct{})
	go func() { // the held request is approved once it is there
		defer close(approve)
		for t.Context().Err() == nil {
			if waiting, err := s.engine.PendingRequests(); err == nil && len(waiting) == 1 {
				if err := s.engine.Approve(t.Context(), waiting[0].ID, "test"); err != nil {
					t.Error(err)
				}
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
	out, _, ok := run(t, dir, java, "-cp", strings.Join(jars, ":"), must(filepath.Abs("testdata/Enroll.java")), host, filepath.Join(s.dir, "tls.crt"), user, secret)
	if !ok {
		t.Fatalf("log:\n%s", s.log)
	}
	for _, said := range []string{"cacerts 1 CN=corp CA", "csrattrs 2", "no csrattrs", "enrolled CN=dev", "renewed CN=dev", "refused 401", "pending 1", "approved CN=dev.approve.test"} {
		if !strings.Contains(out, said+"\n") {
			t.Errorf("it does not say %q", said)
		}
	}
	<-approve
	s.checkLog()
}
