package enroll

import (
	"bytes"
	"context"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"math/big"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/pki"
)

// crl asks for the CRL and checks that it is the authority's. It returns the list with the reasons of
// its serials.
func (b *box) crl() (*x509.RevocationList, map[string]int) {
	b.t.Helper()
	der, err := b.engine.CRL(context.Background(), "corp")
	must(b.t, err)
	list, err := x509.ParseRevocationList(der)
	must(b.t, err)
	must(b.t, list.CheckSignatureFrom(b.issuer.Certificate()))
	serials := map[string]int{}
	for _, entry := range list.RevokedCertificateEntries {
		serials[serialText(entry.SerialNumber)] = entry.ReasonCode
	}
	return list, serials
}

func (b *box) wantCRL(number int64, want map[string]int) {
	b.t.Helper()
	list, serials := b.crl()
	if diff := cmp.Diff(want, serials); diff != "" || list.Number.Int64() != number {
		b.t.Errorf("CRL %d, want %d; entries (-want +got):\n%s", list.Number, number, diff)
	}
}

// revoke revokes, and waits until a list may be signed anew.
func (b *box) revoke(serial, reason string) error {
	err := b.engine.Revoke(context.Background(), serial, reason, "olga")
	b.clock.advance(crlRest)
	return err
}

// A clock that was ahead for a while, by a firmware setup or a broken battery, takes nothing off the lists that are
// signed when it is right again.
func TestClockAheadUnrevokesNothing(t *testing.T) {
	b := newBox(t)
	b.timeSource = "rtc" // which raises no floor: the box goes on when the clock is right again
	b.crash()
	res := b.issue(newDevice(t).request(printer))
	must(t, b.revoke(res.Serial, "keyCompromise"))
	released := b.issue(newDevice(t).request(printer))
	must(t, b.revoke(released.Serial, "certificateHold"))
	b.signer.set(func() error { return errors.New("TPM_RC_FAILURE") })
	b.refused(newDevice(t).request(printer), ErrUnavailable)
	b.signer.set(nil)
	b.clock.advance(crlRest)
	log := b.log()
	burnt := log[len(log)-1].Serial
	b.wantCRL(1, map[string]int{res.Serial: 1, released.Serial: 6, burnt: 0})

	b.clock.advance(2 * validity)
	b.wantCRL(2, map[string]int{res.Serial: 1, released.Serial: 6, burnt: 0}) // one past their end
	b.clock.advance(crlValidity)
	b.wantCRL(3, map[string]int{})
	b.clock.advance(-2*validity - crlValidity)
	b.crash()
	must(t, b.revoke(released.Serial, "removeFromCRL"))
	b.wantCRL(4, map[string]int{res.Serial: 1, burnt: 0})
	b.clock.advance(validity + time.Hour) // the clock is right, and they end
	b.wantCRL(5, map[string]int{res.Serial: 1, burnt: 0})
	b.clock.advance(crlValidity)
	b.wantCRL(6, map[string]int{})
	b.close()
}

// What is revoked right after a list was signed shares the next one, three seconds later.
func TestRevocationsShareASignature(t *testing.T) {
	b := newBox(t)
	b.wantCRL(1, map[string]int{})
	want := map[string]int{}
	for range 3 {
		res := b.issue(newDevice(t).request(printer))
		must(t, b.engine.Revoke(context.Background(), res.Serial, "superseded", "olga"))
		want[res.Serial] = 4
		b.wantCRL(1, map[string]int{})
		b.clock.advance(crlRest / 4)
	}
	b.clock.advance(crlRest / 4)
	b.wantCRL(2, want)
	b.clock.advance(crlRest)
	b.wantCRL(2, want)
	b.close()
}

