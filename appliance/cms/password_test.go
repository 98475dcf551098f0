package cms

import (
	"bytes"
	"crypto/rand"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"signet.internal/appliance/needtest"
)

// OpenSSL opens what EncryptPassword makes, with the password and with no other.
func TestOpenSSLOpensPasswordEnvelope(t *testing.T) {
	needtest.Program(t, "openssl", "openssl")
	dir := t.TempDir()
	for _, password := range []string{"p", "corp-demo-challenge", strings.Repeat("long ", 400)} {
		for _, c := range []Cipher{AES128CBC, AES192CBC, AES256CBC, DES3CBC} {
			for _, content := range [][]byte{{}, []byte("exactly 16 bytes"), longContent} {
				message, err := EncryptPassword(rand.Reader, content, password, c)
				if err != nil {
					t.Fatal(err)
				}
				writeFile(t, dir, "message", message)
				got := openssl(t, dir, "cms", "-decrypt", "-binary", "-inform", "DER", "-in", "message", "-pwri_password", password)
				if !bytes.Equal(got, content) {
					t.Errorf("%v, password of %d bytes: %d bytes of content came back as %d", c, len(password), len(content), len(got))
				}
				e, err := ParseEnvelopedData(message)
				if err != nil || e.ContentCipher != c {
					t.Errorf("%v: parsed as %v, %v", c, e, err)
				}
			}
			wrong := exec.Command("openssl", "cms", "-decrypt", "-inform", "DER", "-in", "message", "-pwri_password", password+"x")
			wrong.Dir = dir
			if out, err := wrong.Output(); err == nil && bytes.Equal(out, longContent) {
				t.Errorf("%v: opened with another password", c)
			}
		}
	}
}

func TestEncryptPasswordRefuses(t *testing.T) {
	if _, err := EncryptPassword(rand.Reader, nil, "secret", DESCBC); !errors.Is(err, ErrAlgorithm) {
		t.Errorf("DES: %v", err)
	}
	if _, err := EncryptPassword(rand.Reader, nil, "secret", 0); !errors.Is(err, ErrAlgorithm) {
		t.Errorf("no cipher: %v", err)
	}
	if _, err := EncryptPassword(rand.Reader, nil, "", AES128CBC); err == nil {
		t.Error("an empty password is taken")
	}
	if _, err := EncryptPassword(bytes.NewReader(make([]byte, 50)), nil, "secret", AES128CBC); err == nil {
		t.Error("too little randomness is taken")
	}
}

// No RSA key opens what is encrypted under a password, and that is said before one is used.
func TestPasswordEnvelopeHasNoRecipient(t *testing.T) {
	message, err := EncryptPassword(rand.Reader, []byte("x"), "secret", AES128CBC)
	if err != nil {
		t.Fatal(err)
	}
	e, err := ParseEnvelopedData(message)
	if err != nil {
		t.Fatal(err)
	}
	id := rsaIdentity(t)
	key := &countingKey{Decrypter: rsaKey()}
	if _, err := e.Decrypt(id.certificate, key, everything); !errors.Is(err, ErrNoRecipient) || key.used != 0 {
		t.Errorf("%v, key used %d times", err, key.used)
	}
}

func TestCRLOnly(t *testing.T) {
	needtest.Program(t, "openssl", "openssl")
	dir := t.TempDir()
	id := rsaIdentity(t)
	crl := makeCRL(t, id)
	message, err := CRLOnly(crl)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, dir, "message", message)
	writeFile(t, dir, "crl", crl)
	got := openssl(t, dir, "pkcs7", "-inform", "DER", "-in", "message", "-print_certs")
	want := openssl(t, dir, "crl", "-inform", "DER", "-in", "crl", "-outform", "PEM")
	if !bytes.Contains(got, bytes.TrimSpace(want)) {
		t.Errorf("openssl pkcs7 prints\n%s\nwithout\n%s", got, want)
	}
	if sd, err := ParseSignedData(message); err != nil || len(sd.Certificates) != 0 || len(sd.Signers) != 0 {
		t.Errorf("%+v, %v", sd, err)
	}
	if _, err := CRLOnly(nil); err == nil {
		t.Error("nothing is taken for a CRL")
	}
}
