// Package enroll is the one road to a certificate: it authenticates a request, decides on it,
// records what it is about to do, has it signed, and records the result.
//
// Protocol packages hand it a [Request] and turn the [Result] or error into bytes. Nothing else
// asks pki to sign for a device.
package enroll

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/challenge"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

// retryWindow is how long a SCEP request is answered with the certificate it got before.
const retryWindow = 24 * time.Hour

// Config is what New needs; all of it but OwnNames and IsBusy is required.
type Config struct {
	Store      *store.Store
	Profiles   []Profile
	Now        func() time.Time
	TimeSource string    // audit.Record.TimeSource
	TimeFloor  time.Time // build time of the image: the clock cannot be right before it
	Log        *slog.Logger

	// OwnNames are the DNS names and addresses the box itself is reached by; no device gets a
	// certificate for one. nil: there are none.
	OwnNames func() []string

	// IsBusy reports whether an error of an Issuer's signer says that the key holder refused before
	// anything was signed. nil: never, every signer error may have left a signature behind.
	IsBusy func(error) bool
}

// Engine decides on requests. Its methods may be called concurrently.
type Engine struct {
	store      *store.Store
	profiles   map[string]Profile
	now        func() time.Time
	timeSource string
	timeFloor  time.Time
	log        *slog.Logger
	ownNames   func() []string
	isBusy     func(error) bool
	refusals   refusals

	mu      sync.Mutex
	closed  bool
	flights map[store.TransactionKey]chan struct{} // closed when the holder of the key is done
	running sync.WaitGroup

	stop    chan struct{}
	stopped chan struct{}
}

// New returns an engine over c.Store, after every transaction that an earlier run left undecided was
// recorded as lost.
func New(c Config) (*Engine, error) {
	if c.Store == nil || c.Now == nil || c.Log == nil || c.TimeSource == "" {
		return nil, errors.New("configuring enrollment: store, clock, time source and log are required")
	}
	e := &Engine{
		store: c.Store, now: c.Now, timeSource: c.TimeSource, timeFloor: c.TimeFloor, log: c.Log, ownNames: c.OwnNames, isBusy: c.IsBusy,
		profiles: map[string]Profile{},
		flights:  map[store.TransactionKey]chan struct{}{},
		refusals: newRefusals(),
		stop:     make(chan struct{}),
		stopped:  make(chan struct{}),
	}
	if e.isBusy == nil {
		e.isBusy = func(error) bool { return false }
	}
	for _, p := range c.Profiles {
		if p.Name == "" || p.Policy == nil || p.Issuer == nil {
			return nil, fmt.Errorf("configuring enrollment: profile %q needs a name, a policy and an issuer", p.Name)
		}
		if _, ok := e.profiles[p.Name]; ok {
			return nil, fmt.Errorf("configuring enrollment: profile %q is there twice", p.Name)
		}
		e.profiles[p.Name] = p
	}
	now := e.now()
	n, err := e.store.Recover(now, func(t store.Transaction) audit.Record {
		r := e.record(audit.TransactionLost, audit.OutcomeLost, now)
		r.Actor = audit.ActorBox
		r.Profile, r.Protocol, r.Transaction, r.Identity = t.Profile, t.Protocol, t.Intent.Transaction, t.Identity
		r.Serial, r.CSRSHA256 = t.Serial, hex.EncodeToString(t.CSR)
		r.Reason = "the box stopped between intent and result; a signature may exist"
		return r
	})
	if err != nil {
		return nil, err
	}
	if n > 0 {
		e.log.Warn("transactions lost in the last run", "count", n)
	}
	go e.flushRefusals()
	return e, nil
}

// Close refuses new requests, waits for those under way and writes the refusals counted so far.
func (e *Engine) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return ErrClosed
	}
	e.closed = true
	e.mu.Unlock()
	e.running.Wait()
	close(e.stop)
	<-e.stopped
	return e.writeCounted()
}

// enter registers one call; leave with e.running.Done.
func (e *Engine) enter() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return false
	}
	e.running.Add(1)
	return true
}

