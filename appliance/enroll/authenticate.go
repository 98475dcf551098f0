package enroll

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/challenge"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

// authenticate returns the request as an attempt once its proof is good: a challenge, or the
// certificate it renews.
func (e *Engine) authenticate(ctx context.Context, r Request) (*attempt, error) {
	p, ok := e.profiles[r.Profile]
	if !ok {
		return nil, ErrUnknownProfile
	}
	if r.Raw && !p.RawCSR {
		return nil, ErrRaw
	}
	if r.MTLS != nil {
		isRevoked, err := e.IsRevoked(r.MTLS)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		if isRevoked {
			return nil, ErrSignerRevoked
		}
	}
	now := e.now()
	x := &attempt{Request: r, profile: p, issuers: p.Issuers(), csrSum: sha256.Sum256(r.CSR.Raw)}
	renewed, err := e.renewed(x, now)
	switch {
	case err != nil:
		return nil, err
	case renewed == nil && r.Renewal:
		return nil, ErrSignerUnknown
	case renewed == nil:
		// Whoever captured an envelope could sign it again with a key of their own and have the answer
		// encrypted to that. Names may differ: Cisco ASA signs with another subject than it asks for.
		if !isSigner(r.Proof.SignerSPKI, r.CSR) {
			return nil, ErrSignerKey
		}
		x.key = transactionKey(r)
		return x, e.challenge(ctx, x, now)
	}

	x.renews, x.supersedes = renewed.certificate, renewed.Serial
	x.key = renewalKey(r, x.renews)
	if x.CSR, err = r.CSR.Inherit(x.renews); err != nil {
		return nil, err
	}
	// A certificate is no proof for another profile than its own: that one's usages may be worth more
	// than the challenge it took to get this one.
	if p.Renewal.Proof == ProofCertificateChallenge || renewed.Profile != p.Name {
		return x, e.challenge(ctx, x, now)
	}
	return x, nil
}

// challenge verifies the challenge of x. What its use takes up is taken in the batch of the intent.
func (e *Engine) challenge(ctx context.Context, x *attempt, now time.Time) error {
	v, err := x.profile.Challenges.Verify(ctx, challenge.Request{
		Challenge: x.Proof.Challenge, CSR: x.CSR, Transaction: x.key, Source: x.Source, Now: now,
	})
	switch {
	case errors.Is(err, challenge.ErrWrong):
		return fmt.Errorf("%w: %w", ErrChallenge, err)
	case errors.Is(err, challenge.ErrBusy):
		return fmt.Errorf("%w: %w", ErrBusy, err)
	case err != nil:
		return err
	}
	x.verdict = v
	return nil
}

// issuedCertificate is a certificate of this box with what became of it.
type issuedCertificate struct {
	store.Transaction
	certificate *x509.Certificate
}

// renewed returns the certificate that signed the request, where this profile's authority issued it
// and the profile renews certificates: the request is then a renewal, or refused as one. Otherwise
// nil.
func (e *Engine) renewed(x *attempt, now time.Time) (*issuedCertificate, error) {
	p, r := x.profile, x.Request
	if p.Renewal.Proof == "" {
		return nil, nil
	}
	signer, err := x509.ParseCertificate(r.Proof.SignerCertificate)
	if err != nil { // not one of ours: those parse
		return nil, nil
	}
	i, err := e.lookUp(signer)
	if i == nil || err != nil {
		return nil, err
	}
	issuer := x.issuers.find(func(issuer *pki.Issuer) bool { return isFrom(i.Transaction, issuer) })
	if issuer == nil {
		return nil, nil
	}
	// The store alone is not believed: whoever can write it could add certificates.
	if err := signer.CheckSignatureFrom(issuer.Certificate()); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSignerUnknown, err)
	}
	if !bytes.Equal(signer.RawSubjectPublicKeyInfo, r.Proof.SignerSPKI) {
		return nil, ErrSignerKey
	}
	if err := e.checkClock(now); err != nil {
		return nil, err
	}
	switch {
	case i.Revoked():
		return nil, ErrSignerRevoked
	case now.After(signer.NotAfter.Add(p.Renewal.Grace)):
		return nil, ErrSignerExpired
	case now.Before(signer.NotAfter.Add(-p.Renewal.Window)):
		return nil, ErrRenewalEarly
	}
	return i, nil
}

// lookUp returns what the store knows of a certificate, nil if it did not issue exactly that one.
func (e *Engine) lookUp(cert *x509.Certificate) (*issuedCertificate, error) {
	t, err := e.store.Transaction(serialText(cert.SerialNumber))
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if t.State != store.Issued || !bytes.Equal(t.Certificate, cert.Raw) {
		return nil, nil
	}
	return &issuedCertificate{t, cert}, nil
}

// serialText is a serial number as everywhere: lower-case hex, two digits an octet.
func serialText(n *big.Int) string { return fmt.Sprintf("%x", n.Bytes()) }

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

// action is the audit action of what becomes of x.
func (x *attempt) action() audit.Action {
	isSigned := x.verdict.Kind == challenge.KindSigned
	switch {
	case x.renews != nil && isSigned:
		return audit.SCEPRenewalReqIntune
	case x.renews != nil:
		return audit.SCEPRenewalReq
	case isSigned:
		return audit.SCEPPKCSReqIntune
	}
	return audit.SCEPPKCSReq
}

// reason is what the log says of x besides its identity. Which certificate it renews stands there because
// whoever revokes that one has to find what it was renewed to.
func (x *attempt) reason() string {
	var parts []string
	if x.Raw {
		parts = append(parts, "raw CSR")
	}
	if x.supersedes != "" {
		parts = append(parts, "renews "+x.supersedes)
	}
	if text := x.CSR.OtherNames(); text != "" {
		parts = append(parts, text)
	}
	return strings.Join(parts, "; ")
}
