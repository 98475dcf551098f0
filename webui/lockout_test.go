package webui

import (
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"signet.internal/appliance/audit"
)

func TestLockout(t *testing.T) {
	clock := &fakeClock{now: start}
	l := newLockout(3, time.Minute, 5*time.Minute, clock.Now)
	wait := func(want time.Duration) {
		t.Helper()
		if got, ok := l.take("a"); ok != (want == 0) || got != want {
			t.Fatalf("take: %v, %v, want to wait %v", got, ok, want)
		}
	}
	for range 3 {
		wait(0)
	}
	for _, delay := range []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute, 5 * time.Minute, 5 * time.Minute} {
		wait(delay)
		clock.pass(delay)
		wait(0) // wrong again
	}
	wait(5 * time.Minute)
	if _, ok := l.take("b"); !ok {
		t.Error("another key waits too")
	}
	clock.pass(5 * time.Minute)
	for range 10 { // right ones do not add up
		wait(0)
		l.giveBack("a")
	}
	clock.pass(forgetAfter)
	for range 3 {
		wait(0)
	}
	wait(time.Minute)
	clock.pass(-24 * time.Hour) // a clock set back locks nobody out for a day
	wait(0)
	l.forget("a")
	for i := range maxSources + 100 {
		clock.pass(time.Millisecond)
		l.take(fmt.Sprint(i))
	}
	if len(l.byKey) > maxSources {
		t.Errorf("%d keys remembered, want at most %d", len(l.byKey), maxSources)
	}
}

// TestLockoutAtOnce: many guesses at once are no more than the same one after another.
func TestLockoutAtOnce(t *testing.T) {
	l := newLockout(5, time.Minute, time.Hour, (&fakeClock{now: start}).Now)
	var (
		wg sync.WaitGroup
		mu sync.Mutex
		n  int
	)
	for range 64 {
		wg.Go(func() {
			if _, ok := l.take("a"); ok {
				mu.Lock()
				n++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if n != 5 {
		t.Errorf("%d guesses were let through, want 5", n)
	}
}

// TestBruteForce: a user's name is guessed at from many addresses. Nobody gets further than the count for all
// of them, nobody who was there before is kept out, and nobody for ever.
func TestBruteForce(t *testing.T) {
	box := newBox(t)
	out := box.mustClaim()
	try := func(user, password, from string) reply {
		t.Helper()
		return box.submit("/sign-in", url.Values{"user": {user}, "password": {password}}, header("X-Test-Source", from))
	}
	try("alice", out.Password, "198.51.100.1").says(t, http.StatusSeeOther) // where she works
	for i := range 10 {
		try("alice", "guess", addrN(i).String()).says(t, 403)
	}
	for i := range 10 {
		try("alice", out.Password, addrN(100+i).String()).says(t, 429, "Too many wrong passwords for this user")
	}
	try("alice", out.Password, "198.51.100.1").says(t, http.StatusSeeOther)
	for i := range 10 { // also for names that nobody has, or the answer would tell which exist
		try("nobody", "guess", addrN(200+i).String()).says(t, 403)
	}
	try("nobody", "guess", addrN(300).String()).says(t, 429, "Too many wrong passwords for this user")

	// From her own address strangers can do no more than delay it.
	for range 5 {
		try("alice", "guess", "198.51.100.1").says(t, 403)
	}
	limited := try("alice", out.Password, "198.51.100.1")
	limited.says(t, 429)
	if got := limited.Header.Get("Retry-After"); got != "60" {
		t.Errorf("Retry-After %q", got)
	}
	box.clock.pass(15 * time.Minute)
	try("alice", out.Password, "198.51.100.1").says(t, http.StatusSeeOther)
	try("alice", out.Password, addrN(400).String()).says(t, http.StatusSeeOther)

	named := 0
	for _, r := range box.records() {
		if r.Action == audit.LoginRefused && r.Identity == "alice" {
			named++
		}
		if r.Identity == "nobody" {
			t.Errorf("what was typed is in the audit log: %+v", r)
		}
	}
	if named == 0 {
		t.Error("the audit log does not say whose password was guessed")
	}
}

// TestSwitchedOff: the right password of somebody who is switched off opens nothing, and says so; a wrong one
// does not tell.
func TestSwitchedOff(t *testing.T) {
	box := newBox(t)
	admin := bearer(box.mustClaim().Token)
	box.post("/api/v1/users", UserRequest{Name: "bob", Role: "operator", Password: "correct horse battery"}, admin)
	bob := box.signedIn("bob", "correct horse battery")
	var made TokenResponse
	box.post("/api/v1/tokens", TokenRequest{Name: "x"}, withCookie(bob)).decode(t, &made)
	off := true
	if got := box.patch("/api/v1/users/bob", UserPatch{Off: &off}, admin); got.StatusCode != 200 {
		t.Fatalf("switching off: %d %s", got.StatusCode, got.body)
	}
	box.submit("/sign-in", url.Values{"user": {"bob"}, "password": {"correct horse battery"}}).says(t, 403, "This user is switched off.")
	box.submit("/sign-in", url.Values{"user": {"bob"}, "password": {"wrong horse battery"}}).says(t, 403, "User name or password is wrong.")
	box.get("/api/v1/account", bearer(made.Token)).checkProblem(t, 401, "bad-credential")
	off = false
	box.patch("/api/v1/users/bob", UserPatch{Off: &off}, admin)
	if got := box.get("/api/v1/account", bearer(made.Token)); got.StatusCode != 200 {
		t.Errorf("after switching on the token is not taken: %d", got.StatusCode)
	}
}
