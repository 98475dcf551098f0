package store

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Cursor is how far the audit log was delivered to whoever keeps it elsewhere. Whoever can change the
// store can have records removed before they were delivered, or delivered twice.
type Cursor struct {
	To   string `json:"to"`   // whom
	Next uint64 `json:"next"` // index of the first record that may not be there yet
}

// Delivered returns the cursor of a receiver; one that nothing was delivered to yet is at 0.
func (s *Store) Delivered(to string) (c Cursor, err error) {
	err = s.read(func(db *pebble.DB) error {
		v, err := s.get(db, keyCursor)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		return decode(v, &c)
	})
	if err != nil {
		return Cursor{}, fmt.Errorf("reading how far the audit log was delivered: %w", err)
	}
	if c.To != to {
		return Cursor{To: to}, nil
	}
	return c, nil
}

// SetDelivered moves the cursor to where a receiver is; that of an earlier one is forgotten. It writes no
// audit record, or the log would grow by being delivered.
func (s *Store) SetDelivered(c Cursor) error {
	err := s.do(true, func(ch *change) error { // a few bytes, and what lets records be removed
		if c.Next > ch.head.next {
			return fmt.Errorf("%w: the audit log has %d records, %d were not delivered", ErrConflict, ch.head.next, c.Next)
		}
		return ch.setJSON(keyCursor, c)
	})
	if err != nil {
		return fmt.Errorf("recording how far the audit log was delivered: %w", err)
	}
	return nil
}
