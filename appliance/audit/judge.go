package audit

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"slices"
)

// judge says what the checkpoint makes of all that was read.
func (v *verification) judge(export io.ReadSeeker) error {
	whole := v.leaves
	if v.first > 0 && v.gone.End() == v.first {
		whole = v.gone
		if err := whole.AppendRange(v.leaves, nil); err != nil {
			return err
		}
	}
	root, err := rangeRoot(whole.Hashes())
	if err != nil {
		return err
	}
	claimed, err := rangeRoot(v.hashes.Hashes())
	if err != nil {
		return err
	}
	isWhole := v.leaves.End() == v.signed.Size && root == v.signed.Root
	isNamed := v.hashes.End() == v.signed.Size && claimed == v.signed.Root
	switch {
	case isWhole && v.odd != nil:
		return v.odd
	case isWhole && !v.isTold():
		return v.untold()
	case isWhole && !isNamed:
		return fmt.Errorf("%w: its records are those the box signed, the leaf hashes after them are not theirs", ErrExport)
	case isWhole:
		return v.judgeEarlier()
	case isNamed:
		return v.name(export)
	}
	return v.narrow()
}

// isTold says that the log itself tells of the removal of the records that are gone.
func (v *verification) isTold() bool {
	before, _ := v.told.Removed()
	return before == v.first
}

// untold names what is gone though the log does not say so.
func (v *verification) untold() error {
	before, _ := v.told.Removed()
	if before > v.first {
		return fmt.Errorf("%w: it begins with record %d, the log says that those before %d were removed", ErrExport, v.first, before)
	}
	return &BadRecord{before, v.first - 1, fmt.Sprintf("the records up to %d are missing, and no record tells of their removal", v.first-1)}
}

// judgeEarlier refuses records that the box signed, but not as the continuation of all it had signed.
func (v *verification) judgeEarlier() error {
	from := uint64(0)
	for _, c := range v.earlier {
		if !c.fits {
			return &BadRecord{from, c.Size - 1, fmt.Sprintf("the box signed other records when it had %d; two logs were written", c.Size)}
		}
		from = c.Size
	}
	if err := v.judgeAnchors(); err != nil {
		return err
	}
	return v.judgeSince()
}

// name finds the first record that is not the one of its leaf hash.
func (v *verification) name(export io.ReadSeeker) error {
	n := v.leaves.End()
	missing := &BadRecord{n, n, fmt.Sprintf("it is missing, the export ends before it, the checkpoint covers %d records", v.signed.Size)}
	surplus := &BadRecord{v.signed.Size, v.signed.Size, fmt.Sprintf("the checkpoint covers %d records, the export goes on to %d", v.signed.Size, n)}
	if v.mismatch < 0 {
		return v.orOdd(surplus)
	}
	c := v.chunk(uint64(v.mismatch))
	if c == nil {
		return v.orOdd(missing)
	}
	if _, err := export.Seek(c.offset, io.SeekStart); err != nil {
		return fmt.Errorf("reading export: %w", err)
	}
	r := bufio.NewReaderSize(export, maxLine)
	at := v.begin(uint64(v.mismatch))
	for want := range slices.Chunk(v.claimed, 32) {
		line, err := v.readLine(r)
		if err != nil {
			return fmt.Errorf("reading export again: %w", err)
		}
		if isTrailer(line) {
			return v.orOdd(missing)
		}
		if h := LeafHash(line); !bytes.Equal(h[:], want) {
			what := fmt.Sprintf("its bytes are not those the box signed: leaf hash %x, not %x", h, want)
			if _, err := Parse(line); err != nil {
				what = err.Error()
			}
			return v.orOdd(&BadRecord{at, at, what})
		}
		at++
	}
	return v.orOdd(surplus)
}

// orOdd prefers what a record says by itself: it is plainer.
func (v *verification) orOdd(bad *BadRecord) error {
	if v.odd != nil && v.odd.Index <= bad.Index {
		return v.odd
	}
	return bad
}

// narrow says between which records the first bad one is, where the leaf hashes are not the box's
// either: after the last earlier checkpoint that still fits.
func (v *verification) narrow() error {
	same := min(v.leaves.End(), v.hashes.End()) // up to here the leaves are those of the hashes
	if v.mismatch >= 0 {
		same = min(same, v.begin(uint64(v.mismatch)))
	}
	bad := &BadRecord{0, max(v.signed.Size, 1) - 1, "the records do not have the root that the box signed"}
	if n := v.leaves.End(); n != v.signed.Size {
		bad.Last = min(bad.Last, n)
		bad.What = fmt.Sprintf("the export ends before record %d, the checkpoint covers %d", n, v.signed.Size)
	}
	for _, c := range v.earlier {
		switch {
		case c.Size > same:
		case c.fits:
			bad.Index = c.Size
		default:
			bad.Last = min(bad.Last, c.Size-1)
		}
	}
	if v.odd != nil && v.odd.Index <= bad.Last {
		bad.Last = v.odd.Index
	}
	bad.Index = min(bad.Index, bad.Last)
	if v.odd != nil && bad.Index == v.odd.Index {
		return v.odd
	}
	return bad
}
