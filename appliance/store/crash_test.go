package store

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"signet.internal/appliance/audit"
)

// step is one transition of the story.
type step struct {
	name string
	do   func(*Store) error
}

// golden is the state after a step.
type golden struct {
	records  uint64 // in the audit log: each step adds some, so they tell the steps apart
	contents string
}

// story makes every transition of the package. The large identities fill a memtable, so that its
// flush and a change of write-ahead logs are among what gets interrupted.
func story() []step {
	success := func(a audit.Action) audit.Record { return record(a, audit.OutcomeSuccess, "") }
	identity := func(n byte, size int) Identity {
		ca := make([]byte, size)
		rand.NewChaCha8([32]byte{n}).Read(ca)
		return Identity{Authorities: map[string]AuthorityCerts{"devices": {CA: ca}}}
	}
	again := func(name string, n int) Intent {
		i := intent(name, n)
		i.After = serialOf(name, n-1)
		return i
	}
	steps := []step{
		{"initialise", func(s *Store) error { return s.Initialise(identity(0, 1<<10), success(audit.BoxInitialised)) }},
		{"claim", func(s *Store) error {
			return s.Claim(User{Name: "admin"}, Token{Hash: sha256.Sum256([]byte("token")), User: "admin"}, success(audit.AdminClaimed))
		}},
		{"begin a", func(s *Store) error { return begin(s, intent("a", 0)) }},
		{"finish a", func(s *Store) error { return finish(s, serialOf("a", 0)) }},
		{"begin b", func(s *Store) error { return begin(s, intent("b", 0)) }},
		{"fail b", func(s *Store) error { return fail(s, serialOf("b", 0)) }},
		{"begin b again", func(s *Store) error { return begin(s, again("b", 1)) }},
		{"lose b", func(s *Store) error { return lose(s, serialOf("b", 1)) }},
		{"append", func(s *Store) error {
			r := success(audit.BoxStarted)
			r.TimeSource = "ntp"
			return s.Append(r)
		}},
	}
	g := guardOf(GuardOnce, "challenge")
	guardedHeld := heldOf("d", 0)
	guardedHeld.Guards = []Guard{g, guardOf(GuardRate, "limit")}
	expiring := heldOf("f", 0)
	expiring.Until = epoch.Add(time.Hour)
	withheld := intent("w", 0)
	withheld.Withhold, withheld.RevokeSuperseded, withheld.Supersedes = true, true, serialOf("r", 0)
	replaced := intent("v", 0)
	replaced.RevokeSuperseded, replaced.Supersedes = true, withheld.Serial
	renewal := intent("r", 0)
	renewal.Supersedes = serialOf("a", 0)
	steps = append(steps,
		step{"mint", func(s *Store) error { return mint(s, g) }},
		step{"hold d", func(s *Store) error { return holdOne(s, guardedHeld) }},
		step{"hold e", func(s *Store) error { return holdOne(s, heldOf("e", 0)) }},
		step{"approve d", func(s *Store) error { return approve(s, guardedHeld, intent("d", 0)) }},
		step{"lose d", func(s *Store) error { return lose(s, serialOf("d", 0)) }},
		step{"approve d again", func(s *Store) error { return approve(s, guardedHeld, again("d", 1)) }},
		step{"finish d", func(s *Store) error { return finish(s, serialOf("d", 1)) }},
		step{"deny e", func(s *Store) error { return deny(s, heldOf("e", 0)) }},
		step{"hold e again", func(s *Store) error { return holdOne(s, heldOf("e", 1)) }},
		step{"begin renewal of a", func(s *Store) error { return begin(s, renewal) }},
		step{"finish renewal of a", func(s *Store) error { return finish(s, renewal.Serial) }},
		step{"a on hold", func(s *Store) error { return revoke(s, serialOf("a", 0), 6) }},
		step{"first CRL", func(s *Store) error { return storeCRL(s, 1, epoch) }},
		step{"release a", func(s *Store) error {
			return s.Release(serialOf("a", 0), success(audit.CertificateReleased))
		}},
		step{"revoke d", func(s *Store) error { return revoke(s, serialOf("d", 1), 1) }},
		step{"second CRL", func(s *Store) error { return storeCRL(s, 2, epoch) }},
		step{"begin withheld renewal of the renewal", func(s *Store) error { return begin(s, withheld) }},
		step{"finish it", func(s *Store) error { return finish(s, withheld.Serial) }},
		step{"deliver it", func(s *Store) error { return deliver(s, withheld.Serial) }},
		step{"begin a renewal of that", func(s *Store) error { return begin(s, replaced) }},
		step{"finish that, which revokes", func(s *Store) error { return finish(s, replaced.Serial) }},
		step{"hold f", func(s *Store) error { return holdOne(s, expiring) }},
		step{"f waited too long", func(s *Store) error { return expire(s, expiring.Until, "f") }},
		step{"approve e", func(s *Store) error { return approve(s, heldOf("e", 1), intent("e", 0)) }},
		step{"replace a bundle", func(s *Store) error { return override(s, "bundle/corp/est", "one") }},
		step{"switch a profile off", func(s *Store) error { return override(s, "off/corp", "why") }},
		step{"replace it again", func(s *Store) error { return override(s, "bundle/corp/est", "two") }},
		step{"go back to the baked bundle", func(s *Store) error {
			return s.RemoveOverride("bundle/corp/est", record(audit.TrustReplaced, audit.OutcomeSuccess, ""))
		}},
	)
	for n := byte(1); n <= 4; n++ {
		steps = append(steps, step{fmt.Sprintf("update %d", n), func(s *Store) error {
			return s.UpdateIdentity(identity(n, 20<<10), success(audit.RARenewed))
		}})
	}
	return append(steps,
		step{"begin c", func(s *Store) error { return begin(s, intent("c", 0)) }},
		step{"begin b once more", func(s *Store) error { return begin(s, again("b", 2)) }},
		step{"finish b", func(s *Store) error { return finish(s, serialOf("b", 2)) }},
	)
}

