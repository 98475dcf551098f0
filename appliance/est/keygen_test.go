package est

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"mime"
	mimemultipart "mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/needtest"
)

// parts reads an answer to serverkeygen by the standard library: the type of its first part and what is in it, and the certificate.
func (s *service) parts(a answer) (contentType string, key []byte, certificate *x509.Certificate) {
	s.t.Helper()
	media, parameters, err := mime.ParseMediaType(a.header.Get("Content-Type"))
	if a.status != 200 || err != nil || media != "multipart/mixed" {
		s.t.Fatalf("%d %v %v %s\nlog:\n%s", a.status, a.header, err, a.body, s.log)
	}
	reader := mimemultipart.NewReader(bytes.NewReader(a.body), parameters["boundary"])
	var types []string
	var contents [][]byte
	for {
		part, err := reader.NextRawPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			s.t.Fatal(err)
		}
		if part.Header.Get("Content-Transfer-Encoding") != "base64" {
			s.t.Errorf("part with %v", part.Header)
		}
		types = append(types, part.Header.Get("Content-Type"))
		contents = append(contents, decoded(s.t, must(io.ReadAll(part))))
	}
	if len(types) != 2 || types[1] != "application/pkcs7-mime; smime-type=certs-only" {
		s.t.Fatalf("parts %q", types)
	}
	certs := certsOnly(s.t, contents[1])
	if len(certs) != 1 {
		s.t.Fatalf("%d certificates", len(certs))
	}
	return types[0], contents[0], certs[0]
}

// A key made here and its certificate, of the kind the profile says, whatever key signed the request.
func TestServerKeyGen(t *testing.T) {
	for profile, bits := range map[string]int{"keys": 2048, "modern": 256} {
		t.Run(profile, func(t *testing.T) {
			s := newService(t, nil)
			d := s.device("dev")
			body := d.csr()
			var keys []crypto.Signer
			for range 2 { // the same request twice: never the same key
				kind, der, cert := s.parts(d.do("POST", profile+"/serverkeygen", body))
				if kind != "application/pkcs8" {
					t.Fatalf("part of type %s", kind)
				}
				key := must(x509.ParsePKCS8PrivateKey(der)).(crypto.Signer)
				size := 0
				switch k := key.(type) {
				case *rsa.PrivateKey:
					size = k.N.BitLen()
				case *ecdsa.PrivateKey:
					size = k.Curve.Params().BitSize
				}
				public := key.Public().(interface{ Equal(crypto.PublicKey) bool })
				if size != bits || !public.Equal(cert.PublicKey) || public.Equal(d.key.Public()) {
					t.Errorf("%T of %d bits, certificate for %T", key, size, cert.PublicKey)
				}
				if cert.Subject.CommonName != "dev" || cert.DNSNames[0] != "dev.example.com" || cert.CheckSignatureFrom(s.issuer[profile].Certificate()) != nil {
					t.Errorf("certificate for %v %v", cert.Subject, cert.DNSNames)
				}
				keys = append(keys, key)
			}
			if keys[0].Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(keys[1].Public()) {
				t.Error("the same key twice")
			}
			if n := len(s.records(audit.OutcomeSuccess)); n != 2 {
				t.Errorf("%d certificates", n)
			}
			if strings.Contains(s.log.String(), "PRIVATE") {
				t.Error("a key in the log")
			}
			s.checkLog()
		})
	}
}

// For serverkeygen key and signature of the request count for nothing (RFC 7030 §4.4.1); everywhere else the same bytes are refused,
// and the key in them is never certified.
func TestServerKeyGenIgnoresSignature(t *testing.T) {
	s := newService(t, nil)
	d := s.device("dev")
	forged := must(x509.ParseCertificateRequest(d.csr()))
	body := bytes.Clone(forged.Raw)
	clear(body[len(body)-len(forged.Signature):])
	_, _, cert := s.parts(d.do("POST", "modern/serverkeygen", body))
	if cert.Subject.CommonName != "dev" || d.key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(cert.PublicKey) {
		t.Errorf("certificate for %v over the sender's key", cert.Subject)
	}
	s.refused(d.do("POST", "modern/simpleenroll", body), 400, "not signed with its own key")
	s.refused(d.do("POST", "modern/simplereenroll", body), 400, "not signed with its own key")
	if n := len(s.records(audit.OutcomeSuccess)); n != 1 {
		t.Errorf("%d certificates", n)
	}
}

