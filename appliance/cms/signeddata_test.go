package cms

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// parts is a SignedData to be put together in any way, also wrong ones. The zero value of a field means the usual.
type parts struct {
	content            []byte
	noContent          bool
	besideContent      []byte // in eContent, behind its OCTET STRING
	version            []byte // INTEGER
	contentType        asn1.ObjectIdentifier
	signerID           []byte
	digest             Digest
	digestAlgorithm    []byte
	signatureAlgorithm []byte
	attributes         [][]byte // in the order sent
	signOver           [][]byte // in the order signed, if it is another
	noAttributes       bool
	certificates       [][]byte
	signers            int // -1: none
	afterSignature     []byte
}

func infoOf(d Digest) digestInfo {
	i, _ := d.info()
	return i
}

func encodeAttribute(oid asn1.ObjectIdentifier, values ...[]byte) []byte {
	return element(byte(casn1.SEQUENCE), encodeOID(oid), element(byte(casn1.SET), values...))
}

func contentTypeAttribute(oid asn1.ObjectIdentifier) []byte {
	return encodeAttribute(oidContentType, encodeOID(oid))
}

func digestAttribute(sum []byte) []byte {
	return encodeAttribute(oidMessageDigest, element(tagOctetString, sum))
}

func issuerAndSerial(i identity) []byte {
	return element(byte(casn1.SEQUENCE), i.certificate.RawIssuer, element(byte(casn1.INTEGER), i.certificate.SerialNumber.Bytes()))
}

// usual fills what p leaves open for signing by i.
func (p parts) usual(i identity) parts {
	if p.content == nil {
		p.content = []byte("the content")
	}
	if p.version == nil {
		p.version = []byte{2, 1, 1}
	}
	if p.contentType == nil {
		p.contentType = OIDData
	}
	if p.digest == 0 {
		p.digest = SHA256
	}
	info, _ := p.digest.info()
	if p.digestAlgorithm == nil {
		p.digestAlgorithm = encodeAlgorithm(info.oid)
	}
	if p.signatureAlgorithm == nil {
		p.signatureAlgorithm = encodeAlgorithm(oidRSAEncryption, []byte{5, 0})
	}
	if p.signerID == nil {
		p.signerID = issuerAndSerial(i)
	}
	if p.attributes == nil {
		p.attributes = [][]byte{contentTypeAttribute(OIDData), digestAttribute(p.digest.sum(p.content))}
	}
	if p.signOver == nil {
		p.signOver = p.attributes
	}
	if p.certificates == nil {
		p.certificates = [][]byte{i.certificate.Raw}
	}
	if p.signers == 0 {
		p.signers = 1
	}
	return p
}

func (p parts) build(t *testing.T, i identity) []byte {
	t.Helper()
	p = p.usual(i)
	info, _ := p.digest.info()
	toSign := element(byte(casn1.SET), p.signOver...)
	attributes := element(byte(tagExplicit0), p.attributes...)
	if p.noAttributes {
		toSign, attributes = p.content, nil
	}
	signature, err := i.signer.Sign(rand.Reader, p.digest.sum(toSign), info.hash)
	if err != nil {
		t.Fatal(err)
	}
	signer := element(byte(casn1.SEQUENCE), []byte{2, 1, 1}, p.signerID, p.digestAlgorithm, attributes, p.signatureAlgorithm,
		element(tagOctetString, signature), p.afterSignature)
	encap := element(byte(casn1.SEQUENCE), encodeOID(p.contentType), element(byte(tagExplicit0), element(tagOctetString, p.content), p.besideContent))
	if p.noContent {
		encap = element(byte(casn1.SEQUENCE), encodeOID(p.contentType))
	}
	return element(byte(casn1.SEQUENCE), encodeOID(OIDSignedData), element(byte(tagExplicit0), element(byte(casn1.SEQUENCE),
		p.version,
		element(byte(casn1.SET), p.digestAlgorithm),
		encap,
		element(byte(tagExplicit0), p.certificates...),
		element(byte(casn1.SET), bytes.Repeat(signer, max(0, p.signers))),
	)))
}

func verify(b []byte, p Policy) (*SignedData, *SignerInfo, error) {
	sd, err := ParseSignedData(b)
	if err != nil {
		return nil, nil, err
	}
	s, err := sd.Verify(p)
	return sd, s, err
}

