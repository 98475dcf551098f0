package keys

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/subtle"
	"fmt"
	"math/big"
)

// checkCiphertext refuses what depends on nothing secret: a ciphertext that is not as long as the
// modulus, or not smaller.
func checkCiphertext(pub *rsa.PublicKey, ciphertext []byte) error {
	if len(ciphertext) != pub.Size() || new(big.Int).SetBytes(ciphertext).Cmp(pub.N) >= 0 {
		return rsa.ErrDecryption
	}
	return nil
}

// sessionKeyFits refuses a session key length that no valid ciphertext can carry.
func sessionKeyFits(pub *rsa.PublicKey, length int) error {
	if length < 1 || length > pub.Size()-11 {
		return fmt.Errorf("session key of %d bytes does not fit the RSA key", length)
	}
	return nil
}

// unpadSessionKey takes a session key of known length out of an EME-PKCS1-v1_5 encoded message
// (RFC 8017 §7.2.2). Where the padding is wrong it returns a random key instead (RFC 3218 §2.3.2), in
// the same time: whoever asks learns nothing about the padding.
func unpadSessionKey(em []byte, length int) ([]byte, error) {
	key := make([]byte, length)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("making a substitute session key: %w", err)
	}
	separator := len(em) - length - 1
	valid := subtle.ConstantTimeByteEq(em[0], 0) & subtle.ConstantTimeByteEq(em[1], 2) & subtle.ConstantTimeByteEq(em[separator], 0)
	for _, b := range em[2:separator] {
		valid &= 1 - subtle.ConstantTimeByteEq(b, 0)
	}
	subtle.ConstantTimeCopy(valid, key, em[separator+1:])
	return key, nil
}

// unpadOAEP takes the message out of an EME-OAEP encoded one (RFC 8017 §7.1.2 step 3), with a single
// error after the whole computation.
func unpadOAEP(em []byte, hash, mgfHash crypto.Hash, label []byte) ([]byte, error) {
	h := hash.New()
	size := h.Size()
	if len(em) < 2*size+2 {
		return nil, rsa.ErrDecryption
	}
	h.Write(label)
	labelHash := h.Sum(nil)

	seed, db := em[1:1+size], em[1+size:]
	mgf1XOR(seed, mgfHash, db)
	mgf1XOR(db, mgfHash, seed)

	valid := subtle.ConstantTimeByteEq(em[0], 0) & subtle.ConstantTimeCompare(labelHash, db[:size])
	rest := db[size:]
	looking, index := 1, 0 // for the 0x01 after the zeros
	for i, b := range rest {
		one, zero := subtle.ConstantTimeByteEq(b, 1), subtle.ConstantTimeByteEq(b, 0)
		index = subtle.ConstantTimeSelect(looking&one, i, index)
		valid &= 1 - looking&(1-one)&(1-zero)
		looking &= 1 - one
	}
	if valid&(1-looking) != 1 {
		return nil, rsa.ErrDecryption
	}
	return rest[index+1:], nil
}

// mgf1XOR XORs out with MGF1 of seed (RFC 8017 B.2.1).
func mgf1XOR(out []byte, hash crypto.Hash, seed []byte) {
	h := hash.New()
	for counter := uint32(0); len(out) > 0; counter++ {
		h.Reset()
		h.Write(seed)
		h.Write([]byte{byte(counter >> 24), byte(counter >> 16), byte(counter >> 8), byte(counter)})
		n := subtle.XORBytes(out, out, h.Sum(nil))
		out = out[n:]
	}
}
