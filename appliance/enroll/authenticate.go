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
	"slices"
	"strings"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/challenge"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

// authenticate returns the request as an attempt once its proof is good.
func (e *Engine) authenticate(ctx context.Context, r Request) (*attempt, error) {
	p, ok := e.profiles[r.Profile]
	if !ok {
		return nil, ErrUnknownProfile
	}
	if p.isOff() {
		return nil, ErrProfileOff
	}
	now := e.now()
	x := &attempt{Request: r, profile: p, issuers: p.Issuers(), csrSum: sha256.Sum256(r.CSR.Raw)}
	if r.Protocol == ProtocolEST {
		return x, e.authenticateEST(ctx, x, now)
	}
	return x, e.authenticateSCEP(ctx, x, now)
}

// authenticateSCEP accepts a challenge, or the certificate that the request renews.
func (e *Engine) authenticateSCEP(ctx context.Context, x *attempt, now time.Time) error {
	if x.Raw && !x.profile.RawCSR {
		return ErrRaw
	}
	if x.MTLS != nil {
		isRevoked, err := e.IsRevoked(x.MTLS)
		if err != nil {
			return err
		}
		if isRevoked {
			return ErrSignerRevoked
		}
	}
	var chain []*x509.Certificate
	if signer, err := x509.ParseCertificate(x.Proof.SignerCertificate); err == nil { // else none of ours: those parse
		chain = append(chain, signer)
	}
	renewed, err := e.renewed(x, chain, now)
	switch {
	case err != nil:
		return err
	case renewed == nil && x.Renewal:
		return ErrSignerUnknown
	case renewed == nil:
		// Whoever captured an envelope could sign it again with a key of their own and have the answer
		// encrypted to that. Names may differ: Cisco ASA signs with another subject than it asks for.
		if !isSigner(x.Proof.SignerSPKI, x.CSR) {
			return ErrSignerKey
		}
		x.key = transactionKey(x.Request)
		return e.challenge(ctx, x, now)
	case !bytes.Equal(renewed.certificate.RawSubjectPublicKeyInfo, x.Proof.SignerSPKI):
		return ErrSignerKey
	}

	x.key = renewalKey(x.Request, renewed.certificate)
	needsChallenge, err := x.renew(renewed)
	if err != nil || !needsChallenge {
		return err
	}
	return e.challenge(ctx, x, now)
}

// renew makes x a renewal, and reports whether that needs more proof than the certificate.
func (x *attempt) renew(renewed *origin) (needsMore bool, err error) {
	x.renews, x.supersedes, x.isReplaced = renewed.certificate, renewed.serial, renewed.isReplaced
	if x.CSR, err = x.CSR.Inherit(x.renews); err != nil {
		return false, err
	}
	return x.profile.Renewal.Proof == ProofCertificateChallenge || renewed.isOther, nil
}

// challenge verifies the challenge of x. What its use takes up is taken in the batch of the intent.
func (e *Engine) challenge(ctx context.Context, x *attempt, now time.Time) error {
	v, err := x.profile.Challenges.Verify(ctx, challenge.Request{
		Challenge: x.Proof.Challenge, CSR: x.CSR, Transaction: x.key, TransactionID: x.TransactionID, Source: x.Source, Now: now,
	})
	if err != nil {
		return challengeError(err, ErrChallenge)
	}
	x.verdict = v
	return nil
}

// challengeError says what it means to the sender that a challenge or password was not found good; wrong
// is what a wrong one is. What says nothing about it is the box's own trouble.
func challengeError(err, wrong error) error {
	means := ErrUnavailable
	switch {
	case errors.Is(err, challenge.ErrWrong):
		means = wrong
	case errors.Is(err, challenge.ErrTooMany):
		means = ErrTooManyFailures
	case errors.Is(err, challenge.ErrBusy):
		means = ErrBusy
	case errors.Is(err, challenge.ErrNoVerdict): // whatever kept it from one, its time limit among others
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	}
	return fmt.Errorf("%w: %w", means, err)
}

// origin is a certificate that is renewed.
type origin struct {
	certificate *x509.Certificate
	serial      string // in the store; "" where another authority issued it

	// isOther: it was issued by another profile of the authority. It is no proof for this one then: this
	// one's usages may be worth more than the challenge it took to get it.
	isOther bool

	// isReplaced: it is revoked because it was renewed. All it proves is a retry of that renewal, whose
	// answer may have been lost on its way.
	isReplaced bool
}

