package cms

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// opened is what a server gets out of a request.
type opened struct {
	MessageType, Signer, Subject string
	Digest                       Digest
	Cipher                       Cipher
	CertificateVersion           int // of the signer's certificate
	SerialOctets                 int
}

// open goes through a recorded request as a server does.
func open(t *testing.T, request []byte, p Policy) (opened, error) {
	t.Helper()
	ra, key := testRA(t)
	sd, err := ParseSignedData(request)
	if err != nil {
		return opened{}, err
	}
	signer, err := sd.Verify(p)
	if err != nil {
		return opened{}, err
	}
	o := opened{Digest: signer.Digest, SerialOctets: len(signer.Certificate.SerialNumber.Bytes()), CertificateVersion: 3}
	messageType, ok := signer.Attribute(oidMessageType)
	if !ok || messageType.Tag != asn1.TagPrintableString || messageType.Class != asn1.ClassUniversal || messageType.IsCompound {
		t.Errorf("messageType is %+v", messageType)
	}
	o.MessageType = string(messageType.Bytes)
	for _, oid := range []asn1.ObjectIdentifier{oidSenderNonce, oidTransactionID} {
		if v, ok := signer.Attribute(oid); !ok || len(v.Bytes) == 0 {
			t.Errorf("attribute %v is %+v", oid, v)
		}
	}
	var name cryptobyte.String = signer.Certificate.RawSubject
	o.Signer = commonName(t, name)
	var body, tbs cryptobyte.String
	whole := cryptobyte.String(signer.Certificate.Raw)
	if !whole.ReadASN1(&body, casn1.SEQUENCE) || !body.ReadASN1(&tbs, casn1.SEQUENCE) {
		t.Fatal("signer's certificate")
	}
	if !tbs.PeekASN1Tag(tagExplicit0) {
		o.CertificateVersion = 1
	}
	envelope, err := ParseEnvelopedData(sd.Content)
	if err != nil {
		return opened{}, err
	}
	o.Cipher = envelope.ContentCipher
	content, err := envelope.Decrypt(ra, key, p)
	if err != nil {
		return opened{}, err
	}
	if o.MessageType == "20" { // IssuerAndSubject: RFC 8894 §3.3.3
		in := cryptobyte.String(content)
		var names, issuer, subject cryptobyte.String
		if !in.ReadASN1(&names, casn1.SEQUENCE) || !in.Empty() || !names.ReadASN1Element(&issuer, casn1.SEQUENCE) ||
			!names.ReadASN1Element(&subject, casn1.SEQUENCE) || !names.Empty() || !bytes.Equal(issuer, ra.RawSubject) { // strongSwan names the RA
			t.Fatalf("content: %x", content)
		}
		o.Subject = commonName(t, subject)
		return o, nil
	}
	csr, err := x509.ParseCertificateRequest(content)
	if err != nil {
		t.Fatalf("content: %v", err)
	}
	if err := csr.CheckSignature(); err != nil {
		t.Fatalf("content: %v", err)
	}
	o.Subject = csr.Subject.CommonName
	return o, nil
}

func commonName(t *testing.T, name []byte) string {
	t.Helper()
	i := bytes.LastIndex(name, encodeOID(asn1.ObjectIdentifier{2, 5, 4, 3}))
	if i < 0 {
		t.Fatalf("no common name in %x", name)
	}
	return string(rawValue(name[i+5:]).Bytes)
}

