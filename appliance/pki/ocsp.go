package pki

import (
	"crypto"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Bounds of an OCSP request. Real ones ask for one certificate, or for those of a chain, in some
// hundred octets.
const (
	MaxOCSPRequest   = 4 << 10 // octets of DER
	maxOCSPIDs       = 16      // certificates asked for
	maxOCSPNonce     = 128     // octets (RFC 9654 §2.1)
	maxOCSPHash      = 64      // octets of a hash in a CertID: SHA-512 is the longest there is
	maxOCSPExtension = 16      // extensions of a request, or of one certificate in it
)

var (
	oidOCSPBasic = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 1} // RFC 6960 §4.2.1
	oidOCSPNonce = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2} // RFC 6960 §4.4.1

	oidHashSHA1   = asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}
	oidHashSHA256 = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
)

// ErrOCSPRequest is wrapped by every error of ParseOCSPRequest.
var ErrOCSPRequest = errors.New("malformed OCSP request")

// OCSPRequest is what somebody asks an OCSP responder (RFC 6960 §4.1.1). Who asks, and a signature
// under the request, are read over: anyone may ask.
type OCSPRequest struct {
	IDs   []CertID // 1 to 16, in the order asked
	Nonce []byte   // 1 to 128 octets (RFC 9654); nil: none was sent
}

// CertID names a certificate by its issuer and serial number.
type CertID struct {
	Serial string // lower-case hex, two digits an octet; "" for a number that is not positive

	hash              crypto.Hash // of the issuer's name and key; 0: one that is not known here
	nameHash, keyHash []byte
	raw               []byte // DER as sent, which the answer repeats: clients compare it
}

// Raw is the DER of the CertID as it was sent; it must not be changed.
func (c CertID) Raw() []byte { return c.raw }

// ParseOCSPRequest reads the DER of an OCSPRequest of at most [MaxOCSPRequest] octets. It refuses what
// is not DER, more than 16 certificates, a nonce that is not 1 to 128 octets, and critical extensions
// (RFC 6960 §4.4: nothing may ignore those). All errors wrap [ErrOCSPRequest].
func ParseOCSPRequest(der []byte) (*OCSPRequest, error) {
	r, err := parseOCSPRequest(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrOCSPRequest, err)
	}
	return r, nil
}

