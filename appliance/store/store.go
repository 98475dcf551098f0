// Package store keeps the box's state in Pebble: issuance transactions, the audit log, users,
// tokens and the box's own certificates.
//
// One exported method is one state transition. It checks what must hold, changes the state and
// appends its audit record in one batch, and returns only when that batch is synced to disk; after
// a power cut the whole transition is there or none of it is.
//
// All transitions run one after another on a single committer goroutine, which gathers those that
// wait into one Pebble batch with one sync (group commit), so concurrent enrollments share an
// fsync while audit indexes stay gapless and in order. Reads wait while a batch is being synced:
// what a read returns is durable.
//
// # Life of a transaction
//
//	          Begin            Finish
//	(nothing) ------> begun ------------> issued
//	                    |  Fail
//	                    +--------------> failed   nothing was signed
//	                    |  Lose, Recover
//	                    +--------------> lost     a signature may exist: the serial is burnt
//
// A lost or failed transaction may be begun again by the same key under a new serial. An issued
// certificate may be revoked, and burnt serials are listed with the revoked ones; it may be held back
// until somebody else knows of it, see [Store.Deliver]. What a person has to decide on first is a held
// request, see [HeldState]; its approval begins the transaction.
//
// # What someone who can change the store gains
//
// The store holds no secret: no private key, no password or token in clear. Whoever can write it can
// forge history (remove an issued certificate, a burnt serial or a remembered replay, so that a
// captured request is answered by a second certificate for the same key), take back a revocation, have
// a compromised key certified again, have more certificates issued to an identity than it may have,
// exchange what a held request asks for before somebody approves it, make themselves an
// administrator, exchange the certificates the box hands out as its own (devices that pinned the
// authority refuse them; signing is impossible with them, the keys being in the TPM), and lower the
// clock's floor. They cannot sign. They cannot change, drop, reorder or insert an audit record without
// changing the root of the log's tree: unless they change the whole tree the store does not open, or an
// export names the record; if they do, no checkpoint the box signed before fits any more, neither those
// here nor those that were handed out. That retention removed the first records is in the log itself, and
// records that are gone without it are missing. Whoever can only read it learns
// who enrolled, from where, and the argon2id hashes of the administrators' passwords.
package store

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// formatVersion pins Pebble's on-disk format: an image with a newer Pebble never converts the store
// on its own, so the previous image can still open it after a failed update.
const formatVersion = pebble.FormatTableFormatV6

// schemaVersion is the layout of keys and values below. A store with another one is refused.
const schemaVersion = 4

// Sizes for a box with little memory. A certificate with its records is about 4 KiB, so a memtable
// holds a thousand enrollments.
const (
	cacheBytes    = 8 << 20
	memTableBytes = 4 << 20
	maxOpenFiles  = 200
)

// Errors of every method.
var (
	// ErrNotFound: there is no such thing in the store.
	ErrNotFound = errors.New("not in the store")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("store is closed")
	// ErrFailed: a write or sync failed, so what is on the disk is unknown until the store is
	// opened again. Everything is refused from then on; the process has to end and start anew.
	// Where a sync fails while Pebble changes to a new log, Pebble ends the process itself.
	ErrFailed = errors.New("store failed, restart the service; if it fails again check the state disk")
	// ErrFull: the disk is nearly full, see Space. What was begun can still be finished; nothing new begins
	// for devices, and with still less space nothing at all.
	ErrFull = errors.New("state disk is nearly full, free or add space")
	// ErrDamaged: a value does not decode. The store was changed by something else than this package.
	ErrDamaged = errors.New("store is damaged, restore the state from a backup")
)

// Options say where the store is.
type Options struct {
	Dir string // directory, created if absent; absolute, or relative to FS

	// FS is the filesystem, nil for the operating system's.
	FS vfs.FS

	// MustExist makes Open refuse to create a store: set it whenever the box was initialised before,
	// so that lost state is an error and never a fresh start.
	MustExist bool

	// Log takes what Pebble has to say; nil discards it.
	Log *slog.Logger

	memTable uint64 // bytes, 0 for memTableBytes; tests make it small to have it flushed often
}

