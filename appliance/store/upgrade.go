package store

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// Layouts that Open brings to schemaVersion. In the first one burnt serials were not listed for the
// CRL; up to the second there were no indexes by identity, time and key, requests waited for ever, and
// an issuer was named by the SHA-256 of its certificate. In the third the audit log had no tree.
const (
	schemaOldest    = 1
	schemaUnlisted  = 1
	schemaUnindexed = 2
	schemaTreeless  = 3
)

// upgradeChunk is how many transactions or records are brought over in one batch.
const upgradeChunk = 500

// upgradeHeldFor is how long requests wait that were held before that had an end.
const upgradeHeldFor = 7 * 24 * time.Hour

// upgrade brings a store of an older layout to this one, a chunk at a time and the version last: where
// it is interrupted it begins anew, and what was brought over already comes out the same.
func (s *Store) upgrade(from byte) error {
	if from <= schemaUnindexed {
		if err := s.index(from); err != nil {
			return err
		}
	}
	return s.buildTree()
}

// index brings a store of the first two layouts to the third.
func (s *Store) index(from byte) error {
	issuers, err := s.renamedIssuers()
	if err != nil {
		return err
	}
	after := []byte{prefixTransaction}
	for after != nil {
		c := &change{s: s, state: s.db.NewIndexedBatch()}
		var err error
		if after, err = c.upgradeTransactions(after, from, issuers); err == nil {
			err = c.write()
		}
		if err = errors.Join(err, c.state.Close()); err != nil {
			return err
		}
	}
	c := &change{s: s, state: s.db.NewIndexedBatch()}
	err = c.upgradeHeld()
	if err == nil {
		err = c.moveLists(issuers)
	}
	if err == nil {
		c.set(keySchema, []byte{schemaTreeless})
		err = c.write()
	}
	return errors.Join(err, c.state.Close())
}

// write makes a change durable that is not one of the committer's.
func (c *change) write() error {
	for _, o := range c.ops {
		write := func() error { return c.state.Set(o.key, o.value, nil) }
		if o.delete {
			write = func() error { return c.state.Delete(o.key, nil) }
		}
		if err := write(); err != nil {
			return err
		}
	}
	return c.state.Commit(pebble.Sync)
}

// renamedIssuers are the names of the box's authorities by those they had.
func (s *Store) renamedIssuers() (map[string][]byte, error) {
	b, err := s.get(s.db, keyIdentity)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	var id Identity
	if err == nil {
		err = decode(b, &id)
	}
	if err != nil {
		return nil, err
	}
	names := map[string][]byte{}
	for _, a := range id.Authorities {
		cert, err := x509.ParseCertificate(a.CA)
		if err != nil {
			continue // it never issued: what it signs is read back
		}
		was, is := sha256.Sum256(a.CA), sha256.Sum256(slices.Concat(cert.RawSubject, cert.RawSubjectPublicKeyInfo))
		names[string(was[:])] = is[:]
	}
	return names, nil
}

// moveLists has what belongs on the issuers' CRLs, and the numbers of these, under their new names.
func (c *change) moveLists(issuers map[string][]byte) error {
	for was, is := range issuers {
		lower := revokedKey([]byte(was), "")
		err := scanRange(c.s.db, lower, append(revokedKey([]byte(was), ""), 0xff), func(k, value []byte) error {
			c.set(revokedKey(is, string(k[len(lower):])), bytes.Clone(value))
			c.delete(bytes.Clone(k))
			return nil
		})
		if err != nil {
			return err
		}
		last, err := c.s.get(c.s.db, key(prefixCRL, was))
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		c.set(key(prefixCRL, string(is)), last)
		c.delete(key(prefixCRL, was))
	}
	return nil
}

// upgradeTransactions brings over the transactions from a key on, and returns where to go on, nil at
// the end.
func (c *change) upgradeTransactions(lower []byte, from byte, issuers map[string][]byte) (next []byte, err error) {
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
		if is := issuers[string(t.Issuer)]; is != nil {
			t.Issuer = is
			if err := c.setJSON(key(prefixTransaction, t.Serial), t); err != nil {
				return err
			}
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
