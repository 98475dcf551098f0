package enroll

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/pki"
)

const (
	held     = "request_held pending"
	approved = "request_approved success"
	deniedBy = "request_denied refused"
)

// held enrolls and expects to wait.
func (b *box) held(r Request) string {
	b.t.Helper()
	res, err := b.enroll(r)
	must(b.t, err)
	if !res.Pending || len(res.ID) != 16 || res.Certificate != nil {
		b.t.Fatalf("result %+v, want pending", res)
	}
	return res.ID
}

// poll asks for what became of r, as its sender.
func (b *box) poll(r Request) (*Result, error) {
	return b.engine.Poll(context.Background(), Poll{
		Profile: r.Profile, Protocol: r.Protocol, TransactionID: r.TransactionID, SignerSPKI: r.Proof.SignerSPKI, Source: source,
	})
}

func (b *box) pollPending(r Request, id string) {
	b.t.Helper()
	if res, err := b.poll(r); err != nil || !res.Pending || res.ID != id || res.Certificate != nil {
		b.t.Errorf("poll: %+v, %v", res, err)
	}
}

func (b *box) approve(id string) error { return b.engine.Approve(context.Background(), id, "olga") }

// waiting are the ids of the requests that wait.
func (b *box) waiting() []string {
	b.t.Helper()
	list, err := b.engine.PendingRequests()
	must(b.t, err)
	var ids []string
	for _, p := range list {
		ids = append(ids, p.ID)
	}
	return ids
}

func TestApproval(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	r := in("manual", d.request(printer, "p7.example.com"))
	id := b.held(r)
	if b.signer.signed() != 0 {
		t.Error("something was signed before anybody approved")
	}
	b.pollPending(r, id)
	again := r
	again.SenderNonce = nonce()
	if b.held(again) != id {
		t.Error("the same request sent again is held twice")
	}
	b.crash()
	b.pollPending(r, id)
	if b.held(again) != id {
		t.Error("after a crash the request is held twice")
	}
	list, err := b.engine.PendingRequests()
	must(t, err)
	if len(list) == 1 {
		list[0].CSRSHA256 = ""
	}
	if diff := cmp.Diff([]PendingRequest{{
		ID: id, Profile: "manual", Protocol: "scep", Transaction: "TRANSACTION", Identity: "printer-7", Subject: "CN=printer-7", Names: "1 more name: dns:p7.example.com",
		Source: "192.0.2.1", Since: start,
	}}, list); diff != "" {
		t.Errorf("pending (-want +got):\n%s", diff)
	}

	b.clock.advance(48 * time.Hour) // people take their time
	must(t, b.approve(id))
	if len(b.waiting()) != 0 {
		t.Error("an approved request still waits")
	}
	if err := b.approve(id); !errors.Is(err, ErrDecided) {
		t.Errorf("approving twice: %v", err)
	}
	if err := b.engine.Deny(context.Background(), id, "olga", ""); !errors.Is(err, ErrDecided) {
		t.Errorf("denying what was approved: %v", err)
	}
	first, err := b.poll(r)
	must(t, err)
	cert, err := x509.ParseCertificate(first.Certificate)
	must(t, err)
	if !bytes.Equal(cert.RawSubjectPublicKeyInfo, r.CSR.RawSPKI) || cert.DNSNames[0] != "p7.example.com" || first.ID != id {
		t.Error("the certificate is another one than was asked for")
	}
	b.clock.advance(24 * time.Hour)
	b.crash()
	if res, err := b.poll(r); err != nil || res.Serial != first.Serial {
		t.Errorf("a day later: %+v, %v", res, err)
	}
	if res := b.issue(again); res.Serial != first.Serial || !res.Replayed {
		t.Errorf("the request itself, a day later, got %+v", res)
	}
	b.clock.advance(time.Second)
	if res, err := b.poll(r); !errors.Is(err, ErrNoRequest) {
		t.Errorf("more than a day later: %+v, %v", res, err)
	}
	wantLog(b, held, approved, begun, issued, refused)
	rec := b.log()[1]
	if rec.Actor != "olga" || rec.Identity != "printer-7" || rec.Serial != first.Serial || rec.Source != "192.0.2.1" {
		t.Errorf("record %+v", rec)
	}
	b.close()
}

