package store

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"signet.internal/appliance/audit"
)

// logSyncs counts syncs of the write-ahead log. Between hold and release the next one waits.
type logSyncs struct {
	mu   sync.Mutex
	n    int
	gate chan struct{}
}

func (c *logSyncs) hook(_ int, what string, op func() error) error {
	if strings.HasPrefix(what, "sync ") && strings.HasSuffix(what, ".log") {
		c.mu.Lock()
		c.n++
		gate := c.gate
		c.mu.Unlock()
		if gate != nil {
			<-gate
		}
	}
	return op()
}

func (c *logSyncs) hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gate = make(chan struct{})
}

func (c *logSyncs) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.gate)
	c.gate = nil
}

func (c *logSyncs) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// countedStore is a store in memory whose log's syncs are counted.
func countedStore(t *testing.T) (*Store, *logSyncs, *vfs.MemFS) {
	mem, syncs := vfs.NewCrashableMem(), &logSyncs{}
	s, err := Open(Options{Dir: "state", FS: &faultFS{FS: mem, hook: syncs.hook}}) // with a memtable that stays
	must(t, err)
	syncs.mu.Lock()
	defer syncs.mu.Unlock()
	syncs.n = 0
	return s, syncs, mem
}

func (s *Store) waiting() int {
	s.queueMu.Lock()
	defer s.queueMu.Unlock()
	return len(s.queue)
}

// While one sync is under way, the transitions that arrive wait for the next one together.
func TestGroupCommit(t *testing.T) {
	s, syncs, _ := countedStore(t)
	defer closeStore(t, s)
	const enrollments = 60 // fit the 256 KiB memtable Pebble begins with: changing it costs a sync

	// together runs f for every enrollment, all of them while one transition is being synced.
	together := func(f func(Intent) error) {
		t.Helper()
		before := syncs.count()
		syncs.hold()
		var all sync.WaitGroup
		all.Go(func() {
			if err := s.Append(record(audit.BoxStarted, audit.OutcomeSuccess, "")); err != nil {
				t.Error(err)
			}
		})
		for syncs.count() == before {
			runtime.Gosched()
		}
		for i := range enrollments {
			all.Go(func() {
				if err := f(intent(fmt.Sprint(i), 0)); err != nil {
					t.Error(err)
				}
			})
		}
		for s.waiting() < enrollments {
			runtime.Gosched()
		}
		syncs.release()
		all.Wait()
		if got := syncs.count() - before; got != 2 {
			t.Errorf("%d syncs, want one for the first and one for the %d that waited", got, enrollments)
		}
	}
	together(func(i Intent) error { return begin(s, i) })
	together(func(i Intent) error { return finish(s, i.Serial) })
	if want := uint64(2*enrollments + 2); s.head.next != want {
		t.Errorf("%d audit records, want %d", s.head.next, want)
	}
	checkStore(t, s)
}

// Of many that want the same, one gets it, also within one batch.
func TestOneWins(t *testing.T) {
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	const n = 50
	var all sync.WaitGroup
	begun, claimed, initialised := make([]error, n), make([]error, n), make([]error, n)
	for i := range n {
		all.Go(func() { begun[i] = begin(s, intent("same", i)) })
		all.Go(func() {
			claimed[i] = s.Claim(User{Name: fmt.Sprint(i)}, Token{Hash: [32]byte{byte(i)}}, record(audit.AdminClaimed, audit.OutcomeSuccess, ""))
		})
		all.Go(func() {
			initialised[i] = s.Initialise(Identity{}, record(audit.BoxInitialised, audit.OutcomeSuccess, ""))
		})
	}
	all.Wait()
	for what, c := range map[string]struct {
		errs []error
		want error
	}{
		"begin": {begun, ErrConflict}, "claim": {claimed, ErrClaimed}, "initialise": {initialised, ErrInitialised},
	} {
		won := 0
		for _, err := range c.errs {
			if err == nil {
				won++
			} else if !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", what, err, c.want)
			}
		}
		if won != 1 {
			t.Errorf("%s: %d callers succeeded, want 1", what, won)
		}
	}
	users := 0
	must(t, s.scan(prefixUser, func(_, _ []byte) error { users++; return nil }))
	if users != 1 || s.head.next != 3 {
		t.Errorf("%d users and %d audit records, want 1 and 3", users, s.head.next)
	}
	checkStore(t, s)
}

