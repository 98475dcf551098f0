package audit

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
)

// An export is text, one JSON object a line (NDJSON): first the leaves, exactly as they are stored and
// in their order; then an "earlier_checkpoint" for each one the box still has; then "leaf_hashes",
// HashesPerLine in a line; and last the "checkpoint" over all of the leaves.
//
// Where retention removed the log's first records, "removed_before" says on a line before the leaves
// which of them is the first. The leaf hashes and checkpoints are those of the whole log all the same, and one
// of the leaves tells of the removal: records that nobody is told of were not removed by the box.
//
// The leaf hashes are there to name a record. Nothing is believed because of them: with the root that
// the checkpoint signs they are the box's own, and without it they are nobody's.

// HashesPerLine is how many leaf hashes a line of an export has, but for the last. A power of two.
const HashesPerLine = 256

// maxLine bounds a line of an export: a leaf, or a note of MaxNote bytes in JSON.
const maxLine = 4 * MaxNote

// removedStart is what the line begins with that is before the leaves.
const removedStart = `{"removed_before":`

// RemovedLine is the first line of an export whose first leaf is not that of record 0.
func RemovedLine(first uint64) []byte { return fmt.Appendf(nil, "%s%d}\n", removedStart, first) }

// trailer is a line after the leaves.
type trailer struct {
	Earlier    string `json:"earlier_checkpoint,omitempty"`
	Hashes     []byte `json:"leaf_hashes,omitempty"`
	Checkpoint string `json:"checkpoint,omitempty"`
}

// trailers are what a line that is no leaf begins with.
var trailers = [...]string{`{"earlier_checkpoint":`, `{"leaf_hashes":`, `{"checkpoint":`}

func isTrailer(line []byte) bool {
	for _, t := range trailers {
		if bytes.HasPrefix(line, []byte(t)) {
			return true
		}
	}
	return false
}

// EarlierLine is the line of an export for a checkpoint over fewer records.
func EarlierLine(signed []byte) []byte { return trailerLine(trailer{Earlier: string(signed)}) }

// HashesLine is the line of an export for the next leaf hashes, HashesPerLine of them unless it is the
// last.
func HashesLine(hashes [][32]byte) []byte {
	b := make([]byte, 0, 32*len(hashes))
	for _, h := range hashes {
		b = append(b, h[:]...)
	}
	return trailerLine(trailer{Hashes: b})
}

// CheckpointLine is the last line of an export.
func CheckpointLine(signed []byte) []byte { return trailerLine(trailer{Checkpoint: string(signed)}) }

func trailerLine(t trailer) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(t); err != nil {
		panic("audit: encoding strings: " + err.Error()) // cannot happen for these types
	}
	return b.Bytes()
}

// BadRecord says that an export is not what the box wrote, and which record is the first that is not.
type BadRecord struct {
	Index uint64
	Last  uint64 // the first bad record is one from Index to Last; the same unless the leaf hashes are forged too
	What  string
}

func (e *BadRecord) Error() string {
	if e.Last > e.Index {
		return fmt.Sprintf("one of the records %d to %d is the first bad one: %s", e.Index, e.Last, e.What)
	}
	return fmt.Sprintf("record %d is the first bad one: %s", e.Index, e.What)
}

// Errors of exports that name no record.
var (
	// ErrTruncated: the export has no checkpoint at its end.
	ErrTruncated = errors.New("the export is cut off: it does not end with a checkpoint")
	// ErrNoExport: the file has nothing of an export.
	ErrNoExport = errors.New("its first line is no record, so this is no export of an audit log")
	// ErrExport: the export is not in its format, or says something about itself that is not so.
	ErrExport = errors.New("the export was changed")
)

// Report is what a verified export proves.
type Report struct {
	Origin      string    `json:"origin"`
	Records     uint64    `json:"records"` // of the log
	Root        [32]byte  `json:"-"`
	RootText    string    `json:"root"`                // Root in base64, as the checkpoint has it
	Checkpoints int       `json:"earlier_checkpoints"` // signed before, and continued by this one
	Anchor      uint64    `json:"anchor,omitempty"`    // where the state-rollback counter stood; it never fell. 0: not said
	Removed     *Removal  `json:"removed,omitempty"`   // nil: the log is whole
	Continues   *uint64   `json:"continues,omitempty"` // records of the older checkpoint it was held against; nil: none was
	First       time.Time `json:"first"`               // time of the first record that is there; zero without records
	Last        time.Time `json:"last"`                // time of the last
}