// Enroll answers one request: with a certificate that is durably recorded, or with an error after
// which none is issued for it. Once the intent is recorded the request is carried to its end, also
// when ctx ends; a retry then finds the certificate.
func (e *Engine) Enroll(ctx context.Context, r Request) (*Result, error) {
	if !e.enter() {
		return nil, ErrClosed
	}
	defer e.running.Done()
	if r.Protocol != ProtocolSCEP || r.CSR == nil {
		return nil, fmt.Errorf("enrolling by protocol %q: unknown protocol or no CSR", r.Protocol)
	}

	// (a) Authenticate. Until this is passed, refusals are counted and not written one by one. A
	// challenge that is consumed by use would be looked up here by the request's transaction, so that
	// it still authenticates the retry.
	p, err := e.authenticate(ctx, r)
	if err != nil {
		e.refuseUnauthenticated(r, err)
		return nil, err
	}

	// From here on the sender is known, and each refusal has its own record.
	res, err := e.decide(ctx, p, r)
	if err != nil {
		return nil, e.refuse(r, err)
	}
	return res, nil
}

// authenticate returns the request's profile once the proof is good.
func (e *Engine) authenticate(ctx context.Context, r Request) (Profile, error) {
	p, ok := e.profiles[r.Profile]
	if !ok {
		return Profile{}, ErrUnknownProfile
	}
	// Whoever captured an envelope could sign it again with a key of their own and have the answer
	// encrypted to that. Names may differ: Cisco ASA signs with another subject than it asks for.
	if !isSigner(r.Proof.SignerSPKI, r.CSR) {
		return Profile{}, ErrSignerKey
	}
	if p.Static == nil {
		return Profile{}, fmt.Errorf("%w: profile %s takes no challenge password", ErrChallenge, p.Name)
	}
	err := p.Static.Verify(ctx, r.Source, r.Proof.Challenge)
	switch {
	case errors.Is(err, challenge.ErrWrong):
		return Profile{}, ErrChallenge
	case errors.Is(err, challenge.ErrBusy):
		return Profile{}, fmt.Errorf("%w: %w", ErrBusy, err)
	case err != nil:
		return Profile{}, err
	}
	return p, nil
}

// isSigner compares keys, not encodings: clients differ in how they write the parameters.
func isSigner(spki []byte, csr *pki.Request) bool {
	if len(spki) == 0 {
		return false
	}
	if bytes.Equal(spki, csr.RawSPKI) {
		return true
	}
	signer, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return false
	}
	k, ok := signer.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(csr.PublicKey)
}

