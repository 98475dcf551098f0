package pki

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// What a certificate may hold at most, for the sake of devices that keep it in little memory.
const (
	maxSubject = 4 << 10  // bytes of DER
	maxSAN     = 16 << 10 // bytes of DER
)

// subjectFor holds a request's subject against the profile and returns the subject its certificate
// gets, as a DER Name: byte for byte the request's, or what the profile's template makes of it.
func (p *Profile) subjectFor(r *Request) ([]byte, error) {
	if len(r.RawSubject) > maxSubject {
		return nil, &PolicyError{"subject.allow", fmt.Sprintf("a subject of %d bytes (at most %d)", len(r.RawSubject), maxSubject)}
	}
	if len(r.RawSAN) > maxSAN {
		return nil, &PolicyError{"san", fmt.Sprintf("subjectAltNames of %d bytes (at most %d)", len(r.RawSAN), maxSAN)}
	}
	subject, err := parseName(r.RawSubject)
	if err != nil {
		return nil, &PolicyError{"subject.allow", "a subject that cannot be read"}
	}
	// A renewal may ask for the very subject that the template once made.
	made := r.issued && p.template.fits(subject)
	for _, rdn := range subject {
		for _, a := range rdn {
			if err := p.checkAttribute(a, made); err != nil {
				return nil, err
			}
		}
	}
	if p.template == nil || made {
		if len(subject) == 0 && len(r.SAN) == 0 {
			return nil, &PolicyError{"subject.allow", "an empty subject without a subjectAltName"}
		}
		return r.RawSubject, nil
	}
	filled, err := p.template.fill(subject)
	if err == nil && len(filled) > maxSubject {
		return nil, &PolicyError{"subject.template", fmt.Sprintf("a subject of %d bytes (at most %d)", len(filled), maxSubject)}
	}
	return filled, err
}

// checkAttribute holds one attribute of a request's subject against the profile. made says that the
// subject came from the profile's template, whose attributes are then allowed.
func (p *Profile) checkAttribute(a attribute, made bool) error {
	if !made && !p.allowsAttribute(a) {
		return &PolicyError{"subject.allow", printable(a.String())}
	}
	if a.opaque {
		return &PolicyError{"subject.allow", printable(a.String()) + " (not a character string)"}
	}
	// Software that stops at a NUL, or a person who reads text that turns around, would see another
	// name than the one that is certified and audited.
	if strings.ContainsFunc(a.value, func(c rune) bool { return !unicode.IsPrint(c) }) {
		return &PolicyError{"subject.allow", printable(a.String()) + " (characters that cannot be printed)"}
	}
	if a.oid.Equal(oidCommonName) && isWildcard(a.value) && !p.template.writes(a) {
		return &PolicyError{"subject.allow", printable(a.String()) + " (a wildcard)"}
	}
	source := a.oid
	if made {
		source = p.template.source(a.oid)
	}
	for _, m := range p.match {
		if m.oid.Equal(source) && !slices.ContainsFunc(m.patterns, func(x pattern) bool { return x.matches(a.value) }) {
			return &PolicyError{"subject.match", printable(a.String())}
		}
	}
	return nil
}

// isWildcard reports whether a common name stands for several hosts, this box perhaps among them, to software that takes
// it for a DNS name (RFC 6125 §6.4.3; some lets '*' be part of a label).
func isWildcard(name string) bool {
	name = significant(name)
	return strings.Contains(name, "*") && strings.Contains(name, ".") && CheckDNSName(strings.ReplaceAll(name, "*", "x")) == nil
}

// allowsAttribute reports whether a request's subject may hold an attribute. What the template writes
// into every certificate is allowed too: devices renew with the subject of their certificate.
func (p *Profile) allowsAttribute(a attribute) bool {
	return slices.ContainsFunc(p.subject, a.oid.Equal) || p.template.writes(a)
}

// subjectMatch is the patterns for the values of one attribute type.
type subjectMatch struct {
	oid      asn1.ObjectIdentifier
	patterns []pattern
}

// subjectTemplate is a compiled [SubjectConfig.Template]: its parts in order, each with one attribute
// or more. nil is none.
type subjectTemplate [][]templateAttribute

type templateAttribute struct {
	oid   asn1.ObjectIdentifier
	from  asn1.ObjectIdentifier // attribute of the request its value is taken from; nil: value
	value asn1.RawValue
	text  string // of value
}

// parseTemplate compiles a template written as for [ParseDN].
func parseTemplate(s string) (subjectTemplate, error) {
	var template subjectTemplate
	for _, part := range splitDN(s, ',') {
		var rdn []templateAttribute
		for _, text := range splitDN(part, '+') {
			a, err := parseTemplateAttribute(text)
			if err != nil {
				return nil, err
			}
			if slices.ContainsFunc(rdn, func(other templateAttribute) bool { return other.oid.Equal(a.oid) }) {
				return nil, fmt.Errorf("%q holds an attribute twice", part)
			}
			rdn = append(rdn, a)
		}
		template = append(template, rdn)
	}
	if len(template) > maxRDNs {
		return nil, fmt.Errorf("more than %d parts", maxRDNs)
	}
	return template, nil
}

