package tpm

import (
	"crypto"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Usage is what a key may do, for ever: the TPM enforces it.
type Usage int

// Usages.
const (
	UsageSign        Usage = iota // sign digests
	UsageSignDecrypt              // sign digests and decrypt; RSA only
	UsageAttest                   // sign what the TPM itself states, and nothing else; ECDSA only
)

// ErrAlgorithm says that neither this package nor, if it comes from the TPM, the TPM has a key
// algorithm.
var ErrAlgorithm = errors.New("the key algorithm is not supported")

// Scheme of a signature.
type Scheme int

// Schemes.
const (
	SchemePKCS1v15 Scheme = iota // RSA
	SchemePSS                    // RSA; the TPM chooses the salt's length
	SchemeECDSA
)

// keyTemplate is the public area of a key by its algorithm ("rsa-3072", "ecdsa-p256"): usable by
// policy only, never exportable.
func keyTemplate(algorithm string, usage Usage, policy []byte) (tpm2.TPMTPublic, error) {
	template := tpm2.TPMTPublic{
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, NoDA: true, SignEncrypt: true,
			Decrypt:    usage == UsageSignDecrypt,
			Restricted: usage == UsageAttest,
		},
		AuthPolicy: tpm2.TPM2BDigest{Buffer: policy},
	}
	ecdsa := func(curve tpm2.TPMECCCurve, hash tpm2.TPMAlgID) (tpm2.TPMTPublic, error) {
		if usage == UsageSignDecrypt {
			return tpm2.TPMTPublic{}, fmt.Errorf("%w: %s cannot decrypt", ErrAlgorithm, algorithm)
		}
		template.Type = tpm2.TPMAlgECC
		template.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			CurveID: curve,
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: hash}),
			},
		})
		return template, nil
	}
	// A scheme of NULL leaves the hash open, which RSA authorities need: one key signs with SHA-256
	// and SHA-512.
	rsa := func(bits tpm2.TPMKeyBits) (tpm2.TPMTPublic, error) {
		if usage == UsageAttest {
			return tpm2.TPMTPublic{}, fmt.Errorf("%w: attestation keys are ecdsa-p256, not %s", ErrAlgorithm, algorithm)
		}
		template.Type = tpm2.TPMAlgRSA
		template.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: bits})
		return template, nil
	}
	switch algorithm {
	case "rsa-2048":
		return rsa(2048)
	case "rsa-3072":
		return rsa(3072)
	case "rsa-4096":
		return rsa(4096)
	case "ecdsa-p256":
		return ecdsa(tpm2.TPMECCNistP256, tpm2.TPMAlgSHA256)
	case "ecdsa-p384":
		return ecdsa(tpm2.TPMECCNistP384, tpm2.TPMAlgSHA384)
	}
	return tpm2.TPMTPublic{}, fmt.Errorf("%w: %s", ErrAlgorithm, algorithm)
}

// checkAuth says whether auth can be an authorisation value. go-tpm cuts HMAC keys off at the first
// zero byte, so values are text.
func checkAuth(auth []byte) error {
	if len(auth) != 32 {
		return fmt.Errorf("authorisation value of %d bytes, want 32", len(auth))
	}
	for _, c := range auth {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return errors.New("authorisation value is not lower-case hex")
		}
	}
	return nil
}

// CreateKey makes a key that can be used under p, with the authorisation value auth (32 hex
// characters) where p.Auth is set. ErrAlgorithm if the TPM cannot have such a key.
func (s *SRK) CreateKey(algorithm string, usage Usage, p Policy, auth []byte) (Blob, error) {
	template, err := s.template(algorithm, usage, p, auth)
	if err != nil {
		return Blob{}, fmt.Errorf("creating a key: %w", err)
	}
	b, err := get(s.d, func(t transport.TPM) (Blob, error) {
		if _, err := (tpm2.TestParms{Parameters: tpm2.TPMTPublicParms{Type: template.Type, Parameters: template.Parameters}}).Execute(t); err != nil {
			return Blob{}, fmt.Errorf("%w: the TPM has no %s: %v", ErrAlgorithm, algorithm, err)
		}
		return s.create(t, template, auth, nil)
	})
	if err != nil {
		return Blob{}, fmt.Errorf("creating a key: %w", err)
	}
	return b, nil
}

