package enroll

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"signet.internal/appliance/store"
)

// Status is what becomes of a certificate, as OCSP tells it (RFC 6960 §2.2).
type Status string

const (
	Good    Status = "good"
	Revoked Status = "revoked" // or on hold, or a serial that was burnt
	Unknown Status = "unknown" // never issued
)

// CertStatus is the status of a certificate.
type CertStatus struct {
	State    Status
	At       time.Time // of the revocation
	Reason   int       // of the revocation, CRLReason of RFC 5280 §5.3.1
	NotAfter time.Time // end of the certificate
}

// CertificateStatus returns the status of an issuer's certificate by its serial (lower-case hex). The
// issuer is named by [pki.Issuer.ID]. A serial that was burnt is revoked without reason:
// a signature may exist.
func (e *Engine) CertificateStatus(issuer [32]byte, serial string) (CertStatus, error) {
	if !e.enter() {
		return CertStatus{}, ErrClosed
	}
	defer e.running.Done()
	t, err := e.store.Transaction(serial)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return CertStatus{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err != nil || !bytes.Equal(t.Issuer, issuer[:]) {
		return CertStatus{State: Unknown}, nil
	}
	status := CertStatus{State: Unknown, NotAfter: t.NotAfter}
	switch {
	case t.State == store.Lost:
		status.State, status.At = Revoked, t.Decided
	case t.State == store.Issued && t.Revoked():
		status.State, status.At, status.Reason = Revoked, t.RevokedAt, t.Reason
	case t.State == store.Issued:
		status.State = Good
	}
	return status, nil
}

// Query asks for certificates. The zero value asks for the newest ones.
type Query struct {
	Identity string // its beginning, in any case; "" for any
	Serial   string // its beginning, lower-case hex; "" for any
	Profile  string // "" for any
	State    string // "active", "revoked", of these only those on "hold", "expired", or "all" or ""
	Limit    int    // at most so many; 0: 100, which is also the most
	After    string // what the call before returned as next
}

// CertInfo is a certificate in a list.
type CertInfo struct {
	Serial      string // lower-case hex
	Identity    string // as the sender wrote it
	Profile     string
	Protocol    string
	Issuer      [32]byte // see pki.Issuer.ID
	Issued      time.Time
	NotAfter    time.Time
	RevokedAt   time.Time // zero: not revoked
	Reason      int       // of the revocation, CRLReason of RFC 5280 §5.3.1
	Renews      string    // serial of the certificate it renews
	RenewedBy   string    // serial of the one that renewed it last
	Withheld    bool      // it is held back, see ErrWithheld
	Certificate []byte    // DER; nil while it is withheld
}

// maxListed is the most certificates one call of Certificates returns.
const maxListed = 100

// ErrQuery: a Query of Certificates is wrong.
var ErrQuery = errors.New("list is not one there is: state is active, revoked, hold, expired or all; go on where a call of the same list ended")

// Certificates lists certificates: by the beginning of their serial, else of their identity, else all,
// newest first. next is where to go on, "" at the end; one call may find fewer than there are, or none,
// because it looks at a bounded number only.
func (e *Engine) Certificates(q Query) (list []CertInfo, next string, err error) {
	if !e.enter() {
		return nil, "", ErrClosed
	}
	defer e.running.Done()
	in := store.Query{
		Serial: q.Serial, Identity: q.Identity, Profile: q.Profile, Now: e.now(), After: q.After, Limit: maxListed,
	}
	if q.Limit > 0 {
		in.Limit = min(q.Limit, maxListed)
	}
	switch q.State {
	case "", "all":
	case string(store.CertActive), string(store.CertRevoked), string(store.CertHeld), string(store.CertExpired):
		in.State = store.CertState(q.State)
	default:
		return nil, "", ErrQuery
	}
	found, next, err := e.store.Certificates(in)
	if errors.Is(err, store.ErrCursor) {
		return nil, "", ErrQuery
	}
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	for _, t := range found {
		list = append(list, certInfo(t))
	}
	return list, next, nil
}