// The bytes libest reads: no preamble, the header fields of a part in this order, CRLF, and base64 in lines.
func TestMultipartBytes(t *testing.T) {
	contentType, body := multipart(lines{8, "\n"}, mimePart{"application/pkcs8", []byte("key of twelve")}, mimePart{contentTypeCertsOnly, []byte("cert")})
	want := "--signet-part-of-est-answer\r\nContent-Type: application/pkcs8\r\nContent-Transfer-Encoding: base64\r\n\r\na2V5IG9m\nIHR3ZWx2\nZQ==\n\r\n" +
		"--signet-part-of-est-answer\r\nContent-Type: application/pkcs7-mime; smime-type=certs-only\r\nContent-Transfer-Encoding: base64\r\n\r\nY2VydA==\n\r\n--signet-part-of-est-answer--\r\n"
	if string(body) != want || contentType != "multipart/mixed; boundary=signet-part-of-est-answer" {
		t.Errorf("%s\n%q\nwant\n%q", contentType, body, want)
	}
	if len(boundary) >= 70 { // libest's buffer
		t.Errorf("boundary of %d characters", len(boundary))
	}
}

// A device that asks for an encrypted key gets that or nothing; openssl opens it with the key of the certificate TLS was made with.
func TestServerKeyGenEncrypted(t *testing.T) {
	openssl := needtest.Program(t, "openssl", "openssl")
	s := newService(t, nil)
	for name, c := range map[string]struct {
		profile string
		key     crypto.Signer
		usage   x509.KeyUsage
	}{
		"RSA": {"keys", rsaKeys()[3], x509.KeyUsageKeyEncipherment | x509.KeyUsageDigitalSignature},
		"EC":  {"modern", must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), x509.KeyUsageKeyAgreement | x509.KeyUsageDigitalSignature},
	} {
		t.Run(name, func(t *testing.T) {
			s := s.in(t)
			d := s.device("dev")
			d.cert = s.bootstrap.device(t, "dev", c.key, c.usage)
			body := d.csr(attribute(oidAsymmDecryptKeyID, octets("key of dev")), capabilities(contentCiphers[2].oid))
			kind, sealed, cert := s.parts(d.do("POST", c.profile+"/serverkeygen", body))
			if kind != "application/pkcs7-mime; smime-type=server-generated-key" {
				t.Fatalf("part of type %s", kind)
			}
			dir := t.TempDir()
			write(t, filepath.Join(dir, "sealed.der"), sealed)
			writePEM(t, filepath.Join(dir, "dev.crt"), "CERTIFICATE", d.cert.Certificate[0])
			writePEM(t, filepath.Join(dir, "dev.key"), "PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(c.key)))
			if _, _, ok := run(t, dir, openssl, "cms", "-decrypt", "-inform", "DER", "-in", "sealed.der", "-recip", "dev.crt", "-inkey", "dev.key", "-out", "signed.der"); !ok {
				t.Fatal("openssl cms -decrypt")
			}
			signed := must(os.ReadFile(filepath.Join(dir, "signed.der")))
			key := signedKey(t, signed)
			if !key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(cert.PublicKey) {
				t.Error("the certificate is for another key")
			}
		})
	}
}

// A wish that cannot be met is refused before anything is issued.
func TestServerKeyGenRefused(t *testing.T) {
	s := newService(t, nil)
	d := s.device("dev")
	wish := [][]byte{attribute(oidAsymmDecryptKeyID, octets("key of dev")), capabilities(contentCiphers[2].oid)}
	s.refused(d.do("POST", "keys/serverkeygen", d.csr(wish...)), 400, "no key of this identifier")
	s.refused(d.do("POST", "keys/serverkeygen", d.csr(attribute(oidDecryptKeyID, octets("secret")))), 400, "shares no secret keys")
	d.cert = s.bootstrap.device(t, "dev", rsaKeys()[3], x509.KeyUsageKeyEncipherment)
	s.refused(d.do("POST", "manual/serverkeygen", d.csr(wish...)), 400, "hands out no encrypted keys")
	d = s.device("dev")
	s.refused(d.do("POST", "modern/serverkeygen", d.csr(), "User-Agent", "libest 3.2.0p"), 400, "libest reads RSA keys only")
	if n := len(s.records(audit.OutcomeBegun)); n != 0 {
		t.Errorf("%d issuances begun", n)
	}
	s.parts(d.do("POST", "keys/serverkeygen", d.csr(), "User-Agent", "libest 3.2.0p"))
}

