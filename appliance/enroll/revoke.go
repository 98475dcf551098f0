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

// reasonSuperseded is the CRLReason of a certificate that was revoked because it was renewed.
const reasonSuperseded = 4

// reasonRelease takes a certificate off hold (removeFromCRL, RFC 5280 §5.3.1).
const reasonRelease = "removeFromCRL"

// crlValidity is the time from thisUpdate to nextUpdate where Config.CRLValidity does not say. Half of
// it before the next list is signed leaves devices that fetch seldom, or a box that is switched off,
// some days.
const crlValidity = 7 * 24 * time.Hour

// crlRest is how long after a list was signed the next is: what is revoked meanwhile shares it, however
// many ask.
const crlRest = 3 * time.Second

// issuerID is what [pki.Issuer.ID] returns, as in store.Intent.
type issuerID = [sha256.Size]byte

// isFrom reports whether an issuer was to sign a transaction's certificate.
func isFrom(t store.Transaction, i *pki.Issuer) bool {
	id := i.ID()
	return bytes.Equal(t.Issuer, id[:])
}

// crl is the newest revocation list of one issuer.
type crl struct {
	stale atomic.Bool // something was revoked, released or burnt since it was read together

	mu     sync.Mutex // held while one is signed
	newest CRL        // DER is nil: none was signed by this process
	signed time.Time
	renew  time.Time // it is signed anew from then on
}

// CRL is a revocation list of an issuer (RFC 5280 §5).
type CRL struct {
	DER        []byte
	Number     uint64 // cRLNumber
	ThisUpdate time.Time
	NextUpdate time.Time
}

// crlOf returns the list of an issuer.
func (e *Engine) crlOf(id issuerID) *crl {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.crls[id]
	if c == nil {
		c = &crl{}
		e.crls[id] = c
	}
	return c
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
	if len(t.Issuer) == sha256.Size {
		e.crlOf(issuerID(t.Issuer)).stale.Store(true)
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
	if serial.Sign() <= 0 || serial.BitLen() > 160 {
		return nil, ErrNoCertificate
	}
	t, err := e.store.Transaction(serialText(serial))
	if errors.Is(err, store.ErrNotFound) {
		return nil, ErrNoCertificate
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	named := p.Issuers().find(func(i *pki.Issuer) bool {
		return bytes.Equal(i.Certificate().RawSubject, issuer) && isFrom(t, i)
	})
	if t.State != store.Issued || t.Withheld || named == nil {
		return nil, ErrNoCertificate
	}
	return t.Certificate, nil
}

// IsRevoked reports whether a certificate proves nothing any more: whether this box had it signed and it
// is revoked, on hold, or of a serial that was burnt, or whether any certificate of its key was revoked
// because others have the key. What was signed decides and not the signature under it: whoever holds a
// certificate can write an ECDSA signature in a second way that verifies as well.
func (e *Engine) IsRevoked(cert *x509.Certificate) (bool, error) {
	spki := cert.RawSubjectPublicKeyInfo
	if canonical, err := x509.MarshalPKIXPublicKey(cert.PublicKey); err == nil { // as in requests, see pki.ParseRequest
		spki = canonical
	}
	if isCompromised, err := e.isCompromised(spki); err != nil || isCompromised {
		return isCompromised, err
	}
	t, err := e.store.Transaction(serialText(cert.SerialNumber))
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return bytes.Equal(t.Template, cert.RawTBSCertificate) && (t.State != store.Issued || t.Revoked()), nil
}

// CRL returns the current revocation list of the profile's authority, of its active generation; see
// IssuerCRL. DER.
func (e *Engine) CRL(ctx context.Context, profile string) ([]byte, error) {
	if !e.enter() {
		return nil, ErrClosed
	}
	defer e.running.Done()
	p, ok := e.profiles[profile]
	if !ok {
		return nil, ErrUnknownProfile
	}
	issuer := p.Issuers().Active
	if issuer == nil {
		return nil, ErrNoAuthority
	}
	list, err := e.issuerCRL(ctx, issuer)
	return list.DER, err
}

// IssuerCRL returns the current revocation list of one generation of an authority. It holds the revoked
// certificates and, without a reason, the serials that were burnt; what has ended stays until one list
// made after its end. It is signed when it is asked for: the first time, after a revocation (but not
// within crlRest of the last), and when half its time is over.
func (e *Engine) IssuerCRL(ctx context.Context, issuer *pki.Issuer) (CRL, error) {
	if !e.enter() {
		return CRL{}, ErrClosed
	}
	defer e.running.Done()
	return e.issuerCRL(ctx, issuer)
}

func (e *Engine) issuerCRL(ctx context.Context, issuer *pki.Issuer) (CRL, error) {
	now := e.now()
	if err := e.checkClock(now); err != nil {
		return CRL{}, err
	}
	if err := e.gate(); err != nil {
		return CRL{}, err
	}
	c := e.crlOf(issuer.ID())
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return CRL{}, err
	}
	isResting := now.Sub(c.signed).Abs() < crlRest
	if c.newest.DER != nil && now.Before(c.renew) && (isResting || !c.stale.Load()) {
		return c.newest, nil
	}
	if err := e.signCRL(c, issuer, now); err != nil {
		c.stale.Store(true)
		return CRL{}, err
	}
	return c.newest, nil
}

// signCRL replaces c by a list of what is revoked now. The caller holds c.mu.
func (e *Engine) signCRL(c *crl, issuer *pki.Issuer, now time.Time) error {
	c.stale.Store(false) // before reading: what is revoked from here on makes it stale again
	id := issuer.ID()
	if err := e.store.Relist(id, now); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	number, err := e.store.NextCRL(id)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	revoked, err := e.store.Revoked(id)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	validity := crlValidity
	if e.crlValidity != nil {
		validity = e.crlValidity(issuer)
	}
	thisUpdate := now.UTC().Truncate(time.Second)
	list := pki.CRL{Number: number, ThisUpdate: thisUpdate, NextUpdate: thisUpdate.Add(validity)}
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
	c.newest = CRL{DER: der, Number: list.Number, ThisUpdate: list.ThisUpdate, NextUpdate: list.NextUpdate}
	c.signed, c.renew = now, thisUpdate.Add(validity/2)
	return nil
}