func parseOCSPRequest(der []byte) (*OCSPRequest, error) {
	if len(der) > MaxOCSPRequest {
		return nil, fmt.Errorf("%d octets, %d is the most", len(der), MaxOCSPRequest)
	}
	input := cryptobyte.String(der)
	var request, tbs, signature cryptobyte.String
	var signed bool
	if !input.ReadASN1(&request, cbasn1.SEQUENCE) || !input.Empty() || !request.ReadASN1(&tbs, cbasn1.SEQUENCE) ||
		!request.ReadOptionalASN1(&signature, &signed, context(0)) || !request.Empty() {
		return nil, errors.New("not an OCSPRequest")
	}
	var version, requestor, list, extensions cryptobyte.String
	var versioned, named, extended bool
	if !tbs.ReadOptionalASN1(&version, &versioned, context(0)) ||
		!tbs.ReadOptionalASN1(&requestor, &named, context(1)) ||
		!tbs.ReadASN1(&list, cbasn1.SEQUENCE) ||
		!tbs.ReadOptionalASN1(&extensions, &extended, context(2)) || !tbs.Empty() {
		return nil, errors.New("not a TBSRequest")
	}
	if versioned { // v1 is the default, which DER leaves out and some clients write
		var v int
		if !version.ReadASN1Integer(&v) || !version.Empty() || v != 0 {
			return nil, errors.New("version is not 1")
		}
	}
	r := &OCSPRequest{}
	for !list.Empty() {
		if len(r.IDs) == maxOCSPIDs {
			return nil, fmt.Errorf("more than %d certificates", maxOCSPIDs)
		}
		id, err := readSingleRequest(&list)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(r.IDs)+1, err)
		}
		r.IDs = append(r.IDs, id)
	}
	if len(r.IDs) == 0 {
		return nil, errors.New("asks for no certificate")
	}
	if extended {
		if err := readOCSPExtensions(extensions, &r.Nonce); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// context is a constructed context-specific tag, as EXPLICIT tagging has it.
func context(n uint8) cbasn1.Tag { return cbasn1.Tag(n).ContextSpecific().Constructed() }

func readSingleRequest(list *cryptobyte.String) (CertID, error) {
	var single, element, extensions cryptobyte.String
	var extended bool
	if !list.ReadASN1(&single, cbasn1.SEQUENCE) || !single.ReadASN1Element(&element, cbasn1.SEQUENCE) ||
		!single.ReadOptionalASN1(&extensions, &extended, context(0)) || !single.Empty() {
		return CertID{}, errors.New("not a Request")
	}
	if extended {
		if err := readOCSPExtensions(extensions, nil); err != nil {
			return CertID{}, err
		}
	}
	id := CertID{raw: []byte(element)}
	var body, algorithm, nameHash, keyHash, serial cryptobyte.String
	var oid asn1.ObjectIdentifier
	if !element.ReadASN1(&body, cbasn1.SEQUENCE) || !body.ReadASN1(&algorithm, cbasn1.SEQUENCE) ||
		!body.ReadASN1(&nameHash, cbasn1.OCTET_STRING) || !body.ReadASN1(&keyHash, cbasn1.OCTET_STRING) ||
		!body.ReadASN1(&serial, cbasn1.INTEGER) || !body.Empty() ||
		!algorithm.ReadASN1ObjectIdentifier(&oid) {
		return CertID{}, errors.New("not a CertID")
	}
	// Hashes have no parameters, and both ways of saying so are in use.
	if parameters := string(algorithm); parameters != "" && parameters != "\x05\x00" {
		return CertID{}, errors.New("the hash algorithm has parameters")
	}
	if len(nameHash) > maxOCSPHash || len(keyHash) > maxOCSPHash {
		return CertID{}, errors.New("a hash is longer than any there is")
	}
	switch {
	case oid.Equal(oidHashSHA1):
		id.hash = crypto.SHA1
	case oid.Equal(oidHashSHA256):
		id.hash = crypto.SHA256
	}
	if id.hash != 0 && (len(nameHash) != id.hash.Size() || len(keyHash) != id.hash.Size()) {
		return CertID{}, fmt.Errorf("a hash is not one of %s", id.hash)
	}
	id.nameHash, id.keyHash = nameHash, keyHash
	var err error
	id.Serial, err = serialOf(serial)
	return id, err
}

// serialOf writes the content of a DER INTEGER as serials are written here; "" where it is not positive.
func serialOf(content []byte) (string, error) {
	if len(content) == 0 || len(content) > 1 && (content[0] == 0 && content[1] < 0x80 || content[0] == 0xff && content[1] >= 0x80) {
		return "", errors.New("the serial number is not DER")
	}
	switch {
	case content[0] >= 0x80:
		return "", nil
	case content[0] == 0:
		content = content[1:]
	}
	return hex.EncodeToString(content), nil
}

// readOCSPExtensions reads the Extensions of a request (RFC 5280 §4.1), and the nonce among them where
// nonce is not nil. None else means anything here, so a critical one is refused.
func readOCSPExtensions(s cryptobyte.String, nonce *[]byte) error {
	var list cryptobyte.String
	if !s.ReadASN1(&list, cbasn1.SEQUENCE) || !s.Empty() || list.Empty() {
		return errors.New("extensions are not a list")
	}
	for n := 0; !list.Empty(); n++ {
		var extension, value cryptobyte.String
		var oid asn1.ObjectIdentifier
		var critical bool
		if n == maxOCSPExtension {
			return fmt.Errorf("more than %d extensions", maxOCSPExtension)
		}
		if !list.ReadASN1(&extension, cbasn1.SEQUENCE) || !extension.ReadASN1ObjectIdentifier(&oid) ||
			extension.PeekASN1Tag(cbasn1.BOOLEAN) && !extension.ReadASN1Boolean(&critical) ||
			!extension.ReadASN1(&value, cbasn1.OCTET_STRING) || !extension.Empty() {
			return errors.New("not an Extension")
		}
		if nonce == nil || !oid.Equal(oidOCSPNonce) {
			if critical {
				return fmt.Errorf("extension %s is critical and not known here", oid)
			}
			continue
		}
		var octets cryptobyte.String
		if *nonce != nil {
			return errors.New("two nonces")
		}
		if !value.ReadASN1(&octets, cbasn1.OCTET_STRING) || !value.Empty() || len(octets) == 0 || len(octets) > maxOCSPNonce {
			return fmt.Errorf("the nonce is not an OCTET STRING of 1 to %d octets", maxOCSPNonce)
		}
		*nonce = octets
	}
	return nil
}
