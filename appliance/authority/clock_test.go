package authority_test

import (
	"crypto/x509"
	"testing"
	"time"

	"signet.internal/appliance/keys"
	"signet.internal/provision"
)

// A clock that shows a time years ahead for a while, and then the right one again, costs nothing that
// cannot be made again: the earlier generation keeps its key, and what was certified by the wrong time is
// certified anew.
func TestClockJumpsAheadAndBack(t *testing.T) {
	b := newBox(t)
	must(t, b.PrepareNext("devices", admin))
	must(t, b.ActivateNext("devices", admin))
	must(t, b.PrepareNext("devices", admin))
	must(t, b.ActivateNext("devices", admin))
	issued(t, b.store, b.now.Add(90*day), b.now)
	right := b.now.Add(time.Hour)
	ahead := right.Add(3 * 365 * day)

	b.now = ahead
	b.reopen() // and a boot by that clock decides nothing either
	must(t, b.Upkeep(b.now))
	must(t, b.Upkeep(b.now.Add(2*day)))
	if ra := b.Snapshot("devices").RAs[0].Certificate; !ra.NotBefore.After(right) {
		t.Fatalf("the RA's certificate begins on %s", ra.NotBefore)
	}

	b.now = right
	must(t, b.Upkeep(b.now))
	b.check()
	now := b.Snapshot("devices")
	if len(now.Earlier) != 2 || !b.holder.made["authority/devices.2"] {
		t.Errorf("generations whose certificates are still good are gone: %s", b.summary())
	}
	if now.RAs[0].Number != 2 {
		t.Errorf("the RA key was rotated %d times", now.RAs[0].Number-1)
	}
	for _, g := range append(now.Earlier, now.Active) {
		if c := g.Responder.Certificate; right.Before(c.NotBefore) || right.After(c.NotAfter) {
			t.Errorf("generation %d: its responder's certificate is good from %s to %s, and it is %s", g.Number, c.NotBefore, c.NotAfter, right)
		}
	}
	leaf, err := b.Certificate(nil)
	must(t, err)
	for what, c := range map[string]*x509.Certificate{"RA": now.RAs[0].Certificate, "TLS": leaf.Leaf} {
		if right.Before(c.NotBefore) || right.After(c.NotAfter) {
			t.Errorf("the certificate for %s is good from %s to %s, and it is %s", what, c.NotBefore, c.NotAfter, right)
		}
	}

	// Each way it is done once.
	before := len(b.lastActions(1000))
	must(t, b.Upkeep(right.Add(time.Minute)))
	if actions := b.lastActions(1000); len(actions) != before {
		t.Errorf("a minute later came %v", actions[:len(actions)-before])
	}
}

// A state that is older than the keys, as after a disk was put back, is no reason to remove a key: one whose
// number it has not come to may be what a later state issues with.
func TestOlderStateRemovesNoKey(t *testing.T) {
	b := newBox(t)
	must(t, b.PrepareNext("devices", admin))
	must(t, b.ActivateNext("devices", admin))
	later := []keys.Spec{
		{Name: "authority/devices.9", Algorithm: "ecdsa-p256", Protection: keys.Sealed},
		{Name: "authority/gone.2", Algorithm: "ecdsa-p256", Protection: keys.Sealed},
		{Name: "intune/laptops", Algorithm: "ecdsa-p256", Protection: keys.Sealed},
		{Name: "ra.2", Algorithm: "rsa-2048", Protection: keys.Sealed},
	}
	for _, s := range later {
		if _, err := b.holder.Create(s); err != nil {
			t.Fatal(err)
		}
	}
	b.reopen()
	must(t, b.PrepareNext("devices", admin)) // takes up the third, and looks for keys nobody needs
	must(t, b.Upkeep(b.now))
	for _, s := range later {
		if _, err := b.holder.Key(s.Name); err != nil {
			t.Errorf("%s: %v", s.Name, err)
		}
	}
}

// A generation goes after its last certificate can be renewed late no more, by a clock that has shown that
// for three days on end.
func TestRetiredOnceTheClockStands(t *testing.T) {
	b := newBox(t)
	b.site.Profiles = []provision.Profile{{}, {Renewal: provision.Renewal{Grace: 20 * day}}}
	must(t, b.PrepareNext("devices", admin))
	must(t, b.ActivateNext("devices", admin))
	issued(t, b.store, epoch.Add(90*day), epoch)
	for _, at := range []struct {
		days time.Duration
		what string
		gone bool
	}{
		{91, "its certificate has ended", false}, {95, "and can be renewed late", false},
		{111, "nor that any more", false}, {105, "by a clock that was wrong", false}, {115, "and shows it again", false}, {117, "for two days", false},
		{118, "for three days", true},
	} {
		b.now = epoch.Add(at.days * day)
		must(t, b.Upkeep(b.now))
		if gone := len(b.Snapshot("devices").Earlier) == 0; gone != at.gone {
			t.Errorf("after %d days, %s: gone %t", at.days, at.what, gone)
		}
	}
	b.check()
}
