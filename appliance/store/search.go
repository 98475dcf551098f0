package store

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/cockroachdb/pebble/v2"

	"signet.internal/appliance/audit"
)

// maxDamaged is how many damaged records FindRecords names.
const maxDamaged = 20

// MaxSearched is how many records one call of FindRecords looks at, at most.
const MaxSearched = 100_000

// searchPage is how many records, or places in an index, are looked at while others wait.
const searchPage = 2048

// RecordQuery asks for records of the audit log. What is empty or zero matches every record.
type RecordQuery struct {
	Before uint64 // only records with a smaller index; 0 begins at the newest
	Limit  int    // records at most, up to MaxRecords
	Search int    // records to look at, at most; 0: MaxSearched, which is also the most

	Actions  []audit.Action // any of them
	Outcome  audit.Outcome
	Profile  string
	Protocol string
	Text     string    // in any field that is text, in any case
	Since    time.Time // written then or later
	Until    time.Time // written before
}

// RecordPage is what FindRecords found.
type RecordPage struct {
	Records  []audit.Record // newest first
	Next     uint64         // Before for going on; 0: there is nothing before
	Searched uint64         // records that were looked at
	Reached  time.Time      // when the oldest of them was written; zero: not known
	Damaged  []uint64       // the first of them, newest first, that are not what was written; they are not among Records
}

// FindRecords searches the audit log, newest first. It may find fewer records than there are, or none,
// with a place to go on: one call looks at a bounded number.
//
// Where times bound the search it looks only at the records between, which it finds by halving the log.
// Records are in the order of their times unless the clock was set back; across such a place a search
// may begin or end some records off. A damaged record is named and otherwise passed over.
func (s *Store) FindRecords(q RecordQuery) (RecordPage, error) {
	page, err := s.findRecords(q)
	if err != nil {
		return RecordPage{}, fmt.Errorf("searching audit log: %w", err)
	}
	return page, nil
}

func (s *Store) findRecords(q RecordQuery) (page RecordPage, err error) {
	size, _, err := s.LogHead()
	if err != nil {
		return page, err
	}
	first, end := s.Removed().Before, size
	if !q.Until.IsZero() {
		if end, err = s.firstSince(q.Until, first, size); err != nil {
			return page, err
		}
	}
	if !q.Since.IsZero() {
		if first, err = s.firstSince(q.Since, first, end); err != nil {
			return page, err
		}
	}
	if q.Before > 0 {
		end = min(end, q.Before)
	}
	if end <= first {
		return page, nil
	}
	most := uint64(MaxSearched)
	if q.Search > 0 {
		most = min(most, uint64(q.Search))
	}
	stop := first
	if end-first > most {
		stop = end - most
	}
	at, wanted, limit := end, newSieve(q), min(max(q.Limit, 1), MaxRecords)
	for at > stop && len(page.Records) < limit {
		from := stop
		if at-stop > searchPage {
			from = at - searchPage
		}
		if at, err = s.sift(&page, wanted, from, at, limit); err != nil {
			return RecordPage{}, err
		}
	}
	page.Searched = end - at
	if at > first {
		page.Next = at
	}
	oldest, err := s.Record(at)
	if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNotFound) {
		return RecordPage{}, err
	}
	page.Reached = oldest.Time
	return page, nil
}

// firstSince is the index of the first record from from on, and before to, that was written at t or
// later; to where there is none.
func (s *Store) firstSince(t time.Time, from, to uint64) (uint64, error) {
	for from < to {
		middle := from + (to-from)/2
		one, err := s.Records(middle+1, 1) // for a damaged one, which has no time, the one before stands
		if err != nil {
			return 0, err
		}
		at := middle
		if len(one) == 1 {
			at = one[0].Index
		}
		// Retention may have removed it just now, with all before it.
		if len(one) == 0 || at < from || one[0].Time.Before(t) {
			from = middle + 1
		} else {
			to = at
		}
	}
	return from, nil
}

