// Package compliance asks a site's own HTTPS webhook, between challenge and issuance, whether a device
// may have its certificate.
//
// Everything but a clear yes is a no: an answer that is not exactly understood, a redirect, a timeout
// and a missing key all end in [ErrUnavailable], and nothing is issued.
//
// # Request
//
// POST with Content-Type application/json and a body like
//
//	{"profile":"corp","protocol":"scep","transaction":"4F2C","identity":"printer-7","subject":"CN=printer-7,O=Example",
//	 "sans":["DNS:printer-7.example.com"],"sid":"",
//	 "csr_sha256":"<64 hex digits>","source":"192.0.2.7","renewal":false}
//
// identity, subject, sans, sid (the Windows account it asks for, "" if none) and transaction are the
// device's own words; source is where the request came from.
//
// It is signed as Standard Webhooks 1.0 says (https://www.standardwebhooks.com), so that receivers can
// verify it with a library of their language:
//
//	webhook-id: 5f0c…                   a random UUID, another for every request
//	webhook-timestamp: 1794830400       seconds since 1970, UTC
//	webhook-signature: v1,<base64>      HMAC-SHA256 over id "." timestamp "." body
//
// A receiver compares signatures in constant time, refuses timestamps more than five minutes from its
// own and an id it has seen within them: then nothing can be replayed or altered. The key that these
// libraries want to be given is "whsec_" and the base64 of the key's bytes.
//
// # Answer
//
// Status 200, Content-Type application/json, at most 4 KiB, and exactly
//
//	{"allow": true}
//	{"allow": false, "reason": "not in the asset database"}
//
// reason is optional, one line of at most 256 bytes; it is for the audit log and never reaches the
// device. A no is given in such an answer too, not by a status.
//
// # Trust
//
// Who holds the webhook's TLS name and a certificate under the configured roots decides who passes this
// gate; it can let nobody past the challenge or the profile's policy. Who learns the key can ask the
// webhook in the box's name and learn its verdicts, nothing else.
package compliance

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	maxAnswer = 4 << 10 // bytes
	maxReason = 256     // bytes
	minKey    = 32      // bytes; Standard Webhooks allows 24 to 64
	maxKey    = 64
)

// Sentinels for [errors.Is].
var (
	ErrDenied      = errors.New("the compliance webhook said no")
	ErrUnavailable = errors.New("the compliance webhook gave no verdict")
)

// Denied is the webhook's no.
type Denied struct {
	Reason string // the webhook's words, one printable line, may be empty; not for the device
}

func (e *Denied) Error() string {
	if e.Reason == "" {
		return ErrDenied.Error()
	}
	return ErrDenied.Error() + ": " + e.Reason
}

// Unwrap makes a denial ErrDenied.
func (e *Denied) Unwrap() error { return ErrDenied }

// Unavailable is a question without a verdict: nothing may be issued. It holds neither key nor
// signature nor the URL, whose query may be a secret.
type Unavailable struct {
	What string // what is wrong, one sentence without stop
	Mend string // what to do
	Err  error  // what lies beneath, for the log; may be nil
}

func (e *Unavailable) Error() string {
	s := e.What + "; " + e.Mend
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap makes it ErrUnavailable, and what lies beneath: a context's end among them.
func (e *Unavailable) Unwrap() []error {
	if e.Err == nil {
		return []error{ErrUnavailable}
	}
	return []error{ErrUnavailable, e.Err}
}

// Config is what a [Hook] needs.
type Config struct {
	URL string // https; a query is kept, user names and fragments are refused
	// Key returns the key of the signatures, 32 to 64 bytes, which are neither kept nor changed. It is
	// called for every request, so that a key may be entered or replaced while the box runs.
	Key     func() ([]byte, error)
	Roots   *x509.CertPool   // TLS roots; nil means the system's
	Timeout time.Duration    // of one question, default 5 s
	Now     func() time.Time // default time.Now
}

// Hook is one webhook. It is safe for concurrent use.
type Hook struct {
	url     string
	host    string
	key     func() ([]byte, error)
	client  *http.Client
	timeout time.Duration
	now     func() time.Time
}

// New checks the configuration and contacts nobody. Its errors say what to write instead and never
// quote the URL.
func New(c Config) (*Hook, error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Fragment != "" || u.Opaque != "" {
		return nil, errors.New("the compliance webhook's URL is not an https URL without user and fragment; write https://HOST/PATH")
	}
	if c.Key == nil {
		return nil, errors.New("the compliance webhook has no key; enter one")
	}
	if c.Timeout < 0 {
		return nil, errors.New("the compliance webhook's timeout is negative; leave it out for 5s")
	}
	h := &Hook{url: u.String(), host: u.Host, key: c.Key, timeout: c.Timeout, now: c.Now}
	if h.timeout == 0 {
		h.timeout = 5 * time.Second
	}
	if h.now == nil {
		h.now = time.Now
	}
	h.client = &http.Client{
		// A redirect would carry the question elsewhere: its status is an answer like any other.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{ // of our own: no proxy from the environment
			TLSClientConfig: &tls.Config{RootCAs: c.Roots, MinVersion: tls.VersionTLS12},
			// A connection for each question: one that the server has just closed would refuse a device.
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: 16 << 10,
		},
	}
	return h, nil
}

// Request is one question.
type Request struct {
	Profile     string
	Protocol    string // "scep", "est"
	Transaction string
	Identity    string     // [pki.Request.Identity]
	Subject     string     // the whole, [pki.FormatDN]
	SANs        []string   // in the order of the certificate that would be issued
	SID         string     // the Windows account it asks for, "" if none
	CSR         [32]byte   // SHA-256 of the request's DER
	Source      netip.Addr // the zero Addr is sent as an empty string
	Renewal     bool
}

