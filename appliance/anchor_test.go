// What a green run does not prove: that a hardware TPM keeps its counter through a real power cut, or that a
// disk that says it has synced has.

package appliance

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/keys"
	"signet.internal/appliance/store"
	"signet.internal/tpm"
	"signet.internal/tpm/tpmtest"
	"signet.internal/webui"
)

// anchored is a machine with a real store and a real TPM, which stands for a box.
type anchored struct {
	t      *testing.T
	tpm    *tpmtest.Machine
	dir    string // its disk
	host   *keys.Host
	file   *os.File
	anchor *anchor
}

func newAnchored(t *testing.T) *anchored {
	b := &anchored{t: t, tpm: tpmtest.New(t), dir: filepath.Join(t.TempDir(), "disk")}
	must(t, os.Mkdir(b.dir, 0o700))
	t.Cleanup(func() { b.off() })
	return b
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// boot starts on the disk and the TPM at spec and returns what of it the anchor refuses.
func (b *anchored) boot(spec string) error {
	b.t.Helper()
	b.off()
	var err error
	b.file, err = os.OpenFile(filepath.Join(b.dir, keysFile), os.O_RDWR|os.O_CREATE, 0o600)
	must(b.t, err)
	b.host, err = keys.OpenHost(spec, b.file, "demo", []keys.Spec{{Name: "tls", Algorithm: "ecdsa-p256", Protection: keys.Sealed}})
	must(b.t, err)
	st, err := store.Open(store.Options{Dir: filepath.Join(b.dir, "store")})
	must(b.t, err)
	record := func(a audit.Action) audit.Record {
		return audit.Record{Action: a, Actor: audit.ActorBox, Outcome: audit.OutcomeSuccess, Time: time.Now(), TimeSource: "host"}
	}
	c := Config{Keys: b.host.Client, Log: slog.New(slog.NewTextHandler(b.t.Output(), nil))}
	if b.anchor, err = newAnchor(c, st, record); err != nil {
		b.anchor = &anchor{store: st}
		return err
	}
	if !st.Initialised() {
		must(b.t, st.Initialise(store.Identity{}, record(audit.BoxInitialised)))
	}
	if err := b.anchor.open(time.Now()); err != nil {
		return err
	}
	must(b.t, st.Append(record(audit.BoxStarted)))
	return nil
}

// on boots and expects the box to issue, or not, and moves the counter as its start does.
func (b *anchored) on(what string, issues bool) {
	b.t.Helper()
	if err := b.boot(b.tpm.Spec()); err != nil {
		b.t.Fatalf("%s: %v", what, err)
	}
	c := b.anchor.stopped()
	if (c == nil) != issues {
		b.t.Fatalf("%s: stopped by %+v", what, c)
	}
	if c != nil && (c.What == "" || c.Mend == "") {
		b.t.Errorf("%s: %+v", what, c)
	}
	b.anchor.started()
	if why := b.anchor.failure.Load(); why != nil {
		b.t.Errorf("%s: %s", what, *why)
	}
}

func (b *anchored) off() {
	if b.anchor != nil {
		must(b.t, b.anchor.store.Close())
		b.host.Close() // its TPM may be off already
		must(b.t, b.file.Close())
		b.anchor = nil
	}
}

// copied is a copy of the disk as it is, and swap puts one in its place.
func (b *anchored) copied() string {
	b.t.Helper()
	b.off()
	to := filepath.Join(b.t.TempDir(), "disk")
	must(b.t, os.CopyFS(to, os.DirFS(b.dir)))
	return to
}

func (b *anchored) swap(disk string) {
	b.t.Helper()
	b.off()
	must(b.t, os.RemoveAll(b.dir))
	must(b.t, os.CopyFS(b.dir, os.DirFS(disk)))
}

// stands returns where TPM and disk have the counter.
func (b *anchored) stands() (uint64, store.AnchorState) {
	b.t.Helper()
	at, err := b.anchor.keys.Anchor()
	must(b.t, err)
	known, err := b.anchor.store.Anchor()
	must(b.t, err)
	return at.Count, known
}

func (b *anchored) actions() (all []audit.Action) {
	b.t.Helper()
	records, err := b.anchor.store.Records(0, store.MaxRecords)
	must(b.t, err)
	for _, r := range slices.Backward(records) {
		all = append(all, r.Action)
	}
	return all
}

// Each start on the newest disk moves the counter by one, and nothing more within the hour.
func TestAnchorMovesOnceAStart(t *testing.T) {
	b := newAnchored(t)
	b.on("first start", true)
	first, known := b.stands()
	if known.Confirmed != first || known.Intended != first {
		t.Fatalf("the counter is at %d, the disk has %+v", first, known)
	}
	if got := b.actions(); !slices.Equal(got, []audit.Action{audit.BoxInitialised, audit.BoxAnchored, audit.BoxStarted}) {
		t.Errorf("log: %s", got)
	}
	for n := first + 1; n < first+4; n++ {
		b.on("next start", true)
		must(t, b.anchor.store.Append(b.anchor.record(audit.SignedIn)))
		b.anchor.due = time.Time{}
		b.anchor.upkeep()
		if at, known := b.stands(); at != n || known.Confirmed != n || known.Intended != n {
			t.Errorf("start to %d: the counter is at %d, the disk has %+v", n, at, known)
		}
	}
	// A service that is started anew while the key holder goes on leaves no intent behind that it may not follow.
	again := &anchor{keys: b.anchor.keys, store: b.anchor.store, log: b.anchor.log, record: b.anchor.record}
	must(t, again.open(time.Now()))
	again.upkeep()
	if at, known := b.stands(); at != known.Confirmed || at != known.Intended || again.conditions(time.Now()) != nil {
		t.Errorf("started anew: the counter is at %d, the disk has %+v", at, known)
	}
}

// Every disk there was around a move of the counter, with every position the TPM may have by then. The disk
// from before the intent passes only while the counter has not moved, that with the intent passes before and
// after, and none passes once the counter has moved again.
func TestAnchorFindsOlderDisks(t *testing.T) {
	b := newAnchored(t)
	b.on("first start", true)
	c, _ := b.stands()
	before := b.copied()
	must(t, b.boot(b.tpm.Spec()))
	must(t, b.anchor.store.IntendAnchor(c+1))
	intended := b.copied()

	passes := func(what, disk string, want bool) {
		t.Helper()
		b.swap(disk)
		if err := b.boot(b.tpm.Spec()); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got := b.anchor.stopped() == nil; got != want {
			t.Errorf("%s: issues %v, want %v", what, got, want)
		}
		if r := b.anchor.rollback.Load(); r != nil {
			at, _ := b.stands()
			if r.Expected != c && r.Expected != c+1 || r.Found != at || r.Since.IsZero() {
				t.Errorf("%s: %+v with the counter at %d", what, r, at)
			}
		}
	}
	passes("not moved, before the intent", before, true)
	passes("not moved, with the intent", intended, true)

	_, err := b.anchor.keys.Advance(c)
	must(t, err)
	passes("moved, with the intent", intended, true)
	if at, known := b.stands(); at != c+1 || known.Confirmed != at || known.Intended != at {
		t.Errorf("the counter is at %d, the disk has %+v", at, known)
	}
	after := b.copied()
	passes("moved, before the intent", before, false)
	passes("moved, confirmed", after, true)

	b.swap(after)
	b.on("next start", true) // it moves
	newest := b.copied()
	passes("moved again, before the intent", before, false)
	passes("moved again, with the intent", intended, false)
	passes("moved again, confirmed", after, false)
	passes("moved again, newest", newest, true)
}

// Power fails before the TPM counts, or after it has and before the disk knows. The box goes on by itself.
func TestAnchorPowerCuts(t *testing.T) {
	const nvIncrement = 0x134
	for fault, moved := range map[tpmtest.Fault]uint64{tpmtest.CutBefore: 0, tpmtest.CutAfter: 1} {
		b := newAnchored(t)
		b.on("first start", true)
		b.on("second start", true)
		c, _ := b.stands()
		faulty := b.tpm.Through(func(code uint32) tpmtest.Fault {
			if code == nvIncrement {
				return fault
			}
			return tpmtest.Pass
		})
		must(t, b.boot(faulty))
		b.anchor.upkeep()
		if c := b.anchor.conditions(time.Now()); len(c) != 1 || c[0].What == "" || c[0].Mend == "" {
			t.Errorf("fault %d: conditions %+v", fault, c)
		}
		b.off()
		b.tpm.PowerOn()
		must(t, b.boot(b.tpm.Spec()))
		if at, _ := b.stands(); at != c+moved || b.anchor.stopped() != nil {
			t.Errorf("fault %d: the counter was at %d and is at %d, %+v", fault, c, at, b.anchor.stopped())
		}
		b.anchor.upkeep()
		if at, known := b.stands(); at != c+moved+1 || known.Confirmed != at || known.Intended != at {
			t.Errorf("fault %d: the counter is at %d, the disk has %+v", fault, at, known)
		}
	}
}

// A box that was provisioned before boxes counted gets its counter at its first start with this software,
// once. Wherever the power goes meanwhile it gets it then, or stops: a disk that takes any counter for its own
// could be put back for ever.
func TestAnchorOfAnOlderBox(t *testing.T) {
	const nvDefine, nvIncrement = 0x12a, 0x134
	for _, cut := range []struct {
		code  uint32
		fault tpmtest.Fault
		stops bool
	}{{0, tpmtest.Pass, false}, {nvDefine, tpmtest.CutBefore, false}, {nvDefine, tpmtest.CutAfter, false}, {nvIncrement, tpmtest.CutBefore, false}, {nvIncrement, tpmtest.CutAfter, true}} {
		b := newAnchored(t)
		b.olderBox()
		older := b.copied()
		if cut.code != 0 {
			faulty := b.tpm.Through(func(code uint32) tpmtest.Fault {
				if code == cut.code {
					return cut.fault
				}
				return tpmtest.Pass
			})
			if err := b.boot(faulty); err == nil {
				t.Fatalf("%#x, %d: power was cut", cut.code, cut.fault)
			}
			b.off()
			b.tpm.PowerOn()
		}
		b.on("first start that counts", !cut.stops)
		if cut.stops {
			if r := b.anchor.rollback.Load(); r.Expected != 0 || r.Found == 0 {
				t.Errorf("%+v", r)
			}
			must(t, b.anchor.acknowledge("ada"))
		} else if n := len(slices.DeleteFunc(b.actions(), func(a audit.Action) bool { return a != audit.BoxAnchored })); n != 1 {
			t.Errorf("%#x, %d: %d records of the counter", cut.code, cut.fault, n)
		}
		b.on("second start", true)
		at, known := b.stands()
		if at != known.Confirmed {
			t.Errorf("%#x, %d: the counter is at %d, the disk has %+v", cut.code, cut.fault, at, known)
		}
		b.swap(older)
		b.on("disk from before it counted", false)
	}
}

// olderBox makes the disk one of a box that was provisioned before boxes counted, and has issued.
func (b *anchored) olderBox() {
	b.t.Helper()
	b.on("first start", true)
	b.off()
	b.tpm.UndefineNV(uint32(tpm.CounterHandle))
	must(b.t, os.RemoveAll(filepath.Join(b.dir, "store")))
	st, err := store.Open(store.Options{Dir: filepath.Join(b.dir, "store")})
	must(b.t, err)
	must(b.t, st.Initialise(store.Identity{}, audit.Record{Action: audit.BoxInitialised, Outcome: audit.OutcomeSuccess, Time: time.Now(), TimeSource: "host"}))
	must(b.t, st.Close())
	must(b.t, forgetAnchor(filepath.Join(b.dir, keysFile), b.tpm.Spec()))
}

// forgetAnchor writes KEYS as software did that made no counter. It is what the box itself could write: the
// key of its MAC comes out of the TPM.
func forgetAnchor(path, spec string) error {
	const generation, payloadAt = keys.StorageSize / 2, 4096
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	header, payload := b[:88], b[payloadAt:]
	payload = payload[:binary.BigEndian.Uint32(header[20:])-sha256.Size]
	var contents map[string]json.RawMessage
	var srkName []byte
	var sealed tpm.Blob
	err = json.Unmarshal(payload, &contents)
	err = errors.Join(err, json.Unmarshal(contents["srk_name"], &srkName), json.Unmarshal(contents["root"], &sealed))
	if err != nil {
		return err
	}
	dev, err := tpm.Open(spec)
	if err != nil {
		return err
	}
	defer dev.Close()
	srk, err := dev.OpenSRK(srkName)
	if err != nil {
		return err
	}
	root, err := srk.Unseal(sealed, tpm.Policy{Auth: true})
	if err != nil {
		return err
	}
	macKey, err := hkdf.Key(sha256.New, root, nil, "signet/keys-mac/1", 32)
	if err != nil {
		return err
	}
	delete(contents, "anchor")
	if payload, err = json.Marshal(contents); err != nil {
		return err
	}
	mac := hmac.New(sha256.New, macKey)
	mac.Write(payload)
	payload = mac.Sum(payload)
	for i := range int64(2) {
		at := i * generation
		binary.BigEndian.PutUint32(b[at+20:], uint32(len(payload)))
		sum := sha256.Sum256(payload)
		copy(b[at+24:], sum[:])
		sum = sha256.Sum256(b[at : at+56])
		copy(b[at+56:], sum[:])
		copy(b[at+payloadAt:], payload)
	}
	return os.WriteFile(path, b, 0o600)
}

// An administrator takes an older disk for the newest: the box issues again, the log says who, and neither
// the disk as it was nor the newer one passes any more. So it is where the counter is gone from the TPM.
func TestRollbackIsAcknowledged(t *testing.T) {
	b := newAnchored(t)
	b.on("first start", true)
	var conflict *webui.ConflictError
	if err := b.anchor.acknowledge("ada"); !errors.As(err, &conflict) || conflict.Mend == "" {
		t.Errorf("acknowledging the newest disk: %v", err)
	}
	older := b.copied()
	b.on("second start", true)
	newer := b.copied()
	b.swap(older)
	b.on("older disk", false)
	if got := b.actions(); got[len(got)-1] != audit.BoxRollbackFound {
		t.Errorf("log: %s", got)
	}
	was := *b.anchor.rollback.Load()
	b.on("older disk, started again", false)
	if is := *b.anchor.rollback.Load(); is != was || was.Records != 3 || was.Until.IsZero() {
		t.Errorf("found %+v, and at the next start %+v", was, is)
	}
	found, _ := b.stands()
	b.anchor.upkeep()
	if at, _ := b.stands(); at != found {
		t.Errorf("the counter moved from %d to %d while the box is stopped", found, at)
	}
	must(t, b.anchor.acknowledge("ada"))
	if c := b.anchor.stopped(); c != nil {
		t.Errorf("acknowledged: %+v", c)
	}
	if err := b.anchor.acknowledge("ada"); !errors.As(err, &conflict) {
		t.Errorf("acknowledging twice: %v", err)
	}
	records, err := b.anchor.store.Records(0, 1)
	must(t, err)
	if r := records[0]; r.Action != audit.BoxRollbackAcknowledged || r.Actor != "ada" || !strings.Contains(r.Reason, "TPM") || !strings.Contains(r.Reason, "in records 3 and on") {
		t.Errorf("record %+v", r)
	}
	mention := func(what string, when time.Time, want bool) {
		t.Helper()
		c := b.anchor.conditions(when)
		if got := len(c) == 1 && strings.Contains(c[0].What, "in records 3 and on") && c[0].Mend != ""; got != want || !want && len(c) > 0 {
			t.Errorf("%s: %+v", what, c)
		}
	}
	mention("acknowledged", time.Now(), true)
	mention("a month later", time.Now().Add(olderMention), false)
	if at, known := b.stands(); at != found+1 || known.Confirmed != at {
		t.Errorf("the counter is at %d, the disk has %+v", at, known)
	}
	acknowledged := b.copied()
	for what, disk := range map[string]string{"older": older, "newer": newer} {
		b.swap(disk)
		b.on(what, false)
	}
	b.swap(acknowledged)
	b.on("acknowledged", true)
	at, _ := b.stands()

	b.off()
	b.tpm.UndefineNV(uint32(tpm.CounterHandle))
	b.on("counter removed", false)
	if r := b.anchor.rollback.Load(); r.Found != 0 {
		t.Errorf("%+v", r)
	}
	must(t, b.anchor.acknowledge("ada"))
	if now, known := b.stands(); now <= at || known.Confirmed != now || b.anchor.stopped() != nil {
		t.Errorf("the counter was at %d and is at %d, the disk has %+v", at, now, known)
	}
	b.on("next start", true)
}

// Power fails while an administrator acknowledges: what is not in the log has to be acknowledged again.
func TestRollbackAcknowledgedInAPowerCut(t *testing.T) {
	b := newAnchored(t)
	b.on("first start", true)
	older := b.copied()
	b.on("second start", true)
	b.swap(older)
	const nvIncrement = 0x134
	faulty := b.tpm.Through(func(code uint32) tpmtest.Fault {
		if code == nvIncrement {
			return tpmtest.CutAfter
		}
		return tpmtest.Pass
	})
	must(t, b.boot(faulty))
	must(t, b.anchor.acknowledge("ada")) // the record is there, the move after it is cut
	b.off()
	b.tpm.PowerOn()
	b.on("acknowledged before the cut", true)

	b.off()
	b.tpm.UndefineNV(uint32(tpm.CounterHandle))
	must(t, b.boot(faulty))
	if err := b.anchor.acknowledge("ada"); err == nil || b.anchor.stopped() == nil {
		t.Errorf("power was cut: %v", err)
	}
	b.off()
	b.tpm.PowerOn()
	b.on("cut before the record", false)
	must(t, b.anchor.acknowledge("ada"))
	b.on("acknowledged again", true)
}

// A disk from before the first start of a box that has had one is refused: nothing is made anew on it.
func TestDiskFromBeforeTheFirstStart(t *testing.T) {
	b := newAnchored(t)
	must(t, b.boot(b.tpm.Spec())) // and the power goes before the counter moves
	empty := b.copied()
	must(t, os.RemoveAll(filepath.Join(empty, "store")))
	b.swap(empty)
	b.on("the counter has not moved yet", true)
	b.swap(empty)
	err := b.boot(b.tpm.Spec())
	var refused *mendable
	if !errors.As(err, &refused) || refused.mend == "" || b.anchor.store.Initialised() {
		t.Errorf("%v", err)
	}
}
