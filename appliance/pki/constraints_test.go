package pki

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"
)

// constrainedBy is a subordinate whose chain is a root with these constraints and an authority between
// without any, and the same two as they would be with none, which issues what the first refuses.
func constrainedBy(t *testing.T, constraints x509.Certificate) (issuer *Issuer, root *x509.Certificate, chain []*x509.Certificate) {
	t.Helper()
	h := newHierarchy(t, func(templates *[3]*x509.Certificate, _ *[3]crypto.Signer) {
		c := constraints
		c.SerialNumber, c.RawSubject, c.NotBefore, c.NotAfter = big.NewInt(9), templates[2].RawSubject, templates[2].NotBefore, templates[2].NotAfter
		c.BasicConstraintsValid, c.IsCA, c.KeyUsage, c.SubjectKeyId = true, true, templates[2].KeyUsage, templates[2].SubjectKeyId
		templates[2] = &c
	})
	issuer, err := NewIssuer(h.certs[0], h.keys[0])
	if err != nil {
		t.Fatal(err)
	}
	return issuer, h.certs[2], h.certs[:2]
}

// What name constraints above an authority forbid is not issued. Go's own verification says what they forbid.
func TestNameConstraints(t *testing.T) {
	profile := newProfile(t, func() ProfileConfig {
		c := permissive()
		c.Subject.Allow = append(c.Subject.Allow, "emailAddress")
		return c
	}())
	device := newKey(t, "ecdsa-p256")
	network := func(s string) *net.IPNet {
		_, n, err := net.ParseCIDR(s)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	uris := func(s string) []*url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return []*url.URL{u}
	}
	cn := pkix.Name{CommonName: "pump 7"}
	dns := func(names ...string) x509.CertificateRequest {
		return x509.CertificateRequest{Subject: cn, DNSNames: names}
	}
	email := func(s string) x509.CertificateRequest {
		return x509.CertificateRequest{Subject: cn, EmailAddresses: []string{s}}
	}
	uri := func(s string) x509.CertificateRequest { return x509.CertificateRequest{Subject: cn, URIs: uris(s)} }
	ip := func(s string) x509.CertificateRequest {
		a := net.ParseIP(s)
		if v4 := a.To4(); v4 != nil {
			a = v4
		}
		return x509.CertificateRequest{Subject: cn, IPAddresses: []net.IP{a}}
	}
	permittedDNS := x509.Certificate{PermittedDNSDomains: []string{"plant.example.com"}}
	tests := []struct {
		name        string
		constraints x509.Certificate
		request     x509.CertificateRequest
		allowed     bool
	}{
		{"dns below", permittedDNS, dns("A.Plant.example.com"), true},
		{"dns itself", permittedDNS, dns("plant.example.com"), true},
		{"dns that ends alike", permittedDNS, dns("evilplant.example.com"), false},
		{"one dns of two", permittedDNS, dns("a.plant.example.com", "bank.com"), false},
		{"another form is free", permittedDNS, ip("10.1.2.3"), true},
		{"dns of another domain's list", x509.Certificate{PermittedDNSDomains: []string{"a.example", "b.example"}}, dns("x.b.example"), true},
		{"dns excluded", x509.Certificate{ExcludedDNSDomains: []string{"corp.example.com"}}, dns("dc1.CORP.example.com"), false},
		{"dns excluded in capitals", x509.Certificate{ExcludedDNSDomains: []string{"CORP.example.com"}}, dns("dc1.corp.example.com"), false},
		{"dns beside the excluded", x509.Certificate{ExcludedDNSDomains: []string{"corp.example.com"}}, dns("dc1.lab.example.com"), true},
		{"excluded within permitted", x509.Certificate{PermittedDNSDomains: []string{"example.com"}, ExcludedDNSDomains: []string{"x.example.com"}}, dns("a.x.example.com"), false},
		{"all dns excluded", x509.Certificate{ExcludedDNSDomains: []string{""}}, dns("a.example.com"), false},
		{"address within", x509.Certificate{PermittedIPRanges: []*net.IPNet{network("10.0.0.0/8")}}, ip("10.1.2.3"), true},
		{"address outside", x509.Certificate{PermittedIPRanges: []*net.IPNet{network("10.0.0.0/8")}}, ip("192.0.2.1"), false},
		{"address of the other family", x509.Certificate{PermittedIPRanges: []*net.IPNet{network("10.0.0.0/8")}}, ip("2001:db8::1"), false},
		{"address of the other family that begins alike", x509.Certificate{PermittedIPRanges: []*net.IPNet{network("10.0.0.0/8")}}, ip("a00::1"), false},
		{"address excluded", x509.Certificate{ExcludedIPRanges: []*net.IPNet{network("2001:db8::/32")}}, ip("2001:db8::1"), false},
		{"mail host", x509.Certificate{PermittedEmailAddresses: []string{"example.com"}}, email("me@Example.com"), true},
		{"mail below a domain", x509.Certificate{PermittedEmailAddresses: []string{".example.com"}}, email("me@x.example.com"), true},
		{"one mailbox", x509.Certificate{PermittedEmailAddresses: []string{"me@example.com"}}, email("you@example.com"), false},
		{"uri host", x509.Certificate{PermittedURIDomains: []string{"example.com"}}, uri("https://example.com:8443/7"), true},
		{"uri host outside", x509.Certificate{PermittedURIDomains: []string{"example.com"}}, uri("https://example.com@evil.com/example.com"), false},
		{"uri below", x509.Certificate{PermittedURIDomains: []string{".example.com"}}, uri("https://a.example.com/"), true},
		{"uri of an address beside the excluded", x509.Certificate{ExcludedURIDomains: []string{".example.com"}}, uri("https://10.1.2.3/"), false},
		{"uri of an address", x509.Certificate{PermittedURIDomains: []string{".example.com"}}, uri("https://10.1.2.3/"), false},
	}
	free := x509.Certificate{}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			issuer, root, chain := constrainedBy(t, tt.constraints)
			request := goRequest(t, device, tt.request)
			prepared, err := issuer.Prepare(profile, request, now)
			if err != nil {
				t.Fatal(err)
			}
			der, err := issuer.Issue(prepared)
			if err != nil {
				t.Fatal(err)
			}
			roots, between := x509.NewCertPool(), x509.NewCertPool()
			roots.AddCert(root)
			between.AddCert(chain[0])
			between.AddCert(chain[1])
			_, err = parse(t, der).Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
			if (err == nil) != tt.allowed {
				t.Fatalf("the oracle says %v", err)
			}
			under, err := issuer.Under([]*x509.Certificate{chain[1], root})
			if err != nil {
				t.Fatal(err)
			}
			_, err = under.Prepare(profile, request, now)
			if refused := new(PolicyError); tt.allowed != (err == nil) || err != nil && (!errors.As(err, &refused) || refused.Rule != ruleConstraints) {
				t.Errorf("prepared with %v, allowed %t", err, tt.allowed)
			}
		})
	}

	// What Go does not look at, or takes more of than RFC 5280 §4.2.1.10 says.
	upn := asn1Extension(t, "\x30\x18\xa0\x16\x06\x0a\x2b\x06\x01\x04\x01\x82\x37\x14\x02\x03\xa0\x08\x0c\x06me@e.x")
	otherName := free
	otherName.ExtraExtensions = []pkix.Extension{{Id: oidNameConstraints, Value: []byte("\x30\x1c\xa0\x1a\x30\x18\xa0\x16\x06\x0a\x2b\x06\x01\x04\x01\x82\x37\x14\x02\x03\xa0\x08\x0c\x06@x.com")}}
	directory := free
	directory.ExtraExtensions = []pkix.Extension{nameConstraints(t, 0, "O=Works")}
	for name, tt := range map[string]struct {
		constraints x509.Certificate
		request     x509.CertificateRequest
		allowed     bool
	}{
		"subject within":            {directory, x509.CertificateRequest{RawSubject: mustDN(t, "O=works,CN=pump")}, true},
		"subject outside":           {directory, x509.CertificateRequest{RawSubject: mustDN(t, "CN=pump,O=Works")}, false},
		"no subject":                {directory, dnsOnly("a.example.com"), true},
		"a UPN that is constrained": {otherName, x509.CertificateRequest{Subject: cn, ExtraExtensions: upn}, false},
		"a UPN that is not":         {permittedDNS, x509.CertificateRequest{Subject: cn, ExtraExtensions: upn}, true},
		"an address in the other form": {x509.Certificate{ExcludedIPRanges: []*net.IPNet{network("10.0.0.0/8")}},
			x509.CertificateRequest{Subject: cn, ExtraExtensions: asn1Extension(t, "\x30\x12\x87\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x0a\x01\x02\x03")}, false},
		"a host's common name":       {permittedDNS, x509.CertificateRequest{Subject: pkix.Name{CommonName: "bank.com"}}, false},
		"the same with a final dot":  {permittedDNS, x509.CertificateRequest{Subject: pkix.Name{CommonName: "bank.com."}}, false},
		"the same beside a dns name": {permittedDNS, x509.CertificateRequest{Subject: pkix.Name{CommonName: "bank.com"}, DNSNames: []string{"a.plant.example.com"}}, true},
		"mail below a host":          {x509.Certificate{PermittedEmailAddresses: []string{"example.com"}}, email("me@x.example.com"), false},
		"mail in the subject":        {x509.Certificate{PermittedEmailAddresses: []string{"example.com"}}, x509.CertificateRequest{RawSubject: mustDN(t, "CN=me,emailAddress=me@evil.com")}, false},
	} {
		issuer, root, _ := constrainedBy(t, tt.constraints)
		under, err := issuer.Under([]*x509.Certificate{root})
		if err != nil {
			t.Fatal(err)
		}
		if _, err = under.Prepare(profile, goRequest(t, device, tt.request), now); (err == nil) != tt.allowed {
			t.Errorf("%s: prepared with %v", name, err)
		}
	}
}

