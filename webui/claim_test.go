package webui

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/handover"
)

func TestClaim(t *testing.T) {
	box := newBox(t)
	out := box.mustClaim()
	if out.User != "alice" || out.Role != "administrator" || !strings.HasPrefix(out.Token, "sgt_") || len(out.Token) != len("sgt_")+43 {
		t.Errorf("claim answered %+v", out)
	}
	if bare := strings.ReplaceAll(out.Password, "-", ""); len(bare) < 26 {
		t.Errorf("made password %q has fewer than 128 bits", out.Password)
	}
	if box.claims != 1 {
		t.Errorf("OnClaimed was called %d times", box.claims)
	}

	user, err := box.store.User("alice")
	if err != nil {
		t.Fatal(err)
	}
	if err := box.console.hasher.verify(t.Context(), box.console.hasher.known, user.PasswordHash, out.Password); err != nil {
		t.Errorf("the password it printed: %v", err)
	}
	token, err := box.store.TokenByHash(sha256.Sum256([]byte(out.Token)))
	if err != nil {
		t.Fatal(err)
	}
	if token.User != "alice" || !token.Expires.Equal(start.Add(tokenLife)) {
		t.Errorf("stored token %+v", token)
	}

	var status Status
	box.get("/api/v1/status", bearer(out.Token)).decode(t, &status)
	if !status.Claimed || status.Name != "demo" || len(status.Authorities) != 3 {
		t.Errorf("status %+v", status)
	}
	records := box.records()
	if len(records) != 1 || records[0].Action != audit.AdminClaimed || records[0].Actor != "alice" || records[0].Source != "127.0.0.1" || records[0].TimeSource != "rtc" {
		t.Errorf("audit log %+v", records)
	}

	box.post("/api/v1/claim", ClaimRequest{Code: claimCode, User: "mallory"}).checkProblem(t, http.StatusConflict, "already-claimed")
	if got := box.records()[0]; got.Action != audit.ClaimRefused || got.Outcome != audit.OutcomeRefused {
		t.Errorf("second claim recorded as %+v", got)
	}

	for _, secret := range []string{out.Token, out.Password, claimCode} {
		log, _ := json.Marshal(box.records())
		if strings.Contains(box.log.String(), secret) || strings.Contains(string(log), secret) {
			t.Errorf("a secret is in a log: %s", secret)
		}
	}
	box.clock.pass(tokenLife)
	box.get("/api/v1/status", bearer(out.Token)).checkProblem(t, http.StatusUnauthorized, "bad-credential")
}

func TestClaimCodeSpellings(t *testing.T) {
	for _, code := range []string{"K7QM-2XPD", "k7qm2xpd", " k7qm 2xpd ", "K7-QM-2X-PD", "K7QM–2XPD"} {
		if got := newBox(t).post("/api/v1/claim", ClaimRequest{Code: code, User: "alice", Password: "correct horse"}); got.StatusCode != http.StatusOK {
			t.Errorf("code %q: status %d %s", code, got.StatusCode, got.body)
		}
	}
}

// TestClaimRefusals: nothing here creates anyone, and each refusal says what is wrong.
func TestClaimRefusals(t *testing.T) {
	box := newBox(t)
	for _, c := range []struct {
		name   string
		body   string
		status int
		kind   string
		detail string
	}{
		{"wrong code", `{"code":"AAAA-AAAA","user":"alice"}`, 403, "wrong-claim-code", ""},
		{"empty code", `{"code":"","user":"alice"}`, 403, "wrong-claim-code", ""},
		{"no user", `{"code":"K7QM-2XPD"}`, 422, "input", "no user name"},
		{"user with markup", `{"code":"K7QM-2XPD","user":"<b>"}`, 422, "input", "user name"},
		{"user with newline", `{"code":"K7QM-2XPD","user":"a\nb"}`, 422, "input", "user name"},
		{"user of 65", `{"code":"K7QM-2XPD","user":"` + strings.Repeat("a", 65) + `"}`, 422, "input", "user name"},
		{"user who looks like the box", `{"code":"K7QM-2XPD","user":"device"}`, 422, "input", "user name"},
		{"short password", `{"code":"K7QM-2XPD","user":"alice","password":"short"}`, 422, "input", "fewer than 12"},
		{"huge password", `{"code":"K7QM-2XPD","user":"alice","password":"` + strings.Repeat("a", 257) + `"}`, 422, "input", "longer than 256"},
		{"unknown member", `{"code":"K7QM-2XPD","user":"alice","role":"auditor"}`, 400, "unreadable", "role"},
		{"two values", `{"code":"K7QM-2XPD","user":"alice"} {}`, 400, "unreadable", ""},
		{"an array", `[]`, 400, "unreadable", ""},
		{"nothing", ``, 400, "unreadable", ""},
		{"random", "\x00\xff\x13", 400, "unreadable", ""},
		{"too large", `{"code":"` + strings.Repeat("A", maxBody) + `"}`, 413, "too-large", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := box.send("POST", "/api/v1/claim", strings.NewReader(c.body), header("Content-Type", "application/json; charset=utf-8"))
			if p := got.checkProblem(t, c.status, c.kind); !strings.Contains(p.Detail, c.detail) {
				t.Errorf("detail %q does not say %q", p.Detail, c.detail)
			}
		})
	}
	box.send("POST", "/api/v1/claim", strings.NewReader(`{"code":"K7QM-2XPD","user":"alice"}`)).checkProblem(t, 415, "media-type")
	if box.store.Claimed() {
		t.Error("a refused claim created an administrator")
	}
}

