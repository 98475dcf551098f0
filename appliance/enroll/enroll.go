// Package enroll is the one road to a certificate: it authenticates a request, decides on it,
// records what it is about to do, has it signed, and records the result.
//
// Protocol packages hand it a [Request] and turn the [Result] or error into bytes. Nothing else
// asks pki to sign for a device.
//
// # What a request is
//
// A request signed by a certificate that the profile's authority issued is a renewal, whatever the
// message calls itself, where the profile renews at all. Its certificate has to be the stored one byte
// for byte, signed by the authority, unrevoked and inside the window, and what would be issued has to
// be for the same subject and names. A certificate of another profile of the authority is no proof by
// itself: the challenge of this one is needed besides. Everything else is a first request, proven by a
// challenge and signed by the key it wants certified.
//
// A request is a retry, answered with what was issued before, where nothing differs but the message:
// the same profile, transaction and CertificationRequestInfo, and the same key, or for a renewal the
// same certificate. It has to prove itself like the first sending; a challenge that is used up by it
// still does.
//
// What a certificate of a request of EST is proven by is the profile's to list, see [EST]; a request
// is a retry there for ten minutes, whatever its challengePassword, and a simplereenroll only of one that
// was held.
//
// # Waiting for a person
//
// Where the profile says so, what would be issued (renewals included) is first held: checked against
// the profile, its challenge and its slot of the limits taken, and durable before the device is told
// to wait. It is checked once more against the profile as it is when somebody approves. Where that
// approval comes to nothing because the signer failed or the power went, the request waits again.
package enroll

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
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

