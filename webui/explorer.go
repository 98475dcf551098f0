package webui

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/store"
)

// explorerPage is how many records a page of the audit log shows.
const explorerPage = 40

// explorerRoutes are the pages of the audit log.
func explorerRoutes() []route {
	get := http.MethodGet
	return []route{
		{get, "/audit", auditor, nil, (*console).explorerPage},
		{get, "/audit/{index}", auditor, nil, (*console).recordPage},
		{get, "/audit/{index}/proof.json", auditor, nil, (*console).proofFile},
	}
}

// entry is a record as pages list it.
type entry struct{ audit.Record }

// Name is the action in words.
func (e entry) Name() string { return wordsOf(e.Action).Name }

// ShortSerial is the beginning of the serial, enough to tell it from others and to search for.
func (e entry) ShortSerial() string {
	if len(e.Serial) <= 20 {
		return e.Serial
	}
	return e.Serial[:16] + "…"
}

// Person is the user who did it, "" for devices and the box.
func (e entry) Person() string {
	if e.Actor == audit.ActorDevice || e.Actor == audit.ActorBox {
		return ""
	}
	return e.Actor
}

// IsBox says that the box did it by itself.
func (e entry) IsBox() bool { return e.Actor == audit.ActorBox && e.Source == "" }

func entriesOf(records []audit.Record) []entry {
	list := make([]entry, len(records))
	for i, r := range records {
		list[i] = entry{r}
	}
	return list
}

// explorerFilter is what the audit explorer is asked for, as it stands in the address.
type explorerFilter struct {
	Text, Action, Outcome, Profile, Protocol string
	Since, Until                             string // times in UTC, to the minute or the second
}

// IsSet: it leaves anything out.
func (f explorerFilter) IsSet() bool { return f != explorerFilter{} }

// More is how many filters are set beyond the text, which is always in sight.
func (f explorerFilter) More() int {
	n := 0
	for _, v := range []string{f.Action, f.Outcome, f.Profile, f.Protocol, f.Since, f.Until} {
		if v != "" {
			n++
		}
	}
	return n
}

// address is that of the explorer with the filter, and with one more parameter where name is not "".
func (f explorerFilter) address(name, value string) string {
	q := url.Values{}
	for key, v := range map[string]string{"q": f.Text, "action": f.Action, "outcome": f.Outcome, "profile": f.Profile, "protocol": f.Protocol,
		"since": f.Since, "until": f.Until, name: value} {
		if key != "" && v != "" {
			q.Set(key, v)
		}
	}
	if len(q) == 0 {
		return "/audit"
	}
	return "/audit?" + q.Encode()
}

// explorerView is the audit explorer.
type explorerView struct {
	frame
	Filter   explorerFilter
	Groups   []actionGroup
	Outcomes []audit.Outcome
	Profiles []string
	Wrong    *Problem // a filter that means nothing

	Size     uint64 // records of the log
	Removed  store.Removal
	Entries  []entry
	Newer    bool // this is not the first page
	Older    uint64
	Searched uint64
	Reached  time.Time
	Damaged  []uint64 // records that are not what was written

	Continuity continuity
}

// Newest and Next are the addresses of other pages of the same search.
func (v *explorerView) Newest() string { return v.Filter.address("", "") }
func (v *explorerView) Next() string {
	return v.Filter.address("before", strconv.FormatUint(v.Older, 10))
}

// IsPart says that the page ends where the search was given a rest, and not because it is full.
func (v *explorerView) IsPart() bool { return v.Older != 0 && len(v.Entries) < explorerPage }

// errTimes and others say what about a filter means nothing.
var (
	errSince   = &inputError{"since", "the beginning is not a time", "write a date such as 2026-11-21, or date and time such as 2026-11-21T14:30, in UTC"}
	errUntil   = &inputError{"until", "the end is not a time", "write a date such as 2026-11-21, or date and time such as 2026-11-21T14:30, in UTC"}
	errAction  = &inputError{"action", "there is no such action", "choose one of the list"}
	errOutcome = &inputError{"outcome", "there is no such outcome", "choose one of the list"}
)

// explorerTime reads a time of a filter, "" as zero. A date alone is its first moment, or where it ends
// something that of the next day.
func explorerTime(text string, isEnd bool) (t time.Time, ok bool) {
	if text == "" {
		return time.Time{}, true
	}
	for _, layout := range []string{"2006-01-02T15:04", "2006-01-02T15:04:05", time.RFC3339} {
		if t, err := time.Parse(layout, text); err == nil {
			return t.UTC(), true
		}
	}
	t, err := time.Parse(time.DateOnly, text)
	if isEnd {
		t = t.AddDate(0, 0, 1)
	}
	return t, err == nil
}

// query is what the store is asked for.
func (f explorerFilter) query(before uint64) (store.RecordQuery, error) {
	q := store.RecordQuery{Before: before, Limit: explorerPage, Outcome: audit.Outcome(f.Outcome), Profile: f.Profile, Protocol: f.Protocol, Text: f.Text}
	var ok bool
	if q.Since, ok = explorerTime(f.Since, false); !ok {
		return q, errSince
	}
	if q.Until, ok = explorerTime(f.Until, true); !ok {
		return q, errUntil
	}
	if q.Actions, ok = actionsOf(f.Action); !ok {
		return q, errAction
	}
	for _, known := range outcomeWords() {
		if q.Outcome == known.Outcome || f.Outcome == "" {
			return q, nil
		}
	}
	return q, errOutcome
}

func (c *console) explorerPage(w http.ResponseWriter, r *http.Request, who principal) error {
	before, err := queryUint(r, "before", 0, 0, 1<<63)
	if err != nil {
		return err
	}
	asked := r.URL.Query()
	v := &explorerView{frame: c.frame(r, who, "/audit", "Audit log"), Groups: actionGroups(), Newer: before != 0, Removed: c.cfg.Store.Removed(),
		Filter: explorerFilter{Text: strings.TrimSpace(asked.Get("q")), Action: asked.Get("action"), Outcome: asked.Get("outcome"), Profile: asked.Get("profile"),
			Protocol: asked.Get("protocol"), Since: asked.Get("since"), Until: asked.Get("until")}}
	for _, o := range outcomeWords() {
		v.Outcomes = append(v.Outcomes, o.Outcome)
	}
	for _, p := range c.cfg.Site().Profiles {
		v.Profiles = append(v.Profiles, p.Name)
	}
	if v.Size, _, err = c.cfg.Store.LogHead(); err != nil {
		return err
	}
	if v.Continuity, err = c.continuityOf(r.Context(), asked.Get("checkpoint")); err != nil {
		return err
	}
	query, err := v.Filter.query(before)
	if err != nil {
		p, _ := problemOf(err)
		v.Wrong = &p
		return c.render(w, p.Status, "explorer", v)
	}
	found, err := c.cfg.Store.FindRecords(query)
	if err != nil {
		return err
	}
	v.Entries, v.Older, v.Searched, v.Reached, v.Damaged = entriesOf(found.Records), found.Next, found.Searched, found.Reached, found.Damaged
	if v.Continuity.Wrong != nil {
		return c.render(w, v.Continuity.Wrong.Status, "explorer", v)
	}
	return c.page(w, "explorer", v)
}
