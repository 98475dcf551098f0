package cms

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/subtle"
	"encoding/asn1"
	"fmt"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Verify checks that the message has exactly one signer, that the signer's certificate is in it, that content type and content
// are those in the signed attributes and that the signature over the signed attributes is by the key in that certificate
// (RFC 5652 §5.4, §5.6). It says nothing about whether that key is to be trusted.
//
// Errors wrap ErrSigner, ErrAlgorithm (also for a digest p does not allow), ErrMalformed or ErrSignature.
func (sd *SignedData) Verify(p Policy) (*SignerInfo, error) {
	if len(sd.Signers) != 1 {
		return nil, fmt.Errorf("%w: %d signers instead of one", ErrSigner, len(sd.Signers))
	}
	s := sd.Signers[0]
	digest, err := digestOf(s.digestAlgorithm)
	if err != nil {
		return nil, err
	}
	if !p.AllowsDigest(digest) {
		return nil, fmt.Errorf("%w: digest %v", ErrAlgorithm, digest)
	}
	certificate, err := sd.find(s.id)
	if err != nil {
		return nil, err
	}
	if err := s.checkAttributes(sd.ContentType, digest.sum(sd.Content)); err != nil {
		return nil, err
	}
	if err := s.checkSignature(digest, certificate.PublicKey); err != nil {
		return nil, err
	}
	s.Certificate, s.Digest = certificate, digest
	return s, nil
}

// find returns the certificate an identifier names. Two different ones under the same name are refused: which key signed
// must not depend on their order.
func (sd *SignedData) find(id identifier) (*Certificate, error) {
	var found *Certificate
	for _, c := range sd.Certificates {
		if !id.names(c) || (found != nil && bytes.Equal(found.Raw, c.Raw)) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%w: two certificates under the same identifier", ErrSigner)
		}
		found = c
	}
	if found == nil {
		return nil, fmt.Errorf("%w: its certificate is not in the message", ErrSigner)
	}
	return found, nil
}

func (id identifier) names(c *Certificate) bool {
	if id.keyID != nil {
		return bytes.Equal(id.keyID, c.SubjectKeyID)
	}
	return bytes.Equal(id.issuer, c.RawIssuer) && id.serial.Cmp(c.SerialNumber) == 0
}

// checkAttributes compares the signed attributes with what they describe: contentType and messageDigest (RFC 5652 §11.1,
// §11.2; both must be there, so attributes are never optional here) and CMSAlgorithmProtection (RFC 6211) if present.
func (s *SignerInfo) checkAttributes(contentType asn1.ObjectIdentifier, digest []byte) error {
	if s.signedAttributes == nil {
		return fmt.Errorf("%w: no signed attributes", ErrSignature)
	}
	v, ok := s.Attribute(oidContentType)
	value := cryptobyte.String(v.FullBytes)
	var signedType asn1.ObjectIdentifier
	if !ok || !readOID(&value, &signedType) || !signedType.Equal(contentType) {
		return fmt.Errorf("%w: contentType attribute is not the type of the content", ErrSignature)
	}
	v, ok = s.Attribute(oidMessageDigest)
	value = v.FullBytes
	var signedDigest cryptobyte.String
	if !ok || !value.ReadASN1(&signedDigest, casn1.OCTET_STRING) || subtle.ConstantTimeCompare(signedDigest, digest) != 1 {
		return fmt.Errorf("%w: messageDigest attribute is not the digest of the content", ErrSignature)
	}
	v, ok = s.Attribute(oidAlgorithmProtection)
	if !ok {
		return nil
	}
	value = v.FullBytes
	var body cryptobyte.String
	if !value.ReadASN1(&body, casn1.SEQUENCE) {
		return malformed("CMSAlgorithmProtection attribute")
	}
	digestAlgorithm, ok := readAlgorithm(&body, casn1.SEQUENCE)
	if !ok {
		return malformed("CMSAlgorithmProtection attribute")
	}
	signatureAlgorithm, ok := readAlgorithm(&body, tagConstructed1)
	if !ok || !body.Empty() {
		return malformed("CMSAlgorithmProtection attribute")
	}
	if !digestAlgorithm.equal(s.digestAlgorithm) || !signatureAlgorithm.equal(s.signatureAlgorithm) {
		return fmt.Errorf("%w: algorithms are not those that were signed", ErrSignature)
	}
	return nil
}

