package tpm

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// A keptSession is a policy session that stays open between the signatures of one key. Starting a session
// costs the TPM a multiplication on the SRK's curve, which is as much as an ECDSA signature. The TPM takes
// the policy back after each use (TPM 2.0 Part 1 §19.7, continueSession), so that it is asserted anew for the
// next, what is measured included; nonces roll, and with them the keys that encrypt parameters. One at most is open, so that two of the TPM's three are free for other commands.
type keptSession struct {
	tpm2.Session
	uses int
}

const keepUses = 256

// inSession runs one command of k in a session of its policy that encrypts what goes in. The first of
// several in a row has one for itself; from the second on they share one, until another key is used so.
func (k *Key) inSession(t transport.TPM, a *approval, use func(tpm2.Session) error) error {
	d := k.srk.d
	alone := func() error { return use(k.srk.policySession(k.policy, a, k.auth, encryptIn)) }
	if d.signer != k {
		d.endSession(t)
		d.signer = k
		return alone()
	}
	wasOpen := d.kept != nil
	if !wasOpen {
		session, _, err := tpm2.PolicySession(t, tpm2.TPMAlgSHA256, nonceSize, k.srk.policyOptions(k.policy, k.auth, encryptIn)...)
		if err != nil {
			return fmt.Errorf("starting a session: %w", err)
		}
		d.kept = &keptSession{Session: session}
	}
	err := k.policy.run(t, d.kept.Handle(), a)
	if err == nil {
		err = use(d.kept)
	}
	d.kept.uses++
	if err != nil || d.kept.uses == keepUses {
		d.endSession(t)
	}
	if err != nil && wasOpen && !errors.Is(err, ErrUnreachable) {
		return alone() // whatever became of the session is no reason not to sign
	}
	return err
}

// endSession flushes the kept session.
func (d *Device) endSession(t transport.TPM) {
	if d.kept != nil {
		flush(t, d.kept.Handle())
		d.kept = nil
	}
}