func TestRecordedRequests(t *testing.T) {
	want := map[string]opened{
		"certmonger-0.79.17.der":           {"19", "x", "x", SHA256, AES256CBC, 1, 32},
		"scepclient-2.1.0.der":             {"19", "SCEP SIGNER", "dev.example.com", SHA1, DESCBC, 3, 16},
		"strongswan-5.9.8.der":             {"19", "dev.example.com", "dev.example.com", SHA256, AES128CBC, 3, 20},
		"strongswan-5.9.8-get.der":         {"19", "dev.example.com", "dev.example.com", SHA256, AES128CBC, 3, 20},
		"strongswan-5.9.8-des3-sha512.der": {"19", "dev.example.com", "dev.example.com", SHA512, DES3CBC, 3, 20},
		"strongswan-5.9.8-poll.der":        {"20", "dev.approve.test", "dev.approve.test", SHA256, AES128CBC, 3, 20},
		"strongswan-5.9.8-renewal.der":     {"17", "dev.example.com", "dev.example.com", SHA256, AES128CBC, 1, 1},
	}
	for name, request := range recorded(t) {
		t.Run(name, func(t *testing.T) {
			got, err := open(t, request, everything)
			if err != nil {
				t.Fatal(err)
			}
			w := want[name]
			if strings.HasPrefix(name, "strongswan") && w.SerialOctets == 20 {
				got.SerialOctets = 20 // derived from the key: any length up to 20
			}
			if diff := cmp.Diff(w, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			// The same message as a client that writes BER would send it: the envelope was signed as it is, the rest is free.
			sd, _ := ParseSignedData(request)
			for _, piece := range []int{1, 1000} {
				ber := rewriteBER(request, piece, func(e []byte) bool { return bytes.Equal(e, sd.Signers[0].signedAttributes) })
				if again, err := open(t, ber, everything); err != nil || again.Subject != got.Subject {
					t.Errorf("as BER in pieces of %d: %+v, %v", piece, again, err)
				}
			}
		})
	}
	if len(want) != len(recorded(t)) {
		t.Errorf("%d recorded requests, expectations for %d", len(recorded(t)), len(want))
	}
}

// Old algorithms in real requests are refused by name unless a policy has them, and before the private key is used.
func TestRecordedRequestsAgainstPolicy(t *testing.T) {
	all := recorded(t)
	with := func(d []Digest, c []Cipher) Policy {
		p := DefaultPolicy()
		return Policy{append(p.Digests, d...), append(p.Ciphers, c...)}
	}
	for _, c := range []struct {
		name   string
		policy Policy
		says   string // empty: accepted
	}{
		{"scepclient-2.1.0.der", DefaultPolicy(), "digest SHA-1"},
		{"scepclient-2.1.0.der", with([]Digest{SHA1}, nil), "cipher DES-CBC"},
		{"scepclient-2.1.0.der", with(nil, []Cipher{DESCBC}), "digest SHA-1"},
		{"scepclient-2.1.0.der", with([]Digest{SHA1}, []Cipher{DES3CBC}), "cipher DES-CBC"},
		{"scepclient-2.1.0.der", with([]Digest{SHA1}, []Cipher{DESCBC}), ""},
		{"strongswan-5.9.8-des3-sha512.der", DefaultPolicy(), "cipher 3DES-CBC"},
		{"strongswan-5.9.8-des3-sha512.der", with(nil, []Cipher{DES3CBC}), ""},
		{"strongswan-5.9.8.der", DefaultPolicy(), ""},
		{"strongswan-5.9.8.der", Policy{}, "digest SHA-256"},
		{"certmonger-0.79.17.der", DefaultPolicy(), ""},
	} {
		_, err := open(t, all[c.name], c.policy)
		switch {
		case c.says == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.says != "" && (!errors.Is(err, ErrAlgorithm) || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%s: %v, want ErrAlgorithm saying %q", c.name, err, c.says)
		}
	}
}

// No byte of a request can be changed so that a server sees something else than what was signed: the change is refused, or
// it was in a part that nothing is taken from.
func TestFlippedBytes(t *testing.T) {
	for name, request := range recorded(t) {
		if name != "strongswan-5.9.8.der" && name != "certmonger-0.79.17.der" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			sd, err := ParseSignedData(request)
			if err != nil {
				t.Fatal(err)
			}
			signer, err := sd.Verify(everything)
			if err != nil {
				t.Fatal(err)
			}
			serial := rawSerial(t, signer.Certificate.Raw)
			mustFail := map[string][]byte{
				"content":            sd.Content,
				"signed attributes":  signer.signedAttributes,
				"signature":          signer.signature,
				"signer's key":       keyBits(t, signer.Certificate.RawSPKI),
				"certificate issuer": signer.Certificate.RawIssuer,
				"certificate serial": serial,
			}
			refused := make([]bool, len(request))
			for i := range request {
				refused[i] = true
				for _, mask := range []byte{0x01, 0x20, 0x80, 0xff} {
					changed := bytes.Clone(request)
					changed[i] ^= mask
					if accepted := sameIfAccepted(t, changed, sd, signer); accepted {
						refused[i] = false
					}
				}
			}
			for region, b := range mustFail {
				// The slices are parts of request: their place is known by capacity.
				from := cap(request) - cap(b)
				if len(b) == 0 || !bytes.Equal(request[from:from+len(b)], b) {
					t.Fatalf("%s not found in the message", region)
				}
				for i := from; i < from+len(b); i++ {
					if !refused[i] {
						t.Errorf("byte %d of %s can be changed", i-from, region)
					}
				}
			}
		})
	}
}

// sameIfAccepted reports whether changed verifies, and fails the test if it then says something else than the original.
func sameIfAccepted(t *testing.T, changed []byte, sd *SignedData, signer *SignerInfo) bool {
	t.Helper()
	got, err := ParseSignedData(changed)
	if err != nil {
		if !errors.Is(err, ErrMalformed) {
			t.Errorf("parse error %v", err)
		}
		return false
	}
	s, err := got.Verify(everything)
	if err != nil {
		return false
	}
	if !bytes.Equal(got.Content, sd.Content) || !got.ContentType.Equal(sd.ContentType) || s.Digest != signer.Digest ||
		!bytes.Equal(s.signedAttributes, signer.signedAttributes) ||
		!bytes.Equal(keyBits(t, s.Certificate.RawSPKI), keyBits(t, signer.Certificate.RawSPKI)) {
		t.Errorf("a changed message is accepted and says something else")
	}
	return true
}

// keyBits returns the content of the RSAPublicKey in a SubjectPublicKeyInfo.
func keyBits(t *testing.T, spki cryptobyte.String) []byte {
	t.Helper()
	var body, bits, key cryptobyte.String
	if !spki.ReadASN1(&body, casn1.SEQUENCE) || !body.SkipASN1(casn1.SEQUENCE) || !body.ReadASN1(&bits, casn1.BIT_STRING) ||
		!bits.Skip(1) || !bits.ReadASN1(&key, casn1.SEQUENCE) {
		t.Fatal("public key")
	}
	return key
}

func rawSerial(t *testing.T, certificate cryptobyte.String) []byte {
	t.Helper()
	var body, tbs, serial cryptobyte.String
	if !certificate.ReadASN1(&body, casn1.SEQUENCE) || !body.ReadASN1(&tbs, casn1.SEQUENCE) || !tbs.SkipOptionalASN1(tagExplicit0) ||
		!tbs.ReadASN1(&serial, casn1.INTEGER) {
		t.Fatal("serial")
	}
	return serial
}
