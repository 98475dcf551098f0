package est

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"strings"
	"testing"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"

	"signet.internal/appliance/pki"
)

// csrWith makes a request with further attributes, which crypto/x509 does not write.
func csrWith(t testing.TB, template *x509.CertificateRequest, key crypto.Signer, attributes ...[]byte) []byte {
	t.Helper()
	raw := must(x509.CreateCertificateRequest(rand.Reader, template, key))
	var body, info, version, subject, spki, own cryptobyte.String
	in := cryptobyte.String(raw)
	if !in.ReadASN1(&body, casn1.SEQUENCE) || !body.ReadASN1(&info, casn1.SEQUENCE) ||
		!info.ReadASN1Element(&version, casn1.INTEGER) || !info.ReadASN1Element(&subject, casn1.SEQUENCE) ||
		!info.ReadASN1Element(&spki, casn1.SEQUENCE) || !info.ReadASN1(&own, explicit0) {
		t.Fatal("crypto/x509 wrote another request")
	}
	var b cryptobyte.Builder
	sequence(&b, func(b *cryptobyte.Builder) {
		b.AddBytes(version)
		b.AddBytes(subject)
		b.AddBytes(spki)
		b.AddASN1(explicit0, func(b *cryptobyte.Builder) {
			b.AddBytes(own)
			for _, a := range attributes {
				b.AddBytes(a)
			}
		})
	})
	tbs := must(b.Bytes())
	sum := sha256.Sum256(tbs)
	algorithm := asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}
	if _, ok := key.(*ecdsa.PrivateKey); ok {
		algorithm = oidECDSAWithSHA256
	}
	signature := must(key.Sign(rand.Reader, sum[:], crypto.SHA256))
	return must(encode(func(b *cryptobyte.Builder) {
		b.AddBytes(tbs)
		addAlgorithm(b, algorithm, nil)
		b.AddASN1BitString(signature)
	}))
}

// attribute is an attribute with one value, given as a DER element.
func attribute(oid asn1.ObjectIdentifier, value []byte) []byte {
	return must(encode(func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		set(b, func(b *cryptobyte.Builder) { b.AddBytes(value) })
	}))
}

func octets(b string) []byte { return must(asn1.Marshal([]byte(b))) }

func capabilities(oids ...asn1.ObjectIdentifier) []byte {
	return attribute(oidSMIMECapabilities, must(encode(func(b *cryptobyte.Builder) {
		for _, oid := range oids {
			addAlgorithm(b, oid, nil)
		}
	})))
}

