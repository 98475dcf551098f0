package pki

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// In a responder's certificate: what it is for, and that nobody has to ask whether it is revoked (RFC
// 6960 §4.2.2.2 and §4.2.2.2.1).
var (
	oidOCSPSigning = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 9}
	oidOCSPNoCheck = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}
)

// ErrResponderExpired is returned by Respond while the responder's certificate is not valid.
var ErrResponderExpired = errors.New("the OCSP responder's certificate is not valid at this time")

// OCSPState is what is known of a certificate. Its values are the tags of CertStatus (RFC 6960 §4.2.1).
type OCSPState uint8

// The three states.
const (
	OCSPGood    OCSPState = 0
	OCSPRevoked OCSPState = 1
	OCSPUnknown OCSPState = 2 // this authority never issued it
)

// OCSPAnswer is what a response says about one certificate.
type OCSPAnswer struct {
	ID     CertID
	State  OCSPState
	At     time.Time // of the revocation
	Reason int       // CRLReason of the revocation; 0, unspecified, is left out

	ThisUpdate time.Time // it was so then
	NextUpdate time.Time // and is asked anew by then
}

// OCSPError is the status of a response that answers nothing (RFC 6960 §4.2.1, OCSPResponseStatus).
type OCSPError uint8

// Errors a responder answers with.
const (
	OCSPMalformedRequest OCSPError = 1
	OCSPInternalError    OCSPError = 2
	OCSPTryLater         OCSPError = 3
	OCSPUnauthorized     OCSPError = 6 // this responder has nothing to say about the issuer (RFC 5019 §2.2.3)
)

// Response is the DER OCSPResponse of the error; nothing signs it.
func (e OCSPError) Response() []byte { return []byte{0x30, 0x03, 0x0a, 0x01, byte(e)} }

// Responder signs OCSP responses for one issuer, by a key the issuer delegated that to (RFC 6960
// §4.2.2.2). It is safe for concurrent use where its key is.
type Responder struct {
	cert      *x509.Certificate
	key       crypto.Signer
	algorithm signing
	keyHash   []byte // SHA-1 of the responder's key, its name in responses
	issuer    map[crypto.Hash]issuerHashes
}

// issuerHashes are the two hashes by which a CertID names an issuer.
type issuerHashes struct{ name, key []byte }

// NewResponder binds a responder's certificate to its key. The certificate has to be one that issuer
// signed with [Issuer.IssueResponder].
func NewResponder(issuer, cert *x509.Certificate, key crypto.Signer) (*Responder, error) {
	algorithm, err := signingFor(key.Public())
	if err != nil {
		return nil, fmt.Errorf("OCSP responder: %w", err)
	}
	public, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(key.Public()) {
		return nil, errors.New("OCSP responder: the key is not the certificate's")
	}
	if err := cert.CheckSignatureFrom(issuer); err != nil {
		return nil, fmt.Errorf("OCSP responder: its certificate is not issued by %q: %v", FormatDN(issuer.RawSubject), err)
	}
	if !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning) {
		return nil, errors.New("OCSP responder: its certificate is not for signing OCSP responses")
	}
	own, err := publicKeyBits(cert.RawSubjectPublicKeyInfo)
	if err != nil {
		return nil, fmt.Errorf("OCSP responder: %w", err)
	}
	bits, err := publicKeyBits(issuer.RawSubjectPublicKeyInfo)
	if err != nil {
		return nil, fmt.Errorf("OCSP responder: issuer: %w", err)
	}
	r := &Responder{cert: cert, key: key, algorithm: algorithm, issuer: map[crypto.Hash]issuerHashes{}}
	sum := sha1.Sum(own)
	r.keyHash = sum[:]
	name1, key1 := sha1.Sum(issuer.RawSubject), sha1.Sum(bits)
	r.issuer[crypto.SHA1] = issuerHashes{name1[:], key1[:]}
	name256, key256 := sha256.Sum256(issuer.RawSubject), sha256.Sum256(bits)
	r.issuer[crypto.SHA256] = issuerHashes{name256[:], key256[:]}
	return r, nil
}

