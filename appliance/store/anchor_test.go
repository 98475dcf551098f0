package store

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"signet.internal/appliance/audit"
)

func mustAnchor(t testing.TB, s *Store) AnchorState {
	t.Helper()
	a, err := s.Anchor()
	must(t, err)
	return a
}

func TestAnchor(t *testing.T) {
	fs := vfs.NewMem()
	s := open(t, fs)
	_, err := s.Anchor()
	wantIs(t, "before there is one", err, ErrNotFound)
	wantIs(t, "moving what there is not", s.IntendAnchor(1), ErrConflict)
	wantIs(t, "confirming what there is not", s.ConfirmAnchor(1), ErrConflict)
	wantIs(t, "no counter stands at 0", s.ResetAnchor(0, record(audit.BoxAnchored, audit.OutcomeSuccess, "")), ErrDamaged)
	if n := s.head.next; n != 0 {
		t.Errorf("refusals left %d records", n)
	}

	must(t, s.ResetAnchor(7, record(audit.BoxAnchored, audit.OutcomeSuccess, "")))
	if diff := cmp.Diff(AnchorState{Confirmed: 7, Intended: 7}, mustAnchor(t, s)); diff != "" {
		t.Error(diff)
	}
	for _, next := range []uint64{0, 6, 7, 9} {
		wantIs(t, "moving by more or less than one", s.IntendAnchor(next), ErrConflict)
	}
	wantIs(t, "confirming what was not intended", s.ConfirmAnchor(8), ErrConflict)
	must(t, s.Append(record(audit.BoxStarted, audit.OutcomeSuccess, "")))
	must(t, s.IntendAnchor(8))
	must(t, s.IntendAnchor(8))
	must(t, s.Append(record(audit.BoxStarted, audit.OutcomeSuccess, "")))
	want := AnchorState{Confirmed: 7, Intended: 8, LogSize: 2}
	if diff := cmp.Diff(want, mustAnchor(t, s)); diff != "" {
		t.Error(diff)
	}
	closeStore(t, s)
	s = open(t, fs)
	if diff := cmp.Diff(want, mustAnchor(t, s)); diff != "" {
		t.Errorf("opened again: %s", diff)
	}
	must(t, s.ConfirmAnchor(8))
	must(t, s.ConfirmAnchor(8))
	want = AnchorState{Confirmed: 8, Intended: 8, LogSize: 2} // the third record came after the intent
	if diff := cmp.Diff(want, mustAnchor(t, s)); diff != "" {
		t.Error(diff)
	}
	wantIs(t, "confirming the one before", s.ConfirmAnchor(7), ErrConflict)

	must(t, s.AcknowledgeAnchor(40, record(audit.BoxRollbackAcknowledged, audit.OutcomeSuccess, "")))
	if diff := cmp.Diff(AnchorState{Confirmed: 40, Intended: 40, Lists: 40 << 20}, mustAnchor(t, s)); diff != "" {
		t.Error(diff)
	}
	records, err := s.Records(0, 1)
	must(t, err)
	if records[0].Action != audit.BoxRollbackAcknowledged {
		t.Errorf("newest record: %+v", records[0])
	}

	for _, bad := range []AnchorState{{}, {Confirmed: 5, Intended: 7}, {Confirmed: 5, Intended: 4}, {Intended: 1}} {
		must(t, s.do(true, func(c *change) error { return c.setJSON(keyAnchor, bad) }))
		_, err := s.Anchor()
		wantIs(t, "what the box never writes", err, ErrDamaged)
		wantIs(t, "moving it", s.IntendAnchor(6), ErrDamaged)
	}
	closeStore(t, s)
}

// A counter that moves as the store allows it, while the disk fails at every single change of it, and the
// power goes then: it always stands where the store that is left says it may.
func TestAnchorPowerCut(t *testing.T) {
	type left struct {
		fs      *vfs.MemFS
		counter uint64
		name    string
	}
	run := func(hook func(int, string, func() error) error) (ops int, all []left) {
		mem := vfs.NewCrashableMem()
		fs := &faultFS{FS: mem, hook: hook}
		counter := uint64(3)
		cut := func(when string) {
			for name, disk := range survivors(mem) {
				all = append(all, left{disk, counter, when + ", " + name})
			}
		}
		s, err := Open(Options{Dir: "state", FS: fs, memTable: smallMemTable})
		if err != nil {
			return 0, nil // there is no counter to fit yet
		}
		err = s.ResetAnchor(counter, record(audit.BoxAnchored, audit.OutcomeSuccess, ""))
		if err != nil {
			return 0, nil
		}
		for range 3 {
			if err = s.IntendAnchor(counter + 1); err != nil {
				break
			}
			cut("intended")
			counter++
			cut("moved")
			if err = s.ConfirmAnchor(counter); err != nil {
				break
			}
			cut("confirmed")
		}
		if err != nil && !errors.Is(err, ErrFailed) {
			t.Fatalf("%v, want ErrFailed", err)
		}
		cut("disk failed")
		ops = fs.ops
		_ = s.Close() // the failure again, where there was one
		return ops, all
	}
	ops, all := run(func(_ int, _ string, op func() error) error { return op() })
	if len(all) != 3*(3*3+1) {
		t.Fatalf("%d disks of a run without failures", len(all))
	}
	for n := range ops {
		for _, hook := range []func(int, string, func() error) error{lost(n, true), late(n)} {
			_, more := run(hook)
			all = append(all, more...)
		}
	}
	for _, l := range all {
		s := open(t, l.fs)
		a := mustAnchor(t, s)
		if l.counter != a.Confirmed && l.counter != a.Intended {
			t.Errorf("%s: the counter stands at %d, the store says %+v", l.name, l.counter, a)
		}
		if l.counter == a.Intended {
			must(t, s.ConfirmAnchor(l.counter))
		}
		must(t, s.IntendAnchor(l.counter+1))
		must(t, s.ConfirmAnchor(l.counter+1))
		closeStore(t, s)
	}
	if len(all) < 300 {
		t.Errorf("only %d disks looked at", len(all))
	}
}

