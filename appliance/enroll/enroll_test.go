package enroll

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

const (
	begun   = "issuance_begun begun"
	issued  = "scep_pkcsreq success"
	failed  = "scep_pkcsreq failed"
	lost    = "transaction_lost lost"
	refused = "scep_refused refused"
)

func wantLog(b *box, want ...string) {
	b.t.Helper()
	if diff := cmp.Diff(want, b.actions()); diff != "" {
		b.t.Errorf("audit log (-want +got):\n%s", diff)
	}
}

func TestEnroll(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	first := b.issue(d.request(printer))
	wantLog(b, begun, issued)
	rec := b.log()[1]
	rec.CSRSHA256 = strings.Repeat("x", len(rec.CSRSHA256))
	if diff := cmp.Diff(audit.Record{
		Index: 1, Time: start, TimeSource: "host", Action: audit.SCEPPKCSReq, Actor: audit.ActorDevice, Source: "192.0.2.1",
		Profile: "corp", Protocol: "scep", Transaction: "TRANSACTION", Identity: "printer-7", Serial: first.Serial,
		CSRSHA256: strings.Repeat("x", 64), Outcome: audit.OutcomeSuccess,
	}, rec); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
	b.close()
}

// The same request, sent again in a new message under a new throw-away certificate, gets the same
// certificate for a day, across restarts, and after that a new one.
func TestRetry(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	r := d.request(printer)
	first := b.issue(r)

	again := r
	again.SenderNonce = nonce()
	again.Proof.SignerCertificate = []byte("another throw-away certificate")
	expectSame := func() {
		t.Helper()
		if res := b.issue(again); res.Serial != first.Serial || !res.Replayed {
			t.Errorf("retry got serial %s, replayed %v; want %s", res.Serial, res.Replayed, first.Serial)
		}
	}
	expectSame()
	b.crash()
	expectSame()
	b.clock.advance(24 * time.Hour)
	expectSame()
	if n := b.signer.signed(); n != 1 {
		t.Errorf("%d signatures", n)
	}

	b.clock.advance(time.Second)
	b.refused(r, ErrReplay) // the very first message, captured and sent again
	if res := b.issue(again); res.Serial == first.Serial || res.Replayed {
		t.Error("a day later a new message still got the old certificate")
	}
	wantLog(b, begun, issued, refused, begun, issued)
	b.close()
}

// The certificate that comes with a message is not signed. Whoever captured the message can write the
// key in it another way, and must not get another certificate made by that.
func TestCapturedMessageWithAnotherEncodingOfItsKey(t *testing.T) {
	b := newBox(t)
	r := newDevice(t).request(printer)
	first := b.issue(r)
	r.Proof.SignerSPKI = append(slices.Clone(r.Proof.SignerSPKI), 0x05, 0x00)
	r.Proof.SignerSPKI[1] += 2
	if res := b.issue(r); res.Serial != first.Serial || !res.Replayed {
		t.Error("the same message got another certificate")
	}
	b.clock.advance(25 * time.Hour)
	b.refused(r, ErrReplay)
	b.close()
}

// No device gets a certificate for the box itself.
func TestNameOfTheBox(t *testing.T) {
	b := newBox(t)
	_, err := b.enroll(newDevice(t).request(pkix.Name{CommonName: "BOX.example.com"}))
	var policy *pki.PolicyError
	if !errors.As(err, &policy) {
		t.Errorf("error %v", err)
	}
	wantLog(b, refused)
	b.close()
}

// Every name a certificate is good for is in the log, not only the one it is called by.
func TestLogHasEveryName(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	subject := pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{
		{Type: []int{2, 5, 4, 3}, Value: "admin"}, {Type: []int{2, 5, 4, 3}, Value: "printer-7"},
	}}
	b.issue(d.request(subject))
	for _, rec := range b.log() {
		if rec.Identity != "printer-7" || rec.Reason != "1 more name: CN=admin" {
			t.Errorf("%s: identity %q, reason %q", rec.Action, rec.Identity, rec.Reason)
		}
	}
	b.close()
}