func (s *SRK) template(algorithm string, usage Usage, p Policy, auth []byte) (tpm2.TPMTPublic, error) {
	if err := checkAuth(auth); err != nil {
		return tpm2.TPMTPublic{}, err
	}
	digest, err := p.Digest()
	if err != nil {
		return tpm2.TPMTPublic{}, err
	}
	return keyTemplate(algorithm, usage, digest)
}

// Key is a key in the TPM. Safe for concurrent use, as far as the Device's queue goes.
type Key struct {
	srk    *SRK
	blob   Blob
	name   tpm2.TPM2BName
	pub    tpm2.TPMTPublic
	public crypto.PublicKey
	policy Policy
	digest []byte // policy.Digest()
	auth   []byte
}

// Key returns the key of a Blob that CreateKey made with the same arguments, without loading it.
// ErrPolicy if it is another kind of key: exportable, for another use, or under another policy.
func (s *SRK) Key(b Blob, algorithm string, usage Usage, p Policy, auth []byte) (*Key, error) {
	template, err := s.template(algorithm, usage, p, auth)
	if err != nil {
		return nil, err
	}
	pub, err := checkPublic(b, template)
	if err != nil {
		return nil, err
	}
	name, err := tpm2.ObjectName(pub)
	if err != nil {
		return nil, fmt.Errorf("naming a key: %w", err)
	}
	public, err := tpm2.Pub(*pub)
	if err != nil {
		return nil, fmt.Errorf("parsing a key: %w", err)
	}
	return &Key{srk: s, blob: b, name: *name, pub: *pub, public: public, policy: p, digest: template.AuthPolicy.Buffer, auth: auth}, nil
}

// Public is the public key: *rsa.PublicKey or *ecdsa.PublicKey.
func (k *Key) Public() crypto.PublicKey { return k.public }

// with runs use on the worker with the loaded key and the approval that its policy needs.
func (k *Key) with(use func(t transport.TPM, h tpm2.TPMHandle, a *approval) error) error {
	d := k.srk.d
	return d.do(func(t transport.TPM) error {
		h, err := d.load(t, k.srk, k.blob, k.name)
		if err != nil {
			return fmt.Errorf("loading the key: %w", err)
		}
		return d.authorised(t, k.policy, k.digest, func(a *approval) error { return explain(use(t, h, a)) })
	})
}

// in authorises one command on the loaded key in a session of its policy.
func (k *Key) in(h tpm2.TPMHandle, session tpm2.Session) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: h, Name: k.name, Auth: session}
}

var hashAlgorithms = map[crypto.Hash]tpm2.TPMAlgID{
	crypto.SHA256: tpm2.TPMAlgSHA256,
	crypto.SHA384: tpm2.TPMAlgSHA384,
	crypto.SHA512: tpm2.TPMAlgSHA512,
}

