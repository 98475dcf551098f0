package est

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"net/http"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

var (
	oidDecryptKeyID      = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 37} // RFC 4108 §2.2.5
	oidAsymmDecryptKeyID = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 54} // RFC 7030 §4.4.1.2
	oidSMIMECapabilities = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 15}        // RFC 8551 §2.5.2
)

// wish is how a device wants its new key encrypted, besides TLS. The zero value: not at all.
type wish struct {
	isMade       bool                    // it wants that
	keyID        []byte                  // of its own key
	capabilities []asn1.ObjectIdentifier // what it can decrypt; nil: not said
}

var errWish = refuse(http.StatusBadRequest, "how the new key is to be encrypted cannot be read: send AsymmetricDecryptKeyIdentifier and SMIMECapabilities as RFC 7030 §4.4.1 has them")

// readWish reads the attributes of a CertificationRequestInfo that pki has read before, and that say how to encrypt a key
// (RFC 7030 §4.4.1).
func readWish(requestInfo []byte) (wish, error) {
	var w wish
	in := cryptobyte.String(requestInfo)
	var info, attributes cryptobyte.String
	if !in.ReadASN1(&info, casn1.SEQUENCE) || !info.SkipASN1(casn1.INTEGER) || !info.SkipASN1(casn1.SEQUENCE) || !info.SkipASN1(casn1.SEQUENCE) ||
		!info.ReadOptionalASN1(&attributes, nil, casn1.Tag(0).Constructed().ContextSpecific()) {
		return wish{}, errWish
	}
	for !attributes.Empty() {
		var attribute, values cryptobyte.String
		var oid asn1.ObjectIdentifier
		if !attributes.ReadASN1(&attribute, casn1.SEQUENCE) || !attribute.ReadASN1ObjectIdentifier(&oid) || !attribute.ReadASN1(&values, casn1.SET) {
			return wish{}, errWish
		}
		var id cryptobyte.String
		switch {
		case oid.Equal(oidDecryptKeyID):
			return wish{}, refuse(http.StatusBadRequest, "this box shares no secret keys with devices: use AsymmetricDecryptKeyIdentifier")
		case oid.Equal(oidAsymmDecryptKeyID):
			if !values.ReadASN1(&id, casn1.OCTET_STRING) || !values.Empty() || len(id) == 0 {
				return wish{}, errWish
			}
			w.isMade, w.keyID = true, id
		case oid.Equal(oidSMIMECapabilities):
			var ok bool
			if w.capabilities, ok = readCapabilities(values); !ok {
				return wish{}, errWish
			}
		}
	}
	return w, nil
}

// readCapabilities reads the one value of an SMIMECapabilities attribute: a SEQUENCE of algorithms, of which the parameters say
// nothing to this package.
func readCapabilities(values cryptobyte.String) ([]asn1.ObjectIdentifier, bool) {
	var list cryptobyte.String
	if !values.ReadASN1(&list, casn1.SEQUENCE) || !values.Empty() {
		return nil, false
	}
	all := []asn1.ObjectIdentifier{}
	for !list.Empty() {
		var capability cryptobyte.String
		var oid asn1.ObjectIdentifier
		if !list.ReadASN1(&capability, casn1.SEQUENCE) || !capability.ReadASN1ObjectIdentifier(&oid) {
			return nil, false
		}
		all = append(all, oid)
	}
	return all, true
}

// Bounds of an RSA key to encrypt to, in bits: crypto/rsa takes no smaller one, and no device shows a larger one in TLS.
const (
	minRSABits = 1024
	maxRSABits = 8192
)

var errRecipientKey = refuse(http.StatusBadRequest, "nothing is encrypted to a key like that of the client certificate: connect with one over RSA of 2048 bits or more, P-256 or P-384")

// recipient returns whom to encrypt the new key to, nil where the device does not ask for that. A wish that cannot be met is an error:
// no key leaves the box less protected than was asked for.
//
// The only key of the device the box knows is the one it showed to have in TLS.
func (w wish) recipient(peer []*x509.Certificate) (*recipient, error) {
	if !w.isMade {
		return nil, nil
	}
	if len(peer) == 0 || !hasKeyID(peer[0], w.keyID) {
		return nil, refuse(http.StatusBadRequest, "no key of this identifier to encrypt to: connect with a client certificate, and name its subjectKeyIdentifier")
	}
	r := &recipient{certificate: peer[0]}
	var usage x509.KeyUsage
	switch key := peer[0].PublicKey.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return nil, errRecipientKey
		}
		usage = x509.KeyUsageKeyEncipherment
		r.cipher = pick(w.capabilities, contentCiphers)
		if !w.allows(oidRSAEncryption, oidRSAESOAEP) {
			r.cipher = nil
		}
	case *ecdsa.PublicKey:
		if _, err := key.ECDH(); err != nil {
			return nil, errRecipientKey
		}
		usage = x509.KeyUsageKeyAgreement
		r.cipher = pick(w.capabilities, contentCiphers)
		if r.wrap = pick(w.capabilities, keyWraps); r.wrap == nil { // many name ciphers alone
			r.wrap = &keyWraps[0]
		}
	default:
		return nil, refuse(http.StatusBadRequest, "the key of the client certificate decrypts nothing: connect with an RSA or an elliptic curve certificate")
	}
	if peer[0].KeyUsage != 0 && peer[0].KeyUsage&usage == 0 {
		return nil, refuse(http.StatusBadRequest, "the client certificate is not for encryption: connect with one for keyEncipherment (RSA) or keyAgreement (elliptic curve)")
	}
	if r.cipher == nil {
		return nil, refuse(http.StatusBadRequest, "no algorithm of SMIMECapabilities is known here: offer AES in CBC mode, and RSA key transport or AES key wrap")
	}
	return r, nil
}

// allows reports whether the device can take a key transport: it said so, or said nothing of any.
func (w wish) allows(ours asn1.ObjectIdentifier, others ...asn1.ObjectIdentifier) bool {
	named := func(oid asn1.ObjectIdentifier) bool { return slices.ContainsFunc(w.capabilities, oid.Equal) }
	return named(ours) || !slices.ContainsFunc(others, named)
}

// pick returns the first of list that the device can do, nil if there is none. A device that does not say what it can is taken to do
// the first, which everything that reads CMS does.
func pick(capabilities []asn1.ObjectIdentifier, list []algorithm) *algorithm {
	if capabilities == nil {
		return &list[0]
	}
	for i := range list {
		if slices.ContainsFunc(capabilities, list[i].oid.Equal) {
			return &list[i]
		}
	}
	return nil
}

// hasKeyID tells whether id names the key of a certificate: by its subjectKeyIdentifier, or computed from the key by one of the
// methods of RFC 5280 §4.2.1.2 (1) and RFC 7093 §2 (1), for certificates without one.
func hasKeyID(c *x509.Certificate, id []byte) bool {
	if len(c.SubjectKeyId) > 0 {
		return bytes.Equal(c.SubjectKeyId, id)
	}
	var spki cryptobyte.String
	var key asn1.BitString
	in := cryptobyte.String(c.RawSubjectPublicKeyInfo)
	if !in.ReadASN1(&spki, casn1.SEQUENCE) || !spki.SkipASN1(casn1.SEQUENCE) || !spki.ReadASN1BitString(&key) {
		return false
	}
	old, recent := sha1.Sum(key.Bytes), sha256.Sum256(key.Bytes)
	return bytes.Equal(old[:], id) || bytes.Equal(recent[:20], id)
}
