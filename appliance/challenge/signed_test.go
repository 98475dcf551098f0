package challenge

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

// connector signs challenges as a device manager would. It writes the tokens by hand, because no
// library writes the bad ones.
type connector struct {
	key         crypto.Signer
	certificate *x509.Certificate
}

func newConnector(t testing.TB, kind string) *connector {
	t.Helper()
	return certify(t, newKey(t, kind), x509.KeyUsageDigitalSignature, epoch.AddDate(-1, 0, 0), epoch.AddDate(1, 0, 0))
}

func newKey(t testing.TB, kind string) crypto.Signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch kind {
	case "rsa":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "rsa-1024":
		key, err = rsa.GenerateKey(rand.Reader, 1024)
	case "p256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "p384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	default:
		t.Fatal(kind)
	}
	must(t, err)
	return key
}

func certify(t testing.TB, key crypto.Signer, usage x509.KeyUsage, from, to time.Time) *connector {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: named("connector"), NotBefore: from, NotAfter: to, KeyUsage: usage}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	c, err := x509.ParseCertificate(der)
	must(t, err)
	return &connector{key, c}
}

func (c *connector) algorithm() string {
	if _, ok := c.key.(*rsa.PrivateKey); ok {
		return "RS256"
	}
	return "ES256"
}

func (c *connector) sign(t testing.TB, claims map[string]any) string {
	t.Helper()
	payload, err := json.Marshal(claims)
	must(t, err)
	return c.signRaw(t, fmt.Sprintf(`{"alg":%q,"typ":"JWT"}`, c.algorithm()), string(payload))
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// signRaw signs any header and payload with RS256 or ES256, whatever the header says.
func (c *connector) signRaw(t testing.TB, header, payload string) string {
	t.Helper()
	input := b64([]byte(header)) + "." + b64([]byte(payload))
	digest := sha256.Sum256([]byte(input))
	var signature []byte
	var err error
	switch k := c.key.(type) {
	case *rsa.PrivateKey:
		signature, err = rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA256, digest[:])
	case *ecdsa.PrivateKey:
		var r, s *big.Int
		r, s, err = ecdsa.Sign(rand.Reader, k, digest[:])
		size := (k.Curve.Params().BitSize + 7) / 8
		signature = make([]byte, 2*size)
		r.FillBytes(signature[:size])
		s.FillBytes(signature[size:])
	}
	must(t, err)
	return input + "." + b64(signature)
}

const (
	testIssuer   = "demo-connector"
	testAudience = "signet-demo"
)

func goodClaims() map[string]any {
	return map[string]any{
		"version": "v1", "iss": testIssuer, "sub": "device-guid-1", "aud": testAudience,
		"iat": epoch.Unix(), "exp": epoch.Add(30 * time.Minute).Unix(), "nonce": "nonce-1", "device_name": "laptop-1",
	}
}

