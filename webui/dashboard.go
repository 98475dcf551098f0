package webui

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/handover"
)

// dashboardView is the first page for people signed in: what needs them, then how the box is doing, then where
// to go.
type dashboardView struct {
	frame
	Status     Status
	SecureBoot plainState
	Tone       string // of the whole box: "good", "warn" or "bad"
	Summary    string
	Attention  []attention
	Waiting    int // requests that wait for a person
	Chart      chart
	Machine    Machine
	Records    uint64         // of the audit log
	Newest     []audit.Record // the newest ends of enrollments
	IsNew      bool           // nothing has enrolled yet
}

// IsUnprotected tells whether whoever can change the disk of this box can open its keys.
func (v *dashboardView) IsUnprotected() bool { return v.SecureBoot.Tone == "warn" }

// attention is one thing that needs a person, and where they deal with it.
type attention struct {
	Tone  string // "bad", "warn" or "plain"
	What  string
	Mend  string
	Path  string // "" where no page of the console helps
	Label string // of the link
}

const (
	newestShown   = 5
	newestScanned = 200
)

// statusPage is the console's first page: the dashboard for people signed in, the front page for others.
func (c *console) statusPage(w http.ResponseWriter, r *http.Request, who principal) error {
	if who.role < auditor {
		return c.frontPage(w, r, who)
	}
	view, err := c.dashboardView(r, who)
	if err != nil {
		return err
	}
	return c.page(w, "dashboard", view)
}

func (c *console) dashboardView(r *http.Request, who principal) (*dashboardView, error) {
	s, err := c.status()
	if err != nil {
		return nil, err
	}
	if err := c.addSettings(&s); err != nil {
		return nil, err
	}
	history, err := c.cfg.History()
	if err != nil {
		return nil, err
	}
	page, err := c.auditPage(0, newestScanned)
	if err != nil {
		return nil, err
	}
	waiting, err := c.cfg.Enroll.PendingRequests()
	if err != nil {
		return nil, err
	}
	v := &dashboardView{frame: c.frame(r, who, "/", "Overview"), Status: s, SecureBoot: secureBootInWords(s), Waiting: len(waiting), Machine: c.cfg.Machine(), Chart: newChart(history, c.cfg.Now())}
	if len(page.Records) > 0 {
		v.Records = page.Records[0].Index + 1
	}
	for _, rec := range page.Records {
		if rec.Protocol != "" && rec.Outcome != audit.OutcomeBegun && len(v.Newest) < newestShown {
			v.Newest = append(v.Newest, rec)
		}
	}
	v.IsNew = len(v.Newest) == 0 && page.Next == 0
	v.Tone, v.Summary = summary(s)
	v.Attention = c.attention(s, v.Machine, len(waiting))
	if len(page.Damaged) > 0 {
		v.Attention = slices.Insert(v.Attention, 0, attention{"bad", "A record of the audit log is not the one that was written: somebody may have changed the disk.",
			"Export the log and keep the export: it names the first bad record.", "/audit", "Audit log"})
	}
	return v, nil
}

// summary is the whole box in a few words.
func summary(s Status) (tone, text string) {
	switch n := len(s.Conditions); {
	case !s.Ready && slices.ContainsFunc(s.Authorities, func(a AuthorityStatus) bool { return a.Generation() == 0 }):
		return "warn", "Waiting for a certificate"
	case !s.Ready:
		return "bad", "Not issuing certificates"
	case n == 1:
		return "warn", "One thing needs attention"
	case n > 1:
		return "warn", fmt.Sprintf("%d things need attention", n)
	}
	return "good", "Ready to enroll devices"
}

// attention lists what needs a person, the worst first.
func (c *console) attention(s Status, m Machine, waiting int) []attention {
	var all []attention
	stopped := c.cfg.Enroll.Condition()
	for _, one := range s.Conditions {
		a := attention{Tone: "warn", What: one.What, Mend: one.Mend}
		if stopped != nil && one == handover.Condition(*stopped) {
			a.Tone = "bad"
		}
		a.Path, a.Label = leadsTo(one, s)
		all = append(all, a)
	}
	if m.Watchdog.Missed > 0 && c.cfg.Now().Sub(m.Watchdog.Answered) > 2*time.Minute {
		all = append(all, attention{"bad", "The key holder does not answer: nothing can be signed.", "If this stays for a few minutes, switch the box off and on.", "/box", "This box"})
	}
	if n, more := c.due.count(c.cfg.Enroll, c.cfg.Now()); n > 0 {
		what := "One certificate is due for renewal and was not renewed."
		switch {
		case more:
			what = fmt.Sprintf("%d certificates or more are due for renewal and were not renewed.", n)
		case n > 1:
			what = fmt.Sprintf("%d certificates are due for renewal and were not renewed.", n)
		}
		all = append(all, attention{"warn", what, "Their devices may be off, or cannot reach the box any more. Look after those that end first.", "/certificates?state=due", "Show them"})
	}
	if waiting > 0 {
		what := "One request waits for your decision."
		if waiting > 1 {
			what = fmt.Sprintf("%d requests wait for your decision.", waiting)
		}
		all = append(all, attention{"plain", what, "Its device asks again by itself and gets its certificate once you approve.", "/pending", "Decide"})
	}
	slices.SortStableFunc(all, func(a, b attention) int { return toneRank(a.Tone) - toneRank(b.Tone) })
	return all
}

// dueEvery is how long a count of certificates that are due is good for: it looks at every one there is.
const dueEvery = time.Minute

// dueCount is how many certificates are due and not renewed, as it was counted last.
type dueCount struct {
	mu   sync.Mutex
	at   time.Time
	n    int
	more bool // there are more than n
}

// count counts again where the last count is old. Where it cannot, it says what it said before: the store's
// trouble is told elsewhere.
func (d *dueCount) count(engine *enroll.Engine, now time.Time) (n int, more bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if age := now.Sub(d.at); age < 0 || age >= dueEvery {
		if list, next, err := engine.Due("", "", 0); err == nil {
			d.at, d.n, d.more = now, len(list), next != ""
		}
	}
	return d.n, d.more
}

func toneRank(tone string) int { return slices.Index([]string{"bad", "warn", "plain"}, tone) }

// leadsTo finds the page that helps with a condition by what of the site it names.
func leadsTo(c handover.Condition, s Status) (path, label string) {
	for _, p := range s.Profiles {
		if strings.HasPrefix(c.What, "Profile "+p.Name+" ") {
			return "/profiles/" + p.Name, "Profile " + p.Name
		}
	}
	if strings.Contains(c.What, "The clock") || strings.Contains(c.What, "box's clock") {
		return "/box#clock", "Clock"
	}
	for _, a := range s.Authorities {
		for _, after := range []string{" ", "."} {
			if strings.Contains(c.What, "uthority "+a.Name+after) || strings.Contains(c.What, "uthorities of "+a.Name+after) {
				return "/authorities/" + a.Name, "Authority " + a.Name
			}
		}
	}
	switch {
	case strings.Contains(c.What, "older copy"), strings.Contains(c.What, "counter in the TPM"):
		return "/box#rollback", "This box"
	case strings.Contains(c.What, "state disk"):
		return "/box#storage", "Storage"
	case strings.Contains(c.What, "audit log"), strings.Contains(c.What, "audit record"):
		return "/box#storage", "Storage"
	case strings.Contains(c.What, "TLS certificate"), strings.Contains(c.What, "box's listeners"):
		return "/tls", "TLS certificates"
	}
	return "", ""
}