// Nothing is issued by a clock that is not trusted, whoever approves it.
func TestApprovalWithoutClock(t *testing.T) {
	b := newBox(t)
	id := b.held(in("manual", newDevice(t).request(printer)))
	b.clock.advance(-2 * time.Hour)
	if err := b.approve(id); !errors.Is(err, ErrClock) {
		t.Errorf("approved: %v", err)
	}
	b.clock.advance(2 * time.Hour)
	must(t, b.approve(id))
	b.close()
}

func TestDenial(t *testing.T) {
	b := newBox(t)
	r := in("manual", newDevice(t).request(printer))
	id := b.held(r)
	must(t, b.engine.Deny(context.Background(), id, "olga", "not one of ours"))
	b.crash()
	for range 2 {
		if res, err := b.poll(r); !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "not one of ours") {
			t.Errorf("poll: %+v, %v", res, err)
		}
	}
	b.refused(r, ErrDenied)
	if err := b.approve(id); !errors.Is(err, ErrDecided) {
		t.Errorf("approving what was denied: %v", err)
	}
	b.clock.advance(25 * time.Hour)
	if next := b.held(r); next == id {
		t.Error("a new request took the denied one's place")
	}
	if n := b.signer.signed(); n != 0 {
		t.Errorf("%d signatures", n)
	}
	wantLog(b, held, deniedBy, refused, held)
	b.close()
}

// A message that got its certificate by approval is not held again when it is captured and sent later.
func TestReplayOfApproved(t *testing.T) {
	b := newBox(t)
	r := in("manual", newDevice(t).request(printer))
	must(t, b.approve(b.held(r)))
	b.clock.advance(25 * time.Hour)
	b.refused(r, ErrReplay)
	r.SenderNonce = nonce()
	b.held(r)
	b.close()
}

// One source has so many requests waiting, over all profiles, and no more.
func TestTooManyHeldOfOneSource(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	held := func(profile, cn, from string) error {
		r := in(profile, d.request(pkix.Name{CommonName: cn}))
		r.TransactionID, r.Source = string(nonce()), netip.MustParseAddr(from)
		res, err := b.enroll(r)
		if err == nil && !res.Pending {
			t.Error("not held")
		}
		return err
	}
	for range maxHeldSource - 1 {
		must(t, held("manual", "printer-7", "2001:db8::1"))
	}
	must(t, held("suffix", "x.approve.test", "2001:db8::2"))
	for _, profile := range []string{"manual", "suffix"} {
		if err := held(profile, "y.approve.test", "2001:db8::3"); !errors.Is(err, ErrHeldFull) {
			t.Errorf("%s: %v", profile, err)
		}
	}
	one := b.waiting()[0] // in no order
	must(t, held("manual", "printer-7", "2001:db8:0:1::1"))
	must(t, b.approve(one))
	must(t, held("manual", "printer-7", "2001:db8::3"))
	b.close()
}

// What nobody decides on counts as denied after its time, and says so in the log.
func TestHeldExpires(t *testing.T) {
	b := newBox(t)
	r := in("manual", newDevice(t).request(printer))
	id := b.held(r)
	must(t, b.engine.expireHeld())
	b.clock.advance(heldFor - time.Second)
	must(t, b.engine.expireHeld())
	b.pollPending(r, id)
	b.clock.advance(time.Second)
	if err := b.approve(id); !errors.Is(err, ErrDecided) {
		t.Errorf("approving what waited too long: %v", err)
	}
	b.crash()
	must(t, b.engine.expireHeld())
	if waiting := b.waiting(); len(waiting) != 0 {
		t.Errorf("still waiting: %v", waiting)
	}
	if _, err := b.poll(r); !errors.Is(err, ErrDenied) {
		t.Errorf("polling: %v", err)
	}
	rec := b.log()[len(b.log())-1]
	if rec.Action != audit.RequestExpired || rec.Actor != audit.ActorBox || rec.Outcome != audit.OutcomeRefused || rec.Identity != "printer-7" {
		t.Errorf("record %+v", rec)
	}
	b.clock.advance(retryWindow + time.Second)
	r.SenderNonce = nonce()
	if again := b.held(r); again == id {
		t.Error("the same request is held under the same id")
	}
	b.close()
}