// with returns good claims with some changed; nil removes one.
func with(changes map[string]any) map[string]any {
	c := goodClaims()
	maps.Copy(c, changes)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

func newSigned(t testing.TB, s *store.Store, c *connector, change func(*SignedConfig)) *Signed {
	t.Helper()
	signers, err := NewSigners([]*x509.Certificate{c.certificate})
	must(t, err)
	config := SignedConfig{
		Store: s, Signers: signers, Issuer: testIssuer, Audience: testAudience,
		Validity: time.Hour, Skew: time.Minute, PerDevice: 3,
	}
	if change != nil {
		change(&config)
	}
	signed, err := NewSigned(config)
	must(t, err)
	return signed
}

// wantOutcome verifies a challenge for laptop-1 and checks the label and that it was counted.
func wantOutcome(t testing.TB, what string, s *Signed, r Request, want Label) Verdict {
	t.Helper()
	before := s.stats.snapshot()
	v, err := s.Verify(r)
	if want == Success {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	} else {
		wantRefused(t, what, err, want)
		before[want]++
	}
	if diff := cmp.Diff(before, s.stats.snapshot()); diff != "" {
		t.Errorf("%s: counted otherwise (-want +got):\n%s", what, diff)
	}
	return v
}

func TestSignedGates(t *testing.T) {
	for _, kind := range []string{"rsa", "p256"} {
		t.Run(kind, func(t *testing.T) { checkGates(t, newConnector(t, kind)) })
	}
}

func checkGates(t *testing.T, c *connector) {
	s := newStore(t)
	signed := newSigned(t, s, c, nil)
	csr := csrFor(t, named("laptop-1"))
	at := func(d time.Duration) int64 { return epoch.Add(d).Unix() }
	for _, tt := range []struct {
		what    string
		changes map[string]any
		want    Label
	}{
		{"good", nil, Success},
		{"no version", map[string]any{"version": nil}, Success},
		{"empty version", map[string]any{"version": ""}, Success},
		{"version 2", map[string]any{"version": "v2"}, UnknownVersion},
		{"version in upper case", map[string]any{"version": "V1"}, UnknownVersion},
		{"version as number", map[string]any{"version": 1}, Malformed},
		{"version 2 with nothing else", map[string]any{"version": "v2", "iss": nil, "exp": nil}, UnknownVersion},

		{"no iss", map[string]any{"iss": nil}, Malformed},
		{"no sub", map[string]any{"sub": nil}, Malformed},
		{"empty sub", map[string]any{"sub": ""}, Malformed},
		{"no aud", map[string]any{"aud": nil}, Malformed},
		{"no iat", map[string]any{"iat": nil}, Malformed},
		{"no exp", map[string]any{"exp": nil}, Malformed},
		{"no nonce", map[string]any{"nonce": nil}, Malformed},
		{"empty nonce", map[string]any{"nonce": ""}, Malformed},
		{"long nonce", map[string]any{"nonce": strings.Repeat("n", maxClaim+1)}, Malformed},
		{"nonce as number", map[string]any{"nonce": 1}, Malformed},
		{"exp as text", map[string]any{"exp": fmt.Sprint(at(time.Minute))}, Malformed},
		{"exp with a fraction", map[string]any{"exp": float64(at(time.Minute)) + 0.5}, Malformed},
		{"negative iat", map[string]any{"iat": -1}, Malformed},
		{"iat of zero", map[string]any{"iat": 0}, Malformed},
		{"exp beyond all dates", map[string]any{"exp": 1 << 60}, Malformed},
		{"exp at iat", map[string]any{"exp": at(0)}, Malformed},
		{"san_dns as text", map[string]any{"san_dns": "a.test"}, Malformed},
		{"san_dns with a number", map[string]any{"san_dns": []any{1}}, Malformed},
		{"san_dns with an empty name", map[string]any{"san_dns": []any{""}}, Malformed},
		{"san_dns with null", map[string]any{"san_dns": []any{nil}}, Malformed},
		{"too many names", map[string]any{"san_upn": slices.Repeat([]string{"a"}, maxNames+1)}, Malformed},

		// The clocks may differ by a minute either way.
		{"from now plus skew", map[string]any{"iat": at(time.Minute)}, Success},
		{"later than that", map[string]any{"iat": at(time.Minute + time.Second)}, NotYetValid},
		{"until just before now less skew", map[string]any{"iat": at(-10 * time.Minute), "exp": at(-59 * time.Second)}, Success},
		{"until now less skew", map[string]any{"iat": at(-10 * time.Minute), "exp": at(-time.Minute)}, Expired},
		{"not before, in reach", map[string]any{"nbf": at(time.Minute)}, Success},
		{"not before, later", map[string]any{"nbf": at(time.Minute + time.Second)}, NotYetValid},
		{"not before, unreadable", map[string]any{"nbf": "soon"}, Malformed},
		{"long-lived", map[string]any{"iat": at(-60 * time.Minute), "exp": at(1000 * time.Hour)}, Success},
		{"long-lived, past the profile's validity", map[string]any{"iat": at(-61 * time.Minute), "exp": at(1000 * time.Hour)}, Expired},

		{"another audience", map[string]any{"aud": "signet"}, WrongAudience},
		{"audience in another case", map[string]any{"aud": "Signet-Demo"}, WrongAudience},
		{"empty audience", map[string]any{"aud": ""}, Malformed},
		{"no audience in the list", map[string]any{"aud": []string{}}, WrongAudience},
		{"audience in a list", map[string]any{"aud": []string{"x", testAudience}}, Success},
		{"others in a list", map[string]any{"aud": []string{"x", "y"}}, WrongAudience},
		{"another issuer", map[string]any{"iss": "connector"}, ClaimMismatch},

		{"another device", map[string]any{"device_name": "laptop-2"}, ClaimMismatch},
		{"no device name", map[string]any{"device_name": nil}, ClaimMismatch},
		{"device name in another case", map[string]any{"device_name": "LapTop-1"}, Success},
		{"a name the CSR does not have", map[string]any{"san_dns": []string{"laptop-1"}}, ClaimMismatch},
		{"no names", map[string]any{"san_dns": []string{}, "san_rfc822": []string{}, "san_upn": []string{}}, Success},

		{"a claim nobody knows", map[string]any{"jti": "x", "tenant": map[string]any{"id": 1}}, Success},
		{"a claim that is nearly one", map[string]any{"SAN_DNS": []string{"a"}, "Exp": 1}, Success},
		// Expired comes before the audience: the first gate names the label.
		{"expired and for another", map[string]any{"iat": 1, "exp": 2, "aud": "x", "device_name": "y"}, Expired},
	} {
		wantOutcome(t, tt.what, signed, Request{Challenge: c.sign(t, with(tt.changes)), CSR: csr, Now: epoch}, tt.want)
	}
}

func TestSignedNames(t *testing.T) {
	s := newStore(t)
	c := newConnector(t, "p256")
	signed := newSigned(t, s, c, nil)
	pinned := newSigned(t, s, c, func(c *SignedConfig) { c.Pinned = []pki.Kind{pki.URI, pki.DNS} })
	dns := func(names ...string) map[string]any { return map[string]any{"san_dns": names} }
	mail := pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{
		{Type: oidCommonName, Value: "laptop-1"}, {Type: oidEmailAddress, Value: "a@example.test"}}}
	two := pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{
		{Type: oidCommonName, Value: "laptop-1"}, {Type: oidCommonName, Value: "admin"}}}
	none := pkix.Name{Organization: []string{"Example"}}
	one := named("laptop-1")
	for _, tt := range []struct {
		what    string
		signed  *Signed
		changes map[string]any
		subject pkix.Name
		sans    []string
		want    Label
	}{
		{"the same names in another order and case", signed, dns("a.test", "B.test"), one, []string{"dns:b.test", "dns:A.TEST"}, Success},
		{"one of them twice", signed, dns("a.test"), one, []string{"dns:a.test", "dns:A.test"}, Success},
		{"one name missing", signed, dns("a.test", "b.test"), one, []string{"dns:a.test"}, ClaimMismatch},
		{"one name more", signed, dns("a.test"), one, []string{"dns:a.test", "dns:b.test"}, ClaimMismatch},
		{"a DNS name no claim covers", signed, nil, one, []string{"dns:a.test"}, ClaimMismatch},
		{"an address no claim can cover", signed, nil, one, []string{"ip:192.0.2.1"}, ClaimMismatch},
		{"a URI no claim can cover", signed, nil, one, []string{"uri:tag:microsoft.com,2022-09-14:sid:S-1-5-21-1"}, ClaimMismatch},
		{"e-mail", signed, map[string]any{"san_rfc822": []string{"a@example.test"}}, one, []string{"email:A@example.test"}, Success},
		{"another e-mail", signed, map[string]any{"san_rfc822": []string{"a@example.test"}}, one, []string{"email:b@example.test"}, ClaimMismatch},
		{"e-mail where DNS is claimed", signed, dns("a.test"), one, []string{"email:a.test"}, ClaimMismatch},
		{"the UPN", signed, map[string]any{"san_upn": []string{"user@example.test"}}, one, []string{"upn:User@example.test"}, Success},
		{"another UPN", signed, map[string]any{"san_upn": []string{"user@example.test"}}, one, []string{"upn:admin@example.test"}, ClaimMismatch},
		{"a UPN that is claimed and missing", signed, map[string]any{"san_upn": []string{"user@example.test"}}, one, nil, ClaimMismatch},
		{"a UPN no claim covers", signed, nil, one, []string{"upn:admin@example.test"}, ClaimMismatch},
		{"a UPN with a letter that folds to k", signed, map[string]any{"san_upn": []string{"k@example.test"}}, one, []string{"upn:\u212a@example.test"}, ClaimMismatch},
		{"two common names", signed, nil, two, nil, ClaimMismatch},
		{"no common name", signed, nil, none, nil, ClaimMismatch},
		{"no common name and no device name", signed, map[string]any{"device_name": nil}, none, nil, Success},
		{"e-mail address in the subject", signed, nil, mail, nil, ClaimMismatch},
		{"e-mail address in the subject, claimed", signed, map[string]any{"san_rfc822": []string{"A@example.test"}}, mail, []string{"email:a@example.test"}, Success},
		{"a kind the profile pins", pinned, nil, one, []string{"uri:urn:x", "dns:a.test"}, Success},
		{"a kind the profile pins, and a claim for it", pinned, dns("b.test"), one, []string{"dns:a.test"}, ClaimMismatch},
		{"a kind the profile pins, and an empty claim for it", pinned, dns([]string{}...), one, []string{"dns:a.test"}, ClaimMismatch},
		{"a kind the profile does not pin", pinned, nil, one, []string{"ip:192.0.2.1"}, ClaimMismatch},
	} {
		wantOutcome(t, tt.what, tt.signed, Request{Challenge: c.sign(t, with(tt.changes)), CSR: csrFor(t, tt.subject, tt.sans...), Now: epoch}, tt.want)
	}
}

