package main

// The chapters of the box's story that are about the life of certificates: real clients of SCEP and
// EST, approval, revocation, and keys made while the box runs.

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"signet.internal/webui"
)

// hostInGuest is this computer as a guest of QEMU's user network reaches it.
const hostInGuest = "10.0.2.2"

// scep has strongSwan enroll device.key for cn with the CA and RA certificates in the named files, and
// leaves the certificate in out. The error holds what the client said.
func (s *story) scep(profile, ca, ra, cn, out string, more ...string) error {
	args := append([]string{"--scep", "--url", s.ready.SCEPPlain + "/scep/" + profile, "--in", "device.key", "--dn", "C=CH, CN=" + cn, "--san", cn,
		"--cacert-enc", ra, "--cacert-sig", ra, "--cacert", ca, "--outform", "pem"}, more...)
	cmd := exec.Command("pki", args...)
	cmd.Dir = s.dir
	var said bytes.Buffer
	cmd.Stderr = &said
	crt, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%w: %s", err, said.Bytes())
	}
	return os.WriteFile(filepath.Join(s.dir, out), crt, 0o600)
}

// mustSCEP is scep that must succeed; openssl must find the certificate good.
func (s *story) mustSCEP(t *testing.T, profile, ca, ra, cn, out string, more ...string) {
	t.Helper()
	if err := s.scep(profile, ca, ra, cn, out, more...); err != nil {
		t.Fatalf("pki --scep as %s: %v", cn, err)
	}
	s.checkIssued(t, ca, out)
}

// getCA fetches a profile's CA and RA certificate.
func (s *story) getCA(t *testing.T, profile, ca, ra string) {
	t.Helper()
	mustRun(t, s.dir, "pki", "--scepca", "--url", s.ready.SCEPPlain+"/scep/"+profile, "--caout", ca, "--raout", ra, "--outform", "pem", "--force")
}

// checkIssued has openssl verify a certificate, which must say where its status is published.
func (s *story) checkIssued(t *testing.T, ca, crt string) {
	t.Helper()
	mustRun(t, s.dir, "openssl", "verify", "-x509_strict", "-CAfile", ca, crt)
	text := mustRun(t, s.dir, "openssl", "x509", "-in", crt, "-noout", "-text")
	for _, want := range []string{"URI:http://localhost/pki/devices", "OCSP - URI:http://localhost/ocsp/devices"} {
		if !strings.Contains(text, want) {
			t.Errorf("%s does not say %s", crt, want)
		}
	}
}

// serial is a certificate's serial in lower-case hex.
func (s *story) serial(t *testing.T, crt string) string {
	t.Helper()
	out := mustRun(t, s.dir, "openssl", "x509", "-in", crt, "-noout", "-serial")
	return strings.ToLower(strings.TrimPrefix(strings.TrimSpace(out), "serial="))
}

// request has openssl write a request for cn with a new key to NAME.key and NAME.der.
func (s *story) request(t *testing.T, name, cn string) {
	t.Helper()
	mustRun(t, s.dir, "openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", name+".key",
		"-subj", "/C=CH/CN="+cn, "-addext", "subjectAltName=DNS:"+cn, "-outform", "DER", "-out", name+".der")
}

// est posts NAME.der to an EST operation with curl, leaves the answer in answer.p7 and the answer's
// header in answer.head, and returns the status.
func (s *story) est(t *testing.T, listener, operation, name string, more ...string) string {
	t.Helper()
	args := append([]string{"-sS", "--max-time", "60", "--cacert", s.ready.CABundle, "-H", "Content-Type: application/pkcs10", "--data-binary", "@" + name + ".b64",
		"-D", "answer.head", "-o", "answer.p7", "-w", "%{http_code}"}, more...)
	mustRun(t, s.dir, "openssl", "base64", "-in", name+".der", "-out", name+".b64")
	return mustRun(t, s.dir, "curl", append(args, listener+"/.well-known/est/"+operation)...)
}

