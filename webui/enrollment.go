package webui

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"signet.internal/appliance/enroll"
	"signet.internal/appliance/store"
)

// PendingList is the body of GET /api/v1/pending.
type PendingList struct {
	Pending []PendingRequest `json:"pending" doc:"oldest first"`
}

// PendingRequest is a request that waits for a person. Identity, subject, names and transaction are what the
// sender wrote.
type PendingRequest struct {
	ID          string    `json:"id"`
	Profile     string    `json:"profile"`
	Protocol    string    `json:"protocol"`
	Transaction string    `json:"transaction"`
	Identity    string    `json:"identity"`
	Subject     string    `json:"subject" doc:"the whole subject, in the order it is sent"`
	Names       string    `json:"names,omitempty" doc:"every other name it asks for"`
	Source      string    `json:"source"`
	CSRSHA256   string    `json:"csr_sha256" doc:"of the certification request, lower-case hex"`
	Renews      string    `json:"renews,omitempty" doc:"serial of the certificate it renews"`
	Since       time.Time `json:"since"`
}

// DenyRequest is the body of POST /api/v1/pending/{id}/deny.
type DenyRequest struct {
	Reason string `json:"reason" doc:"told to the device and written down; at most 200 characters"`
}

// RevokeRequest is the body of POST /api/v1/certificates/{serial}/revoke.
type RevokeRequest struct {
	Reason string `json:"reason" doc:"of RFC 5280 §5.3.1, such as keyCompromise, superseded, cessationOfOperation or unspecified; certificateHold can be taken back by removeFromCRL"`
}

// Decision answers what a person decided.
type Decision struct {
	ID      string `json:"id,omitempty" doc:"of the request"`
	Serial  string `json:"serial,omitempty" doc:"of the certificate, lower-case hex"`
	Outcome string `json:"outcome" doc:"what was done: \"approved\", \"denied\", \"revoked\", \"released\", \"installed\" or \"dropped\""`
}

// ChallengeRequest is the body of POST /api/v1/challenges.
type ChallengeRequest struct {
	Profile string   `json:"profile" doc:"one that takes one-time challenges"`
	CN      string   `json:"cn" doc:"the common name of the one request it is good for"`
	SANs    []string `json:"sans,omitempty" doc:"the names of that request, exactly these; absent leaves them to the profile"`
	TTL     string   `json:"ttl,omitempty" doc:"such as 30m or 24h, at most the profile's; absent: the profile's"`
}

// ChallengeResponse holds a one-time challenge. It is nowhere else and never shown again.
type ChallengeResponse struct {
	Challenge string    `json:"challenge"`
	Profile   string    `json:"profile"`
	CN        string    `json:"cn"`
	Expires   time.Time `json:"expires"`
}

// Mint is an order for a one-time challenge.
type Mint struct {
	Profile string
	CN      string
	SANs    []string      // nil: not bound
	TTL     time.Duration // 0: the profile's
	Actor   string        // user who orders it
	Source  string        // address of the order
}

// Refusals of what a Config's functions are asked for.
var (
	// ErrNoProfile: the site has no such profile.
	ErrNoProfile = errors.New("there is no such profile")
	// ErrNoOneTime: the profile takes no one-time challenges.
	ErrNoOneTime = errors.New("the profile takes no one-time challenges")
	// ErrNoSigned: the profile takes no signed challenges.
	ErrNoSigned = errors.New("the profile takes no signed challenges")
)

// OrderError says what is wrong with an order.
type OrderError struct{ Err error }

func (e *OrderError) Error() string { return e.Err.Error() }
func (e *OrderError) Unwrap() error { return e.Err }

const (
	maxReason = 200 // characters; fits a CertRep's failInfoText, and of most scripts an audit record
	maxName   = 256
	maxNames  = 64
)

func (c *console) pending() ([]PendingRequest, error) {
	held, err := c.cfg.Enroll.PendingRequests()
	if err != nil {
		return nil, err
	}
	list := []PendingRequest{}
	for _, h := range held {
		list = append(list, PendingRequest{
			ID: h.ID, Profile: h.Profile, Protocol: h.Protocol, Transaction: h.Transaction, Identity: h.Identity,
			Subject: h.Subject, Names: h.Names, Source: h.Source, CSRSHA256: h.CSRSHA256, Renews: h.Renews, Since: h.Since.UTC(),
		})
	}
	return list, nil
}

func (c *console) apiPending(w http.ResponseWriter, r *http.Request, _ principal) error {
	list, err := c.pending()
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, PendingList{list})
	return nil
}

func (c *console) apiApprove(w http.ResponseWriter, r *http.Request, who principal) error {
	id := r.PathValue("id")
	if err := c.approve(r, id, who); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, Decision{ID: id, Outcome: "approved"})
	return nil
}

// approve carries a decision to its end also where the person who made it goes away.
func (c *console) approve(r *http.Request, id string, who principal) error {
	return c.cfg.Enroll.Approve(context.WithoutCancel(r.Context()), id, who.user)
}

func (c *console) apiDeny(w http.ResponseWriter, r *http.Request, who principal) error {
	var in DenyRequest
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	id := r.PathValue("id")
	if err := c.deny(r, id, in.Reason, who); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, Decision{ID: id, Outcome: "denied"})
	return nil
}

