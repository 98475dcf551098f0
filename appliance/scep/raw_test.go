package scep

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"testing"

	"github.com/smallstep/pkcs7"
	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"

	"signet.internal/appliance/audit"
)

// bare is a SignedData around a CSR that nobody signed.
func bare(csr []byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(pkcs7.OIDSignedData)
		b.AddASN1(casn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(1)
				b.AddASN1(casn1.SET, func(*cryptobyte.Builder) {})
				b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1})
					b.AddASN1(casn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { b.AddASN1OctetString(csr) })
				})
				b.AddASN1(casn1.SET, func(*cryptobyte.Builder) {})
			})
		})
	})
	return b.BytesOrPanic()
}

// signedBare is a SignedData around the device's CSR, signed by the device.
func (d *device) signedBare(digest asn1.ObjectIdentifier) []byte {
	d.t.Helper()
	sd, err := pkcs7.NewSignedData(d.csr)
	if err != nil {
		d.t.Fatal(err)
	}
	sd.SetDigestAlgorithm(digest)
	if err := sd.AddSigner(d.cert, d.key, pkcs7.SignerInfoConfig{}); err != nil {
		d.t.Fatal(err)
	}
	b, err := sd.Finish()
	if err != nil {
		d.t.Fatal(err)
	}
	return b
}