// mustEST is est that must get a certificate, which goes to out and is issued by the CA in ca.
func (s *story) mustEST(t *testing.T, ca, out, listener, operation, name string, more ...string) {
	t.Helper()
	if status := s.est(t, listener, operation, name, more...); status != "200" {
		t.Fatalf("%s of %s: HTTP %s: %s", operation, name, status, readFile(t, filepath.Join(s.dir, "answer.p7")))
	}
	mustRun(t, s.dir, "sh", "-c", "openssl base64 -d -in answer.p7 | openssl pkcs7 -inform DER -print_certs -out "+out)
	s.checkIssued(t, ca, out)
}

// send calls the admin API with a body of JSON and decodes the answer into out.
func (s *story) send(t *testing.T, method, path string, in, out any) {
	t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	decode(t, []byte(mustRun(t, ".", "curl", "-sS", "--fail-with-body", "--max-time", "60", "--cacert", s.ready.CABundle, "-X", method,
		"-H", "Authorization: Bearer "+s.token, "-H", "Content-Type: application/json", "-d", string(body), s.ready.Console+path)), out)
}

// order runs a command of signet against the box as its administrator.
func (s *story) order(t *testing.T, command string, args ...string) []byte {
	t.Helper()
	t.Setenv(tokenVariable, s.token)
	return mustSignet(t, append([]string{"--json", command, s.ready.Console, "--ca-bundle", s.ready.CABundle}, args...)...)
}

// enrollAtOnce: more devices than the TPM signs for at a time.
func enrollAtOnce(t *testing.T, s *story) {
	var devices sync.WaitGroup
	errs := make([]error, 24)
	for i := range errs {
		devices.Go(func() {
			errs[i] = s.scep("corp", "ca.crt", "ra.crt", fmt.Sprintf("burst-%d.example.com", i), fmt.Sprintf("burst-%d.crt", i), "--password", "corp-demo-challenge")
		})
	}
	devices.Wait()
	serials := map[string]bool{}
	for i, err := range errs {
		if err != nil {
			t.Errorf("device %d of %d at once: %v", i, len(errs), err)
			continue
		}
		crt := fmt.Sprintf("burst-%d.crt", i)
		s.checkIssued(t, "ca.crt", crt)
		serials[s.serial(t, crt)] = true
	}
	if !t.Failed() && len(serials) != len(errs) {
		t.Errorf("%d devices at once have %d serials", len(errs), len(serials))
	}
}

// enrollByEST: passwords and certificates with curl, strongSwan as it is installed, which speaks TLS 1.2
// and so needs the legacy listener, and a request that waits for a person.
func enrollByEST(t *testing.T, s *story) {
	s.factoryDevice(t)
	s.request(t, "door", "door.approve.test")
	door := []string{"--cert", "factory.crt", "--key", "factory.key"}
	if status := s.est(t, s.ready.EST, "iot/simpleenroll", "door", door...); status != "202" {
		t.Fatalf("a request that waits for a person: HTTP %s", status)
	}
	if head := string(readFile(t, filepath.Join(s.dir, "answer.head"))); !strings.Contains(strings.ToLower(head), "\nretry-after: 60\r") {
		t.Errorf("a device that waits is not told how long: %s", head)
	}

	s.request(t, "meter", "meter.example.com")
	s.mustEST(t, "ca.crt", "meter.crt", s.ready.EST, "simpleenroll", "meter", "-u", "device:corp-demo-password")
	s.mustEST(t, "ca.crt", "meter2.crt", s.ready.EST, "corp/simplereenroll", "meter", "--cert", "meter.crt", "--key", "meter.key")
	if s.serial(t, "meter.crt") == s.serial(t, "meter2.crt") {
		t.Error("re-enrollment gave the same certificate")
	}
	if status := s.est(t, s.ready.EST, "simpleenroll", "meter", "-u", "device:guess"); status != "401" {
		t.Errorf("a wrong password: HTTP %s", status)
	}
	if status := s.est(t, s.ready.Legacy, "simpleenroll", "meter", "--tls-max", "1.2"); status != "401" {
		t.Errorf("nothing but TLS on the legacy listener: HTTP %s", status)
	}

	s.request(t, "swan", "swan.example.com")
	swan := "pki --est --url " + s.ready.Legacy + " --in swan.der --outform pem"
	for _, file := range s.splitBundle(t) {
		swan += " --cacert " + file
	}
	mustRun(t, s.dir, "sh", "-c", swan+" --userpass device:corp-demo-password > swan.crt")
	s.checkIssued(t, "ca.crt", "swan.crt")
	mustRun(t, s.dir, "sh", "-c", swan+" --cert swan.crt --key swan.key > swan2.crt")
	s.checkIssued(t, "ca.crt", "swan2.crt")
	mustRun(t, s.dir, "curl", "-sS", "--fail", "--max-time", "60", "--cacert", s.ready.CABundle, "--tls-max", "1.2", "-o", "caps", s.ready.LegacySCEP+"/scep/corp?operation=GetCACaps")

	var waiting webui.PendingList
	decode(t, s.order(t, "pending"), &waiting)
	if len(waiting.Pending) != 1 || waiting.Pending[0].Identity != "door.approve.test" {
		t.Fatalf("waiting for a person: %+v", waiting.Pending)
	}
	s.order(t, "approve", waiting.Pending[0].ID)
	s.mustEST(t, "ca.crt", "door.crt", s.ready.EST, "iot/simpleenroll", "door", door...)
}

