// What a green run does not prove: that a hardware TPM has these algorithms or signs in bearable time,
// that one without libtpms's habits refuses in the same words, or that its keys cannot be got at by
// other means than its commands.

package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"signet.internal/tpm/tpmtest"
)

func usePolicy(t testing.TB, d *Device, key *rsa.PrivateKey) Policy {
	return Policy{Key: &key.PublicKey, PCR: testPCR, Ref: "use", Signatures: []PolicySignature{approveNow(t, d, key, "use")}, Auth: true}
}

func makeKey(t testing.TB, srk *SRK, algorithm string, usage Usage, p Policy) (*Key, Blob) {
	t.Helper()
	blob, err := srk.CreateKey(algorithm, usage, p, testAuth)
	if err != nil {
		t.Fatal(err)
	}
	key, err := srk.Key(blob, algorithm, usage, p, testAuth)
	if err != nil {
		t.Fatal(err)
	}
	return key, blob
}

func TestKeysSign(t *testing.T) {
	d := open(t, tpmtest.Start(t))
	srk := makeSRK(t, d)
	p := usePolicy(t, d, policyKey(t))
	d256, d384 := sha256.Sum256([]byte("message")), sha512.Sum384([]byte("message"))
	for _, algorithm := range []string{"rsa-2048", "rsa-3072", "ecdsa-p256", "ecdsa-p384"} {
		t.Run(algorithm, func(t *testing.T) {
			key, _ := makeKey(t, srk, algorithm, UsageSign, p)
			switch pub := key.Public().(type) {
			case *rsa.PublicKey:
				sig, err := key.Sign(d256[:], crypto.SHA256, SchemePKCS1v15)
				if err != nil || rsa.VerifyPKCS1v15(pub, crypto.SHA256, d256[:], sig) != nil {
					t.Errorf("PKCS #1 v1.5: %v", err)
				}
				sig, err = key.Sign(d384[:], crypto.SHA384, SchemePSS)
				if err != nil || rsa.VerifyPSS(pub, crypto.SHA384, d384[:], sig, nil) != nil {
					t.Errorf("PSS: %v", err)
				}
				if _, err := key.DecryptRaw(make([]byte, pub.Size())); !errors.Is(err, ErrAlgorithm) {
					t.Errorf("a signing key decrypts: %v", err)
				}
			case *ecdsa.PublicKey:
				digest, hash := d256[:], crypto.SHA256
				if algorithm == "ecdsa-p384" {
					digest, hash = d384[:], crypto.SHA384
				}
				sig, err := key.Sign(digest, hash, SchemeECDSA)
				if err != nil || !ecdsa.VerifyASN1(pub, digest, sig) {
					t.Errorf("ECDSA: %v", err)
				}
				if _, err := key.Sign(digest, hash, SchemePKCS1v15); !errors.Is(err, ErrAlgorithm) {
					t.Errorf("RSA scheme with an ECDSA key: %v", err)
				}
			}
			checkTidy(t, d)
		})
	}
	if _, err := srk.CreateKey("rsa-4096", UsageSign, p, testAuth); !errors.Is(err, ErrAlgorithm) {
		t.Errorf("rsa-4096, which libtpms lacks: %v", err)
	}
	if _, err := srk.CreateKey("ecdsa-p256", UsageSign, p, []byte{0: 1, 31: 0}); err == nil {
		t.Error("binary authorisation value accepted")
	}
}

func TestKeysNeedApprovalAndAuth(t *testing.T) {
	m := tpmtest.New(t)
	d := open(t, m.Spec())
	srk := makeSRK(t, d)
	p := usePolicy(t, d, policyKey(t))
	key, blob := makeKey(t, srk, "ecdsa-p256", UsageSign, p)
	digest := sha256.Sum256([]byte("message"))
	if _, err := key.Sign(digest[:], crypto.SHA256, SchemeECDSA); err != nil {
		t.Fatal(err)
	}
	wrong, err := srk.Key(blob, "ecdsa-p256", UsageSign, p, bytes.Repeat([]byte("f"), 32))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wrong.Sign(digest[:], crypto.SHA256, SchemeECDSA); !errors.Is(err, ErrAuth) {
		t.Errorf("wrong authorisation value: %v", err)
	}

	// Password and policy without the authorisation value do not do it, in the TPM's own opinion.
	err = key.with(func(tp transport.TPM, h tpm2.TPMHandle, _ *approval) error {
		_, err := tpm2.Sign{
			KeyHandle: key.in(h, tpm2.PasswordAuth(testAuth)), Digest: tpm2.TPM2BDigest{Buffer: digest[:]},
			InScheme:   tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256})},
			Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
		}.Execute(tp)
		return err
	})
	if !errors.Is(err, ErrPolicy) {
		t.Errorf("password only: %v", err)
	}
	noAuth := *key
	noAuth.policy.Auth = false
	if _, err := noAuth.Sign(digest[:], crypto.SHA256, SchemeECDSA); !errors.Is(err, ErrPolicy) {
		t.Errorf("policy without authorisation value: %v", err)
	}

	if err := d.ExtendPCR(testPCR, "another image"); err != nil {
		t.Fatal(err)
	}
	if _, err := key.Sign(digest[:], crypto.SHA256, SchemeECDSA); !errors.Is(err, ErrMeasurement) {
		t.Errorf("after the PCR moved: %v", err)
	}
	resetPCR(t, d)
	if _, err := key.Sign(digest[:], crypto.SHA256, SchemeECDSA); err != nil {
		t.Errorf("back in the approved state: %v", err)
	}
	checkTidy(t, d)
	d.Close()
	m.Reboot()
	checkTidy(t, open(t, m.Spec()))
}