func TestRevocation(t *testing.T) {
	b := newBox(t)
	b.wantCRL(1, map[string]int{})
	b.wantCRL(1, map[string]int{}) // cached
	first, second := b.issue(newDevice(t).request(printer)), b.issue(newDevice(t).request(printer))
	b.wantCRL(1, map[string]int{})

	must(t, b.revoke(first.Serial, "keyCompromise"))
	b.wantCRL(2, map[string]int{first.Serial: 1})
	must(t, b.revoke(second.Serial, "certificateHold"))
	b.wantCRL(3, map[string]int{first.Serial: 1, second.Serial: 6})
	b.crash()
	b.wantCRL(4, map[string]int{first.Serial: 1, second.Serial: 6}) // bytes are not kept, numbers are
	must(t, b.revoke(second.Serial, "removeFromCRL"))
	b.wantCRL(5, map[string]int{first.Serial: 1})
	must(t, b.revoke(second.Serial, "certificateHold"))
	must(t, b.revoke(second.Serial, "superseded"))
	b.wantCRL(6, map[string]int{first.Serial: 1, second.Serial: 4})

	for _, c := range []struct {
		serial, reason string
		want           error
	}{
		{first.Serial, "keyCompromise", ErrRevoked},
		{first.Serial, "certificateHold", ErrRevoked},
		{first.Serial, "removeFromCRL", ErrNotOnHold},
		{second.Serial, "removeFromCRL", ErrNotOnHold},
		{first.Serial, "bored", ErrReason},
		{first.Serial, "", ErrReason},
		{"00ff", "superseded", ErrNoCertificate},
		{"", "superseded", ErrNoCertificate},
		{"../..", "superseded", ErrNoCertificate},
	} {
		before := len(b.log())
		if err := b.revoke(c.serial, c.reason); !errors.Is(err, c.want) {
			t.Errorf("revoking %q as %q: %v, want %v", c.serial, c.reason, err, c.want)
		}
		if len(b.log()) != before {
			t.Errorf("revoking %q as %q left a record", c.serial, c.reason)
		}
	}
	var reasons []string
	for _, rec := range b.log() {
		switch rec.Action {
		case audit.CertificateRevoked, audit.CertificateReleased:
			if rec.Actor != "olga" || rec.Identity != "printer-7" || rec.Profile != "corp" || rec.Outcome != audit.OutcomeSuccess {
				t.Errorf("record %+v", rec)
			}
			reasons = append(reasons, string(rec.Action)+" "+rec.Reason)
		}
	}
	if diff := cmp.Diff([]string{
		"certificate_revoked keyCompromise", "certificate_revoked certificateHold", "certificate_released removeFromCRL",
		"certificate_revoked certificateHold", "certificate_revoked superseded",
	}, reasons); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	b.close()
}

// otherSignature is the same certificate with its ECDSA signature written the other way that verifies.
func otherSignature(t *testing.T, der []byte) *x509.Certificate {
	t.Helper()
	var cert struct {
		TBS, Algorithm asn1.RawValue
		Signature      asn1.BitString
	}
	var signature struct{ R, S *big.Int }
	_, err := asn1.Unmarshal(der, &cert)
	must(t, err)
	_, err = asn1.Unmarshal(cert.Signature.Bytes, &signature)
	must(t, err)
	signature.S.Sub(elliptic.P256().Params().N, signature.S)
	b, err := asn1.Marshal(signature)
	must(t, err)
	cert.Signature = asn1.BitString{Bytes: b, BitLength: 8 * len(b)}
	b, err = asn1.Marshal(cert)
	must(t, err)
	other, err := x509.ParseCertificate(b)
	must(t, err)
	return other
}

// A revoked certificate stays so however its holder writes the authority's signature.
func TestRevokedWithAnotherSignature(t *testing.T) {
	b := newBox(t)
	res := b.issue(newDevice(t).request(printer))
	other := otherSignature(t, res.Certificate)
	must(t, other.CheckSignatureFrom(b.issuer.Certificate()))
	if bytes.Equal(other.Raw, res.Certificate) {
		t.Fatal("the certificate is unchanged")
	}
	if isRevoked, err := b.engine.IsRevoked(other); err != nil || isRevoked {
		t.Errorf("before it is revoked: %v, %v", isRevoked, err)
	}
	must(t, b.revoke(res.Serial, "keyCompromise"))
	if isRevoked, err := b.engine.IsRevoked(other); err != nil || !isRevoked {
		t.Errorf("after it is revoked: %v, %v", isRevoked, err)
	}
	b.close()
}

// Every reason has its code on the CRL.
func TestReasons(t *testing.T) {
	b := newBox(t)
	want := map[string]int{}
	for name, code := range pki.Reasons() {
		serial := b.issue(newDevice(t).request(printer)).Serial
		must(t, b.revoke(serial, name))
		want[serial] = code
	}
	b.wantCRL(1, want)
	b.close()
}

