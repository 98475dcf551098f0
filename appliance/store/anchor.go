package store

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"signet.internal/appliance/audit"
)

// AnchorState is what the store knows of the counter in the TPM by which an older disk shows that was put
// back. The counter moves only after its next position is durable here, so that it stands at Confirmed or at
// Intended; where it stands elsewhere, this is not the newest state there was.
type AnchorState struct {
	Confirmed uint64 // where it stood when it was last looked at
	Intended  uint64 // where it is going: Confirmed, or one more
	LogSize   uint64 // audit records there were when it was last about to move: what came since, no move covers
}

// check says what is wrong with a state.
func (a AnchorState) check() error {
	if a.Confirmed == 0 || a.Intended != a.Confirmed && a.Intended != a.Confirmed+1 {
		return fmt.Errorf("%w: the state-rollback counter is confirmed at %d and intended to be at %d", ErrDamaged, a.Confirmed, a.Intended)
	}
	return nil
}

// Anchor returns what is known of the counter; ErrNotFound before the first ResetAnchor.
func (s *Store) Anchor() (a AnchorState, err error) {
	err = s.read(func(db *pebble.DB) (err error) {
		a, err = readAnchor(func(k []byte) ([]byte, error) { return s.get(db, k) })
		return err
	})
	if err != nil {
		return AnchorState{}, fmt.Errorf("reading where the state-rollback counter stands: %w", err)
	}
	return a, nil
}

func readAnchor(get func([]byte) ([]byte, error)) (a AnchorState, err error) {
	b, err := get(keyAnchor)
	if err == nil {
		err = decode(b, &a)
	}
	if err != nil {
		return AnchorState{}, err
	}
	return a, a.check()
}

// IntendAnchor records that the counter is about to move to next, one above where it stands. Only then may
// it move. ErrConflict if it stands elsewhere; to be asked for again is no error.
func (s *Store) IntendAnchor(next uint64) error {
	return s.changeAnchor("recording where the state-rollback counter goes", func(c *change, a AnchorState) (AnchorState, error) {
		if next != a.Confirmed+1 {
			return a, fmt.Errorf("%w: it stands at %d and cannot go to %d", ErrConflict, a.Confirmed, next)
		}
		a.Intended, a.LogSize = next, c.head.next
		return a, nil
	})
}

// ConfirmAnchor records that the counter went to n, where it was about to go; ErrConflict if that is
// elsewhere.
func (s *Store) ConfirmAnchor(n uint64) error {
	return s.changeAnchor("recording where the state-rollback counter stands", func(_ *change, a AnchorState) (AnchorState, error) {
		if n != a.Intended {
			return a, fmt.Errorf("%w: it was to go to %d, not to %d", ErrConflict, a.Intended, n)
		}
		a.Confirmed = n
		return a, nil
	})
}

// ResetAnchor takes the counter as standing at n, wherever it was known before, with the audit record that
// says why: the box got its counter, or a person takes this state for the newest there is.
func (s *Store) ResetAnchor(n uint64, rec audit.Record) error {
	next := AnchorState{Confirmed: n, Intended: n}
	err := s.do(true, func(c *change) error {
		if err := next.check(); err != nil {
			return err
		}
		c.record(rec)
		return c.setJSON(keyAnchor, next) // LogSize 0: no move covers any of it yet
	})
	if err != nil {
		return fmt.Errorf("recording where the state-rollback counter stands: %w", err)
	}
	return nil
}

// changeAnchor changes the state, if edit changes it. It may use the reserve of a full disk: these are a
// hundred bytes, written over each time.
func (s *Store) changeAnchor(doing string, edit func(*change, AnchorState) (AnchorState, error)) error {
	err := s.do(true, func(c *change) error {
		was, err := readAnchor(c.get)
		if errors.Is(err, ErrNotFound) {
			return fmt.Errorf("%w: the box has no state-rollback counter yet", ErrConflict)
		}
		if err != nil {
			return err
		}
		is, err := edit(c, was)
		if err != nil || is == was {
			return err
		}
		return c.setJSON(keyAnchor, is)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return nil
}
