package challenge

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

// Kind is a kind of challenge, called as in the audit log.
type Kind string

// Kinds of challenges.
const (
	KindStatic  Kind = "static"   // one secret shared by all devices of the profile
	KindOneTime Kind = "one_time" // minted for one device, used once
	KindSigned  Kind = "signed"   // a token that a device manager signed for one device
	KindIntune  Kind = "intune"   // a blob of Microsoft Intune's, which only its service can open
)

// Label is how the check of a challenge came out, as in the metrics.
type Label string

// Labels of refusals, and of success.
const (
	Success          Label = "success"
	SignatureInvalid Label = "signature_invalid"
	Expired          Label = "expired"
	NotYetValid      Label = "not_yet_valid"
	WrongAudience    Label = "wrong_audience"
	Replay           Label = "replay" // used before by another transaction
	RateLimited      Label = "rate_limited"
	ClaimMismatch    Label = "claim_mismatch" // made for another device than the CSR names
	UnknownVersion   Label = "unknown_version"
	Malformed        Label = "malformed"
	ComplianceFailed Label = "compliance_failed"
)

// Labels lists every label.
func Labels() []Label {
	return []Label{Success, SignatureInvalid, Expired, NotYetValid, WrongAudience, Replay, RateLimited,
		ClaimMismatch, UnknownVersion, Malformed, ComplianceFailed}
}

// Refused is why a one-time, signed or Intune challenge is not good; errors.Is finds [ErrWrong] in it. It is
// for the log: a sender learns no more than that the challenge is wrong.
type Refused struct {
	Kind   Kind
	Label  Label
	Detail string // without any secret
}

func (r *Refused) Error() string {
	return fmt.Sprintf("%s challenge refused (%s): %s", r.Kind, r.Label, r.Detail)
}

// Is reports whether target is [ErrWrong].
func (r *Refused) Is(target error) bool { return target == ErrWrong }

// Request is a challenge and the request it came with.
type Request struct {
	Challenge string // a secret
	CSR       *pki.Request

	// Transaction is the key the request will begin its transaction with: what that very transaction
	// used up before still authenticates it.
	Transaction store.TransactionKey

	TransactionID string // as the client sent it; what Intune is asked by
	Source        netip.Addr
	Now           time.Time
}

// Verdict is a challenge found good.
type Verdict struct {
	Kind Kind

	// Guards have to be taken by the store together with the intent: only that decides between
	// requests that bring the same challenge at the same time.
	Guards []store.Guard

	Identity string // the device the challenge was made for, "" for KindStatic and KindIntune

	// SID is the Active Directory account that a KindOneTime or KindSigned was made for, "" for none.
	// The request may name another: whether its certificate would is the profile's to say, so who issues
	// it compares the two.
	SID string
}

// IsForDevice reports whether the challenge was made for one device, whose names it binds.
func (v Verdict) IsForDevice() bool { return v.Kind == KindOneTime || v.Kind == KindSigned }

// Config says which kinds of challenges a profile takes; nil: not that kind.
type Config struct {
	Static  *Static
	OneTime *OneTime
	Signed  *Signed

	// Intune asks Microsoft's service about the CSR and the challenge in it. An error that is
	// [ErrWrong], best a [*Refused] of KindIntune, is the service's no; any other says that there is no
	// verdict. It has to keep a time limit of its own.
	Intune func(context.Context, Request) error
}

// Set verifies challenges of a profile that takes several kinds.
type Set struct {
	c      Config
	asking chan struct{} // one element for each question to Intune under way
}

// ErrNoVerdict: Intune's service said neither yes nor no; the sender has to try again later.
var ErrNoVerdict = errors.New("Intune gave no verdict on the challenge")

// maxAsking is how many questions to Intune a profile has under way: a slow answer holds a request in
// flight, of which others need some.
const maxAsking = 8

// NewSet returns the Set of a profile. Without any kind it refuses every challenge.
func NewSet(c Config) *Set { return &Set{c, make(chan struct{}, maxAsking)} }

