package store

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"signet.internal/appliance/audit"
)

// checkIndexes holds the indexes of certificates against the transactions.
func checkIndexes(t testing.TB, s *Store, transactions map[string]Transaction) {
	t.Helper()
	identities, times := map[string]bool{}, map[string]bool{}
	for _, x := range transactions {
		if x.State == Begun || x.State == Issued {
			identities[string(identityKey(x.Intent))] = true
			if u, err := readKeyUse(func(k []byte) ([]byte, error) { return s.get(s.db, k) }, x.PublicKey); err != nil || !slices.Contains(u.Identities, strings.ToLower(x.Identity)) && len(u.Identities) < 2 {
				t.Errorf("key of %s was used by %v: %v", x.Serial, u.Identities, err)
			}
		}
		if x.State == Issued {
			times[string(issuedKey(x))] = true
		}
		if x.Withheld && (x.State != Issued || !x.Withhold) {
			t.Errorf("transaction %s is %s and held back", x.Serial, x.State)
		}
		if old, ok := transactions[x.Supersedes]; ok && x.State == Issued && !x.Withheld {
			if old.SupersededBy == "" || x.RevokeSuperseded && (!old.Revoked() || old.Reason == reasonHold) {
				t.Errorf("%s, renewed by %s, is superseded by %q, revoked %v", old.Serial, x.Serial, old.SupersededBy, old.Revoked())
			}
		}
		if by, ok := transactions[x.SupersededBy]; x.SupersededBy != "" && (!ok || by.State != Issued || by.Withheld || by.Supersedes != x.Serial) {
			t.Errorf("%s is superseded by %+v", x.Serial, by)
		}
	}
	for prefix, want := range map[byte]map[string]bool{prefixIdentity: identities, prefixIssued: times} {
		must(t, s.scan(prefix, func(name, _ []byte) error {
			if k := string(prefix) + string(name); !want[k] {
				t.Errorf("index has %q", k)
			} else {
				delete(want, k)
			}
			return nil
		}))
		if len(want) != 0 {
			t.Errorf("index %c lacks %v", prefix, want)
		}
	}
}

// named is an intent for an identity.
func named(name, identity string) Intent {
	i := intent(name, 0)
	i.Identity = identity
	return i
}

func issue(s *Store, i Intent) error { return errors.Join(begin(s, i), finish(s, i.Serial)) }

// What is begun counts, what is renewed, revoked or over does not.
func TestMaxActive(t *testing.T) {
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	limited := func(name string) Intent {
		i := named(name, "Printer-7")
		i.MaxActive = 2
		return i
	}
	must(t, issue(s, limited("a")))
	must(t, begin(s, limited("b")))
	err := begin(s, limited("c"))
	wantIs(t, "a third", err, ErrMaxActive)
	for _, name := range []string{"a", "b"} {
		if !strings.Contains(err.Error(), serialOf(name, 0)) {
			t.Errorf("the refusal does not name %s: %v", name, err)
		}
	}
	other := limited("o")
	other.Identity = "printer-70"
	must(t, issue(s, other))
	elsewhere := limited("e")
	elsewhere.Profile = "iot"
	must(t, issue(s, elsewhere))

	must(t, fail(s, serialOf("b", 0)))
	must(t, issue(s, limited("c")))
	wantIs(t, "in another case", begin(s, func() Intent { i := limited("d"); i.Identity = "PRINTER-7"; return i }()), ErrMaxActive)
	renewal := limited("r")
	renewal.Supersedes = serialOf("a", 0)
	must(t, issue(s, renewal)) // takes the place of a
	again := limited("r2")
	again.Supersedes = serialOf("a", 0)
	wantIs(t, "renewing once more what was renewed", begin(s, again), ErrMaxActive)
	must(t, revoke(s, serialOf("c", 0), 5))
	must(t, issue(s, limited("d")))
	wantIs(t, "and then", begin(s, limited("f")), ErrMaxActive)
	later := limited("f")
	later.Begun = later.NotAfter.Add(time.Millisecond)
	later.NotAfter = later.Begun.Add(time.Hour)
	must(t, issue(s, later))
	checkStore(t, s)
}

