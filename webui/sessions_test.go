package webui

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/audit"
)

func TestSessions(t *testing.T) {
	box := newBox(t)
	out := box.mustClaim()
	login := url.Values{"user": {"alice"}, "password": {out.Password}}

	planted := &http.Cookie{Name: sessionCookie, Value: "planted"}
	in := box.submit("/sign-in", login, withCookie(planted))
	in.says(t, http.StatusSeeOther)
	cookie := in.cookie(t)
	if in.Header.Get("Location") != "/" || !cookie.HttpOnly || !cookie.Secure || cookie.SameSite != http.SameSiteStrictMode || cookie.Path != "/" || cookie.Domain != "" || cookie.MaxAge != 8*3600 {
		t.Errorf("sign-in answers %s and sets %+v", in.Header.Get("Location"), cookie)
	}
	if cookie.Value == planted.Value || len(cookie.Value) < 26 {
		t.Errorf("session identifier %q", cookie.Value)
	}
	box.get("/", withCookie(planted)).saysNot(t, "Sign out")
	box.get("/", withCookie(cookie)).says(t, 200, "Sign out")
	if got := box.get("/api/v1/status", withCookie(cookie)); got.StatusCode != 200 {
		t.Errorf("API by session: status %d", got.StatusCode)
	}

	other := box.submit("/sign-in", login).cookie(t)
	if gone := box.submit("/sign-out", nil, withCookie(cookie)).cookie(t); gone.MaxAge >= 0 || gone.Value != "" {
		t.Errorf("signing out sets %+v", gone)
	}
	box.get("/api/v1/status", withCookie(cookie)).checkProblem(t, 401, "bad-credential")
	box.get("/", withCookie(other)).says(t, 200, "Sign out") // each session is its own

	for range 10 { // a person who keeps working is there until the end of the day, and no longer
		box.get("/account", withCookie(other)).says(t, 200, "Sign out")
		box.clock.pass(sessionLife / 10)
	}
	box.get("/api/v1/status", withCookie(other)).checkProblem(t, 401, "bad-credential")
}

// TestSignInsAreRecorded: every session has its beginning in the audit log, and its end where it has one.
func TestSignInsAreRecorded(t *testing.T) {
	box := newBox(t)
	claimed := box.submit("/claim", url.Values{"code": {claimCode}, "user": {"alice"}, "password": {"correct horse battery"}}).cookie(t)
	box.submit("/sign-out", nil, withCookie(claimed))
	box.submit("/sign-out", nil, withCookie(claimed)) // ended already
	box.submit("/sign-out", nil, withCookie(&http.Cookie{Name: sessionCookie, Value: "planted"}))
	box.submit("/sign-in", url.Values{"user": {"alice"}, "password": {"wrong wrong wrong"}}).says(t, 403)
	late := box.submit("/sign-in", url.Values{"user": {"alice"}, "password": {"correct horse battery"}}).cookie(t)
	box.clock.pass(sessionLife)
	box.submit("/sign-out", nil, withCookie(late)) // ran out
	count := map[audit.Action]int{}
	for _, r := range box.records() {
		if r.Action != audit.SignedIn && r.Action != audit.SignedOut {
			continue
		}
		count[r.Action]++
		if r.Actor != "alice" || r.Outcome != audit.OutcomeSuccess || r.Source == "" {
			t.Errorf("record %+v", r)
		}
	}
	if count[audit.SignedIn] != 2 || count[audit.SignedOut] != 1 {
		t.Errorf("records %v, want two sign-ins and one sign-out", count)
	}
}

func TestSessionsAreBounded(t *testing.T) {
	clock := &fakeClock{now: start}
	s := newSessions(clock.Now)
	first := s.begin(session{user: "alice"})
	clock.pass(time.Second)
	second := s.begin(session{user: "alice"})
	for i := range maxSessions - 1 {
		clock.pass(time.Second)
		s.begin(session{user: fmt.Sprint("user ", i)})
	}
	if len(s.byID) > maxSessions {
		t.Errorf("%d sessions kept", len(s.byID))
	}
	if _, ok := s.use(first, true); ok {
		t.Error("the oldest session is still there")
	}
	if _, ok := s.use(second, true); !ok {
		t.Error("the second oldest went too")
	}
}

