package enroll

import (
	"bytes"
	"context"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/challenge"
)

// cloud is Intune as far as enrollment sees it.
type cloud struct {
	mu      sync.Mutex
	asked   []string
	failing error  // of Succeeded
	hook    func() // called by Succeeded
}

func (c *cloud) say(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = append(c.asked, what)
}

func (c *cloud) validate(_ context.Context, r challenge.Request) error {
	c.say("validate " + r.TransactionID)
	if r.Challenge != "blob" {
		return challenge.ErrWrong
	}
	return nil
}

func (c *cloud) Succeeded(ctx context.Context, transaction string, csr, certificate []byte) error {
	c.say("succeeded " + transaction)
	if len(csr) == 0 || len(certificate) == 0 || ctx.Err() != nil {
		return errors.New("without CSR, certificate or time")
	}
	c.mu.Lock()
	hook, err := c.hook, c.failing
	c.mu.Unlock()
	if hook != nil {
		hook()
	}
	return err
}

func (c *cloud) Failed(_ context.Context, transaction string, csr []byte, why error) error {
	c.say("failed " + transaction)
	if len(csr) == 0 || why == nil {
		return errors.New("without CSR or reason")
	}
	return nil
}

func (c *cloud) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failing = err
}

// intune has a profile take Intune's challenges.
func (b *box) intune(profile string, c *cloud) {
	p := b.engine.profiles[profile]
	p.Intune, p.Challenges = c, challenge.NewSet(challenge.Config{Intune: c.validate})
	b.engine.profiles[profile] = p
	must(b.t, p.check())
}

func (c *cloud) want(t *testing.T, want ...string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if diff := cmp.Diff(want, c.asked); diff != "" {
		t.Errorf("Intune was told (-want +got):\n%s", diff)
	}
	c.asked = nil
}

// While Intune does not know of it a certificate is given to nobody, by no way, across a restart; a
// retry tells Intune again.
func TestIntune(t *testing.T) {
	b, c := newBox(t), &cloud{}
	b.intune("corp", c)
	d := newDevice(t)
	r := d.request(printer)
	r.Proof.Challenge = "guess"
	b.refused(r, ErrChallenge)
	c.want(t, "validate TRANSACTION")

	r.Proof.Challenge = "blob"
	c.fail(errors.New("503"))
	b.refused(r, ErrWithheld)
	c.want(t, "validate TRANSACTION", "succeeded TRANSACTION")
	log := b.log()
	serial := log[len(log)-1].Serial
	if serial == "" {
		serial = log[len(log)-2].Serial
	}
	gives := func() bool {
		t.Helper()
		n, ok := new(big.Int).SetString(serial, 16)
		if !ok {
			t.Fatalf("serial %q", serial)
		}
		_, err := b.engine.Certificate("corp", b.issuer.Certificate().RawSubject, n)
		if err != nil && !errors.Is(err, ErrNoCertificate) {
			t.Error(err)
		}
		found, _, lerr := b.engine.Certificates(Query{Serial: serial})
		must(t, lerr)
		if len(found) != 1 || found[0].Withheld != (err != nil) || (found[0].Certificate == nil) != (err != nil) {
			t.Errorf("listed as %+v, GetCert says %v", found, err)
		}
		return err == nil
	}
	if gives() {
		t.Error("a withheld certificate was given away")
	}
	held, err := b.store.Transaction(serial)
	must(t, err)
	b.refused(d.renewal(held.Certificate, d, printer), ErrSignerUnknown) // had it leaked, it proves nothing
	b.crash()
	b.intune("corp", c)
	b.refused(r, ErrWithheld)
	if gives() {
		t.Error("a withheld certificate was given away after a restart")
	}
	c.want(t, "validate TRANSACTION", "succeeded TRANSACTION")
	c.fail(nil)
	r.SenderNonce = nonce()
	res := b.issue(r)
	if res.Serial != serial || !res.Replayed || !gives() {
		t.Errorf("after Intune was told: %+v", res)
	}
	c.want(t, "validate TRANSACTION", "succeeded TRANSACTION")
	if again := b.issue(r); again.Serial != serial {
		t.Error("the retry got another certificate")
	}
	c.want(t, "validate TRANSACTION")
	if n := b.signer.signed(); n != 1 {
		t.Errorf("%d signatures", n)
	}
	if !slices.ContainsFunc(b.log(), func(r audit.Record) bool {
		return r.Action == audit.SCEPPKCSReqIntune && r.Serial == serial && r.Outcome == audit.OutcomeSuccess
	}) {
		t.Errorf("the certificate for Intune's challenge is recorded as another's: %+v", b.log())
	}
	delivered := slices.IndexFunc(b.log(), func(r audit.Record) bool { return r.Action == audit.CertificateDelivered && r.Serial == serial })
	if delivered < 0 {
		t.Error("the delivery has no record")
	}
	b.close()
}

