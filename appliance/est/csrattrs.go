package est

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

var oidChallengePassword = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7} // RFC 2985 §5.4.1

// withChallengePassword adds challengePassword to a CsrAttrs (RFC 7030 §4.5.2), which is how a server asks for the channel binding
// (§3.5) and what makes libest send one.
func withChallengePassword(attributes []byte) ([]byte, error) {
	elements, err := elementsOf(attributes)
	if err != nil {
		return nil, err
	}
	oid, err := asn1.Marshal(oidChallengePassword)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(elements, func(e []byte) bool { return bytes.Equal(e, oid) }) {
		return attributes, nil
	}
	return csrAttrsOf(append(elements, oid))
}

// bareTypes is what libest is told of a CsrAttrs: the types that have no values with them; nil where there are none. Its helper for
// programs, est_get_attributes_helper, takes every type at any depth for one to be put into the request with a value of the program's
// own, and makes the program loop for ever where anything follows the last type that it sees.
func bareTypes(attributes []byte) ([]byte, error) {
	elements, err := elementsOf(attributes)
	if err != nil {
		return nil, err
	}
	elements = slices.DeleteFunc(elements, func(e []byte) bool { return casn1.Tag(e[0]) != casn1.OBJECT_IDENTIFIER })
	if len(elements) == 0 {
		return nil, nil
	}
	return csrAttrsOf(elements)
}

// elementsOf are the DER elements of a CsrAttrs; none where it is nil.
func elementsOf(attributes []byte) (elements [][]byte, err error) {
	if len(attributes) == 0 {
		return nil, nil
	}
	var list cryptobyte.String
	in := cryptobyte.String(attributes)
	if !in.ReadASN1(&list, casn1.SEQUENCE) || !in.Empty() {
		return nil, errors.New("the answer to csrattrs is not one DER SEQUENCE")
	}
	for !list.Empty() {
		var element cryptobyte.String
		var tag casn1.Tag
		if !list.ReadAnyASN1Element(&element, &tag) {
			return nil, errors.New("the answer to csrattrs is not a SEQUENCE of DER elements")
		}
		elements = append(elements, element)
	}
	return elements, nil
}

func csrAttrsOf(elements [][]byte) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(slices.Concat(elements...)) })
	return b.Bytes()
}
