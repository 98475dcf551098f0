package webui

import (
	"fmt"
	"net/http"
	"slices"
)

// statusView is the status page.
type statusView struct {
	frame
	Status   Status
	Tone     string // of the whole box: "good", "warn" or "bad"
	Summary  string
	Claim    *form     // while unclaimed
	SignIn   *form     // for anonymous visitors of a claimed box
	Pending  *waiting  // for people signed in
	Activity *activity // for people signed in
	Order    bool      // the visitor may change authorities and profiles
}

func (c *console) statusPage(w http.ResponseWriter, r *http.Request, who principal) error {
	view, err := c.statusView(r, who)
	if err != nil {
		return err
	}
	if who.role >= auditor {
		before, err := queryUint(r, "before", 0, 0, 1<<63)
		if err != nil {
			return err
		}
		if view.Pending, err = c.waiting(who); err != nil {
			return err
		}
		if view.Activity, err = c.activity(before, r.URL.Query().Get("show") == "all"); err != nil {
			return err
		}
	}
	return c.render(w, http.StatusOK, "status", &view)
}

// statusView fills everything but what people signed in see.
func (c *console) statusView(r *http.Request, who principal) (statusView, error) {
	s, err := c.status()
	if err != nil {
		return statusView{}, err
	}
	if who.role >= auditor {
		if err := c.addSettings(&s); err != nil {
			return statusView{}, err
		}
	}
	v := statusView{frame: c.frame(r, who, "/", s.Name), Status: s, Order: who.role >= administrator}
	switch n := len(s.Conditions); {
	case !s.Ready && slices.ContainsFunc(s.Authorities, func(a AuthorityStatus) bool { return a.Generation() == 0 }):
		v.Tone, v.Summary = "warn", "Waiting for a certificate"
	case !s.Ready:
		v.Tone, v.Summary = "bad", "Not issuing certificates"
	case n == 1:
		v.Tone, v.Summary = "warn", "One thing needs attention"
	case n > 1:
		v.Tone, v.Summary = "warn", fmt.Sprintf("%d things need attention", n)
	default:
		v.Tone, v.Summary = "good", "Ready to enroll devices"
	}
	switch {
	case !s.Claimed:
		v.Claim = &form{}
	case who.role == anonymous:
		v.SignIn = &form{}
	}
	return v, nil
}