// TestSessionsOfOne: who signs in again and again ends sessions of their own, and nobody else's.
func TestSessionsOfOne(t *testing.T) {
	clock := &fakeClock{now: start}
	s := newSessions(clock.Now)
	alice, first := s.begin(session{user: "alice"}), s.begin(session{user: "mallory"})
	for range maxSessions {
		clock.pass(time.Second)
		s.begin(session{user: "mallory"})
	}
	if n := len(s.of("mallory")); n != maxEach {
		t.Errorf("%d sessions of one user", n)
	}
	if _, ok := s.use(first, true); ok {
		t.Error("the oldest of them is still there")
	}
	if _, ok := s.use(alice, true); !ok {
		t.Error("another user is signed out")
	}
}

func TestSignInRefusals(t *testing.T) {
	box := newBox(t)
	box.submit("/sign-in", url.Values{"user": {"alice"}, "password": {"x"}}).says(t, 403, "Claim this box")
	out := box.mustClaim()
	try := func(user, password, from string) reply {
		t.Helper()
		return box.submit("/sign-in", url.Values{"user": {user}, "password": {password}}, header("X-Test-Source", from))
	}
	unknown := try("nobody", out.Password, "192.0.2.1")
	unknown.says(t, 403, "User name or password is wrong.")
	wrong := try("alice", "secret guess", "192.0.2.1")
	wrong.says(t, 403, "User name or password is wrong.", `value="alice"`)
	wrong.saysNot(t, "secret guess")
	try("alice", strings.Repeat("x", maxPassword+1), "192.0.2.1").says(t, 403)
	try(strings.Repeat("x", 1000), "x", "192.0.2.1").says(t, 403)
	try("alice", "", "192.0.2.1").says(t, 403)
	limited := try("alice", out.Password, "192.0.2.1")
	limited.says(t, 429, "Too many wrong passwords from your address")
	if limited.Header.Get("Retry-After") != "60" {
		t.Errorf("Retry-After %q", limited.Header.Get("Retry-After"))
	}
	try("alice", out.Password, "192.0.2.2").says(t, http.StatusSeeOther) // nobody else is locked out
	for range 6 {
		try("alice", out.Password, "192.0.2.3").says(t, http.StatusSeeOther) // right ones do not count
	}
	box.clock.pass(time.Minute)
	try("alice", out.Password, "192.0.2.1").says(t, http.StatusSeeOther)

	refused := 0
	for _, r := range box.records() {
		if r.Action == audit.LoginRefused && r.Source == "192.0.2.1" {
			refused++
		}
		if strings.Contains(fmt.Sprint(r), "secret guess") || strings.Contains(fmt.Sprint(r), "nobody") {
			t.Errorf("what was typed is in the audit log: %+v", r)
		}
	}
	if refused != 5 {
		t.Errorf("%d refused sign-ins in the audit log, want 5", refused)
	}
}

// signedIn signs alice in from her own address.
func (b *testBox) signedIn(name, password string, change ...func(*http.Request)) *http.Cookie {
	b.t.Helper()
	r := b.submit("/sign-in", url.Values{"user": {name}, "password": {password}}, change...)
	if r.StatusCode != http.StatusSeeOther {
		b.t.Fatalf("signing in %s: status %d: %.200s", name, r.StatusCode, r.body)
	}
	return r.cookie(b.t)
}

// TestIdleSessions: what a page left open fetches by itself does not keep its session from ending.
func TestIdleSessions(t *testing.T) {
	box := newBox(t)
	out := box.mustClaim()
	working, away := box.signedIn("alice", out.Password), box.signedIn("alice", out.Password)
	for range 3 {
		box.clock.pass(sessionIdle / 2)
		box.get("/api/v1/account", withCookie(away), header("Sec-Fetch-Dest", "empty"))
		if got := box.get("/api/v1/account", withCookie(working), header("Sec-Fetch-Dest", "document")); got.StatusCode != 200 {
			t.Fatalf("a person at work is signed out: status %d", got.StatusCode)
		}
	}
	box.get("/api/v1/account", withCookie(away)).checkProblem(t, 401, "bad-credential")
}

