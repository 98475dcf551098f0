package cms

import (
	"bytes"
	"crypto"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/subtle"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// EnvelopedData is an encrypted message (RFC 5652 §6) as received.
type EnvelopedData struct {
	ContentType   asn1.ObjectIdentifier // of the content once decrypted
	ContentCipher Cipher                // 0 if the cipher is unknown, which Decrypt refuses

	cipherOID  asn1.ObjectIdentifier
	iv         []byte
	encrypted  []byte // nil if absent
	recipients []recipient
}

// recipient is a KeyTransRecipientInfo, the only kind that an RSA key can open.
type recipient struct {
	id           identifier
	transport    algorithm
	encryptedKey []byte
}

// ParseEnvelopedData reads a ContentInfo that holds an EnvelopedData, in DER or BER. Recipients of other kinds than key
// transport are skipped. Errors wrap ErrMalformed. The result keeps parts of b.
func ParseEnvelopedData(b []byte) (*EnvelopedData, error) {
	body, err := contentInfo(b, OIDEnvelopedData)
	if err != nil {
		return nil, err
	}
	var version int
	var recipients, content cryptobyte.String
	if !body.ReadASN1Integer(&version) || version < 0 || version > 4 {
		return nil, malformed("enveloped data of an unknown version")
	}
	if !body.SkipOptionalASN1(tagExplicit0) || // originatorInfo
		!body.ReadASN1(&recipients, casn1.SET) || !body.ReadASN1(&content, casn1.SEQUENCE) ||
		!body.SkipOptionalASN1(tagConstructed1) || !body.Empty() { // unprotectedAttrs
		return nil, malformed("enveloped data has no recipients or content")
	}
	e := &EnvelopedData{}
	for n := 0; !recipients.Empty(); n++ {
		if n == maxRecipients {
			return nil, malformed("more than %d recipients", maxRecipients)
		}
		if err := e.parseRecipient(&recipients); err != nil {
			return nil, err
		}
	}
	if err := e.parseContent(content); err != nil {
		return nil, err
	}
	return e, nil
}

func (e *EnvelopedData) parseRecipient(recipients *cryptobyte.String) error {
	var element, body, key cryptobyte.String
	var tag casn1.Tag
	var version int
	if !recipients.ReadAnyASN1Element(&element, &tag) {
		return malformed("recipient")
	}
	if tag != casn1.SEQUENCE {
		return nil
	}
	if !element.ReadASN1(&body, casn1.SEQUENCE) || !body.ReadASN1Integer(&version) || (version != 0 && version != 2) {
		return malformed("recipient of an unknown version")
	}
	id, ok := readIdentifier(&body)
	if !ok {
		return malformed("recipient identifier")
	}
	transport, ok := readAlgorithm(&body, casn1.SEQUENCE)
	if !ok || !body.ReadASN1(&key, casn1.OCTET_STRING) || !body.Empty() {
		return malformed("recipient's encrypted key")
	}
	e.recipients = append(e.recipients, recipient{id, transport, key})
	return nil
}

// parseContent reads an EncryptedContentInfo. The encrypted octets are [0] IMPLICIT OCTET STRING, which in BER may be in pieces;
// normalise has joined pieces of pieces already.
func (e *EnvelopedData) parseContent(content cryptobyte.String) error {
	if !readOID(&content, &e.ContentType) {
		return malformed("encrypted content has no type")
	}
	alg, ok := readAlgorithm(&content, casn1.SEQUENCE)
	if !ok {
		return malformed("encrypted content has no cipher")
	}
	e.cipherOID = alg.oid
	for _, c := range ciphers {
		if !c.oid.Equal(alg.oid) {
			continue
		}
		var iv cryptobyte.String
		if !alg.parameters.ReadASN1(&iv, casn1.OCTET_STRING) || len(iv) != c.block {
			return malformed("initialisation vector is not %d bytes", c.block)
		}
		e.ContentCipher, e.iv = c.cipher, iv
	}
	var octets cryptobyte.String
	switch {
	case content.PeekASN1Tag(tagImplicit0):
		if !content.ReadASN1(&octets, tagImplicit0) {
			return malformed("encrypted content")
		}
		e.encrypted = octets
	case content.PeekASN1Tag(tagExplicit0):
		if !content.ReadASN1(&octets, tagExplicit0) {
			return malformed("encrypted content")
		}
		for !octets.Empty() {
			var piece cryptobyte.String
			if !octets.ReadASN1(&piece, casn1.OCTET_STRING) {
				return malformed("encrypted content in pieces that are not OCTET STRINGs")
			}
			e.encrypted = append(e.encrypted, piece...)
		}
	}
	if !content.Empty() {
		return malformed("data after the encrypted content")
	}
	return nil
}

// Decrypt returns the content for the recipient with the given certificate and key. The key is asked at most once, with
// *rsa.PKCS1v15DecryptOptions whose SessionKeyLen is set (so that it substitutes a random key for a badly padded one, in
// constant time) or with *rsa.OAEPOptions.
//
// Errors wrap ErrAlgorithm (the cipher is not in p, or the key transport is unknown) or ErrNoRecipient, both before the key is
// used, or ErrKeyBusy when the key's error has a Temporary method that returns true. Everything after that is ErrDecrypt itself.
func (e *EnvelopedData) Decrypt(certificate *x509.Certificate, key crypto.Decrypter, p Policy) ([]byte, error) {
	info, ok := e.ContentCipher.info()
	if !ok {
		return nil, fmt.Errorf("%w: cipher %v", ErrAlgorithm, e.cipherOID)
	}
	if !p.AllowsCipher(info.cipher) {
		return nil, fmt.Errorf("%w: cipher %v", ErrAlgorithm, info.cipher)
	}
	r, err := e.find(certificate)
	if err != nil {
		return nil, err
	}
	options, err := r.options(info.key)
	if err != nil {
		return nil, err
	}
	// What the sender knows anyway is not worth a private key operation.
	public, ok := certificate.PublicKey.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%w: key transport to a recipient without an RSA key", ErrAlgorithm)
	}
	if len(r.encryptedKey) != public.Size() || len(e.encrypted) == 0 || len(e.encrypted)%info.block != 0 {
		return nil, ErrDecrypt
	}
	// Any failure goes on with a random key and so ends like a wrong one.
	contentKey := make([]byte, info.key)
	if _, err := rand.Read(contentKey); err != nil {
		return nil, fmt.Errorf("drawing a substitute content key: %w", err)
	}
	unwrapped, err := key.Decrypt(rand.Reader, r.encryptedKey, options)
	var temporary interface{ Temporary() bool }
	if errors.As(err, &temporary) && temporary.Temporary() {
		return nil, fmt.Errorf("%w: %w", ErrKeyBusy, err)
	}
	if err == nil && len(unwrapped) == len(contentKey) {
		copy(contentKey, unwrapped)
	}
	block, err := info.make(contentKey)
	if err != nil {
		return nil, ErrDecrypt
	}
	plain := make([]byte, len(e.encrypted))
	cipher.NewCBCDecrypter(block, e.iv).CryptBlocks(plain, e.encrypted)
	n, ok := unpad(plain, info.block)
	if !ok {
		return nil, ErrDecrypt
	}
	return plain[:n], nil
}

