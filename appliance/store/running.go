package store

import (
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// markGrain is how much running time is between the marks of a log's age.
const markGrain = 24 * time.Hour

// running is how long the box has run in all, and how long the log was when: whoever sets the clock ahead
// makes no record older by it. Whoever can change the store can make records as old as they like.
type running struct {
	Ran   time.Duration `json:"ran"`
	Marks []mark        `json:"marks"` // oldest first: the newest that is MinRetention old, and those since
}

type mark struct {
	Ran  time.Duration `json:"ran"`
	Size uint64        `json:"size"` // records there were then
}

// aged is how many of the first records have been there for MinRetention of running time.
func (r running) aged() uint64 {
	if len(r.Marks) == 0 || r.Marks[0].Ran > r.Ran-MinRetention {
		return 0
	}
	return r.Marks[0].Size
}

// Ran adds to the time for which the box has run, by a clock that nobody sets. It writes no audit record.
func (s *Store) Ran(d time.Duration) error {
	err := s.do(true, func(c *change) error { // a kilobyte, and what lets records be removed
		r, err := readRunning(c.get)
		if err != nil {
			return err
		}
		r.Ran += max(d, 0)
		if n := len(r.Marks); n == 0 || r.Ran-r.Marks[n-1].Ran >= markGrain {
			r.Marks = append(r.Marks, mark{r.Ran, c.head.next})
		}
		for len(r.Marks) > 1 && r.Marks[1].Ran <= r.Ran-MinRetention {
			r.Marks = r.Marks[1:]
		}
		return c.setJSON(keyRunning, r)
	})
	if err != nil {
		return fmt.Errorf("recording how long the box has run: %w", err)
	}
	return nil
}

// Aged returns how many of the log's first records the box has kept for MinRetention of the time that it ran.
func (s *Store) Aged() (n uint64, err error) {
	err = s.read(func(db *pebble.DB) error {
		r, err := readRunning(func(k []byte) ([]byte, error) { return s.get(db, k) })
		n = r.aged()
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("reading how long the box has run: %w", err)
	}
	return n, nil
}

// readRunning returns the zero value before the first Ran.
func readRunning(get func([]byte) ([]byte, error)) (r running, err error) {
	b, err := get(keyRunning)
	if errors.Is(err, ErrNotFound) {
		return running{}, nil
	}
	if err == nil {
		err = decode(b, &r)
	}
	return r, err
}
