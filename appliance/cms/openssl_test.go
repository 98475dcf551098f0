package cms

import (
	"bytes"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"signet.internal/appliance/needtest"
)

// openssl runs the tool in dir and returns its standard output.
func openssl(t *testing.T, dir string, args ...string) []byte {
	t.Helper()
	c := exec.Command("openssl", args...)
	c.Dir = dir
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return out
}

func writeFile(t *testing.T, dir, name string, b []byte) string {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// longContent takes several of OpenSSL's stream buffers, so that BER output comes in pieces.
var longContent = bytes.Repeat([]byte("content with \x00 and \r\n. "), 1000)

func isBER(b []byte) bool { return len(b) > 1 && b[1] == 0x80 }

func TestVerifyWhatOpenSSLSigns(t *testing.T) {
	needtest.Program(t, "openssl", "openssl")
	dir := t.TempDir()
	writeFile(t, dir, "content", longContent)
	rsaSigner, ecSigner := rsaIdentity(t), ecIdentity(t, elliptic.P384())
	rsaFile, ecFile := rsaSigner.write(t, dir), ecSigner.write(t, dir)
	sign := func(args ...string) []byte {
		return openssl(t, dir, append([]string{"cms", "-sign", "-binary", "-nodetach", "-in", "content", "-outform", "DER"}, args...)...)
	}
	for _, c := range []struct {
		name   string
		args   []string
		digest Digest
		want   error
	}{
		{"RSA SHA-256", []string{"-signer", rsaFile, "-md", "sha256"}, SHA256, nil},
		{"RSA SHA-384", []string{"-signer", rsaFile, "-md", "sha384"}, SHA384, nil},
		{"RSA SHA-512", []string{"-signer", rsaFile, "-md", "sha512"}, SHA512, nil},
		{"RSA SHA-1", []string{"-signer", rsaFile, "-md", "sha1"}, SHA1, nil},
		{"RSA MD5", []string{"-signer", rsaFile, "-md", "md5"}, MD5, nil},
		{"ECDSA SHA-256", []string{"-signer", ecFile, "-md", "sha256"}, SHA256, nil},
		{"ECDSA SHA-512", []string{"-signer", ecFile, "-md", "sha512"}, SHA512, nil},
		{"ECDSA SHA-1", []string{"-signer", ecFile, "-md", "sha1"}, SHA1, nil},
		{"subject key id", []string{"-signer", rsaFile, "-keyid"}, SHA256, nil},
		{"other certificates", []string{"-signer", rsaFile, "-certfile", ecFile}, SHA256, nil},
		{"BER", []string{"-signer", rsaFile, "-stream"}, SHA256, nil},
		{"BER with subject key id", []string{"-signer", ecFile, "-stream", "-keyid"}, SHA256, nil},
		{"BER with other content type", []string{"-signer", rsaFile, "-stream", "-econtent_type", "pkcs7-envelopedData"}, SHA256, nil},
		{"signer missing", []string{"-signer", rsaFile, "-nocerts"}, 0, ErrSigner},
		{"two signers", []string{"-signer", rsaFile, "-signer", ecFile}, 0, ErrSigner},
		{"no attributes", []string{"-signer", rsaFile, "-noattr"}, 0, ErrSignature},
		{"PSS, salt as long as can be", []string{"-signer", rsaFile, "-keyopt", "rsa_padding_mode:pss", "-keyopt", "rsa_pss_saltlen:max"}, SHA256, nil},
		{"PSS, salt as long as the digest", []string{"-signer", rsaFile, "-md", "sha384", "-keyopt", "rsa_padding_mode:pss", "-keyopt", "rsa_pss_saltlen:digest"}, SHA384, nil},
		{"PSS, SHA-1", []string{"-signer", rsaFile, "-md", "sha1", "-keyopt", "rsa_padding_mode:pss"}, 0, ErrAlgorithm},
	} {
		t.Run(c.name, func(t *testing.T) {
			message := sign(c.args...)
			if isBER(message) != strings.HasPrefix(c.name, "BER") {
				t.Fatalf("message begins with % x", message[:4])
			}
			sd, signer, err := verify(message, everything)
			if !errors.Is(err, c.want) {
				t.Fatalf("%v, want %v", err, c.want)
			}
			if err != nil {
				return
			}
			want := rsaSigner.certificate.Raw
			if c.args[1] == ecFile {
				want = ecSigner.certificate.Raw
			}
			if !bytes.Equal(sd.Content, longContent) || signer.Digest != c.digest || !bytes.Equal(signer.Certificate.Raw, want) {
				t.Errorf("%d bytes of content, %v", len(sd.Content), signer.Digest)
			}
		})
	}
	t.Run("smime", func(t *testing.T) {
		message := openssl(t, dir, "smime", "-sign", "-binary", "-nodetach", "-in", "content", "-outform", "DER", "-signer", rsaFile)
		if sd, _, err := verify(message, DefaultPolicy()); err != nil || !bytes.Equal(sd.Content, longContent) {
			t.Error(err)
		}
	})
	t.Run("detached", func(t *testing.T) {
		message := openssl(t, dir, "cms", "-sign", "-binary", "-in", "content", "-outform", "DER", "-signer", rsaFile)
		if _, _, err := verify(message, DefaultPolicy()); !errors.Is(err, ErrSignature) {
			t.Errorf("%v, want ErrSignature", err)
		}
	})
}

func TestDecryptWhatOpenSSLEncrypts(t *testing.T) {
	needtest.Program(t, "openssl", "openssl")
	dir := t.TempDir()
	writeFile(t, dir, "content", longContent)
	r, ec := rsaIdentity(t), ecIdentity(t, elliptic.P256())
	rsaFile, ecFile := r.write(t, dir), ec.write(t, dir)
	raFile := writeFile(t, dir, "ra.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: readPEM(t, "ra.crt")}))
	recip := func(opts ...string) []string {
		args := []string{"-recip", rsaFile}
		for _, o := range opts {
			args = append(args, "-keyopt", o)
		}
		return args
	}
	for _, c := range []struct {
		name   string
		cipher string
		args   []string
		want   Cipher
	}{
		{"AES-128", "-aes128", []string{rsaFile}, AES128CBC},
		{"AES-192", "-aes192", []string{rsaFile}, AES192CBC},
		{"AES-256", "-aes256", []string{rsaFile}, AES256CBC},
		{"3DES", "-des3", []string{rsaFile}, DES3CBC},
		{"DES", "-des", []string{"-provider", "legacy", "-provider", "default", rsaFile}, DESCBC},
		{"subject key id", "-aes128", []string{"-keyid", rsaFile}, AES128CBC},
		{"OAEP", "-aes128", recip("rsa_padding_mode:oaep"), AES128CBC},
		{"OAEP SHA-256", "-aes256", recip("rsa_padding_mode:oaep", "rsa_oaep_md:sha256"), AES256CBC},
		{"OAEP SHA-512 MGF1 SHA-256", "-aes128", recip("rsa_padding_mode:oaep", "rsa_oaep_md:sha512", "rsa_mgf1_md:sha256"), AES128CBC},
		{"OAEP with label", "-aes128", recip("rsa_padding_mode:oaep", "rsa_oaep_label:6c6162656c"), AES128CBC},
		{"several recipients", "-aes128", []string{raFile, rsaFile}, AES128CBC},
		{"key agreement too", "-aes128", []string{ecFile, rsaFile}, AES128CBC},
		{"password and shared key too", "-aes128", []string{"-pwri_password", "x", "-secretkey", "000102030405060708090a0b0c0d0e0f", "-secretkeyid", "01", rsaFile}, AES128CBC},
		{"BER", "-aes128", []string{"-stream", rsaFile}, AES128CBC},
		{"BER OAEP subject key id", "-aes256", append([]string{"-stream", "-keyid"}, recip("rsa_padding_mode:oaep")...), AES256CBC},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := append([]string{"cms", "-encrypt", "-binary", "-in", "content", "-outform", "DER", c.cipher}, c.args...)
			message := openssl(t, dir, args...)
			if isBER(message) != strings.HasPrefix(c.name, "BER") {
				t.Fatalf("message begins with % x", message[:4])
			}
			e, err := ParseEnvelopedData(message)
			if err != nil {
				t.Fatal(err)
			}
			if e.ContentCipher != c.want || !e.ContentType.Equal(OIDData) {
				t.Errorf("%v of %v", e.ContentCipher, e.ContentType)
			}
			content, used, err := decrypt(message, r, everything)
			if err != nil || !bytes.Equal(content, longContent) || used != 1 {
				t.Errorf("%d bytes, %v, key used %d times", len(content), err, used)
			}
		})
	}
}

