package image

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"debug/pe"
	"encoding/asn1"
	"encoding/binary"
	"fmt"
	"math/big"
)

// Object identifiers of "Windows Authenticode Portable Executable Signature Format" and RFC 5652.
var (
	oidSpcIndirectData = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 4}
	oidSpcPEImageData  = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 15}
	oidSignedData      = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidContentType     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	oidMessageDigest   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	oidSHA256          = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidRSA             = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
)

// WIN_CERTIFICATE header (UEFI 2.10 §32.2.4, Authenticode "Attribute Certificate Table").
const (
	winCertRevision   = 0x0200
	winCertPKCSSigned = 0x0002
)

var (
	sha256Algorithm = pkix.AlgorithmIdentifier{Algorithm: oidSHA256, Parameters: asn1.NullRawValue}
	rsaAlgorithm    = pkix.AlgorithmIdentifier{Algorithm: oidRSA, Parameters: asn1.NullRawValue}
)

type spcPEImageData struct {
	Flags asn1.BitString
	File  asn1.RawValue
}

type spcAttribute struct {
	Type  asn1.ObjectIdentifier
	Value spcPEImageData
}

type digestInfo struct {
	Algorithm pkix.AlgorithmIdentifier
	Digest    []byte
}

type spcIndirectData struct {
	Data   spcAttribute
	Digest digestInfo
}

type cmsAttribute struct {
	Type   asn1.ObjectIdentifier
	Values []asn1.RawValue `asn1:"set"`
}

type issuerAndSerial struct {
	Issuer asn1.RawValue
	Serial *big.Int
}

type cmsSignerInfo struct {
	Version            int
	Signer             issuerAndSerial
	DigestAlgorithm    pkix.AlgorithmIdentifier
	SignedAttributes   asn1.RawValue
	SignatureAlgorithm pkix.AlgorithmIdentifier
	Signature          []byte
}

type cmsContent struct {
	Type    asn1.ObjectIdentifier
	Content asn1.RawValue // carries its own [0] EXPLICIT
}

type cmsSignedData struct {
	Version          int
	DigestAlgorithms []pkix.AlgorithmIdentifier `asn1:"set"`
	Content          cmsContent
	Certificates     asn1.RawValue
	Signers          []cmsSignerInfo `asn1:"set"`
}

// signAuthenticode appends an Authenticode signature to an unsigned PE32+ image. It carries no
// time, so the same image and key give the same bytes.
func signAuthenticode(unsigned []byte, key *rsa.PrivateKey, cert *x509.Certificate) ([]byte, error) {
	img := append(bytes.Clone(unsigned), make([]byte, -len(unsigned)&7)...)
	layout, err := locate(img)
	if err != nil {
		return nil, err
	}
	if binary.LittleEndian.Uint64(img[layout.securityDir:]) != 0 {
		return nil, fmt.Errorf("signing PE image: it is signed already")
	}
	p7, err := authenticodePKCS7(layout.digest(img), key, cert)
	if err != nil {
		return nil, fmt.Errorf("signing PE image: %w", err)
	}
	length := alignUp(uint32(8+len(p7)), 8)
	binary.LittleEndian.PutUint32(img[layout.securityDir:], uint32(len(img)))
	binary.LittleEndian.PutUint32(img[layout.securityDir+4:], length)
	entry := make([]byte, length)
	binary.LittleEndian.PutUint32(entry, length)
	binary.LittleEndian.PutUint16(entry[4:], winCertRevision)
	binary.LittleEndian.PutUint16(entry[6:], winCertPKCSSigned)
	copy(entry[8:], p7)
	return append(img, entry...), nil
}

// peLayout is where the fields lie that an Authenticode digest leaves out.
type peLayout struct{ checksum, securityDir int }

func locate(img []byte) (peLayout, error) {
	f, err := pe.NewFile(bytes.NewReader(img))
	if err != nil {
		return peLayout{}, fmt.Errorf("signing PE image: %v", err)
	}
	h, ok := f.OptionalHeader.(*pe.OptionalHeader64)
	if !ok || h.NumberOfRvaAndSizes <= peSecurityDir {
		return peLayout{}, fmt.Errorf("signing PE image: not PE32+ with a certificate table entry")
	}
	optional := int(binary.LittleEndian.Uint32(img[0x3c:])) + 4 + peFileHeader
	return peLayout{checksum: optional + 64, securityDir: optional + 112 + 8*peSecurityDir}, nil
}

