package store

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"signet.internal/appliance/audit"
)

var records = flag.Int("audit-records", 100_000, "records of the audit log in benchmarks")

// checkTree builds the tree over all records anew and holds it against everything that is stored of it.
func checkTree(t testing.TB, s *Store) {
	t.Helper()
	r := treeRanges().NewEmptyRange(0)
	want := map[string][]byte{}
	must(t, s.scan(prefixAudit, func(_, v []byte) error {
		return r.Append(bytes.Clone(v[1:33]), func(id compact.NodeID, hash []byte) {
			want[string(treeKey(id)[1:])] = hash
		})
	}))
	got := map[string][]byte{}
	must(t, s.scan(prefixTree, func(name, v []byte) error {
		got[string(name)] = bytes.Clone(v)
		return nil
	}))
	if !maps.EqualFunc(want, got, bytes.Equal) {
		t.Errorf("stored subtrees (-want +got):\n%s", cmp.Diff(want, got))
	}
	size, root, err := s.LogHead()
	must(t, err)
	wantRoot, err := rootOf(r.End(), r.Hashes())
	must(t, err)
	if size != r.End() || root != wantRoot {
		t.Errorf("head of %d records is %x, want %d, %x", size, root, r.End(), wantRoot)
	}
}

// openDir opens a store in a real directory.
func openDir(dir string) (*Store, error) { return Open(Options{Dir: dir}) }

