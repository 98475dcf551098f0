package enroll

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"sync/atomic"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

// Errors of Revoke.
var (
	ErrReason    = errors.New("unknown reason, use one of RFC 5280 such as keyCompromise, superseded, cessationOfOperation or certificateHold")
	ErrRevoked   = errors.New("certificate is revoked already")
	ErrNotOnHold = errors.New("certificate is not on hold; only certificateHold can be taken back")
)

// reasonRelease takes a certificate off hold (removeFromCRL, RFC 5280 §5.3.1).
const reasonRelease = "removeFromCRL"

// crlValidity is the time from thisUpdate to nextUpdate. Half of it before the next list is signed
// leaves devices that fetch seldom, or a box that is switched off, some days.
const crlValidity = 7 * 24 * time.Hour

// issuerID is the SHA-256 of an issuing certificate, as in store.Intent.
type issuerID = [sha256.Size]byte

func idOf(i *pki.Issuer) issuerID { return sha256.Sum256(i.Certificate().Raw) }

// crl is the newest revocation list of one issuer.
type crl struct {
	stale atomic.Bool // something was revoked, released or burnt since it was read together

	mu    sync.Mutex // held while one is signed
	der   []byte     // nil: none was signed by this process
	renew time.Time  // it is signed anew from then on
}

// Revoke revokes a certificate by its serial (lower-case hex) for a reason, one of [pki.Reasons] by
// name: certificateHold can be followed by removeFromCRL, which takes it back, or by another reason for
// good. actor is the user who decided so. The next CRL says so.
func (e *Engine) Revoke(ctx context.Context, serial, reason, actor string) error {
	if !e.enter() {
		return ErrClosed
	}
	defer e.running.Done()
	if err := ctx.Err(); err != nil {
		return err
	}
	code, ok := pki.Reasons()[reason]
	if !ok && reason != reasonRelease {
		return fmt.Errorf("%w: %.40q", ErrReason, reason)
	}
	t, err := e.store.Transaction(serial)
	if err != nil {
		return revokeError(err)
	}
	now := e.now()
	rec := e.record(audit.CertificateRevoked, audit.OutcomeSuccess, now)
	rec.Actor, rec.Profile, rec.Identity, rec.Serial, rec.Reason = actor, t.Profile, t.Identity, serial, reason
	if reason == reasonRelease {
		rec.Action = audit.CertificateReleased
		err = e.store.Release(serial, rec)
	} else {
		err = e.store.Revoke(serial, code, now, rec)
	}
	if err != nil {
		return revokeError(err)
	}
	if c := e.crls[issuerID(t.Issuer)]; c != nil { // nil: an authority that is not configured any more
		c.stale.Store(true)
	}
	return nil
}

func revokeError(err error) error {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return ErrNoCertificate
	case errors.Is(err, store.ErrRevoked):
		return ErrRevoked
	case errors.Is(err, store.ErrNotOnHold):
		return ErrNotOnHold
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// Certificate returns a certificate the profile's authority issued, DER, by its issuer (a DER Name)
// and serial number; ErrNoCertificate where there is none.
func (e *Engine) Certificate(profile string, issuer []byte, serial *big.Int) ([]byte, error) {
	if !e.enter() {
		return nil, ErrClosed
	}
	defer e.running.Done()
	p, ok := e.profiles[profile]
	if !ok {
		return nil, ErrUnknownProfile
	}
	if serial.Sign() <= 0 || serial.BitLen() > 160 || !bytes.Equal(issuer, p.Issuer.Certificate().RawSubject) {
		return nil, ErrNoCertificate
	}
	t, err := e.store.Transaction(serialText(serial))
	if errors.Is(err, store.ErrNotFound) {
		return nil, ErrNoCertificate
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	id := idOf(p.Issuer)
	if t.State != store.Issued || !bytes.Equal(t.Issuer, id[:]) {
		return nil, ErrNoCertificate
	}
	return t.Certificate, nil
}

// IsRevoked reports whether this box had that certificate signed and it is revoked, on hold, or of a
// serial that was burnt. What was signed decides and not the signature under it: whoever holds a
// certificate can write an ECDSA signature in a second way that verifies as well.
func (e *Engine) IsRevoked(cert *x509.Certificate) (bool, error) {
	t, err := e.store.Transaction(serialText(cert.SerialNumber))
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return bytes.Equal(t.Template, cert.RawTBSCertificate) && (t.State != store.Issued || t.Revoked()), nil
}

// CRL returns the current revocation list of the profile's authority, DER. It holds the revoked
// certificates and, without a reason, the serials that were burnt; what has ended stays until one list
// made after its end. It is signed when it is asked for: the first time, after a revocation, and when
// half its time is over.
func (e *Engine) CRL(ctx context.Context, profile string) ([]byte, error) {
	if !e.enter() {
		return nil, ErrClosed
	}
	defer e.running.Done()
	p, ok := e.profiles[profile]
	if !ok {
		return nil, ErrUnknownProfile
	}
	now := e.now()
	if err := e.checkClock(now); err != nil {
		return nil, err
	}
	c := e.crls[idOf(p.Issuer)]
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if c.der != nil && now.Before(c.renew) && !c.stale.Load() {
		return c.der, nil
	}
	if err := e.signCRL(c, p.Issuer, now); err != nil {
		c.stale.Store(true)
		return nil, err
	}
	return c.der, nil
}

// signCRL replaces c by a list of what is revoked now. The caller holds c.mu.
func (e *Engine) signCRL(c *crl, issuer *pki.Issuer, now time.Time) error {
	c.stale.Store(false) // before reading: what is revoked from here on makes it stale again
	id := idOf(issuer)
	last, err := e.store.LastCRL(id)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	revoked, err := e.store.Revoked(id)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	thisUpdate := now.UTC().Truncate(time.Second)
	list := pki.CRL{Number: last.Number + 1, ThisUpdate: thisUpdate, NextUpdate: thisUpdate.Add(crlValidity)}
	for _, r := range revoked {
		list.Revoked = append(list.Revoked, pki.RevokedSerial{Serial: r.Serial, At: r.At, Reason: r.Reason})
	}
	der, err := issuer.SignCRL(list)
	if err != nil {
		if e.isBusy(err) {
			return fmt.Errorf("%w: %w", ErrBusy, err)
		}
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	rec := e.record(audit.CRLSigned, audit.OutcomeSuccess, now)
	rec.Actor, rec.Identity = audit.ActorBox, pki.FormatDN(issuer.Certificate().RawSubject)
	rec.Reason = fmt.Sprintf("number %d, %d entries", list.Number, len(list.Revoked))
	recorded := store.CRL{Number: list.Number, ThisUpdate: list.ThisUpdate, NextUpdate: list.NextUpdate}
	if err := e.store.StoreCRL(id, recorded, revoked, rec); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	c.der, c.renew = der, thisUpdate.Add(crlValidity/2)
	return nil
}