// What differs in any part of the key is another request.
func TestNotARetry(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	r := d.request(printer)
	first := b.issue(r)
	wrong := r
	wrong.Proof.Challenge = "wrong"
	b.refused(wrong, ErrChallenge) // a retry authenticates like any other
	for name, other := range map[string]func() Request{
		"another CSR under the same transaction": func() Request { return d.request(pkix.Name{CommonName: "printer-8"}) },
		"another transaction":                    func() Request { o := r; o.TransactionID = "OTHER"; return o },
		"another profile":                        func() Request { return in("narrow", r) },
		"another key":                            func() Request { return newDevice(t).request(printer) },
	} {
		if res := b.issue(other()); res.Serial == first.Serial || res.Replayed {
			t.Errorf("%s got the stored certificate", name)
		}
	}
	b.close()
}

// A request signed by an issued certificate is new, unless it is the same message.
func TestSignedByIssuedCertificate(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	first := b.issue(d.request(printer))
	r := d.request(printer)
	r.Proof.SelfSigned = false
	second := b.issue(r)
	if second.Serial == first.Serial || second.Replayed {
		t.Error("a request signed by an issued certificate got the stored one")
	}
	if same := b.issue(r); same.Serial != second.Serial || !same.Replayed {
		t.Error("the same message got another certificate")
	}
	r.SenderNonce = nonce()
	if third := b.issue(r); third.Serial == second.Serial {
		t.Error("another message got the stored certificate")
	}
	b.close()
}

func TestRefusals(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	var policy *pki.PolicyError
	for _, c := range []struct {
		name   string
		spoil  func(*Request)
		want   error
		reason string
	}{
		{"profile", func(r *Request) { r.Profile = "nowhere" }, ErrUnknownProfile, "unknown profile"},
		{"another signer", func(r *Request) { r.Proof.SignerSPKI = newDevice(t).request(printer).CSR.RawSPKI }, ErrSignerKey, "signer key is not the key of the CSR"},
		{"no signer", func(r *Request) { r.Proof.SignerSPKI = nil }, ErrSignerKey, ""}, // counted with the one before
		{"garbage signer", func(r *Request) { r.Proof.SignerSPKI = []byte{0x30, 0x80} }, ErrSignerKey, ""},
		{"wrong challenge", func(r *Request) { r.Proof.Challenge = "guess-me" }, ErrChallenge, "wrong or missing challenge"},
		{"no challenge", func(r *Request) { r.Proof.Challenge = "" }, ErrChallenge, ""},
		{"profile without challenge", func(r *Request) { r.Profile = "closed" }, ErrChallenge, "wrong or missing challenge"},
	} {
		before := len(b.log())
		r := d.request(printer)
		c.spoil(&r)
		b.refused(r, c.want)
		recs := b.log()[before:]
		if c.reason == "" && len(recs) != 0 {
			t.Errorf("%s: %d records, want it counted only", c.name, len(recs))
		}
		if c.reason != "" && (len(recs) != 1 || recs[0].Action != audit.SCEPRefused || recs[0].Reason != c.reason || recs[0].Source != "192.0.2.1") {
			t.Errorf("%s: records %+v", c.name, recs)
		}
	}

	// Authenticated: one by one, up to a bound.
	for range 3 {
		before := len(b.log())
		_, err := b.enroll(d.request(pkix.Name{CommonName: "printer-7", Locality: []string{"here"}}))
		if !errors.As(err, &policy) {
			t.Errorf("a subject the profile does not allow: %v", err)
		}
		if recs := b.log()[before:]; len(recs) != 1 || !strings.Contains(recs[0].Reason, policy.Rule) {
			t.Errorf("policy refusal: records %+v", recs)
		}
	}
	r := d.request(printer)
	r.Protocol = "est"
	if res, err := b.enroll(r); err == nil {
		t.Errorf("unknown protocol: %+v", res)
	}
	if n := b.signer.signed(); n != 0 {
		t.Errorf("%d signatures", n)
	}
	for _, rec := range b.log() {
		if strings.Contains(rec.Reason, "guess-me") {
			t.Error("a challenge is in the log")
		}
	}
	b.close()
}