// A key belongs to the identity it was first used under, where that is asked for, and to nobody once it is
// compromised.
func TestKeys(t *testing.T) {
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	shared := sha256.Sum256([]byte("shared key"))
	with := func(name, identity string, isUnique bool) Intent {
		i := named(name, identity)
		i.PublicKey, i.UniqueKey = shared[:], isUnique
		return i
	}
	must(t, issue(s, with("a", "printer-7", true)))
	must(t, issue(s, with("b", "PRINTER-7", true)))
	wantIs(t, "another identity", begin(s, with("c", "printer-8", true)), ErrKeyTaken)
	must(t, issue(s, with("c", "printer-8", false)))
	wantIs(t, "the first, once another has it", begin(s, with("d", "printer-7", true)), ErrKeyTaken)
	must(t, revoke(s, serialOf("a", 0), 6))
	must(t, s.Release(serialOf("a", 0), record(audit.CertificateReleased, audit.OutcomeSuccess, "")))
	if is, err := s.IsCompromised(shared); err != nil || is {
		t.Errorf("compromised %v: %v", is, err)
	}
	must(t, revoke(s, serialOf("c", 0), 6))
	must(t, revoke(s, serialOf("c", 0), 1))
	if is, err := s.IsCompromised(shared); err != nil || !is {
		t.Errorf("compromised %v: %v", is, err)
	}
	wantIs(t, "a compromised key", begin(s, with("d", "printer-7", false)), ErrKeyCompromised)
	checkStore(t, s)
}

// A certificate that is held back supersedes nothing before it is delivered, once.
func TestWithheld(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := recovered(t, fs)
	must(t, issue(s, intent("a", 0)))
	i := intent("b", 0)
	i.Withhold, i.RevokeSuperseded, i.Supersedes = true, true, serialOf("a", 0)
	must(t, begin(s, i))
	wantIs(t, "delivering what is begun", deliver(s, i.Serial), ErrNotFound)
	must(t, finish(s, i.Serial))
	check := func(isWithheld bool) {
		t.Helper()
		b, err := s.Transaction(i.Serial)
		must(t, err)
		a, err := s.Transaction(serialOf("a", 0))
		must(t, err)
		if b.Withheld != isWithheld || a.Revoked() == isWithheld || (a.SupersededBy == "") != isWithheld {
			t.Errorf("held back %v, the one before revoked %v, superseded by %q", b.Withheld, a.Revoked(), a.SupersededBy)
		}
		checkStore(t, s)
	}
	check(true)
	fs = fs.CrashClone(vfs.CrashCloneCfg{})
	closeStore(t, s)
	s = recovered(t, fs)
	defer func() { closeStore(t, s) }()
	check(true)
	must(t, deliver(s, i.Serial))
	check(false)
	wantIs(t, "delivering again", deliver(s, i.Serial), ErrDecided)
	wantIs(t, "delivering what never was held back", deliver(s, serialOf("a", 0)), ErrDecided)
	records, err := s.Records(0, 1)
	must(t, err)
	if r := records[0]; r.Action != audit.CertificateRevoked || r.Actor != audit.ActorBox || r.Serial != serialOf("a", 0) || !strings.Contains(r.Reason, i.Serial) {
		t.Errorf("record %+v", r)
	}
	wantIs(t, "renewing what was replaced", begin(s, func() Intent { c := intent("c", 0); c.Supersedes = serialOf("a", 0); return c }()), ErrRevoked)
}

// list goes through all pages of a query.
func list(t *testing.T, s *Store, q Query) (serials []string) {
	t.Helper()
	for calls := 0; ; calls++ {
		found, next, err := s.Certificates(q)
		must(t, err)
		if len(found) > q.Limit || calls > 100 {
			t.Fatalf("call %d returned %d", calls, len(found))
		}
		for _, x := range found {
			serials = append(serials, x.Serial)
		}
		if next == "" {
			return serials
		}
		q.After = next
	}
}