// Store is an open store. Its methods may be called concurrently.
type Store struct {
	db   *pebble.DB
	fs   vfs.FS
	dir  string
	log  *slog.Logger
	done chan struct{} // closed when the committer has ended

	// queue hands transitions to the committer. queueMu is held only to append or take.
	queueMu sync.Mutex
	queued  *sync.Cond
	queue   []*transition
	closed  bool

	// durable is write-locked while a batch is in memory but not yet synced.
	durable sync.RWMutex
	head    head // guarded by durable; the committer is the only writer

	// holding is read-locked by those who hold the records, see HoldRecords.
	holding sync.RWMutex

	failMu  sync.Mutex
	failure error
	failed  chan struct{}
}

// head is what the committer remembers of the newest audit record and of the state, so that it need
// not be read back.
type head struct {
	next        uint64    // index of the next audit record
	tree        [][]byte  // hashes of the complete subtrees that the log's tree is made of, largest first; never changed in place
	last        time.Time // time of the newest audit record
	floor       time.Time // see LastTime
	removed     Removal
	initialised bool
	claimed     bool
	leftOpen    []string // serials begun by an earlier process and not yet recovered
}

// Open opens the store in o.Dir and replays what a crash left unfinished in Pebble's log. It starts
// no transaction recovery: see Recover.
func Open(o Options) (*Store, error) {
	s := &Store{fs: o.FS, dir: filepath.Clean(o.Dir), log: o.Log, done: make(chan struct{}), failed: make(chan struct{})}
	s.queued = sync.NewCond(&s.queueMu)
	if s.fs == nil {
		s.fs = vfs.Default
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if o.MustExist {
		if _, err := s.fs.Stat(s.dir); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("opening store %s: the state is missing, restore it from a backup: %w", s.dir, err)
		} else if err != nil {
			return nil, fmt.Errorf("opening store %s: %w", s.dir, err)
		}
	} else if err := s.fs.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("creating store %s: %w", s.dir, err)
	}

	opts := &pebble.Options{
		FS:                          s.fs,
		FormatMajorVersion:          formatVersion,
		ErrorIfNotExists:            o.MustExist,
		CacheSize:                   cacheBytes,
		MemTableSize:                cmp.Or(o.memTable, memTableBytes),
		MemTableStopWritesThreshold: 4,
		MaxOpenFiles:                maxOpenFiles,
		Logger:                      pebbleLog{s},
		EventListener:               &pebble.EventListener{}, // Pebble logs every background job without one
	}
	// Pebble would repeat a flush or compaction that fails at once and for ever, until writes stall.
	opts.EventListener.BackgroundError = func(err error) { s.fail(fmt.Errorf("background work: %w", err)) }
	err := s.guard(func() error {
		db, err := pebble.Open(s.dir, opts)
		if err != nil {
			return err
		}
		s.db = db
		if err := s.load(); err != nil {
			return errors.Join(err, db.Close())
		}
		return nil
	})
	if errors.Is(err, pebble.ErrDBDoesNotExist) {
		err = fmt.Errorf("the state is missing, restore it from a backup: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("opening store %s: %w", s.dir, err)
	}
	go s.commitLoop()
	return s, nil
}

// load checks the schema version, writing it to an empty store, and reads the head.
func (s *Store) load() error {
	v, err := s.get(s.db, keySchema)
	switch {
	case errors.Is(err, ErrNotFound):
		if err := s.expectEmpty(); err != nil {
			return err
		}
		if err := s.db.Set(keySchema, []byte{schemaVersion}, pebble.Sync); err != nil {
			return fmt.Errorf("writing schema version: %w", err)
		}
	case err != nil:
		return err
	case len(v) == 1 && v[0] >= schemaOldest && v[0] < schemaVersion:
		if err := s.upgrade(v[0]); err != nil {
			return fmt.Errorf("bringing state to layout version %d: %w", schemaVersion, err)
		}
	case !bytes.Equal(v, []byte{schemaVersion}):
		return fmt.Errorf("state has layout version %x, this software reads %d: boot the software that wrote it", v, schemaVersion)
	}

	s.head, err = s.readHead()
	return err
}