// What a device asks for, and whether its certificate and the box can do that. No wish that cannot be met may end as none.
func TestWish(t *testing.T) {
	ca := newAuthority(t, "CN=Test")
	ec := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	certificate := func(key crypto.Signer, usage x509.KeyUsage) []*x509.Certificate {
		return []*x509.Certificate{parse(t, ca.device(t, "dev", key, usage).Certificate[0])}
	}
	withRSA, withEC := certificate(rsaKeys()[3], x509.KeyUsageKeyEncipherment), certificate(ec, x509.KeyUsageKeyAgreement)
	aes128, aes256 := contentCiphers[2].oid, contentCiphers[0].oid
	id := attribute(oidAsymmDecryptKeyID, octets("key of dev"))
	for name, c := range map[string]struct {
		attributes [][]byte
		peer       []*x509.Certificate
		refused    string
		cipher     asn1.ObjectIdentifier // nil: unencrypted
		wrap       asn1.ObjectIdentifier
	}{
		"nothing":                {},
		"only capabilities":      {attributes: [][]byte{capabilities(aes128)}, peer: withRSA},
		"RSA":                    {attributes: [][]byte{id, capabilities(aes128)}, peer: withRSA, cipher: aes128},
		"RSA, the best":          {attributes: [][]byte{capabilities(aes128, aes256, oidRSAEncryption), id}, peer: withRSA, cipher: aes256},
		"RSA, not said":          {attributes: [][]byte{id}, peer: withRSA, cipher: aes256},
		"EC":                     {attributes: [][]byte{id, capabilities(aes128, keyWraps[2].oid)}, peer: withEC, cipher: aes128, wrap: keyWraps[2].oid},
		"EC, no wrap said":       {attributes: [][]byte{id, capabilities(aes128)}, peer: withEC, cipher: aes128, wrap: keyWraps[0].oid},
		"unrestricted key":       {attributes: [][]byte{id}, peer: certificate(rsaKeys()[3], 0), cipher: aes256},
		"secret key":             {attributes: [][]byte{attribute(oidDecryptKeyID, octets("secret"))}, peer: withRSA, refused: "shares no secret keys"},
		"secret key besides":     {attributes: [][]byte{id, attribute(oidDecryptKeyID, octets("secret"))}, peer: withRSA, refused: "shares no secret keys"},
		"no certificate":         {attributes: [][]byte{id}, refused: "no key of this identifier"},
		"another key":            {attributes: [][]byte{attribute(oidAsymmDecryptKeyID, octets("key of other"))}, peer: withRSA, refused: "no key of this identifier"},
		"P-224":                  {attributes: [][]byte{id}, peer: certificate(must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader)), 0), refused: "P-256 or P-384"},
		"for signatures":         {attributes: [][]byte{id}, peer: certificate(rsaKeys()[3], x509.KeyUsageDigitalSignature), refused: "not for encryption"},
		"EC for key transport":   {attributes: [][]byte{id}, peer: certificate(ec, x509.KeyUsageKeyEncipherment), refused: "not for encryption"},
		"only 3DES":              {attributes: [][]byte{id, capabilities(asn1.ObjectIdentifier{1, 2, 840, 113549, 3, 7})}, peer: withRSA, refused: "no algorithm of SMIMECapabilities"},
		"only OAEP":              {attributes: [][]byte{id, capabilities(aes128, oidRSAESOAEP)}, peer: withRSA, refused: "no algorithm of SMIMECapabilities"},
		"no capability":          {attributes: [][]byte{id, capabilities()}, peer: withRSA, refused: "no algorithm of SMIMECapabilities"},
		"empty identifier":       {attributes: [][]byte{attribute(oidAsymmDecryptKeyID, octets(""))}, peer: withRSA, refused: "cannot be read"},
		"identifier of a type":   {attributes: [][]byte{attribute(oidAsymmDecryptKeyID, must(asn1.Marshal(7)))}, peer: withRSA, refused: "cannot be read"},
		"identifiers":            {attributes: [][]byte{attribute(oidAsymmDecryptKeyID, append(octets("a"), octets("b")...))}, peer: withRSA, refused: "cannot be read"},
		"capabilities of a type": {attributes: [][]byte{id, attribute(oidSMIMECapabilities, octets("x"))}, peer: withRSA, refused: "cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			csr, err := pki.ParseRequest(csrWith(t, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "dev"}}, ec, c.attributes...))
			if err != nil {
				t.Fatal(err)
			}
			w, err := readWish(csr.RawInfo)
			var to *recipient
			if err == nil {
				to, err = w.recipient(c.peer)
			}
			var own *refusal
			switch {
			case c.refused != "":
				if !errors.As(err, &own) || own.status != 400 || !strings.Contains(own.text, c.refused) {
					t.Errorf("%v; want %q", err, c.refused)
				}
			case err != nil:
				t.Error(err)
			case c.cipher == nil:
				if to != nil {
					t.Error("encrypted although nobody asked")
				}
			case to == nil || !to.cipher.oid.Equal(c.cipher):
				t.Errorf("%+v; want cipher %v", to, c.cipher)
			case (to.wrap == nil) != (c.wrap == nil) || to.wrap != nil && !to.wrap.oid.Equal(c.wrap):
				t.Errorf("wrap %+v; want %v", to.wrap, c.wrap)
			}
		})
	}
}

func TestHasKeyID(t *testing.T) {
	c := *newAuthority(t, "CN=Test").cert
	if !hasKeyID(&c, c.SubjectKeyId) || hasKeyID(&c, append([]byte{0}, c.SubjectKeyId...)) {
		t.Error("the subjectKeyIdentifier is not what counts")
	}
	c.SubjectKeyId = nil
	point := must(c.PublicKey.(*ecdsa.PublicKey).Bytes())
	old, recent := sha1.Sum(point), sha256.Sum256(point)
	if !hasKeyID(&c, old[:]) || !hasKeyID(&c, recent[:20]) {
		t.Error("not known by a hash of its key")
	}
	if hasKeyID(&c, recent[:]) || hasKeyID(&c, nil) {
		t.Error("known by anything")
	}
}

// sampleRequests are requests to begin fuzzing with.
func sampleRequests(t testing.TB) [][]byte {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "dev"}, DNSNames: []string{"dev.example.com"}}
	id := attribute(oidAsymmDecryptKeyID, octets("key of dev"))
	return [][]byte{
		csrWith(t, template, key),
		csrWith(t, template, key, id, capabilities(contentCiphers[0].oid, keyWraps[0].oid)),
		csrWith(t, template, key, attribute(oidDecryptKeyID, octets("secret"))),
		csrWith(t, template, key, attribute(oidChallengePassword, must(asn1.Marshal("binding")))),
	}
}
