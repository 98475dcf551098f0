package est

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"

	"signet.internal/appliance/needtest"
)

// RFC 3394 §4.1, §4.3 and §4.6.
func TestWrapKey(t *testing.T) {
	for _, c := range []struct{ wrapping, key, want string }{
		{"000102030405060708090A0B0C0D0E0F", "00112233445566778899AABBCCDDEEFF", "1fa68b0a8112b447aef34bd8fb5a7b829d3e862371d2cfe5"},
		{"000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F", "00112233445566778899AABBCCDDEEFF", "64e8c3f9ce0f5ba263e9777905818a2a93c8191e7d6e8ae7"},
		{"000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F", "00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F",
			"28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21"},
	} {
		got, err := wrapKey(must(hex.DecodeString(c.wrapping)), must(hex.DecodeString(c.key)))
		if err != nil || hex.EncodeToString(got) != c.want {
			t.Errorf("%x, %v; want %s", got, err, c.want)
		}
	}
}

// openssl opens what a new key is encrypted in, for every kind of device key and every cipher, and verifies who signed it.
func TestOpenSSLOpensKey(t *testing.T) {
	openssl := needtest.Program(t, "openssl", "openssl")
	ca := newAuthority(t, "CN=Test CA")
	issuer := newIssuer(t, "CN=Box CA", rsaKeys()[0])
	ra := parse(t, must(issuer.IssueRA(rsaKeys()[1].Public(), issuer.Certificate().NotBefore, 24*3600e9)))
	ecSigner := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	ecRA := parse(t, ca.device(t, "box", ecSigner, x509.KeyUsageDigitalSignature).Certificate[0])
	fresh := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	pkcs8 := must(x509.MarshalPKCS8PrivateKey(fresh))

	devices := map[string]crypto.Signer{"RSA": rsaKeys()[3]}
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		devices[curve.Params().Name] = must(ecdsa.GenerateKey(curve, rand.Reader))
	}
	for name, key := range devices {
		for i := range contentCiphers {
			t.Run(name, func(t *testing.T) {
				certificate, signer := ra, crypto.Signer(rsaKeys()[1])
				if i == 1 {
					certificate, signer = ecRA, ecSigner
				}
				signed, err := signKeyPackage(bytes.Clone(pkcs8), certificate, signer)
				if err != nil {
					t.Fatal(err)
				}
				device := ca.device(t, "dev", key, 0)
				to := &recipient{certificate: parse(t, device.Certificate[0]), cipher: &contentCiphers[i]}
				if name != "RSA" {
					to.wrap = &keyWraps[i]
				}
				sealed, err := to.seal(signed)
				if err != nil {
					t.Fatal(err)
				}
				if bytes.Contains(sealed, pkcs8[len(pkcs8)-32:]) {
					t.Fatal("the key is not encrypted")
				}
				dir := t.TempDir()
				write(t, filepath.Join(dir, "sealed.der"), sealed)
				writePEM(t, filepath.Join(dir, "dev.crt"), "CERTIFICATE", device.Certificate[0])
				writePEM(t, filepath.Join(dir, "dev.key"), "PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(key)))
				writePEM(t, filepath.Join(dir, "ca.crt"), "CERTIFICATE", issuer.Certificate().Raw, ca.cert.Raw)
				if _, _, ok := run(t, dir, openssl, "cms", "-decrypt", "-inform", "DER", "-in", "sealed.der", "-recip", "dev.crt", "-inkey", "dev.key", "-out", "signed.der"); !ok {
					t.Fatal("openssl cms -decrypt")
				}
				inner := must(os.ReadFile(filepath.Join(dir, "signed.der")))
				if !bytes.Equal(inner, signed) {
					t.Fatalf("openssl read %x", inner)
				}
				// The inner type is SignedData, of which openssl reads no more than the octets; it wants a ContentInfo to verify.
				write(t, filepath.Join(dir, "info.der"), must(encode(func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(oidSignedData)
					b.AddASN1(explicit0, func(b *cryptobyte.Builder) { b.AddBytes(inner) })
				})))
				if _, _, ok := run(t, dir, openssl, "cms", "-verify", "-inform", "DER", "-in", "info.der", "-CAfile", "ca.crt", "-purpose", "any", "-binary", "-out", "keys.der"); !ok {
					t.Fatal("openssl cms -verify")
				}
				if got := onlyKey(t, must(os.ReadFile(filepath.Join(dir, "keys.der")))); !bytes.Equal(got, pkcs8) {
					t.Errorf("another key: %x", got)
				}
			})
		}
	}
}

