package store

import (
	"crypto"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"

	"signet.internal/appliance/audit"
)

// The audit key signs so often: at most once in signGap whoever asks, and once in signDue where
// nobody does. A hardware TPM makes two to five signatures a second, which devices wait for.
const (
	signGap = time.Second
	signDue = time.Hour
)

// LogSigner makes the checkpoints of a store's audit log. Its methods may be called concurrently.
type LogSigner struct {
	store  *Store
	signer note.Signer
	key    string
	now    func() time.Time

	mu   sync.Mutex // held while the key signs, so that one signature answers all who wait
	last Checkpoint // zero: none yet
	size uint64     // of last
}

// NewLogSigner signs the log of a site with an ECDSA P-256 key, from its last checkpoint on.
func NewLogSigner(s *Store, site string, key crypto.Signer, now func() time.Time) (*LogSigner, error) {
	origin, err := audit.Origin(site, key.Public())
	if err != nil {
		return nil, err
	}
	l := &LogSigner{store: s, now: now}
	if l.signer, err = audit.NewSigner(origin, key); err != nil {
		return nil, fmt.Errorf("signing audit log: %w", err)
	}
	if l.key, err = audit.VerifierKey(origin, key.Public()); err != nil {
		return nil, fmt.Errorf("signing audit log: %w", err)
	}
	switch last, err := s.LastCheckpoint(); {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return nil, err
	default:
		head, err := audit.PeekCheckpoint(last.Note)
		if err != nil {
			return nil, fmt.Errorf("%w: %v", ErrDamaged, err)
		}
		// One that another key signed is nothing to go on from: who has this key could not verify it.
		if head.Origin == origin {
			l.last, l.size = last, head.Size
		}
	}
	return l, nil
}

// Key is the text of the key that verifies the checkpoints, see audit.VerifierKey.
func (l *LogSigner) Key() string { return l.key }

// Checkpoint returns a checkpoint over all records, or the newest one if that was signed less than a second
// ago.
func (l *LogSigner) Checkpoint() ([]byte, error) {
	c, err := l.sign(signGap)
	return c.Note, err
}

// Upkeep signs a log that grew for an hour.
func (l *LogSigner) Upkeep() error {
	_, err := l.sign(signDue)
	return err
}

// sign makes a checkpoint if the log grew and the last one is old enough. A clock that was set back
// does not keep it from signing.
func (l *LogSigner) sign(age time.Duration) (Checkpoint, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if since := now.Sub(l.last.At); l.last.Note != nil && since >= 0 && since < age {
		return l.last, nil
	}
	// Before the log's head: the counter stood there, or higher, when the log had that size.
	anchor, err := l.store.Anchor()
	if err != nil && !errors.Is(err, ErrNotFound) {
		return Checkpoint{}, err
	}
	size, root, err := l.store.LogHead()
	if err != nil || l.last.Note != nil && size == l.size {
		return l.last, err
	}
	signed, err := audit.SignCheckpoint(audit.Checkpoint{Origin: l.signer.Name(), Size: size, Root: root, Anchor: anchor.Confirmed}, l.signer)
	if err != nil {
		return Checkpoint{}, err
	}
	c := Checkpoint{Note: signed, At: now}
	if err := l.store.SaveCheckpoint(c); err != nil {
		return Checkpoint{}, err
	}
	l.last, l.size = c, size
	return c, nil
}
