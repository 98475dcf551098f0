package enroll

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/challenge"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

// maxHeld is how many requests of one profile may wait for a person: more than anyone decides on one by
// one, and few enough that whoever knows a challenge fills neither the disk nor the list.
const maxHeld = 1000

// maxHeldSource is the same for one source, whatever the profiles.
const maxHeldSource = 50

// heldFor is how long requests wait where Profile.HeldFor does not say.
const heldFor = 7 * 24 * time.Hour

// maxShown is how many bytes of subject and names of a held request a person is shown. One with more is
// not held, so that nothing is approved unseen.
const maxShown = 2048

// ErrDecided: a held request was approved or denied before.
var ErrDecided = errors.New("request was decided on already")

// hold records x as a request that waits for a person.
func (e *Engine) hold(x *attempt, now time.Time) (*Result, error) {
	transaction := x.TransactionID
	if x.Protocol == ProtocolEST { // polled by sending the request again
		transaction = hex.EncodeToString(x.key[:])
	}
	poll, err := pollKey(x.Protocol, x.Profile, transaction, x.Proof.SignerSPKI)
	if err != nil {
		return nil, err
	}
	if n := len(pki.FormatDN(x.CSR.RawSubject)) + len(x.CSR.AllOtherNames()); n > maxShown {
		return nil, &pki.PolicyError{Rule: "approval", Value: fmt.Sprintf("names of %d bytes (at most %d are shown to who approves)", n, maxShown)}
	}
	kept, err := x.CSR.Keep()
	if err != nil {
		return nil, err
	}
	id := make([]byte, 8)
	rand.Read(id) // never fails (crypto/rand)
	signerKey := sha256.Sum256(x.Proof.SignerSPKI)
	h := store.Held{
		ID: hex.EncodeToString(id), Key: x.key, Poll: poll, Replay: x.replay(), Profile: x.Profile, Protocol: x.Protocol, Transaction: x.TransactionID,
		Operation: x.Operation, Identity: x.CSR.Identity(), Source: sourceText(x.Source), Group: sourceKey(x.Source).String(), SignerKey: signerKey[:], CSR: x.csrSum[:],
		Request: kept, Kind: string(x.verdict.Kind), Raw: x.Raw, Supersedes: x.supersedes, Guards: x.guards(), Since: now,
		Until: now.Add(cmp.Or(x.profile.HeldFor, heldFor)),
	}
	if x.renews != nil && x.supersedes == "" {
		h.Renews = x.renews.Raw
	}
	rec := e.recordOf(x, audit.RequestHeld, audit.OutcomePending, now)
	rec.Reason = x.reason()
	if err := e.store.Hold(h, store.HoldLimits{Profile: maxHeld, Source: maxHeldSource}, rec); err != nil {
		return nil, storeError(err)
	}
	return &Result{Pending: true, ID: h.ID}, nil
}

// Poll answers a device that asks again for a held request, by the key it made it with: with Pending,
// with the certificate until a day after it was issued, or with ErrDenied. Everything else is
// ErrNoRequest.
func (e *Engine) Poll(ctx context.Context, p Poll) (*Result, error) {
	if !e.enter() {
		return nil, ErrClosed
	}
	defer e.running.Done()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := e.gate(); err != nil {
		return nil, err
	}
	res, err := e.poll(p)
	if errors.Is(err, ErrUnknownProfile) || errors.Is(err, ErrNoRequest) {
		reason := "poll for a request that this key did not make"
		if errors.Is(err, ErrUnknownProfile) {
			reason = "unknown profile"
		}
		e.countRefusal(Refusal{Profile: p.Profile, Protocol: p.Protocol, Source: p.Source, TransactionID: p.TransactionID, Reason: reason})
	}
	return res, err
}

