package store

import (
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"signet.internal/appliance/audit"
)

// Records are as old as the box has run since, however often it was started, and never younger than that; what
// is kept of it stays small.
func TestAgedByRunning(t *testing.T) {
	fs := vfs.NewMem()
	s := open(t, fs)
	aged := func(want uint64) {
		t.Helper()
		if n, err := s.Aged(); n != want || err != nil {
			t.Errorf("%d records are aged, want %d: %v", n, want, err)
		}
	}
	aged(0)
	const days = int(MinRetention / markGrain)
	size := map[int]uint64{} // at the end of a day
	for day := range 3 * days {
		for range 24 {
			must(t, s.Append(record(audit.BoxStarted, audit.OutcomeSuccess, "")))
			must(t, s.Ran(time.Hour))
		}
		size[day], _, _ = s.LogHead()
		n, err := s.Aged()
		must(t, err)
		if day < days && n != 0 || day > days && (n > size[day-days] || n < size[day-days-1]) {
			t.Errorf("day %d: %d records are aged; there were %d then", day, n, size[day-days])
		}
		if day%7 == 0 {
			closeStore(t, s)
			s = open(t, fs)
			must(t, s.Ran(0))
			aged(n)
		}
	}
	before, err := s.Aged()
	must(t, err)
	must(t, s.Ran(-time.Hour))
	aged(before)
	r, err := readRunning(func(k []byte) ([]byte, error) { return s.get(s.db, k) })
	must(t, err)
	if len(r.Marks) > days+2 || r.Ran != 3*MinRetention {
		t.Errorf("%d marks after %v", len(r.Marks), r.Ran)
	}
	closeStore(t, s)
}
