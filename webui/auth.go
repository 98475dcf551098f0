package webui

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"signet.internal/appliance/store"
)

// role is what a caller may do; each includes the ones before it.
type role int

const (
	anonymous     role = iota
	auditor            // reads
	operator           // approves, revokes, mints
	administrator      // everything
)

// roleNames is how the store, the API and the pages spell a role.
var roleNames = []string{"anonymous", "auditor", "operator", "administrator"}

func (r role) String() string { return roleNames[r] }

// freshFor is how long after signing in a session may make or replace what outlives it: users, tokens, passkeys,
// secrets, keys and whom the box trusts.
const freshFor = 30 * time.Minute

// fresh refuses what would let somebody stay who found a browser signed in.
func (c *console) fresh(who principal) error {
	if who.via == viaSession && c.cfg.Now().Sub(who.session.begun) >= freshFor {
		return errStale
	}
	return nil
}

// freshly is do, for whoever [console.fresh] lets.
func (c *console) freshly(who principal, do func() error) error {
	if err := c.fresh(who); err != nil {
		return err
	}
	return do()
}

// whole refuses a token that may do less than its user: what opens their account is not its to take away.
func whole(who principal) error {
	if who.limited {
		return errRole
	}
	return nil
}

// parseRole knows only the roles a user can have.
func parseRole(s string) (role, error) {
	for r := auditor; r <= administrator; r++ {
		if r.String() == s {
			return r, nil
		}
	}
	return anonymous, fmt.Errorf("stored role %q is unknown", s)
}

// principal is who sent a request; the zero value is an anonymous visitor.
type principal struct {
	user     string
	role     role
	limited  bool      // the token may do less than its user
	via      string    // name of the token, or viaSession
	session  session   // where via is viaSession
	token    []byte    // its hash; nil for others
	expires  time.Time // of the token; zero: never
	profiles []string  // the token only mints challenges, for these; nil: no such limit
}

// viaSession marks a principal who came by session cookie. No token can have this name.
const viaSession = "\x00session"

const (
	tokenPrefix = "sgt_" // lets secret scanners recognise a leaked token
	tokenLife   = 365 * 24 * time.Hour
)

// newToken returns a 256-bit bearer token. Only its hash is ever stored.
func newToken() (text string, hash [32]byte) {
	raw := make([]byte, 32)
	rand.Read(raw)
	text = tokenPrefix + base64.RawURLEncoding.EncodeToString(raw)
	return text, sha256.Sum256([]byte(text))
}

// authenticate says who sent r: by bearer token where there is one (or, where [takesBasic]
// says so, as a password), else by session cookie.
// It returns errNoCredential without either and errBadCredential for one that is not valid now.
// The user's role is read anew each time, so that a change counts from the next request on.
func (c *console) authenticate(r *http.Request) (principal, error) {
	if _, _, ok := r.BasicAuth(); ok && takesBasic(r) {
		return c.byBasic(r)
	}
	if header, ok := r.Header["Authorization"]; ok {
		return c.byBearer(r, strings.Join(header, ","))
	}
	cookie, err := r.Cookie(sessionCookie)
	if err != nil {
		return principal{}, errNoCredential
	}
	one, ok := c.sessions.use(cookie.Value, byPerson(r))
	if !ok {
		return principal{}, errBadCredential
	}
	who, err := c.asUser(one.user, administrator, viaSession)
	who.session = one
	return who, err
}

// byBearer is byToken, for the value of an Authorization header.
func (c *console) byBearer(r *http.Request, header string) (principal, error) {
	scheme, text, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return principal{}, errBadCredential
	}
	return c.byToken(r, text)
}

// byToken says whose token text is. One for minting alone opens nothing else.
func (c *console) byToken(r *http.Request, text string) (principal, error) {
	if !strings.HasPrefix(text, tokenPrefix) {
		return principal{}, errBadCredential
	}
	token, err := c.cfg.Store.TokenByHash(sha256.Sum256([]byte(text)))
	if errors.Is(err, store.ErrNotFound) {
		return principal{}, errBadCredential
	}
	if err != nil {
		return principal{}, fmt.Errorf("looking up token: %w", err)
	}
	if !token.Expires.IsZero() && !c.cfg.Now().Before(token.Expires) {
		return principal{}, errBadCredential
	}
	limit, err := parseRole(token.Role)
	if err != nil {
		return principal{}, err
	}
	who, err := c.asUser(token.User, limit, token.Name)
	if err != nil {
		return principal{}, err
	}
	who.token, who.expires, who.profiles = token.Hash[:], token.Expires, token.Profiles
	if who.profiles != nil && !mints(r) {
		return principal{}, errScope
	}
	c.tokenUsed(r, token)
	return who, nil
}

// asUser looks the user up; the principal's role is the lesser of theirs and limit.
func (c *console) asUser(name string, limit role, via string) (principal, error) {
	user, err := c.cfg.Store.User(name)
	if errors.Is(err, store.ErrNotFound) {
		return principal{}, errBadCredential
	}
	if err != nil {
		return principal{}, fmt.Errorf("looking up user: %w", err)
	}
	if user.Off {
		return principal{}, errBadCredential
	}
	has, err := parseRole(user.Role)
	if err != nil {
		return principal{}, err
	}
	return principal{user: name, role: min(has, limit), limited: limit < has, via: via}, nil
}
