package store

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"signet.internal/appliance/audit"
)

// orderTolerance is how far concurrent callers' clocks readings may be out of the order in which
// they reach the log; within it a record takes its predecessor's time. A larger step back is the
// clock's doing and is recorded as it is.
const orderTolerance = 5 * time.Second

// MaxRecords is the most Records returns at once.
const MaxRecords = 1000

// Append writes audit records that go with no other change, in one batch. Index is assigned; Time
// has to be set by the caller.
func (s *Store) Append(records ...audit.Record) error {
	if len(records) == 0 {
		return nil
	}
	err := s.do(false, func(c *change) error {
		for _, r := range records {
			c.record(r)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("appending audit record: %w", err)
	}
	return nil
}

// Started is Append for the record of the service's start, which a full disk does not keep from starting:
// somebody has to see that it is full.
func (s *Store) Started(r audit.Record) error {
	if err := s.do(true, func(c *change) error { c.record(r); return nil }); err != nil {
		return fmt.Errorf("recording the start: %w", err)
	}
	return nil
}

// Records returns up to limit records with an index below before, newest first; before 0 starts at
// the newest. The page after one that ends in index n is Records(n, …); there is none after index 0.
// A damaged record is passed over: Record and FindRecords say which are.
func (s *Store) Records(before uint64, limit int) (records []audit.Record, err error) {
	limit = min(max(limit, 0), MaxRecords)
	err = s.read(func(db *pebble.DB) (err error) {
		upper := []byte{prefixAudit + 1}
		if before > 0 {
			upper = auditKey(before)
		}
		it, err := db.NewIter(&pebble.IterOptions{LowerBound: []byte{prefixAudit}, UpperBound: upper})
		if err != nil {
			return fmt.Errorf("reading store: %w", err)
		}
		defer func() {
			if cerr := it.Close(); err == nil {
				err = cerr
			}
		}()
		for ok := it.Last(); ok && len(records) < limit; ok = it.Prev() {
			if r, err := decodeAudit(it.Key()[1:], it.Value()); err == nil {
				records = append(records, r)
			}
		}
		return it.Error()
	})
	if err != nil {
		return nil, fmt.Errorf("reading audit log: %w", err)
	}
	return records, nil
}

// Record returns the record with an index. It fails with ErrNotFound where retention removed it or none was
// written yet, and with ErrDamaged where what is on the disk is not what was written.
func (s *Store) Record(index uint64) (r audit.Record, err error) {
	err = s.read(func(db *pebble.DB) error {
		k := auditKey(index)
		value, err := s.get(db, k)
		if err != nil {
			return err
		}
		r, err = decodeAudit(k[1:], value)
		return err
	})
	if err != nil {
		return audit.Record{}, fmt.Errorf("reading audit record %d: %w", index, err)
	}
	return r, nil
}

// LastTime is the floor of the clock: the newest time in the audit log that came from a source worth
// trusting, zero if there is none. The real-time clock alone never raises it, so one reading of a
// broken RTC far in the future cannot stop the box for good.
func (s *Store) LastTime() time.Time {
	s.durable.RLock()
	defer s.durable.RUnlock()
	return s.head.floor
}

func raisesFloor(timeSource string) bool { return timeSource != "rtc" && timeSource != "" }

// inOrder returns the time a record gets that follows one of time last.
func inOrder(t, last time.Time) time.Time {
	t = t.UTC().Truncate(time.Millisecond)
	if t.Before(last) && last.Sub(t) <= orderTolerance {
		return last
	}
	return t
}

// decodeAudit reads the value of an audit key, checking that hash, bytes and index agree.
func decodeAudit(name, value []byte) (audit.Record, error) {
	if len(name) != 8 {
		return audit.Record{}, fmt.Errorf("%w: audit key of %d bytes", ErrDamaged, len(name))
	}
	index := binary.BigEndian.Uint64(name)
	if len(value) < 33 || value[0] != valueVersion {
		return audit.Record{}, fmt.Errorf("%w: audit record %d of unknown version", ErrDamaged, index)
	}
	leaf := value[33:]
	if audit.LeafHash(leaf) != [32]byte(value[1:33]) {
		return audit.Record{}, fmt.Errorf("%w: audit record %d does not match its hash", ErrDamaged, index)
	}
	r, err := audit.Parse(leaf)
	if err != nil {
		return audit.Record{}, fmt.Errorf("%w: %v", ErrDamaged, err)
	}
	if r.Index != index {
		return audit.Record{}, fmt.Errorf("%w: audit record %d says it is %d", ErrDamaged, index, r.Index)
	}
	return r, nil
}
