package tpm

import (
	"bytes"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

var (
	// ErrMeasurement says that what booted, or the boot phase it is in, is not approved by the
	// site's policy key.
	ErrMeasurement = errors.New("what is measured now is not approved by the site's policy key")
	// ErrPolicy says that an object is not protected by the policy this image expects.
	ErrPolicy = errors.New("the object is not protected by the expected policy")
	// ErrAuth says that the TPM did not accept an object's authorisation value.
	ErrAuth = errors.New("the TPM refuses the authorisation value")
)

// Policy says when the TPM lets an object be used.
//
// With a Key: only while PCR has a value that Key approved for Ref. With Auth: only by who knows the
// object's authorisation value. With both, both. Whoever holds Key can approve other images.
type Policy struct {
	Key        *rsa.PublicKey    // nil: no condition on what booted
	PCR        int               // with Key
	Ref        string            // with Key
	Signatures []PolicySignature // with Key: the approvals at hand, those for other Refs too
	Auth       bool
}

// Digest is the authPolicy of objects under p, 32 bytes. Approvals do not change it.
func (p Policy) Digest() ([]byte, error) {
	var name *tpm2.TPM2BName
	if p.Key != nil {
		pub := policyKeyPublic(p.Key)
		var err error
		if name, err = tpm2.ObjectName(&pub); err != nil {
			return nil, fmt.Errorf("naming the policy key: %w", err)
		}
	}
	return policyDigest(func(c *tpm2.PolicyCalculator) error {
		if name != nil {
			// First on a fresh calculator: TPM2_PolicyAuthorize starts the digest anew, go-tpm's
			// Update does not.
			if err := (tpm2.PolicyAuthorize{PolicyRef: tpm2.TPM2BDigest{Buffer: []byte(p.Ref)}, KeySign: *name}).Update(c); err != nil {
				return err
			}
		}
		if p.Auth {
			return tpm2.PolicyAuthValue{}.Update(c)
		}
		return nil
	}), nil
}

// policyDigest runs f on a fresh SHA-256 calculator. Neither the algorithm nor marshalling of the
// fixed structures in this package can fail at run time.
func policyDigest(f func(*tpm2.PolicyCalculator) error) []byte {
	c, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err == nil {
		err = f(c)
	}
	if err != nil {
		panic("tpm: computing a policy digest: " + err.Error())
	}
	return c.Hash().Digest
}

// policyKeyPublic is the public area under which every TPM knows the policy key. Its Name is part
// of each object's policy, so none of its bits may change.
func policyKeyPublic(key *rsa.PublicKey) tpm2.TPMTPublic {
	exponent := uint32(key.E)
	if exponent == 65537 {
		exponent = 0 // TPM 2.0 Part 2 §12.2.3.5: zero means 2^16+1
	}
	return tpm2.TPMTPublic{
		Type:             tpm2.TPMAlgRSA,
		NameAlg:          tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{SignEncrypt: true, Decrypt: true, UserWithAuth: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
			Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull},
			Scheme:    tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgNull},
			KeyBits:   tpm2.TPMKeyBits(key.N.BitLen()),
			Exponent:  exponent,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: new(big.Int).Set(key.N).Bytes()}),
	}
}

// approval is a PolicySignature the TPM has verified.
type approval struct {
	PolicySignature
	key    tpm2.TPM2BName
	ticket tpm2.TPMTTKVerified // valid until the TPM is cleared
}

// holds says whether a comes from one of p's signatures.
func (p Policy) holds(a *approval) bool {
	return slices.ContainsFunc(p.Signatures, func(s PolicySignature) bool {
		return s.Ref == a.Ref && bytes.Equal(s.Policy, a.Policy) && bytes.Equal(s.Signature, a.Signature)
	})
}

// approve has the TPM verify the approval that fits what is measured now.
func (p Policy) approve(t transport.TPM) (*approval, error) {
	value, err := readPCR(t, p.PCR)
	if err != nil {
		return nil, err
	}
	now := PCRPolicyDigest(p.PCR, value)
	for _, s := range p.Signatures {
		if s.Ref != p.Ref || !bytes.Equal(s.Policy, now) {
			continue
		}
		return p.verify(t, s)
	}
	return nil, fmt.Errorf("%w: PCR %d is %x, no signature for %q fits", ErrMeasurement, p.PCR, value, p.Ref)
}

func (p Policy) verify(t transport.TPM, s PolicySignature) (*approval, error) {
	key, err := tpm2.LoadExternal{InPublic: tpm2.New2B(policyKeyPublic(p.Key)), Hierarchy: tpm2.TPMRHOwner}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("loading the policy key: %w", err)
	}
	defer flush(t, key.ObjectHandle)
	rsp, err := tpm2.VerifySignature{
		KeyHandle: key.ObjectHandle,
		Digest:    tpm2.TPM2BDigest{Buffer: approvalDigest(s.Policy, s.Ref)},
		Signature: tpm2.TPMTSignature{
			SigAlg: tpm2.TPMAlgRSASSA,
			Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgRSASSA, &tpm2.TPMSSignatureRSA{
				Hash: tpm2.TPMAlgSHA256,
				Sig:  tpm2.TPM2BPublicKeyRSA{Buffer: s.Signature},
			}),
		},
	}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("%w: the signature for %q is not the policy key's: %v", ErrMeasurement, s.Ref, err)
	}
	return &approval{PolicySignature: s, key: key.Name, ticket: rsp.Validation}, nil
}

// run brings a policy session to p's digest. a is nil where p has no Key.
func (p Policy) run(t transport.TPM, session tpm2.TPMISHPolicy, a *approval) error {
	if p.Key != nil {
		if _, err := (tpm2.PolicyPCR{PolicySession: session, Pcrs: selectPCR(p.PCR)}).Execute(t); err != nil {
			return fmt.Errorf("asserting PCR %d: %w", p.PCR, err)
		}
		_, err := tpm2.PolicyAuthorize{
			PolicySession:  session,
			ApprovedPolicy: tpm2.TPM2BDigest{Buffer: a.Policy},
			PolicyRef:      tpm2.TPM2BDigest{Buffer: []byte(a.Ref)},
			KeySign:        a.key,
			CheckTicket:    a.ticket,
		}.Execute(t)
		if errors.Is(err, tpm2.TPMRCValue) {
			return fmt.Errorf("%w: PCR %d is not what was approved for %q", ErrMeasurement, p.PCR, p.Ref)
		}
		if err != nil {
			return fmt.Errorf("asserting the site's approval: %w", err)
		}
	}
	if p.Auth {
		if _, err := (tpm2.PolicyAuthValue{PolicySession: session}).Execute(t); err != nil {
			return fmt.Errorf("asserting the authorisation value: %w", err)
		}
	}
	return nil
}

// explain turns the TPM's refusals of an authorised command into this package's sentinels.
func explain(err error) error {
	switch {
	case errors.Is(err, tpm2.TPMRCAuthFail), errors.Is(err, tpm2.TPMRCBadAuth):
		return fmt.Errorf("%w: %v", ErrAuth, err)
	case errors.Is(err, tpm2.TPMRCPolicyFail), errors.Is(err, tpm2.TPMRCAuthUnavailable):
		return fmt.Errorf("%w: %v", ErrPolicy, err)
	case errors.Is(err, tpm2.TPMRCPCRChanged):
		return fmt.Errorf("%w: %v", ErrMeasurement, err)
	}
	return err
}
