package box

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	"signet.internal/appliance/handover"
)

// The smallest screen a box may have.
const (
	pageWidth  = 80
	pageHeight = 25
)

// Page is everything the screen says. Fields that are empty take no room.
type Page struct {
	Name, Version string
	Epoch         uint32
	Debug         bool
	State         string // what the box is doing now: "opening keys", "ready"
	Addresses     []string
	URLs          []pageURL
	ClaimCode     string // "" before the service is ready, and once claimed
	Claimed       bool
	TLSSHA256     string // lower-case hex
	SecureBoot    string
	Boot          []handover.Condition // what the boot found
	Network       *handover.Condition  // what is wrong with the network
	Service       []handover.Condition // what is wrong with the service
	Said          *handover.Condition  // what the service says is wrong
	Halted        *handover.Condition  // set: the box does not go on
	Detail        string               // technical cause of Halted
}

type pageURL struct{ Name, URL string }

// maxDetail bounds the lines of technical detail.
const maxDetail = 5

// demoSite is the name of the example site, whose secrets everyone knows.
const demoSite = "demo"

// text is the page as lines of at most pageWidth printable characters, at most pageHeight-1 of
// them so that a cursor below the last one does not scroll the screen.
func (p *Page) text() []string {
	head := p.head()
	if p.Halted != nil {
		head = append(head, p.haltedLines()...)
		return cutLines(head, nil)
	}
	head = append(head, p.serviceLines()...)
	var wrong []string
	for _, c := range p.conditions() {
		wrong = append(wrong, conditionLines(c)...)
	}
	return cutLines(head, wrong)
}

// conditions are all that needs a person, the most pressing first. What the service says comes last:
// one that was taken over must not push what the box itself found off the screen.
func (p *Page) conditions() []handover.Condition {
	all := slices.Clone(p.Service)
	if p.Network != nil {
		all = append(all, *p.Network)
	}
	all = append(all, p.Boot...)
	if p.Said != nil {
		all = append(all, *p.Said)
	}
	return all
}

func (p *Page) head() []string {
	title := "  SIGNET"
	if p.Name != "" {
		title += "  " + clean(p.Name) + " " + clean(p.Version)
	}
	right := ""
	if p.Epoch != 0 {
		right = fmt.Sprintf("epoch %d  ", p.Epoch)
	}
	if gap := pageWidth - len(title) - len(right); gap > 0 {
		title += strings.Repeat(" ", gap) + right
	}
	lines := []string{strings.TrimRight(title, " "), strings.Repeat("=", pageWidth)}
	if p.Name == demoSite {
		lines = append(lines, "  DEMO SITE, never for production: everybody knows its secrets")
	}
	if p.Debug {
		lines = append(lines, "  DEBUG IMAGE with a shell: it cannot open a production box")
	}
	return append(lines, "")
}

func (p *Page) haltedLines() []string {
	lines := []string{"  THE BOX HAS STOPPED and keeps its disk as it is.", ""}
	lines = append(lines, field("What", p.Halted.What)...)
	lines = append(lines, "")
	lines = append(lines, field("Mend", p.Halted.Mend)...)
	if p.Detail != "" {
		detail := field("Detail", p.Detail)
		lines = append(append(lines, ""), detail[:min(len(detail), maxDetail)]...)
	}
	if p.SecureBoot != "" {
		lines = append(lines, "")
		lines = append(lines, field("Secure Boot", p.SecureBoot)...)
	}
	return append(lines, "", "  Press the power button or Ctrl-Alt-Del to switch off.")
}

func (p *Page) serviceLines() []string {
	lines := field("State", p.State)
	for i, a := range p.Addresses {
		name := ""
		if i == 0 {
			name = "Address"
		}
		lines = append(lines, field(name, a)...)
	}
	for _, u := range p.URLs {
		lines = append(lines, field(u.Name, u.URL)...)
	}
	if len(p.TLSSHA256) == 64 {
		lines = append(lines, "")
		lines = append(lines, field("TLS SHA-256", groups(p.TLSSHA256[:32], 4))...)
		lines = append(lines, field("", groups(p.TLSSHA256[32:], 4))...)
	}
	switch {
	case p.Claimed:
		lines = append(lines, "")
		lines = append(lines, field("Claim code", "claimed: an administrator exists")...)
	case p.ClaimCode != "":
		lines = append(lines, "", field("Claim code", "[ "+spaced(p.ClaimCode)+" ]")[0])
		lines = append(lines, field("", "whoever enters it on the console first is the administrator")...)
	}
	if p.SecureBoot != "" {
		lines = append(lines, "")
		lines = append(lines, field("Secure Boot", p.SecureBoot)...)
	}
	return lines
}

// labelWidth is the column where values begin.
const labelWidth = 15

// field is "  label   value", the value wrapped under itself.
func field(label, value string) []string {
	lines := wrap(clean(value), pageWidth-labelWidth-1)
	for i := range lines {
		name := ""
		if i == 0 {
			name = label
		}
		lines[i] = fmt.Sprintf("  %-*s%s", labelWidth-2, name, lines[i])
	}
	return lines
}

func conditionLines(c handover.Condition) []string {
	lines := append([]string{""}, field("! Attention", c.What)...)
	if c.Mend != "" {
		lines = append(lines, field("  Mend", c.Mend)...)
	}
	return lines
}

// cutLines puts the lines that must be there before those that may be cut, and says if it cut.
func cutLines(must, may []string) []string {
	const room = pageHeight - 1
	lines := append(must, may...)
	if len(lines) > room {
		lines = append(lines[:room-1:room-1], "  ... and more, which this screen has no room for")
	}
	return lines
}

// wrap breaks s at spaces into lines of at most width; a longer word is cut. It returns at least
// one line.
func wrap(s string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(s) {
		for len(word) > width {
			if line != "" {
				lines, line = append(lines, line), ""
			}
			lines, word = append(lines, word[:width]), word[width:]
		}
		switch {
		case line == "":
			line = word
		case len(line)+1+len(word) <= width:
			line += " " + word
		default:
			lines, line = append(lines, line), word
		}
	}
	return append(lines, line)
}

// clean makes text from elsewhere harmless on a terminal: printable ASCII, everything else "?".
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case r < 0x20 || r > 0x7e:
			return '?'
		}
		return r
	}, s)
}

// groups puts a space after every n characters.
func groups(s string, n int) string {
	var b strings.Builder
	for i := 0; i < len(s); i += n {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(s[i:min(i+n, len(s))])
	}
	return b.String()
}

// spaced puts the characters of a code apart, so that it reads across a room.
func spaced(code string) string {
	return strings.ReplaceAll(groups(code, 1), "-", " - ")
}
