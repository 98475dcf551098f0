// Package audit defines what the box writes down about every decision: the record, its one
// canonical encoding, and the leaf hash that puts it into the RFC 6962 Merkle tree.
//
// The leaf of a record is the exact bytes the store keeps. A verifier years later hashes those
// bytes as they come and never has to re-encode anything; [Parse] exists to read them.
package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/transparency-dev/merkle/rfc6962"
)

// Bounds of one record, in bytes after UTF-8 repair. What does not fit is cut at a character and
// ends in "…"; a record therefore never exceeds MaxLeaf bytes however long the sender's
// transaction id or subject is.
const (
	MaxText   = 256
	MaxReason = 512
	MaxLeaf   = 32 << 10
)

// timeLayout is RFC 3339 in UTC with exactly three decimals.
const timeLayout = "2006-01-02T15:04:05.000Z"

// Outcome says how the recorded action ended.
type Outcome string

const (
	OutcomeSuccess Outcome = "success" // it took effect; for an enrollment: a certificate was issued
	OutcomeBegun   Outcome = "begun"   // intent recorded, nothing signed yet
	OutcomePending Outcome = "pending" // a person has to decide
	OutcomeFailed  Outcome = "failed"  // the box could not do it; no signature exists
	OutcomeLost    Outcome = "lost"    // the box could not finish; a signature may exist, the serial is burnt
	OutcomeRefused Outcome = "refused" // the box decided against it
)

// Record is one line of the audit log. All fields are text a person can read; empty means "does not
// apply". Fields that come from the network (Identity, Transaction) are whatever the sender wrote:
// display them escaped and decide nothing by them.
type Record struct {
	Index       uint64    // position in the log and leaf index in the tree, from 0; assigned by the store
	Time        time.Time // when it was decided, millisecond resolution, UTC
	TimeSource  string    // what the clock was set by: "rtc", "host", …
	Action      Action
	Actor       string // who: "device", "box", or a user's name
	Source      string // network address the request came from
	Profile     string // enrollment profile
	Protocol    string // "scep", …
	Transaction string // transaction id as the client sent it
	Identity    string // who the certificate is (to be) for
	Serial      string // lower-case hex
	CSRSHA256   string // lower-case hex SHA-256 of the PKCS#10's DER
	Outcome     Outcome
	Reason      string // why, in words; empty when there is nothing to explain
}

// encoded fixes names and order of the keys. Every key is always present.
type encoded struct {
	Index       uint64  `json:"index"`
	Time        string  `json:"time"`
	TimeSource  string  `json:"time_source"`
	Action      Action  `json:"action"`
	Actor       string  `json:"actor"`
	Source      string  `json:"source"`
	Profile     string  `json:"profile"`
	Protocol    string  `json:"protocol"`
	Transaction string  `json:"transaction"`
	Identity    string  `json:"identity"`
	Serial      string  `json:"serial"`
	CSRSHA256   string  `json:"csr_sha256"`
	Outcome     Outcome `json:"outcome"`
	Reason      string  `json:"reason"`
}

// MarshalJSON writes the canonical encoding, so that every place that shows a record as JSON (API,
// export) shows the same keys.
func (r Record) MarshalJSON() ([]byte, error) { return Leaf(r), nil }

// UnmarshalJSON reads what MarshalJSON wrote; an unknown key is an error.
func (r *Record) UnmarshalJSON(b []byte) error {
	rec, err := decode(b)
	if err != nil {
		return err
	}
	*r = rec
	return nil
}

// removedForm is the identity of a record of RecordsRemoved.
const removedForm = "records before %d"

// RemovedBefore is the identity of a record that tells of the removal of all records before one.
func RemovedBefore(first uint64) string { return fmt.Sprintf(removedForm, first) }

// Removed says which record was the first to stay, where r tells of a removal.
func (r Record) Removed() (first uint64, ok bool) {
	if r.Action != RecordsRemoved || r.Outcome != OutcomeSuccess {
		return 0, false
	}
	n, err := fmt.Sscanf(r.Identity, removedForm, &first)
	return first, n == 1 && err == nil && r.Identity == RemovedBefore(first)
}

// Check refuses a record that would not say when, by which clock, what and with what outcome.
func (r Record) Check() error {
	for _, f := range []struct {
		name    string
		missing bool
	}{
		{"time", r.Time.IsZero()},
		{"time source", r.TimeSource == ""},
		{"action", r.Action == ""},
		{"outcome", r.Outcome == ""},
	} {
		if f.missing {
			return fmt.Errorf("audit record %q without %s", r.Action, f.name)
		}
	}
	return nil
}

