package cms

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Signed attributes of SCEP (RFC 8894 §3.2.1).
var (
	oidMessageType   = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 2}
	oidSenderNonce   = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 5}
	oidTransactionID = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 7}
)

// everything accepts all algorithms there are.
var everything = Policy{
	Digests: []Digest{MD5, SHA1, SHA256, SHA384, SHA512},
	Ciphers: []Cipher{DESCBC, DES3CBC, AES128CBC, AES192CBC, AES256CBC},
}

// identity is a key with a self-signed certificate, as PEM files too for the command-line oracles.
type identity struct {
	certificate *x509.Certificate
	parsed      *Certificate
	signer      crypto.Signer
}

func newIdentity(tb testing.TB, signer crypto.Signer) identity {
	tb.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: "test " + tb.Name()},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		SubjectKeyId: []byte("test subject key id!"),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		tb.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	parsed, err := ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return identity{certificate, parsed, signer}
}

// makeCRL returns a list signed by i with one serial on it.
func makeCRL(tb testing.TB, i identity) []byte {
	tb.Helper()
	issuer := *i.certificate
	issuer.KeyUsage |= x509.KeyUsageCRLSign
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(7), RevocationTime: time.Now()}},
	}, &issuer, i.signer)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

// rsaKey is one key for all tests: making one takes long.
var rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

func rsaIdentity(tb testing.TB) identity { return newIdentity(tb, rsaKey()) }

func ecIdentity(tb testing.TB, curve elliptic.Curve) identity {
	tb.Helper()
	k, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return newIdentity(tb, k)
}

// write puts certificate and key into one PEM file.
func (i identity) write(tb testing.TB, dir string) string {
	tb.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(i.signer)
	if err != nil {
		tb.Fatal(err)
	}
	b := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.certificate.Raw})
	b = append(b, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	f, err := os.CreateTemp(dir, "*.pem")
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		tb.Fatal(err)
	}
	return f.Name()
}

// testRA returns the recipient of the recorded requests.
func testRA(tb testing.TB) (*x509.Certificate, *rsa.PrivateKey) {
	tb.Helper()
	certificate, err := x509.ParseCertificate(readPEM(tb, "ra.crt"))
	if err != nil {
		tb.Fatal(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(readPEM(tb, "ra-test-only.key"))
	if err != nil {
		tb.Fatal(err)
	}
	return certificate, key.(*rsa.PrivateKey)
}

func readPEM(tb testing.TB, name string) []byte {
	tb.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		tb.Fatal(err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		tb.Fatalf("%s is not PEM", name)
	}
	return block.Bytes
}

// recorded returns the recorded requests by file name.
func recorded(tb testing.TB) map[string][]byte {
	tb.Helper()
	files, err := filepath.Glob("testdata/requests/*.der")
	if err != nil || len(files) == 0 {
		tb.Fatalf("no recorded requests: %v", err)
	}
	all := make(map[string][]byte)
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			tb.Fatal(err)
		}
		all[filepath.Base(f)] = b
	}
	return all
}

// element encodes one element by hand, for messages that the builders would not make.
func element(tag byte, parts ...[]byte) []byte {
	var content []byte
	for _, p := range parts {
		content = append(content, p...)
	}
	return append(appendHeader(nil, tag, len(content)), content...)
}

func encodeOID(oid asn1.ObjectIdentifier) []byte {
	var b cryptobyte.Builder
	b.AddASN1ObjectIdentifier(oid)
	return b.BytesOrPanic()
}

func encodeAlgorithm(oid asn1.ObjectIdentifier, parameters ...[]byte) []byte {
	return element(byte(casn1.SEQUENCE), append([][]byte{encodeOID(oid)}, parameters...)...)
}

// rewriteBER encodes DER again with the liberties of BER: indefinite lengths and OCTET STRINGs in pieces of the given
// size. The elements for which keep says so stay as they are.
func rewriteBER(der []byte, piece int, keep func(element []byte) bool) []byte {
	if keep(der) {
		return der
	}
	in := cryptobyte.String(der)
	var content cryptobyte.String
	var tag casn1.Tag
	if !in.ReadAnyASN1(&content, &tag) || !in.Empty() {
		panic("not DER")
	}
	end := []byte{0, 0}
	switch {
	case tag == casn1.OCTET_STRING, tag == tagImplicit0:
		out := []byte{byte(tag) | bitConstructed, 0x80}
		for len(content) > 0 {
			n := min(piece, len(content))
			out = append(out, element(tagOctetString, content[:n])...)
			content = content[n:]
		}
		return append(out, end...)
	case tag&bitConstructed == 0:
		return der
	}
	out := []byte{byte(tag), 0x80}
	for !content.Empty() {
		var child cryptobyte.String
		if !content.ReadAnyASN1Element(&child, &tag) {
			panic("not DER")
		}
		out = append(out, rewriteBER(child, piece, keep)...)
	}
	return append(out, end...)
}

// rewriteAll is rewriteBER's keep for a message in which nothing is signed as it is.
func rewriteAll([]byte) bool { return false }
