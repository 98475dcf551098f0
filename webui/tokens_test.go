package webui

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/audit"
)

// TestTokenRoles: a token does what its role allows, never more than its user, and never after its end.
func TestTokenRoles(t *testing.T) {
	box := newBox(t)
	admin := bearer(box.mustClaim().Token)
	box.post("/api/v1/users", UserRequest{Name: "bob", Role: "operator", Password: "correct horse battery"}, admin)
	bob := withCookie(box.signedIn("bob", "correct horse battery"))
	make := func(in TokenRequest, who func(*http.Request)) TokenResponse {
		t.Helper()
		got := box.post("/api/v1/tokens", in, who)
		if got.StatusCode != 200 {
			t.Fatalf("making %+v: status %d: %s", in, got.StatusCode, got.body)
		}
		var out TokenResponse
		got.decode(t, &out)
		return out
	}
	own, reader := make(TokenRequest{Name: "own", Days: 1}, bob), make(TokenRequest{Name: "reader", Role: "auditor"}, bob)
	if own.Details.Role != "operator" || own.Details.Expires == nil || !own.Details.Expires.Equal(start.Add(24*time.Hour)) || !reader.Details.Expires.Equal(start.Add(defaultTokenDays*24*time.Hour)) {
		t.Errorf("made %+v and %+v", own.Details, reader.Details)
	}
	for _, in := range []TokenRequest{{}, {Name: "x", Role: "administrator"}, {Name: "x", Role: "king"}, {Name: "x", Days: -1}, {Name: "x", Days: 4000}, {Name: "a\u202eb"},
		{Name: strings.Repeat("x", 65)}, {Name: "x", Profiles: []string{}}, {Name: "x", Profiles: []string{"nobody's"}}, {Name: "x", Role: "auditor", Profiles: []string{"corp"}}} {
		if in.Profiles != nil && len(in.Profiles) == 0 {
			continue // omitted in JSON: the same as absent
		}
		box.post("/api/v1/tokens", in, bob).checkProblem(t, 422, "input")
	}
	revoke := RevokeRequest{Reason: "keyCompromise"}
	box.post("/api/v1/certificates/2a/revoke", revoke, bearer(own.Token)).checkProblem(t, 404, "no-certificate")
	box.post("/api/v1/certificates/2a/revoke", revoke, bearer(reader.Token)).checkProblem(t, 403, "role")
	box.post("/api/v1/tokens", TokenRequest{Name: "longer", Days: 2}, bearer(own.Token)).checkProblem(t, 422, "input")
	make(TokenRequest{Name: "as long", Days: 1}, bearer(own.Token))
	role := "auditor"
	box.patch("/api/v1/users/bob", UserPatch{Role: &role}, admin)
	box.post("/api/v1/certificates/2a/revoke", revoke, bearer(own.Token)).checkProblem(t, 403, "role")

	var list TokenList
	box.get("/api/v1/tokens", bearer(reader.Token)).decode(t, &list)
	if len(list.Tokens) != 3 {
		t.Errorf("bob sees %+v", list.Tokens)
	}
	for _, one := range list.Tokens {
		if one.User != "bob" {
			t.Errorf("bob sees %+v", one)
		}
		if used := one.LastUsed == "2026-11-21"; used != (one.Name != "as long") {
			t.Errorf("%s was last used on %q", one.Name, one.LastUsed)
		}
	}
	box.get("/api/v1/tokens", admin).decode(t, &list)
	var claim string
	for _, one := range list.Tokens {
		if one.Name == "claim" {
			claim = one.ID
		}
	}
	if len(list.Tokens) != 4 || claim == "" {
		t.Errorf("an administrator sees %+v", list.Tokens)
	}
	box.send("DELETE", "/api/v1/tokens/"+claim, nil, bearer(own.Token)).checkProblem(t, 404, "no-token")
	box.send("DELETE", "/api/v1/tokens/"+own.Details.ID, nil, bearer(own.Token))
	box.get("/api/v1/account", bearer(own.Token)).checkProblem(t, 401, "bad-credential")
	if got := box.send("DELETE", "/api/v1/tokens/"+reader.Details.ID, nil, admin); got.StatusCode != 200 {
		t.Errorf("an administrator revokes: status %d", got.StatusCode)
	}
	box.get("/api/v1/account", bearer(reader.Token)).checkProblem(t, 401, "bad-credential")
	for _, r := range box.records() {
		if strings.Contains(r.Reason, own.Token) || strings.Contains(r.Reason, reader.Token) {
			t.Error("a token is in the audit log")
		}
	}
	if made := box.records(); !slicesContain(made, audit.TokenCreated) || !slicesContain(made, audit.TokenRevoked) {
		t.Error("tokens came and went without a record")
	}
}

