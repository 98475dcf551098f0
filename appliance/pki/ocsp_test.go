package pki

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/ocsp"

	"signet.internal/appliance/needtest"
)

// newResponder makes an issuer's responder as the box does.
func newResponder(t testing.TB, issuer *Issuer, algorithm string) *Responder {
	t.Helper()
	key := newKey(t, algorithm)
	der, err := issuer.IssueResponder(key.Public(), now, 30*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewResponder(issuer.Certificate(), parse(t, der), key)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// issueDevice issues a certificate for a fresh key.
func issueDevice(t testing.TB, issuer *Issuer, name string) *x509.Certificate {
	t.Helper()
	subject, err := ParseDN("CN=" + name)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{RawSubject: subject}, newKey(t, "ecdsa-p256"))
	if err != nil {
		t.Fatal(err)
	}
	request, err := ParseRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	prepared, err := issuer.Prepare(newProfile(t, permissive()), request, now)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := issuer.Issue(prepared)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, issued)
}

func ask(t testing.TB, cert, issuer *x509.Certificate, hash crypto.Hash) []byte {
	t.Helper()
	der, err := ocsp.CreateRequest(cert, issuer, &ocsp.RequestOptions{Hash: hash})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// TestOCSPAgainstOracle has x/crypto/ocsp ask and read what the responder answers, for every state, hash
// and kind of key.
func TestOCSPAgainstOracle(t *testing.T) {
	revoked := now.Add(-48 * time.Hour)
	for _, authority := range []string{"rsa-2048", "ecdsa-p384"} {
		for _, key := range []string{"ecdsa-p256", "rsa-2048"} {
			issuer := newAuthority(t, newKey(t, authority))
			responder := newResponder(t, issuer, key)
			cert := issueDevice(t, issuer, "printer")
			for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
				r, err := ParseOCSPRequest(ask(t, cert, issuer.Certificate(), hash))
				if err != nil {
					t.Fatal(err)
				}
				if len(r.IDs) != 1 || r.Nonce != nil || !responder.AnswersFor(r.IDs[0]) {
					t.Fatalf("%s: request read as %+v", hash, r)
				}
				if want := cert.SerialNumber.Text(16); r.IDs[0].Serial != want {
					t.Errorf("serial %s, want %s", r.IDs[0].Serial, want)
				}
				for _, want := range []OCSPAnswer{
					{State: OCSPGood},
					{State: OCSPRevoked, At: revoked, Reason: 1},
					{State: OCSPRevoked, At: revoked},
					{State: OCSPUnknown},
				} {
					want.ID, want.ThisUpdate, want.NextUpdate = r.IDs[0], now, now.Add(24*time.Hour)
					der, err := responder.Respond([]OCSPAnswer{want}, nil, now)
					if err != nil {
						t.Fatal(err)
					}
					got, err := ocsp.ParseResponseForCert(der, cert, issuer.Certificate())
					if err != nil {
						t.Fatalf("%s by %s: %v", authority, key, err)
					}
					if got.Status != int(want.State) || got.RevocationReason != want.Reason || !got.ProducedAt.Equal(now) ||
						!got.ThisUpdate.Equal(now) || !got.NextUpdate.Equal(want.NextUpdate) ||
						want.State == OCSPRevoked && !got.RevokedAt.Equal(revoked) {
						t.Errorf("answered %+v, read back %+v", want, got)
					}
					wantAlgorithm := x509.ECDSAWithSHA256
					if key == "rsa-2048" {
						wantAlgorithm = x509.SHA256WithRSA
					}
					if got.SignatureAlgorithm != wantAlgorithm {
						t.Errorf("signed with %s", got.SignatureAlgorithm)
					}
					if !got.Certificate.Equal(responder.Certificate()) || len(got.ResponderKeyHash) != 20 {
						t.Error("the response does not carry its signer, or names it by name")
					}
				}
			}
		}
	}
}

// TestOCSPOtherIssuer holds the match of a CertID to its issuer: another authority of the same name is
// another issuer, and so is one by a hash that is not known here.
func TestOCSPOtherIssuer(t *testing.T) {
	issuer, other := newAuthority(t, newKey(t, "ecdsa-p256")), newAuthority(t, newKey(t, "ecdsa-p256"))
	responder := newResponder(t, issuer, "ecdsa-p256")
	cert := issueDevice(t, issuer, "printer")
	for hash, want := range map[crypto.Hash]bool{crypto.SHA1: true, crypto.SHA256: true, crypto.SHA384: false} {
		for _, asked := range []*Issuer{issuer, other} {
			r, err := ParseOCSPRequest(ask(t, cert, asked.Certificate(), hash))
			if err != nil {
				t.Fatal(err)
			}
			if got := responder.AnswersFor(r.IDs[0]); got != (want && asked == issuer) {
				t.Errorf("%s: answers for this issuer %t, for the other %t", hash, asked == issuer, got)
			}
		}
	}
}

