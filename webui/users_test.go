package webui

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/audit"
)

// patch sends v as JSON.
func (b *testBox) patch(path string, v any, change ...func(*http.Request)) reply {
	b.t.Helper()
	body, err := json.Marshal(v)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.send(http.MethodPatch, path, bytes.NewReader(body), append([]func(*http.Request){header("Content-Type", mediaJSON)}, change...)...)
}

// checkAccounts provokes replies and refusals of the accounts' API.
func checkAccounts(box *testBox, check func(reply), token func(*http.Request)) {
	role, nonsense := "operator", "king"
	check(box.post("/api/v1/users", UserRequest{Name: "bob", Role: "auditor"}, token))
	check(box.post("/api/v1/users", UserRequest{Name: "bob", Role: "auditor"}, token))
	check(box.post("/api/v1/users", UserRequest{Name: "<b>", Role: "auditor"}, token))
	check(box.get("/api/v1/users", token))
	check(box.get("/api/v1/users/bob", token))
	check(box.get("/api/v1/users/nobody", token))
	check(box.patch("/api/v1/users/bob", UserPatch{Role: &role}, token))
	check(box.patch("/api/v1/users/bob", UserPatch{Role: &nonsense}, token))
	check(box.patch("/api/v1/users/alice", UserPatch{Role: &role}, token))
	check(box.patch("/api/v1/users/nobody", UserPatch{Role: &role}, token))
	check(box.send("DELETE", "/api/v1/users/bob/sessions", nil, token))
	check(box.send("DELETE", "/api/v1/users/alice", nil, token))
	check(box.send("DELETE", "/api/v1/users/bob", nil, token))
	made := box.post("/api/v1/tokens", TokenRequest{Name: "x", Days: 9}, token)
	check(made)
	check(box.post("/api/v1/tokens", TokenRequest{}, token))
	check(box.get("/api/v1/tokens", token))
	var out TokenResponse
	made.decode(box.t, &out)
	check(box.send("DELETE", "/api/v1/tokens/"+out.Details.ID, nil, token))
	check(box.send("DELETE", "/api/v1/tokens/"+out.Details.ID, nil, token))
	check(box.get("/api/v1/account", token))
	check(box.post("/api/v1/account/password", PasswordRequest{Current: "wrong", New: "correct horse battery"}, token))
	for range 5 {
		check(box.post("/api/v1/account/password", PasswordRequest{Current: "wrong", New: "correct horse battery"}, token))
	}
	check(box.post("/api/v1/account/passkey-options", nil, token))
	check(box.post("/api/v1/account/passkeys", PasskeyRequest{Name: "x"}, token))
	check(box.send("DELETE", "/api/v1/account/passkeys/AAAA", nil, token))
	check(box.send("DELETE", "/api/v1/account/sessions/00", nil, token))
	check(box.post("/api/v1/sign-in/passkey/options", nil))
	check(box.post("/api/v1/sign-in/passkey", PasskeySignIn{}))
}

// TestUsersAPI walks a user's life by the API and finds each step in the audit log.
func TestUsersAPI(t *testing.T) {
	box := newBox(t)
	admin := bearer(box.mustClaim().Token)
	var made, changed UserResponse
	box.post("/api/v1/users", UserRequest{Name: "bob", Role: "operator"}, admin).decode(t, &made)
	if made.User.Name != "bob" || made.User.Role != "operator" || made.Password == "" || made.User.LastSignIn != nil {
		t.Errorf("made %+v", made)
	}
	bob := box.signedIn("bob", made.Password)
	box.post("/api/v1/users", UserRequest{Name: "bob", Role: "auditor"}, admin).checkProblem(t, 409, "user-exists")
	for _, in := range []UserRequest{{Name: "", Role: "auditor"}, {Name: "a b", Role: "auditor"}, {Name: "box", Role: "auditor"}, {Name: "eve", Role: "anonymous"}, {Name: "eve", Role: ""}, {Name: "eve", Role: "auditor", Password: "short"}} {
		box.post("/api/v1/users", in, admin).checkProblem(t, 422, "input")
	}
	box.post("/api/v1/users", UserRequest{Name: "eve", Role: "administrator"}, withCookie(bob)).checkProblem(t, 403, "role")
	box.get("/api/v1/users", withCookie(bob)).checkProblem(t, 403, "role")

	role, empty := "auditor", ""
	box.patch("/api/v1/users/bob", UserPatch{Role: &role, Password: &empty}, admin).decode(t, &changed)
	if changed.User.Role != "auditor" || changed.Password == "" || changed.Password == made.Password || changed.User.LastSignIn == nil || changed.User.Sessions != 0 {
		t.Errorf("changed %+v", changed)
	}
	box.patch("/api/v1/users/bob", UserPatch{}, admin).checkProblem(t, 422, "input")
	box.patch("/api/v1/users/nobody", UserPatch{Role: &role}, admin).checkProblem(t, 404, "no-user")
	off := true
	for _, patch := range []UserPatch{{Role: &role}, {Off: &off}} {
		box.patch("/api/v1/users/alice", patch, admin).checkProblem(t, 409, "last-administrator")
	}
	box.send("DELETE", "/api/v1/users/alice", nil, admin).checkProblem(t, 409, "last-administrator")
	bob = box.signedIn("bob", changed.Password)
	if got := box.send("DELETE", "/api/v1/users/bob", nil, admin); got.StatusCode != 200 {
		t.Fatalf("removing: status %d: %s", got.StatusCode, got.body)
	}
	box.get("/api/v1/account", withCookie(bob)).checkProblem(t, 401, "bad-credential")
	var list UserList
	box.get("/api/v1/users", admin).decode(t, &list)
	if len(list.Users) != 1 || list.Users[0].Name != "alice" || list.Users[0].Tokens != 1 {
		t.Errorf("users left: %+v", list.Users)
	}

	want := []audit.Action{audit.SessionEnded, audit.UserRemoved, audit.SignedIn, audit.SessionEnded, audit.PasswordChanged, audit.UserChanged, audit.SignedIn, audit.UserCreated, audit.AdminClaimed}
	var got []audit.Action
	for _, r := range box.records() {
		got = append(got, r.Action)
		if r.Action != audit.SignedIn && r.Action != audit.AdminClaimed && (r.Actor != "alice" || r.Identity != "bob") {
			t.Errorf("record %+v, want alice's about bob", r)
		}
		if strings.Contains(r.Reason, made.Password) || strings.Contains(r.Reason, changed.Password) {
			t.Error("a password is in the audit log")
		}
	}
	if len(got) != len(want) {
		t.Fatalf("audit log %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("audit log %v, want %v", got, want)
		}
	}
	if strings.Contains(box.log.String(), made.Password) {
		t.Error("a password is in the log")
	}
}

