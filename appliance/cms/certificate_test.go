package cms

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"math/big"
	"slices"
	"testing"

	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// For a certificate that the standard library reads, this package reads the same.
func TestParseCertificateAgreesWithX509(t *testing.T) {
	for name, der := range map[string][]byte{
		"RA": readPEM(t, "ra.crt"), "CA": readPEM(t, "ca.crt"),
		"P-256": ecIdentity(t, elliptic.P256()).certificate.Raw, "P-521": ecIdentity(t, elliptic.P521()).certificate.Raw,
	} {
		want, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseCertificate(der)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !bytes.Equal(got.Raw, der) || !bytes.Equal(got.RawIssuer, want.RawIssuer) || !bytes.Equal(got.RawSubject, want.RawSubject) ||
			!bytes.Equal(got.RawSPKI, want.RawSubjectPublicKeyInfo) || got.SerialNumber.Cmp(want.SerialNumber) != 0 ||
			!bytes.Equal(got.SubjectKeyID, want.SubjectKeyId) {
			t.Errorf("%s: parts differ", name)
		}
		switch key := want.PublicKey.(type) {
		case *rsa.PublicKey:
			if !key.Equal(got.PublicKey) {
				t.Errorf("%s: key differs", name)
			}
		case *ecdsa.PublicKey:
			if !key.Equal(got.PublicKey) {
				t.Errorf("%s: key differs", name)
			}
		}
	}
}

// odd makes certificates with liberties that real clients take.
type odd struct {
	version    []byte
	serial     []byte
	spki       []byte
	extensions [][]byte
}

func (o odd) build() []byte {
	name := element(0x30, element(0x31, element(0x30, []byte{6, 3, 0x55, 4, 3}, element(19, []byte("x")))))
	tbs := [][]byte{o.version, element(2, o.serial), encodeAlgorithm(infoOf(SHA256).rsa), name, element(0x30), name, o.spki}
	if o.extensions != nil {
		tbs = append(tbs, element(0xa3, element(0x30, o.extensions...)))
	}
	return element(0x30, element(0x30, tbs...), encodeAlgorithm(infoOf(SHA256).rsa), []byte{3, 1, 0})
}

func rsaSPKI(modulus *big.Int, exponent ...byte) []byte {
	n := append([]byte{0}, modulus.Bytes()...)
	return element(0x30, encodeAlgorithm(oidRSAEncryption, []byte{5, 0}), element(3, []byte{0}, element(0x30, element(2, n), element(2, exponent))))
}

func TestParseCertificateIsLenient(t *testing.T) {
	n := rsaKey().N
	v3 := element(0xa0, []byte{2, 1, 2})
	keyID := element(0x30, encodeOID(oidSubjectKeyID), element(4, element(4, []byte("key id"))))
	critical := element(0x30, encodeOID(oidSubjectKeyID), []byte{1, 1, 0xff}, element(4, element(4, []byte("key id"))))
	authority := element(0x30, []byte{6, 3, 0x55, 0x1d, 35}, []byte{1, 1, 0xff}, element(4, []byte("not even DER")))
	for _, c := range []struct {
		name   string
		odd    odd
		serial *big.Int
		keyID  string
	}{
		{"version 1", odd{serial: []byte{1}}, big.NewInt(1), ""},
		{"serial of 32 octets", odd{serial: bytes.Repeat([]byte{0x7f}, 32)}, new(big.Int).SetBytes(bytes.Repeat([]byte{0x7f}, 32)), ""},
		{"negative serial", odd{serial: []byte{0xff, 0xfe}}, big.NewInt(-2), ""},
		{"zero serial", odd{serial: []byte{0}}, new(big.Int), ""},
		{"padded serial", odd{serial: []byte{0, 0, 0, 5}}, big.NewInt(5), ""},
		{"critical authority key id", odd{version: v3, serial: []byte{1}, extensions: [][]byte{authority, keyID}}, big.NewInt(1), "key id"},
		{"critical subject key id", odd{version: v3, serial: []byte{1}, extensions: [][]byte{critical}}, big.NewInt(1), "key id"},
		{"unreadable extensions", odd{version: v3, serial: []byte{1}, extensions: [][]byte{{5, 0}}}, big.NewInt(1), ""},
	} {
		c.odd.spki = rsaSPKI(n, 1, 0, 1)
		got, err := ParseCertificate(c.odd.build())
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got.SerialNumber.Cmp(c.serial) != 0 || string(got.SubjectKeyID) != c.keyID || !rsaKey().PublicKey.Equal(got.PublicKey) {
			t.Errorf("%s: serial %v, key id %q, key %v", c.name, got.SerialNumber, got.SubjectKeyID, got.PublicKey)
		}
	}
}

