package enroll

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

// Explanation is what a person should know of a request that waits, or waited, before deciding on it.
type Explanation struct {
	PendingRequest
	Operation string       // of EST, "" for SCEP
	CSR       *pki.Request // as it came, without its challenge
	Proof     string       // kind of the challenge it brought, see package challenge; "" for none
	Raw       bool         // it came as a bare certification request
	Until     time.Time    // it counts as denied from then on
	Rule      HoldRule     // as the profile is now
	Asks      bool         // the profile's compliance service is asked once more on approval

	// What became of it: zero while it waits.
	Decision store.HeldState // store.Approved or store.Denied
	Decided  time.Time
	By       string // user; "" where nobody decided in time
	Reason   string // of a denial
	Serial   string // of the certificate, lower-case hex

	Renewed *x509.Certificate // that it renews; nil for a first request

	// Of one that waits: the certificate that would be issued now, but for serial number and signature,
	// or why approving would be refused now.
	Would   *x509.Certificate
	Refused error
}

// HoldRule is what of a profile's Approval holds a request.
type HoldRule struct {
	Manual bool   // every request
	Suffix string // or names that end so
	Name   string // the one of the request that does
}

// rule is what of a holds a request; zero where nothing does.
func (a Approval) rule(csr *pki.Request) HoldRule {
	if a.Manual {
		return HoldRule{Manual: true}
	}
	for _, suffix := range a.ManualIf {
		if !csr.EndsWith(suffix) {
			continue
		}
		rule := HoldRule{Suffix: suffix}
		for _, name := range csr.Names() {
			if alone := (&pki.Request{SAN: []pki.Name{{Kind: pki.DNS, Value: name.Value}}}); (name.Kind == pki.CN || name.Kind == pki.DNS) && alone.EndsWith(suffix) {
				rule.Name = name.Value
				break
			}
		}
		return rule
	}
	return HoldRule{}
}