// Duplicates that arrive at the same time become one certificate.
func TestConcurrentDuplicates(t *testing.T) {
	b := newBox(t)
	b.issue(newDevice(t).request(printer)) // from now on the challenge is known and costs nothing
	r := newDevice(t).request(printer)
	const n = 20
	signing, release := make(chan struct{}), make(chan struct{})
	b.signer.set(sync.OnceValue(func() error {
		close(signing)
		<-release
		return nil
	}))
	var all sync.WaitGroup
	results := make([]*Result, n)
	for i := range n {
		all.Go(func() {
			r := r
			r.SenderNonce = nonce()
			res, err := b.enroll(r)
			if err != nil {
				t.Error(err)
				return
			}
			results[i] = res
		})
	}
	<-signing

	// One that has no patience left goes away alone.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.engine.Enroll(ctx, r); !errors.Is(err, context.Canceled) {
		t.Errorf("a duplicate whose client left: %v", err)
	}
	close(release)
	all.Wait()
	fresh := 0
	for _, res := range results {
		if res == nil || res.Serial != results[0].Serial {
			t.Fatalf("different certificates: %+v and %+v", res, results[0])
		}
		if !res.Replayed {
			fresh++
		}
	}
	if signatures := b.signer.signed() - 1; fresh != 1 || signatures != 1 {
		t.Errorf("%d first answers and %d signatures, want one each", fresh, signatures)
	}
	wantLog(b, begun, issued, begun, issued)
	b.close()
}

// The signer fails; the client may try again with the very same message.
func TestSignerFails(t *testing.T) {
	for _, c := range []struct {
		name  string
		hook  func() error
		want  error
		state store.State
		log   string
	}{
		{"busy", func() error { return errHolderBusy }, ErrBusy, store.Failed, failed},
		{"error", func() error { return errors.New("TPM_RC_FAILURE") }, ErrUnavailable, store.Lost, lost},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBox(t)
			r := newDevice(t).request(printer)
			b.signer.set(c.hook)
			b.refused(r, c.want)
			wantLog(b, begun, c.log)
			burnt := b.log()[0].Serial
			x, err := b.store.Transaction(burnt)
			if err != nil || x.State != c.state {
				t.Errorf("transaction is %q, want %q: %v", x.State, c.state, err)
			}
			signed := &x509.Certificate{RawTBSCertificate: x.Template, SerialNumber: serialOf(t, burnt), PublicKey: r.CSR.PublicKey} // by a signature that may exist
			if isRevoked, err := b.engine.IsRevoked(signed); err != nil || !isRevoked {
				t.Errorf("what was not issued is revoked: %v, %v", isRevoked, err)
			}
			b.signer.set(nil)
			if res := b.issue(r); res.Serial == burnt || res.Replayed {
				t.Errorf("the second try got %+v, serial %s was used", res, burnt)
			}
			wantLog(b, begun, c.log, begun, issued)
			b.close()
		})
	}
	t.Run("panic", func(t *testing.T) {
		b := newBox(t)
		r := newDevice(t).request(printer)
		b.signer.set(func() error { panic("broken signer") })
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic was swallowed")
				}
			}()
			_, err := b.enroll(r)
			t.Errorf("enroll returned %v", err)
		}()
		b.signer.set(nil)
		b.issue(r)
		wantLog(b, begun, lost, begun, issued)
		b.close()
	})
}

// The client hangs up while the key holder signs: the certificate is recorded and waits for it.
func TestClientLeaves(t *testing.T) {
	b := newBox(t)
	r := newDevice(t).request(printer)
	ctx, cancel := context.WithCancel(t.Context())
	b.signer.set(func() error { cancel(); return nil })
	if _, err := b.engine.Enroll(ctx, r); err != nil {
		t.Errorf("what was begun was not carried to its end: %v", err)
	}
	if res := b.issue(r); !res.Replayed {
		t.Error("the retry got another certificate")
	}

	// Before the intent is recorded, leaving leaves nothing behind.
	before := len(b.log())
	if _, err := b.engine.Enroll(ctx, newDevice(t).request(printer)); !errors.Is(err, context.Canceled) {
		t.Errorf("a client that left before: %v", err)
	}
	if after := len(b.log()); after != before {
		t.Errorf("%d records of a request that was given up", after-before)
	}
	b.close()
}