// TestSessionsEndWithWhatBeganThem: of a changed password, role or switch, the user's sessions end and nobody
// else's; the browser that changed its own password goes on, under another identifier.
func TestSessionsEndWithWhatBeganThem(t *testing.T) {
	box := newBox(t)
	out := box.mustClaim()
	admin := bearer(out.Token)
	password := "correct horse battery"
	box.post("/api/v1/users", UserRequest{Name: "bob", Role: "operator", Password: password}, admin)
	alice := box.signedIn("alice", out.Password)
	for _, order := range []string{`{"role":"auditor"}`, `{"off":true}`, `{"off":false}`, `{"password":"correct horse battery"}`} {
		var bob *http.Cookie
		if order != `{"off":false}` {
			bob = box.signedIn("bob", password)
		}
		got := box.send("PATCH", "/api/v1/users/bob", strings.NewReader(order), admin, header("Content-Type", mediaJSON))
		if got.StatusCode != 200 {
			t.Fatalf("%s: status %d: %s", order, got.StatusCode, got.body)
		}
		if bob != nil {
			box.get("/api/v1/account", withCookie(bob)).checkProblem(t, 401, "bad-credential")
		}
	}
	if got := box.get("/api/v1/account", withCookie(alice)); got.StatusCode != 200 {
		t.Errorf("bob's changes signed alice out: status %d", got.StatusCode)
	}

	here, elsewhere := box.signedIn("bob", password), box.signedIn("bob", password)
	changed := box.submit("/account/password", url.Values{"current": {password}, "new": {"another horse battery"}, "again": {"another horse battery"}}, withCookie(here))
	changed.says(t, http.StatusSeeOther)
	fresh := changed.cookie(t)
	for name, cookie := range map[string]*http.Cookie{"the old identifier": here, "another browser": elsewhere} {
		if got := box.get("/api/v1/account", withCookie(cookie)); got.StatusCode != 401 {
			t.Errorf("%s is still signed in: status %d", name, got.StatusCode)
		}
	}
	box.get("/account?done=password-changed", withCookie(fresh)).says(t, 200, "Your password is changed.")
	box.submit("/sign-in", url.Values{"user": {"bob"}, "password": {password}}).says(t, 403)
	box.signedIn("bob", "another horse battery")
}

// TestSessionList: people see where they are signed in and end what they do not know; nobody ends another's.
func TestSessionList(t *testing.T) {
	box := newBox(t)
	out := box.mustClaim()
	box.post("/api/v1/users", UserRequest{Name: "bob", Role: "auditor", Password: "correct horse battery"}, bearer(out.Token))
	bob := box.signedIn("bob", "correct horse battery")
	here := box.signedIn("alice", out.Password)
	lost := box.signedIn("alice", out.Password, header("X-Test-Source", "192.0.2.77"), header("User-Agent", "<b>Old</b> phone"))
	var d AccountDetails
	box.get("/api/v1/account", withCookie(here)).decode(t, &d)
	if len(d.Sessions) != 2 {
		t.Fatalf("sessions %+v", d.Sessions)
	}
	var other SessionDetails
	for _, s := range d.Sessions {
		if !s.Current {
			other = s
		}
	}
	if other.Source != "192.0.2.77" || other.Browser != "<b>Old</b> phone" || other.By != "password" {
		t.Errorf("the other session is %+v", other)
	}
	page := box.get("/account", withCookie(here))
	page.says(t, 200, "192.0.2.77", "&lt;b&gt;Old", "this browser")
	if strings.Contains(string(page.body), lost.Value) || strings.Contains(string(page.body), here.Value) {
		t.Error("the page has a session's cookie in it")
	}
	box.send("DELETE", "/api/v1/account/sessions/"+other.ID, nil, withCookie(bob)).checkProblem(t, 404, "no-session")
	if got := box.send("DELETE", "/api/v1/account/sessions/"+other.ID, nil, withCookie(here)); got.StatusCode != 200 {
		t.Fatalf("ending it: status %d: %s", got.StatusCode, got.body)
	}
	box.get("/api/v1/account", withCookie(lost)).checkProblem(t, 401, "bad-credential")
	box.get("/account?do=session&id="+d.Sessions[0].ID, withCookie(here)).says(t, 200)
	again := box.signedIn("alice", out.Password)
	box.submit("/account/sessions/end", nil, withCookie(here)).says(t, http.StatusSeeOther)
	if box.get("/api/v1/account", withCookie(again)).StatusCode != 401 || box.get("/api/v1/account", withCookie(here)).StatusCode != 200 {
		t.Error("ending the others ended the wrong ones")
	}
	if got := box.get("/api/v1/account", withCookie(bob)); got.StatusCode != 200 {
		t.Error("alice's orders signed bob out")
	}
}

