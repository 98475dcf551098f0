// What a green run does not prove: that the attestation key is this TPM's to anybody who has not seen it
// before, nor that a hardware TPM authorises the certified key in the same way.

package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"signet.internal/tpm/tpmtest"
)

func TestCertify(t *testing.T) {
	m := tpmtest.New(t)
	d := open(t, m.Spec())
	srk := makeSRK(t, d)
	p := usePolicy(t, d, policyKey(t))
	attestation, _ := makeKey(t, srk, "ecdsa-p256", UsageAttest, p)
	signer, blob := makeKey(t, srk, "ecdsa-p384", UsageSign, p)
	ra, _ := makeKey(t, srk, "rsa-2048", UsageSignDecrypt, p)
	nonce := []byte("nonce of whoever asks")
	for name, key := range map[string]*Key{"signs": signer, "decrypts": ra, "itself": attestation} {
		c, err := key.Certify(attestation, nonce)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		checkCertification(t, c, attestation, nonce)
		if public, err := tpm2.Unmarshal[tpm2.TPMTPublic](c.Public); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if public, err := tpm2.Pub(*public); err != nil || !public.(interface{ Equal(crypto.PublicKey) bool }).Equal(key.Public()) {
			t.Errorf("%s: another key was certified: %v", name, err)
		}
		checkTidy(t, d)
	}

	if _, err := signer.Certify(ra, nonce); err == nil {
		t.Error("any key attests")
	}
	wrong, err := srk.Key(blob, "ecdsa-p384", UsageSign, p, bytes.Repeat([]byte("f"), 32))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wrong.Certify(attestation, nonce); !errors.Is(err, ErrAuth) {
		t.Errorf("wrong authorisation value: %v", err)
	}
	if err := d.ExtendPCR(testPCR, "something else"); err != nil {
		t.Fatal(err)
	}
	if _, err := signer.Certify(attestation, nonce); !errors.Is(err, ErrMeasurement) {
		t.Errorf("in another phase: %v", err)
	}
}

// checkCertification verifies with nothing but what somebody elsewhere has.
func checkCertification(t *testing.T, c Certification, attestation *Key, nonce []byte) {
	t.Helper()
	digest := sha256.Sum256(c.Attest)
	if !ecdsa.VerifyASN1(attestation.Public().(*ecdsa.PublicKey), digest[:], c.Signature) {
		t.Error("the signature is not the attestation key's")
	}
	attest, err := tpm2.Unmarshal[tpm2.TPMSAttest](c.Attest)
	if err != nil {
		t.Fatal(err)
	}
	info, err := attest.Attested.Certify()
	if err != nil || attest.Magic != tpm2.TPMGeneratedValue || !bytes.Equal(attest.ExtraData.Buffer, nonce) {
		t.Fatalf("magic %#x, data %q, %v", attest.Magic, attest.ExtraData.Buffer, err)
	}
	name, err := Blob{Public: c.Public}.Name()
	if err != nil || !bytes.Equal(info.Name.Buffer, name) {
		t.Errorf("the TPM certified %x, not %x: %v", info.Name.Buffer, name, err)
	}
}
