package pki

import (
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

var (
	oidCommonName   = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidSerialNumber = asn1.ObjectIdentifier{2, 5, 4, 5}
)

// attributeType is a subject attribute people write by a short name.
type attributeType struct {
	name string
	oid  string
	tag  cbasn1.Tag // how ParseDN encodes it; 0: PrintableString where it fits, else UTF8String
	max  int        // upper bound in characters (RFC 5280 appendix A.1), 0: maxDNValue
}

// attributeTypes lists the short names of RFC 4514 §3 and what network gear sends besides.
func attributeTypes() []attributeType {
	return []attributeType{
		{"CN", "2.5.4.3", 0, 64},
		{"SN", "2.5.4.4", 0, 64}, // surname, as in RFC 4519
		{"serialNumber", "2.5.4.5", cbasn1.PrintableString, 64},
		{"C", "2.5.4.6", cbasn1.PrintableString, 2},
		{"L", "2.5.4.7", 0, 128},
		{"ST", "2.5.4.8", 0, 128},
		{"street", "2.5.4.9", 0, 128},
		{"O", "2.5.4.10", 0, 64},
		{"OU", "2.5.4.11", 0, 64},
		{"title", "2.5.4.12", 0, 64},
		{"description", "2.5.4.13", 0, 0},
		{"postalCode", "2.5.4.17", 0, 40},
		{"name", "2.5.4.41", 0, 64},
		{"givenName", "2.5.4.42", 0, 64},
		{"initials", "2.5.4.43", 0, 64},
		{"dnQualifier", "2.5.4.46", cbasn1.PrintableString, 64},
		{"organizationIdentifier", "2.5.4.97", 0, 64},
		{"UID", "0.9.2342.19200300.100.1.1", 0, 0},
		{"DC", "0.9.2342.19200300.100.1.25", cbasn1.IA5String, 0},
		{"emailAddress", "1.2.840.113549.1.9.1", cbasn1.IA5String, 255},
		{"unstructuredName", "1.2.840.113549.1.9.2", cbasn1.IA5String, 255},
		{"unstructuredAddress", "1.2.840.113549.1.9.8", 0, 255},
	}
}

// ParseSubjectAttribute maps a short name (in any case) or a dotted OID to an attribute type.
func ParseSubjectAttribute(s string) (asn1.ObjectIdentifier, error) {
	for _, t := range attributeTypes() {
		if strings.EqualFold(t.name, s) {
			return parseOID(t.oid)
		}
	}
	if oid, err := parseOID(s); err == nil {
		return oid, nil
	}
	var known []string
	for _, t := range attributeTypes() {
		known = append(known, t.name)
	}
	return nil, fmt.Errorf("subject attribute %q is unknown; known are %s, and dotted OIDs", s, strings.Join(known, " "))
}

func parseOID(s string) (asn1.ObjectIdentifier, error) {
	parts := strings.Split(s, ".")
	if len(parts) < 2 || len(parts) > 32 {
		return nil, fmt.Errorf("%q is not a dotted OID", s)
	}
	var oid asn1.ObjectIdentifier
	for _, p := range parts {
		n, err := strconv.ParseUint(p, 10, 31)
		if err != nil || strconv.FormatUint(n, 10) != p {
			return nil, fmt.Errorf("%q is not a dotted OID", s)
		}
		oid = append(oid, int(n))
	}
	if oid[0] > 2 || (oid[0] < 2 && oid[1] > 39) {
		return nil, fmt.Errorf("%q is not a dotted OID", s)
	}
	return oid, nil
}

// dn is a parsed distinguished name: its RDNs in encoded order, each with one attribute or more.
type dn [][]attribute

type attribute struct {
	oid    asn1.ObjectIdentifier
	value  string // UTF-8; hex of the DER where opaque
	opaque bool   // the value is not a character string
	raw    []byte // the value's DER
}

const (
	maxRDNs    = 64
	maxDNValue = 1024 // characters of one value in ParseDN
)

// parseName reads a DER Name (RFC 5280 §4.1.2.4).
func parseName(der []byte) (dn, error) {
	input := cryptobyte.String(der)
	var sequence cryptobyte.String
	if !input.ReadASN1(&sequence, cbasn1.SEQUENCE) || !input.Empty() {
		return nil, errors.New("not one SEQUENCE")
	}
	var n dn
	for !sequence.Empty() {
		if len(n) == maxRDNs {
			return nil, fmt.Errorf("more than %d parts", maxRDNs)
		}
		var set cryptobyte.String
		if !sequence.ReadASN1(&set, cbasn1.SET) || set.Empty() {
			return nil, errors.New("part is not a SET")
		}
		var rdn []attribute
		for !set.Empty() {
			if len(rdn) == maxRDNs {
				return nil, fmt.Errorf("more than %d attributes in one part", maxRDNs)
			}
			var pair, value, element cryptobyte.String
			var tag cbasn1.Tag
			var a attribute
			if !set.ReadASN1(&pair, cbasn1.SEQUENCE) || !pair.ReadASN1ObjectIdentifier(&a.oid) {
				return nil, errors.New("attribute without a type")
			}
			if !pair.ReadAnyASN1Element(&element, &tag) || !pair.Empty() {
				return nil, fmt.Errorf("attribute %s has not one value", a.oid)
			}
			a.raw = element
			if !element.ReadAnyASN1(&value, &tag) {
				return nil, fmt.Errorf("attribute %s has no value", a.oid)
			}
			var err error
			if a.value, err = decodeString(tag, value); err != nil {
				a.value, a.opaque = hex.EncodeToString(a.raw), true
			}
			rdn = append(rdn, a)
		}
		n = append(n, rdn)
	}
	return n, nil
}

// last returns the last value of an attribute type, the most specific one in the usual order.
func (n dn) last(oid asn1.ObjectIdentifier) string {
	found := ""
	for _, rdn := range n {
		for _, a := range rdn {
			if a.oid.Equal(oid) && !a.opaque {
				found = a.value
			}
		}
	}
	return found
}

// String writes the name in encoded order, left to right, escaped as in RFC 4514 §2.4.
func (n dn) String() string {
	parts := make([]string, len(n))
	for i, rdn := range n {
		pairs := make([]string, len(rdn))
		for j, a := range rdn {
			pairs[j] = a.String()
		}
		parts[i] = strings.Join(pairs, "+")
	}
	return strings.Join(parts, ",")
}

// attributeName is the short name of an attribute type, or its OID.
func attributeName(oid asn1.ObjectIdentifier) string {
	dotted := oid.String()
	for _, t := range attributeTypes() {
		if t.oid == dotted {
			return t.name
		}
	}
	return dotted
}

func (a attribute) String() string {
	label := attributeName(a.oid)
	if a.opaque {
		return label + "=#" + a.value
	}
	return label + "=" + escapeValue(a.value)
}

func escapeValue(s string) string {
	var b strings.Builder
	for i, c := range s {
		switch {
		case strings.ContainsRune(`,+"\<>;=`, c),
			c == '#' && i == 0,
			c == ' ' && (i == 0 || i == len(s)-1):
			b.WriteRune('\\')
			b.WriteRune(c)
		case c < 0x20 || c == 0x7f:
			fmt.Fprintf(&b, `\%02x`, c)
		default:
			b.WriteRune(c)
		}
	}
	return b.String()
}

// FormatDN writes a DER Name as text in encoded order, the reverse of [ParseDN]; "" where raw is
// not a Name.
func FormatDN(raw []byte) string {
	n, err := parseName(raw)
	if err != nil {
		return ""
	}
	return n.String()
}

// ParseDN turns text into a DER Name. The parts are encoded in the order they are written, as
// `openssl req -subj`, strongSwan's --dn and `openssl x509 -subject` have it: "CN=A,O=B" puts CN
// first. (RFC 4514 proper would read the text from the right.) Parts are separated by "," and the
// attributes of a multi-valued part by "+"; values are escaped as in RFC 4514 §2.4, by a backslash
// before a special character or before two hex digits. Values are written as PrintableString where
// they fit, else as UTF8String; serialNumber, C and dnQualifier only as PrintableString, DC and
// emailAddress as IA5String. An empty name is an error.
func ParseDN(s string) ([]byte, error) {
	if !utf8.ValidString(s) {
		return nil, errors.New("distinguished name is not UTF-8")
	}
	var b cryptobyte.Builder
	var failed error
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for i, part := range splitDN(s, ',') {
			if i == maxRDNs {
				failed = fmt.Errorf("distinguished name has more than %d parts", maxRDNs)
				return
			}
			rdn, err := encodeRDN(part)
			if err != nil {
				failed = fmt.Errorf("distinguished name %q: %w", s, err)
				return
			}
			b.AddBytes(rdn)
		}
	})
	if failed != nil {
		return nil, failed
	}
	return b.Bytes()
}

