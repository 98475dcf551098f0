package metrics

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/store"
)

// now is when the tests are, in the afternoon of a day.
var now = time.Date(2026, 11, 21, 15, 30, 0, 0, time.UTC)

func newStore(t testing.TB) *store.Store {
	t.Helper()
	s, err := store.Open(store.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func record(at time.Time, action audit.Action, profile string, outcome audit.Outcome) audit.Record {
	return audit.Record{Time: at, TimeSource: "rtc", Action: action, Actor: audit.ActorDevice, Profile: profile, Protocol: "scep", Outcome: outcome}
}

func write(t testing.TB, s *store.Store, records ...audit.Record) {
	t.Helper()
	if err := s.Append(records...); err != nil {
		t.Fatal(err)
	}
}

func newTally(t *testing.T, s *store.Store, clock func() time.Time) *Tally {
	t.Helper()
	tally, err := NewTally(s, []string{"corp"}, clock)
	if err != nil {
		t.Fatal(err)
	}
	return tally
}

func read(t *testing.T, tally *Tally) {
	t.Helper()
	if err := tally.Read(); err != nil {
		t.Fatal(err)
	}
}

// TestTally: the days before the start are in the picture and not in the counters, each record counts once
// however often the log is read, and what is no end of an enrollment does not count.
func TestTally(t *testing.T) {
	s := newStore(t)
	const day = 24 * time.Hour
	write(t, s,
		record(now.Add(-8*day), audit.SCEPPKCSReq, "corp", audit.OutcomeSuccess), // too old
		record(now.Add(-6*day), audit.SCEPPKCSReq, "corp", audit.OutcomeSuccess),
		record(now.Add(-6*day), audit.IssuanceBegun, "corp", audit.OutcomeBegun),
		record(now.Add(-1*day), audit.ESTRefused, "corp", audit.OutcomeRefused),
		record(now, audit.SignedIn, "", audit.OutcomeSuccess),
	)
	clock := now
	tally := newTally(t, s, func() time.Time { return clock })
	if h := tally.History(); h.Counted || len(h.Days) != Days {
		t.Errorf("before reading: %+v", h)
	}
	read(t, tally)
	read(t, tally)
	counts := func() []string {
		var out []string
		for _, d := range tally.History().Days {
			out = append(out, fmt.Sprintf("%s %d/%d/%d", d.Start.Format("02"), d.Issued, d.Refused, d.Failed))
		}
		return out
	}
	want := []string{"15 1/0/0", "16 0/0/0", "17 0/0/0", "18 0/0/0", "19 0/0/0", "20 0/1/0", "21 0/0/0"}
	if d := cmp.Diff(want, counts()); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	if h := tally.History(); !h.Counted || !h.Since.IsZero() {
		t.Errorf("%+v", h)
	}
	if got := tally.Totals(); len(got) != 0 {
		t.Errorf("what was before the process is counted: %v", got)
	}

	write(t, s,
		record(now, audit.SCEPPKCSReq, "corp", audit.OutcomeSuccess),
		record(now, audit.SCEPPKCSReqIntune, "corp", audit.OutcomeFailed),
		record(now, audit.TransactionLost, "corp", audit.OutcomeLost),
		record(now, audit.SCEPRefused, "a-name-a-device-made-up", audit.OutcomeRefused),
		record(now, audit.SCEPRefused, "another", audit.OutcomeRefused),
		record(now, audit.RequestHeld, "corp", audit.OutcomePending),
		record(now, audit.RequestDenied, "corp", audit.OutcomeSuccess),
		record(now, audit.CertificateRevoked, "corp", audit.OutcomeSuccess),
	)
	read(t, tally)
	read(t, tally)
	want[6] = "21 1/3/2"
	if d := cmp.Diff(want, counts()); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	totals := map[Series]uint64{
		{"corp", "scep", audit.OutcomeSuccess}: 1, {"corp", "scep", audit.OutcomeFailed}: 1, {"corp", "scep", audit.OutcomeLost}: 1,
		{"corp", "scep", audit.OutcomeRefused}: 1, {other, "scep", audit.OutcomeRefused}: 2,
	}
	if d := cmp.Diff(totals, tally.Totals()); d != "" {
		t.Errorf("totals (-want +got)\n%s", d)
	}

	clock = now.Add(2 * day)
	write(t, s, record(clock, audit.SCEPPKCSReq, "corp", audit.OutcomeSuccess))
	read(t, tally)
	want = append(want[2:], "22 0/0/0", "23 1/0/0")
	if d := cmp.Diff(want, counts()); d != "" {
		t.Errorf("two days later (-want +got)\n%s", d)
	}
	if len(tally.days) > Days {
		t.Errorf("%d days are kept", len(tally.days))
	}
}

// TestTallyReadsByPages: a log of several pages is counted whole, and again only what is new.
func TestTallyReadsByPages(t *testing.T) {
	s := newStore(t)
	const many = 2*store.MaxRecords + 17
	fill := func(n int) {
		var all []audit.Record
		for range n {
			all = append(all, record(now, audit.SCEPPKCSReq, "corp", audit.OutcomeSuccess))
		}
		write(t, s, all...)
	}
	fill(many)
	tally := newTally(t, s, func() time.Time { return now })
	for round := range 3 {
		read(t, tally)
		if got, want := tally.History().Days[Days-1].Issued, uint64(many*(round+1)); got != want {
			t.Errorf("round %d: %d counted, want %d", round, got, want)
		}
		fill(many)
	}
	if got := tally.Totals()[Series{"corp", "scep", audit.OutcomeSuccess}]; got != 2*many {
		t.Errorf("%d since the start, want %d", got, 2*many)
	}
}
