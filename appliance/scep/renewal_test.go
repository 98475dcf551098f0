package scep

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"math/big"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/enroll"
)

func serialOf(c *x509.Certificate) string { return hex.EncodeToString(c.SerialNumber.Bytes()) }

// newKey makes the swan another key and returns its file.
func (d *swan) newKey(name string) string {
	d.t.Helper()
	key, _, ok := run(d.t, d.dir, d.pki, "--gen", "--type", "rsa", "--size", "2048", "--outform", "pem")
	if !ok {
		d.t.Fatal("pki --gen")
	}
	if err := os.WriteFile(d.file(name), []byte(key), 0o600); err != nil {
		d.t.Fatal(err)
	}
	return name
}

// strongSwan renews by a RenewalReq (17) signed with the old certificate, without a challenge, to a new key and to the same one.
func TestStrongSwanRenews(t *testing.T) {
	s := newService(t, nil)
	d := newSwan(t, s.url+"/scep/corp")
	first, _ := d.enroll(secret)
	if first == nil {
		t.Fatalf("not enrolled; log:\n%s", s.log)
	}
	old := writePEM(t, d.file("old.crt"), "CERTIFICATE", first.Raw)
	renew := func(args ...string) (*x509.Certificate, string) {
		return d.enroll("", append([]string{"--cert", old, "--key", "key.pem"}, args...)...)
	}
	for _, args := range [][]string{{"--in", d.newKey("new.pem")}, nil} {
		renewed, stderr := renew(args...)
		if renewed == nil {
			t.Fatalf("%q: not renewed: %s\nlog:\n%s", args, stderr, s.log)
		}
		if serialOf(renewed) == serialOf(first) || !bytes.Equal(renewed.RawSubject, first.RawSubject) || len(renewed.DNSNames) != 1 {
			t.Errorf("%q: renewed to %s, %s, %v", args, serialOf(renewed), renewed.Subject, renewed.DNSNames)
		}
		checkOpenSSL(t, d.dir, "ca.crt", "dev.crt")
	}
	var recorded int
	for _, rec := range s.records() {
		if rec.Action == audit.SCEPRenewalReq && rec.Outcome == audit.OutcomeSuccess {
			recorded++
		}
	}
	if recorded != 2 {
		t.Errorf("%d renewals in the audit log", recorded)
	}

	if c, _ := renew("--dn", "C=CH, O=Signet, CN=another.example.com"); c != nil {
		t.Error("renewed to another name")
	}
	if r := s.openReply(s.last()); r.fail != badRequest || !strings.Contains(r.text, "keeps subject and names") {
		t.Errorf("another name: failInfo %s, %q", r.fail, r.text)
	}
	if err := s.engine.Revoke(t.Context(), serialOf(first), "keyCompromise", "test"); err != nil {
		t.Fatal(err)
	}
	if c, _ := renew(); c != nil {
		t.Error("a revoked certificate was renewed")
	}
	if r := s.openReply(s.last()); r.fail != badMessageCheck || !strings.Contains(r.text, "revoked") {
		t.Errorf("revoked: failInfo %s, %q", r.fail, r.text)
	}
	s.checkLog()
}

// pendingRequest waits for the one request that is held.
func (s *service) pendingRequest() enroll.PendingRequest {
	s.t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		held, err := s.engine.PendingRequests()
		if err != nil {
			s.t.Fatal(err)
		}
		if len(held) > 1 {
			s.t.Fatalf("%d requests are held", len(held))
		}
		if len(held) == 1 {
			return held[0]
		}
	}
	s.t.Fatalf("nothing is held; log:\n%s", s.log)
	return enroll.PendingRequest{}
}

