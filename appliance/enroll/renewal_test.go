package enroll

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

const renewed = "scep_renewalreq success"

// A certificate renews itself without a challenge, whatever the message calls itself, by its own key
// or for a new one, and the new one says which it supersedes.
func TestRenewal(t *testing.T) {
	for _, c := range []struct {
		name    string
		renewal bool
		rekey   bool
	}{{"type 17, same key", true, false}, {"type 19, same key", false, false}, {"type 17, new key", true, true}, {"type 19, new key", false, true}} {
		t.Run(c.name, func(t *testing.T) {
			b := newBox(t)
			d := newDevice(t)
			first := b.issue(d.request(printer, "p7.example.com"))
			next := d
			if c.rekey {
				next = newDevice(t)
			}
			r := next.renewal(first.Certificate, d, printer, "p7.example.com")
			r.Renewal = c.renewal
			second := b.issue(r)
			if second.Serial == first.Serial || second.Replayed {
				t.Error("a renewal got the certificate it renews")
			}
			if x, err := b.store.Transaction(second.Serial); err != nil || x.Supersedes != first.Serial {
				t.Errorf("supersedes %q: %v", x.Supersedes, err)
			}
			for _, rec := range b.log() {
				if rec.Serial == second.Serial && !strings.HasPrefix(rec.Reason, "renews "+first.Serial) {
					t.Errorf("the log does not say what was renewed: %+v", rec)
				}
			}

			// The same message again, and the same request in a new message, are retries for a day.
			again := r
			again.SenderNonce = nonce()
			for _, r := range []Request{r, again} {
				if res := b.issue(r); res.Serial != second.Serial || !res.Replayed {
					t.Errorf("a retry got %s, want %s", res.Serial, second.Serial)
				}
			}
			b.crash()
			b.clock.advance(24 * time.Hour)
			if res := b.issue(again); res.Serial != second.Serial {
				t.Errorf("a retry after a crash got %s, want %s", res.Serial, second.Serial)
			}
			b.clock.advance(time.Second)
			b.refused(r, ErrReplay)

			// The renewed certificate renews in turn.
			third := b.issue(next.renewal(second.Certificate, next, printer, "p7.example.com"))
			if third.Serial == second.Serial {
				t.Error("the second renewal got the first one's certificate")
			}
			wantLog(b, begun, issued, begun, renewed, refused, begun, renewed)
			b.close()
		})
	}
}

// A request without subjectAltNames keeps those of its certificate; with others it is refused.
func TestRenewalIdentity(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	first := b.issue(d.request(printer, "p7.example.com", "alias.example.com"))
	res := b.issue(d.renewal(first.Certificate, d, printer))
	cert, err := x509.ParseCertificate(res.Certificate)
	must(t, err)
	if !slices.Equal(cert.DNSNames, []string{"p7.example.com", "alias.example.com"}) {
		t.Errorf("the renewed certificate has names %v", cert.DNSNames)
	}
	for _, r := range []Request{
		d.renewal(first.Certificate, d, pkix.Name{CommonName: "admin"}),
		d.renewal(first.Certificate, d, printer, "p7.example.com"),
		d.renewal(first.Certificate, d, printer, "p7.example.com", "alias.example.com", "admin.example.com"),
	} {
		before := len(b.log())
		b.refused(r, ErrRenewalIdentity)
		r.Renewal = false
		r.Proof.Challenge = secret // the right challenge makes no other identity of a renewal
		b.refused(r, ErrRenewalIdentity)
		if recs := b.log()[before:]; len(recs) != 2 || recs[0].Action != audit.SCEPRefused || !strings.Contains(recs[0].Reason, "another subject") {
			t.Errorf("records %+v", recs)
		}
	}
	b.close()
}

func TestRenewalSigner(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	first := b.issue(d.request(printer))
	stranger := newBox(t)
	foreign := stranger.issue(d.request(printer))
	stranger.close()
	throwaway := d.selfSigned(printer)

	for name, c := range map[string]struct {
		r    Request
		want error
	}{
		"self-signed":                       {d.renewal(throwaway, d, printer), ErrSignerUnknown},
		"another authority's":               {d.renewal(foreign.Certificate, d, printer), ErrSignerUnknown},
		"garbage":                           {d.renewal([]byte{0x30, 0x80}, d, printer), ErrSignerUnknown},
		"none":                              {d.renewal(nil, d, printer), ErrSignerUnknown},
		"the authority itself":              {d.renewal(b.issuer.Certificate().Raw, d, printer), ErrSignerUnknown},
		"another key than the certificate":  {d.renewal(first.Certificate, newDevice(t), printer), ErrSignerKey},
		"a profile that renews nothing":     {in("closed", d.renewal(first.Certificate, d, printer)), ErrSignerUnknown},
		"another profile without challenge": {in("limited", d.renewal(first.Certificate, d, printer)), ErrChallenge},
		"strict profile without challenge":  {in("strict", d.renewal(b.issue(in("strict", d.request(printer))).Certificate, d, printer)), ErrChallenge},
	} {
		before := b.signer.signed()
		if res, err := b.enroll(c.r); !errors.Is(err, c.want) || res != nil {
			t.Errorf("%s: result %+v, error %v; want %v", name, res, err, c.want)
		}
		if b.signer.signed() != before {
			t.Errorf("%s: something was signed", name)
		}
	}

	// Type 19 with an unknown signer is a first request: it needs a challenge and the CSR's key.
	r := d.renewal(foreign.Certificate, d, printer)
	r.Renewal = false
	b.refused(r, ErrChallenge)
	r.Proof.Challenge = secret
	b.issue(r)

	strict := d.renewal(b.issue(in("strict", d.request(printer))).Certificate, d, printer)
	strict.Proof.Challenge = secret
	b.issue(in("strict", strict))
	b.close()
}

