package cms

import (
	"bytes"
	"crypto"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Encrypt makes a ContentInfo with an EnvelopedData of version 0 for one recipient, named by issuer and serial number, its
// content key wrapped by RSAES-PKCS1-v1_5: the form that every SCEP client reads. The cipher is AES or 3DES; DES is never
// used for building (ErrAlgorithm). A recipient without an RSA key is ErrRecipientKey.
func Encrypt(random io.Reader, content []byte, recipient *Certificate, c Cipher) ([]byte, error) {
	public, ok := recipient.PublicKey.(*rsa.PublicKey)
	if !ok {
		return nil, ErrRecipientKey
	}
	info, ok := c.info()
	if !ok || c == DESCBC {
		return nil, fmt.Errorf("%w: not encrypting with %v", ErrAlgorithm, c)
	}
	e, err := seal(random, content, info)
	if err != nil {
		return nil, err
	}
	wrapped, err := rsa.EncryptPKCS1v15(random, public, e.key)
	if err != nil {
		return nil, fmt.Errorf("wrapping the content key: %w", err)
	}
	return build(OIDEnvelopedData, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		b.AddASN1(casn1.SET, func(b *cryptobyte.Builder) {
			b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(0)
				addIssuerAndSerial(b, recipient.RawIssuer, recipient.SerialNumber)
				addAlgorithm(b, oidRSAEncryption, addNull)
				b.AddASN1OctetString(wrapped)
			})
		})
		e.add(b)
	})
}

// sealed is content encrypted under a key of its own.
type sealed struct {
	cipher    cipherInfo
	key, iv   []byte
	encrypted []byte
}

// seal encrypts content with a new key.
func seal(random io.Reader, content []byte, c cipherInfo) (sealed, error) {
	secret := make([]byte, c.key+c.block)
	if _, err := io.ReadFull(random, secret); err != nil {
		return sealed{}, fmt.Errorf("drawing a content key: %w", err)
	}
	e := sealed{cipher: c, key: secret[:c.key], iv: secret[c.key:]}
	block, err := c.make(e.key)
	if err != nil {
		return sealed{}, fmt.Errorf("preparing %s: %w", c.name, err)
	}
	padding := c.block - len(content)%c.block
	e.encrypted = append(bytes.Clone(content), bytes.Repeat([]byte{byte(padding)}, padding)...)
	cipher.NewCBCEncrypter(block, e.iv).CryptBlocks(e.encrypted, e.encrypted)
	return e, nil
}

// add writes the EncryptedContentInfo.
func (e sealed) add(b *cryptobyte.Builder) {
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(OIDData)
		addCipher(b, e.cipher, e.iv)
		b.AddASN1(tagImplicit0, func(b *cryptobyte.Builder) { b.AddBytes(e.encrypted) })
	})
}

// addCipher writes the AlgorithmIdentifier of a cipher with its initialisation vector.
func addCipher(b *cryptobyte.Builder, c cipherInfo, iv []byte) {
	addAlgorithm(b, c.oid, func(b *cryptobyte.Builder) { b.AddASN1OctetString(iv) })
}

// Attribute is a signed attribute with a single value.
type Attribute struct {
	Type  asn1.ObjectIdentifier
	Value []byte // one DER element
}

// SignOptions says what Sign signs and how.
type SignOptions struct {
	// Content is the octets of eContent, of type id-data. Nil makes an empty OCTET STRING that is present: clients refuse a
	// message without one (certmonger) where RFC 8894 §3.3.2 would leave it out.
	Content []byte
	// NoContent leaves eContent out. Content is nil then.
	NoContent bool
	// Attributes are signed besides contentType and messageDigest, which Sign adds.
	Attributes []Attribute
	// SignerCertificate names the signer by issuer and serial number and holds the public key of Signer. It is put into the message
	// only if it is also among Certificates.
	SignerCertificate *x509.Certificate
	Signer            crypto.Signer // RSA (PKCS #1 v1.5) or ECDSA
	Certificates      [][]byte      // DER, put into the message in this order
	Digest            Digest
}

