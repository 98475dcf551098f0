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
	Pending  *waiting  // for people signed in
	Activity *activity // for people signed in
	Order    bool      // the visitor may change authorities and profiles
}

func (c *console) statusPage(w http.ResponseWriter, r *http.Request, who principal) error {
	if who.role == anonymous {
		return c.frontPage(w, r, who)
	}
	view, err := c.statusView(r, who)
	if err != nil {
		return err
	}
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
	return c.render(w, http.StatusOK, "status", &view)
}

func (c *console) statusView(r *http.Request, who principal) (statusView, error) {
	s, err := c.status()
	if err != nil {
		return statusView{}, err
	}
	if err := c.addSettings(&s); err != nil {
		return statusView{}, err
	}
	v := statusView{frame: c.frame(r, who, "/", s.Name), Status: s, Order: who.role >= administrator}
	v.Tone, v.Summary = summary(s)
	return v, nil
}

// summary is how the whole box is, in a few words: "good", "warn" or "bad", and a sentence.
func summary(s Status) (tone, words string) {
	switch n := len(s.Conditions); {
	case !s.Ready && slices.ContainsFunc(s.Authorities, func(a AuthorityStatus) bool { return a.Generation() == 0 }):
		return "warn", "Waiting for a certificate"
	case !s.Ready:
		return "bad", "Not issuing certificates"
	case n == 1:
		return "warn", "One thing needs attention"
	case n > 1:
		return "warn", fmt.Sprintf("%d things need attention", n)
	default:
		return "good", "Ready to enroll devices"
	}
}
