package challenge

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

// Bounds of a site's settings for signed challenges.
const (
	MaxValidity = 30 * 24 * time.Hour
	MaxSkew     = 15 * time.Minute
)

// rateWindow is the window of SignedConfig.PerDevice.
const rateWindow = 24 * time.Hour

// SignedConfig is what NewSigned needs.
type SignedConfig struct {
	Store   *store.Store
	Signers *Signers

	Issuer   string        // iss, exactly
	Audience string        // must be among aud, exactly
	Validity time.Duration // how long after iat a challenge is good at most, whatever exp says; up to MaxValidity
	Skew     time.Duration // how far the signer's clock may be off; up to MaxSkew

	// PerDevice is how many certificates one device (sub of an issuer) gets in 24 hours; 0: any number.
	PerDevice int

	// Pinned are kinds of subjectAltNames that the profile itself fixes to single values, so that no
	// claim has to cover them.
	Pinned []pki.Kind
}

// Signed verifies challenges that a device manager signed for one device: a compact JWS whose claims
// say who may enroll until when, under which names. Each is good for one transaction.
type Signed struct {
	c       SignedConfig
	signers atomic.Pointer[Signers]
	stats   stats
}

// NewSigned returns the signed challenges of a profile.
func NewSigned(c SignedConfig) (*Signed, error) {
	switch {
	case c.Store == nil || c.Signers == nil:
		return nil, errors.New("signed challenges need a store and certificates")
	case c.Issuer == "" || len(c.Issuer) > maxClaim:
		return nil, fmt.Errorf("signed challenges: the issuer is empty or over %d bytes, give the iss of the signer", maxClaim)
	case c.Audience == "" || len(c.Audience) > maxClaim:
		return nil, fmt.Errorf("signed challenges: the audience is empty or over %d bytes, give the aud the signer writes for this box", maxClaim)
	case c.Validity < time.Second || c.Validity > MaxValidity:
		return nil, fmt.Errorf("signed challenges: validity is %v, give one between 1s and %v", c.Validity, MaxValidity)
	case c.Skew < 0 || c.Skew > MaxSkew:
		return nil, fmt.Errorf("signed challenges: skew is %v, give one up to %v", c.Skew, MaxSkew)
	case c.PerDevice < 0 || c.PerDevice > store.MaxRate:
		return nil, fmt.Errorf("signed challenges: %d per device and day, give 0 (any number) to %d", c.PerDevice, store.MaxRate)
	}
	c.Pinned = slices.Clone(c.Pinned)
	s := &Signed{c: c, stats: newStats()}
	s.signers.Store(c.Signers)
	return s, nil
}

// Replace exchanges the certificates for requests from now on. Where one of the new ones is not
// valid now it returns an error and the old ones stay.
func (s *Signed) Replace(signers *Signers, now time.Time) error {
	if err := signers.CheckValid(now); err != nil {
		return err
	}
	s.signers.Store(signers)
	return nil
}

// Signers returns the certificates in use.
func (s *Signed) Signers() *Signers { return s.signers.Load() }

// Verify returns whom a challenge was signed for, or a [*Refused] by the first of these gates:
// form, signature, version, time, audience, issuer, names, one use, rate. A challenge that this very
// transaction took before is good whatever the time and rate are now.
//
// Refusals are counted here; see [Set.Decided] for what follows.
func (s *Signed) Verify(r Request) (Verdict, error) {
	v, err := s.verify(r)
	var refused *Refused
	if errors.As(err, &refused) {
		s.stats.count(refused.Label)
	}
	return v, err
}

func (s *Signed) verify(r Request) (Verdict, error) {
	t, refused := parseToken(r.Challenge)
	if refused != nil {
		return Verdict{}, refused
	}
	payload, refused := s.signers.Load().verify(t.jws, r.Now)
	if refused != nil {
		return Verdict{}, refused
	}
	c, refused := parseClaims(payload)
	if refused != nil {
		return Verdict{}, refused
	}

	guards := s.guards(c)
	nonce, err := s.c.Store.Guard(guards[0], r.Now)
	if err != nil {
		return Verdict{}, fmt.Errorf("verifying signed challenge: %w", err)
	}
	isOwn := nonce.Status == store.GuardUsed && nonce.By == r.Transaction
	if !isOwn {
		if refused := s.checkTime(c, r.Now); refused != nil {
			return Verdict{}, refused
		}
	}
	if refused := s.checkParties(c); refused != nil {
		return Verdict{}, refused
	}
	if what := c.mismatch(r.CSR, s.c.Pinned); what != "" {
		return Verdict{}, &Refused{KindSigned, ClaimMismatch, what}
	}
	if !isOwn {
		if nonce.Status == store.GuardUsed {
			return Verdict{}, &Refused{KindSigned, Replay, "it was used before, the device needs a new one"}
		}
		if err := s.checkRate(guards[1:], r.Now); err != nil {
			return Verdict{}, err
		}
	}
	return Verdict{Kind: KindSigned, Guards: guards, Identity: c.Subject, SID: c.SID}, nil
}

