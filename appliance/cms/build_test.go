package cms

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/smallstep/pkcs7"
)

// A signature changes with every run only by what the signer adds: everything around it is the same bytes.
func TestSignIsDeterministicDER(t *testing.T) {
	signer := rsaIdentity(t)
	o := SignOptions{
		Content: []byte("the content"),
		Attributes: []Attribute{ // neither in DER order nor in the order of their types
			{oidTransactionID, element(19, []byte("a transaction with a long name"))},
			{oidSenderNonce, element(4, []byte("0123456789abcdef"))},
			{oidMessageType, element(19, []byte("3"))},
		},
		SignerCertificate: signer.certificate, Signer: signer.signer,
		Certificates: [][]byte{signer.certificate.Raw}, Digest: SHA256,
	}
	first, err := Sign(o)
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(o.Attributes)
	second, err := Sign(o)
	if err != nil || !bytes.Equal(first, second) {
		t.Errorf("the order of attributes changed the message: %v", err)
	}
	sd, s, err := verify(first, DefaultPolicy())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.IsSortedFunc(s.attributes, func(a, b attribute) int { return bytes.Compare(a.raw, b.raw) }) || len(s.attributes) != 5 {
		t.Error("attributes are not five in DER order")
	}
	if !s.signatureAlgorithm.oid.Equal(oidRSAEncryption) || !sd.ContentType.Equal(OIDData) {
		t.Errorf("signature algorithm %v, content type %v", s.signatureAlgorithm.oid, sd.ContentType)
	}
	if normalised, err := normalise(first); err != nil || &normalised[0] != &first[0] {
		t.Errorf("not DER: %v", err)
	}
}

// A message without content still has an empty OCTET STRING, which certmonger insists on.
func TestSignWithoutContent(t *testing.T) {
	signer := ecIdentity(t, elliptic.P256())
	b, err := Sign(SignOptions{SignerCertificate: signer.certificate, Signer: signer.signer, Digest: SHA384})
	if err != nil {
		t.Fatal(err)
	}
	if sd, err := ParseSignedData(b); err != nil || sd.Content == nil || len(sd.Content) != 0 || len(sd.Certificates) != 0 {
		t.Errorf("content %v, %v", sd.Content, err)
	}
}

type brokenSigner struct{ crypto.Signer }

func (brokenSigner) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, io.ErrUnexpectedEOF
}

func TestSignRefuses(t *testing.T) {
	signer, other := rsaIdentity(t), ecIdentity(t, elliptic.P256())
	good := SignOptions{SignerCertificate: signer.certificate, Signer: signer.signer, Digest: SHA256}
	for name, c := range map[string]struct {
		change func(*SignOptions)
		want   error // nil: any
	}{
		"no digest":           {func(o *SignOptions) { o.Digest = 0 }, ErrAlgorithm},
		"another key":         {func(o *SignOptions) { o.Signer = other.signer }, ErrSigner},
		"ECDSA with MD5":      {func(o *SignOptions) { o.Signer, o.SignerCertificate, o.Digest = other.signer, other.certificate, MD5 }, ErrSigner},
		"broken key":          {func(o *SignOptions) { o.Signer = brokenSigner{signer.signer} }, io.ErrUnexpectedEOF},
		"attribute twice":     {func(o *SignOptions) { o.Attributes = slices.Repeat([]Attribute{{oidSenderNonce, []byte{4, 0}}}, 2) }, nil},
		"own contentType":     {func(o *SignOptions) { o.Attributes = []Attribute{{oidContentType, encodeOID(OIDData)}} }, nil},
		"own messageDigest":   {func(o *SignOptions) { o.Attributes = []Attribute{{oidMessageDigest, []byte{4, 0}}} }, nil},
		"value not DER":       {func(o *SignOptions) { o.Attributes = []Attribute{{oidSenderNonce, []byte("text")}} }, nil},
		"two values":          {func(o *SignOptions) { o.Attributes = []Attribute{{oidSenderNonce, []byte{4, 0, 4, 0}}} }, nil},
		"attribute untyped":   {func(o *SignOptions) { o.Attributes = []Attribute{{nil, []byte{4, 0}}} }, nil},
		"attribute mis-typed": {func(o *SignOptions) { o.Attributes = []Attribute{{asn1.ObjectIdentifier{9, 9}, []byte{4, 0}}} }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			o := good
			c.change(&o)
			b, err := Sign(o)
			if err == nil || b != nil || (c.want != nil && !errors.Is(err, c.want)) {
				t.Errorf("%d bytes, %v; want %v", len(b), err, c.want)
			}
		})
	}
	if _, err := Sign(good); err != nil {
		t.Error(err)
	}
}

