package store

import (
	"errors"
	"fmt"
	"time"

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
	Lists     uint64 `json:",omitzero"` // every revocation list from here on has a number above; see AcknowledgeAnchor
}

// listsAMove is how many revocation lists an issuer signs at most between two moves of the counter: one in
// three seconds is a month's worth, and the counter moves within the hour.
const listsAMove = 1 << 20

// listsAbove is the number that every list signed after the counter stood at n is above. A TPM may begin
// anywhere: what its counter has above 43 bits never changes at one move an hour.
func listsAbove(n uint64) uint64 { return n % (1 << 43) * listsAMove }

// Older says that this state was found to be an older one than the box had. It is of use to people: to say
// what the box does not know any more.
type Older struct {
	Records      uint64    `json:"records"`               // audit records it had: what the newer state had besides begins with this index
	Until        time.Time `json:"until,omitzero"`        // when the newest of them was written
	Found        time.Time `json:"found"`                 // when that was found
	Acknowledged time.Time `json:"acknowledged,omitzero"` // when a person took it for the newest; zero: nobody did
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

// ResetAnchor takes the counter as standing at n, where the box got its counter, with the audit record that
// says so.
func (s *Store) ResetAnchor(n uint64, rec audit.Record) error {
	return s.resetAnchor(AnchorState{Confirmed: n, Intended: n}, rec, nil)
}

// AcknowledgeAnchor takes the counter as standing at n, wherever it was known before, because a person takes
// this state for the newest there is: rec says who. The numbers of revocation lists jump above all that the
// newer state can have signed, for every issuer, also one that this state does not know: a list of a lower
// number would be passed over by those who have a newer one (RFC 5280 §5.2.3).
func (s *Store) AcknowledgeAnchor(n uint64, rec audit.Record) error {
	next := AnchorState{Confirmed: n, Intended: n, Lists: listsAbove(n)}
	return s.resetAnchor(next, rec, func(c *change) error {
		o, err := readOlder(c.get)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		o.Acknowledged = rec.Time
		return c.setJSON(keyOlder, o)
	})
}

func (s *Store) resetAnchor(next AnchorState, rec audit.Record, also func(*change) error) error {
	err := s.do(true, func(c *change) error {
		if err := next.check(); err != nil {
			return err
		}
		if was, err := readAnchor(c.get); err == nil {
			next.Lists = max(next.Lists, was.Lists)
		} else if !errors.Is(err, ErrNotFound) {
			return err
		}
		c.record(rec)
		if also != nil {
			if err := also(c); err != nil {
				return err
			}
		}
		return c.setJSON(keyAnchor, next) // LogSize 0: no move covers any of it yet
	})
	if err != nil {
		return fmt.Errorf("recording where the state-rollback counter stands: %w", err)
	}
	return nil
}

// FoundOlder records that this state was found to be an older one, unless that is recorded and nobody has
// acknowledged it, and returns what is recorded. It has to be called before this start writes to the log.
func (s *Store) FoundOlder(now time.Time) (o Older, err error) {
	err = s.do(true, func(c *change) (err error) {
		if o, err = readOlder(c.get); err == nil && o.Acknowledged.IsZero() || err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		o = Older{Records: c.head.next, Until: c.head.last, Found: now.Round(0).UTC()}
		return c.setJSON(keyOlder, o)
	})
	if err != nil {
		return Older{}, fmt.Errorf("recording that the state is an older one: %w", err)
	}
	return o, nil
}

// Older returns what FoundOlder recorded last; ErrNotFound where it never did.
func (s *Store) Older() (o Older, err error) {
	err = s.read(func(db *pebble.DB) (err error) {
		o, err = readOlder(func(k []byte) ([]byte, error) { return s.get(db, k) })
		return err
	})
	if err != nil {
		return Older{}, fmt.Errorf("reading whether the state is an older one: %w", err)
	}
	return o, nil
}

func readOlder(get func([]byte) ([]byte, error)) (o Older, err error) {
	b, err := get(keyOlder)
	if err == nil {
		err = decode(b, &o)
	}
	return o, err
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
