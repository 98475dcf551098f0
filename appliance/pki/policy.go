package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"strings"
	"unicode"
)

// PolicyError is a request a profile does not allow. Both fields may be shown to the requester and
// written to the audit log.
type PolicyError struct {
	Rule  string // the profile's field, e.g. "keys.rsa.min_bits" or "san.dns"
	Value string // what the request asked for, e.g. "1024 bits"
}

func (e *PolicyError) Error() string {
	return fmt.Sprintf("the profile's rule %s does not allow %s", e.Rule, e.Value)
}

// Check holds a request against the profile; the error is a [*PolicyError]. The request's wishes
// for key usages and extended key usages are ignored, since the profile alone decides them; a wish
// to be a CA is refused.
func (p *Profile) Check(r *Request) error {
	if err := p.checkKey(r.PublicKey); err != nil {
		return err
	}
	if err := p.checkSubject(r); err != nil {
		return err
	}
	if r.asksForCA() {
		return &PolicyError{"usage.key", "a certificate authority (basicConstraints)"}
	}
	for _, name := range r.SAN {
		if err := p.checkName(name); err != nil {
			return err
		}
	}
	return nil
}

func (p *Profile) checkKey(key crypto.PublicKey) error {
	switch k := key.(type) {
	case *rsa.PublicKey:
		if p.minRSABits == 0 {
			return &PolicyError{"keys.rsa", "RSA keys"}
		}
		if bits := k.N.BitLen(); bits < p.minRSABits {
			return &PolicyError{"keys.rsa.min_bits", fmt.Sprintf("RSA of %d bits", bits)}
		}
		if weakness := rsaWeakness(k); weakness != "" {
			return &PolicyError{"keys.rsa", weakness}
		}
		return nil
	case *ecdsa.PublicKey:
		for _, curve := range p.curves {
			if k.Curve == curve {
				return nil
			}
		}
		return &PolicyError{"keys.ecdsa", "curve " + k.Curve.Params().Name}
	}
	return &PolicyError{"keys", strings.TrimPrefix(fmt.Sprintf("%T", key), "*") + " keys"}
}

// rsaWeakness says what makes an RSA key of any size worthless, or "". The bounds are those of the
// CA/Browser Forum Baseline Requirements §6.1.6, the exponent's as that section recommends it.
func rsaWeakness(k *rsa.PublicKey) string {
	if k.E < 1<<16+1 || k.E%2 == 0 {
		return fmt.Sprintf("RSA exponent %d (65537 or more, and odd)", k.E)
	}
	if new(big.Int).GCD(nil, nil, k.N, smallPrimeProduct()).Cmp(big.NewInt(1)) != 0 {
		return "RSA modulus with a small factor"
	}
	if hasROCAFingerprint(k.N) {
		return "RSA key made by a defective Infineon library (ROCA, CVE-2017-15361)"
	}
	return ""
}

// smallPrimeProduct multiplies the primes below 752.
func smallPrimeProduct() *big.Int {
	product := big.NewInt(1)
	for n := int64(2); n < 752; n++ {
		if p := big.NewInt(n); p.ProbablyPrime(0) {
			product.Mul(product, p)
		}
	}
	return product
}

// hasROCAFingerprint reports whether n is, modulo each of the primes from 3 to 167, a power of
// 65537 (Nemec et al., "The Return of Coppersmith's Attack", CCS 2017 §2.3). A sound modulus is one
// with a probability of about 2^-27 (and less with the primes whose subgroup is everything left in).
func hasROCAFingerprint(n *big.Int) bool {
	for prime := int64(3); prime <= 167; prime += 2 {
		if !big.NewInt(prime).ProbablyPrime(0) {
			continue
		}
		residue := new(big.Int).Mod(n, big.NewInt(prime)).Int64()
		power, found := int64(1), false
		for range prime {
			if power == residue {
				found = true
				break
			}
			power = power * 65537 % prime
		}
		if !found {
			return false
		}
	}
	return true
}

// What a certificate may hold at most, for the sake of devices that keep it in little memory.
const (
	maxSubject = 4 << 10  // bytes of DER
	maxSAN     = 16 << 10 // bytes of DER
)

func (p *Profile) checkSubject(r *Request) error {
	if len(r.RawSubject) > maxSubject {
		return &PolicyError{"subject.allow", fmt.Sprintf("a subject of %d bytes (at most %d)", len(r.RawSubject), maxSubject)}
	}
	if len(r.RawSAN) > maxSAN {
		return &PolicyError{"san", fmt.Sprintf("subjectAltNames of %d bytes (at most %d)", len(r.RawSAN), maxSAN)}
	}
	subject, err := parseName(r.RawSubject)
	if err != nil {
		return &PolicyError{"subject.allow", "a subject that cannot be read"}
	}
	if len(subject) == 0 && len(r.SAN) == 0 {
		return &PolicyError{"subject.allow", "an empty subject without a subjectAltName"}
	}
	for _, rdn := range subject {
		for _, a := range rdn {
			if !p.allowsAttribute(a) {
				return &PolicyError{"subject.allow", printable(a.String())}
			}
			if a.opaque {
				return &PolicyError{"subject.allow", printable(a.String()) + " (not a character string)"}
			}
			// Software that stops at a NUL, or a person who reads text that turns around, would see
			// another name than the one that is certified and audited.
			if strings.ContainsFunc(a.value, func(c rune) bool { return !unicode.IsPrint(c) }) {
				return &PolicyError{"subject.allow", printable(a.String()) + " (characters that cannot be printed)"}
			}
		}
	}
	return nil
}

func (p *Profile) allowsAttribute(a attribute) bool {
	for _, oid := range p.subject {
		if a.oid.Equal(oid) {
			return true
		}
	}
	return false
}

// sidURI begins a URI that names an account of Active Directory by its SID (Microsoft KB5014754). Domain
// controllers log in whoever holds a certificate with one, so a pattern that only happens to match it
// does not allow it.
const sidURI = "tag:microsoft.com,2022-09-14:sid:"

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
	default:
		return &PolicyError{"san", "a name of kind " + string(n.Kind)}
	}
	value := strings.ToLower(n.Value)
	for _, pattern := range p.patterns[n.Kind] {
		if n.Kind == URI && strings.HasPrefix(value, sidURI) && !strings.HasPrefix(pattern, sidURI) {
			continue
		}
		if matches(pattern, value) {
			return nil
		}
	}
	return refused
}

// matches reports whether s fits pattern, in which '*' stands for any run of characters. It takes
// time linear in the pattern times the text: each literal piece goes to its first place.
func matches(pattern, s string) bool {
	pieces := strings.Split(pattern, "*")
	if len(pieces) == 1 {
		return pattern == s
	}
	first, last := pieces[0], pieces[len(pieces)-1]
	if !strings.HasPrefix(s, first) {
		return false
	}
	s = s[len(first):]
	for _, piece := range pieces[1 : len(pieces)-1] {
		i := strings.Index(s, piece)
		if i < 0 {
			return false
		}
		s = s[i+len(piece):]
	}
	return strings.HasSuffix(s, last)
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
