package webui

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"testing"
	"time"
)

// lateBody runs something before the first of it is read.
type lateBody struct {
	io.Reader
	before func()
}

func (l *lateBody) Read(p []byte) (int, error) {
	if l.before != nil {
		before := l.before
		l.before = nil
		before()
	}
	return l.Reader.Read(p)
}

// TestOrdersCountWhenTheyAreThere: an order is allowed to who sent it when all of it has arrived, and not when it
// began. Whoever is about to be switched off could keep one back.
func TestOrdersCountWhenTheyAreThere(t *testing.T) {
	box := newBox(t)
	box.Client().Transport.(*http.Transport).ExpectContinueTimeout = time.Hour // the body waits until the box asks for it
	admin := bearer(box.mustClaim().Token)
	off, lesser := true, "operator"
	for name, c := range map[string]struct {
		status    int
		kind      string
		isSession bool
		meanwhile func(user string, token TokenResponse)
	}{
		"removed":      {401, "bad-credential", false, func(user string, _ TokenResponse) { box.delete("/api/v1/users/"+user, admin) }},
		"switched-off": {401, "bad-credential", true, func(user string, _ TokenResponse) { box.patch("/api/v1/users/"+user, UserPatch{Off: &off}, admin) }},
		"demoted":      {403, "role", false, func(user string, _ TokenResponse) { box.patch("/api/v1/users/"+user, UserPatch{Role: &lesser}, admin) }},
		"revoked":      {401, "bad-credential", false, func(_ string, token TokenResponse) { box.delete("/api/v1/tokens/"+token.Details.ID, admin) }},
		"signed-out":   {401, "bad-credential", true, func(user string, _ TokenResponse) { box.delete("/api/v1/users/"+user+"/sessions", admin) }},
	} {
		t.Run(name, func(t *testing.T) {
			box.post("/api/v1/users", UserRequest{Name: name, Role: "administrator", Password: "correct horse battery"}, admin)
			who := withCookie(box.signedIn(name, "correct horse battery"))
			var token TokenResponse
			box.post("/api/v1/tokens", TokenRequest{Name: "scripts"}, who).decode(t, &token)
			if !c.isSession {
				who = bearer(token.Token)
			}
			order, err := json.Marshal(UserRequest{Name: "left-by-" + name, Role: "administrator", Password: "correct horse battery"})
			if err != nil {
				t.Fatal(err)
			}
			body := &lateBody{bytes.NewReader(order), func() { c.meanwhile(name, token) }}
			box.send("POST", "/api/v1/users", body, who, header("Content-Type", mediaJSON), header("Expect", "100-continue")).checkProblem(t, c.status, c.kind)
			box.get("/api/v1/users/left-by-"+name, admin).checkProblem(t, 404, "no-user")
		})
	}
}
