// Package intune asks Microsoft Intune's SCEP validation service whether a request may be answered.
//
// EXPERIMENTAL: it follows Microsoft's public client library (microsoft/Intune-Resource-Access,
// src/CsrValidation) field by field and is tested against a server that checks those fields, but it
// has not been run against a tenant. The README beside this file has the table of fields, what an
// administrator sets up in Entra, and the values whose form Microsoft leaves open.
//
// With Intune the device presents a challenge that only Microsoft can open: an encrypted, signed blob
// inside the request's challengePassword. Microsoft's cloud never sends a device a JWS, so the signed
// challenges of package challenge have nothing to do with it; they come from other connectors.
//
// The order is fixed: ValidateRequest before anything is issued, NotifySuccess after issuing and
// before the certificate leaves the box, NotifyFailure where a validated request came to nothing. A
// certificate whose NotifySuccess failed is withheld until a later one succeeds.
package intune

import (
	"context"
	"crypto"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Where the public cloud answers. Sovereign clouds have their own; see Microsoft's list of endpoints.
const (
	DefaultAuthority = "https://login.microsoftonline.com/"
	DefaultGraph     = "https://graph.microsoft.com/"
	DefaultResource  = "https://api.manage.microsoft.com/"
)

// What Microsoft's library sends for the SCEP validation service.
const (
	intuneAppID    = "0000000a-0000-0000-c000-000000000000" // Intune's own application, in every tenant
	serviceName    = "ScepRequestValidationFEService"
	serviceVersion = "2018-02-20"
	graphVersion   = "v1.0"

	validatePath = "ScepActions/validateRequest"
	successPath  = "ScepActions/successNotification"
	failurePath  = "ScepActions/failureNotification"
)

// Bounds of what a caller hands over.
const (
	maxRequest     = 256 << 10 // bytes of a certification request
	maxTransaction = 1 << 10   // bytes of a transaction identifier
	maxDescription = 255       // UTF-16 units of an errorDescription, Microsoft's documented maximum
)

// HRESULTs for [Client.NotifyFailure] (MS-ERREF §2.1.1). Intune's console shows them to the tenant's
// administrator.
const (
	Unexpected   uint32 = 0x8000FFFF // E_UNEXPECTED: something failed here
	AccessDenied uint32 = 0x80070005 // E_ACCESSDENIED: our policy refused the request
)

// Config is what a [Client] needs. Endpoints are https URLs; empty ones are the public cloud's.
type Config struct {
	Tenant   string // directory (tenant) ID or a verified domain, e.g. contoso.onmicrosoft.com
	ClientID string // application (client) ID of the app registration
	Caller   string // callerInfo: product and version, shown in Intune's logs

	// Certificate is registered with the app registration; Key is its RSA key, which may be resident in
	// a TPM: it signs one JWT for each token, about one an hour.
	Certificate *x509.Certificate
	Key         crypto.Signer
	// Algorithm is RS256 (default; the JWT names the certificate by x5t) or PS256 (x5t#S256, what
	// Microsoft's documentation recommends now). Keys in a TPM that chooses the length of its PSS salts
	// cannot do PS256, whose salt has 32 bytes (RFC 7518 §3.5); New says so.
	Algorithm string

	Authority string // Entra, default [DefaultAuthority]
	Graph     string // Microsoft Graph, default [DefaultGraph]
	Resource  string // the Intune API as a token's audience, never contacted; default [DefaultResource]

	Roots    *x509.CertPool   // TLS roots; nil means the system's
	Timeout  time.Duration    // of one call with all its attempts, default 30 s
	Attempt  time.Duration    // of one HTTP exchange, default 10 s
	Attempts int              // of one call, default 3
	Backoff  time.Duration    // before the second attempt, doubling, at most 8 s, with jitter; default 500 ms
	Now      func() time.Time // default time.Now
	Log      *slog.Logger     // one line for each call, without request, challenge or token; default none
}

// Client speaks for one app registration of one tenant. It is safe for concurrent use; tokens and the
// service's address are cached in memory.
type Client struct {
	credential credential
	caller     string
	tokenURL   string
	graphURL   string
	graphScope string
	scope      string

	http     *http.Client
	timeout  time.Duration
	attempt  time.Duration
	attempts int
	backoff  time.Duration
	now      func() time.Time
	log      *slog.Logger

	graphToken  *slot[string]
	intuneToken *slot[string]
	service     *slot[string] // base URL of the validation service, without trailing slash
}

// New checks the configuration, signing once to see that the key fits, and contacts nobody. Its errors
// say what to write instead.
func New(c Config) (*Client, error) {
	if !plain(c.Tenant) || strings.ContainsAny(c.Tenant, "/?#%\\ ") {
		return nil, errors.New("tenant is no tenant ID; write the directory's ID or a verified domain")
	}
	if !plain(c.ClientID) {
		return nil, errors.New("client ID is missing; write the app registration's application (client) ID")
	}
	if !plain(c.Caller) {
		return nil, errors.New("caller is missing; write the product's name and version")
	}
	authority, err := endpoint("authority", c.Authority, DefaultAuthority)
	if err != nil {
		return nil, err
	}
	graph, err := endpoint("graph", c.Graph, DefaultGraph)
	if err != nil {
		return nil, err
	}
	resource, err := endpoint("resource", c.Resource, DefaultResource)
	if err != nil {
		return nil, err
	}
	cl := &Client{
		caller:   c.Caller,
		tokenURL: authority + c.Tenant + "/oauth2/v2.0/token",
		graphURL: graph + graphVersion + "/servicePrincipals/appId=" + intuneAppID + "/endpoints",
		// Microsoft's library puts "/.default" behind the Intune resource, which ends in a slash, and
		// ".default" behind Graph's: the scope with two slashes yields the audience with one.
		graphScope:  graph + ".default",
		scope:       resource + "/.default",
		timeout:     orDefault(c.Timeout, 30*time.Second),
		attempt:     orDefault(c.Attempt, 10*time.Second),
		attempts:    orDefault(c.Attempts, 3),
		backoff:     orDefault(c.Backoff, 500*time.Millisecond),
		now:         c.Now,
		log:         c.Log,
		graphToken:  newSlot[string](),
		intuneToken: newSlot[string](),
		service:     newSlot[string](),
	}
	if cl.timeout < 0 || cl.attempt < 0 || cl.attempts < 0 || cl.backoff < 0 {
		return nil, errors.New("timeouts, attempts and backoff are not negative; leave them out for the defaults")
	}
	if cl.now == nil {
		cl.now = time.Now
	}
	if cl.log == nil {
		cl.log = slog.New(slog.DiscardHandler)
	}
	if cl.credential, err = newCredential(c, cl.tokenURL); err != nil {
		return nil, err
	}
	cl.http = newHTTP(c.Roots)
	return cl, nil
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// A Transaction names one request to the service: the same values for validation and notification.
type Transaction struct {
	ID  string // SCEP transactionID
	CSR []byte // DER of the PKCS#10 request, challengePassword included: a secret
}

type validateBody struct {
	Request struct {
		TransactionID      string `json:"transactionId"`
		CertificateRequest string `json:"certificateRequest"`
		CallerInfo         string `json:"callerInfo"`
	} `json:"request"`
}

type successBody struct {
	Notification struct {
		TransactionID      string `json:"transactionId"`
		CertificateRequest string `json:"certificateRequest"`
		Thumbprint         string `json:"certificateThumbprint"`
		SerialNumber       string `json:"certificateSerialNumber"`
		ExpirationDateUTC  string `json:"certificateExpirationDateUtc"`
		IssuingAuthority   string `json:"issuingCertificateAuthority"`
		CallerInfo         string `json:"callerInfo"`
		CAConfiguration    string `json:"caConfiguration"`
		Authority          string `json:"certificateAuthority"`
	} `json:"notification"`
}

type failureBody struct {
	Notification struct {
		TransactionID      string `json:"transactionId"`
		CertificateRequest string `json:"certificateRequest"`
		HResult            uint32 `json:"hResult"`
		ErrorDescription   string `json:"errorDescription"`
		CallerInfo         string `json:"callerInfo"`
	} `json:"notification"`
}

// ValidateRequest asks whether the challenge in the request is Intune's and the request is what Intune
// told the device to ask for. Nil means yes; [*Rejected] is the service's no; every other error is an
// [*Error] and means that there is no verdict. Nothing may be issued after any error.
func (c *Client) ValidateRequest(ctx context.Context, t Transaction) error {
	if err := t.check(); err != nil {
		return err
	}
	var b validateBody
	b.Request.TransactionID = t.ID
	b.Request.CertificateRequest = base64.StdEncoding.EncodeToString(t.CSR)
	b.Request.CallerInfo = c.caller
	return c.act(ctx, validatePath, t.ID, b)
}

// NotifySuccess tells Intune of the certificate. After any error the certificate must not leave the
// box; the notification may be sent again, for the same transaction and certificate.
//
// Microsoft leaves the form of some values open; the README says which ones were chosen.
func (c *Client) NotifySuccess(ctx context.Context, t Transaction, issued *x509.Certificate) error {
	if err := t.check(); err != nil {
		return err
	}
	var issuer pkix.RDNSequence
	if rest, err := asn1.Unmarshal(issued.RawIssuer, &issuer); err != nil || len(rest) > 0 {
		return &Error{What: "the certificate's issuer is not a name", Mend: "notify of certificates as they were issued"}
	}
	thumbprint := sha1.Sum(issued.Raw)
	var b successBody
	n := &b.Notification
	n.TransactionID = t.ID
	n.CertificateRequest = base64.StdEncoding.EncodeToString(t.CSR)
	n.Thumbprint = strings.ToUpper(hex.EncodeToString(thumbprint[:]))
	n.SerialNumber = strings.ToUpper(issued.SerialNumber.Text(16))
	n.ExpirationDateUTC = issued.NotAfter.UTC().Format("2006-01-02T15:04:05.000Z")
	n.IssuingAuthority = issuer.String()
	n.CallerInfo = c.caller
	n.CAConfiguration = n.IssuingAuthority
	n.Authority = n.IssuingAuthority
	return c.act(ctx, successPath, t.ID, b)
}

// NotifyFailure tells Intune why a validated request got no certificate; its console shows hresult
// and description, which is cut to 255 characters. No certificate may be given out afterwards.
func (c *Client) NotifyFailure(ctx context.Context, t Transaction, hresult uint32, description string) error {
	if err := t.check(); err != nil {
		return err
	}
	var b failureBody
	n := &b.Notification
	n.TransactionID = t.ID
	n.CertificateRequest = base64.StdEncoding.EncodeToString(t.CSR)
	n.HResult = hresult
	if n.ErrorDescription = clean(description); n.ErrorDescription == "" {
		n.ErrorDescription = "the certificate was not issued"
	}
	n.CallerInfo = c.caller
	return c.act(ctx, failurePath, t.ID, b)
}

// Check gets both tokens and the service's address anew and so proves the app registration, its
// certificate and its permissions, without a device.
func (c *Client) Check(ctx context.Context) error {
	c.graphToken.forget()
	c.intuneToken.forget()
	c.service.forget()
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	activity := newID()
	return c.retry(ctx, activity, func() error {
		if _, err := c.locate(ctx, activity); err != nil {
			return err
		}
		_, err := c.token(ctx, c.intuneToken, c.scope, activity)
		return err
	})
}

// act posts one action under a fresh activity ID and turns the service's answer into an error.
func (c *Client) act(ctx context.Context, path, transaction string, body any) error {
	payload, err := json.Marshal(body)
	if err != nil {
		return &Error{What: "encoding the request to Intune", Mend: "report this as a defect", Err: err}
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	activity := newID() // one for all attempts: Microsoft's log then shows them together
	tries := 0
	err = c.retry(ctx, activity, func() error {
		tries++
		return c.post(ctx, path, activity, payload)
	})
	c.logCall(ctx, path, transaction, activity, tries, err)
	return err
}

// logCall writes the one line of a call. The transaction is the device's text; slog quotes it.
func (c *Client) logCall(ctx context.Context, path, transaction, activity string, tries int, err error) {
	attrs := []slog.Attr{slog.String("action", path), slog.String("transaction", transaction),
		slog.String("activity", activity), slog.Int("attempts", tries)}
	level := slog.LevelInfo
	var rejected *Rejected
	switch {
	case err == nil:
		attrs = append(attrs, slog.String("code", string(Success)))
	case errors.As(err, &rejected):
		attrs = append(attrs, slog.String("code", string(rejected.Code)))
	default:
		level = slog.LevelWarn
		attrs = append(attrs, slog.Any("error", err))
	}
	c.log.LogAttrs(ctx, level, "intune", attrs...)
}

func (t Transaction) check() error {
	switch {
	case strings.TrimSpace(t.ID) == "" || len(t.ID) > maxTransaction || !utf8.ValidString(t.ID) || strings.ContainsFunc(t.ID, unicode.IsControl):
		return &Error{What: "the transaction identifier is empty, too long or not text", Mend: "enroll with a client that sends a printable transactionID"}
	case len(t.CSR) == 0 || len(t.CSR) > maxRequest:
		return &Error{What: "the certification request is empty or too long", Mend: "enroll with a PKCS#10 request of at most 256 KiB"}
	}
	return nil
}

// clean makes a description one line of printable text of at most 255 UTF-16 units, as .NET counts.
func clean(s string) string {
	var b strings.Builder
	units := 0
	for _, r := range strings.ToValidUTF8(s, "") {
		if unicode.IsSpace(r) {
			r = ' '
		}
		if !unicode.IsPrint(r) {
			continue
		}
		if units += utf16.RuneLen(r); units > maxDescription {
			break
		}
		b.WriteRune(r)
	}
	return strings.TrimSpace(b.String())
}

// plain says that s can stand in a URL's path, a header or a JWT: printable ASCII without spaces
// around it.
func plain(s string) bool {
	return s != "" && s == strings.TrimSpace(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// endpoint checks a base URL and ends it with one slash.
func endpoint(name, given, otherwise string) (string, error) {
	if given == "" {
		given = otherwise
	}
	if !cleanURL(given) {
		return "", fmt.Errorf("%s %q is no endpoint; write https://HOST/ or leave it out", name, given)
	}
	return strings.TrimRight(given, "/") + "/", nil
}

// cleanURL says that s is an https URL with nothing but host and path.
func cleanURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Scheme == "https" && u.Hostname() != "" && u.User == nil && u.RawQuery == "" &&
		!u.ForceQuery && u.Fragment == "" && u.Opaque == "" && !strings.ContainsAny(s, "#? ")
}

func orDefault[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// newHTTP is a client of our own: no proxy from the environment, no redirects, no cookies.
func newHTTP(roots *x509.CertPool) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:    10 * time.Second,
			ForceAttemptHTTP2:      true,
			DisableCompression:     true, // an answer's limit is in bytes on the wire
			MaxResponseHeaderBytes: 64 << 10,
			MaxIdleConnsPerHost:    4,
			IdleConnTimeout:        90 * time.Second,
		},
		// A redirect would carry a token or a challenge somewhere else: its status is an error like any.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