// decide answers an authenticated request.
func (e *Engine) decide(ctx context.Context, p Profile, r Request) (*Result, error) {
	now := e.now()
	if err := e.checkClock(now); err != nil {
		return nil, err
	}

	// One request at a time per transaction: a duplicate that arrives while the first is being signed
	// waits, and then finds the certificate.
	key := transactionKey(r)
	if err := e.lock(ctx, key); err != nil {
		return nil, err
	}
	defer e.unlock(key)

	// (b) A retry?
	res, newest, err := e.earlier(r, key, now)
	if res != nil || err != nil {
		return res, err
	}

	// (c) Decide what would be signed.
	if err := e.checkOwnNames(r.CSR); err != nil {
		return nil, err
	}
	prepared, err := p.Issuer.Prepare(p.Policy, r.CSR, now)
	if err != nil {
		return nil, err
	}

	// (d) Make the intent durable. The caller's patience counts up to here and no further.
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	signerKey, csr, issuer := sha256.Sum256(r.CSR.RawSPKI), sha256.Sum256(r.CSR.Raw), sha256.Sum256(p.Issuer.Certificate().Raw)
	rec := e.recordOf(r, audit.IssuanceBegun, audit.OutcomeBegun, now)
	rec.Serial, rec.Reason = prepared.Serial(), r.CSR.OtherNames()
	err = e.store.Begin(store.Intent{
		Key: key, After: newest, Replay: replayKey(key, r.SenderNonce),
		Serial: prepared.Serial(), Profile: r.Profile, Protocol: r.Protocol, Transaction: r.TransactionID,
		Identity: r.CSR.Identity(), Issuer: issuer[:], SignerKey: signerKey[:], CSR: csr[:],
		Template: prepared.Template(), Begun: now,
	}, rec)
	if errors.Is(err, store.ErrReplay) {
		return nil, ErrReplay
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return e.issue(p.Issuer, prepared, r)
}

// checkOwnNames refuses a certificate that would be good for the box itself: people and devices that
// trust the box's roots would take whoever holds it for the console or the enrollment service.
func (e *Engine) checkOwnNames(csr *pki.Request) error {
	if e.ownNames == nil {
		return nil
	}
	for _, name := range e.ownNames() {
		if csr.IsNamed(name) {
			return &pki.PolicyError{Rule: "san", Value: name + " (a name of this box)"}
		}
	}
	return nil
}

// issue carries a begun transaction to its end.
func (e *Engine) issue(issuer *pki.Issuer, prepared *pki.Prepared, r Request) (*Result, error) {
	serial := prepared.Serial()
	decided := false
	defer func() {
		if !decided { // a panic below: whether a signature exists is unknown
			e.undone(r, serial, errors.New("internal error while signing"))
		}
	}()

	// (e) Sign.
	der, err := issuer.Issue(prepared)
	if err != nil {
		decided = true
		return nil, e.undone(r, serial, err)
	}

	// (f) Make the result durable, then hand it out. Where it cannot be made durable nothing is handed
	// out, and the next start finds the transaction begun and burns the serial.
	now := e.now()
	rec := e.recordOf(r, audit.SCEPPKCSReq, audit.OutcomeSuccess, now)
	rec.Serial, rec.Reason = serial, r.CSR.OtherNames()
	decided = true
	if err := e.store.Finish(serial, der, now, rec); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return &Result{Certificate: der, Serial: serial}, nil
}

// undone records that a begun transaction has no certificate, and returns the error for the client.
func (e *Engine) undone(r Request, serial string, cause error) error {
	now := e.now()
	if e.isBusy(cause) {
		rec := e.recordOf(r, audit.SCEPPKCSReq, audit.OutcomeFailed, now)
		rec.Serial, rec.Reason = serial, "key holder is busy; nothing was signed"
		err := errors.Join(cause, e.store.Fail(serial, now, rec))
		return fmt.Errorf("%w: %w", ErrBusy, err)
	}
	rec := e.recordOf(r, audit.TransactionLost, audit.OutcomeLost, now)
	rec.Serial, rec.Reason = serial, "signing: "+cause.Error()
	err := errors.Join(cause, e.store.Lose(serial, now, rec))
	e.log.Error("transaction lost", "serial", serial, "profile", r.Profile, "error", err)
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// earlier returns the certificate that r got before, if r is a retry, and otherwise the serial of
// the newest transaction of its key, "" if there is none.
//
// A first request, signed by a throw-away certificate, is recognised by its transaction key. One
// signed by an issued certificate is new unless it is the same message byte for byte, because
// clients derive their transaction id from the key and renew with both unchanged.
func (e *Engine) earlier(r Request, key store.TransactionKey, now time.Time) (*Result, string, error) {
	newest, err := e.store.Newest(key)
	if errors.Is(err, store.ErrNotFound) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	answered := newest
	if !r.Proof.SelfSigned {
		answered, err = e.store.Replayed(replayKey(key, r.SenderNonce))
		if errors.Is(err, store.ErrNotFound) {
			return nil, newest.Serial, nil
		}
		if err != nil {
			return nil, "", fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	if answered.State == store.Issued && now.Sub(answered.Decided) <= retryWindow {
		return &Result{Certificate: answered.Certificate, Serial: answered.Serial, Replayed: true}, "", nil
	}
	return nil, newest.Serial, nil
}

// lock makes the caller the only one with key, or returns ctx's error.
func (e *Engine) lock(ctx context.Context, key store.TransactionKey) error {
	for {
		e.mu.Lock()
		other, taken := e.flights[key]
		if !taken {
			e.flights[key] = make(chan struct{})
			e.mu.Unlock()
			return nil
		}
		e.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (e *Engine) unlock(key store.TransactionKey) {
	e.mu.Lock()
	defer e.mu.Unlock()
	close(e.flights[key])
	delete(e.flights, key)
}

// transactionKey hashes what makes two messages the same request: profile, transaction id, the
// signer's public key and the CertificationRequestInfo. The same transaction id and key with another
// CSR is another request.
//
// The key is taken from the CSR, which equals the signer's: the signer's certificate is not signed, and
// whoever captured a message could write the key in it another way.
func transactionKey(r Request) store.TransactionKey {
	return hashFields("transaction", []byte(r.Protocol), []byte(r.Profile), []byte(r.TransactionID), r.CSR.RawSPKI, r.CSR.RawInfo)
}

// replayKey names the very message. A SCEP message without senderNonce has the empty one: outside
// the retry window it then counts as a replay of the first, however often it is made anew.
func replayKey(key store.TransactionKey, nonce []byte) store.ReplayKey {
	return hashFields("message", key[:], nonce)
}

// hashFields is injective over its arguments: each is preceded by its length.
func hashFields(purpose string, fields ...[]byte) [32]byte {
	b := append([]byte("signet "), purpose...)
	for _, f := range fields {
		b = binary.BigEndian.AppendUint64(b, uint64(len(f)))
		b = append(b, f...)
	}
	return sha256.Sum256(b)
}
