package authority_test

import (
	"maps"
	"testing"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/authority"
)

// While the disk may be an older copy nothing is made, removed or certified that its newest state may name,
// by order or because it came due, at the start or later; TLS certificates are renewed. Once somebody took the
// disk for the newest, what came due is done.
func TestOlderState(t *testing.T) {
	b := newBox(t)
	must(t, b.RotateRA(admin))
	b.now = b.now.Add(340 * day) // RA, responders and TLS have all come due, and the RA before is over
	b.close()
	b.older = true
	must(t, b.open(false))
	before, made := b.summary(), maps.Clone(b.holder.made)
	if got := b.lastActions(1); got[0] != audit.TLSRenewed {
		t.Errorf("started on an older state: %v", got)
	}
	must(t, b.Upkeep(b.now))
	for what, order := range map[string]func() error{
		"RotateRA":     func() error { return b.RotateRA(admin) },
		"PrepareNext":  func() error { return b.PrepareNext("devices", admin) },
		"ActivateNext": func() error { return b.ActivateNext("devices", admin) },
		"CancelNext":   func() error { return b.CancelNext("devices", admin) },
	} {
		wantIs(t, what, order(), authority.ErrOlder)
	}
	if after := b.summary(); after != before || !maps.Equal(made, b.holder.made) {
		t.Errorf("on an older state %s\nbecame %s\nand keys %v became %v", before, after, made, b.holder.made)
	}
	b.older = false
	must(t, b.Upkeep(b.now))
	if b.summary() == before {
		t.Errorf("nothing of what came due was done: %s", before)
	}
	b.check()
}
