package webui

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"log/slog"
	"mime"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"signet.internal/appliance/audit"
)

// frame is what every page has around its own contents.
type frame struct {
	Title   string
	Site    string
	Version string
	Demo    bool
	Debug   bool
	Who     *visitor // nil for anonymous visitors
}

// visitor is the person signed in.
type visitor struct {
	User    string
	Role    string
	Session bool // by cookie, so that signing out means something
}

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

// waiting is what waits for an operator.
type waiting struct {
	Requests []PendingRequest
	Decide   bool // the visitor may
}

// form is a form with what was typed into it and what was wrong with it.
type form struct {
	User    string
	Problem *Problem
	Field   string // the input the problem is about
}

// activity is one page of the audit log.
type activity struct {
	All     bool // every record, not enrollments alone
	Entries []audit.Record
	Newer   bool   // this is not the first page
	Older   uint64 // before= of the next page; 0 on the last
}

// claimedView shows once what a claim made.
type claimedView struct {
	frame
	ClaimResponse
}

// refusalView is a refusal outside any form.
type refusalView struct {
	frame
	Problem Problem
}

const (
	entriesPerPage = 15
	// entriesScanned bounds how much of the log one page reads when few records are enrollments.
	entriesScanned = 1000
)

func (c *console) statusPage(w http.ResponseWriter, r *http.Request, who principal) error {
	view, err := c.statusView(who)
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
	return c.render(w, http.StatusOK, "status", view)
}

func (c *console) waiting(who principal) (*waiting, error) {
	requests, err := c.pending()
	if err != nil || len(requests) == 0 {
		return nil, err
	}
	return &waiting{Requests: requests, Decide: who.role >= operator}, nil
}

