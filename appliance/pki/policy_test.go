package pki

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestPolicyRefusals(t *testing.T) {
	issuer := newAuthority(t, newKey(t, "ecdsa-p256"))
	device := newKey(t, "ecdsa-p256")
	strict := newProfile(t, ProfileConfig{
		Keys:    KeyConfig{ECDSA: []string{"p256"}},
		Subject: SubjectConfig{Allow: []string{"CN"}},
		SAN: SANConfig{DNS: []string{"*.example.com"}, Email: []string{"*@example.com"}, IP: []string{"10.0.0.0/8"},
			URI: []string{"urn:dev:*"}},
		Usage:    UsageConfig{Key: []string{"digitalSignature"}, Extended: []string{"clientAuth"}},
		Validity: time.Hour,
	})
	cn := pkix.Name{CommonName: "dev"}
	uri := func(s string) []*url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return []*url.URL{u}
	}
	extension := func(oid asn1.ObjectIdentifier, value string) []pkix.Extension {
		return []pkix.Extension{{Id: oid, Value: []byte(value)}}
	}
	tests := []struct {
		name        string
		request     x509.CertificateRequest
		rule, value string // of the refusal; "" for none
	}{
		{"all allowed", x509.CertificateRequest{Subject: cn, DNSNames: []string{"A.Example.COM", "x.y.example.com"},
			EmailAddresses: []string{"me@example.com"}, IPAddresses: []net.IP{net.IPv4(10, 1, 2, 3)}, URIs: uri("urn:dev:7")}, "", ""},
		{"names without a subject", x509.CertificateRequest{DNSNames: []string{"a.example.com"}}, "", ""},
		{"neither subject nor name", x509.CertificateRequest{}, "subject.allow", "empty subject"},
		{"attribute", x509.CertificateRequest{Subject: pkix.Name{CommonName: "dev", Organization: []string{"Evil Corp"}}}, "subject.allow", "O=Evil Corp"},
		{"dns elsewhere", x509.CertificateRequest{Subject: cn, DNSNames: []string{"a.example.com", "bank.com"}}, "san.dns", "bank.com"},
		{"dns that only ends alike", x509.CertificateRequest{Subject: cn, DNSNames: []string{"evilexample.com"}}, "san.dns", "evilexample.com"},
		{"dns the domain itself", x509.CertificateRequest{Subject: cn, DNSNames: []string{"example.com"}}, "san.dns", "example.com"},
		{"dns wildcard", x509.CertificateRequest{Subject: cn, DNSNames: []string{"*.example.com"}}, "san.dns", "*.example.com"},
		{"wildcard in the common name", x509.CertificateRequest{Subject: pkix.Name{CommonName: "*.Example.com"}}, "subject.allow", "CN=*.Example.com (a wildcard)"},
		{"part of a label", x509.CertificateRequest{Subject: pkix.Name{CommonName: " b*x.example.com. "}}, "subject.allow", "(a wildcard)"},
		{"no host", x509.CertificateRequest{Subject: pkix.Name{CommonName: "Pump *1"}}, "", ""},
		{"dns A-label", x509.CertificateRequest{Subject: cn, DNSNames: []string{"xn--bcher-kva.example.com"}}, "", ""},
		{"dns A-label that is none", x509.CertificateRequest{Subject: cn, DNSNames: []string{"XN--zzzz.example.com"}}, "san.dns", "XN--zzzz.example.com (a label"},
		{"dns empty label", x509.CertificateRequest{Subject: cn, DNSNames: []string{"a..example.com"}}, "san.dns", "a..example.com"},
		{"dns with a slash", x509.CertificateRequest{Subject: cn, DNSNames: []string{"a/.example.com"}}, "san.dns", "a/.example.com"},
		{"email elsewhere", x509.CertificateRequest{Subject: cn, EmailAddresses: []string{"me@evil.com"}}, "san.email", "me@evil.com"},
		{"email twice", x509.CertificateRequest{Subject: cn, EmailAddresses: []string{"me@evil.com,x@example.com"}}, "san.email", "me@evil.com,x@example.com"},
		{"ip elsewhere", x509.CertificateRequest{Subject: cn, IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1)}}, "san.ip", "192.0.2.1"},
		{"ip in IPv6", x509.CertificateRequest{Subject: cn, IPAddresses: []net.IP{net.ParseIP("2001:db8::1")}}, "san.ip", "2001:db8::1"},
		{"uri elsewhere", x509.CertificateRequest{Subject: cn, URIs: uri("https://evil/")}, "san.uri", "https://evil/"},
		{"uri without a scheme", x509.CertificateRequest{Subject: cn, URIs: uri("dev/7")}, "san.uri", "dev/7 (not an absolute URI)"},
		{"uri without a host", x509.CertificateRequest{Subject: cn, URIs: uri("http:///7")}, "san.uri", "http:///7 (not an absolute URI)"},
		{"upn without a rule", x509.CertificateRequest{Subject: cn, ExtraExtensions: extension(oidSubjectAltName,
			"\x30\x18\xa0\x16\x06\x0a\x2b\x06\x01\x04\x01\x82\x37\x14\x02\x03\xa0\x08\x0c\x06me@e.x")}, "san.upn", "me@e.x"},
		{"registeredID", x509.CertificateRequest{Subject: cn, ExtraExtensions: extension(oidSubjectAltName, "\x30\x04\x88\x02\x2a\x03")}, "san", "registeredID"},
		{"hardware name", x509.CertificateRequest{Subject: cn, ExtraExtensions: extension(oidSubjectAltName,
			"\x30\x10\xa0\x0e\x06\x08\x2b\x06\x01\x05\x05\x07\x08\x04\xa0\x02\x05\x00")}, "san", "otherName:1.3.6.1.5.5.7.8.4"},
		{"endless subject", x509.CertificateRequest{Subject: pkix.Name{CommonName: strings.Repeat("x", maxSubject)}}, "subject.allow", "bytes"},
		{"endless names", x509.CertificateRequest{Subject: cn, DNSNames: slices.Repeat([]string{strings.Repeat("x", 60) + ".example.com"}, maxSAN/70)}, "san", "bytes"},
		{"control character in the subject", x509.CertificateRequest{Subject: pkix.Name{CommonName: "admin\x00.example.com"}}, "subject.allow", "cannot be printed"},
		{"subject that turns around", x509.CertificateRequest{Subject: pkix.Name{CommonName: "dev\u202enimda"}}, "subject.allow", "cannot be printed"},
		{"address as a dns name", x509.CertificateRequest{Subject: cn, DNSNames: []string{"10.1.2.3"}}, "san.dns", "10.1.2.3 (an address"},
		{"wants to be a CA", x509.CertificateRequest{Subject: cn, ExtraExtensions: extension(oidBasicConstraints, "\x30\x03\x01\x01\xff")}, "usage.key", "certificate authority"},
		{"wants to be none", x509.CertificateRequest{Subject: cn, ExtraExtensions: extension(oidBasicConstraints, "\x30\x00")}, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := issuer.Prepare(strict, goRequest(t, device, tt.request), now)
			if tt.rule == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var refused *PolicyError
			if !errors.As(err, &refused) || refused.Rule != tt.rule || !strings.Contains(refused.Value, tt.value) {
				t.Errorf("error %v, want rule %s and value %s", err, tt.rule, tt.value)
			}
		})
	}
}

