package scep

import (
	"crypto/rand"
	"encoding/asn1"
	"fmt"

	"signet.internal/appliance/cms"
)

const contentTypePKIMessage = "application/x-pki-message"

// pkiStatus values: RFC 8894 §3.2.1.3.
const (
	statusSuccess = "0"
	statusFailure = "2"
	statusPending = "3"
)

// sealing says how the content of an answer is encrypted (RFC 8894 §3.1): to the certificate that signed the request, or, where its
// key cannot decrypt, under the challenge that the request held.
type sealing struct {
	recipient *cms.Certificate // with an RSA key, or else
	password  string
	cipher    cms.Cipher
}

func (e sealing) encrypt(content []byte) ([]byte, error) {
	if e.recipient != nil {
		return cms.Encrypt(rand.Reader, content, e.recipient, e.cipher)
	}
	return cms.EncryptPassword(rand.Reader, content, e.password, e.cipher)
}

// certificates is a degenerate SignedData with the given certificate first, which is where clients look for it, and the CA and what is
// above it behind where the profile says so.
func (o *offer) certificates(certificate []byte) ([]byte, error) {
	content, err := cms.CertsOnly(append([][]byte{certificate}, o.above...))
	if err != nil {
		return nil, fmt.Errorf("building the certificates of an answer: %w", err)
	}
	return content, nil
}

// success is a CertRep with content: the certificates, or a CRL (RFC 8894 §3.3.2.1, §3.3.4).
func (s *Server) success(p *profile, req *request, content []byte, e sealing) ([]byte, error) {
	envelope, err := e.encrypt(content)
	if err != nil {
		return nil, fmt.Errorf("encrypting a CertRep: %w", err)
	}
	return s.certRep(p, req, envelope, attribute{oidPKIStatus, printable(statusSuccess)})
}

// pending is a CertRep that has a device ask again: the request is durably held for a person. It has no content, like a failure.
func (s *Server) pending(p *profile, req *request) ([]byte, error) {
	return s.certRep(p, req, nil, attribute{oidPKIStatus, printable(statusPending)})
}

// failure is a CertRep without a certificate. Its content is an empty OCTET STRING and not absent, as RFC 8894 §3.3.2.2
// has it, because certmonger takes a reply without content for a network fault and tries forever. For cryptlib it is absent: it
// takes an OCTET STRING that is empty for a message that cannot be read.
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

// certRep signs a reply, by the RA that the request is addressed to. The set of attributes is the one Windows insists on; transactionID and senderNonce come back as
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
		NoContent:         content == nil && req.noContent,
		SignerCertificate: req.ra.Certificate,
		Signer:            req.ra.Signer,
		Certificates:      [][]byte{req.ra.Certificate.Raw},
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