// publicKeyBits is the content of the BIT STRING subjectPublicKey, without its count of unused bits.
func publicKeyBits(spki []byte) ([]byte, error) {
	input := cryptobyte.String(spki)
	var outer, algorithm cryptobyte.String
	var bits asn1.BitString
	if !input.ReadASN1(&outer, cbasn1.SEQUENCE) || !outer.ReadASN1(&algorithm, cbasn1.SEQUENCE) || !outer.ReadASN1BitString(&bits) {
		return nil, errors.New("public key is not a SubjectPublicKeyInfo")
	}
	return bits.Bytes, nil
}

// Certificate returns the responder's certificate; it must not be changed.
func (r *Responder) Certificate() *x509.Certificate { return r.cert }

// AnswersFor reports whether id names the issuer this responder signs for.
func (r *Responder) AnswersFor(id CertID) bool {
	h, ok := r.issuer[id.hash]
	return ok && bytes.Equal(h.name, id.nameHash) && bytes.Equal(h.key, id.keyHash)
}

// Respond has a response signed, made at produced and repeating the nonce (nil: none), checks the
// signature that came back and returns the DER OCSPResponse with the responder's certificate in it.
// Every answer has to be one the responder [Responder.AnswersFor].
func (r *Responder) Respond(answers []OCSPAnswer, nonce []byte, produced time.Time) ([]byte, error) {
	if produced.Before(r.cert.NotBefore) || produced.After(r.cert.NotAfter) {
		return nil, fmt.Errorf("%w: from %s to %s", ErrResponderExpired,
			r.cert.NotBefore.UTC().Format(time.RFC3339), r.cert.NotAfter.UTC().Format(time.RFC3339))
	}
	tbs, err := r.responseData(answers, nonce, produced)
	if err != nil {
		return nil, fmt.Errorf("encoding OCSP response: %w", err)
	}
	hash := r.algorithm.hash.New()
	hash.Write(tbs)
	signature, err := r.key.Sign(rand.Reader, hash.Sum(nil), r.algorithm.hash)
	if err != nil {
		return nil, fmt.Errorf("signing OCSP response: %w", err)
	}
	if err := r.cert.CheckSignature(r.algorithm.x509(), tbs, signature); err != nil {
		return nil, fmt.Errorf("the signature that came back is wrong: %w", err)
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { // OCSPResponse
		b.AddASN1(cbasn1.ENUM, func(b *cryptobyte.Builder) { b.AddUint8(0) }) // successful
		b.AddASN1(context(0), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { // ResponseBytes
				b.AddASN1ObjectIdentifier(oidOCSPBasic)
				b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { // BasicOCSPResponse
						b.AddBytes(tbs)
						r.algorithm.identifier(b)
						b.AddASN1BitString(signature)
						b.AddASN1(context(0), func(b *cryptobyte.Builder) {
							b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(r.cert.Raw) })
						})
					})
				})
			})
		})
	})
	return b.Bytes()
}

// responseData encodes the ResponseData, which is what gets signed.
func (r *Responder) responseData(answers []OCSPAnswer, nonce []byte, produced time.Time) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(context(2), func(b *cryptobyte.Builder) { b.AddASN1OctetString(r.keyHash) }) // byKey
		b.AddASN1GeneralizedTime(produced.UTC())
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, a := range answers {
				a.encode(b)
			}
		})
		if nonce != nil {
			b.AddASN1(context(1), func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					addExtension(b, oidOCSPNonce, notCritical, func(b *cryptobyte.Builder) { b.AddASN1OctetString(nonce) })
				})
			})
		}
	})
	return b.Bytes()
}

// encode writes a SingleResponse.
func (a OCSPAnswer) encode(b *cryptobyte.Builder) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(a.ID.raw)
		if a.State == OCSPRevoked {
			b.AddASN1(context(uint8(OCSPRevoked)), func(b *cryptobyte.Builder) {
				b.AddASN1GeneralizedTime(a.At.UTC())
				if a.Reason != 0 {
					b.AddASN1(context(0), func(b *cryptobyte.Builder) {
						b.AddASN1(cbasn1.ENUM, func(b *cryptobyte.Builder) { b.AddUint8(uint8(a.Reason)) })
					})
				}
			})
		} else {
			b.AddASN1(cbasn1.Tag(a.State).ContextSpecific(), func(*cryptobyte.Builder) {}) // IMPLICIT NULL
		}
		b.AddASN1GeneralizedTime(a.ThisUpdate.UTC())
		b.AddASN1(context(0), func(b *cryptobyte.Builder) { b.AddASN1GeneralizedTime(a.NextUpdate.UTC()) })
	})
}
