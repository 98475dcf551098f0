// What a green run does not prove: that disks write a sector whole, that a hardware TPM keeps its NV
// through a real power cut, or that power may fail inside swtpm's own file write: it is cut between
// writes and between commands.

package keys

import (
	"bytes"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"testing"

	"signet.internal/tpm"
	"signet.internal/tpm/tpmtest"
)

// memory is a Storage whose writes reach the medium when synced.
type memory struct {
	medium  []byte
	pending []write

	// Fault injection: the operation number failAt (from 1, writes and syncs alike) and every later
	// one fail.
	failAt, done int
	doneButError bool // the failing operation happens all the same
}

type write struct {
	data   []byte
	offset int64
}

func newMemory() *memory { return &memory{medium: make([]byte, StorageSize)} }

var errPower = errors.New("power cut")

func (m *memory) ReadAt(b []byte, offset int64) (int, error) {
	return bytes.NewReader(m.medium).ReadAt(b, offset)
}

func (m *memory) operate(f func()) error {
	m.done++
	if m.failAt == 0 || m.done < m.failAt {
		f()
		return nil
	}
	if m.done == m.failAt && m.doneButError {
		f()
	}
	return errPower
}

func (m *memory) WriteAt(b []byte, offset int64) (int, error) {
	err := m.operate(func() { m.pending = append(m.pending, write{bytes.Clone(b), offset}) })
	return len(b), err
}

func (m *memory) Sync() error { return m.operate(m.flush) }

func (m *memory) flush() {
	for _, w := range m.pending {
		copy(m.medium[w.offset:], w.data)
	}
	m.pending = nil
}

// restart is the boot after a power cut: what was not synced is lost, or not.
func (m *memory) restart(keepUnsynced bool) *memory {
	if keepUnsynced {
		m.flush()
	}
	return &memory{medium: m.medium}
}

// Every write of Provision and MarkInitialised is lost, or done but reported as failed, with unsynced
// data kept or lost; then the machine boots again.
func TestPowerCutAtEveryStorageWrite(t *testing.T) {
	site := newSite(t)
	run := func(st *memory, dev *tpm.Device) error {
		v, err := Provision(dev, st, "demo", fewKeys, site.binding)
		if err != nil {
			return err
		}
		defer v.Close()
		return v.MarkInitialised()
	}
	count := newMemory()
	if err := run(count, boot(t, tpmtest.Start(t))); err != nil {
		t.Fatal(err)
	}
	if count.done != 20 {
		t.Errorf("%d writes and syncs, want 5 generations of 4", count.done)
	}
	for at := 1; at <= count.done; at++ {
		for _, doneButError := range []bool{false, true} {
			for _, keep := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d,%v,%v", at, doneButError, keep), func(t *testing.T) {
					m := tpmtest.New(t)
					st := newMemory()
					st.failAt, st.doneButError = at, doneButError
					dev := boot(t, m.Spec())
					if err := run(st, dev); !errors.Is(err, errPower) {
						t.Fatalf("first boot: %v", err)
					}
					dev.Close()
					m.Reboot()
					checkRecovers(t, m, st.restart(keep), site)
				})
			}
		}
	}
}

// Power fails before or after every command that writes to the TPM's NV.
func TestPowerCutAtEveryTPMWrite(t *testing.T) {
	const evictControl, nvDefineSpace, nvIncrement, nvWrite = 0x120, 0x12a, 0x134, 0x137
	site := newSite(t)
	for _, cut := range []struct {
		code uint32
		at   int // from 1
	}{{evictControl, 1}, {nvDefineSpace, 1}, {nvIncrement, 1}, {nvDefineSpace, 2}, {nvWrite, 1}} {
		for _, fault := range []tpmtest.Fault{tpmtest.CutBefore, tpmtest.CutAfter} {
			t.Run(fmt.Sprintf("%#x,%d,%d", cut.code, cut.at, fault), func(t *testing.T) {
				m, st := tpmtest.New(t), newMemory()
				seen := 0
				dev := boot(t, m.Through(func(c uint32) tpmtest.Fault {
					if c == cut.code {
						seen++
					}
					if c == cut.code && seen == cut.at {
						return fault
					}
					return tpmtest.Pass
				}))
				_, err := Provision(dev, st, "demo", fewKeys, site.binding)
				wantError(t, err, "the TPM does not answer")
				dev.Close()
				m.PowerOn()
				checkRecovers(t, m, st.restart(false), site)
			})
		}
	}
}