func TestKeyPolicy(t *testing.T) {
	big2048 := newKey(t, "rsa-2048").Public().(*rsa.PublicKey)
	rsaOnly := newProfile(t, withKeys(KeyConfig{RSA: &RSAConfig{MinBits: 3072}}))
	ecOnly := newProfile(t, withKeys(KeyConfig{ECDSA: []string{"p384"}}))
	both := newProfile(t, permissive())
	edKey, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		profile *Profile
		key     any
		rule    string
	}{
		{"RSA long enough", both, big2048, ""},
		{"RSA too short", rsaOnly, big2048, "keys.rsa.min_bits"},
		{"RSA not allowed", ecOnly, big2048, "keys.rsa"},
		{"ECDSA not allowed", rsaOnly, newKey(t, "ecdsa-p384").Public(), "keys.ecdsa"},
		{"curve allowed", ecOnly, newKey(t, "ecdsa-p384").Public(), ""},
		{"curve not allowed", ecOnly, newKey(t, "ecdsa-p256").Public(), "keys.ecdsa"},
		{"P-521", both, p521.Public(), "keys.ecdsa"},
		{"Ed25519", both, edKey, "keys"},
		{"exponent 3", both, &rsa.PublicKey{N: big2048.N, E: 3}, "keys.weak"},
		{"even exponent", both, &rsa.PublicKey{N: big2048.N, E: 65538}, "keys.weak"},
		{"small factor", both, &rsa.PublicKey{N: new(big.Int).Mul(big2048.N, big.NewInt(751)), E: 65537}, "keys.weak"},
		{"ROCA", both, &rsa.PublicKey{N: rocaModulus(t), E: 65537}, "keys.weak"},
		{"even modulus", both, &rsa.PublicKey{N: new(big.Int).Lsh(big2048.N, 1), E: 65537}, "keys.weak"},
		{"close primes", both, &rsa.PublicKey{N: closePrimes(t, 50), E: 65537}, "keys.weak"},
		{"close primes, late", both, &rsa.PublicKey{N: closePrimes(t, fermatRounds), E: 65537}, "keys.weak"},
		{"primes too far for Fermat", both, &rsa.PublicKey{N: closePrimes(t, 1000*fermatRounds), E: 65537}, ""},
		{"square", both, &rsa.PublicKey{N: square(closePrimes(t, 1).Sqrt(closePrimes(t, 1))), E: 65537}, "keys.weak"},
		{"point off the curve", both, &ecdsa.PublicKey{Curve: elliptic.P256(), X: big.NewInt(1), Y: big.NewInt(1)}, "keys.weak"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.profile.checkKey(tt.key)
			var refused *PolicyError
			if got := errors.As(err, &refused); got != (tt.rule != "") || got && refused.Rule != tt.rule {
				t.Errorf("error %v, want rule %q", err, tt.rule)
			}
			if tt.name == "Ed25519" && !strings.HasSuffix(err.Error(), "does not allow Ed25519 keys") {
				t.Errorf("it says %v", err)
			}
		})
	}
}

