package store

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"signet.internal/appliance/audit"
)

// removal is a retention by which what appendNumbered wrote before record first is too old.
func removal(first int) Retention {
	return Retention{Now: epoch.Add(time.Duration(first)*time.Second + MinRetention), Keep: MinRetention, Aged: Everyone, Delivered: Everyone}
}

func remove(t testing.TB, s *Store, r Retention) int {
	t.Helper()
	rec := record(audit.RecordsRemoved, audit.OutcomeSuccess, "")
	rec.Time, rec.Reason = r.Now, "kept for 30d"
	n, err := s.RemoveRecords(r, rec)
	must(t, err)
	return int(n)
}

// exportOfRest is exportOf for a log whose first records may be gone.
func exportOfRest(t testing.TB, s *Store, l *LogSigner) []byte {
	t.Helper()
	removed, release := s.HoldRecords()
	defer release()
	var first []byte
	if removed.Before > 0 {
		first = audit.RemovedLine(removed.Before)
	}
	return append(first, exportOf(t, s, l)...)
}

// What is old goes, whatever its number; roots, proofs, checkpoints and what is left stay as they were,
// now and after the store is opened again, and an export says what is gone.
func TestRecordsAreRemoved(t *testing.T) {
	const n = 3000
	for _, first := range []int{1, 100, 256, 1000, 1024, 2500, n - 1, n + 10} {
		t.Run(fmt.Sprint(first), func(t *testing.T) {
			dir, signer := logged(t, n, 500, 1000)
			s, err := openDir(dir)
			must(t, err)
			leaves, err := s.Leaves(0, n)
			must(t, err)
			root, err := s.rootAt(s.db, n)
			must(t, err)
			gone := min(first, n-1) // the newest stays
			if removed := remove(t, s, removal(first)); removed != gone {
				t.Fatalf("%d records removed, want %d", removed, gone)
			}
			for range 2 {
				want := Removal{Before: uint64(gone), Until: epoch.Add(time.Duration(gone-1) * time.Second), Record: n}
				if r := s.Removed(); r != want {
					t.Errorf("removed %+v, want %+v", r, want)
				}
				left, err := s.Leaves(0, n)
				must(t, err)
				if !slices.EqualFunc(left, leaves[gone:], bytes.Equal) {
					t.Errorf("%d records are left, want the last %d", len(left), n-gone)
				}
				if again, err := s.rootAt(s.db, n); err != nil || again != root {
					t.Errorf("root %x, %v, was %x", again, err, root)
				}
				for _, i := range []int{0, gone - 1, gone, n - 1} {
					leaf, hashes, err := s.InclusionProof(uint64(i), n)
					must(t, err)
					if leaf != audit.LeafHash(leaves[i]) || proof.VerifyInclusion(rfc6962.DefaultHasher, uint64(i), n, leaf[:], hashes, root[:]) != nil {
						t.Errorf("record %d is not proven any more", i)
					}
				}
				page, err := s.Records(uint64(gone)+5, 10)
				must(t, err)
				if len(page) != min(5, n+1-gone) || page[len(page)-1].Index != uint64(gone) {
					t.Errorf("%d records on the last page", len(page))
				}
				closeStore(t, s)
				s, err = openDir(dir)
				must(t, err)
			}
			defer closeStore(t, s)
			key, err := audit.NewVerifier(signer.Key())
			must(t, err)
			report, err := audit.Verify(bytes.NewReader(exportOfRest(t, s, signer)), key)
			if err != nil || report.Removed == nil || report.Removed.Before != uint64(gone) || report.Records != n+1 || report.Checkpoints != 2 {
				t.Errorf("export: %+v, %v", report, err)
			}
			// What was the newest is so no more.
			if removed, want := remove(t, s, removal(first)), min(first, n)-gone; removed != want {
				t.Errorf("%d more removed, want %d", removed, want)
			}
		})
	}
}

