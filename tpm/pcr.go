package tpm

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// BootPCR is where systemd-stub and boxinit measure the image and its boot phases.
const BootPCR = 11

// PolicySignature is the site's approval of one value of a PCR: its policy key's signature over
// SHA-256(Policy || Ref), as TPM2_PolicyAuthorize wants it (TPM 2.0 Part 3 §23.16).
type PolicySignature struct {
	Ref       string // policyRef: what the approval is for
	Policy    []byte // PCRPolicyDigest of the approved value
	Signature []byte // RSASSA-PKCS1-v1_5 with SHA-256
}

func selectPCR(pcr int) tpm2.TPMLPCRSelection {
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
		Hash:      tpm2.TPMAlgSHA256,
		PCRSelect: tpm2.PCClientCompatible.PCRs(uint(pcr)),
	}}}
}

// ReadPCR returns the 32-byte value of a PCR in the SHA-256 bank.
func (d *Device) ReadPCR(pcr int) ([]byte, error) {
	return get(d, func(t transport.TPM) ([]byte, error) { return readPCR(t, pcr) })
}

func readPCR(t transport.TPM, pcr int) ([]byte, error) {
	rsp, err := tpm2.PCRRead{PCRSelectionIn: selectPCR(pcr)}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("reading PCR %d: %w", pcr, err)
	}
	if len(rsp.PCRValues.Digests) != 1 || len(rsp.PCRValues.Digests[0].Buffer) != sha256.Size {
		return nil, fmt.Errorf("reading PCR %d: the TPM keeps no SHA-256 bank", pcr)
	}
	return rsp.PCRValues.Digests[0].Buffer, nil
}

// ExtendPCR extends a PCR in every active bank by the digest of event in that bank's hash.
func (d *Device) ExtendPCR(pcr int, event string) error {
	return d.do(func(t transport.TPM) error {
		_, err := tpm2.PCREvent{
			PCRHandle: tpm2.TPMHandle(pcr),
			EventData: tpm2.TPM2BEvent{Buffer: []byte(event)},
		}.Execute(t)
		if err != nil {
			return fmt.Errorf("extending PCR %d by %q: %w", pcr, event, err)
		}
		return nil
	})
}

// PCRPolicyDigest is the TPM's policy digest of PolicyPCR(sha256:pcr = value), 32 bytes.
func PCRPolicyDigest(pcr int, value []byte) []byte {
	return policyDigest(func(c *tpm2.PolicyCalculator) error {
		sum := sha256.Sum256(value)
		return tpm2.PolicyPCR{PcrDigest: tpm2.TPM2BDigest{Buffer: sum[:]}, Pcrs: selectPCR(pcr)}.Update(c)
	})
}

// SignPolicy approves a policy digest for ref with the site's policy key, which has to be RSA.
func SignPolicy(key crypto.Signer, digest []byte, ref string) ([]byte, error) {
	if _, ok := key.Public().(*rsa.PublicKey); !ok {
		return nil, errors.New("signing PCR policy: the policy key is not RSA; make one with signet init")
	}
	sum := approvalDigest(digest, ref)
	sig, err := key.Sign(rand.Reader, sum, crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("signing PCR policy: %w", err)
	}
	return sig, nil
}

// approvalDigest is aHash of TPM 2.0 Part 3 §23.16.
func approvalDigest(policy []byte, ref string) []byte {
	h := sha256.New()
	h.Write(policy)
	h.Write([]byte(ref))
	return h.Sum(nil)
}