// A serial under which a signature may exist is on the CRL, at once or after the next start.
func TestBurntSerialsAreListed(t *testing.T) {
	b := newBox(t)
	b.wantCRL(1, map[string]int{})
	b.signer.set(func() error { return errors.New("TPM_RC_FAILURE") })
	b.refused(newDevice(t).request(printer), ErrUnavailable)
	b.signer.set(nil)
	b.clock.advance(crlRest)
	burnt := []string{b.log()[1].Serial}
	b.wantCRL(2, map[string]int{burnt[0]: 0})

	old := *b
	b.signer.set(func() error {
		b.signer.set(nil)
		b.crash()
		return nil
	})
	if _, err := old.enroll(newDevice(t).request(printer)); err != nil {
		t.Fatal(err)
	}
	log := b.log()
	burnt = append(burnt, log[len(log)-1].Serial)
	b.wantCRL(3, map[string]int{burnt[0]: 0, burnt[1]: 0})
	if err := b.revoke(burnt[0], "superseded"); !errors.Is(err, ErrNoCertificate) {
		t.Errorf("revoking a burnt serial: %v", err)
	}

	// Failed with nothing signed: not burnt.
	b.signer.set(func() error { return errHolderBusy })
	b.refused(newDevice(t).request(printer), ErrBusy)
	b.signer.set(nil)
	b.clock.advance(4 * 24 * time.Hour)
	b.wantCRL(4, map[string]int{burnt[0]: 0, burnt[1]: 0})
	b.close()
	old.close()
}

// A list is signed anew at half its time, and what has ended is on one more list and then on none.
func TestCRLOverTime(t *testing.T) {
	b := newBox(t)
	res := b.issue(newDevice(t).request(printer))
	must(t, b.revoke(res.Serial, "superseded"))
	on, off := map[string]int{res.Serial: 4}, map[string]int{}
	b.wantCRL(1, on)
	b.clock.advance(crlValidity/2 - time.Second)
	b.wantCRL(1, on)
	b.clock.advance(time.Second)
	b.wantCRL(2, on)
	b.clock.advance(start.Add(validity).Sub(b.clock.Now()))
	b.wantCRL(3, on) // it ends just now
	b.clock.advance(crlValidity / 2)
	b.wantCRL(4, on)
	b.clock.advance(crlValidity / 2)
	b.wantCRL(5, off)
	list, _ := b.crl()
	if list.NextUpdate.Sub(list.ThisUpdate) != crlValidity || !list.ThisUpdate.Equal(b.clock.Now()) {
		t.Errorf("from %s to %s, now is %s", list.ThisUpdate, list.NextUpdate, b.clock.Now())
	}
	if err := b.revoke(res.Serial, "superseded"); !errors.Is(err, ErrRevoked) {
		t.Errorf("what is off the list is not revoked any more: %v", err)
	}
	b.close()
}

// The power goes while a list is signed: that one was never handed out, and the next has everything.
func TestPowerCutWhileSigningCRL(t *testing.T) {
	b := newBox(t)
	res := b.issue(newDevice(t).request(printer))
	b.wantCRL(1, map[string]int{})
	must(t, b.revoke(res.Serial, "keyCompromise"))
	old := *b
	b.signer.set(func() error {
		b.signer.set(nil)
		b.crash()
		return nil
	})
	old.crl()
	b.wantCRL(2, map[string]int{res.Serial: 1})
	b.crash()
	b.wantCRL(3, map[string]int{res.Serial: 1})
	b.close()
	old.close()
}

func TestCRLRefusals(t *testing.T) {
	b := newBox(t)
	crl := func(profile string) error {
		_, err := b.engine.CRL(context.Background(), profile)
		return err
	}
	if err := crl("nowhere"); !errors.Is(err, ErrUnknownProfile) {
		t.Errorf("unknown profile: %v", err)
	}
	for hook, want := range map[error]error{errHolderBusy: ErrBusy, errors.New("TPM_RC_FAILURE"): ErrUnavailable} {
		b.signer.set(func() error { return hook })
		if err := crl("corp"); !errors.Is(err, want) {
			t.Errorf("signer says %v: %v", hook, err)
		}
	}
	b.signer.set(nil)
	b.clock.advance(-2 * time.Hour)
	if err := crl("corp"); !errors.Is(err, ErrClock) {
		t.Errorf("without a clock: %v", err)
	}
	b.clock.advance(2 * time.Hour)
	b.wantCRL(1, map[string]int{})

	// Where the new list cannot be signed, the old one is not passed off as current.
	res := b.issue(newDevice(t).request(printer))
	must(t, b.revoke(res.Serial, "keyCompromise"))
	b.signer.set(func() error { return errHolderBusy })
	if err := crl("corp"); !errors.Is(err, ErrBusy) {
		t.Errorf("a list without the newest revocation: %v", err)
	}
	b.signer.set(nil)
	b.wantCRL(2, map[string]int{res.Serial: 1})
	b.close()
}