func TestCertificates(t *testing.T) {
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	var all []string
	for n := range 7 {
		i := named(fmt.Sprint(n), fmt.Sprintf("Printer-%d", n/2))
		i.NotAfter = epoch.Add(time.Duration(n+1) * time.Hour)
		i.Profile = []string{"corp", "iot"}[n%2]
		must(t, begin(s, i))
		must(t, s.Finish(i.Serial, []byte("certificate"), epoch.Add(time.Duration(n)*time.Minute), record(audit.SCEPPKCSReq, audit.OutcomeSuccess, i.Serial)))
		all = append(all, i.Serial)
	}
	must(t, begin(s, named("begun", "printer-0")))
	must(t, begin(s, named("lost", "printer-0")))
	must(t, lose(s, serialOf("lost", 0)))
	must(t, revoke(s, all[2], 4))
	must(t, revoke(s, all[4], 6))
	newest := slices.Clone(all)
	slices.Reverse(newest)
	now := epoch.Add(2*time.Hour + time.Minute) // the first two are over
	for _, c := range []struct {
		name string
		q    Query
		want []string
	}{
		{"all", Query{}, newest},
		{"identity", Query{Identity: "printer-1"}, all[2:4]},
		{"identities", Query{Identity: "PRINT"}, all},
		{"nobody", Query{Identity: "scanner"}, nil},
		{"serial", Query{Serial: all[3]}, all[3:4]},
		{"beginning of a serial", Query{Serial: all[3][:9]}, all[3:4]},
		{"begun only", Query{Serial: serialOf("begun", 0)}, nil},
		{"profile", Query{Identity: "printer", Profile: "iot"}, []string{all[1], all[3], all[5]}},
		{"active", Query{Identity: "p", State: CertActive, Now: now}, []string{all[3], all[5], all[6]}},
		{"revoked", Query{State: CertRevoked, Now: now}, []string{all[4], all[2]}},
		{"on hold", Query{State: CertHeld, Now: now}, all[4:5]},
		{"expired", Query{Identity: "p", State: CertExpired, Now: now}, all[:2]},
	} {
		for _, limit := range []int{1, 2, 100} {
			c.q.Limit = limit
			if diff := cmp.Diff(c.want, list(t, s, c.q)); diff != "" {
				t.Errorf("%s by %d (-want +got):\n%s", c.name, limit, diff)
			}
		}
	}
	for _, after := range []string{"zz", "61", "66", fmt.Sprintf("%x", identityKey(named("0", "printer-0")))} {
		if _, _, err := s.Certificates(Query{After: after, Limit: 1}); after != "66" && !errors.Is(err, ErrCursor) {
			t.Errorf("going on at %q: %v", after, err)
		}
	}
}

