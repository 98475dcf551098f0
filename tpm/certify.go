package tpm

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Certification is what the TPM states about a key of its own.
type Certification struct {
	Attest    []byte // TPMS_ATTEST
	Signature []byte // over SHA-256 of Attest, ASN.1 as crypto.Signer returns it
	Public    []byte // TPMT_PUBLIC of the key
}

// Certify has attestation, a key of UsageAttest, state that k is in this TPM, over up to 32 bytes of
// qualifying data (TPM2_Certify, TPM 2.0 Part 3 §18.2). The statement carries k's Name, which stands for
// its attributes too: that it was made here, cannot leave, and works under its policy alone.
//
// The attestation key is used under its policy. The certified key takes the ADMIN role, for which the
// TPM wants its authorisation value or a policy made for this very command (Part 1 §19.2), and the
// policy of keys here is made for none: so it is the value, in a session of its own.
func (k *Key) Certify(attestation *Key, qualifying []byte) (Certification, error) {
	if attestation.srk.d != k.srk.d || !attestation.pub.ObjectAttributes.Restricted {
		return Certification{}, errors.New("certifying: the signing key is no attestation key of this TPM")
	}
	var out Certification
	var signature tpm2.TPMTSignature
	d := k.srk.d
	err := d.do(func(t transport.TPM) error {
		certified, err := d.load(t, k.srk, k.blob, k.name)
		if err != nil {
			return fmt.Errorf("loading the key: %w", err)
		}
		signer, err := d.load(t, k.srk, attestation.blob, attestation.name)
		if err != nil {
			return fmt.Errorf("loading the attestation key: %w", err)
		}
		return d.authorised(t, attestation.policy, attestation.digest, func(a *approval) error {
			rsp, err := tpm2.Certify{
				ObjectHandle: tpm2.AuthHandle{Handle: certified, Name: k.name,
					Auth: tpm2.HMAC(tpm2.TPMAlgSHA256, nonceSize, tpm2.Salted(SRKHandle, k.srk.pub), tpm2.Auth(k.auth))},
				SignHandle: tpm2.AuthHandle{Handle: signer, Name: attestation.name,
					Auth: k.srk.policySession(attestation.policy, a, attestation.auth, encryptIn)},
				QualifyingData: tpm2.TPM2BData{Buffer: qualifying},
				InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
			}.Execute(t)
			if err != nil {
				return explain(err)
			}
			out.Attest, signature = rsp.CertifyInfo.Bytes(), rsp.Signature
			return nil
		})
	})
	if err != nil {
		return Certification{}, fmt.Errorf("certifying: %w", err)
	}
	if out.Signature, err = encodeSignature(signature); err != nil {
		return Certification{}, err
	}
	out.Public = k.blob.Public
	return out, nil
}
