package store

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"signet.internal/appliance/audit"
)

// user reads a user as this transition finds them: ErrNoUser where there is none.
func (c *change) user(name string) (User, error) {
	var u User
	if len(name) > maxName {
		return u, ErrNoUser
	}
	b, err := c.get(key(prefixUser, name))
	if errors.Is(err, ErrNotFound) {
		return u, ErrNoUser
	}
	if err != nil {
		return u, err
	}
	return u, decode(b, &u)
}

func (c *change) users() ([]User, error) {
	return entries[User](c.state, prefixUser, nil)
}

// entries decodes every entry of a prefix, in the order of their names. named, where it is not nil, gives a
// value what its name holds of it.
func entries[T any](from pebble.Reader, prefix byte, named func(v *T, name []byte)) ([]T, error) {
	var all []T
	err := scanRange(from, []byte{prefix}, []byte{prefix + 1}, func(k, b []byte) error {
		var v T
		if err := decode(b, &v); err != nil {
			return err
		}
		if named != nil {
			named(&v, k[1:])
		}
		all = append(all, v)
		return nil
	})
	return all, err
}

func withHash(t *Token, name []byte) { copy(t.Hash[:], name) }

// needsAnother refuses what would leave nobody to administer the box.
func (c *change) needsAnother(than User) error {
	if than.Role != Administrator || than.Off {
		return nil
	}
	all, err := c.users()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(all, func(u User) bool { return u.Name != than.Name && u.Role == Administrator && !u.Off }) {
		return ErrLastAdministrator
	}
	return nil
}

