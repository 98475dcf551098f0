package scep

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/smallstep/pkcs7"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/cms"
	"signet.internal/appliance/needtest"
)

// sealWithOpenSSL has openssl encrypt content to certificates. keyArgs follow every recipient, args say how the content is encrypted.
func sealWithOpenSSL(t *testing.T, content []byte, args, keyArgs []string, recipients ...*x509.Certificate) []byte {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "content"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	args = append([]string{"cms", "-encrypt", "-binary", "-in", "content", "-outform", "DER", "-out", "envelope"}, args...)
	for i, r := range recipients {
		args = append(args, "-recip", writePEM(t, filepath.Join(dir, strconv.Itoa(i)), "CERTIFICATE", r.Raw))
		args = append(args, keyArgs...)
	}
	if _, stderr, ok := run(t, dir, needtest.Program(t, "openssl", "openssl"), args...); !ok {
		t.Fatalf("openssl cms -encrypt: %s", stderr)
	}
	b, err := os.ReadFile(filepath.Join(dir, "envelope"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// openWithOpenSSL has openssl decrypt an envelope under a password.
func openWithOpenSSL(t *testing.T, envelope []byte, password string) ([]byte, bool) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "envelope"), envelope, 0o600); err != nil {
		t.Fatal(err)
	}
	out, _, ok := run(t, dir, needtest.Program(t, "openssl", "openssl"), "cms", "-decrypt", "-binary", "-inform", "DER", "-in", "envelope", "-pwri_password", password)
	return []byte(out), ok
}

// Every form of envelope that openssl makes with an RSA recipient enrolls, and the answer has its cipher.
func TestOpenSSLEnvelopes(t *testing.T) {
	s := newService(t, nil)
	oaep := []string{"-keyopt", "rsa_padding_mode:oaep"}
	oaep256 := append(oaep, "-keyopt", "rsa_oaep_md:sha256", "-keyopt", "rsa_mgf1_md:sha256")
	corp := []*x509.Certificate{s.ra["corp"]}
	for name, c := range map[string]struct {
		profile    string
		args, key  []string
		recipients []*x509.Certificate
		answer     string // OID of the answer's cipher, as DER
	}{
		"AES-128":            {"corp", []string{"-aes128"}, nil, corp, "\x60\x86\x48\x01\x65\x03\x04\x01\x02"},
		"AES-192":            {"corp", []string{"-aes192"}, nil, corp, "\x60\x86\x48\x01\x65\x03\x04\x01\x16"},
		"AES-256":            {"corp", []string{"-aes256"}, nil, corp, "\x60\x86\x48\x01\x65\x03\x04\x01\x2a"},
		"OAEP":               {"corp", []string{"-aes256"}, oaep, corp, "\x60\x86\x48\x01\x65\x03\x04\x01\x2a"},
		"OAEP with SHA-256":  {"corp", []string{"-aes256"}, oaep256, corp, "\x60\x86\x48\x01\x65\x03\x04\x01\x2a"},
		"BER":                {"corp", []string{"-aes128", "-stream"}, nil, corp, "\x60\x86\x48\x01\x65\x03\x04\x01\x02"},
		"BER, AES-192, OAEP": {"corp", []string{"-aes192", "-stream"}, oaep, corp, "\x60\x86\x48\x01\x65\x03\x04\x01\x16"},
		"subject key id":     {"corp", []string{"-aes128", "-keyid"}, nil, corp, "\x60\x86\x48\x01\x65\x03\x04\x01\x02"},
		"several recipients": {"corp", []string{"-aes128"}, nil, []*x509.Certificate{s.ca["corp"], s.ra["legacy"], s.ra["corp"]},
			"\x60\x86\x48\x01\x65\x03\x04\x01\x02"},
		"3DES": {"legacy", []string{"-des3"}, nil, []*x509.Certificate{s.ra["legacy"]}, "\x2a\x86\x48\x86\xf7\x0d\x03\x07"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDevice(t, rsaKey(t, 2048), "dev")
			w := s.good()
			w.envelope = sealWithOpenSSL(t, d.csr, c.args, c.key, c.recipients...)
			if stream := strings.HasPrefix(name, "BER"); stream != (w.envelope[1] == 0x80) {
				t.Fatalf("the envelope begins with % x", w.envelope[:4])
			}
			r := s.openReply(s.post(c.profile, d.message(w)))
			if r.status != "0" {
				t.Fatalf("pkiStatus %s, failInfo %s: %s", r.status, r.fail, r.text)
			}
			if !bytes.Contains(r.content, append([]byte{6, byte(len(c.answer))}, c.answer...)) {
				t.Errorf("the answer has another cipher than the request")
			}
		})
	}
}

