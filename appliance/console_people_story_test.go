package appliance_test

// The dialogs about people, what they sign in with and what programs use.

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"signet.internal/webui/browsertest"
)

// twice opens a dialog in two tabs and orders in both: what comes too late is told so.
func (c *consoleStory) twice(path, button, done, problem string, says ...string) {
	c.T.Helper()
	late, leave := c.Another(path, "dialog[open]")
	defer leave()
	c.Front()
	c.Open(path, "dialog[open]")
	c.Press("dialog "+button, done)
	late.Front()
	late.Press("dialog "+button, problem)
	late.Reads(problem, says...)
	c.Front()
}

// closes opens a dialog and closes it again, by its link and by Escape, neither of which orders anything.
func (c *consoleStory) closes(path string) {
	c.T.Helper()
	const closed = "body:not(:has(dialog)) main"
	c.note()
	before := len(c.orders)
	c.Open(path, "dialog:modal")
	c.Press("dialog a.quiet", closed)
	c.Open(path, "dialog:modal")
	c.Escape(closed)
	c.note()
	if n := len(c.orders) - before; n != 0 {
		c.T.Errorf("%s: closing the dialog sent %d forms", path, n)
	}
}

// linkOf is where a link of the page leads.
func (c *consoleStory) linkOf(selector string) string {
	c.T.Helper()
	c.Shows(selector)
	return browsertest.Eval[string](c.Tab, "document.querySelector(`"+selector+"`).getAttribute('href')")
}

func (c *consoleStory) people(t *testing.T) {
	c.ownAccount(t)
	c.otherAccount(t)
}

// ownAccount is what people do at their own name: password, token, passkey and sessions.
func (c *consoleStory) ownAccount(t *testing.T) {
	c.be("olga")
	const fresh = "correct horse battery staple"
	c.Open("/account?do=password", "dialog:modal #current")
	change := func(current, then string) {
		t.Helper()
		c.Write("#current", current)
		c.Write("#new", fresh)
		c.Write("#again", fresh)
		c.Press("dialog form button", then)
	}
	change("not the password", "dialog:modal #password-problem")
	c.Look("password-refused")
	change(c.passwords["olga"], ".done")
	c.passwords["olga"] = fresh
	c.who = ""
	c.be("olga")

	c.Open("/account?do=token", "dialog:modal #token-name")
	c.Write("#token-name", "Prometheus")
	c.Press("dialog form button", ".secrets")
	token := strings.TrimSpace(c.Text(".secrets code"))
	reads := func() int { return c.s.api(t, "GET", "/api/v1/status", token, nil, nil) }
	if code := reads(); code != 200 {
		t.Errorf("the token: HTTP %d", code)
	}
	c.Open("/account", "#tokens")
	revoke := c.linkOf(`a[href*="do=revoke"]`)
	c.closes(revoke)
	c.twice(revoke, ".danger", ".done", "#refusal", "no such token")
	if code := reads(); code != 401 {
		t.Errorf("the token that was revoked: HTTP %d", code)
	}

	c.Open("/account", "#passkey-name")
	c.Write("#passkey-name", "phone")
	c.Press("#passkey-add button", ".done")
	c.twice(c.linkOf(`a[href*="do=passkey"]`), ".danger", ".done", "#refusal", "no such passkey")
	if c.Open("/account", "#sessions"); c.Has(`a[href*="do=passkey"]`) > 0 {
		t.Error("the passkey that was removed is still listed")
	}

	elsewhere := c.signedIn("olga")
	c.Reload("#sessions")
	c.twice(c.linkOf(`a[href*="do=session"]`), ".danger", ".done", "#refusal", "no such session")
	if code := elsewhere(); code != 401 {
		t.Errorf("the browser that was signed out: HTTP %d", code)
	}
}

// signedIn is another browser of user, who then asks for the state of the box.
func (c *consoleStory) signedIn(user string) (status func() int) {
	c.T.Helper()
	client := *c.s.client
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := client.PostForm(c.s.ready.Console+"/sign-in", url.Values{"user": {user}, "password": {c.passwords[user]}})
	if err != nil {
		c.T.Fatal(err)
	}
	resp.Body.Close()
	if len(resp.Cookies()) != 1 {
		c.T.Fatalf("signing in as %s: HTTP %d", user, resp.StatusCode)
	}
	return func() int {
		c.T.Helper()
		req, err := http.NewRequest("GET", c.s.ready.Console+"/api/v1/status", nil)
		if err != nil {
			c.T.Fatal(err)
		}
		req.AddCookie(resp.Cookies()[0])
		resp, err := client.Do(req)
		if err != nil {
			c.T.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
}

// otherAccount is what an administrator does with somebody's account, and cannot do with the last of their kind.
func (c *consoleStory) otherAccount(t *testing.T) {
	c.be("olga")
	c.Open("/account", "#passkey-name")
	c.Write("#passkey-name", "tablet")
	c.Press("#passkey-add button", ".done")
	c.Open("/account?do=token", "dialog:modal #token-name")
	c.Write("#token-name", "backup")
	c.Press("dialog form button", ".secrets")

	c.be("ada")
	c.Open("/users/ada?do=role", "dialog:modal")
	c.Click(`dialog input[value="auditor"]`)
	c.Press("dialog form button", "dialog:modal #role-problem")
	c.Reads("#role-problem", "Nobody else could administer the box")
	c.Look("role-refused")
	c.closes("/users/ada?do=switch")
	c.Open("/users/ada?do=switch", "dialog:modal .danger")
	c.Press("dialog .danger", "dialog:modal #switch-problem")
	c.Reads("#switch-problem", "Nobody else could administer the box")

	c.Open("/users/olga?do=role", "dialog:modal")
	c.Click(`dialog input[value="auditor"]`)
	c.Press("dialog form button", ".done")
	c.Reads(".lead", "auditor")
	c.Open("/users/olga?do=role", "dialog:modal")
	c.Click(`dialog input[value="operator"]`)
	c.Press("dialog form button", ".done")

	c.Open("/users/olga?do=switch", "dialog:modal")
	c.Press("dialog .danger", ".done")
	c.leave()
	c.Write("#user", "olga")
	c.Write("#password", c.passwords["olga"])
	c.Enter("#password", "#sign-in-problem")
	c.be("ada")
	c.Open("/users/olga?do=switch", "dialog:modal")
	c.Press("dialog form button", ".done")
	c.twice(c.linkOf(`a[href*="do=passkey"]`), ".danger", ".done", "#refusal", "no such passkey")
	c.twice(c.linkOf(`a[href*="do=revoke"]`), ".danger", ".done", "#refusal", "no such token")

	// A browser holds back what is too short, but for one whose page was tampered with.
	c.Open("/users/olga?do=password", "dialog:modal")
	browsertest.Eval[bool](c.Tab, `document.querySelector("#new-password").minLength = 0, true`)
	c.Write("#new-password", "short")
	c.Press("dialog form button", "dialog:modal #password-problem")
	c.Reads("#password-problem", "fewer than 12 characters")
	c.Press("dialog form button", ".secrets")
	c.passwords["olga"] = strings.TrimSpace(c.Text(".secrets dd:nth-of-type(2) code"))
	c.be("olga")
}
