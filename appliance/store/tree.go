package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"signet.internal/appliance/audit"
)

// The audit log is the RFC 6962 tree over its records. Every subtree that is complete is stored as
// soon as it is, in the batch of the record that completes it: a proof or the root of any size then
// takes a number of reads that grows with the logarithm of the log. The hashes of single records are
// among them, beside those the records are stored with: who changes a record changes neither, or shows
// which it is.
//
// What is under keyTree was written with the newest record. Open holds it against the stored
// subtrees, the newest records and the newest checkpoint: who changes records behind the box's back
// has to change all of these, and cannot sign the checkpoint.

// ErrOutsideTree: the log has no such record, or was never that long.
var ErrOutsideTree = errors.New("the audit log has no such record")

// treeTail is how many of the newest records Open holds against the tree, at least. A power of two.
const treeTail = 1024

// treeRanges makes compact ranges of the log's tree.
func treeRanges() *compact.RangeFactory {
	return &compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
}

func treeKey(id compact.NodeID) []byte {
	return binary.BigEndian.AppendUint64([]byte{prefixTree, byte(id.Level)}, id.Index)
}

// treeHead is the value of keyTree.
func treeHead(size uint64, root [32]byte) []byte {
	return append(binary.BigEndian.AppendUint64(nil, size), root[:]...)
}

// growTree appends the leaf hash of record c.head.next.
func (c *change) growTree(leaf [32]byte) error {
	r, err := treeRanges().NewRange(0, c.head.next, bytesOf(c.head.tree))
	if err != nil {
		return err
	}
	if err := r.Append(leaf[:], func(id compact.NodeID, hash []byte) {
		c.set(treeKey(id), hash)
	}); err != nil {
		return err
	}
	c.head.tree = r.Hashes()
	return nil
}

// bytesOf copies the list, so that a head which is given up leaves the one before it as it was.
func bytesOf(hashes [][]byte) [][]byte { return append(make([][]byte, 0, len(hashes)+1), hashes...) }

// root is the root hash of the tree over everything up to the head.
func (h head) root() ([32]byte, error) { return rootOf(h.next, h.tree) }

func rootOf(size uint64, hashes [][]byte) ([32]byte, error) {
	if size == 0 {
		return [32]byte(rfc6962.DefaultHasher.EmptyRoot()), nil
	}
	r, err := treeRanges().NewRange(0, size, hashes)
	if err != nil {
		return [32]byte{}, err
	}
	root, err := r.GetRootHash(nil)
	if err != nil {
		return [32]byte{}, err
	}
	return [32]byte(root), nil
}

// node reads the hash of a complete subtree.
func (s *Store) node(from pebble.Reader, id compact.NodeID) ([]byte, error) {
	h, err := s.get(from, treeKey(id))
	switch begin, end := id.Coverage(); {
	case errors.Is(err, ErrNotFound):
		return nil, fmt.Errorf("%w: the audit log's tree lacks the hash over records %d to %d", ErrDamaged, begin, end-1)
	case err == nil && len(h) != 32:
		return nil, fmt.Errorf("%w: the audit log's tree has %d bytes for the hash over records %d to %d", ErrDamaged, len(h), begin, end-1)
	}
	return h, err
}

func (s *Store) nodes(from pebble.Reader, ids []compact.NodeID) ([][]byte, error) {
	hashes := make([][]byte, 0, len(ids)+1)
	for _, id := range ids {
		h, err := s.node(from, id)
		if err != nil {
			return nil, err
		}
		hashes = append(hashes, h)
	}
	return hashes, nil
}

// rootAt is the root hash of the tree over the first size records.
func (s *Store) rootAt(from pebble.Reader, size uint64) ([32]byte, error) {
	hashes, err := s.nodes(from, compact.RangeNodes(0, size, nil))
	if err != nil {
		return [32]byte{}, err
	}
	return rootOf(size, hashes)
}

