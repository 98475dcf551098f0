// Package metrics counts what the box does: enrollments as the audit log has them, what it published and how
// its parts are doing, for Prometheus and for the console's picture of the last days.
package metrics

import (
	"fmt"
	"maps"
	"sync"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/store"
)

// Bounds of the tally.
const (
	// Days is how many days the tally keeps, the present one included.
	Days = 7
	// maxCounted is how many records that were there before the process are counted at most: a few seconds'
	// reading. A box that writes more in Days has a picture that begins later.
	maxCounted = 200_000
	// other stands for profiles the site does not have: devices choose what they ask for, and every name
	// would be a series of its own.
	other = "other"
)

// Series is what enrollments are counted by.
type Series struct {
	Profile  string
	Protocol string
	Outcome  audit.Outcome
}

// Day is what became of the enrollments of one day, in UTC.
type Day struct {
	Start   time.Time
	Issued  uint64
	Refused uint64 // a minute's refusals of one kind from one source are one
	Failed  uint64 // the box could not do it
}

// History is the last Days days.
type History struct {
	Days    []Day     // oldest first
	Since   time.Time // what the log has from before is not counted; zero: all of these days is
	Counted bool      // false until the log was read once
}

// Tally counts enrollments. It reads the audit log once back to the first of its days, and from then on only
// what is new.
type Tally struct {
	store    *store.Store
	now      func() time.Time
	profiles map[string]bool
	started  uint64 // records before the process

	reading sync.Mutex // taken before mu

	mu      sync.Mutex
	next    uint64 // index of the first record that is not counted
	counted bool
	since   time.Time
	days    map[time.Time]Day
	totals  map[Series]uint64 // since the process started
}

// NewTally counts for the profiles of a site. Nothing is read before the first Read.
func NewTally(s *store.Store, profiles []string, now func() time.Time) (*Tally, error) {
	size, _, err := s.LogHead()
	if err != nil {
		return nil, err
	}
	t := &Tally{store: s, now: now, profiles: map[string]bool{}, started: size, days: map[time.Time]Day{}, totals: map[Series]uint64{}}
	for _, p := range profiles {
		t.profiles[p] = true
	}
	return t, nil
}

// Read counts what the log has got since the last call. It returns at once where another call is at it.
func (t *Tally) Read() error {
	if !t.reading.TryLock() {
		return nil
	}
	defer t.reading.Unlock()
	size, _, err := t.store.LogHead()
	if err != nil {
		return fmt.Errorf("counting enrollments: %w", err)
	}
	t.mu.Lock()
	first, next := !t.counted, t.next
	t.mu.Unlock()
	if !first && size == next {
		return nil
	}
	found := found{days: map[time.Time]Day{}, totals: map[Series]uint64{}}
	oldest := startOfDay(t.now()).AddDate(0, 0, 1-Days)
	// Backwards, because a log that lost its oldest records still has its newest.
	for before, read := size, 0; before > next; {
		page, err := t.store.Records(before, store.MaxRecords)
		if err != nil {
			return fmt.Errorf("counting enrollments: %w", err)
		}
		for _, r := range page {
			before = r.Index
			if r.Index < next || first && r.Index < t.started && r.Time.Before(oldest) {
				before = next
				break
			}
			t.count(r, &found)
		}
		if read += len(page); len(page) == 0 { // what was before is removed or damaged
			break
		}
		if first && read >= maxCounted {
			found.since = page[len(page)-1].Time
			break
		}
	}
	t.merge(found, size, oldest)
	return nil
}

// found is what one reading adds.
type found struct {
	days   map[time.Time]Day
	totals map[Series]uint64
	since  time.Time
}

func (t *Tally) merge(f found, size uint64, oldest time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for start, d := range f.days {
		sum := t.days[start]
		sum.Issued, sum.Refused, sum.Failed = sum.Issued+d.Issued, sum.Refused+d.Refused, sum.Failed+d.Failed
		t.days[start] = sum
	}
	maps.DeleteFunc(t.days, func(start time.Time, _ Day) bool { return start.Before(oldest) })
	for s, n := range f.totals {
		t.totals[s] += n
	}
	if !t.counted {
		t.since = f.since
	}
	t.next, t.counted = size, true
}

// count adds a record that is the end of an enrollment.
func (t *Tally) count(r audit.Record, f *found) {
	var day Day
	switch {
	case !isEnrollment(r.Action):
		return
	case r.Outcome == audit.OutcomeSuccess && (r.Action == audit.RequestDenied || r.Action == audit.RequestExpired), r.Outcome == audit.OutcomeRefused:
		r.Outcome, day.Refused = audit.OutcomeRefused, 1
	case r.Outcome == audit.OutcomeSuccess:
		day.Issued = 1
	case r.Outcome == audit.OutcomeFailed, r.Outcome == audit.OutcomeLost:
		day.Failed = 1
	default:
		return
	}
	start := startOfDay(r.Time)
	sum := f.days[start]
	sum.Issued, sum.Refused, sum.Failed = sum.Issued+day.Issued, sum.Refused+day.Refused, sum.Failed+day.Failed
	f.days[start] = sum
	if r.Index < t.started {
		return
	}
	if !t.profiles[r.Profile] {
		r.Profile = other
	}
	f.totals[Series{r.Profile, r.Protocol, r.Outcome}]++
}

// isEnrollment tells the actions that end an enrollment from those that begin one or are about something else.
func isEnrollment(a audit.Action) bool {
	switch a {
	case audit.SCEPPKCSReq, audit.SCEPRenewalReq, audit.SCEPPKCSReqIntune, audit.SCEPRenewalReqIntune, audit.SCEPRefused,
		audit.ESTSimpleEnroll, audit.ESTSimpleReenroll, audit.ESTServerKeyGen, audit.ESTRefused,
		audit.RequestDenied, audit.RequestExpired, audit.TransactionLost:
		return true
	}
	return false
}

// Totals are the enrollments since the process started, as far as they were read.
func (t *Tally) Totals() map[Series]uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.totals)
}

// History is what was read of the last days.
func (t *Tally) History() History {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := History{Counted: t.counted}
	first := startOfDay(t.now()).AddDate(0, 0, 1-Days)
	if t.since.After(first) {
		h.Since = t.since
	}
	for i := range Days {
		start := first.AddDate(0, 0, i)
		d := t.days[start]
		d.Start = start
		h.Days = append(h.Days, d)
	}
	return h
}

func startOfDay(t time.Time) time.Time { return t.UTC().Truncate(24 * time.Hour) }
