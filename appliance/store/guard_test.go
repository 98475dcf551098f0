package store

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"signet.internal/appliance/audit"
)

func guardOf(kind GuardKind, name string) Guard {
	g := Guard{Kind: kind, Key: sha256.Sum256([]byte(name))}
	if kind == GuardRate {
		g.Max, g.Window = 3, 24*time.Hour
	} else {
		g.Until = epoch.Add(time.Hour)
	}
	return g
}

// guarded is the n-th transaction of a name, begun at a time after its predecessor, with guards.
func guarded(name string, n int, at time.Time, guards ...Guard) Intent {
	i := intent(name, n)
	i.Replay = ReplayKey{}
	i.Begun, i.Guards = at, guards
	if n > 0 {
		i.After = serialOf(name, n-1)
	}
	return i
}

func mint(s *Store, g Guard) error {
	return s.Mint(g, record(audit.ChallengeMinted, audit.OutcomeSuccess, ""))
}

func checkGuard(t testing.TB, s *Store, g Guard, now time.Time, want GuardStatus) GuardState {
	t.Helper()
	state, err := s.Guard(g, now)
	must(t, err)
	if state.Status != want {
		t.Errorf("guard is %s, want %s", state.Status, want)
	}
	return state
}

// checkGuards holds guards and index against each other: every guard has exactly one place in it.
func checkGuards(t testing.TB, s *Store) {
	t.Helper()
	guards := map[string]time.Time{}
	must(t, s.scan(prefixGuard, func(name, value []byte) error {
		var e guardEntry
		if err := decode(value, &e); err != nil {
			return err
		}
		guards[string(prefixGuard)+string(name)] = e.Remove
		return nil
	}))
	must(t, s.scan(prefixExpiry, func(name, _ []byte) error {
		k := string(name[8:])
		if k[0] != prefixGuard {
			return nil
		}
		at := time.UnixMilli(int64(binary.BigEndian.Uint64(name))).UTC()
		if remove, ok := guards[k]; !ok || !remove.Equal(at) {
			t.Errorf("index has guard %x at %v, the guard says %v", k, at, remove)
		}
		delete(guards, k)
		return nil
	}))
	for k := range guards {
		t.Errorf("guard %x is not in the index", k)
	}
}

func TestMintedOnce(t *testing.T) {
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	g := guardOf(GuardOnce, "g")
	g.Note = []byte("for printer-17")

	checkGuard(t, s, g, epoch, GuardUnknown)
	wantIs(t, "one that was never minted", begin(s, guarded("a", 0, epoch, g)), ErrGuardUnknown)
	if _, err := s.Newest(intent("a", 0).Key); !errors.Is(err, ErrNotFound) {
		t.Errorf("a refused guard left a transaction: %v", err)
	}
	must(t, mint(s, g))
	wantIs(t, "minting it twice", mint(s, g), ErrGuardUsed)
	if state := checkGuard(t, s, g, epoch, GuardLive); string(state.Note) != "for printer-17" || !state.Until.Equal(g.Until) {
		t.Errorf("state %+v", state)
	}
	checkGuard(t, s, g, g.Until.Add(-1), GuardLive)
	checkGuard(t, s, g, g.Until, GuardExpired)
	wantIs(t, "after it expired", begin(s, guarded("a", 0, g.Until, g)), ErrGuardUnknown)

	must(t, begin(s, guarded("a", 0, g.Until.Add(-1), g)))
	if state := checkGuard(t, s, g, epoch, GuardUsed); state.By != intent("a", 0).Key || string(state.Note) != "for printer-17" {
		t.Errorf("state %+v", state)
	}
	wantIs(t, "another transaction", begin(s, guarded("b", 0, epoch, g)), ErrGuardUsed)
	must(t, lose(s, serialOf("a", 0)))
	wantIs(t, "another transaction, after the first was lost", begin(s, guarded("b", 0, epoch, g)), ErrGuardUsed)

	// What was taken in time stays with its transaction, also when it has to be repeated later.
	must(t, begin(s, guarded("a", 1, g.Until.Add(time.Hour), g)))
	must(t, fail(s, serialOf("a", 1)))
	must(t, begin(s, guarded("a", 2, g.Until.Add(2*time.Hour), g)))
	must(t, finish(s, serialOf("a", 2)))
	wantIs(t, "the same transaction, after it issued", begin(s, guarded("a", 3, epoch, g)), ErrGuardUsed)
	wantIs(t, "another transaction, after it issued", begin(s, guarded("b", 0, epoch, g)), ErrGuardUsed)
	checkGuards(t, s)
	checkStore(t, s)
}

