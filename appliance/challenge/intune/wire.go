package intune

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const mendPermission = "grant the app registration Intune's scep_challenge_provider and Graph's Application.Read.All as application permissions, with admin consent"

const (
	maxAnswer  = 1 << 20         // bytes of an answer: Graph's list is some 10 KiB, the others far less
	maxBackoff = 8 * time.Second // between two attempts; a service that asks for more is given up
)

// retry runs one attempt after the other until there is a verdict, an error that another attempt would
// not change, or the end of attempts or time.
func (c *Client) retry(ctx context.Context, activity string, attempt func() error) error {
	wait := c.backoff
	for n := 1; ; n++ {
		err := attempt()
		var e *Error
		if err == nil || !errors.As(err, &e) || !e.retry || n >= c.attempts || e.after > maxBackoff {
			return err
		}
		pause := max(e.after, wait/2+mrand.N(wait/2+1))
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < pause {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return &Error{What: "the call to Intune was given up", Mend: "let the device try again", Activity: activity, Err: context.Cause(ctx)}
		}
		wait = min(2*wait, maxBackoff)
	}
}

// exchange sends one request and reads the whole answer within the time of one attempt. who is named
// in errors.
func (c *Client) exchange(ctx context.Context, who, activity string, r *http.Request) (int, http.Header, []byte, error) {
	attempt, cancel := context.WithTimeout(ctx, c.attempt)
	defer cancel()
	r = r.WithContext(attempt)
	r.Header.Set("Accept", "application/json")
	r.Header.Set("User-Agent", c.caller)
	r.Header.Set("client-request-id", activity)
	failed := func(err error) error {
		var u *url.Error // its text repeats the whole URL
		if errors.As(err, &u) {
			err = u.Err
		}
		return &Error{
			What:     "no answer from " + who + " at " + r.URL.Host,
			Mend:     "let the box reach it over HTTPS (DNS, firewall, TLS inspection, clock) and let the device try again",
			Activity: activity, Err: err, retry: ctx.Err() == nil,
		}
	}
	answer, err := c.http.Do(r)
	if err != nil {
		return 0, nil, nil, failed(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	if err == nil {
		err = attempt.Err() // a server that sees us leave may still end its answer half-way, and tidily
	}
	if err != nil {
		return 0, nil, nil, failed(err)
	}
	if len(body) > maxAnswer {
		return 0, nil, nil, &Error{What: fmt.Sprintf("the answer of %s is longer than %d bytes", who, maxAnswer),
			Mend: "see that nothing on the way answers in its place", Activity: activity}
	}
	return answer.StatusCode, answer.Header, body, nil
}

// statusError is an answer that is no success.
func statusError(who, activity string, status int, header http.Header, mend string) *Error {
	e := &Error{What: fmt.Sprintf("%s answered with status %d", who, status), Mend: mend, Activity: activity}
	switch {
	case status >= 300 && status < 400:
		e.Mend = "see that nothing on the way redirects it: redirects are not followed"
	case status == http.StatusTooManyRequests || status == http.StatusRequestTimeout || status >= 500:
		e.Mend, e.retry = "let the device try again later", true
		if seconds, err := strconv.Atoi(header.Get("Retry-After")); err == nil && seconds > 0 {
			e.after = time.Duration(min(seconds, 3600)) * time.Second
		}
	}
	return e
}

func notUnderstood(who, activity string, err error) *Error {
	return &Error{What: "the answer of " + who + " is not understood", Mend: "see that nothing on the way answers in its place; if not, the service has changed: update the box",
		Activity: activity, Err: err}
}

// post sends one action and reads its verdict.
func (c *Client) post(ctx context.Context, path, activity string, payload []byte) error {
	base, err := c.locate(ctx, activity)
	if err != nil {
		return err
	}
	token, err := c.token(ctx, c.intuneToken, c.scope, activity)
	if err != nil {
		return err
	}
	r, err := http.NewRequest(http.MethodPost, base+"/"+path, bytes.NewReader(payload))
	if err != nil {
		return notUnderstood("Microsoft Graph", activity, nil)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", "application/json; charset=utf-8")
	r.Header.Set("api-version", serviceVersion)
	r.Header["UserAgent"] = []string{c.caller} // so spelt by Microsoft's Java library
	status, header, body, err := c.exchange(ctx, "Intune", activity, r)
	if err != nil {
		c.service.drop(base) // the service may have moved
		return err
	}
	switch {
	case status == http.StatusUnauthorized:
		c.intuneToken.drop(token)
		e := statusError("Intune", activity, status, header, mendPermission)
		e.credential, e.retry = true, true // once more with a fresh token
		return e
	case status == http.StatusForbidden:
		c.intuneToken.drop(token) // a token keeps the permissions it was made with
		e := statusError("Intune", activity, status, header, mendPermission)
		e.credential = true
		return e
	case status < 200 || status > 299:
		if status != http.StatusTooManyRequests {
			c.service.drop(base)
		}
		return statusError("Intune", activity, status, header, "read the service's health in the Intune admin center and let the device try again")
	}
	return verdict(body, activity)
}

// verdict reads {"code": "...", "errorDescription": "..."}; other members are ignored, as Microsoft's
// library does, but code has to be there once and exactly so spelt.
func verdict(body []byte, activity string) error {
	m, err := members(body)
	if err != nil {
		return notUnderstood("Intune", activity, err)
	}
	var code string
	if err := text(m, "code", &code); err != nil {
		return notUnderstood("Intune", activity, err)
	}
	if Code(code) == Success {
		return nil
	}
	var description string
	_ = text(m, "errorDescription", &description) // for people: no reason to doubt the no
	if !word(code) {
		code = string(Unknown)
	}
	return &Rejected{Code: Code(code), Description: clean(description), Activity: activity}
}

// word says that a code is short and of letters and digits, fit for logs and metrics.
func word(s string) bool {
	return len(s) > 0 && len(s) <= 64 && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9')
	})
}

// locate finds the tenant's validation service through Microsoft Graph.
func (c *Client) locate(ctx context.Context, activity string) (string, error) {
	return c.service.get(ctx, activity, c.now, func() (string, time.Duration, error) {
		token, err := c.token(ctx, c.graphToken, c.graphScope, activity)
		if err != nil {
			return "", 0, err
		}
		r, err := http.NewRequest(http.MethodGet, c.graphURL, nil)
		if err != nil {
			return "", 0, notUnderstood("Microsoft Graph", activity, nil)
		}
		r.Header.Set("Authorization", "Bearer "+token)
		status, header, body, err := c.exchange(ctx, "Microsoft Graph", activity, r)
		if err != nil {
			return "", 0, err
		}
		if status != http.StatusOK {
			e := statusError("Microsoft Graph", activity, status, header, mendPermission)
			if status == http.StatusUnauthorized || status == http.StatusForbidden {
				c.graphToken.drop(token)
				e.credential, e.retry = true, status == http.StatusUnauthorized
			}
			return "", 0, e
		}
		base, err := findService(body)
		if errors.Is(err, errNoService) {
			c.graphToken.drop(token)
			return "", 0, &Error{What: "the tenant lists no " + serviceName, Mend: mendPermission, Activity: activity, credential: true}
		}
		if err != nil {
			return "", 0, notUnderstood("Microsoft Graph", activity, err)
		}
		return base, 24 * time.Hour, nil
	})
}

var errNoService = errors.New("no " + serviceName)

// findService reads {"value": [{"providerName": "...", "uri": "https://..."}, ...]}. Names are compared
// without case and the first wins, as in Microsoft's Java library.
func findService(body []byte) (string, error) {
	m, err := members(body)
	if err != nil {
		return "", err
	}
	var list []json.RawMessage
	if err := json.Unmarshal(m["value"], &list); m["value"] == nil || err != nil {
		return "", errors.New("no list of endpoints")
	}
	for _, entry := range list {
		m, err := members(entry)
		if err != nil {
			return "", err
		}
		var name, uri string
		if text(m, "providerName", &name) != nil || !strings.EqualFold(name, serviceName) {
			continue
		}
		if err := text(m, "uri", &uri); err != nil {
			return "", err
		}
		if !cleanURL(uri) {
			return "", errors.New("the address of " + serviceName + " is no https URL")
		}
		return strings.TrimRight(uri, "/"), nil
	}
	return "", errNoService
}

// members splits a JSON object by its members' exact names; [json.Unmarshal] into a struct would take
// "Code" for "code" and the last of several.
func members(b []byte) (map[string]json.RawMessage, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return nil, errors.New("no JSON object")
	}
	m := map[string]json.RawMessage{}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, errors.New("broken JSON")
		}
		key, ok := name.(string)
		if _, twice := m[key]; !ok || twice {
			return nil, errors.New("a member twice")
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, errors.New("broken JSON")
		}
		m[key] = value
	}
	if end, err := d.Token(); err != nil || end != json.Delim('}') {
		return nil, errors.New("broken JSON")
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("something after the JSON object")
	}
	return m, nil
}

// text reads a member that has to be a string.
func text(m map[string]json.RawMessage, name string, s *string) error {
	v := m[name]
	if len(v) == 0 || v[0] != '"' || json.Unmarshal(v, s) != nil {
		return fmt.Errorf("%s is missing or no string", name)
	}
	return nil
}

// newID is a random UUID (RFC 9562 §5.4), the form of Microsoft's activity and JWT IDs.
func newID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// seconds reads a member that has to be a whole number of seconds, at most maxTokenAge; Entra's older
// endpoints write it as a string.
func seconds(m map[string]json.RawMessage, name string) (time.Duration, error) {
	n, err := strconv.ParseInt(strings.Trim(string(m[name]), `"`), 10, 64)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("%s is missing or no number of seconds", name)
	}
	return time.Duration(min(n, int64(maxTokenAge/time.Second))) * time.Second, nil
}
