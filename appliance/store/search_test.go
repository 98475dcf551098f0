package store

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"signet.internal/appliance/audit"
)

// mixed is a log of n records a second apart, some of them with text that has to be escaped in a leaf.
func mixed(t testing.TB, s *Store, n int) []audit.Record {
	t.Helper()
	actions := []audit.Action{audit.SCEPPKCSReq, audit.ESTSimpleEnroll, audit.CertificateRevoked}
	outcomes := []audit.Outcome{audit.OutcomeSuccess, audit.OutcomeRefused}
	names := []string{"printer-7", `DESKTOP\Anna "A"`, "Über\u2028zug", "tab\there", "<b>"}
	var all []audit.Record
	for i := range n {
		r := record(actions[i%3], outcomes[i%2], fmt.Sprintf("%08x", i))
		r.Time, r.Identity, r.Profile, r.Protocol = epoch.Add(time.Duration(i)*time.Second), names[i%5], "corp", "scep"
		if i%4 == 0 {
			r.Profile, r.Protocol = "corp2", "est"
		}
		all = append(all, r)
	}
	for batch := range slices.Chunk(all, 1000) {
		must(t, s.Append(batch...))
	}
	stored, err := s.Records(0, 1)
	must(t, err)
	for i := range all {
		all[i].Index = stored[0].Index + 1 - uint64(n) + uint64(i)
	}
	return all
}

// Whatever is asked for, what is found is what a plain look at every record finds.
func TestFindRecords(t *testing.T) {
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	all := mixed(t, s, 3000)
	for name, tt := range map[string]struct {
		q    RecordQuery
		want func(audit.Record) bool
	}{
		"everything": {RecordQuery{}, func(audit.Record) bool { return true }},
		"action":     {RecordQuery{Actions: []audit.Action{audit.CertificateRevoked}}, func(r audit.Record) bool { return r.Action == audit.CertificateRevoked }},
		"actions": {RecordQuery{Actions: []audit.Action{audit.CertificateRevoked, audit.ESTSimpleEnroll}},
			func(r audit.Record) bool { return r.Action != audit.SCEPPKCSReq }},
		"outcome":             {RecordQuery{Outcome: audit.OutcomeRefused}, func(r audit.Record) bool { return r.Outcome == audit.OutcomeRefused }},
		"profile, whole name": {RecordQuery{Profile: "corp"}, func(r audit.Record) bool { return r.Profile == "corp" }},
		"protocol":            {RecordQuery{Protocol: "est"}, func(r audit.Record) bool { return r.Protocol == "est" }},
		"text in any case":    {RecordQuery{Text: "PRINTER"}, func(r audit.Record) bool { return r.Identity == "printer-7" }},
		"text with quotes":    {RecordQuery{Text: `desktop\anna "a`}, func(r audit.Record) bool { return strings.HasPrefix(r.Identity, "DESKTOP") }},
		"text beyond ASCII":   {RecordQuery{Text: "über\u2028"}, func(r audit.Record) bool { return strings.HasPrefix(r.Identity, "Über") }},
		"text with a tab":     {RecordQuery{Text: "b\th"}, func(r audit.Record) bool { return r.Identity == "tab\there" }},
		"text with a bracket": {RecordQuery{Text: "<B>"}, func(r audit.Record) bool { return r.Identity == "<b>" }},
		"what an escape has":  {RecordQuery{Text: "u2028"}, func(audit.Record) bool { return false }},
		"serial":              {RecordQuery{Text: "00000abc"}, func(r audit.Record) bool { return r.Serial == "00000abc" }},
		"no member's name":    {RecordQuery{Text: "csr_sha256"}, func(audit.Record) bool { return false }},
		"times": {RecordQuery{Since: epoch.Add(100 * time.Second), Until: epoch.Add(200 * time.Second)},
			func(r audit.Record) bool {
				return !r.Time.Before(epoch.Add(100*time.Second)) && r.Time.Before(epoch.Add(200*time.Second))
			}},
		"since":                  {RecordQuery{Since: epoch.Add(2990*time.Second + time.Millisecond)}, func(r audit.Record) bool { return r.Time.After(epoch.Add(2990 * time.Second)) }},
		"until the first record": {RecordQuery{Until: epoch}, func(audit.Record) bool { return false }},
		"since after the last":   {RecordQuery{Since: epoch.Add(time.Hour * 24)}, func(audit.Record) bool { return false }},
		"all at once": {RecordQuery{Text: "printer", Profile: "corp2", Outcome: audit.OutcomeSuccess, Since: epoch.Add(time.Minute)},
			func(r audit.Record) bool {
				return r.Identity == "printer-7" && r.Profile == "corp2" && r.Outcome == audit.OutcomeSuccess && !r.Time.Before(epoch.Add(time.Minute))
			}},
	} {
		t.Run(name, func(t *testing.T) {
			var want []audit.Record
			for _, r := range slices.Backward(all) {
				if tt.want(r) {
					want = append(want, r)
				}
			}
			for _, limit := range []int{7, 1000} {
				q := tt.q
				q.Limit, q.Search = limit, 700
				var got []audit.Record
				for {
					page, err := s.FindRecords(q)
					must(t, err)
					if len(page.Records) > limit || page.Searched > 700 {
						t.Fatalf("%d records of at most %d, %d looked at", len(page.Records), limit, page.Searched)
					}
					got = append(got, page.Records...)
					if page.Next == 0 {
						break
					}
					if q.Before != 0 && page.Next >= q.Before {
						t.Fatalf("goes on at %d after %d", page.Next, q.Before)
					}
					q.Before = page.Next
				}
				if name == "everything" {
					got = got[:len(want)] // beyond are the store's own first records
				}
				if !slices.EqualFunc(got, want, func(a, b audit.Record) bool { return a.Index == b.Index && a.Serial == b.Serial }) {
					t.Errorf("limit %d: %d records, want %d", limit, len(got), len(want))
				}
			}
		})
	}
}