// Users returns every user by name.
func (s *Store) Users() (all []User, err error) {
	err = s.read(func(db *pebble.DB) error {
		all, err = entries[User](db, prefixUser, nil)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading users: %w", err)
	}
	return all, nil
}

// CreateUser adds a user: ErrUserExists, or ErrTooMany.
func (s *Store) CreateUser(u User, rec audit.Record) error {
	if u.Name == "" || len(u.Name) > maxName {
		return fmt.Errorf("creating a user: name of %d bytes, want 1 to %d", len(u.Name), maxName)
	}
	err := s.do(false, func(c *change) error {
		if !c.head.claimed {
			return ErrNoUser // the first one claims the box
		}
		if _, err := c.user(u.Name); !errors.Is(err, ErrNoUser) {
			return errors.Join(ErrUserExists, err)
		}
		all, err := c.users()
		if err != nil {
			return err
		}
		if len(all) >= maxUsers {
			return ErrTooMany
		}
		c.record(rec)
		return c.setJSON(key(prefixUser, u.Name), u)
	})
	if err != nil {
		return fmt.Errorf("creating a user: %w", err)
	}
	return nil
}

// UserChange is what is to become of a user; what is nil stays.
type UserChange struct {
	Role         *string
	PasswordHash *string
	Off          *bool
	Knew         *string // the password hash that whoever changes it knows the password of; nil: any
}

// ChangeUser changes a user, with a record of each thing that changes: ErrNoUser, ErrLastAdministrator, or
// ErrConflict where the password is not the one that was known.
func (s *Store) ChangeUser(name string, to UserChange, recs ...audit.Record) error {
	err := s.do(false, func(c *change) error {
		was, err := c.user(name)
		if err != nil {
			return err
		}
		if to.Knew != nil && *to.Knew != was.PasswordHash {
			return ErrConflict
		}
		u := was
		if to.Role != nil {
			u.Role = *to.Role
		}
		if to.Off != nil {
			u.Off = *to.Off
		}
		if to.PasswordHash != nil {
			u.PasswordHash = *to.PasswordHash
		}
		if u.Role != Administrator || u.Off {
			if err := c.needsAnother(was); err != nil {
				return err
			}
		}
		for _, rec := range recs {
			c.record(rec)
		}
		return c.setJSON(key(prefixUser, name), u)
	})
	if err != nil {
		return fmt.Errorf("changing a user: %w", err)
	}
	return nil
}

// RemoveUser removes a user with their tokens and passkeys: ErrNoUser, or ErrLastAdministrator.
func (s *Store) RemoveUser(name string, rec audit.Record) error {
	err := s.do(false, func(c *change) error {
		u, err := c.user(name)
		if err != nil {
			return err
		}
		if err := c.needsAnother(u); err != nil {
			return err
		}
		tokens, err := entries(c.state, prefixToken, withHash)
		if err != nil {
			return err
		}
		for _, t := range tokens {
			if t.User == name {
				c.delete(hashKey(prefixToken, t.Hash))
			}
		}
		passkeys, err := entries[Passkey](c.state, prefixPasskey, nil)
		if err != nil {
			return err
		}
		for _, p := range passkeys {
			if p.User == name {
				c.delete(passkeyKey(p.ID))
			}
		}
		c.record(rec)
		c.delete(key(prefixUser, name))
		return nil
	})
	if err != nil {
		return fmt.Errorf("removing a user: %w", err)
	}
	return nil
}

// seen puts a source first among those of a user, and drops the oldest beyond maxSeen.
func (u *User) seen(from netip.Prefix, at time.Time) {
	u.Sources = slices.DeleteFunc(slices.Clone(u.Sources), func(s Seen) bool { return s.Source == from })
	u.Sources = slices.Insert(u.Sources, 0, Seen{from, at})
	u.Sources = u.Sources[:min(len(u.Sources), maxSeen)]
}

// SignIn records that a user signed in, and from where. ErrNoUser: they are gone, or switched off.
func (s *Store) SignIn(name string, from netip.Prefix, rec audit.Record) error {
	err := s.do(false, func(c *change) error { return c.signIn(name, from, rec) })
	if err != nil {
		return fmt.Errorf("recording a sign-in: %w", err)
	}
	return nil
}

func (c *change) signIn(name string, from netip.Prefix, rec audit.Record) error {
	u, err := c.user(name)
	if err != nil {
		return err
	}
	if u.Off {
		return ErrNoUser
	}
	u.seen(from, rec.Time)
	c.record(rec)
	return c.setJSON(key(prefixUser, name), u)
}

// Tokens returns every token, expired ones too, in the order of their hashes.
func (s *Store) Tokens() (all []Token, err error) {
	err = s.read(func(db *pebble.DB) error {
		all, err = entries(db, prefixToken, withHash)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading tokens: %w", err)
	}
	return all, nil
}

// CreateToken adds a token to those of its user: ErrNoUser, ErrTooMany, or ErrNoToken where the one it is made with
// is gone.
func (s *Store) CreateToken(t Token, rec audit.Record) error {
	err := s.do(false, func(c *change) error {
		if _, err := c.user(t.User); err != nil {
			return err
		}
		if t.Maker != nil {
			if _, err := c.get(append([]byte{prefixToken}, t.Maker...)); err != nil {
				return notFoundAs(err, ErrNoToken)
			}
		}
		all, err := entries(c.state, prefixToken, withHash)
		if err != nil {
			return err
		}
		if countOf(all, func(one Token) bool { return one.User == t.User }) >= maxTokens {
			return ErrTooMany
		}
		c.record(rec)
		return c.setJSON(hashKey(prefixToken, t.Hash), t)
	})
	if err != nil {
		return fmt.Errorf("creating a token: %w", err)
	}
	return nil
}

func countOf[T any](all []T, is func(T) bool) (n int) {
	for _, one := range all {
		if is(one) {
			n++
		}
	}
	return n
}

// RemoveToken has a token, and those that were made with it, be taken no more, with the record that record makes of
// each: ErrNoToken.
func (s *Store) RemoveToken(hash [32]byte, record func(Token) audit.Record) error {
	err := s.do(false, func(c *change) error {
		all, err := entries(c.state, prefixToken, withHash)
		if err != nil {
			return err
		}
		gone := slices.IndexFunc(all, func(t Token) bool { return t.Hash == hash })
		if gone < 0 {
			return ErrNoToken
		}
		for doomed := []Token{all[gone]}; len(doomed) > 0; doomed = doomed[1:] {
			c.record(record(doomed[0]))
			c.delete(hashKey(prefixToken, doomed[0].Hash))
			for _, t := range all {
				if bytes.Equal(t.Maker, doomed[0].Hash[:]) {
					doomed = append(doomed, t)
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("removing a token: %w", err)
	}
	return nil
}

// notFoundAs says which thing was not found.
func notFoundAs(err, as error) error {
	if errors.Is(err, ErrNotFound) {
		return as
	}
	return err
}

// TokenUsed remembers the day a token was last used. It has no record of its own: what the token did has.
func (s *Store) TokenUsed(hash [32]byte, at time.Time) error {
	err := s.do(false, func(c *change) error {
		b, err := c.get(hashKey(prefixToken, hash))
		if err != nil {
			return notFoundAs(err, ErrNoToken)
		}
		t := Token{Hash: hash}
		if err := decode(b, &t); err != nil {
			return err
		}
		t.Used = at.UTC().Format(time.DateOnly)
		return c.setJSON(hashKey(prefixToken, hash), t)
	})
	if err != nil {
		return fmt.Errorf("remembering the use of a token: %w", err)
	}
	return nil
}

func passkeyKey(id []byte) []byte { return hashKey(prefixPasskey, sha256.Sum256(id)) }

func (c *change) passkey(id []byte) (Passkey, error) {
	var p Passkey
	b, err := c.get(passkeyKey(id))
	if err != nil {
		return p, notFoundAs(err, ErrNoPasskey)
	}
	return p, decode(b, &p)
}

// Passkeys returns the passkeys of a user, the oldest first.
func (s *Store) Passkeys(user string) ([]Passkey, error) {
	var all []Passkey
	err := s.read(func(db *pebble.DB) (err error) {
		all, err = entries[Passkey](db, prefixPasskey, nil)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading passkeys: %w", err)
	}
	all = slices.DeleteFunc(all, func(p Passkey) bool { return p.User != user })
	slices.SortFunc(all, func(a, b Passkey) int { return a.Created.Compare(b.Created) })
	return all, nil
}

// Passkey returns the passkey with that credential id, or ErrNoPasskey.
func (s *Store) Passkey(id []byte) (Passkey, error) {
	var p Passkey
	err := s.read(func(db *pebble.DB) error {
		b, err := s.get(db, passkeyKey(id))
		if err != nil {
			return notFoundAs(err, ErrNoPasskey)
		}
		return decode(b, &p)
	})
	if err != nil {
		return Passkey{}, fmt.Errorf("reading passkey: %w", err)
	}
	return p, nil
}

// AddPasskey adds a passkey to those of its user, whose handle it was made for: ErrNoUser, ErrPasskeyExists,
// ErrTooMany, or ErrConflict where the user has another handle.
func (s *Store) AddPasskey(p Passkey, handle []byte, rec audit.Record) error {
	err := s.do(false, func(c *change) error {
		u, err := c.user(p.User)
		if err != nil {
			return err
		}
		if u.Handle == nil {
			u.Handle = handle
			if err := c.setJSON(key(prefixUser, u.Name), u); err != nil {
				return err
			}
		}
		if len(handle) == 0 || !bytes.Equal(u.Handle, handle) {
			return ErrConflict
		}
		if _, err := c.passkey(p.ID); !errors.Is(err, ErrNoPasskey) {
			return errors.Join(ErrPasskeyExists, err)
		}
		all, err := entries[Passkey](c.state, prefixPasskey, nil)
		if err != nil {
			return err
		}
		if countOf(all, func(one Passkey) bool { return one.User == p.User }) >= maxPasskeys {
			return ErrTooMany
		}
		c.record(rec)
		return c.setJSON(passkeyKey(p.ID), p)
	})
	if err != nil {
		return fmt.Errorf("adding a passkey: %w", err)
	}
	return nil
}

// SignInByPasskey is SignIn together with what the passkey's assertion said. The sign count has to be above
// the one known, unless both are 0: where it is not, there may be a copy of the passkey, which becomes
// suspect, with the record suspect, and the sign-in is refused (WebAuthn Level 3 §6.1.1).
func (s *Store) SignInByPasskey(id []byte, signCount uint32, backedUp bool, from netip.Prefix, rec, suspect audit.Record) error {
	refused := false
	err := s.do(false, func(c *change) error {
		p, err := c.passkey(id)
		if err != nil {
			return err
		}
		if p.Suspect {
			return ErrSuspect
		}
		if signCount <= p.SignCount && (signCount != 0 || p.SignCount != 0) {
			refused, p.Suspect = true, true
			c.record(suspect)
			return c.setJSON(passkeyKey(id), p)
		}
		p.SignCount, p.BackedUp, p.Used = signCount, backedUp, rec.Time
		if err := c.setJSON(passkeyKey(id), p); err != nil {
			return err
		}
		return c.signIn(p.User, from, rec)
	})
	if err == nil && refused {
		err = ErrSuspect
	}
	if err != nil {
		return fmt.Errorf("recording a sign-in by passkey: %w", err)
	}
	return nil
}

// RemovePasskey removes a passkey of a user: ErrNoPasskey where it is not theirs.
func (s *Store) RemovePasskey(user string, id []byte, rec audit.Record) error {
	err := s.do(false, func(c *change) error {
		p, err := c.passkey(id)
		if err != nil {
			return err
		}
		if p.User != user {
			return ErrNoPasskey
		}
		c.record(rec)
		c.delete(passkeyKey(id))
		return nil
	})
	if err != nil {
		return fmt.Errorf("removing a passkey: %w", err)
	}
	return nil
}