// readTree returns the tree's frontier over the log's next records, of which those from first on are
// there, after holding it against the stored subtrees, the newest records and the newest checkpoint.
func (s *Store) readTree(next, first uint64) ([][]byte, error) {
	v, err := s.get(s.db, keyTree)
	switch {
	case errors.Is(err, ErrNotFound) && next == 0:
		return nil, s.expectNoTree()
	case errors.Is(err, ErrNotFound):
		return nil, fmt.Errorf("%w: an audit log of %d records without its tree", ErrDamaged, next)
	case err != nil:
		return nil, err
	case len(v) != 40:
		return nil, fmt.Errorf("%w: head of the audit log's tree of %d bytes", ErrDamaged, len(v))
	}
	if size := binary.BigEndian.Uint64(v); size != next {
		return nil, fmt.Errorf("%w: the audit log ends before record %d, its tree before %d", ErrDamaged, next, size)
	}
	var from uint64
	if next > treeTail {
		from = (next - treeTail) &^ (treeTail - 1)
	}
	from = max(from, first)
	left, err := s.nodes(s.db, compact.RangeNodes(0, from, nil))
	if err != nil {
		return nil, err
	}
	tree, err := s.replay(from, next, left)
	if err != nil {
		return nil, err
	}
	root, err := rootOf(next, tree)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(v[8:], root[:]) {
		return nil, fmt.Errorf("%w: the audit log's tree over %d records does not have the root it was written with", ErrDamaged, next)
	}
	return tree, s.checkCheckpoint(next)
}

// expectNoTree refuses what is left of a log whose records are gone.
func (s *Store) expectNoTree() error {
	err := s.last(prefixTree, func(_, _ []byte) error {
		return fmt.Errorf("%w: the audit log's records are gone, its tree is not", ErrDamaged)
	})
	return errors.Join(err, s.checkCheckpoint(0))
}

// replay builds the tree over records from to next anew, on the frontier of those before, and holds
// every subtree that it completes against the stored one.
func (s *Store) replay(from, next uint64, left [][]byte) ([][]byte, error) {
	r, err := treeRanges().NewRange(0, from, left)
	if err != nil {
		return nil, err
	}
	err = scanRange(s.db, auditKey(from), []byte{prefixAudit + 1}, func(k, v []byte) error {
		record, err := decodeAudit(k[1:], v)
		if err != nil {
			return err
		}
		if record.Index != r.End() {
			return fmt.Errorf("%w: audit record %d is missing", ErrDamaged, r.End())
		}
		var wrong error
		err = r.Append(bytes.Clone(v[1:33]), func(id compact.NodeID, hash []byte) {
			if wrong != nil {
				return
			}
			stored, err := s.node(s.db, id)
			if begin, end := id.Coverage(); err == nil && !bytes.Equal(stored, hash) {
				err = fmt.Errorf("%w: audit records %d to %d are not those that were written", ErrDamaged, begin, end-1)
			}
			wrong = err
		})
		return errors.Join(err, wrong)
	})
	if err == nil && r.End() != next {
		err = fmt.Errorf("%w: audit record %d is missing", ErrDamaged, r.End())
	}
	return r.Hashes(), err
}

// buildTree makes the tree of a log that has none, a chunk of records at a time, and its head last:
// where it is interrupted it begins anew, and what is there already comes out the same.
func (s *Store) buildTree() error {
	r := treeRanges().NewEmptyRange(0)
	for {
		c := &change{s: s, state: s.db.NewIndexedBatch()}
		begin := r.End()
		err := scanRange(s.db, auditKey(begin), auditKey(begin+upgradeChunk), func(k, v []byte) error {
			record, err := decodeAudit(k[1:], v)
			if err != nil {
				return err
			}
			if record.Index != r.End() {
				return fmt.Errorf("%w: audit record %d is missing", ErrDamaged, r.End())
			}
			return r.Append(bytes.Clone(v[1:33]), func(id compact.NodeID, hash []byte) {
				c.set(treeKey(id), hash)
			})
		})
		isLast := r.End() < begin+upgradeChunk
		if err == nil && isLast {
			var root [32]byte
			if root, err = rootOf(r.End(), r.Hashes()); err == nil && r.End() > 0 {
				c.set(keyTree, treeHead(r.End(), root))
			}
			c.set(keySchema, []byte{schemaVersion})
		}
		if err == nil {
			err = c.write()
		}
		if err = errors.Join(err, c.state.Close()); err != nil || isLast {
			return err
		}
	}
}

