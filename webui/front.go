package webui

import (
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"strings"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/handover"
)

// frontView is what strangers see: how to become the first administrator, or to sign in.
type frontView struct {
	frame
	Claimed    bool
	Box        bool // not a development host
	Host       string
	Tone       string // of the whole box: "good", "warn" or "bad"
	Summary    string
	Attention  bool                 // something needs a person; what it is, is no stranger's business
	Conditions []handover.Condition // only while nobody has claimed the box
	Passkeys   bool                 // there can be some at this address
	Next       string               // where signing in leads
}

// frontPage greets strangers.
func (c *console) frontPage(w http.ResponseWriter, r *http.Request, who principal) error {
	v, err := c.frontView(r, who)
	if err != nil {
		return err
	}
	return c.page(w, "front", &v)
}

func (c *console) frontView(r *http.Request, who principal) (frontView, error) {
	s, err := c.status()
	if err != nil {
		return frontView{}, err
	}
	v := frontView{frame: c.frame(r, who, "", s.Name), Claimed: s.Claimed, Box: s.Kind == handover.KindBox, Host: s.PublicHost, Next: localPath(fieldOf(r, "next"))}
	_, _, err = c.passkeyHost(r)
	v.Passkeys = err == nil
	v.Tone, v.Summary = summary(s)
	v.Attention = s.Claimed && len(s.Conditions) > 0
	if !s.Claimed {
		v.Conditions = s.Conditions
	}
	return v, nil
}

// localPath is a path of this console that a browser may be sent to after signing in; "" for anything else, so for
// what makes something by GET. What has a backslash or a control character is read differently by different browsers.
func localPath(text string) string {
	if !strings.HasPrefix(text, "/") || strings.HasPrefix(text, "//") || len(text) > 2048 {
		return ""
	}
	if strings.ContainsFunc(text, func(r rune) bool { return r == '\\' || r <= ' ' || r >= 0x7f }) {
		return ""
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil || strings.Contains(u.Path, "//") || strings.HasSuffix(u.Path, ".pem") {
		return ""
	}
	for _, away := range []string{"/sign-", "/api/", "/certsrv"} {
		if strings.HasPrefix(path.Clean(u.Path), away) {
			return ""
		}
	}
	return text
}

// signInPage is the front page; who is signed in can sign in again, as somebody else or because it is asked of
// them.
func (c *console) signInPage(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.frontPage(w, r, who)
}

// frontAgain shows the front page with a refused form.
func (c *console) frontAgain(w http.ResponseWriter, r *http.Request, who principal, form string, refusal error) error {
	a, ok := attempted(r, form, refusal, "password", "code")
	if !ok {
		return refusal
	}
	v, err := c.frontView(r, who)
	if err != nil {
		return err
	}
	if a.Field == "" {
		a.Field = map[string]string{"claim": "code", "sign-in": "password"}[form]
	}
	v.Attempt = a
	return c.page(w, "front", &v)
}

// claimedView shows once what a claim made.
type claimedView struct {
	frame
	ClaimResponse
}

func (c *console) claimForm(w http.ResponseWriter, r *http.Request, who principal) error {
	if err := readForm(w, r); err != nil {
		return err
	}
	in := ClaimRequest{Code: r.PostForm.Get("code"), User: r.PostForm.Get("user"), Password: r.PostForm.Get("password")}
	out, err := c.claim(r, in)
	if err != nil {
		form := "claim"
		if c.cfg.Store.Claimed() { // someone else was faster: the page has the other form
			form = "sign-in"
		}
		return c.frontAgain(w, r, who, form, err)
	}
	// Without a session the answer still has to be shown: it is the only copy.
	who = principal{}
	user, err := c.cfg.Store.User(out.User)
	id := ""
	if err == nil {
		id, err = c.beginSession(r, user, howClaim)
	}
	if err != nil {
		c.cfg.Log.LogAttrs(r.Context(), slog.LevelError, "signing in after the claim", slog.Any("err", err))
	} else {
		setSession(w, id)
		who = principal{user: out.User, role: administrator, via: viaSession}
	}
	return c.render(w, http.StatusOK, "claimed", &claimedView{c.frame(r, who, "", "Claimed"), out})
}

func (c *console) signInForm(w http.ResponseWriter, r *http.Request, who principal) error {
	if err := readForm(w, r); err != nil {
		return err
	}
	id, err := c.signIn(r, r.PostForm.Get("user"), r.PostForm.Get("password"))
	if err != nil {
		form := "sign-in"
		if !c.cfg.Store.Claimed() { // nobody can sign in yet: the claim form says what to do
			form = ""
		}
		return c.frontAgain(w, r, principal{}, form, err)
	}
	c.endBrowser(r)
	setSession(w, id)
	next := localPath(r.PostForm.Get("next"))
	if next == "" {
		next = "/"
	}
	http.Redirect(w, r, next, http.StatusSeeOther)
	return nil
}

// endBrowser ends the session that the browser brought, which a new one follows.
func (c *console) endBrowser(r *http.Request) (user string, ok bool) {
	cookie, err := r.Cookie(sessionCookie)
	if err != nil {
		return "", false
	}
	return c.sessions.end(cookie.Value)
}

func (c *console) signOutForm(w http.ResponseWriter, r *http.Request, _ principal) error {
	if user, ok := c.endBrowser(r); ok {
		rec := c.record(r, audit.SignedOut, audit.OutcomeSuccess)
		rec.Actor = user
		if err := c.cfg.Store.Append(rec); err != nil { // the session has ended all the same
			c.cfg.Log.LogAttrs(r.Context(), slog.LevelError, "recording a sign-out", slog.Any("err", err))
		}
	}
	setSession(w, "")
	http.Redirect(w, r, "/", http.StatusSeeOther)
	return nil
}
