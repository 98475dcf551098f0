package store

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/transparency-dev/merkle/compact"

	"signet.internal/appliance/audit"
)

// MinRetention is how long every record of the audit log is kept at least, whatever a site says, by the clock
// and by the time that the box ran: who makes a box forget has to wait for it, whatever they set its clock to.
const MinRetention = 30 * 24 * time.Hour

// removePage is how many records are looked at while others wait, removeBatch how many go in one
// transition.
const (
	removePage  = 256
	removeBatch = 1 << 16
)

// Everyone says that whoever keeps the audit log elsewhere has all of it, because there is nobody; or that all
// of it is old.
const Everyone = math.MaxUint64

// Removal says what retention took of the audit log: its first records, of which the tree's hashes
// stay, so that every root, proof and checkpoint comes out as before. The log itself says so too:
// Open refuses records that are gone without it, and so does who verifies an export.
type Removal struct {
	Before uint64    `json:"before"` // records below are gone; 0: none
	Until  time.Time `json:"until"`  // when the newest of them was written
	Record uint64    `json:"record"` // index of the record that tells of it
}

// Retention says which records of the audit log have served.
type Retention struct {
	Now       time.Time     // by a clock the caller trusts
	Keep      time.Duration // that a record is kept for, at least MinRetention
	Aged      uint64        // records below were there for MinRetention whatever the clock says, see Aged; or Everyone
	Delivered uint64        // records below are with whoever keeps them elsewhere, see Cursor; or Everyone
}

// RemoveRecords removes the first records of the audit log as far as all of them are older than r.Keep,
// at most removeBatch of them, and returns how many; rec, which is recorded with it, gets what it tells
// of them. It keeps what is not aged, what was not delivered, the newest record, and whatever was recorded since the
// oldest transaction that is not decided began and since the oldest request that waits was made. While
// somebody holds the records none is removed.
//
// A record that is not the one its hash in the tree is of is ErrDamaged and stays, with all after it: it
// is evidence.
func (s *Store) RemoveRecords(r Retention, rec audit.Record) (removed uint64, err error) {
	if r.Keep < MinRetention {
		return 0, fmt.Errorf("removing audit records: they are kept for %v at least, not %v", MinRetention, r.Keep)
	}
	if !s.holding.TryLock() {
		return 0, nil
	}
	defer s.holding.Unlock()
	gone, err := s.served(r)
	before := s.Removed().Before
	if err == nil && gone.Before > before {
		rec.Identity, rec.Reason = audit.RemovedBefore(gone.Before), "the last of them was of "+gone.Until.UTC().Format(time.RFC3339)+"; "+rec.Reason
		err = s.do(true, func(c *change) error { // it frees space
			gone.Record = c.head.next
			c.record(rec)
			c.deleteRange(auditKey(before), auditKey(gone.Before))
			c.head.removed = gone
			return c.setJSON(keyRemoved, gone)
		})
	}
	if err != nil {
		return 0, fmt.Errorf("removing audit records: %w", err)
	}
	return max(gone.Before, before) - before, nil
}

// Removed says which records of the audit log are gone.
func (s *Store) Removed() Removal {
	s.durable.RLock()
	defer s.durable.RUnlock()
	return s.head.removed
}

// HoldRecords keeps the records of the audit log that are there from being removed until release is
// called: whoever reads many pages of it sees one log.
func (s *Store) HoldRecords() (removed Removal, release func()) {
	s.holding.RLock()
	return s.Removed(), s.holding.RUnlock
}

// served finds what RemoveRecords may remove. What it reads never changes, so others need not wait for
// more than a page.
func (s *Store) served(r Retention) (Removal, error) {
	oldest, err := s.oldestNeeded(r.Now.Add(-r.Keep))
	if err != nil {
		return Removal{}, err
	}
	gone := s.Removed()
	size, _, err := s.LogHead()
	if err != nil || size == 0 {
		return gone, err
	}
	end := min(size-1, r.Aged, r.Delivered)
	if end > gone.Before {
		end = gone.Before + min(end-gone.Before, removeBatch)
	}
	for from := gone.Before; from < end; from += removePage {
		records, err := s.intact(from, min(from+removePage, end))
		if err != nil {
			return Removal{}, err
		}
		for _, record := range records {
			switch {
			case record.Time.After(r.Now): // of a clock that was wrong: as old as what is after it
			case record.Time.Before(oldest):
				gone.Before, gone.Until = record.Index+1, record.Time
			default:
				return gone, nil
			}
		}
	}
	return gone, nil
}