// splitBundle writes each certificate of the CA bundle to a file of its own, as strongSwan reads them.
func (s *story) splitBundle(t *testing.T) (names []string) {
	t.Helper()
	rest := readFile(t, s.ready.CABundle)
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return names
		}
		name := "trust" + string(rune('a'+len(names))) + ".crt"
		if err := os.WriteFile(filepath.Join(s.dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
}

// factoryDevice makes factory.crt and factory.key: a device certified by the demo's bootstrap CA.
func (s *story) factoryDevice(t *testing.T) {
	t.Helper()
	ca, err := tls.LoadX509KeyPair(filepath.Join("..", "..", "configs", "demo", "demo-keys", "bootstrap-ca.crt"), filepath.Join("..", "..", "configs", "demo", "demo-keys", "bootstrap-ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	s.certify(t, "factory", &x509.Certificate{Subject: pkix.Name{CommonName: "made in the factory"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, &ca)
}

// certify writes NAME.crt and NAME.key: a certificate for an hour by parent, by itself where that is nil.
func (s *story) certify(t *testing.T, name string, template *x509.Certificate, parent *tls.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber, template.KeyUsage = big.NewInt(time.Now().UnixNano()), template.KeyUsage|x509.KeyUsageDigitalSignature
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	issuer, signer := template, any(key)
	if parent != nil {
		issuer, signer = parent.Leaf, parent.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{name + ".crt": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(filepath.Join(s.dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// webhook is a compliance webhook on this computer that lets pass whom it knows.
type webhook struct {
	mu    sync.Mutex
	asked []string // identities
}

// startWebhook serves it until the story ends, and has the site's profile intune ask it.
func (s *story) startWebhook(t *testing.T) {
	t.Helper()
	certificate := s.certify(t, "webhook", &x509.Certificate{Subject: pkix.Name{CommonName: "webhook"}, IPAddresses: []net.IP{net.ParseIP(hostInGuest)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, nil)
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}})
	if err != nil {
		t.Fatal(err)
	}
	s.hook = &webhook{}
	server := &http.Server{Handler: s.hook}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.site, "trust", "compliance.pem"), readFile(t, filepath.Join(s.dir, "webhook.crt")), 0o644); err != nil {
		t.Fatal(err)
	}
	replaceInFile(t, filepath.Join(s.site, "profiles", "intune.yaml"), "\nscep:\n",
		"\ncompliance: {url: \"https://"+hostInGuest+":"+port+"/ask\", roots: trust/compliance.pem}\nscep:\n")
}

func (h *webhook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var in struct{ Identity string }
	body, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	if err != nil || json.Unmarshal(body, &in) != nil || r.Header.Get("Webhook-Signature") == "" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	h.mu.Lock()
	h.asked = append(h.asked, in.Identity)
	h.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	answer, _ := json.Marshal(map[string]bool{"allow": strings.HasPrefix(in.Identity, "known")})
	w.Write(answer)
}

func (h *webhook) list() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(h.asked, " ")
}

// askOthers: the confined service reaches a webhook over the network, once its key is entered.
func askOthers(t *testing.T, s *story) {
	enroll := func(cn string) error {
		return s.scep("intune", "ca.crt", "ra.crt", cn, "asked.crt", "--password", "intune-demo-challenge")
	}
	if err := enroll("known-early.example.com"); err == nil {
		t.Error("a certificate was issued before the webhook could be asked")
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	var done webui.Decision
	s.send(t, "PUT", "/api/v1/profiles/intune/secrets/compliance", webui.SecretRequest{Value: "whsec_" + base64.StdEncoding.EncodeToString(key)}, &done)
	if err := enroll("stranger.example.com"); err == nil {
		t.Error("a certificate was issued though the webhook said no")
	}
	if err := enroll("known-1.example.com"); err != nil {
		t.Fatalf("the webhook said yes: %v", err)
	}
	if got := s.hook.list(); got != "stranger.example.com known-1.example.com" {
		t.Errorf("the webhook was asked about %q", got)
	}
}

// revokeAndPublish: what is revoked is on the list and in OCSP's answers, and renews nothing.
func revokeAndPublish(t *testing.T, s *story) {
	revoked, good := s.serial(t, "meter2.crt"), s.serial(t, "swan.crt")
	s.order(t, "revoke", "--serial", revoked, "--reason", "keyCompromise")
	s.checkStatus(t, "ca.crt", revoked, "revoked")
	s.checkStatus(t, "ca.crt", good, "good")
	s.checkStatus(t, "ca.crt", "1234567890abcdef1234", "unknown")
	s.checkList(t, "ca.crt", "devices", revoked, good)
	if status := s.est(t, s.ready.EST, "simplereenroll", "meter", "--cert", "meter2.crt", "--key", "meter.key"); status != "401" {
		t.Errorf("re-enrollment with a revoked certificate: HTTP %s", status)
	}
	if status := s.est(t, s.ready.EST, "simplereenroll", "meter", "--cert", "meter.crt", "--key", "meter.key"); status != "401" {
		t.Errorf("re-enrollment with an older certificate of a compromised key: HTTP %s", status)
	}
}

// checkStatus asks OCSP about a serial of generation 1 of the authority in ca, from what is kept and signed live.
func (s *story) checkStatus(t *testing.T, ca, serial, want string) {
	t.Helper()
	for _, nonce := range []string{"-no_nonce", "-nonce"} {
		out := mustRun(t, s.dir, "openssl", "ocsp", "-issuer", ca, "-CAfile", ca, "-serial", "0x"+serial, "-url", s.ready.OCSP+"/ocsp/devices", nonce)
		if !strings.Contains(out, "0x"+serial+": "+want) {
			t.Errorf("openssl ocsp %s says %s, not %s", nonce, out, want)
		}
	}
}

// checkList waits until the list of an authority has a serial: revocations within seconds share a list.
func (s *story) checkList(t *testing.T, ca, authority, revoked, good string) {
	t.Helper()
	var text string
	for deadline := time.Now().Add(4 * time.Minute); time.Now().Before(deadline); time.Sleep(time.Second) {
		mustRun(t, s.dir, "curl", "-sS", "--fail", "--max-time", "60", "-o", "list.crl", s.ready.PKI+"/pki/"+authority+".crl")
		mustRun(t, s.dir, "openssl", "crl", "-inform", "DER", "-in", "list.crl", "-CAfile", ca, "-noout")
		text = strings.ToLower(mustRun(t, s.dir, "openssl", "crl", "-inform", "DER", "-in", "list.crl", "-noout", "-text"))
		if strings.Contains(text, "serial number: "+revoked) {
			break
		}
	}
	if !strings.Contains(text, "serial number: "+revoked) || strings.Contains(text, "serial number: "+good) {
		t.Errorf("the list of %s lacks %s, or has %s:\n%s", authority, revoked, good, text)
	}
}

// makeKeys has the running box make an RA key and the next key of an authority, and replaces a
// challenge. Both keys go from the key holder to the disk by way of boxinit before they are used.
func makeKeys(t *testing.T, s *story) {
	s.order(t, "rotate-ra")
	s.getCA(t, "corp", "ca-now.crt", "ra-rotated.crt")
	if bytes.Equal(readFile(t, filepath.Join(s.dir, "ra.crt")), readFile(t, filepath.Join(s.dir, "ra-rotated.crt"))) {
		t.Fatal("the RA certificate is the one before")
	}
	s.mustSCEP(t, "corp", "ca.crt", "ra-rotated.crt", "rotated.example.com", "rotated.crt", "--password", "corp-demo-challenge")

	s.order(t, "authority", "next", "devices")
	mustRun(t, s.dir, "curl", "-sS", "--fail", "--max-time", "60", "-o", "next.p7", s.ready.SCEPPlain+"/scep/corp?operation=GetNextCACert")
	mustRun(t, s.dir, "sh", "-c", "openssl cms -verify -inform DER -in next.p7 -CAfile ca.crt -purpose any -out next.certs && openssl pkcs7 -inform DER -in next.certs -print_certs -out next.crt")
	mustRun(t, s.dir, "openssl", "x509", "-in", "next.crt", "-noout")

	var replaced webui.HashResponse
	s.send(t, "PUT", "/api/v1/profiles/modern/challenge", webui.HashRequest{Generate: true}, &replaced)
	if s.challenge = replaced.Secret; s.challenge == "" {
		t.Fatal("the new challenge is not shown")
	}
}

// useKeys: what was made before a power cut works after it, the key before the rotated one too, and the
// next key of the authority issues.
func useKeys(t *testing.T, s *story) {
	s.mustSCEP(t, "corp", "ca.crt", "ra-rotated.crt", "after-1.example.com", "after-1.crt", "--password", "corp-demo-challenge")
	s.mustSCEP(t, "corp", "ca.crt", "ra.crt", "after-2.example.com", "after-2.crt", "--password", "corp-demo-challenge")
	if err := s.scep("intune", "ca.crt", "ra.crt", "known-2.example.com", "asked.crt", "--password", "intune-demo-challenge"); err != nil {
		t.Errorf("the webhook's key is gone after a power cut: %v", err)
	}
	s.getCA(t, "modern", "modern-ca.crt", "modern-ra.crt")
	if err := s.scep("modern", "modern-ca.crt", "modern-ra.crt", "m.example.com", "m.crt", "--password", s.challenge); err != nil {
		t.Errorf("the new challenge after a power cut: %v", err)
	}
	if err := s.scep("modern", "modern-ca.crt", "modern-ra.crt", "m2.example.com", "m2.crt", "--password", "modern-demo-challenge"); err == nil {
		t.Error("the baked challenge is good again after a power cut")
	}

	s.order(t, "authority", "activate", "devices", "--yes")
	s.getCA(t, "corp", "ca2.crt", "ra2.crt")
	next := mustRun(t, s.dir, "openssl", "x509", "-in", "next.crt", "-noout", "-fingerprint")
	if got := mustRun(t, s.dir, "openssl", "x509", "-in", "ca2.crt", "-noout", "-fingerprint"); got != next {
		t.Errorf("the CA is %s, published as the next was %s", got, next)
	}
	s.mustSCEP(t, "corp", "ca2.crt", "ra2.crt", "after-3.example.com", "after-3.crt", "--password", "corp-demo-challenge")
	s.mustSCEP(t, "corp", "ca2.crt", "ra2.crt", "rotated.example.com", "renewed.crt", "--cert", "rotated.crt", "--key", "device.key")
	s.mustEST(t, "ca2.crt", "swan3.crt", s.ready.EST, "corp/simplereenroll", "swan", "--cert", "swan2.crt", "--key", "swan.key")
	s.ca = []byte(s.get(t, "/api/v1/ca-bundle"))
}

// useKeysAgain: in one more boot the activated key issues, and both lists are published.
func useKeysAgain(t *testing.T, s *story) {
	s.mustSCEP(t, "corp", "ca2.crt", "ra2.crt", "last.example.com", "last.crt", "--password", "corp-demo-challenge")
	s.request(t, "end", "end.example.com")
	s.mustEST(t, "ca2.crt", "end.crt", s.ready.EST, "simpleenroll", "end", "-u", "device:corp-demo-password")
	revoked := s.serial(t, "last.crt")
	s.order(t, "revoke", "--serial", revoked, "--reason", "superseded")
	s.checkList(t, "ca2.crt", "devices.2", revoked, s.serial(t, "end.crt"))
	s.checkList(t, "ca.crt", "devices", s.serial(t, "meter2.crt"), revoked)
	s.checkStatus(t, "ca.crt", s.serial(t, "meter2.crt"), "revoked")
}
