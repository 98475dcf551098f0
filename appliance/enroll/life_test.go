package enroll

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

// roll makes the authority's next generation, of the same name, and activates it.
func (b *box) roll() {
	b.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(b.t, err)
	der, err := pki.NewRoot(b.issuer.Certificate().RawSubject, key, b.clock.Now(), 10*365*24*time.Hour, nil)
	must(b.t, err)
	cert, err := x509.ParseCertificate(der)
	must(b.t, err)
	b.next, err = pki.NewIssuer(cert, key)
	must(b.t, err)
	for name, p := range b.engine.profiles {
		p.Issuers = func() Issuers { return Issuers{Active: b.next, Earlier: []*pki.Issuer{b.issuer}} }
		b.engine.profiles[name] = p
	}
}

func serialOf(t *testing.T, serial string) *big.Int {
	t.Helper()
	n, ok := new(big.Int).SetString(serial, 16)
	if !ok {
		t.Fatalf("serial %q", serial)
	}
	return n
}

// Certificates of an earlier generation are renewed by the active one, and revoked, looked up and listed
// under their own.
func TestGenerations(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	first, doomed := b.issue(d.request(printer)), b.issue(newDevice(t).request(printer))
	b.roll()
	b.setEST("corp", EST{On: true, Issued: true})
	for name, r := range map[string]Request{
		"SCEP": d.renewal(first.Certificate, d, printer),
		"EST":  withPeer(t, d.est("corp", OpReenroll, printer), first.Certificate),
	} {
		res, err := b.enroll(r)
		must(t, err)
		cert, err := x509.ParseCertificate(res.Certificate)
		must(t, err)
		if err := cert.CheckSignatureFrom(b.next.Certificate()); err != nil {
			t.Errorf("%s: not renewed by the active generation: %v", name, err)
		}
		der, err := b.engine.Certificate("corp", b.next.Certificate().RawSubject, cert.SerialNumber)
		if err != nil || string(der) != string(res.Certificate) {
			t.Errorf("%s: GetCert: %v", name, err)
		}
		for issuer, want := range map[*pki.Issuer]Status{b.next: Good, b.issuer: Unknown} {
			if got, err := b.engine.CertificateStatus(issuer.ID(), res.Serial); err != nil || got.State != want {
				t.Errorf("%s: status %s, %v; want %s", name, got.State, err, want)
			}
		}
	}
	if _, err := b.engine.Certificate("corp", b.issuer.Certificate().RawSubject, serialOf(t, first.Serial)); err != nil {
		t.Errorf("GetCert of the earlier generation: %v", err)
	}

	must(t, b.revoke(doomed.Serial, "keyCompromise"))
	lists := map[*pki.Issuer]int{b.issuer: 1, b.next: 0}
	for issuer, want := range lists {
		crl, err := b.engine.IssuerCRL(context.Background(), issuer)
		must(t, err)
		list, err := x509.ParseRevocationList(crl.DER)
		must(t, err)
		must(t, list.CheckSignatureFrom(issuer.Certificate()))
		if len(list.RevokedCertificateEntries) != want || list.Number.Uint64() != crl.Number || !list.NextUpdate.Equal(crl.NextUpdate) || !list.ThisUpdate.Equal(crl.ThisUpdate) {
			t.Errorf("%d entries, want %d; %+v", len(list.RevokedCertificateEntries), want, crl)
		}
	}
	cert, err := x509.ParseCertificate(doomed.Certificate)
	must(t, err)
	if is, err := b.engine.IsRevoked(cert); err != nil || !is {
		t.Errorf("revoked %v: %v", is, err)
	}
	b.close()
}

// A generation that is gone is nobody's: its certificates prove nothing.
func TestGenerationGone(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	first := b.issue(d.request(printer))
	b.roll()
	p := b.engine.profiles["corp"]
	p.Issuers = Always(b.next)
	b.engine.profiles["corp"] = p
	b.setEST("corp", EST{On: true, Issued: true})
	b.refused(d.renewal(first.Certificate, d, printer), ErrSignerUnknown)
	b.refused(withPeer(t, d.est("corp", OpReenroll, printer), first.Certificate), ErrCredentials)
	b.close()
}