// logged is a real store directory with n records, signed after each of the sizes, and closed.
func logged(t testing.TB, n int, sizes ...int) (dir string, signer *LogSigner) {
	t.Helper()
	dir = t.TempDir()
	s, err := openDir(dir)
	must(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	now := epoch
	signer, err = NewLogSigner(s, "plant-7", key, func() time.Time { return now })
	must(t, err)
	done := 0
	for _, size := range append(sizes, n) {
		appendNumbered(t, s, done, size)
		done = size
		now = now.Add(2 * time.Hour)
		if size < n {
			must(t, signer.Upkeep())
		}
	}
	must(t, s.Close())
	return dir, signer
}

func appendNumbered(t testing.TB, s *Store, from, to int) {
	t.Helper()
	for from < to {
		var batch []audit.Record
		for ; from < to && len(batch) < 1000; from++ {
			r := record(audit.BoxStarted, audit.OutcomeSuccess, "")
			r.Identity = fmt.Sprintf("number %d", from)
			r.Time = epoch.Add(time.Duration(from) * time.Second)
			batch = append(batch, r)
		}
		must(t, s.Append(batch...))
	}
}

// exportOf writes the whole log out as the console does.
func exportOf(t testing.TB, s *Store, l *LogSigner) []byte {
	t.Helper()
	l.store = s
	signed, err := l.Checkpoint()
	must(t, err)
	head, err := audit.PeekCheckpoint(signed)
	must(t, err)
	leaves, err := s.Leaves(0, head.Size)
	must(t, err)
	var b bytes.Buffer
	for _, l := range leaves {
		b.Write(l)
		b.WriteByte('\n')
	}
	earlier, _, err := s.Checkpoints(0, 1000)
	must(t, err)
	for _, c := range earlier {
		if !bytes.Equal(c.Note, signed) {
			b.Write(audit.EarlierLine(c.Note))
		}
	}
	hashes, err := s.LeafHashes(0, head.Size)
	must(t, err)
	for row := range slices.Chunk(hashes, audit.HashesPerLine) {
		b.Write(audit.HashesLine(row))
	}
	b.Write(audit.CheckpointLine(signed))
	return b.Bytes()
}

func verifyLog(t testing.TB, s *Store, l *LogSigner) error {
	t.Helper()
	key, err := audit.NewVerifier(l.Key())
	must(t, err)
	_, err = audit.Verify(bytes.NewReader(exportOf(t, s, l)), key)
	return err
}

// edited is the value of a record after somebody changed it, with the hash that fits.
func edited(t testing.TB, value []byte, change func(*audit.Record)) []byte {
	t.Helper()
	r, err := audit.Parse(value[33:])
	must(t, err)
	change(&r)
	leaf := audit.Leaf(r)
	h := audit.LeafHash(leaf)
	return append(append([]byte{valueVersion}, h[:]...), leaf...)
}

// Whoever has the disk changes, drops, reorders and inserts records in a real store's directory, at the
// end and far from it, with and without the hashes that fit: either the store does not open, or an
// export names the record.
func TestTampering(t *testing.T) {
	const n = 5000
	get := func(db *pebble.DB, i int) []byte {
		v, closer, err := db.Get(auditKey(uint64(i)))
		must(t, err)
		defer closer.Close()
		return bytes.Clone(v)
	}
	set := func(db *pebble.DB, i int, v []byte) { must(t, db.Set(auditKey(uint64(i)), v, pebble.Sync)) }
	renumbered := func(v []byte, i int) []byte {
		return edited(t, v, func(r *audit.Record) { r.Index = uint64(i) })
	}
	actor := func(v []byte) []byte { return edited(t, v, func(r *audit.Record) { r.Actor = "somebody else" }) }
	changes := map[string]func(db *pebble.DB, i int){
		"changed": func(db *pebble.DB, i int) {
			v := get(db, i)
			set(db, i, bytes.Replace(v, []byte("number"), []byte("Number"), 1))
		},
		"changed with its hash": func(db *pebble.DB, i int) { set(db, i, actor(get(db, i))) },
		"dropped":               func(db *pebble.DB, i int) { must(t, db.Delete(auditKey(uint64(i)), pebble.Sync)) },
		"dropped and closed up": func(db *pebble.DB, i int) {
			for ; i < n-1; i++ {
				set(db, i, renumbered(get(db, i+1), i))
			}
			must(t, db.Delete(auditKey(n-1), pebble.Sync))
		},
		"swapped": func(db *pebble.DB, i int) {
			a, b := get(db, i), get(db, i+1)
			set(db, i, b)
			set(db, i+1, a)
		},
		"swapped and renumbered": func(db *pebble.DB, i int) {
			a, b := get(db, i), get(db, i+1)
			set(db, i, renumbered(b, i))
			set(db, i+1, renumbered(a, i+1))
		},
		"inserted": func(db *pebble.DB, i int) {
			for j := n; j > i; j-- {
				set(db, j, renumbered(get(db, j-1), j))
			}
			set(db, i, actor(get(db, i)))
		},
	}
	for name, change := range changes {
		for _, i := range []int{0, 1500, n - 1025, n - 2} {
			t.Run(fmt.Sprintf("%s at %d", name, i), func(t *testing.T) {
				dir, signer := logged(t, n, 1000, 2000)
				tamper(t, dir, func(db *pebble.DB) { change(db, i) })
				s, err := openDir(dir)
				if err != nil {
					wantIs(t, "opening", err, ErrDamaged)
					return
				}
				if i >= n-treeTail-1 || strings.Contains(name, "closed up") || name == "inserted" {
					t.Error("the store opened")
				}
				defer closeStore(t, s)
				var bad *audit.BadRecord
				if err := verifyLog(t, s, signer); !errors.As(err, &bad) || bad.Index != uint64(i) || bad.Last != uint64(i) {
					t.Errorf("verified: %v, want record %d named", err, i)
				}
			})
		}
	}
}

func tamper(t testing.TB, dir string, change func(*pebble.DB)) {
	t.Helper()
	db, err := pebble.Open(dir, &pebble.Options{FormatMajorVersion: formatVersion, Logger: quiet{}})
	must(t, err)
	change(db)
	must(t, db.Close())
}

type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(f string, a ...any) {
	panic(fmt.Sprintf(f, a...))
}

// Who builds the whole tree anew over changed records cannot sign it; without the checkpoints on the
// disk it is one that was handed out before that convicts him.
func TestForgedTree(t *testing.T) {
	const n = 2500
	for name, c := range map[string]struct {
		dropped bool // checkpoints
		opens   bool
	}{"with its checkpoints": {}, "without": {dropped: true, opens: true}} {
		t.Run(name, func(t *testing.T) {
			dir, signer := logged(t, n, 1000)
			last, err := audit.PeekCheckpoint(signer.last.Note)
			must(t, err)
			tamper(t, dir, func(db *pebble.DB) {
				v, closer, err := db.Get(auditKey(7))
				must(t, err)
				v = edited(t, v, func(r *audit.Record) { r.Actor = "somebody else" })
				must(t, closer.Close())
				must(t, db.Set(auditKey(7), v, pebble.Sync))
				if c.dropped {
					must(t, db.DeleteRange([]byte{prefixCheckpoint}, []byte{prefixCheckpoint + 1}, pebble.Sync))
				}
				must(t, db.Delete(keyTree, pebble.Sync))
				must(t, db.Set(keySchema, []byte{schemaTreeless}, pebble.Sync)) // has the store itself build it
			})
			s, err := openDir(dir)
			if !c.opens {
				wantIs(t, "opening", err, ErrDamaged)
				return
			}
			must(t, err)
			defer closeStore(t, s)
			must(t, s.read(func(db *pebble.DB) error {
				root, err := s.rootAt(db, last.Size)
				if root == last.Root {
					t.Error("the root that was handed out still fits")
				}
				return err
			}))
		})
	}
}

// What is kept of the tree beside the records is held against them.
func TestDamagedTreeIsNamed(t *testing.T) {
	for name, change := range map[string]func(*pebble.DB) error{
		"no head":         func(db *pebble.DB) error { return db.Delete(keyTree, pebble.Sync) },
		"short head":      func(db *pebble.DB) error { return db.Set(keyTree, []byte{1}, pebble.Sync) },
		"another root":    func(db *pebble.DB) error { return db.Set(keyTree, treeHead(3000, [32]byte{1}), pebble.Sync) },
		"another size":    func(db *pebble.DB) error { return db.Set(keyTree, treeHead(2999, [32]byte{1}), pebble.Sync) },
		"missing subtree": func(db *pebble.DB) error { return db.Delete(treeKey(compact.NewNodeID(10, 0)), pebble.Sync) },
		"short subtree":   func(db *pebble.DB) error { return db.Set(treeKey(compact.NewNodeID(10, 0)), []byte{1}, pebble.Sync) },
		"another subtree": func(db *pebble.DB) error {
			return db.Set(treeKey(compact.NewNodeID(10, 0)), make([]byte, 32), pebble.Sync)
		},
		"another new node": func(db *pebble.DB) error {
			return db.Set(treeKey(compact.NewNodeID(1, 1400)), make([]byte, 32), pebble.Sync)
		},
		"records gone": func(db *pebble.DB) error {
			return db.DeleteRange([]byte{prefixAudit}, []byte{prefixAudit + 1}, pebble.Sync)
		},
		"records and head gone": func(db *pebble.DB) error {
			return errors.Join(db.DeleteRange([]byte{prefixAudit}, []byte{prefixAudit + 1}, pebble.Sync), db.Delete(keyTree, pebble.Sync))
		},
		"checkpoint of a longer log": func(db *pebble.DB) error {
			v, closer, err := db.Get(checkpointKey(1000))
			if err != nil {
				return err
			}
			return errors.Join(db.Set(checkpointKey(9000), bytes.Clone(v), pebble.Sync), closer.Close())
		},
		"unreadable checkpoint": func(db *pebble.DB) error {
			return db.Set(checkpointKey(1000), []byte{valueVersion, '{', '}'}, pebble.Sync)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, _ := logged(t, 3000, 1000)
			tamper(t, dir, func(db *pebble.DB) { must(t, change(db)) })
			s, err := openDir(dir)
			wantIs(t, "opening", err, ErrDamaged)
			if err == nil {
				closeStore(t, s)
			}
		})
	}
}