func TestOpenSSLDecryptsWhatWeEncrypt(t *testing.T) {
	needtest.Program(t, "openssl", "openssl")
	dir := t.TempDir()
	r := rsaIdentity(t)
	file := r.write(t, dir)
	for _, c := range []Cipher{DES3CBC, AES128CBC, AES192CBC, AES256CBC} {
		for _, content := range [][]byte{nil, []byte("x"), bytes.Repeat([]byte("b"), 16), longContent} {
			message, err := Encrypt(rand.Reader, content, r.parsed, c)
			if err != nil {
				t.Fatal(err)
			}
			writeFile(t, dir, "message", message)
			for _, tool := range []string{"cms", "smime"} {
				got := openssl(t, dir, tool, "-decrypt", "-binary", "-inform", "DER", "-in", "message", "-recip", file)
				if !bytes.Equal(got, content) {
					t.Errorf("%v, %d bytes: openssl %s got %d", c, len(content), tool, len(got))
				}
			}
			if got, _, err := decrypt(message, r, everything); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%v, %d bytes: %v", c, len(content), err)
			}
		}
	}
}

func TestOpenSSLVerifiesWhatWeSign(t *testing.T) {
	needtest.Program(t, "openssl", "openssl")
	dir := t.TempDir()
	attributes := []Attribute{
		{oidTransactionID, element(19, []byte("0123"))},
		{oidMessageType, element(19, []byte("3"))},
		{oidSenderNonce, element(4, bytes.Repeat([]byte{7}, 16))},
	}
	for name, signer := range map[string]identity{
		"RSA": rsaIdentity(t), "P-256": ecIdentity(t, elliptic.P256()), "P-521": ecIdentity(t, elliptic.P521()),
	} {
		writeFile(t, dir, "signer.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signer.certificate.Raw}))
		for _, d := range []Digest{SHA1, SHA256, SHA384, SHA512} {
			for _, content := range [][]byte{nil, longContent} {
				o := SignOptions{Content: content, Attributes: attributes, SignerCertificate: signer.certificate, Signer: signer.signer,
					Certificates: [][]byte{signer.certificate.Raw}, Digest: d}
				message, err := Sign(o)
				if err != nil {
					t.Fatal(err)
				}
				writeFile(t, dir, "message", message)
				got := openssl(t, dir, "cms", "-verify", "-noverify", "-binary", "-inform", "DER", "-in", "message")
				if !bytes.Equal(got, content) {
					t.Errorf("%s with %v: openssl got %d bytes", name, d, len(got))
				}
				o.Certificates = nil
				if message, err = Sign(o); err != nil {
					t.Fatal(err)
				}
				writeFile(t, dir, "message", message)
				openssl(t, dir, "cms", "-verify", "-noverify", "-binary", "-inform", "DER", "-in", "message", "-certfile", "signer.pem", "-nointern")
			}
		}
	}
}

func TestOpenSSLReadsCertsOnly(t *testing.T) {
	needtest.Program(t, "openssl", "openssl")
	dir := t.TempDir()
	certificates := [][]byte{readPEM(t, "ra.crt"), readPEM(t, "ca.crt"), rsaIdentity(t).certificate.Raw}
	message, err := CertsOnly(certificates)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, dir, "message", message)
	rest := openssl(t, dir, "pkcs7", "-inform", "DER", "-in", "message", "-print_certs")
	for i, want := range certificates {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || !bytes.Equal(block.Bytes, want) {
			t.Errorf("certificate %d is another", i)
		}
	}
	sd, err := ParseSignedData(message)
	if err != nil {
		t.Fatal(err)
	}
	if len(sd.Certificates) != 3 || len(sd.Signers) != 0 || sd.Content != nil {
		t.Errorf("%d certificates, %d signers, content %v", len(sd.Certificates), len(sd.Signers), sd.Content)
	}
	for i, c := range sd.Certificates {
		if !bytes.Equal(c.Raw, certificates[i]) {
			t.Errorf("certificate %d is another", i)
		}
	}
	// What openssl writes has its certificates in the same form.
	writeFile(t, dir, "one.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificates[0]}))
	theirs := openssl(t, dir, "crl2pkcs7", "-nocrl", "-certfile", "one.pem", "-outform", "DER")
	if sd, err = ParseSignedData(theirs); err != nil || len(sd.Certificates) != 1 {
		t.Errorf("openssl's message: %v", err)
	}
}