func (c *console) deny(r *http.Request, id, reason string, who principal) error {
	reason = strings.TrimSpace(reason)
	if reason == "" || utf8.RuneCountInString(reason) > maxReason {
		return &inputError{"reason", "the reason is empty or longer than 200 characters", "say in a few words why; the device's log shows it"}
	}
	return c.cfg.Enroll.Deny(context.WithoutCancel(r.Context()), id, who.user, reason)
}

// releasing is the reason that takes a certificate off hold (RFC 5280 §5.3.1).
const releasing = "removeFromCRL"

func (c *console) apiRevoke(w http.ResponseWriter, r *http.Request, who principal) error {
	var in RevokeRequest
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	serial, err := serialOf(r)
	if err != nil {
		return err
	}
	if in.Reason == "" {
		return &inputError{"reason", "a reason is missing", "write one such as keyCompromise, superseded, cessationOfOperation or unspecified"}
	}
	if err := c.cfg.Enroll.Revoke(context.WithoutCancel(r.Context()), serial, in.Reason, who.user); err != nil {
		return err
	}
	done := Decision{Serial: serial, Outcome: "revoked"}
	if in.Reason == releasing {
		done.Outcome = "released"
	}
	writeJSON(w, http.StatusOK, mediaJSON, done)
	return nil
}

// serialOf reads the serial in a path, also as openssl prints it: upper case, colons, leading zeros.
func serialOf(r *http.Request) (string, error) {
	serial := strings.ToLower(strings.ReplaceAll(r.PathValue("serial"), ":", ""))
	if strings.Trim(serial, "0") == "" || len(serial) > 64 || strings.Trim(serial, "0123456789abcdef") != "" {
		return "", &inputError{"serial", "the serial is not a hexadecimal number", "write it as the audit log shows it, in hex"}
	}
	serial = strings.TrimLeft(serial, "0")
	if len(serial)%2 == 1 {
		serial = "0" + serial
	}
	return serial, nil
}

func (c *console) apiMint(w http.ResponseWriter, r *http.Request, who principal) error {
	var in ChallengeRequest
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	m := Mint{Profile: in.Profile, CN: in.CN, SANs: in.SANs, Actor: who.user, Source: c.cfg.Source(r).String()}
	if m.CN == "" || len(m.CN) > maxName {
		return &inputError{"cn", "the common name is empty or longer than 256 bytes", "write the common name the device will ask for"}
	}
	if len(m.SANs) > maxNames {
		return &inputError{"sans", "more than 64 names", "leave sans out; the profile still limits the names"}
	}
	if in.TTL != "" {
		var err error
		if m.TTL, err = time.ParseDuration(in.TTL); err != nil || m.TTL <= 0 {
			return &inputError{"ttl", "ttl is not a duration", "write it in hours, minutes and seconds such as 24h or 30m"}
		}
	}
	secret, expires, err := c.mint(who, m)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, ChallengeResponse{Challenge: secret, Profile: m.Profile, CN: m.CN, Expires: expires.UTC()})
	return nil
}

func (c *console) apiMetrics(w http.ResponseWriter, r *http.Request, _ principal) error {
	c.cfg.Metrics.ServeHTTP(w, r)
	return nil
}

// IssuedCertificate is the body of GET /api/v1/certificates/{serial}.
type IssuedCertificate struct {
	Serial   string       `json:"serial"`
	Profile  string       `json:"profile"`
	Protocol string       `json:"protocol"`
	Identity string       `json:"identity"`
	State    string       `json:"state" doc:"\"issued\", \"revoked\"; or what became of a serial without a certificate: \"begun\", \"failed\", \"lost\""`
	Reason   string       `json:"reason,omitempty" doc:"of the revocation, by its name in RFC 5280 §5.3.1"`
	Revoked  string       `json:"revoked_at,omitempty" doc:"RFC 3339"`
	Renews   string       `json:"renews,omitempty" doc:"serial of the certificate it renewed"`
	PEM      string       `json:"pem,omitempty" doc:"absent while it is withheld because Intune was not told yet"`
	Details  *Certificate `json:"certificate,omitempty"`
}

func (c *console) apiCertificate(w http.ResponseWriter, r *http.Request, _ principal) error {
	serial, err := serialOf(r)
	if err != nil {
		return err
	}
	t, err := c.cfg.Store.Transaction(serial)
	if errors.Is(err, store.ErrNotFound) {
		return enroll.ErrNoCertificate
	}
	if err != nil {
		return err
	}
	out := IssuedCertificate{Serial: serial, Profile: t.Profile, Protocol: t.Protocol, Identity: t.Identity, State: string(t.State), Renews: t.Supersedes}
	if t.Revoked() {
		out.State, out.Revoked = "revoked", t.RevokedAt.UTC().Format(time.RFC3339)
		out.Reason = reasonName(t.Reason)
	}
	if len(t.Certificate) > 0 {
		cert, err := x509.ParseCertificate(t.Certificate)
		if err != nil {
			return err
		}
		if out.Details, err = describe(cert); err != nil {
			return err
		}
		if t.Withheld {
			writeJSON(w, http.StatusOK, mediaJSON, out)
			return nil
		}
		out.PEM = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: t.Certificate}))
	}
	writeJSON(w, http.StatusOK, mediaJSON, out)
	return nil
}
