package webui

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
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
	user string
	role role
	via  string // name of the token, or viaSession
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
		return c.byToken(strings.Join(header, ","))
	}
	cookie, err := r.Cookie(sessionCookie)
	if err != nil {
		return principal{}, errNoCredential
	}
	user, ok := c.sessions.user(cookie.Value)
	if !ok {
		return principal{}, errBadCredential
	}
	return c.asUser(user, administrator, viaSession)
}

func (c *console) byToken(header string) (principal, error) {
	scheme, text, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Bearer") || !strings.HasPrefix(text, tokenPrefix) {
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
	return c.asUser(token.User, limit, token.Name)
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
	has, err := parseRole(user.Role)
	if err != nil {
		return principal{}, err
	}
	return principal{user: name, role: min(has, limit), via: via}, nil
}

// The __Host- prefix makes browsers refuse the cookie unless it is Secure and for this host alone.
const (
	sessionCookie = "__Host-signet"
	sessionLife   = 8 * time.Hour
	maxSessions   = 256
)

// sessions are the browsers signed in, in memory: a restart signs everyone out. Whoever can read
// this memory can act as the people signed in until their session ends.
type sessions struct {
	now func() time.Time

	mu   sync.Mutex
	byID map[[32]byte]session // by SHA-256 of the cookie's value
}

type session struct {
	user    string
	expires time.Time
}

func newSessions(now func() time.Time) *sessions {
	return &sessions{now: now, byID: map[[32]byte]session{}}
}

// begin returns a fresh identifier; one a browser brought along is never adopted.
func (s *sessions) begin(user string) string {
	id := rand.Text() + rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	var oldest [32]byte
	for key, one := range s.byID {
		if !now.Before(one.expires) {
			delete(s.byID, key)
			continue
		}
		if was, ok := s.byID[oldest]; !ok || one.expires.Before(was.expires) {
			oldest = key
		}
	}
	if len(s.byID) >= maxSessions {
		delete(s.byID, oldest)
	}
	s.byID[sha256.Sum256([]byte(id))] = session{user, now.Add(sessionLife)}
	return id
}

func (s *sessions) user(id string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one, ok := s.byID[sha256.Sum256([]byte(id))]
	if !ok || !s.now().Before(one.expires) {
		return "", false
	}
	return one.user, true
}

// end returns whose session it was, if it had not run out.
func (s *sessions) end(id string) (user string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := sha256.Sum256([]byte(id))
	one, ok := s.byID[key]
	delete(s.byID, key)
	if !ok || !s.now().Before(one.expires) {
		return "", false
	}
	return one.user, true
}

// setSession makes the browser keep id, or forget it when id is empty.
func setSession(w http.ResponseWriter, id string) {
	cookie := &http.Cookie{Name: sessionCookie, Value: id, Path: "/", MaxAge: int(sessionLife / time.Second),
		Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode}
	if id == "" {
		cookie.MaxAge = -1
	}
	http.SetCookie(w, cookie)
}