// Removal is what a verified export says of the records that the box's retention removed.
type Removal struct {
	Before uint64    `json:"before"` // all records below
	Record uint64    `json:"record"` // the one that tells of it
	At     time.Time `json:"at"`     // when they were removed
	Reason string    `json:"reason"` // as recorded: until when they were, and by which rule
}

// Gone is how many of the records are not in the export.
func (r Report) Gone() uint64 {
	if r.Removed == nil {
		return 0
	}
	return r.Removed.Before
}

// Verify reads an export and holds it against the key: a *[BadRecord], ErrTruncated, ErrExport or
// ErrSignature, or nil with what is proven. Memory grows by 40 bytes for HashesPerLine records.
func Verify(export io.ReadSeeker, key note.Verifier) (Report, error) {
	return verify(export, key, nil)
}

// verify is Verify, with an older checkpoint that the log has to continue; nil: none.
func verify(export io.ReadSeeker, key note.Verifier, older *Checkpoint) (Report, error) {
	if _, err := export.Seek(0, io.SeekStart); err != nil {
		return Report{}, fmt.Errorf("reading export: %w", err)
	}
	v := &verification{key: key, factory: &compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}}
	if older != nil {
		v.since = &earlier{*older, older.Root == [32]byte(rfc6962.DefaultHasher.EmptyRoot())} // before any leaf hash is read
	}
	r := bufio.NewReaderSize(export, maxLine)
	isForeign, err := beginsForeign(r)
	if err != nil {
		return Report{}, err
	}
	if err := v.readRemoved(r); err != nil {
		return Report{}, err
	}
	v.hashes, v.gone, v.leaves = v.factory.NewEmptyRange(0), v.factory.NewEmptyRange(0), v.factory.NewEmptyRange(v.first)
	line, err := v.readLeaves(r)
	if err == nil {
		err = v.readTrailer(r, line)
	}
	if isForeign && (errors.Is(err, ErrTruncated) || errors.Is(err, ErrExport)) {
		return Report{}, ErrNoExport // what is cut off or changed besides is of no interest
	}
	if err != nil {
		return Report{}, err
	}
	if err := v.judge(export); err != nil {
		return Report{}, err
	}
	report := Report{Origin: v.signed.Origin, Records: v.signed.Size, Root: v.signed.Root,
		RootText: base64.StdEncoding.EncodeToString(v.signed.Root[:]), Checkpoints: len(v.earlier), Anchor: v.signed.Anchor}
	if v.signed.Size > 0 {
		first, err := Parse(v.oldest)
		if err != nil {
			return Report{}, &BadRecord{v.first, v.first, err.Error()}
		}
		last, err := Parse(v.newest)
		if err != nil {
			return Report{}, &BadRecord{v.signed.Size - 1, v.signed.Size - 1, err.Error()}
		}
		report.First, report.Last = first.Time, last.Time
	}
	if older != nil {
		report.Continues = &older.Size
	}
	if v.first > 0 {
		report.Removed = &Removal{v.first, v.told.Index, v.told.Time, v.told.Reason}
	}
	return report, nil
}

// beginsForeign says that an export begins with what no export begins with.
func beginsForeign(r *bufio.Reader) (bool, error) {
	begin, err := r.Peek(maxPrefix)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("reading export: %w", err)
	}
	return !slices.ContainsFunc(append(trailers[:], removedStart, `{"index":`), func(s string) bool {
		n := min(len(s), len(begin))
		return string(begin[:n]) == s[:n]
	}), nil
}

// maxPrefix is the length of the longest beginning of a line.
const maxPrefix = len(`{"earlier_checkpoint":`)

// verification is what is known of an export while it is read.
type verification struct {
	key     note.Verifier
	factory *compact.RangeFactory

	first uint64 // index of the first leaf
	told  Record // of the leaves the last that tells of a removal; zero: none

	leaves *compact.Range // tree over the lines as they are
	chunks []chunk        // of HashesPerLine leaves, the first and the last maybe shorter
	offset int64          // where the next line begins
	odd    *BadRecord     // first line that is no record of its place by itself

	gone     *compact.Range // tree over the leaf hashes of the records before the first leaf
	hashes   *compact.Range // tree over the leaf hashes as the export has them
	mismatch int            // first of chunks whose hashes are others; -1: none yet
	claimed  []byte         // leaf hashes of that chunk

	earlier        []earlier // by size
	since          *earlier  // from elsewhere; nil: none
	signed         Checkpoint
	prefix         []byte // of the record looked at
	oldest, newest []byte // first and last leaf
}

