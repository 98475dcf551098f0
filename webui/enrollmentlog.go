package webui

import (
	"net/http"
	"slices"

	"signet.internal/appliance/audit"
)

// chip narrows a list of enrollments.
type chip struct {
	Key     string // in the address
	Label   string
	Current bool
	actions []audit.Action // of the records it lists
}

// enrollmentLog is one page of the records of a protocol's enrollments, newest first.
type enrollmentLog struct {
	Path    string       // of the page it is on
	Refused audit.Action // of requests that were refused before they got this far
	Show    string       // the chip that is chosen
	Chips   []chip
	Entries []entry
	Newer   bool   // this is not the first page
	Older   uint64 // before= of the next page; 0 on the last
}

const (
	logPage = 15
	// logScanned bounds how much of the audit log one page reads where few records are of the protocol.
	logScanned = 4000
)

// enrollmentLog reads the page of records that the address asks for: those that the chip in show lists, the
// first chip's where there is none of that name, below the index in before.
func (c *console) enrollmentLog(r *http.Request, path string, refused audit.Action, chips []chip) (*enrollmentLog, error) {
	before, err := queryUint(r, "before", 0, 0, 1<<63)
	if err != nil {
		return nil, err
	}
	show := r.URL.Query().Get("show")
	chosen := max(0, slices.IndexFunc(chips, func(c chip) bool { return c.Key == show }))
	chips[chosen].Current = true
	out := &enrollmentLog{Path: path, Refused: refused, Show: chips[chosen].Key, Chips: chips, Newer: before != 0}
	out.Entries, out.Older, err = c.scanLog(before, logPage, func(r audit.Record) bool { return slices.Contains(chips[chosen].actions, r.Action) })
	return out, err
}

// scanLog collects up to limit records below before that wanted is true of, newest first. older is where
// the search goes on, 0 where the log ends.
func (c *console) scanLog(before uint64, limit int, wanted func(audit.Record) bool) (found []entry, older uint64, err error) {
	for scanned := 0; scanned < logScanned; {
		records, err := c.cfg.Store.Records(before, 500)
		if err != nil {
			return nil, 0, err
		}
		for _, r := range records {
			if !wanted(r) {
				continue
			}
			if len(found) == limit {
				return found, r.Index + 1, nil // there is at least one more
			}
			found = append(found, entry{r})
		}
		scanned += len(records)
		if len(records) == 0 || records[len(records)-1].Index == 0 {
			return found, 0, nil
		}
		before = records[len(records)-1].Index
	}
	return found, before, nil
}