// question is the body. Its members are a promise to receivers: add, never change.
type question struct {
	Profile     string   `json:"profile"`
	Protocol    string   `json:"protocol"`
	Transaction string   `json:"transaction"`
	Identity    string   `json:"identity"`
	Subject     string   `json:"subject"`
	SANs        []string `json:"sans"`
	SID         string   `json:"sid"`
	CSRSHA256   string   `json:"csr_sha256"`
	Source      string   `json:"source"`
	Renewal     bool     `json:"renewal"`
}

// Check asks. Nil is a yes, [*Denied] the webhook's no, [*Unavailable] everything else.
func (h *Hook) Check(ctx context.Context, r Request) error {
	q := question{
		Profile: r.Profile, Protocol: r.Protocol, Transaction: r.Transaction, Identity: r.Identity, Subject: r.Subject, SID: r.SID,
		SANs: append([]string{}, r.SANs...), CSRSHA256: hex.EncodeToString(r.CSR[:]), Renewal: r.Renewal,
	}
	if r.Source.IsValid() {
		q.Source = r.Source.Unmap().String()
	}
	body, err := json.Marshal(q)
	if err != nil {
		return &Unavailable{What: "encoding the question to the compliance webhook", Mend: "report this as a defect", Err: err}
	}
	key, err := h.key()
	if err != nil {
		return &Unavailable{What: "the compliance webhook's key cannot be had", Mend: "enter it again", Err: err}
	}
	if len(key) < minKey || len(key) > maxKey {
		return &Unavailable{What: "the compliance webhook's key has the wrong length", Mend: fmt.Sprintf("enter one of %d to %d bytes", minKey, maxKey)}
	}
	ctx, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, h.url, bytes.NewReader(body))
	if err != nil {
		return &Unavailable{What: "the compliance webhook's URL cannot be used", Mend: "write another"}
	}
	post.Header.Set("Content-Type", "application/json")
	post.Header.Set("Accept", "application/json")
	post.Header.Set("User-Agent", "Signet")
	sign(post.Header, key, newID(), h.now(), body)
	answer, err := h.client.Do(post)
	if err != nil {
		return h.silent(err)
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	if err == nil {
		err = ctx.Err() // a server that sees us leave may still end its answer half-way, and tidily
	}
	if err != nil {
		return h.silent(err)
	}
	if answer.StatusCode != http.StatusOK {
		return h.wrong(fmt.Sprintf("answered with status %d", answer.StatusCode))
	}
	if kind, _, err := mime.ParseMediaType(answer.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return h.wrong("did not answer with application/json")
	}
	allow, reason, err := decode(b)
	if err != nil {
		return h.wrong("gave an answer that is not understood (" + err.Error() + ")")
	}
	if !allow {
		return &Denied{Reason: reason}
	}
	return nil
}

func (h *Hook) silent(err error) error {
	var u *url.Error // its text repeats the whole URL
	if errors.As(err, &u) {
		err = u.Err
	}
	return &Unavailable{What: "no answer from the compliance webhook at " + h.host,
		Mend: "see that it runs and that the box reaches and trusts it; then let the device try again", Err: err}
}

func (h *Hook) wrong(what string) error {
	return &Unavailable{What: "the compliance webhook at " + h.host + " " + what,
		Mend: `let it answer with status 200 and {"allow": true} or {"allow": false, "reason": "…"}`}
}

// sign sets the headers of Standard Webhooks 1.0.
func sign(h http.Header, key []byte, id string, now time.Time, body []byte) {
	timestamp := strconv.FormatInt(now.Unix(), 10)
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(id + "." + timestamp + "."))
	mac.Write(body)
	h.Set("Webhook-Id", id)
	h.Set("Webhook-Timestamp", timestamp)
	h.Set("Webhook-Signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
}

// decode reads the answer: an object with allow, a bool, and at most reason, a string, each once and
// so spelt. [json.Unmarshal] into a struct would take "Allow" for "allow", the last of several, and
// null for either. Its errors quote nothing of the answer.
func decode(b []byte) (allow bool, reason string, err error) {
	if len(b) > maxAnswer {
		return false, "", fmt.Errorf("longer than %d bytes", maxAnswer)
	}
	if !utf8.Valid(b) {
		return false, "", errors.New("not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return false, "", errors.New("no JSON object")
	}
	decided, explained := false, false
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return false, "", errors.New("broken JSON")
		}
		value, err := d.Token()
		if err != nil {
			return false, "", errors.New("broken JSON")
		}
		ok := false
		switch name {
		case "allow":
			twice := decided
			allow, decided = value.(bool)
			ok = decided && !twice
		case "reason":
			twice := explained
			reason, explained = value.(string)
			ok = explained && !twice && isLine(reason)
		}
		if !ok {
			return false, "", errors.New("a member other than one allow, a bool, and one reason, a short line")
		}
	}
	if end, err := d.Token(); err != nil || end != json.Delim('}') {
		return false, "", errors.New("broken JSON")
	}
	if _, err := d.Token(); err != io.EOF {
		return false, "", errors.New("something after the JSON object")
	}
	if !decided {
		return false, "", errors.New("no allow")
	}
	return allow, reason, nil
}

// isLine says that s can stand in the audit log: one printable line.
func isLine(s string) bool {
	return len(s) <= maxReason && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// newID is a random UUID (RFC 9562 §5.4).
func newID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