// Begun and lost certificates renew nothing: what was handed out is what is in the store.
func TestRenewalOfWhatWasNotIssued(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	var der []byte
	b.signer.set(func() error { return errors.New("TPM_RC_FAILURE") })
	b.refused(d.request(printer), ErrUnavailable)
	b.signer.set(nil)
	x, err := b.store.Transaction(b.log()[0].Serial)
	must(t, err)
	if x.State != store.Lost {
		t.Fatalf("transaction is %s", x.State)
	}
	// What the signer may have made all the same.
	policy := b.profiles()[0].Policy
	prepared, err := b.issuer.Prepare(policy, d.request(printer).CSR, b.clock.Now())
	must(t, err)
	der, err = b.issuer.Issue(prepared)
	must(t, err)
	b.refused(d.renewal(der, d, printer), ErrSignerUnknown)
	b.close()
}

func TestRenewalWindow(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	renew := func(cert []byte) (*Result, error) {
		return b.enroll(in("narrow", d.renewal(cert, d, printer)))
	}
	first := b.issue(in("narrow", d.request(printer)))
	end := start.Add(validity)
	at := func(when time.Time) { b.clock.advance(when.Sub(b.clock.Now())) }
	expect := func(want error) *Result {
		t.Helper()
		res, err := renew(first.Certificate)
		if !errors.Is(err, want) || want == nil && err != nil {
			t.Errorf("at %s: %v, want %v", b.clock.Now(), err, want)
		}
		return res
	}
	at(end.Add(-30*24*time.Hour - time.Second))
	expect(ErrRenewalEarly)
	at(end.Add(-30 * 24 * time.Hour))
	expect(nil)
	at(end.Add(time.Second))
	expect(nil)
	at(end.Add(7 * 24 * time.Hour))
	expect(nil)
	at(end.Add(7*24*time.Hour + time.Second))
	expect(ErrSignerExpired)
	b.close()
}

func TestRenewalOfRevoked(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	first := b.issue(d.request(printer))
	r := d.renewal(first.Certificate, d, printer)
	must(t, b.engine.Revoke(context.Background(), first.Serial, "certificateHold", "olga"))
	b.refused(r, ErrSignerRevoked)
	must(t, b.engine.Revoke(context.Background(), first.Serial, "removeFromCRL", "olga"))
	second := b.issue(r)
	must(t, b.engine.Revoke(context.Background(), second.Serial, "superseded", "olga"))

	// A revoked result is not handed out again, and the message that got it gets no other.
	b.refused(r, ErrReplay)
	again := r
	again.SenderNonce = nonce()
	if third := b.issue(again); third.Serial == second.Serial {
		t.Error("a retry got a revoked certificate")
	}
	b.close()
}

// A certificate that was renewed and then revoked for a reason of its own does not fetch what it was renewed to.
func TestRetryOfRevoked(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	first := b.issue(d.request(printer))
	r := d.renewal(first.Certificate, d, printer)
	b.issue(r)
	must(t, b.engine.Revoke(context.Background(), first.Serial, "cessationOfOperation", "olga"))
	b.refused(r, ErrSignerRevoked)
	b.close()
}

// By a clock that is not trusted nothing is said about a certificate's time, and the log says why.
func TestRenewalWithoutClock(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	first := b.issue(in("narrow", d.request(printer)))
	b.clock.advance(-2 * time.Hour)
	b.refused(in("narrow", d.renewal(first.Certificate, d, printer)), ErrClock)
	if log := b.log(); log[len(log)-1].Reason != "the box does not trust its clock" {
		t.Errorf("record %+v", log[len(log)-1])
	}

	// By which the certificates of others are not valid yet.
	other := newAuthority(t, "Other CA")
	p := b.engine.profiles["corp"]
	p.RenewFrom = other.pool
	b.engine.profiles["corp"] = p
	cert := other.certify(d, printer, nil)
	b.refused(d.renewal(cert, d, printer), ErrClock)
	b.setEST("corp", EST{On: true, Bundle: other.pool})
	b.refused(withPeer(t, d.est("corp", OpEnroll, printer), cert), ErrClock)
	b.close()
}