// Checkpoints say where the counter stood, and an export in which it fell is refused.
func TestCheckpointsSayTheAnchor(t *testing.T) {
	s := open(t, vfs.NewMem())
	defer closeStore(t, s)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	now := epoch
	l, err := NewLogSigner(s, "plant-7", key, func() time.Time { return now })
	must(t, err)
	sign := func() audit.Checkpoint {
		t.Helper()
		now = now.Add(2 * time.Hour)
		must(t, s.Append(record(audit.BoxStarted, audit.OutcomeSuccess, "")))
		note, err := l.Checkpoint()
		must(t, err)
		c, err := audit.PeekCheckpoint(note)
		must(t, err)
		return c
	}
	if c := sign(); c.Anchor != 0 {
		t.Errorf("a box without a counter: %+v", c)
	}
	must(t, s.ResetAnchor(5, record(audit.BoxAnchored, audit.OutcomeSuccess, "")))
	if c := sign(); c.Anchor != 5 {
		t.Errorf("at 5: %+v", c)
	}
	must(t, s.IntendAnchor(6))
	if c := sign(); c.Anchor != 5 {
		t.Errorf("intended, and not known to have moved: %+v", c)
	}
	must(t, s.ConfirmAnchor(6))
	if c := sign(); c.Anchor != 6 {
		t.Errorf("at 6: %+v", c)
	}
	must(t, verifyLog(t, s, l))
	must(t, s.ResetAnchor(4, record(audit.BoxRollbackAcknowledged, audit.OutcomeSuccess, "")))
	sign()
	wantIs(t, "verifying a log whose counter fell", verifyLog(t, s, l), audit.ErrRolledBack)
}

// What an older state is found to lack is recorded once, whatever its log gets while the box stands still, and
// once acknowledged is said of the next time alone.
func TestOlderState(t *testing.T) {
	fs := vfs.NewMem()
	s := open(t, fs)
	_, err := s.Older()
	wantIs(t, "a state that was never older", err, ErrNotFound)
	must(t, s.Append(record(audit.BoxStarted, audit.OutcomeSuccess, "")))
	want := Older{Records: 1, Until: epoch, Found: epoch.Add(time.Hour)}
	check := func(what string, got Older, err error) {
		t.Helper()
		must(t, err)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
	got, err := s.FoundOlder(want.Found)
	check("found", got, err)
	must(t, s.Append(record(audit.BoxRollbackFound, audit.OutcomeRefused, "")))
	closeStore(t, s)
	s = open(t, fs)
	got, err = s.FoundOlder(want.Found.Add(time.Hour))
	check("found again", got, err)

	acknowledged := record(audit.BoxRollbackAcknowledged, audit.OutcomeSuccess, "")
	must(t, s.AcknowledgeAnchor(9, acknowledged))
	want.Acknowledged = acknowledged.Time
	got, err = s.Older()
	check("acknowledged", got, err)
	want = Older{Records: 3, Until: epoch, Found: epoch.Add(2 * time.Hour)}
	got, err = s.FoundOlder(want.Found)
	check("another older state", got, err)
	closeStore(t, s)
}

// The numbers of revocation lists never fall, whichever older state takes the place of the one that signed
// them, and for issuers that it does not know.
func TestCRLNumbersOfAnOlderState(t *testing.T) {
	issuer, later := sha256.Sum256([]byte("issuer")), sha256.Sum256([]byte("made later"))
	acknowledged := record(audit.BoxRollbackAcknowledged, audit.OutcomeSuccess, "")
	highest := map[[sha256.Size]byte]uint64{}
	sign := func(s *Store, issuer [sha256.Size]byte, times int) {
		t.Helper()
		for range times {
			n, err := s.NextCRL(issuer)
			must(t, err)
			if n <= highest[issuer] {
				t.Errorf("number %d after %d", n, highest[issuer])
			}
			highest[issuer] = n
			must(t, s.StoreCRL(issuer, CRL{Number: n, ThisUpdate: epoch}, nil, record(audit.CRLSigned, audit.OutcomeSuccess, "")))
		}
	}
	older := func() *Store {
		s := open(t, vfs.NewMem())
		must(t, s.ResetAnchor(7, record(audit.BoxAnchored, audit.OutcomeSuccess, "")))
		return s
	}
	s := older()
	sign(s, issuer, 20)
	sign(s, later, 5)
	closeStore(t, s)
	for counter := uint64(8); counter < 11; counter++ { // each time from the same copy, in which nothing was signed
		s := older()
		must(t, s.AcknowledgeAnchor(counter, acknowledged))
		sign(s, issuer, 3)
		sign(s, later, 2)
		must(t, s.IntendAnchor(counter+1))
		must(t, s.ConfirmAnchor(counter+1))
		sign(s, issuer, 2)
		closeStore(t, s)
	}
	s = older()
	must(t, s.AcknowledgeAnchor(11, acknowledged))
	must(t, s.AcknowledgeAnchor(3, acknowledged)) // a TPM that was replaced
	sign(s, issuer, 1)
	closeStore(t, s)
}