// What holds for a key alone holds for the key of a request.
func TestCheckLooksAtTheKey(t *testing.T) {
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var refused *PolicyError
	err = newProfile(t, permissive()).Check(goRequest(t, p521, x509.CertificateRequest{DNSNames: []string{"a.example.com"}}))
	if !errors.As(err, &refused) || refused.Rule != "keys.ecdsa" {
		t.Errorf("%v, want rule keys.ecdsa", err)
	}
}

// A name that is not of its kind is refused whatever the patterns.
func TestNamesAreOfTheirKind(t *testing.T) {
	p := newProfile(t, permissive())
	long := strings.Repeat("abcdefgh.", 28)
	for name, allowed := range map[Name]bool{
		{Email, "me@example.com"}: true, {Email, "@example.com"}: false, {Email, "me"}: false, {Email, "me@"}: false,
		{Email, "me@evil.com@example.com"}: false, {Email, "me@-example.com"}: false,
		{Email, "Me <me@example.com"}: false, {Email, "me,you@example.com"}: false, {Email, "me;you@example.com"}: false, {Email, `"me"@example.com`}: false,
		{DNS, long + "x"}: true, {DNS, long + "xx"}: false, {DNS, "a..b"}: false, {DNS, ".a"}: false, {DNS, "a."}: false,
		{DNS, strings.Repeat("a", 63) + ".b"}: true, {DNS, strings.Repeat("a", 64) + ".b"}: false,
		{DNS, "-a.b"}: false, {DNS, "a-.b"}: false, {DNS, "a.b-"}: false, {DNS, "*.a"}: false, {DNS, "10.0.0.1"}: false,
		{URI, "urn:x"}: true, {URI, "x"}: false, {URI, "https:///x"}: false,
	} {
		if err := p.checkName(name); (err == nil) != allowed {
			t.Errorf("%s %.40q: %v", name.Kind, name.Value, err)
		}
	}
}

func withKeys(k KeyConfig) ProfileConfig {
	c := permissive()
	c.Keys = k
	return c
}

// rocaModulus makes a modulus of the structure the defective library gave its primes:
// p = k·M + 65537^a mod M, with M the product of the primes to 167.
func rocaModulus(t *testing.T) *big.Int {
	t.Helper()
	m := big.NewInt(1)
	for p := int64(2); p <= 167; p++ {
		if big.NewInt(p).ProbablyPrime(0) {
			m.Mul(m, big.NewInt(p))
		}
	}
	prime := func(a, lead int64) *big.Int { // primes of different leads are not close to each other
		base := new(big.Int).Exp(big.NewInt(65537), big.NewInt(a), m)
		k := new(big.Int).Lsh(big.NewInt(lead), uint(1025-m.BitLen()))
		for {
			p := new(big.Int).Add(new(big.Int).Mul(k, m), base)
			if p.ProbablyPrime(20) {
				return p
			}
			k.Add(k, big.NewInt(1))
		}
	}
	return new(big.Int).Mul(prime(1001, 1), prime(2003, 3))
}