// deadline is when a challenge ends by the signer's clock.
func (s *Signed) deadline(c claims) time.Time {
	if limit := c.IssuedAt.Add(s.c.Validity); limit.Before(c.Expires) {
		return limit
	}
	return c.Expires
}

func (s *Signed) checkTime(c claims, now time.Time) *Refused {
	from := c.IssuedAt
	if c.NotBefore.After(from) {
		from = c.NotBefore
	}
	if now.Add(s.c.Skew).Before(from) {
		return &Refused{KindSigned, NotYetValid, fmt.Sprintf("good from %s, check the clocks of box and signer", from.Format(time.RFC3339))}
	}
	if deadline := s.deadline(c); !now.Add(-s.c.Skew).Before(deadline) {
		return &Refused{KindSigned, Expired, fmt.Sprintf("good until %s, the device needs a new one", deadline.Format(time.RFC3339))}
	}
	return nil
}

func (s *Signed) checkParties(c claims) *Refused {
	if !slices.Contains(c.Audience, s.c.Audience) {
		return &Refused{KindSigned, WrongAudience, fmt.Sprintf("made for %.100q, this profile is %q", c.Audience, s.c.Audience)}
	}
	if c.Issuer != s.c.Issuer {
		return &Refused{KindSigned, ClaimMismatch, fmt.Sprintf("issued by %.100q, this profile takes those of %q", c.Issuer, s.c.Issuer)}
	}
	return nil
}

// mismatch says how a CSR differs from the claims, "" where it does not: every common name has to be
// device_name, and the names of each kind the set of its claim. A kind without a claim has to be
// pinned by the profile or absent.
func (c claims) mismatch(csr *pki.Request, pinned []pki.Kind) string {
	cns, err := commonNames(csr.RawSubject)
	if err != nil {
		return err.Error()
	}
	if len(cns) == 0 && c.DeviceName != "" {
		return "the CSR has no common name, device_name wants one"
	}
	for _, cn := range cns {
		if c.DeviceName == "" || fold(cn) != fold(c.DeviceName) {
			return "the common name of the CSR is not device_name"
		}
	}
	addresses, err := subjectValues(csr.RawSubject, oidEmailAddress)
	if err != nil {
		return err.Error()
	}
	for _, address := range addresses {
		if !slices.ContainsFunc(c.Names, func(n pki.Name) bool { return n.Kind == pki.Email && fold(n.Value) == fold(address) }) {
			return "the subject of the CSR has an e-mail address that is not in san_rfc822"
		}
	}
	covered := slices.DeleteFunc(slices.Clone(csr.SAN), func(n pki.Name) bool {
		return !slices.Contains(c.Covers, n.Kind) && slices.Contains(pinned, n.Kind)
	})
	if !sameNames(covered, c.Names) {
		return "the subjectAltNames of the CSR are not those of the claims"
	}
	return ""
}

// guards returns what one use of the claims takes: the nonce, and the device's slot where there is a
// limit. The nonce belongs to signer and audience, so profiles that share both share it.
func (s *Signed) guards(c claims) []store.Guard {
	guards := []store.Guard{{
		Kind:  store.GuardNonce,
		Key:   hashFields("signed challenge nonce", c.Issuer, s.c.Audience, c.Nonce),
		Until: s.deadline(c).Add(s.c.Skew),
	}}
	if s.c.PerDevice > 0 {
		guards = append(guards, store.Guard{
			Kind:   store.GuardRate,
			Key:    hashFields("signed challenge device", c.Subject, c.Issuer),
			Max:    s.c.PerDevice,
			Window: rateWindow,
		})
	}
	return guards
}

// checkRate refuses early what Begin would refuse.
func (s *Signed) checkRate(guards []store.Guard, now time.Time) error {
	for _, g := range guards {
		state, err := s.c.Store.Guard(g, now)
		if err != nil {
			return fmt.Errorf("verifying signed challenge: %w", err)
		}
		if state.Status == store.GuardUsed {
			return &Refused{KindSigned, RateLimited, fmt.Sprintf("the device began %d certificates in %v", g.Max, g.Window)}
		}
	}
	return nil
}
