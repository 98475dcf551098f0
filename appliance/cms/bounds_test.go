package cms

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"runtime"
	"testing"
)

// signedWith is a SignedData around the given certificates and signers.
func signedWith(encap, certificates, signers []byte) []byte {
	return element(0x30, encodeOID(OIDSignedData), element(0xa0, element(0x30, []byte{2, 1, 1}, element(0x31), encap,
		element(0xa0, certificates), element(0x31, signers))))
}

// Messages that are well formed and as large as allowed cost memory in proportion to their size, however they spend it. A
// counter of what is allocated stands for time too: nothing in the parsers computes without making or skipping bytes.
func TestParseIsBounded(t *testing.T) {
	const size = MaxMessage - 1<<10
	repeat := func(b []byte) []byte { return bytes.Repeat(b, size/len(b)) }
	encap := element(0x30, encodeOID(OIDData))
	pieces := element(0x30, encodeOID(OIDData), element(0xa0, append(append([]byte{0x24, 0x80}, bytes.Repeat([]byte{4, 8, 1, 2, 3, 4, 5, 6, 7, 8}, size/10)...), 0, 0)))
	certificate := odd{serial: []byte{1}, spki: rsaSPKI(rsaKey().N, 1, 0, 1)}.build()
	wide := odd{serial: bytes.Repeat([]byte{0x81}, size/2), spki: rsaSPKI(rsaKey().N, 1, 0, 1)}.build()
	signer := func(attributes ...[]byte) []byte {
		return element(0x30, []byte{2, 1, 1}, element(0x80, []byte("id")), encodeAlgorithm(infoOf(SHA256).oid), element(0xa0, attributes...),
			encodeAlgorithm(oidRSAEncryption), element(4, make([]byte, 256)))
	}
	var long [][]byte // the types differ in their last octet only
	for i := range maxAttributes {
		oid := element(6, bytes.Repeat([]byte{0x55}, size/maxAttributes-64), []byte{byte(i)})
		long = append(long, element(0x30, oid, element(0x31, []byte{5, 0})))
	}
	many := make([][]byte, 0, 1<<15)
	for i := range 1 << 15 {
		many = append(many, encodeAttribute(asn1.ObjectIdentifier{1, 2, i}, []byte{5, 0}))
	}
	content := func(encrypted []byte) []byte {
		return element(0x30, encodeOID(OIDData), encodeAlgorithm(infoOfCipher(AES128CBC).oid, element(4, testIV)), encrypted)
	}
	enveloped := func(recipients, content []byte) []byte {
		return element(0x30, encodeOID(OIDEnvelopedData), element(0xa0, element(0x30, []byte{2, 1, 0}, element(0x31, recipients), content)))
	}
	foreign := element(0xa1)
	for _, c := range []struct {
		name    string
		message []byte
		ok      bool
	}{
		{"content in pieces", signedWith(pieces, nil, nil), true},
		{"as many certificates as fit", signedWith(encap, repeat(certificate), nil), false},
		{"as many certificates as allowed", signedWith(encap, bytes.Repeat(certificate, maxCertificates), nil), true},
		{"certificate with an enormous serial", signedWith(encap, wide, nil), true},
		{"as many signers as fit", signedWith(encap, nil, repeat(signer())), false},
		{"as many attributes as fit", signedWith(encap, nil, signer(many...)), false},
		{"long attributes", signedWith(encap, nil, signer(long...)), true},
		{"skipped certificates", signedWith(encap, bytes.Repeat(foreign, 1<<16), nil), true},
		{"encrypted content in pieces", enveloped(nil, content(element(0xa0, bytes.Repeat([]byte{4, 8, 1, 2, 3, 4, 5, 6, 7, 8}, size/10)))), true},
		{"skipped recipients", enveloped(repeat(foreign), content(element(0x80))), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if len(c.message) > MaxMessage {
				t.Fatalf("%d bytes", len(c.message))
			}
			parse := func() error {
				_, err := ParseSignedData(c.message)
				if bytes.Contains(c.message[:32], encodeOID(OIDEnvelopedData)) {
					_, err = ParseEnvelopedData(c.message)
				}
				return err
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err := parse()
			runtime.ReadMemStats(&after)
			if (err == nil) != c.ok || (err != nil && !errors.Is(err, ErrMalformed)) {
				t.Fatal(err)
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > uint64(16*len(c.message))+64<<10 {
				t.Errorf("%d bytes allocated for %d", used, len(c.message))
			}
		})
	}
}

func infoOfCipher(c Cipher) cipherInfo {
	i, _ := c.info()
	return i
}