func TestVerifyAccepts(t *testing.T) {
	signer := rsaIdentity(t)
	content := []byte("the content")
	sum := SHA256.sum(content)
	transaction := encodeAttribute(oidTransactionID, element(byte(casn1.PrintableString), []byte("0")))
	sorted := [][]byte{contentTypeAttribute(OIDData), digestAttribute(sum), transaction}
	slices.SortFunc(sorted, bytes.Compare)
	unsorted := slices.Clone(sorted)
	slices.Reverse(unsorted)
	sha256RSA := encodeAlgorithm(infoOf(SHA256).rsa)
	protection := func(digest, signature []byte) []byte {
		return encodeAttribute(oidAlgorithmProtection, element(byte(casn1.SEQUENCE), digest, element(byte(tagConstructed1), signature[2:])))
	}
	for name, p := range map[string]parts{
		"plain":     {},
		"version 3": {version: []byte{2, 1, 3}},
		"signed and sent in the same other order":   {attributes: unsorted},
		"sent unsorted, signed sorted":              {attributes: unsorted, signOver: sorted},
		"signature algorithm with digest":           {signatureAlgorithm: sha256RSA},
		"signature algorithm with digest and NULL":  {signatureAlgorithm: encodeAlgorithm(infoOf(SHA256).rsa, []byte{5, 0})},
		"digest algorithm with NULL":                {digestAlgorithm: encodeAlgorithm(infoOf(SHA256).oid, []byte{5, 0})},
		"subject key id":                            {signerID: element(byte(tagImplicit0), signer.certificate.SubjectKeyId)},
		"subject key id, explicit":                  {signerID: element(byte(tagExplicit0), element(tagOctetString, signer.certificate.SubjectKeyId))},
		"serial with a zero in front":               {signerID: element(byte(casn1.SEQUENCE), signer.certificate.RawIssuer, element(2, []byte{0}, signer.certificate.SerialNumber.Bytes()))},
		"the same certificate twice":                {certificates: [][]byte{signer.certificate.Raw, signer.certificate.Raw}},
		"foreign certificate kinds":                 {certificates: [][]byte{element(byte(tagConstructed1), []byte{5, 0}), signer.certificate.Raw}},
		"unsigned attributes":                       {afterSignature: element(byte(tagConstructed1), encodeAttribute(oidSenderNonce, []byte{4, 0}))},
		"algorithm protection":                      {attributes: [][]byte{sorted[0], sorted[1], sorted[2], protection(encodeAlgorithm(infoOf(SHA256).oid), encodeAlgorithm(oidRSAEncryption, []byte{5, 0}))}},
		"algorithm protection, other absent params": {attributes: [][]byte{sorted[0], sorted[1], sorted[2], protection(encodeAlgorithm(infoOf(SHA256).oid, []byte{5, 0}), encodeAlgorithm(oidRSAEncryption))}},
		"empty content":                             {content: []byte{}},
		"absent content":                            {content: []byte{}, noContent: true},
		"SHA-512":                                   {digest: SHA512},
	} {
		t.Run(name, func(t *testing.T) {
			sd, s, err := verify(p.build(t, signer), DefaultPolicy())
			if err != nil {
				t.Fatal(err)
			}
			want := p.usual(signer)
			if !bytes.Equal(sd.Content, want.content) || (sd.Content == nil) != p.noContent {
				t.Errorf("content %q", sd.Content)
			}
			if s.Digest != want.digest || !bytes.Equal(s.Certificate.Raw, signer.certificate.Raw) {
				t.Errorf("digest %v, certificate %x", s.Digest, s.Certificate.Raw)
			}
		})
	}
}

