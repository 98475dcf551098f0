package webui

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/store"
)

// claim creates the first administrator. The order matters: what costs nothing and tells nothing
// comes first, a password is hashed only for someone who has read the box's screen, and the store
// alone decides who was first.
func (c *console) claim(r *http.Request, in ClaimRequest) (ClaimResponse, error) {
	c.claiming.Lock()
	defer c.claiming.Unlock()
	if c.cfg.Store.Claimed() {
		c.note(r, audit.ClaimRefused, "the box has an administrator already")
		return ClaimResponse{}, store.ErrClaimed
	}
	if err := checkUser(in.User); err != nil {
		return ClaimResponse{}, err
	}
	if in.Password != "" {
		if err := checkPassword(in.Password); err != nil {
			return ClaimResponse{}, err
		}
	}
	if err := c.checkCode(r, in); err != nil {
		return ClaimResponse{}, err
	}

	out := ClaimResponse{User: in.User, Role: administrator.String()}
	if in.Password == "" {
		in.Password = makePassword()
		out.Password = in.Password
	}
	hash, err := c.hasher.hash(r.Context(), in.Password)
	if err != nil {
		return ClaimResponse{}, err
	}
	// Password and token are shown in the answer alone: whoever did not wait for the hash, which takes long on a slow machine, claims nothing.
	if err := r.Context().Err(); err != nil {
		return ClaimResponse{}, err
	}
	var tokenHash [32]byte
	out.Token, tokenHash = newToken()
	now := c.cfg.Now().UTC()
	rec := c.record(r, audit.AdminClaimed, audit.OutcomeSuccess)
	rec.Actor = in.User
	err = c.cfg.Store.Claim(
		store.User{Name: in.User, Role: out.Role, PasswordHash: hash, Created: now},
		store.Token{Hash: tokenHash, Name: "claim", User: in.User, Role: out.Role, Created: now, Expires: now.Add(tokenLife)},
		rec)
	if errors.Is(err, store.ErrClaimed) {
		return ClaimResponse{}, err
	}
	if err != nil {
		return ClaimResponse{}, fmt.Errorf("storing the first administrator: %w", err)
	}
	if c.cfg.OnClaimed != nil {
		c.cfg.OnClaimed()
	}
	return out, nil
}

// codesPerMinute bounds wrong claim codes of all sources together.
const codesPerMinute = 500

// checkCode compares the claim code. Wrong ones are counted per source, so that nobody who keeps
// guessing keeps the owner out, and together for all sources, because one code opens the box to
// anyone: codesPerMinute tries at 40 bits of code need some two thousand years. Both counts empty
// within a minute.
func (c *console) checkCode(r *http.Request, in ClaimRequest) error {
	key := sourceKey(c.cfg.Source(r))
	if retry, ok := c.codes.take(key); !ok {
		return &limitedError{"too many wrong claim codes from your address in the last minute", retry}
	}
	if retry, ok := c.allCodes.take(everyone); !ok {
		c.codes.giveBack(key)
		return &limitedError{"too many wrong claim codes in the last minute", retry}
	}
	got, want := sha256.Sum256([]byte(bareCode(in.Code))), sha256.Sum256([]byte(bareCode(c.cfg.ClaimCode)))
	if subtle.ConstantTimeCompare(got[:], want[:]) == 1 && bareCode(c.cfg.ClaimCode) != "" {
		c.codes.giveBack(key)
		c.allCodes.giveBack(everyone)
		return nil
	}
	c.note(r, audit.ClaimRefused, "wrong claim code")
	return errWrongCode
}

// bareCode drops what people add or change when they copy a code.
func bareCode(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '-' || r == ' ' || r == '\t' || r == '\u00a0' || r == '\u2013' {
			return -1
		}
		return r
	}, strings.ToUpper(s))
}

const maxUser = 64

func checkUser(name string) error {
	const mend = "use 1 to 64 letters, digits and the characters . _ - @"
	if name == "" {
		return &inputError{"user", "no user name given", mend}
	}
	ok := len(name) <= maxUser
	for i, r := range name {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		ok = ok && (letter || i > 0 && strings.ContainsRune("._-@", r))
	}
	if !ok || strings.EqualFold(name, audit.ActorDevice) || strings.EqualFold(name, audit.ActorBox) {
		return &inputError{"user", "the user name is not acceptable", mend + ", beginning with a letter or digit"}
	}
	return nil
}

// record starts an audit record about a request of the console; the store adds its index.
func (c *console) record(r *http.Request, action audit.Action, outcome audit.Outcome) audit.Record {
	return audit.Record{
		Time: c.cfg.Now().UTC(), TimeSource: c.cfg.TimeSource,
		Action: action, Source: c.cfg.Source(r).String(), Outcome: outcome,
	}
}

// knownFor is how long the box remembers where somebody signed in from.
const knownFor = 90 * 24 * time.Hour

// knows tells whether user signed in from that source not long ago.
func (c *console) knows(user store.User, source netip.Prefix) bool {
	return slices.ContainsFunc(user.Sources, func(s store.Seen) bool {
		age := c.cfg.Now().Sub(s.At)
		return s.Source == source && age < knownFor
	})
}