// Sign signs a digest. The signature is what crypto.Signer returns: ASN.1 for ECDSA, the bare number
// for RSA. A P-256 key signs SHA-256 only, a P-384 key SHA-384; an attestation key none at all.
func (k *Key) Sign(digest []byte, hash crypto.Hash, scheme Scheme) ([]byte, error) {
	alg, ok := hashAlgorithms[hash]
	if !ok {
		return nil, fmt.Errorf("signing: %w: hash %v; use SHA-256, SHA-384 or SHA-512", ErrAlgorithm, hash)
	}
	if len(digest) != hash.Size() {
		return nil, fmt.Errorf("signing: digest of %d bytes for %v", len(digest), hash)
	}
	if k.pub.ObjectAttributes.Restricted {
		return nil, fmt.Errorf("signing: %w: an attestation key signs only what the TPM states", ErrAlgorithm)
	}
	schemeAlg := map[Scheme]tpm2.TPMAlgID{SchemePKCS1v15: tpm2.TPMAlgRSASSA, SchemePSS: tpm2.TPMAlgRSAPSS, SchemeECDSA: tpm2.TPMAlgECDSA}[scheme]
	if (schemeAlg == tpm2.TPMAlgECDSA) != (k.pub.Type == tpm2.TPMAlgECC) {
		return nil, fmt.Errorf("signing: %w: scheme and key do not fit", ErrAlgorithm)
	}
	var signature tpm2.TPMTSignature
	err := k.with(func(t transport.TPM, h tpm2.TPMHandle, a *approval) error {
		return k.inSession(t, a, func(session tpm2.Session) error {
			rsp, err := tpm2.Sign{
				KeyHandle:  k.in(h, session),
				Digest:     tpm2.TPM2BDigest{Buffer: digest},
				InScheme:   tpm2.TPMTSigScheme{Scheme: schemeAlg, Details: tpm2.NewTPMUSigScheme(schemeAlg, &tpm2.TPMSSchemeHash{HashAlg: alg})},
				Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
			}.Execute(t)
			if err != nil {
				return err
			}
			signature = rsp.Signature
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	return encodeSignature(signature)
}

func encodeSignature(s tpm2.TPMTSignature) ([]byte, error) {
	switch s.SigAlg {
	case tpm2.TPMAlgRSASSA:
		sig, err := s.Signature.RSASSA()
		if err != nil {
			return nil, fmt.Errorf("signing: parsing the signature: %w", err)
		}
		return sig.Sig.Buffer, nil
	case tpm2.TPMAlgRSAPSS:
		sig, err := s.Signature.RSAPSS()
		if err != nil {
			return nil, fmt.Errorf("signing: parsing the signature: %w", err)
		}
		return sig.Sig.Buffer, nil
	case tpm2.TPMAlgECDSA:
		sig, err := s.Signature.ECDSA()
		if err != nil {
			return nil, fmt.Errorf("signing: parsing the signature: %w", err)
		}
		return asn1.Marshal(struct{ R, S *big.Int }{
			new(big.Int).SetBytes(sig.SignatureR.Buffer), new(big.Int).SetBytes(sig.SignatureS.Buffer),
		})
	}
	return nil, fmt.Errorf("signing: the TPM answered with signature algorithm %#x", uint16(s.SigAlg))
}

// DecryptRaw is RSA without any padding scheme: the caller unpads, in constant time, so that the TPM
// gives nothing away about the padding of chosen ciphertexts. The ciphertext has to be as long as the
// modulus and smaller than it; the result is as long.
func (k *Key) DecryptRaw(ciphertext []byte) ([]byte, error) {
	if !k.pub.ObjectAttributes.Decrypt {
		return nil, fmt.Errorf("decrypting: %w: the key only signs", ErrAlgorithm)
	}
	out := make([]byte, len(ciphertext))
	err := k.with(func(t transport.TPM, h tpm2.TPMHandle, a *approval) error {
		rsp, err := tpm2.RSADecrypt{
			KeyHandle:  k.in(h, k.srk.policySession(k.policy, a, k.auth, encryptInOut)),
			CipherText: tpm2.TPM2BPublicKeyRSA{Buffer: ciphertext},
			InScheme:   tpm2.TPMTRSADecrypt{Scheme: tpm2.TPMAlgNull},
		}.Execute(t)
		if err != nil {
			return err
		}
		if len(rsp.Message.Buffer) > len(out) {
			return fmt.Errorf("message of %d bytes", len(rsp.Message.Buffer))
		}
		copy(out[len(out)-len(rsp.Message.Buffer):], rsp.Message.Buffer)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("decrypting: %w", err)
	}
	return out, nil
}