// TestUsersPages: what the API does, by forms; a refused one is shown again in its dialog.
func TestUsersPages(t *testing.T) {
	box := newBox(t)
	out := box.mustClaim()
	who := withCookie(box.signedIn("alice", out.Password))
	box.get("/users", who).says(t, 200, "Add a second administrator", "claim", "/users/alice")
	box.get("/users?do=add", who).says(t, 200, "<dialog open", "also approves requests")
	box.submit("/users", url.Values{"user": {"<i>"}, "role": {"auditor"}, "password": {"not to be shown"}}, who).says(t, 422, "<dialog open", "&lt;i&gt;", "The user name is not acceptable.")
	refused := box.submit("/users", url.Values{"user": {"alice"}, "role": {"auditor"}, "password": {"not to be shown"}}, who)
	refused.says(t, 409, "<dialog open", "There is a user of that name already.", `value="alice"`, `value="auditor" required checked`)
	refused.saysNot(t, "not to be shown")
	box.submit("/users", url.Values{"user": {"bob"}, "role": {"operator"}, "password": {"correct horse battery"}}, who).says(t, http.StatusSeeOther)
	made := box.submit("/users", url.Values{"user": {"carol"}, "role": {"auditor"}, "password": {""}}, who)
	made.says(t, 200, "Password of carol", "cannot show it again")
	password := regexp.MustCompile(`[a-z0-9]{4}(?:-[a-z0-9]{4}){6}`).FindString(string(made.body))
	carol := box.signedIn("carol", password)
	box.get("/users", withCookie(carol)).says(t, 403, "Your role does not allow this.")

	page := box.get("/users/bob", who)
	page.says(t, 200, "operator", "never signed in", "/users/bob?do=remove")
	page.saysNot(t, "<dialog")
	for _, c := range []struct {
		dialog, path string
		form         url.Values
		status       int
		says         string
	}{
		{"role", "/users/bob/role", url.Values{"role": {"king"}}, 422, "The role is unknown."},
		{"role", "/users/bob/role", url.Values{"role": {"auditor"}}, 303, ""},
		{"password", "/users/bob/password", url.Values{"password": {"short"}}, 422, "fewer than 12"},
		{"password", "/users/bob/password", url.Values{"password": {""}}, 200, "Password of bob"},
		{"switch", "/users/bob/switch", url.Values{"to": {"off"}}, 303, ""},
		{"switch", "/users/alice/switch", url.Values{"to": {"off"}}, 409, "Nobody else could administer the box then."},
		{"remove", "/users/alice/remove", nil, 409, "Make another user an administrator first."},
		{"remove", "/users/bob/remove", nil, 303, ""},
	} {
		box.get(c.path[:strings.LastIndex(c.path, "/")]+"?do="+c.dialog, who).says(t, 200, "<dialog open")
		got := box.submit(c.path, c.form, who)
		got.says(t, c.status, c.says)
		if c.status >= 400 {
			got.says(t, c.status, "<dialog open", `role="alert"`)
		}
	}
	box.get("/users/bob", who).says(t, 404, "The box has no such user.")
	box.submit("/users/carol/sessions/end", nil, who).says(t, 303)
	box.get("/api/v1/account", withCookie(carol)).checkProblem(t, 401, "bad-credential")
	box.submit("/users/nobody/sessions/end", nil, who).says(t, 404, "The box has no such user.")
}

// TestOwnPassword: it takes the old one, which is no easier to guess there than at sign-in.
func TestOwnPassword(t *testing.T) {
	box := newBox(t)
	out := box.mustClaim()
	who := withCookie(box.signedIn("alice", out.Password))
	change := func(current, to, again string) reply {
		t.Helper()
		return box.submit("/account/password", url.Values{"current": {current}, "new": {to}, "again": {again}}, who)
	}
	change(out.Password, "correct horse battery", "correct horse buttery").says(t, 422, "<dialog open", "The two new passwords differ.")
	change(out.Password, "short", "short").says(t, 422, "fewer than 12")
	for range 5 {
		wrong := change("wrong wrong wrong", "correct horse battery", "correct horse battery")
		wrong.says(t, 422, "The current password is wrong.")
		wrong.saysNot(t, "wrong wrong wrong", "correct horse battery")
	}
	change(out.Password, "correct horse battery", "correct horse battery").says(t, 429, "Too many wrong passwords.")
	box.clock.pass(time.Minute)
	change(out.Password, "correct horse battery", "correct horse battery").says(t, http.StatusSeeOther)
	box.signedIn("alice", "correct horse battery")
}