// However many ask at once, a list is signed once, and one that was asked for after a revocation has
// it.
func TestCRLConcurrently(t *testing.T) {
	b := newBox(t)
	const n = 20
	serials := make([]string, n)
	for i := range serials {
		serials[i] = b.issue(newDevice(t).request(printer)).Serial
	}
	var all sync.WaitGroup
	for _, serial := range serials {
		all.Go(func() {
			if err := b.revoke(serial, "superseded"); err != nil {
				t.Error(err)
			}
			if _, on := b.crl(); on[serial] != 4 {
				t.Errorf("%s is not on the list that was asked for after it was revoked", serial)
			}
		})
		all.Go(func() { b.crl() })
	}
	all.Wait()
	list, on := b.crl()
	if len(on) != n || list.Number.Int64() > n+1 {
		t.Errorf("list %d has %d entries", list.Number, len(on))
	}
	b.close()
}

func TestCertificate(t *testing.T) {
	b := newBox(t)
	res := b.issue(newDevice(t).request(printer))
	cert, err := x509.ParseCertificate(res.Certificate)
	must(t, err)
	name := b.issuer.Certificate().RawSubject
	if der, err := b.engine.Certificate("corp", name, cert.SerialNumber); err != nil || !bytes.Equal(der, res.Certificate) {
		t.Errorf("certificate of %d bytes: %v", len(der), err)
	}
	for what, c := range map[string]struct {
		profile string
		issuer  []byte
		serial  *big.Int
		want    error
	}{
		"unknown profile": {"nowhere", name, cert.SerialNumber, ErrUnknownProfile},
		"another issuer":  {"corp", cert.RawSubject, cert.SerialNumber, ErrNoCertificate},
		"unknown serial":  {"corp", name, big.NewInt(0x1234), ErrNoCertificate},
		"zero":            {"corp", name, new(big.Int), ErrNoCertificate},
		"negative":        {"corp", name, new(big.Int).Neg(cert.SerialNumber), ErrNoCertificate},
		"huge":            {"corp", name, new(big.Int).Lsh(cert.SerialNumber, 4096), ErrNoCertificate},
	} {
		if der, err := b.engine.Certificate(c.profile, c.issuer, c.serial); !errors.Is(err, c.want) || der != nil {
			t.Errorf("%s: %d bytes, %v; want %v", what, len(der), err, c.want)
		}
	}
	b.signer.set(func() error { return errors.New("TPM_RC_FAILURE") })
	b.refused(newDevice(t).request(printer), ErrUnavailable)
	log := b.log()
	burnt, ok := new(big.Int).SetString(log[len(log)-1].Serial, 16)
	if der, err := b.engine.Certificate("corp", name, burnt); !ok || !errors.Is(err, ErrNoCertificate) {
		t.Errorf("burnt serial: %d bytes, %v", len(der), err)
	}
	b.signer.set(nil)
	b.close()
}

// A decided request is forgotten in time, together with everything that leads to it.
func TestDecidedRequestsExpire(t *testing.T) {
	b := newBox(t)
	r := in("manual", newDevice(t).request(printer))
	must(t, b.engine.Deny(context.Background(), b.held(r), "olga", "no"))
	sweep := func() int {
		t.Helper()
		n, err := b.store.Sweep(b.clock.Now(), 100)
		must(t, err)
		return n
	}
	b.clock.advance(30 * 24 * time.Hour)
	sweep()
	if _, err := b.poll(r); !errors.Is(err, ErrDenied) {
		t.Errorf("a denial that is not old: %v", err)
	}
	b.clock.advance(2 * 24 * time.Hour)
	if sweep() == 0 {
		t.Error("nothing had expired")
	}
	if _, err := b.poll(r); !errors.Is(err, ErrNoRequest) {
		t.Errorf("a denial that is a month old: %v", err)
	}
	b.close()
}
