package enroll

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"signet.internal/appliance/store"
)

// retryWindow is how long a request is answered with the certificate it got before, or with its denial:
// one of SCEP, or one that was held. estWindow is the same for others of EST, whose clients keep sending
// one CSR whenever they want another certificate.
const (
	retryWindow = 24 * time.Hour
	estWindow   = 10 * time.Minute
)

// earlier returns what became of x before, if x is a retry or the request is held, and otherwise the
// serial of the newest transaction of its key, "" if there is none.
//
// A first request, signed by a throw-away certificate, and a renewal are recognised by their
// transaction key, of which the certificate to be renewed is a part: clients derive their transaction
// id from the key and renew with both unchanged. What any other certificate signed is new unless it is
// the same message byte for byte. A certificate that is held back is delivered first.
func (e *Engine) earlier(ctx context.Context, x *attempt, now time.Time) (*Result, string, error) {
	held, err := e.store.HeldByKey(x.key)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, "", fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	switch {
	case held.State == store.Waiting:
		return &Result{Pending: true, ID: held.ID}, "", nil
	case held.State == store.Denied && now.Sub(held.Decided) <= retryWindow:
		return nil, "", denied(held)
	}
	newest, err := e.store.Newest(x.key)
	if errors.Is(err, store.ErrNotFound) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	answered := newest
	if x.Protocol == ProtocolSCEP && !x.Proof.SelfSigned && x.renews == nil {
		answered, err = e.store.Replayed(replayKey(x.key, x.SenderNonce))
		if errors.Is(err, store.ErrNotFound) {
			return nil, newest.Serial, nil
		}
		if err != nil {
			return nil, "", fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	res := stored(answered, now)
	if res == nil || !x.isRetryOf(answered, now) {
		return nil, newest.Serial, nil
	}
	if answered.Withheld {
		if x.profile.Intune == nil {
			return nil, "", ErrWithheld
		}
		if err := e.deliver(ctx, x, answered.Serial, answered.Certificate); err != nil {
			return nil, "", err
		}
	}
	return res, "", nil
}

// isRetryOf reports whether x, which has the key of t, is answered by it.
func (x *attempt) isRetryOf(t store.Transaction, now time.Time) bool {
	switch {
	case x.Operation == OpServerKeyGen: // the key that was made for it is gone
		return false
	case x.Protocol != ProtocolEST || t.Held != "":
		return true
	case x.Operation == OpReenroll && !x.isReplaced:
		return false
	}
	return now.Sub(t.Decided) <= estWindow
}

// stored is the answer a transaction still gives, nil if it gives none.
func stored(t store.Transaction, now time.Time) *Result {
	if t.State != store.Issued || t.Revoked() || now.Sub(t.Decided) > retryWindow {
		return nil
	}
	return &Result{Certificate: t.Certificate, Serial: t.Serial, ID: t.Held, Replayed: true}
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

// transactionKey hashes what makes two first requests the same: profile, transaction id, the
// signer's public key and the CertificationRequestInfo. The same transaction id and key with another
// CSR is another request.
//
// The key is taken from the CSR, which equals the signer's: the signer's certificate is not signed, and
// whoever captured a message could write the key in it another way.
func transactionKey(r Request) store.TransactionKey {
	return hashFields("transaction", []byte(r.Protocol), []byte(r.Profile), []byte(r.TransactionID), r.CSR.RawSPKI, r.CSR.RawInfo)
}

// renewalKey hashes what makes two renewals the same: besides what transactionKey does, the
// certificate they renew.
func renewalKey(r Request, renews *x509.Certificate) store.TransactionKey {
	sum := sha256.Sum256(renews.Raw)
	return hashFields("renewal", []byte(r.Protocol), []byte(r.Profile), []byte(r.TransactionID), sum[:], r.CSR.RawInfo)
}

// replayKey names the very message. A SCEP message without senderNonce has the empty one: outside
// the retry window it then counts as a replay of the first, however often it is made anew.
func replayKey(key store.TransactionKey, nonce []byte) store.ReplayKey {
	return hashFields("message", key[:], nonce)
}

// replay names the message of x where it can be told from a new one: a bare CSR has no nonce, and
// neither have requests of EST.
func (x *attempt) replay() store.ReplayKey {
	if x.Raw || x.Protocol == ProtocolEST {
		return store.ReplayKey{}
	}
	return replayKey(x.key, x.SenderNonce)
}

// pollKey names a held request as the device that made it does. The key is written in its one
// canonical form, because certificates write it in several.
func pollKey(protocol, profile, transaction string, spki []byte) (store.PollKey, error) {
	key, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return store.PollKey{}, fmt.Errorf("signer key: %w", err)
	}
	canonical, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return store.PollKey{}, fmt.Errorf("signer key: %w", err)
	}
	return hashFields("poll", []byte(protocol), []byte(profile), []byte(transaction), canonical), nil
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