// ocspRequest builds requests with the parts a test wants in them.
type ocspRequest struct {
	version    []byte // content of [0]; nil: none
	ids        [][]byte
	single     []byte // extensions of each certificate, with their tag
	extensions []byte // with their tag
	signature  bool
}

func (r ocspRequest) der(t testing.TB) []byte {
	t.Helper()
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			if r.version != nil {
				b.AddASN1(context(0), func(b *cryptobyte.Builder) { b.AddBytes(r.version) })
			}
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				for _, id := range r.ids {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddBytes(id)
						b.AddBytes(r.single)
					})
				}
			})
			b.AddBytes(r.extensions)
		})
		if r.signature {
			b.AddASN1(context(0), func(b *cryptobyte.Builder) { b.AddASN1(cbasn1.SEQUENCE, func(*cryptobyte.Builder) {}) })
		}
	})
	return finish(t, &b)
}

func finish(t testing.TB, b *cryptobyte.Builder) []byte {
	t.Helper()
	der, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// certID is a CertID by SHA-1 with the given hashes and serial content; parameters as DER or nil.
func certID(t testing.TB, nameHash, keyHash, serial, parameters []byte) []byte {
	t.Helper()
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidHashSHA1)
			b.AddBytes(parameters)
		})
		b.AddASN1OctetString(nameHash)
		b.AddASN1OctetString(keyHash)
		b.AddASN1(cbasn1.INTEGER, func(b *cryptobyte.Builder) { b.AddBytes(serial) })
	})
	return finish(t, &b)
}

// nonces are request extensions with one nonce for each value, which is the content of extnValue.
func nonces(t testing.TB, critical bool, values ...[]byte) []byte {
	t.Helper()
	var b cryptobyte.Builder
	b.AddASN1(context(2), func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, v := range values {
				addExtension(b, oidOCSPNonce, critical, func(b *cryptobyte.Builder) { b.AddBytes(v) })
			}
		})
	})
	return finish(t, &b)
}

func octets(t testing.TB, n int) []byte {
	t.Helper()
	var b cryptobyte.Builder
	b.AddASN1OctetString(bytes.Repeat([]byte{0xa5}, n))
	return finish(t, &b)
}

