package scep

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"io"
	"math/big"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"
	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// device is a client made of smallstep/pkcs7, for what the real clients cannot be made to send. It shares no code with the
// service.
type device struct {
	t    *testing.T
	key  crypto.Signer     // of the CSR and of the signer certificate
	cert *x509.Certificate // self-signed, another subject than the CSR's
	csr  []byte
}

// newDevice makes a device whose CSR asks for CN=name with the right challenge.
func newDevice(t *testing.T, key crypto.Signer, name string) *device {
	t.Helper()
	return &device{t: t, key: key, cert: selfSigned(t, key), csr: makeCSR(t, key, name, secret)}
}

func selfSigned(t *testing.T, key crypto.Signer) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "SCEP SIGNER"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, der)
}

// makeCSR writes a PKCS#10 request by hand: crypto/x509 cannot write a challengePassword.
func makeCSR(t *testing.T, key crypto.Signer, name, challenge string) []byte {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	subject, err := asn1.Marshal(pkix.Name{CommonName: name}.ToRDNSequence())
	if err != nil {
		t.Fatal(err)
	}
	var b cryptobyte.Builder
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		b.AddBytes(subject)
		b.AddBytes(spki)
		b.AddASN1(casn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7})
				b.AddASN1(casn1.SET, func(b *cryptobyte.Builder) {
					b.AddASN1(casn1.PrintableString, func(b *cryptobyte.Builder) { b.AddBytes([]byte(challenge)) })
				})
			})
		})
	})
	info := b.BytesOrPanic()
	algorithm := asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}
	if _, ok := key.Public().(*rsa.PublicKey); !ok {
		algorithm = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}
	}
	sum := sha256.Sum256(info)
	signature, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	var csr cryptobyte.Builder
	csr.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(info)
		b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(algorithm) })
		b.AddASN1BitString(signature)
	})
	return csr.BytesOrPanic()
}

// wrapping says how a device wraps its CSR; the zero value is what a good client does.
type wrapping struct {
	recipient   *x509.Certificate // nil: the RA of corp
	cipher      int               // a pkcs7.EncryptionAlgorithm…, DES by its zero value
	digest      asn1.ObjectIdentifier
	transaction any // attribute value; nil: left out
	messageType any
	nonce       any
	damage      func(envelope []byte) // changes the envelope before it is signed
	content     []byte                // encrypted instead of the CSR
	envelope    []byte                // made by another tool; recipient, cipher and content say nothing then
}

func (s *service) good() wrapping {
	id := make([]byte, 8)
	rand.Read(id)
	return wrapping{
		recipient: s.ra["corp"], cipher: pkcs7.EncryptionAlgorithmAES128CBC, digest: pkcs7.OIDDigestAlgorithmSHA256,
		transaction: hex.EncodeToString(id), messageType: "19", nonce: []byte("0123456789abcdef"),
	}
}

// message is the PKIMessage of the device.
func (d *device) message(w wrapping) []byte {
	d.t.Helper()
	pkcs7.ContentEncryptionAlgorithm = w.cipher
	content, envelope := w.content, w.envelope
	if content == nil {
		content = d.csr
	}
	if envelope == nil {
		var err error
		if envelope, err = pkcs7.Encrypt(content, []*x509.Certificate{w.recipient}); err != nil {
			d.t.Fatal(err)
		}
	}
	if w.damage != nil {
		w.damage(envelope)
	}
	sd, err := pkcs7.NewSignedData(envelope)
	if err != nil {
		d.t.Fatal(err)
	}
	sd.SetDigestAlgorithm(w.digest)
	var extra []pkcs7.Attribute
	for _, a := range []pkcs7.Attribute{{Type: oidTransactionID, Value: w.transaction}, {Type: oidMessageType, Value: w.messageType}, {Type: oidSenderNonce, Value: w.nonce}} {
		if a.Value != nil {
			extra = append(extra, a)
		}
	}
	if err := sd.AddSigner(d.cert, d.key, pkcs7.SignerInfoConfig{ExtraSignedAttributes: extra}); err != nil {
		d.t.Fatal(err)
	}
	b, err := sd.Finish()
	if err != nil {
		d.t.Fatal(err)
	}
	return b
}