// Config is what New needs; all of it but the last four is required.
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

	// Stopped says what, besides the store and the clock, keeps the box from issuing; nil, and a nil answer:
	// nothing does. It answers from memory.
	Stopped func() *Condition

	// CRLValidity is the time from thisUpdate to nextUpdate of an issuer's revocation lists; nil: 7 days.
	CRLValidity func(*pki.Issuer) time.Duration

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
	gated      func() *Condition // see gate
	isBusy     func(error) bool
	refusals   refusals

	crlValidity func(*pki.Issuer) time.Duration

	mu      sync.Mutex
	crls    map[issuerID]*crl // each guards itself
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
		gated:       c.Stopped,
		crlValidity: c.CRLValidity,
		profiles:    map[string]Profile{},
		crls:        map[issuerID]*crl{},
		flights:     map[store.TransactionKey]chan struct{}{},
		refusals:    newRefusals(),
		stop:        make(chan struct{}),
		stopped:     make(chan struct{}),
	}
	if e.gated == nil {
		e.gated = func() *Condition { return nil }
	}
	if e.isBusy == nil {
		e.isBusy = func(error) bool { return false }
	}
	for _, p := range c.Profiles {
		if p.Name == "" || p.Policy == nil || p.Issuers == nil {
			return nil, fmt.Errorf("configuring enrollment: profile %q needs a name, a policy and issuers", p.Name)
		}
		if _, ok := e.profiles[p.Name]; ok {
			return nil, fmt.Errorf("configuring enrollment: profile %q is there twice", p.Name)
		}
		if err := p.check(); err != nil {
			return nil, fmt.Errorf("configuring enrollment: profile %q: %w", p.Name, err)
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

// attempt is a request on its way to a certificate.
type attempt struct {
	Request
	profile Profile
	issuers Issuers     // as they were when it came
	issuer  *pki.Issuer // prepared its certificate
	key     store.TransactionKey
	csrSum  [sha256.Size]byte // of the PKCS#10 as it came
	verdict challenge.Verdict // of the challenge, zero where none was needed

	// Of a renewal: the certificate it renews, as issued, and its serial. nil and "" for a first request.
	renews     *x509.Certificate
	supersedes string // "" too where another authority issued it
	isReplaced bool   // see origin

	user *challenge.User // who sent it by password, nil if nobody did
}

// Enroll answers one request: with a certificate that is durably recorded, with Pending after the
// request is, or with an error after which none is issued for it. Once the intent is recorded the
// request is carried to its end, also when ctx ends; a retry then finds the certificate.
func (e *Engine) Enroll(ctx context.Context, r Request) (*Result, error) {
	if !e.enter() {
		return nil, ErrClosed
	}
	defer e.running.Done()
	if r.Protocol != ProtocolSCEP && r.Protocol != ProtocolEST || r.Protocol == ProtocolSCEP && r.Operation != "" || r.CSR == nil {
		return nil, fmt.Errorf("enrolling by protocol %q: unknown protocol, an operation that is not its, or no CSR", r.Protocol)
	}

	if err := e.gate(); err != nil { // before a challenge is used up
		return nil, &unproven{err}
	}

	// (a) Authenticate. Until this is passed, refusals are counted and not written one by one.
	x, err := e.authenticate(ctx, r)
	if err != nil {
		e.refuseUnauthenticated(r, err)
		return nil, &unproven{err}
	}

	// From here on the sender is known, and each refusal has its own record, within a bound.
	res, err := e.decide(ctx, x)
	if r.Protocol == ProtocolEST && errors.Is(err, ErrChallenge) { // used up: there it was a password
		err = fmt.Errorf("%w: %w", ErrCredentials, err)
	}
	if err != nil || !res.Replayed && !res.Pending {
		x.profile.Challenges.Decided(x.verdict, err)
	}
	if err != nil {
		e.tellRefused(ctx, x, err)
		return nil, e.refuse(x, err)
	}
	return res, nil
}

// unproven is why a request was refused before anything but its proof was looked at.
type unproven struct{ error }

func (u *unproven) Unwrap() error { return u.error }

// IsUnproven reports whether an error of Enroll came before anything of the request but its proof was
// looked at: its key was used for nothing.
func IsUnproven(err error) bool { return errors.As(err, new(*unproven)) }

// decide answers an authenticated request.
func (e *Engine) decide(ctx context.Context, x *attempt) (*Result, error) {
	now := e.now()
	if err := e.checkClock(now); err != nil {
		return nil, err
	}

	if err := e.checkKey(x); err != nil {
		return nil, err
	}

	// One request at a time per transaction: a duplicate that arrives while the first is being signed
	// waits, and then finds the certificate.
	if err := e.lock(ctx, x.key); err != nil {
		return nil, err
	}
	defer e.unlock(x.key)

	// (b) A retry, or another sending of a request that is held?
	res, newest, err := e.earlier(ctx, x, now)
	if res != nil || err != nil {
		return res, err
	}
	if x.isReplaced {
		return nil, ErrSignerRevoked
	}

	// (c) Decide what would be signed, and whether a person has to look at it first.
	prepared, err := e.prepare(ctx, x, now)
	if err != nil {
		return nil, err
	}
	if err := x.checkAccount(prepared); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil { // the caller's patience counts up to here and no further
		return nil, err
	}
	if x.profile.Approval.holds(x.CSR) {
		if x.AnswerNow || x.Operation == OpServerKeyGen {
			return nil, ErrHold
		}
		return e.hold(x, now)
	}

	// (d) Make the intent durable.
	i := e.intent(x, prepared, now)
	i.After, i.Guards, i.Replay = newest, x.guards(), x.replay()
	if err := e.store.Begin(i, e.begunRecord(x, prepared, now)); err != nil {
		return nil, storeError(err)
	}
	return e.issue(ctx, x, prepared)
}

// prepare decides what would be signed for x, or refuses. Nothing is recorded.
func (e *Engine) prepare(ctx context.Context, x *attempt, now time.Time) (*pki.Prepared, error) {
	if x.profile.Compliance != nil {
		if err := x.checkOneName(); err != nil {
			return nil, err
		}
		asked := x.Request
		asked.CSRSum, asked.Renewal = x.csrSum, x.renews != nil
		if err := x.profile.Compliance(ctx, asked); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrCompliance, err)
		}
	}
	if err := x.checkUser(); err != nil {
		return nil, err
	}
	if err := e.checkOwnNames(x.CSR); err != nil {
		return nil, err
	}
	x.issuer = x.issuers.Active
	if x.issuer == nil {
		return nil, ErrNoAuthority
	}
	prepared, err := x.issuer.Prepare(x.profile.Policy, x.CSR, now)
	if err != nil {
		return nil, err
	}
	if x.renews != nil {
		err := prepared.CheckIdentity(x.renews)
		if errors.Is(err, pki.ErrIdentity) {
			return nil, ErrRenewalIdentity
		}
		if err != nil {
			return nil, err
		}
	}
	return prepared, nil
}

// checkOneName refuses several common names where a compliance check decides: it is asked about one of
// them, and software differs in which it believes.
func (x *attempt) checkOneName() error {
	first := ""
	for _, name := range x.CSR.Names() {
		switch {
		case name.Kind != pki.CN:
		case first == "":
			first = name.Value
		case first != name.Value:
			return &pki.PolicyError{Rule: "compliance", Value: fmt.Sprintf("several common names, %q besides %q", name.Value, first)}
		}
	}
	return nil
}