// Every proof of a log, in all its sizes, holds for the library that makes none of it.
func TestProofs(t *testing.T) {
	const n = 70
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	roots := [][]byte{rfc6962.DefaultHasher.EmptyRoot()}
	for i := range n {
		appendNumbered(t, s, i, i+1)
		_, root, err := s.LogHead()
		must(t, err)
		roots = append(roots, root[:])
	}
	checkTree(t, s)
	leaves, err := s.Leaves(0, n)
	must(t, err)
	for size := uint64(1); size <= n; size++ {
		for index := range size {
			leaf, hashes, err := s.InclusionProof(index, size)
			must(t, err)
			if leaf != audit.LeafHash(leaves[index]) {
				t.Errorf("leaf hash of %d", index)
			}
			if err := proof.VerifyInclusion(rfc6962.DefaultHasher, index, size, leaf[:], hashes, roots[size]); err != nil {
				t.Errorf("record %d of %d: %v", index, size, err)
			}
		}
		for to := size; to <= n; to++ {
			hashes, err := s.ConsistencyProof(size, to)
			must(t, err)
			if err := proof.VerifyConsistency(rfc6962.DefaultHasher, size, to, hashes, roots[size], roots[to]); err != nil {
				t.Errorf("%d to %d: %v", size, to, err)
			}
		}
	}
	for _, c := range [][2]uint64{{0, 0}, {5, 5}, {0, n + 1}, {n, n}} {
		_, _, err := s.InclusionProof(c[0], c[1])
		wantIs(t, fmt.Sprintf("record %d of %d", c[0], c[1]), err, ErrOutsideTree)
	}
	for _, c := range [][2]uint64{{0, 5}, {6, 5}, {5, n + 1}} {
		_, err := s.ConsistencyProof(c[0], c[1])
		wantIs(t, fmt.Sprintf("%d to %d", c[0], c[1]), err, ErrOutsideTree)
	}
}