// IsFor reports whether one of the recipients is the one with the given certificate, so that Decrypt would not say ErrNoRecipient.
func (e *EnvelopedData) IsFor(certificate *x509.Certificate) bool {
	_, err := e.find(certificate)
	return err == nil
}

// find returns the first recipient info for a certificate: only one is tried, so a message costs one private key operation.
func (e *EnvelopedData) find(certificate *x509.Certificate) (*recipient, error) {
	c := &Certificate{RawIssuer: certificate.RawIssuer, SerialNumber: certificate.SerialNumber, SubjectKeyID: certificate.SubjectKeyId}
	for i := range e.recipients {
		if e.recipients[i].id.names(c) {
			return &e.recipients[i], nil
		}
	}
	return nil, fmt.Errorf("%w: none of its %d key transport recipients", ErrNoRecipient, len(e.recipients))
}

// options says how to unwrap a content key of keyLen bytes.
func (r *recipient) options(keyLen int) (crypto.DecrypterOpts, error) {
	switch {
	case r.transport.oid.Equal(oidRSAEncryption):
		return &rsa.PKCS1v15DecryptOptions{SessionKeyLen: keyLen}, r.transport.noParameters()
	case r.transport.oid.Equal(oidRSAESOAEP):
		return parseOAEP(r.transport.parameters)
	}
	return nil, fmt.Errorf("%w: key transport %v", ErrAlgorithm, r.transport.oid)
}

// maxLabel bounds the label of OAEP, in bytes: clients send none, and a request to a key holder has room for 64 KiB in all.
const maxLabel = 1 << 10

// parseOAEP reads RSAES-OAEP-params (RFC 8017 A.2.1): the hashes, and label [2], explicit and optional. Policy.Digests does not apply: OAEP does not rest on collision resistance.
func parseOAEP(parameters cryptobyte.String) (*rsa.OAEPOptions, error) {
	refused := func(what string) error { return fmt.Errorf("%w: OAEP with %s", ErrAlgorithm, what) }
	var body, field cryptobyte.String
	var present bool
	if !parameters.ReadASN1(&body, casn1.SEQUENCE) {
		return nil, refused("unreadable parameters")
	}
	hash, mask, err := readHashes(&body)
	if err != nil {
		return nil, err
	}
	o := &rsa.OAEPOptions{Hash: hash.Hash(), MGFHash: mask.Hash()}
	if !body.ReadOptionalASN1(&field, &present, casn1.Tag(2).ContextSpecific().Constructed()) || !body.Empty() {
		return nil, refused("an unreadable label")
	}
	if present {
		source, ok := readAlgorithm(&field, casn1.SEQUENCE)
		var label cryptobyte.String
		if !ok || !source.oid.Equal(oidPSpecified) || !source.parameters.ReadASN1(&label, casn1.OCTET_STRING) {
			return nil, refused("an unreadable label")
		}
		if len(label) > maxLabel {
			return nil, refused(fmt.Sprintf("a label of %d bytes", len(label)))
		}
		o.Label = bytes.Clone(label)
	}
	return o, nil
}

// unpad returns the length of padded without its padding (RFC 5652 §6.3) and whether that is valid. Time does not depend on
// the contents, only on the block size.
func unpad(padded []byte, block int) (int, bool) {
	n := int(padded[len(padded)-1])
	ok := subtle.ConstantTimeLessOrEq(1, n) & subtle.ConstantTimeLessOrEq(n, block)
	for i := 1; i <= block; i++ {
		inPadding := subtle.ConstantTimeLessOrEq(i, n)
		same := subtle.ConstantTimeByteEq(padded[len(padded)-i], byte(n))
		ok &= subtle.ConstantTimeSelect(inPadding, same, 1)
	}
	return len(padded) - n, ok == 1
}
