package store

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"signet.internal/appliance/audit"
)

// GuardKind says what a Guard guards against.
type GuardKind string

const (
	// GuardOnce is a minted one-time challenge: it has to exist, and one transaction gets it.
	GuardOnce GuardKind = "once"
	// GuardNonce is a nonce that somebody else made: the first transaction that brings it gets it.
	GuardNonce GuardKind = "nonce"
	// GuardRate admits at most Max transactions in any Window.
	GuardRate GuardKind = "rate"
)

// GuardKey names a guard among those of its kind: a hash over whatever makes it the same. The store
// does not interpret it.
type GuardKey [32]byte

// MarshalText writes the key in hex.
func (k GuardKey) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, k[:]), nil }

// UnmarshalText reads what MarshalText wrote.
func (k *GuardKey) UnmarshalText(b []byte) error { return unhex(k[:], b) }

// A Guard is durable state that Begin checks and takes in the same batch as the intent, so that it
// is taken exactly when the intent exists.
//
// Who takes a guard is a TransactionKey. A guard taken by a transaction that was lost or failed, or
// by a request that waits for approval, is free for that same key and for nobody else; one taken by a
// transaction that issued or is under way, or by a request that was denied, is free for nobody.
type Guard struct {
	Kind GuardKind `json:"kind"`
	Key  GuardKey  `json:"key"`

	// Until is when it expires: GuardOnce cannot be taken from then on (except by the key that has it
	// already), GuardNonce may be forgotten after it. It means nothing for GuardRate.
	Until time.Time `json:"until"`

	Note []byte `json:"note,omitempty"` // GuardOnce, for Mint: what the guard is bound to; opaque here

	Max    int           `json:"max,omitempty"`    // GuardRate: 1 to MaxRate
	Window time.Duration `json:"window,omitempty"` // GuardRate: up to a year
}

// MaxGuardNote bounds Guard.Note, in bytes.
const MaxGuardNote = 4 << 10

// MaxRate is the largest GuardRate.Max: each admitted transaction is an entry in one value.
const MaxRate = 500

const (
	maxGuards = 8 // of one transaction
	maxWindow = 366 * 24 * time.Hour

	// takenFor is how long a guard is remembered after it was taken, whatever its Until: while a retry
	// or a decision on a held request may still ask who took it.
	takenFor = 31 * 24 * time.Hour

	// waitFor is the same while the request that took it waits for approval; one that waits longer can
	// only be denied.
	waitFor = 366 * 24 * time.Hour

	// replayFor is how long a message that got a certificate cannot be replayed.
	replayFor = 366 * 24 * time.Hour
)

// Errors of taking guards.
var (
	// ErrGuardUsed: a one-time challenge or nonce belongs to another transaction.
	ErrGuardUsed = errors.New("challenge or nonce was used before")
	// ErrGuardUnknown: a one-time challenge was never minted, or has expired.
	ErrGuardUnknown = errors.New("one-time challenge is unknown or expired")
	// ErrGuardRate: as many transactions as allowed were begun within the window.
	ErrGuardRate = errors.New("too many requests within the time window")
)

// guardEntry is what the store keeps of a guard under g <kind> <key>.
type guardEntry struct {
	Until  time.Time `json:"until"`  // as Guard.Until
	Remove time.Time `json:"remove"` // when Sweep may remove it, in whole milliseconds; also in the index
	Note   []byte    `json:"note,omitempty"`
	Taken  []taker   `json:"taken,omitempty"` // at most one, but for GuardRate: oldest first
	Log    uint64    `json:"log,omitempty"`   // of a nonce: how long the audit log was when it was taken last
}

// taker is a transaction that took a guard.
type taker struct {
	Key    TransactionKey `json:"key"`
	Serial string         `json:"serial,omitempty"` // "" while held for approval
	At     time.Time      `json:"at"`
}

// Key layout, beside that in keys.go:
//
//	g <kind, 1 byte> <key, 32 bytes>            guard: valueVersion, JSON
//	x <Unix milliseconds, 8 bytes> <other key>  the entry under that key may go from then on; empty value
const (
	prefixGuard  = 'g'
	prefixExpiry = 'x'
)

func guardKey(kind GuardKind, k GuardKey) []byte {
	return append([]byte{prefixGuard, kind[0]}, k[:]...)
}

// expiryKey names the entry under k for removal at a time after 1970.
func expiryKey(at time.Time, k []byte) []byte {
	b := binary.BigEndian.AppendUint64([]byte{prefixExpiry}, uint64(max(at.UnixMilli(), 0)))
	return append(b, k...)
}

