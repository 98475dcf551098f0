package store

import (
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"signet.internal/appliance/audit"
)

// ErrClaimed: Claim on a box that has an administrator.
var ErrClaimed = errors.New("box is already claimed, ask its administrator for access")

// User is a person who may use the console.
type User struct {
	Name         string    `json:"name"`
	Role         string    `json:"role"`
	PasswordHash string    `json:"password_hash"` // "$argon2id$…"
	Created      time.Time `json:"created"`
}

// Token is an API token of a user. Only its SHA-256 is kept: a token is 128 random bits or more, so
// the hash cannot be searched.
type Token struct {
	Hash    [32]byte  `json:"-"` // part of the key
	Name    string    `json:"name"`
	User    string    `json:"user"`
	Role    string    `json:"role"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"` // zero: never
}

// maxName bounds names of users.
const maxName = 128

// Claimed reports whether the box has a user.
func (s *Store) Claimed() bool {
	s.durable.RLock()
	defer s.durable.RUnlock()
	return s.head.claimed
}

// Claim creates the first user and their token: ErrClaimed when there is any user already.
func (s *Store) Claim(u User, t Token, rec audit.Record) error {
	if u.Name == "" || len(u.Name) > maxName {
		return fmt.Errorf("claiming the box: user name of %d bytes, want 1 to %d", len(u.Name), maxName)
	}
	err := s.do(false, func(c *change) error {
		if c.head.claimed {
			return ErrClaimed
		}
		c.head.claimed = true
		c.record(rec)
		if err := c.setJSON(key(prefixUser, u.Name), u); err != nil {
			return err
		}
		return c.setJSON(hashKey(prefixToken, t.Hash), t)
	})
	if err != nil {
		return fmt.Errorf("claiming the box: %w", err)
	}
	return nil
}

// User returns the user of that name, or ErrNotFound.
func (s *Store) User(name string) (User, error) {
	var u User
	if len(name) > maxName {
		return User{}, fmt.Errorf("reading user: %w", ErrNotFound)
	}
	err := s.read(func(db *pebble.DB) error {
		b, err := s.get(db, key(prefixUser, name))
		if err != nil {
			return err
		}
		return decode(b, &u)
	})
	if err != nil {
		return User{}, fmt.Errorf("reading user: %w", err)
	}
	return u, nil
}

// TokenByHash returns the token with that SHA-256, or ErrNotFound. Expiry is the caller's to check.
func (s *Store) TokenByHash(h [32]byte) (Token, error) {
	t := Token{Hash: h}
	err := s.read(func(db *pebble.DB) error {
		b, err := s.get(db, hashKey(prefixToken, h))
		if err != nil {
			return err
		}
		return decode(b, &t)
	})
	if err != nil {
		return Token{}, fmt.Errorf("reading token: %w", err)
	}
	return t, nil
}