// strongSwan polls (GetCertInitial, 20) until a person has decided.
func TestStrongSwanPolls(t *testing.T) {
	s := newService(t, nil)
	for _, approve := range []bool{true, false} {
		d := newSwan(t, s.url+"/scep/iot")
		type result struct {
			cert   *x509.Certificate
			stderr string
		}
		done := make(chan result)
		go func() {
			cert, stderr := d.enroll(secret, "--dn", "CN=dev.approve.test", "-t", "1", "-m", "30")
			done <- result{cert, stderr}
		}()
		held := s.pendingRequest()
		if approve {
			if err := s.engine.Approve(t.Context(), held.ID, "test"); err != nil {
				t.Fatal(err)
			}
		} else if err := s.engine.Deny(t.Context(), held.ID, "test", "not ours"); err != nil {
			t.Fatal(err)
		}
		r := <-done
		if approve != (r.cert != nil) {
			t.Fatalf("approved: %v, certificate: %v\n%s", approve, r.cert != nil, r.stderr)
		}
		last := s.openReply(s.last())
		if approve {
			checkOpenSSL(t, d.dir, "ca.crt", "dev.crt")
		} else if last.fail != badRequest || !strings.Contains(last.text, "not ours") {
			t.Errorf("denied: failInfo %s, %q", last.fail, last.text)
		}
	}
	s.checkLog()
}

// issued is the certificate in an answer to the device.
func (d *device) issued(r certRep) *x509.Certificate {
	d.t.Helper()
	certs, _ := d.certificates(r)
	return certs[0]
}

// A held request is answered PENDING however it is asked about, but only to its own key, and after approval with its certificate, for
// as long as the device asks.
func TestPending(t *testing.T) {
	s := newService(t, nil)
	d := newDevice(t, rsaKey(t, 2048), "dev.approve.test")
	w := s.good()
	w.recipient = s.ra["iot"]
	poll := w
	poll.messageType, poll.content = "20", issuerAndSerial(t, s.ca["iot"].RawSubject, big.NewInt(1))
	ask := func(d *device, w wrapping) certRep { return s.openReply(s.post("iot", d.message(w))) }

	if r := ask(d, poll); r.status != "2" || r.fail != badCertID {
		t.Errorf("polled before the request: pkiStatus %s, failInfo %s", r.status, r.fail)
	}
	for i, w := range []wrapping{w, poll, w, poll} {
		if r := ask(d, w); r.status != "3" || r.transaction != w.transaction || !bytes.Equal(r.recipient, w.nonce.([]byte)) {
			t.Fatalf("message %d: pkiStatus %s, failInfo %s: %s", i, r.status, r.fail, r.text)
		}
	}
	held := s.pendingRequest()
	other := newDevice(t, rsaKey(t, 2048), "dev.approve.test")
	if r := ask(other, poll); r.status != "2" || r.fail != badCertID {
		t.Errorf("polled by another key: pkiStatus %s, failInfo %s", r.status, r.fail)
	}
	if err := s.engine.Approve(t.Context(), held.ID, "test"); err != nil {
		t.Fatal(err)
	}
	if r := ask(other, poll); r.status != "2" || r.fail != badCertID {
		t.Errorf("polled by another key after approval: pkiStatus %s, failInfo %s", r.status, r.fail)
	}
	var first *x509.Certificate
	for _, w := range []wrapping{poll, w, poll, w} {
		cert := d.issued(ask(d, w))
		if first == nil {
			first = cert
		}
		if !cert.Equal(first) || !cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(d.key.Public()) {
			t.Error("another certificate")
		}
	}
	if n := s.outcomes(audit.OutcomeBegun); n != 1 {
		t.Errorf("%d issuances begun", n)
	}
	if n := strings.Count(s.log.String(), "outcome=pending"); n != 4 {
		t.Errorf("%d lines with outcome=pending in the log:\n%s", n, s.log)
	}
}

