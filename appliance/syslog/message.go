package syslog

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/store"
)

// Bounds of a message's header, RFC 5424 §6.
const (
	maxHostname = 255
	maxMsgID    = 32
)

const (
	severityInformational = 6
	severityAlert         = 1
)

// sdID names the structured data of a record. The number is RFC 5612's for examples: the box's makers have
// none of their own.
const sdID = "signet@32473"

// parameter is one of the structured data.
type parameter struct{ name, value string }

// message is what goes out: RFC 5424 §6.
type message struct {
	severity int
	at       time.Time // zero: not known
	msgID    string
	data     []parameter
	body     []byte
}

// record appends the framed message of a record: its leaf, as it is stored. What cannot be read is sent
// all the same, as an alert: the receiver has to see it.
func (c Config) record(to []byte, index uint64, leaf []byte) []byte {
	m := message{severity: severityAlert, msgID: "unreadable", data: []parameter{{"index", strconv.FormatUint(index, 10)}}, body: leaf}
	if r, err := audit.Parse(leaf); err == nil && r.Index == index {
		m.severity, m.at, m.msgID = severity(r.Outcome), r.Time, string(r.Action)
		m.data = append(m.data, parameter{"action", string(r.Action)}, parameter{"outcome", string(r.Outcome)})
	}
	return c.frame(to, m)
}

// checkpoint appends the framed message of a checkpoint over size records: the last line of an export.
func (c Config) checkpoint(to []byte, size uint64, signed store.Checkpoint) []byte {
	return c.frame(to, message{
		severity: severityInformational, at: signed.At, msgID: "checkpoint", data: []parameter{{"size", strconv.FormatUint(size, 10)}},
		body: bytes.TrimSuffix(audit.CheckpointLine(signed.Note), []byte("\n")),
	})
}

// frame appends a message with its length before it, RFC 5425 §4.3.
func (c Config) frame(to []byte, m message) []byte {
	at := "-"
	if !m.at.IsZero() {
		at = m.at.UTC().Format("2006-01-02T15:04:05.000Z")
	}
	head := fmt.Appendf(nil, "<%d>1 %s %s signet - %s [origin software=\"signet\" swVersion=\"%s\"][%s site=\"%s\"",
		8*c.Facility+m.severity, at, printable(c.Hostname, maxHostname), printable(m.msgID, maxMsgID), escaped(c.Version), sdID, escaped(c.Site))
	for _, p := range m.data {
		head = fmt.Appendf(head, " %s=\"%s\"", p.name, escaped(p.value))
	}
	head = append(head, "] "...)
	to = strconv.AppendInt(to, int64(len(head)+len(m.body)), 10)
	to = append(to, ' ')
	to = append(to, head...)
	return append(to, m.body...)
}

// printable is a field of the header: printable ASCII without spaces, "-" for nothing.
func printable(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '_'
		}
		return r
	}, s)
	if s == "" {
		return "-"
	}
	return s[:min(len(s), limit)]
}

// escaped is the value of a parameter, RFC 5424 §6.3.3.
func escaped(s string) string { return strings.NewReplacer(`\`, `\\`, `"`, `\"`, `]`, `\]`).Replace(s) }