// earlier is a checkpoint over fewer records.
type earlier struct {
	Checkpoint
	fits bool // the leaf hashes have its root
}

// chunk is a row of leaves.
type chunk struct {
	offset int64 // of its first line
	root   [32]byte
}

// readLine returns a line without its end, io.EOF at the end, and ErrExport for one that is too long
// or has no end.
func (v *verification) readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	v.offset += int64(len(line))
	switch {
	case errors.Is(err, io.EOF) && len(line) > 0:
		return nil, ErrTruncated
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, fmt.Errorf("%w: a line at byte %d is longer than %d bytes", ErrExport, v.offset-int64(len(line)), maxLine)
	case errors.Is(err, io.EOF):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("reading export: %w", err)
	}
	return line[:len(line)-1], nil
}

// readRemoved takes the line in that says that the first records are gone, if there is one.
func (v *verification) readRemoved(r *bufio.Reader) error {
	if begin, _ := r.Peek(len(removedStart)); string(begin) != removedStart {
		return nil
	}
	line, err := v.readLine(r)
	if err != nil {
		return err
	}
	text := string(line[len(removedStart):])
	v.first, err = strconv.ParseUint(strings.TrimSuffix(text, "}"), 10, 63)
	if err != nil || v.first == 0 || string(RemovedLine(v.first)) != string(line)+"\n" {
		return fmt.Errorf("%w: its first line is not in its format", ErrExport)
	}
	return nil
}

// begin is the index of the first leaf of a chunk, counted in rows of the whole log's leaf hashes.
func (v *verification) begin(row uint64) uint64 { return max(row*HashesPerLine, v.first) }

// chunk is that of a row, nil where the export has no such leaves.
func (v *verification) chunk(row uint64) *chunk {
	if n := row - v.first/HashesPerLine; row >= v.first/HashesPerLine && n < uint64(len(v.chunks)) {
		return &v.chunks[n]
	}
	return nil
}

// readLeaves takes lines in up to the first that is no leaf, which it returns.
func (v *verification) readLeaves(r *bufio.Reader) ([]byte, error) {
	v.mismatch = -1
	row := v.factory.NewEmptyRange(v.first)
	begin := v.offset
	for {
		at := v.offset
		line, err := v.readLine(r)
		if errors.Is(err, io.EOF) || errors.Is(err, ErrTruncated) {
			err = fmt.Errorf("%w: it has %d whole records and nothing after them", ErrTruncated, row.End()-v.first)
		}
		if err != nil {
			return nil, err
		}
		end := isTrailer(line)
		if row.End() > row.Begin() && (end || row.End()%HashesPerLine == 0) {
			root, err := rangeRoot(row.Hashes())
			if err != nil {
				return nil, err
			}
			v.chunks = append(v.chunks, chunk{begin, root})
			if err := v.leaves.AppendRange(row, nil); err != nil {
				return nil, err
			}
			row, begin = v.factory.NewEmptyRange(row.End()), at
		}
		if end {
			return line, nil
		}
		h := LeafHash(line)
		v.look(line, row.End())
		if err := row.Append(h[:], nil); err != nil {
			return nil, err
		}
	}
}

// look remembers the first line that says by itself that it is not the record of its place. Whether it
// is otherwise as it was written is for its hash to say, at a tenth of the work.
func (v *verification) look(line []byte, index uint64) {
	v.prefix = append(strconv.AppendUint(append(v.prefix[:0], `{"index":`...), index, 10), ',')
	if v.odd == nil && !bytes.HasPrefix(line, v.prefix) {
		rec, err := Parse(line)
		switch {
		case err != nil:
			v.odd = &BadRecord{index, index, err.Error()}
		case rec.Index > index:
			v.odd = &BadRecord{index, index, fmt.Sprintf("it is missing, record %d is in its place", rec.Index)}
		default:
			v.odd = &BadRecord{index, index, fmt.Sprintf("record %d is in its place", rec.Index)}
		}
	}
	v.newest = append(v.newest[:0], line...)
	if index == v.first {
		v.oldest = bytes.Clone(line)
	}
	// In a string of a record every quote has a backslash before it: this is the key itself.
	if v.first > 0 && bytes.Contains(line, []byte(`,"action":"`+RecordsRemoved+`",`)) {
		if rec, err := Parse(line); err == nil {
			if _, ok := rec.Removed(); ok {
				v.told = rec
			}
		}
	}
}