// A log without a tree gets it once, whatever interrupts that.
func TestTreeIsBuilt(t *testing.T) {
	const n = 2*upgradeChunk + 77
	fs := vfs.NewCrashableMem()
	s := recovered(t, fs)
	appendNumbered(t, s, 0, n)
	want := dump(t, s)
	must(t, s.db.DeleteRange([]byte{prefixTree}, []byte{prefixTree + 1}, pebble.Sync))
	must(t, s.db.Delete(keyTree, pebble.Sync))
	must(t, s.db.Set(keySchema, []byte{schemaTreeless}, pebble.Sync))
	closeStore(t, s)

	var cuts []*vfs.MemFS
	cutting := &faultFS{FS: fs}
	cutting.hook = func(_ int, _ string, op func() error) error {
		left := survivors(fs)
		cuts = append(cuts, left["nothing unsynced"], left["everything"])
		return op()
	}
	s = open(t, cutting)
	cutting.mu.Lock() // Pebble cleans up meanwhile
	cuts = append(cuts, fs.CrashClone(vfs.CrashCloneCfg{}))
	cutting.mu.Unlock()
	closeStore(t, s)
	t.Logf("%d power cuts", len(cuts))
	for i, disk := range cuts {
		s := open(t, disk)
		if got := dump(t, s); got != want {
			t.Fatalf("after power cut %d (-want +got):\n%s", i, cmp.Diff(want, got))
		}
		checkTree(t, s)
		appendNumbered(t, s, n, n+1)
		checkTree(t, s)
		closeStore(t, s)
	}
}

func TestLogSigner(t *testing.T) {
	fs := vfs.NewMem()
	s := recovered(t, fs)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	now := epoch
	clock := func() time.Time { return now }
	l, err := NewLogSigner(s, "plant-7", key, clock)
	must(t, err)
	verifier, err := audit.NewVerifier(l.Key())
	must(t, err)
	check := func(what string, size uint64) {
		t.Helper()
		signed, err := l.Checkpoint()
		must(t, err)
		c, err := audit.OpenCheckpoint(signed, verifier)
		must(t, err)
		if c.Size != size {
			t.Errorf("%s: checkpoint over %d records, want %d", what, c.Size, size)
		}
	}
	check("of an empty log", 0)
	appendNumbered(t, s, 0, 3)
	check("at once", 0)
	now = now.Add(signGap)
	check("after the gap", 3)
	now = now.Add(time.Minute)
	check("of a log that did not grow", 3)
	appendNumbered(t, s, 3, 4)
	must(t, l.Upkeep())
	if c, err := s.LastCheckpoint(); err != nil || !c.At.Equal(epoch.Add(signGap)) {
		t.Errorf("upkeep within the hour signed at %v: %v", c.At, err)
	}
	now = now.Add(time.Hour)
	must(t, l.Upkeep())
	check("by upkeep", 4)
	now = epoch.Add(-time.Hour)
	appendNumbered(t, s, 4, 5)
	check("with the clock set back", 5)

	// Of an hour's checkpoints the newest stays.
	now = epoch.Add(24 * time.Hour)
	for i := range 5 {
		appendNumbered(t, s, 5+i, 6+i)
		now = now.Add(time.Minute)
		check("each minute", uint64(6+i))
	}
	all, _, err := s.Checkpoints(0, 100)
	must(t, err)
	var sizes []uint64
	for _, c := range all {
		head, err := audit.OpenCheckpoint(c.Note, verifier)
		must(t, err)
		sizes = append(sizes, head.Size)
	}
	if diff := cmp.Diff([]uint64{3, 4, 5, 10}, sizes); diff != "" {
		t.Errorf("kept (-want +got):\n%s", diff)
	}

	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	signer, err := audit.NewSigner("other", other)
	must(t, err)
	forged, err := audit.SignCheckpoint(audit.Checkpoint{Origin: "other", Size: 2}, signer)
	must(t, err)
	wantIs(t, "another root", s.SaveCheckpoint(Checkpoint{Note: forged, At: now}), ErrConflict)
	forged, err = audit.SignCheckpoint(audit.Checkpoint{Origin: "other", Size: 99}, signer)
	must(t, err)
	wantIs(t, "a longer log", s.SaveCheckpoint(Checkpoint{Note: forged, At: now}), ErrDamaged)
	closeStore(t, s)

	// A restart goes on from the last one, a new key begins anew.
	s = open(t, fs)
	defer closeStore(t, s)
	l, err = NewLogSigner(s, "plant-7", key, clock)
	must(t, err)
	appendNumbered(t, s, 10, 11)
	check("after a restart", 10)
	l, err = NewLogSigner(s, "plant-7", other, clock)
	must(t, err)
	verifier, err = audit.NewVerifier(l.Key())
	must(t, err)
	check("of another key", 11)
}

