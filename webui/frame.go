package webui

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strings"
)

// frame is what every page has around its own contents.
type frame struct {
	Title   string
	Site    string
	Version string
	Demo    bool
	Debug   bool
	Who     *visitor // nil for anonymous visitors
	Sees    role     // what the visitor may do
	Nav     []navGroup
	Done    string   // what the order before this page did; "" for none
	DoneTo  *navItem // leads to what that was about; nil for none
	Do      string   // the dialog that is open, from the address; "" for none
	Attempt *attempt // the form that was refused; nil for none
	Stale   bool     // the visitor has to sign in again before they change what outlives their session
	Here    string   // where that leads back to
}

// visitor is the person signed in.
type visitor struct {
	User    string
	Role    string
	Session bool // by cookie, so that signing out means something
}

// navGroup is a part of the console's navigation.
type navGroup struct {
	Label string
	Items []navItem
}

// navItem leads to one page.
type navItem struct {
	Path    string
	Label   string
	Current bool
	Count   int // of what waits there; 0 for nothing
}

// IsOperator and IsAdministrator say which orders a page offers; the routes decide.
func (f *frame) IsOperator() bool { return f.Sees >= operator }

// IsAdministrator: see IsOperator.
func (f *frame) IsAdministrator() bool { return f.Sees >= administrator }

func (f *frame) base() *frame { return f }

// framed is a pointer to any page's struct: it embeds a frame.
type framed interface{ base() *frame }

// attempt is a form that was sent and refused: it is shown again with what was typed into it and what was
// wrong with it. Its methods take a nil attempt, so that pages need not ask.
type attempt struct {
	Form    string // which of the page's forms
	Values  url.Values
	Problem *Problem
	Field   string // the input that the problem is about; "" for the form as a whole
	refusal error
}

// Is tells whether it was this form.
func (a *attempt) Is(form string) bool { return a != nil && a.Form == form }

// IsStale tells whether whoever sent it has to sign in again first.
func (a *attempt) IsStale() bool { return a != nil && errors.Is(a.refusal, errStale) }

// At is the attempt if it was this form, and nil otherwise.
func (a *attempt) At(form string) *attempt {
	if a.Is(form) {
		return a
	}
	return nil
}

// Value is what was typed into a form's input; "" where it was another form.
func (a *attempt) Value(form, field string) string {
	if a.Is(form) {
		return a.Values.Get(field)
	}
	return ""
}

// Wrong tells whether the problem is about this input of this form.
func (a *attempt) Wrong(form, field string) bool { return a.Is(form) && a.Field == field }

// attempted makes of a refused form what its page shows again. It returns false for what is no refusal but
// the box's own fault. Secrets that were typed are not shown again: name their inputs.
func attempted(r *http.Request, form string, refusal error, secrets ...string) (*attempt, bool) {
	p, known := problemOf(refusal)
	if !known {
		return nil, false
	}
	values := url.Values{}
	for name, v := range r.PostForm {
		values[name] = v
	}
	for _, name := range secrets {
		values.Del(name)
	}
	a := &attempt{Form: form, Values: values, Problem: &p, refusal: refusal}
	var in *inputError
	if errors.As(refusal, &in) {
		a.Field = in.field
	}
	return a, true
}

// notices are what an order did, by the key that the page after it finds in its address.
var notices = map[string]string{
	"trust-reloaded":        "Read again. The certificates of the file are in use unless an administrator put others in their place.",
	"rollback-acknowledged": "Acknowledged. The box goes on with this disk.",
	"password-changed":      "Your password is changed. Your other browsers are signed out.",
	"password-set":          "The password is set. Tell it to them by a way that only they can read; they are signed out everywhere.",
	"passkey-added":         "The passkey is added. It signs you in from now on.",
	"passkey-removed":       "The passkey is removed. It signs nobody in any more, and whoever it had signed in elsewhere is signed out; delete it from the device too.",
	"token-revoked":         "The token is revoked. It is taken no more.",
	"session-ended":         "That browser is signed out.",
	"sessions-ended":        "Signed out everywhere else.",
	"user-created":          "The user is added and can sign in.",
	"user-removed":          "The user is removed, with their tokens and passkeys.",
	"user-off":              "Switched off. They are signed out, and their tokens are not taken.",
	"user-on":               "Switched on. They can sign in again.",
	"role-changed":          "The role is changed. They have to sign in again.",
	"ra-rotated":            "The RA key was replaced. The one before decrypts for a while yet.",
	"chain-installed":       "The certificates were checked and are in use.",
	"next-prepared":         "The next generation is made. It issues nothing yet.",
	"next-activated":        "Activated. It issues from now on.",
	"next-cancelled":        "Cancelled. The key of the next generation is gone.",
	"profile-off":           "Switched off. It issues nothing until it is switched on again.",
	"profile-on":            "Switched on.",
	"bundle-replaced":       "Replaced. The new certificates are in use.",
	"challenge-replaced":    "Replaced. Devices have to send the new challenge from now on.",
	"password-replaced":     "Replaced. The new password is the only one that counts.",
	"baked-again":           "What was baked is in use again.",
	"secret-kept":           "Kept, sealed by the TPM. Nobody can read it back.",
	"tls-installed":         "New connections see the uploaded certificate.",
	"tls-dropped":           "New connections see the box’s own certificate again.",
	"approved":              "Approved.",
	"revoked":               "Revoked. The next revocation list has it, and OCSP says so now.",
	"held":                  "On hold. Whoever checks refuses it until it is released.",
	"released":              "Released. It is good again.",
	"denied":                "Denied. The device is told so when it asks again.",
}

