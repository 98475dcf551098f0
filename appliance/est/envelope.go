package est

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// This file writes the one CMS message (RFC 5652) that serverkeygen has for a device that wants its key encrypted: an EnvelopedData
// around a SignedData around an AsymmetricKeyPackage (RFC 5958). Nothing here reads CMS.

var (
	oidEnvelopedData   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 3}
	oidSignedData      = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidKeyPackage      = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 2, 1, 2, 78, 5} // RFC 5958 §2, id-ct-KP-aKeyPackage
	oidContentType     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	oidMessageDigest   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	oidSHA256          = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidRSAEncryption   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidRSAESOAEP       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}
	oidECDSAWithSHA256 = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}
	oidECPublicKey     = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	oidECDHSHA256      = asn1.ObjectIdentifier{1, 3, 132, 1, 11, 1} // RFC 5753 §7.1.4, dhSinglePass-stdDH-sha256kdf-scheme
)

// algorithm is a cipher of a key size in bytes.
type algorithm struct {
	oid asn1.ObjectIdentifier
	key int
}

// What a key can be encrypted with, the best first: AES in CBC mode, and AES key wrap (RFC 3565, RFC 3394) where the device has an
// elliptic curve key.
var (
	contentCiphers = []algorithm{
		{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}, 32},
		{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 22}, 24},
		{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 2}, 16},
	}
	keyWraps = []algorithm{
		{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 45}, 32},
		{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 25}, 24},
		{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 5}, 16},
	}
)

// recipient is whom a new key is encrypted to.
type recipient struct {
	certificate *x509.Certificate // with an RSA or ECDSA key
	cipher      *algorithm        // of contentCiphers
	wrap        *algorithm        // of keyWraps; nil with an RSA key
}

// Tags of CMS.
var (
	explicit0   = casn1.Tag(0).ContextSpecific().Constructed()
	explicit1   = casn1.Tag(1).ContextSpecific().Constructed()
	primitive0  = casn1.Tag(0).ContextSpecific()
	tagSuppInfo = casn1.Tag(2).ContextSpecific().Constructed() // of ECC-CMS-SharedInfo
)

func sequence(b *cryptobyte.Builder, content func(*cryptobyte.Builder)) {
	b.AddASN1(casn1.SEQUENCE, content)
}

func set(b *cryptobyte.Builder, content func(*cryptobyte.Builder)) { b.AddASN1(casn1.SET, content) }

// addAlgorithm writes an AlgorithmIdentifier; nil: no parameters.
func addAlgorithm(b *cryptobyte.Builder, oid asn1.ObjectIdentifier, parameters func(*cryptobyte.Builder)) {
	sequence(b, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		if parameters != nil {
			parameters(b)
		}
	})
}

func addIssuerAndSerial(b *cryptobyte.Builder, c *x509.Certificate) {
	sequence(b, func(b *cryptobyte.Builder) {
		b.AddBytes(c.RawIssuer)
		b.AddASN1BigInt(c.SerialNumber)
	})
}

// signKeyPackage returns the SignedData (RFC 5652 §5), without a ContentInfo around it, over an AsymmetricKeyPackage of one key in
// PKCS #8. A PrivateKeyInfo is the OneAsymmetricKey that has no public key (RFC 5958 §2).
func signKeyPackage(pkcs8 []byte, certificate *x509.Certificate, signer crypto.Signer) ([]byte, error) {
	if certificate == nil || signer == nil {
		return nil, errors.New("the box has no key to sign it with")
	}
	var content cryptobyte.Builder
	sequence(&content, func(b *cryptobyte.Builder) { b.AddBytes(pkcs8) })
	keys, err := content.Bytes()
	if err != nil {
		return nil, err
	}
	defer clear(keys)

	digest := sha256.Sum256(keys)
	attributes, err := signedAttributes(digest[:])
	if err != nil {
		return nil, err
	}
	toSign := sha256.Sum256(attributes)
	signature, err := signer.Sign(rand.Reader, toSign[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	return encode(func(b *cryptobyte.Builder) {
		b.AddASN1Int64(3) // for content that is not id-data (RFC 5652 §5.1)
		set(b, func(b *cryptobyte.Builder) { addAlgorithm(b, oidSHA256, nil) })
		sequence(b, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidKeyPackage)
			b.AddASN1(explicit0, func(b *cryptobyte.Builder) { b.AddASN1OctetString(keys) })
		})
		b.AddASN1(explicit0, func(b *cryptobyte.Builder) { b.AddBytes(certificate.Raw) })
		set(b, func(b *cryptobyte.Builder) {
			sequence(b, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(1)
				addIssuerAndSerial(b, certificate)
				addAlgorithm(b, oidSHA256, nil)
				b.AddASN1(explicit0, func(b *cryptobyte.Builder) { b.AddBytes(withoutHeader(attributes)) })
				if _, ok := signer.Public().(*ecdsa.PublicKey); ok {
					addAlgorithm(b, oidECDSAWithSHA256, nil)
				} else {
					addAlgorithm(b, oidRSAEncryption, func(b *cryptobyte.Builder) { b.AddASN1NULL() })
				}
				b.AddASN1OctetString(signature)
			})
		})
	})
}

