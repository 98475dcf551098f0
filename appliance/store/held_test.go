package store

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"signet.internal/appliance/audit"
)

// heldOf is a held request called name, the n-th of that name.
func heldOf(name string, n int) Held {
	h := sha256.Sum256(fmt.Appendf(nil, "held %s %d", name, n))
	return Held{
		ID: hex.EncodeToString(h[:8]), Key: intent(name, 0).Key, Poll: sha256.Sum256([]byte("poll " + name)), Replay: sha256.Sum256([]byte("held message " + name)),
		Profile: "corp", Protocol: "scep", Transaction: name, Identity: name, Source: "192.0.2.1", Group: "192.0.2.1",
		SignerKey: h[:], CSR: h[:], Request: []byte("request " + name), Since: epoch, Until: epoch.Add(24 * time.Hour),
	}
}

const heldLimit = 3

func holdOne(s *Store, h Held) error {
	return s.Hold(h, HoldLimits{heldLimit, 2 * heldLimit}, record(audit.RequestHeld, audit.OutcomePending, ""))
}

func approve(s *Store, h Held, i Intent) error {
	return s.Approve(h.ID, "olga", i, record(audit.RequestApproved, audit.OutcomeSuccess, i.Serial), record(audit.IssuanceBegun, audit.OutcomeBegun, i.Serial))
}

func deny(s *Store, h Held) error {
	return s.Deny(h.ID, "olga", "no", epoch, record(audit.RequestDenied, audit.OutcomeRefused, ""))
}

// expire denies what waited too long, all but what is kept waiting by a later end.
func expire(s *Store, now time.Time, transactions ...string) error {
	var ended []string
	n, err := s.ExpireHeld(now, "too long", func(h Held) audit.Record {
		ended = append(ended, h.Transaction)
		return record(audit.RequestExpired, audit.OutcomeRefused, "")
	})
	if err == nil && (n != len(ended) || !slices.Equal(ended, transactions)) {
		err = fmt.Errorf("%d ended: %v, want %v", n, ended, transactions)
	}
	return err
}

func deliver(s *Store, serial string) error {
	return s.Deliver(serial, epoch, record(audit.CertificateDelivered, audit.OutcomeSuccess, serial))
}

func revoke(s *Store, serial string, reason int) error {
	return s.Revoke(serial, reason, epoch, record(audit.CertificateRevoked, audit.OutcomeSuccess, ""))
}

func storeCRL(s *Store, number uint64, at time.Time) error {
	listed, err := s.Revoked(issuer)
	if err != nil {
		return err
	}
	return s.StoreCRL(issuer, CRL{Number: number, ThisUpdate: at, NextUpdate: at.Add(time.Hour)}, listed, record(audit.CRLSigned, audit.OutcomeSuccess, ""))
}

// checkHeld holds held requests, their indexes and their transactions against each other.
func checkHeld(t testing.TB, s *Store) {
	t.Helper()
	waiting, counts, ends := map[string]bool{}, map[string]uint64{}, map[string]bool{}
	must(t, s.scan(prefixHeld, func(name, _ []byte) error {
		h, err := s.Held(string(name))
		if err != nil {
			return err
		}
		if byKey, err := s.HeldByKey(h.Key); err != nil || h.State == Waiting && byKey.ID != h.ID {
			t.Errorf("held request %s of its key is %s: %v", h.ID, byKey.ID, err)
		}
		if byPoll, err := s.HeldByPoll(h.Poll); err != nil || byPoll.Poll != h.Poll {
			t.Errorf("held request %s is not to be polled: %v", h.ID, err)
		}
		expires := 0
		for _, k := range h.keys() {
			if _, err := s.get(s.db, expiryKey(h.Decided.Add(heldFor), k)); err == nil {
				expires++
			}
		}
		switch h.State {
		case Waiting:
			waiting[h.ID] = true
			counts[string(prefixCount)+h.Profile]++
			counts[string(prefixCountSource)+h.Group]++
			ends[string(h.untilKey()[1:])] = true
			if h.Serial != "" || !h.Decided.IsZero() || expires != 0 {
				t.Errorf("held request waits, decided with serial %q, %d entries to expire", h.Serial, expires)
			}
		case Approved:
			x, err := s.Transaction(h.Serial)
			if err != nil || x.Held != h.ID || x.Key != h.Key || x.State != Begun && x.State != Issued || expires == 0 {
				t.Errorf("approved request %s has transaction %+v, %d entries to expire: %v", h.ID, x, expires, err)
			}
		case Denied:
			if expires == 0 {
				t.Errorf("denied request %s never expires", h.ID)
			}
		default:
			t.Errorf("held request %s is %q", h.ID, h.State)
		}
		return nil
	}))
	must(t, s.scan(prefixWaiting, func(name, profile []byte) error {
		if !waiting[string(name)] || len(profile) == 0 {
			t.Errorf("%s is listed as waiting", name)
		}
		delete(waiting, string(name))
		return nil
	}))
	for id := range waiting {
		t.Errorf("%s waits and is not listed", id)
	}
	for _, prefix := range []byte{prefixCount, prefixCountSource} {
		must(t, s.scan(prefix, func(name, n []byte) error {
			whose := string(prefix) + string(name)
			if got := binary.BigEndian.Uint64(n); got != counts[whose] {
				t.Errorf("%d requests of %s are counted, %d wait", got, whose, counts[whose])
			}
			delete(counts, whose)
			return nil
		}))
	}
	must(t, s.scan(prefixHeldUntil, func(name, _ []byte) error {
		if !ends[string(name)] {
			t.Errorf("%x is listed to end", name)
		}
		delete(ends, string(name))
		return nil
	}))
	if len(ends) != 0 {
		t.Errorf("waiting without an end: %v", ends)
	}
	if len(counts) != 0 {
		t.Errorf("not counted: %v", counts)
	}
}