// signIn checks a password and begins a session, whose identifier it returns.
//
// Wrong guesses are delayed by source, and by user name for all sources together, known or not. Whoever comes
// from a source that signed in under that name before is counted apart, so that no stranger's guesses keep
// them out.
func (c *console) signIn(r *http.Request, name, password string) (string, error) {
	if len(password) > maxPassword || len(name) > maxUser {
		name, password = "", ""
	}
	user, err := c.cfg.Store.User(name)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return "", fmt.Errorf("looking up user: %w", err)
	}
	exists := err == nil
	source := sourceKey(c.cfg.Source(r))
	known := exists && c.knows(user, source)
	giveBack, err := c.takeSignIn(source, name, known)
	if err != nil {
		return "", err
	}
	err = c.checkSignIn(r.Context(), user, password, known)
	if !errors.Is(err, errWrongPassword) {
		giveBack() // right, or never checked
	}
	switch {
	case errors.Is(err, errWrongPassword) && exists:
		c.noteOf(r, audit.LoginRefused, "wrong password", name)
	case errors.Is(err, errWrongPassword):
		c.note(r, audit.LoginRefused, "wrong user name or password")
	case errors.Is(err, errSwitchedOff):
		c.noteOf(r, audit.LoginRefused, "the user is switched off", name)
	}
	if err != nil {
		return "", err
	}
	c.guessed.forget(name)
	return c.beginSession(r, user, howPassword)
}

// takeSignIn counts a guess before it is checked, and returns what takes it back.
func (c *console) takeSignIn(source netip.Prefix, name string, known bool) (giveBack func(), err error) {
	if known {
		key := source.String() + " " + name
		if retry, ok := c.signIns.take(key); !ok {
			return nil, &limitedError{"too many wrong passwords for this user from your address", retry}
		}
		return func() { c.signIns.giveBack(key) }, nil
	}
	key := source.String()
	if retry, ok := c.signIns.take(key); !ok {
		return nil, &limitedError{"too many wrong passwords from your address", retry}
	}
	if retry, ok := c.guessed.take(name); !ok {
		c.signIns.giveBack(key)
		return nil, &limitedError{"too many wrong passwords for this user; who signed in from here before is not delayed, nor is a passkey", retry}
	}
	return func() { c.signIns.giveBack(key); c.guessed.giveBack(name) }, nil
}

// checkSignIn checks the password of user, the zero user where there is none of the name.
func (c *console) checkSignIn(ctx context.Context, user store.User, password string, known bool) error {
	waiting := c.hasher.strangers
	if known {
		waiting = c.hasher.known
	}
	if user.PasswordHash == "" {
		user.PasswordHash = nobodysHash
	}
	if err := c.hasher.verify(ctx, waiting, user.PasswordHash, password); err != nil {
		return err
	}
	if user.Off {
		return errSwitchedOff
	}
	return nil
}

// beginSession signs in a user who proved who they are; user is as they were before that. No session exists that
// is not in the audit log.
func (c *console) beginSession(r *http.Request, user store.User, how string) (string, error) {
	rec := c.record(r, audit.SignedIn, audit.OutcomeSuccess)
	rec.Actor, rec.Reason = user.Name, "by "+how
	if err := c.cfg.Store.SignIn(user.Name, sourceKey(c.cfg.Source(r)), rec); err != nil {
		return "", fmt.Errorf("recording a sign-in: %w", err)
	}
	return c.openSession(r, user, session{how: how})
}

// openSession keeps a session whose beginning is recorded, of a user as they were when they proved who they are.
//
// Whoever changes or removes a user does so in the store first and ends their sessions after it. So the store is
// asked once more when the session is kept already: what it does not know of yet ends the session as all others.
func (c *console) openSession(r *http.Request, was store.User, one session) (string, error) {
	one.user, one.source, one.agent = was.Name, c.cfg.Source(r).String(), r.UserAgent()
	id := c.sessions.begin(one)
	is, err := c.cfg.Store.User(was.Name)
	if one.passkey != "" && err == nil {
		_, err = c.cfg.Store.Passkey([]byte(one.passkey))
	}
	if err == nil && is.Role == was.Role && is.PasswordHash == was.PasswordHash && is.Created.Equal(was.Created) && !is.Off {
		return id, nil
	}
	c.sessions.end(id)
	if err != nil && !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrNoPasskey) {
		return "", fmt.Errorf("looking up user: %w", err)
	}
	return "", errChanged
}

// notesPerMinute bounds what strangers can make the box write, and sync, to its log.
const notesPerMinute = 30

// note writes an audit record about a refusal of someone unknown. Beyond notesPerMinute refusals are
// counted, and the next record says how many came between. Names nobody has are left out: people type
// passwords into them.
func (c *console) note(r *http.Request, action audit.Action, reason string) {
	c.noteOf(r, action, reason, "")
}

// noteOf is note, with the name of a user who exists.
func (c *console) noteOf(r *http.Request, action audit.Action, reason, user string) {
	if _, ok := c.notes.take(everyone); !ok {
		c.unnoted.Add(1)
		return
	}
	rec := c.record(r, action, audit.OutcomeRefused)
	rec.Reason, rec.Identity = reason, user
	if between := c.unnoted.Swap(0); between > 0 {
		rec.Reason += fmt.Sprintf("; before this, %d more refusals were counted and not written", between)
	}
	if err := c.cfg.Store.Append(rec); err != nil {
		c.cfg.Log.LogAttrs(r.Context(), slog.LevelError, "recording a refusal", slog.Any("err", err))
	}
}
