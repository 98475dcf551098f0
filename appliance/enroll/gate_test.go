package enroll

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/audit"
)

// While the box is stopped nothing is issued, approved or handed out, nothing is used up, and no list is signed
// that may lack what a newer state has revoked; revocations are taken in. When it goes on, the very same
// requests are answered, and what was revoked is listed.
func TestStopped(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	first := b.issue(d.request(printer))
	held := newDevice(t).request(printer)
	held.Profile = "manual"
	held.Proof.Challenge = b.mint("manual", printer.CommonName)
	id := b.held(held)
	once := newDevice(t).request(printer)
	once.Profile = "once"
	once.Proof.Challenge = b.mint("once", printer.CommonName)
	b.wantCRL(1, map[string]int{})
	before, signed := len(b.log()), b.signer.signed()

	b.engine.gated = func() *Condition { return &Condition{What: "The disk is an older one.", Mend: "Look at it."} }
	if c := b.engine.Condition(); c == nil || c.What != "The disk is an older one." {
		t.Errorf("condition %+v", c)
	}
	for name, r := range map[string]Request{"first": newDevice(t).request(printer), "repeated": d.request(printer), "renewal": d.renewal(first.Certificate, d, printer), "one-time": once} {
		_, err := b.enroll(r)
		if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "older one") || !IsUnproven(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := b.approve(id); !errors.Is(err, ErrUnavailable) {
		t.Errorf("approving: %v", err)
	}
	if _, err := b.poll(held); !errors.Is(err, ErrUnavailable) {
		t.Errorf("polling: %v", err)
	}
	b.clock.advance(30 * 24 * time.Hour)
	if err := b.engine.expireHeld(); err != nil {
		t.Error(err)
	}
	b.clock.advance(-30 * 24 * time.Hour)
	if n := b.signer.signed(); n != signed || len(b.log()) != before {
		t.Errorf("%d signatures and %d records more", n-signed, len(b.log())-before)
	}
	if err := b.engine.Revoke(context.Background(), first.Serial, "keyCompromise", "olga"); err != nil {
		t.Errorf("revoking: %v", err)
	}
	b.clock.advance(crlRest)
	if list, err := b.engine.CRL(context.Background(), "corp"); !errors.Is(err, ErrUnavailable) || list != nil {
		t.Errorf("a list of %d bytes, %v", len(list), err)
	}

	b.engine.gated = func() *Condition { return nil }
	b.wantCRL(2, map[string]int{first.Serial: 1})
	b.issue(once)
	if err := b.approve(id); err != nil {
		t.Errorf("approving: %v", err)
	}
	if log := b.log(); log[len(log)-1].Action == audit.SCEPRefused {
		t.Errorf("record %+v", log[len(log)-1])
	}
	b.close()
}
