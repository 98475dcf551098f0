package store

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"signet.internal/appliance/audit"
)

// HeldState says what became of a held request.
//
//	          Hold             Approve
//	(nothing) ------> waiting ---------> approved: a transaction carries it out
//	                   |   ^  Fail, Lose, Recover |
//	                   |   +----------------------+
//	                   |  Deny, ExpireHeld
//	                   +---------------> denied
type HeldState string

const (
	Waiting  HeldState = "waiting"
	Approved HeldState = "approved"
	Denied   HeldState = "denied"
)

// Errors of held requests.
var (
	// ErrHeldFull: as many requests of the profile or the source wait as may.
	ErrHeldFull = errors.New("too many requests wait for approval")
	// ErrNotWaiting: the request was approved or denied before.
	ErrNotWaiting = errors.New("request does not wait for approval any more")
)

// PollKey names what a device calls its held request when it asks for it again: a hash over profile,
// transaction and the key it signs with. The store does not interpret it.
type PollKey [32]byte

// MarshalText writes the key in hex.
func (k PollKey) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, k[:]), nil }

// UnmarshalText reads what MarshalText wrote.
func (k *PollKey) UnmarshalText(b []byte) error { return unhex(k[:], b) }

// Held is a request that waits for a person, or waited.
//
// Request is not signed: whoever can change the store can exchange what is issued once somebody
// approves. It holds no challenge.
type Held struct {
	ID          string         `json:"id"` // 16 lower-case hex digits
	Key         TransactionKey `json:"key"`
	Poll        PollKey        `json:"poll"`
	Replay      ReplayKey      `json:"replay"` // as in Intent
	Profile     string         `json:"profile"`
	Protocol    string         `json:"protocol"`
	Operation   string         `json:"operation,omitempty"` // of EST
	Transaction string         `json:"transaction"`         // as the client sent it, for people
	Identity    string         `json:"identity"`
	Source      string         `json:"source"`
	Group       string         `json:"group"`          // what counts as one source
	SignerKey   []byte         `json:"signer_key"`     // as in Intent
	CSR         []byte         `json:"csr"`            // SHA-256 of the PKCS#10's DER
	Request     []byte         `json:"request"`        // what it asks for, without a challenge
	Kind        string         `json:"kind,omitempty"` // of its challenge
	Raw         bool           `json:"raw,omitempty"`  // it came as a bare CSR
	Supersedes  string         `json:"supersedes,omitempty"`
	Renews      []byte         `json:"renews,omitempty"` // DER, the certificate it renews, where another authority issued that
	Guards      []Guard        `json:"guards,omitempty"` // taken since
	Since       time.Time      `json:"since"`
	Until       time.Time      `json:"until"` // it counts as denied from then on

	State   HeldState `json:"state"`
	Decided time.Time `json:"decided,omitzero"`
	By      string    `json:"by,omitempty"`     // user who decided
	Reason  string    `json:"reason,omitempty"` // of a denial
	Serial  string    `json:"serial,omitempty"` // of the transaction that carries out the newest approval
}

func checkHeldID(id string) error {
	b, err := hex.DecodeString(id)
	if err != nil || len(b) != 8 || hex.EncodeToString(b) != id {
		return fmt.Errorf("id %.20q is not 16 lower-case hex digits", id)
	}
	return nil
}

// HoldLimits are how many requests may wait.
type HoldLimits struct{ Profile, Source int }