// checkRecovers boots after a power cut: the box is provisioned, or can be, and keys that the marker
// names are never replaced.
func checkRecovers(t *testing.T, m *tpmtest.Machine, st *memory, site *fakeSite) {
	t.Helper()
	dev := boot(t, m.Spec())
	marker, err := dev.ReadMarker()
	if err != nil {
		t.Fatal(err)
	}
	v, err := Open(dev, st, "demo", fewKeys, site.binding)
	if errors.Is(err, ErrNotProvisioned) {
		if marker != nil {
			t.Error("offers to provision although the marker is written")
		}
		v, err = Provision(dev, st, "demo", fewKeys, site.binding)
	}
	if err != nil {
		t.Fatalf("boot after the cut: %v", err)
	}
	defer v.Close()
	client := hold(t, dev, v)
	public := getKey(t, client, "authority/modern").Public().(*ecdsa.PublicKey)
	if a := mustAnchor(t, client); a.Count == 0 || a.Count != a.First {
		t.Errorf("the anchor is not where KEYS says it began: %+v", a)
	}
	if err := v.MarkInitialised(); err != nil {
		t.Fatal(err)
	}
	dev.Close()
	m.Reboot()

	dev = boot(t, m.Spec())
	if after, err := dev.ReadMarker(); err != nil || marker != nil && !bytes.Equal(after, marker) {
		t.Errorf("marker changed: %x, was %x, %v", after, marker, err)
	}
	v, err = Open(dev, st, "demo", fewKeys, site.binding)
	if err != nil {
		t.Fatalf("second boot after the cut: %v", err)
	}
	defer v.Close()
	if !v.Initialised() || v.Repaired() {
		t.Errorf("second boot: initialised %v, repaired %v", v.Initialised(), v.Repaired())
	}
	phase(t, dev, leaveInitrd)
	k := getKey(t, hold(t, dev, v), "authority/modern")
	if !public.Equal(k.Public()) {
		t.Error("the authority's key changed")
	}
	checkSigns(t, k)
	if info, err := dev.Info(); err != nil || info.LockoutCounter != 0 {
		t.Errorf("lockout counter %d, %v", info.LockoutCounter, err)
	}
}

// Every write of making a key of either kind, of keeping a secret and of removing both is lost, or done but
// reported as failed, with unsynced data kept or lost. After the next start each is there, whole, or not, what was
// confirmed before is as it was confirmed, and the same can be asked for again. On a host, for speed: its
// vault and holder are those of a box.
func TestPowerCutWhileKeysAreMade(t *testing.T) {
	host := Binding{Kind: KindHost}
	sealed := Spec{"intune/laptops", "ecdsa-p256", Sealed}
	steps := []struct {
		name string
		do   func(*Client) error
	}{
		{"resident", func(c *Client) error { _, err := c.Create(nextAuthority); return err }},
		{"sealed", func(c *Client) error { _, err := c.Create(sealed); return err }},
		{"secret", func(c *Client) error { return c.PutSecret("secret/a", []byte("value")) }},
		{"secret changed", func(c *Client) error { return c.PutSecret("secret/a", []byte("other")) }},
		{"secret removed", func(c *Client) error { return c.DeleteSecret("secret/a") }},
		{"removed", func(c *Client) error { return c.Delete(sealed.Name) }},
	}
	// What there is after so many steps.
	states := [][3]string{{"", "", ""}, {"yes", "", ""}, {"yes", "yes", ""}, {"yes", "yes", "value"}, {"yes", "yes", "other"}, {"yes", "yes", ""}, {"yes", "", ""}}
	state := func(t *testing.T, c *Client) (s [3]string) {
		t.Helper()
		for i, spec := range []Spec{nextAuthority, sealed} {
			k, err := c.Key(spec.Name)
			if errors.Is(err, ErrNoKey) {
				continue
			} else if err != nil {
				t.Fatal(err)
			}
			checkSigns(t, k)
			s[i] = "yes"
		}
		value, err := c.Secret("secret/a")
		if err != nil && !errors.Is(err, ErrNoKey) {
			t.Fatal(err)
		}
		s[2] = string(value)
		return s
	}
	const perStep = 8 // two generations of two writes and two syncs
	dev, err := tpm.Open(tpmtest.Start(t))
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	provisioned := newMemory()
	provision(t, dev, provisioned, fewKeys, host).Close()
	for at := 1; at <= perStep*len(steps); at++ {
		for _, doneButError := range []bool{false, true} {
			for _, keep := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d,%v,%v", at, doneButError, keep), func(t *testing.T) {
					reopen := func(st *memory) *Client {
						t.Helper()
						v, err := Open(dev, st, "demo", fewKeys, host)
						if err != nil {
							t.Fatal(err)
						}
						client := hold(t, dev, v)
						v.Forget()
						return client
					}
					st := &memory{medium: bytes.Clone(provisioned.medium), failAt: at, doneButError: doneButError}
					client := reopen(st)
					done := 0
					for ; done < len(steps); done++ {
						if err := steps[done].do(client); err != nil {
							break
						}
					}
					if done != (at-1)/perStep {
						t.Fatalf("%d steps done", done)
					}
					if got := state(t, client); got != states[done] {
						t.Errorf("this one serves %v, want %v", got, states[done])
					}
					st = st.restart(keep)
					client = reopen(st)
					if got := state(t, client); got != states[done] && got != states[done+1] {
						t.Errorf("next start: %v, want %v or %v", got, states[done], states[done+1])
					}
					// What was cut off can be asked for again; what is gone already need not be removed.
					if err := steps[done].do(client); err != nil && !errors.Is(err, ErrNoKey) {
						t.Errorf("%s again: %v", steps[done].name, err)
					}
					if got := state(t, reopen(st.restart(false))); got != states[done+1] {
						t.Errorf("in the end: %v, want %v", got, states[done+1])
					}
				})
			}
		}
	}
}
