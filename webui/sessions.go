package webui

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"sync"
	"time"
)

// The __Host- prefix makes browsers refuse the cookie unless it is Secure and for this host alone.
const (
	sessionCookie = "__Host-signet"
	sessionLife   = 8 * time.Hour // from sign-in, whatever is done
	sessionIdle   = time.Hour     // from the last request that a person made
	maxSessions   = 256
	maxEach       = 16  // sessions of one user
	maxAgent      = 200 // bytes kept of what a browser calls itself
)

// sessions are the browsers signed in, in memory: a restart signs everyone out. Whoever can read
// this memory can act as the people signed in until their session ends.
type sessions struct {
	now func() time.Time

	mu   sync.Mutex
	byID map[[32]byte]session // by SHA-256 of the cookie's value
}

// session is one browser signed in.
type session struct {
	user    string
	name    string // what lists call it: hex, of no use as a cookie
	source  string
	agent   string // what the browser calls itself
	how     string // howPassword, howPasskey or howClaim
	passkey string // credential id, where how is howPasskey
	begun   time.Time
	seen    time.Time
}

// How a session began.
const (
	howPassword = "password"
	howPasskey  = "passkey"
	howClaim    = "claim"
)

func newSessions(now func() time.Time) *sessions {
	return &sessions{now: now, byID: map[[32]byte]session{}}
}

func (s session) over(now time.Time) bool {
	return now.Sub(s.begun) >= sessionLife || now.Sub(s.seen) >= sessionIdle
}

// begin keeps one with a fresh identifier, which it returns; one a browser brought along is never adopted.
// Beyond maxEach the one of the user's that began first ends, so that nobody who may sign in ends those of others by
// doing so, and beyond maxSessions the one of all.
func (s *sessions) begin(one session) string {
	id := rand.Text() + rand.Text()
	key := sha256.Sum256([]byte(id))
	named := sha256.Sum256(key[:])
	one.name = hex.EncodeToString(named[:8])
	one.agent = one.agent[:min(len(one.agent), maxAgent)]
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	one.begun, one.seen = now, now
	var oldest, oldestOwn [32]byte
	own := 0
	for key, other := range s.byID {
		if other.over(now) {
			delete(s.byID, key)
			continue
		}
		if was, ok := s.byID[oldest]; !ok || other.begun.Before(was.begun) {
			oldest = key
		}
		if other.user != one.user {
			continue
		}
		own++
		if was, ok := s.byID[oldestOwn]; !ok || other.begun.Before(was.begun) {
			oldestOwn = key
		}
	}
	if own >= maxEach {
		delete(s.byID, oldestOwn)
	} else if len(s.byID) >= maxSessions {
		delete(s.byID, oldest)
	}
	s.byID[key] = one
	return id
}

// use finds the session of a cookie. seen says that a person is there, not a script of a page left open.
func (s *sessions) use(id string, seen bool) (session, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := sha256.Sum256([]byte(id))
	one, ok := s.byID[key]
	if !ok || one.over(s.now()) {
		return session{}, false
	}
	if seen {
		one.seen = s.now()
		s.byID[key] = one
	}
	return one, true
}

// end returns whose session it was, if it had not run out.
func (s *sessions) end(id string) (user string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := sha256.Sum256([]byte(id))
	one, ok := s.byID[key]
	delete(s.byID, key)
	if !ok || one.over(s.now()) {
		return "", false
	}
	return one.user, true
}

// endWhere ends the sessions of a user that match, and returns how many.
func (s *sessions) endWhere(user string, match func(session) bool) (ended int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, one := range s.byID {
		if one.user == user && match(one) {
			if !one.over(s.now()) {
				ended++
			}
			delete(s.byID, key)
		}
	}
	return ended
}

func everySession(session) bool { return true }

// of lists the sessions of a user, the newest first.
func (s *sessions) of(user string) []session {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []session
	for _, one := range s.byID {
		if one.user == user && !one.over(s.now()) {
			out = append(out, one)
		}
	}
	slices.SortFunc(out, func(a, b session) int {
		if by := b.begun.Compare(a.begun); by != 0 {
			return by
		}
		return slices.Compare([]byte(a.name), []byte(b.name))
	})
	return out
}

// byPerson tells whether a request came of something a person did. What a page's script fetches by itself
// while nobody looks does not keep a session from ending.
func byPerson(r *http.Request) bool {
	return r.Method != http.MethodGet || r.Header.Get("Sec-Fetch-Dest") != "empty"
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
