package keys

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
)

// A sealed key is PKCS #8 under AES-256-GCM with a random nonce in front; name and algorithm are
// authenticated with it, so that keys cannot be swapped. A sealed secret is the same with its name.

func wrapAEAD(wrapKey []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(wrapKey)
	if err != nil {
		return nil, fmt.Errorf("making the wrapping cipher: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("making the wrapping cipher: %w", err)
	}
	return aead, nil
}

// keyContext and secretContext are what is authenticated with a key and a secret.
func keyContext(s Spec) []byte {
	return []byte("signet sealed key\x00" + s.Name + "\x00" + s.Algorithm)
}

func secretContext(name string) []byte { return []byte("signet sealed secret\x00" + name) }

func wrap(wrapKey, context, plain []byte) ([]byte, error) {
	aead, err := wrapAEAD(wrapKey)
	if err != nil {
		return nil, err
	}
	return aead.Seal(nil, nil, plain, context), nil
}

func unwrap(wrapKey, context, wrapped []byte) ([]byte, error) {
	aead, err := wrapAEAD(wrapKey)
	if err != nil {
		return nil, err
	}
	return aead.Open(nil, nil, wrapped, context)
}

// generate makes a software key and returns its PKCS #8 form.
func generate(algorithm string) ([]byte, error) {
	var key crypto.PrivateKey
	var err error
	switch algorithm {
	case "rsa-2048":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "rsa-3072":
		key, err = rsa.GenerateKey(rand.Reader, 3072)
	case "rsa-4096":
		key, err = rsa.GenerateKey(rand.Reader, 4096)
	case "ecdsa-p256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ecdsa-p384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	default:
		return nil, fmt.Errorf("key algorithm %q is not supported; use rsa-2048, rsa-3072, rsa-4096, ecdsa-p256 or ecdsa-p384", algorithm)
	}
	if err != nil {
		return nil, fmt.Errorf("generating %s key: %w", algorithm, err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding %s key: %w", algorithm, err)
	}
	return pkcs8, nil
}