// A request without a good proof costs no key, however often it comes; a key that may have been certified is never used again.
func TestKeysAreMadeOnce(t *testing.T) {
	s := newService(t, nil)
	maker := s.server.profiles["keys"].keys
	made := 0
	generate := maker.generate
	maker.generate = func() (crypto.Signer, error) { made++; return generate() }
	d := s.device("dev")
	body := d.csr()
	d.user = ""
	for range 5 {
		unauthorized(t, d.do("POST", "keys/serverkeygen", body), true)
	}
	d.user, d.pass = user, "wrong-password"
	unauthorized(t, d.do("POST", "keys/serverkeygen", body), true)
	if made != 1 {
		t.Errorf("%d keys made for nobody", made)
	}
	d.pass = secret
	s.parts(d.do("POST", "keys/serverkeygen", body))
	if made != 1 || len(maker.unused) != 0 {
		t.Errorf("%d keys made, %d kept after one was handed out", made, len(maker.unused))
	}
	ou := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "dev", PostalCode: []string{"1"}}}, d.key))
	s.refused(d.do("POST", "keys/serverkeygen", ou), 400, "not allowed")
	if made != 2 || len(maker.unused) != 0 {
		t.Errorf("%d keys made, %d kept after a sender with a good password was refused", made, len(maker.unused))
	}
}

// Who leaves before the password is verified, or cannot be encrypted to, costs no key either.
func TestKeysOfThoseWhoLeave(t *testing.T) {
	s := newService(t, nil)
	maker := s.server.profiles["keys"].keys
	made := 0
	generate := maker.generate
	maker.generate = func() (crypto.Signer, error) { made++; return generate() }
	d := s.device("dev")
	key, err := maker.take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	maker.putBack(key)
	ctx, leave := context.WithCancel(t.Context())
	leave()
	for range 8 {
		r := httptest.NewRequestWithContext(ctx, http.MethodPost, "https://box/.well-known/est/keys/serverkeygen", bytes.NewReader(d.csr()))
		r.Header.Set("Content-Type", "application/pkcs10")
		r.SetBasicAuth(user, "wrong-password")
		s.server.Handler(false).ServeHTTP(httptest.NewRecorder(), r)
	}
	p224 := must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))
	cert := parse(t, s.bootstrap.device(t, "dev", p224, x509.KeyUsageKeyAgreement).Certificate[0])
	r := httptest.NewRequest(http.MethodPost, "https://box/.well-known/est/keys/serverkeygen",
		bytes.NewReader(d.csr(attribute(oidAsymmDecryptKeyID, octets("key of dev")))))
	r.Header.Set("Content-Type", "application/pkcs10")
	r.TLS.PeerCertificates = []*x509.Certificate{cert}
	w := httptest.NewRecorder()
	if s.server.Handler(false).ServeHTTP(w, r); w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "P-256") {
		t.Errorf("to a key on P-224: %d %s", w.Code, w.Body)
	}
	if made != 1 || len(maker.unused) != 1 {
		t.Errorf("%d keys made, %d kept", made, len(maker.unused))
	}
}

// Few requests wait for a key; those beyond are told to come again.
func TestFewWaitForKeys(t *testing.T) {
	m, err := newKeyMaker("rsa-2048")
	if err != nil {
		t.Fatal(err)
	}
	m.making <- struct{}{}
	ctx, leave := context.WithCancel(t.Context())
	ended := make(chan error)
	for range maxMaking {
		go func() {
			_, err := m.take(ctx)
			ended <- err
		}()
	}
	for len(m.waiting) < maxMaking {
		time.Sleep(time.Millisecond)
	}
	if _, err := m.take(ctx); !errors.Is(err, enroll.ErrBusy) {
		t.Errorf("one more: %v", err)
	}
	leave()
	for range maxMaking {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("who left: %v", err)
		}
	}
	<-m.making
	if key, err := m.take(t.Context()); err != nil || key == nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestWipe(t *testing.T) {
	for name, key := range map[string]crypto.Signer{
		"RSA": must(rsa.GenerateKey(rand.Reader, 2048)),
		"EC":  must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)),
	} {
		var secrets [][]big.Word
		switch k := key.(type) {
		case *rsa.PrivateKey:
			secrets = [][]big.Word{k.D.Bits(), k.Primes[0].Bits(), k.Primes[1].Bits(), k.Precomputed.Dp.Bits()}
		case *ecdsa.PrivateKey:
			secrets = [][]big.Word{k.D.Bits()}
		}
		wipe(key)
		for i, words := range secrets {
			for _, w := range words {
				if w != 0 {
					t.Fatalf("%s: secret %d is still there", name, i)
				}
			}
			if len(words) == 0 {
				t.Fatalf("%s: secret %d was never there", name, i)
			}
		}
	}
}

func TestKeyMakers(t *testing.T) {
	for _, algorithm := range []string{"rsa-2048", "rsa-3072", "rsa-4096", "ecdsa-p256", "ecdsa-p384"} {
		if _, err := newKeyMaker(algorithm); err != nil {
			t.Errorf("%s: %v", algorithm, err)
		}
	}
	m, err := newKeyMaker("ecdsa-p384")
	if err != nil {
		t.Fatal(err)
	}
	key, err := m.take(t.Context())
	if err != nil || key.Public().(*ecdsa.PublicKey).Curve != elliptic.P384() {
		t.Errorf("%v, %v", key, err)
	}
}