// checkRevoked holds what belongs on the CRL against the transactions. Nothing ended before epoch.
func checkRevoked(t testing.TB, s *Store, transactions map[string]Transaction) {
	t.Helper()
	listed := map[string]Revocation{}
	all, err := s.Revoked(issuer)
	must(t, err)
	for _, r := range all {
		listed[r.Serial] = r
	}
	for serial, x := range transactions {
		want := Revocation{Serial: serial, NotAfter: x.NotAfter}
		switch {
		case x.Revoked():
			want.At, want.Reason = x.RevokedAt, x.Reason
		case x.State == Lost:
			want.At = x.Decided
		default:
			want = Revocation{}
		}
		if diff := cmp.Diff(want, listed[serial]); diff != "" {
			t.Errorf("%s transaction %s on the CRL (-want +got):\n%s", x.State, serial, diff)
		}
		if x.Revoked() && x.State != Issued {
			t.Errorf("%s transaction %s is revoked", x.State, serial)
		}
		delete(listed, serial)
	}
	for serial := range listed {
		t.Errorf("unknown serial %s belongs on the CRL", serial)
	}
}

func TestHeldLife(t *testing.T) {
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	defer func() { checkStore(t, s) }()
	a := heldOf("a", 0)
	must(t, holdOne(s, a))
	got, err := s.Held(a.ID)
	must(t, err)
	a.State = Waiting
	if diff := cmp.Diff(a, got); diff != "" {
		t.Errorf("held (-want +got):\n%s", diff)
	}
	wantIs(t, "the same id", holdOne(s, func() Held { h := heldOf("b", 0); h.ID = a.ID; return h }()), ErrConflict)
	wantIs(t, "the same key while it waits", holdOne(s, heldOf("a", 1)), ErrConflict)
	wantIs(t, "approving what is not held", approve(s, heldOf("z", 0), intent("z", 0)), ErrNotFound)
	for _, id := range []string{"", "0", a.ID + "00", "ABCDEF0123456789"} {
		h := heldOf("x", 0)
		h.ID = id
		if holdOne(s, h) == nil {
			t.Errorf("id %q was accepted", id)
		}
		_, err := s.Held(id)
		wantIs(t, "an id that is none", err, ErrNotFound)
	}

	must(t, holdOne(s, heldOf("b", 0)))
	must(t, holdOne(s, heldOf("c", 0)))
	wantIs(t, "one more than may wait", holdOne(s, heldOf("d", 0)), ErrHeldFull)
	other := heldOf("d", 0)
	other.Profile = "elsewhere"
	must(t, holdOne(s, other))
	if all, err := s.Waiting(); err != nil || len(all) != 4 {
		t.Errorf("%d requests wait: %v", len(all), err)
	}

	must(t, approve(s, a, intent("a", 0)))
	wantIs(t, "approving twice", approve(s, a, intent("a", 1)), ErrNotWaiting)
	wantIs(t, "denying while it is signed", deny(s, a), ErrNotWaiting)
	checkStore(t, s)
	must(t, lose(s, serialOf("a", 0)))
	checkStore(t, s)
	again := intent("a", 1)
	wantIs(t, "approving without knowing of the lost one", approve(s, a, again), ErrConflict)
	again.After = serialOf("a", 0)
	must(t, approve(s, a, again))
	must(t, finish(s, again.Serial))
	replayed := heldOf("a", 2)
	replayed.Key, replayed.Replay = intent("other", 0).Key, a.Replay
	wantIs(t, "a message that was answered", holdOne(s, replayed), ErrReplay)
	must(t, deny(s, heldOf("b", 0)))
	wantIs(t, "denying twice", deny(s, heldOf("b", 0)), ErrNotWaiting)

	// Decided ones make room, and the same request can be held anew.
	must(t, holdOne(s, heldOf("b", 1)))
	if h, err := s.HeldByPoll(heldOf("b", 0).Poll); err != nil || h.ID != heldOf("b", 1).ID {
		t.Errorf("polled: %s, %v", h.ID, err)
	}
}

