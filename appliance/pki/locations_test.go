package pki

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestPublishing: every certificate for a device and for the registration authority says where to ask
// about it; those the box keeps for itself do not.
func TestPublishing(t *testing.T) {
	bare := newAuthority(t, newKey(t, "ecdsa-p256"))
	for _, l := range []Locations{
		{},
		{CRL: "http://box.example.com/pki/devices.crl"},
		{OCSP: "http://box.example.com/ocsp/devices"},
		{CAIssuers: "http://192.0.2.1:8080/pki/devices.cer"},
		{CRL: "http://[2001:db8::1]/pki/devices.2.crl", OCSP: "http://box.example.com/ocsp/devices.2", CAIssuers: "http://box.example.com/pki/devices.2.cer"},
	} {
		issuer := bare.Publishing(l)
		ra, err := issuer.IssueRA(newKey(t, "rsa-2048").Public(), now, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		device := issued(t, issuer, goRequest(t, newKey(t, "ecdsa-p256"), x509.CertificateRequest{DNSNames: []string{"a.example.com"}}))
		for _, cert := range []*x509.Certificate{device, parse(t, ra)} {
			one := func(s string) []string {
				if s == "" {
					return nil
				}
				return []string{s}
			}
			if diff := cmp.Diff([][]string{one(l.CRL), one(l.OCSP), one(l.CAIssuers)},
				[][]string{cert.CRLDistributionPoints, cert.OCSPServer, cert.IssuingCertificateURL}); diff != "" {
				t.Error(diff)
			}
			for _, e := range cert.Extensions {
				if e.Critical && (e.Id.Equal(oidCRLDistributionPoints) || e.Id.Equal(oidAuthorityInfoAccess)) {
					t.Errorf("%s is critical", e.Id)
				}
			}
		}
		server, err := issuer.IssueServer(newKey(t, "ecdsa-p256").Public(), []string{"box.example.com"}, nil, now, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if cert := parse(t, server); len(cert.CRLDistributionPoints)+len(cert.OCSPServer)+len(cert.IssuingCertificateURL) != 0 {
			t.Error("the box's own TLS certificate says where it is published")
		}
	}
}

func TestLocationsRefused(t *testing.T) {
	bare := newAuthority(t, newKey(t, "ecdsa-p256"))
	profile, request := newProfile(t, permissive()), goRequest(t, newKey(t, "ecdsa-p256"), x509.CertificateRequest{DNSNames: []string{"a.example.com"}})
	for _, location := range []string{
		"ldap://ldap.example.com/CN=CA?certificateRevocationList", "https://box.example.com/a.crl", "//box.example.com/a.crl", "/pki/a.crl",
		"http:///pki/a.crl", "http://me@box.example.com/a.crl", "http://zürich.example/a.crl", "http://box.example.com/a.crl#b", "http://a b/",
	} {
		for _, l := range []Locations{{CRL: location}, {OCSP: location}, {CAIssuers: location}} {
			if _, err := bare.Publishing(l).Prepare(profile, request, now); err == nil {
				t.Errorf("%+v is accepted", l)
			}
		}
	}
}

// TestMustStaple: the bytes of RFC 7633's example, and only where the profile says so.
func TestMustStaple(t *testing.T) {
	issuer := newAuthority(t, newKey(t, "ecdsa-p256"))
	request := goRequest(t, newKey(t, "ecdsa-p256"), x509.CertificateRequest{DNSNames: []string{"a.example.com"}})
	c := permissive()
	for _, want := range []bool{false, true} {
		c.MustStaple = want
		p := newProfile(t, c)
		prepared, err := issuer.Prepare(p, request, now)
		if err != nil {
			t.Fatal(err)
		}
		der, err := issuer.Issue(prepared)
		if err != nil {
			t.Fatal(err)
		}
		extension := []byte("\x30\x11\x06\x08\x2b\x06\x01\x05\x05\x07\x01\x18\x04\x05\x30\x03\x02\x01\x05")
		if p.MustStaple() != want || bytes.Contains(der, extension) != want {
			t.Errorf("must-staple %t: %x", want, der)
		}
		has := slices.ContainsFunc(parse(t, der).Extensions, func(e pkix.Extension) bool { return e.Id.String() == "1.3.6.1.5.5.7.1.24" })
		if has != want {
			t.Errorf("must-staple %t: extension %t", want, has)
		}
	}
}