// TestStaleSessions: who finds a browser signed in hours ago cannot make what outlives it.
func TestStaleSessions(t *testing.T) {
	box := newBox(t)
	out := box.mustClaim()
	old := box.signedIn("alice", out.Password)
	box.clock.pass(freshFor)
	box.post("/api/v1/tokens", TokenRequest{Name: "x"}, withCookie(old)).checkProblem(t, 403, "sign-in-again")
	box.post("/api/v1/users", UserRequest{Name: "mallory", Role: "administrator"}, withCookie(old)).checkProblem(t, 403, "sign-in-again")
	box.post("/api/v1/account/passkey-options", nil, withCookie(old)).checkProblem(t, 403, "sign-in-again")
	box.submit("/account/tokens", url.Values{"name": {"x"}, "role": {"auditor"}, "days": {"9"}}, withCookie(old)).says(t, 403, "signed in too long ago", `value="x"`)
	box.get("/account?do=token", withCookie(old)).says(t, 200, "/sign-in?next=%2faccount%3fdo%3dtoken")
	now := box.signedIn("alice", out.Password)
	if got := box.post("/api/v1/tokens", TokenRequest{Name: "x"}, withCookie(now)); got.StatusCode != 200 {
		t.Errorf("after signing in: status %d: %s", got.StatusCode, got.body)
	}
}

// TestNext: signing in leads where one wanted to go, and never to another site.
func TestNext(t *testing.T) {
	box := newBox(t)
	out := box.mustClaim()
	sent := box.get("/account?do=token")
	if got := sent.Header.Get("Location"); sent.StatusCode != http.StatusSeeOther || got != "/sign-in?next=%2Faccount%3Fdo%3Dtoken" {
		t.Fatalf("status %d to %q", sent.StatusCode, got)
	}
	box.get(sent.Header.Get("Location")).says(t, 200, `name="next" value="/account?do=token"`)
	for next, want := range map[string]string{
		"/account?do=token": "/account?do=token", "/certificates/0a": "/certificates/0a", "": "/",
		"//evil.example": "/", "/\\evil.example": "/", "https://evil.example": "/", "javascript:alert(1)": "/", "\\\\evil.example": "/",
		"/\t/evil.example": "/", "/\r\nLocation: x": "/", "evil.example": "/", "/%0d%0aX: y": "/", "/%2f/evil.example": "/",
		"/.//evil.example": "/", "/sign-out": "/", "/api/v1/account": "/", "/certsrv/mscep_admin/?profile=iot&cn=x": "/", "/scep/../certsrv/mscep_admin?cn=x": "/", "/profiles/iot/intune.pem": "/", "/" + strings.Repeat("a", 3000): "/", "/é": "/",
	} {
		got := box.submit("/sign-in", url.Values{"user": {"alice"}, "password": {out.Password}, "next": {next}})
		if location := got.Header.Get("Location"); got.StatusCode != http.StatusSeeOther || location != want {
			t.Errorf("next=%q leads to %q with status %d, want %q", next, location, got.StatusCode, want)
		}
		page := box.get("/sign-in?next=" + url.QueryEscape(next))
		if want == "/" && strings.Contains(string(page.body), `name="next"`) {
			t.Errorf("next=%q is in the form", next)
		}
	}
}

