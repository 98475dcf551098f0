package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"signet.internal/appliance/audit"
)

// Checkpoint is a tree head of the audit log that the box signed.
type Checkpoint struct {
	Note []byte    `json:"note"` // signed note, see package audit
	At   time.Time `json:"at"`   // when it was signed
}

// checkpointEvery is how far apart the checkpoints are that stay; of those between only the newest is
// kept. A year of them is 3 MiB.
const checkpointEvery = time.Hour

func checkpointKey(size uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{prefixCheckpoint}, size)
}

// SaveCheckpoint keeps a checkpoint that fits the log: ErrConflict where its root is not that of the
// log at its size. Its signature is the signer's business. It writes no audit record, or the log would
// grow by being signed.
func (s *Store) SaveCheckpoint(c Checkpoint) error {
	head, err := audit.PeekCheckpoint(c.Note)
	if err != nil {
		return fmt.Errorf("saving checkpoint: %w", err)
	}
	c.At = c.At.UTC()
	err = s.do(true, func(ch *change) error { // a few hundred bytes, and what proves the rest
		root, err := s.rootAt(ch.state, head.Size)
		if err != nil {
			return err
		}
		if root != head.Root {
			return fmt.Errorf("%w: the audit log has another root over %d records", ErrConflict, head.Size)
		}
		newest, size, err := s.newestCheckpoint(ch.state)
		if err == nil && size != head.Size && newest.At.Truncate(checkpointEvery).Equal(c.At.Truncate(checkpointEvery)) {
			ch.delete(checkpointKey(size))
		}
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		return ch.setJSON(checkpointKey(head.Size), c)
	})
	if err != nil {
		return fmt.Errorf("saving checkpoint: %w", err)
	}
	return nil
}

// LastCheckpoint returns the checkpoint over most records, or ErrNotFound.
func (s *Store) LastCheckpoint() (c Checkpoint, err error) {
	err = s.read(func(db *pebble.DB) (err error) {
		c, _, err = s.newestCheckpoint(db)
		return err
	})
	if err != nil {
		return Checkpoint{}, fmt.Errorf("reading checkpoint: %w", err)
	}
	return c, nil
}

// Checkpoints returns up to limit checkpoints over more than size records, in their order, with the
// size of the last to go on from.
func (s *Store) Checkpoints(size uint64, limit int) (all []Checkpoint, last uint64, err error) {
	errFull := errors.New("page is full")
	err = s.read(func(db *pebble.DB) error {
		return scanRange(db, checkpointKey(size+1), []byte{prefixCheckpoint + 1}, func(k, v []byte) error {
			if len(all) == limit {
				return errFull
			}
			c, n, err := decodeCheckpoint(k, v)
			all, last = append(all, c), n
			return err
		})
	})
	if err != nil && !errors.Is(err, errFull) {
		return nil, 0, fmt.Errorf("reading checkpoints: %w", err)
	}
	return all, last, nil
}

func (s *Store) newestCheckpoint(from pebble.Reader) (c Checkpoint, size uint64, err error) {
	it, err := from.NewIter(&pebble.IterOptions{LowerBound: []byte{prefixCheckpoint}, UpperBound: []byte{prefixCheckpoint + 1}})
	if err != nil {
		return Checkpoint{}, 0, fmt.Errorf("reading store: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if !it.Last() {
		return Checkpoint{}, 0, errors.Join(ErrNotFound, it.Error())
	}
	return decodeCheckpoint(it.Key(), it.Value())
}

func decodeCheckpoint(k, v []byte) (c Checkpoint, size uint64, err error) {
	if len(k) != 9 {
		return Checkpoint{}, 0, fmt.Errorf("%w: checkpoint key of %d bytes", ErrDamaged, len(k))
	}
	return c, binary.BigEndian.Uint64(k[1:]), decode(v, &c)
}

// checkCheckpoint holds the newest checkpoint against the log of next records.
func (s *Store) checkCheckpoint(next uint64) error {
	c, size, err := s.newestCheckpoint(s.db)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	head, err := audit.PeekCheckpoint(c.Note)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %v", ErrDamaged, err)
	case head.Size != size:
		return fmt.Errorf("%w: checkpoint over %d records says it is over %d", ErrDamaged, size, head.Size)
	case size > next:
		return fmt.Errorf("%w: the audit log has %d records, the box signed it with %d", ErrDamaged, next, size)
	}
	root, err := s.rootAt(s.db, size)
	if err != nil {
		return err
	}
	if root != head.Root {
		return fmt.Errorf("%w: one of the first %d audit records is not what it was when the box signed them", ErrDamaged, size)
	}
	return nil
}