func TestEncryptRefuses(t *testing.T) {
	r, ec := rsaIdentity(t), ecIdentity(t, elliptic.P256())
	for name, c := range map[string]struct {
		recipient *Certificate
		cipher    Cipher
		random    io.Reader
		want      error
	}{
		"elliptic curve key": {ec.parsed, AES128CBC, rand.Reader, ErrRecipientKey},
		"unknown key":        {&Certificate{}, AES128CBC, rand.Reader, ErrRecipientKey},
		"DES":                {r.parsed, DESCBC, rand.Reader, ErrAlgorithm},
		"no cipher":          {r.parsed, 0, rand.Reader, ErrAlgorithm},
		"no randomness":      {r.parsed, AES128CBC, bytes.NewReader(nil), io.EOF},
	} {
		if b, err := Encrypt(c.random, []byte("x"), c.recipient, c.cipher); !errors.Is(err, c.want) || b != nil {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestEncryptDoesNotTouchItsInput(t *testing.T) {
	r := rsaIdentity(t)
	content := append(make([]byte, 0, 64), "the content"...)
	for range 2 {
		if _, err := Encrypt(rand.Reader, content, r.parsed, AES128CBC); err != nil || string(content) != "the content" ||
			content[:cap(content)][len(content)] != 0 {
			t.Fatalf("content is now %q, %v", content[:cap(content)], err)
		}
	}
}

func TestCertsOnlyRefusesNone(t *testing.T) {
	if _, err := CertsOnly(nil); err == nil {
		t.Error("an empty message was made")
	}
}

// smallstep/pkcs7 is what micromdm's and step-ca's clients and servers read and write with.
func TestSmallstepReadsOurs(t *testing.T) {
	for name, signer := range map[string]identity{"RSA": rsaIdentity(t), "ECDSA": ecIdentity(t, elliptic.P256())} {
		b, err := Sign(SignOptions{Content: []byte("the content"), SignerCertificate: signer.certificate, Signer: signer.signer,
			Certificates: [][]byte{signer.certificate.Raw}, Digest: SHA256,
			Attributes: []Attribute{{oidTransactionID, element(19, []byte("tx"))}}})
		if err != nil {
			t.Fatal(err)
		}
		p7, err := pkcs7.Parse(b)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var transaction string
		if err := p7.UnmarshalSignedAttribute(oidTransactionID, &transaction); err != nil || transaction != "tx" {
			t.Errorf("%s: transaction %q, %v", name, transaction, err)
		}
		if err := p7.Verify(); err != nil || string(p7.Content) != "the content" {
			t.Errorf("%s: %q, %v", name, p7.Content, err)
		}
	}
	r := rsaIdentity(t)
	for _, c := range []Cipher{DES3CBC, AES128CBC, AES256CBC} {
		b, err := Encrypt(rand.Reader, []byte("the content"), r.parsed, c)
		if err != nil {
			t.Fatal(err)
		}
		p7, err := pkcs7.Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		if content, err := p7.Decrypt(r.certificate, r.signer); err != nil || string(content) != "the content" {
			t.Errorf("%v: %q, %v", c, content, err)
		}
	}
}

func TestWeReadSmallsteps(t *testing.T) {
	signer := rsaIdentity(t)
	signed, err := pkcs7.NewSignedData([]byte("the content"))
	if err != nil {
		t.Fatal(err)
	}
	signed.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
	extra := pkcs7.SignerInfoConfig{ExtraSignedAttributes: []pkcs7.Attribute{{Type: oidMessageType, Value: "19"}}}
	if err := signed.AddSigner(signer.certificate, signer.signer, extra); err != nil {
		t.Fatal(err)
	}
	b, err := signed.Finish()
	if err != nil {
		t.Fatal(err)
	}
	sd, s, err := verify(b, DefaultPolicy())
	if err != nil {
		t.Fatal(err)
	}
	if v, ok := s.Attribute(oidMessageType); !ok || string(v.Bytes) != "19" || string(sd.Content) != "the content" {
		t.Errorf("%q, attribute %+v", sd.Content, v)
	}
	// Its content cipher is a package variable with a default of single DES.
	b, err = pkcs7.Encrypt([]byte("the content"), []*x509.Certificate{signer.certificate})
	if err != nil {
		t.Fatal(err)
	}
	if content, _, err := decrypt(b, signer, everything); err != nil || string(content) != "the content" {
		t.Errorf("%q, %v", content, err)
	}
}