// post sends a PKIOperation and returns how it went.
func (s *service) post(profile string, body []byte) exchanged {
	s.t.Helper()
	resp, err := http.Post(s.url+"/scep/"+profile+"?operation=PKIOperation", "", bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return exchanged{method: http.MethodPost, body: body, status: resp.StatusCode, reply: got, header: resp.Header}
}

// certRep is a reply as smallstep/pkcs7 reads it.
type certRep struct {
	status      string
	fail        failInfo
	text        string
	transaction string
	sender      []byte
	recipient   []byte
	content     []byte
	p7          *pkcs7.PKCS7
}

// openReply checks what every CertRep has in common, whatever it says, and returns what it says.
func (s *service) openReply(e exchanged) certRep {
	s.t.Helper()
	if e.status != http.StatusOK {
		s.t.Fatalf("HTTP status %d instead of a CertRep: %s", e.status, e.reply)
	}
	if got := e.header.Get("Content-Type"); got != "application/x-pki-message" {
		s.t.Errorf("Content-Type %q", got)
	}
	if got := e.header.Get("Content-Length"); got != strconv.Itoa(len(e.reply)) {
		s.t.Errorf("Content-Length %q for %d bytes", got, len(e.reply))
	}
	p7, err := pkcs7.Parse(e.reply)
	if err != nil {
		s.t.Fatalf("parsing the CertRep: %v", err)
	}
	if err := p7.Verify(); err != nil {
		s.t.Fatalf("verifying the CertRep: %v", err)
	}
	signer := p7.GetOnlySigner()
	if signer == nil || !signer.PublicKey.(*rsa.PublicKey).Equal(s.raKey.Public()) {
		s.t.Fatal("the CertRep is not signed by the RA")
	}
	if got := p7.Signers[0].DigestEncryptionAlgorithm.Algorithm; !got.Equal(pkcs7.OIDEncryptionAlgorithmRSA) {
		s.t.Errorf("signatureAlgorithm %v, want rsaEncryption", got)
	}
	r := certRep{content: p7.Content, p7: p7}
	var messageType string
	var fail string
	for _, a := range []struct {
		oid  asn1.ObjectIdentifier
		out  any
		must bool
	}{
		{oidMessageType, &messageType, true},
		{oidPKIStatus, &r.status, true},
		{oidSenderNonce, &r.sender, true},
		{oidTransactionID, &r.transaction, false},
		{oidRecipientNonce, &r.recipient, false},
		{oidFailInfo, &fail, false},
		{oidFailInfoText, &r.text, false},
	} {
		if err := p7.UnmarshalSignedAttribute(a.oid, a.out); err != nil && a.must {
			s.t.Errorf("attribute %v: %v", a.oid, err)
		}
	}
	r.fail = failInfo(fail)
	if messageType != "3" {
		s.t.Errorf("messageType %q, want 3 (CertRep)", messageType)
	}
	if len(r.sender) != 16 {
		s.t.Errorf("senderNonce of %d bytes", len(r.sender))
	}
	switch r.status {
	case "0":
		if fail != "" || r.text != "" {
			s.t.Errorf("SUCCESS with failInfo %q, %q", fail, r.text)
		}
	case "3":
		if fail != "" || r.text != "" || len(r.content) != 0 {
			s.t.Errorf("PENDING with failInfo %q, failInfoText %q and %d bytes of content", fail, r.text, len(r.content))
		}
		s.checkEmptyContent(e)
	case "2":
		if fail == "" || r.text == "" || len(r.content) != 0 {
			s.t.Errorf("FAILURE with failInfo %q, failInfoText %q and %d bytes of content", fail, r.text, len(r.content))
		}
		s.checkEmptyContent(e)
	default:
		s.t.Errorf("pkiStatus %q", r.status)
	}
	return r
}

// checkEmptyContent wants an eContent that is there and empty: [0] { OCTET STRING of length 0 } behind id-data.
func (s *service) checkEmptyContent(e exchanged) {
	s.t.Helper()
	if !bytes.Contains(e.reply, append(mustMarshal(s.t, pkcs7.OIDData), 0xa0, 2, 4, 0)) {
		s.t.Error("no empty eContent")
	}
}

func mustMarshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// certificates decrypts a SUCCESS with the device's key and returns the certificates in it and the cipher's OID.
func (d *device) certificates(r certRep) ([]*x509.Certificate, []byte) {
	d.t.Helper()
	if r.status != "0" {
		d.t.Fatalf("pkiStatus %s, failInfo %s: %s", r.status, r.fail, r.text)
	}
	envelope, err := pkcs7.Parse(r.content)
	if err != nil {
		d.t.Fatal(err)
	}
	inner, err := envelope.Decrypt(d.cert, d.key)
	if err != nil {
		d.t.Fatal(err)
	}
	certs, err := pkcs7.Parse(inner)
	if err != nil {
		d.t.Fatal(err)
	}
	return certs.Certificates, r.content
}

// issuerAndSerial is what GetCert and GetCRL ask about; issuer is a whole Name.
func issuerAndSerial(t testing.TB, issuer []byte, serial *big.Int) []byte {
	t.Helper()
	var b cryptobyte.Builder
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(issuer)
		b.AddASN1BigInt(serial)
	})
	der, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func parsePKCS8(der []byte) (*rsa.PrivateKey, error) {
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	return key.(*rsa.PrivateKey), nil
}