// sift adds to a page what is wanted of the records before to, newest first, down to from or until the
// page is full. It returns the index of the last one that it looked at.
func (s *Store) sift(page *RecordPage, wanted *sieve, from, to uint64, limit int) (at uint64, err error) {
	at = from
	err = s.read(func(db *pebble.DB) (err error) {
		it, err := db.NewIter(&pebble.IterOptions{LowerBound: auditKey(from), UpperBound: auditKey(to)})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, it.Close()) }()
		for ok := it.Last(); ok; ok = it.Prev() {
			if !wanted.mayPass(it.Value()) {
				continue
			}
			r, err := decodeAudit(it.Key()[1:], it.Value())
			if errors.Is(err, ErrDamaged) {
				if len(page.Damaged) < maxDamaged && len(it.Key()) == 9 {
					page.Damaged = append(page.Damaged, binary.BigEndian.Uint64(it.Key()[1:]))
				}
				continue
			}
			if err != nil {
				return err
			}
			if !wanted.passes(r) {
				continue
			}
			page.Records = append(page.Records, r)
			if len(page.Records) == limit {
				at = r.Index
				return nil
			}
		}
		return it.Error()
	})
	return at, err
}

// sieve tells the records that a query asks for from the others. Most are told from the bytes of their
// leaf, which has one canonical encoding, without being read.
type sieve struct {
	q    RecordQuery
	text string   // lower case
	all  [][]byte // of the leaf; every one has to be there
	any  [][]byte // one of them has to be, unless there are none
	part []byte   // of the leaf in lower case

	lower []byte // the leaf looked at in lower case, written over by the next
}

func newSieve(q RecordQuery) *sieve {
	s := &sieve{q: q, text: strings.ToLower(strings.ToValidUTF8(q.Text, "\ufffd"))}
	member := func(name, value string) []byte { return fmt.Appendf(nil, `"%s":"%s"`, name, inJSON(value)) }
	for _, f := range []struct{ name, value string }{{"outcome", string(q.Outcome)}, {"profile", q.Profile}, {"protocol", q.Protocol}} {
		if f.value != "" {
			s.all = append(s.all, member(f.name, f.value))
		}
	}
	for _, a := range q.Actions {
		s.any = append(s.any, member("action", string(a)))
	}
	if s.text != "" {
		s.part = inJSON(s.text)
	}
	return s
}

// inJSON writes text as it stands between the quotes in a leaf.
func inJSON(text string) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(text); err != nil {
		panic("store: encoding a string: " + err.Error()) // cannot happen
	}
	quoted := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	return quoted[1 : len(quoted)-1]
}

// mayPass is false for what is certainly not wanted.
func (s *sieve) mayPass(value []byte) bool {
	leaf := value[min(len(value), 33):]
	in := func(part []byte) bool { return bytes.Contains(leaf, part) }
	for _, part := range s.all {
		if !in(part) {
			return false
		}
	}
	if len(s.any) > 0 && !slices.ContainsFunc(s.any, in) {
		return false
	}
	return len(s.part) == 0 || bytes.Contains(s.toLower(leaf), s.part)
}

// toLower is bytes.ToLower that makes no copy of most leaves.
func (s *sieve) toLower(leaf []byte) []byte {
	s.lower = append(s.lower[:0], leaf...)
	for i, c := range s.lower {
		switch {
		case c >= utf8.RuneSelf:
			return bytes.ToLower(leaf)
		case 'A' <= c && c <= 'Z':
			s.lower[i] = c + 'a' - 'A'
		}
	}
	return s.lower
}

func (s *sieve) passes(r audit.Record) bool {
	q := s.q
	is := func(asked, has string) bool { return asked == "" || asked == has }
	if !is(string(q.Outcome), string(r.Outcome)) || !is(q.Profile, r.Profile) || !is(q.Protocol, r.Protocol) ||
		len(q.Actions) > 0 && !slices.Contains(q.Actions, r.Action) {
		return false
	}
	if s.text == "" {
		return true
	}
	return slices.ContainsFunc([]string{
		r.Identity, r.Serial, r.Actor, r.Source, r.Transaction, r.CSRSHA256, r.Reason, r.Profile, string(r.Action),
	}, func(field string) bool { return strings.Contains(strings.ToLower(field), s.text) })
}