// What has to stay stays, however old it is.
func TestRecordsThatStay(t *testing.T) {
	const n = 50
	for name, c := range map[string]struct {
		prepare func(t *testing.T, s *Store) (end func())
		change  func(r *Retention)
		want    int
	}{
		"all are old":        {want: n},
		"not aged":           {change: func(r *Retention) { r.Aged = 30 }, want: 30},
		"nothing aged":       {change: func(r *Retention) { r.Aged = 0 }, want: 0},
		"not delivered":      {change: func(r *Retention) { r.Delivered = 20 }, want: 20},
		"nothing delivered":  {change: func(r *Retention) { r.Delivered = 0 }, want: 0},
		"too young":          {change: func(r *Retention) { r.Keep += 10 * time.Second }, want: n - 10},
		"a clock far behind": {change: func(r *Retention) { r.Now = epoch }, want: 0},
		"held": {prepare: func(_ *testing.T, s *Store) func() {
			_, release := s.HoldRecords()
			return release
		}, want: 0},
		"an open transaction": {prepare: func(t *testing.T, s *Store) func() {
			i := intent("open", 0)
			i.Begun = epoch.Add(30 * time.Second)
			must(t, begin(s, i))
			return func() { must(t, finish(s, i.Serial)) }
		}, want: 30 - int(orderTolerance/time.Second)},
		"a request that waits": {prepare: func(t *testing.T, s *Store) func() {
			h := heldOf("open", 0)
			h.Since = epoch.Add(40 * time.Second)
			must(t, s.Hold(h, HoldLimits{Profile: 10, Source: 10}, record(audit.RequestHeld, audit.OutcomePending, "")))
			return func() {}
		}, want: 40 - int(orderTolerance/time.Second)},
	} {
		t.Run(name, func(t *testing.T) {
			s := recovered(t, vfs.NewMem())
			defer closeStore(t, s)
			appendNumbered(t, s, 0, n)
			last := record(audit.BoxStarted, audit.OutcomeSuccess, "")
			last.Time = epoch.Add(MinRetention + 1000*time.Second)
			must(t, s.Append(last))
			r := removal(n)
			if c.prepare != nil {
				defer c.prepare(t, s)()
			}
			if c.change != nil {
				c.change(&r)
			}
			if got := remove(t, s, r); got != c.want {
				t.Errorf("%d records removed, want %d", got, c.want)
			}
		})
	}
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	appendNumbered(t, s, 0, n)
	r := removal(n)
	r.Keep--
	if removed, err := s.RemoveRecords(r, record(audit.RecordsRemoved, audit.OutcomeSuccess, "")); removed != 0 || err == nil {
		t.Errorf("%d records removed that are younger than any may be: %v", removed, err)
	}
}

// A record of a clock that was ahead is as old as those after it, and does not keep the log for ever.
func TestRecordsOfAWrongClockAreRemoved(t *testing.T) {
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	appendNumbered(t, s, 0, 10)
	ahead := record(audit.BoxStarted, audit.OutcomeSuccess, "")
	ahead.Time, ahead.TimeSource = epoch.AddDate(80, 0, 0), "rtc"
	must(t, s.Append(ahead))
	appendNumbered(t, s, 11, 20)
	if removed := remove(t, s, removal(15)); removed != 15 {
		t.Errorf("%d records removed, want 15", removed)
	}
}

// Retention takes no evidence away.
func TestChangedRecordsAreNotRemoved(t *testing.T) {
	const n, i = 3000, 700
	for name, change := range map[string]func(t *testing.T, db *pebble.DB, v []byte) error{
		"changed": func(_ *testing.T, db *pebble.DB, v []byte) error {
			return db.Set(auditKey(i), bytes.Replace(v, []byte("number"), []byte("Number"), 1), pebble.Sync)
		},
		"changed with its hash": func(t *testing.T, db *pebble.DB, v []byte) error {
			return db.Set(auditKey(i), edited(t, v, func(r *audit.Record) { r.Actor = "somebody else" }), pebble.Sync)
		},
		"dropped": func(_ *testing.T, db *pebble.DB, _ []byte) error { return db.Delete(auditKey(i), pebble.Sync) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, signer := logged(t, n)
			tamper(t, dir, func(db *pebble.DB) {
				v, closer, err := db.Get(auditKey(i))
				must(t, err)
				v = bytes.Clone(v)
				must(t, errors.Join(closer.Close(), change(t, db, v)))
			})
			s, err := openDir(dir)
			must(t, err)
			defer closeStore(t, s)
			_, err = s.RemoveRecords(removal(2000), record(audit.RecordsRemoved, audit.OutcomeSuccess, ""))
			wantIs(t, "removing", err, ErrDamaged)
			var bad *audit.BadRecord
			if err := verifyLog(t, s, signer); !errors.As(err, &bad) || bad.Index != i {
				t.Errorf("verified: %v", err)
			}
		})
	}
}