// expectEmpty refuses a store that has entries but no schema version.
func (s *Store) expectEmpty() (err error) {
	it, err := s.db.NewIter(nil)
	if err != nil {
		return fmt.Errorf("reading store: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if it.First() {
		return fmt.Errorf("%w: entries without a layout version", ErrDamaged)
	}
	return it.Error()
}

func (s *Store) readHead() (head, error) {
	var h head
	err := s.last(prefixAudit, func(key, value []byte) error {
		r, err := decodeAudit(key, value)
		if err != nil {
			return err
		}
		h.next, h.last = r.Index+1, r.Time
		return nil
	})
	if err != nil {
		return head{}, err
	}
	if h.removed, err = s.readRemoval(h.next); err != nil {
		return head{}, err
	}
	if h.tree, err = s.readTree(h.next, h.removed.Before); err != nil {
		return head{}, err
	}
	v, err := s.get(s.db, keyFloor)
	switch {
	case err == nil && len(v) == 8:
		h.floor = time.UnixMilli(int64(binary.BigEndian.Uint64(v))).UTC()
	case err == nil:
		return head{}, fmt.Errorf("%w: clock floor of %d bytes", ErrDamaged, len(v))
	case !errors.Is(err, ErrNotFound):
		return head{}, err
	}
	if _, err := s.get(s.db, keyIdentity); err == nil {
		h.initialised = true
	} else if !errors.Is(err, ErrNotFound) {
		return head{}, err
	}
	if err := s.last(prefixUser, func(_, _ []byte) error { h.claimed = true; return nil }); err != nil {
		return head{}, err
	}
	err = s.scan(prefixOpen, func(serial, _ []byte) error {
		h.leftOpen = append(h.leftOpen, string(serial))
		return nil
	})
	return h, err
}

// Close waits for queued transitions, then closes Pebble. After a failure (see ErrFailed) it returns
// the failure and closes Pebble behind the caller's back, because the write that failed may hold
// Pebble's locks for good: the directory may then stay locked until the process ends.
func (s *Store) Close() error {
	s.queueMu.Lock()
	if s.closed {
		s.queueMu.Unlock()
		return ErrClosed
	}
	s.closed = true
	s.queued.Signal()
	s.queueMu.Unlock()
	<-s.done
	s.durable.Lock()
	defer s.durable.Unlock()
	db := s.db
	s.db = nil
	if err := s.Failure(); err != nil {
		go s.guard(db.Close) // the failure is already the answer
		return err
	}
	if err := s.guard(db.Close); err != nil {
		return fmt.Errorf("closing store: %w", err)
	}
	return nil
}

// Failed is closed once the store has failed; see ErrFailed.
func (s *Store) Failed() <-chan struct{} { return s.failed }

// Failure returns why the store failed, wrapping ErrFailed, or nil.
func (s *Store) Failure() error {
	s.failMu.Lock()
	defer s.failMu.Unlock()
	return s.failure
}

func (s *Store) fail(cause error) {
	s.failMu.Lock()
	defer s.failMu.Unlock()
	if s.failure == nil {
		s.failure = fmt.Errorf("%w: %w", ErrFailed, cause)
		s.log.Error("store failed", "error", cause)
		close(s.failed)
	}
}

// guard runs f, which may write by Pebble, on a goroutine of its own: where Pebble cannot write its
// log or manifest it panics or calls Fatalf, and either is a failed store, not the end of the caller.
// Once the store has failed guard no longer waits for f, which may wait for good for what the goroutine
// that met the error was to do.
func (s *Store) guard(f func() error) error {
	ended := make(chan error, 1)
	go func() {
		returned := false
		defer func() {
			if !returned {
				s.fail(fmt.Errorf("pebble stopped: %v", recover()))
			}
		}()
		err := f()
		returned = true
		ended <- err
	}()
	select {
	case <-s.failed:
	case err := <-ended:
		if s.Failure() == nil {
			return err
		}
	}
	return s.Failure()
}

// pebbleLog is Pebble's logger. Pebble reports an unusable log or manifest by Fatalf and relies on
// it not returning. The goroutine is left standing there: it may hold locks, and unwinding it would
// unlock some that it does not hold.
type pebbleLog struct{ s *Store }

func (l pebbleLog) Infof(format string, args ...any) {
	l.s.log.Debug("pebble: " + fmt.Sprintf(format, args...))
}

func (l pebbleLog) Errorf(format string, args ...any) {
	l.s.log.Error("pebble: " + fmt.Sprintf(format, args...))
}

func (l pebbleLog) Fatalf(format string, args ...any) {
	l.s.fail(fmt.Errorf(format, args...))
	select {}
}