func TestVerifyRefuses(t *testing.T) {
	signer, stranger, ec := rsaIdentity(t), ecIdentity(t, elliptic.P256()), ecIdentity(t, elliptic.P256())
	content := []byte("the content")
	sum := SHA256.sum(content)
	usual := [][]byte{contentTypeAttribute(OIDData), digestAttribute(sum)}
	with := func(more ...[]byte) [][]byte { return append(slices.Clone(usual), more...) }
	nonce := encodeAttribute(oidSenderNonce, []byte{4, 1, 9})
	protection := func(body ...[]byte) [][]byte {
		return with(encodeAttribute(oidAlgorithmProtection, element(byte(casn1.SEQUENCE), body...)))
	}
	sha256ID, sha1ID := encodeAlgorithm(infoOf(SHA256).oid), encodeAlgorithm(infoOf(SHA1).oid)
	rsaID := element(byte(tagConstructed1), encodeOID(oidRSAEncryption))
	var many [][]byte
	for i := range maxAttributes {
		many = append(many, encodeAttribute(asn1.ObjectIdentifier{1, 2, 3, i}, []byte{5, 0}))
	}
	twin := twinOf(t, signer, stranger)
	ecdsa384 := encodeAlgorithm(infoOf(SHA384).ecdsa)

	for _, c := range []struct {
		name   string
		parts  parts
		signer identity
		want   error
	}{
		{"no contentType", parts{attributes: usual[1:]}, signer, ErrSignature},
		{"no messageDigest", parts{attributes: usual[:1]}, signer, ErrSignature},
		{"no signed attributes", parts{noAttributes: true}, signer, ErrSignature},
		{"other contentType", parts{attributes: [][]byte{contentTypeAttribute(OIDSignedData), usual[1]}}, signer, ErrSignature},
		{"contentType of another type", parts{contentType: OIDEnvelopedData}, signer, ErrSignature},
		{"digest of other content", parts{attributes: [][]byte{usual[0], digestAttribute(SHA256.sum(nil))}}, signer, ErrSignature},
		{"shortened digest", parts{attributes: [][]byte{usual[0], digestAttribute(sum[:8])}}, signer, ErrSignature},
		{"digest of another type", parts{attributes: [][]byte{usual[0], encodeAttribute(oidMessageDigest, element(12, sum))}}, signer, ErrSignature},
		{"content taken out", parts{noContent: true}, signer, ErrSignature},
		{"attributes other than signed", parts{attributes: with(nonce), signOver: usual}, signer, ErrSignature},
		{"two contentTypes", parts{attributes: with(usual[0])}, signer, ErrMalformed},
		{"two messageDigests", parts{attributes: with(digestAttribute(SHA256.sum(nil)))}, signer, ErrMalformed},
		{"two nonces", parts{attributes: with(nonce, nonce)}, signer, ErrMalformed},
		{"two values", parts{attributes: with(encodeAttribute(oidSenderNonce, []byte{4, 0}, []byte{4, 1, 9}))}, signer, ErrMalformed},
		{"no value", parts{attributes: with(encodeAttribute(oidSenderNonce))}, signer, ErrMalformed},
		{"too many attributes", parts{attributes: with(many...)}, signer, ErrMalformed},
		{"more than type and values", parts{attributes: with(element(byte(casn1.SEQUENCE), encodeOID(oidSenderNonce), element(byte(casn1.SET), []byte{4, 1, 9}), []byte{5, 0}))}, signer, ErrMalformed},
		{"more than content", parts{besideContent: []byte{4, 1, 9}}, signer, ErrMalformed},
		{"no signer", parts{signers: -1}, signer, ErrSigner},
		{"two signers", parts{signers: 2}, signer, ErrSigner},
		{"too many signers", parts{signers: maxSigners + 1}, signer, ErrMalformed},
		{"version 2", parts{version: []byte{2, 1, 2}}, signer, ErrMalformed},
		{"certificate missing", parts{certificates: [][]byte{ec.certificate.Raw}}, signer, ErrSigner},
		{"too many certificates", parts{certificates: slices.Repeat([][]byte{signer.certificate.Raw}, maxCertificates+1)}, signer, ErrMalformed},
		{"two certificates under one name", parts{certificates: [][]byte{signer.certificate.Raw, twin}}, signer, ErrSigner},
		{"another key's certificate under the name", parts{certificates: [][]byte{twin}, signatureAlgorithm: encodeAlgorithm(infoOf(SHA256).ecdsa)}, signer, ErrSignature},
		{"unknown subject key id", parts{signerID: element(byte(tagImplicit0), []byte("somebody else's"))}, signer, ErrSigner},
		{"another issuer", parts{signerID: element(byte(casn1.SEQUENCE), element(byte(casn1.SEQUENCE)), element(byte(casn1.INTEGER), signer.certificate.SerialNumber.Bytes()))}, signer, ErrSigner},
		{"another serial", parts{signerID: element(byte(casn1.SEQUENCE), signer.certificate.RawIssuer, []byte{2, 1, 9})}, signer, ErrSigner},
		{"empty subject key id, explicit", parts{signerID: element(byte(tagExplicit0), []byte{4, 0})}, signer, ErrMalformed},
		{"empty subject key id", parts{signerID: element(byte(tagImplicit0))}, signer, ErrMalformed},
		{"digest not allowed", parts{digest: SHA1}, signer, ErrAlgorithm},
		{"unknown digest", parts{digestAlgorithm: encodeAlgorithm(asn1.ObjectIdentifier{1, 2, 3})}, signer, ErrAlgorithm},
		{"digest with parameters", parts{digestAlgorithm: encodeAlgorithm(infoOf(SHA256).oid, []byte{2, 1, 1})}, signer, ErrAlgorithm},
		{"signature with another digest", parts{signatureAlgorithm: encodeAlgorithm(infoOf(SHA512).rsa)}, signer, ErrAlgorithm},
		{"signature with weaker digest", parts{signatureAlgorithm: encodeAlgorithm(infoOf(SHA1).rsa)}, signer, ErrAlgorithm},
		{"PSS with an elliptic curve key", parts{signatureAlgorithm: encodePSS(sha256ID, sha256ID, 32, 1)}, ec, ErrAlgorithm},
		{"ECDSA with another digest", parts{signatureAlgorithm: ecdsa384}, ec, ErrAlgorithm},
		{"ECDSA named as RSA", parts{}, ec, ErrAlgorithm},
		{"RSA named as ECDSA", parts{signatureAlgorithm: encodeAlgorithm(infoOf(SHA256).ecdsa)}, signer, ErrAlgorithm},
		{"protected another digest", parts{attributes: protection(sha1ID, rsaID)}, signer, ErrSignature},
		{"protected another signature", parts{attributes: protection(sha256ID, element(byte(tagConstructed1), encodeOID(infoOf(SHA256).rsa)))}, signer, ErrSignature},
		{"protected a MAC", parts{attributes: protection(sha256ID, element(byte(tagExplicit0)|2, encodeOID(oidRSAEncryption)))}, signer, ErrMalformed},
		{"protected too much", parts{attributes: protection(sha256ID, rsaID, []byte{5, 0})}, signer, ErrMalformed},
		{"bytes after the signature", parts{afterSignature: []byte{5, 0}}, signer, ErrMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, s, err := verify(c.parts.build(t, c.signer), DefaultPolicy())
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if s != nil {
				t.Error("a signer came with the error")
			}
			for _, other := range []error{ErrMalformed, ErrAlgorithm, ErrSigner, ErrSignature} {
				if other != c.want && errors.Is(err, other) {
					t.Errorf("%v is also %v", err, other)
				}
			}
		})
	}
}