// Hold records a request that waits for a person. It refuses with ErrHeldFull where limit requests of
// its profile or source wait, with ErrConflict where one of the same key does, or the id is taken, and as Begin
// does for a message answered before, and where it renews a certificate or takes guards.
func (s *Store) Hold(h Held, limit HoldLimits, rec audit.Record) error {
	err := s.issue(func(c *change) error {
		if err := checkHeldID(h.ID); err != nil {
			return err
		}
		h.Transaction = h.Transaction[:min(len(h.Transaction), maxClientText)]
		h.Identity = h.Identity[:min(len(h.Identity), maxClientText)]
		h.State, h.Decided, h.By, h.Reason, h.Serial = Waiting, time.Time{}, "", "", ""
		if _, err := c.get(key(prefixHeld, h.ID)); !errors.Is(err, ErrNotFound) {
			return orError(err, ErrConflict)
		}
		if err := c.checkSuperseded(h.Supersedes); err != nil {
			return err
		}
		if h.Replay != (ReplayKey{}) {
			if err := c.checkReplay(h.Replay); err != nil {
				return err
			}
		}
		earlier, err := c.heldBy(hashKey(prefixHeldByKey, h.Key))
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		if err == nil && earlier.State == Waiting {
			return ErrConflict
		}
		if err := c.unsettleIndex(hashKey(prefixHeldByKey, h.Key), hashKey(prefixHeldByPoll, h.Poll)); err != nil {
			return err
		}
		if err := c.wait(h, limit); err != nil {
			return err
		}
		if err := c.takeGuards(h.Key, "", h.Guards, h.Since); err != nil {
			return err
		}
		c.set(hashKey(prefixHeldByKey, h.Key), []byte(h.ID))
		c.set(hashKey(prefixHeldByPoll, h.Poll), []byte(h.ID))
		c.record(rec)
		return c.setJSON(key(prefixHeld, h.ID), h)
	})
	if err != nil {
		return fmt.Errorf("holding request: %w", err)
	}
	return nil
}

// Approve begins the transaction that carries out a held request, as Begin does, and records who
// approved. ErrNotFound where there is none of that id, ErrNotWaiting where it was decided on. Where
// the transaction then fails or is lost the request waits again.
func (s *Store) Approve(id, by string, i Intent, approved, begun audit.Record) error {
	err := s.issue(func(c *change) error {
		h, err := c.waiting(id)
		if err == nil && !i.Begun.Before(h.Until) {
			err = ErrNotWaiting
		}
		if err != nil {
			return err
		}
		i.Held, i.Key, i.Replay, i.Supersedes, i.Guards = id, h.Key, h.Replay, h.Supersedes, nil
		for _, g := range h.Guards {
			if g.Kind != GuardRate { // its slot was taken for the time of the request
				i.Guards = append(i.Guards, g)
			}
		}
		if err := c.begin(i); err != nil {
			return err
		}
		h.State, h.By, h.Decided, h.Serial = Approved, by, i.Begun, i.Serial
		c.record(approved)
		c.record(begun)
		return c.settle(h)
	})
	if err != nil {
		return fmt.Errorf("approving request %.20s: %w", id, err)
	}
	return nil
}

// Deny refuses a held request for good; errors as of Approve.
func (s *Store) Deny(id, by, reason string, at time.Time, rec audit.Record) error {
	err := s.do(false, func(c *change) error {
		h, err := c.waiting(id)
		if err != nil {
			return err
		}
		h.State, h.By, h.Decided, h.Reason = Denied, by, at, reason[:min(len(reason), maxClientText)]
		c.record(rec)
		return c.settle(h)
	})
	if err != nil {
		return fmt.Errorf("denying request %.20s: %w", id, err)
	}
	return nil
}

// ExpireHeld denies what waited past its time, in the name of the box, each with the audit record that
// record makes of it, and returns how many there were. It looks at expireChunk at most.
func (s *Store) ExpireHeld(now time.Time, reason string, record func(Held) audit.Record) (int, error) {
	var due [][]byte
	err := s.read(func(db *pebble.DB) (err error) {
		upper := binary.BigEndian.AppendUint64([]byte{prefixHeldUntil}, uint64(max(now.UnixMilli()+1, 0)))
		it, err := db.NewIter(&pebble.IterOptions{LowerBound: []byte{prefixHeldUntil}, UpperBound: upper})
		if err != nil {
			return fmt.Errorf("reading store: %w", err)
		}
		defer func() { err = errors.Join(err, it.Close()) }()
		due = firstKeys(it, expireChunk)
		return it.Error()
	})
	n := 0
	if err == nil && len(due) > 0 {
		err = s.do(false, func(c *change) (err error) {
			n, err = c.expireHeld(due, now, reason, record)
			return err
		})
	}
	if err != nil {
		return 0, fmt.Errorf("denying requests that waited too long: %w", err)
	}
	return n, nil
}