// signedAttributes returns contentType and messageDigest as the SET OF that is signed (RFC 5652 §5.4), in DER order.
func signedAttributes(digest []byte) ([]byte, error) {
	attribute := func(oid asn1.ObjectIdentifier, value func(*cryptobyte.Builder)) []byte {
		var b cryptobyte.Builder
		sequence(&b, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oid)
			set(b, value)
		})
		return b.BytesOrPanic() // of constants and a digest
	}
	all := [][]byte{
		attribute(oidContentType, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidKeyPackage) }),
		attribute(oidMessageDigest, func(b *cryptobyte.Builder) { b.AddASN1OctetString(digest) }),
	}
	slices.SortFunc(all, bytes.Compare)
	var b cryptobyte.Builder
	set(&b, func(b *cryptobyte.Builder) { b.AddBytes(bytes.Join(all, nil)) })
	return b.Bytes()
}

// withoutHeader returns the content octets of an element that signedAttributes made.
func withoutHeader(element []byte) []byte {
	in := cryptobyte.String(element)
	var content cryptobyte.String
	in.ReadASN1(&content, casn1.SET)
	return content
}

func encode(content func(*cryptobyte.Builder)) ([]byte, error) {
	var b cryptobyte.Builder
	sequence(&b, content)
	return b.Bytes()
}

// seal returns the ContentInfo with an EnvelopedData (RFC 5652 §6) of a SignedData for r, named by issuer and serial number: a
// certificate that TLS was made with has both, and everything that reads CMS looks for them.
func (r *recipient) seal(signed []byte) ([]byte, error) {
	key, iv := make([]byte, r.cipher.key), make([]byte, aes.BlockSize)
	defer clear(key)
	rand.Read(key)
	rand.Read(iv)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	padding := aes.BlockSize - len(signed)%aes.BlockSize
	encrypted := make([]byte, 0, len(signed)+padding)
	encrypted = append(append(encrypted, signed...), bytes.Repeat([]byte{byte(padding)}, padding)...)
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(encrypted, encrypted)

	var version int64
	var info func(*cryptobyte.Builder)
	switch public := r.certificate.PublicKey.(type) {
	case *rsa.PublicKey:
		info, err = r.transport(public, key)
	case *ecdsa.PublicKey:
		version = 2 // there is another recipient than by key transport (RFC 5652 §6.1)
		info, err = r.agreement(public, key)
	default:
		err = fmt.Errorf("certificate with a key of type %T", public)
	}
	if err != nil {
		return nil, err
	}
	return encode(func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidEnvelopedData)
		b.AddASN1(explicit0, func(b *cryptobyte.Builder) {
			sequence(b, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(version)
				set(b, info)
				sequence(b, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(oidSignedData)
					addAlgorithm(b, r.cipher.oid, func(b *cryptobyte.Builder) { b.AddASN1OctetString(iv) })
					b.AddASN1(primitive0, func(b *cryptobyte.Builder) { b.AddBytes(encrypted) })
				})
			})
		})
	})
}