// closePrimes multiplies two primes so close that Fermat's method needs that many rounds, or one or two
// less: a is (p+q)/2, the square root of n is a little below it by (p-q)²/8√n.
func closePrimes(t *testing.T, rounds int64) *big.Int {
	t.Helper()
	p := new(big.Int).Lsh(big.NewInt(3), 1022)
	p.Add(p, big.NewInt(0xabcdef))
	nextPrime := func(n *big.Int) *big.Int {
		for n.SetBit(n, 0, 1); !n.ProbablyPrime(10); n.Add(n, big.NewInt(2)) {
		}
		return n
	}
	nextPrime(p)
	// (q-p)² = 8p·rounds, or less: half a round less lets q be the next prime.
	distance := new(big.Int).Mul(p, big.NewInt(8*rounds-4))
	q := nextPrime(new(big.Int).Add(p, distance.Sqrt(distance)))
	return p.Mul(p, q)
}

func square(n *big.Int) *big.Int { return n.Mul(n, n) }

// TestSoundKeysAreNotWeak makes sure that no test of weak keys is true of ordinary ones.
func TestSoundKeysAreNotWeak(t *testing.T) {
	for range 2000 {
		n := make([]byte, 256)
		rand.Read(n)
		n[0] |= 0x80
		n[255] |= 1
		if number := new(big.Int).SetBytes(n); hasROCAFingerprint(number) || hasClosePrimes(number) {
			t.Fatalf("random modulus %x", n)
		}
	}
	for range 3 {
		if weakness := rsaWeakness(newKey(t, "rsa-2048").Public().(*rsa.PublicKey)); weakness != "" {
			t.Error(weakness)
		}
	}
}

// TestUsagesFitTheKey checks that an ECDSA key gets no keyEncipherment (RFC 5480 §3) and that a
// profile without a fitting usage refuses the key.
func TestUsagesFitTheKey(t *testing.T) {
	issuer := newAuthority(t, newKey(t, "ecdsa-p256"))
	request := goRequest(t, newKey(t, "ecdsa-p256"), x509.CertificateRequest{DNSNames: []string{"a.example.com"}})
	prepared, err := issuer.Prepare(newProfile(t, permissive()), request, now)
	if err != nil {
		t.Fatal(err)
	}
	der, err := issuer.Issue(prepared)
	if err != nil {
		t.Fatal(err)
	}
	cert := parse(t, der)
	if cert.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("key usage %b", cert.KeyUsage)
	}
	if !cert.Extensions[len(cert.Extensions)-1].Critical || len(cert.Subject.Names) != 0 {
		t.Error("subjectAltName is not critical though the subject is empty")
	}
	agreement := permissive()
	agreement.Usage.Key = []string{"digitalSignature", "keyAgreement"}
	if prepared, err = issuer.Prepare(newProfile(t, agreement), goRequest(t, newKey(t, "rsa-2048"), x509.CertificateRequest{DNSNames: []string{"a.example.com"}}), now); err != nil {
		t.Fatal(err)
	}
	if der, err = issuer.Issue(prepared); err != nil {
		t.Fatal(err)
	}
	if cert := parse(t, der); cert.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("key usage %b of an RSA key", cert.KeyUsage)
	}
	c := permissive()
	c.Usage.Key = []string{"keyEncipherment"}
	var refused *PolicyError
	if _, err := issuer.Prepare(newProfile(t, c), request, now); !errors.As(err, &refused) || refused.Rule != "usage.key" || refused.Value != "ECDSA keys (none of its usages fits them)" {
		t.Errorf("a key for which no usage is left: %v", err)
	}
}

