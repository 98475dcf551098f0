package webui

import (
	"errors"
	"log/slog"
	"net/http"

	"signet.internal/appliance/audit"
)

// form is a form with what was typed into it and what was wrong with it.
type form struct {
	User    string
	Problem *Problem
	Field   string // the input the problem is about
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
		return c.formAgain(w, r, who, err, func(v *statusView, f *form) {
			if v.Claim == nil { // someone else was faster
				v.SignIn = f
				return
			}
			f.User = in.User
			if f.Field == "" {
				f.Field = "code"
			}
			v.Claim = f
		})
	}
	// Without a session the answer still has to be shown: it is the only copy.
	who = principal{}
	if id, err := c.beginSession(r, out.User); err != nil {
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
	name := r.PostForm.Get("user")
	id, err := c.signIn(r, name, r.PostForm.Get("password"))
	if err != nil {
		return c.formAgain(w, r, principal{}, err, func(v *statusView, f *form) {
			if v.SignIn == nil { // nobody can sign in yet: the claim form says what to do
				return
			}
			f.User, f.Field = name, "password"
			v.SignIn = f
		})
	}
	setSession(w, id)
	http.Redirect(w, r, "/", http.StatusSeeOther)
	return nil
}

func (c *console) signOutForm(w http.ResponseWriter, r *http.Request, _ principal) error {
	if cookie, err := r.Cookie(sessionCookie); err == nil {
		if user, ok := c.sessions.end(cookie.Value); ok {
			rec := c.record(r, audit.SignedOut, audit.OutcomeSuccess)
			rec.Actor = user
			if err := c.cfg.Store.Append(rec); err != nil { // the session has ended all the same
				c.cfg.Log.LogAttrs(r.Context(), slog.LevelError, "recording a sign-out", slog.Any("err", err))
			}
		}
	}
	setSession(w, "")
	http.Redirect(w, r, "/", http.StatusSeeOther)
	return nil
}

// formAgain shows the status page with the refusal at the form it belongs to.
func (c *console) formAgain(w http.ResponseWriter, r *http.Request, who principal, refusal error, place func(*statusView, *form)) error {
	p, known := problemOf(refusal)
	if !known {
		return refusal
	}
	v, err := c.statusView(r, who)
	if err != nil {
		return err
	}
	f := &form{Problem: &p}
	var in *inputError
	if errors.As(refusal, &in) {
		f.Field = in.field
	}
	place(&v, f)
	refusalHeaders(w, refusal, p)
	return c.render(w, p.Status, "status", &v)
}
