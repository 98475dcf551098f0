package cms

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	_ "crypto/md5" // crypto.Hash of every Digest must be linked in
	_ "crypto/sha1"
	_ "crypto/sha256"
	_ "crypto/sha512"
	"encoding/asn1"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Object identifiers of content types (RFC 5652 §4, §5, §6), attributes (RFC 5652 §11, RFC 6211) and algorithms (RFC 3211,
// RFC 3370, RFC 3565, RFC 8017, RFC 8018, RFC 5754).
var (
	OIDData          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	OIDSignedData    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	OIDEnvelopedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 3}

	oidContentType         = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	oidMessageDigest       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	oidAlgorithmProtection = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 52}

	oidRSAEncryption = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidRSASSAPSS     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 10}
	oidRSAESOAEP     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}
	oidMGF1          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 8}
	oidPSpecified    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 9}
	oidPWRIKEK       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 3, 9}
	oidPBKDF2        = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}
	oidHMACSHA256    = asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 9}
	oidECPublicKey   = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
)

// Digest is a hash function that signatures are made with.
type Digest uint8

const (
	MD5 Digest = iota + 1 // only for devices that know nothing else
	SHA1
	SHA256
	SHA384
	SHA512
)

// digestInfo has the identifiers a Digest goes by: alone, with RSA and with ECDSA (nil: no such identifier).
type digestInfo struct {
	digest      Digest
	name        string
	hash        crypto.Hash
	oid         asn1.ObjectIdentifier
	rsa         asn1.ObjectIdentifier
	ecdsa       asn1.ObjectIdentifier
	omitsParams bool // RFC 5754 §2: parameters absent for SHA-2, NULL for the older ones
}

var digests = [...]digestInfo{
	{MD5, "MD5", crypto.MD5, asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 5}, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 4}, nil, false},
	{SHA1, "SHA-1", crypto.SHA1, asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 5}, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1}, false},
	{SHA256, "SHA-256", crypto.SHA256, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}, true},
	{SHA384, "SHA-384", crypto.SHA384, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 12}, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}, true},
	{SHA512, "SHA-512", crypto.SHA512, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 3}, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 13}, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 4}, true},
}

func (d Digest) info() (digestInfo, bool) {
	for _, i := range digests {
		if i.digest == d {
			return i, true
		}
	}
	return digestInfo{}, false
}

// String names the digest for people, for example "SHA-256".
func (d Digest) String() string {
	if i, ok := d.info(); ok {
		return i.name
	}
	return fmt.Sprintf("unknown digest %d", uint8(d))
}

// Hash is the standard library's name of d, 0 for an unknown one.
func (d Digest) Hash() crypto.Hash {
	i, _ := d.info()
	return i.hash
}

func (d Digest) sum(b []byte) []byte {
	h := d.Hash().New()
	h.Write(b)
	return h.Sum(nil)
}

func digestOf(a algorithm) (Digest, error) {
	for _, i := range digests {
		if i.oid.Equal(a.oid) {
			return i.digest, a.noParameters()
		}
	}
	return 0, fmt.Errorf("%w: digest %v", ErrAlgorithm, a.oid)
}

// Cipher is a block cipher in CBC mode that content is encrypted with.
type Cipher uint8

const (
	DESCBC  Cipher = iota + 1 // never used for building
	DES3CBC                   // three-key triple DES
	AES128CBC
	AES192CBC
	AES256CBC
)

type cipherInfo struct {
	cipher Cipher
	name   string
	oid    asn1.ObjectIdentifier
	key    int // bytes
	block  int // bytes, also of the IV
	make   func(key []byte) (cipher.Block, error)
}

var ciphers = [...]cipherInfo{
	{DESCBC, "DES-CBC", asn1.ObjectIdentifier{1, 3, 14, 3, 2, 7}, 8, des.BlockSize, des.NewCipher},
	{DES3CBC, "3DES-CBC", asn1.ObjectIdentifier{1, 2, 840, 113549, 3, 7}, 24, des.BlockSize, des.NewTripleDESCipher},
	{AES128CBC, "AES-128-CBC", asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 2}, 16, aes.BlockSize, aes.NewCipher},
	{AES192CBC, "AES-192-CBC", asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 22}, 24, aes.BlockSize, aes.NewCipher},
	{AES256CBC, "AES-256-CBC", asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}, 32, aes.BlockSize, aes.NewCipher},
}

func (c Cipher) info() (cipherInfo, bool) {
	for _, i := range ciphers {
		if i.cipher == c {
			return i, true
		}
	}
	return cipherInfo{}, false
}

