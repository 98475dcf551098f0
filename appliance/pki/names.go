package pki

import (
	"encoding/asn1"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Kind is the type of a subjectAltName. The five kinds profiles have rules for are constants; any
// other is named "directoryName", "registeredID" and so on, or "otherName:<oid>".
type Kind string

// Kinds of names a profile can allow, called as in a site's profile.
const (
	DNS   Kind = "dns"
	Email Kind = "email"
	IP    Kind = "ip"
	URI   Kind = "uri"
	UPN   Kind = "upn" // otherName 1.3.6.1.4.1.311.20.2.3, a Windows user principal name
)

// Name is one subjectAltName.
type Name struct {
	Kind  Kind
	Value string // as text; hex of the DER for kinds without a rule
}

var oidUPN = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 3} // [MS-WCCE] szOID_NT_PRINCIPAL_NAME

const maxNames = 256 // subjectAltNames in one request

// parseNames reads GeneralNames (RFC 5280 §4.2.1.6). Names of kinds no profile can allow are read
// too, so that the refusal can name them.
func parseNames(der []byte) ([]Name, error) {
	input := cryptobyte.String(der)
	var list cryptobyte.String
	if !input.ReadASN1(&list, cbasn1.SEQUENCE) || !input.Empty() {
		return nil, errors.New("not one SEQUENCE")
	}
	if list.Empty() {
		return nil, errors.New("no name in it")
	}
	var names []Name
	for !list.Empty() {
		if len(names) == maxNames {
			return nil, fmt.Errorf("more than %d names", maxNames)
		}
		var value cryptobyte.String
		var tag cbasn1.Tag
		if !list.ReadAnyASN1(&value, &tag) {
			return nil, errors.New("name is not DER")
		}
		name, err := parseGeneralName(tag, value)
		if err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, nil
}

func parseGeneralName(tag cbasn1.Tag, value cryptobyte.String) (Name, error) {
	primitive := func(n uint8) cbasn1.Tag { return cbasn1.Tag(n).ContextSpecific() }
	constructed := func(n uint8) cbasn1.Tag { return primitive(n).Constructed() }
	other := func(kind string) (Name, error) { return Name{Kind(kind), fmt.Sprintf("%x", []byte(value))}, nil }
	switch tag {
	case constructed(0):
		return parseOtherName(value)
	case primitive(1):
		return ia5Name(Email, value)
	case primitive(2):
		return ia5Name(DNS, value)
	case primitive(6):
		return ia5Name(URI, value)
	case primitive(7):
		addr, ok := netip.AddrFromSlice(value)
		if !ok {
			return Name{}, fmt.Errorf("iPAddress of %d bytes", len(value))
		}
		return Name{IP, addr.String()}, nil
	case constructed(3):
		return other("x400Address")
	case constructed(4):
		return other("directoryName")
	case constructed(5):
		return other("ediPartyName")
	case primitive(8):
		return other("registeredID")
	}
	return Name{}, fmt.Errorf("name with tag 0x%02x", uint8(tag))
}

func ia5Name(kind Kind, value []byte) (Name, error) {
	if len(value) == 0 {
		return Name{}, fmt.Errorf("empty %s name", kind)
	}
	for _, c := range value {
		if c < 0x20 || c > 0x7e {
			return Name{}, fmt.Errorf("%s name with byte 0x%02x", kind, c)
		}
	}
	return Name{kind, string(value)}, nil
}

// parseOtherName reads the contents of OtherName: type-id and value [0] EXPLICIT.
func parseOtherName(value cryptobyte.String) (Name, error) {
	var oid asn1.ObjectIdentifier
	var wrapped, text cryptobyte.String
	var tag cbasn1.Tag
	raw := []byte(value)
	if !value.ReadASN1ObjectIdentifier(&oid) ||
		!value.ReadASN1(&wrapped, cbasn1.Tag(0).ContextSpecific().Constructed()) || !value.Empty() {
		return Name{}, errors.New("otherName is not a type and a value")
	}
	if !oid.Equal(oidUPN) {
		return Name{Kind("otherName:" + oid.String()), fmt.Sprintf("%x", raw)}, nil
	}
	if !wrapped.ReadAnyASN1(&text, &tag) || !wrapped.Empty() || tag != cbasn1.UTF8String {
		return Name{}, errors.New("user principal name is not one UTF8String")
	}
	upn, err := decodeString(tag, text)
	if err != nil || upn == "" {
		return Name{}, errors.New("user principal name is empty or not UTF-8")
	}
	if printable(upn) != upn {
		return Name{}, errors.New("user principal name has characters that cannot be printed, or more than 200")
	}
	return Name{UPN, upn}, nil
}

// String types without a constant in cryptobyte/asn1 (X.680 §8.4).
const (
	tagNumericString = cbasn1.Tag(18)
	tagVisibleString = cbasn1.Tag(26)
	tagBMPString     = cbasn1.Tag(30)
)

// decodeString turns an ASN.1 character string into UTF-8. T61String is read as Latin-1, which is
// what the software still producing it means.
func decodeString(tag cbasn1.Tag, value []byte) (string, error) {
	switch tag {
	case cbasn1.PrintableString, cbasn1.IA5String, tagNumericString, tagVisibleString:
		// Clients put '@', '*' and '_' into PrintableString; only its being ASCII is relied on.
		for _, c := range value {
			if c > 0x7f {
				return "", fmt.Errorf("ASCII string with byte 0x%02x", c)
			}
		}
		return string(value), nil
	case cbasn1.UTF8String:
		if !utf8.Valid(value) {
			return "", errors.New("UTF8String is not UTF-8")
		}
		return string(value), nil
	case cbasn1.T61String:
		var b strings.Builder
		for _, c := range value {
			b.WriteRune(rune(c))
		}
		return b.String(), nil
	case tagBMPString:
		if len(value)%2 != 0 {
			return "", errors.New("BMPString with half a character")
		}
		units := make([]uint16, 0, len(value)/2)
		for i := 0; i < len(value); i += 2 {
			units = append(units, uint16(value[i])<<8|uint16(value[i+1]))
		}
		return string(utf16.Decode(units)), nil
	}
	return "", fmt.Errorf("string type 0x%02x", uint8(tag))
}