// TestParseOCSPRequestBounds takes requests across every bound of the parser.
func TestParseOCSPRequestBounds(t *testing.T) {
	hash := make([]byte, 20)
	null := []byte{0x05, 0x00}
	id := certID(t, hash, hash, []byte{0x12, 0x34}, null)
	unknown := []byte{0xa2, 0x0d, 0x30, 0x0b, 0x30, 0x09, 0x06, 0x02, 0x2a, 0x03, 0x04, 0x03, 0x04, 0x01, 0x00}
	criticalUnknown := []byte{0xa2, 0x10, 0x30, 0x0e, 0x30, 0x0c, 0x06, 0x02, 0x2a, 0x03, 0x01, 0x01, 0xff, 0x04, 0x03, 0x04, 0x01, 0x00}
	many := func(n int) [][]byte {
		ids := make([][]byte, n)
		for i := range ids {
			ids[i] = id
		}
		return ids
	}
	single := func(extensions []byte) []byte { // the same under [0]
		s := bytes.Clone(extensions)
		s[0] = 0xa0
		return s
	}
	accepted := map[string]struct {
		der    []byte
		serial string
		nonce  int
	}{
		"bare":                   {ocspRequest{ids: many(1)}.der(t), "1234", 0},
		"no parameters":          {ocspRequest{ids: [][]byte{certID(t, hash, hash, []byte{0x12, 0x34}, nil)}}.der(t), "1234", 0},
		"version written":        {ocspRequest{version: []byte{2, 1, 0}, ids: many(1)}.der(t), "1234", 0},
		"16 certificates":        {ocspRequest{ids: many(16)}.der(t), "1234", 0},
		"signed":                 {ocspRequest{ids: many(1), signature: true}.der(t), "1234", 0},
		"nonce of 1":             {ocspRequest{ids: many(1), extensions: nonces(t, false, octets(t, 1))}.der(t), "1234", 1},
		"nonce of 128":           {ocspRequest{ids: many(1), extensions: nonces(t, true, octets(t, 128))}.der(t), "1234", 128},
		"unknown extension":      {ocspRequest{ids: many(1), extensions: unknown}.der(t), "1234", 0},
		"unknown of certificate": {ocspRequest{ids: many(1), single: single(unknown)}.der(t), "1234", 0},
		"serial with a high bit": {ocspRequest{ids: [][]byte{certID(t, hash, hash, []byte{0, 0x80}, null)}}.der(t), "80", 0},
		"serial zero":            {ocspRequest{ids: [][]byte{certID(t, hash, hash, []byte{0}, null)}}.der(t), "", 0},
		"negative serial":        {ocspRequest{ids: [][]byte{certID(t, hash, hash, []byte{0xfe}, null)}}.der(t), "", 0},
		"nonce within a cert's":  {ocspRequest{ids: many(1), single: single(nonces(t, false, octets(t, 0)))}.der(t), "1234", 0},
	}
	for name, want := range accepted {
		r, err := ParseOCSPRequest(want.der)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if r.IDs[0].Serial != want.serial || len(r.Nonce) != want.nonce {
			t.Errorf("%s: serial %q, nonce of %d octets", name, r.IDs[0].Serial, len(r.Nonce))
		}
	}
	trailing := append(ocspRequest{ids: many(1)}.der(t), 0)
	indefinite := ocspRequest{ids: many(1)}.der(t)
	indefinite[1] = 0x80
	refused := map[string][]byte{
		"empty":                        {},
		"no certificate":               ocspRequest{}.der(t),
		"17 certificates":              ocspRequest{ids: many(17)}.der(t),
		"version 2":                    ocspRequest{version: []byte{2, 1, 1}, ids: many(1)}.der(t),
		"trailing octet":               trailing,
		"indefinite length":            indefinite,
		"nonce of 0":                   ocspRequest{ids: many(1), extensions: nonces(t, false, octets(t, 0))}.der(t),
		"nonce of 129":                 ocspRequest{ids: many(1), extensions: nonces(t, false, octets(t, 129))}.der(t),
		"nonce bare":                   ocspRequest{ids: many(1), extensions: nonces(t, false, []byte{1, 2, 3, 4})}.der(t),
		"two nonces":                   ocspRequest{ids: many(1), extensions: nonces(t, false, octets(t, 8), octets(t, 8))}.der(t),
		"critical extension":           ocspRequest{ids: many(1), extensions: criticalUnknown}.der(t),
		"critical for one certificate": ocspRequest{ids: many(1), single: single(criticalUnknown)}.der(t),
		"empty extensions":             ocspRequest{ids: many(1), extensions: []byte{0xa2, 0x02, 0x30, 0x00}}.der(t),
		"short hash":                   ocspRequest{ids: [][]byte{certID(t, hash[:19], hash, []byte{1}, null)}}.der(t),
		"hash with parameters":         ocspRequest{ids: [][]byte{certID(t, hash, hash, []byte{1}, []byte{0x30, 0x00})}}.der(t),
		"serial not DER":               ocspRequest{ids: [][]byte{certID(t, hash, hash, []byte{0, 1}, null)}}.der(t),
		"serial empty":                 ocspRequest{ids: [][]byte{certID(t, hash, hash, nil, null)}}.der(t),
		"too large":                    ocspRequest{ids: [][]byte{certID(t, hash, hash, bytes.Repeat([]byte{1}, MaxOCSPRequest), null)}}.der(t),
	}
	for name, der := range refused {
		if r, err := ParseOCSPRequest(der); !errors.Is(err, ErrOCSPRequest) {
			t.Errorf("%s: read as %+v, %v", name, r, err)
		}
	}
}