// Whoever has the disk removes records himself, or moves what says how far they are removed: the store
// does not open.
func TestForgedRemoval(t *testing.T) {
	const n, first = 3000, 1000
	set := func(t *testing.T, db *pebble.DB, r Removal) {
		b, err := encode(r)
		must(t, err)
		must(t, db.Set(keyRemoved, b, pebble.Sync))
	}
	drop := func(t *testing.T, db *pebble.DB, to uint64) {
		must(t, db.DeleteRange(auditKey(0), auditKey(to), pebble.Sync))
	}
	for name, change := range map[string]func(t *testing.T, db *pebble.DB){
		"more dropped":               func(t *testing.T, db *pebble.DB) { drop(t, db, first+1) },
		"more dropped, and said so":  func(t *testing.T, db *pebble.DB) { drop(t, db, 1500); set(t, db, Removal{Before: 1500, Record: n}) },
		"told by another record":     func(t *testing.T, db *pebble.DB) { drop(t, db, 1500); set(t, db, Removal{Before: 1500, Record: n - 1}) },
		"told by a removed record":   func(t *testing.T, db *pebble.DB) { set(t, db, Removal{Before: first, Record: 3}) },
		"told by a record to come":   func(t *testing.T, db *pebble.DB) { set(t, db, Removal{Before: first, Record: n + 1}) },
		"nothing told":               func(t *testing.T, db *pebble.DB) { must(t, db.Delete(keyRemoved, pebble.Sync)) },
		"unreadable":                 func(t *testing.T, db *pebble.DB) { must(t, db.Set(keyRemoved, []byte{9}, pebble.Sync)) },
		"the telling record is gone": func(t *testing.T, db *pebble.DB) { must(t, db.Delete(auditKey(n), pebble.Sync)) },
		"the telling record replaced": func(t *testing.T, db *pebble.DB) {
			r := record(audit.RecordsRemoved, audit.OutcomeSuccess, "")
			r.Index, r.Identity = n, audit.RemovedBefore(1500)
			leaf := audit.Leaf(r)
			h := audit.LeafHash(leaf)
			must(t, db.Set(auditKey(n), slices.Concat([]byte{valueVersion}, h[:], leaf), pebble.Sync))
			drop(t, db, 1500)
			set(t, db, Removal{Before: 1500, Record: n})
		},
		"all dropped": func(t *testing.T, db *pebble.DB) { drop(t, db, n+2) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, _ := logged(t, n)
			s, err := openDir(dir)
			must(t, err)
			if removed := remove(t, s, removal(first)); removed != first {
				t.Fatalf("%d removed", removed)
			}
			closeStore(t, s)
			tamper(t, dir, func(db *pebble.DB) { change(t, db) })
			s, err = openDir(dir)
			wantIs(t, "opening", err, ErrDamaged)
			if err == nil {
				closeStore(t, s)
			}
		})
	}
	t.Run("without any removal", func(t *testing.T) {
		dir, _ := logged(t, n)
		tamper(t, dir, func(db *pebble.DB) { drop(t, db, 1) })
		_, err := openDir(dir)
		wantIs(t, "opening", err, ErrDamaged)
	})
}

// A power cut leaves the records and nothing told of them, or neither.
func TestRemovalSurvivesPowerCuts(t *testing.T) {
	const n, first = 400, 300
	fs := vfs.NewCrashableMem()
	s := recovered(t, fs)
	appendNumbered(t, s, 0, n)
	closeStore(t, s)
	var cuts []*vfs.MemFS
	cutting := &faultFS{FS: fs}
	cutting.hook = func(_ int, _ string, op func() error) error {
		left := survivors(fs)
		cuts = append(cuts, left["nothing unsynced"], left["everything"])
		return op()
	}
	s = open(t, cutting)
	if removed := remove(t, s, removal(first)); removed != first {
		t.Fatalf("%d removed", removed)
	}
	cuts = append(cuts, fs.CrashClone(vfs.CrashCloneCfg{}))
	closeStore(t, s)
	outcomes := map[int]int{}
	for _, disk := range cuts {
		s := open(t, disk)
		leaves, err := s.Leaves(0, n)
		must(t, err)
		removed := s.Removed()
		if len(leaves) != n-int(removed.Before) {
			t.Errorf("%d records left, removed %+v", len(leaves), removed)
		}
		outcomes[len(leaves)]++
		must(t, s.Append(record(audit.BoxStarted, audit.OutcomeSuccess, "")))
		closeStore(t, s)
	}
	if len(outcomes) != 2 || outcomes[n] == 0 || outcomes[n-first] == 0 {
		t.Errorf("outcomes: %v", outcomes)
	}
}

func TestCursor(t *testing.T) {
	fs := vfs.NewMem()
	s := recovered(t, fs)
	appendNumbered(t, s, 0, 10)
	check := func(to string, want uint64) {
		t.Helper()
		c, err := s.Delivered(to)
		must(t, err)
		if c != (Cursor{to, want}) {
			t.Errorf("%+v, want %d of %s", c, want, to)
		}
	}
	check("one", 0)
	must(t, s.SetDelivered(Cursor{"one", 7}))
	closeStore(t, s)
	s = open(t, fs)
	defer closeStore(t, s)
	check("one", 7)
	check("another", 0)
	wantIs(t, "beyond the log", s.SetDelivered(Cursor{"one", 11}), ErrConflict)
	must(t, s.SetDelivered(Cursor{"another", 10}))
	check("one", 0)
	if size, _, err := s.LogHead(); err != nil || size != 10 {
		t.Errorf("the log has %d records, %v", size, err)
	}
}
