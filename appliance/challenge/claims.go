package challenge

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"

	"signet.internal/appliance/pki"
)

// Bounds on a signed challenge, in bytes, checked before anything in it is decoded.
const (
	maxToken  = 32 << 10 // the whole, with every name a CSR can hold
	maxHeader = 8 << 10  // of base64: room for a certificate chain that is ignored
	maxClaim  = 512      // one text
	maxNames  = 256      // of one kind, as in a CSR
	maxDepth  = 8        // of nesting, header and claims
)

// token is a signed challenge that is well formed and not verified.
type token struct{ jws *jose.JSONWebSignature }

// parseToken reads a JWS in compact serialization (RFC 7515 §7.1) signed with RS256 or ES256. Every
// error is a malformed token, except for another algorithm.
func parseToken(s string) (token, *Refused) {
	malformed := func(what string) (token, *Refused) {
		return token{}, &Refused{KindSigned, Malformed, what}
	}
	if len(s) > maxToken {
		return malformed(fmt.Sprintf("%d bytes, at most %d are read", len(s), maxToken))
	}
	parts := strings.Split(s, ".")
	if len(parts) != 3 || parts[0] == "" || parts[1] == "" || len(parts[0]) > maxHeader {
		return malformed("not header, claims and signature")
	}
	for _, p := range parts {
		if !isBase64URL(p) { // the decoder would skip line breaks
			return malformed("not base64url without padding (RFC 7515 §2)")
		}
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(parts[0])
	if err != nil {
		return malformed("the header is not base64url")
	}
	header, err := parseObject(raw)
	if err != nil {
		return malformed("header: " + err.Error())
	}
	for _, name := range []string{"crit", "b64"} { // RFC 7515 §4.1.11, RFC 7797 §3: would change what is signed
		if _, ok := header[name]; ok {
			return malformed("the header has " + name)
		}
	}
	algorithm, err := header.text("alg", true)
	if err != nil {
		return malformed("header: " + err.Error())
	}
	if algorithm != string(jose.RS256) && algorithm != string(jose.ES256) {
		return token{}, &Refused{KindSigned, SignatureInvalid, fmt.Sprintf("signed with algorithm %.20q, use RS256 or ES256", algorithm)}
	}
	if parts[2] == "" {
		return token{}, &Refused{KindSigned, SignatureInvalid, "it is not signed"}
	}
	jws, err := jose.ParseSignedCompact(s, []jose.SignatureAlgorithm{jose.RS256, jose.ES256})
	if err != nil || len(jws.Signatures) != 1 {
		return malformed("not a compact JWS")
	}
	return token{jws}, nil
}

func isBase64URL(s string) bool {
	for _, c := range []byte(s) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}

// claims are version 1 of the claims of a signed challenge. Claims that are not known are ignored
// (RFC 7519 §4).
type claims struct {
	Issuer, Subject, Nonce string
	Audience               []string
	IssuedAt, Expires      time.Time
	NotBefore              time.Time // zero: absent
	DeviceName             string    // "": absent
	SID                    string    // of the device's account in Active Directory, "": absent
	Names                  []pki.Name
	Covers                 []pki.Kind // kinds of names that have a claim, be it an empty one
}

// parseClaims reads a verified payload.
func parseClaims(payload []byte) (claims, *Refused) {
	c := claims{}
	o, err := parseObject(payload)
	if err != nil {
		return claims{}, &Refused{KindSigned, Malformed, "claims: " + err.Error()}
	}
	version, err := o.text("version", false)
	if err != nil {
		return claims{}, &Refused{KindSigned, Malformed, "claims: " + err.Error()}
	}
	if version != "" && version != "v1" {
		return claims{}, &Refused{KindSigned, UnknownVersion, fmt.Sprintf("version %.20q, v1 is read", version)}
	}
	if err := c.read(o); err != nil {
		return claims{}, &Refused{KindSigned, Malformed, "claims: " + err.Error()}
	}
	return c, nil
}

func (c *claims) read(o object) error {
	var errs []error
	text := func(name string, isRequired bool) string {
		s, err := o.text(name, isRequired)
		errs = append(errs, err)
		return s
	}
	instant := func(name string, isRequired bool) time.Time {
		t, err := o.time(name, isRequired)
		errs = append(errs, err)
		return t
	}
	names := func(name string, kind pki.Kind) {
		values, err := o.texts(name)
		errs = append(errs, err)
		if values != nil {
			c.Covers = append(c.Covers, kind)
		}
		for _, v := range values {
			c.Names = append(c.Names, pki.Name{Kind: kind, Value: v})
		}
	}
	c.Issuer, c.Subject, c.Nonce = text("iss", true), text("sub", true), text("nonce", true)
	c.IssuedAt, c.Expires, c.NotBefore = instant("iat", true), instant("exp", true), instant("nbf", false)
	c.DeviceName, c.SID = text("device_name", false), text("ad_sid", false)
	names("san_dns", pki.DNS)
	names("san_rfc822", pki.Email)
	names("san_upn", pki.UPN)

	if raw := o["aud"]; len(raw) > 0 && raw[0] == '[' { // RFC 7519 §4.1.3
		var err error
		c.Audience, err = o.texts("aud")
		errs = append(errs, err)
	} else {
		c.Audience = []string{text("aud", true)}
	}
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	if !c.IssuedAt.Before(c.Expires) {
		return errors.New("exp is not after iat")
	}
	return nil
}

// object is a JSON object with its values undecoded. Names are compared exactly; null is as good as
// absent.
type object map[string]json.RawMessage

func (o object) get(name string) (json.RawMessage, bool) {
	raw, ok := o[name]
	return raw, ok && string(raw) != "null"
}

// parseObject reads one JSON object and nothing after it. A name that occurs twice, here or in
// anything nested, is refused: readers differ in which of the two they believe.
func parseObject(b []byte) (object, error) {
	if !utf8.Valid(b) {
		return nil, errors.New("not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	if err := checkValue(dec, 0); err != nil {
		return nil, err
	}
	var o object
	if err := json.Unmarshal(b, &o); err != nil || o == nil { // or something follows it
		return nil, errors.New("not one JSON object")
	}
	return o, nil
}

// checkValue reads one value, looking for names that occur twice.
func checkValue(dec *json.Decoder, depth int) error {
	if depth > maxDepth {
		return errors.New("nested too deeply")
	}
	t, err := dec.Token()
	if err != nil {
		return errors.New("not JSON")
	}
	delim, ok := t.(json.Delim)
	if !ok {
		return nil
	}
	seen := map[string]bool{}
	for dec.More() {
		if delim == '{' {
			t, err := dec.Token()
			name, ok := t.(string)
			if err != nil || !ok {
				return errors.New("not JSON")
			}
			if seen[name] {
				return fmt.Errorf("%.40q occurs twice", name)
			}
			seen[name] = true
		}
		if err := checkValue(dec, depth+1); err != nil {
			return err
		}
	}
	if _, err := dec.Token(); err != nil {
		return errors.New("not JSON")
	}
	return nil
}

// text returns a member that is a string; a required one is not empty.
func (o object) text(name string, isRequired bool) (string, error) {
	raw, ok := o.get(name)
	if !ok {
		if isRequired {
			return "", fmt.Errorf("%s is missing", name)
		}
		return "", nil
	}
	s, err := decodeText(raw)
	if err != nil || isRequired && s == "" {
		return "", fmt.Errorf("%s is not a text of 1 to %d bytes", name, maxClaim)
	}
	return s, nil
}

func decodeText(raw json.RawMessage) (string, error) {
	var s *string // nil for null
	err := json.Unmarshal(raw, &s)
	// Half of a surrogate pair is decoded to the replacement character.
	if err != nil || s == nil || len(*s) > maxClaim || strings.ContainsRune(*s, utf8.RuneError) {
		return "", errors.New("not a text")
	}
	return *s, nil
}

// texts returns a member that is a list of non-empty strings, nil where it is absent.
func (o object) texts(name string) ([]string, error) {
	raw, ok := o.get(name)
	if !ok {
		return nil, nil
	}
	var list []json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil || list == nil || len(list) > maxNames {
		return nil, fmt.Errorf("%s is not a list of up to %d texts", name, maxNames)
	}
	texts := []string{}
	for _, raw := range list {
		s, err := decodeText(raw)
		if err != nil || s == "" {
			return nil, fmt.Errorf("%s is not a list of texts of 1 to %d bytes", name, maxClaim)
		}
		texts = append(texts, s)
	}
	return texts, nil
}

// maxSeconds is the end of the year 9999.
const maxSeconds = 253402300799

// time returns a member that is a whole number of seconds since 1970 (RFC 7519 §2, NumericDate).
func (o object) time(name string, isRequired bool) (time.Time, error) {
	raw, ok := o.get(name)
	if !ok && !isRequired {
		return time.Time{}, nil
	}
	seconds, err := strconv.ParseInt(string(raw), 10, 64)
	if err != nil || seconds <= 0 || seconds > maxSeconds {
		return time.Time{}, fmt.Errorf("%s is not a whole number of seconds since 1970", name)
	}
	return time.Unix(seconds, 0).UTC(), nil
}