// LogHead is the length of the audit log and the root hash of its tree.
func (s *Store) LogHead() (size uint64, root [32]byte, err error) {
	err = s.read(func(*pebble.DB) (err error) {
		size = s.head.next
		root, err = s.head.root()
		return err
	})
	if err != nil {
		return 0, [32]byte{}, fmt.Errorf("reading head of audit log: %w", err)
	}
	return size, root, nil
}

// InclusionProof proves by RFC 6962 §2.1.1 that the record at index is in the tree over the first size
// records, and returns the record's leaf hash with it. ErrOutsideTree unless index < size <= the log's
// length.
func (s *Store) InclusionProof(index, size uint64) (leaf [32]byte, hashes [][]byte, err error) {
	err = s.read(func(db *pebble.DB) error {
		if size > s.head.next || index >= size {
			return ErrOutsideTree
		}
		h, err := s.node(db, compact.NewNodeID(0, index))
		if err != nil {
			return err
		}
		leaf = [32]byte(h)
		ids, err := proof.Inclusion(index, size)
		if err != nil {
			return err
		}
		hashes, err = s.prove(db, ids)
		return err
	})
	if err != nil {
		return [32]byte{}, nil, fmt.Errorf("proving that audit record %d is among %d: %w", index, size, err)
	}
	return leaf, hashes, nil
}

// ConsistencyProof proves by RFC 6962 §2.1.2 that the log of from records was continued to that of to
// records. ErrOutsideTree unless 0 < from <= to <= the log's length.
func (s *Store) ConsistencyProof(from, to uint64) (hashes [][]byte, err error) {
	err = s.read(func(db *pebble.DB) error {
		if from == 0 || from > to || to > s.head.next {
			return ErrOutsideTree
		}
		ids, err := proof.Consistency(from, to)
		if err != nil {
			return err
		}
		hashes, err = s.prove(db, ids)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("proving that audit log of %d continues that of %d: %w", to, from, err)
	}
	return hashes, nil
}

func (s *Store) prove(from pebble.Reader, ids proof.Nodes) ([][]byte, error) {
	hashes, err := s.nodes(from, ids.IDs)
	if err != nil {
		return nil, err
	}
	return ids.Rehash(hashes, rfc6962.DefaultHasher.HashChildren)
}

// Leaves returns what is under the indexes from from to before to, in order, as it is on the disk: an
// export must show what was changed there, not stop at it. Where records are missing there are fewer.
// What was read once never changes on an honest disk, so that a reader of many pages sees one log, and
// nobody waits for it.
func (s *Store) Leaves(from, to uint64) (leaves [][]byte, err error) {
	err = s.read(func(db *pebble.DB) error {
		return scanRange(db, auditKey(from), auditKey(to), func(_, v []byte) error {
			leaves = append(leaves, bytes.Clone(v[min(len(v), 33):min(len(v), 33+audit.MaxLeaf)]))
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("reading audit log: %w", err)
	}
	return leaves, nil
}

// LeafHashes returns the tree's leaf hashes from an index on to before another. One that is not on the
// disk is zero, which is the hash of nothing.
func (s *Store) LeafHashes(from, to uint64) ([][32]byte, error) {
	hashes := make([][32]byte, to-from)
	err := s.read(func(db *pebble.DB) error {
		return scanRange(db, treeKey(compact.NewNodeID(0, from)), treeKey(compact.NewNodeID(0, to)), func(k, v []byte) error {
			if len(k) == 10 && len(v) == 32 {
				hashes[binary.BigEndian.Uint64(k[2:])-from] = [32]byte(v)
			}
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("reading audit log's tree: %w", err)
	}
	return hashes, nil
}