func TestNonce(t *testing.T) {
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	g := guardOf(GuardNonce, "g")
	checkGuard(t, s, g, epoch, GuardUnknown)
	must(t, begin(s, guarded("a", 0, epoch, g)))
	wantIs(t, "another transaction", begin(s, guarded("b", 0, epoch, g)), ErrGuardUsed)
	// Expiry makes a nonce forgettable, not new.
	wantIs(t, "another transaction, later", begin(s, guarded("b", 0, g.Until.Add(time.Minute), g)), ErrGuardUsed)
	once := guardOf(GuardOnce, "g")
	wantIs(t, "a challenge with the same key", begin(s, guarded("b", 0, epoch, once)), ErrGuardUnknown)
	must(t, fail(s, serialOf("a", 0)))
	must(t, begin(s, guarded("a", 1, epoch, g)))
	must(t, finish(s, serialOf("a", 1)))
	wantIs(t, "the same transaction, after it issued", begin(s, guarded("a", 2, epoch, g)), ErrGuardUsed)
	checkGuards(t, s)
}

func TestRate(t *testing.T) {
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	g := guardOf(GuardRate, "device")
	hour := func(n int) time.Time { return epoch.Add(time.Duration(n) * time.Hour) }
	for n := range 3 {
		checkGuard(t, s, g, hour(n), map[bool]GuardStatus{true: GuardUnknown, false: GuardLive}[n == 0])
		must(t, begin(s, guarded("a", n, hour(n), g)))
		must(t, finish(s, serialOf("a", n)))
	}
	checkGuard(t, s, g, hour(3), GuardUsed)
	wantIs(t, "a fourth within the window", begin(s, guarded("a", 3, hour(3), g)), ErrGuardRate)
	wantIs(t, "a fourth at the end of the window", begin(s, guarded("b", 0, hour(24).Add(-1), g)), ErrGuardRate)
	must(t, begin(s, guarded("b", 0, hour(24), g))) // the first slot is free again
	wantIs(t, "a fifth", begin(s, guarded("c", 0, hour(24), g)), ErrGuardRate)

	// A lost transaction repeats in its own slot; the slot is nobody else's.
	must(t, lose(s, serialOf("b", 0)))
	wantIs(t, "another one in the lost one's slot", begin(s, guarded("c", 0, hour(24), g)), ErrGuardRate)
	must(t, begin(s, guarded("b", 1, hour(24), g)))
	must(t, finish(s, serialOf("b", 1)))
	wantIs(t, "the same one again", begin(s, guarded("b", 2, hour(24), g)), ErrGuardRate)
	must(t, begin(s, guarded("b", 2, hour(25), g)))

	// A clock that stood years ahead for a while locks nobody out.
	far := guardOf(GuardRate, "far")
	far.Max = 1
	must(t, begin(s, guarded("d", 0, epoch.AddDate(9, 0, 0), far)))
	must(t, begin(s, guarded("e", 0, epoch, far)))
	checkGuards(t, s)
	checkStore(t, s)
}

func held(name string, guards ...Guard) Held {
	h := sha256.Sum256([]byte("held " + name))
	return Held{
		ID: fmt.Sprintf("%x", h[:8]), Key: intent(name, 0).Key, Poll: h, Profile: "corp", Protocol: "scep",
		Transaction: name, Identity: name, Guards: guards, Since: epoch, Until: epoch.AddDate(1, 0, 0),
	}
}

func hold(s *Store, h Held) error {
	return s.Hold(h, HoldLimits{10, 10}, record(audit.IssuanceBegun, audit.OutcomeSuccess, ""))
}