// renewed returns the first certificate of a chain, whose key its sender has shown to have, where this
// profile renews it: one that the profile's authority issued, or one of RenewFrom. The request is then
// a renewal, or refused as one. Otherwise nil.
func (e *Engine) renewed(x *attempt, chain []*x509.Certificate, now time.Time) (*origin, error) {
	p := x.profile
	if p.Renewal.Proof == "" || len(chain) == 0 {
		return nil, nil
	}
	cert := chain[0]
	t, err := e.lookUp(cert)
	if err != nil {
		return nil, err
	}
	var issuer *pki.Issuer
	if t != nil {
		issuer = x.issuers.find(func(i *pki.Issuer) bool { return isFrom(*t, i) })
	}
	if issuer == nil {
		return e.fromOther(p, chain, now)
	}
	isOther := t.Profile != p.Name
	if isOther && x.Protocol == ProtocolEST && x.Operation != OpReenroll { // a first request
		return nil, nil
	}
	// The store alone is not believed: whoever can write it could add certificates.
	if err := cert.CheckSignatureFrom(issuer.Certificate()); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSignerUnknown, err)
	}
	if err := e.checkClock(now); err != nil {
		return nil, err
	}
	isReplaced := t.Revoked() && t.Reason == reasonSuperseded && t.SupersededBy != ""
	isCompromised, err := e.isCompromised(cert.RawSubjectPublicKeyInfo)
	switch {
	case err != nil:
		return nil, err
	case isCompromised, t.Revoked() && !isReplaced:
		return nil, ErrSignerRevoked
	case now.After(cert.NotAfter.Add(p.Renewal.Grace)):
		return nil, ErrSignerExpired
	case now.Before(cert.NotAfter.Add(-p.Renewal.Window)):
		return nil, ErrRenewalEarly
	}
	return &origin{certificate: cert, serial: t.Serial, isOther: isOther, isReplaced: isReplaced}, nil
}

// fromOther returns a certificate that one of RenewFrom issued, for clients, nil if none did. It may be
// renewed at any time until its end.
func (e *Engine) fromOther(p Profile, chain []*x509.Certificate, now time.Time) (*origin, error) {
	if p.RenewFrom == nil || chain[0].IsCA {
		return nil, nil
	}
	if err := e.checkClock(now); err != nil {
		return nil, err
	}
	if verifyClient(chain, p.RenewFrom(), now) != nil {
		return nil, nil
	}
	isRevoked, err := e.IsRevoked(chain[0]) // it may be another authority of this box
	if err != nil {
		return nil, err
	}
	if isRevoked {
		return nil, ErrSignerRevoked
	}
	return &origin{certificate: chain[0]}, nil
}

// verifyClient verifies a client's chain against roots: signatures, dates, and that it is for clients
// (or for anything). A certificate that is itself among the roots is not enough.
func verifyClient(chain []*x509.Certificate, roots *x509.CertPool, now time.Time) error {
	if roots == nil { // which crypto/x509 would take for the roots of the system
		roots = x509.NewCertPool()
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	chains, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(chains, func(c []*x509.Certificate) bool { return len(c) > 1 }) {
		return errors.New("it is no certificate of the trusted authorities but one of those")
	}
	return nil
}

// lookUp returns what the store knows of a certificate, nil if it did not issue exactly that one or
// holds it back. One it issued with its signature written in another way is refused: where some bundle
// has the authority of it, it would be taken there for one of which nothing is known.
func (e *Engine) lookUp(cert *x509.Certificate) (*store.Transaction, error) {
	t, err := e.store.Transaction(serialText(cert.SerialNumber))
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if bytes.Equal(t.Template, cert.RawTBSCertificate) && !bytes.Equal(t.Certificate, cert.Raw) {
		return nil, fmt.Errorf("%w: its signature is not the one that was made", ErrSignerUnknown)
	}
	if t.State != store.Issued || t.Withheld || !bytes.Equal(t.Certificate, cert.Raw) {
		return nil, nil
	}
	return &t, nil
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

// isManaged reports whether a device manager made the challenge of x.
func (x *attempt) isManaged() bool {
	return x.verdict.Kind == challenge.KindSigned || x.verdict.Kind == challenge.KindIntune
}

// action is the audit action of what becomes of x.
func (x *attempt) action() audit.Action {
	switch x.Operation { // of EST
	case OpEnroll:
		return audit.ESTSimpleEnroll
	case OpReenroll:
		return audit.ESTSimpleReenroll
	case OpServerKeyGen:
		return audit.ESTServerKeyGen
	}
	switch {
	case x.renews != nil && x.isManaged():
		return audit.SCEPRenewalReqIntune
	case x.renews != nil:
		return audit.SCEPRenewalReq
	case x.isManaged():
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
	} else if x.renews != nil {
		parts = append(parts, "renews "+serialText(x.renews.SerialNumber)+" of "+pki.FormatDN(x.renews.RawIssuer))
	}
	if x.user != nil {
		parts = append(parts, "user "+x.user.Name)
	}
	if text := x.CSR.OtherNames(); text != "" {
		parts = append(parts, text)
	}
	return strings.Join(parts, "; ")
}