// dump is the whole contents of a store.
func dump(t testing.TB, s *Store) string {
	t.Helper()
	var b bytes.Buffer
	for prefix := byte('a'); prefix <= 'z'; prefix++ {
		must(t, s.scan(prefix, func(name, value []byte) error {
			_, err := fmt.Fprintf(&b, "%c %x %x\n", prefix, name, sha256.Sum256(value))
			return err
		}))
	}
	return b.String()
}

// goldens returns the contents after each number of steps.
func goldens(t testing.TB) []golden {
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	all := []golden{{0, dump(t, s)}}
	for _, x := range story() {
		if err := x.do(s); err != nil {
			t.Fatalf("%s: %v", x.name, err)
		}
		if before := all[len(all)-1].records; s.head.next <= before {
			t.Fatalf("%s: no audit record", x.name)
		}
		all = append(all, golden{s.head.next, dump(t, s)})
		checkStore(t, s)
	}
	return all
}

// tell opens a store and goes through the story. It returns how many steps were acknowledged, after
// checking that none was once one had failed; before is called with each step and their number so far.
func tell(t testing.TB, fs vfs.FS, before func(step, int)) (int, *Store) {
	t.Helper()
	s, err := Open(Options{Dir: "state", FS: fs, memTable: smallMemTable})
	if err != nil {
		return 0, nil
	}
	n := 0
	if _, err := s.Recover(epoch, func(Transaction) audit.Record { return audit.Record{} }); err != nil {
		t.Fatalf("recovering a new store: %v", err)
	}
	var failed error
	for _, x := range story() {
		before(x, n)
		err := x.do(s)
		switch {
		case err != nil && !errors.Is(err, ErrFailed):
			t.Fatalf("%s: %v, want ErrFailed", x.name, err)
		case err != nil:
			failed = err
		case failed != nil:
			t.Fatalf("%s succeeded after %v", x.name, failed)
		default:
			n++
		}
	}
	if failed != nil {
		select {
		case <-s.Failed():
		default:
			t.Error("Failed is not closed after a failure")
		}
		if _, err := s.Records(0, 1); !errors.Is(err, ErrFailed) {
			t.Errorf("reading after a failure: %v, want ErrFailed", err)
		}
	}
	return n, s
}

// survivors are the disks a crash may leave: what was synced, with none, some or all of the rest.
func survivors(fs *vfs.MemFS) map[string]*vfs.MemFS {
	all := map[string]*vfs.MemFS{}
	for name, percent := range map[string]int{"nothing unsynced": 0, "some unsynced": 50, "everything": 100} {
		all[name] = fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(1, 2))})
	}
	return all
}

