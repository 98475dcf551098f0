package keys

import (
	"crypto"
	"crypto/sha256"
	"errors"
	"slices"
	"testing"
)

// TestUsage: what a client asked for is counted by kind and protection, and a refusal for want of time is no
// latency.
func TestUsage(t *testing.T) {
	h := &Holder{keys: map[string]*heldKey{}, slots: make(chan struct{}, 1)}
	c := newClient(t, h)
	if u := c.Usage(); len(u.Operations) != 0 || u.Busy != 0 {
		t.Fatalf("before anything: %+v", u)
	}
	k := &Key{c: c, info: Info{Name: "no-such-key", Protection: Resident}}
	digest := sha256.Sum256(nil)
	for range 3 {
		if _, err := k.Sign(nil, digest[:], crypto.SHA256); err == nil {
			t.Fatal("a key that is not there signs")
		}
	}
	h.slots <- struct{}{} // the holder is at its limit
	if _, err := k.Sign(nil, digest[:], crypto.SHA256); !errors.Is(err, ErrBusy) {
		t.Fatalf("a busy holder: %v", err)
	}
	u := c.Usage()
	got := u.Operations[Operation{"sign", Resident}]
	if len(u.Operations) != 1 || got.Count != 3 || u.Busy != 1 || u.Waiting[Resident] != 0 {
		t.Errorf("%+v", u)
	}
	if got.Sum <= 0 || got.Newest <= 0 || len(got.Buckets) != len(LatencyBounds()) || got.Buckets[len(got.Buckets)-1] > got.Count || !slices.IsSorted(got.Buckets) {
		t.Errorf("latency %+v", got)
	}
	got.Buckets[0] = 99
	if again := c.Usage().Operations[Operation{"sign", Resident}]; again.Buckets[0] == 99 {
		t.Error("a caller changes what is counted")
	}
}