// Only the key that made a request learns what became of it.
func TestPollByOthers(t *testing.T) {
	b := newBox(t)
	r := in("manual", newDevice(t).request(printer))
	id := b.held(r)
	other := func(change func(*Request)) Request { o := r; change(&o); return o }
	strangers := map[string]Request{
		"another key":         other(func(r *Request) { r.Proof.SignerSPKI = newDevice(t).request(printer).CSR.RawSPKI }),
		"no key":              other(func(r *Request) { r.Proof.SignerSPKI = nil }),
		"another transaction": other(func(r *Request) { r.TransactionID = "OTHER" }),
		"another profile":     other(func(r *Request) { r.Profile = "suffix" }),
	}
	for range 2 {
		for name, o := range strangers {
			if res, err := b.poll(o); !errors.Is(err, ErrNoRequest) || res != nil {
				t.Errorf("%s: %+v, %v", name, res, err)
			}
		}
		if b.signer.signed() == 0 {
			must(t, b.approve(id))
		}
	}
	if _, err := b.poll(other(func(r *Request) { r.Profile = "nowhere" })); !errors.Is(err, ErrUnknownProfile) {
		t.Errorf("unknown profile: %v", err)
	}
	// The key in another encoding, as certificates write it, is the same key.
	spki := append([]byte(nil), r.Proof.SignerSPKI...)
	spki = append(spki, 0x05, 0x00)
	spki[1] += 2
	if res, err := b.poll(other(func(r *Request) { r.Proof.SignerSPKI = spki })); err != nil || res.Certificate == nil {
		t.Errorf("the key in another encoding: %+v, %v", res, err)
	}
	b.close()
}

// Whoever approves is shown all that is issued, also where the log keeps less; what could not be shown
// is not held.
func TestNothingIsApprovedUnseen(t *testing.T) {
	b := newBox(t)
	long := strings.Repeat("n", 50) + ".example.com"
	var names []string
	for i := range 18 {
		names = append(names, fmt.Sprintf("n%d.%s", i, long))
	}
	group := pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{
		{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "other-" + strings.Repeat("o", 300)},
		{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "printer-7"},
	}}
	b.held(in("manual", newDevice(t).request(group, names...)))
	list, err := b.engine.PendingRequests()
	must(t, err)
	if want := "CN=other-" + strings.Repeat("o", 300) + ",CN=printer-7"; list[0].Subject != want || list[0].Identity != "printer-7" {
		t.Errorf("identity %q, subject %q", list[0].Identity, list[0].Subject)
	}
	for _, want := range append(names, strings.Repeat("o", 300)) {
		if !strings.Contains(list[0].Names, want) {
			t.Errorf("%s is not shown", want)
		}
	}
	var refused *pki.PolicyError
	if _, err := b.enroll(in("manual", newDevice(t).request(printer, append(names, names...)...))); !errors.As(err, &refused) || refused.Rule != "approval" {
		t.Errorf("more than can be shown: %v", err)
	}
	if len(b.waiting()) != 1 {
		t.Error("it waits")
	}
	b.close()
}

func TestApprovalBySuffix(t *testing.T) {
	b := newBox(t)
	b.held(in("suffix", newDevice(t).request(pkix.Name{CommonName: "Pump.Approve.TEST"})))
	b.issue(in("suffix", newDevice(t).request(printer)))
	b.close()
}

