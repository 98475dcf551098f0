// What a green run does not prove: how many writes a hardware TPM's NV memory endures, how long one
// takes, or that it keeps a counter through a real power cut.

package tpm

import (
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"signet.internal/tpm/tpmtest"
)

func newCounter(t testing.TB, d *Device, auth string) *Counter {
	t.Helper()
	c, err := makeSRK(t, d).Counter([]byte(auth))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mustRead(t testing.TB, c *Counter) uint64 {
	t.Helper()
	n, err := c.Read()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func checkNoLockout(t testing.TB, d *Device) {
	t.Helper()
	if info, err := d.Info(); err != nil || info.LockoutCounter != 0 {
		t.Errorf("lockout counter %d, %v", info.LockoutCounter, err)
	}
}

func TestCounter(t *testing.T) {
	m := tpmtest.New(t)
	d := open(t, m.Spec())
	c := newCounter(t, d, string(testAuth))
	if n, err := c.Read(); !errors.Is(err, ErrNoCounter) {
		t.Fatalf("fresh TPM: %d, %v", n, err)
	}
	if _, err := c.Advance(0); !errors.Is(err, ErrNoCounter) {
		t.Errorf("advancing what is not there: %v", err)
	}
	first, err := c.Make()
	if err != nil || first == 0 || mustRead(t, c) != first {
		t.Fatalf("made at %d, %v", first, err)
	}
	if _, err := c.Make(); !errors.Is(err, ErrCounterMoved) {
		t.Errorf("made again: %v", err)
	}
	n, err := c.Advance(first)
	if err != nil || n != first+1 {
		t.Errorf("advanced from %d to %d, %v", first, n, err)
	}
	for _, from := range []uint64{0, first, first + 2} {
		if _, err := c.Advance(from); !errors.Is(err, ErrCounterMoved) {
			t.Errorf("advanced from %d: %v", from, err)
		}
	}
	if n := mustRead(t, c); n != first+1 {
		t.Errorf("refusals moved it to %d", n)
	}
	if found := d.Preflight(); len(found) != 0 {
		t.Errorf("preflight: %+v", found)
	}
	d.Close()
	m.Reboot()
	d = open(t, m.Spec())
	if n := mustRead(t, newCounter(t, d, string(testAuth))); n != first+1 {
		t.Errorf("after a power cut it stands at %d", n)
	}
	checkNoLockout(t, d)
}

// Without the authorisation value nobody reads or advances it; whoever removes it cannot set it back.
func TestCounterInForeignHands(t *testing.T) {
	m := tpmtest.New(t)
	d := open(t, m.Spec())
	c := newCounter(t, d, string(testAuth))
	if _, err := c.Make(); err != nil {
		t.Fatal(err)
	}
	n, err := c.Advance(mustRead(t, c))
	if err != nil {
		t.Fatal(err)
	}
	other := newCounter(t, d, "ffffffffffffffffffffffffffffffff")
	if _, err := other.Read(); !errors.Is(err, ErrNoCounter) {
		t.Errorf("read with another value: %v", err)
	}
	err = d.do(func(tp transport.TPM) error {
		name, _, err := findCounter(tp)
		if err != nil {
			return err
		}
		for what, auth := range map[string]tpm2.AuthHandle{
			"owner":        {Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			"empty value":  {Handle: CounterHandle, Name: *name, Auth: tpm2.PasswordAuth(nil)},
			"wrong values": {Handle: CounterHandle, Name: *name, Auth: tpm2.PasswordAuth([]byte("wrong"))},
		} {
			for range 5 { // more than a TPM's lockout takes
				if _, err := (tpm2.NVIncrement{AuthHandle: auth, NVIndex: tpm2.NamedHandle{Handle: CounterHandle, Name: *name}}).Execute(tp); err == nil {
					t.Errorf("%s: advanced", what)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	checkNoLockout(t, d)
	if now := mustRead(t, c); now != n {
		t.Errorf("it stands at %d, not at %d", now, n)
	}

	d.Close()
	m.UndefineNV(uint32(CounterHandle))
	d = open(t, m.Spec())
	c = newCounter(t, d, string(testAuth))
	if _, err := c.Read(); !errors.Is(err, ErrNoCounter) {
		t.Errorf("removed: %v", err)
	}
	again, err := c.Make()
	if err != nil || again <= n {
		t.Errorf("made again at %d after %d, %v", again, n, err)
	}
	// Somebody else's in its place is replaced by Make, and by Remake one's own.
	taken, err := newCounter(t, d, "ffffffffffffffffffffffffffffffff").Make()
	if err != nil || taken <= again {
		t.Errorf("in place of another: %d after %d, %v", taken, again, err)
	}
	if _, err := c.Read(); !errors.Is(err, ErrNoCounter) {
		t.Errorf("replaced: %v", err)
	}
	last, err := newCounter(t, d, "ffffffffffffffffffffffffffffffff").Remake()
	if err != nil || last <= taken {
		t.Errorf("made anew at %d after %d, %v", last, taken, err)
	}
}

// What is no counter of this shape is neither read nor removed.
func TestCounterPlaceTaken(t *testing.T) {
	d := open(t, tpmtest.Start(t))
	c := newCounter(t, d, string(testAuth))
	err := d.do(func(tp transport.TPM) error {
		pub := counterPublic()
		pub.Attributes.OwnerWrite = true
		_, err := tpm2.NVDefineSpace{AuthHandle: tpm2.TPMRHOwner, PublicInfo: tpm2.New2B(pub)}.Execute(tp)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for what, do := range map[string]func() (uint64, error){"read": c.Read, "make": c.Make, "remake": c.Remake} {
		if _, err := do(); !errors.Is(err, ErrHandleTaken) {
			t.Errorf("%s: %v", what, err)
		}
	}
	found := d.Preflight()
	if len(found) != 1 || !found[0].NewKeysOnly || found[0].Mend == "" {
		t.Errorf("findings %+v", found)
	}
}

// Power fails before or after each command that writes. Make can be called again, and Advance finds the
// counter where it was or one on.
func TestCounterPowerCuts(t *testing.T) {
	const nvUndefine, nvDefine, nvIncrement = 0x122, 0x12a, 0x134
	for _, code := range []uint32{nvUndefine, nvDefine, nvIncrement} {
		for _, fault := range []tpmtest.Fault{tpmtest.CutBefore, tpmtest.CutAfter} {
			m := tpmtest.New(t)
			d := open(t, m.Spec())
			before, err := newCounter(t, d, string(testAuth)).Make()
			if err != nil {
				t.Fatal(err)
			}
			d.Close()
			faulty := open(t, m.Through(func(c uint32) tpmtest.Fault {
				if c == code {
					return fault
				}
				return tpmtest.Pass
			}))
			if _, err := newCounter(t, faulty, string(testAuth)).Remake(); !errors.Is(err, ErrUnreachable) {
				t.Fatalf("%#x, %d: %v", code, fault, err)
			}
			faulty.Close()
			m.PowerOn()
			d = open(t, m.Spec())
			after, err := newCounter(t, d, string(testAuth)).Remake()
			if err != nil || after <= before {
				t.Errorf("%#x, %d: made at %d, then at %d, %v", code, fault, before, after, err)
			}
			checkNoLockout(t, d)
		}
	}
	for fault, steps := range map[tpmtest.Fault]uint64{tpmtest.CutBefore: 0, tpmtest.CutAfter: 1} {
		m := tpmtest.New(t)
		d := open(t, m.Spec())
		before, err := newCounter(t, d, string(testAuth)).Make()
		if err != nil {
			t.Fatal(err)
		}
		d.Close()
		faulty := open(t, m.Through(func(c uint32) tpmtest.Fault {
			if c == nvIncrement {
				return fault
			}
			return tpmtest.Pass
		}))
		if _, err := newCounter(t, faulty, string(testAuth)).Advance(before); !errors.Is(err, ErrUnreachable) {
			t.Fatalf("fault %d: %v", fault, err)
		}
		faulty.Close()
		m.PowerOn()
		if n := mustRead(t, newCounter(t, open(t, m.Spec()), string(testAuth))); n != before+steps {
			t.Errorf("fault %d: it stood at %d and stands at %d", fault, before, n)
		}
	}
}
