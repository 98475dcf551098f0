package webui

import (
	"signet.internal/appliance/audit"
)

// activity is one page of the audit log.
type activity struct {
	All     bool // every record, not enrollments alone
	Entries []audit.Record
	Newer   bool   // this is not the first page
	Older   uint64 // before= of the next page; 0 on the last
}

const (
	entriesPerPage = 15
	// entriesScanned bounds how much of the log one page reads when few records are enrollments.
	entriesScanned = 1000
)

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