// TestRevokedTokenLeavesNoOther: who found a token has nothing any more once it is revoked, whatever they made with it.
func TestRevokedTokenLeavesNoOther(t *testing.T) {
	box := newBox(t)
	claimed := box.mustClaim()
	session := withCookie(box.signedIn("alice", claimed.Password))
	who := session
	var made []TokenResponse
	for _, name := range []string{"Prometheus", "found", "kept for later"} {
		var out TokenResponse
		box.post("/api/v1/tokens", TokenRequest{Name: name, Role: "auditor", Days: 1}, who).decode(t, &out)
		who, made = bearer(out.Token), append(made, out)
	}
	var other TokenResponse
	box.post("/api/v1/tokens", TokenRequest{Name: "other", Role: "auditor", Days: 1}, session).decode(t, &other)
	box.delete("/api/v1/tokens/"+made[0].Details.ID, session)
	for _, one := range made {
		box.get("/api/v1/status", bearer(one.Token)).checkProblem(t, 401, "bad-credential")
	}
	if got := box.get("/api/v1/status", bearer(other.Token)); got.StatusCode != 200 {
		t.Errorf("another token: status %d", got.StatusCode)
	}
	var told []string
	for _, r := range box.records() {
		if r.Action == audit.TokenRevoked {
			told = append(told, r.Reason)
		}
	}
	if len(told) != 3 || !strings.Contains(strings.Join(told, "\n"), "kept for later, id "+made[2].Details.ID) {
		t.Errorf("the audit log tells of %q", told)
	}
}

// TestTokensKeepToTheirRole: by a token that may only read, nobody becomes more than it, nor takes from its user what
// opens their account; and no token leaves a passkey behind, which would outlive it.
func TestTokensKeepToTheirRole(t *testing.T) {
	box := newBox(t)
	claimed := box.mustClaim()
	session := withCookie(box.signedIn("alice", claimed.Password))
	key := newSoftKey(t, "https://localhost")
	var account AccountDetails
	box.addPasskey(key, session).decode(t, &account)
	var reader TokenResponse
	box.post("/api/v1/tokens", TokenRequest{Name: "Prometheus", Role: "auditor"}, session).decode(t, &reader)

	for _, token := range []string{reader.Token, claimed.Token} {
		stolen := newSoftKey(t, "https://localhost")
		stolen.id = []byte("left behind by " + token[:8])
		box.post("/api/v1/account/passkey-options", nil, bearer(token), atLocalhost).checkProblem(t, 403, "token-passkey")
		options, ceremony := box.beginPasskey("/api/v1/account/passkey-options", session)
		box.post("/api/v1/account/passkeys", PasskeyRequest{Name: "x", Credential: stolen.create(options)}, bearer(token), withCookie(ceremony), atLocalhost).checkProblem(t, 403, "token-passkey")
		box.byPasskey(stolen.get).checkProblem(t, 403, "passkey")
	}

	by := bearer(reader.Token)
	passkey, here := account.Passkeys[0].ID, account.Sessions[0].ID
	box.send("DELETE", "/api/v1/account/passkeys/"+passkey, nil, by).checkProblem(t, 403, "role")
	box.send("DELETE", "/api/v1/account/sessions/"+here, nil, by).checkProblem(t, 403, "role")
	box.send("DELETE", "/api/v1/tokens/"+account.Tokens[0].ID, nil, by).checkProblem(t, 403, "role")
	for _, form := range []string{"/account/passkeys/" + passkey + "/remove", "/account/sessions/" + here + "/end", "/account/sessions/end", "/account/tokens/" + account.Tokens[0].ID + "/revoke"} {
		if got := box.submit(form, nil, by); got.StatusCode != 403 {
			t.Errorf("%s: status %d", form, got.StatusCode)
		}
	}
	var after AccountDetails
	box.get("/api/v1/account", session).decode(t, &after)
	if len(after.Passkeys) != 1 || len(after.Sessions) != 1 || len(after.Tokens) != 2 {
		t.Errorf("afterwards %+v", after)
	}
}

func slicesContain(all []audit.Record, action audit.Action) bool {
	for _, r := range all {
		if r.Action == action {
			return true
		}
	}
	return false
}