func (e *Engine) poll(p Poll) (*Result, error) {
	profile, ok := e.profiles[p.Profile]
	if !ok {
		return nil, ErrUnknownProfile
	}
	if profile.isOff() {
		return nil, ErrProfileOff
	}
	key, err := pollKey(p.Protocol, p.Profile, p.TransactionID, p.SignerSPKI)
	if err != nil {
		return nil, ErrNoRequest
	}
	h, err := e.store.HeldByPoll(key)
	if errors.Is(err, store.ErrNotFound) {
		return nil, ErrNoRequest
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	switch h.State {
	case store.Waiting:
		return &Result{Pending: true, ID: h.ID}, nil
	case store.Denied:
		return nil, denied(h)
	}
	t, err := e.store.Transaction(h.Serial)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if t.State == store.Issued {
		if res := stored(t, e.now()); res != nil && !t.Withheld {
			return res, nil
		}
		return nil, ErrNoRequest
	}
	return &Result{Pending: true, ID: h.ID}, nil // approved, and being signed just now
}

func denied(h store.Held) error {
	if h.Reason == "" {
		return ErrDenied
	}
	return fmt.Errorf("%w: %s", ErrDenied, h.Reason)
}

// PendingRequests lists the requests that wait for a person, oldest first. Who each is for is read from
// what will be issued, and not from what was written down of it.
func (e *Engine) PendingRequests() ([]PendingRequest, error) {
	if !e.enter() {
		return nil, ErrClosed
	}
	defer e.running.Done()
	waiting, err := e.store.Waiting()
	if err != nil {
		return nil, err
	}
	list := make([]PendingRequest, len(waiting))
	for i, h := range waiting {
		csr, err := pki.ParseKept(h.Request)
		if err != nil {
			return nil, fmt.Errorf("reading held request %s: %w", h.ID, err)
		}
		list[i] = pendingRequest(h, csr)
	}
	return list, nil
}

// Approve has a held request issued; actor is the user who decided so. The request is held against
// the profile as it is now: an error is a refusal after which the request still waits, as it does after
// ErrBusy and ErrUnavailable. ErrNoRequest: there is none of that id; ErrDecided: it does not wait.
func (e *Engine) Approve(ctx context.Context, id, actor string) error {
	if !e.enter() {
		return ErrClosed
	}
	defer e.running.Done()
	if err := e.gate(); err != nil {
		return err
	}
	now := e.now()
	if err := e.checkClock(now); err != nil {
		return err
	}
	h, err := e.waiting(id)
	if err != nil {
		return err
	}
	if err := e.lock(ctx, h.Key); err != nil {
		return err
	}
	defer e.unlock(h.Key)

	approved := e.heldRecord(h, audit.RequestApproved, audit.OutcomeSuccess, now)
	approved.Actor = actor
	refused := func(err error) error {
		approved.Outcome, approved.Reason = audit.OutcomeRefused, err.Error()
		return errors.Join(err, e.store.Append(approved))
	}
	x, err := e.resume(h)
	if err != nil {
		return refused(err)
	}
	approved.Reason = x.reason()
	prepared, err := e.prepare(ctx, x, now)
	if err != nil {
		return refused(err)
	}
	i := e.intent(x, prepared, now)
	i.SignerKey = h.SignerKey
	if newest, err := e.store.Newest(x.key); err == nil {
		i.After = newest.Serial
	} else if !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	approved.Serial = prepared.Serial()
	if err := e.store.Approve(id, actor, i, approved, e.begunRecord(x, prepared, now)); err != nil {
		return heldError(err)
	}
	_, err = e.issue(ctx, x, prepared)
	if err == nil {
		x.profile.Challenges.Decided(x.verdict, nil)
	}
	return err
}

// resume makes an attempt again of a held request.
func (e *Engine) resume(h store.Held) (*attempt, error) {
	p, ok := e.profiles[h.Profile]
	if !ok {
		return nil, fmt.Errorf("%w: %s", ErrUnknownProfile, h.Profile)
	}
	if p.isOff() {
		return nil, ErrProfileOff
	}
	csr, err := pki.ParseKept(h.Request)
	if err == nil && len(h.CSR) != sha256.Size {
		err = store.ErrDamaged
	}
	if err != nil {
		return nil, fmt.Errorf("reading held request: %w", err)
	}
	source, _ := netip.ParseAddr(h.Source) // "" where it was not known
	x := &attempt{
		Request: Request{
			Profile: h.Profile, Protocol: h.Protocol, Operation: h.Operation, TransactionID: h.Transaction, CSR: csr, Source: source, Raw: h.Raw,
		},
		profile: p, issuers: p.Issuers(), key: h.Key, csrSum: [sha256.Size]byte(h.CSR), supersedes: h.Supersedes,
		verdict: challenge.Verdict{Kind: challenge.Kind(h.Kind)},
	}
	if h.Supersedes == "" {
		return x, e.resumeFromOther(x, h)
	}
	t, err := e.store.Transaction(h.Supersedes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if x.renews, err = x509.ParseCertificate(t.Certificate); err != nil {
		return nil, fmt.Errorf("reading certificate to be renewed: %w", err)
	}
	return x, e.checkRenewed(x.renews)
}

// checkRenewed refuses to renew a certificate that was revoked, or whose key was, while a request waited.
func (e *Engine) checkRenewed(cert *x509.Certificate) error {
	isRevoked, err := e.IsRevoked(cert)
	if err == nil && isRevoked {
		err = ErrSignerRevoked
	}
	return err
}

// resumeFromOther makes x a renewal again of another authority's certificate, where h is one.
func (e *Engine) resumeFromOther(x *attempt, h store.Held) (err error) {
	if len(h.Renews) == 0 {
		return nil
	}
	if x.renews, err = x509.ParseCertificate(h.Renews); err != nil {
		return fmt.Errorf("reading certificate to be renewed: %w", err)
	}
	return e.checkRenewed(x.renews)
}

// expireHeld denies what waited for a person for too long.
func (e *Engine) expireHeld() error {
	now := e.now()
	if e.checkClock(now) != nil || e.gate() != nil {
		return nil // by a clock that is not trusted nothing is over; nor while nothing can be approved
	}
	_, err := e.store.ExpireHeld(now, "nobody decided on it in time", func(h store.Held) audit.Record {
		rec := e.heldRecord(h, audit.RequestExpired, audit.OutcomeRefused, now)
		rec.Actor, rec.Reason = audit.ActorBox, "waited since "+h.Since.UTC().Format(time.RFC3339)
		return rec
	})
	return err
}

// Deny refuses a held request for good; the reason is told to the device. Errors as of Approve.
func (e *Engine) Deny(ctx context.Context, id, actor, reason string) error {
	if !e.enter() {
		return ErrClosed
	}
	defer e.running.Done()
	h, err := e.waiting(id)
	if err != nil {
		return err
	}
	if err := e.lock(ctx, h.Key); err != nil {
		return err
	}
	defer e.unlock(h.Key)
	now := e.now()
	rec := e.heldRecord(h, audit.RequestDenied, audit.OutcomeRefused, now)
	rec.Actor, rec.Reason = actor, reason
	if err := e.store.Deny(id, actor, reason, now, rec); err != nil {
		return heldError(err)
	}
	return nil
}

// heldRecord is a record about a held request.
func (e *Engine) heldRecord(h store.Held, action audit.Action, outcome audit.Outcome, now time.Time) audit.Record {
	rec := e.record(action, outcome, now)
	rec.Source, rec.CSRSHA256 = h.Source, hex.EncodeToString(h.CSR)
	rec.Profile, rec.Protocol, rec.Transaction, rec.Identity = h.Profile, h.Protocol, h.Transaction, h.Identity
	return rec
}

func (e *Engine) waiting(id string) (store.Held, error) {
	h, err := e.store.Held(id)
	if err == nil && h.State != store.Waiting {
		err = store.ErrNotWaiting
	}
	if err != nil {
		return store.Held{}, heldError(err)
	}
	return h, nil
}

// heldError says what a refused decision on a held request means.
func heldError(err error) error {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return ErrNoRequest
	case errors.Is(err, store.ErrNotWaiting):
		return ErrDecided
	}
	return storeError(err)
}
