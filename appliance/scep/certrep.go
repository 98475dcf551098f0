package scep

import (
	"crypto/rand"
	"encoding/asn1"
	"fmt"

	"signet.internal/appliance/cms"
)

const contentTypePKIMessage = "application/x-pki-message"

// pkiStatus values: RFC 8894 §3.2.1.3. PENDING (3) stands for a durable approval, and there are none.
const (
	statusSuccess = "0"
	statusFailure = "2"
)

// success is a CertRep with the issued certificate first, which is where clients look for it, in a degenerate SignedData
// encrypted to the certificate that signed the request (RFC 8894 §3.3.2) with the given cipher.
func (s *Server) success(p *profile, req *request, certificate []byte, c cms.Cipher) ([]byte, error) {
	certs := [][]byte{certificate}
	if p.Chain {
		certs = append(certs, p.CA.Raw)
	}
	content, err := cms.CertsOnly(certs)
	if err != nil {
		return nil, fmt.Errorf("building the certificates of a CertRep: %w", err)
	}
	envelope, err := cms.Encrypt(rand.Reader, content, req.signer, c)
	if err != nil {
		return nil, fmt.Errorf("encrypting a CertRep: %w", err)
	}
	return s.certRep(p, req, envelope, attribute{oidPKIStatus, printable(statusSuccess)})
}

// failure is a CertRep without a certificate. Its content is an empty OCTET STRING and not absent, as RFC 8894 §3.3.2.2
// has it, because certmonger takes a reply without content for a network fault and tries forever.
func (s *Server) failure(p *profile, req *request, v verdict) ([]byte, error) {
	return s.certRep(p, req, nil,
		attribute{oidPKIStatus, printable(statusFailure)},
		attribute{oidFailInfo, printable(string(v.fail))},
		attribute{oidFailInfoText, value{asn1.TagUTF8String, []byte(v.text())}},
	)
}

// attribute is a signed attribute before it is encoded, value its only value: a universal tag and contents.
type attribute struct {
	oid   asn1.ObjectIdentifier
	value value
}

type value struct {
	tag   int
	bytes []byte
}

func printable(s string) value { return value{asn1.TagPrintableString, []byte(s)} }

// certRep signs a reply. The set of attributes is the one Windows insists on; transactionID and senderNonce come back as
// they were sent, byte for byte, because clients compare bytes.
func (s *Server) certRep(p *profile, req *request, content []byte, more ...attribute) ([]byte, error) {
	nonce := make([]byte, 16)
	rand.Read(nonce) // never fails: crypto/rand
	attrs := append([]attribute{
		{oidMessageType, printable(typeCertRep)},
		{oidSenderNonce, value{asn1.TagOctetString, nonce}},
	}, more...)
	if req.transaction != "" {
		attrs = append(attrs, attribute{oidTransactionID, value{req.transactionTag, []byte(req.transaction)}})
	}
	if req.senderNonce != nil {
		attrs = append(attrs, attribute{oidRecipientNonce, value{asn1.TagOctetString, req.senderNonce}})
	}
	options := cms.SignOptions{
		Content:           content,
		SignerCertificate: p.RA,
		Signer:            p.RASigner,
		Certificates:      [][]byte{p.RA.Raw},
		Digest:            p.answerDigest(req.digest),
	}
	for _, a := range attrs {
		der, err := asn1.Marshal(asn1.RawValue{Tag: a.value.tag, Bytes: a.value.bytes})
		if err != nil {
			return nil, fmt.Errorf("encoding attribute %v of a CertRep: %w", a.oid, err)
		}
		options.Attributes = append(options.Attributes, cms.Attribute{Type: a.oid, Value: der})
	}
	b, err := cms.Sign(options)
	if err != nil {
		return nil, fmt.Errorf("signing a CertRep: %w", err)
	}
	return b, nil
}