// transport is the KeyTransRecipientInfo (RFC 5652 §6.2.1), with RSAES-PKCS1-v1_5 as in everything that reads CMS.
func (r *recipient) transport(public *rsa.PublicKey, key []byte) (func(*cryptobyte.Builder), error) {
	wrapped, err := rsa.EncryptPKCS1v15(rand.Reader, public, key)
	if err != nil {
		return nil, err
	}
	return func(b *cryptobyte.Builder) {
		sequence(b, func(b *cryptobyte.Builder) {
			b.AddASN1Int64(0)
			addIssuerAndSerial(b, r.certificate)
			addAlgorithm(b, oidRSAEncryption, func(b *cryptobyte.Builder) { b.AddASN1NULL() })
			b.AddASN1OctetString(wrapped)
		})
	}, nil
}

// agreement is the KeyAgreeRecipientInfo (RFC 5652 §6.2.2) of ephemeral-static ECDH (RFC 5753 §3.1): the content key is wrapped under
// what a key made for this message and the device's key agree on.
func (r *recipient) agreement(public *ecdsa.PublicKey, key []byte) (func(*cryptobyte.Builder), error) {
	theirs, err := public.ECDH()
	if err != nil {
		return nil, err
	}
	ours, err := theirs.Curve().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	wrapping, err := r.agree(ours, theirs)
	if err != nil {
		return nil, err
	}
	defer clear(wrapping)
	wrapped, err := wrapKey(wrapping, key)
	if err != nil {
		return nil, err
	}
	return func(b *cryptobyte.Builder) {
		b.AddASN1(explicit1, func(b *cryptobyte.Builder) { // [1] IMPLICIT KeyAgreeRecipientInfo
			b.AddASN1Int64(3)
			b.AddASN1(explicit0, func(b *cryptobyte.Builder) { // originator
				b.AddASN1(explicit1, func(b *cryptobyte.Builder) { // [1] IMPLICIT OriginatorPublicKey
					addAlgorithm(b, oidECPublicKey, nil)
					b.AddASN1BitString(ours.PublicKey().Bytes())
				})
			})
			addAlgorithm(b, oidECDHSHA256, func(b *cryptobyte.Builder) { addAlgorithm(b, r.wrap.oid, nil) })
			sequence(b, func(b *cryptobyte.Builder) {
				sequence(b, func(b *cryptobyte.Builder) {
					addIssuerAndSerial(b, r.certificate)
					b.AddASN1OctetString(wrapped)
				})
			})
		})
	}, nil
}

// agree derives the wrapping key by the KDF of ANSI X9.63 with SHA-256 over the ECC-CMS-SharedInfo (RFC 5753 §7.2). The longest key is
// as long as one digest, so one round of it is all.
func (r *recipient) agree(ours *ecdh.PrivateKey, theirs *ecdh.PublicKey) ([]byte, error) {
	shared, err := ours.ECDH(theirs)
	if err != nil {
		return nil, err
	}
	defer clear(shared)
	info, err := encode(func(b *cryptobyte.Builder) {
		addAlgorithm(b, r.wrap.oid, nil)
		b.AddASN1(tagSuppInfo, func(b *cryptobyte.Builder) {
			b.AddASN1OctetString(binary.BigEndian.AppendUint32(nil, uint32(8*r.wrap.key)))
		})
	})
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	h.Write(shared)
	h.Write([]byte{0, 0, 0, 1})
	h.Write(info)
	return h.Sum(nil)[:r.wrap.key], nil
}

// wrapKey is the key wrap of RFC 3394 §2.2.1.
func wrapKey(wrapping, key []byte) ([]byte, error) {
	block, err := aes.NewCipher(wrapping)
	if err != nil {
		return nil, err
	}
	n := len(key) / 8
	out := make([]byte, 8+len(key))
	copy(out[8:], key)
	var a [aes.BlockSize]byte // A, and the R of the round behind it
	copy(a[:8], []byte{0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6})
	for j := range 6 {
		for i := 1; i <= n; i++ {
			copy(a[8:], out[8*i:8*i+8])
			block.Encrypt(a[:], a[:])
			t := binary.BigEndian.Uint64(a[:8]) ^ uint64(n*j+i)
			binary.BigEndian.PutUint64(a[:8], t)
			copy(out[8*i:], a[8:])
		}
	}
	copy(out, a[:8])
	return out, nil
}