// String names the cipher for people, for example "AES-128-CBC".
func (c Cipher) String() string {
	if i, ok := c.info(); ok {
		return i.name
	}
	return fmt.Sprintf("unknown cipher %d", uint8(c))
}

// algorithm is an AlgorithmIdentifier as received.
type algorithm struct {
	oid        asn1.ObjectIdentifier
	parameters cryptobyte.String // one element; empty when absent
}

// maxOID bounds an OBJECT IDENTIFIER, in octets; those used here have at most 11. As text, in answers and logs, one is four times as long.
const maxOID = 64

// readOID reads an OBJECT IDENTIFIER; s is left as it is where that fails.
func readOID(s *cryptobyte.String, oid *asn1.ObjectIdentifier) bool {
	rest := *s
	var octets cryptobyte.String
	return rest.ReadASN1(&octets, casn1.OBJECT_IDENTIFIER) && len(octets) <= maxOID && s.ReadASN1ObjectIdentifier(oid)
}

// readAlgorithm reads an AlgorithmIdentifier under the given tag: SEQUENCE, or the tag that replaces it.
func readAlgorithm(s *cryptobyte.String, tag casn1.Tag) (algorithm, bool) {
	var a algorithm
	var body cryptobyte.String
	if !s.ReadASN1(&body, tag) || !readOID(&body, &a.oid) {
		return a, false
	}
	if body.Empty() {
		return a, true
	}
	var t casn1.Tag
	return a, body.ReadAnyASN1Element(&a.parameters, &t) && body.Empty()
}

// noParameters checks that the parameters are absent or NULL; implementations disagree on which one is right.
func (a algorithm) noParameters() error {
	if len(a.parameters) == 0 || (len(a.parameters) == 2 && a.parameters[0] == byte(casn1.NULL) && a.parameters[1] == 0) {
		return nil
	}
	return fmt.Errorf("%w: unexpected parameters of %v", ErrAlgorithm, a.oid)
}

// equal compares two identifiers, taking absent and NULL parameters for the same.
func (a algorithm) equal(b algorithm) bool {
	if !a.oid.Equal(b.oid) {
		return false
	}
	if a.noParameters() == nil && b.noParameters() == nil {
		return true
	}
	return string(a.parameters) == string(b.parameters)
}

// readHashes reads what RSAES-OAEP-params and RSASSA-PSS-params begin with (RFC 8017 A.2.1, A.2.3): hash [0] and mask generation [1],
// each explicit and optional; SHA-1 is the default of both.
func readHashes(body *cryptobyte.String) (hash, mask Digest, err error) {
	refused := func(what string) error { return fmt.Errorf("%w: RSA padding with %s", ErrAlgorithm, what) }
	hash, mask = SHA1, SHA1
	var field cryptobyte.String
	var present bool
	if !body.ReadOptionalASN1(&field, &present, tagExplicit0) {
		return 0, 0, refused("an unreadable hash")
	}
	if present {
		if hash, err = readHash(&field); err != nil {
			return 0, 0, err
		}
	}
	if !body.ReadOptionalASN1(&field, &present, tagConstructed1) {
		return 0, 0, refused("an unreadable mask generation function")
	}
	if present {
		mgf, ok := readAlgorithm(&field, casn1.SEQUENCE)
		if !ok || !mgf.oid.Equal(oidMGF1) {
			return 0, 0, refused("another mask generation function than MGF1")
		}
		if mask, err = readHash(&mgf.parameters); err != nil {
			return 0, 0, err
		}
	}
	return hash, mask, nil
}

func readHash(s *cryptobyte.String) (Digest, error) {
	a, ok := readAlgorithm(s, casn1.SEQUENCE)
	if !ok {
		return 0, fmt.Errorf("%w: RSA padding with an unreadable hash", ErrAlgorithm)
	}
	d, err := digestOf(a)
	if err != nil {
		return 0, err
	}
	if d == MD5 {
		return 0, fmt.Errorf("%w: RSA padding with %v", ErrAlgorithm, d)
	}
	return d, nil
}

// addAlgorithm writes an AlgorithmIdentifier; parameters is nil for absent.
func addAlgorithm(b *cryptobyte.Builder, oid asn1.ObjectIdentifier, parameters func(*cryptobyte.Builder)) {
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		if parameters != nil {
			parameters(b)
		}
	})
}

func addNull(b *cryptobyte.Builder) { b.AddASN1NULL() }

func addDigestAlgorithm(b *cryptobyte.Builder, d digestInfo) {
	if d.omitsParams {
		addAlgorithm(b, d.oid, nil)
		return
	}
	addAlgorithm(b, d.oid, addNull)
}