func dnsOnly(name string) x509.CertificateRequest {
	return x509.CertificateRequest{DNSNames: []string{name}}
}

func asn1Extension(t *testing.T, san string) []pkix.Extension {
	t.Helper()
	if rest, err := asn1.Unmarshal([]byte(san), new(asn1.RawValue)); err != nil || len(rest) > 0 {
		t.Fatalf("not DER: %v", err)
	}
	return []pkix.Extension{{Id: oidSubjectAltName, Value: []byte(san)}}
}

// Its own certificate's constraints bind an issuer without its chain; those that cannot be read leave none.
func TestOwnNameConstraints(t *testing.T) {
	_, root, _ := constrainedBy(t, x509.Certificate{PermittedDNSDomains: []string{"plant.example.com"}})
	key := newKey(t, "ecdsa-p256")
	for value, readable := range map[string]bool{
		string(mustConstraints(t, root)):                    true,
		"\x30\x0b\xa0\x09\x30\x07\x82\x01x\x80\x02\x00\x01": false, // a minimum
		"\x30\x02\xa0\x00\x00":                              false, // more behind it
		"\x30\x0a\xa0\x08\x30\x06\x87\x04\x0a\x00\x00\x00":  false, // no mask
	} {
		template := &x509.Certificate{SerialNumber: big.NewInt(1), RawSubject: mustDN(t, "CN=X"), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
			BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: []byte{1},
			ExtraExtensions: []pkix.Extension{{Id: oidNameConstraints, Value: []byte(value)}}}
		cert := *template // not every value here could be signed and read back by crypto/x509
		cert.PublicKey, cert.Extensions = key.Public(), template.ExtraExtensions
		issuer, err := NewIssuer(&cert, key)
		if !readable {
			if err == nil {
				t.Errorf("%x was read", value)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		var refused *PolicyError
		_, err = issuer.Prepare(newProfile(t, permissive()), goRequest(t, newKey(t, "ecdsa-p256"), dnsOnly("bank.com")), now)
		if !errors.As(err, &refused) || refused.Rule != ruleConstraints || refused.Value != "bank.com" {
			t.Errorf("prepared with %v", err)
		}
	}
}

func mustConstraints(t *testing.T, c *x509.Certificate) []byte {
	t.Helper()
	value, ok := extensionOf(c, oidNameConstraints)
	if !ok {
		t.Fatal("no name constraints")
	}
	return value
}