// checkSurvivor opens what a crash left and holds it against the story: whole steps only, all that
// were acknowledged, and at most the one that was under way. Then the box goes on with it.
func checkSurvivor(t *testing.T, fs vfs.FS, acknowledged int, goldens []golden) {
	t.Helper()
	s := open(t, fs)
	n := slices.IndexFunc(goldens, func(g golden) bool { return g.records == s.head.next })
	if n < acknowledged || n > acknowledged+1 {
		t.Fatalf("%d steps survived (%d records), %d were acknowledged", n, s.head.next, acknowledged)
	}
	if diff := cmp.Diff(goldens[n].contents, dump(t, s)); diff != "" {
		t.Fatalf("contents are not those after %d steps (-want +got):\n%s", n, diff)
	}
	checkStore(t, s)
	lostNow := recoverAll(t, s)
	checkStore(t, s)

	// What was undecided can be done again, exactly once.
	for _, name := range []string{"a", "b", "c"} {
		i := intent(name, 9)
		x, err := s.Newest(i.Key)
		if !errors.Is(err, ErrNotFound) {
			must(t, err)
			i.After = x.Serial
		}
		err = begin(s, i)
		if x.State == Issued {
			wantIs(t, "repeating an answered message", err, ErrReplay)
			continue
		}
		must(t, err)
		must(t, finish(s, i.Serial))
	}
	checkStore(t, s)

	// What waits can be approved, whatever it was in the middle of.
	waiting, err := s.Waiting()
	must(t, err)
	for _, h := range waiting {
		i := intent(h.Transaction, 9)
		if x, err := s.Newest(h.Key); err == nil {
			i.After = x.Serial
		}
		i.Replay = ReplayKey{}
		must(t, approve(s, h, i))
		must(t, finish(s, i.Serial))
	}
	checkStore(t, s)
	closeStore(t, s)

	s = open(t, fs)
	if again := recoverAll(t, s); again != 0 {
		t.Errorf("recovery found %d transactions, and %d more on the next start", lostNow, again)
	}
	checkStore(t, s)
	closeStore(t, s)
}

// The power goes at every single change of the disk.
func TestPowerCut(t *testing.T) {
	dumps := goldens(t)
	type cut struct {
		what         string
		acknowledged int
		disks        map[string]*vfs.MemFS
	}
	var cuts []cut
	mem := vfs.NewCrashableMem()
	fs := &faultFS{FS: mem}
	acknowledged := 0 // guarded by fs.mu
	fs.hook = func(n int, what string, op func() error) error {
		cuts = append(cuts, cut{fmt.Sprintf("before %d %s", n, what), acknowledged, survivors(mem)})
		return op()
	}
	n, s := tell(t, fs, func(_ step, n int) {
		fs.mu.Lock()
		defer fs.mu.Unlock()
		acknowledged = n
	})
	if s == nil || n != len(story()) {
		t.Fatalf("%d steps without any fault", n)
	}
	closeStore(t, s)
	t.Logf("%d power cuts", len(cuts))
	for _, c := range cuts {
		for name, disk := range c.disks {
			t.Run(c.what+", "+name, func(t *testing.T) { checkSurvivor(t, disk, c.acknowledged, dumps) })
		}
	}
}

// Every single change of the disk fails: not done, done but reported as failed, or the disk is gone
// from there on. Then the process ends.
//
// Not among them are errors on the write-ahead log from the step on in which Pebble changes to a new
// one: there Pebble ends the process itself, past any recover. What that leaves on the disk is a
// power cut's.
func TestDiskErrors(t *testing.T) {
	dumps := goldens(t)
	faults := map[string]func(int) func(int, string, func() error) error{
		"lost":           func(n int) func(int, string, func() error) error { return lost(n, false) },
		"disk gone":      func(n int) func(int, string, func() error) error { return lost(n, true) },
		"done but error": late,
	}
	for name, fault := range faults {
		for n, reached := 0, true; reached; n++ {
			mem := vfs.NewCrashableMem()
			var what string
			changingLogs := false
			inject := fault(n)
			fs := &faultFS{FS: mem}
			fs.hook = func(i int, w string, op func() error) error {
				if i == n {
					what = w
				}
				if changingLogs && (strings.HasSuffix(w, ".log") || w == "sync state") {
					return op()
				}
				return inject(i, w, op)
			}
			acknowledged, s := tell(t, fs, func(x step, _ int) {
				fs.mu.Lock()
				defer fs.mu.Unlock()
				changingLogs = changingLogs || strings.HasPrefix(x.name, "update")
			})
			fs.mu.Lock()
			disks := survivors(mem)
			reached = what != ""
			fs.mu.Unlock()
			if s != nil {
				err := s.Close()
				if acknowledged < len(story()) && !errors.Is(err, ErrFailed) {
					t.Errorf("%s %d: closing a failed store: %v", name, n, err)
				}
			}
			for disk, left := range disks {
				t.Run(fmt.Sprintf("%s %d %s, %s", name, n, what, disk), func(t *testing.T) {
					checkSurvivor(t, left, acknowledged, dumps)
				})
			}
		}
	}
}