// Nothing that is read is lost by a crash: a read during a sync waits for it.
func TestReadsAreDurable(t *testing.T) {
	s, syncs, mem := countedStore(t)
	defer closeStore(t, s)
	syncs.hold()
	var all sync.WaitGroup
	all.Go(func() {
		if err := begin(s, intent("a", 0)); err != nil {
			t.Error(err)
		}
	})
	for syncs.count() == 0 {
		runtime.Gosched()
	}
	// In memory and not on the disk.
	var afterRead *vfs.MemFS
	all.Go(func() {
		if _, err := s.Transaction(serialOf("a", 0)); err != nil {
			t.Errorf("reading what was being written: %v", err)
		}
		afterRead = mem.CrashClone(vfs.CrashCloneCfg{})
	})
	syncs.release()
	all.Wait()
	survived := open(t, afterRead)
	defer closeStore(t, survived)
	if _, err := survived.Transaction(serialOf("a", 0)); err != nil {
		t.Errorf("after a crash, what was read before: %v", err)
	}
}

// A nearly full disk refuses what is new for devices, then everything that is new, says so, and still
// finishes what was begun.
func TestDiskNearlyFull(t *testing.T) {
	fs := vfs.NewMem()
	left := func(n uint64) { fs.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: n, TotalBytes: 1 << 40}) }
	left(issueBytes)
	s := recovered(t, fs)
	for _, name := range []string{"a", "b", "revoked"} {
		must(t, begin(s, intent(name, 0)))
	}
	must(t, finish(s, serialOf("revoked", 0)))
	held := heldOf("waits", 0)
	must(t, holdOne(s, held))

	left(issueBytes - 1)
	if p := s.Space(); p != (Space{Free: issueBytes - 1, Total: 1 << 40, Issue: issueBytes, Tend: reserveBytes}) {
		t.Errorf("space: %+v", p)
	}
	refuseNew := func() {
		t.Helper()
		before := dump(t, s)
		wantIs(t, "begin", begin(s, intent("c", 0)), ErrFull)
		wantIs(t, "hold", holdOne(s, heldOf("new", 0)), ErrFull)
		wantIs(t, "approve", approve(s, held, intent("waits", 1)), ErrFull)
		wantIs(t, "mint", s.Mint(Guard{Kind: GuardOnce, Key: GuardKey{1}, Until: epoch.Add(time.Hour)}, record(audit.ChallengeMinted, audit.OutcomeSuccess, "")), ErrFull)
		if after := dump(t, s); after != before {
			t.Error("a refused transition left something behind")
		}
	}
	refuseNew()
	must(t, s.Append(record(audit.SignedIn, audit.OutcomeSuccess, "")))
	must(t, s.Revoke(serialOf("revoked", 0), 1, epoch, record(audit.CertificateRevoked, audit.OutcomeSuccess, serialOf("revoked", 0))))
	must(t, deny(s, held))
	left(issueBytes)
	held = heldOf("waits", 1)
	must(t, holdOne(s, held))

	left(reserveBytes - 1)
	refuseNew()
	before := dump(t, s)
	wantIs(t, "append", s.Append(record(audit.BoxStarted, audit.OutcomeSuccess, "")), ErrFull)
	wantIs(t, "claim", s.Claim(User{Name: "admin"}, Token{}, record(audit.AdminClaimed, audit.OutcomeSuccess, "")), ErrFull)
	if after := dump(t, s); after != before {
		t.Error("a refused transition left something behind")
	}
	must(t, finish(s, serialOf("a", 0)))
	must(t, lose(s, serialOf("b", 0)))
	must(t, s.Started(record(audit.BoxStarted, audit.OutcomeSuccess, "")))

	left(issueBytes)
	must(t, begin(s, intent("c", 0)))
	checkStore(t, s)
	closeStore(t, s)
}