// checkSignature verifies the signature over the signed attributes: as sent with the tag of a SET, which is what most
// senders signed, else over their DER encoding, which is what RFC 5652 §5.4 says and differs when they were sent unsorted.
func (s *SignerInfo) checkSignature(digest Digest, key crypto.PublicKey) error {
	info, _ := digest.info()
	oid := s.signatureAlgorithm.oid
	isPSS := oid.Equal(oidRSASSAPSS)
	if err := s.signatureAlgorithm.noParameters(); err != nil && !isPSS {
		return err
	}
	var verify func(sum []byte) bool
	switch key := key.(type) {
	case *rsa.PublicKey:
		if isPSS {
			salt, err := parsePSS(s.signatureAlgorithm.parameters, digest)
			if err != nil {
				return err
			}
			options := &rsa.PSSOptions{SaltLength: salt}
			verify = func(sum []byte) bool { return rsa.VerifyPSS(key, info.hash, sum, s.signature, options) == nil }
			break
		}
		if !oid.Equal(oidRSAEncryption) && !oid.Equal(info.rsa) {
			return fmt.Errorf("%w: signature %v with an RSA key and %v", ErrAlgorithm, oid, digest)
		}
		verify = func(sum []byte) bool { return rsa.VerifyPKCS1v15(key, info.hash, sum, s.signature) == nil }
	case *ecdsa.PublicKey:
		if info.ecdsa == nil || !oid.Equal(info.ecdsa) && !oid.Equal(oidECPublicKey) { // the latter from cryptlib
			return fmt.Errorf("%w: signature %v with an elliptic curve key and %v", ErrAlgorithm, oid, digest)
		}
		verify = func(sum []byte) bool { return ecdsa.VerifyASN1(key, sum, s.signature) }
	default:
		return fmt.Errorf("%w: signature by a key that is not RSA of %d to %d bits or on P-256, P-384 or P-521", ErrAlgorithm, minRSABits, maxRSABits)
	}
	asSent := slices.Clone(s.signedAttributes)
	asSent[0] = byte(casn1.SET)
	if verify(digest.sum(asSent)) {
		return nil
	}
	raw := make([][]byte, len(s.attributes))
	for i, a := range s.attributes {
		raw[i] = a.raw
	}
	if slices.IsSortedFunc(raw, bytes.Compare) {
		return fmt.Errorf("%w: not by the key in the signer's certificate", ErrSignature)
	}
	slices.SortFunc(raw, bytes.Compare)
	content := bytes.Join(raw, nil)
	if !verify(digest.sum(append(asSent[:len(asSent)-len(content)], content...))) {
		return fmt.Errorf("%w: not by the key in the signer's certificate", ErrSignature)
	}
	return nil
}

// parsePSS reads RSASSA-PSS-params (RFC 8017 A.2.3) and returns the length of the salt. There is one hash function throughout, as
// RFC 4056 §3 and RFC 4055 §3.1 have it, of SHA-2, and the salt is no shorter than its value.
func parsePSS(parameters cryptobyte.String, digest Digest) (salt int, err error) {
	refused := func(what string) error { return fmt.Errorf("%w: PSS with %s", ErrAlgorithm, what) }
	var body cryptobyte.String
	if !parameters.ReadASN1(&body, casn1.SEQUENCE) {
		return 0, refused("unreadable parameters")
	}
	hash, mask, err := readHashes(&body)
	if err != nil {
		return 0, err
	}
	var trailer int
	if !body.ReadOptionalASN1Integer(&salt, casn1.Tag(2).ContextSpecific().Constructed(), 20) ||
		!body.ReadOptionalASN1Integer(&trailer, casn1.Tag(3).ContextSpecific().Constructed(), 1) || !body.Empty() {
		return 0, refused("unreadable parameters")
	}
	switch {
	case hash != digest || mask != digest || digest == SHA1:
		return 0, refused(fmt.Sprintf("%v and %v for a digest by %v", hash, mask, digest))
	case salt < digest.Hash().Size() || salt > maxRSABits/8:
		return 0, refused(fmt.Sprintf("a salt of %d bytes", salt))
	case trailer != 1:
		return 0, refused("an unknown trailer")
	}
	return salt, nil
}