// TestStaleSessionsReplaceNothing: nor does one who finds it replace a secret, a key or whom the box trusts, or see a
// new secret. What was filled in is there for whoever signs in again.
func TestStaleSessionsReplaceNothing(t *testing.T) {
	box := newBox(t, withIOT)
	out := box.mustClaim()
	admin := withCookie(box.signedIn("alice", out.Password))
	certificate := pemOf(box.fake.authorities[0].Generations[0].Certificate)
	const corp = "/api/v1/profiles/corp"
	orders := func(who func(*http.Request)) map[string]reply {
		all := map[string]reply{"rotate": box.post("/api/v1/ra/rotate", nil, who), "tls": box.put("/api/v1/tls/chain", slices.Concat(certificate, certificate), who), "tls own": box.delete("/api/v1/tls/chain", who)}
		for path, v := range map[string]any{"challenge": HashRequest{Generate: true}, "passwords/device": HashRequest{Generate: true}, "secrets/compliance": SecretRequest{"s3cret"}} {
			all[path] = box.putJSON(corp+"/"+path, v, who)
		}
		all["chain"], all["prepare"] = box.put("/api/v1/authorities/plant/chain", certificate, who), box.post("/api/v1/authorities/devices/next", nil, who)
		all["activate"] = box.post("/api/v1/authorities/devices/next/activate", nil, who)
		all["bundle"] = box.put(corp+"/bundles/est", certificate, who)
		for _, path := range []string{"challenge", "passwords/device", "bundles/est"} {
			all[path+" baked"] = box.delete(corp+"/"+path, who)
		}
		return all
	}
	if err := box.fake.PrepareNext("modern", "alice"); err != nil {
		t.Fatal(err)
	}
	box.fake.orders = nil
	box.clock.pass(freshFor)
	for what, got := range orders(admin) {
		t.Log(what)
		got.checkProblem(t, 403, "sign-in-again")
	}

	generate, of := url.Values{"generate": {"yes"}, "of": {"device"}}, func(what string) url.Values { return url.Values{"of": {what}} }
	for path, values := range map[string]url.Values{
		"/profiles/corp/challenge": generate, "/profiles/corp/challenge/baked": nil, "/profiles/corp/password": generate, "/profiles/corp/password/baked": of("device"),
		"/profiles/corp/bundle/baked": of("est"), "/profiles/corp/secret": {"of": {"compliance"}, "value": {"s3cret"}},
		"/setup?profile=iot": {"make": {"challenge"}}, "/ra/rotate": nil, "/tls/own": nil,
		"/authorities/devices/next": nil, "/authorities/modern/next/activate": nil,
	} {
		again := box.submit(path, values, admin)
		again.says(t, 403, "You signed in too long ago", `href="/sign-in" target="_blank"`, `<form method="post" action="`+path+`"`)
		again.saysNot(t, "s3cret")
	}
	for path, values := range map[string]url.Values{"/profiles/corp/bundle": of("est"), "/tls/chain": nil, "/authorities/plant/chain": nil} {
		again := box.upload(path, values, map[string][]byte{"x.pem": certificate}, admin)
		again.says(t, 403, "You signed in too long ago", ">-----BEGIN CERTIFICATE-----\nMII")
	}
	for _, path := range []string{"/profiles/corp?do=challenge", "/profiles/corp?do=password&of=device", "/profiles/corp?do=bundle&of=est", "/profiles/corp?do=secret&of=compliance",
		"/setup?profile=iot", "/authorities?do=rotate", "/authorities/plant", "/authorities/devices", "/authorities/modern?do=activate", "/tls", "/users?do=add"} {
		box.get(path, admin).says(t, 200, `<a href="/sign-in?next=`+strings.ToLower(url.QueryEscape(path))+`">`)
	}
	if len(box.fake.orders) != 0 {
		t.Errorf("a session of %s ordered %v", freshFor, box.fake.orders)
	}

	for what, got := range orders(withCookie(box.signedIn("alice", out.Password))) {
		if got.StatusCode >= 300 {
			t.Errorf("%s, after signing in: status %d: %s", what, got.StatusCode, got.body)
		}
	}
	box.delete("/api/v1/authorities/modern/next", admin).decode(t, &AuthorityDetails{})
	box.submit("/profiles/corp/off", url.Values{"reason": {"a leak"}}, admin).says(t, http.StatusSeeOther) // stops what may be wrong, at any time
}
