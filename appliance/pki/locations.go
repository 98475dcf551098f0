package pki

import (
	"encoding/asn1"
	"fmt"
	"net/url"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

var (
	oidCRLDistributionPoints = asn1.ObjectIdentifier{2, 5, 29, 31}               // RFC 5280 §4.2.1.13
	oidAuthorityInfoAccess   = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 1}  // RFC 5280 §4.2.2.1
	oidAccessOCSP            = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1} // RFC 6960 §3.1
	oidAccessCAIssuers       = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 2}
)

// Locations is where an authority publishes what a verifier needs. Each is an absolute URL of plain
// HTTP, or "" where it is not published. Neither LDAP, which no client of these devices has, nor HTTPS,
// whose certificate would have to be verified first (RFC 5280 §8), is accepted.
type Locations struct {
	CRL       string // its revocation list, DER
	OCSP      string // its OCSP responder
	CAIssuers string // its own certificate, DER
}

// check says which location no verifier could use.
func (l Locations) check() error {
	for what, location := range map[string]string{"revocation list": l.CRL, "OCSP responder": l.OCSP, "certificate": l.CAIssuers} {
		if location == "" {
			continue
		}
		u, err := url.Parse(location)
		if err != nil || u.Scheme != "http" || u.Host == "" || u.User != nil || u.Fragment != "" || !isASCII(location) {
			return fmt.Errorf("location %q of the authority's %s is not an absolute http URL; check public_host", location, what)
		}
	}
	return nil
}

// extensions writes cRLDistributionPoints and authorityInfoAccess, neither of them critical.
func (l Locations) extensions(b *cryptobyte.Builder) {
	uri := func(b *cryptobyte.Builder, location string) {
		b.AddASN1(cbasn1.Tag(6).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes([]byte(location)) })
	}
	if l.CRL != "" {
		constructed := cbasn1.Tag(0).ContextSpecific().Constructed()
		addExtension(b, oidCRLDistributionPoints, notCritical, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1(constructed, func(b *cryptobyte.Builder) { // distributionPoint
						b.AddASN1(constructed, func(b *cryptobyte.Builder) { uri(b, l.CRL) }) // fullName
					})
				})
			})
		})
	}
	if l.OCSP == "" && l.CAIssuers == "" {
		return
	}
	addExtension(b, oidAuthorityInfoAccess, notCritical, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, access := range []struct {
				method   asn1.ObjectIdentifier
				location string
			}{{oidAccessOCSP, l.OCSP}, {oidAccessCAIssuers, l.CAIssuers}} {
				if access.location == "" {
					continue
				}
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(access.method)
					uri(b, access.location)
				})
			}
		})
	})
}