// Sign makes a ContentInfo with a SignedData of version 1 with one signer and signed attributes, in DER but for the order of
// certificates. With an RSA key the signature algorithm is rsaEncryption, the only one that old strongSwan takes.
// Errors wrap ErrSigner when key, certificate and digest do not go together.
func Sign(o SignOptions) ([]byte, error) {
	digest, ok := o.Digest.info()
	if !ok {
		return nil, fmt.Errorf("%w: signing with %v", ErrAlgorithm, o.Digest)
	}
	public, ok := o.SignerCertificate.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(o.Signer.Public()) {
		return nil, fmt.Errorf("%w: certificate and key are not a pair", ErrSigner)
	}
	var signature func(b *cryptobyte.Builder)
	switch o.Signer.Public().(type) {
	case *rsa.PublicKey:
		signature = func(b *cryptobyte.Builder) { addAlgorithm(b, oidRSAEncryption, addNull) }
	case *ecdsa.PublicKey:
		if digest.ecdsa == nil {
			return nil, fmt.Errorf("%w: ECDSA with %v", ErrSigner, o.Digest)
		}
		signature = func(b *cryptobyte.Builder) { addAlgorithm(b, digest.ecdsa, nil) }
	default:
		return nil, fmt.Errorf("%w: key is neither RSA nor ECDSA", ErrSigner)
	}
	attributes, err := o.encodeAttributes()
	if err != nil {
		return nil, err
	}
	set := appendHeader(nil, byte(casn1.SET), len(attributes))
	signed, err := o.Signer.Sign(rand.Reader, o.Digest.sum(append(set, attributes...)), digest.hash)
	if err != nil {
		return nil, fmt.Errorf("signing attributes: %w", err)
	}
	return build(OIDSignedData, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(1)
		b.AddASN1(casn1.SET, func(b *cryptobyte.Builder) { addDigestAlgorithm(b, digest) })
		b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(OIDData)
			if !o.NoContent {
				b.AddASN1(tagExplicit0, func(b *cryptobyte.Builder) { b.AddASN1OctetString(o.Content) })
			}
		})
		addCertificates(b, o.Certificates)
		b.AddASN1(casn1.SET, func(b *cryptobyte.Builder) {
			b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(1)
				addIssuerAndSerial(b, o.SignerCertificate.RawIssuer, o.SignerCertificate.SerialNumber)
				addDigestAlgorithm(b, digest)
				b.AddASN1(tagExplicit0, func(b *cryptobyte.Builder) { b.AddBytes(attributes) })
				signature(b)
				b.AddASN1OctetString(signed)
			})
		})
	})
}

// encodeAttributes returns the content octets of the SET OF signed attributes in DER order (X.690 §11.6).
func (o SignOptions) encodeAttributes() ([]byte, error) {
	var contentType, messageDigest cryptobyte.Builder
	contentType.AddASN1ObjectIdentifier(OIDData)
	messageDigest.AddASN1OctetString(o.Digest.sum(o.Content))
	all := append([]Attribute{
		{oidContentType, contentType.BytesOrPanic()},
		{oidMessageDigest, messageDigest.BytesOrPanic()},
	}, o.Attributes...)
	encoded := make([][]byte, len(all))
	for i, a := range all {
		for _, other := range all[:i] {
			if other.Type.Equal(a.Type) {
				return nil, fmt.Errorf("encoding attributes: %v given twice", a.Type)
			}
		}
		in := cryptobyte.String(a.Value)
		var element cryptobyte.String
		var tag casn1.Tag
		if !in.ReadAnyASN1Element(&element, &tag) || !in.Empty() {
			return nil, fmt.Errorf("encoding attributes: value of %v is not one DER element", a.Type)
		}
		var b cryptobyte.Builder
		b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(a.Type)
			b.AddASN1(casn1.SET, func(b *cryptobyte.Builder) { b.AddBytes(a.Value) })
		})
		var err error
		if encoded[i], err = b.Bytes(); err != nil {
			return nil, fmt.Errorf("encoding attribute %v: %w", a.Type, err)
		}
	}
	slices.SortFunc(encoded, bytes.Compare)
	return bytes.Join(encoded, nil), nil
}

// CertsOnly makes a ContentInfo with a SignedData that holds nothing but certificates (RFC 5652 §5.1, RFC 8894 §3.4), in the order
// given: clients take the first one for the issued certificate, although a SET has no order.
func CertsOnly(certificates [][]byte) ([]byte, error) {
	if len(certificates) == 0 {
		return nil, errors.New("building certs-only message: no certificates")
	}
	return build(OIDSignedData, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(1)
		b.AddASN1(casn1.SET, func(*cryptobyte.Builder) {})
		b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(OIDData) })
		addCertificates(b, certificates)
		b.AddASN1(casn1.SET, func(*cryptobyte.Builder) {})
	})
}

// CRLOnly makes a ContentInfo with a SignedData that holds nothing but one certificate revocation list, given in DER: the content of
// a reply to GetCRL (RFC 8894 §3.3.4).
func CRLOnly(crl []byte) ([]byte, error) {
	if len(crl) == 0 {
		return nil, errors.New("building CRL-only message: no CRL")
	}
	return build(OIDSignedData, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(1)
		b.AddASN1(casn1.SET, func(*cryptobyte.Builder) {})
		b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(OIDData) })
		b.AddASN1(tagConstructed1, func(b *cryptobyte.Builder) { b.AddBytes(crl) })
		b.AddASN1(casn1.SET, func(*cryptobyte.Builder) {})
	})
}

// build wraps the content of a SEQUENCE into a ContentInfo.
func build(contentType asn1.ObjectIdentifier, content func(*cryptobyte.Builder)) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(contentType)
		b.AddASN1(tagExplicit0, func(b *cryptobyte.Builder) { b.AddASN1(casn1.SEQUENCE, content) })
	})
	out, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encoding message: %w", err)
	}
	return out, nil
}

func addIssuerAndSerial(b *cryptobyte.Builder, issuer []byte, serial *big.Int) {
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(issuer)
		b.AddASN1BigInt(serial)
	})
}

func addCertificates(b *cryptobyte.Builder, certificates [][]byte) {
	if len(certificates) == 0 {
		return
	}
	b.AddASN1(tagExplicit0, func(b *cryptobyte.Builder) {
		for _, c := range certificates {
			b.AddBytes(c)
		}
	})
}