// The power goes between Intune's answer and the record of it: Intune is told again.
func TestPowerCutWhileTellingIntune(t *testing.T) {
	b, c := newBox(t), &cloud{}
	b.intune("corp", c)
	r := newDevice(t).request(printer)
	r.Proof.Challenge = "blob"
	old := *b
	c.hook = func() {
		c.hook = nil
		b.crash()
		b.intune("corp", c)
	}
	first, err := old.enroll(r)
	must(t, err)
	c.want(t, "validate TRANSACTION", "succeeded TRANSACTION")
	if res := b.issue(r); res.Serial != first.Serial || !bytes.Equal(res.Certificate, first.Certificate) {
		t.Error("after the power cut another certificate")
	}
	c.want(t, "validate TRANSACTION", "succeeded TRANSACTION")
	b.close()
	old.close()
}

// Intune is told of refusals that are final, and told nothing of what may still come.
func TestIntuneRefused(t *testing.T) {
	b, c := newBox(t), &cloud{}
	b.intune("corp", c)
	b.intune("compliant", c)
	d := newDevice(t)
	with := func(r Request) Request { r.Proof.Challenge = "blob"; return r }
	if _, err := b.enroll(with(d.request(pkix.Name{CommonName: "printer-7", Locality: []string{"here"}}))); err == nil {
		t.Error("issued against the policy")
	}
	c.want(t, "validate TRANSACTION", "failed TRANSACTION")
	b.refused(with(in("compliant", d.request(pkix.Name{CommonName: "rooted-phone"}))), ErrCompliance)
	c.want(t, "validate TRANSACTION", "failed TRANSACTION")
	b.signer.set(func() error { return errHolderBusy })
	b.refused(with(d.request(printer)), ErrBusy)
	c.want(t, "validate TRANSACTION")
	b.signer.set(nil)
	must(t, func() error { _, err := b.enroll(with(d.request(printer))); return err }())
	c.want(t, "validate TRANSACTION", "succeeded TRANSACTION")

	p := b.engine.profiles["corp"]
	for _, approval := range []Approval{{Manual: true}, {ManualIf: []string{".x"}}} {
		p.Approval = approval
		if err := p.check(); err == nil || !strings.Contains(err.Error(), "Intune") {
			t.Errorf("Intune with approval: %v", err)
		}
	}
	b.close()
}

// With a certificate that is replaced at once, the one before is good until Intune knows of the next.
func TestIntuneReplaces(t *testing.T) {
	b, c := newBox(t), &cloud{}
	b.intune("strict", c)
	p := b.engine.profiles["strict"]
	p.RevokeOnReplace = true
	b.engine.profiles["strict"] = p
	d := newDevice(t)
	r := in("strict", d.request(printer))
	r.Proof.Challenge = "blob"
	first := b.issue(r)
	renewal := in("strict", d.renewal(first.Certificate, d, printer))
	renewal.Proof.Challenge = "blob"
	c.fail(errors.New("503"))
	b.refused(renewal, ErrWithheld)
	b.wantStatus(first.Serial, CertStatus{State: Good, NotAfter: start.Add(validity)})
	c.fail(nil)
	second := b.issue(renewal)
	b.wantStatus(first.Serial, CertStatus{State: Revoked, At: start, Reason: 4, NotAfter: start.Add(validity)})
	b.wantStatus(second.Serial, CertStatus{State: Good, NotAfter: start.Add(validity)})
	b.close()
}

func (b *box) wantStatus(serial string, want CertStatus) {
	b.t.Helper()
	got, err := b.engine.CertificateStatus(b.issuer.ID(), serial)
	must(b.t, err)
	want.NotAfter, want.At, got.NotAfter, got.At = want.NotAfter.Truncate(time.Second), want.At.UTC(), got.NotAfter.Truncate(time.Second), got.At.UTC()
	if diff := cmp.Diff(want, got); diff != "" {
		b.t.Errorf("status of %s (-want +got):\n%s", serial, diff)
	}
}
