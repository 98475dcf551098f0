package enroll

import (
	"context"
	"errors"
	"fmt"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/challenge"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

// isIntune reports whether Intune validated x and wants to know what becomes of it.
func (x *attempt) isIntune() bool {
	return x.profile.Intune != nil && x.verdict.Kind == challenge.KindIntune
}

// deliver tells Intune of a certificate that is held back, and then lets it be handed out. Intune is
// told although the client may have left: the retry finds the certificate.
func (e *Engine) deliver(ctx context.Context, x *attempt, serial string, certificate []byte) error {
	if err := x.profile.Intune.Succeeded(context.WithoutCancel(ctx), x.TransactionID, x.CSR.Raw, certificate); err != nil {
		return fmt.Errorf("%w: %w", ErrWithheld, err)
	}
	now := e.now()
	rec := e.recordOf(x, audit.CertificateDelivered, audit.OutcomeSuccess, now)
	rec.Serial = serial
	if err := e.store.Deliver(serial, now, rec); err != nil && !errors.Is(err, store.ErrDecided) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	e.changed(x)
	return nil
}

// tellRefused tells Intune that x, which it had validated, was refused for good.
func (e *Engine) tellRefused(ctx context.Context, x *attempt, cause error) {
	if !x.isIntune() {
		return
	}
	policy := (*pki.PolicyError)(nil)
	isFinal := errors.As(cause, &policy)
	for _, final := range []error{
		ErrChallenge, ErrSignerRevoked, ErrRenewalIdentity, ErrRateLimited, ErrMaxActive, ErrDuplicateKey, ErrCompliance, ErrHold,
	} {
		isFinal = isFinal || errors.Is(cause, final)
	}
	if !isFinal {
		return
	}
	if err := x.profile.Intune.Failed(context.WithoutCancel(ctx), x.TransactionID, x.CSR.Raw, cause); err != nil {
		// The refusal stands, and is recorded. Intune shows the device as without a certificate in any case.
		e.log.Warn("telling Intune of a refusal", "profile", x.Profile, "transaction", x.TransactionID, "error", err)
	}
}
