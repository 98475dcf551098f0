package keys

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"signet.internal/tpm"
	"signet.internal/tpm/tpmtest"
)

func mustAnchor(t testing.TB, c *Client) Anchor {
	t.Helper()
	a, err := c.Anchor()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// The anchor begins where provisioning made it, and moves by one: once in a boot, then once an hour,
// whoever asks and however often.
func TestAnchorAdvances(t *testing.T) {
	m, st, site := tpmtest.New(t), newMemory(), newSite(t)
	dev := boot(t, m.Spec())
	v := provision(t, dev, st, fewKeys, site.binding)
	phase(t, dev, leaveInitrd)
	h := newHolder(t, dev, v)
	now := time.Now()
	h.anchor.now = func() time.Time { return now }
	c := newClient(t, h)
	first := mustAnchor(t, c)
	if first.Count == 0 || first.First != first.Count || first.Wait != 0 {
		t.Fatalf("provisioned: %+v", first)
	}
	for _, from := range []uint64{0, first.Count - 1, first.Count + 1} {
		if _, err := c.Advance(from); !errors.Is(err, ErrAnchorMoved) {
			t.Errorf("advanced from %d, which stands at %d: %v", from, first.Count, err)
		}
	}
	n, err := c.Advance(first.Count)
	if err != nil || n != first.Count+1 {
		t.Fatalf("from %d to %d, %v", first.Count, n, err)
	}
	if got, want := mustAnchor(t, c), (Anchor{n, first.First, AnchorGap}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	now = now.Add(AnchorGap - time.Nanosecond)
	for _, again := range []*Client{c, newClient(t, h)} { // also by a service that was started anew
		for _, from := range []uint64{n, 0, n + 1} {
			if _, err := again.Advance(from); !errors.Is(err, ErrAnchorSoon) {
				t.Errorf("advanced from %d within the hour: %v", from, err)
			}
		}
	}
	now = now.Add(time.Nanosecond)
	if n, err = c.Advance(n); err != nil || n != first.Count+2 {
		t.Errorf("an hour later: %d, %v", n, err)
	}

	dev, v = rebooted(t, m, dev, st, fewKeys, site)
	c = hold(t, dev, v)
	if got, want := mustAnchor(t, c), (Anchor{Count: n, First: first.First}); got != want {
		t.Errorf("next boot: %+v, want %+v", got, want)
	}
	if n, err = c.Advance(n); err != nil || n != first.Count+3 {
		t.Errorf("next boot: %d, %v", n, err)
	}
}

// A step whose answer was lost counts: nobody wears the TPM out by cutting answers off.
func TestAnchorCountsLostSteps(t *testing.T) {
	const nvIncrement = 0x134
	m, st := tpmtest.New(t), newMemory()
	dev := boot(t, m.Spec())
	provision(t, dev, st, fewKeys, Binding{Kind: KindHost}).Close()
	dev.Close()
	dev = boot(t, m.Through(func(code uint32) tpmtest.Fault {
		if code == nvIncrement {
			return tpmtest.CutAfter
		}
		return tpmtest.Pass
	}))
	v, err := Open(dev, st, "demo", fewKeys, Binding{Kind: KindHost})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	c := hold(t, dev, v)
	before := mustAnchor(t, c)
	if _, err := c.Advance(before.Count); err == nil || errors.Is(err, ErrAnchorSoon) || errors.Is(err, ErrAnchorMoved) {
		t.Fatalf("power was cut: %v", err)
	}
	if _, err := c.Advance(before.Count); !errors.Is(err, ErrAnchorSoon) {
		t.Errorf("again: %v", err)
	}
	dev.Close()
	m.PowerOn()
	dev = boot(t, m.Spec())
	if v, err = Open(dev, st, "demo", fewKeys, Binding{Kind: KindHost}); err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if after := mustAnchor(t, hold(t, dev, v)); after.Count != before.Count+1 {
		t.Errorf("it stood at %d and stands at %d", before.Count, after.Count)
	}
}

// A box that was provisioned without an anchor opens as before, and gets one without a change of KEYS, so
// that the firmware before opens them too.
func TestAnchorOfAnOlderBox(t *testing.T) {
	m, st, site := tpmtest.New(t), newMemory(), newSite(t)
	dev := boot(t, m.Spec())
	v := provision(t, dev, st, fewKeys, site.binding)
	if err := v.change(func(c *contents) error { c.Anchor = 0; return nil }); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(st.medium, []byte(`"anchor"`)) {
		t.Fatal("KEYS names an anchor that there is not: older firmware refuses it")
	}
	dev.Close()
	m.UndefineNV(uint32(tpm.CounterHandle))
	m.Reboot()
	dev = boot(t, m.Spec())
	v, err := Open(dev, st, "demo", fewKeys, site.binding)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	before := bytes.Clone(st.medium)
	phase(t, dev, leaveInitrd)
	c := hold(t, dev, v)
	if got := mustAnchor(t, c); got != (Anchor{}) {
		t.Errorf("before: %+v", got)
	}
	if _, err := c.Advance(1); !errors.Is(err, ErrAnchorMoved) {
		t.Errorf("advancing what is not there: %v", err)
	}
	n, err := c.Advance(0)
	if err != nil || n == 0 {
		t.Fatalf("made at %d, %v", n, err)
	}
	if got, want := mustAnchor(t, c), (Anchor{Count: n, Wait: AnchorGap}); got.Count != want.Count || got.First != 0 || got.Wait == 0 {
		t.Errorf("made: %+v, want %+v", got, want)
	}
	if !bytes.Equal(st.medium, before) {
		t.Error("KEYS changed")
	}
	dev, v = rebooted(t, m, dev, st, fewKeys, site)
	c = hold(t, dev, v)
	if got := mustAnchor(t, c); got != (Anchor{Count: n}) {
		t.Errorf("next boot: %+v", got)
	}
	if _, err := c.Advance(0); !errors.Is(err, ErrAnchorMoved) {
		t.Errorf("made a second time: %v", err)
	}
}

// One that somebody removed from the TPM is missing, and comes back above where it stood.
func TestAnchorRemoved(t *testing.T) {
	m, st := tpmtest.New(t), newMemory()
	dev := boot(t, m.Spec())
	v := provision(t, dev, st, fewKeys, Binding{Kind: KindHost})
	first := mustAnchor(t, hold(t, dev, v))
	v.Close()
	dev.Close()
	m.UndefineNV(uint32(tpm.CounterHandle))
	dev = boot(t, m.Spec())
	v, err := Open(dev, st, "demo", fewKeys, Binding{Kind: KindHost})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	c := hold(t, dev, v)
	if got := mustAnchor(t, c); got.Count != 0 || got.First != first.First {
		t.Errorf("removed: %+v, was %+v", got, first)
	}
	if n, err := c.Advance(0); err != nil || n <= first.Count {
		t.Errorf("made again at %d after %d, %v", n, first.Count, err)
	}
}

// Something else in its place is as good as none, and stays there.
func TestAnchorPlaceTaken(t *testing.T) {
	m, st := tpmtest.New(t), newMemory()
	dev := boot(t, m.Spec())
	provision(t, dev, st, fewKeys, Binding{Kind: KindHost}).Close()
	dev.Close()
	m.UndefineNV(uint32(tpm.CounterHandle))
	m.DefineNV(uint32(tpm.CounterHandle), 16)
	dev = boot(t, m.Spec())
	v, err := Open(dev, st, "demo", fewKeys, Binding{Kind: KindHost})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	c := hold(t, dev, v)
	if got := mustAnchor(t, c); got.Count != 0 || got.First == 0 {
		t.Errorf("%+v", got)
	}
	for range 2 {
		if _, err := c.Advance(0); err == nil || errors.Is(err, ErrAnchorSoon) || errors.Is(err, ErrAnchorMoved) {
			t.Errorf("made in its place: %v", err)
		}
	}
}