// postSecure sends a PKIOperation to the listener with TLS.
func (s *service) postSecure(profile string, body []byte) exchanged {
	s.t.Helper()
	if s.secure == nil {
		s.secure = httptest.NewTLSServer(s.server.Handler(false))
		s.t.Cleanup(s.secure.Close)
	}
	resp, err := s.secure.Client().Post(s.secure.URL+"/scep/"+profile+"?operation=PKIOperation", "application/octet-stream", bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return exchanged{status: resp.StatusCode, reply: got, header: resp.Header}
}

// certsOnly wants an answer of nothing but certificates and returns them.
func (s *service) certsOnly(e exchanged) []*x509.Certificate {
	s.t.Helper()
	if e.status != http.StatusOK || e.header.Get("Content-Type") != "application/x-pki-message" {
		s.t.Fatalf("status %d, %s: %.200q", e.status, e.header.Get("Content-Type"), e.reply)
	}
	p7, err := pkcs7.Parse(e.reply)
	if err != nil {
		s.t.Fatal(err)
	}
	if len(p7.Signers) != 0 || len(p7.Content) != 0 {
		s.t.Errorf("%d signers, %d bytes of content", len(p7.Signers), len(p7.Content))
	}
	return p7.Certificates
}

// A request without an envelope, signed or not, is answered with certificates alone, and its retry with the same one.
func TestBareRequest(t *testing.T) {
	s := newService(t, nil)
	d := newDevice(t, rsaKey(t, 2048), "bare")
	for name, message := range map[string][]byte{"unsigned": bare(d.csr), "signed": d.signedBare(pkcs7.OIDDigestAlgorithmSHA256)} {
		t.Run(name, func(t *testing.T) {
			certs := s.certsOnly(s.postSecure("raw", message))
			if len(certs) != 1 || certs[0].Subject.CommonName != "bare" {
				t.Fatalf("%d certificates", len(certs))
			}
			if err := certs[0].CheckSignatureFrom(s.ca["raw"]); err != nil {
				t.Error(err)
			}
			if again := s.certsOnly(s.postSecure("raw", message)); !again[0].Equal(certs[0]) {
				t.Error("the same request got another certificate")
			}
		})
	}
	// The ordinary way stays open on such a profile.
	w := s.good()
	w.recipient = s.ra["raw"]
	if r := s.openReply(s.postSecure("raw", newDevice(t, rsaKey(t, 2048), "dev").message(w))); r.status != "0" {
		t.Errorf("an ordinary request: pkiStatus %s, %s", r.status, r.text)
	}
	s.checkLog()
}

// A bare request that is held is answered 202 until a person has decided.
func TestBareRequestHeld(t *testing.T) {
	s := newService(t, nil)
	for _, approve := range []bool{true, false} {
		d := newDevice(t, rsaKey(t, 2048), "bare.approve.test")
		message := bare(d.csr)
		for range 2 {
			e := s.postSecure("raw", message)
			checkHTTPRefusal(t, e, http.StatusAccepted, "send the same request again")
			if n, err := strconv.Atoi(e.header.Get("Retry-After")); err != nil || n < 1 {
				t.Errorf("Retry-After %q", e.header.Get("Retry-After"))
			}
		}
		held := s.pendingRequest()
		if !approve {
			if err := s.engine.Deny(t.Context(), held.ID, "test", "not ours"); err != nil {
				t.Fatal(err)
			}
			checkHTTPRefusal(t, s.postSecure("raw", message), http.StatusForbidden, "not ours")
			continue
		}
		if err := s.engine.Approve(t.Context(), held.ID, "test"); err != nil {
			t.Fatal(err)
		}
		if certs := s.certsOnly(s.postSecure("raw", message)); len(certs) != 1 || certs[0].Subject.CommonName != "bare.approve.test" {
			t.Errorf("%d certificates", len(certs))
		}
	}
}

func TestBareRequestRefused(t *testing.T) {
	s := newService(t, nil)
	d := newDevice(t, rsaKey(t, 2048), "bare")
	damaged := func(b []byte) []byte {
		b = bytes.Clone(b)
		b[len(b)-1] ^= 1
		return b
	}
	badCSR := bare(damaged(d.csr))
	wrong := bare(makeCSR(t, d.key, "bare", "wrong-challenge"))
	another := newDevice(t, rsaKey(t, 2048), "another")
	another.csr = d.csr
	good := d.message(s.good())
	for name, c := range map[string]struct {
		e      exchanged
		status int
		says   string
	}{
		"without TLS":               {s.post("raw", bare(d.csr)), 403, "use https"},
		"a profile that takes none": {s.postSecure("corp", bare(d.csr)), 400, "exactly one signer"},
		"bad signature":             {s.postSecure("raw", damaged(d.signedBare(pkcs7.OIDDigestAlgorithmSHA256))), 400, "signature of the message"},
		"SHA-1":                     {s.postSecure("raw", d.signedBare(pkcs7.OIDDigestAlgorithmSHA1)), 400, "SHA-1"},
		"signed by another key":     {s.postSecure("raw", another.signedBare(pkcs7.OIDDigestAlgorithmSHA256)), 403, "not signed with the key"},
		"bad CSR":                   {s.postSecure("raw", badCSR), 400, "no valid PKCS#10 request"},
		"wrong challenge":           {s.postSecure("raw", wrong), 403, "challenge password"},
		"only a CSR":                {s.postSecure("raw", d.csr), 400, "not a signed CMS SignedData"},
		"an envelope, damaged":      {s.postSecure("raw", damaged(good)), 400, "signature of the message does not verify"},
		"an envelope, cut off":      {s.postSecure("raw", good[:len(good)-9]), 400, "not a signed CMS SignedData"},
	} {
		t.Run(name, func(t *testing.T) { checkHTTPRefusal(t, c.e, c.status, c.says) })
	}
	if n := s.outcomes(audit.OutcomeBegun); n != 0 {
		t.Errorf("%d issuances begun", n)
	}
	s.checkLog()
}

// Without an envelope too a profile that requires a client certificate gets one.
func TestBareRequestWithoutClientCertificate(t *testing.T) {
	s := newService(t, func(c *Config) {
		i := slices.IndexFunc(c.Profiles, func(p Profile) bool { return p.Name == "raw" })
		c.Profiles[i].MTLS = MTLS{Mode: "required", Pool: fixed(newAuthority(t, "bootstrap").pool())}
	})
	d := newDevice(t, rsaKey(t, 2048), "bare")
	checkHTTPRefusal(t, s.postSecure("raw", bare(d.csr)), http.StatusForbidden, "requires a client certificate")
}

func TestIsBareRequest(t *testing.T) {
	for _, c := range []struct {
		content string
		want    bool
	}{
		{"", false},
		{"\x30\x00", false},
		{"\x30\x02\x30\x00", true},
		{"\x30\x02\x30\x00\x00", false}, // something behind it
		{"\x30\x04\x06\x02\x2a\x03", false},
		{"\x04\x02\x30\x00", false},
		{"\x30\x80\x30\x00\x00\x00", false},
	} {
		if got := isBareRequest([]byte(c.content)); got != c.want {
			t.Errorf("%x: %v", c.content, got)
		}
	}
}