// check refuses a guard that no correct caller makes.
func (g Guard) check() error {
	switch g.Kind {
	case GuardOnce, GuardNonce:
		if g.Until.UnixMilli() <= 0 {
			return fmt.Errorf("%s guard without expiry", g.Kind)
		}
	case GuardRate:
		if g.Max < 1 || g.Max > MaxRate || g.Window <= 0 || g.Window > maxWindow {
			return fmt.Errorf("rate guard of %d in %v: 1 to %d in up to %v are possible", g.Max, g.Window, MaxRate, maxWindow)
		}
	default:
		return fmt.Errorf("guard of kind %.20q", g.Kind)
	}
	if len(g.Note) > MaxGuardNote {
		return fmt.Errorf("guard with a note of %d bytes, at most %d are kept", len(g.Note), MaxGuardNote)
	}
	return nil
}

// Mint makes a GuardOnce that one transaction can take before g.Until, with its audit record.
func (s *Store) Mint(g Guard, rec audit.Record) error {
	err := g.check()
	if err == nil && g.Kind != GuardOnce {
		err = fmt.Errorf("guard of kind %s is not minted", g.Kind)
	}
	if err != nil {
		return fmt.Errorf("minting one-time challenge: %w", err)
	}
	err = s.issue(func(c *change) error {
		if _, err := c.get(guardKey(g.Kind, g.Key)); !errors.Is(err, ErrNotFound) {
			return orError(err, ErrGuardUsed)
		}
		c.record(rec)
		return c.setGuard(g, nil, guardEntry{Until: g.Until, Remove: g.Until, Note: g.Note})
	})
	if err != nil {
		return fmt.Errorf("minting one-time challenge: %w", err)
	}
	return nil
}

// takeGuards takes guards for the transaction key at a time, or refuses with the first that cannot be
// taken. serial is that of the transaction begun, "" for one that is held for approval; the approved
// one then takes the same guards again under its serial.
//
// The caller has made sure that no other transaction of that key is under way.
func (c *change) takeGuards(key TransactionKey, serial string, guards []Guard, at time.Time) error {
	if len(guards) > maxGuards {
		return fmt.Errorf("%d guards, at most %d can be taken", len(guards), maxGuards)
	}
	for n, g := range guards {
		if err := g.check(); err != nil {
			return err
		}
		if slices.ContainsFunc(guards[:n], func(o Guard) bool { return o.Kind == g.Kind && o.Key == g.Key }) {
			return fmt.Errorf("%s guard twice", g.Kind)
		}
		if err := c.takeGuard(g, taker{Key: key, Serial: serial, At: at.UTC()}); err != nil {
			return err
		}
	}
	return nil
}

func (c *change) takeGuard(g Guard, by taker) error {
	old, err := readGuard(c.get, g)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if g.Kind == GuardRate {
		return c.takeSlot(g, by, old)
	}
	next := guardEntry{Until: g.Until}
	if old != nil {
		next.Until, next.Note = old.Until, old.Note
	}
	switch {
	case old == nil && g.Kind == GuardOnce:
		return ErrGuardUnknown
	case old == nil:
	case len(old.Taken) > 0:
		isFree, err := c.isFreeFor(by.Key, old.Taken[0])
		if err != nil {
			return err
		}
		if !isFree {
			return ErrGuardUsed
		}
	case !by.At.Before(old.Until):
		return ErrGuardUnknown
	}
	next.Taken = []taker{by}
	if g.Kind == GuardNonce {
		next.Log = c.head.next
	}
	if by.Serial == "" {
		next.Remove = laterOf(next.Until, by.At.Add(waitFor))
	} else {
		next.Remove = laterOf(next.Until, by.At.Add(takenFor))
	}
	return c.setGuard(g, old, next)
}

// takeSlot takes one of the slots of a GuardRate, the transaction's own where it has one already.
func (c *change) takeSlot(g Guard, by taker, old *guardEntry) error {
	var taken []taker
	isOwn := false
	if old != nil {
		for _, t := range inWindow(g, old.Taken, by.At) {
			if !isOwn && t.Key == by.Key {
				var err error
				if isOwn, err = c.isFreeFor(by.Key, t); err != nil {
					return err
				}
				if isOwn {
					t.Serial = by.Serial // the slot keeps its time
				}
			}
			taken = append(taken, t)
		}
	}
	if !isOwn {
		if len(taken) >= g.Max {
			return ErrGuardRate
		}
		taken = append(taken, by)
	}
	next := guardEntry{Taken: taken}
	for _, t := range taken {
		next.Remove = laterOf(next.Remove, t.At.Add(g.Window))
	}
	next.Until = next.Remove
	return c.setGuard(g, old, next)
}