// longMin is the length, in bytes, from which on a challenge with two dots is a signed one, and one
// without is Intune's where a profile has a static one as well.
const longMin = 201

// isSignedShape reports whether a challenge is meant to be a signed one.
func isSignedShape(challenge string) bool {
	return len(challenge) >= longMin && strings.Count(challenge, ".") == 2
}

// Verify tells by its form which kind a challenge is, and verifies it as that kind: what looks
// signed is signed or nothing; else what was minted is a one-time challenge; else it is static or
// Intune's. Where a profile takes both of these, what is over 200 bytes is Intune's and the rest
// static: to try one after the other would cost every device of Intune's an argon2id run, in which
// they would wait for each other, and have Microsoft asked about every guess at the static one.
//
// A challenge that is not good is [ErrWrong], also as a [*Refused]. Any other error says nothing
// about the challenge: [ErrBusy], [ErrNoVerdict], the context's and the store's.
func (s *Set) Verify(ctx context.Context, r Request) (Verdict, error) {
	if isSignedShape(r.Challenge) {
		if s.c.Signed == nil {
			return Verdict{}, &Refused{KindSigned, SignatureInvalid, "the profile takes no signed challenges"}
		}
		return s.c.Signed.Verify(r)
	}
	if s.c.OneTime != nil {
		v, err := s.c.OneTime.Verify(r)
		if !errors.Is(err, errNotMinted) {
			return v, err
		}
	}
	if s.c.Intune != nil && r.Challenge != "" && (s.c.Static == nil || len(r.Challenge) >= longMin) {
		return s.ask(ctx, r)
	}
	if s.c.Static == nil {
		return Verdict{}, ErrWrong
	}
	if err := s.c.Static.Verify(ctx, r.Source, r.Challenge); err != nil {
		return Verdict{}, err
	}
	return Verdict{Kind: KindStatic}, nil
}

// VerifyOneTime verifies a challenge as a one-time challenge and nothing else, for protocols that take
// it as a password. Errors are those of [Set.Verify].
func (s *Set) VerifyOneTime(_ context.Context, r Request) (Verdict, error) {
	if s.c.OneTime == nil {
		return Verdict{}, ErrWrong
	}
	v, err := s.c.OneTime.Verify(r)
	if errors.Is(err, errNotMinted) {
		return Verdict{}, ErrWrong
	}
	return v, err
}

// ask has Intune's service verify a challenge.
func (s *Set) ask(ctx context.Context, r Request) (Verdict, error) {
	select {
	case s.asking <- struct{}{}:
		defer func() { <-s.asking }()
	default:
		return Verdict{}, fmt.Errorf("asking Intune: %w", ErrBusy)
	}
	err := s.c.Intune(ctx, r)
	if errors.Is(err, ErrWrong) {
		return Verdict{}, fmt.Errorf("asking Intune: %w", err)
	}
	if err != nil {
		return Verdict{}, fmt.Errorf("%w: %w", ErrNoVerdict, err)
	}
	return Verdict{Kind: KindIntune}, nil
}

// Decided counts what became of a request whose challenge was found good: nil once its certificate
// is durably recorded, else why there is none. Answers from an earlier sending are not counted.
func (s *Set) Decided(v Verdict, err error) {
	if v.Kind != KindSigned || s.c.Signed == nil {
		return
	}
	var refused *Refused
	switch {
	case err == nil:
		s.c.Signed.stats.count(Success)
	case errors.Is(err, store.ErrGuardUsed):
		s.c.Signed.stats.count(Replay)
	case errors.Is(err, store.ErrGuardRate):
		s.c.Signed.stats.count(RateLimited)
	case errors.As(err, &refused):
		s.c.Signed.stats.count(refused.Label)
	}
}

// TakesSigned reports whether the profile takes signed challenges.
func (s *Set) TakesSigned() bool { return s.c.Signed != nil }

// Snapshot returns how often the checks of signed challenges came out how since the process began,
// with every label; nil where the profile takes none.
func (s *Set) Snapshot() map[Label]uint64 {
	if s.c.Signed == nil {
		return nil
	}
	return s.c.Signed.stats.snapshot()
}