// A request that waits has its challenge: approved it is carried out with it, denied it is spent.
func TestGuardsOfHeldRequests(t *testing.T) {
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	rec := record(audit.SCEPPKCSReq, audit.OutcomeSuccess, "")
	challenge, nonce := guardOf(GuardOnce, "challenge"), guardOf(GuardNonce, "nonce")
	must(t, mint(s, challenge))
	a := held("a", challenge, nonce)
	must(t, hold(s, a))
	for _, g := range []Guard{challenge, nonce} {
		wantIs(t, "another transaction", begin(s, guarded("b", 0, epoch, g)), ErrGuardUsed)
		wantIs(t, "another held request", hold(s, held("c", g)), ErrGuardUsed)
	}
	approve := func(n int) error {
		i := guarded("a", n, epoch.AddDate(0, 3, 0))
		return s.Approve(a.ID, "admin", i, rec, record(audit.IssuanceBegun, audit.OutcomeBegun, i.Serial))
	}
	later := epoch.AddDate(0, 3, 0)
	if _, err := s.Sweep(later, 1000); err != nil {
		t.Fatal(err)
	}
	checkGuard(t, s, challenge, later, GuardUsed)
	must(t, approve(0))
	must(t, lose(s, serialOf("a", 0)))
	must(t, approve(1))
	must(t, finish(s, serialOf("a", 1)))
	wantIs(t, "the same transaction, after it issued", begin(s, guarded("a", 2, epoch, challenge)), ErrGuardUsed)

	second := guardOf(GuardOnce, "second")
	must(t, mint(s, second))
	d := held("d", second)
	must(t, hold(s, d))
	must(t, s.Deny(d.ID, "admin", "not ours", epoch, rec))
	wantIs(t, "the denied transaction again", begin(s, guarded("d", 0, epoch, second)), ErrGuardUsed)
	d.ID = "0123456789abcdef"
	wantIs(t, "the denied request again", hold(s, d), ErrGuardUsed)
	if _, err := s.Sweep(epoch.Add(heldFor), 1000); err != nil {
		t.Fatal(err)
	}
	if _, err := s.HeldByKey(d.Key); !errors.Is(err, ErrNotFound) {
		t.Errorf("the denied request is still there: %v", err)
	}
	wantIs(t, "the denied request, when nobody knows of it any more", hold(s, d), ErrGuardUsed)

	third := guardOf(GuardOnce, "third")
	must(t, mint(s, third))
	e := held("e", third)
	must(t, hold(s, e))
	i := guarded("e", 0, epoch)
	must(t, s.Approve(e.ID, "admin", i, rec, record(audit.IssuanceBegun, audit.OutcomeBegun, i.Serial)))
	must(t, lose(s, i.Serial))
	must(t, s.Deny(e.ID, "admin", "not ours either", epoch, rec))
	wantIs(t, "what was denied after its approval was lost", begin(s, guarded("e", 1, epoch, third)), ErrGuardUsed)
	checkGuards(t, s)
}

// One guard that cannot be taken leaves all others as they were.
func TestGuardsAreTakenTogether(t *testing.T) {
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	rate, nonce := guardOf(GuardRate, "device"), guardOf(GuardNonce, "nonce")
	must(t, begin(s, guarded("a", 0, epoch, nonce)))
	before := dump(t, s)
	wantIs(t, "a used nonce behind a free slot", begin(s, guarded("b", 0, epoch, rate, nonce)), ErrGuardUsed)
	if dump(t, s) != before {
		t.Error("a refused transition left something behind")
	}
	var many []Guard
	for n := range maxGuards + 1 {
		many = append(many, guardOf(GuardNonce, fmt.Sprint(n)))
	}
	for what, guards := range map[string][]Guard{
		"a guard twice":       {rate, rate},
		"no kind":             {{Until: epoch}},
		"no expiry":           {{Kind: GuardNonce}},
		"a rate of none":      {{Kind: GuardRate, Window: time.Hour}},
		"a rate of too many":  {{Kind: GuardRate, Window: time.Hour, Max: MaxRate + 1}},
		"a rate for no time":  {{Kind: GuardRate, Max: 1}},
		"more than are taken": many,
	} {
		if err := begin(s, guarded("b", 0, epoch, guards...)); err == nil {
			t.Errorf("%s was taken", what)
		}
	}
	if err := mint(s, rate); err == nil {
		t.Error("a rate was minted")
	}
	long := guardOf(GuardOnce, "long")
	long.Note = make([]byte, MaxGuardNote+1)
	if err := mint(s, long); err == nil {
		t.Error("a long note was kept")
	}
	if dump(t, s) != before {
		t.Error("a refused transition left something behind")
	}
}

