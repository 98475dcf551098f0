package webui

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"html/template"
	"io/fs"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"signet.internal/appliance/audit"
)

func parsePages(files fs.FS, a assets) (*template.Template, error) {
	return template.New("").Funcs(template.FuncMap{
		"asset":  a.url,
		"iso":    func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"expiry": expiryOf,
		"groups": groups,
		"day":    func(t time.Time) string { return t.UTC().Format("2006-01-02") },
		"clock":  func(t time.Time) string { return t.UTC().Format("15:04:05") },
		"pair": func(label string, cert *Certificate, now time.Time) labelled {
			return labelled{label, cert, now}
		},
		"sentence": sentence,
		"unbroken": unbroken,
		"visible":  visible,
		"once":     rand.Text,
		"tone":     outcomeTone,
	}).Funcs(accountFuncs()).ParseFS(files, "templates/*.html")
}

// labelled is a certificate and what it is called on the page.
type labelled struct {
	Label       string
	Certificate *Certificate
	Now         time.Time
}

// sentence makes an error's text one: a capital first, where that is not a file's name, a stop at the end.
func sentence(s string) string {
	first, n := utf8.DecodeRuneInString(s)
	if n == 0 {
		return s
	}
	if word, _, _ := strings.Cut(s, " "); !strings.Contains(word, "/") {
		first = unicode.ToUpper(first)
	}
	return string(first) + strings.TrimSuffix(s[n:], ".") + "."
}

var isoDate = regexp.MustCompile(`\d{4}-\d\d-\d\d`)

// unbroken is text in which no line ends within a date.
func unbroken(s string) template.HTML {
	return template.HTML(isoDate.ReplaceAllString(template.HTMLEscapeString(s), `<span class="day">$0</span>`))
}

// isUnseen tells of characters that have no shape of their own, such as those that turn the writing direction
// around, have no width, or are ignored where a font does not know them (Unicode, Default_Ignorable_Code_Point).
func isUnseen(r rune) bool {
	const brailleBlank = '\u2800'
	return !unicode.IsPrint(r) || unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) || r == brailleBlank
}

func spell(r rune) string { return strings.Trim(strconv.QuoteRuneToASCII(r), "'") }

// visible spells out the characters that are not seen: a device must not be able to look like another in the log.
func visible(s string) string {
	if !strings.ContainsFunc(s, isUnseen) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if isUnseen(r) {
			b.WriteString(spell(r))
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// legible is visible for a whole page, whose lines and indents stay: whatever text of whomever is in it, also where
// its template forgot that. Markup has no such characters of its own.
func legible(page []byte) []byte {
	hidden := func(r rune) bool { return isUnseen(r) && r != '\n' && r != '\r' && r != '\t' }
	if !bytes.ContainsFunc(page, hidden) {
		return page
	}
	out := make([]byte, 0, len(page)+1024)
	for _, r := range string(page) {
		if hidden(r) {
			out = append(out, spell(r)...)
		} else {
			out = utf8.AppendRune(out, r)
		}
	}
	return out
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