// digest hashes the image without its checksum and certificate table entry ("Calculating the PE
// Image Hash"). It holds for images without a certificate table, with sections in file order and
// nothing between them but padding, as assembled here and as systemd-boot is linked.
func (l peLayout) digest(img []byte) []byte {
	h := sha256.New()
	h.Write(img[:l.checksum])
	h.Write(img[l.checksum+4 : l.securityDir])
	h.Write(img[l.securityDir+8:])
	return h.Sum(nil)
}

// authenticodePKCS7 is the SignedData over an image digest.
func authenticodePKCS7(digest []byte, key *rsa.PrivateKey, cert *x509.Certificate) ([]byte, error) {
	// SpcPeImageData.file is [0] SpcLink, a choice [2] SpcString, a choice [0] BMPString; signers
	// everywhere write this text.
	var obsolete []byte
	for _, c := range []byte("<<<Obsolete>>>") {
		obsolete = append(obsolete, 0, c)
	}
	link := contextTag(0, true, contextTag(2, true, contextTag(0, false, obsolete)))
	indirect, err := asn1.Marshal(spcIndirectData{
		Data:   spcAttribute{oidSpcPEImageData, spcPEImageData{File: asn1.RawValue{FullBytes: link}}},
		Digest: digestInfo{sha256Algorithm, digest},
	})
	if err != nil {
		return nil, err
	}
	var outer asn1.RawValue
	if _, err := asn1.Unmarshal(indirect, &outer); err != nil {
		return nil, err
	}
	// Unlike in CMS, the content is not an OCTET STRING, and the digest covers its inner octets.
	contentDigest := sha256.Sum256(outer.Bytes)
	attributes, err := signedAttributes(contentDigest[:])
	if err != nil {
		return nil, err
	}
	toSign := sha256.Sum256(attributes)
	signature, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, toSign[:])
	if err != nil {
		return nil, err
	}
	attributes[0] = 0xa0 // signed as SET OF, carried as [0] IMPLICIT (RFC 5652 §5.4)
	signed, err := asn1.Marshal(cmsSignedData{
		Version:          1,
		DigestAlgorithms: []pkix.AlgorithmIdentifier{sha256Algorithm},
		Content:          cmsContent{oidSpcIndirectData, asn1.RawValue{FullBytes: contextTag(0, true, indirect)}},
		Certificates:     asn1.RawValue{FullBytes: contextTag(0, true, cert.Raw)},
		Signers: []cmsSignerInfo{{
			Version:            1,
			Signer:             issuerAndSerial{asn1.RawValue{FullBytes: cert.RawIssuer}, cert.SerialNumber},
			DigestAlgorithm:    sha256Algorithm,
			SignedAttributes:   asn1.RawValue{FullBytes: attributes},
			SignatureAlgorithm: rsaAlgorithm,
			Signature:          signature,
		}},
	})
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(cmsContent{oidSignedData, asn1.RawValue{FullBytes: contextTag(0, true, signed)}})
}

// signedAttributes is the DER SET OF contentType and messageDigest.
func signedAttributes(contentDigest []byte) ([]byte, error) {
	contentType, err := asn1.Marshal(oidSpcIndirectData)
	if err != nil {
		return nil, err
	}
	messageDigest, err := asn1.Marshal(contentDigest)
	if err != nil {
		return nil, err
	}
	return asn1.MarshalWithParams([]cmsAttribute{
		{oidContentType, []asn1.RawValue{{FullBytes: contentType}}},
		{oidMessageDigest, []asn1.RawValue{{FullBytes: messageDigest}}},
	}, "set")
}

// contextTag wraps content in a context-specific tag.
func contextTag(tag int, compound bool, content []byte) []byte {
	der, err := asn1.Marshal(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, IsCompound: compound, Bytes: content})
	if err != nil {
		panic("image: encoding a context tag: " + err.Error()) // no input reaches this
	}
	return der
}
