package intune

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	assertionAge = 5 * time.Minute // of a JWT; Microsoft's documentation: five to ten minutes at most
	maxTokenAge  = 24 * time.Hour  // whatever Entra says
	tokenMargin  = 5 * time.Minute // before its end a token is renewed; half its life where that is shorter
	maxToken     = 64 << 10        // bytes
	minBits      = 2048            // of the RSA key
)

// credential signs the assertion of the client credentials grant with a certificate (RFC 7523 §2.2,
// Microsoft identity platform: application authentication certificate credentials).
type credential struct {
	clientID    string
	audience    string // the token endpoint's URL
	certificate *x509.Certificate
	public      *rsa.PublicKey
	key         crypto.Signer
	pss         bool
	header      string // of the JWT, base64url
}

func newCredential(c Config, audience string) (credential, error) {
	var none credential
	if c.Certificate == nil || c.Key == nil {
		return none, errors.New("the app registration's certificate or its key is missing; configure both")
	}
	public, ok := c.Certificate.PublicKey.(*rsa.PublicKey)
	if !ok || public.N.BitLen() < minBits {
		return none, fmt.Errorf("the app registration's certificate has no RSA key of %d bits; Entra takes no other: make one", minBits)
	}
	if !public.Equal(c.Key.Public()) {
		return none, errors.New("the key is not that of the app registration's certificate; configure the two that belong together")
	}
	cr := credential{clientID: c.ClientID, audience: audience, certificate: c.Certificate, public: public, key: c.Key}
	header := map[string]string{"typ": "JWT"}
	switch c.Algorithm {
	case "", "RS256":
		sum := sha1.Sum(c.Certificate.Raw) // RFC 7515 §4.1.7: it only names the certificate
		header["alg"], header["x5t"] = "RS256", base64.RawURLEncoding.EncodeToString(sum[:])
	case "PS256":
		sum := sha256.Sum256(c.Certificate.Raw) // RFC 7515 §4.1.8
		header["alg"], header["x5t#S256"] = "PS256", base64.RawURLEncoding.EncodeToString(sum[:])
		cr.pss = true
	default:
		return none, fmt.Errorf("algorithm %q is unknown; write RS256 or PS256", c.Algorithm)
	}
	b, err := json.Marshal(header)
	if err != nil {
		return none, fmt.Errorf("encoding the assertion's header: %w", err)
	}
	cr.header = base64.RawURLEncoding.EncodeToString(b)
	if _, err := cr.sign("trial"); err != nil {
		return none, err
	}
	return cr, nil
}