// Hundreds bring the same challenge at once, and the power goes meanwhile: on every disk that a crash
// may leave there is one taker at most, whose transaction is there, and nobody else ever gets in.
func TestOneChallengeManyRequests(t *testing.T) {
	const requests, crashes = 300, 6
	mem := vfs.NewCrashableMem()
	s := recovered(t, mem)
	once, nonce, rate := guardOf(GuardOnce, "g"), guardOf(GuardNonce, "g"), guardOf(GuardRate, "g")
	must(t, mint(s, once))
	var wg sync.WaitGroup
	var won, ended atomic.Int32
	var winner atomic.Int32
	for n := range requests {
		wg.Go(func() {
			defer ended.Add(1)
			err := begin(s, guarded(fmt.Sprint(n), 0, epoch, once, nonce, rate))
			if err == nil {
				won.Add(1)
				winner.Store(int32(n))
			} else if !errors.Is(err, ErrGuardUsed) {
				t.Errorf("request %d: %v", n, err)
			}
		})
	}
	var disks []*vfs.MemFS
	for n := range uint64(crashes) {
		disks = append(disks, mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rand.New(rand.NewPCG(n, 1))}))
		for before := ended.Load(); ended.Load() == before && before < requests; {
			time.Sleep(time.Millisecond)
		}
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Fatalf("%d of %d requests took one challenge", won.Load(), requests)
	}
	disks = append(disks, mem.CrashClone(vfs.CrashCloneCfg{}))
	closeStore(t, s)

	for _, disk := range disks {
		s := recovered(t, disk)
		checkGuards(t, s)
		state, err := s.Guard(once, epoch)
		must(t, err)
		begun := 0
		must(t, s.scan(prefixTransaction, func(_, _ []byte) error { begun++; return nil }))
		if (state.Status == GuardUsed) != (begun == 1) || begun > 1 {
			t.Errorf("guard is %s and %d transactions were begun", state.Status, begun)
		}
		if state.Status != GuardUsed {
			closeStore(t, s)
			continue
		}
		wantIs(t, "another request after the crash", begin(s, guarded("other", 0, epoch, once)), ErrGuardUsed)
		again := guarded(fmt.Sprint(winner.Load()), 1, epoch, once, nonce, rate)
		if again.Key != state.By {
			t.Error("the guard is another's")
		}
		must(t, begin(s, again))
		must(t, finish(s, again.Serial))
		closeStore(t, s)
	}
}

// TestSweepReadsWhatIsDue fills a store on a disk with live entries and sweeps a few expired ones from
// among them: what the sweep looks at depends on the latter only, and the former are not in memory.
func TestSweepReadsWhatIsDue(t *testing.T) {
	const live, due = 100_000, 600
	s, err := Open(Options{Dir: t.TempDir()})
	must(t, err)
	defer closeStore(t, s)
	recoverAll(t, s)
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, written := heap(), uint64(0)
	put := func(from, n int, until func(int) time.Time) {
		for at := from; at < from+n; at += 1000 {
			must(t, s.do(false, func(c *change) error {
				for k := at; k < min(at+1000, from+n); k++ {
					g := guardOf(GuardNonce, fmt.Sprint(k))
					by := taker{Key: sha256.Sum256([]byte(fmt.Sprint(k))), Serial: serialOf("a", k), At: epoch}
					if err := c.setGuard(g, nil, guardEntry{Until: until(k), Remove: until(k), Taken: []taker{by}}); err != nil {
						return err
					}
				}
				for _, o := range c.ops {
					written += uint64(len(o.key) + len(o.value))
				}
				return nil
			}))
		}
	}
	put(0, live, func(k int) time.Time { return epoch.Add(time.Hour + time.Duration(k)*time.Millisecond) })
	put(live, due, func(k int) time.Time { return epoch.Add(-time.Duration(k) * time.Millisecond) })
	must(t, s.db.Flush())
	if after := heap(); after > before+written/2 {
		t.Errorf("%d KiB of guards on the disk take %d KiB of memory", written>>10, (after-before)>>10)
	}

	count := func() (n int) {
		must(t, s.scan(prefixGuard, func(_, _ []byte) error { n++; return nil }))
		return n
	}
	looked := func() int {
		it, err := s.db.NewIter(dueRange([]byte{prefixExpiry}, epoch))
		must(t, err)
		defer func() { must(t, it.Close()) }()
		firstKeys(it, live)
		stats := it.Stats()
		return int(stats.InternalStats.PointCount)
	}
	if n := looked(); n < due || n > due+10 {
		t.Errorf("a sweep looks at %d keys for %d that are due", n, due)
	}
	must(t, s.Append(record(audit.BoxStarted, audit.OutcomeSuccess, "")))
	must(t, s.Ran(0))
	must(t, s.Ran(MinRetention))
	n, err := s.Sweep(epoch, due/2)
	if err != nil || n != due/2 || count() != live+due/2 {
		t.Fatalf("swept %d, %d left, error %v", n, count(), err)
	}
	n, err = s.Sweep(epoch, live)
	if err != nil || n != due/2 || count() != live {
		t.Fatalf("swept %d, %d left, error %v", n, count(), err)
	}
	must(t, s.db.Flush())
	if n := looked(); n > 2*due {
		t.Errorf("a sweep with nothing to do looks at %d keys", n)
	}
	n, err = s.Sweep(epoch, live)
	if err != nil || n != 0 {
		t.Errorf("swept %d with nothing due, error %v", n, err)
	}
	checkGuards(t, s)
}

