package scep

import (
	"encoding/asn1"
	"fmt"
	"unicode/utf8"
)

// SCEP's signed attributes, under the VeriSign arc and, failInfoText, the PKIX one: RFC 8894 §3.2. Never written to.
var (
	oidMessageType    = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 2}
	oidPKIStatus      = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 3}
	oidFailInfo       = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 4}
	oidSenderNonce    = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 5}
	oidRecipientNonce = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 6}
	oidTransactionID  = asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 7}
	oidRandomNonce    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 25, 3} // RFC 2985 §5.3.3
	oidFailInfoText   = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 24, 1}
)

const (
	typeCertRep    = "3"
	typeRenewalReq = "17"
	typePKCSReq    = "19"
	typeCertPoll   = "20" // GetCertInitial in older drafts
	typeGetCert    = "21"
	typeGetCRL     = "22"

	maxTransactionID = 256 // bytes; real ones are at most 78 (a 256-bit decimal number)
	maxNonce         = 256 // bytes; RFC 8894 §3.2.1.5 says 16
)

// header is what a CertRep repeats from the request it answers.
type header struct {
	transaction    string // "" when the request has none that can be repeated
	transactionTag int    // the string type the client wrote it in
	messageType    string // decimal, "" when absent
	senderNonce    []byte // nil when the request has none
	noContent      bool   // the client reads no content that is empty, see failure
}

// attributes is what readHeader needs of a *cms.SignerInfo: a signed attribute's only value.
type attributes func(asn1.ObjectIdentifier) (asn1.RawValue, bool)

// readHeader reads the signed attributes of a request. It reads them all even where one is bad, so that the refusal can
// still carry the transaction and the nonce the client waits for; the error is a *refusal.
//
// A missing senderNonce is let pass: the reply then has no recipientNonce, for there is nothing to repeat, and what
// protects the enrollment is the transaction and the key.
func readHeader(get attributes) (header, error) {
	var h header
	var errs [3]error
	if v, ok := get(oidTransactionID); !ok {
		errs[0] = refuse(badRequest, "the request has no transactionID attribute")
	} else if s, err := text(v, maxTransactionID); err != nil {
		errs[0] = refuse(badRequest, "the transactionID attribute is "+err.Error())
	} else {
		h.transaction, h.transactionTag = s, v.Tag
	}
	if v, ok := get(oidMessageType); !ok {
		errs[1] = refuse(badRequest, "the request has no messageType attribute")
	} else if s, err := text(v, 3); err != nil {
		errs[1] = refuse(badRequest, "the messageType attribute is "+err.Error())
	} else {
		h.messageType = s
	}
	if v, ok := get(oidSenderNonce); ok {
		if v.Class != asn1.ClassUniversal || v.Tag != asn1.TagOctetString || v.IsCompound || len(v.Bytes) > maxNonce {
			errs[2] = refuse(badRequest, "the senderNonce attribute is not an OCTET STRING of 16 bytes")
		} else {
			h.senderNonce = v.Bytes
		}
	}
	_, h.noContent = get(oidRandomNonce) // which cryptlib alone sends
	for _, err := range errs {
		if err != nil {
			return h, err
		}
	}
	return h, nil
}

// text reads a string attribute: a PrintableString by RFC 8894 §3.2, but clients exist that write IA5String or
// UTF8String. The result is not empty, valid UTF-8 and without control characters, so it can go into a log or a record.
func text(v asn1.RawValue, limit int) (string, error) {
	if v.Class != asn1.ClassUniversal || v.IsCompound ||
		v.Tag != asn1.TagPrintableString && v.Tag != asn1.TagIA5String && v.Tag != asn1.TagUTF8String {
		return "", fmt.Errorf("not a PrintableString")
	}
	if len(v.Bytes) == 0 {
		return "", fmt.Errorf("empty")
	}
	if len(v.Bytes) > limit {
		return "", fmt.Errorf("longer than %d bytes", limit)
	}
	if !utf8.Valid(v.Bytes) {
		return "", fmt.Errorf("not text")
	}
	for _, r := range string(v.Bytes) {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return "", fmt.Errorf("not text")
		}
	}
	return string(v.Bytes), nil
}