// splitDN cuts at separators that no backslash precedes.
func splitDN(s string, separator byte) []string {
	var parts []string
	start := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case separator:
			parts = append(parts, s[start:i])
			start = i + 1
		}
	}
	return append(parts, s[start:])
}

// encodeRDN encodes one part; the attributes of a multi-valued one are sorted as DER wants a SET OF.
func encodeRDN(part string) ([]byte, error) {
	type pair struct {
		Type  asn1.ObjectIdentifier
		Value asn1.RawValue
	}
	var set []pair
	for _, text := range splitDN(part, '+') {
		key, written, ok := strings.Cut(text, "=")
		key = strings.TrimSpace(key)
		if !ok || key == "" {
			return nil, fmt.Errorf("%q is not an attribute, write TYPE=value", strings.TrimSpace(text))
		}
		oid, err := ParseSubjectAttribute(key)
		if err != nil {
			return nil, err
		}
		value, err := unescapeValue(written)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		raw, err := encodeValue(oid, value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		for _, other := range set {
			if other.Type.Equal(oid) {
				return nil, fmt.Errorf("%s twice in one part", key)
			}
		}
		set = append(set, pair{oid, raw})
	}
	der, err := asn1.MarshalWithParams(set, "set")
	if err != nil {
		return nil, err
	}
	return der, nil
}

func unescapeValue(s string) (string, error) {
	s = strings.TrimLeft(s, " ")
	var out []byte
	keep := 0 // length of out up to the last character that is not a trailing bare space
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\' && i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2]):
			b, _ := hex.DecodeString(s[i+1 : i+3])
			out = append(out, b[0])
			i += 2
			keep = len(out)
		case c == '\\':
			if i+1 == len(s) || !strings.ContainsRune(`,+"\<>;=# `, rune(s[i+1])) {
				return "", errors.New(`a backslash stands before one of , + " \ < > ; = # space, or two hex digits`)
			}
			i++
			out = append(out, s[i])
			keep = len(out)
		case strings.ContainsRune(`"<>;`, rune(c)), c == '#' && i == 0:
			return "", fmt.Errorf("write \\%c for %c", c, c)
		default:
			out = append(out, c)
			if c != ' ' {
				keep = len(out)
			}
		}
	}
	value := string(out[:keep])
	if value == "" {
		return "", errors.New("no value")
	}
	if !utf8.ValidString(value) {
		return "", errors.New("value is not UTF-8")
	}
	return value, nil
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func encodeValue(oid asn1.ObjectIdentifier, value string) (asn1.RawValue, error) {
	limit, tag := maxDNValue, cbasn1.Tag(0)
	for _, t := range attributeTypes() {
		if t.oid == oid.String() {
			tag = t.tag
			if t.max > 0 {
				limit = t.max
			}
		}
	}
	if n := utf8.RuneCountInString(value); n > limit {
		return asn1.RawValue{}, fmt.Errorf("%d characters, at most %d", n, limit)
	}
	if oid.String() == "2.5.4.6" && (len(value) != 2 || strings.ToUpper(value) != value || !isPrintableString(value)) {
		return asn1.RawValue{}, errors.New("a country is two capital letters (ISO 3166)")
	}
	switch {
	case tag == 0 && isPrintableString(value):
		tag = cbasn1.PrintableString
	case tag == 0:
		tag = cbasn1.UTF8String
	case tag == cbasn1.PrintableString && !isPrintableString(value):
		return asn1.RawValue{}, fmt.Errorf("%q has characters outside PrintableString", value)
	case tag == cbasn1.IA5String && !isASCII(value):
		return asn1.RawValue{}, fmt.Errorf("%q is not ASCII", value)
	}
	return asn1.RawValue{Tag: int(tag), Bytes: []byte(value)}, nil
}

func isASCII(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] > 0x7f {
			return false
		}
	}
	return true
}

func isPrintableString(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte(" '()+,-./:=?", c) >= 0) {
			return false
		}
	}
	return true
}