// done ends an order that took effect: the browser goes to the page at path, which says what notices has
// under key. A page that is loaded again orders nothing again.
func (c *console) done(w http.ResponseWriter, r *http.Request, path, key string) error {
	address, fragment, _ := strings.Cut(path, "#")
	separator := "?"
	if strings.Contains(address, "?") {
		separator = "&"
	}
	address += separator + "done=" + url.QueryEscape(key)
	if fragment != "" {
		address += "#" + fragment
	}
	http.Redirect(w, r, address, http.StatusSeeOther)
	return nil
}

// frame fills what every page has. section is the path of the navigation's item that the page belongs to.
func (c *console) frame(r *http.Request, who principal, section, title string) frame {
	site := c.cfg.Site()
	query := r.URL.Query()
	f := frame{Title: title, Site: site.Name, Version: site.Version, Demo: site.Demo, Debug: c.cfg.Boot.Debug,
		Sees: who.role, Do: query.Get("do"), Done: notices[query.Get("done")]}
	if who.role > anonymous {
		f.Who = &visitor{User: who.user, Role: who.role.String(), Session: who.via == viaSession}
		f.Nav = c.navigation(who, section)
		f.Stale, f.Here = c.fresh(who) != nil, r.URL.RequestURI()
	}
	return f
}

// navigation leads to every page that the visitor's role may see.
func (c *console) navigation(who principal, section string) []navGroup {
	waiting, err := c.cfg.Enroll.PendingRequests()
	if err != nil {
		waiting = nil // the page itself says what is wrong with the store
	}
	groups := []navGroup{
		{"", []navItem{{Path: "/", Label: "Overview"}}},
		{"Devices", []navItem{
			{Path: "/connect", Label: "Connect a device"},
			{Path: "/pending", Label: "Approvals", Count: len(waiting)},
			{Path: "/certificates", Label: "Certificates"},
		}},
		{"Enrollment", []navItem{
			{Path: "/scep", Label: "SCEP"},
			{Path: "/est", Label: "EST"},
			{Path: "/profiles", Label: "Profiles"},
			{Path: "/authorities", Label: "Authorities"},
		}},
		{"Box", []navItem{
			{Path: "/audit", Label: "Audit log"},
			{Path: "/box", Label: "This box"},
		}},
	}
	if who.role >= administrator {
		last := &groups[len(groups)-1]
		last.Items = append(last.Items, navItem{Path: "/users", Label: "Users and tokens"})
	}
	for _, g := range groups {
		for i := range g.Items {
			g.Items[i].Current = g.Items[i].Path == section
		}
	}
	return groups
}

// readForm accepts what an HTML form of these pages sends, and no more of it than any of them has.
func readForm(w http.ResponseWriter, r *http.Request) error {
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || mediaType != "application/x-www-form-urlencoded" {
		return errMediaType
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	if err := r.ParseForm(); err != nil {
		return unreadable(err)
	}
	return nil
}

// fieldOf is an input of a form that readForm or readOrder read, or else of the address. It reads no body by
// itself, as [http.Request.FormValue] does: of 32 MiB in memory and any size on the disk, of anybody's GET too.
func fieldOf(r *http.Request, name string) string {
	return cmp.Or(r.PostForm.Get(name), r.URL.Query().Get(name))
}

// refusalPage says to a person what problem details say to a program.
func (c *console) refusalPage(w http.ResponseWriter, r *http.Request, p Problem) {
	who, err := c.authenticate(r)
	if err != nil {
		who = principal{}
	}
	view := refusalView{c.frame(r, who, "", p.Title), p}
	view.Do, view.Done = "", ""
	if err := c.render(w, p.Status, "refusal", &view); err != nil {
		writeJSON(w, p.Status, mediaProblem, p)
	}
}

// refusalView is a refusal outside any form.
type refusalView struct {
	frame
	Problem Problem
}

// page sends a page. Where it shows a refused form its status is that of the refusal.
func (c *console) page(w http.ResponseWriter, name string, view framed) error {
	status := http.StatusOK
	if a := view.base().Attempt; a != nil {
		status = a.Problem.Status
		refusalHeaders(w, a.refusal, *a.Problem)
	}
	return c.render(w, status, name, view)
}

// render writes a page in one piece, so that a failing template never leaves half of one.
func (c *console) render(w http.ResponseWriter, status int, name string, view any) error {
	var page bytes.Buffer
	if err := c.pages.ExecuteTemplate(&page, name, view); err != nil {
		return fmt.Errorf("rendering page %s: %w", name, err)
	}
	write(w, status, "text/html; charset=utf-8", legible(page.Bytes()))
	return nil
}