// TestOCSPAgainstOpenSSL has openssl make requests of two certificates with a nonce and verify the answers
// to them.
func TestOCSPAgainstOpenSSL(t *testing.T) {
	needtest.Program(t, "openssl", "openssl")
	dir := t.TempDir()
	issuer := newAuthority(t, newKey(t, "rsa-2048"))
	responder := newResponder(t, issuer, "ecdsa-p256")
	file := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, c *x509.Certificate) string {
		t.Helper()
		if err := os.WriteFile(file(name), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
		return file(name)
	}
	ca := write("ca.pem", issuer.Certificate())
	good, lost := write("good.pem", issueDevice(t, issuer, "good")), write("lost.pem", issueDevice(t, issuer, "lost"))
	for _, hash := range []string{"-sha1", "-sha256"} {
		openssl(t, "ocsp", "-issuer", ca, hash, "-cert", good, "-cert", lost, "-nonce", "-reqout", file("req.der"))
		der, err := os.ReadFile(file("req.der"))
		if err != nil {
			t.Fatal(err)
		}
		r, err := ParseOCSPRequest(der)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.IDs) != 2 || len(r.Nonce) == 0 {
			t.Fatalf("read as %+v", r)
		}
		answers := []OCSPAnswer{
			{ID: r.IDs[0], State: OCSPGood, ThisUpdate: now, NextUpdate: now.Add(time.Hour)},
			{ID: r.IDs[1], State: OCSPRevoked, At: now.Add(-time.Hour), Reason: 1, ThisUpdate: now, NextUpdate: now.Add(time.Hour)},
		}
		for _, nonce := range [][]byte{r.Nonce, []byte("another nonce...")} {
			response, err := responder.Respond(answers, nonce, now)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file("resp.der"), response, 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(needtest.Program(t, "openssl", "openssl"), "ocsp", "-issuer", ca, "-reqin", file("req.der"), "-respin", file("resp.der"), "-resp_text",
				"-CAfile", ca, "-attime", strconv.FormatInt(now.Unix(), 10))
			out, err := cmd.CombinedOutput()
			if !bytes.Equal(nonce, r.Nonce) {
				if err == nil || !strings.Contains(string(out), "Nonce Verify error") {
					t.Errorf("openssl takes another's nonce: %v\n%s", err, out)
				}
				continue
			}
			if err != nil || !strings.Contains(string(out), "Response verify OK") || !strings.Contains(string(out), "Cert Status: good") ||
				!strings.Contains(string(out), "Cert Status: revoked") || !strings.Contains(string(out), "keyCompromise") {
				t.Errorf("openssl ocsp: %v\n%s", err, out)
			}
		}
	}
}