// The power goes while the key holder signs: the serial is burnt, and the same message works again.
func TestPowerCutWhileSigning(t *testing.T) {
	b := newBox(t)
	r := newDevice(t).request(printer)
	old := *b
	b.signer.set(func() error {
		b.signer.set(nil)
		b.crash()
		return nil
	})
	if _, err := old.enroll(r); err != nil {
		t.Fatal(err) // the box that lost its power; its disk is forgotten
	}
	wantLog(b, begun, lost)
	burnt := b.log()[0].Serial
	if res := b.issue(r); res.Serial == burnt || res.Replayed {
		t.Errorf("after the power cut: %+v, burnt is %s", res, burnt)
	}
	wantLog(b, begun, lost, begun, issued)
	b.crash()
	wantLog(b, begun, lost, begun, issued)
	b.close()
	old.close()
}

func TestClock(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	b.issue(d.request(printer))
	if c := b.engine.Condition(); c != nil {
		t.Errorf("condition on a good clock: %+v", c)
	}
	b.clock.advance(-clockTolerance)
	b.issue(newDevice(t).request(printer))

	signed := b.signer.signed()
	for name, back := range map[string]time.Duration{"before the newest record": -time.Millisecond, "before the image": -2 * time.Hour} {
		b.clock.advance(back)
		b.refused(newDevice(t).request(printer), ErrClock)
		b.refused(d.request(printer), ErrClock)
		c := b.engine.Condition()
		if c == nil || c.What == "" || c.Mend == "" {
			t.Errorf("%s: condition %+v", name, c)
		}
		if last := b.log()[len(b.log())-1]; last.Action != audit.SCEPRefused || !strings.Contains(last.Reason, "clock") {
			t.Errorf("%s: record %+v", name, last)
		}
		b.clock.advance(-back)
	}
	if b.signer.signed() != signed {
		t.Error("something was signed while the clock was wrong")
	}
	b.clock.advance(clockTolerance)
	b.issue(newDevice(t).request(printer))
	b.close()
}

func TestClose(t *testing.T) {
	b := newBox(t)
	signing, release := make(chan struct{}), make(chan struct{})
	b.signer.set(func() error {
		close(signing)
		<-release
		return nil
	})
	var all sync.WaitGroup
	all.Go(func() { b.issue(newDevice(t).request(printer)) })
	<-signing
	closed := make(chan error, 1)
	all.Go(func() { closed <- b.engine.Close() })
	for !b.engine.isClosed() {
		time.Sleep(time.Millisecond)
	}
	b.refused(newDevice(t).request(printer), ErrClosed)
	select {
	case err := <-closed:
		t.Errorf("Close returned with a request under way: %v", err)
	default:
	}
	close(release)
	all.Wait()
	must(t, <-closed)
	if err := b.engine.Close(); !errors.Is(err, ErrClosed) {
		t.Errorf("closing twice: %v", err)
	}
	wantLog(b, begun, issued)
	b.check()
	must(t, b.store.Close())
}

func TestNewRefusesConfigs(t *testing.T) {
	b := newBox(t)
	good := Config{Store: b.store, Now: b.clock.Now, TimeSource: "host", Log: b.engine.log}
	p := b.engine.profiles["corp"]
	for name, spoil := range map[string]func(*Config){
		"no store":          func(c *Config) { c.Store = nil },
		"no clock":          func(c *Config) { c.Now = nil },
		"no time source":    func(c *Config) { c.TimeSource = "" },
		"no log":            func(c *Config) { c.Log = nil },
		"doubled profile":   func(c *Config) { c.Profiles = []Profile{p, p} },
		"nameless profile":  func(c *Config) { c.Profiles = []Profile{{Policy: p.Policy, Issuers: p.Issuers}} },
		"profile, no key":   func(c *Config) { c.Profiles = []Profile{{Name: "x", Policy: p.Policy}} },
		"profile, no rules": func(c *Config) { c.Profiles = []Profile{{Name: "x", Issuers: p.Issuers}} },
	} {
		c := good
		spoil(&c)
		if e, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
			must(t, e.Close())
		}
	}
	b.close()
}

// Different requests never hash to the same key, however their fields are cut.
func TestHashFields(t *testing.T) {
	seen := [][32]byte{}
	for _, fields := range [][][]byte{
		{[]byte("ab"), []byte("c")}, {[]byte("a"), []byte("bc")}, {[]byte("abc")}, {[]byte("abc"), nil}, {nil, []byte("abc")}, {},
	} {
		h := hashFields("test", fields...)
		if slices.Contains(seen, h) {
			t.Errorf("%q hashes like another", fields)
		}
		seen = append(seen, h)
	}
}

func (e *Engine) isClosed() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.closed
}