// DueQuery asks for certificates that are near their end and were not renewed.
type DueQuery struct {
	Now     time.Time
	Windows map[string]time.Duration // by profile: how long before its end a certificate is due; profiles that are not here have none
	Limit   int
	After   string // what the call before returned as next
}

// due is a certificate in the index by identity.
type due struct {
	end    uint64 // Unix milliseconds
	serial string
}

func (d due) compare(o due) int {
	return cmp.Or(cmp.Compare(d.end, o.end), strings.Compare(d.serial, o.serial))
}

// maxDueRead is how many certificates one call of DueCertificates reads.
const maxDueRead = 20_000

// DueCertificates returns up to q.Limit certificates that are due, see [Transaction.DueFrom], are not over,
// revoked or renewed, and were handed out: the one that ends first at the beginning. next is where to go
// on, "" at the end; it may find fewer than there are, or none. It looks at every certificate's place in an
// index, and reads a bounded number of those within their profile's window.
func (s *Store) DueCertificates(q DueQuery) (found []Transaction, next string, err error) {
	after, err := parseDue(q.After)
	if err != nil {
		return nil, "", err
	}
	all, err := s.dueAfter(q, after)
	if err != nil {
		return nil, "", fmt.Errorf("listing certificates that are due: %w", err)
	}
	slices.SortFunc(all, due.compare)
	for i, d := range all {
		if len(found) == q.Limit || i == maxDueRead {
			return found, next, nil
		}
		next = hex.EncodeToString(append(binary.BigEndian.AppendUint64(nil, d.end), d.serial...))
		t, err := s.Transaction(d.serial)
		if err != nil {
			return nil, "", fmt.Errorf("listing certificates that are due: %w", err)
		}
		if t.State == Issued && !t.Revoked() && t.SupersededBy == "" && !t.Withheld && !q.Now.Before(t.DueFrom(q.Windows[t.Profile])) {
			found = append(found, t)
		}
	}
	return found, "", nil
}

// DueFrom is when a certificate should have been renewed, where its profile says how long before its end:
// not before the last third of its life.
func (t Transaction) DueFrom(window time.Duration) time.Time {
	return t.NotAfter.Add(-min(window, t.NotAfter.Sub(t.Decided)/3))
}

// parseDue reads what DueCertificates returned as next.
func parseDue(text string) (due, error) {
	if text == "" {
		return due{}, nil
	}
	b, err := hex.DecodeString(text)
	if err != nil || len(b) < 8 || checkSerial(string(b[8:])) != nil {
		return due{}, ErrCursor
	}
	return due{end: binary.BigEndian.Uint64(b), serial: string(b[8:])}, nil
}

// dueAfter goes through the index by identity, whose keys say when a certificate ends and whose values
// of which profile it is.
func (s *Store) dueAfter(q DueQuery, after due) (all []due, err error) {
	now := uint64(max(q.Now.UnixMilli(), 0))
	lower := []byte{prefixIdentity}
	for lower != nil {
		err := s.read(func(db *pebble.DB) (err error) {
			it, err := db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: []byte{prefixIdentity + 1}})
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, it.Close()) }()
			lower = nil
			looked := 0
			for ok := it.First(); ok; ok = it.Next() {
				if looked++; looked > searchPage {
					lower = bytes.Clone(it.Key())
					return nil
				}
				serial, err := serialIn(it.Key())
				if err != nil {
					return err
				}
				k := it.Key()
				d := due{end: binary.BigEndian.Uint64(k[len(k)-len(serial)-8:]), serial: serial}
				window := q.Windows[string(it.Value())]
				if d.end > now && d.end <= now+uint64(window.Milliseconds()) && d.compare(after) > 0 {
					all = append(all, d)
				}
			}
			return it.Error()
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}