// Without an active generation nothing is issued or consumed; what was issued before is still answered.
func TestNoAuthority(t *testing.T) {
	b := newBox(t)
	r := newDevice(t).request(printer)
	first := b.issue(r)
	id := b.held(in("manual", newDevice(t).request(printer)))
	for name, p := range b.engine.profiles {
		p.Issuers = func() Issuers { return Issuers{} }
		b.engine.profiles[name] = p
	}
	if again := b.issue(r); again.Serial != first.Serial {
		t.Error("the retry got another certificate")
	}
	secret := b.mint("once", "printer-7")
	other := in("once", newDevice(t).request(printer))
	other.Proof.Challenge = secret
	b.refused(other, ErrNoAuthority)
	if err := b.approve(id); !errors.Is(err, ErrNoAuthority) {
		t.Errorf("approving: %v", err)
	}
	if _, err := b.engine.CRL(context.Background(), "corp"); !errors.Is(err, ErrNoAuthority) {
		t.Errorf("CRL: %v", err)
	}
	for name, p := range b.engine.profiles {
		p.Issuers = Always(b.issuer)
		b.engine.profiles[name] = p
	}
	b.issue(other)
	must(t, b.approve(id))
	b.close()
}

// A profile that is off answers nobody.
func TestProfileOff(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	r := in("manual", d.request(printer))
	id := b.held(r)
	p := b.engine.profiles["manual"]
	isOff := true
	p.Off = func() bool { return isOff }
	b.engine.profiles["manual"] = p
	b.setEST("manual", EST{On: true, Issued: true})
	b.refused(r, ErrProfileOff)
	b.refused(d.est("manual", OpEnroll, printer), ErrProfileOff)
	if _, err := b.poll(r); !errors.Is(err, ErrProfileOff) {
		t.Errorf("polling: %v", err)
	}
	if err := b.approve(id); !errors.Is(err, ErrProfileOff) {
		t.Errorf("approving: %v", err)
	}
	isOff = false
	b.pollPending(r, id)
	must(t, b.approve(id))
	b.close()
}

// A renewed certificate is revoked in the batch of its successor; the renewal whose answer was lost still
// gets it, by SCEP and EST, and nothing else does.
func TestRevokeOnReplace(t *testing.T) {
	b := newBox(t)
	set := func() {
		p := b.engine.profiles["corp"]
		p.RevokeOnReplace = true
		b.engine.profiles["corp"] = p
		b.setEST("corp", EST{On: true, Issued: true})
	}
	set()
	d := newDevice(t)
	first := b.issue(d.request(printer))
	r := d.renewal(first.Certificate, d, printer)
	second := b.issue(r)
	b.wantStatus(first.Serial, CertStatus{State: Revoked, At: start, Reason: 4, NotAfter: start.Add(validity)})
	b.wantCRL(1, map[string]int{first.Serial: 4})
	b.crash()
	set()
	if again := b.issue(r); again.Serial != second.Serial {
		t.Error("the retry got another certificate")
	}
	b.refused(d.renewal(first.Certificate, d, printer, "p8.example.com"), ErrSignerRevoked)
	b.refused(withPeer(t, d.est("corp", OpReenroll, printer), first.Certificate), ErrSignerRevoked)

	e := withPeer(t, newDevice(t).est("corp", OpReenroll, printer), second.Certificate)
	third := b.issue(e)
	if again := b.issue(e); again.Serial != third.Serial || !again.Replayed {
		t.Error("the re-enrollment whose answer was lost got another certificate")
	}
	b.clock.advance(estWindow + time.Second)
	b.refused(e, ErrSignerRevoked)
	must(t, b.revoke(third.Serial, "cessationOfOperation"))
	b.refused(withPeer(t, d.est("corp", OpReenroll, printer), third.Certificate), ErrCredentials)
	b.close()
}