// The checkpoint is there after a power cut, or not; the log is, either way.
func TestCheckpointPowerCut(t *testing.T) {
	fs := vfs.NewCrashableMem()
	faulty := &faultFS{FS: fs}
	var cuts []*vfs.MemFS
	cutting := false
	faulty.hook = func(_ int, _ string, op func() error) error {
		if cutting {
			for _, disk := range survivors(fs) {
				cuts = append(cuts, disk)
			}
		}
		return op()
	}
	s := recovered(t, faulty)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	l, err := NewLogSigner(s, "plant-7", key, time.Now)
	must(t, err)
	appendNumbered(t, s, 0, 5)
	faulty.mu.Lock()
	cutting = true
	faulty.mu.Unlock()
	signed, err := l.Checkpoint()
	must(t, err)
	closeStore(t, s)
	with := 0
	for _, disk := range append(cuts, fs.CrashClone(vfs.CrashCloneCfg{})) {
		s := open(t, disk)
		if size, _, err := s.LogHead(); err != nil || size != 5 {
			t.Errorf("%d records: %v", size, err)
		}
		c, err := s.LastCheckpoint()
		switch {
		case err == nil && bytes.Equal(c.Note, signed):
			with++
		case !errors.Is(err, ErrNotFound):
			t.Errorf("checkpoint %q: %v", c.Note, err)
		}
		closeStore(t, s)
	}
	if with == 0 || with == len(cuts)+1 {
		t.Errorf("%d of %d disks have the checkpoint", with, len(cuts)+1)
	}
}

func BenchmarkAppend(b *testing.B) {
	for name, grow := range map[string]bool{"tree alone": false, "store": true} {
		b.Run(name, func(b *testing.B) {
			if !grow {
				r, leaf := treeRanges().NewEmptyRange(0), [32]byte{1}
				for b.Loop() {
					if err := r.Append(leaf[:], nil); err != nil {
						b.Fatal(err)
					}
				}
				return
			}
			s, err := openDir(b.TempDir())
			must(b, err)
			defer closeStore(b, s)
			one := record(audit.BoxStarted, audit.OutcomeSuccess, "")
			batch := make([]audit.Record, 100)
			for i := range batch {
				batch[i] = one
			}
			for b.Loop() {
				must(b, s.Append(batch...))
			}
			b.ReportMetric(float64(b.N*len(batch))/b.Elapsed().Seconds(), "records/s")
		})
	}
}

func BenchmarkProof(b *testing.B) {
	s, err := openDir(b.TempDir())
	must(b, err)
	defer closeStore(b, s)
	appendNumbered(b, s, 0, *records)
	n := uint64(0)
	for b.Loop() {
		n = (n*6364136223846793005 + 1) % uint64(*records)
		if _, _, err := s.InclusionProof(n, uint64(*records)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpen is what the log adds to a start.
func BenchmarkOpen(b *testing.B) {
	dir, _ := logged(b, *records, *records/2)
	for b.Loop() {
		s, err := openDir(dir)
		must(b, err)
		b.StopTimer()
		closeStore(b, s)
		b.StartTimer()
	}
}

// BenchmarkBuildTree is the upgrade of a log without a tree.
func BenchmarkBuildTree(b *testing.B) {
	s, err := openDir(b.TempDir())
	must(b, err)
	defer closeStore(b, s)
	appendNumbered(b, s, 0, *records)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for b.Loop() {
		must(b, s.buildTree())
	}
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(b.N**records)/b.Elapsed().Seconds(), "records/s")
	b.ReportMetric(float64(max(after.HeapSys, before.HeapSys)-before.HeapSys)/(1<<20), "MiB-grown")
}