// Keys that cannot be used do not make a certificate unreadable, and are never handed out.
func TestParseCertificateKeys(t *testing.T) {
	n := rsaKey().N
	bits := func(b int) *big.Int {
		return new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), uint(b-1)), big.NewInt(1))
	}
	point := elliptic.P256().Params()
	ecSPKI := func(point ...byte) []byte {
		return element(0x30, encodeAlgorithm(oidECPublicKey, encodeOID(oidCurveP256)), element(3, []byte{0}, point))
	}
	uncompressed := slices.Concat([]byte{4}, point.Gx.Bytes(), point.Gy.Bytes())
	offCurve := slices.Clone(uncompressed)
	offCurve[64] ^= 1
	for _, c := range []struct {
		name string
		spki []byte
		ok   bool
	}{
		{"exponent 65537", rsaSPKI(n, 1, 0, 1), true},
		{"exponent 3", rsaSPKI(n, 3), true},
		{"1024 bits", rsaSPKI(bits(1024), 3), true},
		{"8192 bits", rsaSPKI(bits(8192), 3), true},
		{"exponent 1", rsaSPKI(n, 1), false},
		{"exponent even", rsaSPKI(n, 4), false},
		{"exponent negative", rsaSPKI(n, 0x83), false},
		{"exponent of 33 bits", rsaSPKI(n, 1, 0, 0, 0, 1), false},
		{"exponent of 2000 bits", rsaSPKI(n, bytes.Repeat([]byte{1}, 250)...), false},
		{"1023 bits", rsaSPKI(bits(1023), 3), false},
		{"8193 bits", rsaSPKI(bits(8193), 3), false},
		{"100000 bits", rsaSPKI(bits(100000), 3), false},
		{"even modulus", rsaSPKI(new(big.Int).Lsh(n, 1), 3), false},
		{"P-256", ecSPKI(uncompressed...), true},
		{"not on the curve", ecSPKI(offCurve...), false},
		{"infinity", ecSPKI(0), false},
		{"compressed", ecSPKI(append([]byte{2}, point.Gx.Bytes()...)...), false},
		{"curve without a name", element(0x30, encodeAlgorithm(oidECPublicKey), element(3, []byte{0}, uncompressed)), false},
		{"Ed25519", element(0x30, element(0x30, []byte{6, 3, 0x2b, 0x65, 0x70}), element(3, make([]byte, 33))), false},
		{"empty", element(0x30), false},
	} {
		got, err := ParseCertificate(odd{serial: []byte{1}, spki: c.spki}.build())
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if (got.PublicKey != nil) != c.ok {
			t.Errorf("%s: key %v", c.name, got.PublicKey)
		}
	}
}

func TestParseCertificateRefuses(t *testing.T) {
	good := readPEM(t, "ra.crt")
	for name, der := range map[string][]byte{
		"empty":          nil,
		"cut short":      good[:len(good)-1],
		"trailing":       append(slices.Clone(good), 0),
		"empty serial":   odd{spki: element(0x30)}.build(),
		"no key":         odd{serial: []byte{1}}.build(),
		"BER":            append([]byte{0x30, 0x80}, append(slices.Clone(good[4:]), 0, 0)...),
		"another thing":  element(byte(casn1.SEQUENCE), []byte{5, 0}),
		"past the bound": element(byte(casn1.SEQUENCE), make([]byte, MaxMessage)),
	} {
		if c, err := ParseCertificate(der); !errors.Is(err, ErrMalformed) || c != nil {
			t.Errorf("%s: %v, want ErrMalformed", name, err)
		}
	}
}