func encodePSS(hash, mask []byte, salt, trailer byte) []byte {
	return encodeAlgorithm(oidRSASSAPSS, element(byte(casn1.SEQUENCE),
		element(byte(tagExplicit0), hash),
		element(byte(tagConstructed1), encodeAlgorithm(oidMGF1, mask)),
		element(byte(tagExplicit0)|2, []byte{2, 1, salt}),
		element(byte(tagExplicit0)|3, []byte{2, 1, trailer})))
}

// pssSigner signs with PSS, whatever it is asked for.
type pssSigner struct {
	crypto.Signer
	salt int
}

func (p pssSigner) Sign(random io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	return p.Signer.Sign(random, digest, &rsa.PSSOptions{SaltLength: p.salt, Hash: o.HashFunc()})
}

func TestVerifyPSS(t *testing.T) {
	id := func(d Digest) []byte { return encodeAlgorithm(infoOf(d).oid) }
	signer := rsaIdentity(t)
	for _, c := range []struct {
		name      string
		digest    Digest
		algorithm []byte
		salt      int // of the signature
		want      error
	}{
		{"SHA-256", SHA256, encodePSS(id(SHA256), id(SHA256), 32, 1), 32, nil},
		{"SHA-512", SHA512, encodePSS(id(SHA512), id(SHA512), 64, 1), 64, nil},
		{"longer salt", SHA256, encodePSS(id(SHA256), id(SHA256), 64, 1), 64, nil},
		{"no trailer", SHA256, encodeAlgorithm(oidRSASSAPSS, element(0x30, element(0xa0, id(SHA256)), element(0xa1, encodeAlgorithm(oidMGF1, id(SHA256))), element(0xa2, []byte{2, 1, 32}))), 32, nil},
		{"another salt than it says", SHA256, encodePSS(id(SHA256), id(SHA256), 33, 1), 32, ErrSignature},
		{"another hash", SHA256, encodePSS(id(SHA512), id(SHA256), 32, 1), 32, ErrAlgorithm},
		{"another mask", SHA256, encodePSS(id(SHA256), id(SHA512), 32, 1), 32, ErrAlgorithm},
		{"another digest", SHA512, encodePSS(id(SHA256), id(SHA256), 64, 1), 64, ErrAlgorithm},
		{"SHA-1", SHA1, encodePSS(id(SHA1), id(SHA1), 20, 1), 20, ErrAlgorithm},
		{"SHA-1 by default", SHA1, encodeAlgorithm(oidRSASSAPSS, element(0x30)), 20, ErrAlgorithm},
		{"MD5", MD5, encodePSS(id(MD5), id(MD5), 32, 1), 32, ErrAlgorithm},
		{"short salt", SHA256, encodePSS(id(SHA256), id(SHA256), 31, 1), 31, ErrAlgorithm},
		{"no salt", SHA256, encodePSS(id(SHA256), id(SHA256), 0, 1), 32, ErrAlgorithm},
		{"negative salt", SHA256, encodePSS(id(SHA256), id(SHA256), 0xff, 1), 32, ErrAlgorithm},
		{"huge salt", SHA256, encodeAlgorithm(oidRSASSAPSS, element(0x30, element(0xa0, id(SHA256)), element(0xa1, encodeAlgorithm(oidMGF1, id(SHA256))), element(0xa2, []byte{2, 8, 0x7f, 255, 255, 255, 255, 255, 255, 255}))), 32, ErrAlgorithm},
		{"another trailer", SHA256, encodePSS(id(SHA256), id(SHA256), 32, 2), 32, ErrAlgorithm},
		{"no parameters", SHA256, encodeAlgorithm(oidRSASSAPSS), 32, ErrAlgorithm},
		{"PKCS #1 v1.5 by its name", SHA256, encodeAlgorithm(infoOf(SHA256).rsa), 32, ErrSignature},
	} {
		t.Run(c.name, func(t *testing.T) {
			by := identity{signer.certificate, signer.parsed, pssSigner{signer.signer, c.salt}}
			_, _, err := verify(parts{digest: c.digest, signatureAlgorithm: c.algorithm}.build(t, by), everything)
			if !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
	p := parts{signatureAlgorithm: encodePSS(id(SHA256), id(SHA256), 32, 1)}
	if _, _, err := verify(p.build(t, signer), everything); !errors.Is(err, ErrSignature) {
		t.Errorf("PKCS #1 v1.5 named as PSS: %v", err)
	}
}

// twinOf makes a certificate with the name and serial of one identity and the key of another.
func twinOf(t *testing.T, named, keyed identity) []byte {
	t.Helper()
	c := element(byte(casn1.SEQUENCE), element(byte(casn1.SEQUENCE),
		element(byte(casn1.INTEGER), named.certificate.SerialNumber.Bytes()),
		encodeAlgorithm(infoOf(SHA256).ecdsa),
		named.certificate.RawIssuer,
		element(byte(casn1.SEQUENCE)),
		named.certificate.RawSubject,
		keyed.certificate.RawSubjectPublicKeyInfo,
	), encodeAlgorithm(infoOf(SHA256).ecdsa), []byte{3, 1, 0})
	if _, err := ParseCertificate(c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestVerifyECDSA(t *testing.T) {
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		signer := ecIdentity(t, curve)
		for _, d := range []Digest{SHA1, SHA256, SHA384, SHA512} {
			info, _ := d.info()
			p := parts{digest: d, signatureAlgorithm: encodeAlgorithm(info.ecdsa)}
			if _, _, err := verify(p.build(t, signer), everything); err != nil {
				t.Errorf("%s with %v: %v", curve.Params().Name, d, err)
			}
			p.signatureAlgorithm = encodeAlgorithm(oidECPublicKey)
			if _, _, err := verify(p.build(t, signer), everything); err != nil {
				t.Errorf("%s with %v, named by its key: %v", curve.Params().Name, d, err)
			}
		}
	}
	small := ecIdentity(t, elliptic.P224())
	p := parts{signatureAlgorithm: encodeAlgorithm(infoOf(SHA256).ecdsa)}
	if _, _, err := verify(p.build(t, small), everything); !errors.Is(err, ErrAlgorithm) {
		t.Errorf("P-224: %v, want ErrAlgorithm", err)
	}
}

func TestParseSignedDataRefusesOtherContent(t *testing.T) {
	for name, b := range map[string][]byte{
		"enveloped data": element(0x30, encodeOID(OIDEnvelopedData), element(0xa0, element(0x30))),
		"no content":     element(0x30, encodeOID(OIDSignedData)),
		"not a sequence": {4, 2, 1, 2},
		"text":           []byte("<html>not here</html>"),
		"zeros":          make([]byte, 100),
	} {
		if _, err := ParseSignedData(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, want ErrMalformed", name, err)
		}
	}
}

func TestErrorsSayWhat(t *testing.T) {
	signer := rsaIdentity(t)
	_, _, err := verify(parts{digest: SHA1}.build(t, signer), DefaultPolicy())
	if err == nil || !strings.Contains(err.Error(), "SHA-1") {
		t.Errorf("%v does not name the digest", err)
	}
	if crypto.SHA1 != SHA1.Hash() || Digest(0).Hash() != 0 || Cipher(99).String() == "" {
		t.Error("names of digests and ciphers")
	}
}
