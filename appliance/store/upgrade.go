package store

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// Layouts that Open brings to schemaVersion. In the first one burnt serials were not listed for the
// CRL; up to the second there were no indexes by identity, time and key, and requests waited for ever.
const (
	schemaOldest   = 1
	schemaUnlisted = 1
)

// upgradeChunk is how many transactions are brought over in one batch.
const upgradeChunk = 500

// upgradeHeldFor is how long requests wait that were held before that had an end.
const upgradeHeldFor = 7 * 24 * time.Hour

// upgrade brings a store of an older layout to this one, a chunk at a time and the version last: where
// it is interrupted it begins anew, and what was brought over already comes out the same.
func (s *Store) upgrade(from byte) error {
	after := []byte{prefixTransaction}
	for after != nil {
		c := &change{s: s, state: s.db.NewIndexedBatch()}
		var err error
		if after, err = c.upgradeTransactions(after, from); err == nil {
			err = c.write()
		}
		if err = errors.Join(err, c.state.Close()); err != nil {
			return err
		}
	}
	c := &change{s: s, state: s.db.NewIndexedBatch()}
	err := c.upgradeHeld()
	if err == nil {
		c.set(keySchema, []byte{schemaVersion})
		err = c.write()
	}
	return errors.Join(err, c.state.Close())
}

// write makes a change durable that is not one of the committer's.
func (c *change) write() error {
	for _, o := range c.ops {
		if err := c.state.Set(o.key, o.value, nil); err != nil {
			return err
		}
	}
	return c.state.Commit(pebble.Sync)
}

// upgradeTransactions brings over the transactions from a key on, and returns where to go on, nil at
// the end.
func (c *change) upgradeTransactions(lower []byte, from byte) (next []byte, err error) {
	errFull := errors.New("chunk is full")
	n := 0
	err = scanRange(c.s.db, lower, []byte{prefixTransaction + 1}, func(k, _ []byte) error {
		if n++; n > upgradeChunk {
			next = append([]byte(nil), k...)
			return errFull
		}
		t, err := readTransaction(c.get, string(k[1:]))
		if err != nil {
			return err
		}
		return c.upgradeTransaction(t, from)
	})
	if errors.Is(err, errFull) {
		err = nil
	}
	return next, err
}

func (c *change) upgradeTransaction(t Transaction, from byte) error {
	switch {
	case t.State == Lost && from == schemaUnlisted:
		return c.list(t.Issuer, Revocation{Serial: t.Serial, At: t.Decided, NotAfter: t.NotAfter})
	case t.State != Begun && t.State != Issued:
		return nil
	}
	c.set(identityKey(t.Intent), []byte(t.Profile))
	if t.State == Begun {
		return nil
	}
	c.set(issuedKey(t), nil)
	if publicKey := t.publicKey(); publicKey != nil {
		u, err := readKeyUse(c.get, publicKey)
		if err != nil {
			return err
		}
		u.add(t.Identity)
		u.Compromised = u.Compromised || t.Revoked() && t.Reason == reasonKeyCompromise
		if err := c.setJSON(key(prefixKey, string(publicKey)), u); err != nil {
			return err
		}
	}
	if t.Supersedes == "" {
		return nil
	}
	old, err := c.issued(t.Supersedes)
	if err != nil {
		return err
	}
	old.SupersededBy = t.Serial
	return c.setJSON(key(prefixTransaction, old.Serial), old)
}

// upgradeHeld counts what waits by its source, and gives it an end.
func (c *change) upgradeHeld() error {
	waiting := map[string]int{}
	err := c.s.scan(prefixWaiting, func(id, _ []byte) error {
		h, err := readHeld(c.get, string(id))
		if err != nil {
			return err
		}
		h.Group, h.Until = h.Source, h.Since.Add(upgradeHeldFor)
		waiting[h.Group]++
		c.set(h.untilKey(), nil)
		return c.setJSON(key(prefixHeld, h.ID), h)
	})
	for group, n := range waiting {
		c.set(key(prefixCountSource, group), binary.BigEndian.AppendUint64(nil, uint64(n)))
	}
	return err
}
