package cms

import (
	"bytes"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"testing"
)

// FuzzParseSignedData holds every input to: no panic, only the package's errors, and what verifies is what was signed.
func FuzzParseSignedData(f *testing.F) {
	for _, request := range recorded(f) {
		f.Add(request)
		f.Add(rewriteBER(request, 100, rewriteAll))
	}
	for _, b := range hostile(1 << 10) {
		f.Add(b)
	}
	signer := ecIdentity(f, elliptic.P256())
	small, err := Sign(SignOptions{Content: []byte("x"), SignerCertificate: signer.certificate, Signer: signer.signer,
		Certificates: [][]byte{signer.certificate.Raw}, Digest: SHA256})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(small)
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		sd, err := ParseSignedData(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) || sd != nil {
				t.Fatalf("%v, %v", sd, err)
			}
			return
		}
		signer, err := sd.Verify(everything)
		if err == nil {
			if signer.Certificate == nil || signer.Certificate.PublicKey == nil || signer.Digest == 0 {
				t.Fatalf("verified by nobody: %+v", signer)
			}
			digest, ok := signer.Attribute(oidMessageDigest)
			if !ok || !bytes.Equal(digest.Bytes, signer.Digest.sum(sd.Content)) {
				t.Fatal("verified with another digest")
			}
		} else if signer != nil || !(errors.Is(err, ErrMalformed) || errors.Is(err, ErrSigner) || errors.Is(err, ErrAlgorithm) || errors.Is(err, ErrSignature)) {
			t.Fatalf("%v, %v", signer, err)
		}
		if !bytes.Equal(before, b) {
			t.Fatal("the input was changed")
		}
	})
}

// FuzzParseEnvelopedData holds every input to: no panic, only the package's errors, the key asked at most once.
func FuzzParseEnvelopedData(f *testing.F) {
	certificate, key := testRA(f)
	for _, request := range recorded(f) {
		sd, err := ParseSignedData(request)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(sd.Content)
		f.Add(rewriteBER(sd.Content, 100, rewriteAll))
	}
	for _, b := range hostile(1 << 10) {
		f.Add(b)
	}
	recipient, err := ParseCertificate(certificate.Raw)
	if err != nil {
		f.Fatal(err)
	}
	small, err := Encrypt(rand.Reader, []byte("x"), recipient, AES128CBC)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(small)
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		e, err := ParseEnvelopedData(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) || e != nil {
				t.Fatalf("%v, %v", e, err)
			}
			return
		}
		k := &countingKey{Decrypter: key}
		content, err := e.Decrypt(certificate, k, everything)
		if k.used > 1 {
			t.Fatalf("key used %d times", k.used)
		}
		if err != nil && (content != nil || !(errors.Is(err, ErrDecrypt) || errors.Is(err, ErrAlgorithm) || errors.Is(err, ErrNoRecipient))) {
			t.Fatalf("%v, %v", content, err)
		}
		if !bytes.Equal(before, b) {
			t.Fatal("the input was changed")
		}
	})
}

// FuzzNormalise: whatever is accepted is left alone the second time.
func FuzzNormalise(f *testing.F) {
	for _, request := range recorded(f) {
		f.Add(rewriteBER(request, 50, rewriteAll))
	}
	for _, b := range hostile(1 << 10) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		once, err := normalise(b)
		if err != nil {
			return
		}
		// An indefinite length takes four octets in all, a definite one above 64 KiB five, at every level.
		if len(once) > len(b)+maxDepth*(len(b)>>16) {
			t.Fatalf("%d bytes became %d", len(b), len(once))
		}
		twice, err := normalise(once)
		if err != nil || !bytes.Equal(once, twice) || &once[0] != &twice[0] {
			t.Fatalf("%x became %x, %v", once, twice, err)
		}
	})
}