// TestClaimNeedsACode: a box that shows no code cannot be claimed with an empty one.
func TestClaimNeedsACode(t *testing.T) {
	for _, shown := range []string{"", " - "} {
		box := newBox(t, func(c *Config) { c.ClaimCode = shown })
		for _, code := range []string{"", "-", shown, claimCode} {
			box.post("/api/v1/claim", ClaimRequest{Code: code, User: "alice"}).checkProblem(t, http.StatusForbidden, "wrong-claim-code")
		}
	}
}

// TestClaimGuessing: five wrong codes a minute from one source, then nothing from there for the rest
// of the minute, not even the right one, and never longer; others claim meanwhile.
func TestClaimGuessing(t *testing.T) {
	box := newBox(t)
	guess := func(code, from string) reply {
		return box.post("/api/v1/claim", ClaimRequest{Code: code, User: "alice"}, header("X-Test-Source", from))
	}
	for i := range 5 {
		guess("AAAA-AAA"+string(rune('A'+i)), "2001:db8::1").checkProblem(t, http.StatusForbidden, "wrong-claim-code")
		box.clock.pass(time.Second)
	}
	limited := guess(claimCode, "2001:db8::2")
	limited.checkProblem(t, http.StatusTooManyRequests, "too-many-guesses")
	if got := limited.Header.Get("Retry-After"); got != "55" {
		t.Errorf("Retry-After %q, want 55", got)
	}
	wrong := 0
	for _, r := range box.records() {
		if r.Action == audit.ClaimRefused && r.Source == "2001:db8::1" {
			wrong++
		}
	}
	if wrong != 5 {
		t.Errorf("%d wrong codes are in the audit log, want 5", wrong)
	}
	// Keeping at it does not keep others out: refused guesses do not count.
	for range 100 {
		guess("AAAA-AAAA", "2001:db8::1")
	}
	box.clock.pass(55 * time.Second)
	if got := guess("AAAA-AAAA", "2001:db8::2"); got.StatusCode != http.StatusForbidden {
		t.Errorf("after the minute: status %d %s", got.StatusCode, got.body)
	}
	for range 10 {
		guess("AAAA-AAAA", "2001:db8::1")
	}
	if got := guess(claimCode, "192.0.2.9"); got.StatusCode != http.StatusOK {
		t.Errorf("from elsewhere: status %d %s", got.StatusCode, got.body)
	}
}

// TestClaimGuessingFromEverywhere: one code opens the box to anyone, so all guesses count together.
func TestClaimGuessingFromEverywhere(t *testing.T) {
	box := newBox(t)
	guess := func(code string, from int) reply {
		return box.post("/api/v1/claim", ClaimRequest{Code: code, User: "alice"}, header("X-Test-Source", fmt.Sprintf("10.0.%d.%d", from/256, from%256)))
	}
	for i := range codesPerMinute {
		guess("AAAA-AAAA", i).checkProblem(t, http.StatusForbidden, "wrong-claim-code")
	}
	guess(claimCode, codesPerMinute).checkProblem(t, http.StatusTooManyRequests, "too-many-guesses")
	box.clock.pass(time.Minute)
	if got := guess(claimCode, codesPerMinute); got.StatusCode != http.StatusOK {
		t.Errorf("after the minute: status %d %s", got.StatusCode, got.body)
	}
}

