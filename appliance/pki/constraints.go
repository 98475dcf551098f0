package pki

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

var oidNameConstraints = asn1.ObjectIdentifier{2, 5, 29, 30} // RFC 5280 §4.2.1.10

// constraintSet is what one CA certificate says about every name below it.
type constraintSet struct{ permitted, excluded []subtree }

// subtree is the base of a GeneralSubtree.
type subtree struct {
	form cbasn1.Tag // of the GeneralName
	base []byte     // its content
	name dn         // of a directoryName
}

// constraintsOf reads the name constraints of a CA certificate; nil: it has none.
func constraintsOf(c *x509.Certificate) (*constraintSet, error) {
	value, ok := extensionOf(c, oidNameConstraints)
	if !ok {
		return nil, nil
	}
	input := cryptobyte.String(value)
	var body cryptobyte.String
	if !input.ReadASN1(&body, cbasn1.SEQUENCE) || !input.Empty() {
		return nil, errors.New("not a NameConstraints")
	}
	var n constraintSet
	for tag, list := range []*[]subtree{&n.permitted, &n.excluded} {
		var subtrees cryptobyte.String
		var present bool
		if !body.ReadOptionalASN1(&subtrees, &present, context(uint8(tag))) {
			return nil, errors.New("not GeneralSubtrees")
		}
		for !subtrees.Empty() {
			s, err := readSubtree(&subtrees)
			if err != nil {
				return nil, err
			}
			*list = append(*list, s)
		}
	}
	if !body.Empty() {
		return nil, errors.New("more than permitted and excluded subtrees")
	}
	return &n, nil
}

func readSubtree(list *cryptobyte.String) (s subtree, err error) {
	var element, base cryptobyte.String
	if !list.ReadASN1(&element, cbasn1.SEQUENCE) || !element.ReadAnyASN1(&base, &s.form) {
		return s, errors.New("not a GeneralSubtree")
	}
	if !element.Empty() { // RFC 5280 has no use for them
		return s, errors.New("a subtree with a minimum or maximum")
	}
	s.base = base
	switch s.form {
	case context(4):
		s.name, err = parseName(base)
	case formOf(IP):
		if len(base) != 8 && len(base) != 32 {
			err = errors.New("a network that is not address and mask")
		}
	case formOf(DNS), formOf(Email), formOf(URI):
		if !isASCII(string(base)) {
			err = errors.New("a name that is not ASCII")
		}
	}
	return s, err
}

// formOf is the tag of a kind of name; that of an otherName for a UPN.
func formOf(kind Kind) cbasn1.Tag {
	switch kind {
	case Email:
		return cbasn1.Tag(1).ContextSpecific()
	case DNS:
		return cbasn1.Tag(2).ContextSpecific()
	case URI:
		return cbasn1.Tag(6).ContextSpecific()
	case IP:
		return cbasn1.Tag(7).ContextSpecific()
	}
	return context(0)
}

// allow reports whether a name of a form is within a permitted subtree, if there is one of its form, and
// within none that is excluded.
func (n *constraintSet) allow(form cbasn1.Tag, within func(subtree) bool) bool {
	limited, permitted := false, false
	for _, s := range n.permitted {
		if s.form == form {
			limited = true
			permitted = permitted || within(s)
		}
	}
	return (!limited || permitted) && !slices.ContainsFunc(n.excluded, func(s subtree) bool { return s.form == form && within(s) })
}

// allowSubject holds a subject against the directoryName subtrees.
func (n *constraintSet) allowSubject(subject dn) bool {
	return len(subject) == 0 || n.allow(context(4), func(s subtree) bool { return isBelow(subject, s.name) })
}

// allowName holds a subjectAltName against the subtrees of its form. One of a form that can be constrained in
// ways this package does not know is refused where it is, as RFC 5280 §4.2.1.10 wants.
func (n *constraintSet) allowName(name Name) bool {
	form := formOf(name.Kind)
	if form == context(0) {
		known := func(s subtree) bool { return s.form == form }
		return !slices.ContainsFunc(n.permitted, known) && !slices.ContainsFunc(n.excluded, known)
	}
	value := strings.ToLower(name.Value)
	host := value
	switch name.Kind {
	case URI:
		u, err := url.Parse(name.Value)
		if err != nil {
			return false
		}
		if host = strings.ToLower(u.Hostname()); CheckDNSName(host) != nil || isAddress(host) {
			// Without a host that has a name it cannot be held against any.
			none := func(s subtree) bool { return s.form == form }
			return !slices.ContainsFunc(n.permitted, none) && !slices.ContainsFunc(n.excluded, none)
		}
	case Email:
		_, host, _ = strings.Cut(value, "@")
	}
	return n.allow(form, func(s subtree) bool {
		base := strings.ToLower(string(s.base))
		switch name.Kind {
		case IP:
			return isInNetwork(name.Value, s.base)
		case Email:
			if strings.Contains(base, "@") {
				return value == base
			}
			return host == base || strings.HasPrefix(base, ".") && strings.HasSuffix(host, base)
		case URI:
			return host == base || strings.HasPrefix(base, ".") && strings.HasSuffix(host, base)
		}
		return base == "" || host == base || strings.HasSuffix(host, "."+strings.TrimPrefix(base, "."))
	})
}

