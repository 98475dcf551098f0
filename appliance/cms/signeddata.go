package cms

import (
	"bytes"
	"encoding/asn1"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Context-specific tags as they appear in CMS structures.
const (
	tagExplicit0    = casn1.Tag(0x80 | bitConstructed)     // [0] around or instead of a constructed value
	tagImplicit0    = casn1.Tag(0x80)                      // [0] instead of a primitive value
	tagConstructed1 = casn1.Tag(0x80 | bitConstructed | 1) // [1]
)

// SignedData is a signed message (RFC 5652 §5) as received. Nothing in it is believed before Verify returned nil.
type SignedData struct {
	ContentType  asn1.ObjectIdentifier
	Content      []byte // eContent octets; nil if eContent is absent, empty but not nil if it is empty
	Certificates []*Certificate
	Signers      []*SignerInfo
}

// SignerInfo is one signature of a SignedData.
type SignerInfo struct {
	// Certificate is the signer's certificate as found in the message, and Digest the hash function of the signature.
	// Both are set by Verify. The certificate is not checked against anything: whose key it holds is for the caller to judge.
	Certificate *Certificate
	Digest      Digest

	id                 identifier
	digestAlgorithm    algorithm
	signatureAlgorithm algorithm
	signature          []byte
	signedAttributes   []byte // [0] IMPLICIT SET OF Attribute, whole element; nil if absent
	attributes         []attribute
}

// identifier names a certificate: by issuer and serial number, or by its subject key identifier when keyID is set.
type identifier struct {
	issuer []byte // DER Name
	serial *big.Int
	keyID  []byte
}

// attribute has its raw element and the parts of it, each whole elements.
type attribute struct {
	raw, oid, value []byte
}

// ParseSignedData reads a ContentInfo that holds a SignedData, in DER or BER. Errors wrap ErrMalformed. The result keeps
// parts of b.
//
// Every signed attribute has exactly one value and occurs once (for those of a SCEP message RFC 8894 §3.2.1 and RFC 5652 §11
// say so); a message where that is not so is malformed.
func ParseSignedData(b []byte) (*SignedData, error) {
	body, err := contentInfo(b, OIDSignedData)
	if err != nil {
		return nil, err
	}
	var version int
	var digestAlgorithms, encap, signers cryptobyte.String
	if !body.ReadASN1Integer(&version) || !body.ReadASN1(&digestAlgorithms, casn1.SET) || !body.ReadASN1(&encap, casn1.SEQUENCE) {
		return nil, malformed("signed data has no version, digest algorithms or content")
	}
	if version != 1 && version != 3 {
		return nil, malformed("signed data of version %d", version)
	}
	sd := &SignedData{}
	if err := sd.parseContent(encap); err != nil {
		return nil, err
	}
	var certificates cryptobyte.String
	var present bool
	if !body.ReadOptionalASN1(&certificates, &present, tagExplicit0) || !body.SkipOptionalASN1(tagConstructed1) || // crls
		!body.ReadASN1(&signers, casn1.SET) || !body.Empty() {
		return nil, malformed("signed data does not end in certificates and signers")
	}
	if sd.Certificates, err = parseCertificates(certificates); err != nil {
		return nil, err
	}
	for !signers.Empty() {
		if len(sd.Signers) == maxSigners {
			return nil, malformed("more than %d signers", maxSigners)
		}
		s, err := parseSigner(&signers)
		if err != nil {
			return nil, err
		}
		sd.Signers = append(sd.Signers, s)
	}
	return sd, nil
}

// contentInfo normalises b and returns the content of the SEQUENCE inside a ContentInfo of the given type.
func contentInfo(b []byte, want asn1.ObjectIdentifier) (cryptobyte.String, error) {
	b, err := normalise(b)
	if err != nil {
		return nil, err
	}
	in := cryptobyte.String(b)
	var info, content, body cryptobyte.String
	var oid asn1.ObjectIdentifier
	if !in.ReadASN1(&info, casn1.SEQUENCE) || !readOID(&info, &oid) {
		return nil, malformed("not a ContentInfo")
	}
	if !oid.Equal(want) {
		return nil, malformed("content type %v instead of %v", oid, want)
	}
	if !info.ReadASN1(&content, tagExplicit0) || !info.Empty() || !content.ReadASN1(&body, casn1.SEQUENCE) || !content.Empty() {
		return nil, malformed("ContentInfo does not hold one sequence")
	}
	return body, nil
}

// parseContent reads an EncapsulatedContentInfo.
func (sd *SignedData) parseContent(encap cryptobyte.String) error {
	var explicit, content cryptobyte.String
	var present bool
	if !readOID(&encap, &sd.ContentType) || !encap.ReadOptionalASN1(&explicit, &present, tagExplicit0) || !encap.Empty() {
		return malformed("encapsulated content")
	}
	if !present {
		return nil
	}
	if !explicit.ReadASN1(&content, casn1.OCTET_STRING) || !explicit.Empty() {
		return malformed("encapsulated content is not one OCTET STRING")
	}
	sd.Content = content
	if sd.Content == nil {
		sd.Content = []byte{}
	}
	return nil
}

// parseCertificates reads a CertificateSet and skips the kinds that are not X.509 certificates.
func parseCertificates(set cryptobyte.String) ([]*Certificate, error) {
	var list []*Certificate
	for !set.Empty() {
		var element cryptobyte.String
		var tag casn1.Tag
		if !set.ReadAnyASN1Element(&element, &tag) {
			return nil, malformed("certificate set")
		}
		if tag != casn1.SEQUENCE {
			continue
		}
		if len(list) == maxCertificates {
			return nil, malformed("more than %d certificates", maxCertificates)
		}
		c, err := ParseCertificate(element)
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, nil
}

func parseSigner(signers *cryptobyte.String) (*SignerInfo, error) {
	var body cryptobyte.String
	var version int
	s := &SignerInfo{}
	if !signers.ReadASN1(&body, casn1.SEQUENCE) || !body.ReadASN1Integer(&version) {
		return nil, malformed("signer has no version")
	}
	if version != 1 && version != 3 {
		return nil, malformed("signer of version %d", version)
	}
	var ok bool
	if s.id, ok = readIdentifier(&body); !ok {
		return nil, malformed("signer identifier")
	}
	if s.digestAlgorithm, ok = readAlgorithm(&body, casn1.SEQUENCE); !ok {
		return nil, malformed("signer's digest algorithm")
	}
	if body.PeekASN1Tag(tagExplicit0) {
		var signed cryptobyte.String
		if !body.ReadASN1Element(&signed, tagExplicit0) {
			return nil, malformed("signed attributes")
		}
		s.signedAttributes = signed
		var err error
		if s.attributes, err = parseAttributes(signed); err != nil {
			return nil, err
		}
	}
	if s.signatureAlgorithm, ok = readAlgorithm(&body, casn1.SEQUENCE); !ok {
		return nil, malformed("signature algorithm")
	}
	var signature cryptobyte.String
	if !body.ReadASN1(&signature, casn1.OCTET_STRING) || !body.SkipOptionalASN1(tagConstructed1) || // unsigned attributes
		!body.Empty() {
		return nil, malformed("signature")
	}
	s.signature = signature
	return s, nil
}

// readIdentifier reads an IssuerAndSerialNumber or a [0] SubjectKeyIdentifier. The latter is IMPLICIT (RFC 5652 §5.3, §6.2.1),
// but some clients send it EXPLICIT.
func readIdentifier(s *cryptobyte.String) (identifier, bool) {
	var id identifier
	var body, part cryptobyte.String
	switch {
	case s.PeekASN1Tag(tagImplicit0):
		ok := s.ReadASN1(&part, tagImplicit0)
		id.keyID = part
		return id, ok && len(part) > 0
	case s.PeekASN1Tag(tagExplicit0):
		ok := s.ReadASN1(&body, tagExplicit0) && body.ReadASN1(&part, casn1.OCTET_STRING) && body.Empty()
		id.keyID = part
		return id, ok && len(part) > 0
	}
	if !s.ReadASN1(&body, casn1.SEQUENCE) || !body.ReadASN1Element(&part, casn1.SEQUENCE) {
		return id, false
	}
	id.issuer = part
	if !body.ReadASN1(&part, casn1.INTEGER) || !body.Empty() {
		return id, false
	}
	var ok bool
	id.serial, ok = integer(part)
	return id, ok
}

// parseAttributes reads the whole element of a SET OF Attribute under any tag.
func parseAttributes(element cryptobyte.String) ([]attribute, error) {
	var set cryptobyte.String
	var tag casn1.Tag
	if !element.ReadAnyASN1(&set, &tag) {
		return nil, malformed("attributes")
	}
	var list []attribute
	for !set.Empty() {
		if len(list) == maxAttributes {
			return nil, malformed("more than %d attributes", maxAttributes)
		}
		var raw, body, oid, values, value cryptobyte.String
		if !set.ReadASN1Element(&raw, casn1.SEQUENCE) {
			return nil, malformed("attribute")
		}
		whole := raw
		if !whole.ReadASN1(&body, casn1.SEQUENCE) || !body.ReadASN1Element(&oid, casn1.OBJECT_IDENTIFIER) ||
			!body.ReadASN1(&values, casn1.SET) || !body.Empty() {
			return nil, malformed("attribute")
		}
		if !values.ReadAnyASN1Element(&value, &tag) || !values.Empty() {
			return nil, malformed("attribute without exactly one value")
		}
		for _, other := range list {
			if bytes.Equal(other.oid, oid) {
				return nil, malformed("the same attribute twice")
			}
		}
		list = append(list, attribute{raw: raw, oid: oid, value: value})
	}
	return list, nil
}

// Attribute returns the single value of the signed attribute of the given type. Before Verify it is what anybody may have
// written there, good for nothing but echoing a transaction in a refusal.
func (s *SignerInfo) Attribute(oid asn1.ObjectIdentifier) (asn1.RawValue, bool) {
	var b cryptobyte.Builder
	b.AddASN1ObjectIdentifier(oid)
	want, err := b.Bytes()
	if err != nil {
		return asn1.RawValue{}, false
	}
	for _, a := range s.attributes {
		if bytes.Equal(a.oid, want) {
			return rawValue(a.value), true
		}
	}
	return asn1.RawValue{}, false
}

// rawValue describes one whole element with a low tag number and a minimal length, as the parsers leave them.
func rawValue(element []byte) asn1.RawValue {
	in := cryptobyte.String(element)
	var content cryptobyte.String
	var tag casn1.Tag
	in.ReadAnyASN1(&content, &tag)
	return asn1.RawValue{
		Class: int(tag >> 6), Tag: int(tag & highTagNumber), IsCompound: tag&bitConstructed != 0,
		Bytes: content, FullBytes: element,
	}
}
