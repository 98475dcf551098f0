package authority_test

import "testing"

// TestServed: what the listeners show is named with who made it, through an upload and back.
func TestServed(t *testing.T) {
	b := newBox(t)
	check := func(when string, ecdsa, rsa bool) {
		t.Helper()
		all := b.Served()
		if len(all) != 2 || all[0].Uploaded != ecdsa || all[1].Uploaded != rsa {
			t.Fatalf("%s: %+v", when, all)
		}
		if c, err := b.Certificate(nil); err != nil || !c.Leaf.Equal(all[0].Certificate) {
			t.Errorf("%s: the first is not what clients see: %v", when, err)
		}
	}
	check("at first", false, false)
	requests, err := b.TLSCSR()
	must(t, err)
	must(t, b.InstallTLS(newOffline(t).signAs(requests, serverTemplate(b.now)), admin))
	check("uploaded", true, false)
	must(t, b.UseOwnTLS(admin))
	check("taken back", false, false)
}