func parseTemplateAttribute(text string) (templateAttribute, error) {
	key, written, ok := strings.Cut(text, "=")
	key = strings.TrimSpace(key)
	if !ok || key == "" {
		return templateAttribute{}, fmt.Errorf("%q is not an attribute", strings.TrimSpace(text))
	}
	oid, err := ParseSubjectAttribute(key)
	if err != nil {
		return templateAttribute{}, err
	}
	a := templateAttribute{oid: oid}
	if source, ok := strings.CutPrefix(strings.TrimSpace(written), "{"); ok {
		if source, ok = strings.CutSuffix(source, "}"); !ok {
			return templateAttribute{}, fmt.Errorf("%s: %s is neither a text nor one {ATTRIBUTE}", key, strings.TrimSpace(written))
		}
		a.from, err = ParseSubjectAttribute(strings.TrimSpace(source))
		return a, err
	}
	if strings.ContainsAny(written, "{}") {
		return templateAttribute{}, fmt.Errorf("%s: %s is neither a text nor one {ATTRIBUTE}", key, strings.TrimSpace(written))
	}
	if a.text, err = unescapeValue(written); err == nil {
		a.value, err = encodeValue(oid, a.text)
	}
	if err != nil {
		return templateAttribute{}, fmt.Errorf("%s: %w", key, err)
	}
	return a, nil
}

// writes reports whether the template itself writes this very attribute.
func (t subjectTemplate) writes(a attribute) bool {
	for _, rdn := range t {
		for _, own := range rdn {
			if own.from == nil && own.oid.Equal(a.oid) && own.text == a.value {
				return true
			}
		}
	}
	return false
}

// source is the attribute of a request that the template takes the value of an attribute from.
func (t subjectTemplate) source(oid asn1.ObjectIdentifier) asn1.ObjectIdentifier {
	for _, rdn := range t {
		for _, own := range rdn {
			if own.from != nil && own.oid.Equal(oid) {
				return own.from
			}
		}
	}
	return oid
}

// fits reports whether the template could have made the subject.
func (t subjectTemplate) fits(subject dn) bool {
	if len(t) == 0 || len(t) != len(subject) {
		return false
	}
	for i, rdn := range t {
		if len(rdn) != len(subject[i]) {
			return false
		}
		for _, own := range rdn {
			if !slices.ContainsFunc(subject[i], func(a attribute) bool {
				return own.oid.Equal(a.oid) && (own.from != nil || own.text == a.value)
			}) {
				return false
			}
		}
	}
	return true
}

// fill makes the subject of a certificate from that of a request.
func (t subjectTemplate) fill(subject dn) ([]byte, error) {
	var b cryptobyte.Builder
	var refused error
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, rdn := range t {
			set := make([][]byte, len(rdn))
			for i, own := range rdn {
				var err error
				if set[i], err = own.fill(subject); err != nil && refused == nil {
					refused = err
				}
			}
			slices.SortFunc(set, bytes.Compare) // a SET OF in DER (X.690 §11.6)
			b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) { b.AddBytes(bytes.Join(set, nil)) })
		}
	})
	if refused != nil {
		return nil, refused
	}
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encoding subject: %w", err)
	}
	return der, nil
}

// fill makes one AttributeTypeAndValue. A value that keeps its type keeps its encoding.
func (own templateAttribute) fill(subject dn) ([]byte, error) {
	value := own.value
	if own.from != nil {
		var found []attribute
		for _, rdn := range subject {
			for _, a := range rdn {
				if a.oid.Equal(own.from) {
					found = append(found, a)
				}
			}
		}
		name := attributeName(own.from)
		if len(found) != 1 || found[0].value == "" {
			return nil, &PolicyError{"subject.template", fmt.Sprintf("a subject with %d values for %s, where its certificates need one", len(found), name)}
		}
		if own.from.Equal(own.oid) {
			value = asn1.RawValue{FullBytes: found[0].raw}
		} else {
			var err error
			if value, err = encodeValue(own.oid, found[0].value); err != nil {
				return nil, &PolicyError{"subject.template", printable(fmt.Sprintf("%s as %s: %v", found[0], attributeName(own.oid), err))}
			}
		}
	}
	return asn1.Marshal(struct {
		Type  asn1.ObjectIdentifier
		Value asn1.RawValue
	}{own.oid, value})
}

// checkTemplate says what is wrong with a template beside the attributes that requests may hold.
func checkTemplate(t subjectTemplate, allow []asn1.ObjectIdentifier) error {
	allowed := func(oid asn1.ObjectIdentifier) bool { return slices.ContainsFunc(allow, oid.Equal) }
	var errs []error
	for _, rdn := range t {
		for _, own := range rdn {
			switch {
			case own.from != nil && !allowed(own.from):
				errs = append(errs, fmt.Errorf("no request may hold the %s it needs; add it to subject.allow", attributeName(own.from)))
			case own.oid.Equal(oidCommonName) && own.from != nil && !own.from.Equal(own.oid):
				// Challenges, approvals and the box's own names are held against the name asked for.
				errs = append(errs, fmt.Errorf("a common name is {CN} or a text, not the request's %s", attributeName(own.from)))
			case own.oid.Equal(oidCommonName) && own.from == nil && allowed(own.oid):
				errs = append(errs, errors.New("the common name a request asks for would not be the one it gets; leave CN out of subject.allow"))
			}
		}
	}
	return errors.Join(errs...)
}