// A device with an elliptic curve key is answered under its challenge (RFC 8894 §3.1): openssl opens the answer with it, and with
// nothing else.
func TestECDevice(t *testing.T) {
	s := newService(t, nil)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	d := newDevice(t, key, "ec")
	for _, args := range [][]string{{"-aes128"}, {"-aes192"}, {"-aes256", "-stream"}} {
		w := s.good()
		w.envelope = sealWithOpenSSL(t, d.csr, args, nil, s.ra["modern"])
		posted := s.post("modern", d.message(w))
		r := s.openReply(posted)
		if r.status != "0" {
			t.Fatalf("pkiStatus %s, failInfo %s: %s", r.status, r.fail, r.text)
		}
		content, ok := openWithOpenSSL(t, r.content, secret)
		if !ok {
			t.Fatal("openssl does not open the answer with the challenge")
		}
		certs, err := pkcs7.Parse(content)
		if err != nil {
			t.Fatal(err)
		}
		if len(certs.Certificates) != 2 || !certs.Certificates[0].PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(key.Public()) {
			t.Fatalf("%d certificates", len(certs.Certificates))
		}
		if err := certs.Certificates[0].CheckSignatureFrom(s.ca["modern"]); err != nil {
			t.Error(err)
		}
		if got, ok := openWithOpenSSL(t, r.content, "wrong-challenge"); ok && bytes.Equal(got, content) {
			t.Error("the answer opens with another password")
		}
		// The retry is answered with the same certificate under another salt.
		again := s.openReply(s.post("modern", posted.body))
		if repeated, ok := openWithOpenSSL(t, again.content, secret); !ok || !bytes.Equal(repeated, content) || bytes.Equal(again.content, r.content) {
			t.Error("the retry is not answered with the same certificate")
		}
	}
	s.checkLog()
}

// Whatever else is right about it, a request that nothing can be answered to is refused before anything is recorded.
func TestECDeviceRefused(t *testing.T) {
	s := newService(t, nil)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	d := newDevice(t, key, "ec")
	for challenge, fail := range map[string]failInfo{"": badAlg, "wrong-challenge": badRequest} {
		d.csr = makeCSR(t, key, "ec", challenge)
		if r := s.openReply(s.post("corp", d.message(s.good()))); r.status != "2" || r.fail != fail {
			t.Errorf("challenge %q: pkiStatus %s, failInfo %s: %s", challenge, r.status, r.fail, r.text)
		}
	}
	if n := s.outcomes(audit.OutcomeBegun); n != 0 {
		t.Errorf("%d issuances begun", n)
	}
}

// An EC device whose request would wait is refused before anything is recorded: it could not be answered later.
func TestECDeviceNotHeld(t *testing.T) {
	s := newService(t, nil)
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	d := newDevice(t, key, "ec.approve.test")
	w := s.good()
	w.recipient = s.ra["iot"]
	if r := s.openReply(s.post("iot", d.message(w))); r.status != "2" || r.fail != badAlg {
		t.Errorf("pkiStatus %s, failInfo %s: %s", r.status, r.fail, r.text)
	}
	if held := must(s.engine.PendingRequests()); len(held) != 0 {
		t.Errorf("%d requests are held", len(held))
	}
}

// A device with an elliptic curve key renews with its certificate; the challenge is what the answer is encrypted under.
func TestECDeviceRenews(t *testing.T) {
	s := newService(t, nil)
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	d := newDevice(t, key, "ec")
	certificate := func(messageType string) *x509.Certificate {
		w := s.good()
		w.messageType = messageType
		r := s.openReply(s.post("corp", d.message(w)))
		content, ok := openWithOpenSSL(t, r.content, secret)
		if !ok {
			t.Fatalf("type %s: pkiStatus %s, failInfo %s: %s", messageType, r.status, r.fail, r.text)
		}
		return must(pkcs7.Parse(content)).Certificates[0]
	}
	d.cert = certificate("19")
	for _, messageType := range []string{"17", "19"} {
		if renewed := certificate(messageType); serialOf(renewed) == serialOf(d.cert) || !key.PublicKey.Equal(renewed.PublicKey) {
			t.Errorf("type %s: serial %s after %s", messageType, serialOf(renewed), serialOf(d.cert))
		}
	}
	d.csr = makeCSR(t, key, "ec", "")
	if r := s.openReply(s.post("corp", d.message(s.good()))); r.status != "2" || r.fail != badAlg {
		t.Errorf("without a challenge: pkiStatus %s, failInfo %s", r.status, r.fail)
	}
}

// MD5 is taken where a profile says so, and answered with SHA-1 there.
func TestMD5(t *testing.T) {
	s := newService(t, nil)
	d := newDevice(t, rsaKey(t, 2048), "dev")
	for profile, want := range map[string]asn1.ObjectIdentifier{"legacy": pkcs7.OIDDigestAlgorithmSHA1, "corp": pkcs7.OIDDigestAlgorithmSHA256} {
		options := cms.SignOptions{
			Content:           sealWithOpenSSL(t, d.csr, []string{"-aes128"}, nil, s.ra[profile]),
			SignerCertificate: d.cert, Signer: d.key, Certificates: [][]byte{d.cert.Raw}, Digest: cms.MD5,
		}
		for _, a := range []attribute{
			{oidTransactionID, printable("md5")},
			{oidMessageType, printable("19")},
			{oidSenderNonce, value{asn1.TagOctetString, []byte("0123456789abcdef")}},
		} {
			der := mustMarshal(t, asn1.RawValue{Tag: a.value.tag, Bytes: a.value.bytes})
			options.Attributes = append(options.Attributes, cms.Attribute{Type: a.oid, Value: der})
		}
		r := s.openReply(s.post(profile, must(cms.Sign(options))))
		if enrolled := r.status == "0"; enrolled != (profile == "legacy") {
			t.Errorf("%s: pkiStatus %s, failInfo %s: %s", profile, r.status, r.fail, r.text)
		}
		if got := r.p7.Signers[0].DigestAlgorithm.Algorithm; !got.Equal(want) {
			t.Errorf("%s: answered with digest %v", profile, got)
		}
	}
}
