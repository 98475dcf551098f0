package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"signet.internal/appliance/audit"
)

// groupMax bounds how many transitions share one batch: a few milliseconds of encoding, and far
// below the size at which Pebble treats a batch specially.
const groupMax = 256

// What must stay free on the disk. reserveBytes are for Pebble to flush, compact and rotate its log, so that
// what was begun can be finished. What is between them and issueBytes is for people: where nothing is
// issued any more they can still sign in, revoke, and see why, and revocation lists are still signed.
const (
	reserveBytes = 16 * memTableBytes
	issueBytes   = 24 * memTableBytes
)

// urgency says what of the disk's last space a transition may use.
type urgency int

const (
	issues   urgency = iota // begins something for a device: nothing of it
	tends                   // the rest: down to reserveBytes
	finishes                // decides a begun transaction, or frees space: all of it
)

// transition is one state change on its way to the disk.
type transition struct {
	// apply checks what must hold and collects the change. It runs on the committer; an error
	// leaves no trace in the batch.
	apply   func(*change) error
	urgency urgency

	err  error
	done chan struct{}
}

// change collects what one transition writes. Reads see the state including the transitions before
// it in the same batch and its own writes.
type change struct {
	s       *Store
	state   *pebble.Batch // indexed
	head    head          // before this transition, to be changed by it
	ops     []op
	records []audit.Record
}

type op struct {
	key, value []byte
	delete     bool
	end        []byte // where set, every key from key on to before end is deleted
}

func (c *change) get(k []byte) ([]byte, error) {
	for _, o := range slices.Backward(c.ops) { // few, but for Recover and Sweep
		if !bytes.Equal(o.key, k) || o.end != nil {
			continue
		}
		if o.delete {
			return nil, ErrNotFound
		}
		return bytes.Clone(o.value), nil
	}
	return c.s.get(c.state, k)
}

func (c *change) set(k, v []byte) { c.ops = append(c.ops, op{key: k, value: v}) }

func (c *change) setJSON(k []byte, v any) error {
	b, err := encode(v)
	if err != nil {
		return err
	}
	c.set(k, b)
	return nil
}

func (c *change) delete(k []byte) { c.ops = append(c.ops, op{key: k, delete: true}) }

// deleteRange deletes every key from lower on to before upper. The transition itself does not see it.
func (c *change) deleteRange(lower, upper []byte) {
	c.ops = append(c.ops, op{key: lower, delete: true, end: upper})
}

func (c *change) record(r audit.Record) { c.records = append(c.records, r) }

// issue runs a transition that begins something for a device.
func (s *Store) issue(apply func(*change) error) error { return s.run(issues, apply) }

// do runs a transition that tends to the box, or finishes something.
func (s *Store) do(isFinish bool, apply func(*change) error) error {
	if isFinish {
		return s.run(finishes, apply)
	}
	return s.run(tends, apply)
}

// run runs a transition and returns once it is durable, or refused.
func (s *Store) run(u urgency, apply func(*change) error) error {
	t := &transition{apply: apply, urgency: u, done: make(chan struct{})}
	s.queueMu.Lock()
	if s.closed {
		s.queueMu.Unlock()
		return ErrClosed
	}
	s.queue = append(s.queue, t)
	s.queued.Signal()
	s.queueMu.Unlock()
	<-t.done
	return t.err
}

// take waits for queued transitions and returns up to groupMax of them, none once the store is
// closed and drained.
func (s *Store) take() []*transition {
	s.queueMu.Lock()
	defer s.queueMu.Unlock()
	for len(s.queue) == 0 && !s.closed {
		s.queued.Wait()
	}
	n := min(len(s.queue), groupMax)
	group := s.queue[:n:n]
	s.queue = s.queue[n:]
	return group
}

// commitLoop is the committer. It ends when the store is closed and the queue drained.
func (s *Store) commitLoop() {
	defer close(s.done)
	for {
		group := s.take()
		if len(group) == 0 {
			return
		}
		s.commit(group)
		for _, t := range group {
			close(t.done)
		}
	}
}