// inWindow returns the takers that count at a time. A clock that stood far ahead for a while must not
// count for good, so what lies a window or more ahead does not either.
func inWindow(g Guard, taken []taker, at time.Time) []taker {
	var in []taker
	for _, t := range taken {
		if at.Sub(t.At).Abs() < g.Window {
			in = append(in, t)
		}
	}
	return in
}

// isFreeFor reports whether what t took may be taken again by key.
func (c *change) isFreeFor(key TransactionKey, t taker) (bool, error) {
	if t.Key != key {
		return false, nil
	}
	if t.Serial == "" { // its approval comes with a serial
		h, err := c.heldBy(hashKey(prefixHeldByKey, key))
		if errors.Is(err, ErrNotFound) {
			return false, nil
		}
		return h.State == Waiting, err
	}
	x, err := readTransaction(c.get, t.Serial)
	if err != nil {
		return false, fmt.Errorf("transaction that took a guard: %w", err)
	}
	if x.State != Lost && x.State != Failed {
		return false, nil
	}
	if x.Held == "" {
		return true, nil
	}
	h, err := readHeld(c.get, x.Held) // it waited again, and may have been denied since
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return h.State == Waiting, err
}

// setGuard replaces an entry, nil if there was none, and its place in the index.
func (c *change) setGuard(g Guard, old *guardEntry, next guardEntry) error {
	k := guardKey(g.Kind, g.Key)
	next.Until = next.Until.UTC()
	next.Remove = next.Remove.UTC().Truncate(time.Millisecond)
	if old != nil {
		c.delete(expiryKey(old.Remove, k))
	}
	c.set(expiryKey(next.Remove, k), nil)
	return c.setJSON(k, next)
}

// expireReplay has Sweep forget a replay entry that was written at a time.
func (c *change) expireReplay(r ReplayKey, at time.Time) {
	c.set(expiryKey(at.Add(replayFor), hashKey(prefixReplay, r)), nil)
}

func readGuard(get func([]byte) ([]byte, error), g Guard) (*guardEntry, error) {
	b, err := get(guardKey(g.Kind, g.Key))
	if err != nil {
		return nil, err
	}
	var e guardEntry
	if err := decode(b, &e); err != nil {
		return nil, err
	}
	return &e, nil
}

