package store

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"signet.internal/appliance/audit"
)

// Reasons of a revocation the store tells apart (RFC 5280 §5.3.1).
const (
	reasonKeyCompromise = 1 // the key is never certified again
	reasonSuperseded    = 4
	reasonHold          = 6 // certificateHold: the only one that can be taken back
)

// ErrNotOnHold: only a certificate revoked as on hold can be released.
var ErrNotOnHold = errors.New("certificate is not on hold, its revocation is final")

// Revocation is one entry of a CRL: a revoked certificate, or a serial that was burnt.
type Revocation struct {
	Serial   string    `json:"-"` // part of the key
	At       time.Time `json:"at"`
	Reason   int       `json:"reason,omitempty"`   // CRLReason of RFC 5280 §5.3.1; 0 for a burnt serial
	NotAfter time.Time `json:"not_after,omitzero"` // end of the certificate, zero if unknown
}

// CRL says which revocation list of an issuer was made last.
type CRL struct {
	Number     uint64    `json:"number"`
	ThisUpdate time.Time `json:"this_update"`
	NextUpdate time.Time `json:"next_update"`
}

// Revoke revokes an issued certificate: ErrNotFound where there is none of that serial, ErrRevoked
// where it is revoked already. One that is on hold can still be revoked for another reason, and
// keeps the date it was put on hold. After a revocation for keyCompromise the key is refused for good.
func (s *Store) Revoke(serial string, reason int, at time.Time, rec audit.Record) error {
	err := s.do(false, func(c *change) error {
		t, err := c.issued(serial)
		if err != nil {
			return err
		}
		switch {
		case !t.Revoked():
			t.RevokedAt = at
		case t.Reason != reasonHold || reason == reasonHold:
			return ErrRevoked
		}
		t.Reason = reason
		if reason == reasonKeyCompromise {
			if err := c.compromise(t); err != nil {
				return err
			}
		}
		if err := c.setJSON(key(prefixTransaction, serial), t); err != nil {
			return err
		}
		c.record(rec)
		return c.list(t.Issuer, t.revocation())
	})
	if err != nil {
		return fmt.Errorf("revoking certificate %.40s: %w", serial, err)
	}
	return nil
}

// revocation is the CRL entry of a revoked certificate.
func (t Transaction) revocation() Revocation {
	return Revocation{Serial: t.Serial, At: t.RevokedAt, Reason: t.Reason, NotAfter: t.NotAfter}
}

// Release takes a certificate off hold; ErrNotOnHold where it is not.
func (s *Store) Release(serial string, rec audit.Record) error {
	err := s.do(false, func(c *change) error {
		t, err := c.issued(serial)
		if err != nil {
			return err
		}
		if !t.Revoked() || t.Reason != reasonHold {
			return ErrNotOnHold
		}
		t.RevokedAt, t.Reason = time.Time{}, 0
		c.delete(revokedKey(t.Issuer, serial))
		c.record(rec)
		return c.setJSON(key(prefixTransaction, serial), t)
	})
	if err != nil {
		return fmt.Errorf("releasing certificate %.40s: %w", serial, err)
	}
	return nil
}

// issued reads a transaction that issued a certificate, or returns ErrNotFound.
func (c *change) issued(serial string) (Transaction, error) {
	t, err := readTransaction(c.get, serial)
	if err == nil && t.State != Issued {
		err = ErrNotFound
	}
	return t, err
}

func revokedKey(issuer []byte, serial string) []byte {
	return append(append([]byte{prefixRevoked}, issuer...), serial...)
}

// list puts a serial on its issuer's next CRL.
func (c *change) list(issuer []byte, r Revocation) error {
	return c.setJSON(revokedKey(issuer, r.Serial), r)
}