// statusView fills everything but what people signed in see.
func (c *console) statusView(who principal) (statusView, error) {
	s, err := c.status()
	if err != nil {
		return statusView{}, err
	}
	if who.role >= auditor {
		if err := c.addSettings(&s); err != nil {
			return statusView{}, err
		}
	}
	v := statusView{frame: c.frame(s.Name, who), Status: s, Order: who.role >= administrator}
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

func (c *console) frame(title string, who principal) frame {
	site := c.cfg.Site()
	f := frame{Title: title, Site: site.Name, Version: site.Version, Demo: site.Demo, Debug: c.cfg.Boot.Debug}
	if who.role > anonymous {
		f.Who = &visitor{User: who.user, Role: who.role.String(), Session: who.via == viaSession}
	}
	return f
}

// activity reads one page of the log: every record, or the ends of enrollments.
func (c *console) activity(before uint64, all bool) (*activity, error) {
	a := &activity{All: all, Newer: before != 0}
	for scanned := 0; scanned < entriesScanned; {
		page, err := c.auditPage(before, 100)
		if err != nil {
			return nil, err
		}
		for i, rec := range page.Records {
			if !all && (rec.Protocol == "" || rec.Outcome == audit.OutcomeBegun) {
				continue
			}
			if len(a.Entries) == entriesPerPage {
				a.Older = page.Records[i-1].Index
				if i == 0 {
					a.Older = before
				}
				return a, nil
			}
			a.Entries = append(a.Entries, rec)
		}
		scanned += len(page.Records)
		if page.Next == 0 {
			return a, nil
		}
		before = page.Next
	}
	a.Older = before
	return a, nil
}

func (c *console) claimForm(w http.ResponseWriter, r *http.Request, who principal) error {
	if err := readForm(w, r); err != nil {
		return err
	}
	in := ClaimRequest{Code: r.PostForm.Get("code"), User: r.PostForm.Get("user"), Password: r.PostForm.Get("password")}
	out, err := c.claim(r, in)
	if err != nil {
		return c.formAgain(w, who, err, func(v *statusView, f *form) {
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
	return c.render(w, http.StatusOK, "claimed", claimedView{c.frame("Claimed", who), out})
}

func (c *console) signInForm(w http.ResponseWriter, r *http.Request, who principal) error {
	if err := readForm(w, r); err != nil {
		return err
	}
	name := r.PostForm.Get("user")
	id, err := c.signIn(r, name, r.PostForm.Get("password"))
	if err != nil {
		return c.formAgain(w, principal{}, err, func(v *statusView, f *form) {
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
func (c *console) formAgain(w http.ResponseWriter, who principal, refusal error, place func(*statusView, *form)) error {
	p, known := problemOf(refusal)
	if !known {
		return refusal
	}
	v, err := c.statusView(who)
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
	return c.render(w, p.Status, "status", v)
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

// refusalPage says to a person what problem details say to a program.
func (c *console) refusalPage(w http.ResponseWriter, p Problem) {
	view := refusalView{c.frame(p.Title, principal{}), p}
	if err := c.render(w, p.Status, "refusal", view); err != nil {
		writeJSON(w, p.Status, mediaProblem, p)
	}
}

// render writes a page in one piece, so that a failing template never leaves half of one.
func (c *console) render(w http.ResponseWriter, status int, name string, view any) error {
	var page bytes.Buffer
	if err := c.pages.ExecuteTemplate(&page, name, view); err != nil {
		return fmt.Errorf("rendering page %s: %w", name, err)
	}
	write(w, status, "text/html; charset=utf-8", page.Bytes())
	return nil
}

func parsePages(files fs.FS, a assets) (*template.Template, error) {
	return template.New("").Funcs(template.FuncMap{
		"asset":  a.url,
		"stamp":  stamp,
		"iso":    func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"expiry": expiryOf,
		"groups": groups,
		"day":    func(t time.Time) string { return t.UTC().Format("2006-01-02") },
		"clock":  func(t time.Time) string { return t.UTC().Format("15:04:05") },
		"pair": func(label string, cert *Certificate, now time.Time) labelled {
			return labelled{label, cert, now}
		},
		"sentence": sentence,
		"visible":  visible,
		"tone":     outcomeTone,
	}).ParseFS(files, "templates/*.html")
}

// labelled is a certificate and what it is called on the page.
type labelled struct {
	Label       string
	Certificate *Certificate
	Now         time.Time
}

// sentence makes an error's text one: a capital first, a stop at the end.
func sentence(s string) string {
	first, n := utf8.DecodeRuneInString(s)
	if n == 0 {
		return s
	}
	return string(unicode.ToUpper(first)) + strings.TrimSuffix(s[n:], ".") + "."
}

// visible spells out characters that have no shape of their own, such as those that turn the writing
// direction around: a device must not be able to look like another in the log.
func visible(s string) string {
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		}
	}
	return b.String()
}

// expiry is what is left of a certificate, for people.
type expiry struct {
	Tone string
	Text string
}

func expiryOf(notAfter, now time.Time) expiry {
	switch left := notAfter.Sub(now); {
	case left <= 0:
		return expiry{"bad", "expired " + span(-left) + " ago"}
	case left < badBefore:
		return expiry{"bad", span(left) + " left"}
	case left < warnBefore:
		return expiry{"warn", span(left) + " left"}
	default:
		return expiry{"good", span(left) + " left"}
	}
}

// span writes a duration in the one unit that matters, rounded down except for years.
func span(d time.Duration) string {
	const day = 24 * time.Hour
	for _, u := range []struct {
		size time.Duration
		most time.Duration
		name string
	}{{time.Minute, 2 * time.Hour, "minute"}, {time.Hour, 2 * day, "hour"}, {day, 3 * 365 * day, "day"}} {
		if d < u.most {
			n := int(d / u.size)
			if n == 1 {
				return "1 " + u.name
			}
			return fmt.Sprintf("%d %ss", n, u.name)
		}
	}
	const year = 365 * day
	return fmt.Sprintf("%d years", int((d+year/2)/year))
}

// groups cuts hex into fours, which the page shows apart but copies together.
func groups(hexText string) []string {
	var out []string
	for len(hexText) > 4 {
		out, hexText = append(out, hexText[:4]), hexText[4:]
	}
	return append(out, hexText)
}

func outcomeTone(o audit.Outcome) string {
	switch o {
	case audit.OutcomeSuccess:
		return "good"
	case audit.OutcomeRefused:
		return "warn"
	case audit.OutcomeFailed, audit.OutcomeLost:
		return "bad"
	}
	return "plain"
}

// assets are the console's static files by name.
type assets map[string]asset

type asset struct {
	mediaType string
	body      []byte
	version   string // of the contents; part of the URL, so that a new image needs no reload
}

func loadAssets(files fs.FS) (assets, error) {
	mediaTypes := map[string]string{".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
	out := assets{}
	names, err := fs.Glob(files, "static/*")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		mediaType, ok := mediaTypes[path.Ext(name)]
		if !ok {
			return nil, fmt.Errorf("no media type for %s", name)
		}
		body, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(body)
		out[path.Base(name)] = asset{mediaType, body, hex.EncodeToString(sum[:6])}
	}
	return out, nil
}

func (a assets) url(name string) (string, error) {
	one, ok := a[name]
	if !ok {
		return "", fmt.Errorf("no static file %s", name)
	}
	return "/static/" + name + "?v=" + one.version, nil
}

func (c *console) staticFile(w http.ResponseWriter, r *http.Request, _ principal) error {
	one, ok := c.assets[r.PathValue("file")]
	if !ok {
		return errNotFound
	}
	caching := "no-cache"
	if r.URL.Query().Get("v") == one.version {
		caching = "public, max-age=31536000, immutable"
	}
	w.Header().Set("Cache-Control", caching)
	tag := `"` + one.version + `"`
	w.Header().Set("ETag", tag)
	if strings.Contains(r.Header.Get("If-None-Match"), tag) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	write(w, http.StatusOK, one.mediaType, one.body)
	return nil
}
