package cms

import (
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

const (
	// passwordIterations is what a guess at the password costs whoever recorded the message. It is paid once by the sender
	// and once by the recipient, a device that may be small.
	passwordIterations = 100_000
	passwordSalt       = 16 // bytes
)

// tagConstructed3 is the tag of a PasswordRecipientInfo among RecipientInfos (RFC 5652 §6.2).
const tagConstructed3 = casn1.Tag(0x80 | bitConstructed | 3)

// EncryptPassword makes a ContentInfo with an EnvelopedData of version 3 for whoever knows the password: a PasswordRecipientInfo
// (RFC 5652 §6.2.4) with PBKDF2 under HMAC-SHA-256, the content key wrapped by id-alg-PWRI-KEK (RFC 3211 §2.3) with the cipher that
// also encrypts the content. The cipher is AES or 3DES (ErrAlgorithm).
//
// It is for recipients with a key that cannot decrypt. A recorded message lets anyone guess the password at leisure.
func EncryptPassword(random io.Reader, content []byte, password string, c Cipher) ([]byte, error) {
	if password == "" {
		return nil, errors.New("encrypting under a password: the password is empty")
	}
	info, ok := c.info()
	if !ok || c == DESCBC {
		return nil, fmt.Errorf("%w: not encrypting with %v", ErrAlgorithm, c)
	}
	e, err := seal(random, content, info)
	if err != nil {
		return nil, err
	}
	public := make([]byte, passwordSalt+info.block)
	if _, err := io.ReadFull(random, public); err != nil {
		return nil, fmt.Errorf("drawing a salt: %w", err)
	}
	salt, iv := public[:passwordSalt], public[passwordSalt:]
	kek, err := pbkdf2.Key(sha256.New, password, salt, passwordIterations, info.key)
	if err != nil {
		return nil, fmt.Errorf("deriving a key from the password: %w", err)
	}
	wrapped, err := wrapPWRI(random, e.key, kek, iv, info)
	if err != nil {
		return nil, err
	}
	return build(OIDEnvelopedData, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(3)
		b.AddASN1(casn1.SET, func(b *cryptobyte.Builder) {
			b.AddASN1(tagConstructed3, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(0)
				b.AddASN1(tagExplicit0, func(b *cryptobyte.Builder) { // in the place of the SEQUENCE of an AlgorithmIdentifier
					b.AddASN1ObjectIdentifier(oidPBKDF2)
					b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) { // PBKDF2-params: RFC 8018 A.2
						b.AddASN1OctetString(salt)
						b.AddASN1Int64(passwordIterations)
						b.AddASN1Int64(int64(info.key))
						addAlgorithm(b, oidHMACSHA256, addNull)
					})
				})
				addAlgorithm(b, oidPWRIKEK, func(b *cryptobyte.Builder) { addCipher(b, info, iv) })
				b.AddASN1OctetString(wrapped)
			})
		})
		e.add(b)
	})
}

// wrapPWRI wraps a content key (RFC 3211 §2.3.1): its length, the complement of its first three bytes to tell a wrong password by, the
// key and random padding up to two blocks or more, encrypted twice in one CBC chain, so that every byte depends on all others.
func wrapPWRI(random io.Reader, key, kek, iv []byte, c cipherInfo) ([]byte, error) {
	n := (4 + len(key) + c.block - 1) / c.block * c.block
	b := make([]byte, max(n, 2*c.block))
	if _, err := io.ReadFull(random, b[4+len(key):]); err != nil {
		return nil, fmt.Errorf("drawing the padding of a content key: %w", err)
	}
	b[0], b[1], b[2], b[3] = byte(len(key)), ^key[0], ^key[1], ^key[2]
	copy(b[4:], key)
	block, err := c.make(kek)
	if err != nil {
		return nil, fmt.Errorf("preparing %s: %w", c.name, err)
	}
	chain := cipher.NewCBCEncrypter(block, iv)
	chain.CryptBlocks(b, b)
	chain.CryptBlocks(b, b)
	return b, nil
}