// Cisco, Apple and old clients renew with a PKCSReq: the certificate that signed it says what it is.
func TestRenewalByPKCSReq(t *testing.T) {
	s := newService(t, nil)
	d := newDevice(t, rsaKey(t, 2048), "dev")
	w := s.good()
	first := d.issued(s.openReply(s.post("corp", d.message(w))))

	renewal := &device{t: t, key: d.key, cert: first, csr: makeCSR(t, d.key, "dev", "")} // no challenge
	for _, messageType := range []string{"19", "17"} {
		w := w // the same transaction: clients derive it from the key
		w.messageType, w.nonce = messageType, []byte("nonce of type "+messageType)
		again := renewal.issued(s.openReply(s.post("corp", renewal.message(w))))
		if again.SerialNumber.Cmp(first.SerialNumber) == 0 {
			t.Errorf("type %s: the first certificate came back", messageType)
		}
	}
	// What is not signed by one of ours is no renewal, whatever it calls itself.
	w = s.good()
	w.messageType = "17"
	if r := s.openReply(s.post("corp", d.message(w))); r.status != "2" || r.fail != badMessageCheck {
		t.Errorf("RenewalReq by a throw-away certificate: pkiStatus %s, failInfo %s: %s", r.status, r.fail, r.text)
	}
	// The same subject and key in another CA's certificate.
	forged := parse(t, must(x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: first.SerialNumber, Subject: pkix.Name{CommonName: "dev"}, NotBefore: first.NotBefore, NotAfter: first.NotAfter,
	}, &x509.Certificate{RawSubject: first.RawIssuer}, d.key.Public(), d.key)))
	renewal.cert = forged
	for _, messageType := range []string{"19", "17"} {
		w = s.good()
		w.messageType = messageType
		if r := s.openReply(s.post("corp", renewal.message(w))); r.status != "2" {
			t.Errorf("type %s by a forged certificate: pkiStatus %s", messageType, r.status)
		}
	}
}

// GetCert and GetCRL answer with what the authority has, also when many clients send the same transaction.
func TestGetCertAndGetCRL(t *testing.T) {
	s := newService(t, nil)
	d := newDevice(t, rsaKey(t, 2048), "dev")
	cert := d.issued(s.openReply(s.post("corp", d.message(s.good()))))
	inner := func(messageType string, content []byte) []byte {
		w := s.good()
		w.transaction, w.messageType, w.content = "1", messageType, content
		r := s.openReply(s.post("corp", d.message(w)))
		if r.status != "0" {
			t.Fatalf("type %s: pkiStatus %s, failInfo %s: %s", messageType, r.status, r.fail, r.text)
		}
		envelope := must(pkcs7.Parse(r.content))
		return must(envelope.Decrypt(d.cert, d.key))
	}
	for name, want := range map[string]*x509.Certificate{"issued": cert, "RA": s.ra["corp"], "CA": s.ca["corp"]} {
		for _, issuer := range []*x509.Certificate{s.ca["corp"], s.ra["corp"]} { // sscep takes the one for the other
			p7 := must(pkcs7.Parse(inner("21", issuerAndSerial(t, issuer.RawSubject, want.SerialNumber))))
			if len(p7.Certificates) != 1 || !p7.Certificates[0].Equal(want) {
				t.Errorf("GetCert of the %s certificate from %s: %d certificates", name, issuer.Subject, len(p7.Certificates))
			}
		}
	}
	crl := func() *x509.RevocationList {
		p7 := must(pkcs7.Parse(inner("22", issuerAndSerial(t, s.ra["corp"].RawSubject, s.ra["corp"].SerialNumber))))
		if len(p7.CRLs) != 1 {
			t.Fatalf("%d CRLs from the RA", len(p7.CRLs))
		}
		p7 = must(pkcs7.Parse(inner("22", issuerAndSerial(t, s.ca["corp"].RawSubject, cert.SerialNumber))))
		if len(p7.CRLs) != 1 || len(p7.Certificates) != 0 {
			t.Fatalf("%d CRLs, %d certificates", len(p7.CRLs), len(p7.Certificates))
		}
		list := must(x509.ParseRevocationList(must(asn1.Marshal(p7.CRLs[0]))))
		if err := list.CheckSignatureFrom(s.ca["corp"]); err != nil {
			t.Error(err)
		}
		return list
	}
	if before := crl(); len(before.RevokedCertificateEntries) != 0 {
		t.Errorf("%d certificates on the list", len(before.RevokedCertificateEntries))
	}
	if err := s.engine.Revoke(t.Context(), serialOf(cert), "superseded", "test"); err != nil {
		t.Fatal(err)
	}
	after := crl()
	for deadline := time.Now().Add(time.Minute); len(after.RevokedCertificateEntries) == 0 && time.Now().Before(deadline); after = crl() {
		time.Sleep(200 * time.Millisecond) // a list is not signed anew at once
	}
	if len(after.RevokedCertificateEntries) != 1 || after.RevokedCertificateEntries[0].SerialNumber.Cmp(cert.SerialNumber) != 0 {
		t.Errorf("the list after revocation has %v", after.RevokedCertificateEntries)
	}
	s.checkLog()
}