// Explain says what a held request asks for, what holds it and what approving it would issue. Nothing is
// recorded, and no compliance service is asked. ErrNoRequest: there is none of that id.
func (e *Engine) Explain(ctx context.Context, id string) (Explanation, error) {
	if !e.enter() {
		return Explanation{}, ErrClosed
	}
	defer e.running.Done()
	h, err := e.store.Held(id)
	if errors.Is(err, store.ErrNotFound) {
		return Explanation{}, ErrNoRequest
	}
	if err != nil {
		return Explanation{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	csr, err := pki.ParseKept(h.Request)
	if err != nil {
		return Explanation{}, fmt.Errorf("reading held request %s: %w", h.ID, err)
	}
	p := e.profiles[h.Profile]
	out := Explanation{
		PendingRequest: pendingRequest(h, csr), Operation: h.Operation, CSR: csr, Proof: h.Kind, Raw: h.Raw, Until: h.Until,
		Rule: p.Approval.rule(csr), Asks: p.Compliance != nil,
	}
	if h.State != store.Waiting {
		out.Decision, out.Decided, out.By, out.Reason, out.Serial = h.State, h.Decided, h.By, h.Reason, h.Serial
	}
	if out.Renewed, err = e.renewedBy(h); err != nil {
		return Explanation{}, err
	}
	if h.State == store.Waiting {
		out.Would, out.Refused = e.preview(ctx, h)
	}
	return out, nil
}

// pendingRequest is h as it is listed.
func pendingRequest(h store.Held, csr *pki.Request) PendingRequest {
	return PendingRequest{
		ID: h.ID, Profile: h.Profile, Protocol: h.Protocol, Transaction: h.Transaction, Identity: csr.Identity(),
		Subject: pki.FormatDN(csr.RawSubject), Names: csr.AllOtherNames(), Source: h.Source, CSRSHA256: hex.EncodeToString(h.CSR), Renews: h.Supersedes, Since: h.Since,
	}
}

// renewedBy is the certificate that h renews, nil for a first request.
func (e *Engine) renewedBy(h store.Held) (*x509.Certificate, error) {
	der := h.Renews
	if h.Supersedes != "" {
		t, err := e.store.Transaction(h.Supersedes)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		der = t.Certificate
	}
	if len(der) == 0 {
		return nil, nil
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading certificate to be renewed: %w", err)
	}
	return cert, nil
}

// preview decides what approving h would have signed, as Approve does.
func (e *Engine) preview(ctx context.Context, h store.Held) (*x509.Certificate, error) {
	if err := e.gate(); err != nil {
		return nil, err
	}
	now := e.now()
	if err := e.checkClock(now); err != nil {
		return nil, err
	}
	x, err := e.resume(h)
	if err != nil {
		return nil, err
	}
	x.profile.Compliance = nil // who is asked has to know of a decision, not of somebody who looks
	prepared, err := e.prepare(ctx, x, now)
	if err != nil {
		return nil, err
	}
	return unsigned(prepared.Template())
}

// unsigned reads a TBSCertificate, by putting an empty signature under it.
func unsigned(tbs []byte) (*x509.Certificate, error) {
	var fields, algorithm cryptobyte.String
	whole := cryptobyte.String(tbs)
	if !whole.ReadASN1(&fields, cbasn1.SEQUENCE) || !fields.SkipOptionalASN1(cbasn1.Tag(0).ContextSpecific().Constructed()) ||
		!fields.SkipASN1(cbasn1.INTEGER) || !fields.ReadASN1Element(&algorithm, cbasn1.SEQUENCE) {
		return nil, errors.New("reading what would be issued: not a TBSCertificate")
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(tbs)
		b.AddBytes(algorithm)
		b.AddASN1BitString(nil)
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("reading what would be issued: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading what would be issued: %w", err)
	}
	return cert, nil
}

// dueWithout is how long before its end a certificate is due that its profile does not renew.
const dueWithout = 30 * 24 * time.Hour

// Due lists certificates whose devices should have renewed them by now, see DueFrom; those that end first
// come first. profile is "" for any; after and next as with Certificates.
func (e *Engine) Due(profile, after string, limit int) (list []CertInfo, next string, err error) {
	if !e.enter() {
		return nil, "", ErrClosed
	}
	defer e.running.Done()
	q := store.DueQuery{Now: e.now(), Windows: map[string]time.Duration{}, Limit: maxListed, After: after}
	if limit > 0 {
		q.Limit = min(limit, maxListed)
	}
	for name := range e.profiles {
		if profile == "" || profile == name {
			q.Windows[name] = e.dueWindow(name)
		}
	}
	found, next, err := e.store.DueCertificates(q)
	if errors.Is(err, store.ErrCursor) {
		return nil, "", ErrQuery
	}
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	for _, t := range found {
		list = append(list, certInfo(t))
	}
	return list, next, nil
}

// DueFrom is when the device of a certificate should have renewed it: in its profile's renewal window,
// where the profile renews none in its last 30 days, but not before the last third of its life.
func (e *Engine) DueFrom(c CertInfo) time.Time {
	return store.Transaction{Intent: store.Intent{NotAfter: c.NotAfter}, Decided: c.Issued}.DueFrom(e.dueWindow(c.Profile))
}

func (e *Engine) dueWindow(profile string) time.Duration {
	if p := e.profiles[profile]; p.Renewal.Proof != "" {
		return p.Renewal.Window
	}
	return dueWithout
}

// certInfo is a transaction as it is listed.
func certInfo(t store.Transaction) CertInfo {
	info := CertInfo{
		Serial: t.Serial, Identity: t.Identity, Profile: t.Profile, Protocol: t.Protocol, Issued: t.Decided, NotAfter: t.NotAfter,
		RevokedAt: t.RevokedAt, Reason: t.Reason, Renews: t.Supersedes, RenewedBy: t.SupersededBy, Withheld: t.Withheld,
	}
	copy(info.Issuer[:], t.Issuer)
	if !t.Withheld {
		info.Certificate = t.Certificate
	}
	return info
}