// TestSignedForm sends what is not a token, or not one of the two algorithms.
func TestSignedForm(t *testing.T) {
	s := newStore(t)
	rs, es := newConnector(t, "rsa"), newConnector(t, "p256")
	signers, err := NewSigners([]*x509.Certificate{rs.certificate, es.certificate})
	must(t, err)
	signed := newSigned(t, s, rs, func(c *SignedConfig) { c.Signers = signers })
	csr := csrFor(t, named("laptop-1"))
	encoded, err := json.Marshal(goodClaims())
	must(t, err)
	payload := string(encoded)
	check := func(what, token string, want Label) {
		t.Helper()
		wantOutcome(t, what, signed, Request{Challenge: token, CSR: csr, Now: epoch}, want)
	}
	check("RS256", rs.signRaw(t, `{"alg":"RS256"}`, payload), Success)
	check("ES256", es.signRaw(t, `{"alg":"ES256"}`, payload), Success)

	// Other algorithms, each really signed.
	input := func(alg string) string { return b64([]byte(`{"alg":"`+alg+`"}`)) + "." + b64([]byte(payload)) }
	rsaKey := rs.key.(*rsa.PrivateKey)
	digest256 := func(s string) []byte { d := sha256.Sum256([]byte(s)); return d[:] }
	digest512 := func(s string) []byte { d := sha512.Sum512([]byte(s)); return d[:] }
	rs512, err := rsa.SignPKCS1v15(rand.Reader, rsaKey, crypto.SHA512, digest512(input("RS512")))
	must(t, err)
	ps256, err := rsa.SignPSS(rand.Reader, rsaKey, crypto.SHA256, digest256(input("PS256")), nil)
	must(t, err)
	// The classic: the public key, as its PEM, is the secret of an HMAC.
	mac := hmac.New(sha256.New, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: rs.certificate.RawSubjectPublicKeyInfo}))
	mac.Write([]byte(input("HS256")))
	check("RS512", input("RS512")+"."+b64(rs512), SignatureInvalid)
	check("PS256", input("PS256")+"."+b64(ps256), SignatureInvalid)
	check("HS256 keyed by the public key", input("HS256")+"."+b64(mac.Sum(nil)), SignatureInvalid)
	check("none, with a signature", rs.signRaw(t, `{"alg":"none"}`, payload), SignatureInvalid)
	check("none, without one", input("none")+".", SignatureInvalid)
	check("RS256, without a signature", input("RS256")+".", SignatureInvalid)
	check("RS256 in lower case", rs.signRaw(t, `{"alg":"rs256"}`, payload), SignatureInvalid)
	check("RS256 said, ES256 signed", es.signRaw(t, `{"alg":"RS256"}`, payload), SignatureInvalid)
	check("ES256 said, RS256 signed", rs.signRaw(t, `{"alg":"ES256"}`, payload), SignatureInvalid)
	check("ES384", newConnector(t, "p384").signRaw(t, `{"alg":"ES384"}`, payload), SignatureInvalid)
	check("ES256 by a key on P-384", newConnector(t, "p384").signRaw(t, `{"alg":"ES256"}`, payload), SignatureInvalid)
	check("RS256 by a stranger", newConnector(t, "rsa").signRaw(t, `{"alg":"RS256"}`, payload), SignatureInvalid)
	check("ES256 by a stranger", newConnector(t, "p256").signRaw(t, `{"alg":"ES256"}`, payload), SignatureInvalid)

	// ECDSA signatures are r and s side by side (RFC 7518 §3.4), never DER.
	der, err := ecdsa.SignASN1(rand.Reader, es.key.(*ecdsa.PrivateKey), digest256(input("ES256")))
	must(t, err)
	check("ES256 with a DER signature", input("ES256")+"."+b64(der), SignatureInvalid)
	check("ES256 with a signature of zeros", input("ES256")+"."+b64(make([]byte, 64)), SignatureInvalid)
	check("ES256 with a cut signature", input("ES256")+"."+b64(make([]byte, 63)), SignatureInvalid)

	// Keys and certificates in the header are not believed, and hinder nobody.
	stranger := newConnector(t, "p256")
	public := stranger.key.Public().(*ecdsa.PublicKey)
	point, err := public.Bytes()
	must(t, err)
	jwk := fmt.Sprintf(`{"kty":"EC","crv":"P-256","x":%q,"y":%q}`, b64(point[1:33]), b64(point[33:]))
	x5c := fmt.Sprintf(`[%q]`, base64.StdEncoding.EncodeToString(stranger.certificate.Raw))
	header := fmt.Sprintf(`{"alg":"ES256","jwk":%s,"x5c":%s,"jku":"https://evil.test/","x5u":"https://evil.test/","kid":"../../etc"}`, jwk, x5c)
	check("a stranger's own key in the header", stranger.signRaw(t, header, payload), SignatureInvalid)
	check("another key in the header of a good token", es.signRaw(t, header, payload), Success)

	good := rs.signRaw(t, `{"alg":"RS256"}`, payload)
	parts := strings.Split(good, ".")
	check("another payload", parts[0]+"."+b64([]byte(strings.Replace(payload, "laptop-1", "laptop-2", 1)))+"."+parts[2], SignatureInvalid)
	check("another header", b64([]byte(`{"alg":"RS256","kid":"x"}`))+"."+parts[1]+"."+parts[2], SignatureInvalid)
	check("a detached payload", parts[0]+".."+parts[2], Malformed)
	check("padding", good+"=", Malformed)
	check("a line break", parts[0]+".\n"+parts[1]+"."+parts[2], Malformed)
	check("standard base64", parts[0]+"."+parts[1]+"."+parts[2][:10]+"+/"+parts[2][12:], Malformed)
	loose := strings.Split(rs.signRaw(t, `{"alg": "RS256"}`, payload), ".")
	check("loose bits at the end of the header", looseBits(t, loose[0])+"."+loose[1]+"."+loose[2], Malformed)
	padded := func(header, payload int) string {
		return rs.signRaw(t, fmt.Sprintf(`{"alg":"RS256","kid":%q}`, strings.Repeat("k", header)),
			strings.TrimSuffix(string(encoded), "}")+fmt.Sprintf(`,"padding":%q}`, strings.Repeat("p", payload)))
	}
	check("a long header and long claims", padded(maxHeader*3/4-100, maxToken/2), Success)
	check("a header of more than is read", padded(maxHeader*3/4, 0), Malformed)
	check("more than is read", padded(0, maxToken*3/4), Malformed)

	for what, header := range map[string]string{
		"critical header":         `{"alg":"RS256","crit":["exp"],"exp":1}`,
		"unencoded payload":       `{"alg":"RS256","b64":false,"crit":["b64"]}`,
		"unencoded, not critical": `{"alg":"RS256","b64":false}`,
		"no algorithm":            `{"typ":"JWT"}`,
		"algorithm null":          `{"alg":null}`,
		"algorithm list":          `{"alg":["RS256"]}`,
		"algorithm twice":         `{"alg":"none","alg":"RS256"}`,
		"algorithm twice, hidden": `{"alg":"RS256","\u0061lg":"RS256"}`,
		"list":                    `["RS256"]`,
		"two objects":             `{"alg":"RS256"}{}`,
		"not JSON":                `{"alg":"RS256"`,
		"not UTF-8":               "{\"alg\":\"RS256\",\"kid\":\"\xff\"}",
	} {
		check("header: "+what, rs.signRaw(t, header, payload), Malformed)
	}
	inner := strings.TrimSuffix(payload, "}")
	for what, payload := range map[string]string{
		"a claim twice":           inner + `,"nonce":"other"}`,
		"a claim twice, hidden":   inner + `,"n\u006fnce":"other"}`,
		"twice in another claim":  inner + `,"x":[{"a":1,"a":2}]}`,
		"something after it":      payload + " {}",
		"an open end":             inner,
		"list":                    "[" + payload + "]",
		"null":                    "null",
		"nonce null":              strings.Replace(payload, `"nonce":"nonce-1"`, `"nonce":null`, 1),
		"exp null":                regexp.MustCompile(`"exp":\d+`).ReplaceAllString(payload, `"exp":null`),
		"aud null":                strings.Replace(payload, `"aud":"`+testAudience+`"`, `"aud":null`, 1),
		"half a surrogate":        strings.Replace(payload, `"nonce-1"`, `"\ud800"`, 1),
		"deep nesting":            inner + `,"x":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000) + "}",
		"not UTF-8":               inner + ",\"x\":\"\xff\"}",
		"a number with an letter": strings.Replace(payload, `"exp":`, `"exp":0x`, 1),
	} {
		check("claims: "+what, rs.signRaw(t, `{"alg":"RS256"}`, payload), Malformed)
	}
}

// Some writers say null where there is nothing: it covers no name.
func TestSignedNull(t *testing.T) {
	c := newConnector(t, "p256")
	signed := newSigned(t, newStore(t), c, nil)
	raw := func(more string) string {
		encoded, err := json.Marshal(goodClaims())
		must(t, err)
		return c.signRaw(t, `{"alg":"ES256"}`, strings.TrimSuffix(string(encoded), "}")+more+"}")
	}
	token := raw(`,"san_dns":null,"san_rfc822":null,"san_upn":null,"nbf":null`)
	wantOutcome(t, "no names", signed, Request{Challenge: token, CSR: csrFor(t, named("laptop-1")), Now: epoch}, Success)
	wantOutcome(t, "a name", signed, Request{Challenge: token, CSR: csrFor(t, named("laptop-1"), "dns:a.test"), Now: epoch}, ClaimMismatch)
}

// looseBits changes bits of the last character that no octet holds.
func looseBits(t testing.TB, s string) string {
	t.Helper()
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	if len(s)%4 == 0 {
		t.Fatal("no loose bits")
	}
	last := strings.IndexByte(alphabet, s[len(s)-1])
	return s[:len(s)-1] + string(alphabet[last^1])
}

func TestSignedOnce(t *testing.T) {
	s := newStore(t)
	c := newConnector(t, "p256")
	signed := newSigned(t, s, c, nil)
	set := NewSet(Config{Signed: signed})
	csr := csrFor(t, named("laptop-1"))
	a, b := keyOf("a"), keyOf("b")
	token := c.sign(t, goodClaims())
	request := func(key store.TransactionKey, at time.Time) Request {
		return Request{Challenge: token, CSR: csr, Transaction: key, Now: at}
	}
	v := wantOutcome(t, "first", signed, request(a, epoch), Success)
	if v.Kind != KindSigned || v.Identity != "device-guid-1" || len(v.Guards) != 2 {
		t.Errorf("verdict %+v", v)
	}
	// Nothing is used up by looking: only the intent takes it.
	late := wantOutcome(t, "another, at the same time", signed, request(b, epoch), Success)
	must(t, begin(s, a, 0, v))
	err := begin(s, b, 0, late)
	if !errors.Is(err, store.ErrGuardUsed) {
		t.Errorf("the slower of two: %v", err)
	}
	set.Decided(late, fmt.Errorf("wrapped: %w", err))
	if n := set.Snapshot()[Replay]; n != 1 {
		t.Errorf("%d replays counted", n)
	}
	wantOutcome(t, "another, later", signed, request(b, epoch), Replay)
	again := c.sign(t, with(map[string]any{"sub": "device-guid-2", "aud": []string{testAudience}}))
	wantOutcome(t, "another challenge with the same nonce", signed, Request{Challenge: again, CSR: csr, Transaction: b, Now: epoch}, Replay)

	// The request itself comes again after the issuance was lost and the challenge is over.
	lose(t, s, a, 0)
	v = wantOutcome(t, "the same, long after", signed, request(a, epoch.Add(20*time.Hour)), Success)
	wantOutcome(t, "another, long after", signed, request(b, epoch.Add(20*time.Hour)), Expired)
	must(t, begin(s, a, 1, v))
	set.Decided(v, nil)
	set.Decided(v, errors.New("disk gone"))
	set.Decided(Verdict{Kind: KindStatic}, nil)
	set.Decided(v, &Refused{KindSigned, ComplianceFailed, "not compliant"})
	want := map[Label]uint64{}
	for _, l := range Labels() {
		want[l] = 0
	}
	want[Success], want[Replay], want[Expired], want[ComplianceFailed] = 1, 3, 1, 1
	if diff := cmp.Diff(want, set.Snapshot()); diff != "" {
		t.Errorf("counted (-want +got):\n%s", diff)
	}
	if len(want) != 11 || NewSet(Config{}).Snapshot() != nil {
		t.Error("not the ten labels and compliance_failed, or a profile without signed challenges has counters")
	}
}

// A challenge is remembered as used after a restart of the process.
func TestSignedOnceAcrossRestart(t *testing.T) {
	dir := t.TempDir()
	c := newConnector(t, "p256")
	csr := csrFor(t, named("laptop-1"))
	r := Request{Challenge: c.sign(t, goodClaims()), CSR: csr, Transaction: keyOf("a"), Now: epoch}
	for n := range 2 {
		s, err := store.Open(store.Options{Dir: dir})
		must(t, err)
		_, err = s.Recover(epoch, func(store.Transaction) audit.Record { return record(audit.TransactionLost) })
		must(t, err)
		signed := newSigned(t, s, c, nil)
		if n == 0 {
			v := wantOutcome(t, "first", signed, r, Success)
			must(t, begin(s, r.Transaction, 0, v))
		} else {
			r.Transaction = keyOf("b")
			wantOutcome(t, "after the restart", signed, r, Replay)
		}
		must(t, s.Close())
	}
}

func TestSignedRate(t *testing.T) {
	s := newStore(t)
	c := newConnector(t, "p256")
	signed := newSigned(t, s, c, nil)
	unlimited := newSigned(t, s, c, func(c *SignedConfig) { c.PerDevice = 0; c.Audience = "other" })
	csr := csrFor(t, named("laptop-1"))
	n := 0
	request := func(changes map[string]any) Request {
		n++
		claims := with(map[string]any{"nonce": fmt.Sprint("nonce ", n)})
		maps.Copy(claims, changes)
		return Request{Challenge: c.sign(t, claims), CSR: csr, Transaction: keyOf(fmt.Sprint(n)), Now: epoch}
	}
	for range 10 { // requests that come to nothing take no slot
		wantOutcome(t, "only verified", signed, request(nil), Success)
	}
	for range 3 {
		r := request(nil)
		v := wantOutcome(t, "one of three", signed, r, Success)
		must(t, begin(s, r.Transaction, 0, v))
	}
	wantOutcome(t, "the fourth of a day", signed, request(nil), RateLimited)
	wantOutcome(t, "another device", signed, request(map[string]any{"sub": "device-guid-2"}), Success)
	r := request(map[string]any{"aud": "other"})
	v := wantOutcome(t, "without a limit", unlimited, r, Success)
	if len(v.Guards) != 1 {
		t.Errorf("%d guards", len(v.Guards))
	}
	later := request(map[string]any{"iat": epoch.Add(24 * time.Hour).Unix(), "exp": epoch.Add(25 * time.Hour).Unix()})
	later.Now = epoch.Add(24 * time.Hour)
	wantOutcome(t, "a day later", signed, later, Success)
}

// Requests that were all found good at the same time get as many slots as there are.
func TestSignedRateAtOnce(t *testing.T) {
	s := newStore(t)
	c := newConnector(t, "p256")
	signed := newSigned(t, s, c, nil)
	set := NewSet(Config{Signed: signed})
	csr := csrFor(t, named("laptop-1"))
	const requests = 100
	verdicts := make([]Verdict, requests)
	for n := range verdicts {
		token := c.sign(t, with(map[string]any{"nonce": fmt.Sprint(n)}))
		v, err := signed.Verify(Request{Challenge: token, CSR: csr, Transaction: keyOf(fmt.Sprint(n)), Now: epoch})
		must(t, err)
		verdicts[n] = v
	}
	var wg sync.WaitGroup
	for n, v := range verdicts {
		wg.Go(func() {
			err := begin(s, keyOf(fmt.Sprint(n)), 0, v)
			if err != nil && !errors.Is(err, store.ErrGuardRate) {
				t.Error(err)
			}
			set.Decided(v, err)
		})
	}
	wg.Wait()
	if got := set.Snapshot(); got[Success] != 3 || got[RateLimited] != requests-3 {
		t.Errorf("%d got in and %d did not", got[Success], got[RateLimited])
	}
}

func TestSigners(t *testing.T) {
	ds := x509.KeyUsageDigitalSignature
	from, to := epoch.AddDate(-1, 0, 0), epoch.AddDate(1, 0, 0)
	for what, c := range map[string]*connector{
		"a key on P-384":     newConnector(t, "p384"),
		"RSA of 1024 bits":   newConnector(t, "rsa-1024"),
		"a key of other use": certify(t, newKey(t, "p256"), x509.KeyUsageKeyEncipherment, from, to),
	} {
		if _, err := NewSigners([]*x509.Certificate{c.certificate}); err == nil {
			t.Errorf("%s was accepted", what)
		}
	}
	old, next := newConnector(t, "rsa"), newConnector(t, "p256")
	signersOf := func(connectors ...*connector) (*Signers, error) {
		var certificates []*x509.Certificate
		for _, c := range connectors {
			certificates = append(certificates, c.certificate)
		}
		return NewSigners(certificates)
	}
	for what, connectors := range map[string][]*connector{"none": nil, "too many": slices.Repeat([]*connector{next}, maxSigners+1)} {
		if _, err := signersOf(connectors...); err == nil {
			t.Errorf("%s was accepted", what)
		}
	}

	// Several connectors sign; the certificates are replaced while requests come.
	s := newStore(t)
	signed := newSigned(t, s, old, nil)
	csr := csrFor(t, named("laptop-1"))
	verify := func(what string, c *connector, now time.Time, want Label) {
		t.Helper()
		claims := with(map[string]any{"iat": now.Unix(), "exp": now.Add(time.Minute).Unix()})
		wantOutcome(t, what, signed, Request{Challenge: c.sign(t, claims), CSR: csr, Now: now}, want)
	}
	verify("the old one", old, epoch, Success)
	verify("the new one, before the change", next, epoch, SignatureInvalid)
	both, err := signersOf(old, next)
	must(t, err)
	must(t, signed.Replace(both, epoch))
	verify("the old one, while there are two", old, epoch, Success)
	verify("the new one, while there are two", next, epoch, Success)

	over := certify(t, newKey(t, "p256"), ds, from, epoch.Add(-time.Second))
	bad, err := signersOf(next, over)
	must(t, err)
	if err := signed.Replace(bad, epoch); err == nil || !strings.Contains(err.Error(), "remove or renew") {
		t.Errorf("replaced by an expired certificate: %v", err)
	}
	if got := signed.Signers().Certificates(); len(got) != 2 || !got[0].Equal(old.certificate) {
		t.Error("a refused replacement changed the certificates")
	}
	only, err := signersOf(next)
	must(t, err)
	must(t, signed.Replace(only, epoch))
	verify("the old one, after the change", old, epoch, SignatureInvalid)
	verify("the new one, after the change", next, epoch, Success)

	// A certificate ends while it is in use.
	verify("at its last second", next, next.certificate.NotAfter, Success)
	verify("after it", next, next.certificate.NotAfter.Add(time.Second), SignatureInvalid)
	verify("before its first", next, next.certificate.NotBefore.Add(-time.Second), SignatureInvalid)
}

func TestNewSignedRefuses(t *testing.T) {
	s := newStore(t)
	signers, err := NewSigners([]*x509.Certificate{newConnector(t, "p256").certificate})
	must(t, err)
	for what, change := range map[string]func(*SignedConfig){
		"no store":        func(c *SignedConfig) { c.Store = nil },
		"no certificates": func(c *SignedConfig) { c.Signers = nil },
		"no issuer":       func(c *SignedConfig) { c.Issuer = "" },
		"no audience":     func(c *SignedConfig) { c.Audience = "" },
		"no validity":     func(c *SignedConfig) { c.Validity = 0 },
		"long validity":   func(c *SignedConfig) { c.Validity = MaxValidity + 1 },
		"negative skew":   func(c *SignedConfig) { c.Skew = -1 },
		"large skew":      func(c *SignedConfig) { c.Skew = MaxSkew + 1 },
		"negative limit":  func(c *SignedConfig) { c.PerDevice = -1 },
		"large limit":     func(c *SignedConfig) { c.PerDevice = store.MaxRate + 1 },
	} {
		c := SignedConfig{Store: s, Signers: signers, Issuer: "i", Audience: "a", Validity: time.Hour}
		if _, err := NewSigned(c); err != nil {
			t.Fatal(err)
		}
		change(&c)
		if _, err := NewSigned(c); err == nil {
			t.Errorf("%s was accepted", what)
		}
	}
}

// TestText reads subjects in the string types old devices use, with characters crypto/x509 refuses.
func TestText(t *testing.T) {
	cn := func(tag int, value []byte) []byte {
		attribute := derOf(t, struct {
			OID   asn1.ObjectIdentifier
			Value asn1.RawValue
		}{oidCommonName, asn1.RawValue{Tag: tag, Bytes: value}})
		return derOf(t, []asn1.RawValue{{Tag: asn1.TagSet, IsCompound: true, Bytes: attribute}})
	}
	for _, tt := range []struct {
		tag   int
		value string
		want  string
	}{
		{asn1.TagPrintableString, "a@b_c*", "a@b_c*"},
		{asn1.TagUTF8String, "dr\u00fccker", "dr\u00fccker"},
		{asn1.TagT61String, "dr\xfccker", "dr\u00fccker"},
		{asn1.TagBMPString, "\x00d\x00r\x00\xfc", "dr\u00fc"},
	} {
		got, err := commonNames(cn(tt.tag, []byte(tt.value)))
		if err != nil || len(got) != 1 || got[0] != tt.want {
			t.Errorf("tag %d: %q, %v", tt.tag, got, err)
		}
	}
	for _, bad := range []string{"", "\x30", "\x30\x02\x31\x05", "\x30\x04\x31\x02\x30\x00", "\x30\x00\x00"} {
		if _, err := commonNames([]byte(bad)); err == nil {
			t.Errorf("%x was read", bad)
		}
	}
}

// FuzzToken reads anything as a token and anything as claims.
func FuzzToken(f *testing.F) {
	c := newConnector(f, "p256")
	signers, err := NewSigners([]*x509.Certificate{c.certificate})
	must(f, err)
	f.Add(c.sign(f, goodClaims()))
	f.Add(c.sign(f, with(map[string]any{"aud": []string{testAudience}, "san_dns": []string{"a"}, "nbf": 1})))
	f.Add("e30.e30.AAAA")
	f.Add(`{"iss":"a","sub":"b","aud":["c"],"iat":1,"exp":2,"nonce":"d"}`)
	f.Fuzz(func(t *testing.T, s string) {
		if token, refused := parseToken(s); refused == nil {
			payload, refused := signers.verify(token.jws, epoch)
			if refused == nil && token.jws.Signatures[0].Header.Algorithm != "ES256" {
				t.Errorf("verified with %s: %q", token.jws.Signatures[0].Header.Algorithm, payload)
			}
		} else if refused.Label != Malformed && refused.Label != SignatureInvalid {
			t.Errorf("label %s", refused.Label)
		}
		claims, refused := parseClaims([]byte(s))
		if refused != nil {
			if refused.Label != Malformed && refused.Label != UnknownVersion {
				t.Errorf("label %s", refused.Label)
			}
			return
		}
		if claims.Issuer == "" || claims.Subject == "" || claims.Nonce == "" || len(claims.Audience) > maxNames ||
			!claims.IssuedAt.Before(claims.Expires) || claims.IssuedAt.Unix() <= 0 || len(claims.Names) > 3*maxNames {
			t.Errorf("claims %+v", claims)
		}
	})
}