// Leaf returns the canonical encoding of r: one JSON object without spaces or line end, keys in the
// order index, time, time_source, action, actor, source, profile, protocol, transaction, identity,
// serial, csr_sha256, outcome, reason, all always present; index a number, everything else a string;
// time in UTC with three decimals. Strings are repaired to valid UTF-8 (U+FFFD for each wrong byte)
// and cut to MaxText bytes, reason to MaxReason.
func Leaf(r Record) []byte {
	e := encoded{
		Index:       r.Index,
		Time:        clampYear(r.Time).UTC().Truncate(time.Millisecond).Format(timeLayout),
		TimeSource:  bound(r.TimeSource, MaxText),
		Action:      Action(bound(string(r.Action), MaxText)),
		Actor:       bound(r.Actor, MaxText),
		Source:      bound(r.Source, MaxText),
		Profile:     bound(r.Profile, MaxText),
		Protocol:    bound(r.Protocol, MaxText),
		Transaction: bound(r.Transaction, MaxText),
		Identity:    bound(r.Identity, MaxText),
		Serial:      bound(r.Serial, MaxText),
		CSRSHA256:   bound(r.CSRSHA256, MaxText),
		Outcome:     Outcome(bound(string(r.Outcome), MaxText)),
		Reason:      bound(r.Reason, MaxReason),
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		panic("audit: encoding strings and a number: " + err.Error()) // cannot happen for these types
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
}

// LeafHash returns the RFC 6962 §2.1 leaf hash of a leaf: SHA-256 over 0x00 and the bytes.
func LeafHash(leaf []byte) [32]byte {
	return [32]byte(rfc6962.DefaultHasher.HashLeaf(leaf))
}

// Parse reads a leaf and refuses one that is not in the canonical encoding, so that two different
// leaves never read as the same record.
func Parse(leaf []byte) (Record, error) {
	if len(leaf) > MaxLeaf {
		return Record{}, fmt.Errorf("reading audit record: %d bytes, more than %d", len(leaf), MaxLeaf)
	}
	r, err := decode(leaf)
	if err != nil {
		return Record{}, err
	}
	if !bytes.Equal(Leaf(r), leaf) {
		return Record{}, fmt.Errorf("reading audit record %d: not in canonical encoding", r.Index)
	}
	return r, nil
}

func decode(b []byte) (Record, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var e encoded
	if err := dec.Decode(&e); err != nil {
		return Record{}, fmt.Errorf("reading audit record: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return Record{}, fmt.Errorf("reading audit record %d: data after the record", e.Index)
	}
	t, err := time.Parse(timeLayout, e.Time)
	if err != nil {
		return Record{}, fmt.Errorf("reading audit record %d: %w", e.Index, err)
	}
	return Record{
		Index: e.Index, Time: t, TimeSource: e.TimeSource, Action: e.Action, Actor: e.Actor,
		Source: e.Source, Profile: e.Profile, Protocol: e.Protocol, Transaction: e.Transaction,
		Identity: e.Identity, Serial: e.Serial, CSRSHA256: e.CSRSHA256, Outcome: e.Outcome, Reason: e.Reason,
	}, nil
}

// bound makes s valid UTF-8 of at most limit bytes. The input is cut first, so repairing costs no
// more than the limit however long the sender's string is.
func bound(s string, limit int) string {
	const ellipsis = "…"
	cut := false
	if len(s) > limit {
		s, cut = dropPartial(s[:limit]), true
	}
	s = repair(s)
	if len(s) <= limit && !cut {
		return s
	}
	room := limit - len(ellipsis)
	for len(s) > room {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return s + ellipsis
}

// dropPartial removes a character that the end of s cuts in two.
func dropPartial(s string) string {
	for i := len(s) - 1; i >= max(0, len(s)-utf8.UTFMax); i-- {
		if !utf8.RuneStart(s[i]) {
			continue
		}
		if !utf8.FullRuneInString(s[i:]) {
			return s[:i]
		}
		break
	}
	return s
}

// repair replaces every byte that is not part of valid UTF-8 by U+FFFD.
func repair(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for _, r := range s { // ranging yields U+FFFD per wrong byte
		b.WriteRune(r)
	}
	return b.String()
}

// clampYear keeps the year in the four digits the layout has.
func clampYear(t time.Time) time.Time {
	t = t.UTC()
	switch {
	case t.Year() < 1:
		return time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC)
	case t.Year() > 9999:
		return time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	}
	return t
}
