package enroll

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/store"
)

func (b *box) explain(id string) Explanation {
	b.t.Helper()
	x, err := b.engine.Explain(context.Background(), id)
	must(b.t, err)
	return x
}

// What a person is shown before deciding is what is issued then, and afterwards what became of it.
func TestExplain(t *testing.T) {
	b := newBox(t)
	d, next := newDevice(t), newDevice(t)
	r := in("manual", d.request(printer, "p7.example.com"))
	id := b.held(r)
	before := b.actions()
	x := b.explain(id)
	if x.ID != id || !x.Rule.Manual || x.Decision != "" || x.Proof != "static" || x.Renewed != nil || x.Asks || x.Refused != nil || !x.Until.Equal(start.Add(heldFor)) {
		t.Errorf("%+v", x)
	}
	if x.Would == nil || x.Would.Subject.CommonName != "printer-7" || !slices.Equal(x.Would.DNSNames, []string{"p7.example.com"}) {
		t.Fatalf("would issue %+v", x.Would)
	}
	if x.CSR.Challenge != "" {
		t.Error("the challenge is shown")
	}
	if b.signer.signed() != 0 || !slices.Equal(b.actions(), before) {
		t.Error("looking at a request signs or records something")
	}
	must(t, b.approve(id))
	res, err := b.poll(r)
	must(t, err)
	cert, err := x509.ParseCertificate(res.Certificate)
	must(t, err)
	if !bytes.Equal(cert.RawSubject, x.Would.RawSubject) || !cert.NotAfter.Equal(x.Would.NotAfter) || len(cert.Extensions) != len(x.Would.Extensions) ||
		!bytes.Equal(cert.RawSubjectPublicKeyInfo, x.Would.RawSubjectPublicKeyInfo) || cert.SignatureAlgorithm != x.Would.SignatureAlgorithm {
		t.Error("another certificate was issued than was shown")
	}
	if x = b.explain(id); x.Decision != store.Approved || x.By != "olga" || x.Serial != res.Serial || x.Would != nil {
		t.Errorf("after approval: %+v", x)
	}

	renewal := b.held(in("manual", next.renewal(res.Certificate, d, printer)))
	if x = b.explain(renewal); x.Renews != res.Serial || !bytes.Equal(x.Renewed.Raw, res.Certificate) || x.Would == nil {
		t.Errorf("a renewal: %+v", x)
	}
	must(t, b.engine.Revoke(context.Background(), res.Serial, "keyCompromise", "olga"))
	if x = b.explain(renewal); !errors.Is(x.Refused, ErrSignerRevoked) || x.Would != nil {
		t.Errorf("a renewal of what is revoked: %v", x.Refused)
	}
	must(t, b.engine.Deny(context.Background(), renewal, "olga", "not ours"))
	if x = b.explain(renewal); x.Decision != store.Denied || x.Reason != "not ours" || x.Refused != nil {
		t.Errorf("after denial: %+v", x)
	}
	if _, err := b.engine.Explain(context.Background(), "0123456789abcdef"); !errors.Is(err, ErrNoRequest) {
		t.Errorf("of no request: %v", err)
	}
	b.close()
}

// The rule that is shown names what of the request met it.
func TestExplainRule(t *testing.T) {
	b := newBox(t)
	id := b.held(in("suffix", newDevice(t).request(pkix.Name{CommonName: "Pump.Approve.TEST."})))
	if x := b.explain(id); x.Rule != (HoldRule{Suffix: ".approve.test", Name: "Pump.Approve.TEST."}) {
		t.Errorf("%+v", x.Rule)
	}
	own := b.held(in("manual", newDevice(t).request(printer)))
	b.engine.ownNames = func() []string { return []string{"printer-7"} }
	if x := b.explain(own); x.Refused == nil || !strings.Contains(x.Refused.Error(), "a name of this box") {
		t.Errorf("what approving would refuse is not shown: %v", x.Refused)
	}
	b.engine.gated = func() *Condition { return &Condition{What: "The disk is an older one."} }
	if x := b.explain(own); !errors.Is(x.Refused, ErrUnavailable) || x.Would != nil {
		t.Errorf("while nothing is issued: %v", x.Refused)
	}
	b.close()
}

// A compliance service is not asked by somebody who looks.
func TestExplainAsksNobody(t *testing.T) {
	b := newBox(t)
	p := b.engine.profiles["manual"]
	asked := 0
	p.Compliance = func(context.Context, Request) error { asked++; return nil }
	b.engine.profiles["manual"] = p
	id := b.held(in("manual", newDevice(t).request(printer)))
	if x := b.explain(id); asked != 1 || !x.Asks || x.Would == nil {
		t.Errorf("asked %d times, %+v", asked, x)
	}
	b.close()
}

// A certificate is due in its profile's window, but not before its last third.
func TestDue(t *testing.T) {
	b := newBox(t)
	for _, profile := range []string{"corp", "narrow", "limited"} {
		b.issue(in(profile, newDevice(t).request(printer)))
	}
	due := func(profile string) (profiles []string) {
		t.Helper()
		list, next, err := b.engine.Due(profile, "", 0)
		must(t, err)
		if next != "" {
			t.Errorf("goes on at %s", next)
		}
		for _, c := range list {
			profiles = append(profiles, c.Profile)
		}
		slices.Sort(profiles)
		return profiles
	}
	p := b.engine.profiles["narrow"]
	p.Renewal.Window = 10 * 24 * time.Hour
	b.engine.profiles["narrow"] = p
	b.clock.advance(validity - 31*24*time.Hour)
	if got := due(""); len(got) != 0 {
		t.Errorf("31 days before the end %v are due", got)
	}
	b.clock.advance(2 * 24 * time.Hour)
	if got, want := due(""), []string{"corp", "limited"}; !slices.Equal(got, want) {
		t.Errorf("29 days before the end %v are due, want %v", got, want)
	}
	b.clock.advance(20 * 24 * time.Hour)
	if got, want := due(""), []string{"corp", "limited", "narrow"}; !slices.Equal(got, want) {
		t.Errorf("9 days before the end %v are due, want %v", got, want)
	}
	if got := due("narrow"); !slices.Equal(got, []string{"narrow"}) {
		t.Errorf("of one profile %v", got)
	}
	b.clock.advance(30 * 24 * time.Hour)
	if got := due(""); len(got) != 0 {
		t.Errorf("after their end %v are due", got)
	}
	if _, _, err := b.engine.Due("", "zz", 0); !errors.Is(err, ErrQuery) {
		t.Errorf("a place that is none: %v", err)
	}
	b.close()
}
