package pki

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	"golang.org/x/net/idna"
)

// PolicyError is a request a profile does not allow. Both fields may be shown to the requester and
// written to the audit log.
type PolicyError struct {
	Rule  string // the profile's field, e.g. "keys.rsa.min_bits" or "san.dns"; "keys.weak" is always on
	Value string // what the request asked for, e.g. "1024 bits"
}

func (e *PolicyError) Error() string {
	return fmt.Sprintf("the profile's rule %s does not allow %s", e.Rule, e.Value)
}

// Check holds a request against the profile; the error is a [*PolicyError]. The request's wishes
// for key usages and extended key usages are ignored, since the profile alone decides them; a wish
// to be a CA is refused.
func (p *Profile) Check(r *Request) error {
	_, err := p.check(r)
	return err
}

// check is [Profile.Check], and returns the DER Name of the subject that the certificate gets.
func (p *Profile) check(r *Request) ([]byte, error) {
	if err := p.checkKey(r.PublicKey); err != nil {
		return nil, err
	}
	subject, err := p.subjectFor(r)
	if err != nil {
		return nil, err
	}
	if err := p.checkSID(r); err != nil {
		return nil, err
	}
	if r.asksForCA() {
		return nil, &PolicyError{"usage.key", "a certificate authority (basicConstraints)"}
	}
	for _, name := range r.SAN {
		if err := p.checkName(name); err != nil {
			return nil, err
		}
	}
	return subject, nil
}

// Allows reports whether the profile's patterns accept a subjectAltName.
func (p *Profile) Allows(n Name) bool { return p.checkName(n) == nil }

func (p *Profile) checkName(n Name) error {
	refused := &PolicyError{"san." + string(n.Kind), printable(n.Value)}
	switch n.Kind {
	case IP:
		addr, err := netip.ParseAddr(n.Value)
		if err != nil {
			return refused
		}
		// An IPv4 address written as an IPv6 one is the same address to who verifies the certificate.
		addr = addr.Unmap()
		for _, network := range p.networks {
			if network.Contains(addr) {
				return nil
			}
		}
		return refused
	case DNS:
		if err := CheckDNSName(n.Value); err != nil {
			return &PolicyError{"san.dns", fmt.Sprintf("%s (%v)", printable(n.Value), err)}
		}
		if !isInternational(n.Value) {
			return &PolicyError{"san.dns", printable(n.Value) + " (a label begins with xn-- and is no A-label)"}
		}
		if _, err := netip.ParseAddr(n.Value); err == nil { // some software compares it with addresses
			return &PolicyError{"san.dns", n.Value + " (an address is a name of kind ip)"}
		}
	case Email:
		local, domain, _ := strings.Cut(n.Value, "@")
		if local == "" || strings.ContainsAny(n.Value, " <>,;\"\\") || CheckDNSName(domain) != nil {
			return &PolicyError{"san.email", printable(n.Value) + " (not a mail address)"}
		}
	case UPN:
		if strings.Count(n.Value, "@") > 1 { // which of them begins the domain is anybody's guess
			return &PolicyError{"san.upn", printable(n.Value) + " (more than one @)"}
		}
	case URI:
		if !isAbsoluteURI(n.Value) {
			return &PolicyError{"san.uri", printable(n.Value) + " (not an absolute URI)"}
		}
	default:
		return &PolicyError{"san", "a name of kind " + string(n.Kind)}
	}
	for _, pattern := range p.patterns[n.Kind] {
		if n.Kind == URI && namesAccount(n.Value) && !pattern.forAccounts {
			continue
		}
		if pattern.matches(n.Value) {
			return nil
		}
	}
	return refused
}

// isInternational reports whether every label of a DNS name that claims to be an internationalised one
// is (RFC 5280 §7.2, RFC 5891 §4.2.3): software shows such a label decoded.
func isInternational(s string) bool {
	strict := idna.New(idna.ValidateLabels(true), idna.BidiRule())
	for label := range strings.SplitSeq(strings.ToLower(s), ".") {
		if strings.HasPrefix(label, "xn--") {
			if _, err := strict.ToUnicode(label); err != nil {
				return false
			}
		}
	}
	return true
}

// isAbsoluteURI reports whether s has a scheme, something behind it, and a host where it has an authority
// (RFC 5280 §4.2.1.6).
func isAbsoluteURI(s string) bool {
	u, err := url.Parse(s)
	if err != nil || u.Scheme == "" {
		return false
	}
	rest := s[len(u.Scheme)+1:]
	return rest != "" && (!strings.HasPrefix(rest, "//") || u.Hostname() != "")
}

// CheckDNSName checks the preferred name syntax (RFC 1034 §3.5), underscores besides; no wildcard,
// no final dot.
func CheckDNSName(s string) error {
	if len(s) == 0 || len(s) > 253 {
		return errors.New("1 to 253 characters")
	}
	for label := range strings.SplitSeq(s, ".") {
		if len(label) == 0 || len(label) > 63 {
			return errors.New("labels have 1 to 63 characters")
		}
		if label[0] == '-' || label[len(label)-1] == '-' {
			return errors.New("a label neither begins nor ends with a hyphen")
		}
		for i := 0; i < len(label); i++ {
			c := label[i]
			if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
				return errors.New("letters, digits, hyphens and underscores only")
			}
		}
	}
	return nil
}
