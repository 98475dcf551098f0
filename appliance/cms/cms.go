// Package cms reads and writes the part of the Cryptographic Message Syntax (RFC 5652) that SCEP and EST need:
// SignedData with one signer, EnvelopedData for an RSA recipient or under a password, and SignedData with nothing but certificates or
// a CRL.
//
// Input comes from unauthenticated senders, so every reader is bounded: messages up to MaxMessage bytes, nesting up to
// 32 levels, work and memory linear in the input, no panics. Senders also use BER where the standard allows it
// (indefinite lengths, strings in pieces); those are rewritten once, before parsing, and nothing else is.
//
// Whoever handles a request calls SignedData.Verify before EnvelopedData.Decrypt: only then is the private key used for
// nothing but messages whose content is bound to a signer.
package cms

import (
	"errors"
	"fmt"
	"slices"
)

// MaxMessage is the longest message the parsers accept, in bytes.
const MaxMessage = 1 << 20

// Bounds on the lists in a message. Real messages have one signer, at most a handful of certificates and recipients
// (clients that encrypt to every certificate of GetCACert) and about eight attributes.
const (
	maxCertificates = 64
	maxSigners      = 16
	maxRecipients   = 64
	maxAttributes   = 64
)

// Errors of the parsers, of Verify, Decrypt and the builders. Test with errors.Is: what is returned says more.
var (
	// ErrMalformed: the bytes are not a message of the expected kind, or exceed a bound.
	ErrMalformed = errors.New("malformed CMS message")
	// ErrAlgorithm: an algorithm, or a kind of key, that is unknown or that the Policy does not allow. No private key was used.
	ErrAlgorithm = errors.New("algorithm not accepted")
	// ErrSigner: not exactly one signer, or its certificate is missing or ambiguous.
	ErrSigner = errors.New("signer not accepted")
	// ErrSignature: the content, the signed attributes and the signature do not belong together.
	ErrSignature = errors.New("signature not valid")
	// ErrNoRecipient: the message was not encrypted to this recipient.
	ErrNoRecipient = errors.New("message is not encrypted to this recipient")
	// ErrDecrypt: the message did not decrypt. Always this very value, whatever the reason, so that no caller can
	// become a padding oracle (RFC 3218).
	ErrDecrypt = errors.New("decryption failed")
	// ErrKeyBusy: the private key could not take the request now and was not used; the same message may succeed later.
	ErrKeyBusy = errors.New("private key is busy")
	// ErrRecipientKey: Encrypt was given a recipient without a usable RSA key.
	ErrRecipientKey = errors.New("recipient has no RSA key to encrypt to")
)

// Policy says which algorithms Verify and Decrypt accept. The zero value accepts none.
type Policy struct {
	Digests []Digest // of SignerInfo.digestAlgorithm
	Ciphers []Cipher // of the encrypted content
}

// DefaultPolicy accepts SHA-256, SHA-384, SHA-512 and AES in CBC mode: what RFC 8894 §2.9 asks of a server, without the
// algorithms that are only kept for old devices.
func DefaultPolicy() Policy {
	return Policy{
		Digests: []Digest{SHA256, SHA384, SHA512},
		Ciphers: []Cipher{AES128CBC, AES192CBC, AES256CBC},
	}
}

// AllowsDigest reports whether signatures made with d are accepted.
func (p Policy) AllowsDigest(d Digest) bool { return slices.Contains(p.Digests, d) }

// AllowsCipher reports whether content encrypted with c is decrypted.
func (p Policy) AllowsCipher(c Cipher) bool { return slices.Contains(p.Ciphers, c) }

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
}