// assertion is the signed JWT (RFC 7519) that proves the app registration's key.
func (cr *credential) assertion(now time.Time, activity string) (string, error) {
	if now.Before(cr.certificate.NotBefore) || now.After(cr.certificate.NotAfter) {
		return "", &Error{
			What: fmt.Sprintf("the app registration's certificate is valid from %s to %s only",
				cr.certificate.NotBefore.UTC().Format(time.DateOnly), cr.certificate.NotAfter.UTC().Format(time.DateOnly)),
			Mend: "renew it and upload it to the app registration, or set the clock", Activity: activity, credential: true,
		}
	}
	claims, err := json.Marshal(map[string]any{
		"aud": cr.audience,
		"iss": cr.clientID,
		"sub": cr.clientID,
		"jti": newID(),
		"iat": now.Unix(),
		"nbf": now.Unix(),
		"exp": now.Add(assertionAge).Unix(),
	})
	if err != nil {
		return "", fmt.Errorf("encoding the assertion: %w", err)
	}
	input := cr.header + "." + base64.RawURLEncoding.EncodeToString(claims)
	signature, err := cr.sign(input)
	if err != nil {
		return "", &Error{What: "the app registration's key did not sign", Mend: "let the device try again; if it stays so, see to the TPM",
			Activity: activity, Err: err, retry: true}
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

// sign signs and verifies: a signer whose PSS salt has another length than RFC 7518 §3.5 wants would
// be refused by Entra with an error that names the certificate instead.
func (cr *credential) sign(input string) ([]byte, error) {
	digest := sha256.Sum256([]byte(input))
	if !cr.pss {
		signature, err := cr.key.Sign(rand.Reader, digest[:], crypto.SHA256)
		if err != nil {
			return nil, fmt.Errorf("signing with the app registration's key: %w", err)
		}
		if rsa.VerifyPKCS1v15(cr.public, crypto.SHA256, digest[:], signature) != nil {
			return nil, errors.New("the app registration's key made a signature that does not verify; see to the TPM")
		}
		return signature, nil
	}
	const mend = "; write algorithm RS256"
	options := &rsa.PSSOptions{SaltLength: sha256.Size, Hash: crypto.SHA256}
	signature, err := cr.key.Sign(rand.Reader, digest[:], options)
	if err != nil {
		return nil, fmt.Errorf("signing PS256 with the app registration's key: %w"+mend, err)
	}
	if rsa.VerifyPSS(cr.public, crypto.SHA256, digest[:], signature, options) != nil {
		return nil, errors.New("the app registration's key does not make PSS salts of 32 bytes" + mend)
	}
	return signature, nil
}

// token gets an access token for a scope (RFC 6749 §4.4, RFC 7523 §2.2), or the cached one.
func (c *Client) token(ctx context.Context, s *slot[string], scope, activity string) (string, error) {
	return s.get(ctx, activity, c.now, func() (string, time.Duration, error) {
		assertion, err := c.credential.assertion(c.now(), activity)
		if err != nil {
			return "", 0, err
		}
		form := url.Values{
			"grant_type":            {"client_credentials"},
			"client_id":             {c.credential.clientID},
			"scope":                 {scope},
			"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
			"client_assertion":      {assertion},
		}
		r, err := http.NewRequest(http.MethodPost, c.tokenURL, strings.NewReader(form.Encode()))
		if err != nil {
			return "", 0, notUnderstood("the configuration", activity, nil)
		}
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		status, header, body, err := c.exchange(ctx, "Entra", activity, r)
		if err != nil {
			return "", 0, err
		}
		if status != http.StatusOK {
			return "", 0, tokenRefused(status, header, body, activity)
		}
		token, age, err := readToken(body)
		if err != nil {
			return "", 0, notUnderstood("Entra", activity, err)
		}
		return token, age - min(tokenMargin, age/2), nil
	})
}

// readToken reads a token response (RFC 6749 §5.1). Its errors quote nothing of it.
func readToken(body []byte) (token string, age time.Duration, err error) {
	m, err := members(body)
	if err != nil {
		return "", 0, err
	}
	var kind string
	if text(m, "token_type", &kind) != nil || !strings.EqualFold(kind, "Bearer") {
		return "", 0, errors.New("token_type is not Bearer")
	}
	if err := text(m, "access_token", &token); err != nil {
		return "", 0, err
	}
	if len(token) > maxToken || !plain(token) || strings.Contains(token, " ") {
		return "", 0, errors.New("access_token is no token")
	}
	if age, err = seconds(m, "expires_in"); err != nil {
		return "", 0, err
	}
	return token, age, nil
}

// entraMends says what to do about Entra's error numbers (AADSTS…) that have one certain cause.
var entraMends = map[int]string{
	90002:   "write the tenant's ID: Entra knows no such tenant",
	700016:  "write the client ID of an app registration of this tenant",
	700027:  "upload the certificate that the box uses to the app registration (Certificates & secrets)",
	700024:  "set the box's clock: Entra finds the assertion's time wrong",
	7000229: "create the app's service principal in the tenant (Enterprise applications) and grant admin consent",
	500011:  "see that the tenant has Intune: it has no service principal of that name",
}

// tokenRefused reads an error response (RFC 6749 §5.2). Entra's error_description is left out: it is
// long and for its own support; the number says as much.
func tokenRefused(status int, header http.Header, body []byte, activity string) error {
	e := statusError("Entra", activity, status, header, "look the answer up at https://login.microsoftonline.com/error and mend the app registration")
	if e.retry || status >= 300 && status < 400 {
		return e
	}
	e.credential = true
	m, err := members(body)
	if err != nil {
		return e
	}
	var name string
	if text(m, "error", &name) == nil && len(name) <= 64 && plain(name) {
		e.What += ", " + name
	}
	var numbers []int
	if json.Unmarshal(m["error_codes"], &numbers) == nil && len(numbers) > 0 {
		e.What += ", AADSTS" + strconv.Itoa(numbers[0])
		if mend, ok := entraMends[numbers[0]]; ok {
			e.Mend = mend
		}
	}
	if name == "temporarily_unavailable" {
		e.credential, e.retry, e.Mend = false, true, "let the device try again later"
	}
	return e
}
