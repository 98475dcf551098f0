package keys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"

	"signet.internal/tpm"
)

// privateKey is a key in the TPM or in memory. Arguments were checked by the Holder.
type privateKey interface {
	public() crypto.PublicKey
	sign(digest []byte, hash crypto.Hash, scheme uint8, salt int) ([]byte, error)
	decryptSessionKey(ciphertext []byte, length int) ([]byte, error)
	decryptOAEP(ciphertext []byte, hash, mgfHash crypto.Hash, label []byte) ([]byte, error)
}

// signs reports whether the key signs digests of a hash. A sealed RA key signs SHA-1 too: replies to
// old SCEP clients, which know nothing better. Nothing else trusts what it signs.
func (k *heldKey) signs(h crypto.Hash) bool {
	if h == crypto.SHA1 {
		return isRA(k.info.Name) && k.info.Protection == Sealed
	}
	return h == crypto.SHA256 || h == crypto.SHA384 || h == crypto.SHA512
}

type residentKey struct{ key *tpm.Key }

func newResidentKey(srk *tpm.SRK, k handedKey, policy tpm.Policy) (privateKey, error) {
	key, err := srk.Key(k.blob, k.spec.Algorithm, k.spec.usage(), policy, k.opening)
	if err != nil {
		return nil, explain(err)
	}
	return residentKey{key}, nil
}

func (k residentKey) public() crypto.PublicKey { return k.key.Public() }

func (k residentKey) sign(digest []byte, hash crypto.Hash, scheme uint8, salt int) ([]byte, error) {
	switch scheme {
	case schemePKCS1v15:
		return k.key.Sign(digest, hash, tpm.SchemePKCS1v15)
	case schemePSS:
		if salt != rsa.PSSSaltLengthAuto {
			return nil, refused("the TPM chooses the length of PSS salts; ask for rsa.PSSSaltLengthAuto")
		}
		return k.key.Sign(digest, hash, tpm.SchemePSS)
	case schemeECDSA:
		return k.key.Sign(digest, hash, tpm.SchemeECDSA)
	}
	return nil, refused("unknown signature scheme")
}

func (k residentKey) decryptSessionKey(ciphertext []byte, length int) ([]byte, error) {
	em, err := k.key.DecryptRaw(ciphertext)
	if err != nil {
		return nil, err
	}
	defer clear(em)
	return unpadSessionKey(em, length)
}

func (k residentKey) decryptOAEP(ciphertext []byte, hash, mgfHash crypto.Hash, label []byte) ([]byte, error) {
	em, err := k.key.DecryptRaw(ciphertext)
	if err != nil {
		return nil, err
	}
	return unpadOAEP(em, hash, mgfHash, label)
}

// softwareKey is an opened sealed key, *rsa.PrivateKey or *ecdsa.PrivateKey.
type softwareKey struct{ key crypto.Signer }

func newSoftwareKey(pkcs8 []byte) (privateKey, error) {
	key, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		return nil, fmt.Errorf("parsing it: %w", err)
	}
	switch key := key.(type) {
	case *rsa.PrivateKey:
		return softwareKey{key}, nil
	case *ecdsa.PrivateKey:
		return softwareKey{key}, nil
	}
	return nil, fmt.Errorf("a %T is not supported", key)
}

func (k softwareKey) public() crypto.PublicKey { return k.key.Public() }

func (k softwareKey) sign(digest []byte, hash crypto.Hash, scheme uint8, salt int) ([]byte, error) {
	_, isRSA := k.key.(*rsa.PrivateKey)
	switch {
	case scheme == schemePKCS1v15 && isRSA, scheme == schemeECDSA && !isRSA:
		return k.key.Sign(rand.Reader, digest, hash)
	case scheme == schemePSS && isRSA:
		return k.key.Sign(rand.Reader, digest, &rsa.PSSOptions{SaltLength: salt, Hash: hash})
	}
	return nil, refused("signature scheme and key do not fit")
}

func (k softwareKey) decryptSessionKey(ciphertext []byte, length int) ([]byte, error) {
	key := make([]byte, length)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("making a substitute session key: %w", err)
	}
	if err := rsa.DecryptPKCS1v15SessionKey(nil, k.key.(*rsa.PrivateKey), ciphertext, key); err != nil {
		return nil, err
	}
	return key, nil
}

func (k softwareKey) decryptOAEP(ciphertext []byte, hash, mgfHash crypto.Hash, label []byte) ([]byte, error) {
	return k.key.(*rsa.PrivateKey).Decrypt(nil, ciphertext, &rsa.OAEPOptions{Hash: hash, MGFHash: mgfHash, Label: label})
}
