package scep

import (
	"encoding/base64"
	"errors"
	"net/url"
	"strings"
)

var errMessageEncoding = errors.New("message= is not base64: send the PKIMessage as percent-encoded base64, or use POST")

// query returns the values of operation= and message= of a raw query, in either order and still percent-encoded. Where a
// name is repeated its first value counts.
//
// The raw query and not url.ParseQuery, because that reads '+' as a space, and several clients send base64 with its
// '+' as it is.
func query(raw string) (operation, message string) {
	var haveOperation, haveMessage bool
	for pair := range strings.SplitSeq(raw, "&") {
		name, value, _ := strings.Cut(pair, "=")
		switch {
		case name == "operation" && !haveOperation:
			operation, haveOperation = value, true
		case name == "message" && !haveMessage:
			message, haveMessage = value, true
		}
	}
	return operation, message
}

// decodeMessage decodes the raw value of message= in a PKIOperation by GET (RFC 8894 §4.1): percent-encoded base64 in the
// standard or the URL-safe alphabet, with or without padding, broken into lines or not. A space is a '+' that a library between client
// and box has taken for form encoding.
func decodeMessage(value string) ([]byte, error) {
	value, err := url.PathUnescape(value)
	if err != nil {
		return nil, errMessageEncoding
	}
	value = strings.Map(func(r rune) rune {
		switch r {
		case '\r', '\n', '\t':
			return -1
		case ' ', '-':
			return '+'
		case '_':
			return '/'
		}
		return r
	}, value)
	value = strings.TrimRight(value, "=")
	der, err := base64.RawStdEncoding.DecodeString(value)
	if err != nil {
		return nil, errMessageEncoding
	}
	return der, nil
}