// What could not be polled for is not held, and keeps its one-time challenge.
func TestRequestThatCannotWait(t *testing.T) {
	b := newBox(t)
	r := in("manual", newDevice(t).request(printer))
	r.Proof.Challenge, r.AnswerNow = b.mint("manual", "printer-7"), true
	b.refused(r, ErrHold)
	if len(b.waiting()) != 0 {
		t.Error("it waits")
	}
	other := in("manual", newDevice(t).request(printer))
	other.Proof.Challenge = r.Proof.Challenge
	b.held(other)
	r = newDevice(t).request(printer)
	r.AnswerNow = true
	b.issue(r)
	b.close()
}

// A renewal is held like any other request, and is one when it is approved.
func TestHeldRenewal(t *testing.T) {
	b := newBox(t)
	d, next := newDevice(t), newDevice(t)
	first := in("manual", d.request(printer, "p7.example.com"))
	must(t, b.approve(b.held(first)))
	res, err := b.poll(first)
	must(t, err)
	r := in("manual", next.renewal(res.Certificate, d, printer))
	id := b.held(r)
	if list, err := b.engine.PendingRequests(); err != nil || len(list) != 1 || list[0].Renews != res.Serial {
		t.Errorf("pending: %+v, %v", list, err)
	}
	must(t, b.approve(id))
	second, err := b.poll(r)
	must(t, err)
	cert, err := x509.ParseCertificate(second.Certificate)
	must(t, err)
	if len(cert.DNSNames) != 1 || cert.DNSNames[0] != "p7.example.com" || !bytes.Equal(cert.RawSubjectPublicKeyInfo, r.CSR.RawSPKI) {
		t.Errorf("renewed for %v", cert.DNSNames)
	}
	wantLog(b, held, approved, begun, issued, held, approved, begun, renewed)

	// What is revoked by the time somebody approves is not renewed.
	third := in("manual", d.renewal(second.Certificate, next, printer))
	id = b.held(third)
	must(t, b.engine.Revoke(context.Background(), second.Serial, "keyCompromise", "olga"))
	if err := b.approve(id); !errors.Is(err, ErrSignerRevoked) {
		t.Errorf("approving the renewal of a revoked certificate: %v", err)
	}
	if last := b.log()[len(b.log())-1]; last.Action != audit.RequestApproved || last.Outcome != audit.OutcomeRefused ||
		last.Actor != "olga" || last.Identity != "printer-7" || last.Reason != ErrSignerRevoked.Error() {
		t.Errorf("its record: %+v", last)
	}
	must(t, b.engine.Deny(context.Background(), id, "olga", "revoked"))
	b.close()
}

// The signer fails, or the power goes, while an approved request is signed: it waits again.
func TestApprovalThatFails(t *testing.T) {
	for _, c := range []struct {
		name string
		hook error
		want error
		log  string
	}{{"busy", errHolderBusy, ErrBusy, failed}, {"error", errors.New("TPM_RC_FAILURE"), ErrUnavailable, lost}} {
		t.Run(c.name, func(t *testing.T) {
			b := newBox(t)
			r := in("manual", newDevice(t).request(printer))
			id := b.held(r)
			b.signer.set(func() error { return c.hook })
			if err := b.approve(id); !errors.Is(err, c.want) {
				t.Errorf("approving: %v, want %v", err, c.want)
			}
			b.signer.set(nil)
			b.pollPending(r, id)
			if diff := cmp.Diff([]string{id}, b.waiting()); diff != "" {
				t.Errorf("waiting (-want +got):\n%s", diff)
			}
			must(t, b.approve(id))
			if res, err := b.poll(r); err != nil || res.Certificate == nil {
				t.Errorf("poll: %+v, %v", res, err)
			}
			wantLog(b, held, approved, begun, c.log, approved, begun, issued)
			b.close()
		})
	}
	t.Run("power cut", func(t *testing.T) {
		b := newBox(t)
		r := in("manual", newDevice(t).request(printer))
		id := b.held(r)
		old := *b
		b.signer.set(func() error {
			b.signer.set(nil)
			b.crash()
			return nil
		})
		must(t, old.approve(id))
		b.pollPending(r, id)
		must(t, b.approve(id))
		if res, err := b.poll(r); err != nil || res.Certificate == nil {
			t.Errorf("poll: %+v, %v", res, err)
		}
		wantLog(b, held, approved, begun, lost, approved, begun, issued)
		b.close()
		old.close()
	})
}