// A state of the layout before gets its indexes, and keys that were compromised stay so.
func TestUpgradeIndexes(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := recovered(t, fs)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: epoch, NotAfter: epoch.Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	a := intent("a", 0)
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	a.PublicKey = sum[:]
	must(t, begin(s, a))
	must(t, s.Finish(a.Serial, der, epoch, record(audit.SCEPPKCSReq, audit.OutcomeSuccess, a.Serial)))
	renewal := intent("b", 0)
	renewal.Supersedes, renewal.PublicKey = a.Serial, sum[:]
	must(t, begin(s, renewal))
	must(t, finish(s, renewal.Serial))
	must(t, revoke(s, a.Serial, 1))
	must(t, begin(s, intent("begun", 0)))
	for n := range upgradeChunk {
		i := intent("many", n)
		i.Key = sha256.Sum256([]byte(i.Serial))
		i.Replay = ReplayKey{}
		must(t, begin(s, i))
		must(t, fail(s, i.Serial))
	}
	must(t, holdOne(s, heldOf("h", 0)))
	must(t, s.Initialise(Identity{Authorities: map[string]AuthorityCerts{"devices": {CA: der}, "odd": {CA: []byte("no certificate")}}}, record(audit.BoxInitialised, audit.OutcomeSuccess, "")))
	want := dump(t, s)

	for _, prefix := range []byte{prefixIdentity, prefixIssued, prefixKey, prefixCountSource, prefixHeldUntil} {
		must(t, s.db.DeleteRange([]byte{prefix}, []byte{prefix + 1}, pebble.Sync))
	}
	x, err := s.Transaction(a.Serial)
	must(t, err)
	x.SupersededBy, x.PublicKey = "", nil
	was, is := sha256.Sum256(der), sha256.Sum256(slices.Concat(cert.RawSubject, cert.RawSubjectPublicKeyInfo))
	must(t, s.db.Delete(revokedKey(x.Issuer, x.Serial), pebble.Sync))
	x.Issuer = was[:]
	listed, err := encode(x.revocation())
	must(t, err)
	must(t, s.db.Set(revokedKey(x.Issuer, x.Serial), listed, pebble.Sync))
	must(t, s.StoreCRL(was, CRL{Number: 1, ThisUpdate: epoch}, nil, record(audit.CRLSigned, audit.OutcomeSuccess, "")))
	old, err := encode(x)
	must(t, err)
	must(t, s.db.Set(append([]byte{prefixTransaction}, a.Serial...), old, pebble.Sync))
	must(t, s.db.Set(keySchema, []byte{2}, pebble.Sync))
	closeStore(t, s)

	// The power goes at every change of the disk while the state is brought over.
	var cuts []*vfs.MemFS
	cutting := &faultFS{FS: fs}
	cutting.hook = func(_ int, _ string, op func() error) error {
		cuts = append(cuts, fs.CrashClone(vfs.CrashCloneCfg{}))
		return op()
	}
	s = open(t, cutting)
	upgraded := dump(t, s)
	closeStore(t, s)
	for n, disk := range cuts {
		s = open(t, disk)
		if diff := cmp.Diff(upgraded, dump(t, s)); diff != "" {
			t.Errorf("after power cut %d (-want +got):\n%s", n, diff)
		}
		closeStore(t, s)
	}
	t.Logf("%d power cuts", len(cuts))

	for range 2 {
		s = open(t, fs)
		h, err := s.Held(heldOf("h", 0).ID)
		must(t, err)
		if !h.Until.Equal(epoch.Add(upgradeHeldFor)) || h.Group != h.Source {
			t.Errorf("held until %s, of %q", h.Until, h.Group)
		}
		if is, err := s.IsCompromised(sum); err != nil || !is {
			t.Errorf("compromised %v: %v", is, err)
		}
		x, err := s.Transaction(a.Serial)
		must(t, err)
		if all, err := s.Revoked(is); err != nil || len(all) != 1 || all[0].Serial != x.Serial || all[0].Reason != 1 {
			t.Errorf("on the list of the issuer's new name: %v, %v", all, err)
		}
		if all, err := s.Revoked(was); err != nil || len(all) != 0 {
			t.Errorf("on the list of the issuer's old name: %v, %v", all, err)
		}
		if n, err := s.NextCRL(is); err != nil || n != 2 || !bytes.Equal(x.Issuer, is[:]) {
			t.Errorf("the next list is number %d, issuer %x: %v", n, x.Issuer, err)
		}
		if x.SupersededBy != renewal.Serial {
			t.Errorf("superseded by %q", x.SupersededBy)
		}
		checkHeld(t, s)
		for _, prefix := range []byte{prefixIdentity, prefixIssued} {
			n := 0
			must(t, s.scan(prefix, func(_, _ []byte) error { n++; return nil }))
			if before := strings.Count(want, "\n"+string(prefix)+" "); n != before {
				t.Errorf("index %c has %d entries, want %d", prefix, n, before)
			}
		}
		closeStore(t, s)
	}
}
