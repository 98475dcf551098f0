package pki

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"slices"
	"testing"
)

// rewritten is a request with other bytes at its key, its algorithm or its signature.
type rewritten struct {
	Info struct {
		Version    int
		Subject    asn1.RawValue
		Key        asn1.RawValue
		Attributes asn1.RawValue
	}
	Algorithm asn1.RawValue
	Signature asn1.BitString
}

func rewrite(t *testing.T, der []byte, change func(*rewritten)) []byte {
	t.Helper()
	var r rewritten
	if rest, err := asn1.Unmarshal(slices.Clone(der), &r); err != nil || len(rest) != 0 {
		t.Fatalf("reading the request: %v", err)
	}
	change(&r)
	der, err := asn1.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// TestTemplate: whatever stands for key and signature, the certificate is for the key made here, with the
// subject and names asked for, and the same bytes are no Request.
func TestTemplate(t *testing.T) {
	signed := goRequest(t, newKey(t, "ecdsa-p256"), x509.CertificateRequest{Subject: pkix.Name{CommonName: "dev"}, DNSNames: []string{"a.b"}}).Raw
	zeros := func(r *rewritten) { clear(r.Signature.Bytes) }
	for name, change := range map[string]func(*rewritten){
		"signed":                 func(*rewritten) {},
		"signature of zeros":     zeros,
		"no signature":           func(r *rewritten) { r.Signature = asn1.BitString{} },
		"signature cut in bytes": func(r *rewritten) { clear(r.Signature.Bytes); r.Signature.BitLength -= 3 }, // DER has zeros in what is cut off
		"unknown algorithm":      func(r *rewritten) { r.Algorithm = asn1.RawValue{FullBytes: []byte{0x30, 0x04, 0x06, 0x02, 0x2a, 0x03}} },
		"no key":                 func(r *rewritten) { r.Info.Key = asn1.RawValue{FullBytes: []byte{0x30, 0x00}} },
	} {
		t.Run(name, func(t *testing.T) {
			der := rewrite(t, signed, change)
			template, err := ParseTemplate(der)
			if err != nil {
				t.Fatal(err)
			}
			if template.Identity() != "dev" {
				t.Errorf("it names %q", template.Identity())
			}
			if _, err := ParseRequest(der); (err == nil) != (name == "signed") {
				t.Errorf("as a request: %v", err)
			}
			for _, algorithm := range []string{"rsa-2048", "ecdsa-p384"} {
				made := newKey(t, algorithm)
				request, err := template.ForKey(made.Public())
				if err != nil {
					t.Fatal(err)
				}
				cert := issued(t, newAuthority(t, newKey(t, "ecdsa-p256")), request)
				if public, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(made.Public()) {
					t.Error("the certificate has another key")
				}
				if cert.Subject.CommonName != "dev" || !slices.Equal(cert.DNSNames, []string{"a.b"}) {
					t.Errorf("for %s, %v", cert.Subject, cert.DNSNames)
				}
				if string(request.Raw) != string(der) {
					t.Error("the request asked is not what it was")
				}
			}
			if _, err := template.ForKey("no key"); err == nil {
				t.Error("a key of no type")
			}
		})
	}
	for name, der := range map[string][]byte{
		"key is no SEQUENCE": rewrite(t, signed, func(r *rewritten) { r.Info.Key = asn1.RawValue{FullBytes: []byte{0x05, 0x00}} }),
		"more behind it":     append(slices.Clone(signed), 0),
		"too long":           make([]byte, maxRequest+1),
		"nothing":            nil,
	} {
		if _, err := ParseTemplate(der); !errors.Is(err, ErrRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