func TestNewProfileFindsEverything(t *testing.T) {
	_, err := NewProfile(ProfileConfig{
		Keys: KeyConfig{RSA: &RSAConfig{MinBits: 1024}, ECDSA: []string{"p256", "p521", "p256"}},
		Subject: SubjectConfig{Allow: []string{"CN", "Nickname", "2.5.4.3"}, Template: "CN={CN},O={O}",
			Match: map[string][]string{"O": {"*"}, "CN": {"*", "regex:(", " x"}, "2.5.4.3": nil}},
		SAN: SANConfig{DNS: []string{"*example.com", "a b", "regex:[", "regex:"}, Email: []string{"*"}, IP: []string{"10.0.0.1/8", "ten", "regex:10.*"},
			URI: []string{"regex:(x{1000}){2}y{900}" + strings.Repeat("z{900}", 3), "regex:" + strings.Repeat("x", maxRegex+1)}, UPN: []string{"nobody", `regex:\`}},
		Usage:    UsageConfig{Key: []string{"keyCertSign"}, Extended: []string{"clientAuth", "anything", "2.5.29.37.0"}},
		Validity: time.Second,
	})
	var errs ConfigErrors
	if !errors.As(err, &errs) {
		t.Fatalf("error %v", err)
	}
	got := map[string]bool{}
	for _, e := range errs {
		got[e.Field] = true
		if e.What == "" || e.Mend == "" {
			t.Errorf("%s says nothing", e.Field)
		}
	}
	want := map[string]bool{}
	for _, field := range []string{"keys.rsa.min_bits", "keys.ecdsa[1]", "keys.ecdsa[2]", "subject.allow[1]", "subject.allow[2]",
		"subject.match.O", "subject.match.CN[1]", "subject.match.CN[2]", "subject.match.2.5.4.3", "subject.template",
		"san.dns[0]", "san.dns[1]", "san.dns[2]", "san.dns[3]", "san.ip[0]", "san.ip[1]", "san.ip[2]", "san.uri[0]", "san.uri[1]",
		"san.upn[0]", "san.upn[1]", "usage.key[0]", "usage.extended[1]", "usage.extended[2]", "validity"} {
		want[field] = true
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, err := NewProfile(ProfileConfig{Validity: time.Hour}); err == nil {
		t.Error("an empty profile is accepted")
	}
}

func TestMatches(t *testing.T) {
	tests := []struct {
		pattern, s string
		want       bool
	}{
		{"*", "", true}, {"*", "anything", true}, {"a", "a", true}, {"a", "ab", false},
		{"*.example.com", "a.b.example.com", true}, {"*.example.com", ".example.com", true}, {"*.example.com", "example.com", false},
		{"a*a", "a", false}, {"a*a", "aa", true}, {"a*b*c", "a-b-b-c", true}, {"a*b*c", "a-c", false}, {"*b*", "abc", true},
	}
	for _, tt := range tests {
		if got := matches(tt.pattern, tt.s); got != tt.want {
			t.Errorf("matches(%q, %q) = %t", tt.pattern, tt.s, got)
		}
	}
}

func TestPatterns(t *testing.T) {
	tests := []struct {
		pattern, s string
		want       bool
	}{
		{"Printer-*.example.com", "printer-7.EXAMPLE.com", true},
		{`regex:plc-[0-9]{4}\.example\.com`, "plc-0042.example.com", true},
		{`regex:plc-[0-9]{4}\.example\.com`, "PLC-0042.example.com", true},
		{`regex:(?-i)plc-[0-9]{4}`, "PLC-0042", false},
		{`regex:plc-[0-9]{4}\.example\.com`, "plc-0042.example.com.evil.net", false},
		{`regex:plc-[0-9]{4}\.example\.com`, "x.plc-0042.example.com", false},
		{`regex:a|b`, "ab", false}, {`regex:a|b`, "bx", false}, {`regex:a|b`, "xa", false}, {`regex:a|b`, "b", true},
		{`regex:(?m)^a$`, "x\na", false}, {`regex:a`, "a\n", false},
		{`regex:.*`, strings.Repeat("x", maxRegexValue), true}, {`regex:.*`, strings.Repeat("x", maxRegexValue+1), false},
	}
	for _, tt := range tests {
		p, err := newPattern(tt.pattern)
		if err != nil {
			t.Errorf("%s: %v", tt.pattern, err)
			continue
		}
		if got := p.matches(tt.s); got != tt.want {
			t.Errorf("%s matches %.40q: %t", tt.pattern, tt.s, got)
		}
	}
	for _, bad := range []string{"regex:", "regex:a)(b", `regex:\Qa`, `regex:a\`, "regex:(?i", "regex:(?=a)", "regex:" + strings.Repeat("a{1000}", 5)} {
		if _, err := newPattern(bad); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
}

// TestRegularExpressions holds a name of every kind that can have one against a regular expression.
func TestRegularExpressions(t *testing.T) {
	c := permissive()
	c.SAN = SANConfig{DNS: []string{`regex:plc-\d+\.example\.com`}, Email: []string{`regex:[a-z]+\.plc@example\.com`}, URI: []string{`regex:urn:plc:\d+`},
		UPN: []string{`regex:plc\d@corp\.example\.com`}}
	p := newProfile(t, c)
	for name, allowed := range map[Name]bool{
		{DNS, "plc-7.example.com"}: true, {DNS, "plc-x.example.com"}: false, {DNS, "plc-7.example.com.evil.net"}: false,
		{Email, "a.plc@example.com"}: true, {Email, "a@example.com"}: false,
		{URI, "urn:plc:7"}: true, {URI, "urn:plc:x"}: false,
		{UPN, "plc7@corp.example.com"}: true, {UPN, "me@corp.example.com"}: false,
	} {
		err := p.checkName(name)
		var refused *PolicyError
		if (err == nil) != allowed || !allowed && (!errors.As(err, &refused) || refused.Rule != "san."+string(name.Kind) || refused.Value != name.Value) {
			t.Errorf("%v: %v", name, err)
		}
	}
}

// TestMappedAddress: an IPv4 address in IPv6 form is held against the rules for IPv4, as a verifier
// would compare it.
func TestMappedAddress(t *testing.T) {
	c := permissive()
	c.SAN.IP = []string{"10.0.0.0/8", "::/0"}
	p := newProfile(t, c)
	for address, allowed := range map[string]bool{"::ffff:10.1.2.3": true, "::ffff:192.0.2.1": false, "2001:db8::1": true} {
		if err := p.checkName(Name{IP, address}); (err == nil) != allowed {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestAmbiguousUPN(t *testing.T) {
	c := permissive()
	c.SAN.UPN = []string{"*@corp.example.com"}
	p := newProfile(t, c)
	for upn, allowed := range map[string]bool{"me@corp.example.com": true, "admin@other.example@corp.example.com": false} {
		if err := p.checkName(Name{UPN, upn}); (err == nil) != allowed {
			t.Errorf("%s: %v", upn, err)
		}
	}
}

// TestAuthoritysOwnName: no device gets a name it could pass for the authority, its RA or its responder with.
func TestAuthoritysOwnName(t *testing.T) {
	issuer := newAuthority(t, newKey(t, "ecdsa-p256"))
	device, profile := newKey(t, "ecdsa-p256"), newProfile(t, permissive())
	for name, allowed := range map[string]bool{
		"CN=Test CA,O=Signet": false, "CN=TEST ca RA,O=signet": false, "CN=Test CA device,O=Signet": true,
		`CN=Test  CA\ ,O=Signet`: false, `CN=\ Test CA   RA,O=Signet\ `: false,
		"CN=Test CA,O=Signet,CN=ocsp": false, "CN=Test CA,O=Signet,CN=OCSP,OU=7": true,
	} {
		_, err := issuer.Prepare(profile, goRequest(t, device, x509.CertificateRequest{RawSubject: mustDN(t, name)}), now)
		var refused *PolicyError
		if (err == nil) != allowed || !allowed && !errors.As(err, &refused) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The SID of an Active Directory account is allowed by a pattern that says so, and is nothing a pattern
// for any URI lets through.
func TestWindowsSID(t *testing.T) {
	const sid = "S-1-5-21-1111111111-2222222222-3333333333-500"
	key := newKey(t, "ecdsa-p256")
	u, err := url.Parse("TAG:microsoft.com,2022-09-14:sid:" + sid)
	if err != nil {
		t.Fatal(err)
	}
	r := goRequest(t, key, x509.CertificateRequest{URIs: []*url.URL{u}})
	for pattern, allowed := range map[string]bool{
		"*": false, "tag:*": false, "tag:microsoft.com,*": false, "*" + sid: false,
		"tag:microsoft.com,2022-09-14:sid:*": true, "tag:microsoft.com,2022-09-14:sid:S-1-5-21-1111111111-*": true,
		"tag:microsoft.com,2022-09-14:sid:S-1-5-21-9-*": false,
		`regex:.*`: false, `regex:tag:.*|x`: false, `regex:tag:microsoft\.com,2022-09-14:sid:S-1-5-21-.*`: true,
	} {
		config := permissive()
		config.SAN.URI = []string{pattern}
		var refused *PolicyError
		if err := newProfile(t, config).Check(r); (err == nil) != allowed || err != nil && (!errors.As(err, &refused) || refused.Rule != "san.uri") {
			t.Errorf("pattern %s: %v", pattern, err)
		}
	}
}