// The power goes while several approved requests are being signed: each waits again, is counted, and can
// be decided on.
func TestSeveralApprovalsLost(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := recovered(t, fs)
	names := []string{"a", "b"}
	for _, name := range names {
		must(t, holdOne(s, heldOf(name, 0)))
		must(t, approve(s, heldOf(name, 0), intent(name, 0)))
	}
	s = recovered(t, fs.CrashClone(vfs.CrashCloneCfg{}))
	defer closeStore(t, s)
	for _, name := range names {
		must(t, deny(s, heldOf(name, 0)))
		checkStore(t, s)
	}
}

// From its end on a request is not approved, whether or not it was denied for that yet.
func TestNothingIsApprovedAfterItsEnd(t *testing.T) {
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	for n, name := range []string{"late", "in time"} {
		h := heldOf(name, 0)
		must(t, holdOne(s, h))
		i := intent(name, 0)
		if i.Begun = h.Until; n == 1 {
			i.Begun = h.Until.Add(-1)
		}
		err := approve(s, h, i)
		if n == 0 {
			wantIs(t, name, err, ErrNotWaiting)
		} else {
			must(t, err)
		}
	}
	must(t, finish(s, serialOf("in time", 0)))
	checkStore(t, s)
}

// A request that waits is never forgotten, a decided one after a while, with all that leads to it.
func TestHeldExpires(t *testing.T) {
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	must(t, holdOne(s, heldOf("denied", 0)))
	must(t, deny(s, heldOf("denied", 0)))
	must(t, holdOne(s, heldOf("again", 0)))
	must(t, deny(s, heldOf("again", 0)))
	must(t, holdOne(s, heldOf("again", 1)))
	must(t, holdOne(s, heldOf("failed", 0)))
	must(t, approve(s, heldOf("failed", 0), intent("failed", 0)))
	must(t, fail(s, serialOf("failed", 0)))

	sweep := func(at time.Time) {
		t.Helper()
		if _, err := s.Sweep(at, 1000); err != nil {
			t.Fatal(err)
		}
	}
	sweep(epoch.Add(heldFor - time.Millisecond))
	if h, err := s.HeldByPoll(heldOf("denied", 0).Poll); err != nil || h.State != Denied {
		t.Errorf("just before its end: %s, %v", h.State, err)
	}
	sweep(epoch.Add(heldFor))
	_, err := s.Held(heldOf("denied", 0).ID)
	wantIs(t, "by id", err, ErrNotFound)
	_, err = s.HeldByPoll(heldOf("denied", 0).Poll)
	wantIs(t, "by poll", err, ErrNotFound)
	_, err = s.HeldByKey(heldOf("denied", 0).Key)
	wantIs(t, "by key", err, ErrNotFound)
	_, err = s.Held(heldOf("again", 0).ID)
	wantIs(t, "the denied one of two", err, ErrNotFound)
	sweep(epoch.Add(300 * 24 * time.Hour))
	for _, h := range []Held{heldOf("again", 1), heldOf("failed", 0)} {
		if byPoll, err := s.HeldByPoll(h.Poll); err != nil || byPoll.ID != h.ID || byPoll.State != Waiting {
			t.Errorf("a request that waits: %+v, %v", byPoll, err)
		}
		if byKey, err := s.HeldByKey(h.Key); err != nil || byKey.ID != h.ID {
			t.Errorf("a request that waits: %+v, %v", byKey, err)
		}
	}
	checkStore(t, s)
}