// Searching goes by what retention left.
func TestFindRecordsAfterRetention(t *testing.T) {
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	all := mixed(t, s, 3000)
	keep := MinRetention
	now := epoch.Add(keep + 1000*time.Second)
	rec := record(audit.RecordsRemoved, audit.OutcomeSuccess, "")
	rec.Time = now
	removed, err := s.RemoveRecords(Retention{Now: now, Keep: keep, Aged: Everyone, Delivered: Everyone}, rec)
	must(t, err)
	if removed < 900 {
		t.Fatalf("%d records removed", removed)
	}
	first := s.Removed().Before
	page, err := s.FindRecords(RecordQuery{Limit: 1000, Until: epoch.Add(1500 * time.Second)})
	must(t, err)
	last := page.Records[len(page.Records)-1]
	if want := all[1499].Index - first + 1; page.Records[0].Index != all[1499].Index || last.Index != first || page.Next != 0 || page.Searched != want {
		t.Errorf("records %d to %d, next %d, %d looked at; the log begins at %d", page.Records[0].Index, last.Index, page.Next, page.Searched, first)
	}
	if page, err = s.FindRecords(RecordQuery{Limit: 10, Until: epoch.Add(500 * time.Second)}); err != nil || len(page.Records) != 0 || page.Next != 0 {
		t.Errorf("of what was removed: %+v, %v", page, err)
	}
}