// A request is held against the profile as it is when somebody approves.
func TestApprovalUnderAnotherPolicy(t *testing.T) {
	b := newBox(t)
	id := b.held(in("manual", newDevice(t).request(printer)))
	b.engine.ownNames = func() []string { return []string{"printer-7"} }
	if err := b.approve(id); err == nil || !strings.Contains(err.Error(), "a name of this box") {
		t.Errorf("approving: %v", err)
	}
	if diff := cmp.Diff([]string{id}, b.waiting()); diff != "" {
		t.Errorf("waiting (-want +got):\n%s", diff)
	}
	wantLog(b, held, "request_approved refused")
	b.close()
}

// A challenge is not written to the disk, and a request that is held has used it up.
func TestHeldOneTimeChallenge(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	r := in("manual", d.request(printer))
	r.Proof.Challenge = b.mint("manual", "printer-7")
	id := b.held(r)
	thief := in("manual", newDevice(t).request(printer))
	thief.Proof.Challenge = r.Proof.Challenge
	b.refused(thief, ErrChallenge)
	if b.held(r) != id {
		t.Error("held twice")
	}
	b.clock.advance(48 * time.Hour) // its time is over, its request's not
	if b.held(r) != id {
		t.Error("the challenge does not authenticate the request it was used for")
	}
	must(t, b.approve(id))
	b.refused(thief, ErrChallenge)
	if res := b.issue(r); !res.Replayed {
		t.Error("the request sent again got another certificate")
	}
	b.close()
}

// Two people decide at once, while the device polls: one of them does.
func TestDecidingAtOnce(t *testing.T) {
	b := newBox(t)
	r := in("manual", newDevice(t).request(printer))
	id := b.held(r)
	var all sync.WaitGroup
	var mu sync.Mutex
	done := 0
	for i := range 40 {
		all.Go(func() {
			var err error
			switch i % 4 {
			case 0:
				err = b.approve(id)
			case 1:
				err = b.engine.Deny(context.Background(), id, "otto", "no")
			case 2:
				if _, err := b.poll(r); err != nil && !errors.Is(err, ErrDenied) {
					t.Error(err)
				}
				return
			default:
				if _, err := b.enroll(r); err != nil && !errors.Is(err, ErrDenied) {
					t.Error(err)
				}
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				done++
			} else if !errors.Is(err, ErrDecided) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := b.signer.signed(); done != 1 || n > 1 {
		t.Errorf("%d decisions took effect, %d signatures", done, n)
	}
	b.close()
}

func TestTooManyHeld(t *testing.T) {
	b := newBox(t)
	p := b.engine.profiles["manual"]
	p.Limits = Limits{}
	b.engine.profiles["manual"] = p
	full := func() error {
		d := newDevice(t)
		for i := range maxHeld {
			r := in("manual", d.request(printer))
			r.TransactionID = string(nonce())
			r.Source = netip.AddrFrom4([4]byte{10, 0, 0, byte(i / maxHeldSource)})
			if _, err := b.enroll(r); err != nil {
				return err
			}
		}
		return nil
	}
	must(t, full())
	r := in("manual", newDevice(t).request(printer))
	b.refused(r, ErrHeldFull)
	must(t, b.engine.Deny(context.Background(), b.waiting()[0], "olga", "spam"))
	b.held(r)
	b.close()
}
