package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"signet.internal/appliance/audit"
)

var epoch = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

// smallMemTable has a memtable flushed after a few large values.
const smallMemTable = 96 << 10

func open(t testing.TB, fs vfs.FS) *Store {
	t.Helper()
	s, err := Open(Options{Dir: "state", FS: fs, memTable: smallMemTable})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// recovered opens a store, checks it, and decides what was left begun.
func recovered(t testing.TB, fs vfs.FS) *Store {
	t.Helper()
	s := open(t, fs)
	checkStore(t, s)
	recoverAll(t, s)
	checkStore(t, s)
	return s
}

func recoverAll(t testing.TB, s *Store) int {
	t.Helper()
	n, err := s.Recover(epoch, func(x Transaction) audit.Record {
		return record(audit.TransactionLost, audit.OutcomeLost, x.Serial)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func record(a audit.Action, o audit.Outcome, serial string) audit.Record {
	return audit.Record{Time: epoch, TimeSource: "rtc", Action: a, Outcome: o, Serial: serial}
}

var issuer = sha256.Sum256([]byte("certificate of the authority"))

// intent is a request called name under the n-th serial of that name.
func intent(name string, n int) Intent {
	publicKey := sha256.Sum256([]byte("key of " + name))
	return Intent{
		PublicKey: publicKey[:],
		Key:       sha256.Sum256([]byte("request " + name)),
		Replay:    sha256.Sum256([]byte("message " + name)),
		Serial:    serialOf(name, n), Profile: "corp", Protocol: "scep", Transaction: name, Identity: name, Begun: epoch,
		Issuer: issuer[:], NotAfter: epoch.Add(90 * 24 * time.Hour),
	}
}

func serialOf(name string, n int) string {
	h := sha256.Sum256(fmt.Appendf(nil, "%s %d", name, n))
	return hex.EncodeToString(h[:16])
}

func begin(s *Store, i Intent) error {
	return s.Begin(i, record(audit.IssuanceBegun, audit.OutcomeBegun, i.Serial))
}

func finish(s *Store, serial string) error {
	return s.Finish(serial, []byte("certificate "+serial), epoch, record(audit.SCEPPKCSReq, audit.OutcomeSuccess, serial))
}

func fail(s *Store, serial string) error {
	return s.Fail(serial, epoch, record(audit.SCEPPKCSReq, audit.OutcomeFailed, serial))
}

func lose(s *Store, serial string) error {
	return s.Lose(serial, epoch, record(audit.TransactionLost, audit.OutcomeLost, serial))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantIs(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: error %v, want %v", what, err, want)
	}
}

// checkStore holds everything in an idle store against everything else.
func checkStore(t testing.TB, s *Store) {
	t.Helper()
	transactions := map[string]Transaction{}
	must(t, s.scan(prefixTransaction, func(name, _ []byte) error {
		x, err := s.Transaction(string(name))
		transactions[string(name)] = x
		return err
	}))

	// The log: no gaps, hashes right, one intent and at most one decision per serial.
	next, begun, decided := uint64(0), map[string]int{}, map[string]int{}
	must(t, s.scan(prefixAudit, func(name, value []byte) error {
		r, err := decodeAudit(name, value)
		if err != nil {
			return err
		}
		if r.Index != next {
			t.Errorf("audit record %d follows %d", r.Index, int64(next)-1)
		}
		next = r.Index + 1
		switch r.Action {
		case audit.IssuanceBegun:
			begun[r.Serial]++
		case audit.SCEPPKCSReq, audit.TransactionLost:
			decided[r.Serial]++
		}
		return nil
	}))
	if s.head.next != next {
		t.Errorf("next audit index is %d, the log ends before %d", s.head.next, next)
	}
	for serial := range begun {
		if _, ok := transactions[serial]; !ok {
			t.Errorf("serial %s is in the log but has no transaction", serial)
		}
	}

	issuedByMessage, undecided, perKey := map[ReplayKey]string{}, map[TransactionKey]string{}, map[TransactionKey]int{}
	for serial, x := range transactions {
		wantDecided := 1
		if x.State == Begun {
			wantDecided = 0
		}
		if begun[serial] != 1 || decided[serial] != wantDecided {
			t.Errorf("transaction %s is %s with %d intents and %d decisions in the log", serial, x.State, begun[serial], decided[serial])
		}
		if (x.State == Issued) != (len(x.Certificate) > 0) {
			t.Errorf("transaction %s is %s with a certificate of %d bytes", serial, x.State, len(x.Certificate))
		}
		_, err := s.get(s.db, key(prefixOpen, serial))
		if open := err == nil; open != (x.State == Begun) {
			t.Errorf("transaction %s is %s; listed as open: %v", serial, x.State, open)
		}
		if x.State == Begun {
			if other, ok := undecided[x.Key]; ok {
				t.Errorf("transactions %s and %s of one key are both undecided", serial, other)
			}
			undecided[x.Key] = serial
		}
		if x.State == Issued && x.Replay != (ReplayKey{}) {
			if other, ok := issuedByMessage[x.Replay]; ok {
				t.Errorf("one message got certificates %s and %s", serial, other)
			}
			issuedByMessage[x.Replay] = serial
		}
		perKey[x.Key]++
	}
	// From the newest transaction of each key, After leads through all of them.
	for k, n := range perKey {
		x, err := s.Newest(k)
		for must(t, err); x.After != ""; n-- {
			x, err = s.Transaction(x.After)
			must(t, err)
			if x.Key != k {
				t.Errorf("transaction %s is chained to another key", x.Serial)
			}
		}
		if n != 1 {
			t.Errorf("%d transactions of one key are not in its chain", n-1)
		}
	}
	checkTree(t, s)
	checkHeld(t, s)
	checkGuards(t, s)
	checkRevoked(t, s, transactions)
	checkIndexes(t, s, transactions)
	for message, serial := range issuedByMessage {
		if x, err := s.Replayed(message); err != nil || x.Serial != serial {
			t.Errorf("message that got %s leads to %q: %v", serial, x.Serial, err)
		}
	}
}

func TestTransactionLife(t *testing.T) {
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	defer func() { checkStore(t, s) }()

	_, err := s.Newest(intent("a", 0).Key)
	wantIs(t, "newest of an unknown key", err, ErrNotFound)

	a := intent("a", 0)
	must(t, begin(s, a))
	x, err := s.Newest(a.Key)
	must(t, err)
	if diff := cmp.Diff(Transaction{Intent: a, State: Begun}, x); diff != "" {
		t.Errorf("begun transaction (-want +got):\n%s", diff)
	}
	checkStore(t, s)

	second := intent("a", 1)
	wantIs(t, "another while undecided, not having seen it", begin(s, second), ErrConflict)
	second.After = a.Serial
	wantIs(t, "another while undecided", begin(s, second), ErrConflict)
	same := intent("b", 0)
	same.Serial = a.Serial
	wantIs(t, "serial used before", begin(s, same), ErrSerial)

	must(t, finish(s, a.Serial))
	x, err = s.Newest(a.Key)
	must(t, err)
	if x.State != Issued || string(x.Certificate) != "certificate "+a.Serial || !x.Decided.Equal(epoch) {
		t.Errorf("finished transaction: %+v", x)
	}
	wantIs(t, "finishing twice", finish(s, a.Serial), ErrDecided)
	wantIs(t, "losing what was issued", lose(s, a.Serial), ErrDecided)
	wantIs(t, "failing what was issued", fail(s, a.Serial), ErrDecided)
	wantIs(t, "finishing what never began", finish(s, serialOf("z", 0)), ErrDecided)
	wantIs(t, "the same message again", begin(s, second), ErrReplay)

	second.Replay = sha256.Sum256([]byte("a later message"))
	must(t, begin(s, second))
	must(t, fail(s, second.Serial))

	for _, serial := range []string{"", "0", "AB", "zz", "00112233445566778899001122334455667788990011"} {
		i := intent("c", 0)
		i.Serial = serial
		if err := begin(s, i); err == nil {
			t.Errorf("serial %q was accepted", serial)
		}
	}
}

// What a failed or lost transaction consumed is usable again, by the same key and message only.
func TestConsumedAgain(t *testing.T) {
	for name, undo := range map[string]func(*Store, string) error{"failed": fail, "lost": lose} {
		t.Run(name, func(t *testing.T) {
			s := recovered(t, vfs.NewMem())
			defer closeStore(t, s)
			first, again := intent("a", 0), intent("a", 1)
			must(t, begin(s, first))
			must(t, undo(s, first.Serial))
			again.After = first.Serial
			must(t, begin(s, again))
			must(t, finish(s, again.Serial))
			third := intent("a", 2)
			third.After = again.Serial
			wantIs(t, "the message that succeeded at last", begin(s, third), ErrReplay)
			checkStore(t, s)
		})
	}
}

func TestRecover(t *testing.T) {
	fs := vfs.NewMem()
	s := recovered(t, fs)
	must(t, begin(s, intent("open", 0)))
	must(t, begin(s, intent("done", 0)))
	must(t, finish(s, serialOf("done", 0)))
	closeStore(t, s)

	s = open(t, fs)
	wantIs(t, "beginning before recovery", begin(s, intent("new", 0)), ErrRecovery)
	wantIs(t, "a record that lacks its action", func() error {
		_, err := s.Recover(epoch, func(Transaction) audit.Record { return audit.Record{} })
		if err == nil {
			return nil
		}
		return ErrRecovery
	}(), ErrRecovery)
	wantIs(t, "beginning after a refused recovery", begin(s, intent("new", 0)), ErrRecovery)
	if n := recoverAll(t, s); n != 1 {
		t.Errorf("%d transactions lost, want 1", n)
	}
	x, err := s.Transaction(serialOf("open", 0))
	must(t, err)
	if x.State != Lost {
		t.Errorf("undecided transaction is %s after recovery", x.State)
	}
	must(t, begin(s, intent("new", 0)))
	if n := recoverAll(t, s); n != 0 {
		t.Errorf("recovery took %d transactions of this run", n)
	}
	must(t, finish(s, serialOf("new", 0)))
	checkStore(t, s)
	closeStore(t, s)
}

func TestIdentityAndClaim(t *testing.T) {
	fs := vfs.NewMem()
	s := recovered(t, fs)
	rec := func(a audit.Action) audit.Record { return record(a, audit.OutcomeSuccess, "") }
	id := Identity{
		Authorities: map[string]AuthorityCerts{"devices": {CA: []byte("ca"), RA: []byte("ra")}},
		TLSRoot:     []byte("root"), TLS: []byte("leaf"),
	}
	user := User{Name: "admin", Role: "administrator", PasswordHash: "$argon2id$", Created: epoch}
	token := Token{Hash: sha256.Sum256([]byte("token")), Name: "claim", User: "admin", Role: "administrator", Created: epoch, Expires: epoch.Add(time.Hour)}

	if s.Initialised() || s.Claimed() {
		t.Error("a new store is initialised or claimed")
	}
	_, err := s.Identity()
	wantIs(t, "identity of a new store", err, ErrNotFound)
	wantIs(t, "updating nothing", s.UpdateIdentity(id, rec(audit.TLSRenewed)), ErrNotFound)
	must(t, s.Initialise(id, rec(audit.BoxInitialised)))
	wantIs(t, "initialising twice", s.Initialise(Identity{}, rec(audit.BoxInitialised)), ErrInitialised)
	id.TLS = []byte("renewed")
	must(t, s.UpdateIdentity(id, rec(audit.TLSRenewed)))

	_, err = s.User("admin")
	wantIs(t, "user before the claim", err, ErrNotFound)
	must(t, s.Claim(user, token, rec(audit.AdminClaimed)))
	other := user
	other.Name = "mallory"
	wantIs(t, "claiming twice", s.Claim(other, token, rec(audit.AdminClaimed)), ErrClaimed)
	if err := s.Claim(User{}, token, rec(audit.AdminClaimed)); err == nil {
		t.Error("a user without a name claimed the box")
	}

	for range 2 { // as written, and as read after a restart
		if !s.Initialised() || !s.Claimed() {
			t.Error("the store forgot that it is initialised or claimed")
		}
		gotID, err := s.Identity()
		must(t, err)
		gotUser, err := s.User("admin")
		must(t, err)
		gotToken, err := s.TokenByHash(token.Hash)
		must(t, err)
		if diff := cmp.Diff([]any{id, user, token}, []any{gotID, gotUser, gotToken}); diff != "" {
			t.Errorf("read back (-want +got):\n%s", diff)
		}
		_, err = s.User("mallory")
		wantIs(t, "user of the refused claim", err, ErrNotFound)
		_, err = s.TokenByHash([32]byte{})
		wantIs(t, "unknown token", err, ErrNotFound)
		recs, err := s.Records(0, 10)
		must(t, err)
		if len(recs) != 3 {
			t.Errorf("%d records, want one per transition that happened (3)", len(recs))
		}
		closeStore(t, s)
		s = recovered(t, fs)
	}
	closeStore(t, s)
}

func TestRecordsPages(t *testing.T) {
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	const n = 25
	for range n {
		must(t, s.Append(record(audit.BoxStarted, audit.OutcomeSuccess, "")))
	}
	var seen []uint64
	for before := uint64(0); ; {
		page, err := s.Records(before, 7)
		must(t, err)
		for _, r := range page {
			seen = append(seen, r.Index)
		}
		before = seen[len(seen)-1]
		if before == 0 {
			break
		}
	}
	for i, index := range seen {
		if index != uint64(n-1-i) {
			t.Fatalf("pages show indexes %v", seen)
		}
	}
	if len(seen) != n {
		t.Errorf("pages show %d records, want %d", len(seen), n)
	}
	for _, limit := range []int{-1, 0} {
		if page, err := s.Records(0, limit); err != nil || len(page) != 0 {
			t.Errorf("limit %d: %d records, %v", limit, len(page), err)
		}
	}
	if page, err := s.Records(1<<63, MaxRecords+1); err != nil || len(page) != n {
		t.Errorf("beyond the end: %d records, %v", len(page), err)
	}
}

func TestIncompleteRecordIsRefusedWithItsTransition(t *testing.T) {
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	i := intent("a", 0)
	if err := s.Begin(i, audit.Record{Time: epoch, Action: audit.IssuanceBegun, Outcome: audit.OutcomeBegun}); err == nil {
		t.Error("a record without time source was accepted")
	}
	_, err := s.Transaction(i.Serial)
	wantIs(t, "its transaction", err, ErrNotFound)
	checkStore(t, s)
}

func TestClock(t *testing.T) {
	fs := vfs.NewMem()
	s := recovered(t, fs)
	at := func(d time.Duration, source string) {
		t.Helper()
		must(t, s.Append(audit.Record{Time: epoch.Add(d), TimeSource: source, Action: audit.BoxStarted, Outcome: audit.OutcomeSuccess}))
	}
	if !s.LastTime().IsZero() {
		t.Errorf("floor of an empty log is %v", s.LastTime())
	}
	at(0, "rtc")
	if !s.LastTime().IsZero() {
		t.Errorf("the RTC raised the floor to %v", s.LastTime())
	}
	at(10*time.Second, "ntp")
	at(8*time.Second, "ntp")        // another caller's reading, a little late in line
	at(-time.Hour, "ntp")           // the clock was set back
	at(100*365*24*time.Hour, "rtc") // a broken RTC
	var got []time.Duration
	recs, err := s.Records(0, 10)
	must(t, err)
	for _, r := range recs {
		got = append(got, r.Time.Sub(epoch))
	}
	want := []time.Duration{100 * 365 * 24 * time.Hour, -time.Hour, 10 * time.Second, 10 * time.Second, 0}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("times in the log, newest first (-want +got):\n%s", diff)
	}
	closeStore(t, s)
	s = recovered(t, fs)
	defer closeStore(t, s)
	if want := epoch.Add(10 * time.Second); !s.LastTime().Equal(want) {
		t.Errorf("floor after a restart is %v, want %v", s.LastTime(), want)
	}
}

func TestMissingStateIsAnError(t *testing.T) {
	fs := vfs.NewMem()
	if s, err := Open(Options{Dir: "state", FS: fs, MustExist: true}); err == nil {
		t.Fatalf("opened %v although there is no directory", s)
	}
	must(t, fs.MkdirAll("state", 0o700))
	_, err := Open(Options{Dir: "state", FS: fs, MustExist: true})
	wantIs(t, "an empty directory", err, pebble.ErrDBDoesNotExist)
	closeStore(t, open(t, fs))
	s, err := Open(Options{Dir: "state", FS: fs, MustExist: true})
	must(t, err)
	closeStore(t, s)
}

// A store someone else wrote, or wrote into, is refused and not repaired.
func TestDamageIsNamed(t *testing.T) {
	spoil := func(t *testing.T, k, v []byte) *vfs.MemFS {
		fs := vfs.NewMem()
		s := recovered(t, fs)
		must(t, s.Append(record(audit.BoxStarted, audit.OutcomeSuccess, "")))
		must(t, s.db.Set(k, v, pebble.Sync))
		closeStore(t, s)
		return fs
	}
	for name, c := range map[string]struct{ k, v []byte }{
		"newer layout":          {keySchema, []byte{schemaVersion + 1}},
		"no layout":             {keySchema, nil},
		"edited record":         {auditKey(0), bytes.Repeat([]byte{valueVersion}, 100)},
		"short record":          {auditKey(0), []byte{valueVersion}},
		"record out of place":   {auditKey(5), nil},
		"short floor":           {keyFloor, []byte{1}},
		"audit key of odd size": {[]byte("ab"), []byte{valueVersion}},
	} {
		t.Run(name, func(t *testing.T) {
			if s, err := Open(Options{Dir: "state", FS: spoil(t, c.k, c.v)}); err == nil {
				t.Errorf("opened %v", s)
			}
		})
	}
	t.Run("entries without layout", func(t *testing.T) {
		fs := vfs.NewMem()
		db, err := pebble.Open("state", &pebble.Options{FS: fs, FormatMajorVersion: formatVersion, Logger: pebbleLog{&Store{log: slog.New(slog.DiscardHandler)}}})
		must(t, err)
		must(t, db.Set([]byte("x"), nil, pebble.Sync))
		must(t, db.Close())
		_, err = Open(Options{Dir: "state", FS: fs})
		wantIs(t, "opening it", err, ErrDamaged)
	})
	t.Run("values", func(t *testing.T) {
		s := recovered(t, vfs.NewMem())
		defer closeStore(t, s)
		must(t, s.db.Set(keyIdentity, []byte{valueVersion + 1}, pebble.Sync))
		_, err := s.Identity()
		wantIs(t, "identity of another version", err, ErrDamaged)
		must(t, s.db.Set(keyIdentity, append([]byte{valueVersion}, `{"more":1}`...), pebble.Sync))
		_, err = s.Identity()
		wantIs(t, "identity with an unknown field", err, ErrDamaged)
		must(t, begin(s, intent("a", 0)))
		v, err := s.get(s.db, key(prefixTransaction, serialOf("a", 0)))
		must(t, err)
		must(t, s.db.Set(key(prefixTransaction, serialOf("b", 0)), v, pebble.Sync))
		_, err = s.Transaction(serialOf("b", 0))
		wantIs(t, "transaction under another's name", err, ErrDamaged)
		must(t, s.db.Set(keyIdentity, make([]byte, maxValue+1), pebble.Sync))
		_, err = s.Identity()
		wantIs(t, "huge value", err, ErrDamaged)
	})
}

func TestFormatIsPinned(t *testing.T) {
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	if v := s.db.FormatMajorVersion(); v != formatVersion {
		t.Errorf("Pebble wrote format %v, want %v", v, formatVersion)
	}
	// Pebble's number for it: a raised constant is an irreversible conversion on every box.
	if formatVersion != 21 {
		t.Errorf("pinned format is %d", formatVersion)
	}
}

func TestClosed(t *testing.T) {
	s := recovered(t, vfs.NewMem())
	closeStore(t, s)
	wantIs(t, "closing twice", s.Close(), ErrClosed)
	wantIs(t, "writing", s.Append(record(audit.BoxStarted, audit.OutcomeSuccess, "")), ErrClosed)
	_, err := s.Records(0, 1)
	wantIs(t, "reading", err, ErrClosed)
}