// Where the disk is full in spite of the reserve, the store fails as a whole and names the cause.
func TestDiskFull(t *testing.T) {
	mem := vfs.NewCrashableMem()
	fs := &faultFS{FS: mem}
	fs.hook = func(_ int, _ string, op func() error) error { return op() }
	s := recovered(t, fs)
	must(t, begin(s, intent("a", 0)))
	fs.mu.Lock()
	fs.hook = func(_ int, what string, op func() error) error {
		if strings.HasPrefix(what, "write") {
			return syscall.ENOSPC
		}
		return op()
	}
	fs.mu.Unlock()
	err := finish(s, serialOf("a", 0))
	wantIs(t, "finish", err, ErrFailed)
	if !strings.Contains(err.Error(), syscall.ENOSPC.Error()) {
		t.Errorf("the error does not say why: %v", err)
	}
	wantIs(t, "anything after it", s.Append(record(audit.BoxStarted, audit.OutcomeSuccess, "")), ErrFailed)
	disk := mem.CrashClone(vfs.CrashCloneCfg{})
	wantIs(t, "closing", s.Close(), ErrFailed)

	s = open(t, disk)
	defer closeStore(t, s)
	if n := recoverAll(t, s); n != 1 {
		t.Errorf("%d transactions lost after the failure, want 1", n)
	}
	checkStore(t, s)
}

// An error that Pebble meets in the background while the store is being closed does not hold it up.
func TestErrorDuringClose(t *testing.T) {
	fs := &faultFS{FS: vfs.NewMem()}
	flushing, release := make(chan struct{}), make(chan struct{})
	armed := false // guarded by fs.mu
	fs.hook = func(_ int, what string, op func() error) error {
		if armed && strings.HasPrefix(what, "write state/MANIFEST") {
			close(flushing)
			<-release
			return errInjected
		}
		return op()
	}
	s := recovered(t, fs)
	must(t, begin(s, intent("a", 0)))
	fs.mu.Lock()
	armed = true
	fs.mu.Unlock()
	_, err := s.db.AsyncFlush()
	must(t, err)
	<-flushing
	closed := make(chan error)
	go func() { closed <- s.Close() }()
	for s.durable.TryRLock() { // until Close is at work
		s.durable.RUnlock()
		runtime.Gosched()
	}
	close(release)
	err = <-closed
	wantIs(t, "closing", err, ErrFailed)
	if !strings.Contains(err.Error(), errInjected.Error()) {
		t.Errorf("the error does not say why: %v", err)
	}
}

// On a real disk: how much of an enrollment is waiting for it, alone and together with others.
func BenchmarkTransaction(b *testing.B) {
	for _, parallel := range []int{1, 32} {
		b.Run(fmt.Sprintf("parallel=%d", parallel), func(b *testing.B) {
			fs := &countingFS{FS: vfs.Default}
			s, err := Open(Options{Dir: b.TempDir(), FS: fs})
			must(b, err)
			defer closeStore(b, s)
			var mu sync.Mutex
			n := 0
			before := fs.syncs.Load()
			b.SetParallelism(max(1, parallel/runtime.GOMAXPROCS(0)))
			if parallel == 1 {
				defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
			}
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					mu.Lock()
					n++
					x := intent(fmt.Sprint(n), 0)
					mu.Unlock()
					x.Template = make([]byte, 800)
					must(b, begin(s, x))
					must(b, finish(s, x.Serial))
				}
			})
			b.ReportMetric(float64(fs.syncs.Load()-before)/float64(b.N), "syncs/op")
		})
	}
}
