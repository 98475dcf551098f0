package cms

import (
	"crypto/rand"
	"testing"
)

// The benchmarks run on recorded requests of real clients and on answers of the size that goes back. The private key is in software; on
// a box the TPM's takes its place, and parsing is all that is left of these figures.

// benchmarkMessage is a first enrollment by strongSwan, its envelope and what was in it.
func benchmarkMessage(b *testing.B) (message, envelope, content []byte) {
	b.Helper()
	message = recorded(b)["strongswan-5.9.8.der"]
	sd, err := ParseSignedData(message)
	if err != nil {
		b.Fatal(err)
	}
	e, err := ParseEnvelopedData(sd.Content)
	if err != nil {
		b.Fatal(err)
	}
	certificate, key := testRA(b)
	if content, err = e.Decrypt(certificate, key, DefaultPolicy()); err != nil {
		b.Fatal(err)
	}
	return message, sd.Content, content
}

func BenchmarkParseSignedData(b *testing.B) {
	message, _, _ := benchmarkMessage(b)
	for name, input := range map[string][]byte{"DER": message, "BER": rewriteBER(message, 100, rewriteAll)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(input)))
			for b.Loop() {
				if _, err := ParseSignedData(input); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// The longest message there may be, all of it made of the smallest elements: what one hostile request costs.
func BenchmarkParseHostile(b *testing.B) {
	for name, input := range hostile(MaxMessage) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(input)))
			for b.Loop() {
				ParseSignedData(input)
			}
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	message, _, _ := benchmarkMessage(b)
	b.ReportAllocs()
	for b.Loop() {
		sd, err := ParseSignedData(message)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := sd.Verify(DefaultPolicy()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseEnvelopedData(b *testing.B) {
	_, envelope, _ := benchmarkMessage(b)
	b.ReportAllocs()
	b.SetBytes(int64(len(envelope)))
	for b.Loop() {
		if _, err := ParseEnvelopedData(envelope); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecrypt(b *testing.B) {
	_, envelope, _ := benchmarkMessage(b)
	certificate, key := testRA(b)
	e, err := ParseEnvelopedData(envelope)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := e.Decrypt(certificate, key, DefaultPolicy()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncrypt(b *testing.B) {
	_, _, content := benchmarkMessage(b)
	recipient := rsaIdentity(b).parsed
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Encrypt(rand.Reader, content, recipient, AES128CBC); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncryptPassword(b *testing.B) {
	_, _, content := benchmarkMessage(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := EncryptPassword(rand.Reader, content, "corp-demo-challenge", AES128CBC); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSign(b *testing.B) {
	_, envelope, _ := benchmarkMessage(b)
	id := rsaIdentity(b)
	options := SignOptions{
		Content: envelope, SignerCertificate: id.certificate, Signer: id.signer, Certificates: [][]byte{id.certificate.Raw}, Digest: SHA256,
		Attributes: []Attribute{{oidMessageType, []byte("\x13\x013")}, {oidSenderNonce, append([]byte{4, 16}, make([]byte, 16)...)}},
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Sign(options); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCertsOnly(b *testing.B) {
	id := rsaIdentity(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := CertsOnly([][]byte{id.certificate.Raw}); err != nil {
			b.Fatal(err)
		}
	}
}