func TestRevocationLife(t *testing.T) {
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	defer func() { checkStore(t, s) }()
	a, b := serialOf("a", 0), serialOf("b", 0)
	wantIs(t, "what never was", revoke(s, a, 1), ErrNotFound)
	must(t, begin(s, intent("a", 0)))
	wantIs(t, "what is being signed", revoke(s, a, 1), ErrNotFound)
	must(t, finish(s, a))
	must(t, begin(s, intent("b", 0)))
	must(t, lose(s, b))
	wantIs(t, "what was burnt", revoke(s, b, 1), ErrNotFound)

	release := func() error { return s.Release(a, record(audit.CertificateReleased, audit.OutcomeSuccess, "")) }
	wantIs(t, "releasing what is good", release(), ErrNotOnHold)
	must(t, revoke(s, a, 6))
	wantIs(t, "on hold twice", revoke(s, a, 6), ErrRevoked)
	renewal := intent("c", 0)
	renewal.Supersedes = a
	wantIs(t, "renewing what is on hold", begin(s, renewal), ErrRevoked)
	h := heldOf("c", 0)
	h.Supersedes = a
	wantIs(t, "holding a renewal of what is on hold", holdOne(s, h), ErrRevoked)
	checkStore(t, s)
	must(t, release())
	must(t, holdOne(s, h))
	must(t, revoke(s, a, 6))
	wantIs(t, "approving a renewal of what is on hold", approve(s, h, renewal), ErrRevoked)
	must(t, revoke(s, a, 1))
	wantIs(t, "revoking twice", revoke(s, a, 4), ErrRevoked)
	wantIs(t, "releasing what is revoked", release(), ErrNotOnHold)
	renewal.Supersedes = b
	wantIs(t, "renewing what was burnt", begin(s, renewal), ErrNotFound)

	if n, err := s.NextCRL(issuer); n != 1 || err != nil {
		t.Errorf("the first CRL has number %d: %v", n, err)
	}
	wantIs(t, "a number left out", storeCRL(s, 2, epoch), ErrConflict)
	must(t, storeCRL(s, 1, epoch))
	wantIs(t, "a number twice", storeCRL(s, 1, epoch), ErrConflict)
	if n, err := s.NextCRL(issuer); n != 2 || err != nil {
		t.Errorf("the second CRL has number %d: %v", n, err)
	}
	if all, err := s.Revoked(sha256.Sum256([]byte("another authority"))); err != nil || len(all) != 0 {
		t.Errorf("on another authority's CRL: %v, %v", all, err)
	}
}

// What ended before a CRL was made is on that one and on no other.
func TestEndedIsDropped(t *testing.T) {
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	must(t, begin(s, intent("a", 0)))
	must(t, finish(s, serialOf("a", 0)))
	must(t, revoke(s, serialOf("a", 0), 1))
	must(t, begin(s, intent("b", 0)))
	must(t, lose(s, serialOf("b", 0)))
	end := intent("a", 0).NotAfter
	must(t, storeCRL(s, 1, end))
	if all, err := s.Revoked(issuer); err != nil || len(all) != 2 {
		t.Errorf("at their end %d are listed: %v", len(all), err)
	}
	must(t, storeCRL(s, 2, end.Add(time.Second)))
	if all, err := s.Revoked(issuer); err != nil || len(all) != 0 {
		t.Errorf("past their end %d are listed: %v", len(all), err)
	}
	if x, err := s.Transaction(serialOf("a", 0)); err != nil || !x.Revoked() {
		t.Errorf("revoked: %v, %v", x.Revoked(), err)
	}
}

// A state of the layout before is brought to this one, its burnt serials with it; its transactions
// have no end.
func TestUpgrade(t *testing.T) {
	fs := vfs.NewMem()
	s := recovered(t, fs)
	old := intent("lost", 0)
	old.NotAfter = time.Time{}
	must(t, begin(s, old))
	must(t, lose(s, old.Serial))
	must(t, begin(s, intent("good", 0)))
	must(t, finish(s, serialOf("good", 0)))
	must(t, s.db.Delete(revokedKey(issuer[:], old.Serial), pebble.Sync))
	must(t, s.db.Set(keySchema, []byte{schemaUnlisted}, pebble.Sync))
	closeStore(t, s)
	for range 2 {
		s = recovered(t, fs)
		all, err := s.Revoked(issuer)
		must(t, err)
		if diff := cmp.Diff([]Revocation{{Serial: old.Serial, At: epoch}}, all); diff != "" {
			t.Errorf("revoked (-want +got):\n%s", diff)
		}
		must(t, func() error {
			v, err := s.get(s.db, keySchema)
			if err == nil && v[0] != schemaVersion {
				err = fmt.Errorf("layout %x", v)
			}
			return err
		}())
		closeStore(t, s)
	}
}