// The type of what is in an envelope says that it is a SignedData, and the type of what that holds that it is an AsymmetricKeyPackage
// (RFC 7030 §4.4.2): openssl takes any.
func TestKeyPackageTypes(t *testing.T) {
	ca := newAuthority(t, "CN=Test CA")
	signed, err := signKeyPackage([]byte{0x30, 0}, ca.cert, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	var data, encapsulated cryptobyte.String
	var version int
	var oid asn1.ObjectIdentifier
	in := cryptobyte.String(signed)
	if !in.ReadASN1(&data, casn1.SEQUENCE) || !in.Empty() || !data.ReadASN1Integer(&version) || version != 3 || !data.SkipASN1(casn1.SET) ||
		!data.ReadASN1(&encapsulated, casn1.SEQUENCE) || !encapsulated.ReadASN1ObjectIdentifier(&oid) || !oid.Equal(oidKeyPackage) {
		t.Errorf("SignedData version %d of %v", version, oid)
	}
	sealed, err := (&recipient{certificate: ca.cert, cipher: &contentCiphers[0], wrap: &keyWraps[0]}).seal(signed)
	if err != nil {
		t.Fatal(err)
	}
	var info, wrapped, content cryptobyte.String
	in = sealed
	if !in.ReadASN1(&info, casn1.SEQUENCE) || !info.ReadASN1ObjectIdentifier(&oid) || !oid.Equal(oidEnvelopedData) ||
		!info.ReadASN1(&wrapped, explicit0) || !wrapped.ReadASN1(&data, casn1.SEQUENCE) || !data.ReadASN1Integer(&version) || version != 2 ||
		!data.SkipASN1(casn1.SET) || !data.ReadASN1(&content, casn1.SEQUENCE) || !content.ReadASN1ObjectIdentifier(&oid) || !oid.Equal(oidSignedData) {
		t.Errorf("EnvelopedData version %d of %v", version, oid)
	}
}

// onlyKey returns the one PKCS #8 key of an AsymmetricKeyPackage.
func onlyKey(t *testing.T, der []byte) []byte {
	t.Helper()
	var all []asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &all); err != nil || len(rest) > 0 || len(all) != 1 {
		t.Fatalf("%x: %d keys, %v", der, len(all), err)
	}
	return all[0].FullBytes
}

func write(t testing.TB, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// signedKey returns the key in a SignedData that signKeyPackage made.
func signedKey(t *testing.T, signed []byte) crypto.Signer {
	t.Helper()
	var data, encapsulated, explicit, content cryptobyte.String
	in := cryptobyte.String(signed)
	if !in.ReadASN1(&data, casn1.SEQUENCE) || !data.SkipASN1(casn1.INTEGER) || !data.SkipASN1(casn1.SET) || !data.ReadASN1(&encapsulated, casn1.SEQUENCE) ||
		!encapsulated.SkipASN1(casn1.OBJECT_IDENTIFIER) || !encapsulated.ReadASN1(&explicit, explicit0) || !explicit.ReadASN1(&content, casn1.OCTET_STRING) {
		t.Fatalf("not a SignedData: %x", signed)
	}
	key, err := x509.ParsePKCS8PrivateKey(onlyKey(t, content))
	if err != nil {
		t.Fatal(err)
	}
	return key.(crypto.Signer)
}
