package est

import (
	"bytes"
	"encoding/asn1"
	"errors"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

var oidChallengePassword = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7} // RFC 2985 §5.4.1

// withChallengePassword adds challengePassword to a CsrAttrs (RFC 7030 §4.5.2), which is how a server asks for the channel binding
// (§3.5) and what makes libest send one.
func withChallengePassword(attributes []byte) ([]byte, error) {
	var list cryptobyte.String
	if len(attributes) > 0 {
		in := cryptobyte.String(attributes)
		if !in.ReadASN1(&list, casn1.SEQUENCE) || !in.Empty() {
			return nil, errors.New("the answer to csrattrs is not one DER SEQUENCE")
		}
	}
	oid, err := asn1.Marshal(oidChallengePassword)
	if err != nil {
		return nil, err
	}
	for rest := list; !rest.Empty(); {
		var element cryptobyte.String
		var tag casn1.Tag
		if !rest.ReadAnyASN1Element(&element, &tag) {
			return nil, errors.New("the answer to csrattrs is not a SEQUENCE of DER elements")
		}
		if bytes.Equal(element, oid) {
			return attributes, nil
		}
	}
	var b cryptobyte.Builder
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(list)
		b.AddBytes(oid)
	})
	return b.Bytes()
}