// intent is what the store records before anything is signed.
func (e *Engine) intent(x *attempt, prepared *pki.Prepared, now time.Time) store.Intent {
	signerKey, publicKey, issuer := sha256.Sum256(x.Proof.SignerSPKI), sha256.Sum256(x.CSR.RawSPKI), x.issuer.ID()
	return store.Intent{
		Key: x.key, Serial: prepared.Serial(), Profile: x.Profile, Protocol: x.Protocol, Transaction: x.TransactionID,
		Identity: x.CSR.Identity(), Issuer: issuer[:], SignerKey: signerKey[:], CSR: x.csrSum[:],
		PublicKey: publicKey[:], Template: prepared.Template(), Begun: now, NotAfter: prepared.NotAfter(),
		Supersedes: x.supersedes, RevokeSuperseded: x.profile.RevokeOnReplace, Withhold: x.isIntune(),
		MaxActive: x.profile.MaxActive, UniqueKey: x.profile.UniqueKey,
	}
}

func (e *Engine) begunRecord(x *attempt, prepared *pki.Prepared, now time.Time) audit.Record {
	rec := e.recordOf(x, audit.IssuanceBegun, audit.OutcomeBegun, now)
	rec.Serial, rec.Reason = prepared.Serial(), x.reason()
	return rec
}

// errCompromised: whoever else knows the key could use the new certificate as well.
var errCompromised = &pki.PolicyError{Rule: "keys", Value: "a key whose certificate was revoked for keyCompromise, make a new key"}

// checkKey refuses a compromised key. The store does so again where it counts; here the refusal comes
// before anything is held or answered from before.
func (e *Engine) checkKey(x *attempt) error {
	isCompromised, err := e.isCompromised(x.CSR.RawSPKI)
	if err == nil && isCompromised {
		err = errCompromised
	}
	return err
}

// isCompromised reports whether a certificate of a key (SubjectPublicKeyInfo, DER) was revoked because
// others have the key.
func (e *Engine) isCompromised(spki []byte) (bool, error) {
	isCompromised, err := e.store.IsCompromised(sha256.Sum256(spki))
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return isCompromised, nil
}

// storeError says what a refused Begin or Hold means to the sender.
func storeError(err error) error {
	for is, means := range map[error]error{
		store.ErrReplay:         ErrReplay,
		store.ErrRevoked:        ErrSignerRevoked,
		store.ErrGuardUsed:      ErrChallenge,
		store.ErrGuardUnknown:   ErrChallenge,
		store.ErrGuardRate:      ErrRateLimited,
		store.ErrHeldFull:       ErrHeldFull,
		store.ErrMaxActive:      ErrMaxActive,
		store.ErrKeyTaken:       ErrDuplicateKey,
		store.ErrKeyCompromised: errCompromised,
	} {
		if errors.Is(err, is) {
			return fmt.Errorf("%w: %w", means, err)
		}
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
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
func (e *Engine) issue(ctx context.Context, x *attempt, prepared *pki.Prepared) (*Result, error) {
	serial := prepared.Serial()
	decided := false
	defer func() {
		if !decided { // a panic below: whether a signature exists is unknown
			e.undone(x, serial, errors.New("internal error while signing"))
		}
	}()

	// (e) Sign.
	der, err := x.issuer.Issue(prepared)
	if err != nil {
		decided = true
		return nil, e.undone(x, serial, err)
	}

	// (f) Make the result durable, then hand it out. Where it cannot be made durable nothing is handed
	// out, and the next start finds the transaction begun and burns the serial.
	now := e.now()
	rec := e.recordOf(x, x.action(), audit.OutcomeSuccess, now)
	rec.Serial, rec.Reason = serial, x.reason()
	decided = true
	if err := e.store.Finish(serial, der, now, rec); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	e.changed(x)
	if x.isIntune() {
		if err := e.deliver(ctx, x, serial, der); err != nil {
			return nil, err
		}
	}
	return &Result{Certificate: der, Serial: serial}, nil
}

// changed has the revocation lists made anew where the certificate of x revoked the one it
// replaces.
func (e *Engine) changed(x *attempt) {
	if x.supersedes != "" && x.profile.RevokeOnReplace {
		x.issuers.find(func(i *pki.Issuer) bool { e.crlOf(i.ID()).stale.Store(true); return false })
	}
}

// undone records that a begun transaction has no certificate, and returns the error for the client.
func (e *Engine) undone(x *attempt, serial string, cause error) error {
	now := e.now()
	if e.isBusy(cause) {
		rec := e.recordOf(x, x.action(), audit.OutcomeFailed, now)
		rec.Serial, rec.Reason = serial, "key holder is busy; nothing was signed"
		err := errors.Join(cause, e.store.Fail(serial, now, rec))
		return fmt.Errorf("%w: %w", ErrBusy, err)
	}
	rec := e.recordOf(x, audit.TransactionLost, audit.OutcomeLost, now)
	rec.Serial, rec.Reason = serial, "signing: "+cause.Error()
	err := errors.Join(cause, e.store.Lose(serial, now, rec))
	e.crlOf(x.issuer.ID()).stale.Store(true)
	e.log.Error("transaction lost", "serial", serial, "profile", x.Profile, "error", err)
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}