func TestLimitsPerIdentityAndKey(t *testing.T) {
	b := newBox(t)
	p := b.engine.profiles["corp"]
	p.MaxActive, p.UniqueKey = 1, true
	b.engine.profiles["corp"] = p
	d := newDevice(t)
	first := b.issue(d.request(printer))
	_, err := b.enroll(newDevice(t).request(printer))
	if !errors.Is(err, ErrMaxActive) || !strings.Contains(err.Error(), first.Serial) {
		t.Errorf("a second certificate: %v", err)
	}
	second := b.issue(d.renewal(first.Certificate, d, printer))
	b.refused(d.request(pkix.Name{CommonName: "printer-8"}), ErrDuplicateKey)
	b.refused(newDevice(t).renewal(first.Certificate, d, printer), ErrMaxActive)
	must(t, b.revoke(second.Serial, "keyCompromise"))
	for _, profile := range []string{"corp", "manual", "closed"} {
		r := in(profile, d.request(printer))
		_, err := b.enroll(r)
		policy := (*pki.PolicyError)(nil)
		if profile != "closed" && (!errors.As(err, &policy) || policy.Rule != "keys" || !strings.Contains(policy.Value, "keyCompromise")) {
			t.Errorf("%s, a compromised key: %v", profile, err)
		}
	}
	b.issue(newDevice(t).request(printer))
	b.close()
}

func TestStatus(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	res := b.issue(d.request(printer))
	end := start.Add(validity)
	b.wantStatus(res.Serial, CertStatus{State: Good, NotAfter: end})
	must(t, b.revoke(res.Serial, "certificateHold"))
	b.wantStatus(res.Serial, CertStatus{State: Revoked, At: start, Reason: 6, NotAfter: end})
	must(t, b.revoke(res.Serial, "removeFromCRL"))
	b.wantStatus(res.Serial, CertStatus{State: Good, NotAfter: end})
	for _, serial := range []string{"00", "", "not hex", "01ff", strings.Repeat("ab", 40)} {
		b.wantStatus(serial, CertStatus{State: Unknown})
	}
	at := b.clock.Now()
	b.signer.set(func() error { return errors.New("TPM_RC_FAILURE") })
	b.refused(newDevice(t).request(printer), ErrUnavailable)
	b.signer.set(nil)
	log := b.log()
	b.wantStatus(log[len(log)-1].Serial, CertStatus{State: Revoked, At: at, NotAfter: at.Add(validity)})
	if got, err := b.engine.CertificateStatus([32]byte{1}, res.Serial); err != nil || got.State != Unknown {
		t.Errorf("of another issuer: %+v, %v", got, err)
	}
	for _, q := range []Query{{State: "gone"}, {After: "zz"}} {
		if _, _, err := b.engine.Certificates(q); !errors.Is(err, ErrQuery) {
			t.Errorf("%+v: %v", q, err)
		}
	}
	found, next, err := b.engine.Certificates(Query{Identity: "PRINTER", State: "active"})
	must(t, err)
	if len(found) != 1 || found[0].Serial != res.Serial || next != "" || found[0].Issuer != b.issuer.ID() || string(found[0].Certificate) != string(res.Certificate) {
		t.Errorf("found %+v, next %q", found, next)
	}
	b.close()
}

// What a profile may not say.
func TestProfileContradictions(t *testing.T) {
	b := newBox(t)
	good := b.engine.profiles["corp"]
	for name, spoil := range map[string]func(*Profile){
		"EST without a proof":         func(p *Profile) { p.EST.On = true },
		"a proof without EST":         func(p *Profile) { p.EST.Challenge = true },
		"issued without renewal":      func(p *Profile) { p.EST = EST{On: true, Issued: true}; p.Renewal = Renewal{} },
		"renew from without renewal":  func(p *Profile) { p.RenewFrom = x509.NewCertPool; p.Renewal = Renewal{} },
		"fewer than no certificates":  func(p *Profile) { p.MaxActive = -1 },
		"waiting for a negative time": func(p *Profile) { p.HeldFor = -time.Second },
	} {
		p := good
		spoil(&p)
		e, err := New(Config{Store: b.store, Profiles: []Profile{p}, Now: b.clock.Now, TimeSource: "host", Log: b.engine.log})
		if err == nil {
			t.Errorf("%s: accepted", name)
			must(t, e.Close())
		}
	}
	b.close()
}