// TestResponderCertificate holds the responder's certificate against RFC 6960 §4.2.2.2 and what
// NewResponder refuses to sign with.
func TestResponderCertificate(t *testing.T) {
	issuer := newAuthority(t, newKey(t, "ecdsa-p256")).Publishing(Locations{
		CRL: "http://pki.example.com/pki/devices.crl", OCSP: "http://pki.example.com/ocsp/devices", CAIssuers: "http://pki.example.com/pki/devices.cer",
	})
	key := newKey(t, "ecdsa-p256")
	der, err := issuer.IssueResponder(key.Public(), now, 7*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert := parse(t, der)
	nocheck, ok := extensionOf(cert, oidOCSPNoCheck)
	if !ok || !bytes.Equal(nocheck, []byte{0x05, 0x00}) {
		t.Errorf("ocsp-nocheck is %x", nocheck)
	}
	if len(cert.ExtKeyUsage) != 1 || cert.ExtKeyUsage[0] != x509.ExtKeyUsageOCSPSigning || cert.KeyUsage != x509.KeyUsageDigitalSignature || cert.IsCA {
		t.Errorf("usages %v, %v", cert.KeyUsage, cert.ExtKeyUsage)
	}
	if len(cert.CRLDistributionPoints)+len(cert.OCSPServer)+len(cert.IssuingCertificateURL) > 0 {
		t.Error("the responder's certificate says where to ask about it")
	}
	if got, want := FormatDN(cert.RawSubject), "CN=Test CA,O=Signet,CN=OCSP"; got != want {
		t.Errorf("subject %s, want %s", got, want)
	}
	if _, err := NewResponder(issuer.Certificate(), cert, newKey(t, "ecdsa-p256")); err == nil {
		t.Error("another key is taken")
	}
	other := newAuthority(t, newKey(t, "ecdsa-p256"))
	if _, err := NewResponder(other.Certificate(), cert, key); err == nil {
		t.Error("another issuer is taken")
	}
	ra, err := issuer.IssueRA(newKey(t, "rsa-2048").Public(), now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewResponder(issuer.Certificate(), parse(t, ra), key); err == nil {
		t.Error("a certificate for something else is taken")
	}
	responder, err := NewResponder(issuer.Certificate(), cert, key)
	if err != nil {
		t.Fatal(err)
	}
	r, err := ParseOCSPRequest(ask(t, cert, issuer.Certificate(), crypto.SHA1))
	if err != nil {
		t.Fatal(err)
	}
	answers := []OCSPAnswer{{ID: r.IDs[0], ThisUpdate: now, NextUpdate: now.Add(time.Hour)}}
	for _, at := range []time.Time{cert.NotBefore.Add(-time.Second), cert.NotAfter.Add(time.Second)} {
		if _, err := responder.Respond(answers, nil, at); !errors.Is(err, ErrResponderExpired) {
			t.Errorf("signs at %s: %v", at, err)
		}
	}
}

// wrongSigner answers with a signature over something else.
type wrongSigner struct{ crypto.Signer }

func (w wrongSigner) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	other := bytes.Clone(digest)
	other[0] ^= 1
	return w.Signer.Sign(rand.Reader, other, opts)
}

// TestOCSPWrongSignature: a signer that returns another signature is found out.
func TestOCSPWrongSignature(t *testing.T) {
	issuer := newAuthority(t, newKey(t, "ecdsa-p256"))
	key := newKey(t, "rsa-2048").(*rsa.PrivateKey)
	der, err := issuer.IssueResponder(key.Public(), now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	responder, err := NewResponder(issuer.Certificate(), parse(t, der), wrongSigner{key})
	if err != nil {
		t.Fatal(err)
	}
	r, err := ParseOCSPRequest(ask(t, parse(t, der), issuer.Certificate(), crypto.SHA256))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := responder.Respond([]OCSPAnswer{{ID: r.IDs[0], ThisUpdate: now, NextUpdate: now}}, nil, now); err == nil {
		t.Error("a wrong signature went out")
	}
}

// FuzzParseOCSPRequest: nothing panics, and what is read is within the bounds and gives back the octets
// it was read from.
func FuzzParseOCSPRequest(f *testing.F) {
	issuer := newAuthority(f, newKey(f, "ecdsa-p256"))
	responder := newResponder(f, issuer, "ecdsa-p256")
	for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384} {
		f.Add(ask(f, issuer.Certificate(), issuer.Certificate(), hash))
	}
	hash := make([]byte, 20)
	id := certID(f, hash, hash, []byte{0x12, 0x34}, nil)
	f.Add(ocspRequest{version: []byte{2, 1, 0}, ids: [][]byte{id, id}, extensions: nonces(f, true, octets(f, 32)), signature: true}.der(f))
	f.Fuzz(func(t *testing.T, der []byte) {
		r, err := ParseOCSPRequest(der)
		if err != nil {
			if r != nil || !errors.Is(err, ErrOCSPRequest) {
				t.Fatalf("%v, %v", r, err)
			}
			return
		}
		if len(r.IDs) < 1 || len(r.IDs) > 16 || r.Nonce != nil && (len(r.Nonce) < 1 || len(r.Nonce) > 128) {
			t.Fatalf("out of bounds: %d certificates, nonce of %d", len(r.IDs), len(r.Nonce))
		}
		answers := make([]OCSPAnswer, len(r.IDs))
		for i, id := range r.IDs {
			if !bytes.Contains(der, id.Raw()) || strings.Trim(id.Serial, "0123456789abcdef") != "" || strings.HasPrefix(id.Serial, "00") {
				t.Fatalf("certificate %d is read as %+v", i, id)
			}
			answers[i] = OCSPAnswer{ID: id, State: OCSPUnknown, ThisUpdate: now, NextUpdate: now}
		}
		if _, err := responder.responseData(answers, r.Nonce, now); err != nil {
			t.Fatal(err)
		}
	})
}

// A CertID is of an issuer by its name and its key: another name over the same key is another issuer.
func TestAnswersForNameAndKey(t *testing.T) {
	issuer := newAuthority(t, newKey(t, "ecdsa-p256"))
	key := newKey(t, "ecdsa-p256")
	der, err := issuer.IssueResponder(key.Public(), now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	responder, err := NewResponder(issuer.Certificate(), parse(t, der), key)
	if err != nil {
		t.Fatal(err)
	}
	request, err := ocsp.CreateRequest(parse(t, der), issuer.Certificate(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(der []byte) bool {
		r, err := ParseOCSPRequest(der)
		if err != nil {
			t.Fatal(err)
		}
		return responder.AnswersFor(r.IDs[0])
	}
	if !ask(request) {
		t.Error("not for its own issuer")
	}
	hashes := responder.issuer[crypto.SHA1]
	for what, hash := range map[string][]byte{"name": hashes.name, "key": hashes.key} {
		changed := bytes.Clone(request)
		changed[bytes.Index(changed, hash)] ^= 1
		if ask(changed) {
			t.Errorf("for an issuer of another %s", what)
		}
	}
}
