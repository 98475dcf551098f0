package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
)

// Errors of a log that is held against what the box signed before.
var (
	// ErrForked: the records that the box signed before are not the first of this log.
	ErrForked = errors.New("this log is not the continuation of the older one: two logs were written under one key")
	// ErrShrunk: the box signed more records before than this log has.
	ErrShrunk = errors.New("this log has fewer records than the older one")
)

// Continues proves by RFC 6962 §2.1.2 hashes that the log under c begins with the records under an older
// checkpoint: ErrForked, ErrShrunk, ErrRolledBack, or nil. Both were opened with the key of the log.
func (c Checkpoint) Continues(older Checkpoint, hashes [][]byte) error {
	if err := c.follows(older); err != nil {
		return err
	}
	if older.Size == 0 {
		if older.Root != [32]byte(rfc6962.DefaultHasher.EmptyRoot()) || len(hashes) > 0 {
			return forkedAt(older.Size)
		}
		return nil
	}
	if err := proof.VerifyConsistency(rfc6962.DefaultHasher, older.Size, c.Size, hashes, older.Root[:], c.Root[:]); err != nil {
		return forkedAt(older.Size)
	}
	return nil
}

// follows refuses an older checkpoint over more records, or with a counter that has fallen since.
func (c Checkpoint) follows(older Checkpoint) error {
	switch {
	case older.Size > c.Size:
		return fmt.Errorf("%w: %d, and the box had signed %d", ErrShrunk, c.Size, older.Size)
	case c.Anchor < older.Anchor: // a box that has the counter names it always
		return fmt.Errorf("%w: its counter stood at %d before, and at %d now", ErrRolledBack, older.Anchor, c.Anchor)
	}
	return nil
}

func forkedAt(size uint64) error {
	return fmt.Errorf("%w: the first %d records have another root than the one it signed then", ErrForked, size)
}

// VerifySince is [Verify], and holds the log against an older checkpoint, opened with the same key, too. The leaf
// hashes of the export show its root; a record that retention removed is no gap in them.
func VerifySince(export io.ReadSeeker, key note.Verifier, older Checkpoint) (Report, error) {
	return verify(export, key, &older)
}

// judgeSince says whether the export continues the older checkpoint.
func (v *verification) judgeSince() error {
	if v.since == nil {
		return nil
	}
	if err := v.signed.follows(v.since.Checkpoint); err != nil {
		return err
	}
	if !v.since.fits {
		return forkedAt(v.since.Size)
	}
	return nil
}

// OpenOlder returns the checkpoint in what somebody kept of a log, verified with its key: a signed checkpoint,
// the proof of a record, or an export, of which the last checkpoint counts. Errors are those of
// OpenCheckpoint, [Proof.Verify] and Verify.
func OpenOlder(kept io.ReadSeeker, key note.Verifier) (Checkpoint, error) {
	begin := make([]byte, 1)
	if _, err := io.ReadFull(kept, begin); err != nil && !errors.Is(err, io.EOF) {
		return Checkpoint{}, fmt.Errorf("reading older log: %w", err)
	}
	if _, err := kept.Seek(0, io.SeekStart); err != nil {
		return Checkpoint{}, fmt.Errorf("reading older log: %w", err)
	}
	if !bytes.Equal(begin, []byte("{")) {
		text, err := io.ReadAll(io.LimitReader(kept, 2*MaxNote))
		if err != nil {
			return Checkpoint{}, fmt.Errorf("reading older checkpoint: %w", err)
		}
		return OpenPasted(string(text), key)
	}
	p, err := ReadProof(kept)
	switch {
	case err == nil:
		if _, err := p.Verify(key); err != nil {
			return Checkpoint{}, err
		}
		return PeekCheckpoint([]byte(p.Checkpoint)) // its signature was verified with the rest
	case !errors.Is(err, ErrNoProof):
		return Checkpoint{}, err
	}
	report, err := Verify(kept, key)
	return Checkpoint{Origin: report.Origin, Size: report.Records, Root: report.Root, Anchor: report.Anchor}, err
}

// OpenPasted is OpenCheckpoint for text that went through a clipboard or a form: line ends and what is
// blank around it are not the signed ones any more.
func OpenPasted(text string, key note.Verifier) (Checkpoint, error) {
	text = strings.TrimSpace(strings.ReplaceAll(text, "\r\n", "\n")) + "\n"
	return OpenCheckpoint([]byte(text), key)
}
