package pki

import (
	"bytes"
	"crypto/elliptic"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

var (
	oidRSAEncryption     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}         // RFC 8017 appendix C
	oidECPublicKey       = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}             // RFC 5480 §2.1.1
	oidRequestTemplate   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 61} // RFC 9908 §3.4
	oidExtensionTemplate = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 62} // RFC 9908 §3.4
)

// CSRAttrs is what an EST server answers to csrattrs for this profile: DER CsrAttrs (RFC 8951 §3.2); nil
// where there is nothing to say. It must not be changed.
//
// It says everything twice (RFC 9908 §4). For clients that know it, a template of the request: the
// attributes its subject needs, its type of key where only one is accepted, the extensions with their
// values, subjectAltName without one for the client to fill in. For the others a list: each type of key
// with its size or curves, the extensions with their values, and the bare types of what they have to
// fill in themselves.
func (p *Profile) CSRAttrs() []byte { return p.csrAttrs }

// csrAttributes encodes [Profile.CSRAttrs].
func (p *Profile) csrAttributes() ([]byte, error) {
	extensions, err := p.csrExtensions()
	if err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, oid := range p.template.sources() {
			b.AddASN1ObjectIdentifier(oid)
		}
		if p.minRSABits > 0 {
			addAttribute(b, oidRSAEncryption, func(b *cryptobyte.Builder) { b.AddASN1Int64(int64(p.minRSABits)) })
		}
		if len(p.curves) > 0 {
			addAttribute(b, oidECPublicKey, p.addCurves)
		}
		addAttribute(b, oidExtensionRequest, func(b *cryptobyte.Builder) { addExtensions(b, extensions) })
		if p.allowsNames() {
			b.AddASN1ObjectIdentifier(oidSubjectAltName)
		}
		addAttribute(b, oidRequestTemplate, func(b *cryptobyte.Builder) { p.addTemplate(b, extensions) })
	})
	return b.Bytes()
}

// addTemplate writes a CertificationRequestInfoTemplate, whose module has implicit tags (RFC 9908
// appendix A).
func (p *Profile) addTemplate(b *cryptobyte.Builder, extensions []pkix.Extension) {
	constructed := func(n uint8) cbasn1.Tag { return cbasn1.Tag(n).ContextSpecific().Constructed() }
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0) // version 1
		if sources := p.template.sources(); len(sources) > 0 {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				for _, oid := range sources { // one part each, without a value
					b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
						b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oid) })
					})
				}
			})
		}
		switch { // both kinds of key, or several curves, are no requirement
		case p.minRSABits > 0 && len(p.curves) == 0:
			b.AddASN1(constructed(0), p.addRSAPlaceholder)
		case p.minRSABits == 0 && len(p.curves) == 1:
			b.AddASN1(constructed(0), func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(oidECPublicKey)
					p.addCurves(b)
				})
			})
		}
		b.AddASN1(constructed(1), func(b *cryptobyte.Builder) {
			if !p.allowsNames() {
				addAttribute(b, oidExtensionRequest, func(b *cryptobyte.Builder) { addExtensions(b, extensions) })
				return
			}
			addAttribute(b, oidExtensionTemplate, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					for _, e := range extensions {
						addExtension(b, e.Id, e.Critical, func(b *cryptobyte.Builder) { b.AddBytes(e.Value) })
					}
					p.addNamesTemplate(b)
				})
			})
		})
	})
}

// addNamesTemplate writes the ExtensionTemplate of subjectAltName, its value left to the client. A sole
// iPAddress has a value that says so.
func (p *Profile) addNamesTemplate(b *cryptobyte.Builder) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidSubjectAltName)
		if len(p.networks) > 0 && !p.allowsTextNames() {
			b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.Tag(7).ContextSpecific(), func(*cryptobyte.Builder) {})
				})
			})
		}
	})
}

// addRSAPlaceholder writes the contents of a SubjectPublicKeyInfoTemplate for RSA. Only the length of
// the modulus in it counts.
func (p *Profile) addRSAPlaceholder(b *cryptobyte.Builder) {
	modulus := new(big.Int).Lsh(big.NewInt(1), uint(p.minRSABits))
	modulus.Sub(modulus, big.NewInt(1))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidRSAEncryption)
		b.AddASN1NULL()
	})
	var key cryptobyte.Builder
	key.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(modulus)
		b.AddASN1Int64(65537)
	})
	b.AddASN1BitString(key.BytesOrPanic())
}

// addCurves writes the accepted curves in the order DER wants of a SET OF.
func (p *Profile) addCurves(b *cryptobyte.Builder) {
	var encoded [][]byte
	for _, curve := range p.curves {
		oid := asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7} // RFC 5480 §2.1.1.1
		if curve == elliptic.P384() {
			oid = asn1.ObjectIdentifier{1, 3, 132, 0, 34}
		}
		var one cryptobyte.Builder
		one.AddASN1ObjectIdentifier(oid)
		encoded = append(encoded, one.BytesOrPanic())
	}
	slices.SortFunc(encoded, bytes.Compare)
	b.AddBytes(bytes.Join(encoded, nil))
}

// csrExtensions are the extensions whose values are known before a request is made.
func (p *Profile) csrExtensions() ([]pkix.Extension, error) {
	usages, err := asn1.Marshal(p.extended)
	if err != nil {
		return nil, err
	}
	extensions := []pkix.Extension{{Id: oidExtKeyUsage, Value: usages}}
	if p.mustStaple {
		extensions = append(extensions, mustStaple())
	}
	return extensions, nil
}

// allowsNames reports whether any subjectAltName is accepted.
func (p *Profile) allowsNames() bool { return len(p.networks) > 0 || p.allowsTextNames() }

func (p *Profile) allowsTextNames() bool {
	for _, patterns := range p.patterns {
		if len(patterns) > 0 {
			return true
		}
	}
	return false
}

// sources lists the attributes a request's subject has to hold, each once and in order.
func (t subjectTemplate) sources() []asn1.ObjectIdentifier {
	var oids []asn1.ObjectIdentifier
	for _, rdn := range t {
		for _, own := range rdn {
			if own.from != nil && !slices.ContainsFunc(oids, own.from.Equal) {
				oids = append(oids, own.from)
			}
		}
	}
	return oids
}
