package challenge

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"unicode"
	"unicode/utf8"

	"signet.internal/appliance/challenge/phc"
	"signet.internal/appliance/pki"
)

// ErrTooMany means that a source sent too many wrong passwords lately; nothing was verified.
var ErrTooMany = errors.New("too many wrong passwords from this source")

// Bounds on the users of a profile.
const (
	maxUsers    = 64
	maxUserName = 255 // bytes
	maxFor      = 256 // names
)

// User is one HTTP Basic user of a profile.
type User struct {
	Name string   // without colon (RFC 7617 §2)
	Hash string   // argon2id, as `signet hash` prints it
	For  []string // names that a CSR may be for; empty: any that the profile allows
}

// Mismatch says what a request asks for that the user is not for, "" where there is nothing: a common name
// or, without one, what names the device instead, an e-mail address in the subject, a subjectAltName or an
// Active Directory account.
func (u User) Mismatch(csr *pki.Request) string {
	if len(u.For) == 0 {
		return ""
	}
	names := csr.Names()
	if len(names) == 0 {
		return "a request without common name and subjectAltName"
	}
	if names[0].Kind != pki.CN {
		names = append(names, pki.Name{Kind: "device", Value: csr.Identity()})
	}
	addresses, err := subjectValues(csr.RawSubject, oidEmailAddress)
	if err != nil {
		return err.Error()
	}
	for _, address := range addresses {
		names = append(names, pki.Name{Kind: "subject emailAddress", Value: address})
	}
	for _, name := range names {
		if !slices.ContainsFunc(u.For, func(f string) bool { return fold(f) == fold(name.Value) }) {
			return fmt.Sprintf("%s %q", name.Kind, name.Value)
		}
	}
	if csr.SID != "" && !slices.Contains(u.For, csr.SID) { // an account to log in by
		return "SID " + csr.SID
	}
	return ""
}

// Passwords verifies the HTTP Basic users of a profile. Each password is verified as a [Static]
// challenge is; besides, after [MaxFailures] wrong ones within [FailurePeriod] nothing of their source
// is verified, the right password included.
//
// A user that is not there costs as much as one that is, so that names cannot be found by time.
type Passwords struct {
	gate    *Gate
	current atomic.Pointer[userTable]
}

// userTable never changes.
type userTable struct {
	users  map[string]registered
	decoys []*verifier // one for each user, with that user's costs
	picker *verifier   // whose key picks a decoy; a decoy as well
}

type registered struct {
	User
	verifier *verifier
}

// NewPasswords checks the users and has their verifications and failures count against the gate.
func (g *Gate) NewPasswords(users []User) (*Passwords, error) {
	p := &Passwords{gate: g}
	if err := p.Replace(users); err != nil {
		return nil, err
	}
	return p, nil
}

// Replace exchanges the users for requests from now on. Where the new ones are not good it returns an
// error and the old ones stay.
func (p *Passwords) Replace(users []User) error {
	if len(users) == 0 || len(users) > maxUsers {
		return fmt.Errorf("%d users, give 1 to %d", len(users), maxUsers)
	}
	old := p.current.Load()
	t := &userTable{users: make(map[string]registered, len(users))}
	for _, u := range users {
		if err := u.check(); err != nil {
			return err
		}
		if _, ok := t.users[u.Name]; ok {
			return fmt.Errorf("user %q is there twice", u.Name)
		}
		hash, err := phc.Parse(u.Hash)
		if err != nil {
			return fmt.Errorf("user %q: %w", u.Name, err)
		}
		u.For = slices.Clone(u.For)
		r := registered{User: u}
		if was, ok := old.user(u.Name); ok && was.Hash == u.Hash {
			r.verifier = was.verifier // with what it remembers
		} else {
			r.verifier = newVerifier(p.gate, hash)
			r.verifier.failures = &p.gate.failures
		}
		t.users[u.Name] = r
		decoy := newVerifier(p.gate, hash)
		decoy.failures, decoy.isDecoy = &p.gate.failures, true
		t.decoys = append(t.decoys, decoy)
	}
	t.picker = t.decoys[0]
	p.current.Store(t)
	return nil
}

func (u User) check() error {
	if u.Name == "" || len(u.Name) > maxUserName || !utf8.ValidString(u.Name) ||
		strings.Contains(u.Name, ":") || strings.ContainsFunc(u.Name, unicode.IsControl) {
		return fmt.Errorf("user %.40q: give a name of 1 to %d bytes without colon and control characters", u.Name, maxUserName)
	}
	if len(u.For) > maxFor {
		return fmt.Errorf("user %q is for %d names, give up to %d, or none for any", u.Name, len(u.For), maxFor)
	}
	if slices.Contains(u.For, "") {
		return fmt.Errorf("user %q is for an empty name, remove it", u.Name)
	}
	return nil
}

// user returns a user by name; t may be nil.
func (t *userTable) user(name string) (registered, bool) {
	if t == nil {
		return registered{}, false
	}
	r, ok := t.users[name]
	return r, ok
}

// decoy returns what a name that is no user is verified by, the same one each time.
func (t *userTable) decoy(name string) *verifier {
	sum := t.picker.sum(name, "")
	return t.decoys[binary.BigEndian.Uint64(sum[:])%uint64(len(t.decoys))]
}

// Verify returns the user whose password it is, without Hash. [ErrWrong] is a wrong password or no
// user of that name, [ErrTooMany] that nothing was verified because of earlier ones; [ErrBusy] and the
// context's error say nothing about the password.
func (p *Passwords) Verify(ctx context.Context, from netip.Addr, user, password string) (User, error) {
	t := p.current.Load()
	r, ok := t.user(user)
	if !ok {
		r.verifier = t.decoy(user)
	}
	if err := r.verifier.check(ctx, from, user, password); err != nil {
		return User{}, fmt.Errorf("verifying password: %w", err)
	}
	return User{Name: r.Name, For: slices.Clone(r.For)}, nil
}

// Names returns the names of the users, sorted.
func (p *Passwords) Names() []string {
	var names []string
	for name := range p.current.Load().users {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