// oldestNeeded is the time from which on records stay: cutoff, or earlier.
func (s *Store) oldestNeeded(cutoff time.Time) (time.Time, error) {
	need := func(t time.Time) {
		if t = t.Add(-orderTolerance); t.Before(cutoff) {
			cutoff = t
		}
	}
	err := s.read(func(db *pebble.DB) error {
		get := func(k []byte) ([]byte, error) { return s.get(db, k) }
		return errors.Join(
			s.scan(prefixOpen, func(serial, _ []byte) error {
				t, err := readTransaction(get, string(serial))
				need(t.Begun)
				return err
			}),
			s.scan(prefixWaiting, func(id, _ []byte) error {
				h, err := readHeld(get, string(id))
				need(h.Since)
				return err
			}))
	})
	return cutoff, err
}

// intact reads records and holds each against its hash in the tree.
func (s *Store) intact(from, to uint64) (records []audit.Record, err error) {
	hashes, err := s.LeafHashes(from, to)
	if err != nil {
		return nil, err
	}
	err = s.read(func(db *pebble.DB) error {
		return scanRange(db, auditKey(from), auditKey(to), func(k, v []byte) error {
			record, err := decodeAudit(k[1:], v)
			if err != nil {
				return err
			}
			if hashes[record.Index-from] != [32]byte(v[1:33]) {
				return fmt.Errorf("%w: audit record %d is not the one that was written", ErrDamaged, record.Index)
			}
			records = append(records, record)
			return nil
		})
	})
	if err == nil && uint64(len(records)) != to-from {
		err = fmt.Errorf("%w: one of the audit records %d to %d is missing", ErrDamaged, from, to-1)
	}
	return records, err
}

// readRemoval reads which of the log's first next records are gone, and holds it against what is there:
// the record that tells of it is one of the tree's, and the first that is there is the first kept.
func (s *Store) readRemoval(next uint64) (r Removal, err error) {
	v, err := s.get(s.db, keyRemoved)
	switch {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return Removal{}, err
	default:
		if err := decode(v, &r); err != nil {
			return Removal{}, err
		}
		if r.Record < r.Before || r.Record >= next {
			return Removal{}, fmt.Errorf("%w: the audit log has no record %d that tells of the removal of those before %d", ErrDamaged, r.Record, r.Before)
		}
		if err := s.checkTold(r); err != nil {
			return Removal{}, err
		}
	}
	return r, s.checkFirst(r.Before, next)
}

// checkTold refuses a removal that the log does not tell of.
func (s *Store) checkTold(r Removal) error {
	v, err := s.get(s.db, auditKey(r.Record))
	if err != nil {
		return fmt.Errorf("%w: audit record %d is missing", ErrDamaged, r.Record)
	}
	record, err := decodeAudit(auditKey(r.Record)[1:], v)
	if err != nil {
		return err
	}
	hash, err := s.node(s.db, compact.NewNodeID(0, r.Record))
	if err != nil {
		return err
	}
	if before, ok := record.Removed(); !ok || before != r.Before || string(hash) != string(v[1:33]) {
		return fmt.Errorf("%w: audit record %d does not tell of the removal of those before %d", ErrDamaged, r.Record, r.Before)
	}
	return nil
}

// checkFirst refuses a log that does not begin with a record.
func (s *Store) checkFirst(first, next uint64) error {
	if next == 0 {
		return nil
	}
	errFirst := errors.New("first")
	err := scanRange(s.db, []byte{prefixAudit}, auditKey(next), func(k, _ []byte) error {
		if string(k) != string(auditKey(first)) {
			return fmt.Errorf("%w: the audit log does not begin with record %d", ErrDamaged, first)
		}
		return errFirst
	})
	if errors.Is(err, errFirst) {
		return nil
	}
	return err
}
