package store

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"signet.internal/appliance/audit"
)

// ErrClaimed: Claim on a box that has an administrator.
var ErrClaimed = errors.New("box is already claimed, ask its administrator for access")

// Refusals of changes to users and what they sign in with.
var (
	ErrNoUser            = errors.New("no such user")
	ErrUserExists        = errors.New("there is a user of that name already")
	ErrLastAdministrator = errors.New("nobody else can administer the box")
	ErrTooMany           = errors.New("as many as the box keeps")
	ErrNoToken           = errors.New("no such token")
	ErrNoPasskey         = errors.New("no such passkey")
	ErrPasskeyExists     = errors.New("the passkey is known already")
	ErrSuspect           = errors.New("there may be a copy of the passkey")
)

// Administrator is the role of which the box never loses its last user who is not switched off.
const Administrator = "administrator"

// User is a person who may use the console.
//
// Whoever can change users, tokens or passkeys can act as any of them; the audit log does not show it then.
// Who can read them learns names and sources, and can try short passwords against the hashes.
type User struct {
	Name         string    `json:"name"`
	Role         string    `json:"role"`
	PasswordHash string    `json:"password_hash"` // "$argon2id$…"
	Created      time.Time `json:"created"`
	Off          bool      `json:"off,omitempty"`     // may not sign in, and their tokens are not taken
	Handle       []byte    `json:"handle,omitempty"`  // WebAuthn user handle, random; nil before the first passkey
	Sources      []Seen    `json:"sources,omitempty"` // they signed in from, the newest first
}

// Seen is a source that a user signed in from.
type Seen struct {
	Source netip.Prefix `json:"source"`
	At     time.Time    `json:"at"`
}

// Bounds on what the box keeps of people.
const (
	maxUsers    = 500
	maxTokens   = 100 // of one user
	maxPasskeys = 20  // of one user
	maxSeen     = 8   // sources of one user
)

// Token is an API token of a user. Only its SHA-256 is kept: a token is 128 random bits or more, so
// the hash cannot be searched.
type Token struct {
	Hash     [32]byte  `json:"-"` // part of the key
	Name     string    `json:"name"`
	User     string    `json:"user"`
	Role     string    `json:"role"`
	Created  time.Time `json:"created"`
	Expires  time.Time `json:"expires"`            // zero: never
	Profiles []string  `json:"profiles,omitempty"` // it only mints challenges, for these; nil: it does what its role allows
	Used     string    `json:"used,omitempty"`     // last day it was used, "2006-01-02" in UTC; "" before the first
	Maker    []byte    `json:"maker,omitempty"`    // hash of the token it was made with, and goes with; nil: made otherwise
}

// Passkey is a WebAuthn credential of a user.
type Passkey struct {
	ID             []byte    `json:"id"` // credential id, up to 1023 bytes
	User           string    `json:"user"`
	Name           string    `json:"name"`
	Host           string    `json:"host"`       // RP ID: it signs for this host alone
	PublicKey      []byte    `json:"public_key"` // COSE_Key (RFC 9052 §7)
	SignCount      uint32    `json:"sign_count"` // of the last assertion; 0 where the authenticator keeps none
	BackupEligible bool      `json:"backup_eligible"`
	BackedUp       bool      `json:"backed_up"`
	Transports     []string  `json:"transports,omitempty"`
	Created        time.Time `json:"created"`
	Used           time.Time `json:"used,omitzero"`
	Suspect        bool      `json:"suspect,omitempty"` // its sign count went back: there may be a copy, and it signs nobody in
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