// The certificate is revoked while the renewal is being decided on.
func TestRevokedWhileRenewing(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	first := b.issue(d.request(printer))
	r := in("compliant", d.renewal(first.Certificate, d, printer))
	r.Proof.Challenge = secret
	p := b.engine.profiles["compliant"]
	p.Compliance = func(ctx context.Context, _ Request) error {
		return b.engine.Revoke(ctx, first.Serial, "cessationOfOperation", "olga")
	}
	b.engine.profiles["compliant"] = p
	b.refused(r, ErrSignerRevoked)
	if n := b.signer.signed(); n != 1 {
		t.Errorf("%d signatures", n)
	}
	b.close()
}

func TestCompliance(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	b.refused(in("compliant", d.request(pkix.Name{CommonName: "rooted-phone"})), ErrCompliance)
	res := b.issue(in("compliant", d.request(printer)))
	b.issue(in("compliant", d.renewal(res.Certificate, d, printer)))
	phone := b.issue(d.request(pkix.Name{CommonName: "rooted-phone"}))
	r := d.renewal(phone.Certificate, d, pkix.Name{CommonName: "rooted-phone"})
	r.Proof.Challenge = secret
	b.refused(in("compliant", r), ErrCompliance)
	b.close()
}

// A bare CSR is taken where the profile says so, and the log says that it was one.
func TestRaw(t *testing.T) {
	b := newBox(t)
	r := newDevice(t).request(printer)
	r.Raw, r.TransactionID, r.SenderNonce = true, "", nil
	b.refused(in("strict", r), ErrRaw)
	first := b.issue(r)
	if same := b.issue(r); same.Serial != first.Serial {
		t.Error("a retry got another certificate")
	}
	if rec := b.log()[2]; rec.Reason != "raw CSR" || rec.Action != audit.SCEPPKCSReq {
		t.Errorf("record %+v", rec)
	}
	b.clock.advance(25 * time.Hour)
	b.issue(r)
	b.close()
}

// A client certificate of this box that is revoked spoils the request.
func TestRevokedClientCertificate(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	first := b.issue(d.request(printer))
	r := newDevice(t).request(printer)
	var err error
	r.MTLS, err = x509.ParseCertificate(first.Certificate)
	must(t, err)
	b.issue(r)
	must(t, b.engine.Revoke(context.Background(), first.Serial, "superseded", "olga"))
	r.SenderNonce = nonce()
	b.refused(r, ErrSignerRevoked)
	if isRevoked, err := b.engine.IsRevoked(r.MTLS); err != nil || !isRevoked {
		t.Errorf("revoked: %v, %v", isRevoked, err)
	}
	b.close()
}

// The power goes while a renewal is signed: the same message works again, under another serial.
func TestPowerCutWhileRenewing(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	first := b.issue(d.request(printer))
	r := d.renewal(first.Certificate, d, printer)
	old := *b
	b.signer.set(func() error {
		b.signer.set(nil)
		b.crash()
		return nil
	})
	if _, err := old.enroll(r); err != nil {
		t.Fatal(err)
	}
	wantLog(b, begun, issued, begun, lost)
	b.issue(r)
	wantLog(b, begun, issued, begun, lost, begun, renewed)
	b.close()
	old.close()
}

// The store is not believed about certificates the authority's key did not sign.
func TestForgedCertificateInTheStore(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	der := d.selfSigned(pkix.Name{CommonName: "admin"})
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	issuer, key := b.issuer.ID(), sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	rec := func(o audit.Outcome) audit.Record {
		a := audit.IssuanceBegun
		if o == audit.OutcomeSuccess {
			a = audit.SCEPPKCSReq
		}
		return audit.Record{Time: start, TimeSource: "host", Action: a, Outcome: o, Serial: serialText(cert.SerialNumber)}
	}
	must(t, b.store.Begin(store.Intent{Serial: serialText(cert.SerialNumber), Profile: "corp", Issuer: issuer[:], PublicKey: key[:], Begun: start}, rec(audit.OutcomeBegun)))
	must(t, b.store.Finish(serialText(cert.SerialNumber), der, start, rec(audit.OutcomeSuccess)))
	b.refused(d.renewal(der, d, pkix.Name{CommonName: "admin"}), ErrSignerUnknown)
	must(t, b.engine.Close())
	must(t, b.store.Close())
}

// A policy that became stricter holds for renewals too.
func TestRenewalUnderAnotherPolicy(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	first := b.issue(d.request(printer, "p7.example.com"))
	p := b.engine.profiles["corp"]
	var err error
	p.Policy, err = pki.NewProfile(pki.ProfileConfig{
		Keys: pki.KeyConfig{ECDSA: []string{"p256"}}, Subject: pki.SubjectConfig{Allow: []string{"CN"}},
		Usage: pki.UsageConfig{Key: []string{"digitalSignature"}, Extended: []string{"clientAuth"}}, Validity: validity,
	})
	must(t, err)
	b.engine.profiles["corp"] = p
	_, err = b.enroll(d.renewal(first.Certificate, d, printer))
	var policy *pki.PolicyError
	if !errors.As(err, &policy) || policy.Rule != "san.dns" {
		t.Errorf("an inherited name that is not allowed any more: %v", err)
	}
	b.close()
}
