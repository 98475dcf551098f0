package challenge

import (
	"encoding/asn1"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf16"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"signet.internal/appliance/pki"
)

var (
	oidCommonName   = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidEmailAddress = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}
)

// fold lower-cases ASCII and nothing else: other letters have look-alikes that fold together, and the
// certificate would carry the one that was not allowed.
func fold(s string) string {
	return strings.Map(func(c rune) rune {
		if 'A' <= c && c <= 'Z' {
			return c + 'a' - 'A'
		}
		return c
	}, s)
}

// sameNames reports whether two lists of names are the same set, up to the case of ASCII letters.
func sameNames(a, b []pki.Name) bool {
	return slices.Equal(nameSet(a), nameSet(b))
}

func nameSet(names []pki.Name) []string {
	var set []string
	for _, n := range names {
		set = append(set, string(n.Kind)+":"+fold(n.Value))
	}
	slices.Sort(set)
	return slices.Compact(set)
}

// parseSAN reads "kind:value".
func parseSAN(s string) (pki.Name, error) {
	kind, value, _ := strings.Cut(s, ":")
	name := pki.Name{Kind: pki.Kind(kind), Value: value}
	switch name.Kind {
	case pki.DNS, pki.Email, pki.URI, pki.UPN:
	case pki.IP:
		addr, err := netip.ParseAddr(value)
		if err != nil || addr.Zone() != "" {
			return pki.Name{}, fmt.Errorf("name %.100q has no address, write it as ip:192.0.2.1", s)
		}
		name.Value = addr.Unmap().String()
	default:
		return pki.Name{}, fmt.Errorf("name %.100q is of no known kind, write it as dns:, email:, ip:, uri:, upn: or sid: and the name", s)
	}
	if value == "" || len(value) > maxBoundCN {
		return pki.Name{}, fmt.Errorf("name %.100q is empty or longer than %d bytes", s, maxBoundCN)
	}
	return name, nil
}

// isSID reports whether s is written like a security identifier ([MS-DTYP] §2.4.2.1).
func isSID(s string) bool {
	numbers, ok := strings.CutPrefix(s, "S-1-")
	return ok && len(s) <= maxBoundCN && strings.Trim(numbers, "-0123456789") == "" && strings.Contains(numbers, "-") &&
		!strings.Contains("-"+numbers+"-", "--")
}

// commonNames returns every common name of a DER subject, of which software differs in which it
// believes.
func commonNames(subject []byte) ([]string, error) { return subjectValues(subject, oidCommonName) }

// subjectValues returns every value of an attribute of a DER Name (RFC 5280 §4.1.2.4).
func subjectValues(subject []byte, oid asn1.ObjectIdentifier) ([]string, error) {
	bad := errors.New("the subject of the CSR is unreadable")
	input := cryptobyte.String(subject)
	var rdns cryptobyte.String
	if !input.ReadASN1(&rdns, cbasn1.SEQUENCE) || !input.Empty() {
		return nil, bad
	}
	var values []string
	for !rdns.Empty() {
		var rdn cryptobyte.String
		if !rdns.ReadASN1(&rdn, cbasn1.SET) {
			return nil, bad
		}
		for !rdn.Empty() {
			var attribute, value cryptobyte.String
			var kind asn1.ObjectIdentifier
			var tag cbasn1.Tag
			if !rdn.ReadASN1(&attribute, cbasn1.SEQUENCE) || !attribute.ReadASN1ObjectIdentifier(&kind) ||
				!attribute.ReadAnyASN1(&value, &tag) || !attribute.Empty() {
				return nil, bad
			}
			if kind.Equal(oid) {
				values = append(values, text(tag, value))
			}
		}
	}
	return values, nil
}

// String types that are not one byte or UTF-8 a character (X.680 §8.4).
const tagBMPString = cbasn1.Tag(30)

// text turns a string that pki has accepted into UTF-8.
func text(tag cbasn1.Tag, value []byte) string {
	switch tag {
	case tagBMPString:
		units := make([]uint16, 0, len(value)/2)
		for i := 0; i+1 < len(value); i += 2 {
			units = append(units, uint16(value[i])<<8|uint16(value[i+1]))
		}
		return string(utf16.Decode(units))
	case cbasn1.T61String: // read as Latin-1, as pki does
		runes := make([]rune, len(value))
		for i, c := range value {
			runes[i] = rune(c)
		}
		return string(runes)
	}
	return string(value)
}
