package enroll

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"signet.internal/appliance/challenge"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

// maxPeer is how many certificates a client may show, its own and those above it. Whoever shows more,
// with names and keys to try in every order, makes each request cost a hundred verifications.
const maxPeer = 8

// authenticateEST accepts what the profile lists and nothing else:
//
//	                 simpleenroll, serverkeygen            simplereenroll
//	credentials      a first request; they win             only besides a certificate
//	issued           a renewal, of whatever profile.Renewal asks for; of another profile of the authority by simplereenroll alone
//	RenewFrom        the same, where issued is listed
//	bundle           a first request                       no
func (e *Engine) authenticateEST(ctx context.Context, x *attempt, now time.Time) error {
	takes, isReenroll := x.profile.EST, x.Operation == OpReenroll
	if !takes.On || isReenroll && !takes.Issued || !isReenroll && x.Operation != OpEnroll && x.Operation != OpServerKeyGen {
		return ErrNotOffered
	}
	if len(x.Peer) > maxPeer {
		return fmt.Errorf("%w: %d certificates, at most %d are looked at", ErrCredentials, len(x.Peer), maxPeer)
	}
	x.Proof = Proof{SignerSPKI: x.CSR.RawSPKI} // the CSR is signed by it, and nothing else is
	hasCredentials := x.Credentials != nil && (takes.Basic != nil || takes.Challenge)
	if hasCredentials && !isReenroll {
		return e.credentials(ctx, x, now)
	}

	if takes.Issued {
		renewed, err := e.renewed(x, x.Peer, now)
		switch {
		case errors.Is(err, ErrSignerUnknown), errors.Is(err, ErrSignerRevoked), errors.Is(err, ErrSignerExpired):
			return fmt.Errorf("%w: %w", ErrCredentials, err)
		case err != nil:
			return err
		case renewed != nil:
			needsMore, err := x.renew(renewed)
			if err != nil {
				return err
			}
			if !needsMore {
				x.key = keyEST(x, "certificate", "")
				return nil
			}
			if !hasCredentials {
				return ErrUnauthenticated
			}
			return e.credentials(ctx, x, now)
		}
	}
	switch {
	case len(x.Peer) == 0, !takes.Issued && takes.Bundle == nil:
		return ErrUnauthenticated
	case isReenroll, takes.Bundle == nil:
		return fmt.Errorf("%w: %w", ErrCredentials, ErrSignerUnknown)
	}
	return e.bootstrap(x, now)
}

// bootstrap accepts a client certificate of the profile's bundle for a first request.
func (e *Engine) bootstrap(x *attempt, now time.Time) error {
	if err := e.checkClock(now); err != nil {
		return err
	}
	if err := verifyClient(x.Peer, x.profile.EST.Bundle(), now); err != nil {
		return fmt.Errorf("%w: %v", ErrCredentials, err)
	}
	isRevoked, err := e.IsRevoked(x.Peer[0]) // an authority of this box may be in the bundle
	if err != nil {
		return err
	}
	if isRevoked {
		return fmt.Errorf("%w: %w", ErrCredentials, ErrSignerRevoked)
	}
	x.key = keyEST(x, "certificate", "")
	return nil
}

// credentials verifies a password: as a one-time challenge where one was ever minted as it, else as a
// user's. What is minted and not good is never tried as anything else.
func (e *Engine) credentials(ctx context.Context, x *attempt, now time.Time) error {
	takes, c := x.profile.EST, x.Credentials
	if takes.Challenge {
		sum := sha256.Sum256([]byte(c.Password))
		key := keyEST(x, "one-time challenge", string(sum[:]))
		v, err := x.profile.Challenges.VerifyOneTime(ctx, challenge.Request{
			Challenge: c.Password, CSR: x.CSR, Transaction: key, TransactionID: x.TransactionID, Source: x.Source, Now: now,
		})
		refused := (*challenge.Refused)(nil)
		switch {
		case err == nil:
			x.key, x.verdict = key, v
			return nil
		case errors.As(err, &refused), errors.Is(err, challenge.ErrWrong) && takes.Basic == nil:
			return fmt.Errorf("%w: %w", ErrCredentials, err)
		case !errors.Is(err, challenge.ErrWrong):
			return challengeError(err, ErrCredentials)
		}
	}
	user, err := takes.Basic.Verify(ctx, x.Source, c.User, c.Password)
	if err != nil {
		return challengeError(err, ErrCredentials)
	}
	x.key, x.user = keyEST(x, "user", user.Name), &user
	return nil
}

// checkUser refuses a request that names something else than its user is for.
func (x *attempt) checkUser() error {
	if x.user == nil {
		return nil
	}
	if what := x.user.Mismatch(x.CSR); what != "" {
		return &pki.PolicyError{Rule: "est.auth.basic.for", Value: what}
	}
	return nil
}

// keyEST hashes what makes two EST requests the same: profile, operation, who sent it and the
// CertificationRequestInfo without the challengePassword, which proves nothing here and differs with the
// connection (RFC 7030 §3.5): a device that waits for a person comes back by another. Who sent it is the
// certificate, where that is (part of) the proof, and what was verified besides.
func keyEST(x *attempt, kind, who string) store.TransactionKey {
	var cert [sha256.Size]byte
	if len(x.Peer) > 0 && (kind == "certificate" || x.renews != nil) {
		cert = sha256.Sum256(x.Peer[0].Raw)
	}
	return hashFields("est", []byte(x.Profile), []byte(x.Operation), cert[:], []byte(kind), []byte(who), x.CSR.RawSubject, x.CSR.RawSPKI, x.CSR.RawUnbound)
}