func TestImplantedKeysAreRefused(t *testing.T) {
	d := open(t, tpmtest.Start(t))
	srk := makeSRK(t, d)
	p := usePolicy(t, d, policyKey(t))
	_, honest := makeKey(t, srk, "ecdsa-p256", UsageSign, p)
	digest, err := p.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*tpm2.TPMTPublic){
		"usable by password":   func(p *tpm2.TPMTPublic) { p.ObjectAttributes.UserWithAuth = true },
		"exportable":           func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM, p.ObjectAttributes.FixedParent = false, false },
		"imported":             func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SensitiveDataOrigin = false },
		"counts for lockout":   func(p *tpm2.TPMTPublic) { p.ObjectAttributes.NoDA = false },
		"another policy":       func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = bytes.Repeat([]byte{1}, 32) },
		"decrypts too":         func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Decrypt = true },
		"an attestation key":   func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = true },
		"admin role by policy": func(p *tpm2.TPMTPublic) { p.ObjectAttributes.AdminWithPolicy = true },
	} {
		pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](honest.Public)
		if err != nil {
			t.Fatal(err)
		}
		change(pub)
		b := Blob{Public: tpm2.Marshal(pub), Private: honest.Private}
		if _, err := srk.Key(b, "ecdsa-p256", UsageSign, p, testAuth); !errors.Is(err, ErrPolicy) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, b := range map[string]Blob{"empty": {}, "garbage": {Public: []byte("garbage")}, "trailing": {Public: append(bytes.Clone(honest.Public), 0)}} {
		if _, err := srk.Key(b, "ecdsa-p256", UsageSign, p, testAuth); !errors.Is(err, ErrPolicy) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := srk.Key(honest, "rsa-2048", UsageSign, p, testAuth); !errors.Is(err, ErrPolicy) {
		t.Errorf("another algorithm: %v", err)
	}
	// A public area that is as it should be, with another key's private part, does not load.
	_, second := makeKey(t, srk, "ecdsa-p256", UsageSign, p)
	mixed, err := srk.Key(Blob{Public: honest.Public, Private: second.Private}, "ecdsa-p256", UsageSign, p, testAuth)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := mixed.Sign(digest, crypto.SHA256, SchemeECDSA); err == nil {
		t.Error("mixed halves sign")
	}
}

func TestDecryptRaw(t *testing.T) {
	d := open(t, tpmtest.Start(t))
	srk := makeSRK(t, d)
	key, _ := makeKey(t, srk, "rsa-2048", UsageSignDecrypt, usePolicy(t, d, policyKey(t)))
	pub := key.Public().(*rsa.PublicKey)
	ciphertext, err := rsa.EncryptPKCS1v15(rand.Reader, pub, []byte("content key"))
	if err != nil {
		t.Fatal(err)
	}
	padded, err := key.DecryptRaw(ciphertext)
	if err != nil {
		t.Fatal(err)
	}
	if len(padded) != 256 || padded[0] != 0 || padded[1] != 2 || !bytes.HasSuffix(padded, []byte("\x00content key")) {
		t.Errorf("padded message %x", padded)
	}
	digest := sha256.Sum256(nil)
	sig, err := key.Sign(digest[:], crypto.SHA256, SchemePKCS1v15)
	if err != nil || rsa.VerifyPKCS1v15(pub, crypto.SHA256, digest[:], sig) != nil {
		t.Errorf("signing with it: %v", err)
	}
}

// An attestation key refuses digests of others and signs a quote.
func TestAttestationKeyQuotes(t *testing.T) {
	d := open(t, tpmtest.Start(t))
	srk := makeSRK(t, d)
	key, _ := makeKey(t, srk, "ecdsa-p256", UsageAttest, usePolicy(t, d, policyKey(t)))
	digest := sha256.Sum256(nil)
	if _, err := key.Sign(digest[:], crypto.SHA256, SchemeECDSA); !errors.Is(err, ErrAlgorithm) {
		t.Errorf("signs a foreign digest: %v", err)
	}
	var quote *tpm2.QuoteResponse
	err := key.with(func(tp transport.TPM, h tpm2.TPMHandle, a *approval) (err error) {
		quote, err = tpm2.Quote{
			SignHandle: key.in(h, srk.policySession(key.policy, a, key.auth, encryptIn)), QualifyingData: tpm2.TPM2BData{Buffer: []byte("nonce")},
			InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, PCRSelect: selectPCR(testPCR),
		}.Execute(tp)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	sig, err := encodeSignature(quote.Signature)
	sum := sha256.Sum256(quote.Quoted.Bytes())
	if err != nil || !ecdsa.VerifyASN1(key.Public().(*ecdsa.PublicKey), sum[:], sig) {
		t.Errorf("quote does not verify: %v", err)
	}
}

func BenchmarkSign(b *testing.B) {
	d := open(b, tpmtest.Start(b))
	srk := makeSRK(b, d)
	p := usePolicy(b, d, policyKey(b))
	digest := sha256.Sum256([]byte("message"))
	for algorithm, scheme := range map[string]Scheme{"rsa-2048": SchemePKCS1v15, "rsa-3072": SchemePKCS1v15, "ecdsa-p256": SchemeECDSA} {
		key, _ := makeKey(b, srk, algorithm, UsageSign, p)
		b.Run(algorithm, func(b *testing.B) {
			for b.Loop() {
				if _, err := key.Sign(digest[:], crypto.SHA256, scheme); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