// rangeRoot folds the hashes of a compact range into one, from the right.
func rangeRoot(hashes [][]byte) ([32]byte, error) {
	if len(hashes) == 0 {
		return [32]byte(rfc6962.DefaultHasher.EmptyRoot()), nil
	}
	h := hashes[len(hashes)-1]
	for i := len(hashes) - 2; i >= 0; i-- {
		h = rfc6962.DefaultHasher.HashChildren(hashes[i], h)
	}
	return [32]byte(h), nil
}

// readTrailer takes in what follows the leaves, beginning with a line that was read already.
func (v *verification) readTrailer(r *bufio.Reader, line []byte) error {
	next := 0 // of earlier, to be compared when hashes gets there
	for {
		var t trailer
		dec := json.NewDecoder(bytes.NewReader(line))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&t); err != nil || !bytes.Equal(bytes.TrimSuffix(trailerLine(t), []byte("\n")), line) {
			return fmt.Errorf("%w: a line after the records is not in its format", ErrExport)
		}
		switch {
		case t.Earlier != "" && v.hashes.End() == 0:
			c, err := OpenCheckpoint([]byte(t.Earlier), v.key)
			if err != nil {
				return fmt.Errorf("earlier checkpoint: %w", err)
			}
			if n := len(v.earlier); c.Size == 0 || n > 0 && c.Size <= v.earlier[n-1].Size {
				return fmt.Errorf("%w: earlier checkpoints are out of order at size %d", ErrExport, c.Size)
			}
			v.earlier = append(v.earlier, earlier{Checkpoint: c})
		case len(t.Hashes) > 0:
			var err error
			if next, err = v.takeHashes(t.Hashes, next); err != nil {
				return err
			}
		case t.Checkpoint != "":
			var err error
			if v.signed, err = OpenCheckpoint([]byte(t.Checkpoint), v.key); err != nil {
				return err
			}
			if _, err := v.readLine(r); !errors.Is(err, io.EOF) {
				return fmt.Errorf("%w: more follows the checkpoint", ErrExport)
			}
			if n := len(v.earlier); n > 0 && v.earlier[n-1].Size > v.signed.Size {
				return fmt.Errorf("%w: it ends with a checkpoint over %d records, but has one over %d", ErrExport, v.signed.Size, v.earlier[n-1].Size)
			}
			return nil
		default:
			return fmt.Errorf("%w: a line after the records is out of place", ErrExport)
		}
		var err error
		if line, err = v.readLine(r); errors.Is(err, io.EOF) {
			return ErrTruncated
		} else if err != nil {
			return err
		}
	}
}

// takeHashes appends a line of leaf hashes, and holds it against its chunk of leaves. An earlier
// checkpoint whose root does not come out ends the range in which all is well.
func (v *verification) takeHashes(hashes []byte, next int) (int, error) {
	begin := v.hashes.End()
	if len(hashes)%32 != 0 || len(hashes) > 32*HashesPerLine || begin%HashesPerLine != 0 {
		return 0, fmt.Errorf("%w: leaf hashes from record %d on are not in their format", ErrExport, begin)
	}
	n := begin / HashesPerLine
	there := v.factory.NewEmptyRange(v.begin(n)) // of the row, those whose leaves are not gone
	for h := range slices.Chunk(bytes.Clone(hashes), 32) {
		to := there
		if v.hashes.End() < v.first {
			to = v.gone
		}
		if err := errors.Join(to.Append(h, nil), v.hashes.Append(h, nil)); err != nil {
			return 0, err
		}
		if next < len(v.earlier) && v.hashes.End() == v.earlier[next].Size {
			root, err := rangeRoot(v.hashes.Hashes())
			if err != nil {
				return 0, err
			}
			v.earlier[next].fits = root == v.earlier[next].Root
			next++
		}
		if v.since != nil && v.hashes.End() == v.since.Size {
			root, err := rangeRoot(v.hashes.Hashes())
			if err != nil {
				return 0, err
			}
			v.since.fits = root == v.since.Root
		}
	}
	if there.End() == there.Begin() {
		return next, nil
	}
	root, err := rangeRoot(there.Hashes())
	if err != nil {
		return 0, err
	}
	if c := v.chunk(n); v.mismatch < 0 && (c == nil || c.root != root) {
		v.mismatch, v.claimed = int(n), bytes.Clone(hashes[32*(v.begin(n)-begin):])
	}
	return next, nil
}