func laterOf(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// GuardStatus says whether a guard can be taken.
type GuardStatus string

const (
	// GuardUnknown: there is no such guard. A nonce or slot can be taken, a one-time challenge not.
	GuardUnknown GuardStatus = "unknown"
	GuardLive    GuardStatus = "live"    // it can be taken
	GuardExpired GuardStatus = "expired" // it was not taken in time
	GuardUsed    GuardStatus = "used"    // it was taken, by GuardState.By; for a rate: no slot is left
)

// GuardState is a guard as it is now. Only Begin decides who gets it.
type GuardState struct {
	Status GuardStatus
	Until  time.Time
	Note   []byte         // as minted
	By     TransactionKey // who took it; not for GuardRate
}

// Guard returns the state of a guard, of which Kind and Key count, and Max and Window of a GuardRate.
func (s *Store) Guard(g Guard, now time.Time) (GuardState, error) {
	if err := g.check(); err != nil && g.Kind != GuardOnce && g.Kind != GuardNonce {
		return GuardState{}, fmt.Errorf("reading guard: %w", err)
	}
	var e *guardEntry
	err := s.read(func(db *pebble.DB) (err error) {
		e, err = readGuard(func(k []byte) ([]byte, error) { return s.get(db, k) }, g)
		return err
	})
	if errors.Is(err, ErrNotFound) {
		return GuardState{Status: GuardUnknown}, nil
	}
	if err != nil {
		return GuardState{}, fmt.Errorf("reading guard: %w", err)
	}
	state := GuardState{Status: GuardLive, Until: e.Until, Note: e.Note}
	switch {
	case g.Kind == GuardRate:
		if len(inWindow(g, e.Taken, now)) >= g.Max {
			state.Status = GuardUsed
		}
	case len(e.Taken) > 0:
		state.Status, state.By = GuardUsed, e.Taken[0].Key
	case !now.Before(e.Until):
		state.Status = GuardExpired
	}
	return state, nil
}

// sweepChunk bounds what Sweep does in one transition, while others wait.
const sweepChunk = 256

// Sweep removes up to limit guards, replay entries and decided requests whose time is over, and
// returns how many. It reads the index of expiry times up to now and nothing else. now has to come
// from a clock the caller trusts: what a clock far ahead removes is forgotten for good.
func (s *Store) Sweep(now time.Time, limit int) (removed int, err error) {
	from := []byte{prefixExpiry}
	for removed < limit {
		due, err := s.expired(from, now, min(limit-removed, sweepChunk))
		if err != nil {
			return removed, fmt.Errorf("sweeping expired entries: %w", err)
		}
		if len(due) == 0 {
			break
		}
		n := 0
		err = s.do(true, func(c *change) (err error) { // it frees space
			n, err = c.sweep(due, now)
			return err
		})
		if err != nil {
			return removed, fmt.Errorf("sweeping expired entries: %w", err)
		}
		removed += n
		from = append(due[len(due)-1], 0)
	}
	return removed, nil
}

// expired returns up to n index keys from a key on whose time has come.
func (s *Store) expired(from []byte, now time.Time, n int) (due [][]byte, err error) {
	err = s.read(func(db *pebble.DB) (err error) {
		it, err := db.NewIter(dueRange(from, now))
		if err != nil {
			return fmt.Errorf("reading store: %w", err)
		}
		defer func() { err = errors.Join(err, it.Close()) }()
		due = firstKeys(it, n)
		return it.Error()
	})
	return due, err
}

// dueRange keeps an iterator from looking at anything that is still live.
func dueRange(from []byte, now time.Time) *pebble.IterOptions {
	return &pebble.IterOptions{LowerBound: from, UpperBound: expiryKey(now.Add(time.Millisecond), nil)}
}

func firstKeys(it *pebble.Iterator, n int) (keys [][]byte) {
	for ok := it.First(); ok; ok = it.Next() {
		if keys = append(keys, slices.Clone(it.Key())); len(keys) == n {
			break
		}
	}
	return keys
}

// sweep removes what the index keys name, except entries that were given more time since.
func (c *change) sweep(due [][]byte, now time.Time) (removed int, err error) {
	for _, index := range due {
		if _, err := c.get(index); errors.Is(err, ErrNotFound) {
			continue
		} else if err != nil {
			return 0, err
		}
		c.delete(index)
		if len(index) < 10 {
			return 0, fmt.Errorf("%w: expiry key of %d bytes", ErrDamaged, len(index))
		}
		k := index[9:]
		isOver := true
		switch {
		case k[0] == prefixReplay:
			isOver, err = c.isReplayOver(k, now)
		case bytes.HasPrefix(k, nonces):
			isOver, err = c.isNonceOver(k, now)
		}
		if err != nil {
			return 0, err
		}
		if isOver {
			c.delete(k)
			removed++
		}
	}
	return removed, nil
}

// nonces begins the keys of nonces, and nonceAgain is how soon one that has to stay is looked at again.
var nonces = guardKey(GuardNonce, GuardKey{})[:2]

const nonceAgain = 24 * time.Hour

// isNonceOver reports whether a nonce was taken MinRetention ago by the time that the box ran as well: one that is
// forgotten is good again, and whoever sets the clock ahead and back must not make it so. Where it stays it gets
// another place in the index.
func (c *change) isNonceOver(k []byte, now time.Time) (bool, error) {
	b, err := c.get(k)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	var e guardEntry
	if err == nil {
		err = decode(b, &e)
	}
	if err != nil {
		return false, err
	}
	r, err := readRunning(c.get)
	if err != nil || e.Log < r.aged() {
		return err == nil, err
	}
	e.Remove = now.Add(nonceAgain).UTC().Truncate(time.Millisecond)
	c.set(expiryKey(e.Remove, k), nil)
	return false, c.setJSON(k, e)
}

// isReplayOver reports whether the newest transaction of a replay entry began long enough ago; one
// that was begun again after a loss has another, later place in the index.
func (c *change) isReplayOver(k []byte, now time.Time) (bool, error) {
	serial, err := c.get(k)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	t, err := readTransaction(c.get, string(serial))
	if err != nil {
		return false, err
	}
	return !now.Before(t.Begun.Truncate(time.Millisecond).Add(replayFor)), nil
}