// TestRightCodesDoNotCount: whoever has the code is not locked out by what fails after it.
func TestRightCodesDoNotCount(t *testing.T) {
	box := newBox(t)
	r := httptest.NewRequest("POST", "/api/v1/claim", nil)
	for range 10 {
		if err := box.console.checkCode(r, ClaimRequest{Code: claimCode}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestClaimRace: of many at once, one wins.
func TestClaimRace(t *testing.T) {
	box := newBox(t)
	var (
		wg  sync.WaitGroup
		mu  sync.Mutex
		got = map[int]int{}
	)
	for range 6 {
		wg.Go(func() {
			r := box.post("/api/v1/claim", ClaimRequest{Code: claimCode, User: "alice"})
			mu.Lock()
			defer mu.Unlock()
			got[r.StatusCode]++
		})
	}
	wg.Wait()
	if got[http.StatusOK] != 1 || got[http.StatusConflict] != 5 {
		t.Errorf("statuses %v, want one 200 and five 409", got)
	}
}

func TestLimiter(t *testing.T) {
	clock := &fakeClock{now: start}
	l := newLimiter(2, time.Minute, clock.Now)
	a, b := sourceKey(addr("192.0.2.1")), sourceKey(addr("192.0.2.2"))
	mustTake := func(key string, want bool) {
		t.Helper()
		if _, ok := l.take(sourceKey(addr(key))); ok != want {
			t.Errorf("take %s: %v, want %v", key, ok, want)
		}
	}
	mustTake("192.0.2.1", true)
	mustTake("::ffff:192.0.2.1", true) // the same host
	mustTake("192.0.2.1", false)
	mustTake("192.0.2.2", true)
	l.giveBack(a)
	mustTake("192.0.2.1", true)
	mustTake("192.0.2.1", false)
	l.giveBack(b)
	mustTake("2001:db8::1", true)
	mustTake("2001:db8::ffff", true)
	mustTake("2001:db8::2:3", false) // the same /64
	mustTake("2001:db8:0:1::1", true)

	clock.pass(-time.Hour) // a clock set back forgets what it put into the future
	mustTake("192.0.2.1", true)

	clock.pass(2 * time.Hour)
	for i := range maxSources + 100 {
		l.take(sourceKey(addrN(i)))
	}
	if len(l.taken) > maxSources+1 {
		t.Errorf("%d sources remembered, want at most %d", len(l.taken), maxSources+1)
	}
	clock.pass(time.Hour)
	mustTake("198.51.100.1", true)
	if len(l.taken) > 1 {
		t.Errorf("%d sources remembered after all have expired", len(l.taken))
	}
}

func TestHealth(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Config)
		pass   time.Duration
		status int
		want   Health
	}{
		{"all well", func(*Config) {}, 0, 200, Health{Status: "ok", Ready: true}},
		{"a condition", func(c *Config) { c.Boot.Conditions = []handover.Condition{{What: "x", Mend: "y"}} }, 0, 200, Health{Status: "degraded", Ready: true}},
		{"a condition of the site", func(c *Config) {
			c.Site = func() Site { s := demoSite(); s.Conditions = []handover.Condition{{What: "x", Mend: "y"}}; return s }
		}, 0, 200, Health{Status: "degraded", Ready: true}},
		{"no authority", func(c *Config) { c.Box.(*fakeBox).authorities = nil }, 0, 503, Health{Status: "degraded"}},
		{"an authority waits for its chain", func(c *Config) {
			f := c.Box.(*fakeBox)
			f.authorities[1].Generations, f.authorities[1].RAs = []GenerationInfo{{Number: 1, State: GenerationWaiting}}, nil
		}, 0, 503, Health{Status: "degraded"}},
		{"the next generation waits for its chain", func(c *Config) {
			f := c.Box.(*fakeBox)
			f.authorities[1].Generations = append(f.authorities[1].Generations, GenerationInfo{Number: 2, State: GenerationWaiting})
		}, 0, 200, Health{Status: "ok", Ready: true}},
		{"engine stopped", func(c *Config) { c.Site = func() Site { s := demoSite(); s.Stopped = true; return s } }, 0, 503, Health{Status: "degraded"}},
		{"clock before the floor", func(c *Config) { c.Boot.TimeFloor = start.Add(time.Second) }, 0, 503, Health{Status: "degraded"}},
		{"RA expired", func(*Config) {}, 366 * 24 * time.Hour, 503, Health{Status: "degraded"}},
		{"clock before the certificates", func(*Config) {}, -time.Hour, 503, Health{Status: "degraded"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			box := newBox(t, allIssue, c.change)
			box.clock.pass(c.pass)
			got := box.get("/api/v1/health")
			var h Health
			got.decode(t, &h)
			if got.StatusCode != c.status || h != c.want {
				t.Errorf("status %d %+v, want %d %+v", got.StatusCode, h, c.status, c.want)
			}
		})
	}
}

// gone is the context of a request whose sender gave up while the password was hashed.
type gone struct{ context.Context }

func (gone) Err() error { return context.Canceled }

func TestClaimOfWhoeverIsGone(t *testing.T) {
	box := newBox(t)
	r := httptest.NewRequestWithContext(gone{t.Context()}, http.MethodPost, "/api/v1/claim", nil)
	if _, err := box.console.claim(r, ClaimRequest{Code: claimCode, User: "alice"}); !errors.Is(err, context.Canceled) || box.store.Claimed() {
		t.Errorf("%v; claimed: %t", err, box.store.Claimed())
	}
	box.mustClaim()
}