// A compliance check speaks on renewals too, by either protocol.
func TestComplianceOfRenewals(t *testing.T) {
	b := newBox(t)
	b.setEST("compliant", EST{On: true, Issued: true})
	d := newDevice(t)
	rooted := pkix.Name{CommonName: "rooted-phone"}
	p := b.engine.profiles["compliant"]
	compliance := p.Compliance
	p.Compliance = nil
	b.engine.profiles["compliant"] = p
	first := b.issue(in("compliant", d.request(rooted)))
	p.Compliance = compliance
	b.engine.profiles["compliant"] = p
	b.refused(in("compliant", d.renewal(first.Certificate, d, rooted)), ErrCompliance)
	b.refused(withPeer(t, d.est("compliant", OpReenroll, rooted), first.Certificate), ErrCompliance)
	if got, err := b.store.Transaction(first.Serial); err != nil || got.State != store.Issued || got.SupersededBy != "" {
		t.Errorf("%+v, %v", got, err)
	}
	b.close()
}

// However many of one identity come at once, no more are issued than it may have.
func TestMaxActiveConcurrently(t *testing.T) {
	b := newBox(t)
	b.issue(newDevice(t).request(pkix.Name{CommonName: "printer-1"})) // from now on the challenge costs nothing
	p := b.engine.profiles["corp"]
	p.MaxActive = 3
	b.engine.profiles["corp"] = p
	var all sync.WaitGroup
	var issued atomic.Int32
	for range 20 {
		r := newDevice(t).request(printer)
		all.Go(func() {
			_, err := b.enroll(r)
			if err == nil {
				issued.Add(1)
			} else if !errors.Is(err, ErrMaxActive) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if issued.Load() != 3 {
		t.Errorf("%d were issued", issued.Load())
	}
	b.close()
}

// A certificate that is put on hold while its renewal is signed, or while Intune is told of that, is replaced all the
// same: for good, so that nothing is left to be released.
func TestReplacedOnHoldStaysRevoked(t *testing.T) {
	b, c := newBox(t), &cloud{}
	b.intune("strict", c)
	for _, name := range []string{"corp", "strict"} {
		p := b.engine.profiles[name]
		p.RevokeOnReplace = true
		b.engine.profiles[name] = p
	}
	for _, profile := range []string{"corp", "strict"} {
		d := newDevice(t)
		r := in(profile, d.request(printer))
		if profile == "strict" {
			r.Proof.Challenge = "blob"
		}
		first := b.issue(r)
		renewal := in(profile, d.renewal(first.Certificate, d, printer))
		hold := func() { must(t, b.engine.Revoke(context.Background(), first.Serial, "certificateHold", "olga")) }
		if profile == "strict" {
			renewal.Proof.Challenge = "blob"
			c.hook = hold
		} else {
			b.signer.set(func() error { b.signer.set(nil); hold(); return nil })
		}
		held := b.clock.Now()
		second := b.issue(renewal)
		c.hook = nil
		b.wantStatus(first.Serial, CertStatus{State: Revoked, At: held, Reason: 4, NotAfter: held.Add(validity)})
		b.wantStatus(second.Serial, CertStatus{State: Good, NotAfter: held.Add(validity)})
		if err := b.revoke(first.Serial, "removeFromCRL"); !errors.Is(err, ErrNotOnHold) {
			t.Errorf("%s: releasing what was replaced: %v", profile, err)
		}
	}
	b.close()
}
