package store

import (
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"signet.internal/appliance/audit"
)

// Override is what an administrator put in place of a value of the site while the box runs: a trust
// bundle, the hash of a challenge, a profile switched off. It holds no secret in clear.
//
// Whoever can change overrides decides whom a profile believes, within what the site allows; the audit
// log, which has a record of each, does not show it then. Who can read them can try short secrets
// against the hashes.
type Override struct {
	Value []byte    `json:"value"` // what it means is the caller's to say
	By    string    `json:"by"`    // user
	At    time.Time `json:"at"`
}

// Bounds on names, which end in that of a user of up to 255 bytes, and values: a bundle of certificates
// fits.
const (
	maxOverrideName = 512
	maxOverride     = 256 << 10
)

// SetOverride replaces the override of that name.
func (s *Store) SetOverride(name string, o Override, rec audit.Record) error {
	if name == "" || len(name) > maxOverrideName || len(o.Value) > maxOverride {
		return fmt.Errorf("replacing a setting: name of %d bytes and value of %d, want 1 to %d and at most %d", len(name), len(o.Value), maxOverrideName, maxOverride)
	}
	err := s.do(false, func(c *change) error {
		c.record(rec)
		return c.setJSON(key(prefixOverride, name), o)
	})
	if err != nil {
		return fmt.Errorf("replacing a setting: %w", err)
	}
	return nil
}

// RemoveOverride puts the site's own value back in force; ErrNotFound where nothing replaces it.
func (s *Store) RemoveOverride(name string, rec audit.Record) error {
	err := s.do(false, func(c *change) error {
		if _, err := c.get(key(prefixOverride, name)); err != nil {
			return err
		}
		c.record(rec)
		c.delete(key(prefixOverride, name))
		return nil
	})
	if err != nil {
		return fmt.Errorf("removing the replacement of a setting: %w", err)
	}
	return nil
}

// Overrides returns every override by its name.
func (s *Store) Overrides() (map[string]Override, error) {
	all := map[string]Override{}
	err := s.read(func(db *pebble.DB) error {
		it, err := db.NewIter(&pebble.IterOptions{LowerBound: []byte{prefixOverride}, UpperBound: []byte{prefixOverride + 1}})
		if err != nil {
			return err
		}
		defer it.Close()
		for it.First(); it.Valid(); it.Next() {
			var o Override
			if err := decode(it.Value(), &o); err != nil {
				return err
			}
			all[string(it.Key()[1:])] = o
		}
		return it.Error()
	})
	if err != nil {
		return nil, fmt.Errorf("reading what replaces the site's settings: %w", err)
	}
	return all, nil
}