func TestSweep(t *testing.T) {
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	sweep := func(now time.Time, want int) {
		t.Helper()
		n, err := s.Sweep(now, 1000)
		must(t, err)
		if n != want {
			t.Errorf("swept %d entries, want %d", n, want)
		}
		checkGuards(t, s)
	}
	unused, used := guardOf(GuardOnce, "unused"), guardOf(GuardOnce, "used")
	nonce, rate := guardOf(GuardNonce, "nonce"), guardOf(GuardRate, "rate")
	must(t, mint(s, unused))
	must(t, mint(s, used))
	i := guarded("a", 0, epoch, used, nonce, rate)
	i.Replay = sha256.Sum256([]byte("message"))
	must(t, begin(s, i))
	must(t, lose(s, i.Serial))

	sweep(unused.Until.Add(-time.Millisecond), 0)
	sweep(unused.Until, 1)
	checkGuard(t, s, unused, epoch, GuardUnknown)
	sweep(epoch.Add(rate.Window-time.Millisecond), 0)
	sweep(epoch.Add(rate.Window), 1)
	checkGuard(t, s, rate, epoch, GuardUnknown)

	// A challenge and a nonce outlive their time while the transaction that took them may come again.
	sweep(epoch.Add(takenFor-time.Millisecond), 0)
	again := guarded("a", 1, epoch.Add(takenFor-time.Millisecond), used, nonce)
	again.Replay = i.Replay
	must(t, begin(s, again))
	must(t, finish(s, again.Serial))
	sweep(epoch.Add(takenFor), 0)
	must(t, s.Ran(0))
	sweep(again.Begun.Add(takenFor), 1)
	checkGuard(t, s, used, epoch, GuardUnknown)

	// A nonce outlives a clock that is ahead: when that is right again, its challenge may be good still.
	sweep(again.Begun.Add(takenFor+nonceAgain), 0)
	checkGuard(t, s, nonce, epoch, GuardUsed)
	wantIs(t, "another transaction", begin(s, guarded("c", 0, epoch, nonce)), ErrGuardUsed)
	must(t, s.Ran(MinRetention))
	late := guardOf(GuardNonce, "late")
	must(t, begin(s, guarded("d", 0, epoch, late)))
	sweep(again.Begun.Add(takenFor+2*nonceAgain), 1)
	checkGuard(t, s, nonce, epoch, GuardUnknown)
	checkGuard(t, s, late, epoch, GuardUsed) // which has not been there for as long

	// The message that got the certificate is remembered for as long after the second beginning.
	sweep(epoch.Add(replayFor), 0)
	replayed := intent("b", 0)
	replayed.Replay = i.Replay
	wantIs(t, "replaying the message", begin(s, replayed), ErrReplay)
	checkStore(t, s)
	must(t, s.Ran(MinRetention))
	must(t, s.Ran(MinRetention))
	sweep(again.Begun.Add(replayFor), 2) // and the late nonce
	must(t, s.scan(prefixExpiry, func(name, _ []byte) error {
		t.Errorf("index still has %x", name)
		return nil
	}))
}