// A record that was changed on the disk is named, and hides none of the others.
func TestFindRecordsNamesDamage(t *testing.T) {
	dir, _ := logged(t, 3000)
	tamper(t, dir, func(db *pebble.DB) {
		v, closer, err := db.Get(auditKey(700))
		must(t, err)
		v = bytes.Replace(bytes.Clone(v), []byte("number 700"), []byte("number 7OO"), 1)
		must(t, closer.Close())
		must(t, db.Set(auditKey(700), v, pebble.Sync))
	})
	s, err := openDir(dir)
	must(t, err)
	defer closeStore(t, s)
	page, err := s.FindRecords(RecordQuery{Limit: 1000, Before: 1000})
	if err != nil || !slices.Equal(page.Damaged, []uint64{700}) || len(page.Records) != 999 {
		t.Errorf("%d records, damaged %v: %v", len(page.Records), page.Damaged, err)
	}
	at := epoch.Add(699 * time.Second)
	if page, err = s.FindRecords(RecordQuery{Limit: 10, Since: at, Until: at.Add(3 * time.Second)}); err != nil || len(page.Records) != 2 {
		t.Errorf("around it %d records: %v", len(page.Records), err)
	}
	if _, err := s.Record(700); !errors.Is(err, ErrDamaged) {
		t.Errorf("the record itself: %v", err)
	}
	if r, err := s.Record(699); err != nil || r.Index != 699 {
		t.Errorf("the one before it: %d, %v", r.Index, err)
	}
	if _, err := s.Record(3000); !errors.Is(err, ErrNotFound) {
		t.Errorf("one that was not written: %v", err)
	}
	if around, err := s.Records(702, 3); err != nil || len(around) != 3 || around[0].Index != 701 || around[2].Index != 698 {
		t.Errorf("three from 701 on: %d, %v", len(around), err)
	}
}

// A clock that was set back makes a search miss by some records at most, and never go in circles.
func TestFindRecordsAcrossAClockSetBack(t *testing.T) {
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	random := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		r := record(audit.BoxStarted, audit.OutcomeSuccess, "")
		r.Time = epoch.Add(time.Duration(random.IntN(1000)) * time.Hour)
		must(t, s.Append(r))
	}
	for range 300 {
		since := epoch.Add(time.Duration(random.IntN(1000)) * time.Hour)
		page, err := s.FindRecords(RecordQuery{Limit: 1000, Since: since, Until: since.Add(time.Duration(random.IntN(100)) * time.Hour)})
		must(t, err)
		if page.Next != 0 || uint64(len(page.Records)) != page.Searched {
			t.Fatalf("%d records of %d, next %d", len(page.Records), page.Searched, page.Next)
		}
	}
}

// What ends soon and nobody renewed is listed, the first to end first.
func TestDueCertificates(t *testing.T) {
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	const day = 24 * time.Hour
	now := epoch.Add(300 * day)
	windows := map[string]time.Duration{"corp": 30 * day}
	ending := func(name string, in time.Duration) Intent {
		i := named(name, "device "+name)
		i.Profile, i.NotAfter = "corp", now.Add(in)
		return i
	}
	var want []string
	for n := range 50 {
		i := ending(fmt.Sprintf("%04x", 50-n), time.Duration(50-n)*time.Hour)
		must(t, issue(s, i))
		want = append(want, i.Serial)
	}
	slices.Reverse(want)
	other := ending("f1", day)
	other.Profile = "lab"
	revoked, renewed, over, open, later := ending("f2", day), ending("f3", day), ending("f4", -time.Second), ending("f5", day), ending("f6", 31*day)
	renews := ending("f7", 300*day)
	renews.Supersedes = renewed.Serial
	for _, i := range []Intent{other, revoked, renewed, over, later, renews} {
		must(t, issue(s, i))
	}
	must(t, begin(s, open))
	must(t, s.Revoke(revoked.Serial, 1, now, record(audit.CertificateRevoked, audit.OutcomeSuccess, revoked.Serial)))
	var got []string
	for after := ""; ; {
		found, next, err := s.DueCertificates(DueQuery{Now: now, Windows: windows, Limit: 7, After: after})
		must(t, err)
		for _, x := range found {
			got = append(got, x.Serial)
		}
		if after = next; after == "" {
			break
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("due are %v, want %v", got, want)
	}
	for _, wrong := range []string{"xx", "00", "0000000000000000", "00000000000000006f"} {
		_, _, err := s.DueCertificates(DueQuery{Now: now, Windows: windows, Limit: 7, After: wrong})
		wantIs(t, "after "+wrong, err, ErrCursor)
	}
}