// Revoked returns what belongs on the issuer's next CRL, by serial: revoked certificates and burnt
// serials. issuer is as in [Intent].
func (s *Store) Revoked(issuer [sha256.Size]byte) ([]Revocation, error) {
	var all []Revocation
	err := s.read(func(db *pebble.DB) error {
		lower := revokedKey(issuer[:], "")
		return scanRange(db, lower, append(revokedKey(issuer[:], ""), 0xff), func(key, value []byte) error {
			r := Revocation{Serial: string(key[len(lower):])}
			if err := decode(value, &r); err != nil {
				return err
			}
			all = append(all, r)
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("reading revocations: %w", err)
	}
	return all, nil
}

// LastCRL says which list of an issuer was made last, ErrNotFound where none was.
func (s *Store) LastCRL(issuer [sha256.Size]byte) (last CRL, err error) {
	err = s.read(func(db *pebble.DB) error {
		b, err := s.get(db, hashKey(prefixCRL, issuer))
		if err != nil {
			return err
		}
		return decode(b, &last)
	})
	if err != nil {
		return CRL{}, fmt.Errorf("reading the newest CRL: %w", err)
	}
	return last, nil
}

// Relist puts back on an issuer's next list what one took off that was made by a later clock than now: that clock
// was ahead, and what it took for ended is not. Where the last list is no later it does nothing.
func (s *Store) Relist(issuer [sha256.Size]byte, now time.Time) error {
	last, err := s.LastCRL(issuer)
	if errors.Is(err, ErrNotFound) || err == nil && !last.ThisUpdate.After(now) {
		return nil
	}
	var serials []string
	if err == nil {
		err = s.eachTransaction(func(t Transaction) {
			if _, ok := t.listed(); ok && bytes.Equal(t.Issuer, issuer[:]) && !t.NotAfter.Before(now) {
				serials = append(serials, t.Serial)
			}
		})
	}
	for chunk := range slices.Chunk(serials, scanChunk) {
		err = errors.Join(err, s.do(true, func(c *change) error {
			for _, serial := range chunk {
				t, err := readTransaction(c.get, serial)
				if err != nil {
					return err
				}
				if r, ok := t.listed(); ok { // it may have been released since
					if err := c.list(t.Issuer, r); err != nil {
						return err
					}
				}
			}
			return nil
		}))
	}
	if err != nil {
		return fmt.Errorf("listing again what was revoked: %w", err)
	}
	return nil
}

// listed is the CRL entry of a transaction, if it has one.
func (t Transaction) listed() (Revocation, bool) {
	if t.State == Lost {
		return Revocation{Serial: t.Serial, At: t.Decided, NotAfter: t.NotAfter}, true
	}
	return t.revocation(), t.Revoked()
}

// NextCRL returns the number of the issuer's next CRL: one above the last, or above all that a newer state
// can have signed whose place this one took.
func (s *Store) NextCRL(issuer [sha256.Size]byte) (number uint64, err error) {
	err = s.read(func(db *pebble.DB) (err error) {
		number, err = nextCRL(func(k []byte) ([]byte, error) { return s.get(db, k) }, issuer)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("reading CRL number: %w", err)
	}
	return number, nil
}

func nextCRL(get func([]byte) ([]byte, error), issuer [sha256.Size]byte) (uint64, error) {
	var last CRL
	b, err := get(hashKey(prefixCRL, issuer))
	if err == nil {
		err = decode(b, &last)
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return 0, err
	}
	a, err := readAnchor(get)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return 0, err
	}
	return max(last.Number, a.Lists) + 1, nil
}

// StoreCRL records that an issuer's next CRL is signed; only then may it be handed out. Its number
// has to be that of NextCRL, else ErrConflict. listed are the serials on it: those whose
// certificate had ended before it was made are not kept for another (RFC 5280 §3.3 wants a revoked
// certificate on one CRL past its end).
func (s *Store) StoreCRL(issuer [sha256.Size]byte, crl CRL, listed []Revocation, rec audit.Record) error {
	err := s.do(false, func(c *change) error {
		next, err := nextCRL(c.get, issuer)
		if err != nil {
			return err
		}
		if crl.Number != next {
			return ErrConflict
		}
		for _, r := range listed {
			if !r.NotAfter.IsZero() && r.NotAfter.Before(crl.ThisUpdate) {
				c.delete(revokedKey(issuer[:], r.Serial))
			}
		}
		c.record(rec)
		return c.setJSON(hashKey(prefixCRL, issuer), crl)
	})
	if err != nil {
		return fmt.Errorf("recording CRL %d: %w", crl.Number, err)
	}
	return nil
}