// TestMintingTokens: a token for minting mints for its profiles, by every way there is, and opens nothing else.
func TestMintingTokens(t *testing.T) {
	box := newBox(t, func(c *Config) {
		site := demoSite()
		site.Profiles = append(site.Profiles, Profile{Name: "iot", Authority: "devices"})
		c.Site = func() Site { return site }
	})
	admin := bearer(box.mustClaim().Token)
	token := func(profiles ...string) string {
		t.Helper()
		var out TokenResponse
		box.post("/api/v1/tokens", TokenRequest{Name: "jamf", Role: "operator", Profiles: profiles}, admin).decode(t, &out)
		return out.Token
	}
	jamf := map[string]any{"webhook": map[string]any{"webhookEvent": "SCEPChallenge"}, "event": map[string]any{"targetDevice": map[string]any{"serialNumber": "S1"}}}
	ask := func(token string) map[string]reply {
		basic := func(r *http.Request) { r.SetBasicAuth("alice", token) }
		return map[string]reply{
			"API":   box.post("/api/v1/challenges", ChallengeRequest{Profile: "iot", CN: "x"}, bearer(token)),
			"Jamf":  box.post("/api/v1/jamf/iot", jamf, basic),
			"NDES":  box.get("/certsrv/mscep_admin?cn=x&profile=iot", basic),
			"token": box.get("/certsrv/mscep_admin?cn=x&profile=iot", bearer(token)),
		}
	}
	right, other := token("modern", "iot"), token("corp")
	for how, got := range ask(right) {
		if got.StatusCode != 200 || !strings.Contains(string(got.body), "SECRET-OF-") {
			t.Errorf("%s: status %d: %.200s", how, got.StatusCode, got.body)
		}
	}
	for how, got := range ask(other) {
		if got.StatusCode != 403 || strings.Contains(string(got.body), "SECRET-OF-") {
			t.Errorf("%s: a token for another profile gets status %d", how, got.StatusCode)
		}
	}
	for _, rt := range routeTable() {
		if rt.role == anonymous || takesBasic(&http.Request{URL: &url.URL{Path: pathOf(rt)}}) || rt.pattern == "/api/v1/challenges" {
			continue
		}
		if got := box.send(rt.method, pathOf(rt), nil, bearer(right)); got.StatusCode != 403 {
			t.Errorf("%s %s: status %d for a token that only mints", rt.method, rt.pattern, got.StatusCode)
		}
	}
	box.get("/api/v1/status", bearer(right)).checkProblem(t, 403, "scope")
}

// TestTokenForm: the page shows a token once, and revokes it by a dialog.
func TestTokenForm(t *testing.T) {
	box := newBox(t)
	out := box.mustClaim()
	who := withCookie(box.signedIn("alice", out.Password))
	box.get("/account?do=token", who).says(t, 200, "<dialog open", "Only to make challenges", "administrator</option>")
	bad := box.submit("/account/tokens", url.Values{"name": {"jamf"}, "role": {"auditor"}, "days": {"0"}, "profile": {"iot"}}, who)
	bad.says(t, 422, "<dialog open", "1 to 3650 days", `value="jamf"`, `value="0"`, `value="iot" checked`)
	bad.saysNot(t, `value="corp"`) // which takes no challenge that is minted
	box.submit("/account/tokens", url.Values{"name": {"jamf"}, "role": {"operator"}, "days": {"many"}}, who).says(t, 422, "1 to 3650 days")
	made := box.submit("/account/tokens", url.Values{"name": {"jamf"}, "role": {"auditor"}, "days": {"30"}, "profile": {"iot"}}, who)
	made.says(t, 200, "Your new token", "makes challenges at iot, and can do nothing else", "make challenges at iot")
	box.submit("/account/tokens", url.Values{"name": {"prometheus"}, "role": {"auditor"}, "days": {"30"}}, who).says(t, 200, "It may do what an auditor may.")
	token := regexp.MustCompile(`sgt_[A-Za-z0-9_-]{43}`).FindString(string(made.body))
	if token == "" {
		t.Fatal("the page does not show the token")
	}
	page := box.get("/account", who)
	page.says(t, 200, "jamf")
	page.saysNot(t, token)
	id := regexp.MustCompile(`do=revoke&amp;id=([0-9a-f]{16})" aria-label="Revoke jamf"`).FindStringSubmatch(string(page.body))
	if id == nil {
		t.Fatal("the page has no link that revokes it")
	}
	box.get("/account?do=revoke&id="+id[1], who).says(t, 200, "Revoke jamf?")
	box.get("/account?do=revoke&id=0000", who).saysNot(t, "<dialog")
	box.submit("/account/tokens/"+id[1]+"/revoke", nil, who).says(t, http.StatusSeeOther)
	box.post("/api/v1/challenges", ChallengeRequest{Profile: "corp", CN: "x"}, bearer(token)).checkProblem(t, 401, "bad-credential")
	box.submit("/account/tokens/"+id[1]+"/revoke", nil, who).says(t, 404, "There is no such token.")
}