func isAddress(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

// isInNetwork holds an address against a network of address and mask.
func isInNetwork(text string, base []byte) bool {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return false
	}
	raw, network, mask := addr.AsSlice(), base[:len(base)/2], base[len(base)/2:]
	if len(raw) != len(network) {
		return false
	}
	for i := range raw {
		if raw[i]&mask[i] != network[i]&mask[i] {
			return false
		}
	}
	return true
}

// Under returns the same authority, which issues nothing that the name constraints of its own certificate or
// of those above it do not allow. chain is those above, in any order.
func (i *Issuer) Under(chain []*x509.Certificate) (*Issuer, error) {
	c := *i
	c.constraints = slices.Clone(i.constraints)
	for _, above := range chain {
		constraints, err := constraintsOf(above)
		if err != nil {
			return nil, fmt.Errorf("name constraints of %q: %w", FormatDN(above.RawSubject), err)
		}
		if constraints != nil {
			c.constraints = append(c.constraints, constraints)
		}
	}
	return &c, nil
}

// checkConstraints holds the names a certificate will have against the name constraints above it: the subject
// and the addresses in it, the subjectAltNames, and a common name that software without those takes for a host's.
func (i *Issuer) checkConstraints(subject []byte, names []Name) error {
	if len(i.constraints) == 0 {
		return nil
	}
	parsed, err := parseName(subject)
	if err != nil {
		return &PolicyError{"subject.allow", "a subject that cannot be read"}
	}
	all := slices.Clone(names)
	for _, n := range names { // an IPv4 address written as an IPv6 one is the same address
		if addr, err := netip.ParseAddr(n.Value); err == nil && n.Kind == IP && addr.Is4In6() {
			all = append(all, Name{IP, addr.Unmap().String()})
		}
	}
	hasDNS := slices.ContainsFunc(names, func(n Name) bool { return n.Kind == DNS })
	for _, rdn := range parsed {
		for _, a := range rdn {
			switch {
			case attributeName(a.oid) == "emailAddress":
				all = append(all, Name{Email, a.value})
			case a.oid.Equal(oidCommonName) && !hasDNS:
				if host := significant(a.value); strings.Contains(host, ".") && CheckDNSName(host) == nil && !isAddress(host) {
					all = append(all, Name{DNS, host})
				}
			}
		}
	}
	for _, c := range i.constraints {
		if !c.allowSubject(parsed) {
			return &PolicyError{ruleConstraints, printable(FormatDN(subject))}
		}
		for _, n := range all {
			if !c.allowName(n) {
				return &PolicyError{ruleConstraints, printable(n.Value)}
			}
		}
	}
	return nil
}

// ruleConstraints names what no profile can change in a [PolicyError].
const ruleConstraints = "name constraints of the authority"

// checkNames holds the subjects below c against the directoryName subtrees of its name constraints:
// those of the chain, and of what the authority certifies for itself.
func checkNames(c *x509.Certificate, below []*x509.Certificate) error {
	constraints, err := constraintsOf(c)
	if err != nil {
		return fmt.Errorf("has name constraints that cannot be read (%v); have it signed with others", err)
	}
	if constraints == nil {
		return nil
	}
	subjects := [][]byte{}
	for _, b := range below {
		if !isSelfIssued(b) {
			subjects = append(subjects, b.RawSubject)
		}
	}
	own := c
	if len(below) > 0 {
		own = below[0]
	}
	ra, err := raSubject(own.RawSubject)
	if err != nil {
		return fmt.Errorf("has a subject that cannot be read: %w", err)
	}
	responder, err := responderSubject(own.RawSubject)
	if err != nil {
		return fmt.Errorf("has a subject that cannot be read: %w", err)
	}
	for _, s := range append(subjects, ra, responder) {
		name, err := parseName(s)
		if err != nil {
			return fmt.Errorf("stands above a subject that cannot be read: %w", err)
		}
		if !constraints.allowSubject(name) {
			return fmt.Errorf("does not allow the name %q below it (name constraints); give the authority a name that it allows, or have its certificate signed by another", name)
		}
	}
	return nil
}

// isBelow reports whether name begins with all parts of base (RFC 5280 §7.1), letter case and
// repeated spaces aside.
func isBelow(name, base dn) bool {
	words := func(n dn) string { return strings.ToLower(strings.Join(strings.Fields(n.String()), " ")) }
	return len(name) >= len(base) && words(name[:len(base)]) == words(base)
}