// expireChunk bounds what ExpireHeld does in one transition, while others wait.
const expireChunk = 64

func (c *change) expireHeld(due [][]byte, now time.Time, reason string, record func(Held) audit.Record) (n int, err error) {
	for _, k := range due {
		if _, err := c.get(k); errors.Is(err, ErrNotFound) {
			continue // decided on since
		} else if err != nil {
			return 0, err
		}
		if len(k) < 10 {
			return 0, fmt.Errorf("%w: index key of %d bytes", ErrDamaged, len(k))
		}
		h, err := c.waiting(string(k[9:]))
		if err != nil {
			return 0, err
		}
		h.State, h.By, h.Decided, h.Reason = Denied, audit.ActorBox, now, reason
		c.record(record(h))
		if err := c.settle(h); err != nil {
			return 0, err
		}
		n++
	}
	return n, nil
}

// heldFor is how long a held request is remembered after it was decided on.
const heldFor = 31 * 24 * time.Hour

// settle writes a held request that no longer waits, and has Sweep forget it in time.
func (c *change) settle(h Held) error {
	if err := c.count(h, -1, HoldLimits{}); err != nil {
		return err
	}
	c.delete(key(prefixWaiting, h.ID))
	c.delete(h.untilKey())
	for _, k := range h.keys() {
		if k[0] != prefixHeld {
			id, err := c.get(k)
			if err != nil {
				return err
			}
			if string(id) != h.ID { // leads to another by now
				continue
			}
		}
		c.set(expiryKey(h.Decided.Add(heldFor), k), nil)
	}
	return c.setJSON(key(prefixHeld, h.ID), h)
}

// keys are the keys of what the store keeps of a decided request.
func (h Held) keys() [][]byte {
	return [][]byte{key(prefixHeld, h.ID), hashKey(prefixHeldByKey, h.Key), hashKey(prefixHeldByPoll, h.Poll)}
}

// unsettleIndex takes index entries that lead to a decided request off the list of what Sweep is to
// remove, because they are about to lead to another.
func (c *change) unsettleIndex(keys ...[]byte) error {
	for _, k := range keys {
		h, err := c.heldBy(k)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if h.State != Waiting {
			c.delete(expiryKey(h.Decided.Add(heldFor), k))
		}
	}
	return nil
}

// holdAgain has a request wait again whose transaction came to nothing.
func (c *change) holdAgain(id string) error {
	h, err := readHeld(c.get, id)
	if err != nil {
		return err
	}
	for _, k := range h.keys() {
		c.delete(expiryKey(h.Decided.Add(heldFor), k))
	}
	h.State, h.By, h.Decided, h.Serial = Waiting, "", time.Time{}, ""
	if err := c.wait(h, HoldLimits{}); err != nil {
		return err
	}
	return c.setJSON(key(prefixHeld, id), h)
}

// untilKey says until when a request waits.
func (h Held) untilKey() []byte {
	k := binary.BigEndian.AppendUint64([]byte{prefixHeldUntil}, uint64(max(h.Until.UnixMilli(), 0)))
	return append(k, h.ID...)
}

// wait counts a request as one that waits, within limits that are not 0.
func (c *change) wait(h Held, limit HoldLimits) error {
	c.set(key(prefixWaiting, h.ID), []byte(h.Profile))
	c.set(h.untilKey(), nil)
	return c.count(h, +1, limit)
}