// commit makes one group durable and sets each transition's err.
func (s *Store) commit(group []*transition) {
	if err := s.Failure(); err != nil {
		for _, t := range group {
			t.err = err
		}
		return
	}
	space := s.Space()
	db := s.db // a commit that outlives a failure must not look at what Close changes
	batch := db.NewIndexedBatch()
	h := s.head
	var accepted []*transition
	for _, t := range group {
		if t.err = space.suffices(t.urgency); t.err != nil {
			continue
		}
		next, err := s.applyOne(batch, h, t)
		if err != nil {
			t.err = err
			continue
		}
		h = next
		accepted = append(accepted, t)
	}
	err := s.writeTreeHead(batch, h)
	if err != nil {
		s.fail(err)
		err = s.Failure()
	}
	if err == nil && len(accepted) > 0 {
		// An error of Apply leaves nobody knowing what is on the disk: the store has failed.
		s.durable.Lock()
		err = s.guard(func() error {
			if err := db.Apply(batch, pebble.Sync); err != nil {
				s.fail(fmt.Errorf("committing: %w", err))
			}
			return nil
		})
		if err == nil {
			s.head = h
		}
		s.durable.Unlock()
	}
	for _, t := range accepted {
		t.err = err
	}
	if err == nil {
		if err := batch.Close(); err != nil {
			s.log.Error("store: releasing batch", "error", err)
		}
	}
}

// applyOne adds one transition to the batch and returns the head after it. An error means the batch
// is as before, except for ErrFailed.
func (s *Store) applyOne(batch *pebble.Batch, h head, t *transition) (head, error) {
	c := &change{s: s, state: batch, head: h}
	if err := t.apply(c); err != nil {
		return h, err
	}
	for _, r := range c.records {
		if err := r.Check(); err != nil {
			return h, err
		}
		if err := c.addRecord(r); err != nil {
			return h, err
		}
	}
	for _, o := range c.ops {
		var err error
		switch {
		case o.end != nil:
			err = batch.DeleteRange(o.key, o.end, nil)
		case o.delete:
			err = batch.Delete(o.key, nil)
		default:
			err = batch.Set(o.key, o.value, nil)
		}
		if err != nil { // memory only: cannot fail short of a programming error
			err = fmt.Errorf("building batch: %w", err)
			s.fail(err)
			return h, errors.Join(ErrFailed, err)
		}
	}
	return c.head, nil
}

// writeTreeHead has the root of the tree after a group in its batch, once for all of them.
func (s *Store) writeTreeHead(batch *pebble.Batch, h head) error {
	if h.next == s.head.next {
		return nil
	}
	root, err := h.root()
	if err != nil {
		return err
	}
	return batch.Set(keyTree, treeHead(h.next, root), nil)
}

// addRecord gives r its index and place in time, and appends it and the subtrees it completes to the
// change.
func (c *change) addRecord(r audit.Record) error {
	r.Index = c.head.next
	r.Time = inOrder(r.Time, c.head.last)
	leaf := audit.Leaf(r)
	h := audit.LeafHash(leaf)
	v := make([]byte, 0, 1+len(h)+len(leaf))
	v = append(v, valueVersion)
	v = append(v, h[:]...)
	v = append(v, leaf...)
	c.set(auditKey(r.Index), v)
	if err := c.growTree(h); err != nil {
		return fmt.Errorf("%w: tree of the audit log: %v", ErrDamaged, err)
	}
	c.head.next++
	c.head.last = r.Time
	if raisesFloor(r.TimeSource) && r.Time.After(c.head.floor) {
		c.head.floor = r.Time
		c.set(keyFloor, binary.BigEndian.AppendUint64(nil, uint64(r.Time.UnixMilli())))
	}
	return nil
}

// Space is how much of the disk the store is on is left, in bytes.
type Space struct {
	Free  uint64 // to this process
	Total uint64 // 0: the filesystem cannot tell, then there is enough
	Issue uint64 // with less than this nothing is issued
	Tend  uint64 // with less than this nothing at all begins
}

// Space looks at the disk.
func (s *Store) Space() Space {
	space := Space{Issue: issueBytes, Tend: reserveBytes}
	if u, err := s.fs.GetDiskUsage(s.dir); err == nil {
		space.Free, space.Total = u.AvailBytes, u.TotalBytes
	}
	return space
}

// suffices returns ErrFull where too little is left for a transition.
func (p Space) suffices(u urgency) error {
	need := map[urgency]uint64{issues: p.Issue, tends: p.Tend}[u]
	if p.Total == 0 || p.Free >= need {
		return nil
	}
	return fmt.Errorf("%w: %d MiB left, %d MiB needed", ErrFull, p.Free>>20, need>>20)
}