func (c *change) count(h Held, by int, limit HoldLimits) error {
	if err := c.countWaiting(key(prefixCount, h.Profile), by, limit.Profile); err != nil {
		return fmt.Errorf("%w of profile %s", err, h.Profile)
	}
	if err := c.countWaiting(key(prefixCountSource, h.Group), by, limit.Source); err != nil {
		return fmt.Errorf("%w of %.60s", err, h.Group)
	}
	return nil
}

// countWaiting changes a counter, up to limit where that is not 0.
func (c *change) countWaiting(counter []byte, by, limit int) error {
	n := 0
	b, err := c.get(counter)
	switch {
	case err == nil && len(b) == 8:
		n = int(binary.BigEndian.Uint64(b))
	case err == nil:
		return fmt.Errorf("%w: count of %d bytes", ErrDamaged, len(b))
	case !errors.Is(err, ErrNotFound):
		return err
	}
	if n += by; n < 0 {
		return fmt.Errorf("%w: fewer than no requests wait", ErrDamaged)
	}
	if limit > 0 && n > limit {
		return fmt.Errorf("%w: %d", ErrHeldFull, limit)
	}
	if n == 0 {
		c.delete(counter)
		return nil
	}
	c.set(counter, binary.BigEndian.AppendUint64(nil, uint64(n)))
	return nil
}

func (c *change) waiting(id string) (Held, error) {
	h, err := readHeld(c.get, id)
	if err == nil && h.State != Waiting {
		err = ErrNotWaiting
	}
	return h, err
}

func (c *change) heldBy(k []byte) (Held, error) {
	id, err := c.get(k)
	if err != nil {
		return Held{}, err
	}
	return readHeld(c.get, string(id))
}

// Held returns the held request with that id, or ErrNotFound.
func (s *Store) Held(id string) (Held, error) {
	return s.findHeld(func(*pebble.DB) ([]byte, error) { return []byte(id), nil })
}

// HeldByKey returns the newest held request of a key, or ErrNotFound.
func (s *Store) HeldByKey(k TransactionKey) (Held, error) {
	return s.findHeld(func(db *pebble.DB) ([]byte, error) { return s.get(db, hashKey(prefixHeldByKey, k)) })
}

// HeldByPoll returns the newest held request a device calls so, or ErrNotFound.
func (s *Store) HeldByPoll(k PollKey) (Held, error) {
	return s.findHeld(func(db *pebble.DB) ([]byte, error) { return s.get(db, hashKey(prefixHeldByPoll, k)) })
}

// Waiting returns the requests that wait for a person, oldest first.
func (s *Store) Waiting() ([]Held, error) {
	var all []Held
	err := s.read(func(db *pebble.DB) error {
		return scanRange(db, []byte{prefixWaiting}, []byte{prefixWaiting + 1}, func(k, _ []byte) error {
			h, err := readHeld(func(k []byte) ([]byte, error) { return s.get(db, k) }, string(k[1:]))
			all = append(all, h)
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("reading held requests: %w", err)
	}
	slices.SortFunc(all, func(a, b Held) int { return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.ID, b.ID)) })
	return all, nil
}

func (s *Store) findHeld(idOf func(*pebble.DB) ([]byte, error)) (Held, error) {
	var h Held
	err := s.read(func(db *pebble.DB) error {
		id, err := idOf(db)
		if err != nil {
			return err
		}
		h, err = readHeld(func(k []byte) ([]byte, error) { return s.get(db, k) }, string(id))
		return err
	})
	if err != nil {
		return Held{}, fmt.Errorf("reading held request: %w", err)
	}
	return h, nil
}

func readHeld(get func([]byte) ([]byte, error), id string) (Held, error) {
	var h Held
	if checkHeldID(id) != nil {
		return h, ErrNotFound
	}
	b, err := get(key(prefixHeld, id))
	if err != nil {
		return h, err
	}
	if err := decode(b, &h); err != nil {
		return h, err
	}
	if h.ID != id {
		return h, fmt.Errorf("%w: held request %s says it is %.20q", ErrDamaged, id, h.ID)
	}
	return h, nil
}
